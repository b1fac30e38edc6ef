"""Requests and tokens a minute: in no window of 60 seconds is more admitted than the limit.

A `Window` keeps what was charged in buckets of 100 ms and forgets a bucket when all of it lies more than 60 s back. A
fixed minute would let twice the limit through around its turn, and a leaky bucket lets limit + burst through, so
neither keeps the promise. Buckets that hold nothing cost nothing: a thousand idle tenants are a thousand empty dicts.

Charges are for good; what a call turned out to use is corrected in the bucket of its admission, up or down, while that
bucket still counts. A correction may push a window over its limit: then nothing is admitted until it has passed.
"""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 60.0
_PER_SECOND = 10  # buckets
_KEPT = int(WINDOW_SECONDS) * _PER_SECOND + 1  # the current bucket, and those that reach into the 60 s before now


def bucket_of(now: float) -> int:
    """The bucket into which a charge at `now` (not negative) goes; keep the number to correct the charge later."""
    return int(now * _PER_SECOND)


class Window:
    """What was charged in the last 60 seconds, against `limit`. Without a limit (`None`) nothing is counted, either."""

    __slots__ = ("_amounts", "_order", "_used", "limit")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._amounts: dict[int, int] = {}
        self._order: deque[int] = deque()
        self._used = 0

    def used(self, now: float) -> int:
        """What counts at `now`."""
        self._forget(bucket_of(now))
        return self._used

    def fits(self, amount: int, now: float) -> bool:
        """Whether `amount` may be charged at `now`."""
        if self.limit is None:
            return True
        order = self._order
        if order and order[0] + _KEPT <= now * _PER_SECOND:
            self._forget(bucket_of(now))
        return self._used + amount <= self.limit

    def charge(self, amount: int, now: float) -> None:
        """Count `amount` as used at `now`."""
        if self.limit is None:
            return
        bucket = int(now * _PER_SECOND)
        amounts = self._amounts
        if bucket in amounts:
            amounts[bucket] += amount
        else:
            self._forget(bucket)
            assert not self._order or self._order[-1] < bucket, "time ran backwards"
            amounts[bucket] = amount
            self._order.append(bucket)
        self._used += amount

    def correct(self, bucket: int, difference: int, now: float) -> None:
        """Add `difference` to what was charged in `bucket`, if that still counts."""
        if self._order and self._order[0] + _KEPT <= now * _PER_SECOND:
            self._forget(bucket_of(now))
        amount = self._amounts.get(bucket)
        if amount is not None:
            assert amount + difference >= 0, "a correction took back more than was charged"
            self._amounts[bucket] = amount + difference
            self._used += difference

    def opens_at(self, amount: int, now: float) -> float | None:
        """The first moment from `now` on at which `amount` fits if nothing else is charged; `None`: it never does."""
        if self.limit is None:
            return now
        if amount > self.limit:
            return None
        self._forget(bucket_of(now))
        over = self._used + amount - self.limit
        if over <= 0:
            return now
        for bucket in self._order:
            over -= self._amounts[bucket]
            if over <= 0:
                return (bucket + _KEPT) / _PER_SECOND  # n / 10 * 10 == n in doubles, so `bucket_of` agrees
        raise AssertionError("the buckets do not add up to what is used")

    def state(self, now: float) -> tuple[int, int, float]:
        """The limit, how much of it is left, and the seconds until all of it is, if nothing else is charged."""
        limit, order = self.limit, self._order
        assert limit is not None, "without a limit there is nothing to show"
        self._forget(int(now * _PER_SECOND))
        left = limit - self._used
        seconds = (order[-1] + _KEPT) / _PER_SECOND - now if order else 0.0
        return limit, left if left > 0 else 0, seconds if seconds > 0.0 else 0.0

    def _forget(self, bucket: int) -> None:
        while self._order and self._order[0] <= bucket - _KEPT:
            self._used -= self._amounts.pop(self._order.popleft())
