"""The form of single words on the command line: pairs, ranges, shares. What they mean is judged where they are used.

Each function reads one word for argparse and raises `ArgumentTypeError` with what would be right. A number or a
duration stays text, since it is read under its key like one in a file.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any, TypeVar

from tenancy.units import parse_quantity, parse_ratio

_V = TypeVar("_V")


def ends(text: str) -> str | list[str]:
    """`64-2048` as two ends; a text without a dash inside as it is."""
    return text.split("-") if "-" in text.strip("-") else text


def rising(text: str) -> list[str]:
    """`10-1000` as where it begins and where it ends."""
    both = text.split("-")
    if len(both) != 2 or not all(both):
        raise ArgumentTypeError(f"{text!r} is no range; write where it begins and ends: 10-1000")
    return both


def cancel(text: str) -> dict[str, Any]:
    """`10%@1-32` under the keys of a scenario's `cancel`."""
    part, at, after = text.partition("@")
    if not part or (at and not after):
        raise ArgumentTypeError(f"{text!r} does not say who is left when; write 10%@1-32")
    return {"share": part, "afterTokens": ends(after)} if at else {"share": part}


def split(text: str) -> dict[str, tuple[str, str]]:
    """Tenants, each with its weight and the environment variable that has its key, or nothing."""
    found = {}
    for name, value in _pairs(text, "a=1,b=3, or a=1@A_KEY,b=3@B_KEY").items():
        weight, at, variable = value.partition("@")
        if not weight or (at and not variable):
            raise ArgumentTypeError(f"{value!r} is no weight; write {name}=1, or {name}=1@VARIABLE")
        found[name] = (weight, variable)
    return found


def columns(text: str) -> dict[str, str]:
    """`time=T,input=I,output=O` under the keys of a trace's `columns`."""
    return _pairs(text, "time=TIMESTAMP,input=ContextTokens,output=GeneratedTokens")


def objective(text: str) -> tuple[str, str]:
    """`ttft=500ms` as what is kept, and how well."""
    name, _, limit = (piece.strip() for piece in text.partition("="))
    if not name or not limit or "," in limit:
        raise ArgumentTypeError(f"{text!r} is no objective; write ttft=500ms, and each with its own --objective")
    return name, limit


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as wrong:
        raise ArgumentTypeError(f"is not JSON ({wrong}); write '{{\"temperature\": 0}}'") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError("is no JSON object; write '{\"temperature\": 0}'")
    return value


def share(text: str) -> float:
    """`10%` as 0.1."""
    return _read(parse_ratio, text)


def size(text: str) -> int:
    """`8Mi` as bytes."""
    return _read(parse_quantity, text)


def pid(text: str) -> int:
    """The number of a process."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise ArgumentTypeError(f"{text!r} is no process id; write its number, such as 4711")
    return int(text)


def http_url(text: str) -> str:
    """A URL of HTTP."""
    if not text.startswith(("http://", "https://")) or len(text.split()) != 1:
        raise ArgumentTypeError(f"{text!r} is no URL; write http://127.0.0.1:8081/metrics")
    return text


def _pairs(text: str, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not value:
            raise ArgumentTypeError(f"{part!r} is no pair; write {example}")
        if name in found:
            raise ArgumentTypeError(f"{name!r} stands twice in {text!r}")
        found[name] = value
    return found


def _read(read: Callable[[str], _V], text: str) -> _V:
    try:
        return read(text)
    except ValueError as wrong:
        raise ArgumentTypeError(str(wrong)) from None
