"""What is wrong with a file: each fault with its place, its line, the reason, and what would be right.

A file is refused with every fault at once, so faults are collected as values and raised together at the end. How a
place is written and which known word is nearest to a wrong one is decided here, for all who find faults.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where something stands in a file: keys and list positions from the top."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `line` counts from 1 in `source`; `remedy` may be empty where the reason says it all."""

    place: str
    line: int | None
    reason: str
    remedy: str = ""
    source: str = "penstock.yaml"

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        subject = f"{self.place}: " if self.place else ""
        return f"{where}: {subject}{self.reason}{'; ' + self.remedy if self.remedy else ''}"


class ConfigError(Exception):
    """The file cannot be used: it has these faults, all that could be found, in the order of their lines."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def place_of(path: Path) -> str:
    """A path as people read it: `tenants[0].budget.memory`, `data["profiles.yaml"][1]`."""
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
    by_letters: dict[str, str] = {}
    for candidate in known:
        by_letters.setdefault(_letters(candidate), candidate)
    # difflib puts `tyni` far from `tiny`, and swapped letters are the most common slip.
    swapped = [letters for letters in by_letters if sorted(letters) == sorted(_letters(word))]
    close = swapped or difflib.get_close_matches(_letters(word), by_letters, n=1, cutoff=0.6)
    return by_letters[close[0]] if close else None


def suggest(word: str, known: Sequence[str], *, none: str = "") -> str:
    """A remedy for a word that is not known: the nearest one, else all of them if they are few, else `none`."""
    if not known:
        return none
    near = nearest(word, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"known: {listed(known)}"


def listed(words: Sequence[str], most: int = 8) -> str:
    """Words in a row, cut after `most`: `a, b, c and 4 more`."""
    if len(words) <= most:
        return ", ".join(words)
    return f"{', '.join(words[:most])} and {len(words) - most} more"


def _letters(word: str) -> str:
    """A word without what people mix up in keys: case, `_` and `-`."""
    return word.lower().replace("_", "").replace("-", "")
