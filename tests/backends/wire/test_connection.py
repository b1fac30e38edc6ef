"""One connection and its transfer, over lines in memory and a clock moved by hand: cuts, deaths, time-outs,
back-pressure."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.outcome import Ending, Outcome
from backends.wire.connection import STEPS, Connection, State
from backends.wire.head import Head
from backends.wire.pool import Pool
from backends.wire.transfer import HELD_BYTES_MAX, NONE_ALIKE, Alike, Timeouts, Transfer
from tests.instruments.answers import (
    ANSWERS,
    STREAM_HEAD,
    TERMINATOR,
    Answer,
    chunk,
    events_of,
    token,
    unchunk,
)
from tests.instruments.hand_clock import HandClock
from tests.instruments.memory_wire import Line, MemoryPod

TIMEOUTS = Timeouts(connect=2.0, first_byte=120.0, stall=60.0)
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")

each_answer = pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)


@dataclass(frozen=True)
class Ask:
    """A request."""

    path: str = "/v1/chat/completions"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b"{}"


class Taker:
    """A receiver that keeps what it is given, and may do something the first time."""

    def __init__(self, at_once: Callable[[], object] | None = None) -> None:
        self.pieces: list[tuple[str, bytes]] = []
        self._at_once = at_once

    def frames(self, data: bytes) -> None:
        assert all(kind != "payload" for kind, _ in self.pieces), "no frames after payload"
        assert unchunk(data).endswith(EVENT_ENDS)
        self._take("frames", data)

    def payload(self, data: bytes) -> None:
        self._take("payload", data)

    def _take(self, kind: str, data: bytes) -> None:
        assert data, "no empty pieces"
        self.pieces.append((kind, data))
        if self._at_once is not None:
            at_once, self._at_once = self._at_once, None
            at_once()

    @property
    def body(self) -> bytes:
        return b"".join(unchunk(data) if kind == "frames" else data for kind, data in self.pieces)


class World:
    """A pod, a pool on it and a clock."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.pod = MemoryPod()
        self.pool = Pool(
            "http://pod:8000",
            connect=self.pod.connect,
            clock=self.clock,
            call_later=self.clock.call_later,
            timeouts=TIMEOUTS,
        )

    async def ask(self, *, frames: bool = True, request: Ask | None = None) -> tuple[Transfer, Line]:
        """Send a request, and see it arrive."""
        transfer = self.pool.send(request or Ask(), frames=frames)
        await turn()
        return transfer, self.pod.line

    async def stream(self, taker: Taker, *, said: bytes = b"") -> tuple[Transfer, Line, asyncio.Future[Outcome]]:
        """Have a stream under way, its first event taken."""
        transfer, line = await self.ask()
        line.say(STREAM_HEAD + chunk(token("a")) + said)
        return transfer, line, transfer.attach(taker)


async def turn() -> None:
    """Let all that is ready happen."""
    for _ in range(5):
        await asyncio.sleep(0)


def check_quiet(world: World) -> None:
    """Nothing is left behind but idle connections."""
    assert world.pool.dialling == 0
    assert world.pool.open == world.pool.idle
    # One timer watches over the idle connections; each may have one left of its last time-out, which does nothing.
    assert world.clock.pending <= (world.pool.open + 1 if world.pool.idle else 0)


def result_of(opened: asyncio.Future[Head | Outcome]) -> Head:
    head = opened.result()
    assert isinstance(head, Head)
    return head


# ---- every cut, and a death at every position
# -------------------------------------------------------------------------


def cut(wire: bytes, places: Sequence[int]) -> list[bytes]:
    return [wire[begin:end] for begin, end in pairwise([0, *places, len(wire)]) if end > begin]


async def exchange(
    world: World, answer: Answer, pieces: Sequence[bytes], *, late: bool, ending: str = ""
) -> tuple[Transfer, Taker, Outcome]:
    """One request answered by `pieces`; `late`: nobody takes the answer before all has been said."""
    transfer, line = await world.ask()
    taker = Taker()
    ended = None
    for piece in pieces:
        line.say(piece)
        if ended is None and not late and transfer.opened.done():
            ended = transfer.attach(taker)
    if ending == "reset":
        line.reset()
    elif ending == "end" or answer.lasts_until_close:
        line.end()
    await turn()
    outcome = transfer.opened.result()
    if isinstance(outcome, Outcome):
        assert not taker.pieces
        return transfer, taker, outcome
    ended = ended or transfer.attach(taker)
    return transfer, taker, ended.result()


@each_answer
async def test_an_answer_arrives_whole_wherever_it_is_cut(answer: Answer) -> None:
    wire = answer.wire
    ways = [[wire], [wire[i : i + 1] for i in range(len(wire))]]
    ways += [cut(wire, [place]) for place in range(1, len(wire))]
    world = World()
    for number, pieces in enumerate(ways):
        for late in (False, True):
            transfer, taker, outcome = await exchange(world, answer, pieces, late=late)
            assert outcome == Outcome(Ending.COMPLETE, answer.status)
            assert result_of(transfer.opened).status == answer.status
            if answer.is_stream:
                assert events_of(taker.body) == answer.events
            else:
                assert taker.body == answer.body
            assert transfer.pieces <= len(taker.pieces), "payload may be cut so that a piece is an empty line"
            assert transfer.pieces == len(taker.pieces) or not answer.is_framed
            assert transfer.reused is (answer.keeps_alive and (number > 0 or late))
            assert world.pool.idle == answer.keeps_alive
            check_quiet(world)


@each_answer
@pytest.mark.parametrize("ending", ["end", "reset"])
async def test_a_pod_that_dies_at_any_byte_leaves_whole_events_and_an_outcome(answer: Answer, ending: str) -> None:
    wire = answer.wire
    for size in range(len(wire)):
        for pieces in ([wire[:size]] if size else [], cut(wire[:size], [size // 2])):
            for late in (False, True):
                world = World()
                _, taker, outcome = await exchange(world, answer, pieces, late=late, ending=ending)
                if answer.lasts_until_close and ending == "end" and size >= answer.head_bytes:
                    assert outcome.ending is Ending.COMPLETE
                else:
                    assert outcome.ending is Ending.RESET, (size, outcome)
                    assert outcome.is_retryable
                    assert outcome.detail
                if answer.is_stream:
                    events = events_of(taker.body)
                    assert events == answer.events[: len(events)]
                else:
                    assert answer.body.startswith(taker.body)
                assert world.pool.open == 0
                check_quiet(world)


# ---- opening
# -----------------------------------------------------------------------------------------------------------


async def test_comments_do_not_open_a_stream() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(STREAM_HEAD)
    line.say(chunk(b": ping\n\n"))
    assert not transfer.opened.done()
    line.say(chunk(token("a")))
    assert result_of(transfer.opened).is_stream
    taker = Taker()
    transfer.attach(taker)
    assert taker.pieces == [("frames", chunk(token("a")))]


async def test_an_error_opens_with_the_first_bytes_of_its_body() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(b"HTTP/1.1 503 Busy\r\nretry-after: 3\r\ncontent-length: 4\r\n\r\n")
    assert not transfer.opened.done()
    line.say(b"bu")
    head = result_of(transfer.opened)
    assert (head.status, head.get(b"retry-after")) == (503, b"3")


async def test_a_transfer_that_the_awaiting_side_ended_itself_goes_on_undisturbed() -> None:
    world = World()
    for after in (b"", STREAM_HEAD + chunk(token("a")), STREAM_HEAD + chunk(token("a")) + TERMINATOR):
        transfer, line = await world.ask()
        transfer.opened.set_result(Outcome(Ending.LEFT))
        if after:
            line.say(after)
        transfer.abort()
        assert transfer.opened.result() == Outcome(Ending.LEFT)
        await turn()
        check_quiet(world)


async def test_what_came_before_the_receiver_is_handed_over_in_order_and_then_the_end() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(STREAM_HEAD + chunk(token("a")))
    line.say(chunk(token("b")))
    line.say(chunk(b"data: c"))
    line.say(chunk(b"\n\n") + TERMINATOR)
    taker = Taker()
    ended = transfer.attach(taker)
    assert taker.pieces == [
        ("frames", chunk(token("a"))),
        ("frames", chunk(token("b"))),
        ("payload", b"data: c"),
        ("payload", b"\n\n"),
    ]
    assert ended.result() == Outcome(Ending.COMPLETE, 200)
    assert transfer.last_two == (b"data: c", b"\n\n")


# ---- the fast way
# ------------------------------------------------------------------------------------------------------


async def test_a_token_costs_two_calls() -> None:
    world = World()
    taker = Taker()
    transfer, line, _ = await world.stream(taker)
    frame = chunk(token("b"))
    calls = called(lambda: line.protocol.data_received(frame))
    assert calls[:3] == ["Connection.data_received", "Transfer.note", "Taker.frames"]
    assert not [call for call in calls if call.startswith(("Framing", "Connection._"))]
    assert transfer.pieces == 2
    assert transfer.last_two == (chunk(token("a")), frame)


async def test_a_token_of_a_form_that_is_known_costs_one_call() -> None:
    world = World()
    taker = Taker()
    transfer, line, _ = await world.stream(taker)
    written: list[bytes] = []
    transfer.pass_alike(form_of(token("a"), b"a", written.append))
    frame = chunk(token("b"))
    calls = called(lambda: line.protocol.data_received(frame))
    assert calls[0] == "Connection.data_received"
    assert not [call for call in calls[1:] if call.startswith(("Framing", "Transfer", "Connection", "Taker"))]
    assert written == [frame]
    assert (transfer.pieces, transfer.alike) == (2, 1)
    assert len(taker.pieces) == 1


async def test_only_whole_frames_of_the_form_go_past_the_receiver_whatever_comes_between() -> None:
    world = World()
    taker = Taker()
    transfer, line, ended = await world.stream(taker)
    passed: list[tuple[str, bytes]] = taker.pieces
    transfer.pass_alike(form_of(token("a"), b"a", lambda data: passed.append(("alike", data))))
    frames = [chunk(token(text)) for text in ("b", "", "c" * 300, 'd\\"', "e" * 5000, "f", "g", "h" * 16, "i")]
    for frame in frames[:5]:
        line.say(frame)
    line.say(frames[5] + frames[6])
    line.say(frames[7][:30])
    line.say(frames[7][30:])
    line.say(frames[8])
    kinds = ["frames", "alike", "alike", "alike", "frames", "frames", "frames", "frames", "alike"]
    assert [kind for kind, _ in taker.pieces] == kinds
    assert b"".join(data for _, data in taker.pieces) == chunk(token("a")) + b"".join(frames)
    assert transfer.pieces == len(kinds)
    line.say(TERMINATOR)
    assert ended.result() == Outcome(Ending.COMPLETE, 200)


@pytest.mark.parametrize(
    ("said", "last_two"),
    [
        ("ab", (chunk(token("a")), b"")),
        ("abc", (b"", b"")),
        ("a*", (chunk(token("a")), chunk(token("*") * 2))),
        ("ab*", (b"", chunk(token("*") * 2))),
        ("ab**", (chunk(token("*") * 2), chunk(token("*") * 2))),
        ("ab*c", (chunk(token("*") * 2), b"")),
        ("ab*cd", (b"", b"")),
        ("ab*cd*", (b"", chunk(token("*") * 2))),
    ],
)
async def test_of_the_last_two_pieces_those_are_kept_that_the_receiver_got(
    said: str, last_two: tuple[bytes, bytes]
) -> None:
    world = World()
    transfer, line, _ = await world.stream(Taker())
    transfer.pass_alike(form_of(token("a"), b"a", lambda _: None))
    for text in said[1:]:
        line.say(chunk(token(text) * (2 if text == "*" else 1)))
    assert transfer.last_two == last_two


async def test_a_form_is_of_its_answer_alone_and_forgotten_with_it() -> None:
    world = World()
    first, line, _ = await world.stream(Taker())
    written: list[bytes] = []
    first.pass_alike(form_of(token("a"), b"a", written.append))
    line.say(TERMINATOR)
    taker = Taker()
    second, line, _ = await world.stream(taker)
    assert second.reused
    line.say(chunk(token("b")))
    assert len(taker.pieces) == 2
    second.pass_alike(form_of(token("a"), b"a", written.append))
    second.pass_alike(NONE_ALIKE)
    line.say(chunk(token("c")))
    assert len(taker.pieces) == 3
    second.pass_alike(form_of(token("a"), b"a", written.append))
    second.abort()
    second.pass_alike(form_of(token("a"), b"a", written.append))
    line.protocol.data_received(chunk(token("d")))
    assert written == []


@given(
    size=st.integers(0, 80),
    parts=st.lists(st.sampled_from([b"data: {", b'"}\n\n', b"\r\n", b"x", b'"', b"5\r\n", b"\n"]), max_size=6),
    is_upper=st.booleans(),
)
async def test_what_goes_past_the_receiver_is_one_chunk_that_ends_as_the_form_does(
    size: int, parts: list[bytes], is_upper: bool
) -> None:
    world = World()
    taker = Taker()
    transfer, line, _ = await world.stream(taker)
    written: list[bytes] = []
    transfer.pass_alike(Alike(b"data: {", b'"}\n\n\r\n', written.append))
    said = (b"%X" if is_upper else b"%x") % size + b"\r\n" + b"".join(parts) + b'"}\n\n\r\n'
    line.say(said)
    for data in written:
        payload = unchunk(data)
        assert data == chunk(payload)
        assert payload.startswith(b"data: {")
        assert payload.endswith(b'"}\n\n')
        assert b'"' not in payload[7:-4]


def called(act: Callable[[], object]) -> list[str]:
    """The functions of ours that are called in `act`."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return [call for call in calls if "<lambda>" not in call]


def form_of(event: bytes, text: bytes, write: Callable[[bytes], None]) -> Alike:
    """The form of frames that are like `event` but for `text` in it."""
    before, _, after = event.rpartition(text)
    return Alike(before, after + b"\r\n", write)


async def test_the_fast_way_and_the_long_way_may_alternate() -> None:
    world = World()
    taker = Taker()
    _, line, ended = await world.stream(taker)
    pieces = [token("b"), token("c"), token("d" * 5000), token("e"), token("f"), token("g", b"\r\n\r\n"), token("h")]
    frames = [chunk(piece) for piece in pieces]
    line.say(frames[0])
    line.say(frames[1][:9])
    line.say(frames[1][9:])
    line.say(frames[2])
    line.say(frames[3] + frames[4])
    line.say(frames[5])
    line.say(frames[6])
    line.say(TERMINATOR)
    assert taker.body == token("a") + b"".join(pieces)
    assert all(kind == "frames" for kind, _ in taker.pieces)
    assert ended.result().ending is Ending.COMPLETE


@pytest.mark.parametrize("size", [1, 2, 3, 4])
async def test_a_short_chunk_that_ends_as_an_event_by_its_frame_alone_is_payload(size: int) -> None:
    world = World()
    taker = Taker()
    _, line, _ = await world.stream(taker)
    line.say(chunk(b"data: b"))
    for payload in (b"\n", b"\n"):
        line.say(chunk(payload))
    assert [kind for kind, _ in taker.pieces[1:]] == ["payload"] * 3
    assert taker.body == token("a") + b"data: b\n\n"
    line.say(chunk(b"\n" * size))
    assert taker.pieces[-1] == ("payload", b"\n" * size)


# ---- time-outs
# ---------------------------------------------------------------------------------------------------------


async def test_a_pod_that_does_not_answer_in_time_ends_with_a_first_byte_time_out() -> None:
    for said in (b"", STREAM_HEAD[:20], STREAM_HEAD, STREAM_HEAD + chunk(b": ping\n\n")):
        world = World()
        transfer, line = await world.ask()
        world.clock.advance(TIMEOUTS.first_byte - 1)
        if said:
            line.say(said)
        assert not transfer.opened.done()
        world.clock.advance(1.001)
        outcome = transfer.opened.result()
        assert isinstance(outcome, Outcome)
        assert outcome.ending is Ending.FIRST_BYTE_TIMEOUT
        assert outcome.status == (200 if STREAM_HEAD in said else None)
        assert line.was_aborted
        await turn()
        check_quiet(world)


async def test_the_first_byte_has_its_time_from_when_the_request_went_out() -> None:
    world = World()
    world.pod.is_slow = True
    transfer = world.pool.send(Ask(), frames=True)
    await turn()
    world.clock.advance(TIMEOUTS.connect + 0.001)
    outcome = transfer.opened.result()
    assert isinstance(outcome, Outcome)
    assert outcome.ending is Ending.CONNECT_TIMEOUT
    await turn()
    check_quiet(world)


async def test_a_stream_that_goes_silent_stalls_after_its_time_and_not_before() -> None:
    for offset in (0.0, 1.0, 14.9, 15.0, 29.0):
        world = World()
        taker = Taker()
        _, line, ended = await world.stream(taker)
        world.clock.advance(offset)
        line.say(chunk(token("b")))
        world.clock.advance(TIMEOUTS.stall - 0.1)
        assert not ended.done()
        world.clock.advance(TIMEOUTS.stall / 4 + 0.2)
        assert ended.result().ending is Ending.STALLED
        assert ended.result().may_still_run
        assert line.was_aborted
        await turn()
        check_quiet(world)


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "payload"])
async def test_comments_do_not_keep_a_stream_from_stalling_and_tokens_do(frames: bool) -> None:
    world = World()
    transfer, line = await world.ask(frames=frames)
    line.say(STREAM_HEAD + chunk(token("a")))
    ended = transfer.attach(Taker())
    for _ in range(100):
        world.clock.advance(TIMEOUTS.stall / 2)
        line.say(chunk(token("b")))
    assert not ended.done()
    for _ in range(7):
        world.clock.advance(10)
        line.say(chunk(b": ping\n\n"))
    world.clock.advance(6)
    assert ended.result().ending is Ending.STALLED


async def test_a_chunk_that_arrives_slower_than_the_stall_time_is_a_stall() -> None:
    world = World()
    _, line, ended = await world.stream(Taker())
    for byte in chunk(token("b"))[:20]:
        line.say(b"%c" % byte)
        world.clock.advance(5)
    assert ended.result().ending is Ending.STALLED


async def test_time_in_which_the_pod_has_to_wait_for_us_is_no_stall() -> None:
    world = World()
    transfer, line, ended = await world.stream(Taker())
    for seconds in (1000, 1):  # the shorter one is between two looks
        world.clock.advance(50)
        transfer.pause()
        world.clock.advance(seconds)
        assert not ended.done()
        transfer.resume()
    world.clock.advance(TIMEOUTS.stall - 0.1)
    assert not ended.done()
    world.clock.advance(TIMEOUTS.stall / 4 + 0.2)
    assert ended.result().ending is Ending.STALLED
    assert line.was_aborted


async def test_a_transfer_that_nobody_takes_does_not_stall_while_it_cannot_be_read() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(STREAM_HEAD + chunk(token("a" * (HELD_BYTES_MAX + 1))))
    assert line.is_reading_paused
    world.clock.advance(1000)
    taker = Taker()
    ended = transfer.attach(taker)
    assert not line.is_reading_paused
    world.clock.advance(TIMEOUTS.stall - 0.1)
    assert not ended.done()
    world.clock.advance(TIMEOUTS.stall / 4 + 0.2)
    assert ended.result().ending is Ending.STALLED


# ---- back-pressure
# -----------------------------------------------------------------------------------------------------


async def test_reading_pauses_while_nobody_takes_what_came() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(STREAM_HEAD)
    said = 0
    while not line.is_reading_paused:
        line.say(chunk(token("x" * 1000)))
        said += 1
    assert HELD_BYTES_MAX / 1100 < said < HELD_BYTES_MAX / 1000 + 2
    line.say(chunk(token("y")) + TERMINATOR)
    taker = Taker()
    ended = transfer.attach(taker)
    assert len(events_of(taker.body)) == said
    assert not ended.done()
    await turn()
    assert len(events_of(taker.body)) == said + 1
    assert ended.result().ending is Ending.COMPLETE


async def test_a_receiver_that_pauses_while_it_is_handed_what_came_stays_paused() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(STREAM_HEAD + chunk(token("a")))
    line.say(chunk(token("b")))
    taker = Taker(at_once=transfer.pause)
    transfer.attach(taker)
    assert len(taker.pieces) == 2
    assert line.is_reading_paused
    line.say(chunk(token("c")))
    assert len(taker.pieces) == 2
    transfer.resume()
    await turn()
    assert len(taker.pieces) == 3


async def test_pausing_twice_or_without_a_connection_harms_nothing() -> None:
    world = World()
    transfer = world.pool.send(Ask(), frames=True)
    transfer.pause()
    transfer.pause()
    await turn()
    assert world.pod.line.is_reading_paused
    transfer.resume()
    transfer.resume()
    assert not world.pod.line.is_reading_paused
    transfer.abort()
    transfer.pause()
    transfer.resume()
    await turn()
    check_quiet(world)


async def test_a_connection_that_was_paused_at_the_end_reads_again_when_it_is_idle() -> None:
    world = World()
    taker = Taker()
    transfer, line, ended = await world.stream(taker)
    transfer.pause()
    line.protocol.data_received(TERMINATOR)  # what was read before the pause took hold
    assert ended.result().ending is Ending.COMPLETE
    assert world.pool.idle == 1
    line.end()
    await turn()
    assert world.pool.open == 0


# ---- leaving
# -----------------------------------------------------------------------------------------------------------


async def test_leaving_closes_the_connection_and_nothing_is_received_after_it() -> None:
    world = World()
    taker = Taker()
    transfer, line, ended = await world.stream(taker)
    transfer.abort()
    assert ended.result() == Outcome(Ending.LEFT, 200)
    assert line.was_aborted
    line.protocol.data_received(chunk(token("b")))
    assert len(taker.pieces) == 1
    await turn()
    check_quiet(world)


async def test_leaving_before_anything_came_ends_the_opening() -> None:
    world = World()
    transfer, line = await world.ask()
    transfer.abort()
    assert transfer.opened.result() == Outcome(Ending.LEFT)
    assert line.was_aborted
    assert transfer.attach(Taker()).result() == Outcome(Ending.LEFT)
    await turn()
    check_quiet(world)


async def test_leaving_while_connecting_ends_the_connecting() -> None:
    world = World()
    world.pod.is_slow = True
    transfer = world.pool.send(Ask(), frames=True)
    await turn()
    assert world.pool.dialling == 1
    transfer.abort()
    await turn()
    check_quiet(world)
    assert len(asyncio.all_tasks()) == 1, "the test's own"


async def test_an_outcome_may_be_given_for_the_leaving() -> None:
    world = World()
    transfer, _, ended = await world.stream(Taker())
    ejected = Outcome(Ending.EJECTED, detail="the device fell")
    transfer.abort(ejected)
    transfer.abort()
    assert ended.result() is ejected


@pytest.mark.parametrize("rest", [b"", chunk(token("b")), chunk(b"data: b"), TERMINATOR])
async def test_a_receiver_may_leave_while_it_is_given_something(rest: bytes) -> None:
    # Handed over at once, in the fast way, and in the long way.
    for way in ("handed over", "fast", "long"):
        world = World()
        transfer, line = await world.ask()
        line.say(STREAM_HEAD + chunk(token("a")))
        taker = Taker(at_once=transfer.abort if way == "handed over" else None)
        if way == "handed over" and rest:
            line.say(rest)
        ended = transfer.attach(taker)
        if way != "handed over":
            taker._at_once = transfer.abort
            line.say(chunk(token("x")) + (rest if way == "long" else b""))
        assert ended.result().ending is Ending.LEFT
        assert len(taker.pieces) == (1 if way == "handed over" else 2)
        assert way == "handed over" or transfer.pieces == 2, "what came with it is dropped"
        await turn()
        check_quiet(world)


async def test_leaving_an_answer_that_is_all_here_drops_it() -> None:
    world = World()
    transfer, line = await world.ask()
    line.say(STREAM_HEAD + chunk(token("a")) + TERMINATOR)
    assert transfer.is_over
    transfer.abort()
    taker = Taker()
    assert transfer.attach(taker).result().ending is Ending.LEFT
    assert not taker.pieces
    assert world.pool.idle == 1, "the connection had done its work"


async def test_leaving_after_the_end_changes_nothing() -> None:
    world = World()
    transfer, line, ended = await world.stream(Taker(), said=TERMINATOR)
    transfer.abort()
    assert ended.result() == Outcome(Ending.COMPLETE, 200)
    assert world.pool.idle == 1
    assert not line.was_aborted


# ---- what a pod should not do
# ------------------------------------------------------------------------------------------


async def test_a_malformed_answer_ends_the_connection() -> None:
    for said, status in ((b"SMTP ready\r\n", None), (STREAM_HEAD + b"zz\r\n", 200)):
        world = World()
        transfer, line = await world.ask()
        line.say(said)
        outcome = transfer.opened.result()
        assert isinstance(outcome, Outcome)
        assert (outcome.ending, outcome.status) == (Ending.MALFORMED, status)
        assert outcome.detail
        assert line.was_aborted
        await turn()
        check_quiet(world)


async def test_malformed_bytes_after_good_ones_end_a_stream_that_was_passed_on_whole() -> None:
    world = World()
    taker = Taker()
    _, line, ended = await world.stream(taker)
    line.say(chunk(token("b")) + b"5\r\nhello!!")
    assert ended.result().ending is Ending.MALFORMED
    assert taker.body == token("a") + token("b")


async def test_a_receiver_that_raises_ends_its_own_transfer_alone() -> None:
    world = World()

    def fail() -> None:
        raise RuntimeError("a bug")

    taker = Taker()
    _, line, ended = await world.stream(taker)
    taker._at_once = fail
    with pytest.raises(RuntimeError):
        line.say(chunk(token("b")))
    line.reset()  # as the event loop does when a protocol raises
    await turn()
    assert ended.result().ending is Ending.RESET
    check_quiet(world)


async def test_a_connection_goes_only_the_ways_of_its_table() -> None:
    world = World()
    connection = Connection(world.pool, clock=lambda: world.clock.now, call_later=world.clock.call_later)
    with pytest.raises(AssertionError):
        connection.ask(world.pool.send(Ask(), frames=True), b"", frames=True)
    assert set(STEPS) == set(State)
    await turn()
