"""When the calls of an open loop come: offsets from a phase's start, drawn one at a time, whatever the target does.

Three processes, each with gaps of mean one, stretched to the rate: evenly spaced, Poisson, and gamma with shape b and
scale 1/(rate·b), whose gaps have a coefficient of variation of 1/√b (vLLM's `--burstiness`). A rate that rises or falls
over the phase is no fourth process: the same unit-rate process is laid on the integral of the rate, and each of its
points is carried back to the time at which the integral reaches it. So a ramp keeps the process's character, and the
number of calls up to any moment is the area under the rate.

Whose draws these are is decided by the `Random` that is passed in; nothing here knows tenants.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, count, repeat
from math import inf, sqrt
from random import Random

from loadtest.scenario import Arrivals


def times(arrivals: Arrivals, random: Random, seconds: float, scale: tuple[float, float]) -> Iterator[float]:
    """The arrivals of an open loop in seconds from the phase's start: rising, and all before `seconds`.

    `constant` begins at 0; the random ones begin with a gap. `scale` multiplies the rate, evenly from its first number
    at 0 to its second at `seconds`; where `seconds` is infinite, both must be the same. Lazy: nothing is kept.
    A `closed` loop has no such times: `ValueError`.
    """
    begin, end = scale[0] * arrivals.rate, scale[1] * arrivals.rate
    if seconds == inf and begin != end:
        raise ValueError("a rate that rises or falls needs a phase with an end")
    if seconds <= 0 or max(begin, end) <= 0:
        return
    slope = (end - begin) / seconds
    for point in _points(arrivals, random):
        at = _reached(point, begin, slope)
        if at >= seconds:
            return
        yield at


def _points(arrivals: Arrivals, random: Random) -> Iterator[float]:
    """The process at one a second, for ever."""
    if arrivals.kind == "constant":
        return map(float, count())  # counted, not summed up: the millionth is exact
    if arrivals.kind == "poisson":
        return accumulate(random.expovariate(1.0) for _ in repeat(None))
    if arrivals.kind == "gamma":
        shape = arrivals.burstiness
        return accumulate(random.gammavariate(shape, 1.0 / shape) for _ in repeat(None))
    raise ValueError(f"{arrivals.kind} arrivals follow the answers; they have no times of their own")


def _reached(point: float, begin: float, slope: float) -> float:
    """When `begin · t + slope · t² / 2` comes to `point`; infinity where it never does."""
    if not slope:
        return point / begin
    root = begin * begin + 2 * slope * point
    if root < 0:  # a falling rate, whose whole area is less
        return inf
    sum_of_rates = begin + sqrt(root)  # this form of the quadratic's solution loses no digits as the slope goes to 0
    return 2 * point / sum_of_rates if sum_of_rates else 0.0
