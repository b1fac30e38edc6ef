"""What is wrong with a scenario: each fault with its place, the reason, and what would be right.

A scenario is refused with every fault at once, so faults are collected as values and raised together at the end. How a
place is written and which known word is nearest to a wrong one is decided here, for all who find faults.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where something stands in a scenario: keys and list positions from the top."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `source` is the file, or empty for the command line, where `place` is the option.

    `line` counts from 1; `remedy` may be empty where the reason says it all.
    """

    source: str
    line: int | None
    place: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        said = f"{self.reason}; {self.remedy}" if self.remedy else self.reason
        return ": ".join(part for part in (where, self.place, said) if part)


class ScenarioError(Exception):
    """The scenario cannot be run: it has these faults, all that could be found, in the order of their lines."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def place_of(path: Path) -> str:
    """A path as people read it: `tenants[0].arrivals.rate`, `trace.split["team a"]`."""
    written = ""
    for step in path:
        if isinstance(step, int):
            written += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            written += f".{step}" if written else step
        else:
            quoted = step.replace("\\", "\\\\").replace('"', '\\"')
            written += f'["{quoted}"]'
    return written


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was most likely meant, or `None` where none comes near."""
    by_letters = {_letters(candidate): candidate for candidate in known}
    # difflib puts `tyni` far from `tiny`, and swapped letters are the most common slip.
    swapped = [letters for letters in by_letters if sorted(letters) == sorted(_letters(word))]
    close = swapped or difflib.get_close_matches(_letters(word), by_letters, n=1, cutoff=0.6)
    return by_letters[close[0]] if close else None


def suggest(word: str, known: Sequence[str]) -> str:
    """A remedy for a word that is not known: the nearest one, else what there is."""
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near is not None else f"known: {listed(known)}"


def listed(words: Sequence[str], most: int = 12) -> str:
    """Words in a row, cut after `most`: `a, b, c and 4 more`."""
    if len(words) <= most:
        return ", ".join(words)
    return f"{', '.join(words[:most])} and {len(words) - most} more"


def _letters(word: str) -> str:
    """A word without what people mix up in keys: case, `_` and `-`."""
    return word.lower().replace("_", "").replace("-", "")
