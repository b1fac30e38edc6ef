"""Calls on sockets, thousands on one loop: a connection is a protocol that carries one call after the other.

A call is a `Flight`: its request, its answer, and whom to tell. `Client` keeps the connections; it hands a flight to
one that is idle or opens another, and sends a request again, once, where a kept connection died before any byte came
back (llama.cpp's server drops its connections right after an answer). Latencies are not made here: a flight has its
times.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

from loadtest.answer import Answer

MOST_CONNECTING = 512  # at once: a listener's backlog is no deeper, and what it drops comes back a second later


class Flight:
    """One call on its way. Times are the client's clock; `sent` is when its request was written to a connection."""

    __slots__ = (
        "answer",
        "cancel_after",
        "code",
        "ended",
        "is_reused",
        "on_end",
        "request",
        "request_id",
        "scheduled",
        "sent",
    )

    def __init__(
        self,
        scheduled: float,
        request: bytes,
        answer: Answer,
        on_end: Callable[[Flight], None],
        *,
        cancel_after: int = 0,
        request_id: str = "",
    ) -> None:
        self.scheduled = scheduled
        self.sent: float | None = None
        self.ended = 0.0
        self.code = ""
        self.is_reused = False
        self.request = request
        self.request_id = request_id
        self.answer = answer
        self.cancel_after = cancel_after
        self.on_end = on_end


class Connection(asyncio.Protocol):
    """One connection. Its client gives it flights, one at a time."""

    __slots__ = ("_body", "_client", "_close", "_flight", "_has_ended", "_is_framed", "_parser", "_transport")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._flight: Flight | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._body = b""
        self._has_ended = False
        self._is_framed = False
        self._close = False

    @property
    def is_open(self) -> bool:
        """Whether another call can go out on it."""
        return self._transport is not None and self._flight is None and not self._transport.is_closing()

    def carry(self, flight: Flight) -> None:
        """Send the flight's request; its `on_end` is called when the answer has ended, whatever that is."""
        assert self.is_open and self._transport is not None
        self._flight = flight
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._has_ended, self._is_framed, self._close = b"", False, False, False
        flight.sent = self._client.clock()
        self._transport.write(flight.request)
        if not flight.is_reused:
            flight.request = b""  # it cannot be needed again, and ten thousand of them are memory

    def leave(self) -> None:
        """Go away, in the middle or not, at once."""
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so

    def data_received(self, data: bytes) -> None:
        flight, parser = self._flight, self._parser
        if flight is None or parser is None:
            self.leave()  # nothing was asked: such a connection is not fit for the next call
            return
        now = self._client.clock()
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._end(flight, now, code="malformed")
            self.leave()
            return
        answer = flight.answer
        if self._body:
            answer.take(self._body, now)
            self._body = b""
        if self._has_ended:
            self._end(flight, now, is_whole=True)
        elif flight.cancel_after and answer.events >= flight.cancel_after:
            self._end(flight, now, code="cancelled")
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.forget(self)
        flight = self._flight
        if flight is None:
            return
        if flight.is_reused and not flight.answer.has_begun and flight.request:
            self._flight = None
            self._client.send_afresh(flight)
            return
        # Without framing the end of the connection is the end of the answer.
        self._end(
            flight, self._client.clock(), is_whole=exc is None and not self._is_framed and flight.answer.has_begun
        )

    # ---- httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-type" and self._flight is not None:
            self._flight.answer.is_event_stream = value.lstrip().lower().startswith(b"text/event-stream")
        elif lower in (b"content-length", b"transfer-encoding"):
            self._is_framed = True
        elif lower == b"connection" and value.lower() == b"close":
            self._close = True

    def on_headers_complete(self) -> None:
        if self._flight is not None and self._parser is not None:
            self._flight.answer.status = self._parser.get_status_code()
            self._flight.request = b""

    def on_body(self, body: bytes) -> None:
        # one read, one look: a chunk at a time would count what arrived together as arrivals of their own
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        self._has_ended = True

    def end_with(self, code: str) -> None:
        """End the call that it carries, with this code, and go away."""
        if self._flight is not None:
            self._end(self._flight, self._client.clock(), code=code)
        self.leave()

    def _end(self, flight: Flight, now: float, *, is_whole: bool = False, code: str | None = None) -> None:
        self._flight = self._parser = None
        said = flight.answer.end(now, is_whole=is_whole)
        flight.code = said if code is None else code
        flight.ended = flight.answer.done_at if flight.answer.done_at is not None and not flight.code else now
        if is_whole and not self._close and self._is_framed and self.is_open:
            self._client.keep(self)
        elif self._transport is not None and code is None:
            self._transport.close()
        flight.on_end(flight)


Connect = Callable[[Callable[[], Connection]], Awaitable[Connection]]
"""Opens a connection for the protocol that the factory makes, and gives that protocol, or raises `OSError`."""


class Client:
    """Connections to one server: `connect` opens one, and joins it to the protocol that it is given the making of.

    `clock` gives seconds, as fine as latencies are wanted: the loop's own is a millisecond coarse under uvloop.
    """

    def __init__(self, connect: Connect, clock: Callable[[], float], loop: asyncio.AbstractEventLoop) -> None:
        self.clock = clock
        self._connect = connect
        self._loop = loop
        self._idle: dict[Connection, None] = {}
        self._carrying: dict[Flight, Connection | None] = {}
        self._connecting = 0
        self._unconnected: deque[Flight] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def flights(self) -> dict[Flight, Connection | None]:
        """All flights that have not ended."""
        return self._carrying

    def send(self, flight: Flight) -> None:
        """Let a flight go: on a kept connection at once, else as soon as a new one is open."""
        while self._idle:
            connection, _ = self._idle.popitem()  # the latest: the others may be dropped by the server as idle
            if connection.is_open:
                flight.is_reused = True
                self._carrying[flight] = connection
                connection.carry(flight)
                return
        self.send_afresh(flight)

    def send_afresh(self, flight: Flight) -> None:
        """Let a flight go on a new connection."""
        flight.is_reused = False
        self._carrying[flight] = None
        if self._connecting >= MOST_CONNECTING:
            self._unconnected.append(flight)
            return
        self._connecting += 1
        task = self._loop.create_task(self._open(flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, flight: Flight) -> None:
        try:
            connection = await self._connect(lambda: Connection(self))
        except (OSError, ssl.SSLError) as wrong:
            if flight in self._carrying:
                flight.code = "tls_failed" if isinstance(wrong, ssl.SSLError) else "refused_connection"
                self._end_unsent(flight)
            return
        finally:
            self._connecting -= 1
            while self._unconnected and self._connecting < MOST_CONNECTING:
                waiting = self._unconnected.popleft()
                if waiting in self._carrying:
                    self.send_afresh(waiting)
        if flight in self._carrying:  # else it was left while it waited
            self._carrying[flight] = connection
            connection.carry(flight)
        else:
            connection.leave()

    def end(self, flight: Flight, code: str) -> None:
        """End a flight that is under way, with this code."""
        connection = self._carrying.get(flight)
        if connection is not None:
            connection.end_with(code)
        elif flight in self._carrying:
            flight.code = code
            self._end_unsent(flight)

    def keep(self, connection: Connection) -> None:
        """A connection whose answer has ended, fit for the next call."""
        self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """A connection that is gone."""
        self._idle.pop(connection, None)

    def end_all(self, code: str) -> None:
        """End all that is under way, with this code."""
        for flight in list(self._carrying):
            self.end(flight, code)

    def landed(self, flight: Flight) -> None:
        """A flight has ended: its owner says so from `on_end`."""
        self._carrying.pop(flight, None)

    async def close(self) -> None:
        """Leave everything."""
        for connection in [*self._idle, *self._carrying.values()]:
            if connection is not None:
                connection.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end_unsent(self, flight: Flight) -> None:
        flight.ended = self.clock()
        flight.answer.end(flight.ended, is_whole=False)
        flight.on_end(flight)


def connect_to(
    loop: asyncio.AbstractEventLoop, address: tuple[str, int], *, tls: ssl.SSLContext | None = None, name: str = ""
) -> Connect:
    """How to open connections to this address, over TLS for the server of that `name` where a context is given."""

    async def connect(make: Callable[[], Connection]) -> Connection:
        server_name = name if tls is not None else None
        _, connection = await loop.create_connection(make, *address, ssl=tls, server_hostname=server_name)
        return connection

    return connect
