"""A listener with a small application, and raw clients that may send any bytes in any pieces."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from gateway.http.client import EXTENSION, Client
from gateway.http.listener import Listener
from gateway.record import Record
from tenancy.policy import ServerSettings

SHORT_SECONDS = 0.05

Run = Callable[[Coroutine[Any, Any, None]], None]
App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class House:
    """A listener, and what it noted."""

    def __init__(self, app: App, settings: ServerSettings) -> None:
        self.records: list[Record] = []
        self.errors: list[dict[str, object]] = []
        self.peers: list[Peer] = []
        self.listener = Listener(
            "test",
            app,
            settings,
            loop=asyncio.get_running_loop(),
            new_id=lambda: "made-here",
            take=self.records.append,
            log=self,
            epoch=lambda: 1_700_000_000.0,
        )

    def error(self, event: str, /, **fields: object) -> None:
        self.errors.append({"event": event, **fields})

    async def connect(self, *, receive_buffer: int | None = None) -> Peer:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer = Peer(sock)
        self.peers.append(peer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.listener.port))
        return peer


class Peer:
    """A raw client."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self.received = b""

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self._loop.sock_sendall(self._socket, piece)

    async def receive(self) -> bytes:
        """What comes next, in one piece."""
        return await self._loop.sock_recv(self._socket, 65536)

    async def read_until(self, mark: bytes, count: int = 1) -> bytes:
        """What has come when `mark` has come `count` times, or the connection has ended."""
        while self.received.count(mark) < count:
            piece = await self._loop.sock_recv(self._socket, 65536)
            if not piece:
                break
            self.received += piece
        return self.received

    async def read_all(self) -> bytes:
        """All until the connection ends in order."""
        while piece := await self._loop.sock_recv(self._socket, 65536):
            self.received += piece
        return self.received

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer with a content-length: status, headers, body."""
        while b"\r\n\r\n" not in self.received:
            piece = await self._loop.sock_recv(self._socket, 65536)
            assert piece, f"ended before a head: {self.received!r}"
            self.received += piece
        head, _, rest = self.received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        while len(rest) < length:
            piece = await self._loop.sock_recv(self._socket, 65536)
            assert piece, f"ended inside a body: {rest!r}"
            rest += piece
        self.received = rest[length:]
        return int(first.split(" ")[1]), headers, rest[:length]

    async def has_ended(self) -> bool:
        """Whether the other side closes now; waits for it."""
        try:
            return await self._loop.sock_recv(self._socket, 65536) == b""
        except ConnectionResetError:
            return True

    def end_my_side(self) -> None:
        """Send the end, but stay to read."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Leave."""
        self._socket.close()


@asynccontextmanager
async def serving(app: App, **bounds: Any) -> AsyncIterator[House]:
    house = House(app, replace(ServerSettings(), **bounds))
    await house.listener.start("127.0.0.1", 0)
    try:
        yield house
    finally:
        await house.listener.close(at_once=True)
        for peer in house.peers:
            peer.close()


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "host: x", *headers, "", "")).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    return (
        "\r\n".join((f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", "")).encode()
        + body
    )


def error_of(body: bytes) -> dict[str, Any]:
    error = json.loads(body)["error"]
    assert isinstance(error, dict)
    return error


async def answer(send: Any, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the path and the body."""
    client: Client = scope["extensions"][EXTENSION]
    body = await client.read(receive)
    if isinstance(body, bytes):
        await answer(send, scope["path"].encode() + b" " + body)


class Waiting:
    """An application that waits until it is told to answer, and notes whom it saw leave."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.clients: list[Client] = []
        self.paths: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        self.clients.append(client)
        self.paths.append(scope["path"])
        body = await client.read(receive)
        client.on_leave(self.left.set)
        self.entered.set()
        await self.go_on.wait()
        if isinstance(body, bytes) and not client.is_gone:
            await answer(send, scope["path"].encode() + b" " + body)


async def assert_refused(peer: Peer, status: int, code: str) -> dict[str, Any]:
    """The answer is an OpenAI error of this status and code, and the connection ends in order after it."""
    got, headers, body = await peer.answer()
    assert (got, error_of(body)["code"]) == (status, code)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert await peer.has_ended()
    return error_of(body)
