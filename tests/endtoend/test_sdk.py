"""openai-python against a whole gateway with a real llama.cpp pod: what a user's program sees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam

from tests.instruments.gateway import Running, gateway, hash_of

KEY, NARROW, EMBEDDER = "sk-acme-1", "sk-acme-2", "sk-beta-1"
FILE = f"""
models:
  - {{name: tiny, context: 2048, kvBytesPerToken: 4096, aliases: [gpt-demo]}}
  - {{name: other, context: 2048}}
  - {{name: vectors}}
pods:
  - {{name: chat-0, engine: llama.cpp, model: penstock-tiny, models: [tiny], slots: 4}}
  - {{name: embed-0, engine: llama.cpp, model: penstock-tiny, models: [vectors], slots: 2, options: [--embeddings]}}
tenants:
  - name: acme
    keys: ["{hash_of(KEY)}", {{hash: "{hash_of(NARROW)}", name: narrow, models: [other]}}]
    models: [tiny, other]
    budget: {{memory: 64Mi, concurrency: 4}}
  - name: beta
    keys: ["{hash_of(EMBEDDER)}"]
    models: [vectors]
"""
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is a penstock?"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def penstock(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with gateway(FILE, tmp_path_factory.mktemp("sdk")) as running:
        yield running


pytestmark = pytest.mark.asyncio(loop_scope="module")


Client = Callable[..., openai.AsyncOpenAI]


@pytest_asyncio.fixture(loop_scope="module")
async def client(penstock: Running) -> AsyncIterator[Client]:
    """Makes SDK clients by key, and closes them."""
    async with contextlib.AsyncExitStack() as stack:
        made: list[openai.AsyncOpenAI] = []

        def make(key: str = KEY) -> openai.AsyncOpenAI:
            made.append(openai.AsyncOpenAI(base_url=penstock.url + "/v1", api_key=key, max_retries=0))
            stack.push_async_callback(made[-1].close)
            return made[-1]

        yield make


async def test_a_whole_chat_answer_has_text_and_usage(client: Client) -> None:
    answer = await client().chat.completions.create(model="tiny", messages=ASK, max_tokens=40, temperature=0)
    assert "penstock" in (answer.choices[0].message.content or "").lower()
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 40


async def test_a_streamed_answer_comes_in_pieces_and_is_the_same_text(client: Client) -> None:
    sdk = client()
    whole = await sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=40, temperature=0)
    stream = await sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=40, temperature=0, stream=True)
    chunks = [chunk async for chunk in stream]
    assert len(chunks) > 5
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].choices and chunks[-1].choices[0].finish_reason is not None
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_to_a_client_that_asks_for_it(client: Client) -> None:
    stream = await client().chat.completions.create(
        model="gpt-demo", messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    last = [chunk async for chunk in stream][-1]
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 8
    assert last.choices == []


async def test_the_synchronous_sdk_works_as_well(penstock: Running) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=penstock.url + "/v1", api_key=KEY, max_retries=0) as sdk:
            stream = sdk.chat.completions.create(model="tiny", messages=ASK, max_tokens=16, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert await asyncio.to_thread(ask)


async def test_completions_work_streamed_and_not(client: Client) -> None:
    sdk = client()
    whole = await sdk.completions.create(model="tiny", prompt="The river", max_tokens=12, temperature=0)
    stream = await sdk.completions.create(model="tiny", prompt="The river", max_tokens=12, temperature=0, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == whole.choices[0].text
    assert whole.usage is not None and whole.usage.completion_tokens <= 12


async def test_embeddings_work(client: Client) -> None:
    answer = await client(EMBEDDER).embeddings.create(model="vectors", input=["a river", "a mill"])
    assert len(answer.data) == 2
    assert len(answer.data[0].embedding) > 16
    assert answer.usage.prompt_tokens > 0


async def test_models_are_those_of_the_key(client: Client) -> None:
    assert {model.id async for model in client().models.list()} >= {"tiny"}
    assert "vectors" not in {model.id async for model in client().models.list()}
    assert {model.id async for model in client(NARROW).models.list()} == {"other"}


async def test_an_unknown_key_is_an_authentication_error(client: Client) -> None:
    with pytest.raises(openai.AuthenticationError) as told:
        await client("sk-nobody").chat.completions.create(model="tiny", messages=ASK)
    assert told.value.code == "invalid_api_key"


async def test_a_model_of_somebody_else_is_not_found_and_one_of_another_key_is_not_allowed(client: Client) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client().chat.completions.create(model="vectors", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError) as told:
        await client(NARROW).chat.completions.create(model="tiny", messages=ASK)
    assert told.value.code == "model_not_allowed"


async def test_a_malformed_call_names_its_field(client: Client) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        await client().chat.completions.create(model="tiny", messages=ASK, max_tokens=-1)
    assert (told.value.code, told.value.param) == ("invalid_request", "max_tokens")


async def test_a_model_without_a_pod_is_unavailable(client: Client) -> None:
    with pytest.raises(openai.InternalServerError) as told:
        await client().chat.completions.create(model="other", messages=ASK)
    assert told.value.status_code == 503
    assert told.value.code == "no_pod"
    assert int(told.value.response.headers["retry-after"]) > 0


async def test_what_the_pod_refuses_comes_through_with_its_own_words(client: Client) -> None:
    with pytest.raises(openai.BadRequestError):
        await client().chat.completions.create(
            model="tiny", messages=ASK, extra_body={"response_format": {"type": "no such type"}}
        )


async def test_every_answer_says_where_it_came_from(client: Client) -> None:
    raw = await client().chat.completions.with_raw_response.create(
        model="tiny", messages=ASK, max_tokens=4, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.headers["x-penstock-pod"] == "chat-0"
    assert raw.headers["x-penstock-attempts"] == "1"
    assert float(raw.headers["x-penstock-queue-ms"]) >= 0


async def test_tokens_are_booked_to_the_tenant(penstock: Running, client: Client) -> None:
    before = await penstock.metric("penstock_tokens_total", tenant="acme", kind="completion")
    answer = await client().chat.completions.create(model="tiny", messages=ASK, max_tokens=16)
    assert answer.usage is not None
    after = await penstock.metric("penstock_tokens_total", tenant="acme", kind="completion")
    assert after - before == answer.usage.completion_tokens


async def test_the_log_has_neither_prompt_nor_answer_nor_key(penstock: Running, client: Client) -> None:
    secret = "the heron keeps its counsel"
    answer = await client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": secret}], max_tokens=12
    )
    content = answer.choices[0].message.content or ""
    everything = f"{penstock.log}{penstock.access}{penstock.stray}"
    assert secret not in everything
    assert KEY not in everything
    assert len(content) < 10 or content not in everything
