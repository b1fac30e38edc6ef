"""A tenant's first tokens beside others, over those when it was alone: the ratio, and how much to believe it."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.histogram import Floats, Histogram
from loadtest.isolation import isolation, ttft_of, ttft_ratio
from loadtest.scenario import Phase
from loadtest.statistics import Stretches
from loadtest.summary import Moment, PhaseResults
from loadtest.totals import Totals, Within
from tests.loadtest.summaries import a_strain

TOLD = dict.fromkeys(("scheduled", "sent", "never_sent", "clipped", "skipped", "events", "reads"), 0)


def moments(ttft: Floats, stretches: int) -> list[Moment]:
    """A time line on which these latencies come evenly."""
    line = []
    for number, part in enumerate(np.array_split(ttft, stretches)):
        histogram = Histogram()
        histogram.add(part)
        buckets, counts = histogram.sparse()
        line.append(Moment(at=number * 0.5, seconds=0.5, ttft_buckets=buckets, ttft_counts=counts))
    return line


def a_phase(name: str, *, is_counted: bool = True, **ttft: Floats) -> tuple[Phase, PhaseResults]:
    """One in which these tenants met these latencies."""
    empty = Totals()
    results = PhaseResults(
        name=name,
        at=0.0,
        load_seconds=30.0,
        seconds=30.0,
        is_counted=is_counted,
        tenants=[empty.results(tenant, TOLD, 30.0, Within(1.0, 1.0)) for tenant in ttft],
        all=empty.results("all", TOLD, 30.0, Within(1.0, 1.0)),
        strain=a_strain(),
        timeline={tenant: moments(values, 60) for tenant, values in ttft.items()},
    )
    return Phase(name, 30.0, tuple(ttft)), results


def latencies(seed: int, count: int, middle: float = 0.1, spread: float = 0.4) -> Floats:
    values: Floats = middle * np.exp(np.random.default_rng(seed).normal(0, spread, count))
    return values


KNOWN = np.random.default_rng(1).permutation(np.linspace(0.1, 0.2, 1001))


def test_the_ratios_of_known_latencies_are_right() -> None:
    found = isolation([a_phase("alone", victim=KNOWN), a_phase("crowded", victim=3 * KNOWN, crowd=KNOWN)])
    assert len(found) == 1
    (only,) = found
    assert (only.tenant, only.alone, only.phase) == ("victim", "alone", "crowded")
    assert (only.calls_alone, only.calls) == (1001, 1001)
    assert only.p50 == pytest.approx(3.0, rel=0.01) and only.p99 == pytest.approx(3.0, rel=0.01)
    for ratio, interval in ((only.p50, only.p50_interval), (only.p99, only.p99_interval)):
        assert interval is not None and ratio is not None and interval[0] <= ratio <= interval[1]
        assert interval[1] - interval[0] < 0.5


def test_the_first_phase_alone_is_the_measure_and_a_second_one_is_held_against_it() -> None:
    found = isolation(
        [
            a_phase("crowded", victim=2 * KNOWN, crowd=KNOWN),
            a_phase("alone", victim=KNOWN),
            a_phase("after", victim=KNOWN),
        ]
    )
    assert [(each.alone, each.phase) for each in found] == [("alone", "crowded"), ("alone", "after")]
    assert found[0].p50 == pytest.approx(2.0, rel=0.01)
    assert found[1].p50 == 1.0 and found[1].p50_interval == pytest.approx((1.0, 1.0))


def test_each_tenant_that_was_alone_once_is_told_of() -> None:
    found = isolation([a_phase("a", a=KNOWN), a_phase("b", b=KNOWN), a_phase("both", a=2 * KNOWN, b=3 * KNOWN)])
    assert [(each.tenant, each.alone, each.phase) for each in found] == [("a", "a", "both"), ("b", "b", "both")]


def test_without_a_phase_alone_or_one_with_others_nothing_is_told() -> None:
    assert isolation([]) == []
    assert isolation([a_phase("both", a=KNOWN, b=KNOWN)]) == []
    assert isolation([a_phase("one", a=KNOWN), a_phase("two", a=KNOWN)]) == []


def test_a_warm_up_is_no_measure() -> None:
    warm_up = a_phase("warm-up", is_counted=False, victim=KNOWN / 2)
    crowded = a_phase("crowded", victim=KNOWN, crowd=KNOWN)
    assert isolation([warm_up, crowded]) == []
    (only,) = isolation([warm_up, a_phase("alone", victim=KNOWN), crowded])
    assert (only.alone, only.p50) == ("alone", 1.0)


@pytest.mark.parametrize(("count", "is_told"), [(99, False), (100, True)])
def test_no_p99_is_told_of_under_a_hundred_calls_on_either_side(count: int, is_told: bool) -> None:
    few, many = latencies(1, count), latencies(2, 500)
    for alone, crowded in ((few, many), (many, few)):
        (only,) = isolation([a_phase("alone", victim=alone), a_phase("crowded", victim=crowded, crowd=many)])
        assert (only.p99 is not None) == (only.p99_interval is not None) == is_told
        assert only.p50 is not None


def test_a_tenant_that_got_no_token_has_no_ratio() -> None:
    (only,) = isolation([a_phase("alone", victim=KNOWN), a_phase("crowded", victim=np.zeros(0), crowd=KNOWN)])
    assert (only.calls, only.p50, only.p50_interval, only.p99) == (0, None, None, None)


def test_the_same_run_is_told_with_the_same_intervals() -> None:
    first, second = ttft_of(moments(latencies(1, 500), 60)), ttft_of(moments(latencies(2, 500), 60))
    assert ttft_ratio(first, second, 0.5) == ttft_ratio(first, second, 0.5)


@pytest.mark.parametrize(("q", "least"), [(0.5, 0.9), (0.99, 0.9)])
def test_an_interval_holds_the_true_ratio_of_independent_latencies_in_nine_of_ten_runs(q: float, least: float) -> None:
    runs, held, widths = 40, 0, []
    for seed in range(runs):
        first, second = (
            Stretches(
                [(m.ttft_buckets, m.ttft_counts) for m in moments(latencies(2 * seed + n, 500, 0.1 + 0.1 * n), 30)]
            )
            for n in (0, 1)
        )
        found = ttft_ratio(first, second, q)
        assert found is not None
        held += found[1].low <= 2.0 <= found[1].high
        widths.append(found[1].high - found[1].low)
    assert held >= least * runs, f"{held} of seeds 0 to {2 * runs - 1}"
    assert np.median(widths) < (0.3 if q == 0.5 else 1.2)


def test_bad_times_that_last_make_intervals_wider_than_as_many_calls_by_themselves() -> None:
    random = np.random.default_rng(9)
    free = latencies(3, 1200)
    lasting = free * np.repeat(np.exp(random.normal(0, 0.5, 12)), 100)
    alone = ttft_of(moments(latencies(4, 1200), 60))
    widths = []
    for values in (random.permutation(lasting), lasting):
        found = ttft_ratio(alone, ttft_of(moments(values, 60)), 0.5)
        assert found is not None
        widths.append(found[1].high - found[1].low)
    assert widths[1] > 2 * widths[0]
