"""The client's connection: uvicorn's protocol, with bounds, and with the client's transport handed to the answer.

uvicorn parses requests, runs the application and sends what it answers; its keep-alive rules stay in force. This
subclass adds what it lacks:

- A `Client` in the scope (extension `penstock.client`): the transport that the relay writes to, the client's leaving as
  a call made at once, and its back-pressure.
- Bounds before any application code: on heads and the time they take, on bodies and theirs, on trailers and chunk
  extensions.
- Every answer of its own is an OpenAI error object. uvicorn's are plain text, and never go out.
- HTTP/1.0 clients get their body unframed; uvicorn would frame it.
- A leaving is seen whatever the client has pipelined. uvicorn stops reading there, and tells only the newest request
  of the end. Here reading goes on: what is queued behind an answer is bounded, the rest is dropped and the connection
  closed after the last answer, as RFC 9112 (9.3.2) lets a server do.

It builds on private names of uvicorn, which is pinned for that; tests/test_house.py holds the list.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from backends.wire.deadline import Deadline
from gateway.http.client import EXTENSION, Client, ClientFlow, Cycle, Face, UnframedCycle
from gateway.http.errors import NO_UPGRADE, Fault, headers_too_large, malformed, request_timeout, request_too_large
from gateway.http.parse import request_id_of
from gateway.record import Record

__all__ = ["EXTENSION", "Client", "ClientProtocol"]

# A request's scope, to be copied and filled in as it comes: 0.4 of 0.9 µs less than to build it.
_SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "server": None,
    "client": None,
    "scheme": "http",
    "method": "",
    "root_path": "",
    "path": "",
    "raw_path": b"",
    "query_string": b"",
    "headers": [],
    "state": {},
    "extensions": {},
}
_MOST_PIPELINED = 16
_MOST_PATH = 200  # of a path in the log
_LINGER_SECONDS = 5.0  # how long what a refused client still sends is read, so that no RST takes the answer away
_FLUSH_SECONDS = 300.0  # how long a closed connection may take to deliver what was already answered


# Where in a request the next byte belongs. Numbers, here and below: a member of an Enum costs two look-ups more.
_BETWEEN, _HEAD, _BODY = range(3)

# What the connection's timer stands for: nothing, the rest of a head or body, the next request of a kept connection,
# the connection's close. (One that stands for nothing may still ring.)
_FOR_NOTHING, _FOR_HEAD, _FOR_BODY, _FOR_NEXT, _FOR_END = range(5)


class _StopError(httptools.HttpParserError):
    """Stops the parser, from one of its callbacks or beside it; why stands in the protocol."""


class ClientProtocol(HttpToolsProtocol):
    """One connection of a client. At any time at most one of its requests, `_active`, is being answered.

    `cycle` is that of the newest.
    """

    cycle: Cycle
    flow: ClientFlow

    def __init__(self, face: Face) -> None:
        # Without uvicorn's __init__, which looks up loggers and sets much that only its own rules read: with the event
        # that `ClientFlow` does without, 7 of the 11 µs that a connection cost. tests/test_house.py holds what its
        # methods read against what is set here.
        self.app = face.config.loaded_app
        self.loop = face.loop
        self.connections = face.state.connections
        self.tasks = face.state.tasks
        self.cycle = None  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # what is pipelined behind it is answered
        self._face = face
        self._settings = face.settings
        self._head_bytes = face.settings.head_bytes
        self._phase = _BETWEEN
        self._active: Cycle | None = None
        self._queued: list[Cycle] = []  # pipelined behind it, the newest last
        self._loose_bytes = 0  # came since the last sign of progress: a head's end, a piece of body
        self._body_bytes = 0
        self._fault: Fault | None = None  # to be told when all earlier requests are answered
        self._is_deaf = False  # what still comes is read and dropped
        self._wait = _FOR_NOTHING
        self._deadline = Deadline(face.loop.time, face.loop.call_later, self._expire)

    # ---- the connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # As uvicorn's, but for the addresses, which nobody asks for and which are two system calls.
        self.connections.add(self)
        self.transport = transport
        self.flow = ClientFlow(transport)
        self.scheme = "https" if transport.get_extra_info("sslcontext") is not None else "http"
        self._watch(_FOR_HEAD, self._settings.head_timeout_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self._is_deaf = True
        self._deadline.cancel()
        self._queued.clear()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]  # it holds the connection in a cycle of references
        self._face.closed()
        self._leave()

    def eof_received(self) -> None:
        """The client closed its side: it has left, even if what it was sent still waits in our buffer."""
        if self._active is not None:
            self._leave()
            self.transport.abort()

    def _leave(self) -> None:
        """Nobody waits for the answer under way any more: tell those who make it."""
        active, self._active = self._active, None
        if active is not None:
            active.disconnected = True
            if active.news is not None:
                active.news.set()
            active.client.gone()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._active is not None:
            self._active.client.flow(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._active is not None:
            self._active.client.flow(False)

    def drain(self) -> None:
        """Close after what is being answered, or, if nothing is, after the next answer."""
        if self._active is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close now if nothing is being asked or answered, else after the answer."""
        self.drain()
        if self._active is None and self._phase == _BETWEEN:
            self._close()

    def _close(self) -> None:
        self._is_deaf = True
        self.transport.close()
        self._watch(_FOR_END, _FLUSH_SECONDS)

    # ---- what comes --------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._loose_bytes += len(data)
        try:
            if self._loose_bytes > self._head_bytes:
                self._feed_bounded(data)
            else:
                self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if not self._is_deaf:
                is_ours = isinstance(error, httptools.HttpParserCallbackError)
                self._refuse(malformed("its target is not a path" if is_ours else str(error)))
            return
        if self._phase != _BETWEEN or self._active is None:
            self._keep_time()

    def _feed_bounded(self, data: bytes) -> None:
        """Feed so that no head is taken that is longer than it may be, however much came at once.

        (What of a head came in one piece with the end of the request before it is not counted: less than the bound.)
        """
        view = memoryview(data)
        self._loose_bytes -= len(view)
        while view:
            room = min(len(view), self._head_bytes)
            if self._phase != _BODY:
                room = min(room, self._head_bytes - self._loose_bytes)
            self._loose_bytes += room
            try:
                self.parser.feed_data(view[:room])
            except httptools.HttpParserUpgrade as upgrade:
                raise httptools.HttpParserUpgrade(len(data) - len(view) + upgrade.args[0]) from None
            view = view[room:]
            if self._loose_bytes >= self._head_bytes and (view or self._loose_bytes > self._head_bytes):
                # A whole head's worth of bytes, and neither its end nor a piece of body in them. In a body these are
                # trailers or chunk extensions.
                self._stop(headers_too_large(self._head_bytes))

    def _stop(self, fault: Fault) -> None:
        """Refuse from inside a parser's callback."""
        self._refuse(fault)
        raise _StopError

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1, as a server may, with a request that offered more: Java's client offers h2c at first.

        The parser takes such a request to be without a body. So the head is parsed anew, without the offer.
        """
        if self._is_deaf:
            return
        lines = [self.scope["method"].encode(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.scope["headers"]:
            if name != b"upgrade":
                lines += (name, b": ", value, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._loose_bytes = 0
        self._phase = _BETWEEN
        self.data_received(b"".join((*lines, b"\r\n")))
        if rest:
            self.data_received(rest)

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        scope = _SCOPE.copy()
        scope["scheme"] = self.scheme
        scope["headers"] = self.headers
        scope["state"] = {}
        self.scope = scope  # type: ignore[assignment]

    def on_headers_complete(self) -> None:
        self._loose_bytes = 0
        scope = self.scope
        headers = self.headers
        self.headers = []  # trailers are not headers, whoever reads the scope late
        version = self.parser.get_http_version()
        method = scope["method"] = self.parser.get_method().decode("ascii")
        if self.parser.should_upgrade():
            if method == "CONNECT" or (b"upgrade", b"websocket") in ((name, value.lower()) for name, value in headers):
                self._stop(NO_UPGRADE)
            return
        if version != "1.1":
            scope["http_version"] = version
        scope["path"], scope["raw_path"], scope["query_string"] = _target(self.url)
        for name, value in headers:
            if name == b"content-length" and int(value) > self._settings.body_bytes:
                self._stop(request_too_large(self._settings.body_bytes))
        face = self._face
        client = Client(self.transport, self.flow, version)
        scope["extensions"] = {EXTENSION: client}  # type: ignore[dict-item]
        cycle = (Cycle if client.framed else UnframedCycle)(
            face,
            client,
            scope,
            self.flow,
            self.expect_100_continue,
            client.framed and self.parser.should_keep_alive() and not face.is_draining,
            self.on_response_complete,
        )
        self._phase = _BODY
        if self._active is None:
            self.cycle = cycle
            self._start(cycle)
        elif len(self._queued) < _MOST_PIPELINED:
            self.cycle = cycle
            self._queued.append(cycle)
        else:
            self._drop_surplus()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > self._settings.body_bytes:
            self._stop(request_too_large(self._settings.body_bytes))
        cycle = self.cycle
        if cycle.response_complete:
            return  # answered early; the rest is dropped
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            if cycle is self._active:
                self.flow.pause_reading()
            else:
                self._queued.pop()
                self._drop_surplus()
        if cycle.news is not None:
            cycle.news.set()

    def on_message_complete(self) -> None:
        has_offer = self._phase == _HEAD  # of an upgrade: its head ended, and nothing was made of it
        self._phase = _BETWEEN
        self._loose_bytes = 0
        self._body_bytes = 0
        self._wait = _FOR_NOTHING
        if has_offer:
            return
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            if cycle.news is not None:
                cycle.news.set()
        # uvicorn leaves a body's last large piece with reading paused, and then nobody sees the client leave.
        if self.flow.read_paused:
            self.flow.resume_reading()

    def _drop_surplus(self) -> None:
        """More was pipelined than is kept: answer what there is, then close; the client sends the rest again."""
        self._is_deaf = True
        last = self._queued[-1] if self._queued else self._active
        assert last is not None
        last.keep_alive = False
        raise _StopError

    # ---- what goes ---------------------------------------------------------------------------------------------------

    def _start(self, cycle: Cycle) -> None:
        self._active = cycle
        # Made and ended by hand: `create_task` makes up a name, and a callback at its end is one more turn of the loop,
        # together 1 µs.
        cycle.task = task = asyncio.Task(cycle.run_asgi(self.app), loop=self.loop, name="request")
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        active, self._active = self._active, None
        if active is not None:
            active.client.forget()
        if self.transport.is_closing():
            self._is_deaf = True
            self._watch(_FOR_END, _FLUSH_SECONDS)
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self._queued:
            self._start(self._queued.pop(0))
        elif self._fault is not None:
            self._answer(self._fault)
        else:
            self._keep_time()

    def _refuse(self, fault: Fault, waited_seconds: float = 0.0) -> None:
        """Answer the request that is arriving with `fault`, after those before it, and take nothing more."""
        self._is_deaf = True
        self._wait = _FOR_NOTHING
        active = self._active
        if active is None:
            if self._phase == _BODY:
                self._close()  # it was answered before its body had come
            else:
                self._answer(fault, waited_seconds)
        elif self._phase != _BODY:
            self._fault = fault
        elif self.cycle is not active:
            if self._queued and self._queued[-1] is self.cycle:
                self._queued.pop()
            self._fault = fault
        elif active.response_started:
            active.keep_alive = False  # it is being answered before its body has come
        else:
            active.client.fault = fault
            self._leave()
            self._send_last(fault, request_id_of(self.scope["headers"]) or self._face.new_id())

    def _answer(self, fault: Fault, waited_seconds: float = 0.0) -> None:
        """Tell `fault` to a client of whose request no application knows."""
        request_id, path = None, ""
        if self._phase != _BETWEEN:
            request_id, path = request_id_of(self.scope["headers"]), self.scope.get("path", "")
        request_id = request_id or self._face.new_id()
        self._send_last(fault, request_id)
        now = self.loop.time()
        record = Record(request_id, path[:_MOST_PATH], now - waited_seconds, status=fault.status, code=fault.code)
        record.ended_at = now
        record.detail = fault.message
        self._face.take(record)

    def _send_last(self, fault: Fault, request_id: str) -> None:
        """Send `fault` and end the connection: our side now, the client's when it has read the answer, or soon."""
        body = fault.body()
        lines = [STATUS_LINE[fault.status], self._face.dated(), b"\r\n"]
        for name, value in (
            *fault.headers(),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
        ):
            lines += (name, b": ", value, b"\r\n")
        self.flow.resume_reading()
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._watch(_FOR_END, _LINGER_SECONDS)

    # ---- time --------------------------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Choose what the connection waits for now; a wait under way keeps its time."""
        if self._is_deaf:
            return
        if self._phase == _BODY:
            if self._wait != _FOR_BODY:
                self._watch(_FOR_BODY, self._settings.body_timeout_seconds)
        elif self._active is not None:
            self._wait = _FOR_NOTHING
        elif self._phase == _HEAD or self._wait == _FOR_NEXT:
            if self._wait != _FOR_HEAD:
                self._watch(_FOR_HEAD, self._settings.head_timeout_seconds)
        elif self._face.is_draining:
            self._close()
        elif self._wait == _FOR_NOTHING:
            self._watch(_FOR_NEXT, self._settings.keep_alive_seconds)

    def _watch(self, wait: int, seconds: float) -> None:
        self._wait = wait
        self._deadline.set(seconds)

    def _expire(self) -> None:
        if self._wait == _FOR_NOTHING:
            return  # set for something that has come: clearing it there would be a call more for each request
        if self._wait == _FOR_END:
            self.transport.abort()
        elif self._wait == _FOR_BODY:
            waited = self._settings.body_timeout_seconds
            self._refuse(request_timeout("body", waited), waited)
        elif self._phase == _HEAD:
            waited = self._settings.head_timeout_seconds
            self._refuse(request_timeout("head", waited), waited)
        else:
            self._close()  # nothing of a request has come: there is nothing to answer


@lru_cache(64)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, raw path and query of a request's target. Kept, since most ask for the same: `parse_url` is 0.6 µs."""
    if url == b"*":
        return "*", url, b""
    parsed = httptools.parse_url(url)
    raw_path = parsed.path or b"/"
    path = raw_path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, raw_path, parsed.query or b""
