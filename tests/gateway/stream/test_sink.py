from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

from gateway.http.client import Client
from gateway.stream.sink import ClientSink
from gateway.stream.sse import chunk
from tests.simulation.clients import Cycle

EVENT = chunk(b'data: {"a":1}\n\n')
END = b"0\r\n\r\n"


class Paper(asyncio.Transport):
    """Keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True


class Flow:
    def __init__(self, pieces: int = 0) -> None:
        self.pieces = pieces
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


class Answer:
    """A sink over a client of one connection."""

    def __init__(self, version: str = "1.1") -> None:
        self.paper = Paper()
        self.flow = FlowControl(self.paper)
        self.client = Client(self.paper, self.flow, version)
        self.ends = 0
        cycle = Cycle(self._ended)
        cycle.keep_alive = version == "1.1"
        self.client.cycle = cycle
        self.sink = ClientSink(self.client)

    def _ended(self) -> None:
        self.ends += 1
        self.client.forget()


async def test_the_head_goes_out_with_the_first_events() -> None:
    answer = Answer()
    await answer.sink.start(200, [(b"x-request-id", b"1")])
    assert answer.paper.writes == []
    answer.sink.write(EVENT)
    answer.sink.write(EVENT)
    await answer.sink.end()
    head, *rest = answer.paper.writes
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\nx-request-id: 1\r\ntransfer-encoding: chunked\r\n\r\n" + EVENT)
    assert rest == [EVENT, END]
    assert answer.ends == 1 and not answer.paper.is_closed


async def test_what_is_gathered_goes_out_in_one_write_with_the_end() -> None:
    answer = Answer()
    await answer.sink.start(200, [])
    answer.sink.gather()
    answer.sink.write(EVENT)
    answer.sink.write_event(b"data: [DONE]\n\n")
    assert answer.paper.writes == []
    await answer.sink.end()
    (whole,) = answer.paper.writes
    assert whole.endswith(b"\r\n\r\n" + EVENT + chunk(b"data: [DONE]\n\n") + END)


async def test_a_head_without_events_goes_out_with_the_end() -> None:
    answer = Answer()
    await answer.sink.start(200, [])
    await answer.sink.end()
    (whole,) = answer.paper.writes
    assert whole.endswith(b"transfer-encoding: chunked\r\n\r\n" + END)


async def test_a_whole_answer_is_one_write_and_has_a_length() -> None:
    answer = Answer()
    await answer.sink.answer(429, [(b"content-type", b"application/json")], b"{}")
    (whole,) = answer.paper.writes
    assert whole.startswith(b"HTTP/1.1 429 ") and whole.endswith(b"\r\ncontent-length: 2\r\n\r\n{}")
    assert b"transfer-encoding" not in whole
    assert (answer.sink.status, answer.ends) == (429, 1)


async def test_an_old_client_gets_payload_until_the_connection_closes() -> None:
    answer = Answer("1.0")
    await answer.sink.start(200, [])
    answer.sink.write_event(b"data: a\n\n")
    await answer.sink.end()
    assert b"".join(answer.paper.writes).endswith(b"\r\nconnection: close\r\n\r\ndata: a\n\n")
    assert answer.paper.is_closed


async def test_nothing_is_written_to_a_client_that_has_gone() -> None:
    answer = Answer()
    await answer.sink.start(200, [])
    answer.sink.write(EVENT)
    answer.client.gone()
    before = list(answer.paper.writes)
    answer.sink.write_event(b"data: late\n\n")
    await answer.sink.end()
    assert answer.paper.writes == before
    assert answer.ends == 0


async def test_pieces_are_counted_over_all_that_was_followed() -> None:
    sink = Answer().sink
    assert sink.pieces == 0
    sink.follow(Flow(3))
    assert sink.pieces == 3
    sink.follow(None)
    sink.follow(Flow(2))
    assert sink.pieces == 5


async def test_a_client_that_is_slow_pauses_what_is_followed_and_delays_head_and_end() -> None:
    answer = Answer()
    answer.flow.pause_writing()
    flow = Flow()
    answer.sink.follow(flow)
    assert flow.told == ["pause"]
    assert not answer.sink.start_now(200, [])
    starting = asyncio.ensure_future(answer.sink.start(200, []))
    await asyncio.sleep(0)
    assert not starting.done() and not answer.sink.is_started
    resume: Callable[[bool], None] = answer.client.flow
    answer.flow.resume_writing()
    resume(False)
    await starting
    assert flow.told == ["pause", "resume"] and answer.sink.is_started
