"""Connections in memory: the pod's end is in the hands of the test, so that every byte comes when the test says so.

They behave as the event loops' transports do where it matters: what is said while reading is paused waits, an end is
told in a turn of the loop of its own, and nothing is told after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Line(asyncio.Transport):
    """One connection; the transport of the side under test."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.unsent = 0  # what the transport would still have to write
        self.is_reading_paused = False
        self.was_aborted = False
        self._is_closing = False
        self._is_lost = False
        self._waiting: list[Callable[[], None]] = []
        protocol.connection_made(self)

    # What the test does as the pod

    def say(self, data: bytes) -> None:
        """Send what the other side is to see as one read."""
        self._happen(lambda: self.protocol.data_received(data))

    def end(self) -> None:
        """Close in order."""
        self._happen(self._end)

    def reset(self) -> None:
        """Break the connection."""
        self._happen(lambda: self._lose(ConnectionResetError(104, "Connection reset by peer")))

    def _happen(self, event: Callable[[], None]) -> None:
        if self.is_reading_paused:
            self._waiting.append(event)
        elif not self._is_closing:
            event()

    def _end(self) -> None:
        self.protocol.eof_received()
        self._lose(None)

    def _catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self._happen(event)

    # What the side under test does

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self._is_closing, "written to a connection that is closing"
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        assert not self.is_reading_paused, "paused twice"
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        assert self.is_reading_paused, "resumed without a pause"
        self.is_reading_paused = False
        asyncio.get_running_loop().call_soon(self._catch_up)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self.was_aborted = True
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        self._is_closing = True
        if not self._is_lost:
            self._is_lost = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)


class MemoryPod:
    """The pod's address: `connect` for the pool, `lines` for the test, the latest last.

    With `refuses` a connection fails with it; while `is_slow`, none is made.
    """

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.refuses: Exception | None = None
        self.is_slow = False

    @property
    def line(self) -> Line:
        return self.lines[-1]

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> Line:
        if self.is_slow:
            await asyncio.get_running_loop().create_future()
        if self.refuses is not None:
            raise self.refuses
        protocol = factory()
        assert isinstance(protocol, asyncio.Protocol)
        line = Line(protocol)
        self.lines.append(line)
        return line
