"""What `penstock.yaml` may say, and what is said of it when it is wrong: all at once, each at its place."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.config.faults import ConfigError, Fault, place_of
from tenancy.config.json_schema import json_schema, keys_at
from tenancy.config.load import load, load_with_places
from tenancy.config.reference import reference
from tenancy.config.schema import NOT_YET
from tenancy.policy import (
    AdminSettings,
    BreakerSettings,
    CacheSettings,
    LogSettings,
    Policy,
    QueueSettings,
    RetrySettings,
    ServedModel,
    ServerSettings,
    StreamSettings,
)

HASHES = [f"sha256:{number:064x}" for number in range(1, 9)]
ENVIRONMENT = {"VLLM_KEY": "sk-of-the-pod", "PENSTOCK_ADMIN_TOKEN": "t0ken"}

SMALL = f"""\
pods:
  - name: chat-0
    url: "http://10.0.0.7:8000"
    models: [qwen]
    concurrency: 64
tenants:
  - name: acme
    keys: ["{HASHES[0]}"]
    budget:
      concurrency: 16
"""

FULL = f"""\
profiles:
  - {{name: data-loading,   gpuShare: true,  maxMemory: 8Gi,  overcommitRatio: 2.0, priority: 50,  preemptible: true}}
  - {{name: heavy-training, gpuShare: false, maxMemory: 80Gi, overcommitRatio: 1.0, priority: 200, preemptible: false}}
  - {{name: inference,      gpuShare: true,  maxMemory: 20Gi, overcommitRatio: 1.3, priority: 300, preemptible: false}}
devices:
  - {{name: gpu0, uuid: GPU-0, memory: 79Gi, overhead: 512Mi}}
  - {{name: gpu1, uuid: GPU-1, memory: 79Gi, overhead: 512Mi}}
models:
  - {{name: tiny, context: 2048, kvBytesPerToken: 4096, aliases: [gpt-demo]}}
  - {{name: qwen}}
pods:
  - {{name: chat-0, device: gpu0, profile: inference, models: [tiny], engine: llama.cpp, model: tiny.gguf, slots: 8,
     mps: {{memory: 20Gi, threads: 50}}, options: ["--threads", "2"], env: {{A: "1"}}, tenants: [acme],
     profiles: [inference]}}
  - {{name: vllm-0, device: [gpu0, gpu1], profile: inference, models: [{{name: qwen, served: Qwen/Qwen3-4B}}],
     engine: vllm, url: "http://10.0.0.7:8000", apiKey: "${{VLLM_KEY}}", memory: 20Gi, kvMemory: 12Gi, concurrency: 64}}
  - {{name: own, models: [gpt-demo], command: [serve, it], url: "https://127.0.0.1:9000/base/", continuation: prefill}}
tenants:
  - name: acme
    profile: inference
    keys: ["{HASHES[0]}", {{hash: "{HASHES[1]}", name: ci, concurrency: 4, requestsPerMinute: 60, tokensPerMinute: 10k,
           memory: 1Gi, models: [tiny], expires: 2027-01-01}}]
    models: [tiny]
    budget: {{memory: 4Gi, concurrency: 32, requestsPerMinute: 600, tokensPerMinute: 100000}}
    weight: 2
    defaultMaxTokens: 1024
    queue: {{depth: 200, timeout: 10s}}
    cache: {{entries: 7}}
  - name: beta
    budget: {{memory: {{gpu0: 2Gi, own: 8Gi}}}}
server:  {{host: 127.0.0.1, port: 8080, headBytes: 64Ki, bodyBytes: 32Mi, headTimeout: 10s, bodyTimeout: 60s,
          keepAlive: 75s, drainDelay: 0s, drainTimeout: 5m, tls: {{cert: a.pem, key: b.pem}}, corsOrigins: []}}
admin:   {{host: 127.0.0.1, port: 8081, token: "${{PENSTOCK_ADMIN_TOKEN}}"}}
queue:   {{depth: 1000, bytes: 256Mi, timeout: 10s, bypass: 1s, headAfter: 15s}}
retries: {{attempts: 3, backoff: 1s, factor: 2, maxBackoff: 8s, jitter: full, budget: 20%}}
breaker: {{failures: 5, rate: 50%, window: 30s, minimum: 20, openFor: 30s, ejectAtMost: 50%}}
streams: {{connectTimeout: 2s, firstByteTimeout: 2m, stallTimeout: 1m, heartbeat: 15s,
          keepAfterEnd: 5m, keepBytes: 64Mi}}
cache:   {{entries: 100, ttl: 1h, bytes: 64Mi}}
logs:    {{level: info, format: json}}
"""


def faults_of(text: str, env: Mapping[str, str] = ENVIRONMENT) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        load(text, env)
    return caught.value.faults


def the_fault(text: str, env: Mapping[str, str] = ENVIRONMENT) -> Fault:
    """The only fault of a text."""
    faults = faults_of(text, env)
    assert len(faults) == 1, faults
    return faults[0]


# ---- what a right file gives ---------------------------------------------------------------------------------------


def test_ten_lines_with_one_pod_and_one_tenant_are_enough() -> None:
    assert len(SMALL.splitlines()) == 10
    policy = load(SMALL, {})
    assert policy.pods["chat-0"].url == "http://10.0.0.7:8000"
    assert policy.pods["chat-0"].devices == ("chat-0",)
    assert list(policy.devices) == ["chat-0"]
    assert list(policy.models) == ["qwen"]
    assert policy.tenants["acme"].budget.concurrency == 16
    assert policy.tenants["acme"].keys[0].name == "00000000"


def test_what_is_left_out_has_the_defaults_of_the_facts() -> None:
    policy = load(SMALL, {})
    assert policy.server == ServerSettings()
    assert policy.admin == AdminSettings()
    assert policy.queue == QueueSettings()
    assert policy.retries == RetrySettings()
    assert policy.breaker == BreakerSettings()
    assert policy.streams == StreamSettings()
    assert policy.cache == CacheSettings()
    assert policy.logs == LogSettings()
    assert policy.tenants["acme"].default_max_tokens == 1024
    assert policy.tenants["acme"].weight == 1.0


def test_every_key_of_a_full_file_reaches_the_policy() -> None:
    policy = load(FULL, ENVIRONMENT)
    assert policy.profiles["data-loading"].overcommit_ratio == 2.0
    assert policy.profiles["data-loading"].preemptible
    assert not policy.profiles["heavy-training"].gpu_share
    assert policy.profiles["inference"].max_memory_bytes == 20 * 2**30
    assert policy.profiles["inference"].priority == 300
    assert policy.devices["gpu1"].overhead_bytes == 512 * 2**20
    assert list(policy.devices) == ["gpu0", "gpu1", "own"]
    assert policy.models["tiny"].aliases == ("gpt-demo",)
    chat, vllm, own = policy.pods.values()
    assert (chat.model_file, chat.slots, chat.options, dict(chat.env)) == (
        "tiny.gguf",
        8,
        ("--threads", "2"),
        {"A": "1"},
    )
    assert (chat.mps.memory_bytes, chat.mps.threads_percent) == (20 * 2**30, 50)
    assert (chat.owner, chat.profiles) == ("acme", frozenset({"inference"}))
    assert vllm.models == (ServedModel("qwen", "Qwen/Qwen3-4B"),)
    assert (vllm.devices, vllm.api_key, vllm.concurrency) == (("gpu0", "gpu1"), "sk-of-the-pod", 64)
    assert (vllm.memory_bytes, vllm.kv_memory_bytes) == (20 * 2**30, 12 * 2**30)
    assert own.models == (ServedModel("tiny", "gpt-demo"),), "an alias is resolved, and stays what the pod calls it"
    assert (own.command, own.url, own.continuation) == (("serve", "it"), "https://127.0.0.1:9000/base", "prefill")
    acme, beta = policy.tenants.values()
    assert (acme.profile, acme.models, acme.weight) == ("inference", frozenset({"tiny"}), 2.0)
    assert acme.budget.memory_bytes == 4 * 2**30
    assert (acme.budget.requests_per_minute, acme.budget.tokens_per_minute) == (600, 100_000)
    assert (acme.queue_depth, acme.queue_timeout_seconds) == (200, 10.0)
    assert acme.cache == CacheSettings(entries=7), "what a tenant's cache leaves out is as in `cache`"
    ci = acme.keys[1]
    assert (ci.hash, ci.name, ci.models) == (HASHES[1].removeprefix("sha256:"), "ci", frozenset({"tiny"}))
    assert (ci.budget.concurrency, ci.budget.tokens_per_minute, ci.budget.memory_bytes) == (4, 10_000, 2**30)
    assert ci.expires_at == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert beta.budget.memory_bytes is None
    assert dict(beta.budget.memory_by_device or {}) == {"gpu0": 2 * 2**30, "own": 8 * 2**30}
    assert (policy.server.tls_cert, policy.server.tls_key) == ("a.pem", "b.pem")
    assert policy.server.drain_timeout_seconds == 300.0
    assert policy.admin.token == "t0ken"


def test_a_policy_does_not_show_its_secrets() -> None:
    shown = repr(load(FULL, ENVIRONMENT))
    assert "sk-of-the-pod" not in shown
    assert "t0ken" not in shown


def test_the_admin_token_comes_from_its_variable_where_the_file_says_none() -> None:
    assert load(SMALL, {"PENSTOCK_ADMIN_TOKEN": "x"}).admin.token == "x"
    assert load(SMALL, {"PENSTOCK_ADMIN_TOKEN": ""}).admin.token is None


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2027-01-01", datetime(2027, 1, 1, tzinfo=UTC)),
        ('"2027-01-01"', datetime(2027, 1, 1, tzinfo=UTC)),
        ("2027-01-01T12:00:00Z", datetime(2027, 1, 1, 12, tzinfo=UTC)),
        ("2027-01-01 12:00:00", datetime(2027, 1, 1, 12, tzinfo=UTC)),
        ('"2027-01-01T12:00:00+02:00"', datetime(2027, 1, 1, 10, tzinfo=UTC)),
    ],
)
def test_a_key_expires_at_a_date_or_a_time(written: str, moment: datetime) -> None:
    text = SMALL.replace(f'"{HASHES[0]}"', f'{{hash: "{HASHES[0]}", expires: {written}}}')
    assert load(text, {}).tenants["acme"].keys[0].expires_at == moment.timestamp()


def test_mappings_may_be_merged_from_an_anchor() -> None:
    text = SMALL.replace("budget:\n      concurrency: 16", "budget: &b {concurrency: 16, requestsPerMinute: 5}")
    text += f'  - {{name: beta, keys: ["{HASHES[1]}"], budget: {{<<: *b, concurrency: 2}}}}\n'
    budget = load(text, {}).tenants["beta"].budget
    assert (budget.concurrency, budget.requests_per_minute) == (2, 5)


# ---- the environment -----------------------------------------------------------------------------------------------


def test_a_variable_is_read_into_text_sizes_and_counts() -> None:
    text = SMALL.replace("concurrency: 16", 'memory: "${SIZE}"\n      concurrency: ${N}')
    text = text.replace("http://10.0.0.7:8000", "http://${HOST}:${PORT}")
    policy = load(text, {"SIZE": "4Gi", "N": "16", "HOST": "pod", "PORT": "80"})
    assert policy.tenants["acme"].budget.memory_bytes == 4 * 2**30
    assert policy.tenants["acme"].budget.concurrency == 16
    assert policy.pods["chat-0"].url == "http://pod:80"


def test_a_doubled_dollar_stands_for_itself() -> None:
    text = SMALL.replace("concurrency: 64", 'command: [sh, -c, "echo $${HOME} $HOME ${X}"]')
    assert load(text, {"X": "x"}).pods["chat-0"].command == ("sh", "-c", "echo ${HOME} $HOME x")


@pytest.mark.parametrize("held", ["x}, {name: evil", "a\n  - b", "&a *b", "16 # comment", "[1, 2]"])
def test_what_a_variable_holds_never_becomes_structure(held: str) -> None:
    text = SMALL.replace("concurrency: 64", 'concurrency: 64\n    apiKey: "${X}"')
    assert load(text, {"X": held}).pods["chat-0"].api_key == held


def test_a_variable_that_is_not_set_is_named_once() -> None:
    fault = the_fault(SMALL.replace("concurrency: 16", "concurrency: ${NUMBER}"))
    assert (fault.place, fault.line) == ("tenants[0].budget.concurrency", 10)
    assert "the environment variable NUMBER is not set" in fault.reason


@pytest.mark.parametrize("wrong", ["${}", "${A-B}", "${A B}", "${1A}", "${A"])
def test_what_looks_like_a_variable_and_is_none_is_a_fault(wrong: str) -> None:
    assert "names no variable" in the_fault(SMALL.replace("name: acme", f'name: "{wrong}"')).reason


@pytest.mark.parametrize("held", ["hunter2 and more", "hunter2\n'\"\\", "hunter2" * 99, " hunter2"])
@pytest.mark.parametrize("around", ["{}", "before {}", "{} after"])
def test_no_fault_repeats_what_a_variable_holds(held: str, around: str) -> None:
    wrong = f'"{around.format("${SECRET}")}"'
    text = SMALL
    for key in ("name: acme", "models: [qwen]", "concurrency: 64", "concurrency: 16"):
        text = text.replace(key, f"{key.split(':')[0]}: {wrong}")
    text = text.replace("    budget:", f"    weight: {wrong}\n    profile: {wrong}\n    budget:")
    text += f"queue: {{timeout: {wrong}, bytes: {wrong}}}\nlogs: {{level: {wrong}}}\nretries: {{budget: {wrong}}}\n"
    text += f"profiles: [{{name: a, priority: {wrong}, gpuShare: {wrong}, overcommitRatio: {wrong}}}]\n"
    for key, value in (("command", wrong), ("device", wrong), ("env", wrong), ("mps", wrong), ("profiles", wrong)):
        text = text.replace("    url:", f"    {key}: {value}\n    url:")
    faults = faults_of(text, {"SECRET": held})
    assert len(faults) >= 14
    assert "hunter2" not in str(ConfigError(faults))


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_its_place_its_line_and_the_nearest_known_one() -> None:
    fault = the_fault(SMALL.replace("concurrency: 16", "concurrencyy: 16"))
    assert fault == Fault("tenants[0].budget.concurrencyy", 10, "unknown key", "did you mean 'concurrency'?")
    assert str(fault) == "penstock.yaml:10: tenants[0].budget.concurrencyy: unknown key; did you mean 'concurrency'?"


@pytest.mark.parametrize(
    ("old", "new", "remedy"),
    [
        ("    budget:", "    default_max_tokens: 5\n    budget:", "did you mean 'defaultMaxTokens'?"),
        ("    budget:", "    requestsPerMinute: 5\n    budget:", "it belongs under 'budget'"),
        ("tenants:", "tenant: []\ntenants:", "did you mean 'tenants'?"),
        ("tenants:", "zzz: []\ntenants:", "known: profiles, devices"),
        ("concurrency: 64", "kv_memory: 5Gi", "did you mean 'kvMemory'?"),
    ],
)
def test_an_unknown_key_is_told_where_it_belongs(old: str, new: str, remedy: str) -> None:
    assert remedy in the_fault(SMALL.replace(old, new)).remedy


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("concurrency: 16", "concurrency: 0", "tenants[0].budget.concurrency", "must be at least 1, not 0"),
        ("concurrency: 16", "concurrency: 1.5", "tenants[0].budget.concurrency", "not a whole number"),
        ("concurrency: 16", "memory: 4GB", "tenants[0].budget.memory", "write 4Gi"),
        ("concurrency: 16", "memory: 0", "tenants[0].budget.memory", "must be at least 1"),
        ("concurrency: 16", "memory: {}", "tenants[0].budget.memory", "has no devices"),
        ("concurrency: 16", "memory: {chat-0: 4Gx}", "tenants[0].budget.memory.chat-0", "is not a size"),
        ("concurrency: 16", "memory: [4Gi]", "tenants[0].budget.memory", "a list is not a size"),
        ("concurrency: 16", "concurrency: yes", "tenants[0].budget.concurrency", "not a whole number"),
        ("concurrency: 16", "concurrency:", "tenants[0].budget.concurrency", "has no value"),
        ("name: acme", "name: 12", "tenants[0].name", 'write it in quotes: "12"'),
        ("name: acme", "name: no", "tenants[0].name", "YAML reads false as true or false"),
        ("name: acme", 'name: "a b"', "tenants[0].name", "is not a name"),
        ("name: acme", "nayme: acme", "tenants[0]", "'name' is missing"),
        ("models: [qwen]", "models: qwen", "pods[0].models", "write [qwen]"),
        ("models: [qwen]", "models: []", "pods[0].models", "is an empty list; it needs an entry"),
        ("models: [qwen]", "models: [{name: qwen, served: 5}]", "pods[0].models[0].served", "write it in quotes"),
        ("models: [qwen]", "models: [qwen, qwen]", "pods[0].models[1]", "named twice"),
        ("concurrency: 64", "engine: llama.cp", "pods[0].engine", "did you mean 'llama.cpp'?"),
        ("concurrency: 64", "device: [chat-0, 3]", "pods[0].device[1]", "write it in quotes"),
        ("concurrency: 64", "apiKey: 12345", "pods[0].apiKey", "must be text; write it in quotes"),
        ("concurrency: 64", "mps: 20Gi", "pods[0].mps", "must be a mapping of keys, not text"),
        ("concurrency: 64", "mps: {threads: 101}", "pods[0].mps.threads", "between 1 and 100"),
        ("concurrency: 64", "command: vllm serve", "pods[0].command", 'write ["vllm", "serve", '),
        ("concurrency: 64", "command: [a, 5]", "pods[0].command[1]", "write it in quotes"),
        ("concurrency: 64", "command: [a]\n    env: {A: 5}", "pods[0].env.A", "write it in quotes"),
        (
            "concurrency: 64",
            "tenants: []",
            "pods[0].tenants",
            "is an empty list; give it an entry, or leave the key out",
        ),
        ("http://10.0.0.7:8000", "10.0.0.7:8000", "pods[0].url", "does not begin with http://"),
        ("http://10.0.0.7:8000", "http://10.0.0.7:8000/v1", "pods[0].url", "leave /v1 out"),
        ("http://10.0.0.7:8000", "http://me:pass@10.0.0.7", "pods[0].url", "write them as `apiKey`"),
        ("http://10.0.0.7:8000", "http://10.0.0.7:x", "pods[0].url", "cannot be read"),
        ("http://10.0.0.7:8000", "http://a/?b=c", "pods[0].url", "has a `?`"),
        ("tenants:", "queue: {timeout: 10 seconds}\ntenants:", "queue.timeout", "write 10s, 5m, 1h30m or 250ms"),
        ("tenants:", "queue: {headAfter: 0}\ntenants:", "queue.headAfter", "more than nothing"),
        ("tenants:", "retries: {budget: 20}\ntenants:", "retries.budget", "write 20% or 0.2"),
        ("tenants:", "retries: {factor: 0.5}\ntenants:", "retries.factor", "at least 1"),
        ("tenants:", "server: {port: 70000}\ntenants:", "server.port", "between 0 and 65535"),
        ("tenants:", "server: {tls: {cert: a}}\ntenants:", "server.tls", "'key' is missing"),
        ("tenants:", "server: []\ntenants:", "server", "must be a mapping of keys, not a list"),
        (
            "tenants:",
            "profiles: [{name: a, overcommitRatio: .inf}]\ntenants:",
            "profiles[0].overcommitRatio",
            "not a number",
        ),
        ("tenants:", "profiles: [{name: a, gpuShare: maybe}]\ntenants:", "profiles[0].gpuShare", "write true or false"),
        ("tenants:", "profiles: [{name: a, priority: high}]\ntenants:", "profiles[0].priority", "not a whole number"),
        ("tenants:", "logs: {level: loud}\ntenants:", "logs.level", "none of debug, info, warning, error"),
    ],
)
def test_a_wrong_value_is_refused_at_its_place_with_what_is_right(old: str, new: str, place: str, said: str) -> None:
    assert old in SMALL
    found = [fault for fault in faults_of(SMALL.replace(old, new)) if said in f"{fault.reason}; {fault.remedy}"]
    assert [fault.place for fault in found] == [place]


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "text", "- a\n- b\n", "5"])
def test_a_text_that_is_no_mapping_is_no_configuration(text: str) -> None:
    assert the_fault(text).place == ""


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("pods:\n\t- name: a\n", 2, "YAML knows no tabs"),
        ("pods: [\n", 1, "is not YAML"),
        ("a: 1\n---\nb: 2\n", 3, "a second document begins here"),
        ("pods: {apiKey: ${KEY}}\n", 1, 'write a variable in quotes: "${NAME}"'),
        ("pods: *nothing\n", 1, "undefined alias"),
        ("pods: &a [*a]\n", 1, "an alias stands inside what it refers to"),
        ("pods:\n  - !!python/object:os.system {}\n", 2, "has no meaning here"),
        ("pods: 2027-13-45\n", 1, "is not a timestamp"),
        ("1: 2\n", 1, "a key must be text"),
        ("[a]: 2\n", 1, "a key must be text, not a list"),
        ("pods: " + "[" * 100_000, 1, "levels deep"),
        ("pods: \x00\n", None, "is not YAML"),
        ("pods: {<<: 5}\n", 1, "must refer to another mapping"),
    ],
)
def test_broken_yaml_is_named_with_its_line(text: str, line: int | None, said: str) -> None:
    found = [fault for fault in faults_of(text) if said in f"{fault.reason}; {fault.remedy}"]
    assert [fault.line for fault in found] == [line]


def test_aliases_of_aliases_do_not_exhaust_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert any("more than 200,000 values" in fault.reason for fault in faults_of("\n".join(lines)))


def test_a_chain_of_merges_that_multiplies_is_refused_at_once() -> None:
    lines = ["pods: &m0 [{a: 1}]", "x0: &a0 {k: 1}"]
    lines += [f"x{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    assert any("more than 200,000 values" in fault.reason for fault in faults_of("\n".join(lines)))


def test_a_key_that_stands_twice_is_a_fault_and_not_the_last_one() -> None:
    fault = the_fault(SMALL + "      concurrency: 17\n")
    assert (fault.place, fault.line) == ("tenants[0].budget.concurrency", 11)
    assert "a second time" in fault.reason
    assert "line 10" in fault.remedy


def test_a_plain_key_in_place_of_its_hash_is_not_repeated() -> None:
    fault = the_fault(SMALL.replace(HASHES[0], "sk-penstock-secret"))
    assert fault.place == "tenants[0].keys[0]"
    assert "secret" not in str(fault)
    assert "penstock keys new" in fault.remedy


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("device: gpu0, ", "device: gpu2, ", "pods[0].device", "there is no device 'gpu2'; did you mean"),
        ("[gpu0, gpu1]", "[gpu0, gpu0]", "pods[1].device[1]", "named twice"),
        ("profile: inference, models: [tiny]", "profile: inferense, models: [tiny]", "pods[0].profile", "'inference'?"),
        ("profiles: [inference]", "profiles: [infer]", "pods[0].profiles[0]", "there is no profile 'infer'"),
        ("tenants: [acme]", "tenants: [acne]", "pods[0].tenants[0]", "did you mean 'acme'?"),
        ("{name: qwen, served", "{name: quen, served", "pods[1].models[0].name", "did you mean 'qwen'?"),
        ("models: [tiny]\n", "models: [tyni]\n", "tenants[0].models[0]", "did you mean 'tiny'?"),
        ("models: [tiny], expires", "models: [qwen], expires", "tenants[0].keys[1].models[0]", "tenant itself may not"),
        ("{gpu0: 2Gi, own", "{gpu9: 2Gi, own", "tenants[1].budget.memory.gpu9", "there is no device"),
        ("{gpu0: 2Gi, own", "{chat-0: 2Gi, own", "tenants[1].budget.memory.chat-0", "there is no device"),
        ("- name: beta", "- name: acme", "tenants[1].name", "tenants[0].name has it"),
        ("{name: gpu1, uuid", "{name: gpu0, uuid", "devices[1].name", "is taken"),
        ("{name: qwen}", "{name: tiny}", "models[1].name", "is taken"),
        ("aliases: [gpt-demo]", "aliases: [gpt-demo, qwen]", "models[0].aliases[1]", "the alias 'qwen' is taken"),
        ("aliases: [gpt-demo]", "aliases: [gpt-demo, tiny]", "models[0].aliases[1]", "the alias 'tiny' is taken"),
        ("{name: vllm-0,", "{name: chat-0,", "pods[1].name", "is taken"),
        ("{name: own,", "{name: gpu1,", "pods[2].name", "is a device of its own"),
        (HASHES[1], HASHES[0], "tenants[0].keys[1]", "this tenant has this key already"),
        ("- name: beta", f"- name: beta\n    keys: ['{HASHES[1]}']", "tenants[1].keys[0]", "another tenant has"),
        ("- name: beta",
         f"- name: beta\n    keys: [{{hash: '{HASHES[2]}', name: a}}, {{hash: '{HASHES[3]}', name: a}}]",
         "tenants[1].keys[1].name", "is taken"),
        ('url: "https://127.0.0.1:9000/base/", ', "", "pods[2].command", "a command needs `url`"),
        ('command: [serve, it], url: "https://127.0.0.1:9000/base/", ', "", "pods[2]", "has neither `url` nor"),
        ('url: "http://10.0.0.7:8000", ', "", "pods[1].engine", "vllm is not run by Penstock itself"),
        ("concurrency: 64}", "slots: 3}", "pods[1].slots", "`concurrency` says"),
        ("concurrency: 64}", "env: {A: b}}", "pods[1].env", "a pod that Penstock starts"),
        ("model: tiny.gguf, ", "", "pods[0]", "'model' is missing"),
    ],
)  # fmt: skip
def test_what_contradicts_another_part_of_the_file_is_refused(old: str, new: str, place: str, said: str) -> None:
    assert FULL.count(old) >= 1
    found = [fault for fault in faults_of(FULL.replace(old, new, 1)) if said in f"{fault.reason}; {fault.remedy}"]
    assert [fault.place for fault in found] == [place]


def test_models_are_made_from_what_pods_name_only_where_the_file_lists_none() -> None:
    assert the_fault(SMALL + "models: [{name: other}]\n").place == "pods[0].models[0]"


def test_every_fault_is_told_at_once_be_it_of_shape_or_of_reference() -> None:
    wrong = FULL
    for old, new in (
        ("maxMemory: 8Gi", "maxMemory: 8GB"),
        ("device: gpu0, ", "device: gpu9, "),
        ("weight: 2", "weightt: 2"),
        ("concurrency: 32", 'concurrency: "${UNSET}"'),
        ("- name: beta", "- name: acme"),
        ("factor: 2", "factor: x"),
        ("logs:    {level: info", "logs:    {level: info, level: debug"),
    ):
        assert old in wrong
        wrong = wrong.replace(old, new, 1)
    assert [fault.place for fault in faults_of(wrong)] == [
        "profiles[0].maxMemory",
        "pods[0].device",
        "tenants[0].budget.concurrency",
        "tenants[0].weightt",
        "tenants[1].name",
        "retries.factor",
        "logs.level",
    ]


def test_a_reference_to_an_entry_whose_name_is_wrong_is_not_a_second_fault() -> None:
    faults = faults_of(FULL.replace("- {name: inference, ", "- {nom: inference, "))
    assert {fault.place for fault in faults} == {"profiles[2]", "profiles[2].nom"}


# ---- keys that do nothing yet, the schema, the documentation -----------------------------------------------


def test_the_keys_that_do_nothing_yet_are_told_where_they_are_set() -> None:
    told = {key.key: key for key in load_with_places(FULL, ENVIRONMENT).not_yet}
    assert set(told) == set(NOT_YET)
    assert (told["profiles[].priority"].line, told["profiles[].priority"].times) == (2, 3)
    assert load_with_places(SMALL, {}).not_yet == ()


def test_every_key_that_does_nothing_yet_is_a_key_of_the_schema() -> None:
    for pattern in NOT_YET:
        steps = [step for key in pattern.split(".") for step in ((key[:-2], 0) if key.endswith("[]") else (key,))]
        assert steps[-1] in (keys_at(tuple(steps[:-1])) or {}), pattern


def test_the_json_schema_knows_every_key_of_a_full_file() -> None:
    schema = json_schema()
    assert schema["required"] == ["pods", "tenants"]
    assert json.loads(json.dumps(schema)) == schema
    loaded = load_with_places(FULL, ENVIRONMENT)
    for path in loaded._document.lines:
        if path and isinstance(path[-1], str) and "memory" not in path[:-1] and "env" not in path[:-1]:
            assert path[-1] in (keys_at(path[:-1]) or {}), place_of(path)


def test_every_default_of_the_json_schema_is_one_that_the_file_may_say() -> None:
    sections = {
        name: {key: spec["default"] for key, spec in (keys_at((name,)) or {}).items() if "default" in spec}
        for name in ("server", "admin", "queue", "retries", "breaker", "streams", "cache", "logs")
    }
    text = SMALL + "".join(f"{name}: {json.dumps(keys)}\n" for name, keys in sections.items())
    assert load(text, {}) == load(SMALL, {})


def test_the_documentation_has_every_key_and_no_other() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    tables = page[page.index("### The file") :]
    assert tables == reference(), "bring docs/configuration.md up to date: penstock schema --tables"


# ---- ports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "place", "other"),
    [
        ("server: {port: 9000}\nadmin: {port: 9000}", "admin.port", "server.port, on"),
        ("server: {port: 8081}", "server.port", "admin.port by default, on"),
        ("admin: {port: 8080}", "admin.port", "server.port by default, on"),
        ("server: {port: 8081, host: 0.0.0.0}", "server.port", "admin.port by default, on"),
        ("server: {port: 8081, host: localhost}", "server.port", "admin.port by default, on"),
    ],
)
def test_clients_and_operators_do_not_share_a_port(more: str, place: str, other: str) -> None:
    fault = the_fault(SMALL + more)
    assert fault.place == place
    assert f"and so is {other} the same host" in fault.reason


@pytest.mark.parametrize("more", ["{port: 0}\nadmin: {port: 0}", "{port: 8081, host: 10.0.0.1}"])
def test_a_free_port_and_another_host_are_shared_with_nobody(more: str) -> None:
    load(f"{SMALL}server: {more}", {})


# ---- whatever is written -----------------------------------------------------------------------------------


def _good() -> dict[str, Any]:
    """A full file as values of JSON, which is YAML, too."""
    loaded = load_with_places(FULL, ENVIRONMENT)._document.value
    good: dict[str, Any] = json.loads(json.dumps(loaded, default=str))
    return good


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    for step, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from _paths(inner, (*path, step))


GOOD = _good()
PATHS = list(_paths(GOOD))
WRONG_VALUES: tuple[Any, ...] = (
    None, "", " ", "text", "${", "${UNSET}", -1, 0, 10**30, 1.5, 1e400, True, [], {}, [None], [[]],
    {"a": None}, "\x07", "2027-01-01",
)  # fmt: skip


def _mutated(path: tuple[str | int, ...], change: str, value: Any = None) -> Any:
    if not path:
        return value
    mutated: Any = copy.deepcopy(GOOD)
    around = mutated
    last: Any = path[-1]
    for step in path[:-1]:
        around = around[step]
    if change == "drop":
        del around[last]
    elif change == "rename" and isinstance(around, dict):
        around[f"x{last}"] = around.pop(last)
    elif change == "double" and isinstance(around, list):
        around.append(around[last])
    else:
        around[last] = value
    return mutated


def _loads_or_names_places_that_exist(mutated: Any) -> None:
    text = json.dumps(mutated)
    places = {place_of(path) for path in _paths(mutated)}
    try:
        policy = load(text, ENVIRONMENT)
    except ConfigError as error:
        assert error.faults
        for fault in error.faults:
            assert fault.place in places, fault
            assert fault.reason
            assert not fault.reason.startswith("Input should"), fault
    else:
        assert isinstance(policy, Policy)


@pytest.mark.parametrize("change", ["drop", "rename", "double"])
def test_a_good_file_with_any_key_dropped_renamed_or_doubled_loads_or_has_faults(change: str) -> None:
    assert isinstance(load(json.dumps(GOOD), ENVIRONMENT), Policy)
    for path in PATHS[1:]:
        _loads_or_names_places_that_exist(_mutated(path, change))


@given(path=st.sampled_from(PATHS), value=st.sampled_from(WRONG_VALUES))
def test_a_good_file_with_anything_anywhere_loads_or_has_faults(path: tuple[str | int, ...], value: Any) -> None:
    _loads_or_names_places_that_exist(_mutated(path, "replace", value))


@given(cut=st.integers(0, len(FULL)), length=st.integers(0, 40), put=st.text(max_size=8))
def test_any_text_loads_or_has_faults(cut: int, length: int, put: str) -> None:
    try:
        load(FULL[:cut] + put + FULL[cut + length :], ENVIRONMENT)
    except ConfigError as error:
        assert error.faults
