"""One request as the connection hands it to the application: its client's side, and the cycle that carries its answer.

`Client` is what the rest of the gateway knows of the connection. The cycles are uvicorn's, changed where its answers
would not be ours: a crash is answered with an OpenAI error object, and HTTP/1.0 clients get their body unframed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from gateway.http.errors import INTERNAL_ERROR, Fault
from gateway.http.outlet import Outlet
from gateway.http.parse import request_id_of
from gateway.record import Record
from tenancy.policy import ServerSettings

EXTENSION = "penstock.client"
"""Where a request's scope holds its `Client`, below `extensions`."""

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Notice = Callable[[], None]


class Face(Protocol):
    """What a connection is part of: its listener."""

    config: Config
    state: ServerState
    settings: ServerSettings
    loop: asyncio.AbstractEventLoop
    is_draining: bool

    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer: its date."""

    def new_id(self) -> str:
        """An id for a request that brought none."""

    def take(self, record: Record) -> None:
        """Note a request that was answered here, before any application code."""

    def crashed(self, error: BaseException, request_id: str) -> None:
        """The application raised; the client is told by the connection."""

    def closed(self) -> None:
        """A connection has ended."""


class Client:
    """The client's side of one request: where its answer goes, and when it leaves.

    `framed` says whether the body goes out in chunks, as HTTP/1.1 frames them; an HTTP/1.0 client gets payload until
    the connection closes. `fault` is what the client was told when its body broke a bound.
    """

    __slots__ = ("_flow", "_leave", "_pause", "_resume", "fault", "framed", "is_gone", "transport", "version")

    def __init__(self, transport: Outlet, flow: FlowControl, version: str) -> None:
        self._flow = flow
        self._leave: Notice | None = None
        self._pause: Notice | None = None
        self._resume: Notice | None = None
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

    def on_flow(self, pause: Notice | None, resume: Notice | None) -> None:
        """Have these called when the client's transport is full, and when it takes more again.

        Neither is called for what is so already: look at `write_paused` first. Forgotten when the answer is complete.
        """
        self._pause = pause
        self._resume = resume

    async def read(self, receive: Receive) -> bytes | Fault | None:
        """The request's whole body; the fault that its client was told already; or `None` if it left before the end.

        Size and time are bounded by the connection. Where the body came with its head (the usual), nothing waits.
        """
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
        """The answer is complete: nobody is to be called any more."""
        self._leave = self._pause = self._resume = None

    def flow(self, is_paused: bool) -> None:
        """The transport is full, or takes more again (called by the connection)."""
        notify = self._pause if is_paused else self._resume
        if notify is not None:
            notify()


class Cycle(RequestResponseCycle):
    """One request and its answer; ours, so that a crash is answered in the form of all other errors."""

    client: Client
    face: Face

    async def run_asgi(self, app: Any) -> None:
        crash: BaseException | None = None
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:
            crash = error
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        try:
            if crash is not None or not (self.disconnected or self.response_complete):
                await self._end(crash or RuntimeError("the application returned without a complete answer"))
        finally:
            self.on_response = _nothing  # it would hold the connection in a cycle of references

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
