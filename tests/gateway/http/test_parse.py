"""Heads and bodies → calls, or faults that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.errors import Fault
from gateway.http.parse import key_of, parse_call, request_id_of
from tenancy.call import Call, Kind
from tenancy.directory import Directory, hash_key
from tenancy.policy import Key, Model, Policy, Tenant

CI = Key(hash_key("sk-ci"), "ci")
NARROW = Key(hash_key("sk-narrow"), "narrow", models=frozenset({"other"}))
ACME = Tenant("acme", (CI, NARROW), models=frozenset({"tiny", "other"}))
POLICY = Policy(
    models={name: Model(name, aliases=(f"{name}-alias",)) for name in ("tiny", "other", "secret")},
    tenants={"acme": ACME},
)
DIRECTORY = Directory(POLICY)
HELLO = [{"role": "user", "content": "Hello"}]


def parse(body: object, kind: Kind = Kind.CHAT, key: Key = CI, **headers: str) -> Call | Fault:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return parse_call(kind, raw, head, ACME, key, DIRECTORY, arrived_at=100.0, request_id="r1")


def call(body: object, kind: Kind = Kind.CHAT, key: Key = CI, **headers: str) -> Call:
    parsed = parse(body, kind, key, **headers)
    assert isinstance(parsed, Call), parsed
    return parsed


def fault(body: object, kind: Kind = Kind.CHAT, key: Key = CI, **headers: str) -> Fault:
    parsed = parse(body, kind, key, **headers)
    assert isinstance(parsed, Fault), parsed
    return parsed


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, **fields}


# ---- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer sk-1")], "sk-1"),
        ([(b"authorization", b"bearer   sk-1 ")], "sk-1"),
        ([(b"x-api-key", b" sk-2 ")], "sk-2"),
        ([(b"x-api-key", b"sk-2"), (b"authorization", b"Bearer sk-1")], "sk-1"),
        ([(b"authorization", b"Basic abc"), (b"x-api-key", b"sk-2")], "sk-2"),
        ([(b"authorization", b"Bearer"), (b"x-api-key", b"sk-2")], "sk-2"),
        ([(b"authorization", b"Bearer \xff\xfe")], "ÿþ"),
        ([(b"host", b"x")], ""),
    ],
)
def test_the_key_is_taken_from_either_header(headers: list[tuple[bytes, bytes]], key: str) -> None:
    assert key_of(headers) == key


@pytest.mark.parametrize(
    ("given_id", "taken"),
    [
        (b"abc-123", "abc-123"),
        (b"x" * 128, "x" * 128),
        (b"x" * 129, None),
        (b"", None),
        (b"two words", None),
        (b"\xc3\xa9", None),
        (b"tab\there", None),
    ],
)
def test_a_request_id_is_echoed_only_if_it_is_sane(given_id: bytes, taken: str | None) -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", given_id)]) == taken


def test_a_deadline_is_counted_from_the_arrival() -> None:
    assert call(chat(), x_penstock_deadline_ms="1500").deadline_at == 101.5
    assert call(chat()).deadline_at is None


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e9", "soon", "", "9" * 11, "²"])
def test_a_deadline_that_is_none_is_refused_with_its_bounds(value: str) -> None:
    found = fault(chat(), x_penstock_deadline_ms=value)
    assert found.param == "x-penstock-deadline-ms"
    assert "a whole number of milliseconds from 1 to 9999999999" in found.message


def test_a_call_may_say_that_it_would_not_wait() -> None:
    assert call(chat()).may_wait
    assert call(chat(), x_penstock_queue="wait").may_wait
    assert not call(chat(), x_penstock_queue="Never").may_wait
    assert fault(chat(), x_penstock_queue="perhaps").param == "x-penstock-queue"


def test_the_trace_goes_on_and_no_other_header_does() -> None:
    headers = {"traceparent": "00-ab-cd-01", "tracestate": "a=b", "authorization": "Bearer sk", "cookie": "a"}
    assert call(chat(), Kind.CHAT, CI, **headers).headers == {b"traceparent": b"00-ab-cd-01", b"tracestate": b"a=b"}


# ---- the whole body --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b'"text"', "JSON object"),
        (b"null", "JSON object"),
        (b'{"model": "tiny"} {}', "not JSON"),
        (b'\xef\xbb\xbf{"model": "tiny"}', "not JSON"),
        (b'{"model": NaN}', "not JSON"),
        (b'{"model": "tiny", "user": "\xff"}', "not UTF-8"),
        (b'{"model": "tiny", "messages": [{"content": "\xed\xa0\x80"}]}', "not UTF-8"),
        (b'{"model": "tiny", "\xff": 1}', "not UTF-8"),
        (b'{"model": "tiny", "messages": [{"content": "\\ud800 alone"}]}', "not JSON"),
        (b'{"model": "tiny", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"model": "tiny", "deep": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deeply"),
        (b'{"model": "tiny", "messages": [{"content": ' + b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_what_is_not_a_json_object_is_refused(body: bytes, says: str) -> None:
    found = fault(body)
    assert (found.status, found.code) == (400, "invalid_request")
    assert says in found.message


@pytest.mark.parametrize("opening", ['{"model": "tiny", "messages": ', '{"model": "tiny", "messages": [{"content": '])
def test_a_body_just_as_deep_as_can_be_read_is_no_accident(opening: str) -> None:
    told = set()
    for depth in range(100, 1100, 5):
        parsed = parse((opening + "[" * depth + "]" * depth + ("}]}" if "content" in opening else "}")).encode())
        assert isinstance(parsed, Fault)
        told.add(parsed.message)
    assert "The body is nested too deeply." in told


def test_a_compressed_body_is_refused_with_what_helps() -> None:
    found = fault(b"\x1f\x8b", content_encoding="gzip")
    assert found.param == "content-encoding"
    assert call(chat(), content_encoding="identity")


def test_a_key_that_stands_there_twice_means_one_thing_and_is_sent_on_once() -> None:
    twice = (
        b'{"model": "secret", "max_tokens": 5, "messages": [{"content": "a"}], "model": "tiny", "max\\u005ftokens": 7}'
    )
    parsed = call(twice)
    assert parsed.model == "tiny"
    assert parsed.output_tokens == 7
    assert list(parsed.body) == ["model", "max_tokens", "messages"]
    assert bytes(parsed.body["max_tokens"]) == b"7"


def test_values_pass_as_they_came() -> None:
    body = (
        b'{"model":"tiny","messages":[{"role":"user","content":"a"}],'
        b'"x":{"b" : 1.0e+2, "b":[ 1 ]},"seed":12345678901234567890123}'
    )
    parsed = call(body)
    assert bytes(parsed.body["x"]) == b'{"b" : 1.0e+2, "b":[ 1 ]}'
    assert bytes(parsed.body["seed"]) == b"12345678901234567890123"
    assert parsed.size_bytes >= len(body)


# ---- the model -------------------------------------------------------------------------------------------------------


def test_an_alias_is_the_model_that_it_stands_for() -> None:
    assert call(chat(model="tiny-alias")).model == "tiny"


def test_a_model_of_others_and_one_that_is_not_there_look_alike() -> None:
    hidden, missing = fault(chat(model="secret")), fault(chat(model="absent"))
    assert (hidden.status, hidden.code, hidden.param) == (404, "model_not_found", "model")
    assert hidden.message.replace("secret", "absent") == missing.message


def test_a_model_that_only_other_keys_of_the_tenant_may_use_is_not_allowed() -> None:
    assert (fault(chat(), key=NARROW).status, fault(chat(), key=NARROW).code) == (403, "model_not_allowed")


@pytest.mark.parametrize("fields", [{}, {"model": None}, {"model": ""}, {"model": 5}, {"model": ["tiny"]}])
def test_a_model_must_be_named(fields: dict[str, Any]) -> None:
    found = fault({"messages": HELLO, **fields})
    assert (found.status, found.param) == (400, "model")


# ---- numbers and flags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "tokens", "sent_on"),
    [
        ({}, None, set()),
        ({"max_tokens": None}, None, {"max_tokens"}),
        ({"max_tokens": 7}, 7, {"max_tokens"}),
        ({"max_completion_tokens": 9}, 9, {"max_completion_tokens"}),
        ({"max_tokens": 7000, "max_completion_tokens": 9}, 9, {"max_completion_tokens"}),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7, {"max_tokens", "max_completion_tokens"}),
    ],
)
def test_the_most_output_has_one_meaning(fields: dict[str, Any], tokens: int | None, sent_on: set[str]) -> None:
    parsed = call(chat(**fields))
    assert parsed.output_tokens == tokens
    assert {name for name in parsed.body if name.startswith("max_")} == sent_on


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, [5]])
def test_a_number_must_be_a_whole_one_above_zero(name: str, value: object) -> None:
    found = fault(chat(**{name: value}))
    assert (found.status, found.param) == (400, name)
    assert name in found.message


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_output_than_31_bits_can_count_is_refused_with_the_bound(name: str, kind: Kind) -> None:
    body = {"model": "tiny", "messages": HELLO, "prompt": "Hello"}
    assert call({**body, name: 2**31 - 1}, kind).output_tokens == 2**31 - 1
    for value in (2**31, 2**32 + 1, 10**30):
        found = fault({**body, name: value}, kind)
        assert (found.status, found.code, found.param) == (400, "invalid_request", name)
        assert f"'{name}'" in found.message and "2147483647" in found.message


def test_outputs_are_bounded_and_counted_for_each_prompt() -> None:
    assert call(chat(n=3)).sequences == 3
    assert call(chat(n=128)).sequences == 128
    assert fault(chat(n=129)).param == "n"
    assert call({"model": "tiny", "prompt": ["a", "b"], "n": 2, "best_of": 5}, Kind.COMPLETION).sequences == 10


@pytest.mark.parametrize(
    ("fields", "streamed", "wants_usage"),
    [
        ({}, False, False),
        ({"stream": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {"other": 1}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
        ({"stream": False, "stream_options": {"include_usage": True}}, False, False),
    ],
)
def test_a_stream_and_its_usage_are_asked_for(fields: dict[str, Any], streamed: bool, wants_usage: bool) -> None:
    parsed = call(chat(**fields))
    assert (parsed.streamed, parsed.wants_usage) == (streamed, wants_usage)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": [1]}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options"),
    ],
)
def test_a_flag_must_be_one(fields: dict[str, Any], param: str) -> None:
    assert fault(chat(**fields)).param == param


# ---- the prompt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "text_bytes", "images"),
    [
        (HELLO, 5, 0),
        ([{"content": ""}], 0, 0),
        ([{"role": "assistant", "content": None}], 0, 0),
        ([{"role": "assistant"}], 0, 0),
        ([{"content": 'héé\n"quoted" \\ 中文 😀'}], len('héé\n"quoted" \\ 中文 😀'.encode()), 0),
        ([{"content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}, "ef"]}], 6, 0),
        ([{"content": [{"text": "ab"}]}], 2, 0),
        (
            [{"content": [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {"url": "x" * 99}}]}],
            2,
            1,
        ),
        ([{"content": [{"type": "input_audio", "input_audio": {}}]}], 0, 1),
        ([{"content": [{"type": "refusal", "refusal": "abc"}]}], 3, 0),
        ([{"content": [{"type": "thinking", "thinking": "abc", "signature": "de", "closed": True}]}], 5, 0),
        ([{"content": [{"type": "text", "text": "ab", "cache_control": None}]}], 2, 0),
        ([{"content": [{"type": "text", "text": ["ab"]}]}], 6, 0),
        ([{"content": [{"image_url": {"url": "x" * 99}}]}], 0, 1),
        ([{"content": [{"text": "ab", "image_url": {"url": "x" * 99}}]}], 2, 1),
        ([{"content": [{"type": "image_url", "text": "ab"}, {}]}], 2, 2),
        ([{"content": "ab", "name": "cd"}], 6, 0),
    ],
)
def test_text_is_counted_in_utf8_bytes_and_images_by_the_piece(
    messages: list[Any], text_bytes: int, images: int
) -> None:
    for ascii_only in (True, False):
        parsed = call(json.dumps(chat(messages=messages), ensure_ascii=ascii_only).encode())
        assert (parsed.prompt_bytes, parsed.images, parsed.messages) == (text_bytes, images, len(messages))


def test_tool_calls_and_the_schemas_of_tools_are_prompt_too() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    plain = call(chat()).prompt_bytes
    assert call(chat(tools=tools)).prompt_bytes == plain + len(json.dumps(tools))
    with_calls = call(chat(messages=[*HELLO, {"role": "assistant", "tool_calls": calls}]))
    assert with_calls.prompt_bytes == plain + len(json.dumps(calls))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hello", "messages"),
        ({"role": "user"}, "messages"),
        (["Hello"], "messages[0]"),
        ([{"content": "a"}, 5], "messages[1]"),
        ([{"content": 5}], "messages[0].content"),
        ([{"content": {"text": "a"}}], "messages[0].content"),
        ([{"content": "a"}, {"content": [{"type": "text", "text": "a"}, 5]}], "messages[1].content[1]"),
        ([{"content": [{"type": 5}]}], "messages[0].content[0]"),
    ],
)
def test_wrong_messages_are_refused_with_their_place(messages: object, param: str) -> None:
    found = fault(chat(messages=messages))
    assert (found.status, found.param) == (400, param)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"model": "SECRET', Kind.CHAT),
        (b'{"model": "tiny", SECRET}', Kind.CHAT),
        (chat(messages="SECRET"), Kind.CHAT),
        (chat(messages=["SECRET"]), Kind.CHAT),
        (chat(messages=[{"content": {"SECRET": "SECRET"}}]), Kind.CHAT),
        (chat(messages=[{"content": [{"type": {"SECRET": 1}}]}]), Kind.CHAT),
        (chat(max_tokens="SECRET"), Kind.CHAT),
        (chat(stream="SECRET"), Kind.CHAT),
        (chat(stream_options="SECRET"), Kind.CHAT),
        (chat(model=["SECRET"]), Kind.CHAT),
        (chat(model="x" * 64 + "SECRET"), Kind.CHAT),
        ({"model": "tiny", "prompt": {"SECRET": 1}}, Kind.COMPLETION),
        ({"model": "tiny", "prompt": [1, "SECRET"]}, Kind.COMPLETION),
        ({"model": "tiny", "input": ["a", ["SECRET"]]}, Kind.EMBEDDING),
    ],
)
def test_a_fault_repeats_nothing_of_the_body_but_the_start_of_the_models_name(body: object, kind: Kind) -> None:
    found = fault(body, kind)
    assert "SECRET" not in found.message and "SECRET" not in (found.param or "")


@pytest.mark.parametrize(
    ("prompt", "text_bytes", "tokens", "prompts"),
    [
        ("Hello", 5, 0, 1),
        ("", 0, 0, 1),
        (["ab", "cde"], 5, 0, 2),
        ([1, 2, 3], 0, 3, 1),
        ([[1, 2], [3]], 0, 3, 2),
    ],
)
@pytest.mark.parametrize(("kind", "name"), [(Kind.COMPLETION, "prompt"), (Kind.EMBEDDING, "input")])
def test_prompts_come_as_text_or_as_token_ids(
    kind: Kind, name: str, prompt: object, text_bytes: int, tokens: int, prompts: int
) -> None:
    parsed = call({"model": "tiny", name: prompt}, kind)
    assert (parsed.prompt_bytes, parsed.prompt_tokens, parsed.messages) == (text_bytes, tokens, prompts)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        (5, "prompt"),
        ({}, "prompt"),
        ([], "prompt"),
        ([1, "a"], "prompt"),
        (["a", 1], "prompt[1]"),
        ([[1], "a"], "prompt[1]"),
        ([[1], [1.5]], "prompt[1]"),
        ([None], "prompt"),
    ],
)
def test_wrong_prompts_are_refused_with_their_place(prompt: object, param: str) -> None:
    found = fault({"model": "tiny", "prompt": prompt}, Kind.COMPLETION)
    assert (found.status, found.param) == (400, param)


def test_an_embedding_has_no_output() -> None:
    parsed = call({"model": "tiny", "input": "Hello", "max_tokens": 5, "stream": True}, Kind.EMBEDDING)
    assert (parsed.output_tokens, parsed.streamed, parsed.sequences) == (0, False, 1)


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\\"\n/u😀é'), max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=4), st.booleans())
def test_text_measured_in_the_json_is_text_measured_in_utf8(texts: list[str], ascii_only: bool) -> None:
    body = json.dumps(chat(messages=[{"content": text} for text in texts]), ensure_ascii=ascii_only).encode()
    assert call(body).prompt_bytes == sum(len(text.encode()) for text in texts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "input", "n", "stream", "stream_options", "max_tokens", "tools"]
)


@given(st.sampled_from(Kind), st.dictionaries(FIELDS, JSON), st.booleans())
def test_no_body_of_json_makes_it_raise(kind: Kind, fields: dict[str, Any], is_chat: bool) -> None:
    parsed = parse(chat(**fields) if is_chat else {"model": "tiny", **fields}, kind)
    assert isinstance(parsed, Call) or parsed.status in (400, 404)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda raw: b'{"model":"tiny","messages":' + raw + b"}"))
def test_no_bytes_make_it_raise(body: bytes) -> None:
    parsed = parse(body)
    assert isinstance(parsed, Call) or parsed.status in (400, 404)
