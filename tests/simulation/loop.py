"""An event loop in virtual time: when nothing is ready, the clock jumps to the next timer.

It is asyncio's own loop, with a selector that knows no files: tasks, futures, timers and their order within a turn
are the real ones, and a minute takes milliseconds. Three things make it an instrument for finding races:

* Timers that fall due together run in an order that the seed draws. Asyncio promises none (its heap is not stable),
  and sockets that become readable together promise none either.
* What cannot happen by itself is an error: a wait with no timer behind it, more time or turns than a history may
  take, a thread, a real socket. Anything told to the exception handler is kept in `faults`.
* `watch` is called after each turn, so that invariants are looked at in every state that code can see.
"""

from __future__ import annotations

import asyncio
from asyncio import base_events
from collections.abc import Callable
from random import Random
from typing import Any

MOST_SECONDS = 3600.0
MOST_TURNS = 2_000_000
_TIE = 1e-10
"""Timers are put off by less than this; the loop runs what is due within its resolution, ten times as much, in one
turn.
"""


class OutOfBounds(Exception):
    """The history came to a state from which nothing can go on, or would not end."""


class _NoFiles:
    """A selector without files: waiting moves the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise OutOfBounds("deadlock: something is awaited, nothing is ready, and no timer is set")
        self._loop.pass_time(timeout)
        return []

    def close(self) -> None:
        return None


class VirtualLoop(base_events.BaseEventLoop):
    """One history's loop; `random` breaks ties between timers. `turns` counts what it has done, `faults` what went
    wrong.
    """

    def __init__(self, random: Random, *, start_at: float = 1000.0) -> None:
        super().__init__()
        self.turns = 0
        self.faults: list[str] = []
        self.watch: Callable[[], None] | None = None
        self._tie = random.random
        self._now = start_at
        self._end_at = start_at + MOST_SECONDS
        self._selector = _NoFiles(self)
        self._clock_resolution = 10 * _TIE
        self._set: dict[asyncio.TimerHandle, None] = {}
        self.set_exception_handler(self._faulted)

    def time(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Let virtual time pass; the selector's."""
        if seconds > 0:
            self._now += seconds
            if self._now > self._end_at:
                raise OutOfBounds(f"the history is not over after {MOST_SECONDS:g} s")

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = super().call_at(when + self._tie() * _TIE, callback, *args, context=context)
        self._set[timer] = None
        if len(self._set) > 1000:
            self._set = dict.fromkeys(self.timers)
        return timer

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        """Timers that are set and not due yet."""
        return [timer for timer in self._set if not timer.cancelled() and timer.when() > self._now + 2 * _TIE]

    def run_in_executor(self, *asked: Any) -> Any:  # type: ignore[override]
        raise OutOfBounds(f"a thread in virtual time: {asked[1]!r}")

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        raise OutOfBounds("a real socket in virtual time: connect through the seam")

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        raise OutOfBounds(f"a name is looked up in virtual time: {host!r}")

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise OutOfBounds(f"the history is not over after {MOST_TURNS} turns")
        super()._run_once()  # type: ignore[misc]  # the loop's own step, which typeshed keeps to itself
        if self.watch is not None:
            self.watch()

    def _process_events(self, events: list[Any]) -> None:
        assert not events, "there are no files"

    def _write_to_self(self) -> None:
        return None

    def _faulted(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {error!r}")
