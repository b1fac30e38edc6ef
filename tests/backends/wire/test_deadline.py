"""A time-out that moves: it expires once, at the last time set, and costs few timers."""

from __future__ import annotations

from collections.abc import Callable

from backends.wire.deadline import Deadline
from tests.instruments.hand_clock import HandClock, HandTimer


class Watched:
    """A deadline by a clock moved by hand, and when it expired."""

    def __init__(self) -> None:
        self.clock = HandClock(now=0.0)
        self.expired: list[float] = []
        self.timers = 0
        self.deadline = Deadline(self.clock, self._call_later, lambda: self.expired.append(self.clock.now))

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> HandTimer:
        self.timers += 1
        return self.clock.call_later(seconds, callback)


def test_it_expires_once_at_its_time() -> None:
    watched = Watched()
    watched.deadline.set(5.0)
    watched.clock.advance(100.0)
    assert watched.expired == [5.0]


def test_moved_back_again_and_again_it_costs_one_timer_and_expires_at_the_last_time() -> None:
    watched = Watched()
    for _ in range(1000):
        watched.deadline.set(5.0)
        watched.clock.advance(0.001)
    assert watched.timers == 1
    watched.clock.advance(100.0)
    assert [round(time, 3) for time in watched.expired] == [5.999]
    assert watched.timers == 2


def test_moved_forward_it_expires_earlier() -> None:
    watched = Watched()
    watched.deadline.set(75.0)
    watched.deadline.set(5.0)
    watched.clock.advance(100.0)
    assert watched.expired == [5.0]


def test_cleared_it_does_not_expire_until_it_is_set_again() -> None:
    watched = Watched()
    watched.deadline.set(5.0)
    watched.deadline.clear()
    watched.clock.advance(100.0)
    assert watched.expired == []
    watched.deadline.set(5.0)
    watched.clock.advance(100.0)
    assert watched.expired == [105.0]


def test_cancelled_it_keeps_no_timer() -> None:
    watched = Watched()
    watched.deadline.set(5.0)
    watched.deadline.cancel()
    assert watched.clock.pending == 0
