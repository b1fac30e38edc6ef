"""Sweeps of queues whose capacity is known: `slots` servers, each busy with a call for its service time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from loadtest.scenario import ArrivalKind, Arrivals, Phase, Scenario, Sweep, Target, Tenant
from loadtest.summary import SweepResults, SweepStep
from loadtest.sweep import SweepPlan
from tests.loadtest.queues import Queue, Rig, always, evenly, exponentially

SIZES = [(4, 0.5), (32, 1.3), (200, 2.0)]  # slots, seconds a call
SEEDS = (1, 2, 3)


def loads(results: SweepResults) -> list[float]:
    return [step.load for step in results.steps]


def a_rate_sweep(capacity: float, **changes: Any) -> Sweep:
    return Sweep(**{"of": "rate", "start": capacity / 3.3, "most": capacity * 8, **changes})


def assert_bracketed(results: SweepResults) -> None:
    """What was found lies between the last load that was kept up with and the first that was not."""
    stable = max((step.load for step in results.steps if not step.is_saturated), default=0.0)
    saturated = min(step.load for step in results.steps if step.is_saturated)
    assert stable < saturated
    assert results.saturation is not None
    assert results.stable == pytest.approx(min(stable, results.saturation))
    assert results.saturated == pytest.approx(max(saturated, results.saturation))


# ---- the point that is found ----


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("slots", "seconds"), SIZES)
@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_the_saturation_of_a_rate_is_slots_by_service_time(
    kind: ArrivalKind, slots: int, seconds: float, seed: int
) -> None:
    capacity = slots / seconds
    results = Rig(a_rate_sweep(capacity), kind, Queue(slots, always(seconds)), seed).to_its_end()
    assert results.saturation == pytest.approx(capacity, rel=0.05), f"seed {seed}"
    assert results.throughput == pytest.approx(capacity, rel=0.05), f"seed {seed}"
    assert_bracketed(results)
    assert results.stable is not None and results.stable >= 0.85 * capacity, f"seed {seed}"


@pytest.mark.parametrize("seed", [10, 12, 18, 33])
def test_steps_that_a_chance_of_arrivals_made_too_much_do_not_decide(seed: int) -> None:
    """Seeds for which a step near the capacity got too many calls at once, and did fewer than the target can."""
    sweep = a_rate_sweep(8.0, start=8 * {10: 0.2158, 12: 0.1864, 18: 0.375, 33: 0.29}[seed])
    results = Rig(sweep, "poisson", Queue(4, always(0.5)), seed).to_its_end()
    assert results.saturation == pytest.approx(8.0, rel=0.031), f"seed {seed}"


@pytest.mark.parametrize("start", [0.11, 0.4, 0.97, 1.03, 2.5])
def test_it_is_found_from_wherever_the_sweep_starts(start: float) -> None:
    capacity = 32 / 1.3
    sweep = a_rate_sweep(capacity, start=capacity * start)
    results = Rig(sweep, "constant", Queue(32, always(1.3)), 1).to_its_end()
    assert results.saturation == pytest.approx(capacity, rel=0.05)
    assert_bracketed(results)


@pytest.mark.parametrize(("slots", "seconds"), SIZES)
def test_it_is_found_where_service_times_vary(slots: int, seconds: float) -> None:
    for seed in SEEDS[:2]:
        results = Rig(a_rate_sweep(slots / seconds), "poisson", Queue(slots, evenly(seconds)), seed).to_its_end()
        assert results.saturation == pytest.approx(slots / seconds, rel=0.1), f"seed {seed}"


def test_it_is_found_where_service_times_have_no_memory_and_calls_are_many() -> None:
    """Of few calls that differ so much, no twenty seconds tell the mean within a tenth: 150 calls, 8 %."""
    for seed in SEEDS:
        results = Rig(a_rate_sweep(100.0), "poisson", Queue(200, exponentially(2.0)), seed).to_its_end()
        assert results.saturation == pytest.approx(100.0, rel=0.1), f"seed {seed}"


@pytest.mark.parametrize(("slots", "seconds"), SIZES)
def test_it_is_found_where_calls_are_stopped_soon_after_the_step(slots: int, seconds: float) -> None:
    rig = Rig(a_rate_sweep(slots / seconds), "poisson", Queue(slots, always(seconds)), 1, drain_seconds=0.5)
    assert rig.to_its_end().saturation == pytest.approx(slots / seconds, rel=0.06)


@pytest.mark.parametrize(("slots", "seconds"), [*SIZES, (8, 1.0)])
def test_users_without_think_time_saturate_as_many_slots(slots: int, seconds: float) -> None:
    sweep = Sweep("users", start=max(slots // 5, 1), most=slots * 8)
    results = Rig(sweep, "closed", Queue(slots, always(seconds)), 1).to_its_end()
    assert results.saturation == pytest.approx(slots, rel=0.05)
    assert results.throughput == pytest.approx(slots / seconds, rel=0.05)
    assert_bracketed(results)


def test_users_are_found_where_the_first_step_is_beyond_the_knee() -> None:
    results = Rig(Sweep("users", start=70, most=600), "closed", Queue(32, always(1.3)), 1).to_its_end()
    assert results.saturation == pytest.approx(32, rel=0.1)
    assert_bracketed(results)


@pytest.mark.parametrize(("slots", "seconds", "within"), [(8, 1.0, 0.06), (32, 1.3, 0.06)])
def test_users_are_found_where_service_times_vary(slots: int, seconds: float, within: float) -> None:
    for seed in range(5):
        sweep = Sweep("users", start=slots // 4, most=slots * 8)
        results = Rig(sweep, "closed", Queue(slots, evenly(seconds)), seed).to_its_end()
        assert results.saturation == pytest.approx(slots, rel=within), f"seed {seed}"


def test_a_target_that_refuses_what_it_cannot_serve_at_once_is_told_by_its_refusals() -> None:
    results = Rig(a_rate_sweep(24.6), "constant", Queue(32, always(1.3), has_queue=False), 1).to_its_end()
    assert results.saturation == pytest.approx(24.6, rel=0.05)
    assert_bracketed(results)
    assert all("of calls failed (429 busy)" in step.reason for step in results.steps if step.is_saturated)


def test_refusals_in_bursts_count_though_more_gets_done_in_overload() -> None:
    """Four slots without a queue refuse two Poisson calls of a hundred at a third of what they do in overload."""
    rig = Rig(Sweep("rate", start=20.0, most=64.0), "poisson", Queue(4, always(0.5), has_queue=False), 1)
    results = rig.to_its_end()
    assert results.saturation is not None and results.throughput is not None
    assert results.saturation < 0.5 * results.throughput
    assert_bracketed(results)


# ---- the way there ----


def test_loads_rise_by_the_factor_and_then_halve_the_bracket() -> None:
    rig = Rig(a_rate_sweep(8.0, start=3.0, within=0.1), "constant", Queue(4, always(0.5)), 1)
    results = rig.to_its_end()
    assert loads(results)[:4] == [3.0, 4.5, 6.75, 10.12]
    for number in range(4, len(results.steps)):
        before = results.steps[:number]
        low = max(step.load for step in before if not step.is_saturated)
        high = min(step.load for step in before if step.is_saturated)
        assert results.steps[number].load == pytest.approx(math.sqrt(low * high), rel=1e-3)
    assert results.stable is not None and results.saturated is not None
    assert results.saturated / results.stable <= 1.1
    assert [phase.name for phase in rig.phases][:2] == ["rate 3", "rate 4.5"]


@pytest.mark.parametrize("within", [0.02, 0.1, 0.3])
def test_the_bracket_ends_as_narrow_as_asked(within: float) -> None:
    sweep = a_rate_sweep(8.0, within=within)
    results = Rig(sweep, "constant", Queue(4, always(0.5)), 1).to_its_end()
    assert results.stable is not None and results.saturated is not None
    assert results.saturated / results.stable <= 1 + within


def test_a_target_that_keeps_up_with_everything_has_no_saturation() -> None:
    sweep = Sweep("rate", start=1.0, most=5.0)
    results = Rig(sweep, "constant", Queue(4, always(0.5)), 1).to_its_end()
    assert loads(results) == [1.0, 1.5, 2.25, 3.375, 5.0]
    assert (results.saturation, results.saturated, results.throughput) == (None, None, None)
    assert results.stable == 5.0


@pytest.mark.parametrize("of", ["rate", "users"])
def test_a_target_that_answers_nothing_ends_the_sweep_after_two_steps(of: Any) -> None:
    kind: ArrivalKind = "constant" if of == "rate" else "closed"
    rig = Rig(Sweep(of, start=20.0, most=64.0), kind, Queue(4, always(1e6)), 1, drain_seconds=1.0)
    results = rig.to_its_end()
    assert [step.is_saturated for step in results.steps] == [True, True]
    assert results.steps[0].reason.startswith("none of ")
    assert (results.saturation, results.stable) == (None, None)


@pytest.mark.parametrize("of", ["rate", "users"])
def test_the_tenants_share_the_load_in_proportion_to_their_own(of: Any) -> None:
    kinds = (Arrivals("poisson", rate=3.0), Arrivals("closed", users=2), Arrivals("constant", rate=1.0))
    tenants = tuple(Tenant(f"tenant{number}", arrivals=arrivals) for number, arrivals in enumerate(kinds))
    sweep = Sweep(of, start=8.0, most=80.0)
    phase = SweepPlan(sweep, Scenario(Target("http://x/v1", "m"), tenants, (), sweep=sweep)).next()
    scale = 8.0 / (4.0 if of == "rate" else 2)
    assert phase == Phase(f"{of} 8", 20.0, ("tenant0", "tenant1", "tenant2"), (scale, scale))


def test_users_are_whole() -> None:
    rig = Rig(Sweep("users", start=1, most=30), "closed", Queue(8, always(1.0)), 1)
    assert all(load == round(load) for load in loads(rig.to_its_end()))
    assert [phase.scale[0] for phase in rig.phases[:4]] == [1, 2, 3, 4]


def test_steps_grow_with_calls_that_are_long() -> None:
    rig = Rig(a_rate_sweep(2.0, step_seconds=10.0), "constant", Queue(16, always(8.0)), 1)
    results = rig.to_its_end()
    assert [phase.seconds for phase in rig.phases][:2] == [10.0, pytest.approx(48.0)]
    assert results.saturation == pytest.approx(2.0, rel=0.1)


def test_a_step_that_was_ended_early_is_not_judged_and_ends_the_sweep() -> None:
    rig = Rig(a_rate_sweep(8.0), "constant", Queue(4, always(0.5)), 1)
    for seconds in (None, 6.0):
        phase = rig.plan.next()
        assert phase is not None
        rig.judged(phase, seconds)
    assert len(rig.plan.results().steps) == 1
    assert rig.plan.next() is None


def test_a_cut_short_step_says_so() -> None:
    rig = Rig(a_rate_sweep(8.0), "constant", Queue(4, always(0.5)), 1)
    phase = rig.plan.next()
    assert phase is not None
    step = rig.plan.judge(rig.step(phase, 6.0), rig.tally.ttft_points(), rig.tally.open_points())
    assert step.reason == "ended after 6 of 20 s: not judged"
    assert not step.is_saturated


# ---- what is told of a step ----


def a_step(load: float, queue: Queue, kind: ArrivalKind = "constant") -> SweepStep:
    rig = Rig(Sweep("rate", start=load, most=load * 10), kind, queue, 1)
    phase = rig.plan.next()
    assert phase is not None
    rig.judged(phase)
    return rig.plan.results().steps[0]


def test_a_quarter_too_much_grows_the_wait_by_a_quarter_of_a_second_each_second() -> None:
    step = a_step(10.0, Queue(4, always(0.5)))
    assert step.is_saturated
    assert step.ttft_slope == pytest.approx(0.25, rel=0.05)
    assert step.open_slope == pytest.approx(2.0, rel=0.05)
    assert step.done_per_second == pytest.approx(8.0, rel=0.02)
    assert step.tokens_per_second == pytest.approx(64.0, rel=0.05)
    assert step.offered_per_second == 10.0
    assert step.reason == "each second TTFT grew by 250 ms and open calls by 2"
    assert 0 < step.ttft_slope_low <= step.ttft_slope and 0 < step.open_slope_low <= step.open_slope
    assert step.open_most == pytest.approx(44, abs=4)


def test_a_target_at_ease_grows_nothing() -> None:
    step = a_step(7.5, Queue(4, always(0.5)), "poisson")
    assert (step.is_saturated, step.reason, step.failed) == (False, "", 0)
    assert step.ttft_slope_low <= 0.005


def test_slow_calls_that_only_fill_the_target_are_no_growth() -> None:
    """For five seconds calls pile up, since none ends before: not a word of that, and the pace is that after it."""
    step = a_step(36.0, Queue(200, always(5.0)))
    assert not step.is_saturated
    assert step.done_per_second == pytest.approx(36.0, rel=0.02)
    assert abs(step.open_slope) < 0.5


def test_all_of_it_survives_json() -> None:
    """Where nothing is known of a slope its confidence is infinite, which JSON does not know."""
    plan = Rig(Sweep("rate", start=0.06, most=1.0), "constant", Queue(4, always(0.5)), 1)
    phase = plan.plan.next()
    assert phase is not None
    plan.judged(phase)
    results = plan.plan.results()
    assert msgspec.json.decode(msgspec.json.encode(results), type=SweepResults) == results
    assert results.steps[0].ttft_slope_low <= 0


def test_a_wait_for_our_own_cap_is_said_not_to_be_the_targets() -> None:
    rig = Rig(Sweep("rate", start=10.0, most=100.0), "constant", Queue(4, always(0.5)), 1)
    phase = rig.plan.next()
    assert phase is not None
    results = rig.step(phase)
    ttft = results.all.ttft.mean
    assert ttft is not None
    for share, is_ours in ((0.1, False), (0.9, True)):
        results.all.client_wait.mean = ttft * share
        plan = SweepPlan(Sweep("rate", start=10.0, most=100.0), rig.scenario)
        plan.next()
        step = plan.judge(results, rig.tally.ttft_points(), rig.tally.open_points())
        assert ("this tool's cap on open streams" in step.reason) == is_ours


def test_steps_are_told_in_the_order_in_which_they_ran() -> None:
    rig = Rig(a_rate_sweep(8.0), "constant", Queue(4, always(0.5)), 1)
    results = rig.to_its_end()
    assert [step.phase for step in results.steps] == [phase.name for phase in rig.phases]
    assert any(earlier.load > later.load for earlier, later in pairwise(results.steps))
