"""A pod on a real socket that sends exactly the bytes it is told to, cut where it is told to.

It speaks as a script says: a piece is one `send`, and each waits until the loop has turned a few times, so that the
other side, if it lives in the same loop, has read the former one. It may wait for an event, close or break its
connection after any byte, or keep it for the next request.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from types import TracebackType
from typing import cast

from tests.instruments.until import until


class Cut(Enum):
    """How a script may end a connection."""

    CLOSE = "close"
    RESET = "reset"


Step = bytes | asyncio.Event | Cut
Script = Sequence[Step]


def bytewise(wire: bytes) -> list[Step]:
    """Every byte a piece of its own."""
    return [wire[i : i + 1] for i in range(len(wire))]


async def few_turns() -> None:
    """Let the other side, in the same loop, read what was sent."""
    for _ in range(3):
        await asyncio.sleep(0)


class BytePod:
    """Answers the n-th request, from 0, by `script(n)`. To be used as `async with`; then `url` says where it is.

    With `reads_bodies=False` it leaves what follows a request's head unread. `between` is awaited after each piece.
    """

    def __init__(
        self,
        script: Callable[[int], Script],
        *,
        reads_bodies: bool = True,
        tls: ssl.SSLContext | None = None,
        between: Callable[[], Awaitable[None]] = few_turns,
    ) -> None:
        self.script = script
        self.reads_bodies = reads_bodies
        self.between = between
        self.requests: list[bytes] = []
        self.accepted = 0
        self.lines: set[PodLine] = set()
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> BytePod:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: PodLine(self), "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for line in list(self.lines):
            line.cut(Cut.RESET)
        await until(lambda: not self.lines)
        await self._server.wait_closed()


class PodLine(asyncio.Protocol):
    """One connection to a `BytePod`."""

    def __init__(self, pod: BytePod) -> None:
        self._pod = pod
        self._read = b""
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._pod.accepted += 1
        self._pod.lines.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pod.lines.discard(self)
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._read += data
        self._take_request()

    def _take_request(self) -> None:
        head, found, rest = self._read.partition(b"\r\n\r\n")
        if not found or self._answering is not None:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        missing = int(fields.get(b"content-length", b"0")) - len(rest)
        if not self._pod.reads_bodies:
            self._transport.pause_reading()
        elif missing > 0:
            return
        self._pod.requests.append(self._read)
        self._read = b""
        number = len(self._pod.requests) - 1
        self._answering = asyncio.get_running_loop().create_task(self._answer(self._pod.script(number)))

    async def _answer(self, script: Script) -> None:
        for step in script:
            if isinstance(step, bytes):
                self._transport.write(step)
                await self._pod.between()
            elif isinstance(step, asyncio.Event):
                await step.wait()
            else:
                self.cut(step)
        self._answering = None
        self._take_request()  # the next one may be here

    def cut(self, how: Cut) -> None:
        """End the connection."""
        if how is Cut.CLOSE:
            self._transport.close()
            return
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
