"""The calls of one phase: when each comes, whose it is, how large it is, and whether its client leaves it early.

Open loops and the trace become one sequence in order of time, drawn as it is walked: a phase of a million calls costs
no more memory than one of ten (the trace's own columns aside). Closed loops have no times of their own; for them there
is how many users call, from when to when, and what each asks next.

Each tenant draws from randoms of its own, one for each use, seeded by the run's seed, its name and the use, and by
nothing else. So a tenant's arrivals and sizes are the same in every phase and whoever else calls in it, which is what
lets the phases of a noisy-neighbour test be held against each other. In each phase the trace begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from math import ceil, floor, inf
from random import Random
from typing import Literal, NamedTuple

import numpy as np

from loadtest import arrivals
from loadtest.scenario import Cancel, Phase, Scenario, Span, Tenant
from loadtest.traces import CLIPPED, SKIPPED, TraceRows

_BLOCK_ROWS = 4096
_NO_CANCEL = Cancel(0.0, Span(1, 1))


class Planned(NamedTuple):
    """One call: `at` seconds into the phase, of the phase's tenant number `lane`. It is left after `cancel_after`
    events with text; 0: never.
    """

    at: float
    lane: int
    input: int
    output: int
    cancel_after: int


class _Sizes:
    """What one tenant's calls ask for, one after the other.

    Each call takes as many draws as any other, so that to change one setting moves no draw of the others.
    """

    __slots__ = ("_cancel", "_input", "_output", "_random")

    def __init__(self, tenant: Tenant, random: Random) -> None:
        self._input, self._output, self._cancel = tenant.input, tenant.output, tenant.cancel or _NO_CANCEL
        self._random = random

    def next(self) -> tuple[int, int, int]:
        """Input tokens, output tokens, and after how many of these the call is left (0: never)."""
        asked, made = _whole(self._input, self._random), _whole(self._output, self._random)
        return asked, made, _cancel_after(self._cancel, made, self._random)


class ClosedUsers:
    """The users of a tenant in a closed loop: `count` is the most that call at once in the phase.

    A scale that rises lets users begin one by one, one that falls lets them stop: user number n (from 0) calls while
    the scale asks for n + 1/2 users or more.
    """

    def __init__(self, seed: int, tenant: Tenant, seconds: float, scale: tuple[float, float]) -> None:
        assert tenant.arrivals is not None
        self._seed = seed
        self._tenant = tenant
        self._seconds = seconds
        self._think = tenant.arrivals.think
        self._begin, self._end = (tenant.arrivals.users * factor for factor in scale)
        self.count = floor(max(self._begin, self._end) + 0.5)
        self._drawn: dict[int, tuple[_Sizes, Random]] = {}

    def start_of(self, user: int) -> float:
        """When the user first calls, in seconds into the phase; infinity: never."""
        wanted = user + 0.5
        if self._begin >= wanted:
            return 0.0
        return self._crossed(wanted) if self._end >= wanted else inf

    def stop_of(self, user: int) -> float:
        """From when on the user makes no new call; infinity: to the phase's end."""
        wanted = user + 0.5
        if self._end >= wanted:
            return inf
        return self._crossed(wanted) if self._begin >= wanted else 0.0

    def next(self, user: int) -> tuple[int, int, int, float]:
        """The user's next call, as `Planned` has it (input, output, cancel_after), and the seconds that the user
        thinks after it.
        """
        drawn = self._drawn.get(user)
        if drawn is None:
            random = Random(f"{self._seed}/{self._tenant.name}/user {user}")
            drawn = self._drawn[user] = _Sizes(self._tenant, random), random
        sizes, random = drawn
        return *sizes.next(), random.uniform(self._think.low, self._think.high)

    def _crossed(self, users: float) -> float:
        return self._seconds * (users - self._begin) / (self._end - self._begin)


class Schedule:
    """All calls of one phase that have times: those of open loops and of the trace, merged, drawn while iterating.

    `clipped` and `skipped` count, for each of the phase's tenants, the trace's calls that were too long, among those
    whose time has come so far. `ends_at` is where the phase's load ends: where the phase says, else with the trace.
    """

    def __init__(self, scenario: Scenario, phase: Phase, rows: TraceRows | None) -> None:
        if phase.seconds is None and rows is None:
            raise ValueError(f"phase {phase.name!r} has neither a duration nor a trace that would end it")
        self._seed = scenario.seed
        self._phase = phase
        self._tenants = [scenario.tenant(name) for name in phase.tenants]
        self._places = {tenant.name: place for place, tenant in enumerate(scenario.tenants)}
        self._rows = rows
        self.ends_at = phase.seconds if phase.seconds is not None else rows.seconds if rows is not None else 0.0
        self.clipped = [0] * len(self._tenants)
        self.skipped = [0] * len(self._tenants)

    def __iter__(self) -> Iterator[Planned]:
        """From the phase's start, the same each time. Ties go by the tenants' order in the phase."""
        self.clipped[:] = self.skipped[:] = [0] * len(self._tenants)
        sources = [self._open(lane, tenant) for lane, tenant in enumerate(self._tenants) if _is_open(tenant)]
        if self._rows is not None:
            sources.append(self._replayed(self._rows))
        return merge(*sources)

    def closed(self, lane: int) -> ClosedUsers | None:
        """The users of the phase's tenant number `lane`; `None` where it has no closed loop."""
        tenant = self._tenants[lane]
        if tenant.arrivals is None or tenant.arrivals.kind != "closed":
            return None
        return ClosedUsers(self._seed, tenant, self.ends_at, self._phase.scale)

    def _random(self, tenant: Tenant, use: str) -> Random:
        return Random(f"{self._seed}/{tenant.name}/{use}")

    def _open(self, lane: int, tenant: Tenant) -> Iterator[Planned]:
        assert tenant.arrivals is not None
        sizes = _Sizes(tenant, self._random(tenant, "sizes"))
        random = self._random(tenant, "arrivals")
        for at in arrivals.times(tenant.arrivals, random, self.ends_at, self._phase.scale):
            yield Planned(at, lane, *sizes.next())

    def _replayed(self, rows: TraceRows) -> Iterator[Planned]:
        """The trace's calls of the phase's tenants, a block of rows at a time."""
        lane_of = {self._places[tenant.name]: lane for lane, tenant in enumerate(self._tenants)}
        randoms = [self._random(tenant, "trace") for tenant in self._tenants]
        cancels = [tenant.cancel or _NO_CANCEL for tenant in self._tenants]
        # The trace's last call is part of a phase that ends with it.
        side: Literal["left", "right"] = "right" if self._phase.seconds is None else "left"
        end = int(np.searchsorted(rows.times, self.ends_at, side=side))
        for start in range(0, end, _BLOCK_ROWS):
            block = slice(start, min(start + _BLOCK_ROWS, end))
            columns = (rows.times, rows.tenants, rows.inputs, rows.outputs, rows.fates)
            for at, place, asked, made, fate in zip(*(column[block].tolist() for column in columns), strict=True):
                lane = lane_of.get(place)
                if lane is None:
                    continue
                if fate == SKIPPED:
                    self.skipped[lane] += 1
                    continue
                if fate == CLIPPED:
                    self.clipped[lane] += 1
                yield Planned(at, lane, asked, made, _cancel_after(cancels[lane], made, randoms[lane]))


def _whole(span: Span, random: Random) -> int:
    """A whole number within the span, at least one; always one draw."""
    low, high = max(1, ceil(span.low)), max(1, floor(span.high))
    return low + int(random.random() * max(1, high - low + 1))


def _cancel_after(cancel: Cancel, output: int, random: Random) -> int:
    """After how many events with text a call of `output` tokens is left, 0 for never: always before its last.

    A call of one token cannot be left before its end.
    """
    share, after = random.random(), _whole(cancel.after_tokens, random)
    return min(after, output - 1) if share < cancel.share else 0


def _is_open(tenant: Tenant) -> bool:
    return tenant.arrivals is not None and tenant.arrivals.kind != "closed"
