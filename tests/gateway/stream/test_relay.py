from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.transfer import NONE_ALIKE, Alike
from gateway.stream.relay import Relay
from gateway.stream.sse import chunk
from tenancy.call import Usage
from tests.instruments.answers import unchunk
from tests.instruments.memory_sink import MemorySink

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a \\"usage\\" of words"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Started:
    """A relay on a started sink, and the source that it reads from."""

    def __init__(self, *, shows_usage: bool = False, is_framed: bool = True) -> None:
        self.sink = MemorySink(is_framed=is_framed)
        self.sink.is_started = True
        self.last_two = (b"", b"")
        self.alike = 0
        self.forms: list[Alike] = []
        self.aborts = 0
        self.relay = Relay(self.sink, self, shows_usage=shows_usage)

    def pass_alike(self, form: Alike) -> None:
        self.forms.append(form)

    def abort(self) -> None:
        self.aborts += 1

    def feed(self, mode: str, *pieces: bytes) -> None:
        for piece in pieces:
            framed = chunk(piece) if mode == "frames" else piece
            self.last_two = (self.last_two[1], framed)
            if mode == "frames":
                self.relay.frames(framed)
            else:
                self.relay.payload(framed)


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_usage_is_kept_and_hidden_from_a_client_that_did_not_ask(mode: str) -> None:
    made = Started()
    made.feed(mode, TOKEN, FINISH, USAGE, DONE)
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == TOKEN + FINISH + DONE


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_usage_is_shown_to_a_client_that_asked(mode: str) -> None:
    made = Started(shows_usage=True)
    made.feed(mode, TOKEN, FINISH, USAGE, DONE)
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == TOKEN + FINISH + USAGE + DONE


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_usage_in_an_event_that_says_more_is_taken_out_of_it(mode: str) -> None:
    made = Started()
    made.feed(
        mode, b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    )
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'


def test_usage_among_other_events_of_one_piece_is_found() -> None:
    made = Started()
    made.last_two = (b"", chunk(TOKEN + FINISH) + chunk(USAGE + DONE))
    made.relay.frames(made.last_two[1])
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == TOKEN + FINISH + DONE
    assert made.relay.has_finished


def test_frames_pass_untouched() -> None:
    made = Started()
    framed = b"%X;ext=1\r\n%b\r\n" % (len(TOKEN), TOKEN)
    made.relay.frames(framed)
    assert made.sink.sent == [framed]


def test_payload_is_cut_into_whole_events_and_framed_for_the_sink() -> None:
    made = Started()
    whole = TOKEN + FINISH
    for at in range(len(whole)):
        made.relay.payload(whole[at : at + 1])
    assert [unchunk(piece) for piece in made.sink.sent] == [TOKEN, FINISH]


def test_an_unframed_sink_gets_bare_events() -> None:
    made = Started(is_framed=False)
    made.feed("payload", TOKEN[:9], TOKEN[9:])
    assert made.sink.sent == [TOKEN]


@pytest.mark.parametrize(
    ("pieces", "has_finished"),
    [
        ((TOKEN, FINISH, USAGE, DONE), True),
        ((TOKEN, DONE), True),
        ((TOKEN, FINISH), True),
        ((TOKEN, FINISH, USAGE), True),
        ((TOKEN, b'data: {"choices":[{"finish_reason":null}]}\n\n'), False),
        ((TOKEN,), False),
        ((), False),
    ],
)
def test_a_stream_is_finished_only_with_a_finish(pieces: tuple[bytes, ...], has_finished: bool) -> None:
    made = Started()
    made.feed("frames", *pieces)
    assert made.relay.has_finished is has_finished


def test_an_error_that_the_pod_reports_is_known() -> None:
    made = Started()
    made.feed("frames", TOKEN, b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', DONE)
    assert made.relay.has_error


def test_an_event_out_of_bounds_stops_the_attempt() -> None:
    made = Started()
    made.relay.payload(b"data: " + b"x" * (9 * 1024 * 1024))
    assert made.aborts == 1
    assert "more than" in made.relay.overflow


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_events_are_counted_however_many_come_at_once(mode: str) -> None:
    made = Started()
    made.feed(mode, TOKEN, TOKEN + TOKEN + FINISH, DONE)
    assert made.relay.events == 5


# ---- events that differ in their text alone


def spoken(text: str, **more: object) -> bytes:
    """An event as vLLM writes it."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None, **more}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def test_events_like_the_first_one_with_text_go_past_the_relay() -> None:
    made = Started()
    role = spoken("").replace(b'"content":""', b'"role":"assistant","content":""')
    made.feed("frames", role, spoken("Down"))
    (form,) = made.forms
    assert form.before + b"Down" + form.after == spoken("Down") + b"\r\n"
    form.write(chunk(spoken(" the")))
    made.alike += 1
    assert made.sink.payload == role + spoken("Down") + spoken(" the")
    assert made.relay.events == 3


@pytest.mark.parametrize(
    "event",
    [
        spoken(""),
        spoken('said "so'),
        spoken("end", finish_reason="stop"),
        spoken("text").replace(b"}\n", b',"usage":{"prompt_tokens":1,"completion_tokens":1}}\n'),
        b'data: {"error":{"message":"x","content":"y"}}\n\n',
        b'data: {"content":"key":1}\n\n',
        DONE,
        spoken("one") + spoken("two"),
    ],
    ids=["empty", "quoted", "finish", "usage", "error", "key", "done", "two"],
)
def test_no_form_is_made_of_an_event_that_has_more_to_say(event: bytes) -> None:
    made = Started()
    made.feed("frames", event)
    assert made.forms == []


def test_a_null_usage_in_each_event_is_part_of_the_form() -> None:
    made = Started()
    made.feed("frames", spoken("a").replace(b"}\n", b',"usage":null}\n'))
    assert len(made.forms) == 1


def test_a_form_is_looked_for_again_while_forms_fit_and_no_more_where_none_does() -> None:
    made = Started()
    for number in range(100):  # each second another time of creation, as SGLang writes it
        made.feed("frames", spoken("a").replace(b'"created":1', b'"created":%d' % number))
        made.alike += 20
    assert len(made.forms) == 100
    made = Started()
    for number in range(100):
        made.feed("frames", spoken("a", logprobs=number))
    assert len(made.forms) == 8
    assert made.forms[-1] is NONE_ALIKE


KEYS = st.sampled_from(["content", "text", "reasoning", "role", "usage", "finish_reason", "error", "data:"])
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=6) | st.sampled_from(["usage", "stop", "data: [DONE]", ":", '"']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(event=st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), text=st.text(max_size=9), spaced=st.booleans())
def test_what_fits_a_form_is_one_event_without_usage_finish_or_error(
    event: dict[str, object], text: str, spaced: bool
) -> None:
    made = Started()
    made.feed(
        "frames", b"data: " + json.dumps(event, separators=(", ", ": ") if spaced else (",", ":")).encode() + b"\n\n"
    )
    for form in made.forms:
        for said in (text, "usage", "error", "finish_reason", "\\"):
            payload = form.before + json.dumps(said)[1:-1].replace('\\"', "").encode() + form.after[:-2]
            told = json.loads(payload[6:])
            plain = Started()
            plain.feed("frames", payload)
            assert plain.relay.events == 1
            assert plain.relay.usage is None
            assert plain.sink.payload == payload
            assert not plain.relay.has_finished
            assert not plain.relay.has_error
            assert keys_of(told) == keys_of(event)


def keys_of(value: object) -> list[object]:
    """All keys of a JSON value, in order."""
    if isinstance(value, dict):
        return [key for name, inner in value.items() for key in (name, *keys_of(inner))]
    return [key for inner in value for key in keys_of(inner)] if isinstance(value, list) else []


SAID = st.sampled_from(
    [
        TOKEN,
        FINISH,
        USAGE,
        DONE,
        spoken("a"),
        spoken("usage"),
        spoken("b").replace(b"}\n", b',"usage":null}\n'),
        spoken("c").replace(b"}\n", b',"usage":{"prompt_tokens":7,"completion_tokens":1}}\n'),
        b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4},"usage":null}\n\n',
        b'data: {"usage":"none"}\n\n',
        b"event: x\n" + USAGE,
        USAGE.replace(b"\n", b"\r\n"),
        b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":5,"completion_tokens":6}}\n\n',
    ]
)


@given(reads=st.lists(st.lists(st.lists(SAID, min_size=1, max_size=3), min_size=1, max_size=4)), shows=st.booleans())
def test_frames_show_and_hide_what_payload_does(reads: list[list[list[bytes]]], shows: bool) -> None:
    framed, bare = Started(shows_usage=shows), Started(shows_usage=shows)
    for read in reads:
        framed.relay.frames(b"".join(chunk(b"".join(events)) for events in read))
        for events in read:
            for event in events:
                bare.relay.payload(event)
    assert framed.sink.payload == bare.sink.payload
    assert framed.relay.usage == bare.relay.usage
