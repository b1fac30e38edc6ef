"""Counts of durations: what they may lose (where in a bucket a value lay), and what they may not (anything else)."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import LOWEST_EXPONENT, OCTAVES, PARTS, SIZE, Histogram, buckets_of, counts_of, edges, middles

LEAST, MOST = 2.0 ** (LOWEST_EXPONENT - 1), 2.0 ** (LOWEST_EXPONENT + OCTAVES - 1)
ERROR = 1 / 128
durations = st.floats(LEAST, MOST, exclude_max=True)
batches = st.lists(durations, max_size=50)


def of(values: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@given(durations)
def test_a_value_is_read_back_within_an_error_of_less_than_one_percent(value: float) -> None:
    (bucket,) = buckets_of([value])
    assert abs(middles([bucket])[0] - value) <= ERROR * value
    low, high = edges([bucket])
    assert low[0] <= value < high[0]


def test_buckets_follow_each_other_without_gap_from_half_a_microsecond_to_a_day() -> None:
    low, high = edges(np.arange(SIZE))
    assert SIZE == PARTS * OCTAVES
    assert np.array_equal(low[1:], high[:-1])
    assert np.array_equal(buckets_of(low), np.arange(SIZE))
    assert (low[0], high[-1]) == (LEAST, MOST)
    assert low[0] < 1e-6 and high[-1] > 86_400


@pytest.mark.parametrize(
    ("value", "bucket"), [(0.0, 0), (-1e-9, 0), (1e-12, 0), (5e-324, 0), (MOST, SIZE - 1), (1e9, SIZE - 1)]
)
def test_what_is_out_of_range_is_counted_at_its_edge(value: float, bucket: int) -> None:
    histogram = of([value])
    assert histogram.sparse() == ([bucket], [1])
    assert (histogram.count, histogram.least, histogram.greatest) == (1, value, max(value, 0.0))


@given(values=st.lists(durations, min_size=1, max_size=200), q=st.floats(0, 1))
def test_a_quantile_is_that_of_the_values_but_for_the_error(values: list[float], q: float) -> None:
    """By nearest rank, of the values themselves."""
    rank = min(max(int(np.ceil(q * len(values))), 1), len(values))
    exact = sorted(values)[rank - 1]
    told = of(values).quantile(q)
    assert told is not None
    assert abs(told - exact) <= ERROR * exact * (1 + 1e-12)
    assert min(values) <= told <= max(values)


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 1000])
@pytest.mark.parametrize("q", [Fraction(0), Fraction(1, 2), Fraction(9, 10), Fraction(99, 100), Fraction(1)])
def test_the_rank_of_a_quantile_is_the_first_with_enough_at_or_below_it(count: int, q: Fraction) -> None:
    values = [1.0 + 0.02 * number for number in range(count)]  # a bucket of its own for each
    rank = min(max(ceil(q * count), 1), count)
    told = of(values).quantile(float(q))
    assert told == pytest.approx(values[rank - 1], rel=ERROR)


def test_the_quantiles_at_the_ends_are_the_least_and_the_greatest() -> None:
    histogram = of([0.0123, 0.0456, 0.0789])
    assert histogram.quantile(0.0) == pytest.approx(0.0123, rel=ERROR)
    assert histogram.quantile(1.0) == pytest.approx(0.0789, rel=ERROR)
    assert of([0.1234]).quantile(0.5) == 0.1234  # of one value nothing is lost


@given(one=batches, two=batches)
def test_what_is_taken_in_parts_and_merged_is_as_if_taken_at_once(one: list[float], two: list[float]) -> None:
    whole, in_parts, merged = of(one + two), of(one), of(one)
    in_parts.add(two)
    merged.merge(of(two))
    for histogram in (in_parts, merged):
        assert histogram.sparse() == whole.sparse()
        assert histogram.count == len(one) + len(two)
        assert (histogram.least, histogram.greatest) == (whole.least, whole.greatest)
        assert histogram.total == pytest.approx(whole.total)


@given(batches)
def test_taken_apart_and_put_together_it_is_the_same(values: list[float]) -> None:
    histogram = of(values)
    again = Histogram.of(*histogram.sparse(), histogram.total, histogram.least, histogram.greatest)
    assert np.array_equal(again.counts, histogram.counts)
    assert (again.total, again.least, again.greatest) == (histogram.total, histogram.least, histogram.greatest)
    assert (again.mean, again.quantile(0.5)) == (histogram.mean, histogram.quantile(0.5))


@given(kept=batches, folded=st.lists(durations, min_size=1, max_size=50))
def test_values_that_are_known_by_their_buckets_alone_count_as_well(kept: list[float], folded: list[float]) -> None:
    histogram, plain = of(kept), of(kept + folded)
    histogram.add_counts(counts_of(folded), sum(folded), max(folded))
    assert histogram.sparse() == plain.sparse()
    assert histogram.total == pytest.approx(plain.total)
    assert histogram.greatest == plain.greatest
    assert plain.least * (1 - 2 * ERROR) <= histogram.least <= plain.least


def test_no_values_are_no_figures() -> None:
    histogram = of([])
    histogram.merge(Histogram())
    histogram.add_counts(counts_of([]), 0.0, 0.0)
    assert (histogram.count, histogram.mean, histogram.quantile(0.5)) == (0, None, None)
    assert histogram.sparse() == ([], [])
    assert (histogram.least, histogram.greatest) == (float("inf"), 0.0)


def test_the_mean_is_exact() -> None:
    assert of([0.1, 0.2, 0.6]).mean == pytest.approx(0.3, rel=1e-15)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_values_come_in_any_kind_of_array(kind: type[np.generic]) -> None:
    assert of(np.array([1, 2, 3], dtype=kind).tolist()).sparse() == of([1.0, 2.0, 3.0]).sparse()
    histogram = Histogram()
    histogram.add(np.array([1, 2, 3], dtype=kind))
    assert histogram.sparse() == of([1.0, 2.0, 3.0]).sparse()
