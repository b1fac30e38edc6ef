"""Whose line is whose, and the figures that lines are drawn from."""

from __future__ import annotations

from math import ceil

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.report.series import MOST_SERIES, Pool, Series, series_of, slots_of
from loadtest.summary import Moment
from tests.loadtest.summaries import Mix, a_crowd, a_distribution, a_noisy_neighbour, a_phase

SHARES = (0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999)


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=300))
def test_a_pool_of_one_distribution_tells_what_its_histogram_tells(values: list[float]) -> None:
    histogram = Histogram()
    histogram.add(values)
    told = Pool.of([a_distribution(values)]).quantiles(SHARES)
    assert told == pytest.approx([histogram.quantile(share) for share in SHARES], rel=1e-12)


@given(st.lists(st.lists(st.floats(1e-5, 100), max_size=80), min_size=2, max_size=5))
def test_a_pool_of_several_tells_of_all_their_durations(parts: list[list[float]]) -> None:
    pool = Pool.of(a_distribution(part) for part in parts)
    values = sorted(value for part in parts for value in part)
    assert pool.count == len(values)
    exact = [values[max(ceil(share * len(values)), 1) - 1] for share in SHARES] if values else []
    assert pool.quantiles(SHARES) == pytest.approx(exact, rel=1 / 128)


def test_a_pool_uses_the_summarys_own_figures_where_there_are_any() -> None:
    told = msgspec.structs.replace(a_distribution(np.linspace(0.1, 0.2, 1000)), p50=0.123, p99=0.456)
    assert Pool.of([told]).quantiles((0.5, 0.9, 0.99)) == [0.123, told.p90, 0.456]


def test_a_pool_tells_of_no_share_for_which_it_has_too_few() -> None:
    assert Pool.of([a_distribution([0.1] * 100)]).last_share == pytest.approx(0.99)
    assert Pool.of([]).last_share == 0.0


def test_tenants_keep_the_order_in_which_they_appear() -> None:
    lines = series_of(a_noisy_neighbour())
    assert [(series.css, series.label) for series in lines] == [("t0", "victim"), ("t1", "crowd")]


def test_as_many_tenants_as_there_are_looks_have_a_line_each() -> None:
    lines = series_of(a_crowd(MOST_SERIES))
    assert [series.tenants for series in lines] == [(f"client-{at:02d}",) for at in range(MOST_SERIES)]
    assert len({series.css for series in lines}) == MOST_SERIES


def test_of_more_tenants_those_with_the_fewest_calls_share_a_line() -> None:
    summary = a_crowd(27)
    lines = series_of(summary)
    assert len(lines) == MOST_SERIES
    assert lines[-1].label == "16 others" and lines[-1].css == "rest"
    calls = {results.name: results.scheduled for results in summary.phases[0].tenants}
    own = [series.label for series in lines[:-1]]
    assert min(calls[name] for name in own) >= max(calls[name] for name in lines[-1].tenants)
    assert sorted([*own, *lines[-1].tenants]) == sorted(calls)


@pytest.mark.parametrize("width_seconds", [0.1, 1.0, 2.5, 7.0, 1000.0])
def test_slots_hold_what_their_moments_held(width_seconds: float) -> None:
    summary = a_crowd(14)
    phase = summary.phases[0]
    for series in series_of(summary):
        moments = [moment for tenant in series.tenants for moment in phase.timeline[tenant]]
        slots = slots_of(phase, series, width_seconds)
        assert sum(slot.failed for slot in slots) == sum(moment.failed for moment in moments)
        assert sum(slot.scheduled for slot in slots) == sum(moment.scheduled for moment in moments)
        tokens = sum(slot.tokens_per_second * slot.seconds for slot in slots)
        assert tokens == pytest.approx(sum(moment.tokens for moment in moments))
        assert max(slot.open for slot in slots) >= max(moment.open for moment in moments)
        assert all(slot.seconds >= min(width_seconds, phase.load_seconds) - 1e-6 for slot in slots[:-1])


def test_open_streams_of_a_slot_are_the_most_at_one_time_not_their_sum() -> None:
    phase = a_phase(seconds=3)
    phase.timeline = {
        "a": [Moment(at=at, seconds=1, open=many) for at, many in ((0.0, 5), (1.0, 9))],
        "b": [Moment(at=at, seconds=1, open=many) for at, many in ((0.0, 6), (1.0, 1))],
    }
    both = Series("rest", "both", ("a", "b"))
    assert [slot.open for slot in slots_of(phase, both, 2.0)] == [11]


def test_a_slot_of_one_moment_has_its_own_figures() -> None:
    phase = a_phase("load", Mix("busy", rate=400), seconds=5)
    series = Series("t0", phase.tenants[0].name, (phase.tenants[0].name,))
    for slot, moment in zip(slots_of(phase, series, 1.0), phase.timeline["busy"], strict=True):
        assert (slot.ttft_p50, slot.ttft_high, slot.is_slowest) == (moment.ttft_p50, moment.ttft_p99, False)


def test_where_slots_hold_few_calls_the_slowest_stands_for_the_p99() -> None:
    phase = a_phase("load", Mix("idle", rate=10), seconds=20)
    series = Series("t0", phase.tenants[0].name, (phase.tenants[0].name,))
    slots = slots_of(phase, series, 1.0)
    assert all(slot.is_slowest for slot in slots if slot.ttft_p50 is not None)
    highest = max(slot.ttft_high for slot in slots if slot.ttft_high is not None)
    assert highest == pytest.approx(phase.tenants[0].ttft.greatest, rel=1 / 64)


def test_a_tenant_without_a_time_line_has_no_slots() -> None:
    phase = a_phase(seconds=2)
    phase.timeline = {}
    assert slots_of(phase, series_of(a_noisy_neighbour())[0], 1.0) == []
