"""Calls on sockets, thousands on one loop: a connection is a protocol that carries one call after the other.

A call is a `Flight`: its request, its answer, and whom to tell. `Client` keeps the connections; it hands a flight to
one that is idle or opens another, and sends a request again, once, where a kept connection died before any byte came
back (llama.cpp's server drops its connections right after an answer). Latencies are not made here: a flight has its
times. A flight never ends while it is being sent: `on_end` is called in a later turn of the loop, or from `end`.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

from loadtest.answer import Answer

MOST_CONNECTING = 512  # at once: a listener's backlog is no deeper, and what it drops comes back a second later

_OWN_LIMITS = {errno.EMFILE: "no_descriptors", errno.ENFILE: "no_descriptors", errno.EADDRNOTAVAIL: "no_ports"}


class Flight:
    """One call on its way. `sent` (when its request was written to a connection) and `ended` are times of the client's
    clock. `scheduled` is its owner's, who may count from anywhere.
    """

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


class _Surplus(Exception):
    """A second answer, which nobody asked for."""


class Connection(asyncio.Protocol):
    """One connection. Its client gives it flights, one at a time."""

    __slots__ = ("_body", "_client", "_flight", "_has_ended", "_is_framed", "_is_reusable", "_parser", "_transport")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._flight: Flight | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._body = b""
        self._has_ended = False
        self._is_framed = False
        self._is_reusable = False

    @property
    def is_open(self) -> bool:
        """Whether another call can go out on it."""
        return self._transport is not None and self._flight is None and not self._transport.is_closing()

    def carry(self, flight: Flight) -> None:
        """Send the flight's request; its `on_end` is called when the answer has ended, whatever that is."""
        assert self.is_open and self._transport is not None
        self._flight = flight
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._has_ended, self._is_framed, self._is_reusable = b"", False, False, False
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
            if not self._has_ended:
                self._end(flight, now, code="malformed")
                return
            self._is_reusable = False  # the answer is whole; what follows it is not ours
        answer = flight.answer
        if self._body:
            answer.take(self._body, now)
            self._body = b""
        if self._has_ended:
            self._end(flight, now, is_whole=True)
        elif flight.cancel_after and answer.events >= flight.cancel_after:
            self._end(flight, now, code="cancelled")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.forget(self)
        flight = self._flight
        if flight is None:
            return
        if flight.request:  # a kept connection that died before any byte came back
            self._flight = self._parser = None
            self._client.send_afresh(flight)
            return
        # Without framing the end of the connection is the end of the answer.
        is_whole = exc is None and not self._is_framed and flight.answer.has_begun
        self._end(flight, self._client.clock(), is_whole=is_whole)

    # ---- httptools' callbacks

    def on_message_begin(self) -> None:
        if self._has_ended:
            raise _Surplus
        self._is_framed = False  # what interim heads said is not the answer's
        if self._flight is not None:
            self._flight.answer.is_event_stream = False
            self._flight.request = b""  # the server has it

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-type" and self._flight is not None:
            self._flight.answer.is_event_stream = value.lstrip().lower().startswith(b"text/event-stream")
        elif lower in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        if self._flight is not None and self._parser is not None and self._parser.get_status_code() >= 200:
            self._flight.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        # one read, one look: a chunk at a time would count what arrived together as arrivals of their own
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        if self._parser is not None and self._parser.get_status_code() >= 200:  # else an interim head, as 100 Continue
            self._has_ended = True
            self._is_reusable = self._parser.should_keep_alive()

    def end_with(self, code: str) -> None:
        """End the call that it carries, with this code, and go away."""
        if self._flight is not None:
            self._end(self._flight, self._client.clock(), code=code)
        else:
            self.leave()

    def _end(self, flight: Flight, now: float, *, is_whole: bool = False, code: str | None = None) -> None:
        """The call is over. `code` is a reason of ours, which counts only where the answer has no `[DONE]` yet."""
        self._flight = self._parser = None
        self._body = b""
        answer = flight.answer
        said = answer.end(now, is_whole=is_whole)
        flight.code = said if code is None or answer.done_at is not None else code
        flight.ended = answer.done_at if answer.done_at is not None and not flight.code else now
        self._client.landed(flight)
        if is_whole and self._is_reusable and self.is_open:
            self._client.keep(self)
        else:
            self.leave()
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
        self._opening: dict[Flight, asyncio.Task[None]] = {}
        self._unconnected: deque[Flight] = deque()

    @property
    def flights(self) -> dict[Flight, Connection | None]:
        """All flights that have not ended."""
        return self._carrying

    def send(self, flight: Flight) -> None:
        """Let a flight go: on a kept connection at once, else as soon as a new one is open."""
        while self._idle:
            connection, _ = self._idle.popitem()  # the latest: the others may be dropped by the server as idle
            if connection.is_open:
                self._carry_on(connection, flight)
                return
        self.send_afresh(flight)

    def send_afresh(self, flight: Flight) -> None:
        """Let a flight go on a new connection."""
        flight.is_reused = False
        self._carrying[flight] = None
        if len(self._opening) >= MOST_CONNECTING:
            self._unconnected.append(flight)
            return
        task = self._opening[flight] = self._loop.create_task(self._open(flight))
        task.add_done_callback(lambda _: self._has_opened(flight))

    async def _open(self, flight: Flight) -> None:
        try:
            connection = await self._connect(lambda: Connection(self))
        except OSError as wrong:
            self._end_unsent(flight, _code_of(wrong))
            return
        if connection.is_open:
            self._carrying[flight] = connection
            connection.carry(flight)
        else:  # a server may close what it has just accepted
            self._end_unsent(flight, "cut")

    def _has_opened(self, flight: Flight) -> None:
        """Whatever became of it: another may connect now."""
        del self._opening[flight]
        if len(self._opening) < MOST_CONNECTING and (waiting := self._next_unconnected()) is not None:
            self.send_afresh(waiting)

    def _next_unconnected(self) -> Flight | None:
        while self._unconnected:
            flight = self._unconnected.popleft()
            if flight in self._carrying:  # else it was left while it waited
                return flight
        return None

    def _carry_on(self, connection: Connection, flight: Flight) -> None:
        """Let a flight go on a connection that was used before."""
        flight.is_reused = True
        self._carrying[flight] = connection
        connection.carry(flight)

    def end(self, flight: Flight, code: str) -> None:
        """End a flight that is under way, with this code; one whose answer has come to its `[DONE]` is done."""
        connection = self._carrying.get(flight)
        if connection is not None:
            connection.end_with(code)
        elif flight in self._carrying:
            if flight in self._opening:
                self._opening[flight].cancel()
            self._end_unsent(flight, code)

    def keep(self, connection: Connection) -> None:
        """A connection whose answer has ended, fit for the next call: that of a flight that waits for one, or later."""
        waiting = self._next_unconnected()
        if waiting is None:
            self._idle[connection] = None
        else:
            self._carry_on(connection, waiting)

    def forget(self, connection: Connection) -> None:
        """A connection that is gone."""
        self._idle.pop(connection, None)

    def end_all(self, code: str) -> None:
        """End all that is under way, with this code."""
        for flight in list(self._carrying):
            self.end(flight, code)

    def landed(self, flight: Flight) -> None:
        """A flight has ended; its connection says so."""
        self._carrying.pop(flight, None)

    async def close(self) -> None:
        """Leave everything. What is still under way ends as `stopped`."""
        self.end_all("stopped")
        for connection in list(self._idle):
            connection.leave()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)

    def _end_unsent(self, flight: Flight, code: str) -> None:
        del self._carrying[flight]
        flight.code = code
        flight.ended = self.clock()
        flight.answer.end(flight.ended, is_whole=False)
        flight.on_end(flight)


def _code_of(wrong: OSError) -> str:
    """What kept a connection from being made: the server, its certificate, or limits of this machine's own."""
    if isinstance(wrong, ssl.SSLError):
        return "tls_failed"
    return _OWN_LIMITS.get(wrong.errno or 0, "refused_connection")


def connect_to(
    loop: asyncio.AbstractEventLoop, address: tuple[str, int], *, tls: ssl.SSLContext | None = None, name: str = ""
) -> Connect:
    """How to open connections to this address, over TLS for the server of that `name` where a context is given."""

    async def connect(make: Callable[[], Connection]) -> Connection:
        server_name = name if tls is not None else None
        _, connection = await loop.create_connection(make, *address, ssl=tls, server_hostname=server_name)
        return connection

    return connect
