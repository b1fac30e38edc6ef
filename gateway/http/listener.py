"""One address that clients reach: its sockets, the connections that came through them, and how they end.

It uses uvicorn's configuration and protocol, not its server: that would take the process's signals, exit where a port
is taken, and close connections by rules of its own. Several listeners live in one loop. When to drain is the
lifecycle's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any, Protocol

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.http.server import ClientProtocol
from gateway.record import Record
from tenancy.policy import ServerSettings

CLOSE_SECONDS = 5.0
"""How long a listener that closes waits for the last answers to be made and taken."""

_BACKLOG = 2048
# A client whose machine vanished is seen after a minute: while its call is queued, nothing is sent that could fail.
_KEEP_ALIVE_PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class CrashLog(Protocol):
    """Where an application's exceptions are written."""

    def error(self, event: str, /, **fields: object) -> None:
        """Write one line."""


class ListenError(Exception):
    """An address cannot be listened on; the message names it, why, and what helps."""

    def __init__(self, host: str, port: int, reason: str, remedy: str) -> None:
        super().__init__(f"Cannot listen on {_address(host, port)}: {reason}. {remedy}")
        self.host = host
        self.port = port
        self.reason = reason
        self.remedy = remedy


class Listener:
    """Serves `app` with the bounds of `settings`.

    `new_id` makes ids for requests that bring none; `take` gets a `Record` of each request that was refused before it
    reached `app`; `log` is told of exceptions that `app` raised; `epoch` is the wall clock, for the answers' date.
    """

    def __init__(
        self,
        name: str,
        app: Any,
        settings: ServerSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        new_id: Callable[[], str],
        take: Callable[[Record], None],
        log: CrashLog,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self.config = Config(
            app,
            interface="asgi3",
            http=ClientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=round(settings.keep_alive_seconds),
        )
        self.config.load()
        self.state = ServerState()
        self.settings = settings
        self.loop = loop
        self.is_draining = False
        self.new_id = new_id
        self.take = take
        self.name = name
        self._log = log
        self._epoch = epoch
        self._date_second = 0
        self._dated = b""
        self._servers: list[asyncio.Server] = []
        self._addresses: list[tuple[str, int]] = []
        self._empty = asyncio.Event()
        self._empty.set()

    # ---- for its connections -----------------------------------------------------------------------------------------

    def dated(self) -> bytes:
        """The date as a header's line, without its end: made once a second."""
        now = self._epoch()
        second = int(now)
        if second != self._date_second:
            self._date_second = second
            self._dated = b"date: %b" % formatdate(now, usegmt=True).encode()
        return self._dated

    def opened(self) -> ClientProtocol:
        """A connection has come."""
        self._empty.clear()
        return ClientProtocol(self)

    def closed(self) -> None:
        """A connection has ended."""
        if not self.state.connections:
            self._empty.set()

    def crashed(self, error: BaseException, request_id: str) -> None:
        """The application raised at a request."""
        trace = "".join(traceback.format_exception(error))
        self._log.error("crashed", listener=self.name, request_id=request_id, error=repr(error), trace=trace)

    # ---- for the lifecycle -------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int) -> None:
        """Listen; returns once clients can connect. Raises `ListenError` where that cannot be."""
        tls = self._tls(host, port)
        sockets = await self._bind(host, port)
        for bound in sockets:
            server = await self.loop.create_server(
                self.opened,
                sock=bound,
                ssl=tls,
                backlog=_BACKLOG,
                ssl_handshake_timeout=None if tls is None else self.settings.head_timeout_seconds,
            )
            self._servers.append(server)
            self._addresses.append(bound.getsockname()[:2])

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Where it listens: host and port of each socket, with the port that the system chose where 0 was asked for."""
        return self._addresses

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.addresses[0][1]

    @property
    def url(self) -> str:
        """How a client on this machine reaches it."""
        host, port = self.addresses[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{'https' if self.settings.tls_cert else 'http'}://{_address(host, port)}"

    @property
    def open_connections(self) -> int:
        """Connections that clients hold now."""
        return len(self.state.connections)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections that are open stay."""
        for server in self._servers:
            server.close()

    def drain(self) -> None:
        """From now on each answer is its connection's last; new requests are still taken, and so are connections.

        Idle connections stay: closed at once, a request that is on its way would find its connection gone, where it can
        be told in order that the gateway is draining.
        """
        self.is_draining = True
        for connection in self._connections():
            connection.drain()

    async def wait_closed(self) -> None:
        """Wait until no client is connected any more."""
        if self.state.connections:
            await self._empty.wait()

    async def close(self, *, at_once: bool) -> None:
        """Stop listening and close every connection: after its answer, or, with `at_once`, whatever is being answered.

        Answers get 5 s to be made and taken. Returns when no connection is left and the application has ended.
        """
        self.stop_accepting()
        self.is_draining = True
        for connection in self._connections():
            connection.shutdown()
        if not at_once:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self.wait_closed()
        for connection in self._connections():
            # asyncio's TLS transport, closed twice, has let go of its protocol, and cannot be aborted any more
            with contextlib.suppress(AttributeError):
                connection.transport.abort()
        await self.wait_closed()
        if self.state.tasks:
            await asyncio.wait(list(self.state.tasks))

    def _connections(self) -> list[ClientProtocol]:
        return [connection for connection in self.state.connections if isinstance(connection, ClientProtocol)]

    # ---- sockets -----------------------------------------------------------------------------------------------------

    async def _bind(self, host: str, port: int) -> list[socket.socket]:
        try:
            found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise ListenError(host, port, f"the host is not known ({error.strerror})", _REMEDY_HOST) from error
        sockets: list[socket.socket] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                bound = socket.socket(family, kind, protocol)
                sockets.append(bound)
                _prepare(bound)
                bound.bind(address)
        except OSError as error:
            for bound in sockets:
                bound.close()
            raise ListenError(host, port, error.strerror or str(error), _remedy(error)) from error
        return sockets

    def _tls(self, host: str, port: int) -> ssl.SSLContext | None:
        cert, key = self.settings.tls_cert, self.settings.tls_key
        if cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            reason = f"the certificate {cert} and key {key or cert} cannot be used ({error.strerror or error})"
            raise ListenError(host, port, reason, _REMEDY_TLS) from error
        return context


_REMEDY_HOST = "Give an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them."
_REMEDY_TLS = "server.tls needs PEM files that belong together and that this user may read."
_REMEDIES = {
    errno.EADDRINUSE: "Something listens there already: end it, or choose another port.",
    errno.EACCES: "Ports below 1024 need the capability CAP_NET_BIND_SERVICE: choose a higher one.",
    errno.EADDRNOTAVAIL: _REMEDY_HOST,
}


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "Choose another address.")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _prepare(bound: socket.socket) -> None:
    """Options that the connections inherit from the socket which they come through."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    for option, seconds in _KEEP_ALIVE_PROBES:
        bound.setsockopt(socket.IPPROTO_TCP, option, seconds)
