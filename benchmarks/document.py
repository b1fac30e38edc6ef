"""The generated sections of `docs/benchmarks.md`: what a measurement writes there, between its own two markers.

A section begins with `<!-- begin NAME -->` and ends with `<!-- end NAME -->`, each on a line of its own. Everything
outside of them is written by hand and stays as it is.
"""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
PLOTS = DOCUMENT.parent / "benchmarks"


def write_section(name: str, markdown: str) -> None:
    """Replace the section called `name` in `docs/benchmarks.md`; raises `ValueError` where it has no such section."""
    DOCUMENT.write_text(with_section(DOCUMENT.read_text(), name, markdown))


def with_section(document: str, name: str, markdown: str) -> str:
    """`document` with this in place of what its section called `name` held.

    Raises `ValueError` where the two markers do not stand there once each and in order, or `markdown` has such a line.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    lines = document.split("\n")
    if lines.count(begin) != 1 or lines.count(end) != 1 or lines.index(begin) > lines.index(end):
        raise ValueError(f"the document must have one line {begin!r} and, below it, one line {end!r}")
    if any(line in (begin, end) for line in markdown.split("\n")):
        raise ValueError(f"the new text of section {name!r} has a marker line of its own")
    kept_before, kept_after = lines[: lines.index(begin) + 1], lines[lines.index(end) :]
    return "\n".join([*kept_before, "", markdown.strip("\n"), "", *kept_after])
