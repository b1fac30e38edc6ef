"""The few statistics that a run needs, each with the 95 % interval that says how much to believe it.

Neither calls nor samples of memory are independent of those beside them: a queue that is long now was long just before.
Slopes are therefore given for fewer samples than there are, by their residuals' correlation; and quantiles of a time
line are resampled in blocks of neighbouring stretches, as long as the line's own correlation asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest.histogram import Counts, Floats, edges, middles

Weights = npt.NDArray[np.float32]

RESAMPLES: Final = 2000
MOST_STRETCHES: Final = 40
Z_975: Final = 1.959964


class Slope(NamedTuple):
    """Change of y for one of x, and the ends of its 95 % interval; infinite where too little is known."""

    slope: float
    low: float
    high: float


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


def jain(values: Iterable[float]) -> float | None:
    """Jain's fairness index, (Σx)² ÷ (n·Σx²): 1 where all have the same, 1/n where one has everything.

    `None` where nobody has anything (R. Jain, D. Chiu, W. Hawe, DEC-TR-301, 1984).
    """
    x = np.array(list(values), dtype=np.float64)
    squares = float((x**2).sum())
    return float(x.sum()) ** 2 / (x.size * squares) if squares > 0 else None


def student_975(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; infinite under 2 degrees of freedom, where an interval says nothing.

    Expansion in 1/freedom (Abramowitz and Stegun, 26.7.5): 3 % low at 2 degrees, 0.2 % at 3, exact from 5.
    """
    if freedom < 2:
        return math.inf
    z = Z_975
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


def ordinary_slope(x: npt.ArrayLike, y: npt.ArrayLike) -> Slope:
    """The least-squares slope of y over x, with an interval that minds neighbours' likeness.

    Points are first averaged in up to 40 equal stretches of x. The residuals' correlation r from one stretch to the
    next then leaves n·(1 − r)/(1 + r) of the n stretches as independent ones (Santer et al., J. Geophys. Res. 105,
    2000), and Student's t for two fewer gives the interval.
    """
    x, y = _stretches(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    away = x - x.mean() if x.size else x
    spread = float((away**2).sum())
    if x.size < 3 or spread <= 0:
        return Slope(0.0, -math.inf, math.inf)
    slope = float((away * y).sum()) / spread
    residuals = y - y.mean() - slope * away
    squares = float((residuals**2).sum())
    if squares <= 1e-18 * max(float((y**2).sum()), 1e-300):
        return Slope(slope, slope, slope)  # a line, exactly
    likeness = float((residuals[1:] * residuals[:-1]).sum()) / squares
    # n residuals of a fitted line look less alike than they are, by about (1 + 4r)/n (Marriott and Pope, 1954)
    likeness = min(max(likeness + (1 + 4 * max(likeness, 0.0)) / x.size, 0.0), 0.999)
    independent = x.size * (1 - likeness) / (1 + likeness)
    freedom = independent - 2
    if freedom < 2:
        return Slope(slope, -math.inf, math.inf)
    half = student_975(freedom) * math.sqrt(squares / freedom / spread)
    return Slope(slope, slope - half, slope + half)


def walking_slope(x: npt.ArrayLike, y: npt.ArrayLike) -> Slope:
    """The mean change of y from one stretch of x to the next, with an interval from how much those changes differ.

    For what sums up chance, as a queue in overload does: its residuals from a line are a random walk, of which
    `ordinary_slope` says, rightly, that it knows nothing. Too wide, never too narrow, where y comes back to a line.
    """
    points = np.asarray(x, dtype=np.float64)
    x, y = _stretches(points, np.asarray(y, dtype=np.float64))
    length = float(x[-1] - x[0]) if x.size else 0.0
    if x.size < 4 or length <= 0:
        return Slope(0.0, -math.inf, math.inf)
    slope = float(y[-1] - y[0]) / length
    # changes over stretches of unequal length vary in proportion to it
    steps = np.diff(x)
    off = (np.diff(y) - slope * steps)[steps > 0] ** 2 / steps[steps > 0]
    variance = float(off.sum()) / (off.size - 1)
    if points.size > x.size:
        variance *= 1.5  # from one mean to the next a walk changes by a third less than from one point to the next
    half = student_975(off.size - 1) * math.sqrt(variance / length)
    return Slope(slope, slope - half, slope + half)


def _stretches(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Means of the points in each of up to `MOST_STRETCHES` equal stretches of x; empty stretches are left out."""
    if x.size <= MOST_STRETCHES:
        order = np.argsort(x, kind="stable")
        return x[order], y[order]
    first, last = float(x.min()), float(x.max())
    if last <= first:
        return x[:1], y[:1]
    place = np.minimum(((x - first) / (last - first) * MOST_STRETCHES).astype(np.int64), MOST_STRETCHES - 1)
    counts = np.bincount(place, minlength=MOST_STRETCHES)
    filled = counts > 0
    sums = np.bincount(place, x, MOST_STRETCHES), np.bincount(place, y, MOST_STRETCHES)
    return sums[0][filled] / counts[filled], sums[1][filled] / counts[filled]


class Stretches:
    """Durations along a time line: one row of bucket counts a stretch, over the buckets that hold anything."""

    def __init__(self, histograms: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        filled = [number for number, (_, counts) in enumerate(histograms) if counts]
        # before the first and after the last call there is nothing to resample: a drain is no time of low latency
        histograms = histograms[filled[0] : filled[-1] + 1] if filled else []
        self.buckets = np.array(sorted({bucket for buckets, _ in histograms for bucket in buckets}), dtype=np.int64)
        self.rows: Counts = np.zeros((len(histograms), self.buckets.size), dtype=np.int64)
        for row, (buckets, counts) in zip(self.rows, histograms, strict=True):
            row[np.searchsorted(self.buckets, buckets)] = counts

    @property
    def count(self) -> int:
        """How many durations there are."""
        return int(self.rows.sum())

    def quantile(self, q: float) -> float | None:
        """The quantile of all, in seconds, read evenly within its bucket; `None` where there is nothing."""
        return float(quantiles(self.buckets, self.rows.sum(axis=0)[None], q)[0]) if self.rows.size else None

    def block_length(self, q: float) -> int:
        """How many neighbouring stretches are to be resampled together for that quantile."""
        # a high quantile has few calls beyond it, too few to show how long a bad time lasts: the median shows it
        return max(block_length(self._excess(q)), block_length(self._excess(0.5)))

    def drawn(self, q: float, weights: Weights, length: int) -> Floats:
        """That quantile of each resample, where blocks of `length` stretches were drawn."""
        draws = np.log(quantiles(self.buckets, weights @ self.rows.astype(np.float32), q))
        widened: Floats = np.exp(_widened(draws, len(self.rows) / length))
        return widened

    def worth(self) -> float:
        """How many independent calls one call is worth, 0 to 1: by how much less the mean of the logarithm would vary,
        were calls not like those in the same block.
        """
        counts = self.rows.sum(axis=1).astype(np.float64)
        whole = float(counts.sum())
        logs = np.log(middles(self.buckets))
        away = logs - float(self.rows.sum(axis=0) @ logs) / whole if whole else logs
        alone = float(self.rows.sum(axis=0) @ away**2)
        sums: Floats = self.rows.astype(np.float64) @ away
        length = block_length(sums)
        blocks = np.add.reduceat(sums, np.arange(0, sums.size, length)) if sums.size else sums
        together = float((blocks**2).sum())
        return min(alone / together, 1.0) if together > 0 else 1.0

    def _excess(self, q: float) -> Floats:
        """What each stretch adds to the quantile's error: its calls beyond the quantile, less the share expected."""
        totals = self.rows.sum(axis=1)
        at = int(np.searchsorted(np.cumsum(self.rows.sum(axis=0)), q * totals.sum()))
        beyond = self.rows[:, at:].sum(axis=1)
        excess: Floats = beyond - totals * (beyond.sum() / max(int(totals.sum()), 1))
        return excess


def resampled_quantiles(a: Stretches, b: Stretches, q: float, random: np.random.Generator) -> tuple[Floats, Floats]:
    """The quantile of `RESAMPLES` lines put together from blocks of `a`, and as many of `b`; neither is empty.

    Lines of as many stretches have the same ones drawn: what the two have in common, as the same arrivals, is no
    difference between them. Where they have nothing in common, that changes nothing.
    """
    lengths = [each.block_length(q) for each in (a, b)]
    weights = _weights_of_two((len(a.rows), len(b.rows)), (lengths[0], lengths[1]), random)
    first, second = (each.drawn(q, *drawn) for each, drawn in zip((a, b), weights, strict=True))
    return first, second


def resampled_means(a: Floats, b: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
    """The mean of `RESAMPLES` series put together from blocks of `a`, and as many of `b`; see `resampled_quantiles`."""
    weights = _weights_of_two((a.size, b.size), (block_length(a), block_length(b)), random)
    first, second = (
        _widened(drawn @ each / each.size, each.size / length)
        for each, (drawn, length) in zip((a, b), weights, strict=True)
    )
    return first, second


def _weights_of_two(
    sizes: tuple[int, int], lengths: tuple[int, int], random: np.random.Generator
) -> list[tuple[Weights, int]]:
    if sizes[0] == sizes[1]:
        length = max(lengths)
        return [(block_weights(sizes[0], length, random), length)] * 2
    return [(block_weights(size, length, random), length) for size, length in zip(sizes, lengths, strict=True)]


def _widened(draws: Floats, blocks: float) -> Floats:
    """Draws moved away from their middle, as Student's t asks: few blocks know less than their spread shows."""
    middle = np.median(draws)
    widened: Floats = middle + (draws - middle) * (student_975(max(blocks - 1, 2)) / Z_975)
    return widened


def drawn_quantile(
    buckets: Sequence[int], counts: Sequence[int], q: float, independent: float, random: np.random.Generator
) -> Floats:
    """The quantile of `RESAMPLES` resamples of `independent` values with this distribution, without drawing them: it is
    the distribution's quantile at a level that is Beta distributed itself (David and Nagaraja, Order Statistics, 2003).
    """
    levels = random.beta(q * independent, (1 - q) * independent + 1, RESAMPLES)
    held = np.array(counts, dtype=np.float64)
    sums = np.cumsum(held)
    wanted = levels * sums[-1]
    place = np.minimum(np.searchsorted(sums, wanted), held.size - 1)
    low, high = edges(np.array(buckets, dtype=np.int64)[place])
    drawn: Floats = low + (high - low) * (wanted - (sums - held)[place]) / held[place]
    return drawn


def quantiles(buckets: Counts, rows: npt.NDArray[Any], q: float) -> Floats:
    """The quantile of each row of counts, in seconds. Values are taken to lie evenly within their bucket, so that a
    small change is not lost to the bucket's width.
    """
    sums = np.cumsum(rows, axis=1, dtype=np.float64)
    wanted = q * sums[:, -1]
    place = np.minimum((sums < wanted[:, None]).sum(axis=1), buckets.size - 1)
    each = np.arange(len(rows))
    within = rows[each, place].astype(np.float64)
    before = sums[each, place] - within
    low, high = edges(buckets[place])
    part: Floats = np.divide(wanted - before, within, out=np.zeros(len(rows)), where=within > 0)
    return low + (high - low) * part


def block_weights(stretches: int, length: int, random: np.random.Generator) -> Weights:
    """How often each stretch is drawn, in each of `RESAMPLES` resamples of as many as there are: runs of `length`
    neighbours from random starts, the end joined to the beginning (circular blocks, Politis and Romano, 1992).
    """
    blocks = -(-stretches // length)
    starts = random.integers(0, stretches, size=(RESAMPLES, blocks, 1))
    drawn = ((starts + np.arange(length)) % stretches).reshape(RESAMPLES, -1)[:, :stretches]
    flat = (drawn + np.arange(RESAMPLES)[:, None] * stretches).ravel()
    return np.bincount(flat, minlength=RESAMPLES * stretches).reshape(RESAMPLES, stretches).astype(np.float32)


def block_length(series: Floats) -> int:
    """How many neighbouring stretches belong together, from the correlation of `series` along the line.

    Twice what Politis and White ask for (Econometric Reviews 23, 2004, circular bootstrap), since a short line looks
    less like itself than it is; at least the cube root of the line, at most a sixth of it. Tried on latencies whose
    level drifts, the intervals hold the truth for 96 % of lines without drift, for 94 % where a level lasts 10
    stretches of 240, and for 89 % where it lasts 40, when six of them are all that the line holds.
    """
    n = series.size
    most, least = max(n // 6, 1), max(round(math.pow(n, 1 / 3)), 1)
    away = series - series.mean() if n else series
    power = float((away**2).sum())
    if n < 12 or power <= 0:
        return min(least, most)
    reach = min(n // 2, math.ceil(math.sqrt(n)) + 5)
    likeness = np.array([float((away[lag:] * away[: n - lag]).sum()) / power for lag in range(2 * reach + 1)])
    small = np.abs(likeness) < 2 * math.sqrt(math.log10(n) / n)
    run = max(5, int(math.sqrt(math.log10(n))))
    lag = next((lag for lag in range(1, reach + 1) if small[lag : lag + run].all()), reach) - 1
    if lag < 1:
        return min(least, most)
    lags = np.arange(-2 * lag, 2 * lag + 1)
    window = np.clip(2 * (1 - np.abs(lags) / (2 * lag)), 0, 1)  # flat up to half of its width
    likeness = likeness[np.abs(lags)]
    smooth = float((window * likeness).sum())
    rough = float((window * np.abs(lags) * likeness).sum())
    asked = math.pow(2 * rough**2 / (4 / 3 * max(smooth, 1e-3) ** 2) * n, 1 / 3)
    return min(max(math.ceil(2 * asked), least), most)


def interval(draws: Floats) -> Interval:
    """The middle 95 % of resampled figures."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(low), float(high))
