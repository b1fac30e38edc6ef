"""Bodies of requests: JSON whatever the names, of the asked size by the pods' own count, alike only as far as asked."""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.pods import tokens
from loadtest.prompts import Prompts
from loadtest.scenario import Endpoint, Target, Tenant, Usage

NONCE = "7f-12"
SCALAR = st.characters(codec="utf-8")


def prompts_of(
    endpoint: Endpoint = "chat",
    *,
    tenant: Tenant | None = None,
    seed: int = 1,
    stream: bool = True,
    usage: Usage = "bounded",
    body: dict[str, Any] | None = None,
) -> Prompts:
    target = Target("http://127.0.0.1:1/v1", "tiny", endpoint=endpoint, stream=stream, usage=usage, body=body or {})
    return Prompts(target, tenant or Tenant("a"), seed)


def text_of(body: bytes) -> str:
    """The prompt that a body carries."""
    sent = json.loads(body)
    return str(sent["messages"][0]["content"] if "messages" in sent else sent["prompt"])


def tokens_of(body: bytes) -> int:
    """What the simulator counts as its prompt."""
    pieces = tokens.split(text_of(body))
    return len(tokens.render([("user", pieces)], is_open=False)) if b'"messages"' in body else len(pieces)


def test_a_chat_is_one_message_of_the_users_with_a_limit_and_the_usage_asked_for() -> None:
    assert json.loads(prompts_of().body(NONCE, 11, 64)) == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 64,
        "messages": [{"role": "user", "content": NONCE}],
    }


def test_a_completion_is_a_bare_prompt() -> None:
    sent = json.loads(prompts_of("completions", stream=False).body(NONCE, 3, 1))
    assert sent == {"model": "tiny", "stream": False, "max_tokens": 1, "prompt": NONCE}


def test_usage_is_not_asked_for_where_it_is_off_or_nothing_streams() -> None:
    assert "stream_options" not in json.loads(prompts_of(usage="off").body(NONCE, 1, 1))
    assert "stream_options" not in json.loads(prompts_of(stream=False).body(NONCE, 1, 1))


def test_a_tenants_own_model_goes_before_the_targets() -> None:
    assert json.loads(prompts_of(tenant=Tenant("a", model="big")).body(NONCE, 1, 1))["model"] == "big"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"temperature": 0, "ignore_eos": True}, {"temperature": 0, "ignore_eos": True, "max_tokens": 5}),
        ({"model": "other", "stream_options": None}, {"model": "other", "stream_options": None}),
        ({"max_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ({"messages": [{"role": "system", "content": "x"}]}, {"messages": [{"role": "system", "content": "x"}]}),
        ({"messages": [], "max_tokens": 2}, {"messages": [], "max_tokens": 2}),
    ],
)
def test_the_targets_own_keys_win(body: dict[str, Any], expected: dict[str, Any]) -> None:
    raw = prompts_of(body=body).body(NONCE, 20, 5)
    pairs: list[tuple[str, Any]] = json.loads(raw, object_pairs_hook=lambda pairs: pairs)
    names = [name for name, _ in pairs]
    assert len(names) == len(set(names))
    sent = json.loads(raw)
    assert {name: sent[name] for name in expected} == expected
    assert ("max_tokens" in sent) == ("max_completion_tokens" not in body)
    assert json.loads(prompts_of("completions", body={"prompt": [1, 2]}).body(NONCE, 20, 5))["prompt"] == [1, 2]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("size", [16, 64, 500, 1000, 8192, 8300, 20_000])
@pytest.mark.parametrize("shared_prefix", [0.0, 0.8, 1.0])
def test_a_prompt_comes_near_its_asked_size_by_the_simulators_count(
    endpoint: Endpoint, size: int, shared_prefix: float
) -> None:
    body = prompts_of(endpoint, tenant=Tenant("a", shared_prefix=shared_prefix)).body(NONCE, size, 1)
    assert tokens_of(body) == pytest.approx(size, abs=1)


def test_a_prompt_asked_to_be_shorter_than_its_frame_is_its_nonce() -> None:
    for size in (0, 1, 8, 11):
        assert text_of(prompts_of().body(NONCE, size, 1)) == NONCE
    assert text_of(prompts_of(tenant=Tenant("a", shared_prefix=0.8)).body(NONCE, 4, 1)) == NONCE


def test_each_word_is_one_token_of_the_simulator() -> None:
    text = text_of(prompts_of("completions").body(NONCE, 5000, 1))
    assert all(len(tokens.split(f" {word}")) == 1 for word in text.split()[1:])
    assert len(set(text.split())) > 150


def test_no_two_prompts_begin_alike_and_the_same_call_has_the_same() -> None:
    prompts = prompts_of()
    texts = [text_of(prompts.body(f"{number:x}", 100, 1)) for number in range(256)]
    assert all(text.split(" ", 1)[0] == f"{number:x}" for number, text in enumerate(texts))
    assert len({text.split(" ", 1)[1] for text in texts}) > 240  # what follows differs as well
    assert texts[7] == text_of(prompts_of().body("7", 100, 1))


def test_a_shared_prefix_is_so_much_of_each_prompt_and_the_nonce_follows_it() -> None:
    prompts = prompts_of("completions", tenant=Tenant("a", shared_prefix=0.8))
    one, other, shorter = (text_of(prompts.body(nonce, size, 1)) for nonce, size in (("1", 200), ("2", 200), ("3", 50)))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(one.split(), other.split(), strict=True))
    assert len(list(alike)) == 160
    assert one.split()[160] == "1" and other.split()[160] == "2"
    assert shorter.split()[:40] == one.split()[:40]
    assert one.split()[161:] != other.split()[161:]
    assert not one.startswith(" ")


def test_two_tenants_and_two_seeds_share_no_prefix() -> None:
    beginnings = [
        text_of(prompts_of("completions", tenant=Tenant(name, shared_prefix=1.0), seed=seed).body(NONCE, 50, 1)).split()
        for name, seed in (("a", 1), ("b", 1), ("a", 2))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(left == right for left, right in zip(beginnings[one], beginnings[other], strict=True)) < 10


@given(
    name=st.text(SCALAR),
    nonce=st.text(SCALAR, min_size=1),
    model=st.text(SCALAR, min_size=1),
    body=st.dictionaries(
        st.text(SCALAR),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(SCALAR),
    ),
    endpoint=st.sampled_from(["chat", "completions"]),
    size=st.integers(0, 30_000),
    output=st.integers(1, 2**31),
    shared=st.floats(0, 1),
)
def test_a_body_is_json_whatever_is_in_the_names(
    name: str,
    nonce: str,
    model: str,
    body: dict[str, Any],
    endpoint: Endpoint,
    size: int,
    output: int,
    shared: float,
) -> None:
    tenant = Tenant(name, model=model, shared_prefix=shared)
    raw = prompts_of(endpoint, tenant=tenant, body=body).body(nonce, size, output)
    sent = json.loads(raw)
    assert {key: sent[key] for key in body} == body
    assert sent["model"] == body.get("model", model)
    if not {"messages", "prompt"} & body.keys():
        assert nonce in text_of(raw)
