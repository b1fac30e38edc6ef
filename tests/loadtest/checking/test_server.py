"""The server of known delays: that its times are those that it promises, and that the client reads every mode of it
truly, however the bytes are cut.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.answer import Answer
from loadtest.checking.answers import MODES, Ask, Delays, End, Script, known, script
from loadtest.checking.server import Connection, Freeze, Server, ask_of
from loadtest.client import Client, Flight
from loadtest.client import Connection as ClientConnection
from tests.simulation.loop import VirtualLoop

DELAYS = Delays(0.02, 0.01)
TOKENS = 12
STREAMED = [name for name, mode in MODES.items() if mode.status == 200 and mode.breaks not in ("whole", "silent")]
GOOD = [name for name, mode in MODES.items() if not mode.code]


NO_LOOP = cast(asyncio.AbstractEventLoop, None)
"""For a client that opens no connections."""


class Wire(asyncio.Transport):
    """What is written stays here, with when."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.clock = clock
        self.written: list[tuple[float, bytes]] = []
        self.end = ""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.end, f"written after {self.end}"
        self.written.append((self.clock(), bytes(data)))

    def is_closing(self) -> bool:
        return bool(self.end)

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = self.end or "aborted"


def read(data: bytes, cuts: list[int], end: End = End.KEEP, *, tokens: int = TOKENS) -> Flight:
    """The flight of a client that gets these bytes, cut at these places, and then this end."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    async def unreachable(_: object) -> ClientConnection:
        raise AssertionError("the client opens another connection")

    client = Client(unreachable, clock, NO_LOOP)
    connection = ClientConnection(client)
    connection.connection_made(Wire())
    client.keep(connection)
    flight = Flight(0.0, b"GET", Answer(tokens), lambda flight: client.landed(flight))
    client.send(flight)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for begin, stop in pairwise(places):
        if begin < stop and flight in client.flights:
            connection.data_received(data[begin:stop])
    if flight in client.flights:
        assert end is not End.KEEP, "the answer has no end"
        connection.connection_lost(ConnectionResetError() if end is End.RESET else None)
    assert not client.flights
    return flight


def whole(answer: Script) -> bytes:
    return b"".join(piece.data for piece in answer.pieces)


@pytest.mark.parametrize("name", STREAMED)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=40), is_chat=st.booleans())
def test_the_client_reads_each_mode_truly_wherever_its_bytes_are_cut(name: str, cuts: list[int], is_chat: bool) -> None:
    answer = script(Ask(name, TOKENS, is_chat=is_chat, prompt_tokens=7), DELAYS)
    flight = read(whole(answer), cuts, answer.end)
    assert flight.code == known(name).code
    sent = sum(piece.tokens for piece in answer.pieces)
    if name == "malformed":  # what came in one read with a chunk that is none is not looked at
        assert flight.answer.events <= sent
        return
    assert flight.answer.events == sent
    if not known(name).breaks:
        assert (flight.answer.prompt_tokens, flight.answer.completion_tokens) == (7, TOKENS + known(name).usage_off)


@pytest.mark.parametrize("name", STREAMED)
def test_the_client_reads_each_mode_truly_byte_by_byte(name: str) -> None:
    data = whole(script(Ask(name, TOKENS), DELAYS))
    flight = read(data, list(range(len(data))), known(name).end)
    assert flight.code == known(name).code
    assert flight.answer.events == sum(piece.tokens for piece in script(Ask(name, TOKENS), DELAYS).pieces)


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("is_chat", [True, False])
def test_the_client_reads_each_mode_truly_as_it_is_written(name: str, is_chat: bool) -> None:
    pieces = script(Ask(name, TOKENS, is_chat=is_chat), DELAYS).pieces
    ends = list(accumulate(len(piece.data) for piece in pieces))
    flight = read(whole(Script(pieces)), ends, known(name).end)
    assert flight.code == known(name).code
    late = pieces[-1].tokens if name == "malformed" else 0  # what came with the chunk that is none is not looked at
    assert flight.answer.events == sum(piece.tokens for piece in pieces) - late


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode.status != 200])
def test_a_status_is_told_with_its_code_and_is_no_latency(name: str) -> None:
    flight = read(whole(script(Ask(name, TOKENS), DELAYS)), [30, 60, 150])
    assert (flight.code, flight.answer.first, flight.answer.events) == (known(name).code, None, 0)


def test_a_whole_answer_has_the_length_that_it_says() -> None:
    answer = script(Ask("plain", TOKENS, is_stream=False), DELAYS)
    (piece,) = answer.pieces
    assert piece.at == pytest.approx(DELAYS.ttft + (TOKENS - 1) * DELAYS.itl)
    head, _, body = piece.data.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}" in head.decode()
    assert json.loads(body)["usage"]["completion_tokens"] == TOKENS


@pytest.mark.parametrize("name", STREAMED)
def test_tokens_are_due_when_the_delays_say(name: str) -> None:
    mode = known(name)
    answer = script(Ask(name, TOKENS), DELAYS)
    assert [piece.at for piece in answer.pieces] == sorted(piece.at for piece in answer.pieces)
    due = [piece.at for piece in answer.pieces for _ in range(piece.tokens)]
    expected = [DELAYS.ttft + (k - k % mode.burst) * DELAYS.itl for k in range(len(due))]
    assert due == pytest.approx(expected)
    assert len(due) == (TOKENS // 2 if mode.breaks else TOKENS)


def test_text_that_speaks_of_streams_is_only_text() -> None:
    assert b"data: [DONE]" in whole(script(Ask("lying-text", TOKENS), DELAYS))
    assert read(whole(script(Ask("lying-text", TOKENS), DELAYS)), []).code == "unfinished"


def test_an_unknown_model_is_answered_plainly() -> None:
    assert known("gpt-17") == MODES["plain"]


class Place:
    """A server in virtual time, with connections that are wires."""

    def __init__(self, delays: Delays = DELAYS, freeze: Freeze | None = None) -> None:
        self.loop = VirtualLoop(Random(3))
        self.server = Server(
            delays,
            freeze,
            clock=self.loop.time,
            call_later=self.loop.call_later,
            stand_still=self.loop.pass_time,
        )

    def call(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[Connection, Wire, float]:
        wire = Wire(self.loop.time)
        connection = Connection(self.server)
        connection.connection_made(wire)
        connection.data_received(request(body, path))
        return connection, wire, self.loop.time()

    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


@pytest.fixture
def open_place() -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def opened(*settings: Any, **more: Any) -> Place:
        places.append(Place(*settings, **more))
        return places[-1]

    yield opened
    for place in places:
        place.loop.close()


def request(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(data), data)


def asked(model: str = "plain", tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "stream": True,
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "a b"}],
    } | more


def test_each_piece_is_written_when_it_is_due_and_lateness_does_not_add_up(open_place: Callable[..., Place]) -> None:
    place = open_place(Delays(0.02, 0.0005))
    _, wire, arrived = place.call(asked(tokens=200))
    place.wait(1.0)
    expected = [piece.at for piece in script(Ask("plain", 200, wants_usage=False), place.server.delays).pieces]
    assert [at - arrived for at, _ in wire.written] == pytest.approx(expected, abs=0.0003)


def test_a_connection_carries_one_call_after_the_other(open_place: Callable[..., Place]) -> None:
    place = open_place()
    connection, wire, _ = place.call(asked())
    place.wait(1.0)
    connection.data_received(request(asked("status-429")))
    place.wait(1.0)
    assert b"HTTP/1.1 429" in wire.written[-1][1]
    assert place.server.counts["plain"].answered == place.server.counts["status-429"].answered == 1


@pytest.mark.parametrize(
    ("name", "end"), [("plain", ""), ("drops-idle", "closed"), ("reset", "aborted"), ("silent", "")]
)
def test_an_answers_end_is_its_connections(open_place: Callable[..., Place], name: str, end: str) -> None:
    place = open_place()
    _, wire, _ = place.call(asked(name))
    place.wait(1.0)
    assert wire.end == end


def test_a_client_that_leaves_is_counted_and_gets_nothing_more(open_place: Callable[..., Place]) -> None:
    place = open_place()
    connection, wire, _ = place.call(asked())
    place.wait(0.035)
    wire.abort()
    connection.connection_lost(None)
    place.wait(1.0)
    counts = place.server.counts["plain"]
    assert (counts.calls, counts.answered, counts.left, counts.tokens) == (1, 0, 1, 2)


def test_during_a_freeze_nothing_is_written_and_after_it_all_that_was_due(open_place: Callable[..., Place]) -> None:
    place = open_place(freeze=Freeze(after=0.035, seconds=1.0))
    _, wire, arrived = place.call(asked())
    place.wait(2.0)
    times = [at - arrived for at, _ in wire.written]
    # head, two tokens; then a second of nothing; then all at once, each in its own write
    assert times[:3] == pytest.approx([0.0, 0.02, 0.03], abs=0.0003)
    assert times[3:] == pytest.approx([1.035] * (len(times) - 3), abs=0.0003)
    assert place.server.report()["late"]["p99"] == pytest.approx(0.995, rel=0.01)


def test_what_is_late_once_is_on_time_again_with_the_next_token(open_place: Callable[..., Place]) -> None:
    place = open_place(freeze=Freeze(after=0.035, seconds=0.012))
    _, wire, arrived = place.call(asked(tokens=6))
    place.wait(2.0)
    times = [at - arrived for at, _ in wire.written]
    assert times == pytest.approx([0.0, 0.02, 0.03, 0.047, 0.05, 0.06, 0.07], abs=0.0003)


def test_only_the_first_call_sets_the_freeze(open_place: Callable[..., Place]) -> None:
    place = open_place(freeze=Freeze(after=0.035, seconds=1.0))
    place.call(asked())
    place.wait(2.0)
    _, wire, arrived = place.call(asked(tokens=4))
    place.wait(2.0)
    assert [at - arrived for at, _ in wire.written] == pytest.approx([0.0, 0.02, 0.03, 0.04, 0.05], abs=0.0003)


@pytest.mark.parametrize("body", [asked("burst"), asked("plain", stream=False), asked("plain")])
def test_all_tokens_are_counted_however_they_are_sent(body: dict[str, Any], open_place: Callable[..., Place]) -> None:
    place = open_place()
    place.call(body)
    place.wait(1.0)
    assert place.server.counts[body["model"]].tokens == TOKENS


def test_what_is_no_call_gets_no_answer(open_place: Callable[..., Place]) -> None:
    place = open_place()
    _, lost, _ = place.call({}, "/v1/embeddings")
    assert lost.written[0][1].startswith(b"HTTP/1.1 404")
    for nonsense in (b"\x00\x01\x02\r\n\r\n", request({"model": 5})):
        wire = Wire()
        connection = Connection(place.server)
        connection.connection_made(wire)
        connection.data_received(nonsense)
        assert wire.end == "closed"
        assert not wire.written


def test_a_request_is_read_with_either_name_of_the_limit_and_either_endpoint() -> None:
    messages = [{"role": "user", "content": "one two three"}]
    chat = {"model": "vllm", "messages": messages, "max_completion_tokens": 3, "stream": True}
    assert ask_of(b"/v1/chat/completions", json.dumps(chat).encode()) == Ask("vllm", 3, True, True, False, 3)
    text = {"model": "vllm", "prompt": "one two", "max_tokens": 4, "stream_options": {"include_usage": True}}
    assert ask_of(b"/v1/completions", json.dumps(text).encode()) == Ask("vllm", 4, False, False, True, 2)
    assert ask_of(b"/v1/models", b"") is None


def test_it_says_where_it_listens_and_ends_with_its_counts_when_standard_input_does() -> None:
    program = subprocess.run(
        [sys.executable, "-m", "loadtest.checking.server", "--while-stdin"],
        input=b"",
        stdout=subprocess.PIPE,
        timeout=30,
        check=True,
    )
    ready, report = (json.loads(line) for line in program.stdout.splitlines())
    assert ready["ready"].startswith("http://127.0.0.1:")
    assert report == {"counts": {}, "late": {"p50": None, "p99": None}}
