"""Streams from the client's side, thousands on one loop: each connection is a protocol that counts what arrives.

A stream counts as done only with a finish and `[DONE]`; an answer that is not 200, an error event or an early end
is a failure under its own code, and its times are no latencies. Counting goes by reads, not by chunks: chunks that
were piled up somewhere arrive together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go: `host` and `port` of an HTTP server, the path, and the key (empty: none)."""

    host: str
    port: int
    path: str
    key: str = ""

    @classmethod
    def of(cls, url: str, key: str = "", endpoint: str = "/chat/completions") -> Target:
        """From a base URL as SDKs take it, ending in /v1."""
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, parts.path.rstrip("/") + endpoint, key)

    def request(self, body: bytes) -> bytes:
        """The whole request."""
        authorization = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n{authorization}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(slots=True)
class Sample:
    """One call as its client saw it. Times are the loop's seconds; `code` is empty for a call that is done as it
    should be.
    """

    sent_at: float
    first_at: float | None = None
    ended_at: float = 0.0
    status: int = 0
    events: int = 0
    code: str = ""


class Connection(asyncio.Protocol):
    """One connection that carries one call after the other; `call` gives the future sample of the next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._sample: Sample | None = None
        self._ended: asyncio.Future[Sample] | None = None
        self._has_finish = self._has_done = self._has_error = False
        self._is_stream = False
        self._tail = b""

    @property
    def is_open(self) -> bool:
        """Whether another call can go out on it."""
        return self._transport is not None and not self._transport.is_closing() and self._sample is None

    def call(self, request: bytes) -> asyncio.Future[Sample]:
        """Send `request`; the future's sample comes at the answer's end, whatever that is."""
        assert self.is_open and self._transport is not None
        self._sample = Sample(self._clock())
        self._ended = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._has_finish = self._has_done = self._has_error = self._is_stream = False
        self._tail = b""
        self._transport.write(request)
        return self._ended

    def leave(self) -> None:
        """Go away in the middle."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio's and httptools' callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("malformed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end("cut")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._is_stream = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        assert self._parser is not None and self._sample is not None
        self._sample.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        sample = self._sample
        if sample is None or not self._is_stream:
            return
        text = self._tail + body
        # A mark may be cut in two; what is looked for is shorter than what is kept.
        self._tail = text[-24:]
        sample.events += body.count(b"data: ")
        if sample.first_at is None and (b'"content":"' in text or b'"text":"' in text):
            sample.first_at = self._clock()
        if not self._has_finish:
            self._has_finish = b'"finish_reason":"' in text
        if b"[DONE]" in text:
            self._has_done = True
        if b'data: {"error"' in text:
            self._has_error = True

    def on_message_complete(self) -> None:
        if self._sample is None:
            return
        if self._sample.status != 200:
            self._end(str(self._sample.status))
        elif self._has_error:
            self._end("error_event")
        elif self._is_stream and not (self._has_finish and self._has_done):
            self._end("unfinished")
        else:
            self._end("")

    def _end(self, code: str) -> None:
        sample, ended = self._sample, self._ended
        self._sample = self._ended = self._parser = None
        if sample is not None and ended is not None and not ended.done():
            sample.code = code
            sample.ended_at = self._clock()
            ended.set_result(sample)


async def connect(target: Target) -> Connection:
    """A new connection to the target."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(loop.time), target.host, target.port)
    return connection
