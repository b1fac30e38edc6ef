"""Budgets hold at the pods: what arrived there is counted by the simulators themselves, never by the gateway."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.instruments.gateway import Running, gateway, hash_of
from tests.instruments.pods import PodProcess, simulator

SEED = 20261124
GIB = 1 << 30
KEYS = {"acme": "sk-acme", "ci": "sk-acme-ci", "beta": "sk-beta", "small": "sk-small", "lent": "sk-lent"}


def body(
    prompt: str = "Tell me about the mill.", *, tokens: int = 20, stream: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        **more,
    }


async def call(client: httpx.AsyncClient, key: str, payload: dict[str, Any], **headers: str) -> httpx.Response:
    return await client.post(
        "/v1/chat/completions", json=payload, headers={"authorization": f"Bearer {key}", **headers}
    )


async def call_and_leave(client: httpx.AsyncClient, key: str, payload: dict[str, Any], after_seconds: float) -> None:
    """A client that gives up after a while, wherever its call is then."""
    try:
        async with asyncio.timeout(after_seconds):
            await call(client, key, payload)
    except TimeoutError:
        return


def users(running: Running) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=running.url, timeout=60.0, limits=limits)


async def until_nothing_is_held(running: Running, tenant: str) -> None:
    async with asyncio.timeout(10):
        while await running.metric("penstock_tenant_concurrency_held", tenant=tenant):
            pass


async def test_no_more_than_the_budget_is_ever_at_the_pods_whoever_leaves_and_whatever_dies(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    async with (
        simulator(slots=32, itl="5ms", ttft="10ms", model="tiny") as one,
        simulator(slots=32, itl="5ms", ttft="10ms", model="tiny") as two,
    ):
        file = f"""
models: [{{name: tiny, context: 4096, kvBytesPerToken: 4096}}]
pods:
  - {{name: one, url: "{one.url}", engine: simulator, models: [tiny]}}
  - {{name: two, url: "{two.url}", engine: simulator, models: [tiny]}}
queue: {{timeout: 30s}}
tenants:
  - name: acme
    keys: ["{hash_of(KEYS["acme"])}", {{hash: "{hash_of(KEYS["ci"])}", name: ci, concurrency: 1}}]
    budget: {{concurrency: 2}}
  - {{name: beta, keys: ["{hash_of(KEYS["beta"])}"], budget: {{concurrency: 4}}}}
"""
        async with gateway(file, tmp_path) as running, users(running) as client:
            stayed: list[asyncio.Task[httpx.Response]] = []
            left: list[asyncio.Task[None]] = []
            for number in range(60):
                name = ("acme", "ci", "beta")[number % 3]
                payload = body(tokens=rng.randint(5, 40), user=name)
                if rng.random() < 1 / 3:
                    left.append(
                        asyncio.create_task(call_and_leave(client, KEYS[name], payload, rng.uniform(0.01, 1.0)))
                    )
                else:
                    stayed.append(asyncio.create_task(call(client, KEYS[name], payload)))
            await one.until(lambda counters: counters["all"]["finished"] >= 4, seconds=20)
            before = await one.counters()
            one.kill()
            answers = await asyncio.gather(*stayed)
            await asyncio.gather(*left)
            after = await two.counters()
            assert [answer.status_code for answer in answers] == [200] * len(answers), SEED
            for rows in (before, after):
                assert rows["tenants"].get("acme", {}).get("most_calls", 0) <= 2, SEED
                assert rows["tenants"].get("beta", {}).get("most_calls", 0) <= 4, SEED
                assert rows["users"].get("ci", {}).get("most_calls", 0) <= 1, SEED

            # Nothing has leaked: a full budget is admitted at once, as the pod sees it. What was left at the pod that
            # died is held for two seconds first, since nothing can be read there.
            for name in ("acme", "beta"):
                await until_nothing_is_held(running, name)
            await two.reset()
            await asyncio.gather(
                *(call(client, KEYS["acme"], body(), **{"x-penstock-queue": "never"}) for _ in range(2))
            )
            full = await asyncio.gather(
                *(call(client, KEYS["beta"], body(), **{"x-penstock-queue": "never"}) for _ in range(4))
            )
            assert [answer.status_code for answer in full] == [200] * 4, SEED
            counters = await two.counters()
            assert counters["tenants"]["acme"]["most_calls"] == 2
            assert counters["tenants"]["beta"]["most_calls"] == 4


async def test_both_tenants_together_never_exceed_their_budgets_across_two_pods(tmp_path: Path) -> None:
    """The same with both pods alive, counting the sum over both at every moment through one shared pod."""
    async with simulator(slots=32, itl="3ms", ttft="5ms", model="tiny") as pod:
        file = f"""
models: [{{name: tiny, context: 4096, kvBytesPerToken: 4096}}]
pods: [{{name: pod, url: "{pod.url}", engine: simulator, models: [tiny]}}]
queue: {{timeout: 30s}}
tenants:
  - {{name: acme, keys: ["{hash_of(KEYS["acme"])}"], budget: {{concurrency: 2}}}}
  - {{name: beta, keys: ["{hash_of(KEYS["beta"])}"], budget: {{concurrency: 4}}}}
"""
        rng = random.Random(SEED)
        async with gateway(file, tmp_path) as running, users(running) as client:
            tasks: list[asyncio.Task[Any]] = []
            for number in range(40):
                name = ("acme", "beta")[number % 2]
                payload = body(tokens=rng.randint(3, 30), stream=rng.random() < 0.5)
                if rng.random() < 1 / 3:
                    leaving = call_and_leave(client, KEYS[name], payload, rng.uniform(0.005, 0.5))
                    tasks.append(asyncio.create_task(leaving))
                else:
                    tasks.append(asyncio.create_task(call(client, KEYS[name], payload)))
            answers = [answer for answer in await asyncio.gather(*tasks) if answer is not None]
            assert {answer.status_code for answer in answers} == {200}, SEED
            counters = await pod.until(lambda rows: rows["all"]["calls"] == 0)
            assert counters["tenants"]["acme"]["most_calls"] == 2, SEED
            assert counters["tenants"]["beta"]["most_calls"] == 4, SEED
            for name in ("acme", "beta"):
                await until_nothing_is_held(running, name)  # a left lease is back with the next reading of its pod


async def test_a_call_that_can_never_fit_is_told_so_and_charges_nothing(tmp_path: Path) -> None:
    async with simulator(slots=8, itl="1ms", model="tiny") as pod:
        file = f"""
models: [{{name: tiny, context: 8192, kvBytesPerToken: 4096}}]
pods: [{{name: pod, url: "{pod.url}", engine: simulator, models: [tiny]}}]
tenants:
  - {{name: small, keys: ["{hash_of(KEYS["small"])}"], budget: {{memory: 4Mi, concurrency: 2, requestsPerMinute: 5}}}}
"""
        async with gateway(file, tmp_path) as running, users(running) as client:
            refused = await call(client, KEYS["small"], body(tokens=4000))
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["code"] == "exceeds_budget"
            assert error["penstock"]["account"] == "tenant/small"
            assert error["penstock"]["limit"] == 4 << 20
            assert error["penstock"]["asked"] > 4 << 20
            assert await running.metric("penstock_tenant_concurrency_held", tenant="small") == 0
            assert await running.metric("penstock_tenant_gpu_memory_reserved_bytes", tenant="small") == 0
            good = await call(client, KEYS["small"], body(tokens=10))
            assert good.headers["x-ratelimit-remaining-requests"] == "4"
            assert (await pod.counters())["all"]["started"] == 1


async def test_one_that_may_not_wait_may_come_back_when_it_was_told(tmp_path: Path) -> None:
    async with simulator(slots=8, itl="10ms", ttft="10ms", model="tiny") as pod:
        file = f"""
models: [{{name: tiny, context: 8192, kvBytesPerToken: 4096}}]
pods: [{{name: pod, url: "{pod.url}", engine: simulator, models: [tiny]}}]
tenants: [{{name: small, keys: ["{hash_of(KEYS["small"])}"], budget: {{concurrency: 1}}}}]
"""
        async with gateway(file, tmp_path) as running, users(running) as client:
            first = asyncio.create_task(call(client, KEYS["small"], body(tokens=60)))
            await pod.until(lambda rows: rows["all"]["running"] == 1)
            refused = await call(client, KEYS["small"], body(tokens=5), **{"x-penstock-queue": "never"})
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "concurrency_budget"
            assert refused.json()["error"]["penstock"] | {"retry_after_ms": 0} == {
                "account": "tenant/small",
                "unit": "requests",
                "limit": 1,
                "used": 1,
                "asked": 1,
                "retry_after_ms": 0,
            }
            assert await running.metric("penstock_tenant_concurrency_held", tenant="small") == 1
            await asyncio.sleep(int(refused.headers["retry-after-ms"]) / 1000)
            again = await call(client, KEYS["small"], body(tokens=5), **{"x-penstock-queue": "never"})
            assert again.status_code == 200
            assert (await first).status_code == 200


async def test_a_spent_rate_says_when_and_then_admits(tmp_path: Path) -> None:
    async with simulator(slots=8, itl="1ms", ttft="1ms", model="tiny") as pod:
        file = f"""
models: [{{name: tiny, context: 8192, kvBytesPerToken: 4096}}]
pods: [{{name: pod, url: "{pod.url}", engine: simulator, models: [tiny]}}]
tenants: [{{name: small, keys: ["{hash_of(KEYS["small"])}"], budget: {{requestsPerMinute: 3}}}}]
"""
        async with gateway(file, tmp_path) as running, users(running) as client:
            answers = [await call(client, KEYS["small"], body(tokens=2)) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers[:3]] == ["2", "1", "0"]
            refused = answers[3]
            assert refused.json()["error"]["code"] == "request_rate"
            assert 55 <= int(refused.headers["retry-after"]) <= 61
            assert (await pod.counters())["all"]["started"] == 3


PROSE = "The river runs below the old mill and the water waits behind the wall until the gate is opened again. "
CHINESE = "河水在老磨坊下流过，水在墙后等待，直到闸门再次打开。"
CODE = "def flow(gate: Gate, level: int) -> int:\n    return min(gate.capacity, level * 3)\n\n"


@pytest.mark.parametrize(("ratio", "pod_gib", "limit_gib"), [(1.0, 16, 4.0), (1.5, 16, 6.0), (1.5, 5, 5.0)])
async def test_memory_is_lent_up_to_the_ratio_and_never_beyond(
    tmp_path: Path, ratio: float, pod_gib: int, limit_gib: float
) -> None:
    """4 GiB of budget, calls of mixed sizes and languages, nothing learned before.

    Every call stalls at the pod just before its last token, so that all that were admitted hold all that they may.
    """
    rng = random.Random(SEED)
    limit = int(limit_gib * GIB)
    token_bytes = 256 << 10
    sizes = {"short": 200, "middle": 700, "long": 2500}
    async with simulator(
        slots=256, itl="1ms", ttft="5ms", model="tiny", kv_bytes=f"{pod_gib}Gi", kv_bytes_per_token=token_bytes,
        context=16384, no_prefix_cache=True,
    ) as pod:  # fmt: skip
        file = f"""
profiles: [{{name: shared, overcommitRatio: {ratio}}}]
models: [{{name: tiny, context: 16384, kvBytesPerToken: {token_bytes}}}]
pods: [{{name: pod, url: "{pod.url}", engine: simulator, models: [tiny]}}]
queue: {{timeout: 120s}}
tenants:
  - name: lent
    profile: shared
    keys: ["{hash_of(KEYS["lent"])}"]
    budget: {{memory: 4Gi}}
    queue: {{timeout: 120s}}
"""
        # Mostly smaller ones, so that what the prompts' estimates are too high by stays well below one large call.
        drawn = rng.choices([*sizes], weights=[3, 3, 1], k=70)
        calls = [(rng.choice([PROSE, CHINESE, CODE]) * rng.randint(1, 1 + sizes[size] // 800), size) for size in drawn]
        largest = max(len(text.encode()) // 2 + 8 + sizes[size] + 16 for text, size in calls) * token_bytes
        async with gateway(file, tmp_path) as running, users(running) as client:
            for size, tokens in sizes.items():
                await pod.arm("stall_after_tokens", tokens - 1, times=-1, match={"user": size}, seconds=60)
            tasks = [
                asyncio.create_task(call(client, KEYS["lent"], body(text, tokens=sizes[size], user=size)))
                for text, size in calls
            ]
            await _all_arrived(running, len(calls))
            admitted = int(await running.metric("penstock_tenant_concurrency_held", tenant="lent"))
            held = await _stalled_bytes(pod, sizes, admitted)
            reserved = await running.metric("penstock_tenant_gpu_memory_reserved_bytes", tenant="lent")
            assert reserved <= limit, SEED
            assert held <= limit, SEED
            assert reserved > limit - largest, (SEED, reserved, limit, largest)
            assert held > limit - largest, (SEED, held, limit, largest)

            # Now all run to their ends: more is admitted as bytes come back, and the estimate learns meanwhile.
            await pod.disarm()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await pod.until(lambda rows: rows["all"]["calls"] == 0)
            await pod.reset()
            answers = await asyncio.gather(
                *(call(client, KEYS["lent"], body(text, tokens=sizes[size])) for text, size in calls)
            )
            assert {answer.status_code for answer in answers} == {200}, SEED
            most = (await pod.counters())["tenants"]["lent"]["most_kv_bytes"]
            assert limit / 2 < most <= limit, (SEED, most, limit)


async def _all_arrived(running: Running, calls: int) -> None:
    """Until every call is admitted or waits, so that no more will be admitted while nothing ends."""
    async with asyncio.timeout(30):
        while True:
            held = await running.metric("penstock_tenant_concurrency_held", tenant="lent")
            if held + await running.metric("penstock_tenant_queued", tenant="lent") == calls:
                return


async def _stalled_bytes(pod: PodProcess, sizes: dict[str, int], admitted: int) -> int:
    """The bytes that the tenant holds at the pod once each of the admitted calls has all its tokens but the last."""

    def have_stalled(rows: dict[str, Any]) -> bool:
        users = rows["users"]
        return rows["all"]["running"] == admitted and all(
            users[size]["tokens"] == users[size]["running"] * (tokens - 1)
            for size, tokens in sizes.items()
            if size in users
        )

    rows = await pod.until(have_stalled, seconds=60)
    return int(rows["tenants"]["lent"]["kv_bytes"])
