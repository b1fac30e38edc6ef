"""Connections in memory, in virtual time: latency, order, splits at random places, pauses, closes and resets.

Each direction of a connection keeps its order, as TCP does, and nothing else: pieces are cut and delayed at random,
connections overtake each other, and what was sent before a reset may be lost. While one side does not read, what
comes waits, the end too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

GRID_SECONDS = 0.001
"""Latencies are multiples of this, so that events coincide."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How the network behaves: latencies are drawn between the two, in steps of the grid; `splits` is how often a
    write is cut.
    """

    least_steps: int = 0
    most_steps: int = 3
    splits: float = 0.3
    connect_steps: int = 2

    def latency(self, random: Random) -> float:
        return random.randint(self.least_steps, self.most_steps) * GRID_SECONDS


class End(asyncio.Transport):
    """One end of a connection. What one end writes, the other end's protocol gets."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, random: Random, weather: Weather):
        super().__init__()
        self.peer: End
        self.protocol = protocol
        self.is_lost = False
        self._loop = loop
        self._random = random
        self._weather = weather
        self._coming: deque[Callable[[], None]] = deque()
        self._arrived: deque[Callable[[], None]] = deque()
        self._last_at = 0.0
        self._is_paused = False
        self._is_closing = False

    # what this end's protocol does

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._is_closing:
            return
        whole, random = bytes(data), self._random
        cuts = [0, len(whole)]
        while len(whole) > 1 and random.random() < self._weather.splits:
            cuts.append(random.randrange(1, len(whole)))
        cuts.sort()
        for begin, end in pairwise(cuts):
            if end > begin:
                self.peer.expect(whole[begin:end])

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert not self._is_paused, "paused twice"
        self._is_paused = True

    def resume_reading(self) -> None:
        assert self._is_paused, "resumed without a pause"
        self._is_paused = False
        self._loop.call_soon(self._catch_up)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """What was written still arrives, and then the end."""
        if not self._is_closing:
            self.peer.expect_end(None)
            self._lose(None)

    def abort(self) -> None:
        """The other side sees a reset, after all that was written or after less."""
        self.reset(None)

    def reset(self, error: Exception | None, *, loses: bool = True) -> None:
        """Break the connection from here; this end's own protocol is told `error`. `loses`: what is on its way may be
        lost.
        """
        if not self._is_closing:
            if loses and self._random.random() < 0.5:
                self.peer.forget_coming()
            self.peer.expect_end(ConnectionResetError(104, "Connection reset by peer"))
            self._lose(error)

    # what comes from the other end

    def expect(self, data: bytes) -> None:
        self._expect(lambda: self.protocol.data_received(data))

    def expect_end(self, error: Exception | None) -> None:
        self._expect(lambda: self._end(error))

    def forget_coming(self) -> None:
        """What is on its way is lost."""
        for number in range(len(self._coming)):
            self._coming[number] = _nothing

    def _expect(self, event: Callable[[], None]) -> None:
        self._last_at = max(self._last_at, self._loop.time() + self._weather.latency(self._random))
        self._coming.append(event)
        self._loop.call_at(self._last_at, self._arrive)

    def _arrive(self) -> None:
        self._arrived.append(self._coming.popleft())
        self._catch_up()

    def _catch_up(self) -> None:
        while self._arrived and not self._is_paused and not self.is_lost:
            if self._is_closing:
                self._arrived.clear()
                return
            self._arrived.popleft()()

    def _end(self, error: Exception | None) -> None:
        if error is None and not self.protocol.eof_received():
            self.close()
        elif error is not None:
            self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self.protocol.connection_lost(error)


class Network:
    """Addresses, and who listens there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, random: Random, weather: Weather) -> None:
        self._loop = loop
        self._random = random
        self._weather = weather
        self._listening: dict[str, Callable[[], asyncio.Protocol]] = {}
        self._silent: set[str] = set()
        self.open: dict[End, None] = {}
        """The dialling ends of connections that stand."""

    def listen(self, url: str, accept: Callable[[], asyncio.Protocol] | None) -> None:
        """From now on `accept` makes the protocol of each connection to `url`; `None`: it is refused."""
        if accept is None:
            self._listening.pop(url, None)
        else:
            self._listening[url] = accept

    def silence(self, url: str, is_silent: bool) -> None:
        """While an address is silent, nobody who dials it hears anything."""
        (self._silent.add if is_silent else self._silent.discard)(url)

    def connector(self, url: str) -> Callable[[Callable[[], asyncio.BaseProtocol]], Coroutine[Any, Any, object]]:
        """The way to `url`, as a pool takes it."""

        async def connect(factory: Callable[[], asyncio.BaseProtocol]) -> End:
            await asyncio.sleep(self._random.randint(0, self._weather.connect_steps) * GRID_SECONDS)
            if url in self._silent:
                await self._loop.create_future()
            accept = self._listening.get(url)
            if accept is None:
                raise ConnectionRefusedError(111, f"Connect call failed ({url})")
            dialling = factory()
            assert isinstance(dialling, asyncio.Protocol)
            here = End(self._loop, dialling, self._random, self._weather)
            there = End(self._loop, accept(), self._random, self._weather)
            here.peer, there.peer = there, here
            self.open = {end: None for end in self.open if not end.is_lost}
            self.open[here] = None
            there.protocol.connection_made(there)
            dialling.connection_made(here)
            return here

        return connect

    @property
    def standing(self) -> int:
        """Connections of which the dialling end has not heard the end."""
        return sum(not end.is_lost for end in self.open)


def _nothing() -> None:
    return None
