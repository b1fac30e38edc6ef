"""Where a call's answer goes: the one thing that an exchange and its relay write to.

A sink is a position in what was sent, not a push target: it knows whether the head is out, takes whole events only,
and so may be written to at any moment between two of them, by a relay, a heartbeat or an error. `ClientSink` writes
to the client's own transport: the head with the first events, the end with the last ones where these are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.http.client import Client
from gateway.stream.sse import chunk

Headers = Sequence[tuple[bytes, bytes]]

_LAST_CHUNK: Final = b"0\r\n\r\n"


class Flow(Protocol):
    """What can be told to wait while the client is slow: a transfer, by the pieces that came of it."""

    @property
    def pieces(self) -> int: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Sink(Protocol):
    """The receiving end of one answer."""

    is_framed: bool
    """Whether `write` takes chunks as HTTP frames them; else it takes payload."""
    status: int
    """The status that went out, or 0."""
    is_started: bool
    """Whether a head has gone out: from then on an error is an event."""

    @property
    def pieces(self) -> int:
        """How many pieces have come of all that was followed: while it stays the same, the client hears nothing."""

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer: head, body and end."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of a streamed answer; something is to be written at once, and it goes out with that."""

    def start_now(self, status: int, headers: Headers) -> bool:
        """The same without waiting; false, and nothing sent, where the client's transport is full."""

    @property
    def write(self) -> Callable[[bytes], None]:
        """Hot. Sends whole events, framed if `is_framed`. Never waits; a full client pauses the flow instead.

        Not called for a client that has left. To be looked up anew for each write until the first events are out; from
        then on it stays the same.
        """

    def gather(self) -> None:
        """What is written from now on goes out with the end, in one system call."""

    def write_event(self, payload: bytes) -> None:
        """Send whole events given as payload, framed here as the sink needs it."""

    def follow(self, flow: Flow | None) -> None:
        """From now on it is `flow` that waits while the client is slow."""

    async def end(self) -> None:
        """End the streamed answer in order."""


class ClientSink:
    """The sink of a client that waits on its own connection."""

    __slots__ = (
        "_client",
        "_flow",
        "_held",
        "_is_starting",
        "_past_pieces",
        "is_framed",
        "is_started",
        "status",
        "write",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        self._flow: Flow | None = None
        self._held: list[bytes] = []
        self._is_starting = False
        self._past_pieces = 0
        self.is_framed = client.framed
        self.is_started = False
        self.status = 0
        # The transport's own method between head and end, so that a relayed chunk costs nothing here.
        self.write: Callable[[bytes], None] = self._hold

    @property
    def pieces(self) -> int:
        return self._past_pieces + (0 if self._flow is None else self._flow.pieces)

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.is_started = True
        self.status = status
        client = self._client
        if client.write_paused:
            await client.drained()
        client.complete(client.begin(status, [*headers, (b"content-length", b"%d" % len(body))]) + body)

    async def start(self, status: int, headers: Headers) -> None:
        self._is_starting = True
        self.status = status
        if self._client.write_paused:  # an earlier answer has not been read: until then nothing may be written
            await self._client.drained()
        self._begin(status, headers)

    def start_now(self, status: int, headers: Headers) -> bool:
        if self._is_starting or self._client.write_paused:
            return False
        self.status = status
        self._begin(status, headers)
        return True

    def gather(self) -> None:
        self.write = self._hold

    def write_event(self, payload: bytes) -> None:
        if not self._client.is_gone:  # a uvloop transport that is closed raises
            self.write(chunk(payload) if self.is_framed else payload)

    def follow(self, flow: Flow | None) -> None:
        if self._flow is not None:
            self._past_pieces += self._flow.pieces
        self._flow = flow
        self._client.follow(flow)
        if flow is not None and self._client.write_paused:
            flow.pause()

    async def end(self) -> None:
        if self._client.write_paused:
            await self._client.drained()
        held, self._held = self._held, []
        if self.is_framed:
            held.append(_LAST_CHUNK)
        self._client.complete(b"".join(held))

    def _begin(self, status: int, headers: Headers) -> None:
        self._held.append(self._client.begin(status, headers))
        self.is_started = True
        self.write = self._write_first

    def _write_first(self, events: bytes) -> None:
        held, self._held = self._held, []
        self.write = self._client.transport.write
        self.write(b"".join((*held, events)))

    def _hold(self, events: bytes) -> None:
        self._held.append(events)
