"""The pool: what goes out, on which connection, what happens to those that die; over lines in memory and over real
sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import uvloop

from backends.outcome import Ending, Outcome
from backends.wire.head import Head
from backends.wire.pool import IDLE_SECONDS, Pool, connector
from backends.wire.transfer import Timeouts, Transfer
from tests.instruments.answers import (
    ANSWERS,
    DONE,
    JSON,
    LLAMA_HEAD,
    STREAM_HEAD,
    TERMINATOR,
    Answer,
    chunk,
    events_of,
    token,
    unchunk,
)
from tests.instruments.byte_pod import BytePod, Cut, Script, bytewise
from tests.instruments.hand_clock import HandClock
from tests.instruments.memory_wire import Line, MemoryPod
from tests.instruments.requires import requires_program
from tests.instruments.until import until

TIMEOUTS = Timeouts(connect=2.0, first_byte=120.0, stall=60.0)
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
STREAM = LLAMA_HEAD + chunk(token("a")) + chunk(DONE) + TERMINATOR


@dataclass(frozen=True)
class Ask:
    """A request."""

    path: str = "/v1/chat/completions"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b"{}"


class Taker:
    """A receiver that keeps what it is given."""

    def __init__(self) -> None:
        self.body = b""
        self.calls = 0

    def frames(self, data: bytes) -> None:
        self.payload(unchunk(data))

    def payload(self, data: bytes) -> None:
        self.body += data
        self.calls += 1


async def turn() -> None:
    """Let all that is ready happen."""
    for _ in range(5):
        await asyncio.sleep(0)


async def answer_of(transfer: Transfer) -> tuple[Outcome, Taker]:
    """Take a whole answer."""
    taker = Taker()
    opened = await transfer.opened
    if isinstance(opened, Outcome):
        return opened, taker
    return await transfer.attach(taker), taker


# ---- lines in memory -------------------------------------------------------------------------------------------------


class World:
    """A pod, a pool on it and a clock."""

    def __init__(self, url: str = "http://pod:8000") -> None:
        self.clock = HandClock()
        self.pod = MemoryPod()
        self.pool = Pool(
            url, connect=self.pod.connect, clock=self.clock, call_later=self.clock.call_later, timeouts=TIMEOUTS
        )

    async def ask(self, request: Ask | None = None) -> Transfer:
        transfer = self.pool.send(request or Ask(), frames=True)
        await turn()
        return transfer

    async def have_idle(self, count: int) -> None:
        """Have this many idle connections."""
        for _ in range(count):
            await self.ask()
        for line in self.pod.lines:
            line.say(GOOD)
        assert self.pool.idle == count


def check_quiet(world: World) -> None:
    """Nothing is left behind: at most the timer that looks for idle connections comes once more."""
    assert (world.pool.dialling, world.pool.idle, world.pool.open) == (0, 0, 0)
    world.clock.advance(IDLE_SECONDS)
    assert world.clock.pending == 0


async def test_a_request_goes_out_with_its_own_headers_and_ours() -> None:
    world = World("http://user:secret@pod:8000/prefix/")
    await world.ask(Ask("/v1/completions?x=1", ((b"authorization", b"Bearer k"), (b"Accept", b"*/*")), b'{"a":1}'))
    assert bytes(world.pod.line.written) == (
        b"POST /prefix/v1/completions?x=1 HTTP/1.1\r\n"
        b"host: pod:8000\r\n"
        b"accept-encoding: identity\r\n"
        b"content-length: 7\r\n"
        b"content-type: application/json\r\n"
        b"authorization: Bearer k\r\n"
        b"Accept: */*\r\n"
        b"\r\n"
        b'{"a":1}'
    )


async def test_a_get_has_no_body() -> None:
    world = World()
    world.pool.send(Ask("/props", (), b""), frames=False, method="GET")
    await turn()
    assert bytes(world.pod.line.written) == (
        b"GET /props HTTP/1.1\r\nhost: pod:8000\r\naccept-encoding: identity\r\n"
        b"accept: text/event-stream, application/json\r\n\r\n"
    )


@pytest.mark.parametrize(
    "request_",
    [
        Ask(headers=((b"x-a", b"1\r\nx-b: 2"),)),
        Ask(headers=((b"x-a", b"1\nx-b: 2"),)),
        Ask(headers=((b"x-a", b"1\r"),)),
        Ask(headers=((b"x-a\r\nx-b", b"1"),)),
        Ask(headers=((b"x-a", b"\0"),)),
        Ask(headers=((b"Content-Length", b"0"),)),
        Ask(headers=((b"transfer-encoding", b"chunked"),)),
        Ask(headers=((b"host", b"elsewhere"),)),
        Ask(path="/v1/x HTTP/1.1\r\nx-b: 2"),
        Ask(path="/v1/a b"),
        Ask(path="/v1/\u00e9"),
        Ask(path="v1"),
    ],
)
async def test_nothing_can_be_injected_into_a_request(request_: Ask) -> None:
    world = World()
    with pytest.raises(ValueError):
        world.pool.send(request_, frames=True)
    await turn()
    assert not world.pod.lines


async def test_the_latest_idle_connection_is_taken_first() -> None:
    world = World()
    await world.have_idle(3)
    transfer = await world.ask()
    assert transfer.reused
    written = [line.written.count(b"POST") for line in world.pod.lines]
    assert written == [1, 1, 2]


async def test_idle_connections_are_closed_each_after_its_time() -> None:
    world = World()
    first, second = await world.ask(), await world.ask()
    world.pod.lines[0].say(GOOD)
    world.clock.advance(IDLE_SECONDS / 2)
    world.pod.lines[1].say(GOOD)
    assert (first.is_over, second.is_over, world.pool.idle) == (True, True, 2)
    world.clock.advance(IDLE_SECONDS / 2 + 0.01)
    await turn()
    assert (world.pool.idle, world.pool.open) == (1, 1)
    assert world.pod.lines[0].is_closing()
    world.clock.advance(IDLE_SECONDS / 2)
    await turn()
    check_quiet(world)


async def test_a_connection_in_use_is_not_closed_for_being_idle_before() -> None:
    world = World()
    await world.have_idle(1)
    world.clock.advance(IDLE_SECONDS - 1)
    transfer = await world.ask()
    world.clock.advance(IDLE_SECONDS)
    assert not world.pod.line.is_closing()
    world.pod.line.say(GOOD)
    assert transfer.is_over
    world.clock.advance(IDLE_SECONDS - 0.1)
    assert world.pool.idle == 1


async def test_an_idle_connection_that_the_pod_closes_breaks_or_talks_on_is_forgotten() -> None:
    for what in ("end", "reset", "talk"):
        world = World()
        await world.have_idle(2)
        line = world.pod.lines[1]
        if what == "end":
            line.end()
        elif what == "reset":
            line.reset()
        else:
            line.say(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        # It is not taken, although the loop has not told of its loss yet.
        transfer = world.pool.send(Ask(), frames=True)
        assert transfer.reused
        assert world.pod.lines[0].written.count(b"POST") == 2
        await turn()
        assert (world.pool.idle, world.pool.open) == (0, 1)


async def test_an_idle_connection_that_is_lost_is_not_counted_any_more() -> None:
    world = World()
    await world.have_idle(2)
    world.pod.lines[0].end()
    await turn()
    assert (world.pool.idle, world.pool.open) == (1, 1)


@pytest.mark.parametrize(
    "said",
    [
        GOOD + b"HTTP/1.1 200 OK\r\n",
        GOOD.replace(b"content-length", b"connection: close\r\ncontent-length"),
        GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
    ids=["leftover", "close", "1.0"],
)
async def test_a_connection_that_cannot_be_trusted_with_another_request_is_closed(said: bytes) -> None:
    world = World()
    transfer = await world.ask()
    world.pod.line.say(said)
    assert transfer.is_over
    assert transfer.attach(Taker()).result() == Outcome(Ending.COMPLETE, 200)
    await turn()
    check_quiet(world)


async def test_a_connection_whose_request_was_not_read_to_its_end_is_not_used_again() -> None:
    world = World()
    transfer = await world.ask()
    world.pod.line.unsent = 1000
    world.pod.line.say(GOOD.replace(b"200 OK", b"413 Too Large"))
    assert isinstance(transfer.opened.result(), Head)
    assert world.pod.line.was_aborted, "what is unsent is not sent for nothing"
    await turn()
    assert world.pool.open == 0


# ---- kept connections that die ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", ["end", "reset"])
async def test_a_kept_connection_that_dies_unanswered_is_replaced_without_a_word(death: str) -> None:
    world = World()
    await world.have_idle(1)
    request = Ask(body=b'{"n":1}')
    transfer = await world.ask(request)
    assert transfer.reused
    getattr(world.pod.line, death)()
    assert not transfer.opened.done()
    await turn()
    assert len(world.pod.lines) == 2
    assert world.pod.lines[0].written.endswith(world.pod.line.written), "the same request"
    assert not transfer.reused
    world.pod.line.say(STREAM)
    assert isinstance(transfer.opened.result(), Head)
    assert transfer.attach(Taker()).result() == Outcome(Ending.COMPLETE, 200)
    assert (world.pool.idle, world.pool.open) == (1, 1)


async def test_a_request_goes_out_twice_at_most() -> None:
    world = World()
    await world.have_idle(1)
    transfer = await world.ask()
    world.pod.line.end()
    await turn()
    world.pod.line.end()
    outcome = transfer.opened.result()
    assert isinstance(outcome, Outcome)
    assert outcome.ending is Ending.RESET
    await turn()
    assert len(world.pod.lines) == 2
    check_quiet(world)


async def test_a_kept_connection_that_dies_after_a_byte_of_its_answer_is_an_outcome() -> None:
    world = World()
    await world.have_idle(1)
    transfer = await world.ask()
    world.pod.line.say(b"H")
    world.pod.line.end()
    outcome = transfer.opened.result()
    assert isinstance(outcome, Outcome)
    assert outcome.ending is Ending.RESET
    await turn()
    assert len(world.pod.lines) == 1


async def test_a_fresh_connection_that_dies_unanswered_is_an_outcome() -> None:
    world = World()
    transfer = await world.ask()
    world.pod.line.reset()
    await turn()
    outcome = transfer.opened.result()
    assert isinstance(outcome, Outcome)
    assert outcome.ending is Ending.RESET
    assert "reset by peer" in outcome.detail
    assert len(world.pod.lines) == 1


async def test_sending_again_may_fail_and_may_be_left() -> None:
    world = World()
    await world.have_idle(2)
    refused, left = await world.ask(), await world.ask()
    world.pod.refuses = ConnectionRefusedError(111, "Connection refused")
    world.pod.lines[1].end()
    await turn()
    assert refused.opened.result() == Outcome(Ending.REFUSED, None, "[Errno 111] Connection refused")
    world.pod.is_slow = True
    world.pod.lines[0].end()
    await turn()
    assert world.pool.dialling == 1
    left.abort()
    await turn()
    assert left.opened.result() == Outcome(Ending.LEFT)
    check_quiet(world)


async def test_a_paused_transfer_that_is_sent_again_stays_paused() -> None:
    world = World()
    await world.have_idle(1)
    transfer = await world.ask()
    transfer.pause()
    assert world.pod.line.is_reading_paused
    world.pod.line.protocol.connection_lost(ConnectionResetError())
    await turn()
    assert len(world.pod.lines) == 2
    assert world.pod.line.is_reading_paused


# ---- connecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        socket.gaierror(-2, "Name or service not known"),
        ssl.SSLCertVerificationError("self-signed certificate"),
        RuntimeError(),
    ],
)
async def test_a_connection_that_fails_is_a_refusal_with_its_reason(error: Exception) -> None:
    world = World()
    world.pod.refuses = error
    transfer = await world.ask()
    outcome = transfer.opened.result()
    assert isinstance(outcome, Outcome)
    assert outcome == Outcome(Ending.REFUSED, None, str(error) or "RuntimeError")
    check_quiet(world)


async def test_a_connection_made_for_somebody_who_has_just_left_is_closed() -> None:
    clock = HandClock()
    lines: list[Line] = []

    async def connect(factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """As the event loops do: they tell the protocol in a turn of its own, and whoever awaits after that."""
        protocol = cast("asyncio.Protocol", factory())
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: lines.append(Line(protocol)))
        await loop.create_future()

    pool = Pool("http://pod", connect=connect, clock=clock, call_later=clock.call_later, timeouts=TIMEOUTS)
    transfer = pool.send(Ask(), frames=True)
    await asyncio.sleep(0)
    transfer.abort()
    await turn()
    assert [(bytes(line.written), line.was_aborted) for line in lines] == [(b"", True)]
    assert (pool.dialling, pool.open, clock.pending) == (0, 0, 0)


async def test_a_transfer_says_whether_the_pod_may_have_its_request() -> None:
    world = World()
    world.pod.is_slow = True
    transfer = world.pool.send(Ask(), frames=True)
    await turn()
    assert not transfer.is_sent
    transfer.abort()
    assert not transfer.is_sent
    world.pod.is_slow = False
    assert (await world.ask()).is_sent


async def test_who_watches_a_transfer_is_told_when_its_request_goes_out() -> None:
    world = World()
    told: list[bool] = []
    transfer = world.pool.send(Ask(), frames=True)
    transfer.on_carried = told.append
    assert told == []
    await turn()
    assert told == [True]
    world.pod.line.say(STREAM)
    assert transfer.attach(Taker()).result().ending is Ending.COMPLETE
    assert told == [True]


async def test_who_watches_a_transfer_is_told_that_it_goes_out_again() -> None:
    world = World()
    await world.have_idle(1)
    told: list[bool] = []
    transfer = world.pool.send(Ask(), frames=True)
    assert transfer.is_sent
    transfer.on_carried = told.append
    world.pod.is_slow = True
    world.pod.line.end()
    await turn()
    assert told == [False]
    transfer.abort()
    world = World()
    await world.have_idle(1)
    transfer = world.pool.send(Ask(), frames=True)
    transfer.on_carried = told.append
    world.pod.line.end()
    await turn()
    assert told == [False, False, True]


async def test_who_watches_a_transfer_that_never_goes_out_is_told_nothing() -> None:
    world = World()
    world.pod.refuses = OSError("unreachable")
    told: list[bool] = []
    transfer = world.pool.send(Ask(), frames=True)
    transfer.on_carried = told.append
    await turn()
    assert told == []
    assert not transfer.is_sent


# ---- closing ---------------------------------------------------------------------------------------------------------


async def test_a_closed_pool_lets_what_is_under_way_go_on_and_takes_nothing_new() -> None:
    world = World()
    await world.have_idle(2)
    transfer = await world.ask()
    world.pool.close()
    world.pool.close()
    await turn()
    assert (world.pool.idle, world.pool.open) == (0, 1)
    world.pod.lines[1].say(STREAM)
    assert transfer.attach(Taker()).result().ending is Ending.COMPLETE
    await turn()
    check_quiet(world)
    refused = world.pool.send(Ask(), frames=True).opened.result()
    assert isinstance(refused, Outcome)
    assert refused.ending is Ending.REFUSED


# ---- real sockets ----------------------------------------------------------------------------------------------------

on_both_loops = pytest.mark.parametrize(
    "new_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def run(new_loop: NewLoop, world: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await world()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(bounded())


def pool_of(pod: BytePod, *, tls: ssl.SSLContext | None = None, timeouts: Timeouts = TIMEOUTS) -> Pool:
    loop = asyncio.get_running_loop()
    return Pool(
        pod.url,
        connect=connector(pod.url, tls=tls),
        clock=loop.time,
        call_later=loop.call_later,
        timeouts=timeouts,
    )


async def close(pool: Pool) -> None:
    pool.close()
    await until(lambda: pool.open == 0)


@on_both_loops
@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)
def test_an_answer_over_a_socket_arrives_whole_wherever_it_is_cut(new_loop: NewLoop, answer: Answer) -> None:
    last: Script = [Cut.CLOSE] if answer.lasts_until_close else []
    places = range(1, len(answer.wire), 3)
    scripts: list[Script] = [[answer.wire, *last], [*bytewise(answer.wire), *last]]
    scripts += [[answer.wire[:place], answer.wire[place:], *last] for place in places]

    async def world() -> None:
        async with BytePod(scripts.__getitem__) as pod:
            pool = pool_of(pod)
            for _ in scripts:
                outcome, taker = await answer_of(pool.send(Ask(), frames=True))
                assert outcome == Outcome(Ending.COMPLETE, answer.status)
                if answer.is_stream:
                    assert events_of(taker.body) == answer.events
                else:
                    assert taker.body == answer.body
            assert pod.accepted == (1 if answer.keeps_alive else len(scripts))
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_the_pieces_of_a_byte_pod_arrive_one_by_one(new_loop: NewLoop) -> None:
    wire = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(JSON)

    async def world() -> None:
        async with BytePod(lambda _: [wire, *bytewise(JSON)]) as pod:
            pool = pool_of(pod)
            _, taker = await answer_of(pool.send(Ask(), frames=True))
            assert taker.calls == len(JSON)
            await close(pool)

    run(new_loop, world)


@on_both_loops
@pytest.mark.parametrize("death", [Cut.CLOSE, Cut.RESET])
def test_a_pod_that_dies_on_a_socket_leaves_whole_events(new_loop: NewLoop, death: Cut) -> None:
    wire = STREAM_HEAD + chunk(token("a")) + chunk(token("b"), b"%X") + TERMINATOR
    scripts: list[Script] = [[wire[:size], death] for size in range(1, len(wire))]

    async def world() -> None:
        async with BytePod(scripts.__getitem__) as pod:
            pool = pool_of(pod)
            for _ in scripts:
                outcome, taker = await answer_of(pool.send(Ask(), frames=True))
                assert outcome.ending is Ending.RESET
                assert taker.body in (b"", token("a"), token("a") + token("b"))
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_a_pod_that_drops_its_connection_after_every_stream_unannounced_costs_no_request(new_loop: NewLoop) -> None:
    """As llama.cpp's server does: every second request meets a connection that is closed, or is just closing."""

    async def world() -> None:
        async with BytePod(lambda _: [STREAM, Cut.CLOSE]) as pod:
            pool = pool_of(pod)
            for number in range(300):
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                outcome, taker = await answer_of(pool.send(Ask(), frames=True))
                assert outcome == Outcome(Ending.COMPLETE, 200)
                assert taker.body == token("a") + DONE
            # Some of them reached a connection that was about to close, and were sent once more.
            assert 300 <= len(pod.requests) <= 600
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_a_stream_waits_for_a_slow_reader_without_growing(new_loop: NewLoop) -> None:
    frame = chunk(token("x" * 1000))
    count = 8000

    async def world() -> None:
        async with BytePod(lambda _: [STREAM_HEAD + frame, frame * count, TERMINATOR]) as pod:
            pool = pool_of(pod)
            transfer = pool.send(Ask(), frames=True)
            await transfer.opened
            taker = Taker()
            ended = transfer.attach(taker)
            transfer.pause()
            for _ in range(50):
                await asyncio.sleep(0)
            taken = len(taker.body)
            assert taken < 1 << 20
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(taker.body) == taken
            transfer.resume()
            assert (await ended).ending is Ending.COMPLETE
            assert taker.body == token("x" * 1000) * (count + 1)
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_a_large_request_goes_out_to_a_pod_that_reads_it_slowly_or_answers_first(new_loop: NewLoop) -> None:
    request = Ask(body=b"x" * (8 << 20))

    async def world() -> None:
        async with BytePod(lambda _: [GOOD]) as pod:
            pool = pool_of(pod)
            outcome, _ = await answer_of(pool.send(request, frames=True))
            assert outcome.ending is Ending.COMPLETE
            assert pod.requests[0].endswith(request.body)
            assert pool.idle == 1
            await close(pool)
        async with BytePod(lambda _: [GOOD.replace(b"200 OK", b"413 No")], reads_bodies=False) as pod:
            pool = pool_of(pod)
            outcome, _ = await answer_of(pool.send(request, frames=True))
            assert outcome == Outcome(Ending.COMPLETE, 413)
            assert pool.idle == 0
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_leaving_is_seen_by_the_pod_at_once(new_loop: NewLoop) -> None:
    async def world() -> None:
        async with BytePod(lambda _: [STREAM_HEAD + chunk(token("a")), asyncio.Event()]) as pod:
            pool = pool_of(pod)
            transfer = pool.send(Ask(), frames=True)
            await transfer.opened
            taker = Taker()
            ended = transfer.attach(taker)
            assert len(pod.lines) == 1
            transfer.abort()
            assert (await ended) == Outcome(Ending.LEFT, 200)
            await until(lambda: not pod.lines)
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_time_outs_run_on_the_loops_own_clock(new_loop: NewLoop) -> None:
    async def world() -> None:
        scripts: list[Script] = [[], [STREAM_HEAD + chunk(token("a")), asyncio.Event()]]
        async with BytePod(scripts.__getitem__) as pod:
            pool = pool_of(pod, timeouts=Timeouts(connect=2.0, first_byte=0.05, stall=0.05))
            outcome, _ = await answer_of(pool.send(Ask(), frames=True))
            assert outcome.ending is Ending.FIRST_BYTE_TIMEOUT
            outcome, taker = await answer_of(pool.send(Ask(), frames=True))
            assert outcome.ending is Ending.STALLED
            assert taker.body == token("a")
            await close(pool)

    run(new_loop, world)


@on_both_loops
def test_nobody_listening_is_a_refusal(new_loop: NewLoop) -> None:
    async def world() -> None:
        async with BytePod(lambda _: []) as pod:
            pool = pool_of(pod)
        outcome, _ = await answer_of(pool.send(Ask(), frames=True))
        assert outcome.ending is Ending.REFUSED
        assert outcome.detail
        assert pool.open == 0

    run(new_loop, world)


@on_both_loops
def test_small_writes_are_not_held_back(new_loop: NewLoop) -> None:
    async def world() -> None:
        async with BytePod(lambda _: []) as pod:
            protocols: list[asyncio.Protocol] = []

            def factory() -> asyncio.Protocol:
                protocols.append(Opened())
                return protocols[-1]

            await connector(pod.url)(factory)
            transport = protocols[0].transport  # type: ignore[attr-defined]
            assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            transport.abort()

    run(new_loop, world)


class Opened(asyncio.Protocol):
    """A protocol that shows its transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


@requires_program("openssl", install="apt-get install openssl")
@on_both_loops
def test_a_pod_behind_tls_is_verified(new_loop: NewLoop, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pod"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)

    async def world() -> None:
        async with BytePod(lambda _: bytewise(STREAM), tls=server) as pod:
            trusting = pool_of(pod, tls=ssl.create_default_context(cafile=str(certificate)))
            for _ in range(3):
                outcome, taker = await answer_of(trusting.send(Ask(), frames=True))
                assert outcome == Outcome(Ending.COMPLETE, 200)
                assert taker.body == token("a") + DONE
            assert pod.accepted == 1
            await close(trusting)
            wary = pool_of(pod)
            outcome, _ = await answer_of(wary.send(Ask(), frames=True))
            assert outcome.ending is Ending.REFUSED
            assert "certificate" in outcome.detail.lower()
            assert wary.open == 0

    run(new_loop, world)


@pytest.mark.parametrize("url", ["ftp://pod", "pod:8000", "http://", "//pod"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://host:port"):
        connector(url)
