"""How fast a figure grows over hours, and whether that can be told from its noise: a server's memory in a long run.

Memory does not scatter around a line. It climbs in steps, saws between collections, and stays where it was put, so its
values hang together over minutes; ordinary least squares, and Newey–West with the usual few lags, then call almost
anything a trend (in a simulation of random walks their 95 % intervals held the truth 11 times in 100). So the time is
cut into ten blocks, and what is judged is the nine steps from one block's mean to the next: for a random walk as for
noise these are nearly independent, and one single step up among nine is no growth. `Series` keeps the points, bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtest.summary import Growth
from tenancy.units import format_bytes

MOST_POINTS = 600
WARM_UP_SECONDS = 60.0
WARM_UP_SHARE = 0.1
BLOCKS = 10

_FEWEST_IN_A_BLOCK = 2
_T_975 = 2.306  # Student's t, 8 degrees of freedom: nine steps, one mean
# Steps between means of neighbouring blocks of a random walk correlate by 1/4 (Working 1960), which makes the variance
# of their mean 1 + 2/4 times what it seems.
_WIDENED = math.sqrt(1.5)


class Series:
    """A figure over time in at most `MOST_POINTS` points: means over stretches of one second, then of two, four, …"""

    def __init__(self) -> None:
        self._began: float | None = None
        self._width = 1.0
        self._sums = np.zeros(MOST_POINTS)
        self._times = np.zeros(MOST_POINTS)
        self._counts = np.zeros(MOST_POINTS)

    def add(self, at: float, value: float) -> None:
        """Take one value, in order of time. What comes before the first is left out."""
        if self._began is None:
            self._began = at
        since = at - self._began
        if since < 0:
            return
        while since >= self._width * MOST_POINTS:
            self._width *= 2
            for row in (self._sums, self._times, self._counts):
                row[: MOST_POINTS // 2] = row[0::2] + row[1::2]
                row[MOST_POINTS // 2 :] = 0
        index = int(since / self._width)
        self._sums[index] += value
        self._times[index] += at
        self._counts[index] += 1

    def points(self) -> list[tuple[float, float]]:
        """The mean time and mean value of each stretch that has any."""
        filled = self._counts > 0
        counts = self._counts[filled]
        return list(zip((self._times[filled] / counts).tolist(), (self._sums[filled] / counts).tolist(), strict=True))


def growth(points: Sequence[tuple[float, float]]) -> Growth | None:
    """Bytes an hour, with 95 % confidence, of points (seconds, bytes) in order of time.

    The beginning is left out, when a server still fills its caches: a minute or a tenth of the time, whichever is more,
    yet never more than half. `None` where what is left is too little to say anything: under 20 points, or a gap of a
    tenth of the time.
    """
    if len(points) < 2:
        return None
    times, values = np.array(points, dtype=np.float64).T
    span = float(times[-1] - times[0])
    warm_up = min(max(WARM_UP_SECONDS, WARM_UP_SHARE * span), span / 2)
    is_kept = times >= times[0] + warm_up
    slope = block_slope(times[is_kept], values[is_kept])
    if slope is None:
        return None
    middle, half = slope
    return Growth(
        bytes_per_hour=middle * 3600,
        low=(middle - half) * 3600,
        high=(middle + half) * 3600,
        series=[(round(at, 3), round(value)) for at, value in points],
    )


def block_slope(times: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Rise a second, and half the width of its 95 % confidence; `None` where a block has fewer than two points.

    Mean and Student's t of the nine steps between ten blocks' means, widened for their correlation.
    """
    if times.size < BLOCKS * _FEWEST_IN_A_BLOCK or times[-1] <= times[0]:
        return None
    edges = np.linspace(times[0], times[-1], BLOCKS + 1)
    block = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, BLOCKS - 1)
    counts = np.bincount(block, minlength=BLOCKS)
    if counts.min() < _FEWEST_IN_A_BLOCK:
        return None
    base = values[0]  # gigabytes that grow by bytes: sums of the differences are exact, those of the values are not
    means = np.bincount(block, weights=values - base, minlength=BLOCKS) / counts
    middles = np.bincount(block, weights=times - times[0], minlength=BLOCKS) / counts
    steps = np.diff(means) / np.diff(middles)
    slope = float((means[-1] - means[0]) / (middles[-1] - middles[0]))
    half = _T_975 * _WIDENED * float(steps.std(ddof=1)) / math.sqrt(steps.size)
    return slope, half


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a bound on growth is kept; `None`: it cannot be told. `text` says so with figures."""

    is_kept: bool | None
    text: str


def verdict(grown: Growth | None, most_bytes_per_hour: float) -> Verdict:
    """Hold growth against a bound: kept where all of its confidence lies at or below, broken where all lies above."""
    bound = f"{_rate(most_bytes_per_hour)} an hour"
    if grown is None:
        what = f"whether memory grows by more than {bound} cannot be told"
        return Verdict(None, f"{what}: the run was too short, or not watched throughout")
    measured = f"memory grew by {_rate(grown.bytes_per_hour)} an hour (95 %: {_rate(grown.low)} to {_rate(grown.high)})"
    if grown.high <= most_bytes_per_hour:
        return Verdict(True, f"{measured}: within {bound}")
    if grown.low > most_bytes_per_hour:
        return Verdict(False, f"{measured}: more than {bound}")
    return Verdict(None, f"{measured}: whether that is within {bound} takes a longer run to tell")


def _rate(size: float) -> str:
    """Bytes for people, with the sign of what shrinks."""
    written = format_bytes(round(abs(size)))
    return f"−{written}" if round(size) < 0 else written
