"""How a run stands at one moment, for whoever shows it, and the words that a phase leaves when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from loadtest.report.figures import count, duration
from loadtest.report.table import printable
from loadtest.summary import SweepStep


@dataclass(frozen=True, slots=True)
class LiveTenant:
    """One tenant in the phase that runs: counts of the phase so far, latencies so far in seconds.

    `tokens_per_second` is that of the last second or so; `waiting` are due and not sent; `refused` are among the
    `failed`; `worst_code` is the commonest failure, or empty.
    """

    name: str
    scheduled: int = 0
    sent: int = 0
    open: int = 0
    waiting: int = 0
    done: int = 0
    failed: int = 0
    refused: int = 0
    tokens_per_second: float = 0.0
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    itl_p50: float | None = None
    itl_p99: float | None = None
    worst_code: str = ""


@dataclass(frozen=True, slots=True)
class LiveStrain:
    """How the tool fares lately: its timer's lag in seconds, share of one core, CPU pressure; `None`: not known."""

    timer_lag_p99: float | None = None
    core: float | None = None
    pressure: float | None = None


@dataclass(frozen=True, slots=True)
class LiveState:
    """A run at one moment. `phase_number` counts from 1; `phases` is `None` where nobody knows how many there will be.

    `seconds` into the phase, whose load takes `phase_seconds` (`None`: unknown); `progress` of the whole run (0 to 1)
    and the seconds that it will still take, where known. `warnings` are plain words; `steps` those of a sweep so far.
    """

    name: str
    phase: str
    phase_number: int
    phases: int | None
    seconds: float
    phase_seconds: float | None
    tenants: Sequence[LiveTenant]
    all: LiveTenant
    progress: float | None = None
    remaining_seconds: float | None = None
    strain: LiveStrain = LiveStrain()
    warnings: Sequence[str] = ()
    steps: Sequence[SweepStep] = ()

    @property
    def is_draining(self) -> bool:
        """Whether the load is over, and open streams are given time to end."""
        return self.phase_seconds is not None and self.seconds >= self.phase_seconds

    @property
    def phase_clock(self) -> str:
        """`0:23 of 1:00`."""
        whole = "" if self.phase_seconds is None else f" of {clock(self.phase_seconds)}"
        return f"{clock(self.seconds)}{whole}"


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:30`."""
    if not isfinite(seconds):
        return "–"
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def phase_in_a_line(state: LiveState) -> str:
    """A phase that is over, as the line that it leaves."""
    every = state.all
    parts = [
        f"{printable(state.phase)}: {duration(state.seconds)}",
        f"{count(every.done)} done",
        f"{count(every.failed)} failed" + (f" ({printable(every.worst_code)})" if every.worst_code else ""),
        f"TTFT p50 {duration(every.ttft_p50)}, p99 {duration(every.ttft_p99)}",
    ]
    return " · ".join(parts)
