"""Sizes, durations, shares and counts as people write them, and the numbers that the code works with.

Sizes follow Kubernetes quantities (`4Gi`, `500M`, `1e3`), so that a figure can be carried from a manifest to
`penstock.yaml` as it stands; durations follow Go's (`1m30s`), with `d` besides. Everything inside is bytes, seconds,
ratios and whole numbers. What is wrong with a text is said in the `ValueError`, with an example of what would be right,
because the person who wrote it reads that line and nothing else. Which sizes make sense where is not decided here.
"""

from __future__ import annotations

import re
from decimal import Decimal
from math import isfinite

LARGEST_QUANTITY = 2**63 - 1
"""The most that a quantity may be: Kubernetes keeps them in a signed 64-bit number, and so does every counter here."""

LONGEST_DURATION = 3650 * 86_400.0

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_SUFFIXES = {"": 1, **_BINARY, **_DECIMAL}
_NUMBER = r"[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40}"
_QUANTITY = re.compile(rf"({_NUMBER})(?:[eE]([+-]?[0-9]{{1,3}})|([A-Za-z]*))", re.ASCII)
_UNIT_SECONDS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(
    "".join(rf"(?:(?P<{unit}>{_NUMBER}){unit}{'(?!s)' if unit == 'm' else ''})?" for unit in _UNIT_SECONDS), re.ASCII
)
_PLAIN = re.compile(_NUMBER, re.ASCII)


def parse_quantity(text: str | int) -> int:
    """Bytes of a Kubernetes quantity: `4Gi`, `1.5Gi`, `500M`, `1e3`, or a number of bytes.

    A part of a byte is rounded up, as Kubernetes does. Never negative, and at most `LARGEST_QUANTITY`.
    """
    return _whole(_decimal(text, what="size", example="4Gi (4 × 2^30 bytes), 500M (500 × 10^6) or a number of bytes"))


def parse_count(text: str | int) -> int:
    """A whole number, which may be written with a suffix: `600`, `100k`, `1.5M`, `128Ki`."""
    example = "600, 100k (100,000) or 128Ki (131,072)"
    written = text[:-1] + "k" if isinstance(text, str) and text[-1:] == "K" else text
    value = _decimal(written, what="whole number", example=example)
    if value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number; write {example}")
    return int(value)


def parse_duration(text: str | float) -> float:
    """Seconds of a duration: `10s`, `5m`, `1h30m`, `250ms`, `2d`, or a number of seconds."""
    example = "10s, 5m, 1h30m or 250ms"
    if isinstance(text, bool):
        raise ValueError(f"{text} is not a duration; write {example}")
    if isinstance(text, str):
        written = text.strip()
        if _PLAIN.fullmatch(written):
            seconds = float(written)
        elif written and (match := _DURATION.fullmatch(written)):
            seconds = sum(float(match[unit]) * size for unit, size in _UNIT_SECONDS.items() if match[unit])
        else:
            raise ValueError(f"{text!r} is not a duration; write {example}")
    else:
        seconds = float(text)
    if not isfinite(seconds) or seconds < 0:
        raise ValueError(f"{text!r} is not a duration; write {example}")
    if seconds > LONGEST_DURATION:
        raise ValueError(f"{text!r} is more than ten years; write {example}")
    return round(seconds, 6)  # parts of a microsecond are dust of the sum: 0.001 × 250 + 1


def parse_ratio(text: str | float) -> float:
    """A share between 0 and 1, written as such or in percent: `0.2`, `20%`."""
    example = "20% or 0.2"
    if isinstance(text, bool):
        raise ValueError(f"{text} is not a share; write {example}")
    if isinstance(text, str):
        written = text.strip()
        number, is_percent = (written[:-1].rstrip(), True) if written.endswith("%") else (written, False)
        if not _PLAIN.fullmatch(number):
            raise ValueError(f"{text!r} is not a share; write {example}")
        ratio = float(Decimal(number) / 100) if is_percent else float(number)
    else:
        ratio = float(text)
    if 1 < ratio <= 100 and "%" not in str(text):
        raise ValueError(f"{text} is more than the whole; write {text}% or {ratio / 100:g}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"{text!r} is not between 0% and 100%; write {example}")
    return ratio


def format_bytes(size: int) -> str:
    """A size for people to read: `1.50 GiB`, `640 B`; two decimals, so not for reading back."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} B" if unit == "B" else f"{value:.2f} {unit}"


def format_quantity(size: int) -> str:
    """The shortest exact quantity of a size, to be written into a file: `4Gi`, `1536Mi`, `1000`."""
    for suffix, unit in reversed(_BINARY.items()):
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def format_duration(seconds: float) -> str:
    """A duration to the millisecond, as it would be written: `1h30m`, `2.5s` as `2s500ms`, `0s`.

    `parse_duration` reads it back exactly.
    """
    left = round(seconds * 1000)
    written = ""
    for unit, size in _UNIT_SECONDS.items():
        count, left = divmod(left, round(size * 1000))
        if count:
            written += f"{count}{unit}"
    return written or "0s"


def _decimal(text: str | int, *, what: str, example: str) -> Decimal:
    """The exact value of a quantity; `what` and `example` are for the message when it is none."""
    if isinstance(text, bool):
        raise ValueError(f"{text} is not a {what}; write {example}")
    if isinstance(text, int):
        value = Decimal(text)
    else:
        match = _QUANTITY.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a {what}; write {example}")
        number, exponent, suffix = match.groups()
        if exponent is not None:
            value = Decimal(number).scaleb(int(exponent))
        elif suffix in _SUFFIXES:
            value = Decimal(number) * _SUFFIXES[suffix]
        else:
            raise ValueError(f"{text!r} is not a {what}: {_unknown_suffix(suffix)}; write {example}")
    if value < 0:
        raise ValueError(f"{text} is below zero; write {example}")
    if value > LARGEST_QUANTITY:
        raise ValueError(f"{text} is more than 2^63 - 1; write {example}")
    return value


def _whole(value: Decimal) -> int:
    whole = int(value)
    return whole if whole == value else whole + 1


def _unknown_suffix(suffix: str) -> str:
    """What was probably meant by a suffix that Kubernetes does not know."""
    if suffix in {"m", "u", "n"}:
        return f"{suffix!r} means a part of one; M is 10^6 and Mi is 2^20"
    for known in (*_BINARY, *_DECIMAL):
        if suffix.lower() in {known.lower(), known.lower() + "b"}:
            return f"{suffix!r} is no suffix of a quantity, {known!r} is"
    return f"{suffix!r} is no suffix of a quantity"
