"""How the pod programs read sizes and durations from their command lines, and how they say that they are ready.

Pods share no code with the policy that limits them, so this is a second, smaller reading of the same notations. It is
fit for `argparse`: a wrong value raises `ArgumentTypeError` with the forms that work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]i?|)B?")
_FACTOR = {
    "": 1,
    **{letter: 1000**n for n, letter in enumerate("KMGT", 1)},
    **{f"{c}i": 1024**n for n, c in enumerate("KMGT", 1)},
}
_WHOLE = re.compile(r"[0-9]{1,18}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def size(text: str) -> int:
    """Bytes from `4Gi`, `500M`, `131072`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write bytes (131072) or a quantity (4Gi, 500M)")
    return int(float(match[1]) * _FACTOR[match[2]])


def duration(text: str) -> float:
    """Seconds from `50ms`, `1.5s`, `2m`, `100us` or a bare number of seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 50ms, 1.5s, 2m, or seconds (0.05)")
    return float(match[1]) * _SECONDS[match[2]]


def count(text: str) -> int:
    """A whole number of 1 or more."""
    return _whole(text, 1)


def whole(text: str) -> int:
    """A whole number of 0 or more."""
    return _whole(text, 0)


def port(text: str) -> int:
    """A TCP port, or 0 for any free one. Sockets take a larger number modulo 65536, without a word."""
    return _whole(text, 0, 65_535)


def _whole(text: str, least: int, most: int | None = None) -> int:
    if not _WHOLE.fullmatch(text) or int(text) < least or (most is not None and int(text) > most):
        bounds = f", {least} or more" if most is None else f" from {least} to {most}"
        raise argparse.ArgumentTypeError(f"must be a whole number{bounds}, not {text!r}")
    return int(text)


API_KEY_VARIABLE = "PENSTOCK_POD_API_KEY"
API_KEY_HELP = f"key that requests must bring (default: what {API_KEY_VARIABLE} says, or none)"


def api_key(parsed: argparse.Namespace) -> str:
    """The key that requests must bring, or an empty string. The environment keeps it out of the list of processes."""
    return str(parsed.api_key or os.environ.get(API_KEY_VARIABLE, ""))


def announce(url: str, **facts: object) -> None:
    """Print the one JSON line by which whoever started the pod learns its address. The line is flushed at once."""
    sys.stdout.write(json.dumps({"ready": url, **facts}) + "\n")
    sys.stdout.flush()
