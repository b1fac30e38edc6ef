"""What changed from one phase to another of the same load, figure by figure, and how sure that is.

Each row has its own 95 % confidence, found by resampling: of a hundred rows that nothing changed, five are expected to
look changed. How it is resampled hangs on what a summary keeps:

- TTFT, done and tokens a second: blocks of the time line (see `statistics`), so that a bad time counts as one event,
  and the same blocks of both, so that the same arrivals make no difference;
- TPOT, E2E and ITL have no time line: their values are resampled as if each came by itself, but as many fewer as TTFT's
  own blocks tell that a call is worth, and of ITL's gaps no more than there are calls, since a call's gaps are alike;
- the share of failed calls: Beta distributed (Jeffreys), for as many fewer calls as failures come in bursts;
- good calls a second: done a second times the share of good ones, that Beta distributed, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from loadtest.histogram import Floats
from loadtest.statistics import (
    RESAMPLES,
    Stretches,
    drawn_quantile,
    interval,
    quantiles,
    resampled_means,
    resampled_quantiles,
)
from loadtest.summary import FEWEST_FOR_P99, Distribution, Moment, PhaseResults, Results

Verdict = Literal["same", "better", "worse", "unsure"]

FEWEST: Final = {0.5: 20, 0.99: FEWEST_FOR_P99}  # of both sides; a row with fewer is left out
LEAST_CHANGE: Final = 0.016  # one bucket of the histogram: smaller changes are none
LEAST_WORTH: Final = 0.1  # of a call; a queue may make first tokens more alike than it makes what follows them
SEED: Final = 20_240_607  # of resampling alone: the same two files give the same table
HIGHER_IS_BETTER: Final = ("done_per_second", "good_per_second", "tokens_per_second", "saturation")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: `a` before, `b` after, in seconds, a second, or shares. `change`, with its 95 % interval, is relative
    to `a`: 0.1 is a tenth more. `is_over`: worse by more than what is let pass, and not by chance.
    """

    metric: str
    phase: str
    tenant: str
    a: float
    b: float
    change: float
    low: float
    high: float
    verdict: Verdict
    is_over: bool


class Change(NamedTuple):
    """A figure before and after, the relative change, and resamples of that."""

    a: float
    b: float
    relative: float
    draws: Floats


def row(metric: str, place: tuple[str, str], change: Change, fail_over: float) -> Row:
    """A figure of a phase and tenant (`place`), judged.

    `worse` or `better`: the interval excludes no change. `same`: it lies within what is let pass (at least a bucket of
    the histogram) and holds no change, or the change is smaller than a bucket. `unsure`: too wide to say.
    """
    low, high = interval(change.draws)
    # the middle of the resamples may be off the figure itself by the histogram's grain
    low, high = min(low, change.relative), max(high, change.relative)
    for_worse = -change.relative if metric in HIGHER_IS_BETTER else change.relative
    let_pass = max(fail_over, LEAST_CHANGE)
    is_close = -let_pass <= low and high <= let_pass
    verdict: Verdict
    if is_close and (abs(for_worse) < LEAST_CHANGE or low <= 0 <= high):
        verdict = "same"
    elif low > 0 or high < 0:
        verdict = "worse" if for_worse > 0 else "better"
    else:
        verdict = "unsure"
    is_over = verdict == "worse" and for_worse > fail_over
    return Row(metric, *place, change.a, change.b, change.relative, low, high, verdict, is_over)


def phase_rows(a: PhaseResults, b: PhaseResults, fail_over: float, *, has_objectives: bool) -> Iterator[Row]:
    """All rows of one phase, tenant by tenant and then all together, where there are several."""
    after = {results.name: results for results in b.tenants}
    for before in a.tenants:
        if before.name in after:
            pair = _Pair(_Side(a, before), _Side(b, after[before.name]))
            yield from _rows(pair, fail_over, has_objectives=has_objectives)
    if len(a.tenants) > 1:
        yield from _rows(_Pair(_Side(a, a.all), _Side(b, b.all)), fail_over, has_objectives=has_objectives)


class _Side:
    """A tenant in one of the two runs."""

    def __init__(self, phase: PhaseResults, results: Results) -> None:
        self.phase = phase
        self.results = results
        line = _together(phase) if results is phase.all else phase.timeline.get(results.name, [])
        self.ttft = Stretches([(moment.ttft_buckets, moment.ttft_counts) for moment in line])
        self._line = [moment for moment in line if moment.at < phase.at + phase.load_seconds]

    @property
    def ended(self) -> int:
        """Calls that ended."""
        return self.results.done + self.results.cancelled + self.results.failed

    def series(self, what: str) -> Floats:
        """A count of each stretch of the load."""
        return np.array([getattr(moment, what) for moment in self._line], dtype=np.float64)

    def bursts(self) -> float:
        """How much more failures vary from stretch to stretch than chance has it (Pearson's chi² by its freedom)."""
        failed = self.series("failed")
        ended = failed + self.series("done")
        share = float(failed.sum()) / max(float(ended.sum()), 1.0)  # without calls left on purpose, as the line has it
        spread = ended * share * (1 - share)
        is_told = spread > 0
        if is_told.sum() < 2:
            return 1.0
        chi2 = float((((failed - ended * share) ** 2)[is_told] / spread[is_told]).sum())
        return max(chi2 / (int(is_told.sum()) - 1), 1.0)


class _Pair:
    """The same tenant and phase before and after: figures, and resamples of their changes."""

    def __init__(self, a: _Side, b: _Side) -> None:
        self.a, self.b = a, b
        self.place = a.phase.name, a.results.name
        self._random = np.random.default_rng(SEED)
        self._worth = max(min(a.ttft.worth(), b.ttft.worth()), LEAST_WORTH)

    def ttft(self, q: float) -> Change | None:
        """A quantile of TTFT."""
        one, other = self.a.ttft.quantile(q), self.b.ttft.quantile(q)
        if one is None or other is None or min(self.a.ttft.count, self.b.ttft.count) < FEWEST[q]:
            return None
        draws = resampled_quantiles(self.a.ttft, self.b.ttft, q, self._random)
        return Change(one, other, other / one - 1, draws[1] / draws[0] - 1)

    def quantile(self, what: str, q: float) -> Change | None:
        """A quantile of what has no time line."""
        figures: list[float] = []
        draws: list[Floats] = []
        for side in (self.a, self.b):
            values: Distribution = getattr(side.results, what)
            calls = min(values.count, side.results.done + side.results.cancelled)
            if calls < FEWEST[q]:
                return None
            counts = np.array([values.counts], dtype=np.int64)
            figures.append(float(quantiles(np.array(values.buckets, dtype=np.int64), counts, q)[0]))
            draws.append(drawn_quantile(values.buckets, values.counts, q, calls * self._worth, self._random))
        return Change(figures[0], figures[1], figures[1] / figures[0] - 1, draws[1] / draws[0] - 1)

    def rate(self, what: str) -> Change | None:
        """A rate over the whole phase, with what the time lines say of its chance."""
        one, other = (getattr(side.results, f"{what}_per_second") for side in (self.a, self.b))
        before, after = self.a.series(what), self.b.series(what)
        if one <= 0 or not before.size or not after.size or not before.any():
            return None
        if not after.any() or other <= 0:
            # of what never came, half a one may have been missed by chance (Jeffreys)
            missed = self._random.gamma(0.5, size=RESAMPLES) / max(self.b.phase.seconds, 1e-9)
            return Change(one, 0.0, -1.0, np.minimum(missed / one, 1.0) - 1)
        draws = resampled_means(before, after, self._random)
        least = 1e-3 * float(before.mean())
        ratios = draws[1] / np.maximum(draws[0], least) * float(before.mean() / after.mean())
        return Change(one, other, other / one - 1, other / one * np.maximum(ratios, 0.0) - 1)

    def good(self) -> Change | None:
        """Good calls a second: of the calls done, a share."""
        done = self.rate("done")
        one, other = self.a.results.good_per_second, self.b.results.good_per_second
        if done is None or one <= 0:
            return None
        before, after = (self._shares(side.results.good, side.results.done, self._worth) for side in (self.a, self.b))
        return Change(one, other, other / one - 1, (done.draws + 1) * after / before - 1)

    def failed(self) -> Change | None:
        """The share of calls that failed. Of none and of all it is half a call away (Jeffreys)."""
        if not self.a.ended or not self.b.ended:
            return None
        one, other = (side.results.failed / side.ended for side in (self.a, self.b))
        if not one and not other:
            return Change(0.0, 0.0, 0.0, np.zeros(1))
        before, after = (self._shares(side.results.failed, side.ended, 1 / side.bursts()) for side in (self.a, self.b))
        first, second = ((side.results.failed + 0.5) / (side.ended + 1) for side in (self.a, self.b))
        return Change(one, other, second / first - 1, after / before - 1)

    def _shares(self, part: int, whole: int, worth: float) -> Floats:
        return self._random.beta(part * worth + 0.5, (whole - part) * worth + 0.5, RESAMPLES)


def _rows(pair: _Pair, fail_over: float, *, has_objectives: bool) -> Iterator[Row]:
    changes = {
        "ttft_p50": pair.ttft(0.5),
        "ttft_p99": pair.ttft(0.99),
        "itl_p50": pair.quantile("itl", 0.5),
        "itl_p99": pair.quantile("itl", 0.99),
        "tpot_p50": pair.quantile("tpot", 0.5),
        "e2e_p50": pair.quantile("e2e", 0.5),
        "done_per_second": pair.rate("done"),
        "good_per_second": pair.good() if has_objectives else None,
        "tokens_per_second": pair.rate("tokens"),
        "failed": pair.failed(),
    }
    for metric, change in changes.items():
        if change is not None:
            yield row(metric, pair.place, change, fail_over)


def _together(phase: PhaseResults) -> list[Moment]:
    """The time lines of all tenants as one: all have the same stretches."""
    return [_sum(moments) for moments in zip(*phase.timeline.values(), strict=False)]


def _sum(moments: Sequence[Moment]) -> Moment:
    counts: dict[int, int] = {}
    for moment in moments:
        for bucket, count in zip(moment.ttft_buckets, moment.ttft_counts, strict=True):
            counts[bucket] = counts.get(bucket, 0) + count
    return Moment(
        at=moments[0].at,
        seconds=moments[0].seconds,
        done=sum(moment.done for moment in moments),
        failed=sum(moment.failed for moment in moments),
        tokens=sum(moment.tokens for moment in moments),
        ttft_buckets=list(counts),
        ttft_counts=list(counts.values()),
    )
