"""A client that leaves is seen at once, whatever it has pipelined; a slow one makes its answer wait."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.http.client import EXTENSION, Client, ClientFlow
from tests.instruments.http_house import (
    Run,
    Waiting,
    echo,
    get,
    post,
    serving,
)

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


def test_an_application_that_listens_hears_of_the_leaving_after_the_whole_body(run: Run) -> None:
    async def scenario() -> None:
        heard: list[Any] = []
        is_listening, has_heard = asyncio.Event(), asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            client: Client = scope["extensions"][EXTENSION]
            assert await client.read(receive) == b"body"
            heard.append(await receive())
            is_listening.set()
            heard.append(await receive())
            has_heard.set()

        async with serving(app) as house:
            peer = await house.connect()
            await peer.send(post("/", b"body"))
            await is_listening.wait()
            peer.close()
            await house.listener.wait_closed()
            await has_heard.wait()
            assert heard == [
                {"type": "http.request", "body": b"", "more_body": False},
                {"type": "http.disconnect"},
            ]
            assert not house.errors

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


class Told:
    """A flow that notes what it was told."""

    def __init__(self, paused: asyncio.Event, resumed: asyncio.Event) -> None:
        self.pause = paused.set
        self.resume = resumed.set


def test_a_slow_reader_pauses_the_answer_and_resumes_it(run: Run) -> None:
    paused, resumed, wrote = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        client: Client = scope["extensions"][EXTENSION]
        await client.read(receive)
        client.follow(Told(paused, resumed))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not client.write_paused
        while not paused.is_set():
            client.transport.write(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
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
        client.follow(Told(paused, asyncio.Event()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not paused.is_set():
            client.transport.write(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
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


async def test_who_waits_for_room_is_woken_each_time_that_there_is_some() -> None:
    flow = ClientFlow(asyncio.Transport())
    await flow.drain()
    for _ in range(2):
        flow.pause_writing()
        waiting = asyncio.ensure_future(flow.drain())
        await asyncio.sleep(0)
        assert not waiting.done()
        flow.pause_writing()  # as if it had not been said before
        flow.resume_writing()
        await waiting
    flow.resume_writing()
    await flow.drain()
