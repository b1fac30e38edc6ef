"""How fast things end: what a waiting or refused call is told about when there will be room.

`Gaps` learns the mean time between releases on an account, from which the queue's expected wait follows; `Pace` learns
what an output token takes on a pod, from which the end of each lease is guessed. Both only ever serve forecasts: no
budget depends on them, and none of them is asked before something was learned, except with a plain default.
"""

from __future__ import annotations

LEAST_RELEASES = 5  # before so many were seen, the wait is unknown
_GAPS_AVERAGED = 20
_PACES_AVERAGED = 20
_PESSIMISM = 1.25  # who comes back too early is refused again; too late only waits
_FIRST_SECONDS_A_TOKEN = 0.05
_FIRST_SECONDS_A_CALL = 0.5
_LEAST_REMAINING = 0.1


class Gaps:
    """The mean gap between releases on one account, over roughly the last twenty."""

    __slots__ = ("_busy_since", "_mean", "_released")

    def __init__(self) -> None:
        self._busy_since = 0.0
        self._mean = 0.0
        self._released = 0

    def began(self, now: float) -> None:
        """The account was idle and is no more: idleness is no gap."""
        self._busy_since = now

    def released(self, now: float) -> None:
        gap = now - self._busy_since
        self._busy_since = now
        released = self._released
        if released < _GAPS_AVERAGED:  # more are not counted
            self._released = released = released + 1
        self._mean += ((gap if gap > 0.0 else 0.0) - self._mean) / released

    @property
    def mean(self) -> float | None:
        """Seconds between two releases; `None` until enough were seen."""
        return self._mean if self._released >= LEAST_RELEASES else None


class Pace:
    """How long calls take on one pod: seconds an output token, and seconds a call that has no output."""

    __slots__ = ("_calls", "_seconds_a_call", "_seconds_a_token", "_streams")

    def __init__(self) -> None:
        self._seconds_a_token = _FIRST_SECONDS_A_TOKEN
        self._seconds_a_call = _FIRST_SECONDS_A_CALL
        self._streams = 0
        self._calls = 0

    def learn(self, seconds: float, output_tokens: int) -> None:
        """A lease was held for `seconds` and made `output_tokens`."""
        if output_tokens > 0:
            if self._streams < _PACES_AVERAGED:  # more are not counted
                self._streams += 1
            self._seconds_a_token += (seconds / output_tokens - self._seconds_a_token) / self._streams
        else:
            if self._calls < _PACES_AVERAGED:
                self._calls += 1
            self._seconds_a_call += (seconds - self._seconds_a_call) / self._calls

    def remaining(self, output_tokens: int, age_seconds: float) -> float:
        """When a lease of that age, that may make `output_tokens`, will probably have ended, in seconds from now."""
        seconds = self._seconds_a_token * output_tokens if output_tokens else self._seconds_a_call
        if not self._streams:
            seconds += _FIRST_SECONDS_A_CALL  # the first token's time is not in the default
        return max(_LEAST_REMAINING, seconds * _PESSIMISM - age_seconds)
