"""Calls on real sockets, in both kinds of loops, against a server that sends the very bytes it is told to; and, where
when things happen is the matter, on connections that the test makes itself.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import httptools
import pytest
import uvloop

from loadtest.answer import Answer
from loadtest.client import MOST_CONNECTING, Client, Connection, Flight, connect_to
from tests.instruments.answers import ANSWERS, DONE, JSON, STREAM_HEAD, TERMINATOR, chunk
from tests.instruments.answers import Answer as Wire
from tests.instruments.byte_pod import BytePod, Cut, Script, bytewise
from tests.instruments.memory_wire import Line
from tests.instruments.requires import requires_program
from tests.instruments.until import until

BOUND_SECONDS = 30.0
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: pod\r\ncontent-length: 2\r\n\r\n{}"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
EVENTS = [EVENT] * 3 + [FINISH, USAGE, DONE]
STREAM = STREAM_HEAD + b"".join(map(chunk, EVENTS)) + TERMINATOR
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON) + JSON

UNFRAMED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"

Scenario = Coroutine[Any, Any, None]
Run = Callable[[Scenario], None]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario to its end in a loop of each kind, within bounded time, and asks that nothing is left over."""
    new_loop: NewLoop = request.param

    async def bounded(scenario: Scenario) -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        await asyncio.wait_for(scenario, BOUND_SECONDS)
        assert not faults
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def run(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(bounded(scenario))

    return run


class Caller:
    """A client, and the flights that it was given."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ended: list[Flight] = []
        self._is_sending = False
        self._waiting: dict[Flight, asyncio.Future[Flight]] = {}

    @classmethod
    def to(cls, port: int, *, tls: ssl.SSLContext | None = None) -> Caller:
        loop = asyncio.get_running_loop()
        return cls(Client(connect_to(loop, ("127.0.0.1", port), tls=tls, name="127.0.0.1"), time.monotonic, loop))

    def send(self, answer: Answer | None = None, *, cancel_after: int = 0) -> Flight:
        flight = Flight(0.0, REQUEST, answer or Answer(), self._on_end, cancel_after=cancel_after)
        self._waiting[flight] = asyncio.get_running_loop().create_future()
        self._is_sending = True
        self.client.send(flight)
        self._is_sending = False
        return flight

    async def end_of(self, flight: Flight) -> Flight:
        return await self._waiting[flight]

    async def call(self, answer: Answer | None = None, *, cancel_after: int = 0) -> Flight:
        return await self.end_of(self.send(answer, cancel_after=cancel_after))

    async def close(self) -> None:
        await self.client.close()
        assert not self.client.flights
        assert all(future.done() for future in self._waiting.values())

    def _on_end(self, flight: Flight) -> None:
        assert not self._is_sending, "a flight ended while it was sent"
        assert flight not in self.ended, "a flight ended twice"
        assert flight not in self.client.flights
        self.ended.append(flight)
        self._waiting[flight].set_result(flight)


def scripted(*scripts: Script) -> BytePod:
    """A server that answers its requests by these, one after the other."""
    return BytePod(lambda number: scripts[number])


# ---- answers


READABLE = [wire for wire in ANSWERS if wire.name != "extensions"]  # llhttp takes none with a blank before it


def read_plainly(wire: Wire) -> Answer:
    """What is to be made of the decoded body, apart from all sockets and framing."""
    answer = Answer()
    answer.status = wire.status
    answer.is_event_stream = b"event-stream" in wire.wire
    answer.take(wire.body, 1.0)
    return answer


@pytest.mark.parametrize("wire", READABLE, ids=lambda wire: wire.name)
def test_an_answer_is_the_same_however_it_is_framed_and_cut(run: Run, wire: Wire) -> None:
    last: Script = [Cut.CLOSE] if wire.lasts_until_close else []
    scripts: list[Script] = [[wire.wire, *last], [*bytewise(wire.wire), *last]]
    expected = read_plainly(wire)
    code = expected.end(2.0, is_whole=True)

    async def scenario() -> None:
        async with scripted(*scripts) as pod:
            caller = Caller.to(pod.port)
            for number in range(len(scripts)):
                flight = await caller.call()
                assert flight.code == code
                assert flight.answer.status == wire.status
                assert flight.answer.events == expected.events
                assert flight.is_reused == (wire.keeps_alive and number > 0)
                assert flight.sent is not None and flight.sent <= flight.ended
            assert pod.accepted == (1 if wire.keeps_alive else len(scripts))
            assert len(pod.requests) == len(caller.ended) == len(scripts)
            await caller.close()

    run(scenario())


def test_a_connection_is_used_again_and_the_latest_first(run: Run) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with BytePod(lambda number: [gate, STREAM] if number < 3 else [STREAM]) as pod:
            caller = Caller.to(pod.port)
            flights = [caller.send() for _ in range(3)]
            await until(lambda: len(pod.requests) == 3)
            gate.set()
            for flight in flights:
                await caller.end_of(flight)
            assert pod.accepted == 3
            for _ in range(5):
                assert (await caller.call()).is_reused
            assert pod.accepted == 3
            assert {flight.code for flight in caller.ended} == {""}
            assert {flight.answer.completion_tokens for flight in caller.ended} == {3}
            await caller.close()

    run(scenario())


def test_the_times_of_an_answer_are_those_of_its_reads(run: Run) -> None:
    async def scenario() -> None:
        steps = [asyncio.Event() for _ in range(4)]
        pieces: list[bytes | asyncio.Event | Cut] = [steps[0], STREAM_HEAD]
        for step in steps[1:]:
            pieces += [step, chunk(EVENT)]
        async with scripted([*pieces, b"".join(map(chunk, [FINISH, DONE])) + TERMINATOR]) as pod:
            caller = Caller.to(pod.port)
            flight = caller.send()
            await until(lambda: pod.requests)
            marks = []
            for number, step in enumerate(steps):
                marks.append(time.monotonic())
                step.set()
                await until(lambda number=number: flight.answer.events == number and flight.answer.has_begun)  # type: ignore[misc]
            await caller.end_of(flight)
            marks.append(time.monotonic())
            assert flight.sent is not None and flight.answer.first is not None
            assert flight.sent <= marks[0] <= marks[1] <= flight.answer.first <= marks[2]
            assert marks[3] <= flight.answer.last <= flight.ended <= marks[4]
            assert flight.answer.gap_count == len(flight.answer.gaps) == 2
            await caller.close()

    run(scenario())


def test_an_answer_with_its_done_is_whole_whatever_becomes_of_the_connection(run: Run) -> None:
    """A reader stops at [DONE]; its end is when that came."""
    begun = STREAM_HEAD + b"".join(map(chunk, EVENTS))
    never = asyncio.Event()
    scripts: list[Script] = [
        [begun, Cut.CLOSE],
        [begun, Cut.RESET],
        [begun, b"zz\r\nthis is no chunk\r\n"],
        [begun, never],
    ]

    async def scenario() -> None:
        async with scripted(*scripts) as pod:
            caller = Caller.to(pod.port)
            for number in range(len(scripts)):
                flight = caller.send()
                if number == len(scripts) - 1:
                    await until(lambda flight=flight: flight.answer.done_at is not None)  # type: ignore[misc]
                    caller.client.end(flight, "timeout")
                await caller.end_of(flight)
                assert (flight.code, flight.ended) == ("", flight.answer.done_at)
            await caller.close()
            assert pod.accepted == len(scripts)

    run(scenario())


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([Cut.CLOSE], "cut"),
        ([Cut.RESET], "cut"),
        ([b"HTTP/1.1 200 OK\r\ncontent-le", Cut.CLOSE], "cut"),
        ([STREAM_HEAD, chunk(EVENT), Cut.CLOSE], "cut"),
        ([STREAM_HEAD, chunk(EVENT), Cut.RESET], "cut"),
        ([STREAM_HEAD, chunk(EVENT)[:20], Cut.CLOSE], "cut"),
        ([PLAIN[:-1], Cut.CLOSE], "cut"),
        ([UNFRAMED_HEAD, EVENT, FINISH, Cut.CLOSE], "no_done"),
        ([UNFRAMED_HEAD, EVENT, FINISH, Cut.RESET], "cut"),
        ([b"HTTP/1.1 103 Early Hints\r\ncontent-length: 0\r\n\r\n", UNFRAMED_HEAD, EVENT, Cut.CLOSE], "unfinished"),
        (
            [b"HTTP/1.1 103 Hm\r\ncontent-type: text/event-stream\r\n\r\n", PLAIN.replace(b"type", b"tape")],
            "not_a_stream",
        ),
        ([b"HTTP/1.1 503 Busy\r\ncontent-length: 9\r\n\r\n", Cut.RESET], "503"),
        ([b"SSH-2.0-OpenSSH_9.9\r\n"], "malformed"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"], "malformed"),
        ([STREAM_HEAD, chunk(EVENT), b"zz\r\n"], "malformed"),
        ([STREAM_HEAD, chunk(EVENT), TERMINATOR], "unfinished"),
        ([PLAIN], "not_a_stream"),
    ],
)
def test_an_answer_that_breaks_has_its_code_and_its_connection_is_left(run: Run, script: Script, code: str) -> None:
    is_whole = Cut.CLOSE not in script and code in ("unfinished", "not_a_stream")

    async def scenario() -> None:
        async with scripted(script, [STREAM]) as pod:
            caller = Caller.to(pod.port)
            assert (await caller.call()).code == code
            assert (await caller.call()).code == ""
            assert pod.accepted == (1 if is_whole else 2)
            assert len(pod.requests) == 2  # what broke on a fresh connection is not sent again
            await caller.close()

    run(scenario())


# ---- what follows an answer


@pytest.mark.parametrize(
    "surplus",
    [
        b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n",
        STREAM,
        b"garbage\r\n\r\n",
        b"\x15\x03\x03\x00\x02",
    ],
)
@pytest.mark.parametrize("is_at_once", [True, False])
def test_what_follows_an_answer_is_none_of_it_and_ends_the_connection(
    run: Run, surplus: bytes, is_at_once: bool
) -> None:
    async def scenario() -> None:
        script: Script = [STREAM + surplus] if is_at_once else [STREAM, surplus]
        async with scripted(script, [STREAM]) as pod:
            caller = Caller.to(pod.port)
            flight = await caller.call()
            await until(lambda: not pod.lines)  # the client has left it
            assert (flight.code, flight.answer.status, flight.answer.events) == ("", 200, 3)
            again = await caller.call()
            assert (again.code, again.is_reused) == ("", False)
            await caller.close()

    run(scenario())


@pytest.mark.parametrize("death", [[Cut.CLOSE], [Cut.RESET]])
def test_a_request_that_met_a_dying_connection_is_sent_again_and_counts_once(run: Run, death: Script) -> None:
    async def scenario() -> None:
        async with scripted([STREAM], death, [STREAM]) as pod:
            caller = Caller.to(pod.port)
            await caller.call()
            flight = await caller.call()
            assert (flight.code, flight.is_reused, flight.answer.events) == ("", False, 3)
            assert (len(pod.requests), pod.accepted, len(caller.ended)) == (3, 2, 2)
            assert pod.requests[1] == pod.requests[2] == REQUEST
            await caller.close()

    run(scenario())


def test_it_is_sent_again_once_only(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([STREAM], [Cut.CLOSE], [Cut.CLOSE]) as pod:
            caller = Caller.to(pod.port)
            await caller.call()
            assert (await caller.call()).code == "cut"
            assert len(pod.requests) == 3
            await caller.close()

    run(scenario())


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n", STREAM_HEAD])
def test_what_the_server_has_begun_to_answer_is_not_sent_again(run: Run, said: bytes) -> None:
    async def scenario() -> None:
        async with scripted([STREAM], [said, Cut.CLOSE]) as pod:
            caller = Caller.to(pod.port)
            await caller.call()
            assert (await caller.call()).code == "cut"
            assert len(pod.requests) == 2
            await caller.close()

    run(scenario())


def test_a_server_that_closes_after_each_answer_costs_no_call(run: Run) -> None:
    """Unannounced, as llama.cpp's: the next request may meet a connection that is closed, or is just closing."""

    async def scenario() -> None:
        async with BytePod(lambda _: [STREAM, Cut.CLOSE]) as pod:
            caller = Caller.to(pod.port)
            for _ in range(50):
                assert (await caller.call()).code == ""
            assert len(caller.ended) == 50
            assert pod.accepted == 50
            await caller.close()

    run(scenario())


# ---- leaving


@pytest.mark.parametrize("after", [1, 2])
def test_a_call_is_left_after_so_many_events_and_the_server_sees_it(run: Run, after: int) -> None:
    async def scenario() -> None:
        never = asyncio.Event()
        async with scripted([STREAM_HEAD, *[chunk(EVENT)] * after, never, chunk(EVENT)]) as pod:
            caller = Caller.to(pod.port)
            flight = await caller.call(cancel_after=after)
            assert (flight.code, flight.answer.events, flight.answer.gap_count) == ("cancelled", after, after - 1)
            assert flight.ended == flight.answer.last
            await until(lambda: not pod.lines)
            await caller.close()

    run(scenario())


def test_a_call_whose_whole_answer_came_before_it_could_be_left_is_done(run: Run) -> None:
    async def scenario() -> None:
        async with scripted([STREAM], [STREAM]) as pod:
            caller = Caller.to(pod.port)
            assert (await caller.call(cancel_after=1)).code == ""
            assert (await caller.call(cancel_after=1)).is_reused
            assert pod.accepted == 1
            await caller.close()

    run(scenario())


def test_a_flight_ends_with_the_code_that_it_is_ended_with_and_once(run: Run) -> None:
    async def scenario() -> None:
        never = asyncio.Event()
        async with BytePod(lambda _: [STREAM_HEAD, chunk(EVENT), never]) as pod:
            caller = Caller.to(pod.port)
            flights = [caller.send() for _ in range(3)]
            await until(lambda: all(flight.answer.events for flight in flights))
            caller.client.end(flights[0], "timeout")
            caller.client.end(flights[0], "stopped")
            caller.client.end_all("stopped")
            assert [flight.code for flight in flights] == ["timeout", "stopped", "stopped"]
            await until(lambda: not pod.lines)
            await caller.close()

    run(scenario())


def test_close_ends_what_is_under_way_and_leaves_no_connection(run: Run) -> None:
    async def scenario() -> None:
        never = asyncio.Event()
        async with BytePod(lambda number: [STREAM] if not number else [STREAM_HEAD, never]) as pod:
            caller = Caller.to(pod.port)
            await caller.call()
            carried = [caller.send() for _ in range(2)]
            await until(lambda: len(pod.requests) == 3)
            connecting = caller.send()
            await caller.close()
            assert [flight.code for flight in (*carried, connecting)] == ["stopped"] * 3
            await until(lambda: not pod.lines)

    run(scenario())


# ---- connections that are not made


def test_where_nobody_listens_a_call_is_refused(run: Run) -> None:
    async def scenario() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # and does not listen
            caller = Caller.to(sock.getsockname()[1])
            flight = await caller.call()
            assert (flight.code, flight.sent, flight.answer.status) == ("refused_connection", None, 0)
            assert flight.ended > 0
            await caller.close()

    run(scenario())


def test_a_server_that_closes_what_it_accepts_is_told_as_a_cut(run: Run) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        class Slammer(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert hasattr(transport, "abort")
                transport.abort()

        server = await loop.create_server(Slammer, "127.0.0.1", 0)
        async with server:
            caller = Caller.to(server.sockets[0].getsockname()[1])
            for flight in [caller.send() for _ in range(20)]:
                assert (await caller.end_of(flight)).code == "cut"
            await caller.close()

    run(scenario())


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "no_descriptors"),
        (OSError(errno.ENFILE, "Too many open files in system"), "no_descriptors"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "no_ports"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "refused_connection"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "refused_connection"),
        (OSError("Multiple exceptions: …"), "refused_connection"),
        (ssl.SSLError(1, "wrong version number"), "tls_failed"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "tls_failed"),
    ],
)
def test_what_kept_a_connection_from_being_made_is_told(run: Run, wrong: OSError, code: str) -> None:
    async def refuse(make: Callable[[], Connection]) -> Connection:
        raise wrong

    async def scenario() -> None:
        caller = Caller(Client(refuse, time.monotonic, asyncio.get_running_loop()))
        assert (await caller.call()).code == code
        await caller.close()

    run(scenario())


@requires_program("openssl", install="apt-get install openssl")
def test_a_server_behind_tls_is_verified(run: Run, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pod"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)

    async def scenario() -> None:
        async with BytePod(lambda _: bytewise(STREAM), tls=server) as pod:
            trusting = Caller.to(pod.port, tls=ssl.create_default_context(cafile=str(certificate)))
            assert [(await trusting.call()).code for _ in range(2)] == ["", ""]
            assert pod.accepted == 1
            await trusting.close()
            wary = Caller.to(pod.port, tls=ssl.create_default_context())
            assert (await wary.call()).code == "tls_failed"
            await wary.close()

    run(scenario())


def test_a_server_that_knows_no_tls_is_told(run: Run) -> None:
    async def scenario() -> None:
        class Plain(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert hasattr(transport, "write")
                transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with await asyncio.get_running_loop().create_server(Plain, "127.0.0.1", 0) as server:
            lost = Caller.to(server.sockets[0].getsockname()[1], tls=ssl.create_default_context())
            assert (await lost.call()).code == "tls_failed"
            await lost.close()

    run(scenario())


def test_calls_that_are_ended_at_any_moment_of_their_connecting_leave_no_connection(run: Run) -> None:
    async def scenario() -> None:
        async with BytePod(lambda _: [STREAM]) as pod:
            for moment in range(8):
                caller = Caller.to(pod.port)
                flights = [caller.send() for _ in range(5)]
                await turns(moment)
                caller.client.end_all("stopped")
                assert {flight.code for flight in flights} <= {"stopped", ""}
                assert (await caller.call()).code == ""  # it goes on as if nothing had been
                assert len(caller.ended) == 6
                await caller.close()
                await until(lambda: not pod.lines)

    run(scenario())


# ---- connections that are slow to be made


class Doors:
    """Connections that are made when the test says so."""

    def __init__(self) -> None:
        self.opening: list[asyncio.Future[Line]] = []
        self.most = 0
        self.lines: list[Line] = []

    async def connect(self, make: Callable[[], Connection]) -> Connection:
        door: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        self.opening.append(door)
        self.most = max(self.most, len(self.opening))
        try:
            await door
        finally:
            self.opening.remove(door)
        connection = make()
        self.lines.append(Line(connection))
        return connection

    def open(self, count: int) -> None:
        for door in [door for door in self.opening if not door.done()][:count]:
            door.set_result(None)  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def caller_with(doors: Doors) -> Caller:
    ticks = itertools.count()
    return Caller(Client(doors.connect, lambda: float(next(ticks)), asyncio.get_running_loop()))


def asked(lines: Sequence[Line]) -> int:
    return sum(line.written.count(b"POST ") for line in lines)


async def test_a_flight_that_ended_while_it_connected_is_not_sent() -> None:
    doors = Doors()
    caller = caller_with(doors)
    flight = caller.send()
    await turns()
    caller.client.end(flight, "timeout")
    assert (flight.code, flight.sent) == ("timeout", None)
    await turns()
    assert not doors.opening and not doors.lines  # nor does it connect any longer
    await caller.close()
    assert len(caller.ended) == 1


def test_a_flight_that_ended_as_its_connection_failed_ends_once(run: Run) -> None:
    async def scenario() -> None:
        doors = Doors()
        caller = caller_with(doors)
        flight = caller.send()
        await turns()
        (door,) = doors.opening
        door.set_exception(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
        caller.client.end(flight, "timeout")
        await turns()
        assert [flight.code for flight in caller.ended] == ["timeout"]
        await caller.close()

    run(scenario())


def test_a_connection_that_is_lost_as_it_is_made_is_told_as_a_cut(run: Run) -> None:
    async def connect(make: Callable[[], Connection]) -> Connection:
        connection = make()
        Line(connection).reset()
        await turns()
        return connection

    async def scenario() -> None:
        caller = Caller(Client(connect, time.monotonic, asyncio.get_running_loop()))
        flight = await caller.call()
        assert (flight.code, flight.sent) == ("cut", None)
        await caller.close()

    run(scenario())


async def test_a_connection_that_is_closing_is_not_used_and_one_that_is_gone_is_not_kept() -> None:
    doors = Doors()
    caller = caller_with(doors)
    first = caller.send()
    await turns()
    doors.open(1)
    await turns()
    (line,) = doors.lines
    line.say(STREAM)
    assert first.code == ""
    line.end()  # its loss is told in a later turn
    second = caller.send()
    await turns()
    assert second.sent is None and len(doors.opening) == 1
    doors.open(1)
    await turns()
    doors.lines[1].say(STREAM)
    assert second.code == "" and len(caller.client._idle) == 1
    doors.lines[1].end()
    await turns()
    assert not caller.client._idle
    await caller.close()


async def test_a_bounded_number_of_connections_is_made_at_once_and_all_are_served_in_order() -> None:
    doors = Doors()
    caller = caller_with(doors)
    flights = [caller.send() for _ in range(3 * MOST_CONNECTING)]
    await turns()
    assert len(doors.opening) == MOST_CONNECTING
    served = 0
    while served < len(flights):
        doors.open(100)
        await turns()
        served = min(served + 100, len(flights))
        assert asked(doors.lines) == served
        assert [flight.sent is not None for flight in flights] == [True] * served + [False] * (len(flights) - served)
    assert doors.most == MOST_CONNECTING
    for line in doors.lines:
        line.say(STREAM)
    assert {flight.code for flight in caller.ended} == {""}
    assert len(caller.ended) == len(flights)
    await caller.close()


async def test_of_those_that_wait_for_a_connection_the_ones_that_were_left_take_nobodys_place() -> None:
    doors = Doors()
    caller = caller_with(doors)
    flights = [caller.send() for _ in range(2 * MOST_CONNECTING)]
    await turns()
    left = flights[::2]
    for flight in left:
        caller.client.end(flight, "timeout")
    await turns()
    # Those that were connecting made room: half of the others moved up.
    assert len(doors.opening) == MOST_CONNECTING
    for _ in range(4):
        doors.open(MOST_CONNECTING)
        await turns()
    assert asked(doors.lines) == len(flights) - len(left)
    assert [flight.sent is None for flight in flights] == [True, False] * MOST_CONNECTING
    await caller.close()


async def test_a_connection_that_becomes_free_is_given_to_who_waits_for_one() -> None:
    doors = Doors()
    caller = caller_with(doors)
    first = caller.send()
    await turns()
    doors.open(1)
    await turns()
    flights = [caller.send() for _ in range(MOST_CONNECTING + 1)]
    await turns()
    (line,) = doors.lines
    line.say(STREAM)
    assert first.code == "" and asked([line]) == 2  # the one that had no place among those that connect
    line.say(STREAM)
    assert flights[-1].is_reused and flights[-1].code == ""
    await caller.close()
    assert len(caller.ended) == MOST_CONNECTING + 2


async def test_where_none_can_be_made_all_that_wait_are_told() -> None:
    async def refuse(make: Callable[[], Connection]) -> Connection:
        await asyncio.sleep(0)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    caller = Caller(Client(refuse, time.monotonic, asyncio.get_running_loop()))
    flights = [caller.send() for _ in range(3 * MOST_CONNECTING)]
    for flight in flights:
        assert (await caller.end_of(flight)).code == "refused_connection"
    await caller.close()


async def test_a_request_is_not_kept_once_it_cannot_be_needed_again() -> None:
    doors = Doors()
    caller = caller_with(doors)
    first = caller.send()
    await turns()
    doors.open(1)
    await turns()
    assert first.request == b""
    (line,) = doors.lines
    line.say(STREAM)
    second = caller.send()
    assert second.request == REQUEST  # its connection may have died
    line.say(STREAM[:1])
    assert second.request == b""
    await caller.close()


def test_httptools_tells_what_is_relied_on() -> None:
    """Interim heads are messages of their own, and a second answer begins within the same call."""
    told: list[str] = []

    class Listener:
        def on_message_begin(self) -> None:
            told.append("begin")

        def on_message_complete(self) -> None:
            told.append(f"complete {parser.get_status_code()} {parser.should_keep_alive()}")

    parser = httptools.HttpResponseParser(Listener())
    parser.feed_data(b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN + b"HTTP/1.1 204 No\r\nconnection: close\r\n\r\n")
    assert told == ["begin", "complete 100 True", "begin", "complete 200 True", "begin", "complete 204 False"]
