"""What a call asks for, and how the estimate of prompts learns."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tenancy.call import Call, Kind, Usage
from tenancy.need import TOKENS_A_MESSAGE, TOKENS_AN_IMAGE, Estimates, Need
from tenancy.policy import Key, Model, Tenant

TENANT = Tenant("acme", default_max_tokens=100)
MODEL = Model("tiny", context_tokens=2048)


def call(**changes: Any) -> Call:
    facts: dict[str, Any] = {"kind": Kind.CHAT, "prompt_bytes": 200, **changes}
    return Call("id", TENANT, Key("hash", "key"), model="tiny", arrived_at=0.0, **facts)


def test_before_any_reading_two_bytes_are_a_token() -> None:
    assert Estimates().prompt_tokens(call(prompt_bytes=201)) == 101 + TOKENS_A_MESSAGE


def test_images_messages_and_token_ids_count_fixed() -> None:
    fixed = 3 * TOKENS_A_MESSAGE + 2 * TOKENS_AN_IMAGE + 7
    assert Estimates().prompt_tokens(call(prompt_bytes=0, messages=3, images=2, prompt_tokens=7)) == fixed


def test_an_unstated_maximum_is_the_tenants_default() -> None:
    need = Estimates().need(call(), MODEL)
    assert (need.output_tokens, need.stated_output_tokens) == (100, 100)


@pytest.mark.parametrize(("prompt_bytes", "left"), [(4000, 40), (4080, 1), (100_000, 1)])
def test_an_unstated_maximum_is_at_most_what_the_context_leaves(prompt_bytes: int, left: int) -> None:
    need = Estimates().need(call(prompt_bytes=prompt_bytes), MODEL)
    assert need.stated_output_tokens == left
    assert need.tokens <= 2048


def test_a_stated_maximum_is_passed_on_and_reserved_up_to_the_context() -> None:
    need = Estimates().need(call(output_tokens=5000), MODEL)
    assert need.stated_output_tokens == 5000
    assert need.tokens == 2048


def test_an_over_estimated_prompt_takes_nothing_from_a_stated_maximum() -> None:
    """The true prompt may be short, and then the output may be as long as stated."""
    need = Estimates().need(call(prompt_bytes=4000, output_tokens=1000), MODEL)
    assert (need.output_tokens, need.tokens) == (1000, 2048)


def test_embeddings_have_no_output() -> None:
    need = Estimates().need(call(kind=Kind.EMBEDDING, messages=3, output_tokens=50), MODEL)
    assert (need.output_tokens, need.tokens) == (0, 100 + 3 * TOKENS_A_MESSAGE)


def test_without_a_context_nothing_is_capped() -> None:
    assert Estimates().need(call(output_tokens=10**6), Model("tiny")).output_tokens == 10**6


@pytest.mark.parametrize(
    ("need", "blocks"),
    [
        (Need(1, 0, 0), 1),
        (Need(16, 0, 0), 1),
        (Need(10, 7, 7), 2),
        (Need(10, 7, 7, sequences=3), 1 + 3 * 1),
        (Need(17, 17, 17, sequences=2), 2 + 2 * 2),
        (Need(17, 0, 0, 1, prompts=3), 2 + 2),
    ],
)
def test_blocks_are_rounded_up_and_sequences_share_the_prompt(need: Need, blocks: int) -> None:
    assert need.blocks(16) == blocks


def taught(ratios: list[float], estimates: Estimates | None = None) -> Estimates:
    estimates = estimates or Estimates()
    for ratio in ratios:
        estimates.teach(call(prompt_bytes=1000), Usage(TOKENS_A_MESSAGE + round(1000 * ratio), 1))
    return estimates


def tokens_a_byte(estimates: Estimates) -> float:
    return (estimates.prompt_tokens(call(prompt_bytes=100_000)) - TOKENS_A_MESSAGE) / 100_000


def test_the_estimate_is_the_099_quantile_rounded_up_by_a_sixteenth_at_most() -> None:
    random = Random(1)
    ratios = [random.uniform(0.2, 0.35) for _ in range(1000)]
    quantile = sorted(ratios)[989]
    assert quantile <= tokens_a_byte(taught(ratios)) <= quantile * 17 / 16 + 0.001


def test_one_low_reading_does_not_let_the_estimate_fall() -> None:
    assert tokens_a_byte(taught([0.01])) == 0.5


def test_one_low_reading_among_many_changes_nothing() -> None:
    estimates = taught([0.3] * 500)
    before = tokens_a_byte(estimates)
    assert tokens_a_byte(taught([0.01], estimates)) == before


def test_readings_above_the_first_guess_raise_it_at_once() -> None:
    assert tokens_a_byte(taught([0.9])) >= 0.9


def test_what_was_long_ago_fades() -> None:
    estimates = taught([0.9] * 500)
    assert tokens_a_byte(taught([0.25] * 60_000, estimates)) < 0.3


@pytest.mark.parametrize("ratio", [-1.0, 0.0, 50.0])
def test_readings_beyond_reason_are_capped(ratio: float) -> None:
    assert 1 / 16 <= tokens_a_byte(taught([ratio] * 300)) <= 2.0


@pytest.mark.parametrize(
    ("lesson", "usage"),
    [
        ({"prompt_bytes": 63}, Usage(60, 1)),
        ({"prompt_bytes": 1000, "images": 1}, Usage(3000, 1)),
        ({"prompt_bytes": 1000}, Usage(900, 1, is_reported=False)),
    ],
)
def test_short_prompts_images_and_guesses_teach_nothing(lesson: dict[str, Any], usage: Usage) -> None:
    estimates = Estimates()
    estimates.teach(call(**lesson), usage)
    assert tokens_a_byte(estimates) == 0.5


def test_each_tenant_and_model_learns_alone_and_is_forgotten_with_them() -> None:
    estimates = taught([0.9])
    other = Call("id", Tenant("other"), Key("h", "k"), Kind.CHAT, "tiny", 0.0, prompt_bytes=1000)
    assert estimates.prompt_tokens(other) == 500 + TOKENS_A_MESSAGE
    estimates.keep_only(frozenset({"other"}), frozenset({"tiny"}))
    assert tokens_a_byte(estimates) == 0.5
