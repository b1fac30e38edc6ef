"""Faults on demand: what a simulator is told to do wrong, to which calls, and how often.

Faults are armed over HTTP (`POST /sim/faults`) or on the command line (`--fault`), and each is spent by the calls
that it matches, in the order of their arrival. This module decides which faults befall a call; how each is carried
out is the business of `answers` (what is sent) and `simulator` (who is listening).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from backends.pods.options import duration


class FaultKind(Enum):
    """What can go wrong. The comment says what `value` means."""

    REFUSE = "refuse"  # seconds: no new connections, idle ones are reset; without a value, the next `times` connections
    RESET = "reset"  # seconds without an answer, not even a head, then the connection is reset
    STATUS = "status"  # the HTTP status answered instead; `message` and `retry_after` (seconds) may go with it
    RESET_AFTER_TOKENS = "reset_after_tokens"  # tokens sent, then the connection is reset
    RESET_AFTER_BYTES = "reset_after_bytes"  # bytes of body sent, framing included, then the connection is reset
    STALL_AFTER_TOKENS = "stall_after_tokens"  # tokens sent, then nothing; goes on after `seconds`, if given
    END_EARLY_AFTER_TOKENS = "end_early_after_tokens"  # tokens sent, then the body ends in order, without a finish
    ERROR_EVENT_AFTER_TOKENS = (
        "error_event_after_tokens"  # tokens sent, then an error event, and the body ends in order
    )
    IGNORE_DISCONNECT = "ignore_disconnect"  # seconds for which the call runs on after its client has left


@dataclass(slots=True)
class Fault:
    """One thing to do wrong, `times` more times (-1: for ever), to calls whose fields equal those in `match`."""

    kind: FaultKind
    value: float | None = None
    times: int = 1
    match: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    message: str = ""
    retry_after: float | None = None

    @property
    def count(self) -> int:
        """`value` as a number of tokens or bytes, or a status."""
        return int(self.value or 0)

    def befalls(self, call: Mapping[str, str]) -> bool:
        return self.times != 0 and all(call.get(name) == wanted for name, wanted in self.match.items())

    def describe(self) -> dict[str, Any]:
        """The fault as it was armed, for `GET /sim/faults`."""
        return {"kind": self.kind.value, "value": self.value, "times": self.times, "match": dict(self.match)}


MATCHED = ("salt", "tenant", "user", "model", "path")
"""The fields of a call that `match` may name."""


class Misbehaviour:
    """The faults that are armed. `REFUSE` befalls connections and is asked for apart; the others befall calls."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []

    def arm(self, fault: Fault) -> None:
        """Add a fault; earlier ones of its kind go first."""
        self._armed.append(fault)

    def disarm(self) -> None:
        """Forget all faults. What already befell a call stays with it."""
        self._armed.clear()

    @property
    def is_quiet(self) -> bool:
        """Nothing is armed."""
        return not self._armed

    def armed(self) -> list[dict[str, Any]]:
        """What is armed, in order."""
        return [fault.describe() for fault in self._armed]

    def strike(self, call: Mapping[str, str]) -> dict[FaultKind, Fault]:
        """The faults that befall this call: the first of each kind, each spent once."""
        struck: dict[FaultKind, Fault] = {}
        for fault in self._armed:
            if fault.kind is not FaultKind.REFUSE and fault.kind not in struck and fault.befalls(call):
                struck[fault.kind] = fault
        for fault in struck.values():
            self._spend(fault)
        return struck

    def refuses_connection(self) -> bool:
        """Whether the connection that has just come is to be reset at once."""
        for fault in self._armed:
            if fault.kind is FaultKind.REFUSE and fault.value is None:
                self._spend(fault)
                return True
        return False

    def _spend(self, fault: Fault) -> None:
        if fault.times > 0:
            fault.times -= 1
            if fault.times == 0:
                self._armed.remove(fault)


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    value: float | str | None = None
    times: int = 1
    match: dict[str, str] = {}
    seconds: float | None = None
    message: str = ""
    retry_after: float | None = None


def read(text: bytes | str) -> Fault:
    """A fault from its JSON. `ValueError` says what is wrong with it and what would be right."""
    try:
        order = msgspec.json.decode(text, type=_Order)
    except msgspec.MsgspecError as error:
        raise ValueError(f"no fault: {error}") from None
    kinds = {kind.value: kind for kind in FaultKind}
    if order.kind not in kinds:
        raise ValueError(f"no fault is called {order.kind!r}; there are {', '.join(kinds)}")
    for name in order.match:
        if name not in MATCHED:
            raise ValueError(f"faults cannot match {name!r}; they match {', '.join(MATCHED)}")
    kind = kinds[order.kind]
    value = _number(order.value) if isinstance(order.value, str) else order.value
    if value is None and kind is not FaultKind.REFUSE:
        raise ValueError(f"{order.kind} needs a value")
    if kind is FaultKind.STATUS and not 400 <= (value or 0) <= 599:
        raise ValueError("status needs a value from 400 to 599")
    return Fault(kind, value, order.times, order.match, order.seconds, order.message, order.retry_after)


def _number(text: str) -> float:
    try:
        return duration(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def read_option(text: str) -> Fault:
    """A fault from the command line: its JSON, or `kind`, `kind:value`, `kind:value:times`."""
    if text.startswith("{"):
        return read(text)
    kind, _, rest = text.partition(":")
    value, _, times = rest.partition(":")
    order: dict[str, Any] = {"kind": kind, "value": value or None, "times": int(times or 1)}
    return read(msgspec.json.encode(order))
