"""The simulator's tokenizer: loses nothing, is about as fine as real ones, and never finer than its promise."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backends.pods import tokens

PROSE = """The old mill stood by the river, and nobody in the village could remember a time when its wheel had not
turned. In the morning the miller opened the gate, and the water came down the wooden channel with a sound like distant
applause. "You must never go near it," she said; and of course they did. It wasn't far: 3 miles, 20 minutes, $5."""
CODE = """def admit(self, need: Need, now: float) -> Lease | Refusal:
    for account in self._accounts[need.owner]:
        if account.used + need.bytes > account.limit:
            return Refusal("memory_budget", used=account.used, limit=account.limit)
    return {"id": 17, "rows": [x ** 2 for x in range(10) if x % 3 != 0]}
"""
CHINESE = "水从山上流下来，经过磨坊，然后流进村子里的小河。孩子们坐在墙上看着水轮转动，老人们在树下喝茶聊天。"

ordinary = st.lists(
    st.one_of(
        st.sampled_from(PROSE.split(" ")),
        st.sampled_from(CODE.split(" ")),
        st.sampled_from([*CHINESE, "\n", "\n\n", "    ", "()", "{}", "==", "a", "I", ".", ", ", "é", "Привет", "🙂"]),
        st.text(max_size=6),
    ),
    max_size=60,
).map(" ".join)


repeated = st.builds(lambda unit, times: unit * times, st.text("ab.,; (\n中é", max_size=5), st.integers(1, 30))


@given(st.one_of(ordinary, repeated, st.text(max_size=200)))
def test_there_is_never_more_than_one_token_for_two_bytes_and_nothing_is_lost(text: str) -> None:
    pieces = tokens.split(text)
    assert "".join(pieces) == text
    assert len(pieces) <= (len(text.encode("utf-8", "surrogatepass")) + 1) // 2


@pytest.mark.parametrize(
    ("text", "least", "most"), [(PROSE, 4.0, 4.7), (CODE, 3.0, 4.2), (CHINESE, 2.9, 3.1)], ids=["prose", "code", "zh"]
)
def test_it_is_as_fine_as_real_tokenizers(text: str, least: float, most: float) -> None:
    assert least <= len(text.encode()) / len(tokens.split(text)) <= most


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_a_chat_costs_at_most_eight_tokens_a_message_beside_its_text(count: int) -> None:
    parts = [("user", tokens.split("Hello there"))] * count
    bare = sum(len(content) for _, content in parts)
    assert len(tokens.render(parts, is_open=False)) - bare <= 8 * count
    assert len(tokens.render(parts, is_open=True)) - bare <= 8 * count


def test_a_reply_that_was_begun_is_a_prefix_of_the_reply_that_stands_in_the_next_turn() -> None:
    asked = [("user", ["What", "?"])]
    begun = tokens.render([*asked, ("assistant", ["A", " dam"])], is_open=True)
    assert tokens.render(asked, is_open=False) == begun[:-2]
    assert (
        tokens.render([*asked, ("assistant", ["A", " dam"]), ("user", ["Why"])], is_open=False)[: len(begun)] == begun
    )
