"""What a connection does not take: heads, bodies and times over their bounds, and what is not HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from gateway.http.client import EXTENSION, Client
from gateway.http.errors import Fault
from tests.instruments.http_house import (
    SHORT_SECONDS,
    Run,
    Waiting,
    answer,
    assert_refused,
    echo,
    error_of,
    get,
    post,
    serving,
)


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


def test_an_answer_may_take_longer_than_anything_that_is_waited_for(run: Run) -> None:
    async def scenario() -> None:
        app = Waiting()
        short = ("head_timeout_seconds", "body_timeout_seconds", "keep_alive_seconds")
        async with serving(app, **dict.fromkeys(short, SHORT_SECONDS)) as house:
            peer = await house.connect()
            await peer.send(post("/", b"x"))
            await app.entered.wait()
            mute = await house.connect()
            assert await mute.read_all() == b""  # the time that it was given began after that of the request
            app.go_on.set()
            assert (await peer.answer())[0] == 200
            assert await peer.has_ended()
            assert not house.records

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


async def hasty(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers before it has read the body."""
    await answer(send, b"early")


def test_after_an_early_answer_the_rest_of_the_body_is_dropped_and_the_connection_kept(run: Run) -> None:
    async def scenario() -> None:
        async with serving(hasty) as house:
            peer = await house.connect()
            request = post("/", b"x" * 500_000)
            await peer.send(request[:200])
            assert (await peer.answer())[2] == b"early"
            await peer.send(request[200:] + get("/next"))
            assert (await peer.answer())[2] == b"early"
            peer.close()

    run(scenario())


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"transfer-encoding: chunked\r\n\r\n", b"64\r\n" + b"x" * 100 + b"\r\n"),
        (b"content-length: 500\r\n\r\n", b""),
        (b"transfer-encoding: chunked\r\n\r\n", b"nonsense\r\n"),
    ],
    ids=["too large", "too slow", "not http"],
)
def test_a_body_that_breaks_bounds_after_its_answer_ends_the_connection(run: Run, begin: bytes, more: bytes) -> None:
    async def scenario() -> None:
        async with serving(hasty, body_bytes=1000, body_timeout_seconds=SHORT_SECONDS) as house:
            peer = await house.connect()
            await peer.send(b"POST / HTTP/1.1\r\nhost: x\r\n" + begin)
            assert (await peer.answer())[2] == b"early"
            with contextlib.suppress(ConnectionError):
                await peer.send(*[more] * 50)
            assert await peer.has_ended()
            assert not house.records

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
