"""Which call enters which figure, and that no figure hangs on how the calls came in batches."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.messages import Call
from loadtest.scenario import Objectives
from loadtest.summary import Moment, Results
from loadtest.totals import MOST_CODES, OTHER_CODE, Columns, Totals, Within, distribution
from tests.loadtest.calls import a_call, a_cancelled_call, a_refused_call

TOLD = dict.fromkeys(("scheduled", "sent", "never_sent", "clipped", "skipped", "events", "reads"), 0)
NONE = Objectives()


def totals(*calls: Call, objectives: Objectives = NONE, is_streamed: bool = True) -> Totals:
    """Of these calls, in one batch."""
    made = Totals()
    made.take(Columns(calls), objectives, is_streamed)
    return made


def results(*calls: Call, seconds: float = 10.0, **how: Any) -> Results:
    return totals(*calls, **how).results("victim", TOLD, seconds, Within(1.0, 1.0))


def test_a_call_that_is_done_enters_every_latency_from_when_it_was_due() -> None:
    of = results(a_call())
    assert (of.done, of.cancelled, of.failed, of.codes) == (1, 0, 0, {})
    assert of.ttft.greatest == 1.0  # due at 1, first token at 2
    assert of.ttft_from_sending.greatest == 0.75
    assert of.client_wait.greatest == 0.25
    assert of.e2e.greatest == 3.5
    assert of.tpot.greatest == (3.5 - 1.0) / 4  # by the 5 tokens that were reported, not the 4 events


def test_a_call_left_on_purpose_enters_ttft_and_neither_e2e_nor_tpot() -> None:
    of = results(a_cancelled_call())
    assert (of.done, of.cancelled, of.failed, of.codes) == (0, 1, 0, {})
    assert (of.ttft.count, of.ttft_from_sending.count, of.e2e.count, of.tpot.count) == (1, 1, 0, 0)
    assert results(a_cancelled_call(first=None, last=None, events=0)).ttft.count == 0


@pytest.mark.parametrize("code", ["cut", "timeout", "stopped", "error_event overloaded", "usage_mismatch", "no_done"])
def test_a_failed_call_enters_no_latency_however_far_it_came(code: str) -> None:
    of = results(a_call(code=code))
    assert (of.done, of.cancelled, of.failed, of.codes) == (0, 0, 1, {code: 1})
    assert (of.ttft.count, of.ttft_from_sending.count, of.e2e.count, of.tpot.count) == (0, 0, 0, 0)


def test_refusals_are_failures_that_were_answered_429_or_503() -> None:
    calls = [
        a_refused_call(),
        a_refused_call(status=503, code="503 no_capacity"),
        a_refused_call(status=500, code="500"),
        a_refused_call(status=0, code="refused_connection"),
    ]
    of = results(*calls, a_call())
    assert (of.done, of.failed, of.refused) == (1, 4, 2)
    assert of.codes == {"429 token_rate": 1, "500": 1, "503 no_capacity": 1, "refused_connection": 1}


def test_codes_are_told_by_how_many_and_bounded() -> None:
    made = Totals()
    for number in range(3 * MOST_CODES):
        batch = [a_refused_call(code=f"500 {number}"), a_refused_call(code="429 token_rate")]
        made.take(Columns(batch), NONE, True)
    codes = made.results("victim", TOLD, 1.0, Within(1.0, 1.0)).codes
    assert len(codes) == MOST_CODES + 1
    assert list(codes)[:2] == ["429 token_rate", OTHER_CODE]
    assert sum(codes.values()) == made.failed == 6 * MOST_CODES


def test_merging_tenants_keeps_the_codes_bounded_and_loses_none() -> None:
    united = Totals()
    for tenant in range(4):
        united.merge(totals(*(a_refused_call(code=f"{tenant} {number}") for number in range(40))))
    assert len(united.codes) == MOST_CODES + 1
    assert sum(united.codes.values()) == united.failed == 160


def test_calls_cut_off_by_our_own_hand_are_known() -> None:
    assert totals(a_call(code="stopped"), a_call(code="timeout"), a_call(code="cut"), a_call()).cut_off == 2


def test_tokens_are_the_reported_ones_of_done_calls_and_the_events_of_all_others() -> None:
    calls = [a_call(), a_call(completion_tokens=-1), a_cancelled_call(), a_call(code="cut", completion_tokens=5)]
    of = results(*calls)
    assert of.tokens_received == 5 + 4 + 2 + 4
    assert of.tokens_asked == 32
    assert of.tokens_cancelled == 6
    assert of.share_served == pytest.approx(15 / 26)
    assert (of.prompt_tokens_asked, of.prompt_tokens_reported) == (64, 17 * 3)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300), st.booleans()), min_size=1, max_size=40))
def test_tokens_received_and_cancelled_are_the_tokens_asked(sizes: list[tuple[int, int, bool]]) -> None:
    calls = [
        a_cancelled_call(output=output, events=min(left, output))
        if is_left
        else a_call(output=output, events=output, completion_tokens=output)
        for output, left, is_left in sizes
    ]
    of = results(*calls)
    assert of.tokens_received + of.tokens_cancelled == of.tokens_asked == sum(output for output, _, _ in sizes)
    assert of.share_served is None or of.share_served == pytest.approx(1.0)


def test_a_tenant_whose_every_token_was_given_up_has_no_share() -> None:
    assert results(a_cancelled_call(events=0)).share_served is None


@pytest.mark.parametrize(
    ("objectives", "call", "is_good"),
    [
        (Objectives(), a_call(), True),
        (Objectives(ttft=1.0), a_call(), True),
        (Objectives(ttft=0.99), a_call(), False),
        (Objectives(ttft=5.0), a_call(first=None, last=None), False),
        (Objectives(itl=0.7), a_call(), True),  # 2 s over 3 gaps: though the longest is 1 s
        (Objectives(itl=0.6), a_call(), False),
        (Objectives(itl=0.6), a_call(gap_count=0), True),
        (Objectives(tpot=0.625), a_call(), True),
        (Objectives(tpot=0.62), a_call(), False),
        (Objectives(tpot=0.01), a_call(completion_tokens=1), True),
        (Objectives(e2e=3.5), a_call(), True),
        (Objectives(e2e=3.4), a_call(), False),
        (Objectives(ttft=1.0, itl=0.7, tpot=0.7, e2e=4), a_call(), True),
        (Objectives(ttft=1.0, itl=0.7, tpot=0.7, e2e=3), a_call(), False),
        (Objectives(ttft=9), a_cancelled_call(), False),
        (Objectives(), a_call(code="cut"), False),
    ],
)
def test_a_good_call_is_done_and_meets_every_objective(objectives: Objectives, call: Call, is_good: bool) -> None:
    of = results(call, objectives=objectives)
    assert of.good == is_good
    assert of.good_per_second == of.good / 10


def test_a_whole_answer_has_no_time_per_token_and_none_to_be_missed() -> None:
    of = results(a_call(), is_streamed=False, objectives=Objectives(tpot=0.01))
    assert (of.tpot.count, of.e2e.count, of.good) == (0, 1, 1)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_call_of_less_than_two_tokens_has_no_time_per_token(tokens: int) -> None:
    assert results(a_call(completion_tokens=tokens, events=1)).tpot.count == 0


def test_rates_are_of_what_came_within_the_load_and_none_of_no_time() -> None:
    of = results(a_call(), a_call(), seconds=4.0)
    assert (of.done_per_second, of.good_per_second, of.tokens_per_second) == (0.5, 0.5, 2.5)
    assert results(a_call(), seconds=0.0).done_per_second == 0.0
    half = totals(a_call(), a_call()).results("victim", TOLD, 4.0, Within(0.5, 0.2))
    assert (half.done_per_second, half.good_per_second, half.tokens_per_second) == (0.25, 0.25, 0.5)


def test_what_came_within_the_load_is_told_from_the_time_line_to_its_end() -> None:
    line = [Moment(at=10.0, seconds=2.0, done=4, tokens=10), Moment(at=12.0, seconds=2.0, done=4, tokens=30)]
    assert Within.of(line, 14.0) == Within(1.0, 1.0)
    assert Within.of(line, 13.0) == Within(0.75, 25 / 40)
    assert Within.of(line, 9.0) == Within(0.0, 0.0)
    assert Within.of([], 9.0) == Within(0.0, 0.0)


@pytest.mark.parametrize(
    ("count", "told"),
    [(1, ["p50"]), (9, ["p50"]), (10, ["p50", "p90"]), (20, ["p50", "p90", "p95"]), (99, ["p50", "p90", "p95"]),
     (100, ["p50", "p90", "p95", "p99"]), (999, ["p50", "p90", "p95", "p99"]),
     (1000, ["p50", "p90", "p95", "p99", "p999"])],
)  # fmt: skip
def test_a_quantile_is_told_of_samples_enough_for_it(count: int, told: list[str]) -> None:
    histogram = Histogram()
    histogram.add(np.linspace(0.1, 0.2, count))
    of = distribution(histogram)
    found = {"p50": of.p50, "p90": of.p90, "p95": of.p95, "p99": of.p99, "p999": of.p999}
    assert [name for name, value in found.items() if value is not None] == told
    assert (of.count, sum(of.counts)) == (count, count)
    assert of.least == pytest.approx(0.1) and of.greatest == pytest.approx(0.1 if count == 1 else 0.2)


def test_of_nothing_no_figure_is_told() -> None:
    of = distribution(Histogram())
    assert (of.count, of.mean, of.p50, of.greatest, of.buckets) == (0, None, None, None, [])


def plain_call(random: np.random.Generator) -> Call:
    """Any call: done, left, refused or broken off."""
    due = float(random.random() * 50)
    sent, first = due + float(random.exponential(0.01)), float(random.exponential(0.2))
    events = int(random.integers(1, 30))
    times = {"scheduled": due, "sent": sent, "first": sent + first, "last": sent + first + 0.05 * (events - 1)}
    sizes = {"output": 32, "events": events, "gap_count": events - 1, "is_reused": bool(random.integers(2))}
    call = a_call(**times, **sizes, ended=sent + first + 0.05 * events, completion_tokens=int(random.integers(-1, 33)))
    fate = random.integers(6)
    if fate == 0:
        return a_cancelled_call(**times, **sizes, ended=call.ended)
    if fate == 1:
        return a_refused_call(scheduled=due, sent=sent, ended=sent + 0.01, code=f"429 {random.integers(3)}")
    if fate == 2:
        return a_call(**times, **sizes, ended=call.ended, code=str(random.choice(["cut", "stopped", "timeout"])))
    return call


def reference(calls: list[Call], objectives: Objectives) -> dict[str, Any]:
    """The same figures, call by call."""
    done = [call for call in calls if not call.code]
    left = [call for call in calls if call.code == "cancelled"]
    failed = [call for call in calls if call.code not in ("", "cancelled")]

    def tokens(call: Call) -> int:
        return call.completion_tokens if not call.code and call.completion_tokens >= 0 else call.events

    ttft = [call.first - call.scheduled for call in done + left if call.first is not None]
    tpot = [
        (call.ended - call.first) / (tokens(call) - 1) for call in done if call.first is not None and tokens(call) > 1
    ]
    assert objectives.ttft is not None
    return {
        "done": len(done),
        "cancelled": len(left),
        "failed": len(failed),
        "refused": sum(call.status in (429, 503) for call in failed),
        "good": sum(call.first is not None and call.first - call.scheduled <= objectives.ttft for call in done),
        "reused": sum(call.is_reused for call in calls),
        "tokens_asked": sum(call.output for call in calls),
        "tokens_received": sum(map(tokens, calls)),
        "tokens_cancelled": sum(call.output - call.events for call in left),
        "ttft": (len(ttft), math.fsum(ttft)),
        "tpot": (len(tpot), math.fsum(tpot)),
        "e2e": (len(done), math.fsum(call.ended - call.scheduled for call in done)),
        "client_wait": (len(calls), math.fsum(call.sent - call.scheduled for call in calls)),
    }


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.lists(st.integers(0, 119), max_size=12))
def test_calls_come_to_the_same_figures_however_they_are_split_and_merged(
    seed: int, count: int, cuts: list[int]
) -> None:
    random = np.random.default_rng(seed)
    calls = [plain_call(random) for _ in range(count)]
    objectives = Objectives(ttft=0.2)
    whole = totals(*calls, objectives=objectives)
    split, tenants = Totals(), [Totals(), Totals()]
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < count}), count]
    for number, (begin, end) in enumerate(pairwise(edges)):
        for each in (split, tenants[number % 2]):
            each.take(Columns(calls[begin:end]), objectives, True)
    merged = Totals()
    for tenant in tenants:
        merged.merge(tenant)
    expected = reference(calls, objectives)
    for made in (whole, split, merged):
        for name, figure in expected.items():
            found = getattr(made, name)
            if isinstance(found, Histogram):
                assert found.count == figure[0] and found.total == pytest.approx(figure[1]), name
                assert (found.counts == getattr(whole, name).counts).all()
                assert (found.least, found.greatest) == (getattr(whole, name).least, getattr(whole, name).greatest)
            else:
                assert found == figure, name
        assert made.codes == whole.codes and made.cut_off == whole.cut_off
