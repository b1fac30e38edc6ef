"""Counts of durations in fixed log-linear buckets: bounded memory, mergeable, at most 0.8 % off.

A duration's binary exponent picks the octave, its mantissa one of 64 equal parts of it (the layout of HdrHistogram,
Gil Tene). A value is read back as the middle of its bucket, so it is at most 1/128 off. Values are taken in batches:
numpy's `frexp` and `bincount` cost about 21 ns a value, where one at a time costs ten to fifty times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

PARTS = 64
LOWEST_EXPONENT = -20  # the first octave begins at 2**-21 s, half a microsecond; what is below is counted there
OCTAVES = 38  # up to 2**17 s, a day and a half; what is above is counted in the last bucket
SIZE = PARTS * OCTAVES


def buckets_of(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The bucket of each value, in seconds."""
    mantissas, exponents = np.frexp(np.asarray(values, dtype=np.float64))
    buckets = (exponents.astype(np.int64) - LOWEST_EXPONENT) * PARTS + ((mantissas - 0.5) * (2 * PARTS)).astype(
        np.int64
    )
    # zero has exponent 0: it, and what is negative by a clock's grain, belongs to the first bucket
    return np.where(mantissas <= 0, 0, np.clip(buckets, 0, SIZE - 1))


def counts_of(values: npt.ArrayLike) -> Counts:
    """A dense row of `SIZE` counts."""
    return np.bincount(buckets_of(values), minlength=SIZE)


def edges(buckets: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Lower and upper edge of each bucket, in seconds."""
    index = np.asarray(buckets, dtype=np.int64)
    scale = np.exp2((index // PARTS + LOWEST_EXPONENT).astype(np.float64))
    part = (index % PARTS).astype(np.float64)
    return scale * (0.5 + part / (2 * PARTS)), scale * (0.5 + (part + 1) / (2 * PARTS))


def middles(buckets: npt.ArrayLike) -> Floats:
    """What a value in each bucket is read back as, in seconds."""
    low, high = edges(buckets)
    return (low + high) / 2


class Histogram:
    """Durations in seconds: how many in each bucket, and their exact count, sum, least and greatest."""

    __slots__ = ("counts", "greatest", "least", "total")

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(SIZE, dtype=np.int64)
        self.total = 0.0
        self.least = float("inf")
        self.greatest = 0.0

    @property
    def count(self) -> int:
        """How many values it holds."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """The exact mean in seconds; `None` where it holds nothing."""
        count = self.count
        return self.total / count if count else None

    def add(self, values: npt.ArrayLike) -> None:
        """Take a batch of durations."""
        batch = np.asarray(values, dtype=np.float64)
        if batch.size:
            self.counts += counts_of(batch)
            self.total += float(batch.sum())
            self.least = min(self.least, float(batch.min()))
            self.greatest = max(self.greatest, float(batch.max()))

    def add_counts(self, counts: Counts, total: float, greatest: float) -> None:
        """Take values that are known by their buckets, their sum and the greatest alone; the least is then an edge."""
        filled = np.flatnonzero(counts)
        if filled.size:
            self.counts += counts
            self.total += total
            self.least = min(self.least, float(edges(filled[0])[0]))
            self.greatest = max(self.greatest, greatest)

    def merge(self, other: Histogram) -> None:
        """Take all that another one holds."""
        self.counts += other.counts
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    def quantile(self, q: float) -> float | None:
        """The value below which a share `q` (0 to 1) of all lies, at most 0.8 % off; `None` where it holds nothing.

        Nearest rank: the smallest value with at least `q` of all at or below it. Never outside least and greatest.
        """
        count = self.count
        if not count:
            return None
        rank = min(max(int(np.ceil(q * count)), 1), count)
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        return float(min(max(float(middles(bucket)), self.least), self.greatest))

    def sparse(self) -> tuple[list[int], list[int]]:
        """The buckets that hold something, and how much, for a message or a file."""
        filled = np.flatnonzero(self.counts)
        return filled.tolist(), self.counts[filled].tolist()

    @classmethod
    def of(
        cls, buckets: Sequence[int], counts: Sequence[int], total: float, least: float, greatest: float
    ) -> Histogram:
        """What `sparse` took apart."""
        histogram = cls()
        histogram.counts[np.asarray(buckets, dtype=np.int64)] = counts
        histogram.total, histogram.least, histogram.greatest = total, least, greatest
        return histogram
