"""One request and its answer: what whoever asked a pod holds, over whichever connections it takes.

A transfer opens when the first data of its answer has come, and until then the call can be tried elsewhere as if
nothing had been. It hands what arrives to one receiver, and ends with one `Outcome`. Nothing here raises into the
code that awaits, and nothing waits for a task: what arrives reaches the receiver in the very turn of the loop in
which it was read.

It owns the three time-outs (connecting, first byte, stall) and says when reading pauses. Which connection carries it,
and whether the request goes out again on a fresh one, is the pool's decision; bytes are read by the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from backends.outcome import COMPLETE, Ending, Outcome
from backends.wire.deadline import CallLater, Timer
from backends.wire.head import Head

HELD_BYTES_MAX: Final = 65536  # with more than this and nobody to take it, reading pauses
STALL_TICKS: Final = 4  # a stall is seen between one and one and a quarter of its time


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for connecting, from sending the request to the answer's first data, and without data after that."""

    connect: float
    first_byte: float
    stall: float


@dataclass(frozen=True, slots=True)
class Alike:
    """A form of frames that need no look: after its size line a chunk is `before`, a text, and `after`, its last CRLF
    included. Where the text has no quotation mark such a chunk goes to `write` as it came.
    """

    before: bytes
    after: bytes
    write: Callable[[bytes], None]


def _unheard(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes of a form that no frame has")


NONE_ALIKE: Final = Alike(b"", b"", _unheard)
"""The form that no frame has."""


class Receiver(Protocol):
    """Who takes an answer's bytes. Both are called in the loop turn in which the bytes were read, and must not wait."""

    def frames(self, data: bytes) -> None:
        """Whole chunks exactly as the pod framed them, cut at the end of a chunk that ends an event; no terminator."""

    def payload(self, data: bytes) -> None:
        """Body bytes without framing, cut anywhere. Once this was called for an answer, `frames` no longer is."""


class Carrier(Protocol):
    """The connection that carries a transfer, as the transfer sees it."""

    def set_reading(self, is_reading: bool) -> None:
        """Read from the pod, or let it wait."""

    def expire_in(self, seconds: float) -> None:
        """Call the transfer's `expire` after this time, unless told anew."""

    def deliver_to(self, receiver: Receiver) -> None:
        """From now on the transfer has this receiver; whole frames may go to it directly."""

    def pass_alike(self, form: Alike) -> None:
        """From now on frames of this form go past the receiver, until another form is told or the answer ends."""

    def drop(self) -> None:
        """Close at once and forget the transfer."""


class Transfer:
    """One request to one pod and its answer. Made by `Pool.send`.

    `opened` becomes the `Head` once the answer's first data (of a 2xx event stream: its first whole event; comments
    do not count) or its end is here, or the `Outcome` if it failed before. Whoever awaits it may end it himself.

    `pieces` counts what came that carried data (comments do not count), by arrival. Of these `alike` went past the
    receiver (`pass_alike`). `reused`: the connection had carried a request before.

    `is_open`: its first data has come.

    `is_sent`: the pod may have the request. `on_carried` is called with `True` whenever a connection takes the request
    to write it, and with `False` where that one, a kept one, died unanswered and the request is to go out again:
    between the two it may be at the pod. Of its end the outcome tells. A request that a kept connection took was taken
    within `Pool.send`, so whoever sets `on_carried` asks `is_sent` for what was before.
    """

    __slots__ = (
        "_call_later",
        "_carrier",
        "_dialling",
        "_ended",
        "_head",
        "_held",
        "_held_bytes",
        "_is_paused",
        "_last",
        "_noted",
        "_noted_at",
        "_outcome",
        "_previous",
        "_quiet_ticks",
        "_receiver",
        "_seen_pieces",
        "_timeouts",
        "_timer",
        "alike",
        "is_open",
        "is_sent",
        "on_carried",
        "opened",
        "reused",
    )

    def __init__(self, opened: asyncio.Future[Head | Outcome], call_later: CallLater, timeouts: Timeouts) -> None:
        self.opened = opened
        self.is_open = False
        self.is_sent = False
        self.on_carried: Callable[[bool], None] | None = None
        self.reused = False
        self.alike = 0
        self._noted = 0
        self._noted_at = 0  # what `alike` was then
        self._last = self._previous = b""
        self._call_later = call_later
        self._timeouts = timeouts
        self._timer: Timer | None = None  # while a connection is made; later the carrier keeps time
        self._carrier: Carrier | None = None
        self._dialling: asyncio.Future[object] | None = None
        self._head: Head | None = None
        self._receiver: Receiver | None = None
        self._held: list[tuple[bool, bytes]] = []  # (is frames, data) that came before the receiver
        self._held_bytes = 0
        self._is_paused = False
        self._ended: asyncio.Future[Outcome] | None = None
        self._outcome: Outcome | None = None
        self._seen_pieces = 0
        self._quiet_ticks = 0

    # For whoever sent the request

    @property
    def pieces(self) -> int:
        """How many pieces have come."""
        return self._noted + self.alike

    @property
    def last_two(self) -> tuple[bytes, bytes]:
        """The latest two pieces, the older one first; empty for what went past the receiver, which is kept nowhere."""
        since = self.alike - self._noted_at
        if since == 0:
            return self._previous, self._last
        return (self._last if since == 1 else b""), b""

    @property
    def is_over(self) -> bool:
        """It has an outcome, although what came before may still be here for a receiver."""
        return self._outcome is not None

    def attach(self, receiver: Receiver) -> asyncio.Future[Outcome]:
        """Hand over what has come, in this very call and in order, and from now on what comes; give the future end.

        To be called once. A receiver that pauses during the call is still given all that is here: at most
        `HELD_BYTES_MAX` and one read.
        """
        assert self._ended is None, "a transfer has one receiver"
        ended: asyncio.Future[Outcome] = self.opened.get_loop().create_future()
        self._ended = ended
        self._receiver = receiver
        held, held_bytes, self._held, self._held_bytes = self._held, self._held_bytes, [], 0
        for is_frames, data in held:
            if is_frames:
                receiver.frames(data)
            else:
                receiver.payload(data)
            if self._receiver is None:  # it left while it was given this
                return ended
        if self._outcome is not None:
            self._receiver = None
            ended.set_result(self._outcome)
        elif self._carrier is not None:
            self._carrier.deliver_to(receiver)
            self._seen_pieces = -1  # as in `resume`: the pod may have had to wait until now
            if held_bytes > HELD_BYTES_MAX:  # else nothing changes
                self._settle_reading()
        return ended

    def pass_alike(self, form: Alike) -> None:
        """Have frames of this form go past the receiver from now on; they are counted in `alike`."""
        if self._carrier is not None:
            self._carrier.pass_alike(form)

    def pause(self) -> None:
        """Read no more from the pod for now: whoever takes the answer cannot keep up. Time spent so is no stall."""
        self._is_paused = True
        self._settle_reading()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        self._seen_pieces = -1  # the pod's time begins with the next tick, as if a piece had come
        self._settle_reading()

    def abort(self, outcome: Outcome | None = None) -> None:
        """Leave: no call of the receiver after this, the connection is closed, what is still awaited becomes `outcome`.

        Without an `outcome` that is `LEFT`. What was held for a receiver is dropped.
        """
        left = outcome or self._outcome_of(Ending.LEFT)
        self._receiver = None
        self._held.clear()
        self.finish(left)
        if self._ended is None:
            self._outcome = left  # also where all had come, and somebody attaches yet
        elif not self._ended.done():
            self._ended.set_result(left)  # the receiver left while it was handed what had come

    # For the pool and the connection

    def dial(self, dialling: asyncio.Future[object]) -> None:
        """A connection is being made for it; this is what to cancel."""
        self._dialling = dialling
        self._timer = self._call_later(self._timeouts.connect, self._connect_timed_out)

    def carry(self, carrier: Carrier, *, reused: bool) -> None:
        """Its request goes out on this connection now."""
        self._dialling = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._carrier = carrier
        self.is_sent = True
        if self.on_carried is not None:
            self.on_carried(True)
        self.reused = reused
        carrier.expire_in(self._timeouts.first_byte)
        if self._is_paused:  # a connection comes reading
            self._settle_reading()

    def uncarry(self) -> None:
        """The connection is gone unanswered, and with it the request; it goes out again on a fresh one."""
        self._carrier = None
        if self.on_carried is not None:
            self.on_carried(False)

    def begin(self, head: Head) -> None:
        """The final head has come."""
        self._head = head

    def open(self, *, is_whole: bool) -> None:
        """The first data, or the end, has come after the head; `is_whole`: the end has."""
        assert self._head is not None, "a head comes before what it heads"
        self.is_open = True
        if not self.opened.done():
            self.opened.set_result(self._head)
        if not is_whole and self._carrier is not None:
            self._carrier.expire_in(self._timeouts.stall / STALL_TICKS)

    def note(self, data: bytes) -> None:
        """This piece goes to the receiver."""
        self._noted += 1
        self._previous = self._last if self._noted_at == self.alike else b""
        self._noted_at = self.alike
        self._last = data

    def take(self, data: bytes, *, is_frames: bool, is_comment: bool) -> None:
        """A piece of the body has come, by any but the connection's fast ways."""
        if not is_comment:
            self.note(data)
        receiver = self._receiver
        if receiver is None:
            self._held.append((is_frames, data))
            self._held_bytes += len(data)
            if self._held_bytes > HELD_BYTES_MAX:
                self._settle_reading()
        elif is_frames:
            receiver.frames(data)
        else:
            receiver.payload(data)

    def complete(self) -> None:
        """The whole answer is here; its connection has let go of it."""
        self._carrier = None
        self.finish(self._outcome_of(COMPLETE))

    def fail(self, ending: Ending, detail: str) -> None:
        """It broke, or its time is up."""
        self.finish(self._outcome_of(ending, detail))

    def finish(self, outcome: Outcome) -> None:
        """End it, if it has not ended yet, and leave nothing behind: no timer, no connection, no connecting."""
        if self._outcome is not None:
            return
        self._outcome = outcome
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.drop()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
        if not self.opened.done():
            self.opened.set_result(outcome)
        if self._ended is not None:
            # Not while `attach` hands over: it ends the future itself, after the last piece.
            self._receiver = None
            if not self._ended.done():
                self._ended.set_result(outcome)

    def _outcome_of(self, ending: Ending, detail: str = "") -> Outcome:
        return Outcome(ending, None if self._head is None else self._head.status, detail)

    # Time and back-pressure

    def _settle_reading(self) -> None:
        if self._carrier is not None:
            self._carrier.set_reading(not self._is_waiting_for_us)

    @property
    def _is_waiting_for_us(self) -> bool:
        """The pod has to wait, so that its silence means nothing."""
        return self._is_paused or (self._receiver is None and self._held_bytes > HELD_BYTES_MAX)

    def _connect_timed_out(self) -> None:
        self.fail(Ending.CONNECT_TIMEOUT, f"no connection within {self._timeouts.connect:g} s")

    def expire(self) -> None:
        """The time that its carrier was told has passed: nothing came in time, or it is time to look (by it)."""
        if self.is_open:
            self._tick()
        else:
            self.fail(Ending.FIRST_BYTE_TIMEOUT, f"no data within {self._timeouts.first_byte:g} s")

    def _tick(self) -> None:
        """Look, a few times per stall time, whether a piece has come: the fast way then needs no clock."""
        if self.pieces != self._seen_pieces or self._is_waiting_for_us:
            self._seen_pieces = self.pieces
            self._quiet_ticks = 0
        elif self._quiet_ticks + 1 == STALL_TICKS:
            self.fail(Ending.STALLED, f"no data for {self._timeouts.stall:g} s")
            return
        else:
            self._quiet_ticks += 1
        if self._carrier is not None:
            self._carrier.expire_in(self._timeouts.stall / STALL_TICKS)
