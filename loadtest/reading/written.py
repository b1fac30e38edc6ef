"""The kinds of single values in a scenario: how each is written, and how it is read.

A `Written` stands in the annotation of a key (`keys`). It reads the value that YAML or an option gave, or says what is
wrong with it and what would be right. Numbers may come as text, since what comes from the environment or an option is
text. Secrets and URLs, which may hold some, are never repeated in what is said of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from loadtest.reading.document import DEEPEST
from loadtest.reading.faults import listed, suggest
from loadtest.scenario import Span
from tenancy.units import parse_count, parse_duration, parse_ratio

WRONG = "scenario"
"""The type of those pydantic errors that were made here; their context has `reason`, `remedy` and `known_as`."""

MOST_TOKENS = 10_000_000
MOST_RATE = 1_000_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_ENDPOINT = re.compile(r"/(chat/)?completions/?$")
_DURATION_EXAMPLE = "write 10s, 5m, 1h30m or 250ms"
_NO_VALUE = "give it one, or leave the key out"


class Wrong(Exception):
    """A value that cannot be read, and what would be right."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True)
class Written:
    """A kind of value: what it is called, what would be right, and how it is read.

    `convert` may raise `Wrong`, or the `ValueError` of `tenancy.units` with its remedy behind a semicolon.
    """

    known_as: str
    example: str
    convert: Callable[[Any], Any]
    may_be_null: bool = False

    def read(self, value: Any) -> Any:
        """The value; raises `Wrong`."""
        if value is None:
            if self.may_be_null:
                return None
            raise Wrong("has no value", _NO_VALUE)
        try:
            return self.convert(value)
        except ValueError as wrong:
            reason, _, remedy = str(wrong).partition("; ")
            raise Wrong(reason, remedy or self.example) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, value: Any) -> Any:
        try:
            return self.read(value)
        except Wrong as wrong:
            context = {"reason": wrong.reason, "remedy": wrong.remedy, "known_as": self.known_as}
            raise PydanticCustomError(WRONG, "{reason}", context) from None


def duration(*, above_zero: bool = True) -> Written:
    """Seconds, written `10s`, `5m`, `1h30m`, or as a number of seconds."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Wrong(f"{_shown(value)} is not a duration", _DURATION_EXAMPLE)
        found = parse_duration(value)
        if above_zero and found == 0:
            raise Wrong("must be more than nothing", _DURATION_EXAMPLE)
        return found

    return Written("duration", _DURATION_EXAMPLE, convert)


def share(*, above_zero: bool = False) -> Written:
    """A part of the whole, 0 to 1, which may be written in percent."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Wrong(f"{_shown(value)} is not a share", "write 20% or 0.2")
        found = parse_ratio(value)
        if above_zero and found == 0:
            raise Wrong("must be more than nothing", "write 20% or 0.2")
        return found

    return Written("share", "write 20% or 0.2", convert)


def count(at_least: int, at_most: int) -> Written:
    """A whole number, which may have a suffix (`100k`)."""
    example = f"write a whole number from {at_least:,} to {at_most:,}"

    def convert(value: Any) -> int:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(whole, bool) or not isinstance(whole, int | str):
            raise Wrong(f"{_shown(value)} is not a whole number", example)
        found = whole if isinstance(whole, int) else parse_count(whole)
        if not at_least <= found <= at_most:
            raise Wrong(f"must be from {at_least:,} to {at_most:,}, not {value}")
        return found

    return Written("count", example, convert)


def number(*, at_most: float, above: float = 0.0, or_equal: bool = False) -> Written:
    """Any number above a bound, or at least as great (`or_equal`)."""
    bounds = f"{'at least' if or_equal else 'more than'} {above:g}"
    example = f"write a number, {bounds}, such as {max(1.5, above):g}"

    def convert(value: Any) -> float:
        try:
            found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            found = None
        if found is None or not isfinite(found):
            raise Wrong(f"{_shown(value)} is not a number", example)
        if found < above or (found == above and not or_equal):
            raise Wrong(f"must be {bounds}, not {value}")
        if found > at_most:
            raise Wrong(f"must be at most {at_most:,.10g}, not {value}")
        return found

    return Written("number", example, convert)


def boolean() -> Written:
    """`true` or `false`."""

    def convert(value: Any) -> bool:
        found = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise Wrong(f"{_shown(value)} is neither true nor false", "write true or false")
        return found

    return Written("true or false", "write true or false", convert)


def choice(*words: str) -> Written:
    """One of a few words. `off`, which YAML reads as false, is taken as it was written."""

    def convert(value: Any) -> str:
        taken = "off" if value is False and "off" in words else value
        if not isinstance(taken, str) or taken not in words:
            raise Wrong(f"{_shown(value)} is none of {', '.join(words)}", suggest(str(value), words))
        return taken

    return Written(", ".join(f"`{word}`" for word in words), f"write {' or '.join(words)}", convert)


def text(known_as: str = "text", *, may_be_null: bool = False) -> Written:
    """Any text but an empty one."""
    return Written(known_as, f"write a {known_as}", lambda value: _text(value, known_as), may_be_null)


def name() -> Written:
    """A name that can stand in a table, a file and a label: letters, digits, `.`, `_` and `-`."""
    example = "write letters, digits, '.', '_' and '-', beginning with a letter or digit"

    def convert(value: Any) -> str:
        found = _text(value, "name")
        if not _NAME.fullmatch(found):
            raise Wrong(f"{found!r} is not a name", example)
        return found

    return Written("name", example, convert)


def key() -> Written:
    """An API key as it goes into the `authorization` header. What was written is never repeated."""
    example = 'write "${NAME}" and set the environment variable NAME'

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise Wrong("must be text", "write it in quotes")
        found = value.strip()
        if not found:
            raise Wrong("is empty", "leave it out where no key is needed")
        if not _VISIBLE.fullmatch(found):
            raise Wrong("has blanks or characters in it that no header can carry", example)
        return found

    return Written("key", example, convert)


def base_url() -> Written:
    """A base URL as SDKs take it; one without a path gets `/v1`."""
    example = 'write "http://127.0.0.1:8080/v1"'

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise Wrong(f"{_shown(value)} is not a URL", example)
        try:  # what is wrong is told without repeating the URL, which may hold a password
            parts = urlsplit(value)
            has_port = parts.port != 0
        except ValueError:
            raise Wrong("is not a URL: its host or port cannot be read", example) from None
        if parts.scheme not in {"http", "https"}:
            raise Wrong("does not begin with http:// or https://", example)
        if not parts.hostname or not has_port or any(c.isspace() or not c.isprintable() for c in value):
            raise Wrong("is not a URL: its host or port cannot be read", example)
        if parts.username is not None or parts.password is not None:
            raise Wrong("has credentials in it", "give the key as the tenant's `key`")
        if parts.query or parts.fragment:
            raise Wrong("has a `?` or a `#` in it", example)
        if _ENDPOINT.search(parts.path):
            raise Wrong("ends in an endpoint, which is added to it", "leave /chat/completions out; `endpoint` says it")
        path = parts.path.rstrip("/")
        return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"

    return Written("URL", example, convert)


def base_urls() -> Written:
    """A base URL, or a list of different ones."""
    one = base_url()

    def convert(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            return (one.read(value),)
        if not value:
            raise Wrong("is an empty list", one.example)
        found = tuple(one.read(entry) for entry in value)
        if len(set(found)) < len(found):
            raise Wrong("names the same URL twice", "leave it once; calls go to all of them in turn")
        return found

    return Written("URL, or list (URL)", one.example, convert)


def section() -> BeforeValidator:
    """For a mapping that may be left out: left out, not left empty."""

    def read(value: Any) -> Any:
        if value is None:
            raise PydanticCustomError(
                WRONG, "{reason}", {"reason": "has no value", "remedy": _NO_VALUE, "known_as": ""}
            )
        return value

    return BeforeValidator(read)


def span(of: Written, example: str) -> Written:
    """One value, or a list of two between which each is drawn evenly."""
    remedy = f"write {example}"

    def convert(value: Any) -> Span:
        if not isinstance(value, list):
            found = of.read(value)
            return Span(found, found)
        if len(value) != 2:
            raise Wrong(f"must be one {of.known_as} or two, not {len(value)}", remedy)
        low, high = (of.read(end) for end in value)
        if low > high:
            raise Wrong(f"begins above its end: {_shown(value[0])} is more than {_shown(value[1])}", remedy)
        return Span(low, high)

    return Written(f"{of.known_as}, or two", remedy, convert)


def scale() -> Written:
    """A factor, or two: one at the beginning, one at the end."""
    one = number(at_most=1e6, or_equal=True)
    remedy = "write 2, or [0.5, 2] for a ramp"

    def convert(value: Any) -> tuple[float, float]:
        ends = value if isinstance(value, list) else [value, value]
        if len(ends) != 2:
            raise Wrong(f"must be one number or two, not {len(ends)}", remedy)
        low, high = (one.read(end) for end in ends)
        if low == high == 0:
            raise Wrong("leaves no load at all", remedy)
        return low, high

    return Written("number, or two", remedy, convert)


def names() -> Written:
    """A list of different names."""
    one = name()

    def convert(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise Wrong(f"must be a list of names, not {_shown(value)}", "write [victim, crowd]")
        if not value:
            raise Wrong("is an empty list", "give it a name, or leave the key out")
        found = tuple(one.read(entry) for entry in value)
        twice = [entry for place, entry in enumerate(found) if entry in found[:place]]
        if twice:
            raise Wrong(f"has {listed(twice)} twice", "leave it once")
        return found

    return Written("list (name)", "write [victim, crowd]", convert)


def weights() -> Written:
    """A mapping of names to numbers."""
    one = number(at_most=1e9, or_equal=True)
    example = "write {victim: 1, crowd: 3}"

    def convert(value: Any) -> dict[str, float]:
        if not isinstance(value, dict):
            raise Wrong(f"must be a mapping of tenants to weights, not {_shown(value)}", example)
        if not value:
            raise Wrong("is empty", f"{example}, or leave the key out")
        found = {}
        for tenant, weight in value.items():
            try:
                found[tenant] = float(one.read(weight))
            except Wrong as wrong:
                raise Wrong(f"the weight of {tenant!r}: {wrong.reason}", wrong.remedy) from None
        return found

    return Written("mapping (number)", example, convert)


def body() -> Written:
    """A mapping of JSON values."""
    example = "write {temperature: 0}"

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Wrong(f"must be a mapping, not {_shown(value)}", example)
        for wrong, place in _not_json(value, ""):
            raise Wrong(f"{place.removeprefix('.')!r} is {_kind(wrong)}, which JSON has not", "write it in quotes")
        return value

    return Written("mapping (any)", example, convert)


def _not_json(value: Any, place: str, depth: int = 0) -> list[tuple[Any, str]]:
    """What JSON has no form for, and where."""
    if depth > DEEPEST:
        raise Wrong(f"is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _not_json(inner, f"{place}.{key}", depth + 1)]
    if isinstance(value, list):
        return [found for at, inner in enumerate(value) for found in _not_json(inner, f"{place}[{at}]", depth + 1)]
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))
    return [] if is_json else [(value, place)]


def _text(value: Any, known_as: str) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise Wrong("is empty", f"write a {known_as}, or leave the key out")
        if not value.isprintable():
            raise Wrong("has line ends or control characters in it")
        return value
    if isinstance(value, list | dict):
        raise Wrong(f"must be a {known_as}, not {_shown(value)}")
    written = str(value).lower() if isinstance(value, bool) else str(value)
    raise Wrong(f"must be a {known_as}, but YAML reads {written} as {_kind(value)}", f'write it in quotes: "{written}"')


def _shown(value: Any) -> str:
    """A value in a sentence; collections by their kind alone."""
    if isinstance(value, bool):
        return str(value).lower()
    return _kind(value) if isinstance(value, list | dict) or value is None else repr(value)


def _kind(value: Any) -> str:
    kinds = {
        list: "a list",
        dict: "a mapping",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        type(None): "nothing",
    }
    return kinds.get(type(value), "a date")
