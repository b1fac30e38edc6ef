"""What a client sees when a pod dies, and what is left when the gateway does."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam

from tests.instruments.gateway import gateway, hash_of
from tests.instruments.pods import simulator
from tests.instruments.until import until

KEY = "sk-acme"
TENANTS = f'tenants: [{{name: acme, keys: ["{hash_of(KEY)}"], budget: {{concurrency: 16}}}}]'
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a fox."}]
TWO_LLAMAS = f"""
pods:
  - {{name: chat-0, engine: llama.cpp, model: penstock-tiny, models: [tiny], slots: 2}}
  - {{name: chat-1, engine: llama.cpp, model: penstock-tiny, models: [tiny], slots: 2}}
{TENANTS}
"""


def one_simulator(url: str, more: str = "") -> str:
    return f'pods: [{{name: sim, url: "{url}", engine: simulator, models: [tiny]}}]\n{TENANTS}\n{more}'


@pytest_asyncio.fixture
async def sdk() -> AsyncIterator[Callable[[str], openai.AsyncOpenAI]]:
    """Makes an SDK client for a gateway's URL, one for all calls, and closes it."""
    made: dict[str, openai.AsyncOpenAI] = {}

    def make(url: str) -> openai.AsyncOpenAI:
        if url not in made:
            made[url] = openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)
        return made[url]

    yield make
    for client in made.values():
        await client.close()


Sdk = Callable[[str], openai.AsyncOpenAI]


async def read_stream(client: openai.AsyncOpenAI) -> None:
    """A streamed call, read to its end."""
    stream = await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=50, stream=True)
    async for _ in stream:
        pass


def pod_processes(pid: int) -> list[psutil.Process]:
    """Everything that the gateway started."""
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize("cut_at_bytes", [700, 713, 1001])
async def test_a_pod_that_dies_inside_a_chunk_is_an_api_error_and_an_orderly_end(
    tmp_path: Path, cut_at_bytes: int, sdk: Sdk
) -> None:
    async with simulator(slots=4, itl="2ms", model="tiny") as pod:
        async with gateway(one_simulator(pod.url), tmp_path) as running:
            await pod.arm("reset_after_bytes", cut_at_bytes)
            with pytest.raises(openai.APIError) as told:
                await read_stream(sdk(running.url))
            assert told.value.code == "pod_failed"

            # The same on the wire: whole events only, and the body ends as HTTP wants it.
            await pod.arm("reset_after_bytes", cut_at_bytes)
            payload = {"model": "tiny", "messages": ASK, "max_tokens": 50, "stream": True}
            async with httpx.AsyncClient() as client:
                answer = await client.post(
                    running.url + "/v1/chat/completions", json=payload, headers={"authorization": f"Bearer {KEY}"}
                )
            events = answer.text.split("\n\n")
            assert events[-1] == ""
            assert all(event.startswith("data: {") and event.endswith("}") for event in events[:-1])
            assert '"pod_failed"' in events[-2]
            assert sum("error" in event for event in events) == 1


async def test_a_stream_that_ends_without_a_finish_is_no_success(tmp_path: Path, sdk: Sdk) -> None:
    async with simulator(slots=4, itl="2ms", model="tiny") as pod:
        async with gateway(one_simulator(pod.url), tmp_path) as running:
            await pod.arm("end_early_after_tokens", 5)
            with pytest.raises(openai.APIError):
                await read_stream(sdk(running.url))


async def test_a_failure_before_the_first_byte_goes_to_another_pod_unseen(tmp_path: Path, sdk: Sdk) -> None:
    async with simulator(slots=4, itl="2ms", model="tiny") as one, simulator(slots=4, itl="2ms", model="tiny") as two:
        file = f"""
pods:
  - {{name: one, url: "{one.url}", engine: simulator, models: [tiny]}}
  - {{name: two, url: "{two.url}", engine: simulator, models: [tiny]}}
{TENANTS}
"""
        async with gateway(file, tmp_path) as running:
            await one.arm("status", 500, times=-1)
            for streamed in (True, False):
                for _ in range(6):
                    raw = await sdk(running.url).chat.completions.with_raw_response.create(
                        model="tiny", messages=ASK, max_tokens=5, stream=streamed
                    )
                    assert raw.status_code == 200
                    assert raw.headers["x-penstock-pod"] == "two"
            retried = [line for line in running.access if line.get("attempts", 0) > 1]
            assert retried, "no call ever met the failing pod"


async def test_with_every_pod_failing_the_client_is_told_not_to_retry(tmp_path: Path, sdk: Sdk) -> None:
    async with simulator(slots=4, model="tiny") as pod, gateway(one_simulator(pod.url), tmp_path) as running:
        await pod.arm("status", 500, times=-1)
        with pytest.raises(openai.InternalServerError) as told:
            await sdk(running.url).chat.completions.create(model="tiny", messages=ASK, max_tokens=5)
        assert told.value.status_code == 502
        assert told.value.code == "pod_failed"
        assert told.value.response.headers["x-should-retry"] == "false"


async def test_a_killed_pod_is_restarted_and_calls_go_to_the_other_meanwhile(tmp_path: Path, sdk: Sdk) -> None:
    async with gateway(TWO_LLAMAS, tmp_path) as running:
        await until(lambda: sum(line.get("event") == "pod_started" for line in running.log) == 2)
        for name in ("chat-0", "chat-1"):
            async with asyncio.timeout(20):
                while not await running.metric("penstock_pod_up", pod=name):
                    pass
        victim = next(
            process for process in pod_processes(running.pid) if "backends.pods.llamacpp" in " ".join(process.cmdline())
        )
        victim.send_signal(signal.SIGKILL)
        answers = [
            await sdk(running.url).chat.completions.create(model="tiny", messages=ASK, max_tokens=5) for _ in range(8)
        ]
        assert all(answer.choices[0].message.content for answer in answers)
        await until(lambda: sum(line.get("event") == "pod_started" for line in running.log) == 3, within=20)
        assert [line["pod"] for line in running.log if line.get("event") == "pod_exited"] != []


async def test_no_pod_survives_the_gateway_killed_with_sigkill(tmp_path: Path) -> None:
    async with gateway(TWO_LLAMAS, tmp_path) as running:
        started = pod_processes(running.pid)
        assert len(started) >= 4  # two pods, and a guardian each
        os.kill(running.pid, signal.SIGKILL)
        await until(lambda: not any(process.is_running() for process in started), within=15)


async def test_a_call_waits_for_a_pod_that_is_starting(tmp_path: Path, sdk: Sdk) -> None:
    async with gateway(TWO_LLAMAS, tmp_path, ready=False) as running:
        answer = await sdk(running.url).chat.completions.create(model="tiny", messages=ASK, max_tokens=5)
        assert answer.choices[0].message.content
