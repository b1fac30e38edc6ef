"""The facts of one `penstock.yaml`, frozen: who the tenants are, what they may have, and which pods serve them.

A `Policy` is made whole by `tenancy.config` and swapped whole; nothing here changes after it was made, and nothing here
decides. Sizes are bytes, times are seconds, and `None` stands for "not limited" or "not said".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def _empty() -> Mapping[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Profile:
    """What a class of work may have; the fields of the Kubeflow ConfigMap `kubeflow-gpu-profiles`."""

    name: str
    gpu_share: bool = True
    max_memory_bytes: int | None = None
    overcommit_ratio: float = 1.0
    priority: int = 0
    preemptible: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU: `memory_bytes` in all, of which each client process costs `overhead_bytes` beside its limit."""

    name: str
    uuid: str | None = None
    memory_bytes: int | None = None
    overhead_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Model:
    """A model by the name that tenants use; `context_tokens` bounds prompt and output together."""

    name: str
    context_tokens: int | None = None
    kv_bytes_per_token: int | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on a pod: `name` is the file's, `served` is what the pod itself calls it."""

    name: str
    served: str


@dataclass(frozen=True, slots=True)
class Mps:
    """The limits under which a pod runs as an MPS client."""

    memory_bytes: int | None = None
    threads_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """One inference server: found at `url`, or run by us from `engine` or `command`.

    `devices` names at least one device; a pod that the file puts on none is its own device, of its own name.
    `tenants` and `profiles` narrow whom it serves (`None`: everybody who may use its models). `memory_bytes` is what it
    charges to each of its devices while it runs; `kv_memory_bytes` and `concurrency` are its capacity where it does not
    tell that itself. `options` are further settings of an engine that we run, as command-line words.
    """

    name: str
    devices: tuple[str, ...]
    models: tuple[ServedModel, ...]
    profile: str | None = None
    engine: str | None = None
    url: str | None = None
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=_empty)
    options: tuple[str, ...] = ()
    model_file: str | None = None
    slots: int | None = None
    mps: Mps = Mps()
    api_key: str | None = field(default=None, repr=False)
    memory_bytes: int | None = None
    kv_memory_bytes: int | None = None
    concurrency: int | None = None
    continuation: str | None = None
    tenants: frozenset[str] | None = None
    profiles: frozenset[str] | None = None

    @property
    def is_supervised(self) -> bool:
        """Whether Penstock starts, restarts and ends this pod's process."""
        return self.url is None or bool(self.command)

    @property
    def owner(self) -> str | None:
        """The one tenant to whom this pod is dedicated, if it names exactly one."""
        if self.tenants is not None and len(self.tenants) == 1:
            return next(iter(self.tenants))
        return None


def tenants_named_by(pods: Iterable[Pod]) -> frozenset[str]:
    """The tenants that some pod names: all others of one profile are served by the same pods."""
    return frozenset(tenant for pod in pods for tenant in pod.tenants or ())


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of a tenant or of a key.

    `memory_bytes` is over all devices; `memory_by_device` where the file says it per device (a device not named is 0).
    At most one of the two is set; neither: memory is not limited, and nothing is guaranteed.
    """

    memory_bytes: int | None = None
    memory_by_device: Mapping[str, int] | None = None
    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One API key, known by the SHA-256 of its text alone (64 hex digits in `hash`).

    `name` tells it apart within its tenant in logs and refusals. `models` of `None` means all of its tenant's;
    `expires_at` is seconds since the epoch. `budget` holds limits of the key's own, below its tenant's.
    """

    hash: str
    name: str
    models: frozenset[str] | None = None
    budget: Budget = Budget()
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class CacheSettings:
    entries: int = 100
    ttl_seconds: float = 3600.0
    bytes_: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays. `models` of `None` means every model of the file; names are canonical, aliases already resolved."""

    name: str
    keys: tuple[Key, ...] = ()
    profile: str | None = None
    models: frozenset[str] | None = None
    budget: Budget = Budget()
    weight: float = 1.0
    default_max_tokens: int = 1024
    queue_depth: int | None = None
    queue_timeout_seconds: float | None = None
    cache: CacheSettings | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = 8080
    head_bytes: int = 64 * 1024
    body_bytes: int = 32 * 1024 * 1024
    head_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 60.0
    keep_alive_seconds: float = 75.0
    drain_delay_seconds: float = 0.0
    drain_timeout_seconds: float = 300.0
    tls_cert: str | None = None
    tls_key: str | None = None
    cors_origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdminSettings:
    host: str = "127.0.0.1"
    port: int = 8081
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The queue of all: at most `depth` entries and `bytes_` of waiting bodies; a tenant's own limits may be
    smaller.
    """

    depth: int = 1000
    bytes_: int = 256 * 1024 * 1024
    timeout_seconds: float = 10.0
    bypass_seconds: float = 1.0
    head_after_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class RetrySettings:
    attempts: int = 3
    backoff_seconds: float = 1.0
    factor: float = 2.0
    max_backoff_seconds: float = 8.0
    jitter: str = "full"
    budget_ratio: float = 0.2


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    failures: int = 5
    rate: float = 0.5
    window_seconds: float = 30.0
    minimum: int = 20
    open_for_seconds: float = 30.0
    eject_at_most: float = 0.5


@dataclass(frozen=True, slots=True)
class StreamSettings:
    connect_timeout_seconds: float = 2.0
    first_byte_timeout_seconds: float = 120.0
    stall_timeout_seconds: float = 60.0
    heartbeat_seconds: float = 15.0
    keep_after_end_seconds: float = 300.0
    keep_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = "info"
    format: str = "json"


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything one `penstock.yaml` says, by name, in the file's order."""

    profiles: Mapping[str, Profile] = field(default_factory=_empty)
    devices: Mapping[str, Device] = field(default_factory=_empty)
    models: Mapping[str, Model] = field(default_factory=_empty)
    pods: Mapping[str, Pod] = field(default_factory=_empty)
    tenants: Mapping[str, Tenant] = field(default_factory=_empty)
    server: ServerSettings = ServerSettings()
    admin: AdminSettings = AdminSettings()
    queue: QueueSettings = QueueSettings()
    retries: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    streams: StreamSettings = StreamSettings()
    cache: CacheSettings = CacheSettings()
    logs: LogSettings = LogSettings()

    def profile_of(self, name: str | None) -> Profile:
        """The profile of that name, or the one that holds where none is named: shared, not lent, not preemptible."""
        if name is None:
            return Profile(name="default")
        return self.profiles[name]

    def may_use(self, tenant: Tenant, model: str) -> bool:
        """Whether the tenant's list of models allows `model` (a canonical name)."""
        return tenant.models is None or model in tenant.models

    def serves(self, pod: Pod, tenant: Tenant, model: str) -> bool:
        """Whether the file lets `pod` serve `tenant` with `model`: model, `tenants:`, `profiles:` and isolation.

        A tenant whose profile has `gpuShare: false` goes only to pods on devices all of whose pods name exactly it.
        """
        if all(served.name != model for served in pod.models) or not self.may_use(tenant, model):
            return False
        if pod.tenants is not None and tenant.name not in pod.tenants:
            return False
        if pod.profiles is not None and (tenant.profile is None or tenant.profile not in pod.profiles):
            return False
        if self.profile_of(tenant.profile).gpu_share:
            return True
        shared = set(pod.devices)
        return all(other.owner == tenant.name for other in self.pods.values() if shared & set(other.devices))
