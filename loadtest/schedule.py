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
from hashlib import blake2b
from heapq import merge
from math import ceil, floor, inf
from random import Random
from struct import unpack
from typing import Literal, NamedTuple

import numpy as np

from loadtest import arrivals
from loadtest.scenario import Cancel, Phase, Scenario, Span, Tenant
from loadtest.traces import CLIPPED, SKIPPED, TraceRows

_BLOCK_ROWS = 4096


class Planned(NamedTuple):
    """One call: `at` seconds into the phase, of the phase's tenant number `lane`. It is left after `cancel_after`
    events with text; 0: never.
    """

    at: float
    lane: int
    input: int
    output: int
    cancel_after: int


class ClosedUsers:
    """The users of a tenant in a closed loop: `count` is the most that call at once in the phase.

    A scale that rises lets users begin one by one, one that falls lets them stop: user number n (from 0) calls while
    the scale asks for n + 1/2 users or more.
    """

    def __init__(self, seed: int, tenant: Tenant, seconds: float, scale: tuple[float, float]) -> None:
        assert tenant.arrivals is not None
        self._tenant = tenant
        self._key = blake2b(f"{seed}/{tenant.name}/users".encode(), digest_size=32).digest()
        self._seconds = seconds
        self._think = tenant.arrivals.think
        self._begin, self._end = (tenant.arrivals.users * factor for factor in scale)
        self.count = floor(max(self._begin, self._end) + 0.5)
        self._calls = [0] * self.count

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
        # Drawn by hashing user and call: a Random for each costs 44 µs and 3 KB, a quarter of a second for 6,000 users.
        call = self._calls[user]
        self._calls[user] = call + 1
        digest = blake2b(b"%d/%d" % (user, call), digest_size=40, key=self._key).digest()
        *sizes, thinking = ((number >> 11) * 2.0**-53 for number in unpack("<5Q", digest))
        think = self._think
        return *_sizes(self._tenant, *sizes), think.low + thinking * (think.high - think.low)

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
        draw = self._random(tenant, "sizes").random
        random = self._random(tenant, "arrivals")
        for at in arrivals.times(tenant.arrivals, random, self.ends_at, self._phase.scale):
            yield Planned(at, lane, *_sizes(tenant, draw(), draw(), draw(), draw()))

    def _replayed(self, rows: TraceRows) -> Iterator[Planned]:
        """The trace's calls of the phase's tenants, a block of rows at a time."""
        lane_of = {self._places[tenant.name]: lane for lane, tenant in enumerate(self._tenants)}
        draws = [self._random(tenant, "trace").random for tenant in self._tenants]
        # The trace's last call is part of a phase that ends with it.
        side: Literal["left", "right"] = "right" if self._phase.seconds is None else "left"
        end = int(np.searchsorted(rows.times, self.ends_at, side=side))
        columns = (rows.times, rows.tenants, rows.inputs, rows.outputs, rows.fates)
        for start in range(0, end, _BLOCK_ROWS):
            block = slice(start, min(start + _BLOCK_ROWS, end))
            is_ours = np.isin(rows.tenants[block], list(lane_of))
            ours = (column[block][is_ours].tolist() for column in columns)
            for at, place, asked, made, fate in zip(*ours, strict=True):
                lane = lane_of[place]
                if fate == SKIPPED:
                    self.skipped[lane] += 1
                    continue
                if fate == CLIPPED:
                    self.clipped[lane] += 1
                draw = draws[lane]
                leaves = _cancel_after(self._tenants[lane].cancel, made, draw(), draw())
                yield Planned(at, lane, asked, made, leaves)


def _sizes(tenant: Tenant, asked: float, made: float, leaving: float, after: float) -> tuple[int, int, int]:
    """Input, output and `cancel_after` of a call, by four numbers drawn from 0 up to 1.

    Every call takes all four, so that to change one setting moves no draw of the others.
    """
    output = _whole(tenant.output, made)
    return _whole(tenant.input, asked), output, _cancel_after(tenant.cancel, output, leaving, after)


def _whole(span: Span, share: float) -> int:
    """The whole number that lies so far up the span, at least one."""
    low, high = max(1, ceil(span.low)), max(1, floor(span.high))
    return low + int(share * (high - low + 1)) if low < high else low


def _cancel_after(cancel: Cancel | None, output: int, leaving: float, after: float) -> int:
    """After how many events with text a call of `output` tokens is left, 0 for never: always before its last.

    A call of one token cannot be left before its end.
    """
    if cancel is None or leaving >= cancel.share:
        return 0
    return min(_whole(cancel.after_tokens, after), output - 1)


def _is_open(tenant: Tenant) -> bool:
    return tenant.arrivals is not None and tenant.arrivals.kind != "closed"
