"""What changed from one phase to another: no change is none, a slowdown is found, and too little is left out."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from loadtest.differences import Change, Row, phase_rows, row
from loadtest.histogram import Floats
from loadtest.summary import Distribution, PhaseResults
from tests.loadtest.summaries import CROWD, VICTIM, Mix, a_phase
from tests.loadtest.tallied import a_run

PLACE = ("load", "victim")


def spread(low: float, high: float) -> Floats:
    """Draws whose middle 95 % are these."""
    half = (high - low) / 2 / 0.95
    return np.linspace((low + high) / 2 - half, (low + high) / 2 + half, 10_001)


def rows(a: PhaseResults, b: PhaseResults, fail_over: float = 0.1, *, has_objectives: bool = False) -> dict[str, Row]:
    """Of the first tenant, by metric."""
    found = list(phase_rows(a, b, fail_over, has_objectives=has_objectives))
    return {each.metric: each for each in found if each.tenant == found[0].tenant}


@pytest.mark.parametrize(
    ("metric", "change", "low", "high", "verdict", "is_over"),
    [
        ("ttft_p50", 0.2, 0.15, 0.25, "worse", True),
        ("ttft_p50", -0.2, -0.25, -0.15, "better", False),
        ("ttft_p50", 0.08, 0.05, 0.11, "worse", False),  # sure, and within what is let pass
        ("ttft_p50", 0.3, -0.05, 0.6, "unsure", False),  # far, and perhaps by chance
        ("ttft_p50", 0.02, -0.05, 0.09, "same", False),
        ("ttft_p50", 0.012, 0.011, 0.013, "same", False),  # less than a bucket
        ("done_per_second", -0.2, -0.25, -0.15, "worse", True),
        ("done_per_second", 0.2, 0.15, 0.25, "better", False),
        ("saturation", -0.3, -0.4, -0.2, "worse", True),
        ("failed", 3.0, 1.0, 9.0, "worse", True),
    ],
)
def test_a_verdict_is_by_direction_by_certainty_and_by_what_is_let_pass(
    metric: str, change: float, low: float, high: float, verdict: str, is_over: bool
) -> None:
    judged = row(metric, PLACE, Change(1.0, 1.0 + change, change, spread(low, high)), 0.1)
    assert (judged.verdict, judged.is_over) == (verdict, is_over)
    assert (judged.low, judged.high) == pytest.approx((low, high), abs=1e-4)


def test_what_is_let_pass_may_be_nothing() -> None:
    judged = row("ttft_p50", PLACE, Change(1.0, 1.05, 0.05, spread(0.03, 0.07)), 0.0)
    assert (judged.verdict, judged.is_over) == ("worse", True)


def test_the_change_itself_is_always_within_its_interval() -> None:
    judged = row("ttft_p50", PLACE, Change(1.0, 1.2, 0.2, spread(0.21, 0.25)), 0.1)
    assert judged.low == 0.2


def test_a_phase_beside_itself_has_not_changed() -> None:
    phase = a_phase("load", VICTIM)
    for each in rows(phase, phase, has_objectives=True).values():
        assert (each.a, each.change, each.is_over) == (each.b, 0.0, False)
        assert each.verdict in ("same", "unsure")


def test_each_tenant_and_all_together_have_rows() -> None:
    found = list(phase_rows(a_phase(seconds=10.0), a_phase(seconds=10.0, seed=2), 0.1, has_objectives=False))
    assert list(dict.fromkeys(each.tenant for each in found)) == ["victim", "crowd", "all"]
    alone = list(phase_rows(a_phase("load", VICTIM), a_phase("load", VICTIM), 0.1, has_objectives=False))
    assert {each.tenant for each in alone} == {"victim"}


def test_a_tenant_that_is_in_one_run_only_has_no_row() -> None:
    found = list(
        phase_rows(
            a_phase("load", VICTIM, CROWD, seconds=5.0), a_phase("load", CROWD, seconds=5.0), 0.1, has_objectives=False
        )
    )
    assert {each.tenant for each in found} == {"crowd", "all"}


@pytest.mark.parametrize("calls", [19, 20, 99, 100])
def test_a_quantile_of_too_few_calls_has_no_row(calls: int) -> None:
    few, many = (a_phase("load", Mix("victim", rate=count / 10), seconds=10.0) for count in (calls, 400))
    for a, b in ((few, many), (many, few)):
        found = rows(a, b)
        for metric in ("ttft_p50", "itl_p50", "tpot_p50", "e2e_p50"):
            assert (metric in found) == (calls >= 20), metric
        for metric in ("ttft_p99", "itl_p99"):
            assert (metric in found) == (calls >= 100), metric
        assert {"done_per_second", "tokens_per_second", "failed"} <= set(found)


def test_good_calls_are_held_against_each_other_where_there_are_objectives() -> None:
    a, b = a_phase("load", VICTIM), a_phase("load", Mix("victim", rate=10, ttft=0.5, output=128))
    assert "good_per_second" not in rows(a, b)
    good = rows(a, b, has_objectives=True)["good_per_second"]
    assert (good.verdict, good.is_over) == ("worse", True) and good.change < -0.3


def test_gaps_tell_no_more_than_the_calls_they_belong_to() -> None:
    many = a_phase("load", Mix("victim", rate=10, output=24))
    few = a_phase("load", Mix("victim", rate=10, output=1))
    widths = [each.high - each.low for each in (rows(phase, phase)["itl_p50"] for phase in (many, few))]
    assert widths[0] == pytest.approx(widths[1], rel=0.5)


def test_failures_where_there_were_none_are_found_and_a_few_are_not() -> None:
    none, some, few = (
        a_phase("load", Mix("victim", rate=20, codes={"503 no_capacity": share})) for share in (0, 0.05, 0.002)
    )
    failed = rows(none, some)["failed"]
    assert (failed.a, failed.verdict, failed.is_over) == (0.0, "worse", True)
    assert failed.b == pytest.approx(0.05, abs=0.02)
    assert rows(some, none)["failed"].verdict == "better"
    assert not rows(none, few)["failed"].is_over
    assert rows(none, none)["failed"] == Row("failed", *PLACE, 0.0, 0.0, 0.0, 0.0, 0.0, "same", False)


def test_failures_that_came_in_one_burst_tell_less_than_as_many_by_themselves() -> None:
    before = a_phase("load", Mix("victim", rate=20, codes={"503 no_capacity": 0.05}))
    after = a_phase("load", Mix("victim", rate=20, codes={"503 no_capacity": 0.1}), seed=5)
    burst = msgspec.json.decode(msgspec.json.encode(after), type=PhaseResults)
    line = burst.timeline["victim"]
    failed = sum(moment.failed for moment in line)
    for moment in line:
        moment.done, moment.failed = moment.done + moment.failed, 0
    for moment in line[:10]:
        moment.failed = min(moment.done, failed)
        moment.done, failed = moment.done - moment.failed, failed - moment.failed
    apart, together = (rows(before, phase)["failed"] for phase in (after, burst))
    assert apart.verdict == "worse"
    assert math.log((together.high + 1) / (together.low + 1)) > 1.5 * math.log((apart.high + 1) / (apart.low + 1))


def test_calls_left_on_purpose_make_no_bursts_of_failures() -> None:
    few, many = (
        a_phase(
            "load", Mix("victim", rate=40 / (1 - left), codes={"503 no_capacity": 0.1 * (1 - left)}, cancelled=left)
        )
        for left in (0.0, 0.6)
    )
    widths = [
        math.log((failed.high + 1) / (failed.low + 1))
        for failed in (rows(phase, phase)["failed"] for phase in (few, many))
    ]
    assert widths[1] < 1.3 * widths[0]


def test_a_target_that_answers_nobody_any_more_is_worse_by_all() -> None:
    a = a_phase("load", VICTIM)
    b = a_phase("load", Mix("victim", rate=10, codes={"503 no_capacity": 1.0}))
    found = rows(a, b, has_objectives=True)
    for metric in ("done_per_second", "tokens_per_second", "good_per_second", "failed"):
        assert (found[metric].verdict, found[metric].is_over) == ("worse", True), metric
    assert found["done_per_second"].change == -1.0
    assert "ttft_p50" not in found
    nothing = Distribution()
    back = rows(b, a)
    assert "done_per_second" not in back and back["failed"].verdict == "better"
    assert b.all.ttft == nothing


def test_intervals_hold_the_true_change_in_nine_of_ten_runs() -> None:
    held = dict.fromkeys(("ttft_p50", "ttft_p99", "e2e_p50"), 0)
    seeds = 12
    for seed in range(seeds):
        a, b = (a_run(100 + 2 * seed + n, slower=1 + 0.3 * n).phases[0] for n in (0, 1))
        for metric, each in rows(a, b).items():
            if metric in held:
                held[metric] += each.low <= 0.3 <= each.high
    assert sum(held.values()) >= 0.9 * 3 * seeds, f"{held} of seeds 100 to {99 + 2 * seeds}"
