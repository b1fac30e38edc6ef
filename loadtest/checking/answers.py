"""What the server of known delays says, and when: one mode for each way in which servers answer, or fail to.

An answer is a script: pieces of bytes, each with the second after the call's arrival at which it is due, and what
becomes of the connection at its end. Token k (from 0) is due at `ttft + k * itl` in every mode (in bursts: all of a
burst with its first), so that times are known wherever there are any. Scripts are drawn up once for all calls that are
alike; nothing here knows sockets.

The shapes are those of real servers' answers: vLLM 0.33 (`finish_reason` comes with the last token), llama.cpp b11549
(role with a null content, `timings`, the connection dropped after the answer), SGLang 0.5 (null fields everywhere).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from itertools import groupby
from random import Random
from typing import Any, NamedTuple

import msgspec

WORDS = (" one", " two", " three", " vier", " cinq", " naïve", " 六", ' "quoted"', " back\\slash", " line\nbreak")
LIES = (' "finish_reason":"stop"', " data: [DONE]", "\n\ndata: [DONE]\n\n", '"}}],"usage":{"completion_tokens":9}}')
"""Text of models that talk about streams. A counter that searches for marks believes it."""
FRAGMENT_SECONDS = 0.001
BURST = 4


class End(Enum):
    """What becomes of the connection when the last piece is out."""

    KEEP = "keep"
    CLOSE = "close"
    RESET = "reset"
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Delays:
    """Seconds to the first token, and from each to the next."""

    ttft: float = 0.02
    itl: float = 0.01


class Ask(NamedTuple):
    """What of a call decides its answer. `tokens` are generated, always all of them."""

    mode: str
    tokens: int
    is_stream: bool = True
    is_chat: bool = True
    wants_usage: bool = True
    prompt_tokens: int = 1


class Piece(NamedTuple):
    """Bytes that are due `at` seconds after the call's arrival; `tokens` of the answer end in them."""

    at: float
    data: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Script:
    """A whole answer: what goes out when, and what then becomes of the connection."""

    pieces: tuple[Piece, ...]
    end: End = End.KEEP


# ---- shapes: how each server writes one event


Delta = Callable[[str, int], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a server writes: keys of each chunk beside `choices`, of each choice beside the text, the delta of token
    number k, deltas that come before the first token (`None`: none), and keys of the usage's event.
    """

    chunk: dict[str, Any]
    choice: dict[str, Any]
    delta: Delta
    role: dict[str, Any] | None = None
    ends_with_text: bool = False
    end_delta: dict[str, Any] = field(default_factory=dict)
    usage_event: dict[str, Any] = field(default_factory=dict)


def _content(text: str, k: int) -> dict[str, Any]:
    return {"content": text}


def _sglang(text: str, k: int) -> dict[str, Any]:
    return {"role": None, "content": text, "reasoning_content": None, "tool_calls": None}


def _reasoning(text: str, k: int) -> dict[str, Any]:
    """The first half is thought."""
    return {"reasoning_content": text} if k % 4 < 2 else {"content": text}


def _tool_call(text: str, k: int) -> dict[str, Any]:
    if k == 0:
        function = {"name": "look_up", "arguments": ""}
        return {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}


_PLAIN = Shape({}, {}, _content, role={"role": "assistant", "content": ""})
_TIMINGS = {"cache_n": 0, "prompt_n": 9, "prompt_ms": 1.349, "predicted_n": 4, "predicted_ms": 1.103}
SHAPES = {
    "plain": _PLAIN,
    "vllm": Shape({}, {"logprobs": None}, _content, role={"role": "assistant", "content": ""}, ends_with_text=True),
    "llama.cpp": Shape(
        {"system_fingerprint": "b0-unknown"},
        {},
        _content,
        role={"role": "assistant", "content": None},
        usage_event={"timings": _TIMINGS},
    ),
    "sglang": Shape(
        {"usage": None},
        {"logprobs": None, "matched_stop": None},
        _sglang,
        role={"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None},
        end_delta=_sglang("", 0) | {"content": None},
    ),
    "reasoning": Shape({}, {}, _reasoning, role={"role": "assistant", "content": ""}),
    "tool-call": Shape({}, {}, _tool_call, role={"role": "assistant", "content": None}),
}


# ---- modes: what is done with the events


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode: how its answers differ from a plain, correct stream, and what that is good for.

    `breaks` happens after half of the tokens. `status` and `body` are an answer that is no stream. `usage_off` is added
    to the tokens reported. `code` is what a client that tells the truth makes of it.
    """

    about: str
    code: str = ""
    shape: str = "plain"
    line_end: bytes = b"\n"
    lead: bytes = b"data: "
    is_spaced: bool = False
    opens: bool = False
    has_heartbeats: bool = False
    has_empty_deltas: bool = False
    words: tuple[str, ...] = WORDS
    has_finish: bool = True
    has_done: bool = True
    usage_off: int = 0
    breaks: str = ""
    is_chunked: bool = True
    is_split: bool = False
    burst: int = 1
    end: End = End.KEEP
    status: int = 200
    body: bytes = b""


_LIMIT = b'{"error":{"message":"Too many tokens a minute.","type":"rate_limit_error","param":null,"code":"token_rate"}}'
_DEAD = b'{"error":{"message":"The engine is dead.","type":"server_error","param":null,"code":"engine_dead"}}'
_FULL = b'{"error":{"message":"The queue is full.","type":"server_error","code":"queue_full"}}'
_EMPTY_DELTAS = ({"content": ""}, {"content": "", "role": "assistant"}, {"role": "assistant", "content": None})
MODES: dict[str, Mode] = {
    "plain": Mode("a correct stream"),
    "vllm": Mode("as vLLM; the last token brings the finish", shape="vllm"),
    "llama.cpp": Mode("as llama.cpp; it drops the connection", shape="llama.cpp", end=End.CLOSE),
    "sglang": Mode("as SGLang; null fields everywhere", shape="sglang"),
    "role-first": Mode("a role at once, text only later", opens=True),
    "reasoning": Mode("thoughts are tokens too", shape="reasoning"),
    "tool-call": Mode("a tool call's pieces are tokens too", shape="tool-call"),
    "crlf": Mode("lines end in CR LF", line_end=b"\r\n"),
    "cr": Mode("lines end in CR alone", line_end=b"\r"),
    "no-space": Mode("no space after `data:`", lead=b"data:"),
    "ids": Mode("events with type and id", lead=b"event: message\nid: 7\ndata: "),
    "spaced-json": Mode("JSON with spaces", is_spaced=True),
    "heartbeats": Mode("comments between tokens", has_heartbeats=True),
    "empty-deltas": Mode("events without text between tokens", has_empty_deltas=True),
    "split": Mode("bytes cut at awkward places", is_split=True),
    "burst": Mode(f"{BURST} tokens in one write", burst=BURST),
    "no-chunked": Mode("only the connection's end ends it", is_chunked=False, end=End.CLOSE),
    "drops-idle": Mode("closes after each answer, unannounced", end=End.CLOSE),
    "no-finish": Mode("no finish_reason", "unfinished", has_finish=False),
    "no-done": Mode("no [DONE]", "no_done", has_done=False),
    "lying-text": Mode("text that says [DONE], an early end", "unfinished", words=LIES, breaks="end"),
    "early-end": Mode("the body ends in order, too soon", "unfinished", breaks="end"),
    "cut": Mode("the connection ends in mid-stream", "cut", breaks="cut", end=End.CLOSE),
    "reset": Mode("the connection is reset in mid-stream", "cut", breaks="cut", end=End.RESET),
    "error-event": Mode("an error event, then [DONE]", "error_event engine_dead", breaks="error"),
    "malformed": Mode("a chunk of no size", "malformed", breaks="malformed", end=End.CLOSE),
    "not-json": Mode("an event that is no JSON", "malformed", breaks="not-json"),
    "usage-mismatch": Mode("usage of fewer tokens than came", "usage_mismatch", usage_off=-1),
    "usage-over": Mode("usage of more tokens than asked for", "usage_mismatch", usage_off=1),
    "status-429": Mode("429 with a code", "429 token_rate", status=429, body=_LIMIT),
    "status-503": Mode("503 with a code", "503 queue_full", status=503, body=_FULL),
    "status-500": Mode("500 with a page", "500", status=500, body=b"<html>Internal Server Error</html>"),
    "not-a-stream": Mode("JSON where a stream was asked for", "not_a_stream", breaks="whole"),
    "silent": Mode("headers, and then nothing", "timeout", breaks="silent", end=End.HANG),
}


def known(mode: str) -> Mode:
    """The mode of that name; an unknown one is plain."""
    return MODES.get(mode, MODES["plain"])


# ---- answers


@lru_cache(maxsize=4096)
def script(ask: Ask, delays: Delays) -> Script:
    """The answer to such a call. Cached: calls that are alike share one."""
    mode = known(ask.mode)
    if mode.status != 200:
        return Script((Piece(0.0, _whole_head(mode.status, len(mode.body)) + mode.body),), mode.end)
    if not ask.is_stream or mode.breaks == "whole":
        body = _whole_body(ask, mode)
        at = delays.ttft + max(0, ask.tokens - 1) * delays.itl
        return Script((Piece(at, _whole_head(200, len(body)) + body, ask.tokens),), mode.end)
    writer = _Writer(ask, mode, SHAPES[mode.shape])
    pieces = [*writer.opening(delays), *writer.tokens(delays)] if mode.breaks != "silent" else []
    last_at = pieces[-1].at if pieces else 0.0
    pieces += [Piece(last_at, data) for data in writer.ending()]
    if mode.burst > 1:  # in one chunk too
        pieces = _joined(pieces)
    if mode.is_chunked:
        pieces = [piece._replace(data=b"%x\r\n%s\r\n" % (len(piece.data), piece.data)) for piece in pieces]
        pieces += [Piece(last_at, data) for data in _last_frame(mode)]
    pieces = [Piece(0.0, _stream_head(mode)), *_joined(pieces)]
    if mode.is_split:
        pieces = _split(pieces, min(FRAGMENT_SECONDS, delays.itl / 4), Random(ask.tokens))
    return Script(tuple(pieces), mode.end)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the events of one answer."""

    ask: Ask
    mode: Mode
    shape: Shape

    def opening(self, delays: Delays) -> Iterator[Piece]:
        """What precedes the first token."""
        mode, role = self.mode, self.shape.role
        if mode.opens:
            yield Piece(0.0, self.comment())
        if role is not None and self.ask.is_chat:
            yield Piece(0.0 if mode.opens else delays.ttft, self.event([self.choice(role)]))
        if mode.opens:
            yield Piece(delays.ttft / 2, self.comment())

    def tokens(self, delays: Delays) -> Iterator[Piece]:
        """The tokens, and what comes between them; half of them where the answer breaks."""
        ask, mode = self.ask, self.mode
        for k in range(ask.tokens // 2 if mode.breaks else ask.tokens):
            at = delays.ttft + (k - k % mode.burst) * delays.itl
            has_finish = self.shape.ends_with_text and mode.has_finish and k == ask.tokens - 1
            word = mode.words[k % len(mode.words)]
            said = self.shape.delta(word, k) if ask.is_chat else {"text": word}
            yield Piece(at, self.event([self.choice(said, "length" if has_finish else None)]), 1)
            if mode.has_heartbeats:
                yield Piece(at + delays.itl / 2, self.comment())
            if mode.has_empty_deltas:
                empties: tuple[dict[str, Any], ...] = _EMPTY_DELTAS if ask.is_chat else ({"text": ""},)
                for part, empty in enumerate(empties, 1):
                    yield Piece(at + delays.itl * part / 4, self.event([self.choice(empty)]))

    def ending(self) -> Iterator[bytes]:
        """What follows the last token, or what breaks the answer."""
        ask, mode, shape = self.ask, self.mode, self.shape
        if mode.breaks == "error":
            yield self.data(_DEAD)
            yield self.data(b"[DONE]")
        elif mode.breaks == "not-json":
            yield self.data(b'{"choices":[{"delta":{"content":')
        if mode.breaks:
            return
        if mode.has_finish and not shape.ends_with_text:
            yield self.event([self.choice(shape.end_delta if ask.is_chat else {"text": ""}, "length")])
        if ask.wants_usage:
            yield self.event([], shape.usage_event | {"usage": _usage(ask, mode)})
        if mode.has_done:
            yield self.data(b"[DONE]")

    def choice(self, said: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """The one choice of an event: `said` is a delta, or a completion's text with its key."""
        text = {"delta": said} if self.ask.is_chat else said
        return {"index": 0, **text, **self.shape.choice, "finish_reason": finish}

    def event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        """One event with these choices."""
        chunk = _head(self.ask, ".chunk") | {"choices": choices} | self.shape.chunk | (more or {})
        encoded = msgspec.json.encode(chunk)
        return self.data(msgspec.json.format(encoded, indent=0) if self.mode.is_spaced else encoded)

    def data(self, data: bytes) -> bytes:
        """One event with this data."""
        return self.mode.lead.replace(b"\n", self.mode.line_end) + data + self.mode.line_end * 2

    def comment(self) -> bytes:
        """A comment, as servers send against time-outs; its blank line ends no event."""
        return b": hb" + self.mode.line_end * 2


def _head(ask: Ask, chunk: str = "") -> dict[str, Any]:
    kind = f"chat.completion{chunk}" if ask.is_chat else "text_completion"
    return {"id": "chatcmpl-check", "object": kind, "created": 1_767_225_600, "model": ask.mode}


def _usage(ask: Ask, mode: Mode) -> dict[str, int]:
    prompt, completion = ask.prompt_tokens, ask.tokens + mode.usage_off
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _whole_body(ask: Ask, mode: Mode) -> bytes:
    text = "".join(mode.words[k % len(mode.words)] for k in range(ask.tokens))
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if ask.is_chat else {"text": text}
    choice = {"index": 0, **said, "finish_reason": "length" if mode.has_finish else None}
    return msgspec.json.encode(_head(ask) | {"choices": [choice], "usage": _usage(ask, mode)})


# ---- bytes on the wire


def _whole_head(status: int, size: int) -> bytes:
    retry = "retry-after: 1\r\n" if status in (429, 503) else ""
    kind = "text/html" if status == 500 else "application/json"
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n{retry}"
    return f"{head}content-length: {size}\r\n\r\n".encode()


def _stream_head(mode: Mode) -> bytes:
    framing = b"transfer-encoding: chunked\r\n" if mode.is_chunked else b""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n" + framing + b"\r\n"


def _last_frame(mode: Mode) -> tuple[bytes, ...]:
    """How a chunked body ends, if it does."""
    if mode.breaks == "malformed":
        return (b"zz\r\nthis is no chunk\r\n",)
    return () if mode.breaks in ("cut", "silent") else (b"0\r\n\r\n",)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """What is due together is written together."""
    groups = (list(group) for _, group in groupby(pieces, key=lambda piece: piece.at))
    return [
        Piece(group[0].at, b"".join(piece.data for piece in group), sum(piece.tokens for piece in group))
        for group in groups
    ]


def _split(pieces: list[Piece], apart: float, random: Random) -> list[Piece]:
    """Each piece in three writes, the last one when the piece was due: what is cut is not there before its end is."""
    parts: list[Piece] = []
    for piece in pieces:
        first, second = sorted(random.randrange(len(piece.data)) for _ in range(2))
        cut = (piece.data[:first], piece.data[first:second], piece.data[second:])
        parts += [
            Piece(max(0.0, piece.at - back * apart), part) for back, part in zip((2, 1), cut, strict=False) if part
        ]
        parts.append(Piece(piece.at, cut[2], piece.tokens))
    return parts
