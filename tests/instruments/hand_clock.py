"""A clock that a test moves by hand, with the timers that run on it: time-outs without waiting for them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class HandTimer:
    """One timer; `cancel` forgets it."""

    def __init__(self, clock: HandClock, callback: Callable[[], object]) -> None:
        self._clock = clock
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._clock.pending -= 1


class HandClock:
    """Seconds that pass only in `advance`. To be passed on as `clock` and `clock.call_later`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.pending = 0
        self._timers: list[tuple[float, int, HandTimer]] = []
        self._order = count()

    def __call__(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], object]) -> HandTimer:
        timer = HandTimer(self, callback)
        self.pending += 1
        heapq.heappush(self._timers, (self.now + seconds, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what falls due, each at its own time."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            callback = timer.callback
            if callback is not None:
                self.now = due
                timer.cancel()
                callback()
        self.now = end
