"""Messages of the streams' process in, a summary out: each thing counted once, and said when it is not known."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.messages import Call, Ended, Lane, Progress, Sparse, Strain
from loadtest.scenario import Phase, Scenario, Target
from loadtest.summary import PhaseResults, Results, Summary, read, written
from loadtest.tally import Points, Tally
from loadtest.totals import Totals, Within
from tests.loadtest.calls import a_call, a_cancelled_call, a_refused_call
from tests.loadtest.tallied import a_lane, a_progress, a_run, a_scenario, calls_at, sparse

BOTH = ("victim", "crowd")
ADDED = tuple(name for name, kind in Results.__annotations__.items() if kind == "int")
DISTRIBUTIONS = ("ttft", "ttft_from_sending", "client_wait", "itl", "tpot", "e2e")


def a_tally(*tenants: str, is_counted: bool = True, **changes: Any) -> Tally:
    """One whose only phase has just begun, 100 s after the run's start."""
    scenario = a_scenario(*tenants, **changes)
    tally = Tally(scenario, "2026-11-07T14:03:22+01:00", "a run")
    tally.begin(0, scenario.phases[0], 100.0, is_counted)
    return tally


def ended(tally: Tally, seconds: float = 10.0, index: int = 0) -> PhaseResults:
    return tally.end(Ended(index, seconds, seconds, 0.0))


def test_counts_are_those_of_the_last_message_and_calls_those_of_all() -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, a_lane([a_call()], scheduled=3, open=2, events=6, reads=5)))
    tally.take(a_progress(2.0, a_lane([a_call(), a_refused_call()], scheduled=5, events=9, reads=8, clipped=1)))
    of = ended(tally).all
    assert (of.scheduled, of.sent, of.events, of.reads, of.clipped, of.done, of.failed) == (5, 5, 9, 8, 1, 2, 1)


def test_gaps_come_from_the_streams_process_alone() -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, a_lane([a_call(code="cut")], gaps=Sparse())))
    tally.take(a_progress(2.0, a_lane([a_call(), a_cancelled_call()], gaps=sparse([0.25, 0.5, 0.5]))))
    of = ended(tally).all
    assert (of.itl.count, of.itl.greatest) == (3, 0.5) and of.itl.mean == pytest.approx(1.25 / 3)
    assert of.ttft.count == 2


def test_several_tenants_stand_apart_and_in_all() -> None:
    tally = a_tally(*BOTH)
    tally.take(a_progress(1.0, a_lane([a_call()]), a_lane([a_call(), a_refused_call()])))
    results = ended(tally)
    assert [(of.name, of.done, of.failed) for of in (*results.tenants, results.all)] == [
        ("victim", 1, 0),
        ("crowd", 1, 1),
        ("all", 2, 1),
    ]
    assert list(results.timeline) == list(BOTH)
    assert results.at == 100.0


def test_fairness_is_told_of_several_tenants_only() -> None:
    alone = a_tally()
    alone.take(a_progress(1.0, a_lane([a_call()])))
    results = ended(alone)
    assert (results.jain_tokens, results.jain_served) == (None, None)
    tally = a_tally(*BOTH)
    # 15 tokens of 24 asked, and 5 of 16
    tally.take(a_progress(1.0, a_lane([a_call()] * 3), a_lane([a_call(), a_refused_call()])))
    results = ended(tally)
    assert results.jain_tokens == pytest.approx(20**2 / (2 * (15**2 + 5**2)))
    served = (15 / 24, 5 / 16)
    assert results.jain_served == pytest.approx(sum(served) ** 2 / (2 * sum(each**2 for each in served)))


def test_nobody_served_has_no_fairness() -> None:
    tally = a_tally(*BOTH)
    tally.take(a_progress(1.0, a_lane([a_refused_call()]), a_lane([a_refused_call()])))
    results = ended(tally)
    assert (results.jain_tokens, results.jain_served) == (None, None)


@pytest.mark.parametrize(
    ("lane", "words"),
    [
        (a_lane(scheduled=9, never_sent=4), "of 9 calls 4 were never sent: "),
        (a_lane(scheduled=9, waiting=4), "of 9 calls 4 were never sent"),
        (a_lane([a_call(code="stopped")] * 2, scheduled=9), "of 9 calls 2 were cut off (stopped"),
        (a_lane([a_call(code="timeout")], scheduled=9), "1 were cut off"),
        (a_lane(scheduled=9, open=3), "3 were cut off"),
    ],
)
def test_latencies_that_are_not_known_mark_the_phase_censored(lane: Lane, words: str) -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, lane))
    ended(tally)
    (mark,) = tally.summary("complete").marks
    assert (mark.kind, mark.phase) == ("censored", "load")
    assert words in mark.text and "lower bounds" in mark.text


def test_calls_that_merely_failed_or_were_left_on_purpose_censor_nothing() -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, a_lane([a_call(), a_cancelled_call(), a_refused_call(), a_call(code="cut")])))
    ended(tally)
    assert tally.summary("complete").marks == []


def test_calls_that_were_lost_between_the_processes_are_confessed() -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, a_lane(), lost_calls=1200))
    results = ended(tally)
    (mark,) = tally.summary("complete").marks
    assert mark.kind == "note" and "1,200 calls" in mark.text
    assert results.strain.lost_calls == 1200


def test_a_warm_up_is_in_the_results_and_in_no_mark() -> None:
    tally = a_tally(is_counted=False)
    tally.take(a_progress(1.0, a_lane([a_call(code="stopped")], never_sent=3), lost_calls=1))
    assert not ended(tally).is_counted
    summary = tally.summary("complete")
    assert [phase.is_counted for phase in summary.phases] == [False]
    assert summary.marks == []


def test_a_message_about_another_phase_changes_nothing() -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, a_lane([a_call()]), index=1))
    assert ended(tally).all.done == 0
    tally.take(a_progress(1.0, a_lane([a_call()])))
    assert tally.summary("complete").phases[0].all.done == 0


def test_a_phase_that_still_runs_is_closed_as_it_stands() -> None:
    tally = a_tally()
    tally.take(a_progress(8.0, a_lane([a_call()] * 8)))
    summary = tally.summary("interrupted")
    assert (summary.ended, summary.seconds) == ("interrupted", 108.0)
    assert (summary.phases[0].seconds, summary.phases[0].all.done_per_second) == (8.0, 1.0)
    assert len(tally.summary("interrupted").phases) == 1


def test_a_run_in_which_nothing_began_is_a_summary_too() -> None:
    summary = Tally(a_scenario(), "", "nothing").summary("interrupted")
    assert (summary.seconds, summary.phases, summary.isolation) == (0.0, [], [])


def test_no_word_of_the_body_is_in_a_summary_for_it_may_be_a_secret() -> None:
    body = {"token": "hush", "user": {"id": "hush"}, "ignore_eos": True}
    scenario = a_scenario(target=Target("http://127.0.0.1:8080/v1", "tiny", body=body))
    summary = Tally(scenario, "", "quiet").summary("complete")
    assert b"hush" not in written(summary)
    assert summary.scenario["target"]["body"] == {"token": "…", "user": "…", "ignore_eos": True}


def test_no_key_is_in_a_summary() -> None:
    summary = a_tally(*BOTH).summary("complete")
    assert "secret" not in written(summary).decode()
    assert [sorted(tenant)[:2] for tenant in summary.scenario["tenants"]] == [["arrivals", "cancel"]] * 2


def test_a_summary_is_read_back_as_it_was_written() -> None:
    summary = a_run(3, seconds=10.0)
    again = read(written(summary))
    assert again.phases == summary.phases
    assert written(again) == written(summary)


def test_phases_are_held_against_each_other() -> None:
    phases = [Phase("alone", 10.0, ("victim",)), Phase("crowded", 10.0, BOTH)]
    tally = Tally(a_scenario(*BOTH, phases=phases), "", "neighbours")
    due = np.linspace(0.0, 9.0, 200)
    for index, phase in enumerate(phases):
        tally.begin(index, phase, index * 11.0, True)
        lanes = [a_lane(calls_at(due, np.full(200, 0.1 + 0.1 * index))) for _ in phase.tenants]
        tally.take(a_progress(10.0, *lanes, index=index))
        ended(tally, index=index)
    (only,) = tally.summary("complete").isolation
    assert (only.tenant, only.alone, only.phase, only.calls) == ("victim", "alone", "crowded", 200)
    assert only.p50 == pytest.approx(2.0, rel=0.02) and only.p99 == pytest.approx(2.0, rel=0.02)


def test_the_time_line_counts_tokens_as_they_come_and_corrects_them_at_a_calls_end() -> None:
    tally = a_tally()
    tally.take(a_progress(2.0, a_lane(scheduled=1, open=1, events=2)))
    tally.take(a_progress(5.0, a_lane([a_call()], events=4)))  # 5 tokens were reported
    line = ended(tally).timeline["victim"]
    assert sum(moment.tokens for moment in line) == 5
    assert [(moment.at, moment.tokens) for moment in line if moment.tokens] == [(101.0, 2), (103.5, 2), (104.5, 1)]
    assert [(moment.at, moment.done) for moment in line if moment.done] == [(104.5, 1)]
    assert [moment.at for moment in line if moment.ttft_counts] == [101.0]


def test_now_tells_where_each_tenant_stands() -> None:
    tally = a_tally(*BOTH)
    for second in range(1, 6):
        calls = [a_call()] * 4
        lanes = (
            a_lane(calls, scheduled=4 * second, open=second, events=100 * second, gaps=sparse([0.1])),
            a_lane([a_refused_call()], scheduled=second, waiting=7),
        )
        tally.take(a_progress(float(second), *lanes))
    now = tally.now()
    victim, crowd = now.lanes
    assert (now.index, now.seconds, now.is_counted, now.phase.name) == (0, 5.0, True, "load")
    assert (victim.name, victim.done, victim.open, victim.tokens) == ("victim", 20, 5, 500)
    assert (victim.tokens_per_second, victim.done_per_second) == (100.0, 4.0)
    assert victim.ttft_p50 == pytest.approx(1.0, rel=0.01) and victim.ttft_p99 is None
    assert victim.itl_p50 == pytest.approx(0.1, rel=0.01) and victim.itl_p99 is None
    assert (crowd.failed, crowd.refused, crowd.waiting, crowd.ttft_p50) == (5, 5, 7, None)
    assert (now.all.name, now.all.scheduled, now.all.done, now.all.refused) == ("all", 25, 20, 5)
    assert (now.all.tokens_per_second, now.all.open, now.all.waiting) == (100.0, 5, 7)


def test_now_tells_a_p99_of_a_hundred_calls() -> None:
    tally = a_tally()
    tally.take(a_progress(1.0, a_lane([a_call()] * 100, gaps=sparse([0.1] * 100))))
    assert tally.now().all.ttft_p99 == pytest.approx(1.0, rel=0.01)
    assert tally.now().all.itl_p99 == pytest.approx(0.1, rel=0.01)


def test_points_are_what_a_sweep_judges_by() -> None:
    tally = a_tally()
    calls = [a_call(), a_cancelled_call(scheduled=1.5), a_refused_call(scheduled=1.75), a_call(code="cut")]
    tally.take(a_progress(4.5, a_lane(calls, open=3, waiting=2)))
    assert [each.tolist() for each in tally.ttft_points()] == [[1.0, 1.5], [1.0, 0.5]]
    assert [each.tolist() for each in tally.open_points()] == [[4.5], [5.0]]
    ended(tally)
    assert tally.ttft_points()[0].size == 2


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 64))
def test_points_are_thinned_evenly_and_bounded(batches: list[int], most: int) -> None:
    points, seen = Points(most), 0
    for size in batches:
        each = np.arange(seen, seen + size, dtype=np.float64)
        points.add(each, -each)
        seen += size
        assert points.arrays()[0].size <= most
    x, y = points.arrays()
    step = 1
    while -(-seen // step) > most:
        step *= 2
    assert (x == -y).all()
    assert x.size == 0 or (x[0] == 0 and len({*np.diff(x).tolist()}) <= 1)
    if seen:
        assert x.size >= -(-seen // (2 * step))


def test_a_tools_strain_is_told_with_the_phase() -> None:
    tally = a_tally()
    lags = sparse([0.001] * 99 + [0.3])
    tally.take(Progress(0, 1.0, [a_lane()], Strain(1.0, lags, lags, 0.4, 0.1, 0.25, 1 << 20, [(0.5, 0.3)])))
    strain = ended(tally).strain
    assert (strain.core, strain.starved, strain.pressure) == (0.4, 0.1, 0.25)
    assert (strain.rss_bytes, strain.stalls) == (1 << 20, [(0.5, 0.3)])


def any_call(random: np.random.Generator) -> Call:
    due = float(random.random() * 80)
    first = due + float(random.exponential(0.3))
    events = int(random.integers(1, 9))
    over = first + 0.1 * events
    times: dict[str, Any] = {"scheduled": due, "sent": due, "first": first, "last": over, "ended": over}
    sizes: dict[str, Any] = {"output": 8, "events": events, "gap_count": events - 1}
    fate = random.integers(5)
    if fate == 0:
        return a_refused_call(scheduled=due, sent=due, ended=due + 0.01)
    if fate == 1:
        return a_cancelled_call(**times, **sizes)
    if fate == 2:
        return a_call(**times, **sizes, code="cut", completion_tokens=-1)
    return a_call(**times, **sizes, completion_tokens=int(random.integers(events, 9)))


def told(scenario: Scenario, lanes: list[list[Call]], cuts: list[float]) -> Summary:
    """A run in which these calls ended, told in messages at these times."""
    tally = Tally(scenario, "", "")
    tally.begin(0, scenario.phases[0], 0.0, True)
    before = -1.0
    for at in [*cuts, 120.0]:
        messages = []
        for calls in lanes:
            batch = [call for call in calls if before < call.ended <= at]
            events = sum(call.events for call in calls if call.ended <= at)
            scheduled = sum(call.scheduled <= at for call in calls)
            gaps = sparse(np.repeat(0.1, sum(call.gap_count for call in batch))) if batch else Sparse()
            messages.append(a_lane(batch, scheduled=scheduled, events=events, gaps=gaps))
        tally.take(a_progress(at, *messages))
        before = at
    tally.end(Ended(0, 90.0, 120.0, 0.0))
    return tally.summary("complete")


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 60), min_size=1, max_size=3),
    st.lists(st.floats(0.0, 119.0), max_size=8, unique=True).map(sorted),
)
def test_a_run_comes_to_the_same_however_it_is_told_and_all_is_the_sum(
    seed: int, sizes: list[int], cuts: list[float]
) -> None:
    assert "done" in ADDED and "tokens_cancelled" in ADDED
    random = np.random.default_rng(seed)
    lanes = [sorted((any_call(random) for _ in range(size)), key=lambda call: call.ended) for size in sizes]
    scenario = a_scenario(*(f"t{number}" for number in range(len(sizes))))
    whole, split = (told(scenario, lanes, cut).phases[0] for cut in ([], cuts))
    for one, other in zip((*whole.tenants, whole.all), (*split.tenants, split.all), strict=True):
        assert exact(one) == exact(other)
    assert whole.jain_served == split.jain_served
    for phase in (whole, split):
        for name in ADDED:
            assert getattr(phase.all, name) == sum(getattr(of, name) for of in phase.tenants), name
        for name in DISTRIBUTIONS:
            assert getattr(phase.all, name).count == sum(getattr(of, name).count for of in phase.tenants), name
            assert sum(getattr(phase.all, name).counts) == getattr(phase.all, name).count
        for of, calls in zip(phase.tenants, lanes, strict=True):
            line = phase.timeline[of.name]
            assert sum(moment.done for moment in line) == of.done
            assert sum(moment.failed for moment in line) == of.failed
            assert sum(moment.tokens for moment in line) == of.tokens_received
            assert sum(moment.scheduled for moment in line) == of.scheduled == len(calls)
            assert sum(sum(moment.ttft_counts) for moment in line) == of.ttft.count


def exact(of: Results) -> dict[str, Any]:
    """All of it, but for sums' last digits, which hang on their order, and rates, which the line's grain bounds."""
    found: dict[str, Any] = msgspec.to_builtins(of)
    for name in DISTRIBUTIONS:
        del found[name]["mean"]
    for name in ("done_per_second", "good_per_second", "tokens_per_second"):
        del found[name]
    return found


def test_totals_of_nobody_are_nothing() -> None:
    of = Totals().results("victim", dict.fromkeys(("scheduled", "sent"), 0), 10.0, Within(1.0, 1.0))
    assert (of.done, of.tokens_per_second, of.share_served, of.ttft.p50) == (0, 0.0, None, None)
