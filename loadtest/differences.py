"""What changed from one phase to another of the same load, figure by figure, and how sure that is.

Each row has its own 95 % confidence, found by resampling: of a hundred rows that nothing changed, five are expected to
look changed. How it is resampled hangs on what a summary keeps:

- TTFT, done and tokens a second: blocks of the time line (see `statistics`), so that a bad time counts as one event;
- TPOT, E2E and ITL have no time line: their values are resampled as if each came by itself, but as many fewer as TTFT's
  own blocks tell that a call is worth, and of ITL's gaps no more than there are calls, since a call's gaps are alike;
- the share of failed calls: Beta distributed (Jeffreys), for as many fewer calls as failures come in bursts;
- good calls a second: done a second times the share of good ones, that Beta distributed, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from loadtest.histogram import Floats
from loadtest.statistics import RESAMPLES, Stretches, drawn_quantile, interval, quantiles, resampled_mean
from loadtest.summary import Distribution, Moment, PhaseResults, Results

Verdict = Literal["same", "better", "worse", "unsure"]

FEWEST: Final = {0.5: 20, 0.99: 100}  # of both sides; a row with fewer is left out
LEAST_CHANGE: Final = 0.016  # one bucket of the histogram: smaller changes are none
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


def row(
    metric: str, place: tuple[str, str], figures: tuple[float, float], change: float, draws: Floats, fail_over: float
) -> Row:
    """A figure of a phase and tenant (`place`), before and after, judged by the resampled changes `draws`.

    `worse` or `better`: the interval excludes no change. `same`: it lies within what is let pass (at least a bucket of
    the histogram) and holds no change, or the change is smaller than a bucket. `unsure`: too wide to say.
    """
    low, high = interval(draws)
    # the middle of the resamples may be off the figure itself by the histogram's grain
    low, high = min(low, change), max(high, change)
    for_worse = -1 if metric in HIGHER_IS_BETTER else 1
    let_pass = max(fail_over, LEAST_CHANGE)
    is_close = -let_pass <= low and high <= let_pass
    verdict: Verdict
    if is_close and (abs(change) < LEAST_CHANGE or low <= 0 <= high):
        verdict = "same"
    elif low > 0 or high < 0:
        verdict = "worse" if change * for_worse > 0 else "better"
    else:
        verdict = "unsure"
    is_over = verdict == "worse" and change * for_worse > fail_over
    return Row(metric, *place, *figures, change, low, high, verdict, is_over)


def phase_rows(a: PhaseResults, b: PhaseResults, fail_over: float, *, has_objectives: bool) -> Iterator[Row]:
    """All rows of one phase, tenant by tenant and then all together, where there are several."""
    after = {results.name: results for results in b.tenants}
    for before in a.tenants:
        if before.name in after:
            pair = _Side(a, before), _Side(b, after[before.name])
            yield from _rows(*pair, fail_over, has_objectives=has_objectives)
    if len(a.tenants) > 1:
        yield from _rows(_Side(a, a.all), _Side(b, b.all), fail_over, has_objectives=has_objectives)


class _Side:
    """A tenant in one of the two runs."""

    def __init__(self, phase: PhaseResults, results: Results) -> None:
        self.phase = phase
        self.results = results
        line = _together(phase) if results is phase.all else phase.timeline.get(results.name, [])
        self.ttft = Stretches([(moment.ttft_buckets, moment.ttft_counts) for moment in line])
        self.line = [moment for moment in line if moment.at < phase.at + phase.load_seconds]
        self.random = np.random.default_rng(SEED)
        self.worth = self._worth()

    def _worth(self) -> float:
        """How many independent calls one call is worth, 0 to 1: what resampling it alone says of the median TTFT's
        variance, by what its blocks say.
        """
        if self.ttft.count < FEWEST[0.5]:
            return 1.0
        sums = self.ttft.rows.sum(axis=0)
        alone = drawn_quantile(self.ttft.buckets.tolist(), sums.tolist(), 0.5, self.ttft.count, self.random)
        blocks = self.ttft.resampled(0.5, self.random)
        return float(min(np.log(alone).var() / max(float(np.log(blocks).var()), 1e-12), 1.0))

    def line_quantile(self, q: float) -> tuple[float, Floats] | None:
        """A quantile of TTFT, and its resamples."""
        found = self.ttft.quantile(q)
        if found is None or self.ttft.count < FEWEST[q]:
            return None
        return found, self.ttft.resampled(q, self.random)

    def quantile(self, values: Distribution, q: float) -> tuple[float, Floats] | None:
        """A quantile of what has no time line, and its resamples."""
        calls = min(values.count, self.results.done + self.results.cancelled)
        if calls < FEWEST[q]:
            return None
        counts = np.array([values.counts], dtype=np.int64)
        found = float(quantiles(np.array(values.buckets, dtype=np.int64), counts, q)[0])
        return found, drawn_quantile(values.buckets, values.counts, q, calls * self.worth, self.random)

    def rate(self, whole: float, what: str) -> tuple[float, Floats] | None:
        """A rate over the whole phase, and what its time line says of its chance."""
        series = [getattr(moment, what) for moment in self.line]
        mean = sum(series) / max(len(series), 1)
        if whole > 0 and mean > 0:
            return whole, whole * np.maximum(resampled_mean(series, self.random), mean * 1e-3) / mean
        # of what never came, half a one may have been missed by chance (Jeffreys)
        missed = self.random.gamma(0.5, size=RESAMPLES) / max(self.phase.seconds, 1e-9)
        return (0.0, missed) if series else None

    def good(self) -> tuple[float, Floats] | None:
        """Good calls a second."""
        rate = self.rate(self.results.done_per_second, "done")
        if rate is None:
            return None
        good, bad = self.results.good * self.worth, (self.results.done - self.results.good) * self.worth
        return self.results.good_per_second, rate[1] * self.random.beta(good + 0.5, bad + 0.5, RESAMPLES)

    @property
    def failed(self) -> float:
        """The share of the calls that ended that failed."""
        return self.results.failed / max(self._ended, 1)

    def failed_drawn(self) -> tuple[float, Floats]:
        """The same, half a call away from none and from all, and its draws."""
        failed, worth = self.results.failed, 1 / self._bursts(self.failed)
        draws = self.random.beta(failed * worth + 0.5, (self._ended - failed) * worth + 0.5, RESAMPLES)
        return (failed + 0.5) / (self._ended + 1), draws

    @property
    def _ended(self) -> int:
        return self.results.done + self.results.cancelled + self.results.failed

    def _bursts(self, share: float) -> float:
        """How much more failures vary from stretch to stretch than chance has it (Pearson's chi² by its freedom)."""
        failed = np.array([moment.failed for moment in self.line], dtype=np.float64)
        ended = failed + np.array([moment.done for moment in self.line], dtype=np.float64)
        expected = ended * share
        spread = expected * (1 - share)
        is_told = spread > 0
        if is_told.sum() < 2:
            return 1.0
        chi2 = float((((failed - expected) ** 2)[is_told] / spread[is_told]).sum())
        return max(chi2 / (int(is_told.sum()) - 1), 1.0)


def _rows(a: _Side, b: _Side, fail_over: float, *, has_objectives: bool) -> Iterator[Row]:
    before, after = a.results, b.results
    pairs = {
        "ttft_p50": (a.line_quantile(0.5), b.line_quantile(0.5)),
        "ttft_p99": (a.line_quantile(0.99), b.line_quantile(0.99)),
        "itl_p50": (a.quantile(before.itl, 0.5), b.quantile(after.itl, 0.5)),
        "itl_p99": (a.quantile(before.itl, 0.99), b.quantile(after.itl, 0.99)),
        "tpot_p50": (a.quantile(before.tpot, 0.5), b.quantile(after.tpot, 0.5)),
        "e2e_p50": (a.quantile(before.e2e, 0.5), b.quantile(after.e2e, 0.5)),
        "done_per_second": (a.rate(before.done_per_second, "done"), b.rate(after.done_per_second, "done")),
        "good_per_second": (a.good(), b.good()) if has_objectives else (None, None),
        "tokens_per_second": (a.rate(before.tokens_per_second, "tokens"), b.rate(after.tokens_per_second, "tokens")),
    }
    place = a.phase.name, before.name
    for metric, (one, other) in pairs.items():
        if one is not None and other is not None and one[0] > 0:
            figures = one[0], other[0]
            yield row(metric, place, figures, other[0] / one[0] - 1, other[1] / one[1] - 1, fail_over)
    if not before.failed and not after.failed:
        yield Row("failed", *place, 0.0, 0.0, 0.0, 0.0, 0.0, "same", False)
    else:
        (one_share, one_draws), (other_share, other_draws) = a.failed_drawn(), b.failed_drawn()
        changes = other_draws / one_draws - 1
        yield row("failed", place, (a.failed, b.failed), other_share / one_share - 1, changes, fail_over)


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
