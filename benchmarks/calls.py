"""Calls for measurements of other programs: the load tester's client, awaited call by call."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loadtest.answer import Answer
from loadtest.client import Client, Flight, connect_to

clock = time.perf_counter
"""Of all times of flights, in seconds: uvloop's own clock is a millisecond coarse."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go: a base URL that ends in /v1, the key (empty: none), and further headers as they are sent."""

    url: str
    key: str = field(default="", repr=False)
    headers: str = ""

    def request(self, body: bytes) -> bytes:
        """A whole chat request."""
        parts = urlsplit(self.url)
        authorization = f"authorization: Bearer {self.key}\r\n" if self.key else ""
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n{authorization}{self.headers}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Caller:
    """Connections to one target. Closing it leaves them all. `calls` counts what was sent."""

    def __init__(self, target: Target) -> None:
        self.calls = 0
        self._target = target
        loop = asyncio.get_running_loop()
        parts = urlsplit(target.url)
        connect = connect_to(loop, (parts.hostname or "127.0.0.1", parts.port or 80))
        self._client = Client(connect, clock, loop)

    async def call(self, body: bytes, answer: Answer | None = None) -> Flight:
        """One call, on a connection that is idle or a new one: the flight when it has ended, whatever came of it.

        Its `scheduled` is now, before any connecting. `answer` takes what comes; without one, it is taken for a stream.
        """
        ended: asyncio.Future[Flight] = asyncio.get_running_loop().create_future()

        def land(flight: Flight) -> None:
            self._client.landed(flight)
            ended.set_result(flight)

        self.calls += 1
        self._client.send(Flight(clock(), self._target.request(body), answer or Answer(), land))
        return await ended

    async def close(self) -> None:
        """Leave everything."""
        await self._client.close()
