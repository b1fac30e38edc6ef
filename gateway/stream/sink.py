"""Where a call's answer goes: the one thing that an exchange and its relay write to.

A sink is a position in what was sent, not a push target: it knows whether the head is out, takes whole events only,
and so may be written to at any moment between two of them, by a relay, a heartbeat or an error. `ClientSink` writes
to the client's own transport; the head and the end still go through ASGI's `send`, so that uvicorn's keep-alive
rules stay in force.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from gateway.http.client import Client
from gateway.stream.sse import chunk

Headers = Sequence[tuple[bytes, bytes]]
Send = Callable[[Any], Awaitable[None]]


class Flow(Protocol):
    """What can be told to wait while the client is slow: a transfer."""

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
    writes: int
    """How many times something was written after the head."""

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer: head, body and end."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of a streamed answer."""

    def start_now(self, status: int, headers: Headers) -> bool:
        """The same without waiting; false, and nothing sent, where the client's transport is full."""

    def write(self, events: bytes) -> None:
        """Hot. Send whole events, framed if `is_framed`. Never waits; a full client pauses the flow instead."""

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
        "_is_starting",
        "_send",
        "_transport",
        "is_framed",
        "is_started",
        "status",
        "writes",
    )

    def __init__(self, client: Client, send: Send) -> None:
        self._client = client
        self._transport = client.transport
        self._send = send
        self._flow: Flow | None = None
        self.is_framed = client.framed
        self._is_starting = False
        self.is_started = False
        self.status = 0
        self.writes = 0

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.is_started = True
        self.status = status
        length = (b"content-length", b"%d" % len(body))
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": body})

    async def start(self, status: int, headers: Headers) -> None:
        self._is_starting = True
        self.status = status
        # It waits where an earlier answer of this connection has not been read: until then nothing may be written.
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self.is_started = True

    def start_now(self, status: int, headers: Headers) -> bool:
        if self._is_starting or self._client.write_paused:
            return False
        step = self.start(status, headers).__await__()
        try:
            next(step)
        except StopIteration:
            return True
        raise AssertionError("uvicorn's send waited although the client's transport takes more")

    def write(self, events: bytes) -> None:
        self.writes += 1
        # A write to a closed uvloop transport raises inside the pod's data_received and would kill that connection.
        if not self._transport.is_closing():
            self._transport.write(events)

    def write_event(self, payload: bytes) -> None:
        self.write(chunk(payload) if self.is_framed else payload)

    def follow(self, flow: Flow | None) -> None:
        self._flow = flow
        if flow is None:
            self._client.on_flow(None, None)
            return
        self._client.on_flow(flow.pause, flow.resume)
        if self._client.write_paused:
            flow.pause()

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})
