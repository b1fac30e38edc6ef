"""A target as a queue before `slots` servers, in virtual time: what a sweep's steps meet, as a tally is told it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from loadtest.messages import Call, Ended, Lane, Progress, Sparse, Strain
from loadtest.scenario import ArrivalKind, Arrivals, Phase, Scenario, Sweep, Target, Tenant
from loadtest.summary import PhaseResults, SweepResults
from loadtest.sweep import SweepPlan
from loadtest.tally import Tally

MESSAGE_SECONDS = 0.25
FIRST_TOKEN_SECONDS = 0.02  # of a call whose turn it is

Service = Callable[[random.Random], float]


def always(seconds: float) -> Service:
    """Each call takes as long."""
    return lambda _: seconds


def evenly(mean: float) -> Service:
    """From half to one and a half times the mean."""
    return lambda chance: chance.uniform(0.5 * mean, 1.5 * mean)


def exponentially(mean: float) -> Service:
    """With no memory."""
    return lambda chance: chance.expovariate(1 / mean)


class Served(NamedTuple):
    """When a call was due, began and ended; one that found no slot and no queue was refused."""

    due: float
    begun: float
    ended: float
    is_refused: bool = False


@dataclass
class Queue:
    """First come, first served; without a queue, calls that find no slot free are refused."""

    slots: int
    service: Service
    has_queue: bool = True

    def open_loop(self, dues: Iterator[float], chance: random.Random) -> Iterator[Served]:
        """Calls come when they are due."""
        free = [0.0] * self.slots
        for at in dues:
            if not self.has_queue and free[0] > at:
                yield Served(at, at, at + 0.001, is_refused=True)
                continue
            begun = max(at, free[0])
            ended = begun + self.service(chance)
            heapq.heapreplace(free, ended)
            yield Served(at, begun, ended)

    def closed_loop(self, users: int, seconds: float, chance: random.Random) -> Iterator[Served]:
        """Users call again as soon as they are answered, up to `seconds`."""
        free = [0.0] * self.slots
        calls = [(0.0, user) for user in range(users)]
        while calls:
            at, user = heapq.heappop(calls)
            begun = max(at, free[0])
            ended = begun + self.service(chance)
            heapq.heapreplace(free, ended)
            yield Served(at, begun, ended)
            if ended < seconds:
                heapq.heappush(calls, (ended, user))


class Rig:
    """A sweep's plan, with a queue as its target. A step's calls may take `drain_seconds` to end, then are stopped."""

    def __init__(self, sweep: Sweep, kind: ArrivalKind, queue: Queue, seed: int, drain_seconds: float = 60.0) -> None:
        arrivals = Arrivals("closed", users=1) if kind == "closed" else Arrivals(kind, rate=1.0)
        tenants = (Tenant("swept", arrivals=arrivals),)
        self.scenario = Scenario(Target("http://127.0.0.1:1/v1", "m"), tenants, (), sweep=sweep)
        self.plan = SweepPlan(sweep, self.scenario)
        self.tally = Tally(self.scenario, "", "queue")
        self.phases: list[Phase] = []
        self._kind, self._queue, self._seed, self._drain_seconds = kind, queue, seed, drain_seconds
        self._serving = random.Random(f"{seed}/service")

    def to_its_end(self) -> SweepResults:
        """All steps."""
        while (phase := self.plan.next()) is not None:
            self.judged(phase)
        return self.plan.results()

    def judged(self, phase: Phase, seconds: float | None = None) -> None:
        """One step, ended after so many seconds where they are given."""
        results = self.step(phase, seconds)
        self.plan.judge(results, self.tally.ttft_points(), self.tally.open_points())

    def step(self, phase: Phase, seconds: float | None = None) -> PhaseResults:
        """One phase, told to the tally every quarter of a second."""
        load_seconds = seconds or phase.seconds
        assert load_seconds is not None
        if self._kind == "closed":
            served = list(self._queue.closed_loop(round(phase.scale[0]), load_seconds, self._serving))
        else:
            # as in a real run, the same arrivals in each phase, at another rate
            dues = due(self._kind, phase.scale[0], load_seconds, random.Random(f"{self._seed}/arrivals"))
            served = list(self._queue.open_loop(dues, self._serving))
        end = min(max((each.ended for each in served), default=0.0), load_seconds + self._drain_seconds)
        end = max(end, load_seconds)
        calls = sorted((as_call(each, end) for each in served), key=lambda call: call.ended)
        dues_in_order = sorted(call.scheduled for call in calls)
        index = len(self.phases)
        self.phases.append(phase)
        self.tally.begin(index, phase, 0.0, True)
        at, told, ended = 0.0, 0, 0
        while at < end:
            at = min(at + MESSAGE_SECONDS, end)
            before = ended
            while ended < len(calls) and calls[ended].ended <= at:
                ended += 1
            while told < len(dues_in_order) and dues_in_order[told] <= at:
                told += 1
            lane = Lane(told, told, told - ended, 0, 8 * ended, 0, 0, 0, 0, Sparse(), calls[before:ended])
            strain = Strain(MESSAGE_SECONDS, Sparse(), Sparse(), 0.0, 0.0, -1.0, 0, [])
            self.tally.take(Progress(index, at, [lane], strain))
        return self.tally.end(Ended(index, load_seconds, end, 0.0))


def due(kind: ArrivalKind, rate: float, seconds: float, chance: random.Random) -> Iterator[float]:
    """When calls come."""
    at = 0.0
    while at < seconds:
        yield at
        at += chance.expovariate(rate) if kind == "poisson" else 1 / rate


def as_call(served: Served, end: float) -> Call:
    """A call done, refused, or stopped at the phase's end."""
    first = served.begun + FIRST_TOKEN_SECONDS
    code = "429 busy" if served.is_refused else "" if served.ended <= end else "stopped"
    ended = min(served.ended, end)
    return Call(
        served.due, served.due, None if served.is_refused or first > end else first, ended, ended, 8, 8, 8, 8,
        8 if not code else -1, 429 if served.is_refused else 200, code, 0.0, 0, True, "",
    )  # fmt: skip
