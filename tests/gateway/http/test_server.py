"""The client's connection, against real sockets: what is usual, HTTP/1.0, and crashes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.http.client import EXTENSION, Client
from tests.instruments.http_house import (
    Run,
    Waiting,
    answer,
    assert_refused,
    echo,
    get,
    post,
    serving,
)

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


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_head_goes_out_in_one_piece_with_what_follows_and_never_waits_for_it(run: Run, method: str) -> None:
    async def scenario() -> None:
        pieces: list[bytes] = []
        go_on = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            client: Client = scope["extensions"][EXTENSION]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["path"] == "/at-once" and method == "GET":
                client.transport.write(b"2\r\nat\r\n")
            else:
                await go_on.wait()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async with serving(app) as house:
            peer = await house.connect()
            for path in ("/at-once", "/later"):
                await peer.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                pieces.append(await peer.receive())
                go_on.set()
                if method == "GET" and not pieces[-1].endswith(b"0\r\n\r\n"):
                    assert await peer.receive() == b"0\r\n\r\n"
            assert all(piece.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\n\r\n" in piece for piece in pieces)
            assert (b"2\r\nat\r\n" in pieces[0]) is (method == "GET")

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


def test_nothing_is_kept_of_requests_that_are_over(run: Run) -> None:
    async def scenario() -> None:
        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["path"] == "/crash":
                raise ValueError
            await echo(scope, receive, send)

        async with serving(app) as house:
            peer = await house.connect()
            for _ in range(3):
                await peer.send(get("/"))
                await peer.answer()
            await peer.send(get("/crash"))
            await peer.read_all()
            assert not house.listener.state.tasks

    run(scenario())
