"""Reading drawings back: their coordinates, their marks, and what their columns tell."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

_SVG = re.compile(r"<svg .*?</svg>", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def svgs(page: str) -> list[ElementTree.Element]:
    """All drawings of a page; each must be whole XML."""
    return [ElementTree.fromstring(drawn) for drawn in _SVG.findall(page)]


def svg(drawn: str) -> ElementTree.Element:
    """One drawing."""
    return ElementTree.fromstring(drawn)


def of_class(drawing: ElementTree.Element, *names: str) -> list[ElementTree.Element]:
    """The shapes that have all these classes."""
    return [shape for shape in drawing.iter() if set(names) <= set((shape.get("class") or "").split())]


def numbers(shape: ElementTree.Element) -> list[float]:
    """Every number of a path."""
    return [float(found) for found in _NUMBER.findall(shape.get("d") or "")]


def points(shape: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of a line."""
    found = numbers(shape)
    return list(zip(found[::2], found[1::2], strict=True))


def words(drawing: ElementTree.Element) -> list[str]:
    """All texts of a drawing."""
    return [text.text or "" for text in drawing.iter("text")]


def tips(drawing: ElementTree.Element) -> list[list[list[str]]]:
    """What each column tells: rows of cells."""
    return [[row.split("\t") for row in (title.text or "").split("\n")] for title in drawing.iter("title")]


def told_by(drawing: ElementTree.Element, heading: str) -> dict[str, list[str]]:
    """The rows under the heading that begins so, by their first cell."""
    return {row[0]: row[1:] for tip in tips(drawing) if tip[0][0].startswith(heading) for row in tip[1:]}


def attributes(drawing: ElementTree.Element) -> Iterator[str]:
    """Every value of every attribute."""
    for shape in drawing.iter():
        yield from (value for name, value in shape.items() if name != "aria-label")
