"""What was left at a pod and not let go yet.

A client that leaves ends its attempt at once, but the pod may go on with the work: an engine that ignores disconnects
keeps the slot and the KV memory for minutes. If the ledger gave the lease back at once, the pod would hold more than
the budget allows. So the lease stays charged until the pod has shown that it let go, and this module decides when that
is:

    a reading shows how many requests the pod has, running and waiting; those that surely are attempts still open are
    taken off, and of all that was left before the reading was asked for at most as many as remain still run.

Everything that is not sure errs towards holding:

- An attempt is surely there only if its first byte came before the reading was asked for, or if it was sent
  `SETTLE_SECONDS` before: one just on its way would otherwise hide one that is closing.
- Its end may be on its way to us when the reading is made. So attempts are taken off a reading only when the next one
  is taken, and only those that are still open then: an end travels no longer than a reading does. A reading by
  itself takes off nothing; one that shows nothing at all lets everything go at once.
- One whose bytes we leave unread may have finished long ago, and is not taken off; nor is it a reading earlier when its
  bytes are read again.
- A leaving before the first byte is judged only by readings asked for `SETTLE_SECONDS` after the sending: its request
  may not have arrived yet.
- Of m that were left and k that still run, m - k are let go, but which cannot be seen. Among leases that are alike, so
  that giving back one is as good as another, as many are gone as exceed k, and those are let go at once. Else
  the pod may still run what one tenant left early, while what another left later is over: giving back the oldest would
  breach the one's budget. The m - k oldest are the likeliest all the same, and are let go when they have been so in
  every reading for `FALLBACK_SECONDS`; an engine that ignores disconnects for longer, out of order, is the one case in
  which a budget is exceeded at the pod, by what it holds so.

Where the pod publishes no such number, where readings fail, or where other people's requests run there, too, nothing
can be seen: then `FALLBACK_SECONDS` stand for it. Other people's traffic is seen when a reading shows more requests
than all of ours that might be there, and forgotten when `CLEAN_READINGS` in a row show no more.

Pure: no clock, no I/O. The cost of `sent`, `first_byte` and `ended` does not depend on how much is open.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from backends.engines.engine import Reading

SETTLE_SECONDS = 0.03
FALLBACK_SECONDS = 2.0
LINGER_SECONDS = 2.0
"""What ended so long ago, or less, may still be in a pod's own numbers."""
CLEAN_READINGS = 10

T = TypeVar("T")


@dataclass(slots=True)
class _Attempt:
    sent_at: float
    parts: int
    seen_at: float | None = None
    is_held_back: bool = False

    def is_surely_there(self, asked_at: float) -> bool:
        """Whether it must be in a reading asked for then; equal times say nothing of what came first."""
        was_seen = self.seen_at is not None and self.seen_at < asked_at
        return not self.is_held_back and (was_seen or self.sent_at + SETTLE_SECONDS <= asked_at)


@dataclass(slots=True)
class _Left(Generic[T]):
    lease: T
    left_at: float
    judged_from: float
    parts: int
    alike: Hashable
    guessed_at: float | None = None
    """Since when it is among those that are gone if what was left first is gone first."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    asked_at: float
    busy: int
    surely: tuple[_Attempt, ...]


@dataclass(slots=True)
class _AtPod(Generic[T]):
    """What is known of one pod."""

    attempts: dict[Hashable, _Attempt] = field(default_factory=dict)
    left: list[_Left[T]] = field(default_factory=list)
    ended: deque[tuple[float, int]] = field(default_factory=deque)
    """When, and how many parts: attempts that ended and leases that were let go, of the last `LINGER_SECONDS`."""
    told_at: float = float("-inf")
    """When the last reading that tells how busy the pod is was asked for."""
    has_others: bool = False
    clean_readings: int = 0
    before: _Verdict | None = None
    """The reading before, whose attempts have had until now to show that they had ended when it was taken."""

    def expires_at(self, left: _Left[T]) -> float:
        """When the fallback lets `left` go: a pod that goes on telling puts it off."""
        return (left.left_at if self.has_others else max(left.left_at, self.told_at)) + FALLBACK_SECONDS


class Closing(Generic[T]):
    """Leases of type `T` that were left at a pod, until it has let go of them."""

    def __init__(self) -> None:
        self._pods: dict[str, _AtPod[T]] = {}
        self._open: dict[str, _AtPod[T]] = {}
        """Those with something left, in the order in which that began."""

    # ---- attempts

    def sent(self, pod: str, attempt: Hashable, now: float, *, parts: int = 1) -> None:
        """A request was sent to `pod`; `parts` is how many the pod may count it as (`n`, several prompts)."""
        at = self._pods.get(pod)
        if at is None:
            at = self._pods[pod] = _AtPod()
        at.attempts[attempt] = _Attempt(now, parts)

    def first_byte(self, pod: str, attempt: Hashable, now: float = float("inf")) -> None:
        """The pod has begun to answer it, at `now`; where that is not told, only the time since the sending counts."""
        at = self._pods.get(pod)
        found = None if at is None else at.attempts.get(attempt)
        if found is not None:
            found.seen_at = now

    def held_back(self, pod: str, attempt: Hashable, is_held_back: bool) -> None:
        """Its answer is left unread for now (back-pressure), or is read again: the pod may have finished meanwhile."""
        at = self._pods.get(pod)
        found = None if at is None else at.attempts.get(attempt)
        if at is not None and found is not None:
            at.attempts[attempt] = replace(found, is_held_back=is_held_back)  # not the one that the reading before saw

    def ended(self, pod: str, attempt: Hashable, now: float) -> None:
        """Its answer came whole, or broke, or was left; one not known, of a pod that is gone, changes nothing."""
        at = self._pods.get(pod)
        found = None if at is None else at.attempts.pop(attempt, None)
        if at is not None and found is not None:
            _prune(at, now)
            at.ended.append((now, found.parts))

    # ---- what was left

    def left(self, pod: str, lease: T, now: float, *, attempt: Hashable = None, alike: Hashable = None) -> float:
        """Hold `lease` until `pod` lets go of it; `attempt`, where given, ran on it and ends with this.

        Leases with the same `alike` hold the same of the same accounts: which of them goes first makes no difference.
        Without one a lease is like no other. Gives the time from which on a reading may let it go.
        """
        at = self._pods.get(pod)
        if at is None:
            at = self._pods[pod] = _AtPod()
        ran = at.attempts.pop(attempt, None)
        judged_from = now if ran is None or ran.seen_at is not None else max(now, ran.sent_at + SETTLE_SECONDS)
        at.left.append(
            _Left(lease, now, judged_from, 1 if ran is None else ran.parts, object() if alike is None else alike)
        )
        self._open[pod] = at
        return judged_from

    def is_open(self, pod: str) -> bool:
        """Whether something left at `pod` is not let go yet, so that it should be asked often."""
        return pod in self._open

    def read(self, pod: str, reading: Reading, now: float) -> list[T]:
        """Leases that `pod` has let go, as this reading shows; O(attempts open at the pod)."""
        at = self._pods.get(pod)
        busy = reading.busy
        if at is None or busy is None or reading.asked_at < at.told_at:
            return []
        at.told_at = reading.asked_at
        _prune(at, now)
        self._look_for_others(at, busy)
        before = at.before
        surely = tuple(attempt for attempt in at.attempts.values() if attempt.is_surely_there(reading.asked_at))
        at.before = _Verdict(reading.asked_at, busy, surely)
        bounds = [(reading.asked_at, busy)]
        if before is not None:
            still = {id(attempt) for attempt in at.attempts.values()}
            there = sum(id(attempt) in still for attempt in before.surely)
            bounds.append((before.asked_at, max(before.busy - there, 0)))
        gone = _gone(at.left, bounds, now)
        return self._let_go(pod, at, gone, now)

    def expire(self, now: float) -> list[T]:
        """Leases for which the time has to stand, because nothing can be seen."""
        gone: list[T] = []
        for pod, at in list(self._open.items()):
            gone += self._let_go(pod, at, [left for left in at.left if at.expires_at(left) <= now], now)
        return gone

    def next_expiry(self) -> float | None:
        """When `expire` may have something to do; readings put it off. O(pods with something left)."""
        return min((at.expires_at(left) for at in self._open.values() for left in at.left[:1]), default=None)

    def gone(self, pod: str) -> list[T]:
        """The pod's process ended, and with it everything there."""
        at = self._pods.pop(pod, None)
        self._open.pop(pod, None)
        return [] if at is None else [left.lease for left in at.left]

    # ---- within

    def _let_go(self, pod: str, at: _AtPod[T], gone: list[_Left[T]], now: float) -> list[T]:
        if gone:
            away = {id(left) for left in gone}
            at.left = [left for left in at.left if id(left) not in away]
            at.ended.extend((now, left.parts) for left in gone)
        if not at.left:
            self._open.pop(pod, None)
        return [left.lease for left in gone]

    def _look_for_others(self, at: _AtPod[T], busy: int) -> None:
        """Judge whether the pod has traffic that is not ours."""
        ours = sum(attempt.parts for attempt in at.attempts.values())
        ours += sum(left.parts for left in at.left) + sum(parts for _, parts in at.ended)
        if busy > ours:
            at.has_others, at.clean_readings = True, 0
        elif at.has_others:
            at.clean_readings += 1
            at.has_others = at.clean_readings < CLEAN_READINGS


def _gone(lefts: list[_Left[T]], bounds: list[tuple[float, int]], now: float) -> list[_Left[T]]:
    """Those let go, if of all that were left before a time at most so many still run, for each of `bounds`."""
    certain: list[_Left[T]] = []
    likely: set[int] = set()
    for asked_at, running in bounds:
        judged = [left for left in lefts if left.judged_from < asked_at]
        over = Counter(left.alike for left in judged)
        sure: list[_Left[T]] = []
        for left in judged:
            if over[left.alike] > running:
                over[left.alike] -= 1
                sure.append(left)
        certain = max(certain, sure, key=len)
        likely.update(id(left) for left in judged[: max(0, len(judged) - running)])
    gone = {id(left) for left in certain}
    for left in lefts:
        if id(left) not in likely:
            left.guessed_at = None
        elif left.guessed_at is None:
            left.guessed_at = now
        elif left.guessed_at + FALLBACK_SECONDS <= now:
            gone.add(id(left))
    return [left for left in lefts if id(left) in gone]


def _prune(at: _AtPod[T], now: float) -> None:
    while at.ended and at.ended[0][0] + LINGER_SECONDS < now:
        at.ended.popleft()
