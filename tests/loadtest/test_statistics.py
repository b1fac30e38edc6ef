"""Slopes, indices and intervals: right on what is known, and believed no more than they deserve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Floats, Histogram
from loadtest.statistics import (
    RESAMPLES,
    Stretches,
    block_length,
    block_weights,
    drawn_quantile,
    interval,
    jain,
    ordinary_slope,
    quantiles,
    resampled_means,
    resampled_quantiles,
    student_975,
    walking_slope,
)


def stretches(ttft: Floats, rows: int) -> Stretches:
    """A line on which these durations came evenly."""
    made = []
    for part in np.array_split(ttft, rows):
        histogram = Histogram()
        histogram.add(part)
        made.append(histogram.sparse())
    return Stretches(made)


@pytest.mark.parametrize(
    ("shares", "index"),
    [([1, 1, 1, 1], 1.0), ([4, 0, 0, 0], 0.25), ([1, 2, 3], 36 / 42), ([5], 1.0), ([0.2, 0.2], 1.0)],
)
def test_jains_index_is_the_squared_sum_by_n_times_the_squares(shares: list[float], index: float) -> None:
    assert jain(shares) == pytest.approx(index)


@pytest.mark.parametrize("shares", [[], [0.0], [0, 0, 0]])
def test_where_nobody_has_anything_there_is_no_index(shares: list[float]) -> None:
    assert jain(shares) is None


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20), st.floats(0.01, 100))
def test_jains_index_lies_between_one_nth_and_one_whatever_the_unit(shares: list[float], unit: float) -> None:
    index = jain(shares)
    assert index is not None and 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9
    assert jain([share * unit for share in shares]) == pytest.approx(index)


@pytest.mark.parametrize(
    ("freedom", "quantile", "tolerance"),
    [
        (2, 4.303, 0.03),
        (3, 3.182, 0.003),
        (5, 2.571, 0.001),
        (10, 2.228, 0.001),
        (30, 2.042, 0.001),
        (1e9, 1.96, 1e-3),
    ],
)
def test_students_quantiles_are_those_of_the_tables(freedom: float, quantile: float, tolerance: float) -> None:
    assert student_975(freedom) == pytest.approx(quantile, rel=tolerance)


def test_under_two_degrees_of_freedom_nothing_is_known() -> None:
    assert student_975(1.9) == math.inf


def test_the_slope_of_a_line_is_exact() -> None:
    x = np.linspace(0, 10, 500)
    assert ordinary_slope(x, 3 * x - 7) == pytest.approx((3, 3, 3))
    assert ordinary_slope(x[::-1], 3 * x[::-1] - 7) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([1.0, 2.0], [1.0, 5.0]), ([1.0] * 50, [2.0] * 50)])
def test_of_too_few_points_a_slope_says_nothing(x: list[float], y: list[float]) -> None:
    for slope in (ordinary_slope(x, y), walking_slope(x, y)):
        assert (slope.low, slope.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("count", [30, 400])
def test_a_slopes_interval_holds_the_truth_in_nineteen_of_twenty_noisy_lines(count: int) -> None:
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        x = np.sort(random.random(count)) * 10
        slope = ordinary_slope(x, 0.5 * x + random.normal(0, 3, count))
        held += slope.low <= 0.5 <= slope.high
    assert 180 <= held <= 200, f"{held} of seeds 0 to 199"


def test_a_slopes_interval_minds_that_neighbours_are_alike() -> None:
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        noise = np.zeros(400)
        for at, push in enumerate(random.normal(0, 1, 400)):
            noise[at] = 0.95 * noise[at - 1] + push
        slope = ordinary_slope(np.arange(400), 0.01 * np.arange(400) + noise)
        held += slope.low <= 0.01 <= slope.high
    assert held >= 180, f"{held} of seeds 0 to 199"


def test_what_sums_up_chance_needs_the_walking_slope() -> None:
    walking = ordinary = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        walk = np.cumsum(random.normal(0.1, 1, 400))
        slope, other = walking_slope(np.arange(400), walk), ordinary_slope(np.arange(400), walk)
        walking += slope.low <= 0.1 <= slope.high
        ordinary += other.low <= 0.1 <= other.high and math.isfinite(other.low)
    assert walking >= 184, f"{walking} of seeds 0 to 199"
    assert ordinary < walking


def test_an_overloads_walk_is_told_from_none() -> None:
    for seed in range(20):
        walk = np.cumsum(np.random.default_rng(seed).normal(1.0, 1.0, 400))
        assert walking_slope(np.arange(400), walk).low > 0.5, f"seed {seed}"


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]), st.integers(1, 9))
def test_a_lines_quantile_is_the_nearest_rank_within_its_bucket(values: list[float], q: float, rows: int) -> None:
    line = stretches(np.array(values), rows)
    exact = sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]
    found = line.quantile(q)
    assert line.count == len(values)
    assert found is not None and found == pytest.approx(exact, rel=1 / 64 + 1e-9)


def test_a_line_of_nothing_has_no_quantile() -> None:
    for line in (Stretches([]), Stretches([([], []), ([], [])])):
        assert (line.count, line.quantile(0.5)) == (0, None)


def test_empty_stretches_before_and_after_are_left_out_and_those_between_kept() -> None:
    assert len(Stretches([([], []), ([5], [1]), ([], []), ([6], [2]), ([], [])]).rows) == 3


def test_a_quantile_moves_evenly_within_its_bucket() -> None:
    buckets = np.array([1280])  # 0.5 s to 0.5 s + 1/128
    found = [float(quantiles(buckets, np.array([[100]]), q)[0]) for q in (0.25, 0.5, 0.75)]
    assert found == pytest.approx([0.5 + part / 128 for part in (0.25, 0.5, 0.75)])


@pytest.mark.parametrize(("count", "length"), [(1, 1), (7, 3), (24, 6), (25, 6)])
def test_each_resample_draws_as_many_stretches_as_there_are(count: int, length: int) -> None:
    weights = block_weights(count, length, np.random.default_rng(1))
    assert weights.shape == (RESAMPLES, count)
    assert (weights.sum(axis=1) == count).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(count), abs=0.15)


def test_neighbours_are_drawn_together() -> None:
    weights = block_weights(12, 4, np.random.default_rng(1))
    alone = block_weights(12, 1, np.random.default_rng(1))
    together, apart = (np.corrcoef(drawn[:, 5], drawn[:, 6])[0, 1] for drawn in (weights, alone))
    assert together > 0.5 > 0.1 > apart


def test_blocks_are_longer_where_neighbours_are_alike() -> None:
    random = np.random.default_rng(3)
    noise = random.normal(size=240)
    lingering = np.repeat(random.normal(size=24), 10)
    assert block_length(noise) <= 8
    assert block_length(lingering) > 2 * block_length(noise)
    assert block_length(np.ones(240)) == 6
    assert block_length(np.zeros(0)) == 1


def test_a_call_is_worth_itself_where_calls_are_independent_and_less_in_bad_times() -> None:
    random = np.random.default_rng(4)
    free = 0.1 * np.exp(random.normal(0, 0.4, 2400))
    lingering = free * np.repeat(np.exp(random.normal(0, 0.5, 12)), 200)
    assert stretches(free, 120).worth() > 0.6
    assert stretches(lingering, 120).worth() < 0.03
    assert Stretches([]).worth() == 1.0


def test_a_drawn_quantile_varies_as_that_of_so_many_values_does() -> None:
    random = np.random.default_rng(5)
    values = np.exp(random.normal(0, 0.4, 400))
    histogram = Histogram()
    histogram.add(values)
    for q in (0.5, 0.9):
        drawn = drawn_quantile(*histogram.sparse(), q, 400, random)
        direct = np.quantile(random.choice(values, (2000, 400)), q, axis=1)
        assert drawn.mean() == pytest.approx(direct.mean(), rel=0.02)
        assert drawn.std() == pytest.approx(direct.std(), rel=0.25)
    wide, narrow = (drawn_quantile(*histogram.sparse(), 0.5, n, random).std() for n in (40, 400))
    assert wide > 2.5 * narrow


def test_what_two_lines_have_in_common_is_no_difference_between_them() -> None:
    random = np.random.default_rng(6)
    line = random.gamma(2, 10, 120)
    draws = resampled_means(line, 1.2 * line, np.random.default_rng(1))
    assert interval(draws[1] / draws[0]) == pytest.approx((1.2, 1.2))
    other = resampled_means(line, 1.2 * random.permutation(line), np.random.default_rng(1))
    low, high = interval(other[1] / other[0])
    assert low < 1.1 and high > 1.3


def test_lines_of_unequal_length_are_resampled_each_by_itself() -> None:
    random = np.random.default_rng(7)
    a, b = (stretches(0.1 * np.exp(random.normal(0, 0.4, count)), count // 20) for count in (800, 1200))
    draws = resampled_quantiles(a, b, 0.5, np.random.default_rng(1))
    low, high = interval(draws[1] / draws[0])
    assert 0.85 < low < 1 < high < 1.15
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.1


def test_an_interval_is_the_middle_nineteen_twentieths() -> None:
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))
