"""What refusals say to people: whose limit, in sizes that they write, and what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenancy.admission import Capacity
from tenancy.policy import QueueSettings
from tenancy.reasons import Reason
from tenancy.refusal import Code
from tests.instruments.small_world import BYTES_A_BLOCK, World, tenant

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
ACME = "tenant/acme"


@pytest.mark.parametrize(
    ("reason", "seconds", "said"),
    [
        (Reason(Code.MEMORY_BUDGET, ACME, "bytes", 4 << 20, 3_932_160, 1_966_080, 1.2, "ask for fewer max_tokens"), 1.2,
         "tenant/acme holds 3.75 MiB of its 4.00 MiB of GPU memory, and this call needs 1.88 MiB. "
         "Come back in 1.2 s, or ask for fewer max_tokens."),
        (Reason(Code.REQUEST_RATE, ACME, "requests a minute", 60, 60, 1, 11.1), 11.1,
         "tenant/acme has made 60 of its 60 requests a minute. Come back in 12 s."),
        (Reason(Code.TOKEN_RATE, ACME, "tokens a minute", 1000, 950, 120, 3, "ask for less"), 3.01,
         "tenant/acme has used 950 of its 1000 tokens a minute, and this call needs 120. "
         "Come back in 3.1 s, or ask for less."),
        (Reason(Code.CONCURRENCY_BUDGET, "key/acme/ci", "requests", 2, 2, 1, 0), 0.0,
         "key/acme/ci has 2 calls under way, and may have 2 calls at once. Come back in 0.1 s."),
        (Reason(Code.POD_CAPACITY, "pod/chat-0", "requests", 8, 8, 1, 2), 2.0,
         "pod/chat-0 has 8 calls under way, and may have 8 calls at once; no other pod has room. Come back in 2 s."),
        (Reason(Code.POD_CAPACITY, "pod/chat-0", "bytes", 1024, 512, 0, 1), 1.0,
         "pod/chat-0 keeps the room that it has for calls that have been waiting longer. Come back in 1 s."),
        (Reason(Code.NO_POD, "model/tiny", "pods", None, 0, 1, 5), 5.0,
         "No pod is ready for tiny. Come back in 5 s."),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_said_for_people(reason: Reason, seconds: float, said: str) -> None:
    assert reason.refusal(seconds).message == said


def test_the_documented_refusal_is_one_that_is_made() -> None:
    smaller = "ask for fewer max_tokens"
    reason = Reason(Code.MEMORY_BUDGET, ACME, "bytes", 4 << 20, 3_932_160, 1_966_080, 1.2, smaller)
    assert f'"message": "{reason.refusal(1.2).message}"' in DOCS


def test_what_never_fits_says_where_it_comes_from_and_what_would_help() -> None:
    world = World([tenant("acme", memory_bytes=3 * BYTES_A_BLOCK)])
    text = world.refusal("acme", 4).message
    assert text.startswith("This call needs ")
    assert " of GPU memory (prompt about " in text
    assert text.endswith(" in all: lower max_tokens or n, or shorten the prompt.")
    world = World([tenant("acme", tokens_per_minute=63)])
    assert "and tenant/acme may use 63 a minute: lower max_tokens" in world.refusal("acme", 4).message
    world = World([tenant("acme")], capacities={"pod": Capacity(kv_bytes=3 * BYTES_A_BLOCK)})
    assert "and pod/pod has " in world.refusal("acme", 4).message
    world = World([tenant("acme")], capacities={"pod": Capacity(slots=0)})
    assert world.refusal("acme").message == "pod/pod takes no calls at all."


def test_a_full_queue_and_a_deadline_say_what_would_help() -> None:
    world = World([tenant("acme", concurrency=1, queue_depth=1)])
    world.lease("acme")
    late = world.refusal("acme", deadline_at=world.now)
    assert late.code is Code.DEADLINE_EXCEEDED
    assert late.message == (
        "This call found no room within the 0.0 s that it may wait: "
        "give x-penstock-deadline-ms more time, or leave it out."
    )
    world.ticket("acme")
    full = world.refusal("acme")
    assert full.code is Code.QUEUE_FULL
    assert full.message.startswith("The queue of tenant/acme is full: 1 of 1 calls wait. Come back in ")
    assert full.message.count("Come back") == 1
    world = World([tenant("acme", concurrency=1)], queue=QueueSettings(timeout_seconds=0.0))
    world.lease("acme")
    assert "found no room within the 0.0 s that it may wait. Come back in" in world.refusal("acme").message
