"""A sink that keeps what it is sent, so that a relay or an exchange can be looked at without sockets."""

from __future__ import annotations

from gateway.stream.sink import Flow, Headers
from gateway.stream.sse import chunk
from tests.instruments.answers import unchunk


class MemorySink:
    """Keeps heads and bytes, as `sent`; `payload` is the body without framing."""

    def __init__(self, *, is_framed: bool = True) -> None:
        self.is_framed = is_framed
        self.is_started = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.sent: list[bytes] = []
        self.pieces = 0
        self.has_ended = False
        self.flow: Flow | None = None

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, headers)
        self.write(chunk(body) if self.is_framed else body)
        await self.end()

    async def start(self, status: int, headers: Headers) -> None:
        assert not self.is_started, "a second head"
        self.is_started = True
        self.status = status
        self.headers = dict(headers)

    def start_now(self, status: int, headers: Headers) -> bool:
        self.is_started = True
        self.status = status
        self.headers = dict(headers)
        return True

    def write(self, events: bytes) -> None:
        assert self.is_started and not self.has_ended, "a body outside head and end"
        self.sent.append(events)

    def gather(self) -> None:
        pass

    def write_event(self, payload: bytes) -> None:
        self.write(chunk(payload) if self.is_framed else payload)

    def follow(self, flow: Flow | None) -> None:
        self.flow = flow

    async def end(self) -> None:
        assert not self.has_ended, "a second end"
        self.has_ended = True

    @property
    def payload(self) -> bytes:
        """All that was written, unframed."""
        return b"".join(unchunk(piece) if self.is_framed else piece for piece in self.sent)
