"""A client that leaves: the pod, its slot and the lease are free at once where the pod lets go, and held where it
does not.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.instruments.gateway import Running, gateway, hash_of
from tests.instruments.pods import PodProcess, llama_cpp, simulator

KEY = "sk-acme"


def file(pod: PodProcess, engine: str, concurrency: int = 1) -> str:
    return f"""
pods: [{{name: pod, url: "{pod.url}", engine: {engine}, models: [tiny]}}]
queue: {{timeout: 60s}}
tenants: [{{name: acme, keys: ["{hash_of(KEY)}"], budget: {{concurrency: {concurrency}}}}}]
"""


class Caller:
    """A client on a socket of its own that sends a call, reads a little, and goes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def call(cls, running: Running, *, stream: bool, tokens: int = 1500) -> Caller:
        url = httpx.URL(running.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        payload: dict[str, Any] = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Write a long story about a fox."}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": stream,
        }
        body = json.dumps(payload).encode()
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return cls(reader, writer)

    async def first_bytes(self) -> bytes:
        return await self.reader.read(1000)

    def leave(self) -> None:
        self.writer.transport.abort()


async def until_held(running: Running, held: int) -> None:
    """Until the gateway's own count says so."""
    async with asyncio.timeout(10):
        while await running.metric("penstock_tenant_concurrency_held", tenant="acme") != held:
            pass


async def until_disconnected(pod: PodProcess, count: int) -> None:
    """Until the pod has seen so many clients leave."""
    await pod.until(lambda rows: rows["all"]["disconnected"] == count)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_simulator_and_the_lease_at_once(tmp_path: Path, stream: bool) -> None:
    async with simulator(slots=4, itl="20ms", ttft="10ms", model="tiny") as pod:
        async with gateway(file(pod, "simulator"), tmp_path) as running:
            for number in range(5):
                caller = await Caller.call(running, stream=stream)
                await pod.until(lambda rows: rows["all"]["running"] == 1)
                if stream:
                    assert b"200 OK" in await caller.first_bytes()
                caller.leave()
                await until_disconnected(pod, number + 1)
                await until_held(running, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_frees_the_slot_of_a_real_engine(tmp_path: Path, stream: bool) -> None:
    async with llama_cpp(slots=2, context=2048) as pod, gateway(file(pod, "llama.cpp"), tmp_path) as running:
        for _ in range(3):
            caller = await Caller.call(running, stream=stream, tokens=1900)
            async with asyncio.timeout(10):
                while await busy(pod) != 1:
                    pass
            caller.leave()
            async with asyncio.timeout(10):
                while await busy(pod) != 0:
                    pass
            await until_held(running, 0)


async def busy(pod: PodProcess) -> int:
    slots = (await pod.client.get("/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def test_leaving_the_queue_frees_the_place(tmp_path: Path) -> None:
    async with simulator(slots=4, itl="20ms", model="tiny") as pod:
        async with gateway(file(pod, "simulator"), tmp_path) as running:
            first = await Caller.call(running, stream=True)
            await pod.until(lambda rows: rows["all"]["running"] == 1)
            second = await Caller.call(running, stream=True)
            async with asyncio.timeout(10):
                while await running.metric("penstock_tenant_queued", tenant="acme") != 1:
                    pass
            second.leave()
            async with asyncio.timeout(10):
                while await running.metric("penstock_tenant_queued", tenant="acme") != 0:
                    pass
            first.leave()
            await until_held(running, 0)
            assert (await pod.counters())["all"]["started"] == 1


async def test_the_lease_is_held_while_a_pod_goes_on_with_a_left_call(tmp_path: Path) -> None:
    async with simulator(slots=4, itl="5ms", model="tiny") as pod:
        async with gateway(file(pod, "simulator"), tmp_path) as running:
            await pod.arm("ignore_disconnect", 3)
            caller = await Caller.call(running, stream=True)
            await caller.first_bytes()
            caller.leave()
            next_one = await Caller.call(running, stream=True, tokens=3)
            answer = await next_one.reader.readuntil(b"\r\n")
            assert b"200" in answer
            rows = await pod.counters()
            assert rows["tenants"]["acme"]["most_calls"] == 1, "the budget of 1 was exceeded at the pod"
            next_one.leave()


async def test_a_slow_reader_slows_its_own_stream_only(tmp_path: Path) -> None:
    async with simulator(slots=4, itl="0ms", ttft="1ms", model="tiny", context=1 << 20, kv_blocks=1 << 20) as pod:
        async with gateway(file(pod, "simulator", concurrency=2), tmp_path) as running:
            slow = await Caller.call(running, stream=True, tokens=100_000)
            await slow.first_bytes()
            quick = await Caller.call(running, stream=True, tokens=50)
            async with asyncio.timeout(20):
                await quick.reader.readuntil(b"data: [DONE]\n\n")
            slow.leave()
            quick.leave()
            await until_held(running, 0)
