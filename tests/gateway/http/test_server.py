"""The client's connection, against real sockets: bounds, pipelining, leaving, back-pressure, HTTP/1.0, draining."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.http.errors import Fault
from gateway.http.listener import ListenError
from gateway.http.server import EXTENSION, Client
from tenancy.policy import ServerSettings
from tests.instruments.http_house import House, Peer, error_of, get, post, serving
from tests.instruments.until import until

BOUND_SECONDS = 20.0
SHORT_SECONDS = 0.05

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario to its end in a loop of each kind, within bounded time."""

    def run(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(scenario, BOUND_SECONDS))

    return run


async def answer(send: Any, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the path and the body."""
    client: Client = scope["extensions"][EXTENSION]
    body = await client.read(receive)
    if isinstance(body, bytes):
        await answer(send, scope["path"].encode() + b" " + body)


class Waiting:
    """An application that waits until it is told to answer, and notes whom it saw leave."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.clients: list[Client] = []
        self.paths: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        self.clients.append(client)
        self.paths.append(scope["path"])
        body = await client.read(receive)
        client.on_leave(self.left.set)
        self.entered.set()
        await self.go_on.wait()
        if isinstance(body, bytes) and not client.is_gone:
            await answer(send, scope["path"].encode() + b" " + body)


async def assert_refused(peer: Peer, status: int, code: str) -> dict[str, Any]:
    """The answer is an OpenAI error of this status and code, and the connection ends in order after it."""
    got, headers, body = await peer.answer()
    assert (got, error_of(body)["code"]) == (status, code)
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert await peer.has_ended()
    return error_of(body)


# ---- the usual -------------------------------------------------------------------------------------------------------


def test_a_connection_is_used_for_one_request_after_the_other(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            for number in range(3):
                await peer.send(post(f"/{number}", b"hello"))
                status, headers, body = await peer.answer()
                assert (status, body) == (200, b"/%d hello" % number)
                assert headers["date"] == "tue, 14 nov 2023 22:13:20 gmt"
                assert "server" not in headers
                assert "connection" not in headers
            peer.close()
            await house.listener.wait_closed()
            assert house.listener.open_connections == 0

    run(scenario())


def test_a_request_may_come_byte_by_byte(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            for byte in post("/a%20b", b"hello", "expect: nothing"):
                await peer.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await peer.answer())[2] == b"/a b hello"
            peer.close()

    run(scenario())


def test_a_large_body_comes_whole_and_its_client_is_seen_leaving_after_it(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x" * 3_000_000))
            await app.entered.wait()
            peer.close()
            await app.left.wait()
            app.go_on.set()

    run(scenario())


def test_a_body_in_chunks_is_read_whole_and_its_trailers_are_no_headers(run: Run) -> None:
    seen: list[Any] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        body = await client.read(receive)
        seen.extend(scope["headers"])
        assert isinstance(body, bytes)
        await answer(send, body)

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(
                b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1;note=x\r\n!\r\n",
                b"0\r\nauthorization: Bearer stolen\r\n\r\n",
            )
            assert (await peer.answer())[2] == b"hello!"
            assert b"authorization" not in dict(seen)
            peer.close()

    run(scenario())


def test_a_client_that_waits_for_100_continue_gets_it(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            head, _, body = post("/", b"hello", "expect: 100-continue").partition(b"\r\n\r\n")
            await peer.send(head + b"\r\n\r\n")
            assert await peer.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            peer.received = b""
            await peer.send(body)
            assert (await peer.answer())[2] == b"/ hello"
            peer.close()

    run(scenario())


def test_head_and_options_are_answered_without_a_body_and_with_one(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            await peer.send(b"HEAD /h HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await peer.read_until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert head.endswith(b"\r\n\r\n")
            peer.received = b""
            await peer.send(b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await peer.answer())[2] == b"* "
            peer.close()

    run(scenario())


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_head_over_its_bound_is_refused(run: Run, pieces: int) -> None:
    async def scenario() -> None:
        async with serving(echo, head_bytes=1000) as house:
            peer = await house.connect()
            request = get("/", "x-filler: " + "x" * 300_000)
            size = len(request) // pieces + 1
            for start in range(0, len(request), size):
                try:
                    await peer.send(request[start : start + size])
                except ConnectionError:
                    break
            await assert_refused(peer, 431, "headers_too_large")
            assert [record.code for record in house.records] == ["headers_too_large"]

    run(scenario())


def test_a_head_just_within_its_bound_is_taken_and_one_byte_more_is_not(run: Run) -> None:
    async def scenario() -> None:
        request = get("/fits", "x-filler: " + "x" * 500)
        for bound, fits in ((len(request), True), (len(request) - 1, False)):
            async with serving(echo, head_bytes=bound) as house:
                peer = await house.connect()
                await peer.send(request)
                if fits:
                    assert (await peer.answer())[0] == 200
                    peer.close()
                else:
                    await assert_refused(peer, 431, "headers_too_large")

    run(scenario())


def test_a_slow_head_is_refused_however_it_drips(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo, head_timeout_seconds=SHORT_SECONDS) as house:
            peer = await house.connect()
            await peer.send(b"GET / HTTP/1.1\r\nx-request-id: mine\r\n")
            while not house.records:
                try:
                    await peer.send(b"x: y\r\n")
                except ConnectionError:
                    break
                await asyncio.sleep(SHORT_SECONDS / 10)
            status, headers, body = await peer.answer()
            assert (status, error_of(body)["code"]) == (408, "request_timeout")
            assert headers["x-request-id"] == "mine"
            peer.close()

    run(scenario())


def test_a_connection_that_never_says_anything_is_closed_without_a_word(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo, head_timeout_seconds=SHORT_SECONDS) as house:
            peer = await house.connect()
            assert await peer.read_all() == b""
            peer.close()
            assert not house.records

    run(scenario())


def test_a_kept_connection_is_closed_after_its_idle_time_and_line_ends_do_not_prolong_it(run: Run) -> None:
    async def scenario() -> None:
        bounds = {"keep_alive_seconds": SHORT_SECONDS, "head_timeout_seconds": SHORT_SECONDS}
        async with serving(echo, **bounds) as house:
            for ping in (b"", b"\r\n"):
                peer = await house.connect()
                await peer.send(get("/"))
                await peer.answer()
                await peer.send(ping)
                assert await peer.read_all() == b""
                peer.close()

    run(scenario())


def test_a_declared_body_over_its_bound_is_refused_before_it_is_sent(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app, body_bytes=1000) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\nexpect: 100-continue\r\n\r\n")
            await assert_refused(peer, 413, "request_too_large")
            assert not app.clients

    run(scenario())


def test_a_refused_body_that_is_still_being_sent_does_not_cost_the_client_its_answer(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo, body_bytes=1000) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x" * 5_000_000))
            await assert_refused(peer, 413, "request_too_large")

    run(scenario())


def test_a_body_in_chunks_over_its_bound_is_refused_and_the_application_learns_why(run: Run) -> None:
    faults: list[object] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        faults.append(await client.read(receive))

    async def scenario() -> None:
        async with serving(app, body_bytes=1000) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(11):
                await peer.send(b"64\r\n" + b"x" * 100 + b"\r\n")
            await assert_refused(peer, 413, "request_too_large")
            assert [fault.code for fault in faults if isinstance(fault, Fault)] == ["request_too_large"]
            assert not house.records  # the application makes the record

    run(scenario())


@pytest.mark.parametrize(
    "endless", [b"0\r\nx: ", b"0\r\n" + b"x: y\r\n" * 100, b"1;" + b"x" * 100, b"1;x=" + b"y" * 100], ids=str
)
def test_endless_trailers_and_chunk_extensions_are_refused(run: Run, endless: bytes) -> None:
    async def scenario() -> None:
        async with serving(echo, head_bytes=1000) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", endless)
            for _ in range(100):
                await peer.send(endless[-1:] * 1000 if b"\r\n" not in endless[-2:] else b"x: y\r\n" * 100)
            await assert_refused(peer, 431, "headers_too_large")

    run(scenario())


def test_a_slow_body_is_refused_and_the_application_learns_why(run: Run) -> None:
    faults: list[object] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        faults.append(await client.read(receive))

    async def scenario() -> None:
        async with serving(app, body_timeout_seconds=SHORT_SECONDS) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nxx")
            await assert_refused(peer, 408, "request_timeout")
            assert [fault.code for fault in faults if isinstance(fault, Fault)] == ["request_timeout"]

    run(scenario())


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\nhello",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=lambda request: request[:24].decode("latin-1"),
)
def test_what_is_not_http_gets_an_error_object(run: Run, request_: bytes) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            await peer.send(request_)
            error = await assert_refused(peer, 400, "invalid_request")
            assert error["type"] == "invalid_request_error"

    run(scenario())


def test_a_websocket_is_refused_with_what_to_do_instead(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            await peer.send(
                get("/v1", "connection: keep-alive, Upgrade", "upgrade: WebSocket", "sec-websocket-version: 13")
            )
            assert "POST" in (await assert_refused(peer, 400, "invalid_request"))["message"]

    run(scenario())


@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_an_offer_of_http2_is_declined_and_the_request_answered(run: Run, pieces: int) -> None:
    """Java's HttpClient makes this offer with the first request on each connection."""

    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAA")
            request = post("/h2c", b"hello", *offer) + post("/next", b"again")
            size = len(request) // pieces + 1
            for start in range(0, len(request), size):
                await peer.send(request[start : start + size])
                await asyncio.sleep(0)
            assert (await peer.answer())[2] == b"/h2c hello"
            assert (await peer.answer())[2] == b"/next again"
            peer.close()

    run(scenario())


# ---- pipelining ------------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            await peer.send(b"".join(post(f"/{number}", b"x" * number) for number in range(10)))
            for number in range(10):
                assert (await peer.answer())[2] == b"/%d " % number + b"x" * number
            peer.close()

    run(scenario())


def test_a_client_that_pipelined_is_seen_leaving_while_its_first_request_waits(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/first", b"one"))
            await app.entered.wait()
            await peer.send(post("/second", b"two"))
            await asyncio.sleep(0)
            peer.close()
            await app.left.wait()
            app.go_on.set()
            await house.listener.wait_closed()
            assert app.paths == ["/first"]

    run(scenario())


def test_what_is_pipelined_beyond_bounds_is_dropped_and_the_leaving_is_still_seen(run: Run) -> None:
    async def scenario() -> None:
        for surplus in (get("/more") * 1000, post("/large", b"x" * 1_000_000)):
            app = Waiting()
            async with serving(app) as house:
                peer = await house.connect()
                await peer.send(post("/first", b"one"))
                await app.entered.wait()
                await peer.send(surplus)
                peer.close()
                await app.left.wait()
                app.go_on.set()

    run(scenario())


def test_after_a_dropped_surplus_the_answers_come_and_the_connection_closes(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/first", b"one"))
            await app.entered.wait()
            await peer.send(get("/more") * 100)
            app.go_on.set()
            answers = await peer.read_all()
            assert 2 <= answers.count(b"HTTP/1.1 200 ") <= 20
            assert answers.count(b"connection: close") == 1
            peer.close()

    run(scenario())


def test_a_fault_behind_an_answer_under_way_is_told_after_it(run: Run) -> None:
    async def scenario() -> None:
        for fault in (
            b"GARBAGE\r\n\r\n",
            get("/", "x-filler: " + "x" * 5000),
            b"POST / HTTP/1.1\r\ncontent-length: 9999\r\n\r\n",
        ):
            app = Waiting()
            async with serving(app, head_bytes=1000, body_bytes=1000) as house:
                peer = await house.connect()
                await peer.send(post("/first", b"one"))
                await app.entered.wait()
                await peer.send(post("/second", b"two") + fault)
                app.go_on.set()
                assert (await peer.answer())[2] == b"/first one"
                assert (await peer.answer())[2] == b"/second two"
                status, _, _ = await peer.answer()
                assert status in (400, 413, 431)
                assert await peer.has_ended()

    run(scenario())


# ---- leaving and back-pressure ---------------------------------------------------------------------------------------


def test_a_client_that_leaves_is_seen_at_once_and_its_answer_goes_nowhere(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x"))
            await app.entered.wait()
            peer.close()
            await app.left.wait()
            assert app.clients[0].is_gone
            late = asyncio.Event()
            app.clients[0].on_leave(late.set)
            assert late.is_set()  # told at once, if it is so already
            app.go_on.set()

    run(scenario())


def test_a_client_that_left_before_its_body_was_whole_is_no_fault(run: Run) -> None:
    bodies: list[object] = []
    done = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        bodies.append(await client.read(receive))
        done.set()

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nxx")
            peer.close()
            await done.wait()
            assert bodies == [None]

    run(scenario())


def test_nobody_is_called_once_the_answer_is_complete(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        app.go_on.set()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x"))
            await peer.answer()
            peer.close()
            await house.listener.wait_closed()
            assert not app.left.is_set()

    run(scenario())


def test_a_slow_reader_pauses_the_answer_and_resumes_it(run: Run) -> None:
    paused, resumed, wrote = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        await client.read(receive)
        client.on_flow(paused.set, resumed.set)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not client.write_paused
        while not paused.is_set():
            client.transport.write(b"2800\r\n" + b"x" * 0x2800 + b"\r\n")
            await asyncio.sleep(0)
        assert client.write_paused
        wrote.set()
        await resumed.wait()
        assert not client.write_paused
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect(receive_buffer=4096)
            await peer.send(get("/"))
            await wrote.wait()
            await peer.read_until(b"\r\n0\r\n\r\n")
            assert resumed.is_set()
            peer.close()

    run(scenario())


def test_a_client_that_ends_its_side_while_it_does_not_read_is_seen_leaving(run: Run) -> None:
    left, paused = asyncio.Event(), asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        client.on_leave(left.set)
        client.on_flow(paused.set, None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not paused.is_set():
            client.transport.write(b"2800\r\n" + b"x" * 0x2800 + b"\r\n")
            await asyncio.sleep(0)
        await left.wait()

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect(receive_buffer=4096)
            await peer.send(get("/"))
            await paused.wait()
            peer.end_my_side()
            await left.wait()
            await house.listener.wait_closed()
            peer.close()

    run(scenario())


# ---- HTTP/1.0 --------------------------------------------------------------------------------------------------------


def test_an_http_1_0_client_gets_an_unframed_body_and_the_end_of_the_connection(run: Run) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        assert not client.framed
        assert client.version == "1.0"
        await client.read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        client.transport.write(b"two ")
        await send({"type": "http.response.body", "body": b"three"})

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.0\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi")
            head, _, body = (await peer.read_all()).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head
            assert b"connection: close" in head
            assert body == b"one two three"
            peer.close()

    run(scenario())


def test_an_http_1_0_client_gets_a_content_length_where_there_is_one(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            await peer.send(b"GET /old HTTP/1.0\r\n\r\n")
            _, headers, body = await peer.answer()
            assert (headers["content-length"], body) == ("5", b"/old ")
            assert await peer.has_ended()

    run(scenario())


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_a_crash_before_the_head_is_an_error_object_and_is_logged(run: Run) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise KeyError("our bug")

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(get("/", "x-request-id: abc"))
            error = await assert_refused(peer, 500, "internal_error")
            assert "our bug" not in json.dumps(error)
            assert house.errors[0]["request_id"] == "abc"
            assert "our bug" in str(house.errors[0]["trace"])

    run(scenario())


def test_a_crash_in_mid_stream_never_looks_like_a_whole_answer(run: Run) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise KeyError("our bug")

    async def scenario() -> None:
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(get("/"))
            assert (await peer.read_all()).endswith(b"4\r\nhalf\r\n")
            assert len(house.errors) == 1
            peer.close()

    run(scenario())


# ---- draining --------------------------------------------------------------------------------------------------------


def test_draining_closes_idle_connections_now_and_others_after_their_answer(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            silent, busy = await house.connect(), await house.connect()
            await busy.send(post("/busy", b"x"))
            await app.entered.wait()
            await until(lambda: house.listener.open_connections == 2)
            house.listener.stop_accepting()
            house.listener.drain()
            assert await silent.has_ended()
            app.go_on.set()
            status, headers, _ = await busy.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await busy.has_ended()
            await house.listener.wait_closed()

    run(scenario())


def test_a_request_that_is_arriving_when_the_drain_begins_is_answered(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house:
            peer = await house.connect()
            request = post("/late", b"hello", "x: y")
            await peer.send(request[:40])
            await until(lambda: any(connection.headers for connection in house.listener.state.connections))
            house.listener.drain()
            await peer.send(request[40:])
            status, headers, _ = await peer.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await peer.has_ended()

    run(scenario())


def test_closing_at_once_cuts_what_is_being_answered_and_waits_for_the_application(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x"))
            await app.entered.wait()
            app.left.clear()
            closing = asyncio.create_task(house.listener.close(at_once=True))
            await app.left.wait()
            assert not closing.done()
            app.go_on.set()
            await closing
            peer.close()

    run(scenario())


def test_a_taken_port_is_an_error_that_names_it_and_what_helps(run: Run) -> None:
    async def scenario() -> None:
        async with serving(echo) as house, serving(echo) as other:
            assert other.listener.port != house.listener.port  # two listeners live in one loop
            with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{house.listener.port}.*another port"):
                await House(echo, ServerSettings()).listener.start("127.0.0.1", house.listener.port)

    run(scenario())
