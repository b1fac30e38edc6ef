from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.stream.whole import Assembled, as_stream
from tenancy.call import Kind, Usage


def assembled(kind: Kind, *events: dict[str, Any], done: bool = True) -> Assembled:
    whole = Assembled(kind, stop=lambda: None)
    for event in events:
        whole.payload(b"data: " + json.dumps(event).encode() + b"\n\n")
    if done:
        whole.payload(b"data: [DONE]\n\n")
    return whole


def chat(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]}


def test_a_chat_answer_is_what_the_pod_would_have_given_whole() -> None:
    whole = assembled(
        Kind.CHAT,
        chat({"role": "assistant", "content": None}),
        chat({"content": "Hello"}),
        chat({"content": " there"}),
        chat({}, "stop"),
        {"id": "c1", "created": 9, "model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
    )
    assert json.loads(whole.body) == {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    assert whole.usage == Usage(3, 2)
    assert whole.has_finished


def test_tool_calls_are_joined_by_their_index() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    whole = assembled(
        Kind.CHAT,
        chat({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        chat({"tool_calls": [call(0, arguments='{"x"')]}),
        chat({"tool_calls": [call(0, arguments=":1}")]}),
        chat(
            {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}
        ),
        chat({}, "tool_calls"),
    )
    assert json.loads(whole.body)["choices"][0]["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_several_choices_and_logprobs_stay_apart_and_in_order() -> None:
    whole = assembled(
        Kind.CHAT,
        chat({"content": "b"}, index=1, logprobs={"content": [{"token": "b"}]}),
        chat({"content": "a"}, index=0, logprobs={"content": [{"token": "a"}]}),
        chat({"content": "B"}, "length", index=1, logprobs={"content": [{"token": "B"}]}),
        chat({}, "stop", index=0),
    )
    first, second = json.loads(whole.body)["choices"]
    assert (first["message"]["content"], first["finish_reason"]) == ("a", "stop")
    assert (second["message"]["content"], second["finish_reason"]) == ("bB", "length")
    assert [one["token"] for one in second["logprobs"]["content"]] == ["b", "B"]


def test_a_completion_has_text() -> None:
    piece = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    whole = assembled(
        Kind.COMPLETION,
        {**piece, "choices": [{"index": 0, "text": "one ", "finish_reason": None}]},
        {**piece, "choices": [{"index": 0, "text": "two", "finish_reason": "length"}]},
    )
    answer = json.loads(whole.body)
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "finish_reason": "length", "text": "one two"}]


def test_a_stream_without_a_finish_is_not_finished() -> None:
    assert not assembled(Kind.CHAT, chat({"content": "Hel"}), done=False).has_finished


def test_an_error_event_is_known() -> None:
    assert assembled(Kind.CHAT, chat({"content": "Hel"}), {"error": {"message": "broke"}}, done=False).has_error


@pytest.mark.parametrize(
    "event",
    [
        b"{not json}",
        b"5",
        b'{"choices":5}',
        b'{"choices":[null]}',
        b'{"choices":[{"delta":5}]}',
        b'{"choices":[{"index":[],"delta":{}}]}',
        b'{"choices":[{"delta":{"tool_calls":[5,{"index":0}]}}]}',
    ],
)
def test_what_is_no_piece_of_an_answer_stops_the_attempt(event: bytes) -> None:
    stopped: list[bool] = []
    whole = Assembled(Kind.CHAT, stop=lambda: stopped.append(True))
    whole.payload(b"data: " + event + b"\n\n")
    assert stopped == [True]
    assert "no piece of an answer" in whole.overflow


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def whole_chat(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def events(stream: bytes | None) -> list[Any]:
    assert stream is not None
    *pieces, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(piece.removeprefix(b"data: ")) for piece in pieces]


def test_a_whole_answer_goes_out_as_a_stream_of_one_event() -> None:
    (event,) = events(as_stream(Kind.CHAT, whole_chat(content="Hi", tool_calls=[CALL]), shows_usage=False))
    assert event["object"] == "chat.completion.chunk"
    assert event["choices"][0]["delta"] == {"role": "assistant", "content": "Hi", "tool_calls": [{**CALL, "index": 0}]}
    assert event["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in event


def test_its_usage_is_an_event_of_its_own_for_who_asked() -> None:
    _, last = events(as_stream(Kind.CHAT, whole_chat(content="Hi"), shows_usage=True))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": 5}', b'{"choices": [{"text": "x"}]}'])
def test_what_is_no_answer_makes_no_stream(body: bytes) -> None:
    assert as_stream(Kind.CHAT, body, shows_usage=False) is None
