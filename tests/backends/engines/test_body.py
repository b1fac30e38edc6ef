"""What every engine does to a call: model, maximum, usage, credentials. The engines' own tests have what differs."""

from __future__ import annotations

from typing import Any

import pytest

from backends.engines.engine import Engine
from backends.engines.known import ENGINES
from tenancy.call import Kind

MESSAGES = [{"role": "user", "content": 'Grüße, \u2028 "quoted"'}]


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


def test_the_model_is_named_as_the_pod_names_it(engine: Engine, make_call: Any, make_pod: Any, sent: Any) -> None:
    request = engine.request(make_call({"model": "gpt-demo", "messages": MESSAGES}), make_pod(), 64)
    assert sent(request)["model"] == "org/Tiny-1B"
    assert request.path == "/v1/chat/completions"


def test_a_model_that_the_pod_does_not_name_keeps_its_name(make_call: Any, make_pod: Any, sent: Any) -> None:
    call = make_call({"messages": MESSAGES})
    pod = make_pod().__class__("bare", ("gpu0",), ())
    assert sent(ENGINES["vllm"].request(call, pod, 64))["model"] == "tiny"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, {"max_tokens": 64}),
        ({"max_tokens": None}, {"max_tokens": 64}),
        ({"max_completion_tokens": None}, {"max_tokens": 64}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 5, "max_completion_tokens": 7}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
    ],
)
def test_a_maximum_is_written_only_where_the_client_stated_none(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any, stated: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = sent(engine.request(make_call({"messages": MESSAGES, **stated}), make_pod(), 64))
    assert {key: value for key, value in body.items() if key.startswith("max_")} == expected


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, {"max_tokens": 64}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": None}, {"max_tokens": 64}),
    ],
)
def test_a_completions_maximum_goes_out_under_the_name_that_pods_know(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any, stated: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = sent(engine.request(make_call({"prompt": "Hello", **stated}, kind=Kind.COMPLETION), make_pod(), 64))
    assert {key: value for key, value in body.items() if key.startswith("max_")} == expected


JOINING = [engine for name, engine in sorted(ENGINES.items()) if name in {"vllm", "sglang", "simulator"}]


@pytest.mark.parametrize("engine", JOINING, ids=lambda engine: engine.name)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.CHAT, {}),
        (Kind.CHAT, {"stream": False, "stream_options": {"continuous_usage_stats": True}}),
        (Kind.CHAT, {"n": 2, "logprobs": True, "top_logprobs": 3}),
        (Kind.CHAT, {"tools": [], "echo": False, "prompt_logprobs": None, "return_token_ids": False}),
        (Kind.COMPLETION, {"echo": True}),
    ],
)
def test_a_whole_answer_that_can_be_joined_is_asked_as_a_stream_with_usage(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any, kind: Kind, fields: dict[str, Any]
) -> None:
    request = engine.request(make_call({"messages": MESSAGES, **fields}, kind=kind), make_pod(), 64)
    assert request.as_stream
    assert dict(request.headers)[b"accept"] == b"text/event-stream"
    assert sent(request)["stream"] is True
    assert sent(request)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("engine", JOINING, ids=lambda engine: engine.name)
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.CHAT, {"tools": [{"type": "function"}]}),
        (Kind.CHAT, {"echo": True}),
        (Kind.CHAT, {"use_beam_search": True}),
        (Kind.CHAT, {"prompt_logprobs": 0}),
        (Kind.CHAT, {"return_token_ids": True}),
        (Kind.CHAT, {"return_hidden_states": "last"}),
        (Kind.COMPLETION, {"best_of": 3}),
        (Kind.COMPLETION, {"logprobs": 0}),
        (Kind.COMPLETION, {"echo": True, "logprobs": 1}),
    ],
)
def test_a_whole_answer_that_no_stream_could_give_stays_whole(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any, kind: Kind, fields: dict[str, Any]
) -> None:
    request = engine.request(make_call({"messages": MESSAGES, **fields}, kind=kind), make_pod(), 64)
    assert not request.as_stream
    assert not sent(request).keys() & {"stream", "stream_options"}
    assert dict(request.headers)[b"accept"] == b"application/json"


def test_what_a_stream_could_not_give_is_no_matter_where_the_client_wants_one(
    make_call: Any, make_pod: Any, sent: Any
) -> None:
    call = make_call({"messages": MESSAGES, "stream": True, "return_token_ids": True})
    request = ENGINES["vllm"].request(call, make_pod(), 64)
    assert not request.as_stream
    assert sent(request)["stream"] is True


@pytest.mark.parametrize(
    ("name", "has_id"),
    [("vllm", False), ("sglang", False), ("openai", False), ("llama.cpp", True), ("simulator", True)],
)
def test_an_id_that_a_client_could_choose_goes_only_where_it_is_nobodys_key(
    make_call: Any, make_pod: Any, name: str, has_id: bool
) -> None:
    headers = dict(ENGINES[name].request(make_call({"messages": MESSAGES}), make_pod(), 64).headers)
    assert (b"x-request-id" in headers) is has_id


def test_a_call_without_a_lease_on_output_gets_no_maximum(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any
) -> None:
    assert "max_tokens" not in sent(engine.request(make_call({"messages": MESSAGES}), make_pod(), None))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": "nonsense"}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        (
            {"stream_options": {"continuous_usage_stats": True}},
            {"continuous_usage_stats": True, "include_usage": True},
        ),
    ],
)
def test_streams_are_asked_for_their_usage(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    request = engine.request(make_call({"messages": MESSAGES, "stream": True, **options}), make_pod(), 64)
    assert sent(request)["stream_options"] == expected
    assert sent(request)["stream"] is True
    assert not request.as_stream
    assert dict(request.headers)[b"accept"] == b"text/event-stream"


def test_priority_is_stripped_and_unknown_keys_pass(engine: Engine, make_call: Any, make_pod: Any, sent: Any) -> None:
    call = make_call(
        {"messages": MESSAGES, "priority": -5, "top_k": 7, "logit_bias": {"3": 1.5}, "metadata": {"a": [1]}}
    )
    body = sent(engine.request(call, make_pod(), 64))
    assert "priority" not in body
    assert (body["top_k"], body["logit_bias"], body["metadata"]) == (7, {"3": 1.5}, {"a": [1]})


def test_nested_values_pass_byte_for_byte(engine: Engine, make_call: Any, make_pod: Any) -> None:
    nested = b'[ {"role":"user", "content":"\\u00fc\\/ 1.0e5"},\n {"role" : "user","content":"\xc3\xbc"} ]'
    request = engine.request(make_call(b'{"messages":' + nested + b', "seed": 1.50}'), make_pod(), 64)
    assert nested in request.body
    assert b'"seed":1.50' in request.body


def test_the_last_of_duplicate_keys_is_the_only_one_that_goes_out(
    engine: Engine, make_call: Any, make_pod: Any
) -> None:
    request = engine.request(make_call(b'{"messages":[1],"user":"a","messages":[2],"user":"b"}'), make_pod(), 64)
    assert request.body.count(b'"messages"') == request.body.count(b'"user"') == 1
    assert b'"messages":[2]' in request.body


def test_credentials_are_the_pods_and_no_other_header_of_the_client_goes_out(
    engine: Engine, make_call: Any, make_pod: Any
) -> None:
    call = make_call(
        {"messages": MESSAGES},
        headers={
            b"authorization": b"Bearer the-tenants-key",
            b"x-api-key": b"the-tenants-key",
            b"x-conversation-id": b"of-another-tenant",
            b"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
    )
    headers = dict(engine.request(call, make_pod(api_key="pod-key"), 64).headers)
    assert headers.pop(b"x-request-id", b"req-1") == b"req-1"
    assert set(headers) == {b"content-type", b"accept", b"authorization", b"traceparent"}
    assert headers[b"authorization"] == b"Bearer pod-key"
    assert b"authorization" not in dict(engine.request(call, make_pod(), 64).headers)


def test_embeddings_are_never_streams_and_get_no_maximum(
    engine: Engine, make_call: Any, make_pod: Any, sent: Any
) -> None:
    request = engine.request(make_call({"input": "text"}, kind=Kind.EMBEDDING), make_pod(), 64)
    body = sent(request)
    assert request.path == "/v1/embeddings"
    assert not request.as_stream
    assert body.keys() <= {"input", "model", "cache_salt", "cache_prompt"}
