"""Events like the one before, of which only the text is read: the answer is what reading every one of them makes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream import whole
from gateway.stream.sse import chunk
from gateway.stream.whole import Assembled
from tenancy.call import Kind


class EveryEventRead(Assembled):
    """Learns nothing, so that each event is read as JSON."""

    def _learn(self, event: bytes, envelope: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        pass


class Counted(Assembled):
    """Counts the events that were read as JSON."""

    read = 0

    def _take(self, event: bytes) -> None:
        self.read += 1
        super()._take(event)


def findings(answer: Assembled, stops: list[bool]) -> tuple[Any, ...]:
    """All that an attempt asks of an answer."""
    try:
        body = answer.body
    except (TypeError, AttributeError) as fault:  # parts that are of no answer's form
        body = str(fault).encode()
    return body, answer.usage, answer.events, answer.has_finished, answer.has_error, answer.overflow, stops


def taken(way: type[Assembled], kind: Kind, pieces: list[tuple[bool, bytes]]) -> tuple[Any, ...]:
    """What comes of these pieces (is frames, data), handed over until the answer has enough."""
    stops: list[bool] = []
    answer = way(kind, stop=lambda: stops.append(True))
    for is_frames, data in pieces:
        if stops:
            break
        if is_frames:
            answer.frames(data)
        else:
            answer.payload(data)
    return findings(answer, stops)


# ---- events

HEAD = b'"id":"c","object":"o","created":7,"model":"m"'
FORMS = [  # %b is what stands between a text's quotes
    b'{%s,"choices":[{"index":0,"delta":{"content":"%%b"},"finish_reason":null}]}' % HEAD,
    b'{%s, "choices": [{"index": 0, "delta": {"content": "%%b"}, "logprobs": null, "finish_reason": null}]}' % HEAD,
    b'{"choices":[{"index":1,"delta":{"content":"%b"}}]}',
    b'{"choices":[{"delta":{"role":"assistant","content":"%b"}}],"usage":null}',
    b'{"choices":[{"delta":{"role":["a"],"content":"%b"}}]}',
    b'{"choices":[{"index":0,"delta":{"reasoning_content":"%b","content":null}}],"id":"other"}',
    b'{"choices":[{"index":0,"delta":{"reasoning_content":"r","content":"%b"}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"%b","content":"last"}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"first","content":"%b"}}]}',
    b'{"content":"%b","choices":[{"index":0,"delta":{"content":"y"}}]}',
    b'{"content":"y","choices":[{"index":0,"delta":{"content":"%b"}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"y"}}],"id":"%b"}',
    b'{"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":"stop"}]}',
    b'{"choices":[{"index":0,"delta":{"content":"%b"},"stop_reason":null,"seen":true}],"service_tier":"x"}',
    b'{"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":{"content":[{"token":"t","bytes":[1]}]}}]}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"%b"}},{"index":1,"delta":{"content":"b"}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"%b"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}',
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4},"text":"%b"}',
    b'{"choices":[{"index":0,"text":"%b","finish_reason":null}]}',
    b'{"choices":[{"index":0,"text":"%b","logprobs":{"tokens":["t"],"token_logprobs":[-1.5]}}]}',
    b'{"choices":[{"index":0,"delta":{"content":7},"text":"%b"}]}',
    b'{"error":{"message":"%b"}}',
    b'{"error":null,"choices":[{"index":0,"delta":{"content":"%b"}}]}',
    b'["%b"]',
]
NASTY = [rb"\n", rb"\"", rb"\\", rb"\ud83d\ude00", rb"\ud83d", rb"\ude00", rb"\u00e9", rb"\x", rb"\u12", b"\\"]
NASTY += [b"\xff", b"\xf0\x9f", b"\x98\x80", b"\xed\xa0\x80", b"\x01", b"\x7f", b"\t", b"\r", b"\n", b"\ndata: ", b'"']
NASTY += [
    b'"," content":"',
    b'"} ',
    b' "',
    b'","content":"',
    b'"}}]}\n\ndata: {"choices":[{"index":0,"delta":{"content":"',
]
literals = st.one_of(
    st.text(max_size=8).map(lambda text: json.dumps(text)[1:-1].encode()),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1].encode(errors="replace")),
    st.text("ab ", max_size=300).map(str.encode),
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=2).map(b"x".join),
)
likely = st.one_of(st.text('abé€😀\\"\n\x7f', max_size=4).map(lambda text: json.dumps(text)[1:-1].encode()), literals)
lines = st.sampled_from([b"data: %b\n\n"] * 6 + [b"data:%b\n\n", b"data: %b\r\n\r\n", b"event: x\ndata: %b\nid: 1\n\n"])
between = st.sampled_from(
    [b": ping\n\n", b"data: [DONE]\n\n", b"data: {no JSON\n\n", b"data: 5\n\n", b"\n\n", b"id: 1\n\n"]
)


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """A few events of one form."""
    form, line = draw(st.sampled_from(FORMS)), draw(lines)
    return [line.replace(b"%b", form).replace(b"%b", text) for text in draw(st.lists(likely, min_size=1, max_size=6))]


streams = st.lists(st.one_of(runs(), runs(), runs(), between.map(lambda event: [event])), max_size=6).map(
    lambda many: [event for run in many for event in run]
)
kinds = st.sampled_from([Kind.CHAT, Kind.COMPLETION])


def one_by_one(events: list[bytes]) -> list[tuple[bool, bytes]]:
    return [(False, event) for event in events]


@given(kinds, streams)
def test_event_by_event_the_answer_is_what_reading_each_makes(kind: Kind, events: list[bytes]) -> None:
    assert taken(Assembled, kind, one_by_one(events)) == taken(EveryEventRead, kind, one_by_one(events))


@given(kinds, streams, st.data())
def test_wherever_the_body_is_cut_the_answer_is_the_same(kind: Kind, events: list[bytes], data: st.DataObject) -> None:
    body = b"".join(events)
    edges = [0, *sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=12))), len(body)]
    pieces = [(False, body[start:end]) for start, end in itertools.pairwise(edges)]
    assert taken(Assembled, kind, pieces) == taken(EveryEventRead, kind, pieces)


@given(kinds, streams, st.data())
def test_in_frames_the_answer_is_the_same(kind: Kind, events: list[bytes], data: st.DataObject) -> None:
    """One chunk a read or several, one event a chunk or several; and perhaps frames are given up on the way."""
    groups = data.draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), max_size=len(events)))
    given_up_after = data.draw(st.one_of(st.none(), st.integers(0, len(groups))))
    rest = iter(events)
    pieces: list[tuple[bool, bytes]] = []
    payloads: list[tuple[bool, bytes]] = []
    for number, group in enumerate(groups):
        chunks = [b"".join(itertools.islice(rest, size)) for size in group]
        if not any(chunks):
            break  # a wire passes nothing on that is empty
        is_frames = given_up_after is None or number < given_up_after
        pieces.append((is_frames, b"".join(map(chunk, chunks)) if is_frames else b"".join(chunks)))
        payloads.append((False, b"".join(chunks)))
    assert taken(Assembled, kind, pieces) == taken(EveryEventRead, kind, payloads)


@pytest.mark.parametrize("line_ends", [b"\n\n\n", b"\r\r\r", b"\r\n\r\n\r\n", b"\n\r\r", b"\n\r\n\r\n"])
def test_line_ends_too_many_at_a_frames_end_change_nothing(line_ends: bytes) -> None:
    event = b"data: " + FORMS[0] % b"x"
    payloads = [event + b"\n\n", event + b"\n\n", event + line_ends, event + b"\n\n", b"\n" + event + b"\n\n"] * 2
    frames = [(True, chunk(payload)) for payload in payloads]
    assert taken(Assembled, Kind.CHAT, frames) == taken(EveryEventRead, Kind.CHAT, one_by_one(payloads))


# ---- logprobs, kept as JSON

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["token", "bytes"]), inner, max_size=2),
    max_leaves=5,
)
items = st.one_of(values, st.fixed_dictionaries({"index": st.sampled_from([None, 0, 1]), "token": values}))
logprobs = st.dictionaries(
    st.sampled_from(["content", "refusal", "tokens"]), st.one_of(st.lists(items, max_size=3), values), max_size=3
)


@given(kinds, st.lists(logprobs, max_size=6))
def test_logprobs_are_what_they_are_as_objects(kind: Kind, deltas: list[dict[str, Any]]) -> None:
    """To the byte, also where lists change to other things, and items have an index."""
    pieces = [{"choices": [{"index": 0, "delta": {"content": "x"}, "text": "x", "logprobs": one}]} for one in deltas]
    events = one_by_one([b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces])
    kept_as_json = taken(Assembled, kind, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.stream.whole._merge_logprobs", whole._merge)
        assert kept_as_json == taken(Assembled, kind, events)


# ---- that it is used, and its bounds


def counted(kind: Kind, pieces: list[tuple[bool, bytes]]) -> int:
    answer = Counted(kind, stop=lambda: None)
    for is_frames, data in pieces:
        if is_frames:
            answer.frames(data)
        else:
            answer.payload(data)
    return answer.read


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (Kind.CHAT, FORMS[0]),
        (Kind.CHAT, FORMS[1]),
        (Kind.CHAT, FORMS[3]),
        (Kind.CHAT, FORMS[5]),
        (Kind.COMPLETION, FORMS[19]),
    ],
)
@pytest.mark.parametrize("line", [b"data: %b\n\n", b"data:%b\r\n\r\n"])
@pytest.mark.parametrize("is_frames", [True, False])
def test_of_a_hundred_events_of_one_form_two_are_read(kind: Kind, form: bytes, line: bytes, is_frames: bool) -> None:
    texts = [json.dumps("é\n" * number, ensure_ascii=number % 2 == 0)[1:-1].encode() for number in range(100)]
    events = [line.replace(b"%b", form).replace(b"%b", text) for text in texts]
    pieces = [(is_frames, chunk(event) if is_frames else event) for event in events]
    assert counted(kind, pieces) == 2
    assert taken(Assembled, kind, pieces) == taken(EveryEventRead, kind, pieces)


def test_choices_that_take_turns_are_read_and_stay_apart() -> None:
    events = [
        b"data: %b\n\n" % (FORMS[2] % text).replace(b'"index":1', b'"index":%d' % (number % 2))
        for number, text in enumerate([b"a", b"b", b"c", b"d"])
    ]
    assert counted(Kind.CHAT, one_by_one(events)) == 4
    body = json.loads(taken(Assembled, Kind.CHAT, one_by_one(events))[0])
    assert [choice["message"]["content"] for choice in body["choices"]] == ["ac", "bd"]


def test_the_bound_of_an_answer_holds_for_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    event = b"data: " + FORMS[0] % b"a text" + b"\n\n"
    monkeypatch.setattr(whole, "MAX_BYTES", 5 * len(event))
    frames = [(True, chunk(event))]
    *_, overflow, stops = taken(Assembled, Kind.CHAT, 5 * frames)
    assert (overflow, stops) == ("", [])
    found = taken(Assembled, Kind.CHAT, 6 * frames)
    assert found == taken(EveryEventRead, Kind.CHAT, one_by_one(6 * [event]))
    assert "more than" in found[-2]
