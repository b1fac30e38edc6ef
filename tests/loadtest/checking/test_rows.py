"""What a self-check takes for good and what not: each kind of fault that a load tester can have makes a row fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from loadtest.checking import rows as check_rows
from loadtest.checking.answers import MODES, Delays
from loadtest.checking.rows import Row
from loadtest.summary import Distribution, Mark, PhaseResults, Results, StrainSummary, Summary

DELAYS = Delays(0.02, 0.01)
TOKENS = 12
WHOLE = DELAYS.ttft + (TOKENS - 1) * DELAYS.itl


def told(count: int, seconds: float) -> Distribution:
    """So many values, all the same."""
    return Distribution(count=count, p50=seconds, p99=seconds, greatest=seconds) if count else Distribution()


def good(name: str = "all", calls: int = 10, **changes: Any) -> Results:
    """What a tester that is right tells of calls that were all good."""
    results = Results(
        name=name,
        scheduled=calls,
        sent=calls,
        done=calls,
        events=calls * TOKENS,
        tokens_received=calls * TOKENS,
        ttft=told(calls, DELAYS.ttft + 0.001),
        ttft_from_sending=told(calls, DELAYS.ttft),
        client_wait=told(calls, 0.0),
        itl=told(calls * (TOKENS - 1), DELAYS.itl),
        tpot=told(calls, DELAYS.itl),
        e2e=told(calls, WHOLE + 0.001),
    )
    return msgspec.structs.replace(results, **changes)


def bad(name: str, code: str, calls: int = 10, **changes: Any) -> Results:
    """What it tells of calls that all failed."""
    nothing = {key: Distribution() for key in ("ttft", "ttft_from_sending", "client_wait", "itl", "tpot", "e2e")}
    refused = calls if code[:3] in ("429", "503") else 0
    failed = {"done": 0, "failed": calls, "refused": refused, "codes": {code: calls}, "tokens_received": 0}
    return good(name, calls, **(nothing | failed | changes))


def phase(*tenants: Results, **strain: Any) -> PhaseResults:
    return PhaseResults(
        name="check",
        at=0.0,
        load_seconds=3.0,
        seconds=3.1,
        is_counted=True,
        tenants=list(tenants),
        all=tenants[0] if tenants else good(),
        strain=StrainSummary(**strain),
    )


def summary(*marks: Mark, **strain: Any) -> Summary:
    return Summary(
        name="check",
        started="2026-01-01T00:00:00+00:00",
        seconds=3.1,
        ended="complete",
        url="",
        model="plain",
        scenario={},
        marks=list(marks),
        phases=[phase(**strain)],
    )


def report(late: float = 0.0002, **counts: int) -> dict[str, Any]:
    plain = {"calls": 10, "answered": 10, "left": 0, "tokens": 10 * TOKENS} | counts
    return {"counts": {"plain": plain}, "late": {"p50": late, "p99": late}}


def missed(rows: list[Row]) -> list[str]:
    return [row.check for row in rows if not row.holds]


def test_a_tester_that_is_right_passes() -> None:
    assert not missed(check_rows.of_times(good(), DELAYS, TOKENS, report()))
    assert not missed(check_rows.of_modes(MODES, modes(), DELAYS, TOKENS))


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"ttft": told(10, 0.0231)}, "TTFT, p50"),
        ({"ttft": told(10, 0.0179)}, "TTFT, p50"),
        ({"itl": told(110, 0.0125)}, "ITL, p50"),
        ({"tpot": told(10, 0.0125)}, "TPOT, p50"),
        ({"e2e": told(10, WHOLE * 1.05)}, "E2E, p50"),
        ({"e2e": Distribution()}, "E2E, p50"),
        ({"done": 9}, "calls that the server answered"),
        ({"sent": 9}, "calls scheduled and sent"),
        ({"events": 10 * TOKENS + 1}, "tokens that the server wrote"),
        ({"tokens_received": 10 * TOKENS - 1}, "tokens by its usage"),
    ],
)
def test_a_figure_that_is_off_is_found(changes: dict[str, Any], row: str) -> None:
    assert row in missed(check_rows.of_times(good(**changes), DELAYS, TOKENS, report()))


def modes(**changed: Results) -> PhaseResults:
    """What a tester that is right tells of each mode; `changed` by name, with _ for - and ."""
    found = []
    for name, mode in MODES.items():
        right = bad(name, mode.code) if mode.code else good(name, itl=told(100, DELAYS.itl * mode.burst))
        found.append(changed.pop(name.replace("-", "_").replace(".", "_"), right))
    assert not changed
    return phase(*found)


@pytest.mark.parametrize(
    "changed",
    [
        {"no_done": good("no-done")},  # taken for done
        {"no_finish": bad("no-finish", "no_done")},  # for something else
        {"cut": bad("cut", "cut", ttft=told(10, 0.02))},  # its latencies are among the others
        {"cut": bad("cut", "cut", itl=told(50, 0.01))},
        {"status_429": bad("status-429", "429 token_rate", refused=0)},  # not counted as refused
        {"status_500": bad("status-500", "500", refused=10)},
        {"silent": bad("silent", "timeout", calls=0)},  # nothing was tried
        {"split": good("split", events=10 * TOKENS - 1)},  # a token was lost
        {"heartbeats": good("heartbeats", events=20 * TOKENS)},  # comments were counted
        {"drops_idle": good("drops-idle", done=9, codes={"cut": 1}, failed=1)},
        {"vllm": good("vllm", e2e=told(9, WHOLE))},
    ],
)
def test_an_answer_taken_for_another_is_found(changed: dict[str, Results]) -> None:
    (name,) = changed
    failed = missed(check_rows.of_modes(MODES, modes(**changed), DELAYS, TOKENS))
    assert [check.partition(":")[0].replace("-", "_") for check in failed][:1] == [name]


@pytest.mark.parametrize(
    ("changed", "row"),
    [
        ({"role_first": good("role-first", ttft=told(10, 0.0005))}, "TTFT, p50, in each good one"),
        ({"heartbeats": good("heartbeats", itl=told(200, 0.004))}, "ITL, p50, in each good one"),
        ({"burst": good("burst", itl=told(110, 0.0))}, "ITL, p50, burst"),
    ],
)
def test_a_role_a_comment_and_a_burst_are_no_arrivals(changed: dict[str, Results], row: str) -> None:
    assert missed(check_rows.of_modes(MODES, modes(**changed), DELAYS, TOKENS)) == [row]


def test_the_first_token_of_a_whole_answer_comes_with_its_last() -> None:
    names = {name: MODES[name] for name in ("plain", "no-finish")}
    right = phase(good("plain", ttft=told(10, WHOLE)), bad("no-finish", "unfinished"))
    assert not missed(check_rows.of_whole(names, right, DELAYS, TOKENS))
    wrong = phase(good("plain"), bad("no-finish", "unfinished"))
    assert missed(check_rows.of_whole(names, wrong, DELAYS, TOKENS)) == ["TTFT, p50, of whole answers"]


EVEN = [number / 400 for number in range(8000)]


@pytest.mark.parametrize(("p99", "holds"), [(0.82, True), (0.75, True), (0.9, True), (0.0219, False), (1.02, False)])
def test_an_open_loops_p99_over_a_freeze_is_known(p99: float, holds: bool) -> None:
    rows = check_rows.of_freeze(good(calls=8000, ttft=told(8000, p99)), DELAYS, 1.0, 20.0, EVEN)
    assert rows[0].expected == "820.0 ms"
    assert rows[0].holds == holds


def test_for_the_arrivals_drawn_it_is_known_more_nearly() -> None:
    exact = check_rows.p99_over_freeze(EVEN, DELAYS.ttft, 1.0, 10.0)
    # who came within the TTFT before the freeze waits for a second, too
    assert exact == pytest.approx(2 * DELAYS.ttft + 1.0 - 0.01 * 20.0, abs=1 / 400)
    near, far = (good(calls=8000, ttft=told(8000, p99)) for p99 in (exact * 1.05, exact * 1.07))
    assert not missed(check_rows.of_freeze(near, DELAYS, 1.0, 20.0, EVEN))
    assert missed(check_rows.of_freeze(far, DELAYS, 1.0, 20.0, EVEN)) == ["open loop: the same, for the arrivals drawn"]


def test_calls_that_were_not_sent_in_the_freeze_are_missed() -> None:
    rows = check_rows.of_freeze(good(calls=7600, ttft=told(7600, 0.84)), DELAYS, 1.0, 20.0, EVEN)
    assert missed(rows) == ["open loop: calls done"]


def test_a_closed_loop_is_labelled_blind_and_must_have_met_the_freeze() -> None:
    blind = good(e2e=Distribution(count=9000, greatest=1.03))
    rows = check_rows.of_blindness(blind, DELAYS, 1.0)
    assert [(row.holds, row.is_blind) for row in rows] == [(True, True), (True, False)]
    assert missed(check_rows.of_blindness(good(), DELAYS, 1.0)) == ["closed loop: longest E2E"]
    seeing = good(ttft=told(9000, 0.8), e2e=Distribution(count=9000, greatest=1.03))
    assert missed(check_rows.of_blindness(seeing, DELAYS, 1.0)) == ["closed loop: TTFT, p99"]


def test_a_cap_that_hides_the_wait_is_found() -> None:
    assert not missed(check_rows.of_cap(good(ttft=told(8000, 0.95)), DELAYS, 1.0, 20.0))
    assert missed(check_rows.of_cap(good(ttft=told(8000, 0.03)), DELAYS, 1.0, 20.0)) == ["few streams: TTFT, p99"]
    unsent = good(scheduled=12, ttft=told(8000, 0.95))
    assert missed(check_rows.of_cap(unsent, DELAYS, 1.0, 20.0)) == ["few streams: calls done"]


@pytest.mark.parametrize(
    ("changes", "left", "row"),
    [
        ({"cancelled": 2}, 3, "calls left on purpose"),
        ({"done": 8}, 3, "the others done"),
        ({}, 2, "clients that left, by the server"),
        ({"failed": 1}, 3, "failures"),
        ({"e2e": told(10, WHOLE)}, 3, "TTFTs and E2Es"),
        ({"ttft": told(7, 0.02)}, 3, "TTFTs and E2Es"),
    ],
)
def test_a_call_left_on_purpose_is_no_failure_and_has_no_end(changes: dict[str, Any], left: int, row: str) -> None:
    right: dict[str, Any] = {"done": 7, "cancelled": 3, "e2e": told(7, WHOLE)}
    assert not missed(check_rows.of_cancels(good(**right), (10, 3), report(left=3)))
    assert missed(check_rows.of_cancels(good(**(right | changes)), (10, 3), report(left=left))) == [row]


STOOD_STILL = Mark(kind="client-bound", phase="check", text="it stood still for 1.00 s from 1.0 s on")
BUSY = Mark(kind="machine-bound", phase="check", text="something waited for a core during 40% of the time")


def test_a_stop_of_the_tool_must_be_named_by_itself() -> None:
    assert not missed(check_rows.of_stop(summary(STOOD_STILL, stalls=[(1.0, 0.99)]), 1.0))
    assert missed(check_rows.of_stop(summary(stalls=[(1.0, 0.99)]), 1.0)) == ["the run is marked"]
    assert missed(check_rows.of_stop(summary(BUSY, stalls=[(1.0, 0.99)]), 1.0)) == ["the run is marked"]
    assert missed(check_rows.of_stop(summary(STOOD_STILL), 1.0)) == ["its longest stop"]


def test_a_runs_marks_are_told_and_other_lateness_only_where_a_time_was_missed() -> None:
    held, failed = check_rows.near("a", 0.02, 0.02), check_rows.near("a", 0.02, 0.03)
    assert check_rows.bounds_of(summary(BUSY), report(), [held]) == [f"machine-bound: {BUSY.text}"]
    assert check_rows.bounds_of(summary(timer_lag_p99=0.0031), report(late=0.002), [held]) == []
    assert check_rows.bounds_of(summary(timer_lag_p99=0.0031), report(late=0.002), [failed]) == [
        "the tool's own timer came 3.1 ms late at the p99",
        "the server itself wrote its tokens 2.0 ms late at the p50",
    ]
    assert check_rows.bounds_of(summary(timer_lag_p99=0.001), report(), [failed]) == []
    note = Mark(kind="censored", phase="check", text="of 10 calls 3 were cut off")
    assert check_rows.bounds_of(summary(note), report(), [failed]) == []


@pytest.mark.parametrize("judge", [check_rows.near, check_rows.exactly])
def test_what_is_not_known_does_not_hold(judge: Callable[..., Row]) -> None:
    assert not judge("a", 0.02, None).holds
