"""Answers of pods as bytes, with what a client has to understand of each however the bytes are cut.

One table for the wire, the relay and the end-to-end runs; the decoding here is written for reading, apart from the
code under test: events as the HTML standard parses them, chunks by their sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

TERMINATOR = b"0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
# As llama.cpp's server writes it: what ends this head looks like a terminator to whoever searches for one.
LLAMA_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nServer: llama.cpp\r\nTransfer-Encoding: chunked\r\n"
    b"Access-Control-Allow-Origin: \r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
)


def chunk(payload: bytes, form: bytes = b"%x", extension: bytes = b"") -> bytes:
    """One chunk; `form` is how its size is written."""
    return form % len(payload) + extension + b"\r\n" + payload + b"\r\n"


def token(text: str, end: bytes = b"\n\n") -> bytes:
    """One event of a chat stream."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}' % text.encode() + end


def unchunk(frames: bytes) -> bytes:
    """The payload of whole chunks; raises where they are not whole."""
    payloads = []
    at = 0
    while at < len(frames):
        end = frames.find(b"\r\n", at)
        line = frames[at:end]
        assert end > 0, f"a size line is cut: {frames[at:]!r}"
        assert re.fullmatch(rb"[0-9A-Fa-f]+", line), f"not a size: {line!r}"
        at = end + 2 + int(line, 16) + 2
        assert at > end + 4, "a terminator is passed on"
        assert frames[at - 2 : at] == b"\r\n", f"a chunk is cut: {frames[end:]!r}"
        payloads.append(frames[end + 2 : at - 2])
    return b"".join(payloads)


def events_of(payload: bytes) -> list[tuple[bytes, bytes]]:
    """The events (type, data) that an EventSource dispatches; an incomplete last one is none."""
    events = []
    kind, data = b"", None
    lines = re.split(rb"\r\n|\n|\r", payload)
    for line in lines[:-1]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data is not None:
                events.append((kind, data))
            kind, data = b"", None
        elif field == b"event":
            kind = value
        elif field == b"data":
            data = value if data is None else data + b"\n" + value
    return events


@dataclass(frozen=True)
class Answer:
    """What a pod writes, and what it means.

    `body` is the decoded body. `keeps_alive`: the connection may be used again. `lasts_until_close`: only the close
    ends it. `is_framed`: all its chunks end events, so that they may be passed on as they are.
    """

    name: str
    wire: bytes
    body: bytes
    status: int = 200
    keeps_alive: bool = True
    lasts_until_close: bool = False
    is_framed: bool = False

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and b"event-stream" in self.wire

    @property
    def head_bytes(self) -> int:
        """Where the body begins: after the last head, interim ones before it."""
        end = self.wire.index(b"\r\n\r\n") + 4
        while self.wire.startswith(b"HTTP/1.1 1", end) or self.wire.startswith(b"HTTP/1.1 200", end):
            end = self.wire.index(b"\r\n\r\n", end) + 4
        return end

    @property
    def events(self) -> list[tuple[bytes, bytes]]:
        return events_of(self.body)


def _stream(name: str, payloads: Iterable[bytes], *, head: bytes = STREAM_HEAD, is_framed: bool = True) -> Answer:
    payloads = list(payloads)
    return Answer(name, head + b"".join(map(chunk, payloads)) + TERMINATOR, b"".join(payloads), is_framed=is_framed)


DONE = b"data: [DONE]\n\n"
JSON = b'{"object":"chat.completion","choices":[]}'
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"

ANSWERS: tuple[Answer, ...] = (
    _stream("one token", [token("Hi"), DONE], head=LLAMA_HEAD),
    _stream("several tokens", [token(text) for text in ("The", " gate", " opens", ".")] + [DONE]),
    _stream("CRLF events", [token("a", b"\r\n\r\n"), token("b", b"\r\n\r\n"), b"data: [DONE]\r\n\r\n"]),
    _stream("CR events", [b"data: a\r\r", b"data: b\r\r"]),
    _stream("events with a type", [b"event: delta\ndata: {}\n\n", b"event: stop\ndata: {}\n\n"]),
    _stream("several events a chunk", [token("a") + token("b"), token("c") + token("d") + DONE]),
    _stream("comments between", [b": ping\n\n", b":\n\n", token("a"), b": ping\n\n", token("b"), b"\n\n", DONE]),
    _stream("a comment in an event's chunk", [b": hi\n\n" + token("a"), b"\n\n: ho\n" + token("b"), DONE]),
    _stream("blank CRLF lines inside", [b"data: a\n\ndata: b\r\n\r\ndata: c\n\n", b"data: \\n\\n\\r\\n\n\n"]),
    _stream("an event over three chunks", [b"data: a\n\n", b"data", b": b", b"\n\n", b"data: c\n\n"], is_framed=False),
    _stream("an event's end over two chunks", [b"data: a\n", b"\n", b"data: b\n\n"], is_framed=False),
    _stream("a CRLF end over two chunks", [b"data: a\r\n", b"\r\n", b"data: b\r\n\r\n"], is_framed=False),
    _stream("a line break too many", [token("a"), b"\n", token("b"), b"\r\n", DONE], is_framed=False),
    _stream("one byte a chunk", [b"%c" % byte for byte in b"data: a\n\ndata: b\n\n"], is_framed=False),
    _stream("an event and a half a chunk", [b"data: a\n\ndata:", b" b\n\ndata: c\n\n"], is_framed=False),
    _stream("mixed line ends", [b"data: a\n\r\n", b"data: b\r\n\n"], is_framed=False),
    _stream("an unfinished last event", [token("a"), b"data: cut"], is_framed=False),
    _stream("an empty stream", []),
    _stream("comments alone", [b": ping\n\n", b": ping\n\n"]),
    Answer(
        "trailers",
        STREAM_HEAD + chunk(token("a")) + chunk(DONE) + b"0\r\nX-Took: 3\r\nX-Cost: 4\r\n\r\n",
        token("a") + DONE,
        is_framed=True,
    ),
    Answer(
        "extensions",
        STREAM_HEAD + chunk(token("a"), extension=b";n=1") + chunk(DONE, extension=b' ;q="x"') + b"0;last\r\n\r\n",
        token("a") + DONE,
    ),
    Answer(
        "upper-case sizes",
        STREAM_HEAD + chunk(token("a"), b"%X") + chunk(token("bcdef"), b"%X") + TERMINATOR,
        token("a") + token("bcdef"),
        is_framed=True,
    ),
    Answer(
        "leading zeros",
        STREAM_HEAD + chunk(token("a"), b"%04x") + chunk(DONE, b"%08X") + b"000\r\n\r\n",
        token("a") + DONE,
        is_framed=True,
    ),
    Answer(
        "interim heads first",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        + STREAM_HEAD
        + chunk(token("a"))
        + TERMINATOR,
        token("a"),
        is_framed=True,
    ),
    Answer("JSON by length", _PLAIN + b"content-length: %d\r\n\r\n" % len(JSON) + JSON, JSON),
    Answer(
        "JSON in chunks",
        _PLAIN + b"transfer-encoding: chunked\r\n\r\n" + chunk(JSON[:9]) + chunk(JSON[9:]) + TERMINATOR,
        JSON,
    ),
    Answer("JSON until the close", _PLAIN + b"\r\n" + JSON, JSON, keeps_alive=False, lasts_until_close=True),
    Answer(
        "JSON, then closed",
        _PLAIN + b"Connection: Close\r\ncontent-length: %d\r\n\r\n" % len(JSON) + JSON,
        JSON,
        keeps_alive=False,
    ),
    Answer("HTTP/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", b"{}", keeps_alive=False),
    Answer("HTTP/1.0 kept", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}", b"{}"),
    Answer(
        "an HTTP/1.0 stream",
        b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: ping\n\n" + token("a") + DONE,
        token("a") + DONE,
        keeps_alive=False,
        lasts_until_close=True,
    ),
    Answer(
        "a stream by length",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % (len(DONE) + 9)
        + b"data: a\n\n"
        + DONE,
        b"data: a\n\n" + DONE,
    ),
    Answer("no content", b"HTTP/1.1 204 No Content\r\n\r\n", b"", status=204),
    Answer("not modified", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", status=304),
    Answer("an empty body by length", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    Answer("an empty body in chunks", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + TERMINATOR, b""),
    Answer(
        "an error",
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\nbusy",
        b"busy",
        status=503,
    ),
    Answer(
        "an error in a stream's clothes",
        STREAM_HEAD.replace(b"200 OK", b"500 No") + chunk(b"data: {}\n\n") + TERMINATOR,
        b"data: {}\n\n",
        status=500,
    ),
)
