from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import httpx
import pytest

from backends.engines.engine import Reading, UpstreamRequest
from backends.engines.llamacpp import LlamaCpp
from tenancy.call import Kind
from tests.instruments.pods import PodProcess, llama_cpp

ENGINE = LlamaCpp()
MESSAGES = [{"role": "user", "content": "Tell me a long story about a fox."}]

# Recorded from the server inside xllamacpp 2026.10.11549, two slots of 2,048.
METRICS = b"""\
# HELP llamacpp:n_tokens_max Largest observed sequence length (prompt + generation)
# TYPE llamacpp:n_tokens_max counter
llamacpp:n_tokens_max 757
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# HELP llamacpp:requests_deferred Number of requests deferred
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
"""
SLOTS = b"""[{"id":0,"n_ctx":2048,"speculative":false,"is_processing":true,"id_task":44,"n_prompt_tokens":0},
{"id":1,"n_ctx":2048,"speculative":false,"is_processing":false}]"""
PROPS = b"""{"default_generation_settings":{"params":{"seed":4294967295,"max_tokens":-1,"n_predict":-1},"n_ctx":2048},
"total_slots":2,"model_alias":"penstock-tiny","is_sleeping":false}"""


def test_a_reading_says_who_runs_who_waits_and_how_large_the_pool_is() -> None:
    reading = ENGINE.read({"/metrics": METRICS, "/props": PROPS}, 7.0)
    assert reading == Reading(asked_at=7.0, running=2, waiting=1, kv_tokens=4096, slots=2)


def test_without_metrics_the_slots_tell_unless_all_are_taken() -> None:
    assert ENGINE.read({"/slots": SLOTS, "/props": PROPS}, 7.0).busy == 1
    assert ENGINE.read({"/slots": SLOTS.replace(b"false}]", b"true}]")}, 7.0).busy is None


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"<html>", b'[{"id":0}]', b"\xff"])
def test_what_is_not_understood_is_not_told(answer: bytes) -> None:
    reading = ENGINE.read({"/slots": answer, "/props": answer}, 7.0)
    assert (reading.running, reading.kv_tokens, reading.slots) == (None, None, None)


def test_whole_generations_are_asked_as_streams_with_usage(make_call: Any, make_pod: Any, sent: Any) -> None:
    request = ENGINE.request(make_call({"messages": MESSAGES, "stream": False}), make_pod(), 64)
    assert request.as_stream
    assert sent(request)["stream"] is True
    assert sent(request)["stream_options"] == {"include_usage": True}


def test_keys_that_pick_a_slot_or_pass_the_maximum_are_stripped(make_call: Any, make_pod: Any, sent: Any) -> None:
    reaching = {"id_slot": 1, "n_predict": -1, "n_cmpl": 4, "cache_salt": "own"}
    body = sent(ENGINE.request(make_call({"messages": MESSAGES, **reaching}), make_pod(), 64))
    assert not body.keys() & reaching.keys()


def test_prompts_are_cached_only_on_a_pod_of_one_tenant(make_call: Any, make_pod: Any, sent: Any) -> None:
    asked = make_call({"messages": MESSAGES, "cache_prompt": True})
    assert sent(ENGINE.request(asked, make_pod(), 64))["cache_prompt"] is False
    assert sent(ENGINE.request(asked, make_pod(tenants=frozenset({"acme", "globex"})), 64))["cache_prompt"] is False
    own = make_pod(tenants=frozenset({"acme"}))
    assert sent(ENGINE.request(asked, own, 64))["cache_prompt"] is True
    assert "cache_prompt" not in sent(ENGINE.request(make_call({"messages": MESSAGES}), own, 64))


def test_it_is_started_with_its_file_alias_and_slots(make_pod: Any) -> None:
    pod = make_pod(model_file="tiny.gguf", slots=4, api_key="secret", options=("--context", "512"))
    program = ENGINE.launch(pod, 4711, "127.0.0.1", 2048)
    assert program is not None
    assert program.command == (
        *(sys.executable, "-m", "backends.pods.llamacpp", "--host", "127.0.0.1", "--port", "4711"),
        *("--model", "tiny.gguf", "--alias", "x", "--slots", "4", "--context", "2048", "--context", "512"),
    )
    assert program.env == {"PENSTOCK_POD_API_KEY": "secret"}
    assert ENGINE.launch(make_pod(), 4711, "127.0.0.1") is None


# ---- the real one


async def ask(pod: PodProcess, request: UpstreamRequest) -> httpx.Response:
    return await pod.client.post(request.path, content=request.body, headers=list(request.headers))


async def read(pod: PodProcess) -> Reading:
    answers = {}
    for probe in ENGINE.probes:
        answer = await pod.client.get(probe.path, headers={"authorization": "Bearer secret"})
        assert answer.status_code == 200, probe.path
        answers[probe.path] = answer.content
    return ENGINE.read(answers, 0.0)


async def busy_becomes(pod: PodProcess, number: int) -> None:
    async with asyncio.timeout(10):
        while (await read(pod)).busy != number:
            pass  # every reading waits for the pod


async def test_a_real_pod_takes_what_is_sent_keeps_to_the_maximum_and_tells_who_is_there(
    make_call: Any, make_pod: Any
) -> None:
    facts = make_pod(api_key="secret")
    async with llama_cpp(slots=2, context=4096, api_key="secret") as pod:
        idle = await read(pod)
        assert (idle.running, idle.waiting, idle.slots, idle.kv_tokens) == (0, 0, 2, 8192)
        assert (await pod.client.get("/slots")).status_code == 401
        assert (await pod.client.get(ENGINE.health_path)).status_code == 200

        body = {"messages": MESSAGES, "ignore_eos": True, "n_predict": 500, "id_slot": 1, "n_cmpl": 2, "temperature": 0}
        answer = await ask(pod, ENGINE.request(make_call(body), facts, 7))
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert '"completion_tokens":7' in answer.text
        again = await ask(pod, ENGINE.request(make_call({**body, "cache_prompt": True}), facts, 7))
        assert '"cached_tokens":0' in again.text  # nobody feels what was asked before

        completion = make_call({"prompt": "The river", "ignore_eos": True}, kind=Kind.COMPLETION, streamed=False)
        assert '"completion_tokens":5' in (await ask(pod, ENGINE.request(completion, facts, 5))).text

        long = ENGINE.request(make_call({"messages": MESSAGES, "ignore_eos": True}), facts, 4000)
        left = [asyncio.create_task(ask(pod, long)) for _ in range(3)]
        try:
            await busy_becomes(pod, 3)
        finally:
            for task in left:
                task.cancel()
            for task in left:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await busy_becomes(pod, 0)
