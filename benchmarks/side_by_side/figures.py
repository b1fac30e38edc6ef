"""What the samples say: medians with their spread, ratios, what is void, and whether the targets are met.

Ratios are made within a round, where both gates met the same machine, and their median is told. What is added over
going direct may be next to nothing, so there the ratio is one of medians, of `LEAST_ADDED_MS` at least.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.side_by_side.gates import DIRECT, NGINX, PENSTOCK, SGLANG, VLLM
from benchmarks.side_by_side.loads import Sample

LEAST_ADDED_MS = {"first_p50": 0.1, "first_p99": 1.0}  # what the client can tell apart
VOID_ADDED_MS = 20.0
IDLE_CORE = 0.25

Round = dict[tuple[str, str], Sample]
"""The samples of one round, by load and gate."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure of a load. `is_added`: less what it is going direct, in the same round."""

    load: str
    figure: str
    title: str
    unit: str
    is_added: bool = False


ROWS = (
    Row("streams-100", "cpu", "CPU a chunk, 100 streams", "µs"),
    Row("streams-400", "cpu", "CPU a chunk, 400 streams", "µs"),
    Row("slow-streams", "cpu", "CPU a chunk, 3,000 slow streams", "µs"),
    Row("slow-streams", "resident", "resident memory, 3,000 slow streams", "MB"),
    Row("one-token", "cpu", "CPU a one-token request", "µs"),
    Row("whole", "cpu", "CPU a whole answer of 64 tokens", "µs"),
    Row("long-prompt", "cpu", "CPU a request of 100 KB", "µs"),
    Row("refusals", "cpu", "CPU a refusal", "µs"),
    Row("streams-100", "first_p50", "first token, added p50, 100 streams", "ms", is_added=True),
    Row("streams-100", "first_p99", "first token, added p99, 100 streams", "ms", is_added=True),
    Row("streams-400", "first_p50", "first token, added p50, 400 streams", "ms", is_added=True),
    Row("streams-400", "first_p99", "first token, added p99, 400 streams", "ms", is_added=True),
    Row("at-once", "first_p50", "first token p50, 400 connections at once", "ms"),
    Row("at-once", "first_p99", "first token p99, 400 connections at once", "ms"),
    Row("streams-100", "gap_p99", "gap between tokens p99, 100 streams", "ms"),
    Row("flood", "gap_p99", "the same beside a flood of refusals", "ms"),
    Row("flood", "first_p50", "first token p50 beside the flood", "ms"),
    Row("flood", "first_p99", "first token p99 beside the flood", "ms"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """The most that Penstock's figure may be: a multiple of a peer's, or (`against` is `None`) in the row's unit."""

    load: str
    figure: str
    against: str | None
    at_most: float
    wanted: float | None = None


TARGETS = (
    Target("streams-100", "cpu", VLLM, 1.0, 0.85),
    Target("streams-400", "cpu", VLLM, 1.0, 0.85),
    Target("streams-400", "cpu", NGINX, 1.25, 1.0),
    Target("one-token", "cpu", VLLM, 1.25, 1.0),
    Target("streams-400", "first_p50", VLLM, 2.0, 1.2),
    Target("streams-400", "first_p99", VLLM, 3.0, 1.5),
    Target("at-once", "first_p99", NGINX, 1.5),
    Target("slow-streams", "resident", None, 150.0),
    Target("refusals", "cpu", None, 150.0),
)

EXPLAINED = {
    SGLANG: "it leaves Nagle's algorithm on towards its clients (no TCP_NODELAY on accepted connections), so the first "
    "token waits for the acknowledgement of the head, which Linux delays by 40 ms; there is no option for it",
}
"""Why a gate adds so much to the first token, where that is known."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The median of the rounds, and the least and the most."""

    median: float
    low: float
    high: float
    rounds: int


def cell(values: Sequence[float]) -> Cell | None:
    """Of so many rounds; `None` of none."""
    return Cell(statistics.median(values), min(values), max(values), len(values)) if values else None


class Figures:
    """The figures of all rounds."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self._rounds = rounds

    def cell(self, row: Row, gate: str) -> Cell | None:
        """A gate's figure; `None` where it was not measured."""
        return cell([value for told in self._rounds if (value := _value(told, row, gate)) is not None])

    def ratio(self, row: Row, peer: str) -> Cell | None:
        """Penstock's figure over the peer's; `None` where either is missing or void."""
        if self.is_void(row.load, peer) or self.is_void(row.load, PENSTOCK):
            return None
        if row.is_added:
            ours, theirs = self.cell(row, PENSTOCK), self.cell(row, peer)
            if ours is None or theirs is None:
                return None
            least = LEAST_ADDED_MS[row.figure]
            value = max(ours.median, least) / max(theirs.median, least)
            return Cell(value, value, value, ours.rounds)
        ratios = []
        for told in self._rounds:
            mine, other = _value(told, row, PENSTOCK), _value(told, row, peer)
            if mine is not None and other:
                ratios.append(mine / other)
        return cell(ratios)

    def is_void(self, load: str, gate: str) -> bool:
        """Whether the gate adds more than `VOID_ADDED_MS` to the first token's p50 while it waits for something: then
        its other figures of this load may mean nothing.

        Opening many connections at once is its own figure. Where calls are sent as fast as they are answered, a gate
        that works adds as much as it works: there it is void only if it used less than `IDLE_CORE` of a core.
        """
        if load == "at-once" or gate == DIRECT:
            return False
        added = self.cell(Row(load, "first_p50", "", "ms", is_added=True), gate)
        core = self.cell(Row(load, "core", "", ""), gate)
        return added is not None and added.median > VOID_ADDED_MS and (core is None or core.median < IDLE_CORE)

    def verdict(self, target: Target) -> str:
        """`met`, `wanted met`, `NOT met`, or `void` or `not measured` where that cannot be said."""
        row = next(row for row in ROWS if (row.load, row.figure) == (target.load, target.figure))
        found = self.cell(row, PENSTOCK) if target.against is None else self.ratio(row, target.against)
        gates = (PENSTOCK,) if target.against is None else (PENSTOCK, target.against)
        if any(self.is_void(target.load, gate) for gate in gates):
            return "void"
        if found is None:
            return "not measured"
        if target.wanted is not None and found.median <= target.wanted:
            return "wanted met"
        return "met" if found.median <= target.at_most else "NOT met"


def _value(told: Round, row: Row, gate: str) -> float | None:
    sample = told.get((row.load, gate))
    if sample is None or row.figure not in sample.figures:
        return None
    if not row.is_added:
        return sample.figures[row.figure]
    direct = told.get((row.load, DIRECT))
    if direct is None or row.figure not in direct.figures:
        return None
    return sample.figures[row.figure] - direct.figures[row.figure]
