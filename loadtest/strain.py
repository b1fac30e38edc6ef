"""Whether the tool itself was the limit: how late its own timer came, how late it sent, how much of a core it took.

A client that stands still for a second writes that second into every latency it measures, and calls it the server's.
So the streams' process watches itself while it works: a timer of 20 ms whose lag is that of the loop, the time between
when a call was due and when it was sent, its CPU time, and how long it waited for a core. `StrainMeter` measures and
lives in that process; `StrainTotal` adds up what it sent, and `marks` says what follows, in the other one.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loadtest.histogram import Histogram
from loadtest.messages import Sparse, Strain
from loadtest.summary import FEWEST_FOR_P99, Mark, StrainSummary

TICK_SECONDS = 0.02
STALL_SECONDS = 0.25
MOST_STALLS = 100
"""Stalls that are kept one by one, the longest."""

MOST_TIMER_LAG_SECONDS = 0.005
MOST_SEND_LAG_SECONDS = 0.005
MOST_CORE = 0.85
MOST_PRESSURE = 0.20
MOST_STARVED = 0.20
WINDOW_SECONDS = 5.0  # the busiest stretch of this length is held against MOST_CORE: a phase's ends would dilute it

_MOST_TICKS_AT_ONCE = 180_000  # a stop of more than an hour counts as one of an hour


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> object:
        """Forget it."""


class Loop(Protocol):
    """An event loop, as far as the meter needs one."""

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Timer:
        """Call back so many seconds from now."""


@dataclass(frozen=True, slots=True)
class Own:
    """What the kernel tells of this process: CPU seconds used, seconds in which its loop's thread could have run and
    had no core, seconds in which anything on this machine had none (`None`: not told), and its RSS in bytes.
    """

    cpu_seconds: Callable[[], float] = time.process_time
    starved_seconds: Callable[[], float] = lambda: starved_seconds()
    pressure_seconds: Callable[[], float | None] = lambda: pressure_seconds()
    rss_bytes: Callable[[], int] = lambda: rss_bytes()


class StrainMeter:
    """Watches the process whose loop it is given, from `start` to `stop`. `take` empties it.

    `clock` is read for itself: uvloop's own `time()` is that of the turn's beginning and hides what the turn took.
    """

    def __init__(self, loop: Loop, clock: Callable[[], float] = time.monotonic, own: Own | None = None) -> None:
        self._loop = loop
        self._clock = clock
        self._own = own or Own()
        self._timer: Timer | None = None
        self._due = 0.0
        self._lags = array("d")
        self._send_lags = array("d")
        self._stalls: list[tuple[float, float]] = []
        self.note_send_lag: Callable[[float], None] = self._send_lags.append
        """Note how many seconds after it was due a call was sent. Hot: an append, 45 ns."""
        self._since, self._cpu, self._starved = clock(), 0.0, 0.0
        self._pressure: float | None = None
        self._count_from(self._since)

    def start(self) -> None:
        """Begin to tick; what was noted before is forgotten."""
        self.stop()
        self._forget()
        now = self._clock()
        self._count_from(now)
        self._due = now + TICK_SECONDS
        self._arm(now)

    def stop(self) -> None:
        """Tick no more; what was noted stays until it is taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self, origin: float = 0.0) -> Strain:
        """All since the last time. Stalls are told in seconds after `origin`, a time of the meter's clock."""
        now = self._clock()
        if self._timer is not None and now - self._due > TICK_SECONDS:
            self._tick()  # who takes may be called before the timer is, after a stop
        own = self._own
        seconds = now - self._since
        cpu, starved, pressure = own.cpu_seconds(), own.starved_seconds(), own.pressure_seconds()
        strain = Strain(
            seconds=seconds,
            timer_lag=_sparse(self._lags),
            send_lag=_sparse(self._send_lags),
            cpu_seconds=max(0.0, cpu - self._cpu),
            starved_seconds=max(0.0, starved - self._starved),
            pressure=_share(pressure, self._pressure, seconds),
            rss_bytes=own.rss_bytes(),
            stalls=[(start - origin, length) for start, length in self._stalls],
        )
        self._since, self._cpu, self._starved, self._pressure = now, cpu, starved, pressure
        self._forget()
        return strain

    def _count_from(self, now: float) -> None:
        own = self._own
        self._since = now
        self._cpu, self._starved, self._pressure = own.cpu_seconds(), own.starved_seconds(), own.pressure_seconds()

    def _forget(self) -> None:
        del self._lags[:]
        del self._send_lags[:]  # emptied in place: `note_send_lag` is bound to it
        self._stalls.clear()

    def _arm(self, now: float) -> None:
        self._timer = self._loop.call_later(self._due - now, self._tick)

    def _tick(self) -> None:
        """Note the lag of this tick, and of each that fell due and found the loop away: a stop of a second is one of
        1.0 s, one of 0.98 s and so on, as it would have met calls that came in it.
        """
        self.stop()
        now = self._clock()
        lag = max(0.0, now - self._due)  # uvloop's timers go by whole milliseconds and may come half a one early
        self._lags.append(lag)
        if lag >= STALL_SECONDS:
            self._note_stall(self._due, lag)
        self._due += TICK_SECONDS
        missed = max(0, int((now - self._due) / TICK_SECONDS) + 1) if self._due <= now else 0
        self._lags.extend(now - self._due - TICK_SECONDS * tick for tick in range(min(missed, _MOST_TICKS_AT_ONCE)))
        self._due += TICK_SECONDS * missed
        self._arm(now)

    def _note_stall(self, start: float, length: float) -> None:
        self._stalls.append((start, length))
        if len(self._stalls) > MOST_STALLS:
            self._stalls.remove(min(self._stalls, key=lambda stall: stall[1]))


class StrainTotal:
    """What the meter told during one phase, added up. Bounded: two histograms, and the longest stalls."""

    def __init__(self) -> None:
        self._timer_lag = Histogram()
        self._send_lag = Histogram()
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._starved_seconds = 0.0
        self._pressure_seconds = 0.0
        self._pressure_known_seconds = 0.0
        self._rss_bytes = 0
        self._stalls: list[tuple[float, float]] = []
        self._window_seconds = self._window_cpu_seconds = 0.0
        self._core_most = 0.0
        self.lost_calls = 0
        """Calls that could not be told, as the last message said."""

    def add(self, strain: Strain) -> None:
        """Take one message's."""
        self._window_seconds += strain.seconds
        self._window_cpu_seconds += strain.cpu_seconds
        if self._window_seconds >= WINDOW_SECONDS:
            self._core_most = max(self._core_most, self._window_cpu_seconds / self._window_seconds)
            self._window_seconds = self._window_cpu_seconds = 0.0
        self._timer_lag.merge(strain.timer_lag.histogram())
        self._send_lag.merge(strain.send_lag.histogram())
        self._seconds += strain.seconds
        self._cpu_seconds += strain.cpu_seconds
        self._starved_seconds += strain.starved_seconds
        if strain.pressure >= 0:
            self._pressure_seconds += strain.pressure * strain.seconds
            self._pressure_known_seconds += strain.seconds
        self._rss_bytes = max(self._rss_bytes, strain.rss_bytes)
        longest = sorted([*self._stalls, *strain.stalls], key=lambda stall: -stall[1])
        self._stalls = longest[:MOST_STALLS]

    def summary(self) -> StrainSummary:
        """The phase so far: means of core, waiting and pressure over its time, the greatest RSS, stalls in order."""
        seconds = self._seconds or 1.0
        known = self._pressure_known_seconds
        return StrainSummary(
            timer_lag_p99=_p99(self._timer_lag),
            send_lag_p99=_p99(self._send_lag),
            core=self._cpu_seconds / seconds,
            core_most=max(self._core_most, self._cpu_seconds / seconds),
            starved=self._starved_seconds / seconds,
            pressure=self._pressure_seconds / known if known else None,
            rss_bytes=self._rss_bytes,
            stalls=sorted(self._stalls),
            lost_calls=self.lost_calls,
        )


def marks(strain: StrainSummary, phase: str) -> list[Mark]:
    """What a phase's strain says against its figures: `client-bound`, `machine-bound`, each once, with reasons."""
    found = []
    if reasons := _client_reasons(strain):
        text = f"the tool itself was late or full, and its own delay is in the latencies: {'; '.join(reasons)}"
        remedy = "Lower the load, or give the tool a core of its own (taskset, another machine), and run it again."
        found.append(Mark(kind="client-bound", phase=phase, text=f"{text}. {remedy}"))
    if reasons := _machine_reasons(strain):
        text = f"the cores of this machine were taken, for the tool or for a server beside it: {'; '.join(reasons)}"
        remedy = "The figures are this machine's, not the target's: end what else runs here, or use a larger one."
        found.append(Mark(kind="machine-bound", phase=phase, text=f"{text}. {remedy}"))
    return found


def starved_seconds(path: Path = Path("/proc/thread-self/schedstat")) -> float:
    """How long this thread has waited for a core in its life: the second number, nanoseconds on a run queue.

    Zero where the kernel does not tell (it is built without schedstats). See proc's sched-stats document.
    """
    try:
        return int(path.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def pressure_seconds(path: Path = Path("/proc/pressure/cpu")) -> float | None:
    """For how long, since the machine started, at least one task on it waited for a core: `some`'s total, which is
    microseconds. `None` where the kernel does not tell: before 4.20, or switched off, as in some containers.
    """
    try:
        for line in path.read_text().splitlines():
            if line.startswith("some "):
                return int(line.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        pass  # EOPNOTSUPP where it is compiled in and switched off
    return None


def rss_bytes(path: Path = Path("/proc/self/statm")) -> int:
    """This process's resident memory in bytes; 0 where it is not told."""
    try:
        return int(path.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _sparse(values: array[float]) -> Sparse:
    histogram = Histogram()
    histogram.add(values)
    return Sparse.of(histogram)


def _share(now: float | None, before: float | None, seconds: float) -> float:
    """Which part of some seconds a counter of seconds grew by; -1 where it is not known."""
    if now is None or before is None or seconds <= 0:
        return -1.0
    return min(max((now - before) / seconds, 0.0), 1.0)


def _p99(histogram: Histogram) -> float | None:
    return histogram.quantile(0.99) if histogram.count >= FEWEST_FOR_P99 else None


def _client_reasons(strain: StrainSummary) -> list[str]:
    reasons = []
    for lag, most, what in (
        (strain.timer_lag_p99, MOST_TIMER_LAG_SECONDS, "its 20-ms timer came"),
        (strain.send_lag_p99, MOST_SEND_LAG_SECONDS, "calls were sent"),
    ):
        if lag is not None and lag > most:
            reasons.append(f"{what} {_ms(lag)} late at the p99 (at most {_ms(most)} is good)")
    core = max(strain.core, strain.core_most)
    if core > MOST_CORE:
        reasons.append(f"its streams took {core:.0%} of a core (at most {MOST_CORE:.0%} is good)")
    if stalls := strain.stalls:
        start, length = max(stalls, key=lambda stall: stall[1])
        more = f", the longest of {len(stalls)} stops" if len(stalls) > 1 else ""
        reasons.append(f"it stood still for {length:.2f} s from {start:.1f} s on{more}")
    return reasons


def _machine_reasons(strain: StrainSummary) -> list[str]:
    if strain.pressure is not None and strain.pressure > MOST_PRESSURE:
        return [
            f"something waited for a core during {strain.pressure:.0%} of the time (CPU pressure; at most "
            f"{MOST_PRESSURE:.0%} is good)"
        ]
    if strain.starved > MOST_STARVED:
        return [
            f"the tool could have run and had no core during {strain.starved:.0%} of the time (at most "
            f"{MOST_STARVED:.0%} is good)"
        ]
    return []


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
