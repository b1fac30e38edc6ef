"""What a run amounts to: messages of the streams' process in, a `Summary` out. No call is kept.

It works on the calls of a message as columns (numpy): 10,000 calls a second take 2 % of a core, 19 % with a hundred
tenants. Per tenant and phase it keeps counts, six histograms and a bounded time line, and for the phase that runs a
bounded sample of its first-token latencies. Memory does not grow with a phase's length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from loadtest.histogram import Floats
from loadtest.isolation import isolation
from loadtest.messages import Ended, Lane, Progress
from loadtest.scenario import Phase, Scenario
from loadtest.statistics import jain
from loadtest.strain import StrainTotal
from loadtest.summary import Mark, PhaseResults, Summary
from loadtest.timeline import DONE, FAILED, SCHEDULED, TOKENS, Timeline
from loadtest.totals import Columns, Totals, Within

ALL: Final = "all"
MOST_POINTS: Final = 65_536
RECENT_SECONDS: Final = 1.0
_TOLD: Final = ("scheduled", "sent", "never_sent", "clipped", "skipped", "events", "reads")


@dataclass(frozen=True, slots=True)
class LaneNow:
    """One tenant (or `all`) in the phase that runs: counts so far, rates over the last second, latencies so far.

    `tokens` are events with text that have arrived.
    """

    name: str
    scheduled: int
    sent: int
    open: int
    waiting: int
    done: int
    cancelled: int
    failed: int
    refused: int
    tokens: int
    tokens_per_second: float
    done_per_second: float
    ttft_p50: float | None
    ttft_p99: float | None
    itl_p50: float | None
    itl_p99: float | None


@dataclass(frozen=True, slots=True)
class Now:
    """The phase that runs, `seconds` after its start, for a live view."""

    index: int
    phase: Phase
    is_counted: bool
    seconds: float
    lanes: tuple[LaneNow, ...]
    all: LaneNow


class Points:
    """Pairs of numbers in the order in which they came; thinned evenly, to each second, fourth, … one, past `most`."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._step = 1
        self._seen = 0
        self._parts: list[Floats] = []
        self._count = 0

    def add(self, x: Floats, y: Floats) -> None:
        """Take a batch of pairs."""
        kept = np.stack((x, y))[:, -self._seen % self._step :: self._step]
        self._seen += x.size
        self._parts.append(kept)
        self._count += kept.shape[1]
        while self._count > self._most:
            whole = np.concatenate(self._parts, axis=1)[:, ::2].copy()
            self._parts, self._count, self._step = [whole], whole.shape[1], self._step * 2

    def arrays(self) -> tuple[Floats, Floats]:
        """What is kept, as two arrays."""
        whole = np.concatenate(self._parts, axis=1) if self._parts else np.zeros((2, 0))
        return whole[0], whole[1]


class _LaneTally:
    """One tenant in the phase that runs: what was told of it, what became of its calls, and where it stood lately."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.totals = Totals()
        self.told = dict.fromkeys(_TOLD, 0)
        self.open = 0
        self.waiting = 0
        self.lately: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])  # when, events, done

    def remember(self, at: float) -> None:
        """Keep where it stands, and one place at least a second before."""
        self.lately.append((at, self.told["events"], self.totals.done))
        while len(self.lately) > 2 and self.lately[1][0] <= at - RECENT_SECONDS:
            self.lately.popleft()

    def now(self) -> LaneNow:
        totals, told = self.totals, self.told
        (since, events, done), (at, events_now, done_now) = self.lately[0], self.lately[-1]
        seconds = max(at - since, 1e-9)
        return LaneNow(
            name=self.name,
            scheduled=told["scheduled"],
            sent=told["sent"],
            open=self.open,
            waiting=self.waiting,
            done=totals.done,
            cancelled=totals.cancelled,
            failed=totals.failed,
            refused=totals.refused,
            tokens=events_now,
            tokens_per_second=(events_now - events) / seconds,
            done_per_second=(done_now - done) / seconds,
            ttft_p50=totals.ttft.quantile(0.5),
            ttft_p99=totals.ttft.quantile(0.99) if totals.ttft.count >= 100 else None,
            itl_p50=totals.itl.quantile(0.5),
            itl_p99=totals.itl.quantile(0.99) if totals.itl.count >= 100 else None,
        )


class _PhaseTally:
    """The phase that runs."""

    def __init__(self, scenario: Scenario, index: int, phase: Phase, at: float, is_counted: bool) -> None:
        self._objectives = scenario.objectives
        self._is_streamed = scenario.target.stream
        self.index, self.phase, self.at, self.is_counted = index, phase, at, is_counted
        self.lanes = [_LaneTally(name) for name in phase.tenants]
        self._timeline = Timeline(len(self.lanes))
        self.strain = StrainTotal()
        self.seconds = 0.0
        self.ttft_points, self.open_points = Points(), Points(MOST_POINTS // 16)

    def take(self, progress: Progress) -> None:
        between = (self.seconds + progress.at) / 2
        for number, lane in enumerate(progress.lanes):
            self._take_lane(number, lane, between, progress.at)
        self.seconds = progress.at
        self.strain.add(progress.strain)
        self.strain.lost_calls = max(self.strain.lost_calls, progress.lost_calls)
        streams = sum(lane.open + lane.waiting for lane in progress.lanes)
        self.open_points.add(np.array([progress.at]), np.array([float(streams)]))

    def _take_lane(self, number: int, lane: Lane, between: float, at: float) -> None:
        """`between`: the middle of the time since the last message, where what only has counts is put."""
        tally, line = self.lanes[number], self._timeline
        line.add(number, SCHEDULED, between, lane.scheduled - tally.told["scheduled"])
        line.add(number, TOKENS, between, lane.events - tally.told["events"])
        line.see_open(number, at, lane.open)
        tally.told = {name: getattr(lane, name) for name in _TOLD}
        tally.open, tally.waiting = lane.open, lane.waiting
        if lane.gaps.buckets:
            tally.totals.itl.merge(lane.gaps.histogram())
        if lane.calls:
            calls = Columns(lane.calls)
            tally.totals.take(calls, self._objectives, self._is_streamed)
            line.count(number, DONE, calls.ended[calls.is_done])
            line.count(number, FAILED, calls.ended[calls.is_failed])
            # an event may bring more tokens than one: the call's end tells how many there were
            is_told = calls.is_done & (calls.completion_tokens >= 0)
            line.count(number, TOKENS, calls.ended[is_told], (calls.completion_tokens - calls.events)[is_told])
            has_ttft = calls.has_ttft
            scheduled, ttft = calls.scheduled[has_ttft], calls.ttft[has_ttft]
            line.add_ttft(number, scheduled, ttft)
            self.ttft_points.add(scheduled, ttft)
        tally.remember(at)

    def results(self, load_seconds: float, seconds: float) -> PhaseResults:
        united = self._united()
        timeline = {lane.name: self._timeline.moments(number, self.at) for number, lane in enumerate(self.lanes)}
        ends_at = self.at + load_seconds
        tenants = [
            lane.totals.results(lane.name, lane.told, load_seconds, Within.of(timeline[lane.name], ends_at))
            for lane in self.lanes
        ]
        everybody = Within.of(chain.from_iterable(timeline.values()), ends_at)
        has_several = len(tenants) > 1
        served = [each.share_served for each in tenants if each.share_served is not None]
        return PhaseResults(
            name=self.phase.name,
            at=self.at,
            load_seconds=load_seconds,
            seconds=seconds,
            is_counted=self.is_counted,
            tenants=tenants,
            all=united.totals.results(ALL, united.told, load_seconds, everybody),
            jain_tokens=jain(each.tokens_per_second for each in tenants) if has_several else None,
            jain_served=jain(served) if len(served) > 1 else None,
            strain=self.strain.summary(),
            timeline=timeline,
        )

    def now(self) -> Now:
        lanes = tuple(lane.now() for lane in self.lanes)
        return Now(self.index, self.phase, self.is_counted, self.seconds, lanes, self._united().now())

    def _united(self) -> _LaneTally:
        """All lanes as one."""
        united = _LaneTally(ALL)
        for lane in self.lanes:
            united.totals.merge(lane.totals)
            united.told = {name: count + lane.told[name] for name, count in united.told.items()}
            united.open += lane.open
            united.waiting += lane.waiting
        # every message tells of every lane, so all remember the same times
        united.lately = deque(
            (places[0][0], sum(place[1] for place in places), sum(place[2] for place in places))
            for places in zip(*(lane.lately for lane in self.lanes), strict=True)
        )
        return united

    def mark(self) -> list[Mark]:
        """A word on calls whose latencies would have been long and are not known, and on calls that were not told."""
        never_sent = sum(max(lane.told["never_sent"], lane.waiting) for lane in self.lanes)
        cut_off = sum(lane.totals.cut_off + lane.open for lane in self.lanes)
        marks = []
        if never_sent or cut_off:
            scheduled = sum(lane.told["scheduled"] for lane in self.lanes)
            parts = [f"{never_sent:,} were never sent"] if never_sent else []
            parts += [f"{cut_off:,} were cut off (stopped with the phase, or past the time limit)"] if cut_off else []
            text = (
                f"of {scheduled:,} calls {' and '.join(parts)}: their latencies are not known, those shown are lower "
            )
            marks.append(Mark(kind="censored", phase=self.phase.name, text=text + "bounds"))
        if lost := self.strain.lost_calls:
            text = f"{lost:,} calls ended untold, since they came faster than they could be counted"
            marks.append(Mark(kind="note", phase=self.phase.name, text=text))
        return marks


class Tally:
    """The whole run, phase by phase. `started` is the time of day at its start (ISO), `name` what the run is called."""

    def __init__(self, scenario: Scenario, started: str, name: str) -> None:
        self._scenario = scenario
        self._started = started
        self._name = name
        self._phase: _PhaseTally | None = None
        self._is_running = False
        self._ended: list[tuple[Phase, PhaseResults]] = []
        self._marks: list[Mark] = []

    def begin(self, index: int, phase: Phase, at: float, is_counted: bool) -> None:
        """Phase number `index` begins, `at` seconds after the run's start; a warm-up is not counted."""
        assert not self._is_running, "the phase before has not ended"
        self._phase = _PhaseTally(self._scenario, index, phase, at, is_counted)
        self._is_running = True

    def take(self, progress: Progress) -> None:
        """A message about the phase that runs; one about any other changes nothing."""
        if self._is_running and progress.index == self._last.index:
            self._last.take(progress)

    def end(self, ended: Ended) -> PhaseResults:
        """The phase that runs has ended. What `now` and the points tell stays until the next begins."""
        assert self._is_running and ended.index == self._last.index, "no such phase runs"
        return self._close(ended.load_seconds, ended.seconds)

    def now(self) -> Now:
        """How the phase stands that runs, or ran last; 0.3 ms with ten tenants."""
        return self._last.now()

    def ttft_points(self) -> tuple[Floats, Floats]:
        """Of the same phase: when calls were due (seconds from its start), and their TTFT in seconds."""
        return self._last.ttft_points.arrays()

    def open_points(self) -> tuple[Floats, Floats]:
        """Of the same phase: times (seconds from its start), and calls that were open or waiting to be sent then."""
        return self._last.open_points.arrays()

    def summary(self, ended: str) -> Summary:
        """All of it; `ended` as in `Summary`. A phase that still runs is closed as it stands."""
        if self._is_running:
            self._close(self._last.seconds, self._last.seconds)
        last = self._ended[-1][1] if self._ended else None
        return Summary(
            name=self._name,
            started=self._started,
            seconds=last.at + last.seconds if last else 0.0,
            ended=ended,
            url=self._scenario.target.url,
            model=self._scenario.target.model,
            scenario=_without_keys(self._scenario),
            marks=list(self._marks),
            phases=[results for _, results in self._ended],
            isolation=isolation(self._ended),
        )

    @property
    def _last(self) -> _PhaseTally:
        assert self._phase is not None, "no phase has begun"
        return self._phase

    def _close(self, load_seconds: float, seconds: float) -> PhaseResults:
        results = self._last.results(load_seconds, seconds)
        self._is_running = False
        self._ended.append((self._last.phase, results))
        if results.is_counted:
            self._marks += self._last.mark()
        return results


def _without_keys(scenario: Scenario) -> dict[str, Any]:
    """The scenario as it may be shown: without keys, and without words of the body, which may be secrets, too."""
    asked: dict[str, Any] = msgspec.to_builtins(scenario)
    for tenant in asked["tenants"]:
        del tenant["key"]
    body = asked["target"]["body"]
    asked["target"]["body"] = {
        name: value if isinstance(value, bool | int | float | None) else "…" for name, value in body.items()
    }
    return asked
