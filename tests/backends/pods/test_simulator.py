"""The simulator as its clients see it: OpenAI's API and SDK, vLLM's errors and metrics, and its own counts."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from backends.pods import tokens
from tests.instruments.pods import PodProcess, misused, simulator

ASKED: list[Any] = [{"role": "user", "content": "Tell me about the mill by the river."}]
CHAT: dict[str, Any] = {"messages": ASKED}
FAST = {"ttft": 0, "itl": 0}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[PodProcess]:
    """One simulator for the tests that count nothing."""
    async with simulator(model=["m", "n"], context=4096, **FAST) as pod:
        yield pod


def sdk(pod: PodProcess, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=pod.url + "/v1", api_key=key, max_retries=0)


async def chat(pod: PodProcess, **more: Any) -> Any:
    answer = await pod.client.post("/v1/chat/completions", json={**CHAT, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def said(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


async def lines(pod: PodProcess, path: str, body: dict[str, Any]) -> list[str]:
    """The stream's events as they came, without the blank lines."""
    async with pod.client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line async for line in answer.aiter_lines() if line]


async def test_a_stream_has_vllms_form(shared: PodProcess) -> None:
    got = await lines(
        shared, "/v1/chat/completions", {**CHAT, "max_tokens": 3, "stream_options": {"include_usage": True}}
    )
    assert got[-1] == "data: [DONE]"
    role, first, second, last, usage = (json.loads(line.removeprefix("data: ")) for line in got[:-1])
    assert len({event["id"] for event in (role, first, second, last, usage)}) == 1
    assert {event["object"] for event in (role, first, usage)} == {"chat.completion.chunk"}
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert list(first["choices"][0]["delta"]) == list(second["choices"][0]["delta"]) == ["content"]
    assert [event["choices"][0]["finish_reason"] for event in (role, first, second, last)] == [None] * 3 + ["length"]
    assert usage["choices"] == []
    prompt = usage["usage"]["prompt_tokens"]
    assert usage["usage"] == {"prompt_tokens": prompt, "total_tokens": prompt + 3, "completion_tokens": 3}


async def test_streamed_and_whole_answers_say_the_same_and_end_by_themselves(shared: PodProcess) -> None:
    async with sdk(shared) as client:
        whole = await client.chat.completions.create(model="m", messages=ASKED)
        assert whole.choices[0].finish_reason == "stop"
        text, finish = "", None
        events = 0
        async for chunk in await client.chat.completions.create(model="m", messages=ASKED, stream=True):
            events += 1
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason
        assert (text, finish) == (whole.choices[0].message.content, "stop")
        assert whole.usage is not None
        assert events == whole.usage.completion_tokens + 1, "the role, then one event for each token; the end is one"


async def test_completions_take_texts_and_token_ids_one_or_many(shared: PodProcess) -> None:
    async with sdk(shared) as client:
        one = await client.completions.create(model="m", prompt="The river", max_tokens=5)
        assert one.choices[0].text.startswith(" ")
        assert one.usage is not None and one.usage.completion_tokens == 5
        many = await client.completions.create(model="m", prompt=["The river", "The mill"], n=2, max_tokens=5)
        assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
        assert many.choices[0].text == one.choices[0].text
        assert len({choice.text for choice in many.choices}) == 4
        ids = await client.completions.create(model="m", prompt=[1, 2, 3], max_tokens=5)
        assert ids.usage is not None and ids.usage.prompt_tokens == 3
        lists = await client.completions.create(model="m", prompt=[[1, 2, 3], [4]], max_tokens=5)
        assert lists.choices[0].text == ids.choices[0].text
        echoed = await client.completions.create(model="m", prompt="The river", max_tokens=5, echo=True)
        assert echoed.choices[0].text == "The river" + one.choices[0].text
        default = await client.completions.create(model="m", prompt="The river", extra_body={"ignore_eos": True})
        assert default.usage is not None and default.usage.completion_tokens == 16


async def test_a_streamed_completion_says_what_the_whole_one_says(shared: PodProcess) -> None:
    body = {"prompt": ["The river", "A mill"], "max_tokens": 6}
    whole = (await shared.client.post("/v1/completions", json=body)).json()
    texts = ["", ""]
    for line in (await lines(shared, "/v1/completions", body))[:-1]:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


async def test_embeddings_come_as_numbers_and_as_base64(shared: PodProcess) -> None:
    async with sdk(shared) as client:
        got = await client.embeddings.create(model="m", input=["one", "two", "one"], dimensions=8)
        plain = await client.embeddings.create(model="m", input="one", dimensions=8, encoding_format="float")
        assert got.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
        assert got.data[0].embedding == got.data[2].embedding != got.data[1].embedding
        assert got.usage.prompt_tokens == got.usage.total_tokens > 0


async def test_a_prompt_is_counted_as_tokenize_counts_it() -> None:
    async with simulator(context=100, **FAST) as pod:
        counted = (await pod.client.post("/tokenize", json=CHAT)).json()
        answer = await chat(pod, max_tokens=1)
        assert answer["usage"]["prompt_tokens"] == counted["count"] == len(counted["tokens"])
        assert counted["max_model_len"] == 100
        plain = (await pod.client.post("/tokenize", json={"prompt": "The river runs."})).json()
        assert plain["count"] == len(tokens.split("The river runs."))


async def test_a_stop_string_ends_the_answer_before_it_streamed_or_not(shared: PodProcess) -> None:
    free = said(await chat(shared, ignore_eos=True, max_tokens=40))
    stop = free[20:26]
    answer = await chat(shared, ignore_eos=True, max_tokens=40, stop=["never said", stop])
    assert said(answer) == free[: free.index(stop)]
    assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["stop_reason"]) == ("stop", stop)
    got = await lines(
        shared, "/v1/chat/completions", {**CHAT, "ignore_eos": True, "max_tokens": 40, "stop": ["never said", stop]}
    )
    events = [json.loads(line.removeprefix("data: ")) for line in got[:-1]]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == said(answer)
    assert events[-1]["choices"][0]["stop_reason"] == stop
    assert len(events) == answer["usage"]["completion_tokens"] + 1


async def test_any_simulator_continues_a_reply_from_any_token_and_usage_adds_up() -> None:
    async with simulator(**FAST) as one, simulator(seed=9, slots=3, **FAST) as other:
        whole = await chat(one, seed=4)
        text, usage = said(whole), whole["usage"]
        for kept in range(usage["completion_tokens"]):
            begun = "".join(tokens.split(text)[:kept])
            rest = await chat(
                other,
                messages=[*ASKED, {"role": "assistant", "content": begun}],
                seed=4,
                continue_final_message=True,
                add_generation_prompt=False,
            )
            assert begun + said(rest) == text
            assert rest["usage"]["prompt_tokens"] == usage["prompt_tokens"] + kept
            assert rest["usage"]["total_tokens"] == usage["total_tokens"]


async def test_a_trailing_reply_is_continued_unless_a_new_one_is_asked_for(shared: PodProcess) -> None:
    whole = said(await chat(shared))
    messages = [*ASKED, {"role": "assistant", "content": whole[:30] + "  "}]
    assert whole[:30].rstrip() + said(await chat(shared, messages=messages)) == whole, "trailing blanks are dropped"
    new = said(await chat(shared, messages=messages, add_generation_prompt=True))
    assert new[0].isupper() and not whole.endswith(new)
    both = await shared.client.post(
        "/v1/chat/completions",
        json={"messages": messages, "continue_final_message": True, "add_generation_prompt": True},
    )
    assert both.status_code == 400


async def test_a_completion_is_continued_by_its_prompt_and_text(shared: PodProcess) -> None:
    body = {"prompt": "The river", "max_tokens": 30, "ignore_eos": True}
    whole = (await shared.client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    begun = "".join(tokens.split(whole)[:11])
    rest = await shared.client.post("/v1/completions", json={**body, "prompt": "The river" + begun, "max_tokens": 19})
    assert begun + rest.json()["choices"][0]["text"] == whole


async def test_text_depends_on_the_request_and_not_on_salt_or_simulator(shared: PodProcess) -> None:
    base = said(await chat(shared))
    assert said(await chat(shared, cache_salt="acme", user="bob", model="n")) == base
    assert said(await chat(shared, seed=1)) != base
    assert said(await chat(shared, messages=[{"role": "user", "content": "Else"}])) != base
    two = await chat(shared, n=2)
    assert two["choices"][0]["message"]["content"] == base != two["choices"][1]["message"]["content"]


async def test_fixed_output_fills_the_maximum_and_echo_repeats_the_question() -> None:
    async with simulator(output="fixed", **FAST) as pod:
        answer = await chat(pod, max_tokens=700)
        assert answer["usage"]["completion_tokens"] == 700
    async with simulator(output="echo", **FAST) as pod:
        assert said(await chat(pod)) == ASKED[0]["content"]
        rest = await chat(pod, messages=[*ASKED, {"role": "assistant", "content": "Tell me"}])
        assert said(rest) == " about the mill by the river."
        odd = await chat(pod, messages=[{"role": "user", "content": 'Zwei "Wörter"\n水\t🙂'}])
        assert said(odd) == 'Zwei "Wörter"\n水\t🙂'


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (
            "chat/completions",
            {**CHAT, "max_tokens": 5000},
            400,
            "is too large: 5000. This model's maximum context length",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a b " * 9000}]},
            400,
            "However, your request has",
        ),
        ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "at least 1"),
        ("chat/completions", {**CHAT, "model": "other"}, 404, "The model `other` does not exist."),
        ("chat/completions", {**CHAT, "n": 0}, 400, "n must be"),
        ("chat/completions", {**CHAT, "cache_salt": ""}, 400, "non-empty string"),
        ("chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, 400, "stream=True"),
        ("chat/completions", {**CHAT, "max_tokens": "many"}, 400, "$.max_tokens"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {}, 400, "messages"),
        ("completions", {"prompt": ["a", 1]}, 400, "not both"),
        ("completions", {"prompt": []}, 400, "must not be empty"),
        ("embeddings", {"input": "a b " * 9000}, 400, "maximum context length"),
    ],
)
async def test_what_is_wrong_is_said_as_vllm_says_it(
    shared: PodProcess, path: str, body: Any, status: int, says: str
) -> None:
    answer = await shared.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert says in error["message"]


async def test_a_body_that_is_no_json_and_paths_that_are_not_there(shared: PodProcess) -> None:
    assert (await shared.client.post("/v1/chat/completions", content=b"{bad")).status_code == 400
    assert (await shared.client.get("/v1/nothing")).status_code == 404
    assert (await shared.client.get("/v1/chat/completions")).status_code == 405
    assert (await shared.client.get("/health")).status_code == 200
    assert (await shared.client.get("/version")).json()["version"]


async def test_served_names_are_listed_and_others_unknown() -> None:
    async with simulator(model=["qwen", "gpt-demo"], context=2048, **FAST) as pod:
        listed = (await pod.client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["max_model_len"]) for model in listed] == [("qwen", 2048), ("gpt-demo", 2048)]
        assert (await chat(pod, model="gpt-demo"))["model"] == "gpt-demo"
        assert (await pod.client.post("/v1/chat/completions", json={**CHAT, "model": "x"})).status_code == 404


async def test_a_key_guards_the_api_and_leaves_health_and_metrics_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_POD_API_KEY", "s3cret")
    async with simulator(**FAST) as pod:
        assert (await pod.client.post("/v1/chat/completions", json=CHAT)).status_code == 401
        assert (await pod.client.get("/v1/models", headers={"authorization": "Bearer s3cret"})).status_code == 200
        assert (await pod.client.get("/health")).status_code == 200
        assert (await pod.client.get("/metrics")).status_code == 200


async def leave(pod: PodProcess, *, stream: bool) -> None:
    """A client that goes away in the middle of a long answer."""
    host, port = pod.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({**CHAT, "max_tokens": 1000, "ignore_eos": True, "stream": stream, "cache_salt": "acme"}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await pod.until(lambda rows: rows["all"]["tokens"] > 3)
    writer.close()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_slot_and_memory_at_once(stream: bool) -> None:
    async with simulator(ttft=0, itl="5ms") as pod:
        await leave(pod, stream=stream)
        rows = await pod.until(lambda rows: rows["all"]["disconnected"] == 1)
        assert (rows["all"]["running"], rows["all"]["calls"], rows["all"]["kv_bytes"]) == (0, 0, 0)
        assert rows["all"]["finished"] == 0
        assert rows["tenants"]["acme"]["disconnected"] == 1
        assert (await pod.metrics())[
            'vllm:request_success_total{engine="0",model_name="simulator",finished_reason="abort"}'
        ] == 1


async def test_counts_are_exact_in_all_per_tenant_and_per_user() -> None:
    async with simulator(slots=3, ttft="20ms", itl="1ms", block=16, kv_bytes_per_token=1024) as pod:
        calls = [
            asyncio.create_task(chat(pod, cache_salt=salt, user=user, max_tokens=5, ignore_eos=True))
            for salt, user in [("acme", "a"), ("acme:x", "b"), ("acme", "a"), ("beta", ""), ("beta", "")]
        ]
        await asyncio.gather(*calls)
        rows = await pod.counters()
        assert (rows["all"]["most_calls"], rows["all"]["most_running"]) == (5, 3)
        assert (rows["all"]["started"], rows["all"]["finished"], rows["all"]["tokens"]) == (5, 5, 25)
        assert (rows["tenants"]["acme"]["most_calls"], rows["tenants"]["beta"]["most_calls"]) == (3, 2)
        assert (rows["users"]["a"]["started"], rows["users"]["b"]["started"]) == (2, 1)
        blocks = -(-(calls[0].result()["usage"]["prompt_tokens"] + 4) // 16)
        assert rows["pool"]["block_bytes"] == 16 * 1024
        assert rows["tenants"]["acme"]["most_kv_bytes"] <= 3 * blocks * 16 * 1024
        assert rows["all"]["kv_bytes"] == 0

        await pod.reset()
        rows = await pod.counters()
        assert (rows["all"]["most_calls"], rows["all"]["started"], rows["all"]["tokens"], rows["tenants"]) == (
            0,
            0,
            0,
            {},
        )


async def test_what_arrived_can_be_read_back() -> None:
    async with simulator(**FAST) as pod:
        await pod.client.post("/v1/chat/completions", json={**CHAT, "cache_salt": "acme"}, headers={"x-one": "1"})
        (seen,) = await pod.requests()
        assert seen["path"] == "/v1/chat/completions"
        assert ["x-one", "1"] in seen["headers"]
        assert json.loads(seen["body"])["cache_salt"] == "acme"


async def test_beyond_the_queue_it_answers_503() -> None:
    async with simulator(slots=1, queue=1, itl="20ms") as pod:
        calls = [asyncio.create_task(chat(pod, max_tokens=20, ignore_eos=True)) for _ in range(2)]
        await pod.until(lambda rows: rows["all"]["waiting"] == 1)
        refused = await pod.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "ServiceUnavailableError"
        await asyncio.gather(*calls)
        rows = await pod.counters()
        assert (rows["all"]["refused"], rows["all"]["started"], rows["all"]["most_calls"]) == (1, 2, 2)


async def test_memory_is_never_overdrawn_and_all_are_served_by_waiting_and_preemption() -> None:
    async with simulator(slots=8, kv_blocks=12, context=128, ttft="1ms", itl="1ms") as pod:
        answers = await asyncio.gather(*(chat(pod, max_tokens=90, ignore_eos=True, seed=seed) for seed in range(6)))
        assert all(answer["usage"]["completion_tokens"] == 90 for answer in answers)
        rows = await pod.counters()
        assert rows["all"]["most_kv_bytes"] <= rows["pool"]["bytes"]
        assert (await pod.metrics())['vllm:num_preemptions_total{engine="0",model_name="simulator"}'] > 0
        alone = await chat(pod, max_tokens=90, ignore_eos=True, seed=3)
        assert said(alone) == said(answers[3]), "a preempted answer loses and doubles nothing"


async def test_prompts_share_their_beginnings_inside_a_salt_and_nowhere_else() -> None:
    long = [{"role": "user", "content": "The river runs past the old mill. " * 40}]
    async with simulator(ttft="1ms", itl=0) as pod:
        for salt, hits in (("acme", False), ("acme", True), ("acme:other", False), ("beta", False)):
            before = (await pod.metrics())['vllm:prefix_cache_hits_total{engine="0",model_name="simulator"}']
            await chat(pod, messages=long, cache_salt=salt, max_tokens=2)
            after = (await pod.metrics())['vllm:prefix_cache_hits_total{engine="0",model_name="simulator"}']
            assert (after > before) == hits


async def test_the_first_token_comes_sooner_where_the_prompt_is_known() -> None:
    long = [{"role": "user", "content": "The river runs past the old mill. " * 100}]
    async with simulator(ttft=0, itl=0, prefill_per_token="300us") as pod:
        clock = asyncio.get_running_loop().time
        times = []
        for _ in range(2):
            before = clock()
            await chat(pod, messages=long, max_tokens=1)
            times.append(clock() - before)
        assert times[0] > 0.2 > times[1]


async def test_metrics_are_those_of_vllm() -> None:
    async with simulator(model="qwen", slots=2, kv_bytes="16Mi", kv_bytes_per_token=4096, itl="20ms") as pod:
        calls = [asyncio.create_task(chat(pod, model="qwen", max_tokens=20, ignore_eos=True)) for _ in range(3)]
        await pod.until(lambda rows: rows["all"]["running"] == 2 and rows["all"]["tokens"] > 2)
        labels = '{engine="0",model_name="qwen"}'
        busy = await pod.metrics()
        assert busy["vllm:num_requests_running" + labels] == 2
        assert busy["vllm:num_requests_waiting" + labels] == 1
        assert 0 < busy["vllm:kv_cache_usage_perc" + labels] < 0.1
        (config,) = [name for name in busy if name.startswith("vllm:cache_config_info")]
        for label in ('block_size="16"', 'num_gpu_blocks="256"', 'kv_cache_size_tokens="4096"', 'engine="0"'):
            assert label in config
        answers = await asyncio.gather(*calls)
        quiet = await pod.metrics()
        assert quiet["vllm:kv_cache_usage_perc" + labels] == quiet["vllm:num_requests_running" + labels] == 0
        assert quiet["vllm:generation_tokens_total" + labels] == 60
        assert quiet["vllm:prompt_tokens_total" + labels] == sum(each["usage"]["prompt_tokens"] for each in answers)
        assert quiet['vllm:request_success_total{engine="0",model_name="qwen",finished_reason="length"}'] == 3
        assert quiet["vllm:time_to_first_token_seconds_count" + labels] == 3
        assert quiet["vllm:inter_token_latency_seconds_count" + labels] == 57
        assert quiet["vllm:e2e_request_latency_seconds_count" + labels] == 3
        assert quiet["vllm:request_queue_time_seconds_count" + labels] == 3
        assert quiet['vllm:inter_token_latency_seconds_bucket{engine="0",model_name="qwen",le="+Inf"}'] == 57


async def test_times_are_as_set() -> None:
    async with simulator(ttft="100ms", itl="20ms") as pod:
        clock = asyncio.get_running_loop().time
        started = clock()
        times: list[float] = []
        body = {**CHAT, "max_tokens": 11, "ignore_eos": True, "stream": True}
        async with pod.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            head_at = clock() - started
            async for line in answer.aiter_lines():
                if '"content":"' in line:
                    times.append(clock() - started)
        assert head_at < times[0], "the head does not wait for the first token"
        assert times[0] >= 0.099
        assert times[-1] >= 0.099 + 10 * 0.02 - 0.002


async def test_requests_on_one_connection_are_answered_in_order(shared: PodProcess) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({**CHAT, "max_tokens": 2}).encode()
    call = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    writer.write(call + b"GET /health HTTP/1.1\r\n\r\n" + b"GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n")
    received = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    statuses = [line for line in received.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [status.rpartition(b"HTTP/1.1 ")[2][:3] for status in statuses] == [b"200", b"200", b"404"]


async def test_what_is_no_http_is_answered_and_ended(shared: PodProcess) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400")
    writer.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_at_once_and_in_order(how: signal.Signals) -> None:
    async with simulator(itl="20ms") as pod:
        call = asyncio.create_task(chat(pod, max_tokens=1000, ignore_eos=True))
        await pod.until(lambda rows: rows["all"]["running"] == 1)
        pod.process.send_signal(how)
        assert await asyncio.wait_for(pod.process.wait(), 5) == 0
        with pytest.raises(httpx.TransportError):
            await call


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--kv-blocks", "4", "--context", "1000"], "more than the KV memory holds"),
        (["--kv-blocks", "4", "--kv-bytes", "1Gi"], "not both"),
        (["--kv-bytes", "1"], "not even one block"),
        (["--ttft", "soon"], "no duration"),
        (["--kv-bytes", "many"], "no size"),
        (["--slots", "0"], "1 or more"),
        (["--fault", "nonsense:1"], "there are refuse"),
    ],
)
async def test_options_that_make_no_sense_are_refused_with_the_reason(options: list[str], says: str) -> None:
    assert says in await misused("backends.pods.simulator", options)
