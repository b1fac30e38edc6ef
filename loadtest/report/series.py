"""Whose line is whose in the report's plots, and the figures that a line is drawn from.

Each tenant keeps one colour, one dash and one shape throughout. Where there are more tenants than lines that can be
told apart, those with the fewest calls are drawn as one, from their histograms put together; tables name them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil

from loadtest.histogram import edges, middles
from loadtest.summary import FEWEST_FOR_P99, Distribution, Moment, PhaseResults, Summary

MOST_SERIES = 12
_NAMED = {0.5: "p50", 0.9: "p90", 0.95: "p95", 0.99: "p99", 0.999: "p999"}


@dataclass(frozen=True, slots=True)
class Series:
    """One tenant's, or several tenants', looks: `css` is its class, `shape` one of `Sheet.mark`'s."""

    css: str
    label: str
    tenants: tuple[str, ...]
    shape: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A stretch of the time line. `ttft_high` is the p99, or, where a slot has too few calls, the slowest
    (`is_slowest`)."""

    at: float
    seconds: float
    scheduled: int
    failed: int
    tokens_per_second: float
    open: int
    ttft_p50: float | None
    ttft_high: float | None
    is_slowest: bool


@dataclass(slots=True)
class Pool:
    """Durations of one or more distributions, by bucket."""

    count: int = 0
    least: float = float("inf")
    greatest: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)
    _alone: Distribution | None = None

    @classmethod
    def of(cls, distributions: Iterable[Distribution]) -> Pool:
        """What these hold together."""
        held = [distribution for distribution in distributions if distribution.count]
        pool = cls(_alone=held[0] if len(held) == 1 else None)
        for distribution in held:
            pool.count += distribution.count
            pool.counts.update(dict(zip(distribution.buckets, distribution.counts, strict=True)))
            if distribution.least is not None:
                pool.least = min(pool.least, distribution.least)
            if distribution.greatest is not None:
                pool.greatest = max(pool.greatest, distribution.greatest)
        return pool

    @property
    def last_share(self) -> float:
        """The greatest share that it can tell of: with 100 durations, p99."""
        return 1 - 1 / self.count if self.count else 0.0

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The durations that these shares (rising) came within, by nearest rank; at the summary's own, its figures."""
        found: list[float] = []
        if not self.counts:
            return found
        buckets = sorted(self.counts)
        values = middles(buckets).tolist()
        at, below = 0, self.counts[buckets[0]]
        total = self.counts.total()
        for share in shares:
            rank = min(max(ceil(share * total - 1e-6), 1), total)
            while below < rank:
                at += 1
                below += self.counts[buckets[at]]
            value = min(max(values[at], self.least), self.greatest)
            told = getattr(self._alone, _NAMED[share]) if self._alone and share in _NAMED else None
            found.append(value if told is None else told)
        return found


def series_of(summary: Summary) -> list[Series]:
    """The lines of all plots, in the order in which tenants first appear; the last may stand for many."""
    calls: Counter[str] = Counter()
    for phase in summary.phases:
        for results in phase.tenants:
            calls[results.name] += results.scheduled
    names = list(calls)
    if len(names) <= MOST_SERIES:
        return [Series(f"t{at}", name, (name,), at) for at, name in enumerate(names)]
    own = {name for name, _ in calls.most_common(MOST_SERIES - 1)}
    rest = tuple(name for name in names if name not in own)
    drawn = [name for name in names if name in own]
    return [
        *(Series(f"t{at}", name, (name,), at) for at, name in enumerate(drawn)),
        Series("rest", f"{len(rest)} others", rest),
    ]


def slots_of(phase: PhaseResults, series: Series, width_seconds: float) -> list[Slot]:
    """The series' time line in a phase, neighbours joined until a slot is about `width_seconds` long."""
    told = [moment for tenant in series.tenants for moment in phase.timeline.get(tenant, ())]
    moments = [moment for moment in told if moment.seconds > 0]
    if not moments:
        return []
    step = min(moment.seconds for moment in moments)
    width = step * max(ceil(width_seconds / step - 1e-6), 1)
    groups: dict[int, list[Moment]] = {}
    for moment in moments:
        groups.setdefault(int((moment.at - phase.at) / width + 1e-6), []).append(moment)
    calls = sorted(count for group in groups.values() if (count := sum(sum(moment.ttft_counts) for moment in group)))
    # one kind of figure for most of a line, or it would jump between them wherever slots hold about a hundred
    tells_p99 = bool(calls) and calls[len(calls) // 2] >= FEWEST_FOR_P99
    return [_slot(group, tells_p99) for _, group in sorted(groups.items())]


def _slot(moments: list[Moment], tells_p99: bool) -> Slot:
    begin = min(moment.at for moment in moments)
    seconds = max(moment.at + moment.seconds for moment in moments) - begin
    open_at: Counter[float] = Counter()
    counts: Counter[int] = Counter()
    for moment in moments:
        open_at[moment.at] += moment.open
        counts.update(dict(zip(moment.ttft_buckets, moment.ttft_counts, strict=True)))
    p50, high, is_slowest = _ttft(moments, counts, tells_p99)
    return Slot(
        at=begin,
        seconds=seconds,
        scheduled=sum(moment.scheduled for moment in moments),
        failed=sum(moment.failed for moment in moments),
        tokens_per_second=sum(moment.tokens for moment in moments) / seconds,
        open=max(open_at.values()),
        ttft_p50=p50,
        ttft_high=high,
        is_slowest=is_slowest,
    )


def _ttft(moments: list[Moment], counts: Counter[int], tells_p99: bool) -> tuple[float | None, float | None, bool]:
    """The median, and the p99 or the slowest: a moment's own figures where it is the only one."""
    only = moments[0] if len(moments) == 1 else None
    if not counts:
        return (only.ttft_p50, only.ttft_p99, False) if only else (None, None, False)
    slowest = float(edges([max(counts)])[1][0])
    pool = Pool(counts.total(), float(edges([min(counts)])[0][0]), slowest, counts)
    p50 = only.ttft_p50 if only and only.ttft_p50 is not None else pool.quantiles((0.5,))[0]
    if not tells_p99 or pool.count < FEWEST_FOR_P99:
        return p50, float(middles([max(counts)])[0]), True
    return p50, only.ttft_p99 if only and only.ttft_p99 is not None else pool.quantiles((0.99,))[0], False
