"""One slow beat for all open streams: heartbeats while nothing comes, and a head for a stream that has waited long.

A timer of its own for each stream would be a cost of every request; a beat that walks over the open streams costs
each of them a fraction of a microsecond a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


class Beating(Protocol):
    """An open stream, as the pulse sees it."""

    def beat(self, now: float) -> None:
        """Do what is due at `now`."""


class Pulse:
    """Beats every `every_seconds` while any stream is open; `call_later` and `clock` are the loop's."""

    def __init__(
        self,
        every_seconds: float,
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._every_seconds = every_seconds
        self._clock = clock
        self._call_later = call_later
        self._open: dict[int, Beating] = {}
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._open)

    def join(self, stream: Beating) -> None:
        """Let `stream` be beaten from now on."""
        self._open[id(stream)] = stream
        if self._timer is None:
            self._timer = self._call_later(self._every_seconds, self._beat)

    def part(self, stream: Beating) -> None:
        """No more beats for `stream`."""
        self._open.pop(id(stream), None)

    def _beat(self) -> None:
        now = self._clock()
        for stream in list(self._open.values()):
            stream.beat(now)
        self._timer = self._call_later(self._every_seconds, self._beat) if self._open else None
