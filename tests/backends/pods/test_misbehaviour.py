"""Faults: how they are told, whom they befall, and what the client then sees on the wire."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from backends.pods.misbehaviour import Fault, FaultKind, Misbehaviour, read, read_option
from tests.instruments.pods import PodProcess, simulator

CHAT = {"messages": [{"role": "user", "content": "Tell me about the river."}], "max_tokens": 8, "ignore_eos": True}


def test_a_fault_befalls_the_calls_it_matches_as_often_as_it_was_armed() -> None:
    armed = Misbehaviour()
    armed.arm(read('{"kind": "status", "value": 503, "times": 2, "match": {"tenant": "acme"}}'))
    assert armed.strike({"tenant": "beta"}) == {}
    assert [len(armed.strike({"tenant": "acme"})) for _ in range(3)] == [1, 1, 0]
    assert armed.is_quiet


def test_kinds_befall_a_call_together_and_each_kind_in_turn() -> None:
    armed = Misbehaviour()
    for text in ("reset_after_tokens:1", "reset_after_tokens:2", "ignore_disconnect:3s"):
        armed.arm(read_option(text))
    struck = armed.strike({})
    assert {kind: fault.value for kind, fault in struck.items()} == {
        FaultKind.RESET_AFTER_TOKENS: 1,
        FaultKind.IGNORE_DISCONNECT: 3,
    }
    assert armed.strike({})[FaultKind.RESET_AFTER_TOKENS].value == 2


def test_a_fault_may_last_for_ever() -> None:
    armed = Misbehaviour()
    armed.arm(read_option("status:500:-1"))
    assert all(armed.strike({}) for _ in range(10))
    armed.disarm()
    assert armed.is_quiet


def test_refusals_befall_connections_and_not_calls() -> None:
    armed = Misbehaviour()
    armed.arm(read('{"kind": "refuse", "times": 1}'))
    assert armed.strike({}) == {}
    assert [armed.refuses_connection() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "no fault"),
        ('{"kind": "stattus", "value": 1}', "there are refuse"),
        ('{"kind": "status"}', "needs a value"),
        ('{"kind": "status", "value": 200}', "400 to 599"),
        ('{"kind": "status", "value": 500, "match": {"teneant": "x"}}', "they match salt, tenant"),
        ('{"kind": "status", "value": 500, "tims": 3}', "tims"),
        ('{"kind": "ignore_disconnect", "value": "soon"}', "no duration"),
    ],
)
def test_what_is_no_fault_is_refused_with_what_would_be_right(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(text)


def test_the_command_line_takes_json_or_a_short_form() -> None:
    assert read_option("reset_after_bytes:12:3") == Fault(FaultKind.RESET_AFTER_BYTES, 12, 3)
    assert read_option('{"kind": "refuse", "value": "2s"}') == Fault(FaultKind.REFUSE, 2.0)


async def wire(pod: PodProcess, body: dict[str, object]) -> tuple[bytes, bytes, bool]:
    """Head, body as it came on the wire, and whether the end was a reset."""
    host, port = pod.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    payload = json.dumps(body).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(payload))
    writer.write(b"connection: close\r\n\r\n" + payload)
    received, was_reset = b"", False
    try:
        while piece := await asyncio.wait_for(reader.read(65536), 10):
            received += piece
    except ConnectionResetError:
        was_reset = True
    writer.close()
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest, was_reset


def events(body: bytes) -> list[bytes]:
    """The whole events in a chunked body."""
    return [line for line in body.split(b"\r\n") if line.startswith(b"data: ")]


async def test_a_status_is_answered_with_its_message_and_when_to_come_back() -> None:
    async with simulator() as pod:
        await pod.arm("status", 503, message="Full.", retry_after=1.5)
        answer = await pod.client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1.5")
        assert answer.json()["error"]["message"] == "Full."
        assert (await pod.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_reset_comes_after_exactly_so_many_tokens() -> None:
    async with simulator(ttft=0, itl="1ms") as pod:
        for tokens in (0, 1, 3, 8):
            await pod.arm("reset_after_tokens", tokens)
            head, body, was_reset = await wire(pod, {**CHAT, "stream": True})
            assert head.startswith(b"HTTP/1.1 200") and was_reset
            assert len(events(body)) == (tokens + 1 if tokens else 0), "the role comes first"
            assert b"[DONE]" not in body
        assert (await pod.counters())["all"]["failed"] == 4


async def test_a_reset_comes_after_exactly_so_many_bytes_wherever_that_is() -> None:
    async with simulator(ttft=0, itl=0) as pod:
        _, whole, _ = await wire(pod, {**CHAT, "stream": True})
        start = whole.index(b"\r\n") + 2
        for cut in (0, 1, start, start + 5, start + 100, len(whole) // 2, len(whole) - 7, len(whole) - 5, len(whole)):
            await pod.arm("reset_after_bytes", cut)
            _, body, was_reset = await wire(pod, {**CHAT, "stream": True})
            assert (len(body), was_reset) == (cut, True)
        await pod.until(lambda rows: rows["all"]["running"] == 0 and rows["all"]["kv_bytes"] == 0)


async def test_a_whole_answer_breaks_off_inside_its_body() -> None:
    async with simulator(ttft=0, itl=0) as pod:
        await pod.arm("reset_after_bytes", 20)
        head, body, was_reset = await wire(pod, CHAT)
        assert b"content-length: " in head
        assert (len(body), was_reset) == (20, True)

        await pod.arm("end_early_after_tokens", 2)
        head, body, was_reset = await wire(pod, CHAT)
        promised = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        assert 0 < len(body) < promised and not was_reset


async def test_a_reset_before_any_answer_leaves_nothing_on_the_wire() -> None:
    async with simulator() as pod:
        await pod.arm("reset", 0)
        assert await wire(pod, {**CHAT, "stream": True}) == (b"", b"", True)


async def test_a_body_may_end_in_order_without_a_finish() -> None:
    async with simulator(ttft=0, itl=0) as pod:
        await pod.arm("end_early_after_tokens", 3)
        _, body, was_reset = await wire(pod, {**CHAT, "stream": True})
        assert body.endswith(b"\r\n0\r\n\r\n") and not was_reset
        assert len(events(body)) == 4 and b"[DONE]" not in body


async def test_an_error_event_ends_the_stream_in_order() -> None:
    async with simulator(ttft=0, itl=0) as pod:
        await pod.arm("error_event_after_tokens", 2, message="CUDA error")
        _, body, _ = await wire(pod, {**CHAT, "stream": True})
        *_, error, done = events(body)
        assert json.loads(error.removeprefix(b"data: "))["error"]["message"] == "CUDA error"
        assert done.strip() == b"data: [DONE]"
        await pod.arm("error_event_after_tokens", 2)
        assert (await pod.client.post("/v1/chat/completions", json=CHAT)).status_code == 500


@pytest.mark.parametrize("tokens", [0, 3, 8])
async def test_a_stall_holds_its_slot_and_goes_on_when_it_is_over(tokens: int) -> None:
    async with simulator(ttft="1ms", itl=0) as pod:
        _, undisturbed, _ = await wire(pod, {**CHAT, "stream": True})
        await pod.arm("stall_after_tokens", tokens, seconds=0.3)
        call = asyncio.create_task(wire(pod, {**CHAT, "stream": True}))
        await pod.until(lambda rows: rows["all"]["started"] == 2)
        await pod.until(lambda rows: rows["all"]["tokens"] == 8 + tokens)
        assert not call.done()
        _, body, _ = await call
        assert [content(event) for event in events(body)] == [content(event) for event in events(undisturbed)]


def content(event: bytes) -> str:
    """What an event adds to the answer."""
    text = event.removeprefix(b"data: ").strip()
    return "" if text == b"[DONE]" else json.loads(text)["choices"][0]["delta"].get("content", "")


async def test_a_disconnect_may_be_ignored_for_a_time() -> None:
    async with simulator(itl="5ms") as pod:
        await pod.arm("ignore_disconnect", 0.4)
        with pytest.raises(httpx.ReadTimeout):
            await pod.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2000}, timeout=0.1)
        rows = await pod.until(lambda rows: rows["all"]["disconnected"] == 1)
        assert (rows["all"]["running"], rows["all"]["calls"]) == (1, 1)
        before = rows["all"]["tokens"]
        rows = await pod.until(lambda rows: rows["all"]["running"] == 0)
        assert rows["all"]["tokens"] > before
        assert (rows["all"]["calls"], rows["all"]["kv_bytes"], rows["all"]["finished"]) == (0, 0, 0)


async def test_connections_are_refused_for_a_time_and_then_taken_again() -> None:
    async with simulator() as pod, httpx.AsyncClient(base_url=pod.url) as stranger:
        assert (await stranger.get("/health")).status_code == 200
        await pod.arm("refuse", 0.3)
        async with httpx.AsyncClient(base_url=pod.url) as other:
            with pytest.raises(httpx.ConnectError):
                await other.get("/health")
            deadline = asyncio.get_running_loop().time() + 5
            while True:
                try:
                    assert (await other.get("/health")).status_code == 200
                    break
                except httpx.ConnectError:
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0.01)


async def test_so_many_connections_are_refused() -> None:
    async with simulator() as pod:
        await pod.arm("refuse", times=2)
        for _ in range(2):
            async with httpx.AsyncClient(base_url=pod.url) as other:
                with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                    await other.get("/health")
        async with httpx.AsyncClient(base_url=pod.url) as other:
            assert (await other.get("/health")).status_code == 200


async def test_a_wrong_fault_is_answered_with_the_reason() -> None:
    async with simulator() as pod:
        answer = await pod.client.post("/sim/faults", json={"kind": "nonsense"})
        assert answer.status_code == 400
        assert "reset_after_tokens" in answer.json()["error"]["message"]


async def test_faults_can_be_listed_forgotten_and_given_at_the_start() -> None:
    async with simulator(fault=["status:500", "reset_after_tokens:3"]) as pod:
        armed = (await pod.client.get("/sim/faults")).json()
        assert [fault["kind"] for fault in armed] == ["status", "reset_after_tokens"]
        await pod.disarm()
        assert (await pod.client.get("/sim/faults")).json() == []
        assert (await pod.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
