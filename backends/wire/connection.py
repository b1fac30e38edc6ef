"""One connection to a pod: bytes out, bytes in, one transfer at a time.

`data_received` is the hottest line of the gateway: nearly every token passes it as a read that is exactly one chunk.
One that is like those before but for its text (`transfer.Alike`) goes straight to the client; another chunk is passed
on with two comparisons (`framing.frame_heads`), no parsing and no clock. Everything else goes through `Framing`.

What a connection's end means is decided here: the end of an answer that lasts until the close, a break, or, where a
kept connection dies before it has answered anything, nothing at all: then its owner sends the request again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Final, Protocol, cast

from backends.outcome import Ending
from backends.wire.deadline import CallLater, Deadline
from backends.wire.framing import FAST_BYTES_MAX, FRAME_HEAD_BYTES, NO_FRAME, NO_SIZES, Framing
from backends.wire.transfer import Alike, Receiver, Transfer


class State(IntEnum):  # hashed by C code; a plain Enum's steps cost 3 µs a request
    """What a connection is doing."""

    OPENING = 0
    IDLE = 1
    ASKED = 2  # a request is written, wholly or in part, and no byte of its answer is here
    ANSWERING = 3
    CLOSED = 4  # by us or by the pod: nothing is read or written any more


STEPS: Final = {
    State.OPENING: {State.IDLE},
    State.IDLE: {State.ASKED, State.CLOSED},
    State.ASKED: {State.ANSWERING, State.CLOSED},
    State.ANSWERING: {State.IDLE, State.CLOSED},
    State.CLOSED: set[State](),
}

# Those that every request meets: a module's name is read in half the time of a class's attribute.
_IDLE, _ASKED, _ANSWERING = State.IDLE, State.ASKED, State.ANSWERING
_QUOTE: Final = ord('"')


class Owner(Protocol):
    """Who keeps connections: the pool."""

    def made(self, connection: Connection) -> None:
        """It is connected."""

    def freed(self, connection: Connection) -> None:
        """It is idle after an answer, and good for another request."""

    def gone(self, connection: Connection) -> None:
        """It is closed, by whoever."""

    def unanswered(self, transfer: Transfer, request: bytes, *, frames: bool) -> None:
        """A kept connection died before it answered anything: the request is to go out again on a fresh one."""


class Connection(asyncio.Protocol):
    """One connection, from its opening to its close, owned by a pool."""

    __slots__ = (
        "_after",
        "_around",
        "_before",
        "_deadline",
        "_deliver",
        "_end_from",
        "_fast_end",
        "_framing",
        "_has_answered",
        "_heads",
        "_is_reading",
        "_owner",
        "_receiver",
        "_request",
        "_sizes",
        "_transfer",
        "_transport",
        "_wants_frames",
        "_write",
        "expire_in",
        "state",
    )

    def __init__(self, owner: Owner, *, clock: Callable[[], float], call_later: CallLater) -> None:
        self.state = State.OPENING
        self._deadline = Deadline(clock, call_later, self._expire)
        self.expire_in = self._deadline.set  # kept here, because a connection has many transfers
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._transfer: Transfer | None = None
        self._framing: Framing | None = None
        self._receiver: Receiver | None = None
        self._request = b""  # kept while it may have to go out again
        self._wants_frames = False
        self._has_answered = False
        self._is_reading = True
        # The fast way is open while `_heads` is a table of frames; else it is `NO_FRAME`, which nothing matches.
        self._heads = NO_FRAME
        self._fast_end = b""
        self._end_from = 0  # where it begins, counted from a frame's end
        self._deliver = _nobody
        # The shortest way is open while `_around` is not 0 and `_sizes` is a table.
        self._sizes = NO_SIZES
        self._before = self._after = b""
        self._around = 0  # bytes of both
        self._write: Callable[[bytes], None] = _nobody

    # For the pool

    @property
    def is_usable(self) -> bool:
        """Whether a request may be written to it now."""
        return self.state is _IDLE and self._transport is not None and not self._transport.is_closing()

    def ask(self, transfer: Transfer, request: bytes, *, frames: bool) -> None:
        """Send one request, head and body; what comes back is `transfer`'s."""
        assert self._transport is not None, "a connection is made before it is used"
        self._step(_ASKED)
        self._transfer = transfer
        self._framing = Framing(frames=frames)
        self._wants_frames = frames
        self._request = request if self._has_answered else b""
        transfer.carry(self, reused=self._has_answered)
        self._transport.write(request)

    def close(self) -> None:
        """Close an idle connection in order."""
        if self.state is not State.CLOSED:
            assert self._transport is not None, "it stands"
            self._step(State.CLOSED)
            self._transport.close()

    # For the transfer

    def set_reading(self, is_reading: bool) -> None:
        """Read from the pod, or leave what it sends to TCP, which makes the pod wait."""
        if is_reading is self._is_reading or self._transport is None or self._transport.is_closing():
            return
        self._is_reading = is_reading
        if is_reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def deliver_to(self, receiver: Receiver) -> None:
        """Whole frames go to this receiver from now on, past everything."""
        self._receiver = receiver
        self._open_fast_way()

    def pass_alike(self, form: Alike) -> None:
        """Frames of this form go where it says from now on, past the receiver too."""
        self._before, self._after, self._write = form.before, form.after, form.write
        self._around = len(form.before) + len(form.after)

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        self._let_go()
        if self.state is not State.CLOSED:
            assert self._transport is not None, "it stands"
            self._step(State.CLOSED)
            self._transport.abort()

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, TLS included."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._step(_IDLE)
        self._owner.made(self)

    def data_received(self, data: bytes) -> None:
        """Pass on a read that is exactly one chunk with whole events; anything else takes the long way."""
        size = len(data)
        if size < FAST_BYTES_MAX:
            transfer = self._transfer
            around = self._around
            if around:
                # What is left is the text, if all three were there. Methods of one argument cost two thirds of a slice
                # and half of `startswith`, which parses its arguments; a number is looked for by memchr.
                line, rest = self._sizes[size]
                text = data.removeprefix(line).removeprefix(self._before).removesuffix(self._after)
                if len(text) == rest - around and _QUOTE not in text:
                    assert transfer is not None, "the shortest way is a transfer's"
                    transfer.alike += 1
                    self._write(data)
                    return
            if data[:FRAME_HEAD_BYTES] == self._heads[size] and data[self._end_from :] == self._fast_end:
                assert transfer is not None, "the fast way is a transfer's"
                transfer.note(data)
                self._deliver(data)
                return
        self._received(data)

    def eof_received(self) -> None:
        """The pod has sent its last byte."""
        # At once: the transport's own close would first write what is left of a large request to a pod that reads no
        # more.
        self._ended(None)
        assert self._transport is not None, "it stands"
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        self._ended(exc)
        self._deadline.cancel()
        self._owner.gone(self)

    # What comes

    def _received(self, data: bytes) -> None:
        """Take bytes that are not exactly one frame; see where they end, and open the fast way where it may be."""
        transfer = self._transfer
        framing = self._framing
        if transfer is None or framing is None:
            self.close()  # an idle connection that talks is of no use; a closed one may still be told what came before
            return
        if self.state is _ASKED:
            self.state = _ANSWERING
            self._request = b""
        had_head = framing.head is not None
        frames, payload = framing.feed(data)
        if not had_head and framing.head is not None:
            transfer.begin(framing.head)
        self._pass_on(transfer, framing, frames, payload)
        if self._transfer is not transfer:
            return  # it left, or was made to leave, by what it was given
        if framing.is_whole:
            self._complete(transfer, framing)
        elif framing.fault:
            transfer.fail(Ending.MALFORMED, framing.fault)
        else:
            self._open_fast_way()

    def _pass_on(self, transfer: Transfer, framing: Framing, frames: bytes, payload: bytes) -> None:
        if not transfer.is_open and (frames or payload or framing.is_whole):
            transfer.open(is_whole=framing.is_whole)
        if frames:
            transfer.take(frames, is_frames=True, is_comment=False)
        if payload and self._transfer is transfer:
            transfer.take(payload, is_frames=False, is_comment=framing.is_comment)

    def _open_fast_way(self) -> None:
        framing, receiver = self._framing, self._receiver
        if framing is not None and receiver is not None and framing.is_between_frames:
            self._heads = framing.fast_heads
            self._fast_end = framing.fast_end
            self._end_from = -len(framing.fast_end)
            self._deliver = receiver.frames
            self._sizes = framing.fast_sizes
        else:
            self._heads = NO_FRAME
            self._sizes = NO_SIZES

    def _complete(self, transfer: Transfer, framing: Framing) -> None:
        """The answer is whole: give the connection back, or close it, and then tell the transfer."""
        self._let_go()
        transport = self._transport
        assert transport is not None
        # An answer may come before the request is read to its end; what is left of it would be taken for the next one.
        is_written = transport.get_write_buffer_size() == 0
        if framing.keeps_alive and not framing.has_leftover and is_written and not transport.is_closing():
            self.state = _IDLE  # it was answering
            self._has_answered = True
            if not self._is_reading:
                self.set_reading(True)  # or the pod's close would go unseen
            self._owner.freed(self)
        else:
            self._step(State.CLOSED)
            if is_written:
                transport.close()
            else:
                transport.abort()
        transfer.complete()

    # What ends

    def _ended(self, error: Exception | None) -> None:
        transfer, framing, request, was = self._transfer, self._framing, self._request, self.state
        if was is State.CLOSED:
            return
        if transfer is None or framing is None:
            self._step(State.CLOSED)
            return
        if was is _ASKED and self._has_answered:
            self._let_go()
            self._step(State.CLOSED)
            transfer.uncarry()
            self._owner.unanswered(transfer, request, frames=self._wants_frames)
            return
        if error is None:
            self._pass_on(transfer, framing, b"", framing.end())
            if self._transfer is not transfer:
                return
            if framing.is_whole:
                self._let_go()
                self._step(State.CLOSED)
                transfer.complete()
                return
        transfer.fail(Ending.RESET, _how_it_broke(error, framing))

    def _let_go(self) -> None:
        """The transfer is no longer this connection's."""
        self._deadline.clear()
        self._transfer = self._framing = self._receiver = None
        self._request = b""
        self._heads = NO_FRAME
        self._deliver = _nobody
        self._around = 0
        self._before = self._after = b""
        self._write = _nobody

    def _expire(self) -> None:
        if self._transfer is not None:
            self._transfer.expire()

    def _step(self, state: State) -> None:
        assert state in STEPS[self.state], f"a connection never goes from {self.state.name} to {state.name}"
        self.state = state


def _nobody(data: bytes) -> None:
    raise AssertionError(f"{len(data)} bytes passed a closed fast way")


def _how_it_broke(error: Exception | None, framing: Framing) -> str:
    where = "before the answer's head was whole" if framing.head is None else "inside the answer"
    return f"closed {where}" if error is None else f"broken {where}: {error or type(error).__name__}"
