"""However its bytes are cut, a connection answers the same; whatever they are, in the form of answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.http.listener import Listener
from tenancy.policy import ServerSettings
from tests.instruments.http_house import House, echo, get, post

BOUNDS = replace(ServerSettings(), head_bytes=400, body_bytes=200)


class Memory(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.written += data

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def exchange(listener: Listener, pieces: list[bytes]) -> bytes:
    """What a connection writes when it gets these pieces, each in a turn of its own."""
    connection, transport = listener.opened(), Memory()
    connection.connection_made(transport)
    for piece in pieces:
        connection.data_received(piece)
        for _ in range(4):
            await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    return transport.written


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """Status and body, or error code, of each answer; fails where it is not one answer after the other."""
    found = []
    while written:
        head, mark, written = written.partition(b"\r\n\r\n")
        assert mark, f"an answer without an end: {head!r}"
        first, *lines = head.split(b"\r\n")
        status = int(first.split(b" ")[1])
        if status == 100:
            continue
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        length = int(headers[b"content-length"])
        body, written = written[:length], written[length:]
        assert len(body) == length
        found.append((status, json.loads(body)["error"]["code"].encode() if status != 200 else body))
    return found


def chunked(body: list[bytes], trailer: bytes) -> bytes:
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(piece), piece) for piece in body if piece)
    return b"POST /chunked HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n"


BODY = st.binary(max_size=60)
WELL = (
    st.builds(post, st.just("/plain"), BODY)
    | st.builds(get, st.sampled_from(["/", "/a?b=c", "/a%20b", "http://host/absolute"]))
    | st.builds(chunked, st.lists(BODY, max_size=4), st.sampled_from([b"", b"x: y\r\n"]))
    | st.builds(post, st.just("/h2c"), BODY, st.just("connection: upgrade"), st.just("upgrade: h2c"))
    | st.builds(post, st.just("/continue"), BODY, st.just("expect: 100-continue"))
)
ILL = st.sampled_from(
    [
        get("/", "x-filler: " + "x" * 1000),
        post("/", b"x" * 300),
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nc8\r\n" + b"x" * 200 + b"\r\n1\r\nx\r\n0\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        get("/", "connection: upgrade", "upgrade: websocket"),
        get("/last", "connection: close"),
        b"GET /old HTTP/1.0\r\n\r\n",
    ]
)


OFFER = post("/h2c", b"offer", "connection: upgrade", "upgrade: h2c")


@settings(max_examples=300)
@given(st.lists(WELL, max_size=6), st.none() | ILL, st.lists(st.floats(0, 1), max_size=12))
@example(well=[*[post("/plain", b"x" * 90)] * 4, OFFER, get("/")], ill=None, shares=[])
def test_answers_do_not_depend_on_how_the_bytes_are_cut(
    well: list[bytes], ill: bytes | None, shares: list[float]
) -> None:
    stream = b"".join(well) + (ill or b"")
    cuts = sorted(int(share * len(stream)) for share in shares)
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True) if start < end]

    async def scenario() -> None:
        house = House(echo, BOUNDS)
        whole = answers(await exchange(house.listener, [stream]))
        assert answers(await exchange(house.listener, pieces)) == whole
        assert len(whole) == len(well) + (ill is not None)
        assert all(status == 200 for status, _ in whole[: len(well)])
        assert not house.errors

    asyncio.run(scenario())


def mutated(stream: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for place, bytes_ in changes:
        cut = place % (len(stream) + 1)
        stream = stream[:cut] + bytes_ + stream[cut + len(bytes_) // 2 :]
    return stream


MARK = st.sampled_from([b"\r\n", b"\r\n\r\n", b"0", b":", b"chunked"])
CHANGE = st.tuples(st.integers(0, 2000), st.binary(max_size=3) | MARK)


@settings(max_examples=300)
@given(st.lists(WELL | ILL, min_size=1, max_size=4), st.lists(CHANGE, max_size=4), st.integers(1, 200))
def test_damaged_bytes_get_answers_or_silence_and_never_an_exception(
    requests: list[bytes], changes: list[tuple[int, bytes]], size: int
) -> None:
    stream = mutated(b"".join(requests), changes)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]

    async def scenario() -> None:
        house = House(echo, BOUNDS)
        loop_errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
        answers(await exchange(house.listener, pieces))
        assert not house.errors
        assert not loop_errors

    asyncio.run(scenario())
