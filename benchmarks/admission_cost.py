"""What admission costs, and how that grows with tenants and pods: run as a module.

A release gives back one lease while every tenant waits, and hands the room to whose turn it is. Measured are calls of
one size and of mixed sizes, with heads that were just blocked (others may pass them) and heads past `bypass` (nobody
may). An idle admission is an arrival that is admitted at once, and its settling. Pods are ranked by the gateway's own
`Choice` over a fleet whose pods all have a fresh reading.

Times are CPU time, so that other work on the machine does not count. What is of one kind is timed in batches, because
reading the clock takes 1 µs or more; releases differ, so each is timed, and the clock's own part is taken off.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from statistics import median, quantiles
from time import process_time

from backends.engines.engine import Reading
from backends.fleet import Fleet
from backends.routing.choice import Choice
from benchmarks.document import write_section
from tenancy.admission import Admission, Admitted, Capacity, Lease, Queued
from tenancy.call import Call, Kind, Usage
from tenancy.policy import Budget, Key, Model, Pod, Policy, QueueSettings, ServedModel, Tenant

SEED = 1
BATCH = 50
TENANTS = (10, 100, 1_000, 10_000)
PODS = (10, 100, 1_000)
MIXED = (50, 200, 1000, 6000)


@dataclass(frozen=True, slots=True)
class World:
    """Tenants with every kind of limit, none of which is in the way, and pods that are ready for all of them."""

    admission: Admission
    tenants: Sequence[Tenant]
    random: Random

    def call(self, number: int, now: float, output_tokens: int) -> Call:
        tenant = self.tenants[number % len(self.tenants)]
        return Call("id", tenant, tenant.keys[0], Kind.CHAT, "model", now, 400, output_tokens=output_tokens)


def world(tenants: int, pods: int, slots: int | None, kv_tokens: int) -> World:
    random = Random(SEED)
    served = (ServedModel("model", "model"),)
    names = [f"pod-{number}" for number in range(pods)]
    budget = Budget(memory_bytes=1 << 40, concurrency=10**6, requests_per_minute=10**7, tokens_per_minute=10**10)
    payers = [Tenant(f"tenant-{number}", (Key(str(number), "key"),), budget=budget) for number in range(tenants)]
    policy = Policy(
        models={"model": Model("model", 8192, 1024)},
        pods={name: Pod(name, (name,), served, url="http://127.0.0.1:1") for name in names},
        tenants={tenant.name: tenant for tenant in payers},
        queue=QueueSettings(depth=100_000, timeout_seconds=10**6),
    )
    fleet = Fleet(policy, clock=lambda: 0.0)
    for name in names:
        fleet.ready(name)
        fleet.take(name, Reading(asked_at=0.0, kv_usage=0.0))
    admission = Admission(policy, Choice(fleet, random), 0.0)
    admission.pods_changed({name: Capacity(kv_tokens * 1024, slots) for name in names}, 0.0)
    return World(admission, payers, random)


def idle(tenants: int, pods: int, calls: int = 4000) -> tuple[float, float]:
    """Seconds of an arrival that is admitted at once, and of its settling: medians over batches."""
    made = world(tenants, pods, 64, 100_000)
    usage = Usage(100, 100)
    admitting: list[float] = []
    settling: list[float] = []
    for first in range(0, tenants + calls, BATCH):
        now = first / 1000
        arrivals = [made.call(number, now, 100) for number in range(first, first + BATCH)]
        begun = process_time()
        answers = [made.admission.admit(call, now) for call in arrivals]
        admitted = process_time()
        for answer in answers:
            assert isinstance(answer, Admitted)
            made.admission.settle(answer.lease, usage, now)
        settled = process_time()
        if first >= tenants:  # what is looked up once for each tenant is known by then
            admitting.append((admitted - begun) / BATCH)
            settling.append((settled - admitted) / BATCH)
    return median(admitting), median(settling)


def releases(made: World, sizes: Sequence[int], seconds_a_release: float, count: int, waiting: int) -> list[float]:
    """Seconds of each release while every tenant has `waiting` calls in the queue or more.

    The queue is filled before, and again after each release, outside the measured time.
    """
    now = 0.0
    held: list[Lease] = []

    def arrive(number: int) -> bool:
        answer = made.admission.admit(made.call(number, now, made.random.choice(sizes)), now)
        if isinstance(answer, Admitted):
            held.append(answer.lease)
        else:
            assert isinstance(answer, Queued), answer
        return isinstance(answer, Queued)

    numbers = {tenant.name: number for number, tenant in enumerate(made.tenants)}
    number = 0
    while not arrive(number):  # until the pods are full
        number += 1
    for number in range(waiting * len(made.tenants)):
        arrive(number)
    taken: list[float] = []
    for _ in range(count):
        now += seconds_a_release
        lease = held.pop(int(made.random.random() * len(held)))
        usage = Usage(100, lease.output_tokens)
        before = process_time()
        decided = made.admission.settle(lease, usage, now)
        taken.append(process_time() - before)
        for one in decided:
            assert isinstance(one.answer, Admitted)
            held.append(one.answer.lease)
            arrive(numbers[one.ticket.call.tenant.name])
    clock = _clock_seconds()
    return [max(0.0, seconds - clock) for seconds in taken]


def _clock_seconds() -> float:
    """What reading the clock adds to what is timed."""
    read = [process_time() for _ in range(1001)]
    return median(after - before for before, after in pairwise(read))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def growth() -> str:
    """How an idle call's two halves and a release grow."""
    rows: list[tuple[str, ...]] = []
    for tenants in TENANTS:
        for pods in PODS:
            admitting, settling = idle(tenants, pods)
            release = median(releases(world(tenants, pods, 4, 100_000), (200,), 0.01, 1000, 2))
            rows.append((f"{tenants:,}", f"{pods:,}", *(_micro(each) for each in (admitting, settling, release))))
    return table(("tenants", "pods", "admit", "settle", "release, all tenants waiting"), rows)


def kinds_of_release() -> str:
    """A release with 1,000 tenants waiting on 10 pods, by what their calls lack."""
    rows: list[tuple[str, ...]] = []
    for what, sizes, slots, seconds_a_release in (
        ("slots, one size", (200,), 16, 0.01),
        ("memory, one size", (200,), None, 0.01),
        ("memory, mixed sizes, heads past `bypass`", MIXED, None, 0.01),
        ("memory, mixed sizes, heads just blocked", MIXED, None, 1e-6),
    ):
        taken = releases(world(1000, 10, slots, 10_000), sizes, seconds_a_release, 4000, 2)
        p99 = quantiles(taken, n=100)[98]
        rows.append((what, *(_micro(each) for each in (median(taken), sum(taken) / len(taken), p99))))
    return table(("what the waiting calls lack", "median", "mean", "p99"), rows)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", action="store_true", help="write the tables into docs/benchmarks.md")
    arguments = parser.parse_args()
    gc.disable()
    text = f"""\
µs of CPU time a call; seed {SEED}. `python -m benchmarks.admission_cost` makes these tables in half a minute.

A release, 1,000 tenants waiting on 10 pods:

{kinds_of_release()}

By tenants and pods, calls of one size, pods limited by slots:

{growth()}
"""
    print(text)
    if arguments.document:
        write_section("admission", text)


if __name__ == "__main__":
    main()
