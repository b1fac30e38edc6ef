"""A time-out that moves far more often than it expires, such as a connection's: it costs a clock reading, not a timer.

The pending timer is left where it is when the deadline moves back; it finds that out when it rings, and is set anew.
A timer of the event loop's own is 1.5 µs to make and to cancel, and a request would need two on each side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

_EARLY_SECONDS = 0.002  # uvloop's timers may ring a little before their time


class Timer(Protocol):
    """What a loop's `call_later` returns."""

    def cancel(self) -> object:
        """Forget it."""


CallLater = Callable[[float, Callable[[], None]], Timer]


class Deadline:
    """Calls `expire` once the time last set has passed, unless cleared before."""

    __slots__ = ("_at", "_call_later", "_clock", "_expire", "_timer", "_timer_at")

    def __init__(self, clock: Callable[[], float], call_later: CallLater, expire: Callable[[], None]) -> None:
        self._clock = clock
        self._call_later = call_later
        self._expire = expire
        self._at: float | None = None
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        """Expire `seconds` from now, whatever was set before."""
        self._at = at = self._clock() + seconds
        if self._timer is None:
            self._start(at, seconds)
        elif at < self._timer_at:
            self._timer.cancel()
            self._start(at, seconds)

    def clear(self) -> None:
        """Do not expire; the timer is kept for the next `set`."""
        self._at = None

    def cancel(self) -> None:
        """Do not expire, and keep no timer: this is the end."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, at: float, seconds: float) -> None:
        self._timer_at = at
        self._timer = self._call_later(seconds, self._ring)

    def _ring(self) -> None:
        self._timer = None
        at = self._at
        if at is None:
            return
        left = at - self._clock()
        if left > _EARLY_SECONDS:
            self._start(at, left)
        else:
            self._at = None
            self._expire()
