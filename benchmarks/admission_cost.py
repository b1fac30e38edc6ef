"""What admission costs while 1,000 tenants wait on 10 pods, and while none does: run as a module.

A release gives back one lease and hands the room to whose turn it is. Measured are calls of one size and of mixed
sizes, with heads that were just blocked (others may pass them) and heads past `bypass` (nobody may). An idle admit is
an arrival that is admitted at once, with 1,000 tenants and as many pods as the line says. Times are CPU time, so that
other work on the machine does not count.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from random import Random
from statistics import median, quantiles
from time import process_time

from tenancy.admission import Admission, Admitted, Capacity, Lease, LedgerView, Queued, Serving
from tenancy.call import Call, Kind, Usage
from tenancy.policy import Budget, Key, Model, Pod, Policy, QueueSettings, ServedModel, Tenant

TENANTS = 1000


class TwoAtRandom:
    """Ranks as the gateway does in the main: two at random, and only if neither fits all others in order."""

    def __init__(self, pods: Sequence[str], random: Random) -> None:
        self._serving = Serving(tuple(pods), is_coming=False)
        self._random = random

    def serving(self, tenant: str, model: str) -> Serving:
        return self._serving

    def choose(self, call: Call, ready: Sequence[str], fits: Callable[[str], bool], view: LedgerView) -> str | None:
        start = int(self._random.random() * len(ready))
        other = int(self._random.random() * len(ready))
        pair = [pod for pod in (ready[start], ready[other]) if fits(pod)]
        if pair:
            return min(pair, key=view.kv_share)
        return next((pod for pod in (*ready[start:], *ready[:start]) if fits(pod)), None)


def world(pods: int, slots: int | None, kv_tokens: int, random: Random) -> tuple[Admission, list[Tenant]]:
    model = Model("model", 8192, 1024)
    served = (ServedModel("model", "model"),)
    names = [f"pod-{number}" for number in range(pods)]
    budget = Budget(memory_bytes=1 << 34, concurrency=500, requests_per_minute=10**7, tokens_per_minute=10**10)
    tenants = [Tenant(f"tenant-{number}", (Key(str(number), "key"),), budget=budget) for number in range(TENANTS)]
    policy = Policy(
        models={"model": model},
        pods={name: Pod(name, (name,), served) for name in names},
        tenants={tenant.name: tenant for tenant in tenants},
        queue=QueueSettings(depth=100_000, timeout_seconds=10**6),
    )
    admission = Admission(policy, TwoAtRandom(names, random), 0.0)
    admission.pods_changed({name: Capacity(kv_tokens * 1024, slots) for name in names}, 0.0)
    return admission, tenants


def releases(sizes: Sequence[int], slots: int | None, seconds_a_release: float, random: Random) -> list[float]:
    """Seconds of each release while every tenant waits; the queue is refilled outside the measured time."""
    admission, tenants = world(10, slots, 10_000, random)
    now = 0.0
    held: list[Lease] = []

    def arrive(tenant: Tenant) -> None:
        call = Call("id", tenant, tenant.keys[0], Kind.CHAT, "model", now, 400, output_tokens=random.choice(sizes))
        answer = admission.admit(call, now)
        if isinstance(answer, Admitted):
            held.append(answer.lease)
        else:
            assert isinstance(answer, Queued), answer

    for tenant in tenants * 3:
        arrive(tenant)
    taken: list[float] = []
    for _ in range(4000):
        now += seconds_a_release
        lease = held.pop(int(random.random() * len(held)))
        usage = Usage(100, lease.output_tokens)
        before = process_time()
        decided = admission.settle(lease, usage, now)
        taken.append(process_time() - before)
        for one in decided:
            assert isinstance(one.answer, Admitted)
            held.append(one.answer.lease)
            arrive(one.ticket.call.tenant)
    return taken


def idle(pods: int, random: Random) -> list[float]:
    """Seconds of each arrival that is admitted at once."""
    admission, tenants = world(pods, 64, 100_000, random)
    taken: list[float] = []
    for number in range(5000):
        tenant = tenants[number % TENANTS]
        call = Call("id", tenant, tenant.keys[0], Kind.CHAT, "model", number / 1000, 400, output_tokens=100)
        before = process_time()
        answer = admission.admit(call, number / 1000)
        taken.append(process_time() - before)
        assert isinstance(answer, Admitted)
        admission.settle(answer.lease, Usage(100, 100), number / 1000)
    return taken[TENANTS:]


def line(what: str, taken: Sequence[float]) -> str:
    mean = sum(taken) / len(taken)
    p99 = quantiles(taken, n=100)[98]
    return f"{what:<72} {median(taken) * 1e6:7.1f} {mean * 1e6:7.1f} {p99 * 1e6:7.1f}"


def main() -> None:
    gc.disable()
    seed = 1
    print(f"seed {seed}; µs: {'':<60} median    mean     p99")
    random = Random(seed)
    mixed = (50, 200, 1000, 6000)
    print(line("release, 10 pods by slots, one size", releases((200,), 16, 0.01, random)))
    print(line("release, 10 pods by memory, one size", releases((200,), None, 0.01, random)))
    print(line("release, 10 pods by memory, mixed sizes, heads past bypass", releases(mixed, None, 0.01, random)))
    print(line("release, 10 pods by memory, mixed sizes, heads just blocked", releases(mixed, None, 1e-6, random)))
    for pods in (10, 1000):
        print(line(f"admit while nobody waits, {pods} pods", idle(pods, random)))


if __name__ == "__main__":
    main()
