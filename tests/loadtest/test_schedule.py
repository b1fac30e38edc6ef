"""The calls of a phase: merged in order of time, a tenant's the same in every company, sizes and leavings within their
spans, users that come and go with a scale.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from math import inf
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.scenario import Arrivals, Cancel, Phase, Scenario, Span, Target, Tenant
from loadtest.schedule import Planned, Schedule
from loadtest.traces import AS_IT_WAS, CLIPPED, SKIPPED, TraceRows

VICTIM = Tenant("victim", arrivals=Arrivals("poisson", rate=10), input=Span(16, 512), output=Span(1, 128))
CROWD = Tenant(
    "crowd",
    arrivals=Arrivals("gamma", rate=50, burstiness=0.5),
    output=Span(64, 64),
    cancel=Cancel(0.1, Span(1, 32)),
)
USERS = Tenant("users", arrivals=Arrivals("closed", users=10, think=Span(0.5, 1.5)), input=Span(8, 64))


def scenario_of(*tenants: Tenant, seed: int = 7) -> Scenario:
    return Scenario(Target("http://127.0.0.1:1/v1", "tiny"), tenants, (), seed=seed)


def schedule_of(
    scenario: Scenario,
    *names: str,
    seconds: float | None = 30.0,
    rows: TraceRows | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    phase: str = "load",
) -> Schedule:
    return Schedule(scenario, Phase(phase, seconds, names, scale), rows)


def calls_of(schedule: Schedule, lane: int) -> list[tuple[float, int, int, int]]:
    """A tenant's calls, without its place in the phase."""
    return [(call.at, call.input, call.output, call.cancel_after) for call in schedule if call.lane == lane]


def rows_of(*rows: tuple[float, int, int, int, int]) -> TraceRows:
    """A trace of these rows: time, input, output, tenant, fate."""
    times, inputs, outputs, tenants, fates = zip(*rows, strict=True)
    return TraceRows(
        np.array(times, dtype=np.float64),
        np.array(inputs, dtype=np.int32),
        np.array(outputs, dtype=np.int32),
        np.array(tenants, dtype=np.int16),
        np.array(fates, dtype=np.uint8),
        True,
    )


# ---- open loops ------------------------------------------------------------------------------------------------------


def test_calls_of_all_tenants_come_in_order_of_time() -> None:
    calls = list(schedule_of(scenario_of(VICTIM, CROWD), "crowd", "victim"))
    assert [call.at for call in calls] == sorted(call.at for call in calls)
    assert all(0 <= call.at < 30 for call in calls)
    assert {call.lane for call in calls} == {0, 1}
    assert sum(call.lane == 1 for call in calls) == pytest.approx(300, rel=0.25)
    assert sum(call.lane == 0 for call in calls) == pytest.approx(1500, rel=0.25)


def test_a_tenants_calls_are_the_same_alone_in_a_crowd_and_afterwards() -> None:
    scenario = scenario_of(VICTIM, CROWD, USERS)
    alone = calls_of(schedule_of(scenario, "victim", phase="alone"), 0)
    crowded = calls_of(schedule_of(scenario, "users", "crowd", "victim", phase="crowded"), 2)
    after = calls_of(schedule_of(scenario, "victim", phase="after"), 0)
    assert len(alone) > 200
    assert alone == crowded == after
    without_others = calls_of(schedule_of(scenario_of(VICTIM), "victim"), 0)
    assert alone == without_others
    longer = calls_of(schedule_of(scenario, "victim", seconds=60.0), 0)
    assert longer[: len(alone)] == alone


def test_tenants_and_seeds_draw_each_their_own() -> None:
    twin = replace(VICTIM, name="twin")
    both = schedule_of(scenario_of(VICTIM, twin), "victim", "twin")
    assert calls_of(both, 0) != calls_of(both, 1)
    assert calls_of(both, 0) != calls_of(schedule_of(scenario_of(VICTIM, seed=8), "victim"), 0)


def test_a_schedule_is_the_same_each_time_it_is_walked() -> None:
    schedule = schedule_of(scenario_of(VICTIM, CROWD), "victim", "crowd")
    assert list(schedule) == list(schedule)


def test_a_schedule_is_drawn_as_it_is_walked() -> None:
    busy = replace(VICTIM, arrivals=Arrivals("constant", rate=1e6))
    endless = schedule_of(scenario_of(busy), "victim", seconds=1e9)
    assert [call.at for call in islice(endless, 3)] == [0, 1e-6, 2e-6]


def test_calls_of_one_moment_go_by_the_tenants_order_in_the_phase() -> None:
    even = Arrivals("constant", rate=1)
    scenario = scenario_of(replace(VICTIM, arrivals=even), replace(CROWD, arrivals=even))
    calls = list(schedule_of(scenario, "crowd", "victim", seconds=3.0))
    assert [(call.at, call.lane) for call in calls] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_the_phases_scale_multiplies_the_rate() -> None:
    scenario = scenario_of(replace(VICTIM, arrivals=Arrivals("constant", rate=10)))
    assert len(list(schedule_of(scenario, "victim", scale=(2.0, 2.0)))) == 600
    assert len(list(schedule_of(scenario, "victim", scale=(0.0, 1.0)))) == pytest.approx(150, abs=1)


def test_without_a_duration_only_a_trace_ends_a_phase() -> None:
    with pytest.raises(ValueError, match="'load' has neither a duration nor a trace"):
        schedule_of(scenario_of(VICTIM), "victim", seconds=None)


# ---- sizes and leavings ----------------------------------------------------------------------------------------------


def sizes_of(tenant: Tenant, count: int = 4000, seed: int = 7) -> list[Planned]:
    return list(islice(schedule_of(scenario_of(tenant, seed=seed), tenant.name, seconds=1e6), count))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sizes_are_drawn_evenly_from_their_spans_with_both_ends(seed: int) -> None:
    calls = sizes_of(replace(VICTIM, input=Span(1, 8), output=Span(1, 4)), seed=seed)
    for low_share in range(1, 9):
        assert fmean(call.input == low_share for call in calls) == pytest.approx(1 / 8, abs=0.03), f"seed {seed}"
    for low_share in range(1, 5):
        assert fmean(call.output == low_share for call in calls) == pytest.approx(1 / 4, abs=0.04), f"seed {seed}"
    assert {call.input for call in calls} == set(range(1, 9)) and {call.output for call in calls} == set(range(1, 5))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_asked_share_of_calls_is_left_and_always_before_the_end(seed: int) -> None:
    leaving = replace(VICTIM, output=Span(2, 8), cancel=Cancel(0.25, Span(1, 32)))
    calls = sizes_of(leaving, seed=seed)
    left = [call for call in calls if call.cancel_after]
    assert len(left) / len(calls) == pytest.approx(0.25, abs=0.03), f"seed {seed}"
    assert all(1 <= call.cancel_after < call.output for call in left)
    assert all(call.cancel_after for call in sizes_of(replace(leaving, cancel=Cancel(1.0, Span(0, 3)))))


def test_an_answer_of_one_token_cannot_be_left_before_its_end() -> None:
    calls = sizes_of(replace(VICTIM, output=Span(1, 1), cancel=Cancel(1.0, Span(1, 3))), 100)
    assert {call.cancel_after for call in calls} == {0}


def test_to_leave_calls_changes_neither_their_times_nor_their_sizes() -> None:
    stays = sizes_of(VICTIM, 500)
    leaves = sizes_of(replace(VICTIM, cancel=Cancel(0.5, Span(1, 9))), 500)
    assert [call[:4] for call in leaves] == [call[:4] for call in stays]
    assert leaves != stays


def test_sizes_hang_on_no_law_of_arrivals() -> None:
    bursty = sizes_of(replace(VICTIM, arrivals=Arrivals("gamma", rate=10, burstiness=0.3)), 500)
    assert [call[2:] for call in bursty] == [call[2:] for call in sizes_of(VICTIM, 500)]
    assert [call.at for call in bursty] != [call.at for call in sizes_of(VICTIM, 500)]


@given(
    low=st.floats(0, 100), more=st.floats(0, 100), share=st.floats(0, 1), after=st.floats(0, 100), seed=st.integers()
)
def test_sizes_stay_within_their_spans(low: float, more: float, share: float, after: float, seed: int) -> None:
    tenant = replace(VICTIM, input=Span(low, low + more), output=Span(low, low + more))
    tenant = replace(tenant, cancel=Cancel(share, Span(after, after)))
    for call in sizes_of(tenant, 20, seed):
        assert max(1, low) <= call.input <= max(1, low + more, low + 1)
        assert max(1, low) <= call.output <= max(1, low + more, low + 1)
        assert 0 <= call.cancel_after <= max(0, call.output - 1)


# ---- a trace ---------------------------------------------------------------------------------------------------------

TRACED = (Tenant("a"), Tenant("b"), Tenant("c"))
ROWS = rows_of(
    (0, 10, 1, 0, AS_IT_WAS),
    (1, 20, 2, 1, CLIPPED),
    (1, 30, 3, 0, SKIPPED),
    (2, 40, 4, 2, AS_IT_WAS),
    (3, 50, 5, 1, SKIPPED),
    (3, 60, 6, 0, CLIPPED),
    (4, 70, 7, 1, SKIPPED),
)


def test_a_trace_is_replayed_to_its_last_call_where_the_phase_has_no_duration() -> None:
    rows = rows_of((0, 10, 1, 0, AS_IT_WAS), (5, 20, 2, 0, AS_IT_WAS))
    schedule = schedule_of(scenario_of(*TRACED), "a", seconds=None, rows=rows)
    assert schedule.ends_at == 5
    assert list(schedule) == [(0, 0, 10, 1, 0), (5, 0, 20, 2, 0)]
    assert list(schedule_of(scenario_of(*TRACED), "a", seconds=5.0, rows=rows)) == [(0, 0, 10, 1, 0)]


def test_a_phase_takes_its_own_tenants_calls_of_the_trace() -> None:
    scenario = scenario_of(*TRACED)
    both = schedule_of(scenario, "b", "a", seconds=None, rows=ROWS)
    assert list(both) == [(0, 1, 10, 1, 0), (1, 0, 20, 2, 0), (3, 1, 60, 6, 0)]
    assert both.clipped == [1, 1] and both.skipped == [2, 1]
    other = schedule_of(scenario, "c", seconds=None, rows=ROWS)
    assert list(other) == [(2, 0, 40, 4, 0)]
    assert other.clipped == [0] and other.skipped == [0]
    assert other.ends_at == 4  # the trace's end is everybody's


def test_calls_of_the_trace_that_were_too_long_are_counted_as_their_time_comes_and_anew_in_each_walk() -> None:
    schedule = schedule_of(scenario_of(*TRACED), "a", "b", seconds=None, rows=ROWS)
    calls = iter(schedule)
    assert (schedule.clipped, schedule.skipped) == ([0, 0], [0, 0])
    next(calls), next(calls)
    assert (schedule.clipped, schedule.skipped) == ([0, 1], [0, 0])
    assert len(list(calls)) == 1
    assert (schedule.clipped, schedule.skipped) == ([1, 1], [1, 2])
    assert len(list(schedule)) == 3
    assert (schedule.clipped, schedule.skipped) == ([1, 1], [1, 2])
    short = schedule_of(scenario_of(*TRACED), "a", "b", seconds=3.0, rows=ROWS)
    assert len(list(short)) == 2
    assert (short.clipped, short.skipped) == ([0, 1], [1, 0])


def test_a_tenant_with_arrivals_of_its_own_and_a_share_of_the_trace_gets_both() -> None:
    both = Tenant("a", arrivals=Arrivals("constant", rate=0.5), input=Span(7, 7), output=Span(9, 9))
    schedule = schedule_of(scenario_of(both, *TRACED[1:]), "a", seconds=None, rows=ROWS)
    assert list(schedule) == [(0, 0, 7, 9, 0), (0, 0, 10, 1, 0), (2, 0, 7, 9, 0), (3, 0, 60, 6, 0)]
    alone = Tenant("a", arrivals=Arrivals("closed", users=3))
    closed = schedule_of(scenario_of(alone, *TRACED[1:]), "a", seconds=None, rows=ROWS)
    assert len(list(closed)) == 2 and closed.closed(0) is not None


def test_own_arrivals_are_the_same_beside_a_trace_and_the_traces_leavings_in_any_company() -> None:
    own = replace(VICTIM, name="a", cancel=Cancel(0.5, Span(1, 9)))
    many = rows_of(*((number * 0.05, 5, 50 + number % 2, number % 2, AS_IT_WAS) for number in range(400)))
    scenario = scenario_of(own, replace(TRACED[1], cancel=Cancel(0.5, Span(1, 9))))
    mixed = calls_of(schedule_of(scenario, "a", "b", seconds=20.0, rows=many), 0)
    alone = calls_of(schedule_of(scenario, "a", seconds=20.0, rows=many), 0)
    assert mixed == alone
    assert [call for call in alone if call[1] != 5] == calls_of(schedule_of(scenario, "a", seconds=20.0), 0)
    assert 0.3 < fmean(call[3] > 0 for call in calls_of(schedule_of(scenario, "b", seconds=None, rows=many), 0)) < 0.7


def test_a_trace_longer_than_a_block_of_rows_is_replayed_whole() -> None:
    rows = rows_of(*((number * 0.001, 1 + number, 1, number % 2, AS_IT_WAS) for number in range(10_000)))
    calls = list(schedule_of(scenario_of(*TRACED), "a", "b", seconds=None, rows=rows))
    assert [call.input for call in calls] == list(range(1, 10_001))


# ---- closed loops ----------------------------------------------------------------------------------------------------


def users_of(count: int, scale: tuple[float, float], seconds: float = 100.0) -> list[tuple[float, float]]:
    tenant = replace(USERS, arrivals=Arrivals("closed", users=count))
    closed = schedule_of(scenario_of(tenant), "users", seconds=seconds, scale=scale).closed(0)
    assert closed is not None
    assert closed.start_of(closed.count) == inf or closed.stop_of(closed.count) == 0  # one more has no part in it
    return [(closed.start_of(user), closed.stop_of(user)) for user in range(closed.count)]


def test_only_a_closed_loop_has_users_and_they_plan_no_times() -> None:
    schedule = schedule_of(scenario_of(VICTIM, USERS), "victim", "users")
    assert schedule.closed(0) is None
    assert {call.lane for call in schedule} == {0}
    assert schedule_of(scenario_of(*TRACED), "a", seconds=None, rows=ROWS).closed(0) is None


def test_all_users_begin_at_once_and_stay_where_the_scale_is_level() -> None:
    assert users_of(10, (1.0, 1.0)) == [(0, inf)] * 10
    assert users_of(10, (0.25, 0.25)) == [(0, inf)] * 3  # two and a half
    assert users_of(10, (0.24, 0.24)) == [(0, inf)] * 2
    assert users_of(10, (0.0, 0.0)) == []
    for wanted in (1, 3, 7, 49, 97):
        assert len(users_of(100, (wanted / 100, wanted / 100))) == wanted


def test_users_begin_one_by_one_as_the_scale_rises() -> None:
    assert users_of(4, (0.0, 1.0)) == [(12.5, inf), (37.5, inf), (62.5, inf), (87.5, inf)]
    assert users_of(4, (0.5, 1.0)) == [(0, inf), (0, inf), (25, inf), (75, inf)]


def test_users_stop_one_by_one_as_the_scale_falls() -> None:
    assert users_of(4, (1.0, 0.0)) == [(0, 87.5), (0, 62.5), (0, 37.5), (0, 12.5)]


@given(users=st.integers(1, 200), scale=st.tuples(st.floats(0, 3), st.floats(0, 3)), at=st.floats(0, 99.9))
def test_at_any_moment_as_many_users_call_as_the_scale_asks_for(
    users: int, scale: tuple[float, float], at: float
) -> None:
    wanted = users * (scale[0] + (scale[1] - scale[0]) * at / 100)
    calling = sum(start <= at < stop for start, stop in users_of(users, scale))
    assert abs(calling - wanted) <= 0.5 + 1e-6


def test_a_users_calls_are_its_own_whatever_the_others_do() -> None:
    def drawn(order: list[int], *names: str) -> dict[int, list[tuple[int, int, int, float]]]:
        lane = names.index("users")
        closed = schedule_of(scenario_of(VICTIM, USERS), *names).closed(lane)
        assert closed is not None
        calls: dict[int, list[tuple[int, int, int, float]]] = {}
        for user in order:
            calls.setdefault(user, []).append(closed.next(user))
        return calls

    alone = drawn([0, 1, 0, 1, 0, 1], "users")
    assert alone == drawn([1, 1, 1, 0, 0, 0], "victim", "users")
    assert alone[0] != alone[1]
    for asked, made, left_after, thinks in alone[0] + alone[1]:
        assert 8 <= asked <= 64 and made == 64 and left_after == 0 and 0.5 <= thinks <= 1.5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_users_ask_and_how_long_they_think_is_drawn_evenly_over_users_and_calls(seed: int) -> None:
    tenant = Tenant(
        "users",
        arrivals=Arrivals("closed", users=200, think=Span(1, 3)),
        input=Span(1, 8),
        output=Span(1, 4),
        cancel=Cancel(0.25, Span(1, 2)),
    )
    closed = schedule_of(scenario_of(tenant, seed=seed), "users").closed(0)
    assert closed is not None
    firsts = [closed.next(user) for user in range(200)]
    calls = firsts + [closed.next(user) for user in range(200) for _ in range(19)]
    for size in range(1, 9):
        assert fmean(call[0] == size for call in calls) == pytest.approx(1 / 8, abs=0.03), f"seed {seed}"
    for size in range(1, 5):
        assert fmean(call[1] == size for call in calls) == pytest.approx(1 / 4, abs=0.04), f"seed {seed}"
    long = [call for call in calls if call[1] > 1]
    assert fmean(call[2] > 0 for call in long) == pytest.approx(0.25, abs=0.04), f"seed {seed}"
    assert fmean(call[3] for call in calls) == pytest.approx(2, abs=0.06), f"seed {seed}"
    assert min(call[3] for call in calls) < 1.05 and max(call[3] for call in calls) > 2.95, f"seed {seed}"
    assert fmean(call[0] for call in firsts) == pytest.approx(4.5, abs=0.6), f"seed {seed}"
    again = schedule_of(scenario_of(tenant, seed=seed + 1), "users").closed(0)
    assert again is not None and [again.next(user) for user in range(200)] != firsts
