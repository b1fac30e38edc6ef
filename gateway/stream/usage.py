"""Usage inside a pod's stream: found in the one event that carries it, and hidden from clients that did not ask.

The gateway asks every pod for usage, since budgets are settled by it. The event comes once a stream (`choices`
empty, at the end), so what happens here happens once a request; the relay only looks whether `"usage"` stands in a
piece at all. In generated text that word is escaped (`\\"usage\\"`), so a hit is always a key.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tenancy.call import Usage

MARK = b'"usage"'
_NULL = re.compile(rb'"usage"\s*:\s*null')


class _Details(msgspec.Struct):
    prompt_tokens: int | float | None = 0
    completion_tokens: int | float | None = 0


class _Carrier(msgspec.Struct):
    usage: _Details | None = None
    choices: list[msgspec.Raw] | None = None


_carrier = msgspec.json.Decoder(_Carrier)
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])


def has_usage(piece: bytes) -> bool:
    """Whether `piece` holds a usage that is not null; some servers write `"usage": null` into every event."""
    return piece.count(MARK) > len(_NULL.findall(piece))


def usage_of(data: bytes) -> tuple[Usage | None, bool]:
    """The usage in one JSON object (an event's data, or a whole answer), and whether it has nothing else to say.

    The second is true where `choices` is there and empty. What cannot be read has no usage.
    """
    try:
        carrier = _carrier.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None, False
    if carrier.usage is None:
        return None, False
    usage = Usage(_count(carrier.usage.prompt_tokens), _count(carrier.usage.completion_tokens))
    return usage, carrier.choices is not None and not carrier.choices


def _count(number: float | None) -> int:
    return max(0, int(number or 0))


def without_usage(data: bytes) -> bytes:
    """The JSON object without its top-level `usage`; the other values as they came."""
    keys: dict[str, Any] = _keys.decode(data)
    keys.pop("usage", None)
    return msgspec.json.encode(keys)
