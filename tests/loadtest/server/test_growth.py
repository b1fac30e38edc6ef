"""Whether memory grows: what a leak is told by, what is none, and what cannot be told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.server.growth import MOST_POINTS, Series, block_slope, growth, verdict
from loadtest.summary import Growth

SEEDS = 200
MIB = 2.0**20
Floats = npt.NDArray[np.float64]


def points(values: Floats, seconds: float = 3600.0) -> list[tuple[float, float]]:
    times = np.linspace(0.0, seconds, values.size)
    return list(zip(times.tolist(), values.tolist(), strict=True))


def noise(random: np.random.Generator) -> Floats:
    return random.normal(size=MOST_POINTS)


def wandering(random: np.random.Generator) -> Floats:
    return np.cumsum(random.normal(size=MOST_POINTS))


def lingering(random: np.random.Generator) -> Floats:
    values = np.zeros(MOST_POINTS)
    for at in range(1, MOST_POINTS):
        values[at] = 0.95 * values[at - 1] + random.normal()
    return values


def stepping(random: np.random.Generator) -> Floats:
    return np.cumsum((random.random(MOST_POINTS) < 0.02) * random.choice([-1.0, 1.0], MOST_POINTS))


def sawing(random: np.random.Generator) -> Floats:
    period = int(random.integers(20, 45))
    return ((np.arange(MOST_POINTS) + int(random.integers(period))) % period) / period


@pytest.mark.parametrize("shape", [noise, wandering, lingering, stepping, sawing])
def test_what_does_not_grow_is_not_said_to_nineteen_times_in_twenty(
    shape: Callable[[np.random.Generator], Floats],
) -> None:
    missed = []
    for seed in range(SEEDS):
        told = growth(points(100 * MIB + MIB * shape(np.random.default_rng(seed))))
        assert told is not None
        if not told.low <= 0 <= told.high:
            missed.append(seed)
    assert len(missed) <= 0.08 * SEEDS, f"said to grow with seeds {missed}"


@pytest.mark.parametrize("shape", [noise, lingering, stepping, sawing])
def test_a_leak_is_found_and_its_slope_is_within_the_confidence(
    shape: Callable[[np.random.Generator], Floats],
) -> None:
    missed, unseen = [], []
    for seed in range(SEEDS):
        leak = 40 * MIB * np.linspace(0.0, 1.0, MOST_POINTS)
        told = growth(points(leak + 0.5 * MIB * shape(np.random.default_rng(seed))))
        assert told is not None
        if not told.low <= 40 * MIB <= told.high:
            missed.append(seed)
        if told.low <= 0:
            unseen.append(seed)
    assert len(missed) <= 0.08 * SEEDS, f"the truth is outside with seeds {missed}"
    assert not unseen, f"not seen with seeds {unseen}"


@pytest.mark.parametrize("at", [100, 200, 300, 400, 500])
def test_one_step_up_is_no_growth(at: int) -> None:
    values = np.full(MOST_POINTS, 100 * MIB)
    values[at:] += 5 * MIB
    told = growth(points(values))
    assert told is not None
    assert told.low <= 0 < told.bytes_per_hour


def test_a_steady_rise_is_told_to_the_byte() -> None:
    told = growth([(float(at), 5e9 + at) for at in range(600)])
    assert told is not None
    assert told.bytes_per_hour == pytest.approx(3600.0, rel=1e-6)
    assert told.low == pytest.approx(told.high, rel=1e-6)


def test_what_rises_while_it_warms_up_is_left_out() -> None:
    values = np.full(600, 100 * MIB)
    values[:60] = np.linspace(10 * MIB, 100 * MIB, 60)  # the first minute of ten
    told = growth(points(values, 599.0))
    assert told is not None
    assert told.bytes_per_hour == pytest.approx(0.0, abs=1.0)
    assert len(told.series) == 600  # and is drawn nevertheless
    assert told.series[0] == (0.0, 10 * 2**20)


def test_a_long_run_warms_up_for_a_tenth_of_it() -> None:
    values = np.full(600, 100 * MIB)
    values[:59] = 10 * MIB  # 59 minutes of ten hours
    told = growth(points(values, 36_000.0))
    assert told is not None
    assert told.bytes_per_hour == 0.0


def test_a_short_run_keeps_its_second_half() -> None:
    told = growth([(float(at), 100.0 if at < 30 else 200.0) for at in range(60)])
    assert told is not None
    assert told.bytes_per_hour == 0.0


@pytest.mark.parametrize("count", [0, 1, 2, 19, 38])
def test_too_few_points_say_nothing(count: int) -> None:
    assert growth([(float(at), 100.0) for at in range(count)]) is None


def test_points_at_one_time_say_nothing() -> None:
    assert growth([(5.0, float(at)) for at in range(100)]) is None


def test_a_gap_of_a_tenth_says_nothing() -> None:
    times = np.array([float(at) for at in range(200) if not 95 <= at <= 140])
    assert block_slope(times, np.ones(times.size)) is None


def test_the_confidence_is_that_of_nine_steps() -> None:
    """By hand: block means 0, 1, 1, 2, 2, 3, 3, 4, 4, 5; steps of mean 5/9 and deviation sqrt(5·4/(9·8))."""
    values = np.repeat([0.0, 1, 1, 2, 2, 3, 3, 4, 4, 5], 10)
    times = np.arange(100.0)
    told = block_slope(times, values)
    assert told is not None
    slope, half = told
    assert slope == pytest.approx(5 / 9 / 10)
    assert half == pytest.approx(2.306 * 1.5**0.5 * (20 / 72) ** 0.5 / 3 / 10)


# ---- series ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0.0, 300.0), st.floats(0.0, 1e12)), min_size=1, max_size=100),
    st.floats(0.0, 1e5),
)
def test_merged_points_keep_count_order_and_mean(steps: list[tuple[float, float]], began: float) -> None:
    series = Series()
    at = began
    values = []
    for pause, value in steps:
        at += pause
        series.add(at, value)
        values.append(value)
    told = series.points()
    assert len(told) <= min(MOST_POINTS, len(values))
    assert [time for time, _ in told] == sorted(time for time, _ in told)
    assert began <= told[0][0] + 1e-6 and told[-1][0] <= at + 1e-6
    assert min(values) * (1 - 1e-9) <= min(value for _, value in told)
    assert max(value for _, value in told) <= max(values) * (1 + 1e-9)


def test_a_day_of_seconds_fits_into_six_hundred_points_that_follow_it() -> None:
    series = Series()
    for at in range(86_400):
        series.add(float(at), 2.0 * at)
    told = series.points()
    assert MOST_POINTS / 2 <= len(told) <= MOST_POINTS
    assert all(value == pytest.approx(2.0 * time) for time, value in told)


def test_a_gap_of_hours_is_a_gap() -> None:
    series = Series()
    series.add(0.0, 1.0)
    series.add(100_000.0, 3.0)
    assert series.points() == [(0.0, 1.0), (100_000.0, 3.0)]


def test_what_comes_before_the_first_is_left_out() -> None:
    series = Series()
    series.add(10.0, 1.0)
    series.add(9.0, 5.0)
    assert series.points() == [(10.0, 1.0)]
    assert Series().points() == []


# ---- verdict --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "is_kept", "words"),
    [
        (-1.0, 10.0, True, "within 10.00 MiB an hour"),
        (10.1, 12.0, False, "more than 10.00 MiB an hour"),
        (9.0, 11.0, None, "takes a longer run to tell"),
        (10.0, 11.0, None, "takes a longer run to tell"),
    ],
)
def test_a_bound_is_kept_or_broken_only_by_the_whole_confidence(
    low: float, high: float, is_kept: bool | None, words: str
) -> None:
    told = verdict(Growth(bytes_per_hour=(low + high) / 2 * MIB, low=low * MIB, high=high * MIB), 10 * MIB)
    assert told.is_kept is is_kept
    assert words in told.text


def test_a_verdict_tells_the_figures_and_what_shrinks() -> None:
    told = verdict(Growth(bytes_per_hour=-2 * MIB, low=-4 * MIB, high=0.2), MIB)
    assert told.text == ("memory grew by −2.00 MiB an hour (95 %: −4.00 MiB to 0 B): within 1.00 MiB an hour")


def test_a_run_that_tells_nothing_is_no_pass() -> None:
    told = verdict(None, MIB)
    assert told.is_kept is None
    assert "cannot be told" in told.text
