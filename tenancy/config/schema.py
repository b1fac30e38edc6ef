"""Every key of `penstock.yaml`, once: its type, its default as it would be written, and what it is for.

Validation, the JSON Schema for editors and the tables of `docs/configuration.md` follow from these classes; a key is
added here and nowhere else. What keys say about each other (names that must exist, forms that exclude each other) is
`references`' affair, and the facts that follow from them are made in `facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from tenancy.config import written

ENGINES = ("vllm", "sglang", "llama.cpp", "simulator", "openai")
RUN_BY_US = ("llama.cpp", "simulator")
HOST, SERVER_PORT, ADMIN_PORT = "127.0.0.1", 8080, 8081

NOT_YET: Mapping[str, str] = MappingProxyType(
    {
        "profiles[].priority": "nothing is preempted or ranked by profile",
        "profiles[].preemptible": "nothing is preempted",
        "pods[].mps.memory": "it is charged to the device, but the pod's process is not held to it",
        "pods[].mps.threads": "the pod's process is not held to it",
        "pods[].continuation": "a broken stream ends with an error event",
        "tenants[].weight": "tenants take turns one by one",
        "tenants[].cache": "no answer is kept",
        "server.corsOrigins": "no browser's cross-origin call is answered",
        "admin.token": "there is nothing under /admin",
        "retries.backoff": "another pod is tried at once",
        "retries.factor": "another pod is tried at once",
        "retries.maxBackoff": "another pod is tried at once",
        "retries.jitter": "another pod is tried at once",
        "retries.budget": "attempts a call are the only bound",
        "breaker": "probes alone take a pod out",
        "streams.keepAfterEnd": "no stream is kept",
        "streams.keepBytes": "no stream is kept",
        "cache": "no answer is kept",
    }
)
"""The keys of parts still to come, and what holds until then. They are checked as all are; `check` lists those set."""


def _required(meaning: str) -> Any:
    return Field(description=meaning)


def _optional(meaning: str) -> Any:
    return Field(default=None, description=meaning)


def _default(value: object, meaning: str) -> Any:
    """A key with a default, given as it would be written in the file."""
    return Field(default=value, description=meaning, validate_default=True)


def _or_short(full: dict[str, Any], short: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an entry that may be written as one text."""
    return {"anyOf": [short, full], "description": full.get("description", "")}


class Keys(BaseModel):
    """A mapping of the file: these keys and no others."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True)


class ProfileKeys(Keys):
    """What a class of work may have."""

    name: Annotated[str, written.name()] = _required("What tenants and pods call it.")
    gpu_share: Annotated[bool, written.boolean()] = _default(
        True,
        "Whether its pods share devices. `false`: a pod takes its devices whole, a tenant goes to devices of its own.",
    )
    max_memory: Annotated[int | None, written.size()] = _optional(
        "The most memory that a pod of this profile may have on a device."
    )
    overcommit_ratio: Annotated[float, written.number(at_least=1)] = _default(
        1.0, "How many times its guaranteed memory a tenant may hold while a pod has room."
    )
    priority: Annotated[int, written.integer()] = _default(0, "Who comes first; higher is earlier.")
    preemptible: Annotated[bool, written.boolean()] = _default(False, "Whether its calls may be paused for others.")


class DeviceKeys(Keys):
    """One GPU."""

    name: Annotated[str, written.name()] = _required("What pods and budgets call it.")
    uuid: Annotated[str | None, written.text()] = _optional("The GPU's UUID, as `nvidia-smi -L` prints it.")
    memory: Annotated[int | None, written.size()] = _optional("Its memory; left out, nothing on it is added up.")
    overhead: Annotated[int, written.size(0)] = _default("0", "What each pod's process costs beside its own limit.")


class ModelKeys(Keys):
    """A model, by the name that tenants use."""

    name: Annotated[str, written.model_name()] = _required("What clients send as `model`.")
    context: Annotated[int | None, written.count(1)] = _optional("The most tokens of prompt and output together.")
    kv_bytes_per_token: Annotated[int | None, written.size()] = _optional(
        "KV memory of one token. Left out: a pod's `kvMemory` divided by its KV size in tokens, where both are known."
    )
    aliases: list[Annotated[str, written.model_name()]] = Field(
        default_factory=list, description="Further names by which clients may ask for it."
    )


class ServedKeys(Keys):
    """A model on a pod."""

    name: Annotated[str, written.model_name()] = _required("The model's name in this file.")
    served: Annotated[str | None, written.text()] = _optional("What the pod itself calls it; left out, the same.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return value if isinstance(value, dict) else {"name": value}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _or_short(handler(schema), dict(written.model_name().json))


class MpsKeys(Keys):
    """Limits under which a pod runs as an MPS client."""

    memory: Annotated[int | None, written.size()] = _optional(
        "The most memory of each of its devices that the pod may take."
    )
    threads: Annotated[int | None, written.count(1, 100)] = _optional(
        "The share of a device's threads that it may use, in percent."
    )


class PodKeys(Keys):
    """One inference server: found at `url`, run by us from `engine`, or supervised by us from `command`."""

    name: Annotated[str, written.name()] = _required("What logs, metrics and `x-penstock-pod` call it.")
    device: Annotated[tuple[str, ...] | None, written.one_or_more_names()] = _optional(
        "The device it is on, or a list of them. Left out: the pod is a device of its own."
    )
    profile: Annotated[str | None, written.name()] = _optional("Its profile; calls of that profile come here first.")
    models: list[ServedKeys] = Field(min_length=1, description="The models it serves: names, or `{name, served}`.")
    engine: Annotated[str | None, written.choice(*ENGINES)] = _optional(
        "What kind of server it is; left out, it is probed. Without `url`, Penstock runs `llama.cpp` and `simulator`."
    )
    url: Annotated[str | None, written.http_url()] = _optional("Where it listens, without `/v1`.")
    command: Annotated[tuple[str, ...] | None, written.words()] = _optional(
        "A command to run and supervise; needs `url`."
    )
    env: Annotated[dict[str, str], written.environment()] = Field(
        default_factory=dict,
        description="Environment variables for a pod that Penstock starts, beside those it inherits: all of the "
        "gateway's but the ones named like credentials (KEY, TOKEN, SECRET, …).",
    )
    options: Annotated[tuple[str, ...] | None, written.words()] = _optional(
        "Further command-line words for an engine run by Penstock; `penstock pod ENGINE --help` lists them."
    )
    model: Annotated[str | None, written.text()] = _optional("The model's file, for an engine run by Penstock.")
    slots: Annotated[int | None, written.count(1)] = _optional(
        "How many calls an engine run by Penstock works on at once."
    )
    mps: MpsKeys | None = _optional("Its limits as an MPS client.")
    api_key: Annotated[str | None, written.text(is_secret=True)] = _optional("The key that the pod itself asks for.")
    memory: Annotated[int | None, written.size()] = _optional(
        "What it takes of each of its devices, where `mps.memory` does not say it."
    )
    kv_memory: Annotated[int | None, written.size()] = _optional(
        "Its KV memory, over all its devices, where it does not tell it."
    )
    concurrency: Annotated[int | None, written.count(1)] = _optional(
        "How many calls it works on at once, where it does not tell it."
    )
    continuation: Annotated[str | None, written.choice("prefill", "none")] = _optional(
        "Whether it goes on with a begun answer; left out, what its engine is known to do."
    )
    tenants: list[Annotated[str, written.name()]] | None = Field(
        default=None,
        min_length=1,
        description="The only tenants it serves. One alone: its memory is charged to that tenant's.",
    )
    profiles: list[Annotated[str, written.name()]] | None = Field(
        default=None, min_length=1, description="The only profiles whose tenants it serves."
    )


class QueueOfTenantKeys(Keys):
    """A tenant's part of the queue."""

    depth: Annotated[int | None, written.count(0)] = _optional("The most calls of this tenant that wait.")
    timeout: Annotated[float | None, written.duration(above_zero=False)] = _optional(
        "How long a call of this tenant waits."
    )


class CacheOfTenantKeys(Keys):
    """A tenant's own cache; what is left out is as in `cache`."""

    entries: Annotated[int | None, written.count(0)] = _optional("The most answers kept.")
    ttl: Annotated[float | None, written.duration()] = _optional("How long an answer is kept.")
    bytes: Annotated[int | None, written.size(0)] = _optional("The most memory that answers take.")


class BudgetKeys(Keys):
    """What a tenant may have; what is left out is not limited."""

    memory: Annotated[int | dict[str, int] | None, written.memory()] = _optional(
        "GPU memory of all its calls at once: a size, or one for each device (`{gpu0: 2Gi}`; a device not named is 0)."
    )
    concurrency: Annotated[int | None, written.count(1)] = _optional("Calls at once.")
    requests_per_minute: Annotated[int | None, written.count(1)] = _optional("Calls in any 60 seconds.")
    tokens_per_minute: Annotated[int | None, written.count(1)] = _optional(
        "Tokens of prompt and output in any 60 seconds."
    )


class KeyKeys(BudgetKeys):
    """An API key: its SHA-256, or the hash with limits of its own below its tenant's."""

    hash: Annotated[str, written.key_hash()] = _required("`sha256:` and the SHA-256 of the key in hex.")
    name: Annotated[str | None, written.name()] = _optional(
        "What logs and refusals call it; left out, the hash's first 8 digits."
    )
    models: list[Annotated[str, written.model_name()]] | None = Field(
        default=None, min_length=1, description="The only models of its tenant's that it may use."
    )
    expires: Annotated[float | None, written.moment()] = _optional(
        "When it ends: a date (its first moment, UTC) or a time."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_hash(cls, value: object) -> object:
        return value if isinstance(value, dict) else {"hash": value}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _or_short(handler(schema), dict(written.key_hash().json))


class TenantKeys(Keys):
    """Who pays."""

    name: Annotated[str, written.name()] = _required("What logs, metrics and refusals call it.")
    profile: Annotated[str | None, written.name()] = _optional("Its profile; left out: shared devices, nothing lent.")
    keys: list[KeyKeys] = Field(
        default_factory=list, description="Its API keys: hashes, or hashes with limits of their own."
    )
    models: list[Annotated[str, written.model_name()]] | None = Field(
        default=None, min_length=1, description="The models it may use; left out, all of them."
    )
    budget: BudgetKeys = Field(default_factory=BudgetKeys, description="What it may have.")
    weight: Annotated[float, written.number(above=0)] = _default(1.0, "Its share of turns in the queue.")
    default_max_tokens: Annotated[int, written.count(1)] = _default(
        1024, "The longest output of a call that states no maximum."
    )
    queue: QueueOfTenantKeys = Field(default_factory=QueueOfTenantKeys, description="Its part of the queue.")
    cache: CacheOfTenantKeys | None = _optional("Its own cache, where it is not as `cache` says.")


class TlsKeys(Keys):
    """What the gateway shows to clients that come by https."""

    cert: Annotated[str, written.text()] = _required("File of the certificate chain, PEM.")
    key: Annotated[str, written.text()] = _required("File of its private key, PEM.")


class ServerKeys(Keys):
    """Where clients come, and how much of their time and bytes is taken."""

    host: Annotated[str, written.text()] = _default(HOST, "The address that it listens on.")
    port: Annotated[int, written.count(0, 65_535)] = _default(SERVER_PORT, "The port; 0 takes a free one.")
    head_bytes: Annotated[int, written.size(1024)] = _default("64Ki", "The longest request head.")
    body_bytes: Annotated[int, written.size()] = _default("32Mi", "The longest request body.")
    head_timeout: Annotated[float, written.duration()] = _default("10s", "How long a head may take to arrive.")
    body_timeout: Annotated[float, written.duration()] = _default("60s", "How long a body may take to arrive.")
    keep_alive: Annotated[float, written.duration(above_zero=False)] = _default(
        "75s", "How long an idle connection stays open."
    )
    drain_delay: Annotated[float, written.duration(above_zero=False)] = _default(
        "0s", "At the end: how long new calls are still taken after `/readyz` said 503."
    )
    drain_timeout: Annotated[float, written.duration(above_zero=False)] = _default(
        "5m", "At the end: how long open streams may take to finish."
    )
    tls: TlsKeys | None = _optional("Certificate and key, for https.")
    cors_origins: list[Annotated[str, written.text()]] = Field(
        default_factory=list, description="Origins whose pages may call from a browser."
    )


class AdminKeys(Keys):
    """Where operators come: `/healthz`, `/readyz` and `/metrics`."""

    host: Annotated[str, written.text()] = _default(HOST, "The address that it listens on.")
    port: Annotated[int, written.count(0, 65_535)] = _default(ADMIN_PORT, "The port; 0 takes a free one.")
    token: Annotated[str | None, written.text(is_secret=True)] = _optional(
        "What opens `/admin`; left out: the variable `PENSTOCK_ADMIN_TOKEN`, and without it `/admin` stays shut."
    )


class QueueKeys(Keys):
    """The queue of all tenants; a tenant's own limits may be smaller."""

    depth: Annotated[int, written.count(0)] = _default(1000, "The most calls that wait.")
    bytes: Annotated[int, written.size(0)] = _default("256Mi", "The most memory that waiting calls take.")
    timeout: Annotated[float, written.duration(above_zero=False)] = _default("10s", "How long a call waits.")
    bypass: Annotated[float, written.duration(above_zero=False)] = _default(
        "1s", "How long later calls may pass one that finds no room on any pod; then they leave it the next room."
    )
    head_after: Annotated[float, written.duration()] = _default(
        "15s", "After how long a waiting stream gets its 200 and heartbeats."
    )


class RetryKeys(Keys):
    """Attempts of a call before its first byte."""

    attempts: Annotated[int, written.count(1, 20)] = _default(3, "The most attempts of one call.")
    backoff: Annotated[float, written.duration()] = _default(
        "1s", "The first pause, where no other pod can be tried at once."
    )
    factor: Annotated[float, written.number(at_least=1)] = _default(2, "How many times as long each further pause is.")
    max_backoff: Annotated[float, written.duration()] = _default("8s", "The longest pause.")
    jitter: Annotated[str, written.choice("full", "none")] = _default(
        "full", "`full`: a pause is anything up to its length."
    )
    budget: Annotated[float, written.ratio()] = _default("20%", "The most retries, as a share of live calls.")


class BreakerKeys(Keys):
    """When a pod or a device is taken out."""

    failures: Annotated[int, written.count(1)] = _default(5, "Failures in a row that open it.")
    rate: Annotated[float, written.ratio()] = _default("50%", "The share of failures in `window` that opens it.")
    window: Annotated[float, written.duration()] = _default("30s", "How far back `rate` looks.")
    minimum: Annotated[int, written.count(1)] = _default(20, "The fewest calls in `window` for `rate` to count.")
    open_for: Annotated[float, written.duration()] = _default("30s", "How long it stays open before one call is tried.")
    eject_at_most: Annotated[float, written.ratio()] = _default(
        "50%", "The largest share of live pods that are out at once."
    )


class StreamKeys(Keys):
    """Time-outs towards pods, and what clients hear meanwhile."""

    connect_timeout: Annotated[float, written.duration()] = _default("2s", "How long a connection to a pod may take.")
    first_byte_timeout: Annotated[float, written.duration()] = _default(
        "2m", "How long a pod may take to its first byte."
    )
    stall_timeout: Annotated[float, written.duration()] = _default("1m", "How long a begun answer may pause.")
    heartbeat: Annotated[float, written.duration()] = _default(
        "15s", "After how much silence a client gets a comment line."
    )
    keep_after_end: Annotated[float, written.duration(above_zero=False)] = _default(
        "5m", "How long an ended stream can be resumed."
    )
    keep_bytes: Annotated[int, written.size(0)] = _default("64Mi", "The most memory that kept streams take.")


class CacheKeys(Keys):
    """Answers kept for each tenant; a tenant's own `cache` may say otherwise."""

    entries: Annotated[int, written.count(0)] = _default(100, "The most answers kept.")
    ttl: Annotated[float, written.duration()] = _default("1h", "How long an answer is kept.")
    bytes: Annotated[int, written.size(0)] = _default("64Mi", "The most memory that answers take.")


class LogKeys(Keys):
    """What the gateway itself writes to standard error, and the access log, one line a request, on standard output."""

    level: Annotated[str, written.choice("debug", "info", "warning", "error")] = _default(
        "info", "The least that is written to standard error; the access log has no levels."
    )
    format: Annotated[str, written.choice("json", "text")] = _default("json", "How both are written.")


class FileKeys(Keys):
    """`penstock.yaml`: who the tenants are, what they may have, and which pods serve them."""

    profiles: list[ProfileKeys] = Field(
        default_factory=list,
        description="Classes of work: a list, or the file of the Kubeflow ConfigMap `kubeflow-gpu-profiles`.",
    )
    devices: list[DeviceKeys] = Field(default_factory=list, description="The GPUs.")
    models: list[ModelKeys] | None = _optional("The models; left out, those that pods name.")
    pods: list[PodKeys] = Field(min_length=1, description="The inference servers.")
    tenants: list[TenantKeys] = Field(min_length=1, description="Who may come, and what they may have.")
    server: ServerKeys = Field(default_factory=ServerKeys, description="Where clients come.")
    admin: AdminKeys = Field(default_factory=AdminKeys, description="Where operators come.")
    queue: QueueKeys = Field(default_factory=QueueKeys, description="Calls that wait.")
    retries: RetryKeys = Field(default_factory=RetryKeys, description="Attempts before the first byte.")
    breaker: BreakerKeys = Field(default_factory=BreakerKeys, description="When a pod is taken out.")
    streams: StreamKeys = Field(default_factory=StreamKeys, description="Time-outs towards pods.")
    cache: CacheKeys = Field(default_factory=CacheKeys, description="Answers kept.")
    logs: LogKeys = Field(default_factory=LogKeys, description="What is logged.")
