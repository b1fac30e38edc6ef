"""What a file's figures add up to, and every contradiction in them with its place."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tenancy.accounts import Capacity
from tenancy.config.load import load
from tenancy.plan.contradictions import Finding, Severity
from tenancy.plan.plan import Plan, plan
from tenancy.plan.sums import Inventory

GIB = 2**30
ERROR, WARNING, NOTE = Severity
KEY = '"sha256:' + "1".zfill(64) + '"'
OTHER_KEY = '"sha256:' + "2".zfill(64) + '"'

# Two models as worked by hand: 144 and 128 KiB a token, on an H100 of 79.06 GiB beside what its driver keeps.
WORKED = f"""\
profiles: [{{name: inference, overcommitRatio: 1.3}}, {{name: batch, overcommitRatio: 1.5}}]
devices: [{{name: gpu0, uuid: GPU-0, memory: 80960Mi, overhead: 512Mi}}]
models: [{{name: qwen, kvBytesPerToken: 147456, context: 40960}}, {{name: llama, kvBytesPerToken: 128Ki}}]
pods:
  - {{name: chat-0, device: gpu0, models: [qwen],  engine: vllm, url: "http://a:1", memory: 24Gi, kvMemory: 14Gi}}
  - {{name: big-0,  device: gpu0, models: [llama], engine: vllm, url: "http://b:1", memory: 48Gi, kvMemory: 30Gi}}
tenants:
  - {{name: acme,  keys: [{KEY}],       profile: inference, models: [qwen],        budget: {{memory: 8Gi}}}}
  - {{name: beta,  keys: [{OTHER_KEY}], models: [qwen, llama],                     budget: {{memory: 6Gi}}}}
  - {{name: gamma, keys: [{KEY[:-2]}3"], profile: batch,    models: [llama],       budget: {{memory: 16Gi}}}}
"""


def planned(text: str, capacities: Mapping[str, Capacity] | None = None, inventory: Inventory | None = None) -> Plan:
    return plan(load(text, {}), capacities, inventory)


def found(text: str, *severities: Severity) -> list[Finding]:
    return [finding for finding in planned(text).findings if finding.severity in (severities or tuple(Severity))]


def the_one(text: str, severity: Severity, place: str) -> str:
    """The text of the only finding at a place, which has that severity."""
    at_place = [finding for finding in planned(text).findings if finding.place == place]
    assert [finding.severity for finding in at_place] == [severity], planned(text).findings
    return at_place[0].text


def one(pod: str = "", tenant: str = "", more: str = "", model: str = "kvBytesPerToken: 1Mi") -> str:
    """A file with one pod of 1 GiB of KV memory and one tenant, and what a test changes in it."""
    return f"""\
models: [{{name: m, {model}}}]
pods: [{{name: p, models: [m], {pod or 'url: "http://a", engine: vllm, kvMemory: 1Gi'}}}]
tenants: [{{name: t, keys: [{KEY}], {tenant or "defaultMaxTokens: 100"}}}]
{more}
"""


# ---- sums ----------------------------------------------------------------------------------------------------------


def test_the_example_worked_by_hand_comes_out_as_by_hand() -> None:
    made = planned(WORKED)
    (device,) = made.devices
    assert [charge.total_bytes for charge in device.charges] == [24.5 * GIB, 48.5 * GIB]
    assert round((device.left_bytes or 0) / GIB, 2) == 6.06
    chat, big = made.pods
    assert (chat.kv_bytes, chat.kv_tokens) == (14 * GIB, 101_936)
    assert (big.kv_bytes, big.kv_tokens) == (30 * GIB, 245_760)
    assert [(g.tenant, g.guarantee_bytes) for g in chat.guarantees] == [("acme", 8 * GIB), ("beta", 6 * GIB)]
    assert round(chat.guarantees[0].limit_bytes / GIB, 2) == 10.40
    assert [(g.tenant, g.guarantee_bytes) for g in big.guarantees] == [("beta", 6 * GIB), ("gamma", 16 * GIB)]
    assert big.guarantees[1].limit_bytes == 24 * GIB
    assert made.findings == ()
    assert made.is_sound


def test_a_tenant_is_shown_with_the_pods_that_serve_it_and_what_it_may_be_lent() -> None:
    acme, beta, _ = planned(WORKED).tenants
    assert (acme.pods, acme.guarantee_bytes, acme.limit_bytes) == (("chat-0",), 8 * GIB, 11_166_914_969)
    assert (beta.pods, beta.limit_bytes) == (("chat-0", "big-0"), 6 * GIB)


def test_what_a_running_pod_told_counts_before_what_the_file_says() -> None:
    made = planned(one(), {"p": Capacity(kv_bytes=2 * GIB, slots=7, kv_tokens=2048)})
    assert (made.pods[0].kv_bytes, made.pods[0].kv_tokens, made.pods[0].slots) == (2 * GIB, 2048, 7)


def test_a_kv_size_in_tokens_becomes_bytes_by_the_weight_of_a_token() -> None:
    text = one('url: "http://a", engine: vllm')
    assert planned(text).pods[0].kv_bytes is None
    assert planned(text, {"p": Capacity(kv_tokens=1024)}).pods[0].kv_bytes == GIB


def test_memory_by_device_is_counted_over_the_devices_of_a_pod() -> None:
    text = one(
        'url: "http://a", engine: vllm, kvMemory: 1Gi, device: [a, b]',
        "budget: {memory: {a: 1Gi, b: 200Mi}}, defaultMaxTokens: 100",
        "devices: [{name: a}, {name: b}]",
    )
    (guarantee,) = planned(text).pods[0].guarantees
    assert guarantee.guarantee_bytes == 400 * 2**20, "twice the smaller share"


def test_what_pods_of_its_own_take_is_not_guaranteed_elsewhere() -> None:
    text = one(tenant="budget: {memory: 8Gi}", more="devices: [{name: d, memory: 80Gi}]").replace(
        "pods: [",
        'pods: [{name: own, device: d, models: [m], url: "http://o", memory: 5Gi, kvMemory: 1Gi, tenants: [t]}, ',
    )
    own, shared = planned(text).pods
    assert own.guarantees == ()
    assert shared.guarantees[0].guarantee_bytes == 3 * GIB


# ---- devices -------------------------------------------------------------------------------------------------------


def test_an_over_full_device_is_an_error_with_what_is_on_it() -> None:
    text = the_one(WORKED.replace("memory: 48Gi", "memory: 60Gi"), ERROR, "devices[0]")
    assert text.startswith("gpu0 is over-full by 5.94 GiB: chat-0 24.50 GiB, big-0 60.50 GiB with overhead, 85.00 GiB")
    assert not planned(WORKED.replace("memory: 48Gi", "memory: 60Gi")).is_sound


def test_a_pod_that_does_not_share_takes_the_whole_device() -> None:
    text = WORKED.replace("{name: inference,", "{name: alone, gpuShare: false}, {name: inference,")
    text = text.replace("name: big-0, ", "name: big-0, profile: alone,")
    assert "big-0 takes all of it, because its profile alone does not share" in the_one(text, ERROR, "devices[0]")


def test_an_overhead_that_fills_the_device_is_an_error() -> None:
    text = WORKED.replace("overhead: 512Mi", "overhead: 80960Mi")
    assert "fills gpu0" in the_one(text, ERROR, "devices[0].overhead")


def test_a_pod_of_unknown_memory_on_a_known_device_is_a_warning() -> None:
    text = the_one(WORKED.replace("memory: 24Gi, ", ""), WARNING, "pods[0]")
    assert "nothing says how much of gpu0 chat-0 takes" in text


def test_a_device_without_pods_or_without_memory_is_a_note() -> None:
    text = WORKED.replace("overhead: 512Mi}", "overhead: 512Mi}, {name: gpu1, memory: 80Gi}")
    assert the_one(text, NOTE, "devices[1]") == "no pod is on gpu1"
    text = WORKED.replace("memory: 80960Mi, ", "")
    assert "nothing is added up" in the_one(text, NOTE, "devices[0]")


def test_a_device_is_held_against_the_gpu_that_is_really_there() -> None:
    good = planned(WORKED, inventory=Inventory({"GPU-0": 81_559 * 2**20}))
    assert good.is_sound
    smaller = planned(WORKED, inventory=Inventory({"GPU-0": 40 * GIB})).findings
    assert [(f.severity, f.place) for f in smaller] == [(ERROR, "devices[0].memory")]
    other = planned(WORKED, inventory=Inventory({"GPU-9": 80 * GIB})).findings
    assert [(f.severity, f.place) for f in other] == [(ERROR, "devices[0].uuid")]
    assert "there is: GPU-9" in other[0].text
    unsaid = planned(WORKED.replace("memory: 80960Mi, ", ""), inventory=Inventory({"GPU-0": 60 * GIB})).findings
    assert "over-full by 13.00 GiB" in unsaid[0].text


# ---- pods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "severity", "place", "said"),
    [
        (WORKED.replace("{name: inference,", "{name: small, maxMemory: 16Gi}, {name: inference,").replace(
            "name: chat-0,", "name: chat-0, profile: small,"),
         ERROR, "pods[0].memory", "chat-0 takes 24.00 GiB, and its profile small allows 16.00 GiB"),
        (WORKED.replace("memory: 24Gi", "memory: 24Gi, mps: {memory: 25Gi}"), WARNING, "pods[0].memory", "counts"),
        (WORKED.replace("kvMemory: 14Gi", "kvMemory: 25Gi"), ERROR, "pods[0].kvMemory", "cannot have 25.00 GiB"),
        (WORKED.replace("http://b:1", "http://a:1"), WARNING, "pods[1].url", "the same server as chat-0"),
        (WORKED.replace("name: big-0, ", "name: big-0, profiles: [other],").replace(
            "profiles: [{name: inf", "profiles: [{name: other}, {name: inf"),
         WARNING, "pods[1]", "big-0 serves no tenant"),
        (one('url: "http://a", engine: openai, concurrency: 8'), NOTE, "pods[0]", "limited by 8 calls at once alone"),
        (one('url: "http://a", engine: openai'), WARNING, "pods[0]", "nothing limits p: its KV size is not known"),
        (one('url: "http://a", engine: vllm', model="context: 5"), WARNING, "pods[0]", "what a token of m weighs"),
        (one("engine: simulator", model="context: 5"), WARNING, "pods[0]",
         "its KV size is told by the pod when it runs, but in tokens: nothing says what a token of m weighs "
         "(`kvBytesPerToken`), and it has no `slots`"),
        (one("engine: llama.cpp, model: x.gguf", model="context: 50"), NOTE, "pods[0]", "by its slots alone"),
        (one('url: "http://a", engine: openai, kvMemory: 1Gi', "budget: {memory: 1Gi}", model="context: 5"),
         WARNING, "pods[0].models", "calls for m on p are not charged to the memory of t"),
        (one('url: "http://a", engine: vllm, kvMemory: 1Gi', "budget: {memory: 1Gi}", model="context: 5"),
         NOTE, "pods[0].models", "until p has told its KV size in tokens"),
    ],
)  # fmt: skip
def test_what_is_odd_about_a_pod_is_found(text: str, severity: Severity, place: str, said: str) -> None:
    assert said in the_one(text, severity, place)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "simulator"])
def test_a_pod_that_will_tell_its_kv_size_is_nothing_to_remark_on(engine: str) -> None:
    assert found(one(f'url: "http://a", engine: {engine}')) == []


def test_files_that_are_not_there_are_errors_where_somebody_looks() -> None:
    text = one("engine: llama.cpp, model: models/x.gguf", more="server: {tls: {cert: /etc/a.pem, key: /etc/b.pem}}")
    assert found(text, ERROR) == []
    assert plan(load(text, {}), exists=lambda _: True).is_sound
    errors = plan(load(text, {}), exists=lambda name: name == "/etc/a.pem").findings[:2]
    assert [(finding.severity, finding.place) for finding in errors] == [
        (ERROR, "pods[0].model"), (ERROR, "server.tls.key"),
    ]  # fmt: skip
    assert errors[0].text.startswith("there is no file models/x.gguf; a path that does not begin with / is looked for")
    assert errors[1].text == "there is no file /etc/b.pem"


def test_the_model_that_comes_along_needs_no_file() -> None:
    text = one("engine: llama.cpp, model: penstock-tiny")
    assert plan(load(text, {}), exists=lambda _: False).is_sound


# ---- guarantees ----------------------------------------------------------------------------------------------------


def test_guarantees_beyond_what_a_pod_holds_are_a_warning() -> None:
    text = the_one(WORKED.replace("budget: {memory: 8Gi}", "budget: {memory: 9Gi}"), WARNING, "pods[0]")
    assert text.startswith("chat-0 holds 14.00 GiB, and 15.00 GiB of it is guaranteed: acme 9.00 GiB, beta 6.00 GiB")
    assert "honoured in the queue's order" in text
    assert planned(WORKED.replace("budget: {memory: 8Gi}", "budget: {memory: 9Gi}")).is_sound


def test_guarantees_are_compared_in_whole_blocks() -> None:
    one_block = 16 * 2**20
    text = one(
        'url: "http://a", engine: vllm, kvMemory: 1Gi',
        f"budget: {{memory: {GIB + one_block - 1}}}, defaultMaxTokens: 99",
    )
    assert found(text) == [], "the last block is not whole, so nobody can count on it"
    assert found(text.replace(str(GIB + one_block - 1), str(GIB + one_block)))


def test_pods_that_serve_the_same_share_the_guarantees() -> None:
    twice = WORKED.replace(
        "pods:\n", 'pods:\n  - {name: chat-1, models: [qwen], engine: vllm, url: "http://c", kvMemory: 14Gi}\n'
    )
    assert found(twice.replace("budget: {memory: 8Gi}", "budget: {memory: 20Gi}"), WARNING) == []
    text = the_one(twice.replace("budget: {memory: 8Gi}", "budget: {memory: 23Gi}"), WARNING, "pods[0]")
    assert text.startswith("chat-1, chat-0 hold 28.00 GiB, and 29.00 GiB")


# ---- tenants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "severity", "place", "said"),
    [
        (WORKED.replace("name: chat-0,", "name: chat-0, tenants: [beta],"), ERROR, "tenants[0]",
         "no pod can serve acme: chat-0 serves beta alone"),
        (WORKED.replace("name: chat-0,", "name: chat-0, profiles: [batch],"), ERROR, "tenants[0]",
         "no pod can serve acme: chat-0 serves profiles batch alone"),
        (WORKED.replace("overcommitRatio: 1.5", "gpuShare: false"), ERROR, "tenants[2]",
         "big-0 is on gpu0, and profile batch (gpuShare: false) wants `tenants: [gamma]` on all pods there"),
        (WORKED.replace("name: chat-0,", "name: chat-0, tenants: [acme, gamma],"), WARNING, "tenants[1].models",
         "no pod serves beta with qwen: chat-0 serves acme, gamma alone"),
        (WORKED.replace("models: [{name: qwen,", "models: [{name: ghost}, {name: qwen,"), ERROR, "models[0]",
         "no pod serves ghost"),
        (one(tenant="defaultMaxTokens: 100").replace(KEY, ""), WARNING, "tenants[0]", "penstock keys new t"),
        (one(tenant="budget: {memory: 64Mi}, defaultMaxTokens: 100"), ERROR, "tenants[0].budget.memory",
         "a call of t for m that states no maximum (109 tokens) takes 112.00 MiB, and tenant/t may hold 64.00 MiB"),
        (one(tenant="defaultMaxTokens: 100").replace(KEY, f"{{hash: {KEY}, name: ci, memory: 9Mi}}"), ERROR,
         "tenants[0].keys[0].memory", "takes 112.00 MiB, and key/t/ci may hold 9.00 MiB"),
        (one(tenant="defaultMaxTokens: 2000"), ERROR, "tenants[0].defaultMaxTokens", "more than any pod holds"),
        (one(tenant="defaultMaxTokens: 100, budget: {tokensPerMinute: 100}"), ERROR,
         "tenants[0].budget.tokensPerMinute", "is 109 tokens, and it has 100 a minute"),
        (one(tenant="defaultMaxTokens: 9, queue: {depth: 2000}"), NOTE, "tenants[0].queue.depth", "holds 1,000"),
        (one(tenant="defaultMaxTokens: 9, queue: {timeout: 1m}"), NOTE, "tenants[0].queue.timeout",
         "t may wait 1m, but nobody waits longer than the 10s"),
        (one(tenant="defaultMaxTokens: 9, budget: {concurrency: 2}").replace(
            KEY, f"{{hash: {KEY}, name: ci, concurrency: 3}}"),
         NOTE, "tenants[0].keys[0].concurrency", "key ci has a concurrency of 3, and t one of 2"),
    ],
)  # fmt: skip
def test_what_is_odd_about_a_tenant_is_found(text: str, severity: Severity, place: str, said: str) -> None:
    assert said in the_one(text, severity, place)


def test_the_context_bounds_what_a_call_without_maximum_asks() -> None:
    text = one(tenant="defaultMaxTokens: 2000, budget: {memory: 128Mi}", model="kvBytesPerToken: 1Mi, context: 128")
    assert found(text) == []


def test_lent_memory_may_hold_the_default_call() -> None:
    text = one(
        tenant="budget: {memory: 64Mi}, defaultMaxTokens: 100, profile: lent",
        more="profiles: [{name: lent, overcommitRatio: 1.75}]",
    )
    assert found(text, ERROR) == []


def test_a_device_that_a_budget_does_not_name_gives_it_nothing() -> None:
    text = one(tenant="budget: {memory: {d: 5Gi}}, defaultMaxTokens: 9", more="devices: [{name: d}]")
    assert "and tenant/t/p may hold 0 B" in the_one(text, ERROR, "tenants[0].budget.memory")


@pytest.mark.parametrize(
    ("budget", "severity"),
    [("5Gi", None), ("4Gi", WARNING), ("3Gi", ERROR), ("{p: 3Gi}", ERROR)],
)
def test_pods_of_its_own_must_fit_a_tenants_memory(budget: str, severity: Severity | None) -> None:
    text = one(
        'url: "http://a", engine: vllm, memory: 5Gi, kvMemory: 1Gi, tenants: [t]',
        f"budget: {{memory: {budget}}}, defaultMaxTokens: 9, profile: lent",
        "profiles: [{name: lent, overcommitRatio: 1.25}]",
    )
    assert [f.severity for f in found(text) if f.place == "tenants[0].budget.memory"] == (
        [severity] if severity else []
    )


def test_calls_on_a_pod_of_its_own_are_not_held_against_a_tenants_memory() -> None:
    text = one(
        'url: "http://a", engine: vllm, kvMemory: 1Gi, tenants: [t]', "budget: {memory: 1Mi}, defaultMaxTokens: 100"
    )
    assert found(text, ERROR) == []


def test_an_expired_key_is_a_warning_where_the_time_is_known() -> None:
    policy = load(one().replace(KEY, f"{{hash: {KEY}, name: ci, expires: 2027-01-01}}"), {})
    assert plan(policy).findings == ()
    expires_at = policy.tenants["t"].keys[0].expires_at
    assert expires_at is not None
    assert plan(policy, now_epoch=expires_at - 1).findings == ()
    (finding,) = plan(policy, now_epoch=expires_at + 3 * 86_400).findings
    assert (finding.severity, finding.place) == (WARNING, "tenants[0].keys[0]")
    assert "expired 3 days ago" in finding.text


def test_errors_come_before_warnings_and_notes() -> None:
    text = WORKED.replace("memory: 24Gi, ", "").replace("budget: {memory: 16Gi}", "queue: {depth: 9999}")
    text = text.replace("name: big-0, ", "name: big-0, tenants: [acme],")
    severities = [finding.severity for finding in planned(text).findings]
    assert severities == sorted(severities, key=list(Severity).index)
    assert set(severities) == set(Severity)
