"""The kinds of single values in the file: how each is written, read, and shown to an editor.

A `Written` stands in the annotation of a key of the schema. It reads the value that YAML gave, or says what is wrong
with it and what would be right; its JSON Schema tells editors the same. Sizes and the like may come as numbers or as
text, since whatever comes from the environment is text. Secrets are never repeated in what is said of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from tenancy.config.faults import Path, suggest
from tenancy.units import format_quantity, parse_count, parse_duration, parse_quantity, parse_ratio

WRONG = "penstock"
"""The type of those pydantic errors that were made here; their context has `reason`, `remedy` and `inner`."""

_VARIABLE = r".*\$\{.*"
_QUANTITY_TEXT = r"[0-9]*\.?[0-9]*([eE][+-]?[0-9]+|[KMGTPE]i|[kKMGTPE])?"
_DURATION_TEXT = r"([0-9.]+(d|h|m|s|ms)?)+"
_RATIO_TEXT = r"[0-9.]+ ?%?"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}", re.ASCII)
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Inner:
    """What is wrong with a part of a value that has no schema of its own."""

    path: Path
    reason: str
    remedy: str


class Wrong(Exception):
    """A value that cannot be read, and what would be right."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True)
class Written:
    """How one kind of value is read (`read` may raise `Wrong` or `ValueError`) and described to editors (`json`)."""

    read: Callable[[Any], Any]
    json: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.json)

    def _read(self, value: Any) -> Any:
        try:
            return self.read(value)
        except PydanticCustomError:  # a ValueError, too: what `_each` found
            raise
        except Wrong as wrong:
            raise _error(wrong.reason, wrong.remedy) from None
        except ValueError as wrong:
            reason, _, remedy = str(wrong).partition("; ")
            raise _error(reason, remedy) from None


def size(at_least: int = 1) -> Written:
    """Bytes, as a Kubernetes quantity."""

    def read(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int | str):
            raise Wrong(
                f"{_shown(value)} is not a size", "write 4Gi (4 × 2^30 bytes), 500M (500 × 10^6) or a number of bytes"
            )
        found = parse_quantity(value)
        if found < at_least:
            raise Wrong(
                f"must be at least {format_quantity(at_least)}, not {value}", "write 4Gi, 500M or a number of bytes"
            )
        return found

    return Written(read, _number_or_text("integer", "size", _QUANTITY_TEXT, at_least))


def duration(above_zero: bool = True) -> Written:
    """Seconds, written `10s`, `5m`, `1h30m`, or as a number of seconds."""

    def read(value: Any) -> float:
        if not isinstance(value, int | float | str):
            raise Wrong(f"{_shown(value)} is not a duration", "write 10s, 5m, 1h30m or 250ms")
        found = parse_duration(value)
        if above_zero and found == 0:
            raise Wrong("must be more than nothing", "write 10s, 5m, 1h30m or 250ms")
        return found

    return Written(read, _number_or_text("number", "duration", _DURATION_TEXT, 0))


def ratio() -> Written:
    """A share between 0 and 1, which may be written in percent."""

    def read(value: Any) -> float:
        if not isinstance(value, int | float | str):
            raise Wrong(f"{_shown(value)} is not a share", "write 20% or 0.2")
        return parse_ratio(value)

    return Written(read, _number_or_text("number", "share", _RATIO_TEXT, 0) | {"maximum": 1})


def count(at_least: int, at_most: int | None = None) -> Written:
    """A whole number, which may have a suffix (`100k`)."""
    bounds = f"at least {at_least}" if at_most is None else f"between {at_least} and {at_most}"
    example = f"write a whole number, {bounds}"

    def read(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Wrong(f"{_shown(value)} is not a whole number", example)
        if isinstance(value, int) and (value < at_least or (at_most is not None and value > at_most)):
            raise Wrong(f"must be {bounds}, not {value}")
        found = parse_count(value)
        if found < at_least or (at_most is not None and found > at_most):
            raise Wrong(f"must be {bounds}, not {value}")
        return found

    schema = _number_or_text("integer", "count", _QUANTITY_TEXT, at_least)
    return Written(read, schema if at_most is None else schema | {"maximum": at_most})


def number(at_least: float | None = None, above: float | None = None) -> Written:
    """Any number."""
    bounds = f"at least {at_least:g}" if at_least is not None else f"more than {above:g}"

    def read(value: Any) -> float:
        try:
            found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            found = None
        if found is None or not abs(found) <= 1e9:
            raise Wrong(f"{_shown(value)} is not a number", f"write a number, {bounds}, such as 1.5")
        if (at_least is not None and found < at_least) or (above is not None and found <= above):
            raise Wrong(f"must be {bounds}, not {value}")
        return found

    schema = _number_or_text("number", "number", r"[0-9.]+", at_least)
    return Written(read, schema if above is None else schema | {"exclusiveMinimum": above})


def integer() -> Written:
    """A whole number of either sign."""

    def read(value: Any) -> int:
        try:
            found = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
        except ValueError:
            found = None
        if found is None or abs(found) > 2**31:
            raise Wrong(f"{_shown(value)} is not a whole number", "write a whole number, such as 100 or -1")
        return found

    return Written(read, _number_or_text("integer", "whole number", r"-?[0-9]+", None))


def boolean() -> Written:
    """`true` or `false`."""

    def read(value: Any) -> bool:
        found = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise Wrong(f"{_shown(value)} is neither true nor false", "write true or false")
        return found

    return Written(read, {"type": "boolean"})


def text(*, kind: str = "text", is_secret: bool = False) -> Written:
    """Any text but an empty one; `kind` is what the documentation calls it."""

    def read(value: Any) -> str:
        if is_secret and not isinstance(value, str):
            raise Wrong("must be text", "write it in quotes")
        return _text(value, kind)

    return Written(read, {"type": "string", "format": kind, "minLength": 1})


def name(known_as: str = "name") -> Written:
    """A name that can stand in a metric's label, a header and an account: letters, digits, `.`, `_` and `-`."""
    return _matching(_NAME, known_as, "write letters, digits, '.', '_' and '-', beginning with a letter or digit")


def model_name() -> Written:
    """A name that a client sends as `model`: also `/`, `:`, `@` and `+`, as in `Qwen/Qwen3-4B`."""
    example = "write letters, digits and any of . _ - : / @ +, beginning with a letter or digit"
    return _matching(_MODEL_NAME, "model name", example)


def choice(*words: str) -> Written:
    """One of a few words."""

    def read(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise Wrong(f"{_shown(value)} is none of {', '.join(words)}", suggest(str(value), words))
        return value

    return Written(read, {"type": "string", "enum": list(words)})


def key_hash() -> Written:
    """The SHA-256 of an API key. What was written is never repeated: it may be the key itself."""
    remedy = "`penstock keys new TENANT` makes a key and prints the line that belongs here"

    def read(value: Any) -> str:
        match = _HASH.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise Wrong("is not `sha256:` and 64 hex digits", remedy)
        return match[1].lower()

    return Written(read, {"type": "string", "format": "hash", "pattern": f"^({_HASH.pattern}|{_VARIABLE})$"})


def moment() -> Written:
    """A date or a date with a time, as seconds since the epoch; without a zone it is UTC."""
    example = "write a date, 2027-01-01, or a time, 2027-01-01T12:00:00Z"

    def read(value: Any) -> float:
        found = value
        if isinstance(value, str):
            try:
                found = datetime.fromisoformat(value.strip())
            except ValueError:
                raise Wrong(f"{value!r} is not a date", example) from None
        if isinstance(found, date) and not isinstance(found, datetime):
            found = datetime.combine(found, time())
        if not isinstance(found, datetime):
            raise Wrong(f"{_shown(value)} is not a date", example)
        try:
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (OverflowError, ValueError):
            raise Wrong(f"{value} is out of bounds", example) from None

    return Written(read, {"type": "string", "format": "date or time", "minLength": 10})


def http_url() -> Written:
    """Where a pod listens: scheme, host and port, without `/v1`."""
    example = 'write "http://HOST:PORT"'

    def read(value: Any) -> str:
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
            raise Wrong("has credentials in it", "write them as `apiKey`")
        if parts.query or parts.fragment:
            raise Wrong("has a `?` or a `#` in it", example)
        path = parts.path.rstrip("/")
        if path.endswith("/v1"):
            raise Wrong("ends in /v1, which Penstock adds itself", "leave /v1 out")
        return f"{parts.scheme}://{parts.netloc}{path}"

    return Written(read, {"type": "string", "format": "URL", "pattern": "^(https?://.+|" + _VARIABLE + ")$"})


def one_or_more_names() -> Written:
    """A name, or a list of different ones."""
    one = name("device").read

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            return (one(value),)
        return _each(list(enumerate(value)), one, "device names", "[gpu0, gpu1]")

    names = {"type": "string", "format": "name"}
    return Written(read, {"anyOf": [names, {"type": "array", "items": names, "minItems": 1}]})


def words() -> Written:
    """A command line as a list of words, each of them text."""

    def read(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            raise Wrong("must be a list of words, not one text", 'write ["vllm", "serve", "--port", "8000"]')
        if not isinstance(value, list):
            raise Wrong(f"must be a list of words, not {_shown(value)}", 'write ["--port", "8000"]')
        return _each(list(enumerate(value)), lambda word: _text(word, "text", may_be_empty=True), "words", '["--port"]')

    return Written(read, {"type": "array", "items": {"type": "string"}, "minItems": 1, "format": "words"})


def environment() -> Written:
    """Names and texts of environment variables."""

    def read(value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            raise Wrong(f"must be a mapping of names to texts, not {_shown(value)}", 'write {NAME: "text"}')
        texts = _each(list(value.items()), lambda v: _text(v, "text", may_be_empty=True), "variables", '{NAME: "text"}')
        return dict(zip(value, texts, strict=True))

    return Written(read, {"type": "object", "additionalProperties": {"type": "string"}, "format": "variables"})


def memory() -> Written:
    """A size over all devices (`int`), or one for each device (`dict`)."""
    whole, each = size().read, size(0).read

    def read(value: Any) -> int | dict[str, int]:
        if not isinstance(value, dict):
            return int(whole(value))
        sizes = _each(list(value.items()), each, "devices", "{gpu0: 2Gi}")
        return dict(zip(value, sizes, strict=True))

    one = dict(size().json)
    each_json = dict(size(0).json)
    return Written(read, {"anyOf": [one, {"type": "object", "additionalProperties": each_json, "minProperties": 1}]})


def _each(
    items: Sequence[tuple[str | int, Any]], read: Callable[[Any], Any], what: str, example: str
) -> tuple[Any, ...]:
    """Every part of a value, or all that is wrong with the parts at once."""
    if not items:
        raise Wrong(f"has no {what}", f"write {example}, or leave the key out")
    found, inner = [], []
    for step, value in items:
        try:
            found.append(read(value))
        except Wrong as wrong:
            inner.append(Inner((step,), wrong.reason, wrong.remedy))
        except ValueError as wrong:
            reason, _, remedy = str(wrong).partition("; ")
            inner.append(Inner((step,), reason, remedy))
    if inner:
        raise _error("has wrong parts", "", inner)
    return tuple(found)


def _matching(pattern: re.Pattern[str], known_as: str, example: str) -> Written:
    def read(value: Any) -> str:
        found = _text(value, known_as)
        if not pattern.fullmatch(found):
            raise Wrong(f"{found!r} is not a {known_as}", example)
        return found

    return Written(read, {"type": "string", "format": "name", "pattern": f"^({pattern.pattern}|{_VARIABLE})$"})


def _text(value: Any, kind: str, *, may_be_empty: bool = False) -> str:
    if isinstance(value, str) and (may_be_empty or value.strip()):
        if "\x00" in value:
            raise Wrong("has a NUL in it")
        return value
    if isinstance(value, str):
        raise Wrong("is empty", f"write a {kind}, or leave the key out")
    if isinstance(value, list | dict) or value is None:
        raise Wrong(f"must be a {kind}, not {_shown(value)}")
    written = str(value).lower() if isinstance(value, bool) else str(value)
    raise Wrong(f"must be a {kind}, but YAML reads {written} as {_kind(value)}", f'write it in quotes: "{written}"')


def _number_or_text(kind: str, known_as: str, pattern: str, at_least: float | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": [kind, "string"], "format": known_as, "pattern": f"^({pattern}|{_VARIABLE})$"}
    return schema if at_least is None else schema | {"minimum": at_least}


def _shown(value: Any) -> str:
    """A value in a sentence; collections by their kind alone."""
    return _kind(value) if isinstance(value, list | dict) or value is None else repr(value)


def _kind(value: Any) -> str:
    kinds = {
        list: "a list",
        dict: "a mapping",
        bool: "true or false",
        int: "a number",
        float: "a number",
        date: "a date",
    }
    return kinds.get(type(value), "a time" if isinstance(value, datetime) else "nothing")


def _error(reason: str, remedy: str, inner: Sequence[Inner] = ()) -> PydanticCustomError:
    return PydanticCustomError(WRONG, "{reason}", {"reason": reason, "remedy": remedy, "inner": tuple(inner)})
