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
