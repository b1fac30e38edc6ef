"""The simulator's HTTP server: an asyncio protocol over httptools, as small as serving many cheap streams asks for.

A connection reads requests, one answer at a time, and hands each with a `Reply` to the application. A reply can do
what a real server does, and what only a broken one does: end in mid-body, or reset the connection after exactly so
many bytes.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: penstock-simulator\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
SIZES = tuple(b"%x\r\n" % size for size in range(4096))
"""The size line of a chunk, by its size."""
_RESET = struct.pack("ii", 1, 0)
_FLUSH_SECONDS = 2.0


def framed(payload: bytes) -> bytes:
    """The payload as one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)


@dataclass(slots=True)
class Request:
    """One request, whole."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        """The first header of this lower-case name, or an empty string."""
        return next((value for each, value in self.headers if each == name), "")


class Reply:
    """The answer to one request. After its end, or once the client has left, nothing more happens."""

    __slots__ = ("_connection", "_head", "_keeps_alive", "_kept", "body_budget", "is_over", "left", "spent", "was_left")

    def __init__(self, connection: Connection, keeps_alive: bool) -> None:
        self._connection = connection
        self._keeps_alive = keeps_alive
        self._head = b""
        self._kept: list[bytes] | None = None
        self.is_over = False
        self.was_left = False
        self.left: Callable[[], None] | None = None
        """Called once if the client leaves before the end."""
        self.body_budget: int | None = None
        """Bytes of body after which the connection is reset; `None`: never."""
        self.spent: Callable[[], None] | None = None
        """Called once when that happens."""

    def whole(self, status: int, body: bytes, content_type: str = "application/json", extra: bytes = b"") -> None:
        """The whole answer at once. `extra` are header lines, each ended."""
        self.hold()
        self._head = self._whole_head(status, len(body), content_type, extra)
        self.send(body)
        self._finish()

    def torn(self, body: bytes) -> None:
        """A head that promises the whole answer, half of it, and an orderly end of the connection."""
        self.hold()
        self._head = self._whole_head(200, len(body), "application/json", b"")
        self.send(body[: len(body) // 2])
        self._keeps_alive = False
        self._finish()

    def _whole_head(self, status: int, size: int, content_type: str, extra: bytes) -> bytes:
        closing = b"" if self._keeps_alive else b"connection: close\r\n"
        phrase = HTTPStatus(status).phrase if status in _STATUSES else "Unknown"
        return (
            f"HTTP/1.1 {status} {phrase}\r\nserver: penstock-simulator\r\ncontent-type: {content_type}\r\n"
            f"content-length: {size}\r\n"
        ).encode() + b"%s%s\r\n" % (closing, extra)

    def start_stream(self) -> None:
        """The head of a chunked event stream; it goes out with what is held back, at once where nothing is."""
        self._head = _STREAM_HEAD
        if self._kept is None:
            self.hold()
            self.flush()

    def send(self, body: bytes) -> None:
        """Bytes of body as they go on the wire, framing included. Hot."""
        if self._kept is not None:
            self._kept.append(body)
        elif not self.is_over:
            self._connection.transport.write(body)

    def hold(self) -> None:
        """Keep back what is sent from now on until `flush`: each write of a transport is a system call."""
        if self._kept is None and not self.is_over:
            self._kept = []

    def flush(self) -> None:
        """Write what was held back; with a budget, as much of it as is left, and then reset the connection."""
        if self._kept is None or self.is_over:
            return
        body = b"".join(self._kept)
        head, self._head = self._head, b""
        budget = self.body_budget
        if budget is None:
            self._kept = None
            if head or body:
                self._connection.transport.write(head + body)
            return
        self._kept.clear()  # with a budget everything goes this way
        self._connection.transport.write(head + body[:budget])
        self.body_budget = budget - len(body)
        if self.body_budget <= 0:
            spent, self.spent = self.spent, None
            self.reset()
            if spent is not None:
                spent()

    def end(self) -> None:
        """The orderly end of a chunked body."""
        self.send(b"0\r\n\r\n")
        self._finish()

    def reset(self) -> None:
        """Reset the connection, after all that was sent has reached the other side."""
        if self._kept or self._head:
            self.flush()
        if not self.is_over:
            self.is_over = True
            self.left = None
            self._connection.reset_when_flushed()

    def _finish(self) -> None:
        self.flush()
        if not self.is_over:
            self.is_over = True
            self.left = None
            self._connection.answered(self._keeps_alive)

    def client_left(self) -> None:
        """The connection is gone."""
        self.is_over = self.was_left = True
        self._kept = None
        left, self.left = self.left, None
        if left is not None:
            left()


_STATUSES = frozenset(HTTPStatus)


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(
        self, application: Callable[[Request, Reply], None], connections: set[Connection], refuses: Callable[[], bool]
    ) -> None:
        self.transport: asyncio.Transport
        self._application = application
        self._connections = connections
        self._refuses = refuses
        self._parser = httptools.HttpRequestParser(self)
        self._reply: Reply | None = None
        self._pending: deque[tuple[Request, bool]] = deque()
        self._is_open = False
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []

    @property
    def is_idle(self) -> bool:
        """Nothing is being answered."""
        return self._reply is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._is_open = True
        self._connections.add(self)
        if self._refuses():
            self.reset()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        self._connections.discard(self)
        self._pending.clear()
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.client_left()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            reply = Reply(self, keeps_alive=False)
            reply.whole(400, f"Invalid HTTP request received: {error}".encode(), "text/plain; charset=utf-8")

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", [], []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if ("expect", "100-continue") in self._headers:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._url.partition(b"?")[0].decode("latin-1"),
            self._headers,
            b"".join(self._body),
        )
        keeps_alive = self._parser.should_keep_alive()
        self._pending.append((request, keeps_alive))
        if self._reply is None and len(self._pending) == 1:
            self._answer_next()

    def _answer_next(self) -> None:
        if self._pending and self._reply is None and not self.transport.is_closing():
            request, keeps_alive = self._pending.popleft()
            self._reply = Reply(self, keeps_alive)
            self._application(request, self._reply)

    # What a reply asks for.

    def answered(self, keeps_alive: bool) -> None:
        """The present reply is complete."""
        self._reply = None
        if not keeps_alive:
            self.transport.close()
        elif self._pending:
            asyncio.get_running_loop().call_soon(self._answer_next)  # not from here: requests may be many

    def reset(self) -> None:
        """Close with a reset instead of an orderly end."""
        sock = self.transport.get_extra_info("socket")
        if self._is_open and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def reset_when_flushed(self) -> None:
        """Reset as soon as the other side's kernel has all that was sent; after two seconds in any case."""
        self._reply = None
        self._pending.clear()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _FLUSH_SECONDS

        def look() -> None:
            if not self._is_open:
                return
            if self._unsent() and loop.time() < deadline:
                loop.call_later(0.001, look)
            else:
                self.reset()

        look()

    def _unsent(self) -> bool:
        """Whether bytes are still in the transport or in the kernel's send queue."""
        if self.transport.get_write_buffer_size():
            return True
        sock = self.transport.get_extra_info("socket")
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        return bool(struct.unpack("i", queued)[0])
