"""The llama.cpp pod with the model that comes along: what the gateway relies on, and the quirks it works around."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.instruments.pods import PodProcess, llama_cpp, misused

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOTS = 3
CONTEXT = 512
ASKED: list[Any] = [{"role": "user", "content": "What is a dam?"}]
LONG: dict[str, Any] = {"messages": ASKED, "max_tokens": 450, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod() -> AsyncIterator[PodProcess]:
    """One pod for all tests that do not end it."""
    async with llama_cpp(slots=SLOTS, context=CONTEXT, alias="tiny", embeddings=True) as running:
        yield running


def sdk(pod: PodProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=pod.url + "/v1", api_key="none", max_retries=0)


async def busy(pod: PodProcess) -> int:
    slots = (await pod.client.get("/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def until_busy(pod: PodProcess, wanted: int) -> None:
    async with asyncio.timeout(20):
        while await busy(pod) != wanted:
            pass


async def test_it_streams_english_with_usage(pod: PodProcess) -> None:
    async with sdk(pod) as client:
        text, usage, finish = "", None, None
        stream = await client.chat.completions.create(
            model="tiny", messages=ASKED, stream=True, temperature=0, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        whole = await client.chat.completions.create(model="tiny", messages=ASKED, temperature=0)
    assert finish == "stop"
    assert text == whole.choices[0].message.content
    assert "dam" in text and "water" in text
    assert usage is not None and usage.completion_tokens > 10


async def test_completions_and_embeddings_are_served_beside_chat(pod: PodProcess) -> None:
    async with sdk(pod) as client:
        completion = await client.completions.create(model="tiny", prompt="The river", max_tokens=4)
        assert completion.usage is not None and completion.usage.prompt_tokens == 3
        vectors = await client.embeddings.create(model="tiny", input=["a dam", "a river", "a dam"])
    assert vectors.data[0].embedding == vectors.data[2].embedding != vectors.data[1].embedding
    assert len(vectors.data[0].embedding) == 256


def begun_with(text: str) -> dict[str, Any]:
    messages = [*ASKED, *([{"role": "assistant", "content": text}] if text else [])]
    return {"messages": messages, "temperature": 0, "max_tokens": 60}


async def streamed(pod: PodProcess, body: dict[str, Any]) -> str:
    async with pod.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        events = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)


async def test_a_reply_that_was_begun_is_continued_exactly_in_a_stream(pod: PodProcess) -> None:
    whole = await streamed(pod, begun_with(""))
    words = whole.split(" ")
    assert len(words) > 10
    for kept in range(1, len(words), 4):
        begun = " ".join(words[:kept])
        assert begun + await streamed(pod, begun_with(begun)) == whole


async def test_a_whole_answer_repeats_the_beginning_that_it_was_given(pod: PodProcess) -> None:
    answer = await pod.client.post("/v1/chat/completions", json=begun_with("A dam is"))
    assert answer.json()["choices"][0]["message"]["content"].startswith("A dam is a ")


async def test_it_publishes_slots_context_and_who_runs_and_waits(pod: PodProcess) -> None:
    props = (await pod.client.get("/props")).json()
    assert props["total_slots"] == SLOTS
    assert props["default_generation_settings"]["n_ctx"] == CONTEXT
    slots = (await pod.client.get("/slots")).json()
    assert [slot["n_ctx"] for slot in slots] == [CONTEXT] * SLOTS
    metrics = await pod.metrics()
    assert metrics["llamacpp:requests_processing"] == metrics["llamacpp:requests_deferred"] == 0
    assert not [name for name in metrics if "kv" in name.lower()]
    models = (await pod.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["tiny"]


async def test_a_client_that_leaves_a_stream_frees_its_slot(pod: PodProcess) -> None:
    host, port = pod.url.removeprefix("http://").split(":")
    body = json.dumps({**LONG, "stream": True}).encode()
    writers = []
    for _ in range(SLOTS + 2):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        writers.append((reader, writer))
    await until_busy(pod, SLOTS)
    for _, writer in writers:
        writer.transport.abort()
    await until_busy(pod, 0)
    assert (await pod.metrics())["llamacpp:requests_deferred"] == 0


async def test_probes_are_answered_while_all_slots_and_the_queue_are_full(pod: PodProcess) -> None:
    calls = [asyncio.create_task(pod.client.post("/v1/chat/completions", json=LONG)) for _ in range(3 * SLOTS)]
    await until_busy(pod, SLOTS)
    assert (await pod.client.get("/health", timeout=5)).status_code == 200
    assert (await pod.metrics())["llamacpp:requests_processing"] == SLOTS
    assert all(answer.status_code == 200 for answer in await asyncio.gather(*calls))


@pytest.mark.parametrize(
    ("path", "content", "status", "kind"),
    [
        ("/v1/chat/completions", b"{bad", 400, "invalid_request_error"),
        ("/v1/nothing", b"{}", 404, "not_found_error"),
        (
            "/v1/chat/completions",
            json.dumps({"messages": [{"role": "user", "content": "hello " * 600}]}).encode(),
            400,
            "exceed_context_size_error",
        ),
    ],
)
async def test_errors_are_objects_with_a_numeric_code(
    pod: PodProcess, path: str, content: bytes, status: int, kind: str
) -> None:
    answer = await pod.client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (status, kind)


async def test_an_unknown_model_is_answered_all_the_same(pod: PodProcess) -> None:
    answer = await pod.client.post("/v1/chat/completions", json={**LONG, "max_tokens": 2, "model": "nobody"})
    assert answer.status_code == 200


async def test_the_first_delta_has_no_text(pod: PodProcess) -> None:
    body = {"messages": ASKED, "max_tokens": 2, "stream": True}
    async with pod.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        events = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"] == {"role": "assistant", "content": None}


async def test_a_key_from_the_environment_guards_all_but_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_POD_API_KEY", "s3cret")
    async with llama_cpp(slots=1) as guarded:
        assert (await guarded.client.get("/health")).status_code == 200
        assert (await guarded.client.get("/metrics")).status_code == 401
        mine = {"authorization": "Bearer s3cret"}
        assert (await guarded.client.get("/metrics", headers=mine)).status_code == 200
        assert guarded.facts["model"] == "penstock-tiny"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_at_once_whatever_runs(how: signal.Signals) -> None:
    async with llama_cpp(slots=1, context=2048) as running:
        body = {**LONG, "max_tokens": 1900}
        calls = [asyncio.create_task(running.client.post("/v1/chat/completions", json=body)) for _ in range(2)]
        await until_busy(running, 1)
        running.process.send_signal(how)
        assert await asyncio.wait_for(running.process.wait(), 2) == 0
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("slots", [1, 5])
async def test_embeddings_take_prompts_as_long_as_the_context_with_any_number_of_slots(slots: int) -> None:
    async with llama_cpp(slots=slots, context=700, embeddings=True) as running:
        fits = await running.client.post("/v1/embeddings", json={"input": "the river " * 345})
        assert fits.json()["usage"]["prompt_tokens"] == 692
        too_long = await running.client.post("/v1/embeddings", json={"input": "the river " * 700})
        assert too_long.status_code == 500, "llama.cpp blames itself"
        assert "too large to process" in too_long.json()["error"]["message"]


async def test_a_model_that_is_not_there_is_said_so() -> None:
    assert "there is no model at nowhere.gguf" in await misused("backends.pods.llamacpp", ["--model", "nowhere.gguf"])
