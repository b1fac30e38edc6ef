"""What counts as a wrong answer: missing tokens, changed events, refusals that were none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.side_by_side.checks import (
    Comparison,
    KeptAnswer,
    WrongError,
    decoded,
    difference,
    expect_done,
    expect_refused,
)
from loadtest.answer import Answer
from loadtest.client import Flight

REQUEST = b'{"model": "tiny"}'


def an_event(text: str, **more: Any) -> bytes:
    event = {"id": "chatcmpl-1", "created": 1, "choices": [{"index": 0, "delta": {"content": text}}], **more}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def a_stream(*texts: str, end: bytes = b"data: [DONE]\n\n", **more: Any) -> bytes:
    finish = b'data: {"choices": [{"index": 0, "delta": {"content": "."}, "finish_reason": "length"}]}\n\n'
    return b"".join(an_event(text, **more) for text in texts) + finish + end


def a_flight(body: bytes, *, status: int = 200) -> Flight:
    answer = Answer(usage="exact")
    answer.status, answer.is_event_stream = status, status == 200
    flight = Flight(0.0, b"", answer, lambda _: None)
    answer.take(body, 1.0)
    flight.code = answer.end(1.0, is_whole=True)
    return flight


def test_streams_with_all_their_tokens_are_done() -> None:
    expect_done("gate", [a_flight(a_stream("a", "b"))] * 3, tokens=3)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (a_stream("a"), "1 × 2 tokens"),
        (a_stream("a", "b", "c"), "1 × 4 tokens"),
        (a_stream("a", "b", end=b""), "1 × no_done"),
        (an_event("a") + an_event("b") + an_event("c") + b"data: [DONE]\n\n", "1 × unfinished"),
    ],
)
def test_one_stream_among_many_that_is_not_whole_is_told(body: bytes, told: str) -> None:
    with pytest.raises(WrongError, match=f"gate: 1 of 10 calls for 3 tokens were not done: {told}"):
        expect_done("gate", [*([a_flight(a_stream("a", "b"))] * 9), a_flight(body)], tokens=3)


def test_refusals_are_counted_and_few_may_have_been_admitted() -> None:
    refused = a_flight(b'{"error": {"code": "request_rate"}}', status=429)
    assert expect_refused("gate", [refused] * 5 + [a_flight(a_stream())], admitted=1) == 5


def test_a_gate_that_admits_what_it_should_refuse_is_wrong() -> None:
    with pytest.raises(WrongError, match="0 of 2 calls"):
        expect_refused("gate", [a_flight(a_stream())] * 2, admitted=1)


def test_an_error_is_no_refusal() -> None:
    with pytest.raises(WrongError, match="502"):
        expect_refused("gate", [a_flight(b"{}", status=502)], admitted=1)


def test_the_same_events_under_other_ids_are_alike() -> None:
    one, other = a_stream("a"), a_stream("a", id="chatcmpl-2", created=2)
    assert difference(decoded(one), decoded(other)) == ""


def test_comments_and_framing_make_no_difference() -> None:
    body = a_stream("a")
    assert difference(decoded(body), decoded(b": ping\n\n" + body.replace(b"\n", b"\r\n"))) == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (a_stream("x", "b"), "event 0"),
        (a_stream("b", "a"), "event 0"),
        (a_stream("a", "b", end=b""), "4 events and are 3"),
        (a_stream("a", "b", model="other"), "event 0"),
        (a_stream("a", "b", end=b'data: {"usage": {}}\n\ndata: [DONE]\n\n'), "event 3"),
        (a_stream("a"), "event 1"),
    ],
)
def test_a_planted_difference_is_found(changed: bytes, told: str) -> None:
    comparison = Comparison()
    comparison.take("direct", {REQUEST: a_stream("a", "b")})
    comparison.take("gate", {REQUEST: changed})
    with pytest.raises(WrongError, match="gate changed an answer") as wrong:
        comparison.settle()
    assert told in str(wrong.value)


def test_an_answer_waits_for_its_reference_and_is_counted() -> None:
    comparison = Comparison()
    comparison.take("gate", {REQUEST: a_stream("a")})
    comparison.settle()
    assert comparison.compared == {}
    comparison.take("direct", {REQUEST: a_stream("a")})
    comparison.settle()
    assert comparison.compared == {"gate": 1, "direct": 1}


def test_answers_that_were_never_compared_are_wrong_at_the_end() -> None:
    comparison = Comparison()
    comparison.take("gate", {REQUEST: a_stream("a")})
    with pytest.raises(WrongError, match="1 answers"):
        comparison.end()


def test_a_whole_answer_is_alike_without_its_empty_values() -> None:
    said = b'{"id": "1", "choices": [{"message": {"content": "a"}}]}'
    more = b'{"id": "2", "choices": [{"message": {"content": "a", "tool_calls": []}, "logprobs": null}]}'
    other = b'{"id": "1", "choices": [{"message": {"content": "b"}}]}'
    assert difference(decoded(said), decoded(more)) == ""
    assert difference(decoded(said), decoded(other)) != ""


def test_a_kept_answer_has_its_bytes() -> None:
    answer = KeptAnswer(2)
    answer.status, answer.is_event_stream = 200, True
    for part in (b"data: {", b"}\n\n"):
        answer.take(part, 1.0)
    assert answer.body == b"data: {}\n\n"
