"""What is made of an answer's bytes: the same as a plain reading of whole events makes of it, however they are cut.

The line to distrust most is the one that counts an event without parsing it, since it looks like the one before. So the
streams here are made of events that look alike, and of ones that only seem to: with bytes put in where the text stands
that end the string, the event or the stream, or that are no text at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadtest.answer import MOST_CODE, MOST_ERROR_BYTES, MOST_RAW_GAPS, MOST_REST_BYTES, MOST_WHOLE_BYTES, Answer
from loadtest.histogram import Histogram
from tests.instruments.answers import events_of

MARK = "@@"
"""Stands where the text of an event is."""


# ---- the plain reading


@dataclass
class Plain:
    """An answer, read the plain way: at each read all that has come is taken apart anew, and every event is parsed."""

    events: int = 0
    reads: int = 0
    first: float | None = None
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)
    usage: tuple[int, int] = (-1, -1)
    error: str = ""
    is_done: bool = False
    _finishes: int = 0
    _choices: int = 1
    _seen: int = 0

    def look(self, so_far: bytes, now: float) -> None:
        before = self.events
        data = [data for _, data in events_of(so_far) if data]
        for each in data[self._seen :]:
            self._take(each)
        self._seen = len(data)
        if self.events > before:
            self.reads += 1
            if self.first is None:
                self.first = now
            else:
                self.gaps.append(now - self.last)
            self.last = now

    def _take(self, data: bytes) -> None:
        if self.is_done:
            return
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            self.error = self.error or "malformed"
            return
        if chunk.get("error") is not None:
            self.error = self.error or f"error_event {chunk['error'].get('code', '')}".strip()
        usage = chunk.get("usage") or {}
        self.usage = usage.get("prompt_tokens", self.usage[0]), usage.get("completion_tokens", self.usage[1])
        has_text = False
        for choice in chunk.get("choices") or []:
            self._choices = max(self._choices, choice.get("index", 0) + 1)
            self._finishes += bool(choice.get("finish_reason"))
            delta = choice.get("delta") or {}
            told = [delta.get(key) for key in ("content", "reasoning", "reasoning_content", "tool_calls", "refusal")]
            has_text = has_text or any([choice.get("text"), *told])
        self.events += has_text

    def code(self, *, is_whole: bool) -> str:
        if self.error:
            return self.error
        if not self.is_done:
            return "cut" if not is_whole else "no_done" if self._finishes >= self._choices else "unfinished"
        if self._finishes < self._choices:
            return "unfinished"
        return "usage_mismatch" if 0 <= self.usage[1] < self.events else ""


# ---- events


def _chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


SHAPES: dict[str, dict[str, Any]] = {
    "vllm": _chunk({"content": MARK}),
    "vllm, second choice": {"choices": [{"index": 1, "delta": {"content": MARK}, "finish_reason": None}]},
    "vllm, running usage": _chunk({"content": MARK}, usage={"prompt_tokens": 3, "completion_tokens": 99}),
    "reasoning": _chunk({"reasoning": MARK}),
    "reasoning_content": _chunk({"reasoning_content": MARK}),
    "sglang": _chunk({"role": None, "content": MARK, "reasoning_content": None, "tool_calls": None}, usage=None),
    "llama.cpp": {
        "choices": [{"finish_reason": None, "index": 0, "delta": {"content": MARK}}],
        "created": 1,
        "system_fingerprint": "b1",
        "object": "chat.completion.chunk",
        "timings": {"cache_n": 0, "predicted_ms": 1.25},
    },
    "openai": _chunk({"content": MARK, "refusal": None}, service_tier="default", usage=None, obfuscation="x8Qh"),
    "refusal": _chunk({"refusal": MARK}),
    "completions": {"choices": [{"text": MARK, "index": 0, "logprobs": None, "finish_reason": None}]},
    "a call's arguments": _chunk({"tool_calls": [{"index": 0, "function": {"arguments": MARK}}]}),
    "a call's name": _chunk({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": MARK}}]}),
    "two choices at once": {
        "choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": MARK}}],
    },
    "log probabilities": {
        "choices": [
            {
                "index": 0,
                "logprobs": {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}]},
                "delta": {"content": MARK},
            }
        ],
    },
    "content elsewhere": {"object": "content", "note": {"content": MARK}, "choices": [{"delta": {"content": "b"}}]},
    "content elsewhere, and no text": {"note": {"content": MARK}, "choices": [{"delta": {"content": ""}}]},
    "content twice": {"choices": [{"delta": {"content": MARK}, "text": ""}]},
    "with an error": {"choices": [{"delta": {"content": MARK}}], "error": {"code": "odd"}},
    "finished": {"choices": [{"index": 0, "delta": {"content": MARK}, "finish_reason": "length"}]},
    "role": _chunk({"role": "assistant", "content": ""}),
    "role with null": _chunk({"role": "assistant", "content": None}),
    "empty": _chunk({}),
    "finish": {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    "finish of the second choice": {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]},
    "usage": {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}},
    "usage of many": {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 500}},
    "error": {"error": {"code": "engine_dead", "message": "…"}},
    "no choices": {"object": "ping"},
}
ALIKE = [name for name, shape in SHAPES.items() if MARK in json.dumps(shape)]
OTHERS = [name for name in SHAPES if name not in ALIKE]
WHOLE_TEXTS = (
    " word", "", " ", '"', "\\", 'say "hi"', "a\\", "line\nbreak", "tab\t", "naïve", "六", "👍🏽", "\u2028", "\x7f",
    "\u00a0", '"},"finish_reason":"stop"', '"}}],"usage":{"completion_tokens":9}}', "data: [DONE]",
    "\n\ndata: [DONE]\n\n", MARK,
)  # fmt: skip
RAW_TEXTS = (
    # strings that end too soon, and what follows them is JSON, or is not
    b'"', b'""', b'a"', b'","x":"', b'a","finish_reason":"stop","x":"', b'a"},"finish_reason":"stop","x":{"y":"',
    b'a"},"finish_reason":"stop"},{"index":0,"delta":{"content":"b', b'a"},{"index":3,"text":"b', b'a","content":"',
    b'a"}}],"usage":{"completion_tokens":1},"z":[{"z":{"z":"',
    # escapes: good ones, bad ones, and ones that swallow the quote
    b"\\n", b"\\u00e9", b"\\ud83d", b"\\ud83d\\ude00", b"\\x", b"\\u12", b"a\\", b"\\\\", b"a\\\\\\", b'\\"',
    # what no string may hold
    b"\xff", b"caf\xc3", b"\xed\xa0\x80", b"\xc3\xa9", b"\x00", b"\x1f", b"\t", b"a\nb", b"a\n\nb",
    b"\n\ndata: [DONE]\n\n", b"a\n\ndata: {}\n\ndata: b", b"a\ndata: b", b"\n: c\n",
)  # fmt: skip


def event(shape: str, text: bytes, *, is_spaced: bool = False, lead: bytes = b"data: ", end: bytes = b"\n") -> bytes:
    """One event of that shape; `text` are the very bytes between the quotes."""
    data = json.dumps(SHAPES[shape], separators=None if is_spaced else (",", ":")).encode()
    return lead.replace(b"\n", end) + data.replace(MARK.encode(), text) + end * 2


X, FINISH, DONE = event("vllm", b"x"), event("finish", b""), b"data: [DONE]\n\n"


def quoted(text: str, *, is_ascii: bool) -> bytes:
    return json.dumps(text, ensure_ascii=is_ascii)[1:-1].encode()


texts = st.one_of(st.sampled_from(WHOLE_TEXTS), st.text(max_size=8), st.text('abc d"\\\n', max_size=4)).flatmap(
    lambda text: st.booleans().map(lambda is_ascii: quoted(text, is_ascii=is_ascii))
)
raw_texts = st.one_of(st.sampled_from(RAW_TEXTS), st.binary(max_size=3))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Events of an answer, and how their lines end."""
    end = draw(st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"]))
    form: dict[str, Any] = {
        "is_spaced": draw(st.integers(0, 3)) == 0,
        "lead": draw(st.sampled_from([b"data: ", b"data: ", b"data:", b"event: message\nid: 7\ndata: ", b":\ndata: "])),
        "end": end,
    }
    shapes = draw(st.lists(st.sampled_from(ALIKE), min_size=1, max_size=2))
    kinds = ["text"] * 6 + ["raw", "other", "comment", "done", "long id"]
    events = [event(draw(st.sampled_from(["role", "role with null"])), b"", **form)] if draw(st.booleans()) else []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=14)):
        if kind == "text":
            events.append(event(draw(st.sampled_from(shapes)), draw(texts), **form))
        elif kind == "raw" and end == b"\n":
            events.append(event(draw(st.sampled_from(shapes)), draw(raw_texts), **form))
        elif kind == "other":
            events.append(event(draw(st.sampled_from(OTHERS)), b"", **form))
        elif kind == "comment":
            events.append(b": hb" + end * draw(st.integers(1, 2)))
        elif kind == "done":
            events.append(b"data: [DONE]" + end * 2)
        elif kind == "long id":
            events.append(event(shapes[0], b"x", **form | {"lead": b"id: 12\n" + form["lead"]}))
    if draw(st.booleans()):
        events += [event("finish", b"", **form), event("usage of many", b"", **form), b"data: [DONE]" + end * 2]
    return events, end


def compare(reads: list[bytes], *, is_whole: bool, end: bytes = b"\n") -> Answer:
    """Read them one after the other, a second apart, both ways."""
    answer, plain = Answer(), Plain()
    answer.status, answer.is_event_stream = 200, True
    so_far = b""
    for number, read in enumerate(reads):
        so_far += read
        answer.take(read, float(number))
        # Whether a CR is followed by an LF is not known before it is: until then it ends no line here.
        plain.look(so_far.removesuffix(b"\r") if end == b"\r\n" else so_far, float(number))
    said = answer.end(float(len(reads)), is_whole=is_whole)
    shown = f"{reads}"
    assert answer.events == plain.events, shown
    assert (answer.reads, answer.first, list(answer.gaps)) == (plain.reads, plain.first, plain.gaps), shown
    assert plain.first is None or answer.last == plain.last, shown
    assert (answer.prompt_tokens, answer.completion_tokens) == plain.usage, shown
    assert said == plain.code(is_whole=is_whole), shown
    assert answer.gap_count == len(plain.gaps) and answer.longest_gap == max(plain.gaps, default=0.0), shown
    return answer


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces, none of them empty."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:stop] for begin, stop in pairwise(edges)]


@given(stream=streams(), is_whole=st.booleans())
def test_an_event_a_read_is_read_as_plainly_as_can_be(stream: tuple[list[bytes], bytes], is_whole: bool) -> None:
    compare(stream[0], is_whole=is_whole, end=stream[1])


@given(
    stream=streams(), places=st.lists(st.integers(0, 10_000), max_size=20), keeps=st.lists(st.booleans(), max_size=20)
)
def test_wherever_the_bytes_are_cut_the_answer_is_the_same(
    stream: tuple[list[bytes], bytes], places: list[int], keeps: list[bool]
) -> None:
    events, end = stream
    edges, at = [], 0
    for each, is_kept in zip(events, [*keeps, *[False] * len(events)], strict=False):
        at += len(each)
        edges += [at] if is_kept else []
    compare(cut(b"".join(events), [*places, *edges]), is_whole=True, end=end)


@given(stream=streams())
def test_byte_by_byte_it_is_the_same(stream: tuple[list[bytes], bytes]) -> None:
    data = b"".join(stream[0])[:300]
    compare([data[at : at + 1] for at in range(len(data))], is_whole=False, end=stream[1])


@pytest.mark.parametrize("shape", ALIKE)
@pytest.mark.parametrize("first", [b"x", b"", b"\\n", b"\xe5\x85\xad", b'\\"', b"long, long, long text"])
def test_no_text_put_where_a_text_was_is_taken_for_what_it_is_not(shape: str, first: bytes) -> None:
    """All pairs: one event that may be learnt from, and one that may be taken for it."""
    whole = [quoted(text, is_ascii=is_ascii) for text in WHOLE_TEXTS for is_ascii in (True, False)]
    for text in (*whole, *RAW_TEXTS):
        learnt, other = event(shape, first), event(shape, text)
        compare([learnt, other, learnt], is_whole=False)
        compare([learnt, other + learnt], is_whole=False)
        compare([learnt, other[:-2], other[-2:], learnt], is_whole=False)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("shape", ALIKE)
def test_two_events_that_came_in_one_read_are_two(shape: str, end: bytes) -> None:
    one = event(shape, b"x", end=end)
    compare([one, one + one, one, one[:7], one[7:] + one], is_whole=True, end=end)


def test_what_comes_after_a_cut_event_is_part_of_it_even_if_it_looks_whole() -> None:
    for begun in (X[:20], b": ", b"data:", b"event: x\nda"):
        compare([X, begun, X, X], is_whole=False)


def test_what_comes_with_a_text_is_not_passed_over_when_the_text_comes_again() -> None:
    running, finished, second = (
        event("vllm, running usage", b"x"),
        event("finished", b"x"),
        event("vllm, second choice", b"x"),
    )
    assert compare([running, event("usage", b""), running], is_whole=False).completion_tokens == 99
    compare([second, finished, finished, DONE], is_whole=True)


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\n\n", b"\r\r", b"\n\n\r\n", b"\n\n\n"])
def test_a_blank_line_ends_an_event_whichever_line_ends_it_is_made_of(blank: bytes) -> None:
    one = X.rstrip() + blank
    end = b"\r" if blank.endswith(b"\r") else b"\r\n"
    assert compare([one, one + one, one + X, X + one], is_whole=False, end=end).events == 7


@given(text=st.text(max_size=12), other=st.text(max_size=12), is_ascii=st.booleans())
@example(text="a", other="\\", is_ascii=True)
@example(text="\\", other='"', is_ascii=False)
def test_any_text_is_one_event_unless_it_is_empty(text: str, other: str, is_ascii: bool) -> None:
    reads = [event("vllm", quoted(each, is_ascii=is_ascii)) for each in (text, other, "x", text)]
    assert compare(reads, is_whole=False).events == sum(bool(each) for each in (text, other, "x", text))


def test_most_events_that_look_alike_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    take_event = Answer._take_event

    def counting(answer: Answer, event: bytes, now: float) -> None:
        parsed.append(event)
        take_event(answer, event, now)

    monkeypatch.setattr(Answer, "_take_event", counting)
    for shape in ("vllm", "sglang", "llama.cpp", "openai", "completions", "reasoning", "a call's arguments"):
        parsed.clear()
        texts = [b" a", b" word", b"\xe5\x85\xad", b".", b" more, and more"] * 4
        assert compare([event(shape, text) for text in texts], is_whole=False).events == len(texts)
        assert len(parsed) == 1, shape
        compare([event(shape, b"a"), event(shape, b"b") * 9], is_whole=False)  # nor those that came together
        assert len(parsed) == 2, shape


def test_after_done_nothing_counts_whether_it_comes_with_it_or_later() -> None:
    one, done = event("vllm", b"x"), b"data: [DONE]\n\n"
    for reads in ([one, done, one], [one, done + one], [one + done + one], [one, done, event("error", b"")]):
        answer = compare(reads, is_whole=True)
        assert answer.events == 1
        assert answer.done_at == (1.0 if len(reads) > 1 else 0.0)


def test_done_is_when_it_came_and_not_when_the_connection_ended() -> None:
    answer = stream_of(event("finished", b"x"), b"data: [DONE]\n\n")
    assert answer.end(99.0, is_whole=False) == ""
    assert answer.done_at == 1.0


# ---- how it ends


def stream_of(*reads: bytes, **options: Any) -> Answer:
    answer = Answer(**options)
    answer.status, answer.is_event_stream = 200, True
    for number, read in enumerate(reads):
        answer.take(read, float(number))
    return answer


def whole_of(body: bytes, status: int = 200, **options: Any) -> Answer:
    answer = Answer(**options)
    answer.status = status
    answer.take(body[:3], 1.0)
    answer.take(body[3:], 1.5)
    return answer


def usage(tokens: object) -> bytes:
    return b'data: {"choices":[],"usage":{"completion_tokens":%b}}\n\n' % json.dumps(tokens).encode()


def error(**fields: object) -> bytes:
    return b"data: " + json.dumps({"error": fields}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("reads", "is_whole", "code"),
    [
        ([X, FINISH, DONE], True, ""),
        ([X, FINISH, DONE], False, ""),  # whoever read [DONE] reads no further
        ([FINISH, DONE], True, ""),  # an answer without text is one
        ([event("finished", b"x"), DONE], True, ""),
        ([X, FINISH, b"data:[DONE]\n\n"], True, ""),
        ([X, FINISH, b"data: [DONE] \r\n\r\n"], True, ""),
        ([X, FINISH], True, "no_done"),
        ([X, FINISH, b"data: [DONE]\n"], True, "no_done"),
        ([X, FINISH], False, "cut"),
        ([X], True, "unfinished"),
        ([X], False, "cut"),
        ([X, DONE], True, "unfinished"),
        ([DONE], True, "unfinished"),
        ([], True, "unfinished"),
        ([], False, "cut"),
        ([X, b"data: {\n\n", FINISH, DONE], True, "malformed"),
        ([X, b"data: []\n\n", FINISH, DONE], True, "malformed"),
        ([X, b"data: null\n\n", DONE], True, "malformed"),
        ([X, b'data: {"choices":' + b"[" * 300_000 + b"\n\n", DONE], True, "malformed"),
        ([X, b'data: {"choices":5}\n\n', DONE], True, "malformed"),
        ([X, b'data: {"choices":[{"delta":"x"}]}\n\n', DONE], True, "malformed"),
        ([X, error(code="engine_dead"), FINISH, DONE], True, "error_event engine_dead"),
        ([X, error(code="engine_dead"), b"data: {\n\n"], False, "error_event engine_dead"),
        ([X, error(code="engine_dead"), error(code="and_gone")], True, "error_event engine_dead"),
        ([X, error(code=500, type="InternalServerError"), DONE], True, "error_event InternalServerError"),
        ([X, error(code=None, type="server error!"), DONE], True, "error_event server_error_"),
        ([X, error(code=500)], True, "error_event 500"),
        ([X, error(code="500")], True, "error_event 500"),
        ([X, error(message="?")], True, "error_event"),
        ([X, error(code=True)], True, "error_event"),
        ([X, error(code="x" * 200)], True, "error_event " + "x" * MOST_CODE),
        ([X, b'data: {"error":"overloaded"}\n\n'], True, "error_event"),
        # Of two choices both must finish, in whichever order.
        ([X, event("vllm, second choice", b"x"), FINISH, DONE], True, "unfinished"),
        ([event("two choices at once", b"x"), FINISH, event("finish of the second choice", b""), DONE], True, ""),
    ],
)
def test_a_stream_ends_under_its_code(reads: list[bytes], is_whole: bool, code: str) -> None:
    assert stream_of(*reads).end(9.0, is_whole=is_whole) == code


@pytest.mark.parametrize(
    ("tokens", "asked", "how", "code"),
    [
        (2, 2, "bounded", ""),
        (3, 3, "bounded", ""),  # one event may bring more tokens than one
        (3, 0, "bounded", ""),  # not known how many were asked for
        (1, 2, "bounded", "usage_mismatch"),
        (0, 2, "bounded", "usage_mismatch"),
        (3, 2, "bounded", "usage_mismatch"),
        (2, 2, "exact", ""),
        (3, 3, "exact", "usage_mismatch"),
        (1, 2, "exact", "usage_mismatch"),
        (99, 2, "off", ""),
        (None, 2, "exact", ""),  # none is given
    ],
)
def test_a_usage_is_held_against_what_arrived(tokens: int | None, asked: int, how: Any, code: str) -> None:
    reported = [usage(tokens)] if tokens is not None else []
    answer = stream_of(X, X, FINISH, *reported, DONE, asked=asked, usage=how)
    assert answer.end(9.0, is_whole=True) == code
    assert answer.tokens() == (2 if tokens is None else tokens)


WHOLE = {"choices": [{"index": 0, "message": {"content": "Hi there"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("body", "code", "events"),
    [
        (WHOLE, "", 1),
        (WHOLE | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, "", 4),
        (WHOLE | {"usage": {"prompt_tokens": 3, "completion_tokens": 9}}, "usage_mismatch", 9),
        ({"choices": [{"text": "Hi", "finish_reason": "length"}]}, "", 1),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}]}, "", 1),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, "", 0),
        ({"choices": [*WHOLE["choices"], {"text": "x", "finish_reason": None}]}, "unfinished", 0),
        ({"choices": []}, "unfinished", 0),
        ({}, "unfinished", 0),
        ({"error": {"code": "engine_dead"}}, "error_event engine_dead", 0),
        ([], "malformed", 0),
    ],
)
def test_a_whole_answer_ends_under_its_code(body: object, code: str, events: int) -> None:
    answer = whole_of(json.dumps(body).encode(), is_stream=False, asked=8)
    assert answer.end(2.0, is_whole=True) == code
    assert answer.events == events
    assert answer.first == (2.0 if events else None)  # nobody sees a token of it before its end


def test_a_whole_answer_that_is_cut_is_cut() -> None:
    answer = whole_of(json.dumps(WHOLE).encode(), is_stream=False)
    assert answer.end(2.0, is_whole=False) == "cut"
    assert answer.first is None and answer.done_at is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (json.dumps(WHOLE).encode(), "not_a_stream"),
        (b"<html>Welcome to nginx!</html>", "not_a_stream"),
        (b"", "not_a_stream"),
        (b'{"error":{"code":"no_such_model"}}', "error_event no_such_model"),
    ],
)
def test_what_is_no_stream_where_one_was_asked_for_is_told(body: bytes, code: str) -> None:
    assert whole_of(body).end(2.0, is_whole=True) == code


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (429, b'{"error":{"code":"token_rate","type":"rate_limit_error"}}', "429 token_rate"),
        (400, b'{"error":{"code":400,"message":"no","type":"BadRequestError"}}', "400 BadRequestError"),
        (400, b'{"object":"error","message":"no","type":"BadRequestError","code":400}', "400 BadRequestError"),
        (503, b'data: {"error":{"code":"queue_full"}}\n\ndata: [DONE]\n\n', "503 queue_full"),
        (500, b"<html>Internal Server Error</html>", "500"),
        (502, b"", "502"),
        (404, b'{"detail":"Not Found"}', "404"),
        (404, b"[]", "404"),
        (401, b'{"error":"who are you?"}', "401"),
    ],
)
@pytest.mark.parametrize("is_event_stream", [False, True])
def test_a_status_comes_first_with_the_code_of_its_body(
    status: int, body: bytes, code: str, is_event_stream: bool
) -> None:
    answer = Answer()
    answer.status, answer.is_event_stream = status, is_event_stream
    answer.take(body[:5], 1.0)
    answer.take(body[5:], 2.0)
    assert answer.end(3.0, is_whole=True) == code
    assert (answer.events, answer.first) == (0, None)


def test_an_answer_of_which_nothing_came_is_cut() -> None:
    answer = Answer()
    assert not answer.has_begun
    assert answer.end(1.0, is_whole=True) == "cut"


# ---- bounds


def test_an_event_that_never_ends_is_malformed_and_takes_no_more_memory_than_allowed() -> None:
    answer = stream_of(X, b'data: {"choices":[')
    piece = b"[" * 65_536
    for number in range(3 * MOST_REST_BYTES // len(piece)):
        answer.take(piece, 2.0 + number)
        assert len(answer._rest) <= MOST_REST_BYTES
    assert answer.end(99.0, is_whole=False) == "malformed"
    assert answer.events == 1


def test_a_whole_answer_may_be_large_but_not_without_end() -> None:
    answer = Answer(is_stream=False)
    answer.status = 200
    for _ in range(MOST_WHOLE_BYTES // (1 << 20) + 2):
        answer.take(b" " * (1 << 20), 1.0)
    assert len(answer._rest) <= MOST_WHOLE_BYTES
    assert answer.end(2.0, is_whole=True) == "too_large"


def test_an_errors_page_is_not_read_to_its_end() -> None:
    answer = Answer()
    answer.status = 500
    for _ in range(9):
        answer.take(b"x" * (MOST_ERROR_BYTES // 2), 1.0)
    assert len(answer._rest) <= MOST_ERROR_BYTES
    assert answer.end(2.0, is_whole=True) == "500"


@pytest.mark.parametrize("keep_gaps", [False, True])
@pytest.mark.parametrize("is_alone", [True, False])
def test_gaps_past_the_raw_ones_are_counted_and_none_is_lost(is_alone: bool, keep_gaps: bool) -> None:
    """One event a read, and two: the hot way, and the other."""
    read, count = (X if is_alone else X + X), 3 * MOST_RAW_GAPS + 10
    answer = stream_of(keep_gaps=keep_gaps)
    now, gaps = 0.0, []
    answer.take(read, now)
    for number in range(count):
        gaps.append((1 + number % 50) / 64)
        now += gaps[-1]
        answer.take(read, now)
        assert keep_gaps or len(answer.gaps) <= MOST_RAW_GAPS
    answer.end(now, is_whole=False)
    assert (answer.reads, answer.events) == (count + 1, (count + 1) * (1 if is_alone else 2))
    assert (answer.gap_count, answer.longest_gap) == (count, max(gaps))
    if keep_gaps:
        assert list(answer.gaps) == gaps and answer.folded() is None
        return
    folded = answer.folded()
    assert folded is not None
    told, plain = Histogram(), Histogram()
    told.add_counts(*folded, answer.longest_gap)
    told.add(answer.gaps)
    plain.add(gaps)
    assert told.sparse() == plain.sparse()
    assert told.total == plain.total
