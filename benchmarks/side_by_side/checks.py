"""Whether what came through a gate is what the pod said: every answer by its counts, samples event by event.

All of it fails the run: a gate that is fast because it loses tokens is not fast.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.side_by_side.gates import DIRECT, LITE, Gate
from loadtest.answer import Answer
from loadtest.client import Flight

OF_ITS_OWN = frozenset({"id", "created"})
"""Top-level keys of an event that differ from one call to the next, though the request is the same."""
SETTLES_WITHIN_SECONDS = 10.0

Event = dict[str, Any] | str


class WrongError(Exception):
    """What a gate sent, counted or wrote down is not what it should be."""


class KeptAnswer(Answer):
    """An answer whose bytes are kept, to be compared with another gate's."""

    __slots__ = ("body",)

    def __init__(self, asked: int, *, is_stream: bool = True) -> None:
        super().__init__(asked, is_stream=is_stream, usage="exact")
        self.body = b""

    def take(self, body: bytes, now: float) -> None:
        """The next bytes."""
        self.body += body
        super().take(body, now)


def expect_done(gate: str, flights: Iterable[Flight], tokens: int) -> None:
    """Each came to its finish and, if a stream, its `[DONE]`, with exactly so many tokens; else `WrongError`."""
    wrong: dict[str, int] = {}
    count = 0
    for flight in flights:
        count += 1
        told = flight.code or ("" if flight.answer.events == tokens else f"{flight.answer.events} tokens")
        if told:
            wrong[told] = wrong.get(told, 0) + 1
    if wrong:
        told = ", ".join(f"{times} × {what}" for what, times in sorted(wrong.items()))
        raise WrongError(f"{gate}: {sum(wrong.values())} of {count} calls for {tokens} tokens were not done: {told}")


def expect_refused(gate: str, flights: Iterable[Flight], admitted: int) -> int:
    """How many were refused with 429: all but `admitted` at most, which the rate had room for; else `WrongError`."""
    codes = [flight.code for flight in flights]
    refused = sum(code.startswith("429") for code in codes)
    other = sorted({code for code in codes if code and not code.startswith("429")})
    if other or len(codes) - refused > admitted:
        raise WrongError(f"{gate}: {refused} of {len(codes)} calls over the rate were refused; others ended as {other}")
    return refused


def decoded(body: bytes) -> list[Event]:
    """What an answer says: its events, or its one object, without what differs from call to call.

    A whole answer is read without its empty values: Penstock asks the pod for a stream and joins that, and streams have
    no such keys.
    """
    if not body.lstrip().startswith((b"data:", b":")):
        whole: Event = _without_empty(_without_own(json.loads(body)))
        return [whole]
    events: list[Event] = []
    for block in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = "\n".join(
            line[5:].decode().removeprefix(" ") for line in block.split(b"\n") if line.startswith(b"data:")
        )
        if data:
            events.append(_without_own(json.loads(data)) if data.startswith("{") else data)
    return events


def _without_own(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in OF_ITS_OWN}


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        told = {key: _without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in told.items() if inner is not None and inner != []}
    return [_without_empty(inner) for inner in value] if isinstance(value, list) else value


def difference(expected: list[Event], found: list[Event]) -> str:
    """The first event that is not alike, in words; empty where all are."""
    for number, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return f"event {number} should be {one!r} and is {other!r}"
    if len(expected) != len(found):
        return f"there should be {len(expected)} events and are {len(found)}"
    return ""


class Comparison:
    """Kept answers of all gates, held against those that came straight from the pod for the same request.

    `compared` counts answers by gate. LiteLLM writes events anew, with keys of its own: only its counts are checked.
    """

    def __init__(self) -> None:
        self.compared: dict[str, int] = {}
        self._references: dict[bytes, list[Event]] = {}
        self._waiting: list[tuple[str, bytes, list[Event]]] = []

    def take(self, gate: str, answers: Mapping[bytes, bytes]) -> None:
        """Answers of a gate, by their requests."""
        for request, body in answers.items():
            events = decoded(body)
            if gate == DIRECT:
                self._references.setdefault(request, events)
            if gate != LITE:
                self._waiting.append((gate, request, events))

    def settle(self) -> None:
        """Compare what has a reference by now; raises `WrongError` at the first difference."""
        unknown = []
        for gate, request, events in self._waiting:
            reference = self._references.get(request)
            if reference is None:
                unknown.append((gate, request, events))
                continue
            if what := difference(reference, events):
                raise WrongError(f"{gate} changed an answer: {what}\nthe request was {request[:200]!r}")
            self.compared[gate] = self.compared.get(gate, 0) + 1
        self._waiting = unknown

    def end(self) -> None:
        """Raises `WrongError` where an answer never got its reference."""
        self.settle()
        if self._waiting:
            gates = ", ".join(sorted({gate for gate, _, _ in self._waiting}))
            raise WrongError(f"{len(self._waiting)} answers had nothing to be compared with: {gates}")


def expect_accounted(gate: Gate, sent: int, refused: int, tokens: int) -> None:
    """Penstock's log and metrics agree with what was sent to it, and metrics are on its admin port alone.

    Raises `WrongError`. Lines and counts follow an answer's end by a moment, which is waited for.
    """
    assert gate.access_log is not None and gate.admin_port is not None
    wanted = {"access-log lines": sent, "requests": sent, "refusals": refused, "completion tokens": tokens, "held": 0}
    log, admin = gate.access_log, gate.admin_port
    counted = _settled(lambda: _counted(log, admin), wanted)
    if counted != wanted:
        raise WrongError(f"penstock counted {counted}, and should have {wanted}")
    public = httpx.get(gate.target.url.removesuffix("/v1") + "/metrics").status_code
    if public != 404:
        raise WrongError(f"penstock answers /metrics on its public port with {public}")


def _settled(count: Callable[[], dict[str, int]], wanted: dict[str, int]) -> dict[str, int]:
    end = time.monotonic() + SETTLES_WITHIN_SECONDS
    while (counted := count()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    return counted


def _counted(log: Path, admin_port: int) -> dict[str, int]:
    with log.open() as lines:
        chats = sum("chat" in json.loads(line).get("endpoint", "") for line in lines)
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{admin_port}/metrics").text):
        for sample in family.samples:
            if sample.labels.get("kind", "completion") == "completion":
                sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return {
        "access-log lines": chats,
        "requests": int(sums.get("penstock_requests_total", 0)),
        "refusals": int(sums.get("penstock_refusals_total", 0)),
        "completion tokens": int(sums.get("penstock_tokens_total", 0)),
        "held": int(sums.get("penstock_tenant_concurrency_held", 0)),
    }
