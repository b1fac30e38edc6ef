"""Awaits what admission decides: holds the calls that wait in the queue, wakes those that a decision concerns,
keeps time.

`Admission` is pure: each of its verbs returns what it caused. Here those decisions become ends of futures, and its
next expiry becomes a timer. A grant and a leaving in the same turn of the loop are settled here: whichever came
first stands, and a grant to a client that has left goes straight back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

from gateway.leaving import Leaving
from tenancy.accounts import Capacity, Lease
from tenancy.admission import Admission, Admitted, Decided, Queued, Refused
from tenancy.call import Call, Usage

Confirm = Callable[[Lease], Awaitable[bool]]
NOT_USED = Usage(0, 0, is_reported=False)


class Admit:
    """The awaiting side of `admission`; every change to it goes through here.

    `confirm`, where given, is asked after the local lease: a store that replicas share may still say no.
    """

    def __init__(self, admission: Admission, loop: asyncio.AbstractEventLoop, confirm: Confirm | None = None) -> None:
        self.admission = admission
        self._loop = loop
        self._confirm = confirm
        self._waiting: dict[int, asyncio.Future[Admitted | Refused | None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def admit(self, call: Call, leaving: Leaving) -> Admitted | Refused | None:
        """A lease for `call`, at once or from the queue, or the refusal; `None` when the client left, with nothing
        held.
        """
        answer: Admitted | Queued | Refused | None = self.admission.admit(call, self._loop.time())
        if isinstance(answer, Queued):
            answer = await self._answered(answer, leaving)
        else:  # at once, as nearly always: no coroutine more for that
            self._wake(self.admission.caused())
        if isinstance(answer, Admitted):
            if not leaving.has_left and (self._confirm is None or await self._confirm(answer.lease)):
                return answer
            self.settle(answer.lease, NOT_USED)
            return None
        return answer

    def move(
        self, lease: Lease, not_on: frozenset[str], leaving: Leaving, *, let_go: bool
    ) -> Coroutine[None, None, Admitted | Refused | None]:
        """The lease on another pod than those of `not_on`, at once or from the head of its lane; see `Admission.move`.

        It has left its pod when this returns; what is awaited is its new one. `None` when the client left meanwhile.
        Whatever the answer, the lease is still to be settled.
        """
        return self._answered(self.admission.move(lease, not_on, self._loop.time(), let_go=let_go), leaving)

    async def _answered(self, answer: Admitted | Queued | Refused, leaving: Leaving) -> Admitted | Refused | None:
        self._wake(self.admission.caused())
        if isinstance(answer, Queued):
            ticket = answer.ticket
            waiter: asyncio.Future[Admitted | Refused | None] = self._loop.create_future()
            self._waiting[id(ticket)] = waiter
            self._keep_time()

            def forget() -> None:
                if self._waiting.pop(id(ticket), None) is not None:
                    waiter.set_result(None)
                    self._wake(self.admission.leave(ticket, self._loop.time()))

            leaving.undo_with(forget)
            try:
                return await waiter
            except asyncio.CancelledError:
                if self._waiting.pop(id(ticket), None) is not None:
                    self._wake(self.admission.leave(ticket, self._loop.time()))
                raise
            finally:
                leaving.undo_with(None)
        return answer

    def settle(self, lease: Lease, usage: Usage | None, *, let_go: bool = True) -> None:
        """Give the lease back, booking `usage`; with `let_go=False` bytes and slot stay charged until the pod lets
        go.
        """
        self._wake(self.admission.settle(lease, usage, self._loop.time(), let_go=let_go))

    def let_go(self, leases: Sequence[Lease]) -> None:
        """The pods have let go of these closing leases."""
        if leases:
            self._wake(self.admission.let_go(leases, self._loop.time()))

    def pods_changed(self, capacities: Mapping[str, Capacity | None]) -> None:
        """Pods came or went, or told their capacity."""
        self._wake(self.admission.pods_changed(capacities, self._loop.time()))

    def drain(self) -> None:
        """Admit nothing new; whoever waits is refused."""
        self._wake(self.admission.drain(self._loop.time()))

    def _wake(self, decided: Iterable[Decided]) -> None:
        for decision in decided:
            waiter = self._waiting.pop(id(decision.ticket), None)
            assert waiter is not None, "a decision on a ticket that nobody waits with"
            waiter.set_result(decision.answer)
        if self._waiting:
            self._keep_time()

    def _keep_time(self) -> None:
        due = self.admission.next_expiry()
        if due is None or (self._timer is not None and self._timer_at <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._wake(self.admission.expire(self._loop.time()))
        if self._waiting:
            self._keep_time()
