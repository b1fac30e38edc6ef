"""The programs that are counted, with marks: run by its path, in a process of its own, and never imported.

    python -P marked.py serve -f FILE ...     the gateway, `penstock serve` as it is
    python -P marked.py admission             admission alone: reads a number a line, makes so many calls, says "done"

SIGUSR1 is a mark. It calls a C function that nothing else calls (`MARK` in `counting`), at which callgrind writes out
what it has counted since the last one. With `PROFILE_TO` in the environment the first mark begins a Python profile
instead, and the second writes it there.

This file is run against older trees too: it goes by faces that last.
"""

from __future__ import annotations

import cProfile
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from random import Random

TENANTS = 1000
PODS = 1000
CALLING = 10
"""Tenants that call, one after the other. Each tenant's first call looks at every pod, so all of them would be minutes
under valgrind; the tables are as large as if all called."""


class Marks:
    """What the signal does."""

    def __init__(self, profile_to: str | None) -> None:
        self._profile_to = profile_to
        self._profile: cProfile.Profile | None = None

    def __call__(self, _number: int, _frame: object) -> None:
        if self._profile_to is None:
            os.ctermid()
        elif self._profile is None:
            self._profile = cProfile.Profile()
            self._profile.enable()
        else:
            self._profile.disable()
            self._profile.dump_stats(self._profile_to)
            self._profile = None


def admission() -> Callable[[int], None]:
    """Makes so many calls, each admitted at once and settled. 1,000 tenants, 1,000 pods with room, nobody waits."""
    from backends.fleet import Fleet
    from backends.routing.choice import Choice
    from tenancy.admission import Admission, Admitted
    from tenancy.call import Call, Kind, Usage
    from tenancy.policy import Budget, Key, Model, Pod, Policy, ServedModel, Tenant

    served = (ServedModel("model", "model"),)
    names = [f"pod-{number}" for number in range(PODS)]
    budget = Budget(memory_bytes=1 << 34, concurrency=500, requests_per_minute=10**7, tokens_per_minute=10**10)
    tenants = [Tenant(f"tenant-{number}", (Key(str(number), "key"),), budget=budget) for number in range(TENANTS)]
    policy = Policy(
        models={"model": Model("model", 8192, 1024)},
        pods={
            name: Pod(
                name, (name,), served, engine="vllm", url="http://pod", kv_memory_bytes=100_000 * 1024, concurrency=64
            )
            for name in names
        },
        tenants={tenant.name: tenant for tenant in tenants},
    )
    now = 0.0
    fleet = Fleet(policy, clock=lambda: now)
    for name in names:
        fleet.ready(name)
    deciding = Admission(policy, Choice(fleet, random=Random(1)), now)
    deciding.pods_changed(fleet.capacities(), now)
    numbers = count()

    def calls(many: int) -> None:
        nonlocal now
        for _ in range(many):
            number = next(numbers)
            tenant = tenants[number % CALLING]
            now = number / 1000
            call = Call(f"req-{number:024x}", tenant, tenant.keys[0], Kind.CHAT, "model", now, 400, output_tokens=100)
            answer = deciding.admit(call, now)
            assert isinstance(answer, Admitted), answer
            deciding.settle(answer.lease, Usage(100, 100), now)

    return calls


def main() -> int:
    """Run what the command line names."""
    what, *words = sys.argv[1:]
    signal.signal(signal.SIGUSR1, Marks(os.environ.get("PROFILE_TO")))
    if what == "serve":
        from gateway.cli import main as penstock

        return penstock(["serve", *words])
    calls = admission()
    calls(3 * CALLING)
    print("listening", file=sys.stderr, flush=True)
    for line in sys.stdin:
        calls(int(line))
        print("done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
