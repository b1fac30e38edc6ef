"""One request as the connection hands it to the application: its client's side, and the cycle that carries its answer.

`Client` is what the rest of the gateway knows of the connection. Answers to calls go through it to the transport
directly: uvicorn's `send` looks at each header with two regular expressions, and writes head, body and end apart, each
a system call; of a one-token request that was 48 of 420 µs, and two of three calls. Everything else is answered through
`send`. The cycles are uvicorn's, changed where its answers would not be ours: a crash is answered with an OpenAI error
object, and HTTP/1.0 clients get their body unframed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.http.errors import INTERNAL_ERROR, Fault
from gateway.http.parse import request_id_of
from gateway.record import Record
from tenancy.policy import ServerSettings

EXTENSION = "penstock.client"
"""Where a request's scope holds its `Client`, below `extensions`."""

Headers = Iterable[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Notice = Callable[[], None]

_FIELD = b": ".join


class Face(Protocol):
    """What a connection is part of: its listener."""

    config: Config
    state: ServerState
    settings: ServerSettings
    loop: asyncio.AbstractEventLoop
    is_draining: bool

    def dated(self) -> bytes:
        """The header of every answer, its date: a line without its end."""

    def new_id(self) -> str:
        """An id for a request that brought none."""

    def take(self, record: Record) -> None:
        """Note a request that was answered here, before any application code."""

    def crashed(self, error: BaseException, request_id: str) -> None:
        """The application raised; the client is told by the connection."""

    def closed(self) -> None:
        """A connection has ended."""


class Answering(Protocol):
    """What a client's answer changes of its uvicorn cycle, so that uvicorn's rules of keep-alive stay in force."""

    dated: bytes
    keep_alive: bool
    more_body: bool
    body: bytearray
    waiting_for_100_continue: bool
    response_started: bool
    response_complete: bool
    news: asyncio.Event | None
    on_response: Callable[[], None]


class ClientFlow(FlowControl):
    """uvicorn's, whose event is made when the transport is full, and not for each of all the connections."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False

    async def drain(self) -> None:
        if self.write_paused:
            await super().drain()

    def pause_writing(self) -> None:
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = asyncio.Event()


class Flowing(Protocol):
    """What can be told to wait while the client is slow."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Client:
    """The client's side of one request: where its answer goes, and when it leaves.

    `framed` says whether the body goes out in chunks, as HTTP/1.1 frames them; an HTTP/1.0 client gets payload until
    the connection closes. `fault` is what the client was told when its body broke a bound. `cycle` is uvicorn's, until
    the answer is complete or nobody waits for it.
    """

    __slots__ = ("_flow", "_following", "_leave", "cycle", "fault", "framed", "is_gone", "transport", "version")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, version: str) -> None:
        self._flow = flow
        self._leave: Notice | None = None
        self._following: Flowing | None = None
        self.cycle: Answering | None = None
        self.transport = transport
        self.version = version
        self.framed = version == "1.1"
        self.is_gone = False
        self.fault: Fault | None = None

    @property
    def write_paused(self) -> bool:
        """Whether the client's transport holds as much as it should until the client reads on."""
        return self._flow.write_paused

    def on_leave(self, leave: Notice | None) -> None:
        """Have `leave` called once, when the connection is lost; at once if it is lost already.

        Forgotten when the answer is complete.
        """
        if self.is_gone and leave is not None:
            leave()
        else:
            self._leave = leave

    def follow(self, flow: Flowing | None) -> None:
        """Have this one pause when the client's transport is full, and resume when it takes more again.

        It is not told of what is so already: look at `write_paused` first. Forgotten when the answer is complete.
        """
        self._following = flow

    async def read(self, receive: Receive) -> bytes | Fault | None:
        """The request's whole body; the fault that its client was told already; or `None` if it left before the end.

        Size and time are bounded by the connection. Where the body came with its head (the usual), nothing waits.
        """
        cycle = self.cycle
        if cycle is not None and not cycle.more_body:
            whole, cycle.body = bytes(cycle.body), bytearray()
            return whole
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            pieces = [body]
            while message.get("more_body"):
                message = await receive()
                pieces.append(message.get("body", b""))
            body = b"".join(pieces)
        if message["type"] == "http.request":
            return body
        return self.fault

    async def drained(self) -> None:
        """Wait until the client's transport takes more, where an earlier answer has not been read, or it has gone."""
        if self._flow.write_paused and not self.is_gone:
            await self._flow.drain()

    def begin(self, status: int, headers: Headers) -> bytes:
        """The head of the answer, to be written before anything else; the answer counts as begun.

        Headers are the gateway's own, lower-case and without line breaks. One without content-length is streamed.
        """
        cycle = self.cycle
        if cycle is None:
            return b""
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        # Joined by `map` in C: a loop over the headers takes a quarter more.
        lines = [STATUS_LINE[status] + cycle.dated, *map(_FIELD, headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close")
        head = b"\r\n".join(lines)
        if not self.framed or head.find(b"\r\ncontent-length: ") >= 0:  # no value has a line break; `in` is twice that
            return head + b"\r\n\r\n"
        return head + b"\r\ntransfer-encoding: chunked\r\n\r\n"

    def complete(self, last: bytes) -> None:
        """Write the last bytes of the answer, its terminator included: the connection goes on as uvicorn has it."""
        cycle = self.cycle
        if cycle is None:
            return
        self.transport.write(last)
        cycle.response_complete = True
        if cycle.news is not None:
            cycle.news.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def gone(self) -> None:
        """The connection is lost (called by it): tell whoever waits."""
        if self.is_gone:
            return
        self.is_gone = True
        leave = self._leave
        self.forget()
        if leave is not None:
            leave()

    def forget(self) -> None:
        """The answer is complete, or nobody waits for it: nobody is to be called any more."""
        self._leave = self._following = self.cycle = None

    def flow(self, is_paused: bool) -> None:
        """The transport is full, or takes more again (called by the connection)."""
        flow = self._following
        if flow is None:
            return
        if is_paused:
            flow.pause()
        else:
            flow.resume()


class Cycle(RequestResponseCycle):
    """One request and its answer; ours, so that a crash is answered in the form of all other errors."""

    # What uvicorn's `send` reads, and what stays so for nearly all requests.
    access_log = False
    chunked_encoding: bool | None = None
    expected_content_length = 0

    def __init__(
        self,
        face: Face,
        client: Client,
        scope: Any,
        flow: FlowControl,
        expects_100_continue: bool,
        keep_alive: bool,
        on_response: Callable[[], None],
    ) -> None:
        # Without uvicorn's __init__: its eleven named arguments, and an event for each request, are 1.5 µs more.
        self.face = face
        self.client = client
        self.task: asyncio.Task[None] | None = None
        self.news: asyncio.Event | None = None
        self.dated = face.dated()
        self.scope = scope
        self.transport = client.transport
        self.flow = flow
        self.on_response = on_response
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expects_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        client.cycle = self

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        """For uvicorn's `send`."""
        name, _, value = self.dated.partition(b": ")
        return [(name, value)]

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """For uvicorn's `receive`: set while there is something to receive.

        Made when somebody waits for it, as few do: a call's body has mostly come with its head. Whoever has news sets
        `news`, if it is there.
        """
        if self.news is None:
            self.news = asyncio.Event()
            if self.body or not self.more_body:
                self.news.set()
        return self.news

    async def run_asgi(self, app: Any) -> None:
        crash: BaseException | None = None
        try:
            try:
                await app(self.scope, self.receive, self.send)
            except Exception as error:
                crash = error
            except asyncio.CancelledError:
                self.transport.abort()
                raise
            if crash is not None or not (self.disconnected or self.response_complete):
                await self._end(crash or RuntimeError("the application returned without a complete answer"))
        finally:
            # Either would hold the connection, or this, in a cycle of references.
            self.on_response = _nothing
            task, self.task = self.task, None
            if task is not None:
                self.face.state.tasks.discard(task)

    async def _end(self, crash: BaseException) -> None:
        """The application is done, its answer is not."""
        known_id = request_id_of(self.scope["headers"])
        self.face.crashed(crash, known_id or "")
        if self.response_started:
            if not self.response_complete:
                self.transport.close()  # cut short: the client must not take it for whole
            return
        body = INTERNAL_ERROR.body()
        own = [
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", (known_id or self.face.new_id()).encode()),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": [*INTERNAL_ERROR.headers(), *own]})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


class UnframedCycle(Cycle):
    """The answer to an HTTP/1.0 client: never chunked, ended by the connection's close."""

    async def send(self, message: Any) -> None:
        # What uvicorn takes for an answer with a content-length, of which exactly what comes now is missing.
        self.chunked_encoding = False
        self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def _nothing() -> None:
    """What a cycle calls at its end once nobody is interested any more."""
