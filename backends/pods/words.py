"""What the simulator says: a deterministic text in which the next token follows from the text so far alone.

That is what makes a broken stream continuable: any simulator that is given the prompt and the beginning of an answer
(as an open assistant message, or simply at the end of a completion's prompt) goes on exactly as the first one would
have, up to the same end. The text so far is condensed to its CRC-32, which can be carried on token by token; the low
cost is the reason for it, not its strength. A cut inside a word is continued with the rest of that word.

A reply ends where the text says so: certain words (` indeed`, ` today` …) close the last sentence. How often they
come is the mean length. Where the end must be ignored they close an ordinary sentence. Every word is exactly one
token of `backends.pods.tokens`, also when it is read again as part of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol
from zlib import crc32

import msgspec

_COMMON = """
the of and to in is that it was for on are with as his they at be this from have or by one had not but what all were
when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after words called just where most know get through back much before go
good new write our used me man too any day same right look think also around another came come work three word must
does part even place well such here take why help put years away again off went old number great tell men say small
every found still between name should home big give air line set own under read last never us left end along while
might next sound below saw both few those always show large often turn light road gate river stream valley mill wheel
stone bridge letter morning evening window garden machine signal engine queue token model answer reason account
balance measure steady careful quiet narrow gentle heavy certain simple common public second minute
"""
_CLOSING = ("indeed", "today", "tonight", "anyway", "forever")
_SIZE = 1024
_TAIL = re.compile(r" ?[A-Za-z]*$")


class Word:
    """One token: its text, the same as the inside of a JSON string, and the table of what may follow."""

    __slots__ = ("raw", "text", "then")

    def __init__(self, text: str) -> None:
        self.text = text
        self.raw = msgspec.json.encode(text)[1:-1]  # of the grammar's own words these are the plain bytes
        self.then: Table = ()


Table = tuple[Word | None, ...]
"""What may come next, `_SIZE` entries; `None` is the end of the text."""


class Source(Protocol):
    """Where a sequence's tokens come from."""

    def next(self) -> Word | None:
        """The next token, or `None` at the end of the text."""


class Grammar:
    """Which words follow which: the tables that all texts of one simulator are made from.

    `mean_tokens` is the mean length of a reply; with `never_ends` the texts go on for ever.
    """

    def __init__(self, mean_tokens: int, *, never_ends: bool) -> None:
        words = [Word(f" {text}") for text in _COMMON.split()]
        capitals = [Word(f" {text.capitalize()}") for text in _COMMON.split() if len(text) > 2]
        closing = [Word(f" {text}") for text in _CLOSING]
        comma, stop, last_stop = Word(","), Word("."), Word(".")
        long_words = [word for word in words if len(word.text) > 3]

        ends = max(1, round(1.16 * _SIZE / mean_tokens))  # only words are followed by a closing one, not marks
        stops, commas = _SIZE // 10, _SIZE // 24
        after_word = _filled([*[stop] * stops, *[comma] * commas, *_spread(closing, ends)], words)
        after_stop = _filled([], capitals)
        self._after_word = after_word
        self._after_mark = {",": _filled([], long_words), ".": after_stop}
        openings = [Word(text.capitalize()) for text in _COMMON.split() if len(text) > 2]
        self._opening = _filled([], openings)
        self._after_closing = _filled([], [last_stop])
        self._after_last_stop: Table = after_stop if never_ends else (None,) * _SIZE

        for word in (*words, *capitals, *openings):
            word.then = after_word
        for closer in closing:
            closer.then = self._after_closing
        comma.then, stop.then, last_stop.then = self._after_mark[","], after_stop, self._after_last_stop

    def table_after(self, text: str, *, is_reply: bool) -> Table:
        """What may follow `text`, which is whole; an empty reply begins with a capital and no blank."""
        if not text and is_reply:
            return self._opening
        if text.endswith(_CLOSING):
            return self._after_closing
        if text.endswith(_CLOSED):
            return self._after_last_stop
        return self._after_mark.get(text[-1:], self._after_word)


_CLOSED = tuple(f"{word}." for word in _CLOSING)


class Text:
    """One text under way, positioned at the end of what is there already.

    `state` is the CRC-32 of all that came before `beginning`, so that two prompts give two texts; `beginning` is the
    part of the text that exists (the reply so far, or a completion's prompt).
    """

    __slots__ = ("_rest", "_state", "_table")

    def __init__(self, grammar: Grammar, state: int, beginning: str, *, is_reply: bool) -> None:
        match = _TAIL.search(beginning, max(0, len(beginning) - 16))
        cut = match.start() if match else len(beginning)
        head, tail = beginning[:cut], beginning[cut:]
        self._rest: Word | None = None
        self._state = crc32(head.encode("utf-8", "surrogatepass"), state)
        self._table = grammar.table_after(head, is_reply=is_reply)
        if not tail:
            return
        word = self.next()
        if word is not None and word.text != tail and word.text.startswith(tail):
            self._rest = Word(word.text[len(tail) :])
        elif word is None or word.text != tail:
            self._state = crc32(beginning.encode("utf-8", "surrogatepass"), state)
            self._table = grammar.table_after(beginning, is_reply=is_reply)

    def next(self) -> Word | None:
        """The next token, or `None` at the end of the text. About 0.3 µs."""
        if self._rest is not None:
            rest, self._rest = self._rest, None
            return rest
        word = self._table[(self._state * 0x9E3779B1 & 0xFFFFFFFF) >> 22]
        if word is not None:
            self._state = crc32(word.raw, self._state)
            self._table = word.then
        return word


class Echo:
    """The pieces of a prompt said once more, from where `beginning` leaves off."""

    __slots__ = ("_words",)

    def __init__(self, pieces: Sequence[str], beginning: str) -> None:
        text = "".join(pieces)
        skipped = len(beginning) if text.startswith(beginning) else 0
        self._words = iter(list(_remaining(pieces, skipped)))

    def next(self) -> Word | None:
        return next(self._words, None)


def _remaining(pieces: Sequence[str], skipped: int) -> Iterator[Word]:
    """The pieces without their first `skipped` characters."""
    for piece in pieces:
        if skipped < len(piece):
            yield Word(piece[skipped:])
        skipped = max(0, skipped - len(piece))


def _spread(words: Sequence[Word], count: int) -> list[Word]:
    return [words[index % len(words)] for index in range(count)]


def _filled(first: Sequence[Word], words: Sequence[Word]) -> Table:
    """A whole table: `first`, then `words` in turn, the earlier ones more often, as in a language."""
    table = list(first)
    weights = [1 + 12 * len(words) // (len(words) + 8 * rank) for rank in range(len(words))]
    pool = [word for word, weight in zip(words, weights, strict=True) for _ in range(weight)]
    step = 0
    while len(table) < _SIZE:
        table.append(pool[step * 7919 % len(pool)])
        step += 1
    return tuple(table)
