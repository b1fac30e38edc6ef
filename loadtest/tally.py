"""What a run amounts to: messages of the streams' process in, a `Summary` out. No call is kept.

Fed four times a second, it works on a message's calls as columns (numpy), and keeps per tenant and phase: counts, six
histograms, a bounded time line and at most `MOST_CODES` codes of failure. Memory does not grow with a run's length.

Which call counts where: one that is done enters every latency; one left on purpose enters TTFT (its gaps arrived with
the others) and neither E2E nor TPOT; one that failed enters none, however long it took, and is counted by its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.histogram import Counts, Floats, Histogram
from loadtest.isolation import isolation
from loadtest.messages import Call, Ended, Lane, Progress, Strain
from loadtest.scenario import Objectives, Phase, Scenario
from loadtest.statistics import jain
from loadtest.summary import Distribution, Mark, PhaseResults, Results, StrainSummary, Summary
from loadtest.timeline import DONE, FAILED, SCHEDULED, TOKENS, Timeline

ALL: Final = "all"
MOST_CODES: Final = 50
OTHER_CODE: Final = "other"
MOST_POINTS: Final = 65_536
RECENT_SECONDS: Final = 1.0
STALLS_KEPT: Final = 100
# a quantile is told from 1/(1 − q) samples on: below that it would only be the greatest of them
FEWEST: Final = {0.5: 1, 0.9: 10, 0.95: 20, 0.99: 100, 0.999: 1000}

_columns = attrgetter(
    "scheduled", "sent", "first", "last", "ended", "input", "output", "events", "prompt_tokens", "completion_tokens",
    "status", "gap_count", "is_reused", "code",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LaneNow:
    """One tenant (or `all`) in the phase that runs: counts so far, rates over the last second, latencies so far."""

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
    """Pairs of numbers in the order in which they came, thinned evenly to at most `most`: each second, fourth, … one."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._step = 1
        self._seen = 0
        self._parts: list[Floats] = []
        self._count = 0

    def add(self, x: Floats, y: Floats) -> None:
        """Take a batch of pairs."""
        kept = np.stack((x, y))[:, (-self._seen) % self._step :: self._step]
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


@dataclass(slots=True)
class _Columns:
    """The calls of one message and tenant, column by column."""

    scheduled: Floats
    sent: Floats
    first: Floats  # nan: none came
    last: Floats
    ended: Floats
    input: Counts
    output: Counts
    events: Counts
    prompt_tokens: Counts
    completion_tokens: Counts
    status: Counts
    gap_count: Counts
    is_reused: npt.NDArray[np.bool_]
    codes: Sequence[str]
    is_done: npt.NDArray[np.bool_]
    is_cancelled: npt.NDArray[np.bool_]
    is_failed: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, calls: list[Call]) -> _Columns:
        # one pass of attrgetter and one zip: 0.9 µs a call with all arrays made, where a list a column takes twice that
        *columns, codes = zip(*map(_columns, calls), strict=True)
        times = [np.array(column, dtype=np.float64) for column in columns[:5]]
        sizes = [np.array(column, dtype=np.int64) for column in columns[5:12]]
        is_done = np.array([not code for code in codes], dtype=np.bool_)
        is_cancelled = np.array([code == "cancelled" for code in codes], dtype=np.bool_)
        return cls(
            *times,
            *sizes,
            np.array(columns[12], dtype=np.bool_),
            codes,
            is_done,
            is_cancelled,
            ~(is_done | is_cancelled),
        )


@dataclass(slots=True)
class _Totals:
    """What is counted of one tenant's calls as they end; `merge` makes those of all."""

    done: int = 0
    good: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    reused: int = 0
    tokens_asked: int = 0
    tokens_received: int = 0
    tokens_cancelled: int = 0
    prompt_tokens_asked: int = 0
    prompt_tokens_reported: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    ttft: Histogram = field(default_factory=Histogram)
    ttft_from_sending: Histogram = field(default_factory=Histogram)
    client_wait: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)

    def merge(self, other: _Totals) -> None:
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MEASURED:
            getattr(self, name).merge(getattr(other, name))
        for code, count in other.codes.items():
            self.add_code(code, count)

    def add_code(self, code: str, count: int) -> None:
        """A server that makes up a code for each call does not fill our memory."""
        if code not in self.codes and len(self.codes) >= MOST_CODES:
            code = OTHER_CODE
        self.codes[code] = self.codes.get(code, 0) + count


_MEASURED: Final = ("ttft", "ttft_from_sending", "client_wait", "itl", "tpot", "e2e")
_COUNTED: Final = (
    "done", "good", "cancelled", "failed", "refused", "reused", "tokens_asked", "tokens_received", "tokens_cancelled",
    "prompt_tokens_asked", "prompt_tokens_reported",
)  # fmt: skip
_TOLD: Final = ("scheduled", "sent", "never_sent", "clipped", "skipped", "events", "reads")


class _LaneTally:
    """One tenant in the phase that runs."""

    def __init__(self, name: str, objectives: Objectives, is_streamed: bool) -> None:
        self.name = name
        self._objectives = objectives
        self._is_streamed = is_streamed
        self.totals = _Totals()
        self.told = Lane(0, 0, 0, 0, 0, 0, 0, 0, 0, Sparse_NONE, [])
        self.recent: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # when, tokens, done
