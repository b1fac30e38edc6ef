"""A run from its first phase to its summary, on the side that decides: the streams' process does as it says.

Phases are run one at a time, so that a sweep can look at one load before it chooses the next. Everything that comes
back is told to the tally, which adds it up, and to `Watcher`s: a live view, the lines of a file. A run always ends: by
its phases, by its bounds, when it is interrupted, or when the streams' process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from loadtest.messages import (
    Begin,
    Call,
    Ended,
    Failed,
    FromStreams,
    Progress,
    Ready,
    Run,
    Stop,
    from_streams,
)
from loadtest.pair import End
from loadtest.scenario import Phase, Scenario
from loadtest.strain import marks
from loadtest.summary import Mark, PhaseResults, Summary, SweepStep
from loadtest.sweep import SweepPlan
from loadtest.tally import Now, Tally

READY_SECONDS = 30.0
CLOSE_SECONDS = 5.0
UNSEEN_SECONDS = 0.5  # this process standing still for so long is told; the streams went on
MOST_DRAIN_SECONDS = 600.0
MOST_ALIKE = 2  # marks of one kind that are told one by one


class StreamsFailed(Exception):
    """The streams' process ended, or cannot do what it was told."""


class Watcher(Protocol):
    """Somebody who is told while a run goes on."""

    def phase_begins(self, phase: Phase, number: int, is_counted: bool) -> None:
        """The phase of this number, from 0, begins."""

    def calls_ended(self, phase: Phase, tenant: str, calls: Sequence[Call], started_epoch: float) -> None:
        """Calls of this tenant have ended; their times are seconds after `started_epoch`."""

    def progressed(self, now: Now, progress: Progress) -> None:
        """Four times a second."""

    def phase_ended(self, results: PhaseResults, step: SweepStep | None) -> None:
        """The phase is over; in a sweep, what was made of it."""


@dataclass(slots=True)
class Control:
    """How a run that goes on is stopped: `stop` asks it to end and to report what it has."""

    _is_stopped: bool = False
    _streams: list[_Streams] = field(default_factory=list)

    @property
    def is_stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._is_stopped

    def stop(self) -> None:
        """End the phase that runs, and begin no other."""
        self._is_stopped = True
        for streams in self._streams:
            streams.tell(Stop())


class _Streams:
    """The streams' process, and this side's end of the socket pair."""

    def __init__(self, process: asyncio.subprocess.Process, end: End[FromStreams]) -> None:
        self.pid = process.pid
        self.messages = end.messages
        self.tell = end.tell
        self._process = process
        self._end = end

    @classmethod
    async def start(cls, begin: Begin) -> _Streams:
        """Start it, and wait until it is ready. Raises `StreamsFailed` where it is not."""
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C is for this process, which says `Stop` and still gets the rest.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loadtest.streams",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        _, end = await asyncio.get_running_loop().create_connection(lambda: End(from_streams()), sock=ours)
        streams = cls(process, end)
        streams.tell(begin)
        try:
            first = await asyncio.wait_for(streams.messages.get(), READY_SECONDS)
        except TimeoutError:
            first = None
        if not isinstance(first, Ready):
            await streams.close()
            why = first.reason if isinstance(first, Failed) else "the streams' process did not start"
            raise StreamsFailed(why)
        return streams

    async def close(self) -> None:
        """End it."""
        self._end.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def run_scenario(
    scenario: Scenario,
    *,
    addresses: Sequence[tuple[str, int]],
    open_streams: int,
    name: str = "run",
    watchers: Sequence[Watcher] = (),
    control: Control | None = None,
    keep_gaps: bool = False,
    on_ready: Callable[[int], None] | None = None,
) -> Summary:
    """Run it, and sum it up. `addresses` are where the target's URLs were found to lie, in their order.

    Raises `StreamsFailed` where the streams' process fails before it has told anything; later failures end the run with
    what there is.
    """
    control = control or Control()
    begin = Begin(scenario, list(addresses), open_streams, keep_gaps)
    streams = await _Streams.start(begin)
    control._streams.append(streams)
    if on_ready is not None:
        on_ready(streams.pid)
    run = _Running(scenario, streams, control, watchers, name)
    try:
        return await run.to_its_end()
    finally:
        control._streams.remove(streams)
        await streams.close()


class _Running:
    """One run under way."""

    def __init__(
        self, scenario: Scenario, streams: _Streams, control: Control, watchers: Sequence[Watcher], name: str
    ) -> None:
        self._scenario = scenario
        self._streams = streams
        self._control = control
        self._watchers = watchers
        self._began = time.monotonic()
        self._tally = Tally(scenario, datetime.now(UTC).isoformat(timespec="seconds"), name)
        self._sweep = SweepPlan(scenario.sweep, scenario) if scenario.sweep is not None else None
        self._left_requests = scenario.bounds.requests
        self._left_seconds = scenario.bounds.seconds
        self._marks: list[Mark] = []
        self._unseen: list[tuple[float, float]] = []
        self._ended = "complete"
        self._is_heard = False

    async def to_its_end(self) -> Summary:
        """All phases, and their sum."""
        noticing = asyncio.get_running_loop().create_task(self._notice_own_stalls())
        try:
            for number, (phase, is_counted) in enumerate(self._phases()):
                results = await self._one(number, phase, is_counted)
                step = self._judge(results) if is_counted else None
                for watcher in self._watchers:
                    watcher.phase_ended(results, step)
                if self._ended != "complete":
                    break
        except StreamsFailed as wrong:
            if not self._is_heard:
                raise
            self._ended = "failed"
            self._marks.append(Mark(kind="note", phase="", text=f"the run failed: {wrong}"))
        finally:
            noticing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await noticing
        summary = self._tally.summary(self._ended)
        if self._ended == "failed" and summary.phases[-1].is_counted:  # no word of its end came
            self._marks += marks(summary.phases[-1].strain, summary.phases[-1].name)
        summary.marks = _united(self._marks + summary.marks) + self._cut_short(summary)
        if self._sweep is not None:
            summary.sweep = self._sweep.results()
        for at, seconds in self._unseen:
            text = (
                f"the view stood still for {seconds:.1f} s, {at:.1f} s into the run; the streams, in another process, "
                "went on"
            )
            summary.marks.append(Mark(kind="note", phase="", text=text))
        return summary

    def _cut_short(self, summary: Summary) -> list[Mark]:
        """What the bounds left out, which nobody should have to notice by its absence."""
        if self._ended != "bounds":
            return []
        bounds = self._scenario.bounds
        which = "calls (bounds.requests)" if self._left_requests <= 0 else "seconds of load (bounds.duration)"
        most = bounds.requests if self._left_requests <= 0 else round(bounds.seconds)
        run = {phase.name for phase in summary.phases}
        left_out = [phase.name for phase in self._scenario.phases if phase.name not in run]
        text = f"the run ended at its bound of {most:,} {which}"
        if left_out and self._sweep is None:
            text += f"; these phases were not run: {', '.join(left_out)}"
        return [Mark(kind="censored", phase="", text=text)]

    def _phases(self) -> Iterator[tuple[Phase, bool]]:
        """What to run, one after the other, within the bounds; and whether it counts."""
        scenario = self._scenario
        if scenario.warmup_seconds and scenario.phases:
            first = scenario.phases[0]
            scale = (first.scale[0], first.scale[0])
            yield replace(first, name="warm-up", seconds=scenario.warmup_seconds, scale=scale), False
        if self._sweep is None:
            for phase in scenario.phases:
                if not self._bounded():
                    yield phase, True
            return
        while (step := self._sweep.next()) is not None and not self._bounded():
            yield step, True

    def _bounded(self) -> bool:
        if self._left_seconds <= 0 or self._left_requests <= 0:
            self._ended = "bounds"
        return self._ended != "complete"

    async def _one(self, number: int, phase: Phase, is_counted: bool) -> PhaseResults:
        at = time.monotonic() - self._began
        self._tally.begin(number, phase, at, is_counted)
        for watcher in self._watchers:
            watcher.phase_begins(phase, number, is_counted)
        # Time-outs are looked for four times a second: a call that is due to one should still end by it.
        drain = min(self._scenario.target.timeout_seconds + 1.0, MOST_DRAIN_SECONDS)
        started_epoch = time.time()
        self._streams.tell(Run(number, phase, drain, self._left_requests, self._left_seconds))
        if self._control.is_stopped:
            self._streams.tell(Stop())
        while True:
            message = await self._streams.messages.get()
            if isinstance(message, Progress):
                self._take(message, phase, started_epoch)
            elif isinstance(message, Ended):
                return self._end(message, phase)
            else:
                why = message.reason if isinstance(message, Failed) else "the streams' process ended by itself"
                raise StreamsFailed(why)

    def _take(self, progress: Progress, phase: Phase, started_epoch: float) -> None:
        self._is_heard = True
        self._tally.take(progress)
        now = self._tally.now()
        for watcher in self._watchers:
            for tenant, lane in zip(phase.tenants, progress.lanes, strict=True):
                if lane.calls:
                    watcher.calls_ended(phase, tenant, lane.calls, started_epoch)
            watcher.progressed(now, progress)

    def _end(self, ended: Ended, phase: Phase) -> PhaseResults:
        results = self._tally.end(ended)
        if results.is_counted:
            self._marks += marks(results.strain, phase.name)
        self._left_requests -= results.all.scheduled
        self._left_seconds -= ended.load_seconds
        if self._control.is_stopped:
            self._ended = "interrupted"
        elif ended.reason in ("requests", "seconds"):
            self._ended = "bounds"
        return results

    def _judge(self, results: PhaseResults) -> SweepStep | None:
        if self._sweep is None:
            return None
        return self._sweep.judge(results, self._tally.ttft_points(), self._tally.open_points())

    async def _notice_own_stalls(self) -> None:
        """A user who stops this process should hear what that did: nothing to the streams."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            now = time.monotonic()
            if now - before - 0.1 > UNSEEN_SECONDS and len(self._unseen) < 20:
                self._unseen.append((before - self._began, now - before - 0.1))
            before = now


def _united(found: Sequence[Mark]) -> list[Mark]:
    """Marks as they are, but one of a kind where a sweep's every step has its own."""
    united: list[Mark] = []
    for kind in dict.fromkeys(mark.kind for mark in found):
        same = [mark for mark in found if mark.kind == kind]
        if len(same) <= MOST_ALIKE:
            united += same
            continue
        phases = f"{len(same)} phases, {same[0].phase} to {same[-1].phase}"
        text = f"in {same[0].phase}: {same[0].text}"
        united.append(Mark(kind=kind, phase=phases, text=text))
    return united
