"""What is counted of calls as they end: numbers, codes and six histograms, from a batch of calls as columns.

Which call counts where: one that is done enters every latency; one left on purpose enters TTFT (its gaps are among the
others already) and neither E2E nor TPOT; one that failed enters none, however long it took, and is counted by its code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.histogram import Floats, Histogram
from loadtest.messages import CANCELLED, Call
from loadtest.scenario import Objectives
from loadtest.summary import FEWEST_FOR_P99, Distribution, Moment, Results

MOST_CODES: Final = 50
OTHER_CODE: Final = "other"
STOPPED: Final = "stopped"
TIMEOUT: Final = "timeout"
REFUSALS: Final = (429, 503)
# a quantile is told from 1/(1 − q) samples on: of fewer, it would only be the greatest of them
FEWEST: Final = {0.5: 1, 0.9: 10, 0.95: 20, 0.99: FEWEST_FOR_P99, 0.999: 1000}

Truths = npt.NDArray[np.bool_]

_columns = attrgetter(
    "scheduled", "sent", "first", "last", "ended", "input", "output", "events", "prompt_tokens", "completion_tokens",
    "status", "gap_count", "is_reused", "code",
)  # fmt: skip


class Columns:
    """The calls of one message and tenant, column by column; `first` and `last` are nan where there is none.

    At least one call. One pass of `attrgetter` and one `zip` are 0.9 µs a call, half of what `astuple` takes.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        scheduled, sent, first, last, ended, *sizes, reused, codes = zip(*map(_columns, calls), strict=True)
        self.scheduled, self.sent, self.first, self.last, self.ended = (
            np.array(times, dtype=np.float64) for times in (scheduled, sent, first, last, ended)
        )
        counts = [np.array(column, dtype=np.int64) for column in sizes]
        self.input, self.output, self.events, self.prompt_tokens, self.completion_tokens = counts[:5]
        self.status, self.gap_count = counts[5:]
        self.is_reused = np.array(reused, dtype=np.bool_)
        self.codes: Sequence[str] = codes
        self.is_done: Truths = np.array([not code for code in codes], dtype=np.bool_)
        self.is_cancelled: Truths = np.array([code == CANCELLED for code in codes], dtype=np.bool_)
        self.is_failed: Truths = ~(self.is_done | self.is_cancelled)

    @property
    def ttft(self) -> Floats:
        """From the scheduled arrival to the first token, in seconds; nan where none came."""
        return self.first - self.scheduled

    @property
    def has_ttft(self) -> Truths:
        """Whether the call's TTFT counts: it is done or was left on purpose, and a token came."""
        return ~(self.is_failed | np.isnan(self.first))


class Within(NamedTuple):
    """Which part of a phase's answers, and of its tokens, came while its load lasted, 0 to 1."""

    done: float
    tokens: float

    @classmethod
    def of(cls, moments: Iterable[Moment], ends_at: float) -> Within:
        """From time lines, as near as these tell: a stretch that reaches past the end is divided evenly."""
        done = tokens = done_before = tokens_before = 0.0
        for moment in moments:
            part = min(max((ends_at - moment.at) / moment.seconds, 0.0), 1.0)
            done, tokens = done + moment.done, tokens + moment.tokens
            done_before, tokens_before = done_before + part * moment.done, tokens_before + part * moment.tokens
        return cls(done_before / done if done else 0.0, tokens_before / tokens if tokens else 0.0)


@dataclass(slots=True)
class Totals:
    """One tenant's calls that ended; `merge` makes those of all tenants. `cut_off`
    failed by our own hand: stopped with the phase, or past the time limit.
    """

    done: int = 0
    good: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    cut_off: int = 0
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

    def take(self, calls: Columns, objectives: Objectives, is_streamed: bool) -> None:
        """Count a batch; a whole answer (not `is_streamed`) has no time per output token."""
        done, failed, has_ttft = calls.is_done, calls.is_failed, calls.has_ttft
        ttft, e2e = calls.ttft, calls.ended - calls.scheduled
        reported = done & (calls.completion_tokens >= 0)
        tokens = np.where(reported, calls.completion_tokens, calls.events)
        # (E2E − TTFT) / (n − 1), as AIPerf and vLLM define it
        tpot = np.divide(calls.ended - calls.first, tokens - 1, out=np.full(e2e.size, np.nan), where=tokens > 1)
        if not is_streamed:
            tpot[:] = np.nan
        self.done += int(done.sum())
        self.good += int((done & _is_good(calls, ttft, tpot, e2e, objectives)).sum())
        self.cancelled += int(calls.is_cancelled.sum())
        self.failed += int(failed.sum())
        self.refused += int((failed & np.isin(calls.status, REFUSALS)).sum())
        self.reused += int(calls.is_reused.sum())
        self.tokens_asked += int(calls.output.sum())
        self.tokens_received += int(tokens.sum())
        self.tokens_cancelled += int(np.maximum(calls.output - calls.events, 0)[calls.is_cancelled].sum())
        self.prompt_tokens_asked += int(calls.input.sum())
        self.prompt_tokens_reported += int(np.maximum(calls.prompt_tokens, 0).sum())
        if failed.any():
            for code, count in Counter(code for code in calls.codes if code and code != CANCELLED).items():
                self.add_code(code, count)
            self.cut_off += calls.codes.count(STOPPED) + calls.codes.count(TIMEOUT)
        self.ttft.add(ttft[has_ttft])
        self.ttft_from_sending.add((calls.first - calls.sent)[has_ttft])
        self.client_wait.add(calls.sent - calls.scheduled)
        self.tpot.add(tpot[done & ~np.isnan(tpot)])
        self.e2e.add(e2e[done])

    def add_code(self, code: str, count: int) -> None:
        """Count failures; a server that makes up a code for each call does not fill our memory."""
        if code not in self.codes and len(self.codes) >= MOST_CODES:
            code = OTHER_CODE
        self.codes[code] = self.codes.get(code, 0) + count

    def merge(self, other: Totals) -> None:
        """Take another tenant's."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MEASURED:
            getattr(self, name).merge(getattr(other, name))
        self.cut_off += other.cut_off
        for code, count in other.codes.items():
            self.add_code(code, count)

    def results(self, name: str, told: dict[str, int], load_seconds: float, within: Within) -> Results:
        """All as figures, with what the streams' process has told in counts.

        Rates are of what came within the load, over its seconds: a stream that takes two minutes to end after it would
        else make a server of any speed look slow.
        """
        a_second = 1 / load_seconds if load_seconds > 0 else 0.0
        wanted = self.tokens_asked - self.tokens_cancelled
        counts: dict[str, Any] = {counted: getattr(self, counted) for counted in _COUNTED}
        measured: dict[str, Any] = {each: distribution(getattr(self, each)) for each in _MEASURED}
        return Results(
            name=name,
            codes=dict(sorted(self.codes.items(), key=lambda item: (-item[1], item[0]))),
            done_per_second=self.done * within.done * a_second,
            good_per_second=self.good * within.done * a_second,
            tokens_per_second=self.tokens_received * within.tokens * a_second,
            share_served=self.tokens_received / wanted if wanted > 0 else None,
            **{**told, **counts, **measured},
        )


_MEASURED: Final = ("ttft", "ttft_from_sending", "client_wait", "itl", "tpot", "e2e")
_COUNTED: Final = (
    "done", "good", "cancelled", "failed", "refused", "reused", "tokens_asked", "tokens_received", "tokens_cancelled",
    "prompt_tokens_asked", "prompt_tokens_reported",
)  # fmt: skip


def distribution(histogram: Histogram) -> Distribution:
    """A histogram as figures: quantiles where there are samples enough for them (`FEWEST`), and its buckets."""
    count = histogram.count
    if not count:
        return Distribution()
    quantiles = {q: histogram.quantile(q) if count >= fewest else None for q, fewest in FEWEST.items()}
    buckets, counts = histogram.sparse()
    return Distribution(
        count=count,
        mean=histogram.mean,
        least=histogram.least,
        p50=quantiles[0.5],
        p90=quantiles[0.9],
        p95=quantiles[0.95],
        p99=quantiles[0.99],
        p999=quantiles[0.999],
        greatest=histogram.greatest,
        buckets=buckets,
        counts=counts,
    )


def _is_good(calls: Columns, ttft: Floats, tpot: Floats, e2e: Floats, objectives: Objectives) -> Truths:
    """Which calls meet every objective. Without a first token that for TTFT is missed, without a gap ITL's is met."""
    good = np.ones(e2e.size, dtype=np.bool_)
    if objectives.ttft is not None:
        good &= ttft <= objectives.ttft
    if objectives.itl is not None:
        gaps = np.maximum(calls.gap_count, 1)
        good &= ~((calls.last - calls.first) / gaps > objectives.itl) | (calls.gap_count == 0)
    if objectives.tpot is not None:
        good &= ~(tpot > objectives.tpot)
    if objectives.e2e is not None:
        good &= e2e <= objectives.e2e
    return good
