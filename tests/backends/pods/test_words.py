"""What the simulator says: the same for the same request, and continuable from wherever it was cut."""

from __future__ import annotations

from zlib import crc32

import hypothesis.strategies as st
from hypothesis import given

from backends.pods import tokens
from backends.pods.words import Echo, Grammar, Source, Text

GRAMMAR = Grammar(64, never_ends=False)
ENDLESS = Grammar(64, never_ends=True)
seeds = st.integers(0, 2**32 - 1)


def said(source: Source, most: int = 5000) -> list[str]:
    words: list[str] = []
    while len(words) < most and (word := source.next()) is not None:
        words.append(word.text)
    return words


@given(seeds, st.data())
def test_a_reply_cut_anywhere_goes_on_to_the_very_same_end(seed: int, data: st.DataObject) -> None:
    whole = "".join(said(Text(GRAMMAR, seed, "", is_reply=True)))
    cut = data.draw(st.integers(0, len(whole)))
    rest = "".join(said(Text(GRAMMAR, seed, whole[:cut], is_reply=True)))
    assert whole[:cut] + rest == whole


@given(seeds, st.text(max_size=30), st.data())
def test_a_completion_is_continued_from_its_prompt_and_text(seed: int, prompt: str, data: st.DataObject) -> None:
    whole = said(Text(GRAMMAR, seed, prompt, is_reply=False), 40)
    kept = data.draw(st.integers(0, len(whole)))
    rest = said(Text(GRAMMAR, seed, prompt + "".join(whole[:kept]), is_reply=False), 40 - kept)
    assert whole[:kept] + rest == whole


@given(seeds)
def test_every_word_is_one_token_also_when_it_is_read_again(seed: int) -> None:
    words = said(Text(GRAMMAR, seed, "", is_reply=True))
    assert tokens.split("".join(words)) == words
    assert all(word.raw == word.text.encode() for word in [Text(GRAMMAR, seed, "", is_reply=True).next()] if word)


def test_replies_differ_end_by_themselves_and_have_the_mean_length_asked_for() -> None:
    replies = ["".join(said(Text(GRAMMAR, crc32(b"%d" % number), "", is_reply=True))) for number in range(1000)]
    assert len(set(replies)) == 1000
    assert all(reply[0].isupper() and reply.endswith(".") for reply in replies)
    mean = sum(len(tokens.split(reply)) for reply in replies) / len(replies)
    assert 50 < mean < 80


def test_where_the_end_is_ignored_it_never_ends() -> None:
    assert len(said(Text(ENDLESS, 1, "", is_reply=True), 5000)) == 5000


def test_both_grammars_say_the_same_until_the_end() -> None:
    ending = said(Text(GRAMMAR, 7, "", is_reply=True))
    assert said(Text(ENDLESS, 7, "", is_reply=True), len(ending)) == ending


def test_the_words_are_the_same_in_every_process() -> None:
    assert "".join(said(Text(GRAMMAR, 1, "", is_reply=True), 8)) == PINNED


def test_an_echo_repeats_its_pieces_from_where_it_was_cut() -> None:
    pieces = tokens.split("Say this again, please.")
    assert said(Echo(pieces, "")) == pieces
    assert "".join(said(Echo(pieces, "Say th"))) == "is again, please."
    assert said(Echo(pieces, "something else")) == pieces


PINNED = "Many after went quiet sound we right."
