"""The connections to one pod: kept alive, taken again latest first, and repaired without a word.

Servers close idle connections whenever they like, and some (llama.cpp's, after every streamed answer) without saying
so. A request that goes out on a kept connection and gets no byte of an answer has therefore told nothing about the
pod: it is sent once more, at once, on a fresh connection. Whether a call is tried elsewhere is not decided here.

How many requests a pod gets is admission's to limit; there is no limit here. Every request costs O(1) of bookkeeping.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from functools import cache, cached_property, lru_cache, partial
from typing import Final, Protocol
from urllib.parse import urlsplit

from backends.outcome import Ending
from backends.wire.connection import Connection
from backends.wire.deadline import CallLater, Timer
from backends.wire.transfer import Timeouts, Transfer

Connect = Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[object]]
"""Connects the protocol that it is given a factory of. Raises what `create_connection` raises."""

IDLE_SECONDS: Final = 4.0  # below the 5 s after which uvicorn, under most pods, closes

_OURS: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"accept-encoding", b"expect"}
)
_BREAKS: Final = b"\r\n\0"


class Request(Protocol):
    """What goes to the pod: a path below its URL, headers beside those that every request has, and a body, if any."""

    @property
    def path(self) -> str: ...

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]: ...

    @property
    def body(self) -> bytes: ...


def connector(url: str, *, tls: ssl.SSLContext | None = None) -> Connect:
    """The way to the pod at `url` over real sockets.

    An `https` URL is reached over TLS, its certificate verified by `tls` (else by the system's authorities). The
    event loops set TCP_NODELAY.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"a pod's URL is http://host:port or https://host:port, not {url!r}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    context = (tls or _system_authorities()) if parts.scheme == "https" else None

    def connect(factory: Callable[[], asyncio.BaseProtocol]) -> Awaitable[object]:
        return asyncio.get_running_loop().create_connection(factory, host, port, ssl=context)

    return connect


@cache
def _system_authorities() -> ssl.SSLContext:
    """Verifies by the system's authorities; one for all, because loading them takes 20 ms of the loop's time."""
    return ssl.create_default_context()


class Pool:
    """The connections to the pod at `url`, which may have a path that goes before every request's.

    `clock` and `call_later` are the loop's; `idle_seconds` is how long a connection is kept without a request.
    """

    def __init__(
        self,
        url: str,
        *,
        connect: Connect,
        clock: Callable[[], float],
        call_later: CallLater,
        timeouts: Timeouts,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        self._prefix = parts.path.rstrip("/")
        self._host = b"host: %b\r\naccept-encoding: identity" % parts.netloc.rpartition("@")[2].encode("ascii")
        self._connect = connect
        self._clock = clock
        self._call_later = call_later
        self._timeouts = timeouts
        self._idle_seconds = idle_seconds
        self._idle: dict[Connection, float] = {}  # since when; the longest first
        self._idle_timer: Timer | None = None
        self._dialling: dict[Connection, tuple[Transfer, bytes, bool]] = {}
        self._open = 0
        self._is_closed = False

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop that requests are sent in: asked for once, because each time is a system call (`getpid`)."""
        return asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def open(self) -> int:
        """Connections that stand, idle ones among them."""
        return self._open

    @property
    def dialling(self) -> int:
        """Connections that are being made."""
        return len(self._dialling)

    def send(self, request: Request, *, frames: bool, method: str = "POST") -> Transfer:
        """Send a request now, on a kept connection or a fresh one. Never waits; fails by the transfer's outcome.

        `frames`: whether the receiver can take whole chunks as the pod framed them. A header or path that would break
        out of its line is our own bug, and raises `ValueError`.
        """
        assert method != "HEAD", "the answer to a HEAD has a body's headers and no body, which framing does not know"
        encoded = self._encode(request, method)
        transfer = Transfer(self._loop.create_future(), self._call_later, self._timeouts)
        if self._is_closed:
            transfer.fail(Ending.REFUSED, "the pod is no longer used")
            return transfer
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable:
                connection.ask(transfer, encoded, frames=frames)
                return transfer
        self._dial(transfer, encoded, frames=frames)
        return transfer

    def close(self) -> None:
        """Close what is idle, and take no more requests; what is under way goes on to its end."""
        self._is_closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        idle, self._idle = list(self._idle), {}
        for connection in idle:
            connection.close()

    # For the connections

    def made(self, connection: Connection) -> None:
        """Send the request that the connection was made for, if anybody still waits for its answer."""
        self._open += 1
        waiting = self._dialling.pop(connection, None)
        if waiting is None or waiting[0].is_over:
            connection.drop()
            return
        transfer, request, frames = waiting
        connection.ask(transfer, request, frames=frames)

    def freed(self, connection: Connection) -> None:
        """Keep it for the next request."""
        if self._is_closed:
            connection.close()
            return
        self._idle[connection] = self._clock()
        if self._idle_timer is None:
            self._idle_timer = self._call_later(self._idle_seconds, self._expire)

    def gone(self, connection: Connection) -> None:
        """Forget it."""
        self._idle.pop(connection, None)
        self._open -= 1

    def unanswered(self, transfer: Transfer, request: bytes, *, frames: bool) -> None:
        """Send again on a fresh connection; that one is not kept, so that there is no third time."""
        self._dial(transfer, request, frames=frames)

    # Connecting, and letting go

    def _dial(self, transfer: Transfer, request: bytes, *, frames: bool) -> None:
        connection = Connection(self, clock=self._clock, call_later=self._call_later)
        self._dialling[connection] = (transfer, request, frames)
        dialling = asyncio.ensure_future(self._connect(lambda: connection))
        transfer.dial(dialling)
        dialling.add_done_callback(partial(self._dialled, connection, transfer))

    def _dialled(self, connection: Connection, transfer: Transfer, dialling: asyncio.Future[object]) -> None:
        self._dialling.pop(connection, None)
        if dialling.cancelled():
            return
        error = dialling.exception()
        if error is not None:
            transfer.fail(Ending.REFUSED, str(error) or type(error).__name__)

    def _expire(self) -> None:
        """Close what has been idle for long, and come back when the next one will have been."""
        self._idle_timer = None
        now = self._clock()
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            left = since + self._idle_seconds - now
            if left > 0.001:  # timers may come a clock's step early
                self._idle_timer = self._call_later(left, self._expire)
                return
            del self._idle[connection]
            connection.close()

    # The request's bytes

    def _encode(self, request: Request, method: str) -> bytes:
        headers, body = request.headers, request.body
        names, values = zip(*headers, strict=True) if headers else ((), ())
        has_length = bool(body) or method == "POST"
        form = _form(method, self._prefix, request.path, self._host, names, has_length)
        told = b"".join(values)
        if told.translate(None, _BREAKS) != told:
            raise ValueError("a header would break out of its line")
        return form % ((len(body), *values, body) if has_length else (*values, body))


# A pod's requests differ in values alone: 15,000 instructions less for each. A pod has a few forms, those of its polls
# among them, which must not push out those of calls.
@lru_cache(1024)
def _form(method: str, prefix: str, path: str, host: bytes, names: tuple[bytes, ...], has_length: bool) -> bytes:
    """A request with headers of these `names`: with `%` for the body's length (if it is told), each value, the body."""
    if not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
        raise ValueError(f"not a path: {path!r}")
    known = {name.lower() for name in names}
    if not known.isdisjoint(_OURS):
        raise ValueError(f"the wire itself sets {b', '.join(sorted(known & _OURS)).decode()}")
    if any(name.translate(None, _BREAKS) != name for name in names):
        raise ValueError("a header would break out of its line")
    lines = [f"{method} {prefix}{path} HTTP/1.1".encode("ascii").replace(b"%", b"%%"), host.replace(b"%", b"%%")]
    if b"accept" not in known:
        lines.append(b"accept: text/event-stream, application/json")
    if has_length:
        lines.append(b"content-length: %d")
        if b"content-type" not in known:
            lines.append(b"content-type: application/json")
    lines += [name.replace(b"%", b"%%") + b": %b" for name in names]
    return b"\r\n".join(lines) + b"\r\n\r\n%b"
