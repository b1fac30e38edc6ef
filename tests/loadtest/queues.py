"""A target as a queue before `slots` servers, in virtual time: what a sweep's steps would meet, as a tally is told it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator

from loadtest.messages import Call, Ended, Lane, Progress, Sparse, Strain
from loadtest.scenario import Arrivals, Phase, Scenario, Sweep, Target, Tenant
from loadtest.summary import PhaseResults, SweepResults
from loadtest.sweep import SweepPlan
from loadtest.tally import Tally

MESSAGE_SECONDS = 0.25
FIRST_TOKEN_SECONDS = 0.02  # of a call whose turn it is


def sweep_scenario(sweep: Sweep, kind: str) -> Scenario:
    """One tenant whose arrivals are of that kind; its rate and users are one."""
    arrivals = Arrivals("closed", users=1) if kind == "closed" else Arrivals(kind, rate=1.0)  # type: ignore[arg-type]
    tenants = (Tenant("swept", arrivals=arrivals),)
    return Scenario(Target("http://127.0.0.1:1/v1", "m"), tenants, (), sweep=sweep)


def swept(
    sweep: Sweep,
    kind: str,
    slots: int,
    service: Callable[[random.Random], float],
    *,
    seed: int,
    drain_seconds: float = 60.0,
) -> SweepResults:
    """A whole sweep of a target with `slots` servers, each taking `service` seconds a call, first come first served."""
    scenario = sweep_scenario(sweep, kind)
    plan = SweepPlan(sweep, scenario)
    tally = Tally(scenario, "", "queue")
    serving = random.Random(f"{seed}/service")
    for index in itertools.count():
        phase = plan.next()
        if phase is None:
            return plan.results()
        # as in a real run, the same arrivals in each phase, at another rate
        arriving = random.Random(f"{seed}/arrivals")
        results = step(tally, index, phase, kind, slots, lambda: service(serving), arriving, drain_seconds)
        plan.judge(results, tally.ttft_points(), tally.open_points())
    raise AssertionError("unreachable")


def step(
    tally: Tally,
    index: int,
    phase: Phase,
    kind: str,
    slots: int,
    service: Callable[[], float],
    arriving: random.Random,
    drain_seconds: float,
) -> PhaseResults:
    """One phase, told to the tally every quarter of a second."""
    assert phase.seconds is not None
    if kind == "closed":
        served = list(closed_loop(round(phase.scale[0]), slots, service, phase.seconds))
    else:
        served = list(open_loop(due(kind, phase.scale[0], phase.seconds, arriving), slots, service))
    end = min(max((ended for _, _, ended in served), default=0.0), phase.seconds + drain_seconds)
    calls = sorted((as_call(*times, end) for times in served), key=lambda call: call.ended)
    dues = sorted(call.scheduled for call in calls)
    tally.begin(index, phase, 0.0, True)
    at, told, ended = 0.0, 0, 0
    while at < end:
        at = min(at + MESSAGE_SECONDS, end)
        before = ended
        while ended < len(calls) and calls[ended].ended <= at:
            ended += 1
        while told < len(dues) and dues[told] <= at:
            told += 1
        lane = Lane(told, told, told - ended, 0, 0, 0, 0, 0, 0, Sparse(), calls[before:ended])
        tally.take(Progress(index, at, [lane], Strain(MESSAGE_SECONDS, Sparse(), Sparse(), 0.0, 0.0, -1.0, 0, [])))
    return tally.end(Ended(index, phase.seconds, end, 0.0))


def due(kind: str, rate: float, seconds: float, random: random.Random) -> Iterator[float]:
    """When calls come."""
    at = 0.0
    while at < seconds:
        yield at
        at += random.expovariate(rate) if kind == "poisson" else 1 / rate


def open_loop(dues: Iterator[float], slots: int, service: Callable[[], float]) -> Iterator[tuple[float, float, float]]:
    """When each call was due, began and ended."""
    free = [0.0] * slots
    for at in dues:
        begun = max(at, free[0])
        ended = begun + service()
        heapq.heapreplace(free, ended)
        yield at, begun, ended


def closed_loop(
    users: int, slots: int, service: Callable[[], float], seconds: float
) -> Iterator[tuple[float, float, float]]:
    """The same of users who call again as soon as they are answered, up to `seconds`."""
    free = [0.0] * slots
    calls = [(0.0, user) for user in range(users)]
    while calls:
        at, user = heapq.heappop(calls)
        begun = max(at, free[0])
        ended = begun + service()
        heapq.heapreplace(free, ended)
        yield at, begun, ended
        if ended < seconds:
            heapq.heappush(calls, (ended, user))


def as_call(scheduled: float, begun: float, ended: float, end: float) -> Call:
    """A call done, or stopped at the phase's end."""
    first = begun + FIRST_TOKEN_SECONDS
    code = "" if ended <= end else "stopped"
    return Call(
        scheduled, scheduled, first if first <= end else None, min(ended, end), min(ended, end), 8, 8, 8, 8, 8, 200,
        code, 0.0, 0, True, "",
    )  # fmt: skip
