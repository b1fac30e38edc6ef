"""What counted costs mean, held against those that the tree or the parent commit says.

A cost that grew by more than a tenth is a failure. One that shrank by more than a twentieth is good news that should be
written down, or the next growth up to the old number would pass unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.cost_gate.costs import PLANS
from benchmarks.cost_gate.counting import Counts

Costs = Mapping[str, Counts]

GREW = 0.10
SHRANK = 0.05
WRITE = "make costs ARGS=--write"
FILE = "benchmarks/costs.json"

_WORDS = {"instructions": "instructions", "system_calls": "system calls"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say; `is_failure` makes the run fail."""

    text: str
    is_failure: bool = False


def compare(
    now: Costs, before: Costs, against: str, raised: Mapping[tuple[str, str], float] = MappingProxyType({})
) -> list[Finding]:
    """What to say of costs `now`, held against those `before`, which are what `against` names.

    `raised` has factors by which a cost, by its name and what is counted of it, may have grown on purpose.
    """
    findings = []
    for cost, counts in now.items():
        known = before.get(cost)
        if known is None:
            findings.append(Finding(f"{cost}: {against} knows no such cost. Write it down: {WRITE}"))
            continue
        for count, words in _WORDS.items():
            old, new = getattr(known, count), getattr(counts, count)
            factor = raised.get((cost, count), 1.0)
            change = f"{cost}: {words} from {old:,} to {new:,} ({_percent(old, new)}; {PLANS[cost].what})"
            if new > old * factor * (1 + GREW):
                findings.append(Finding(_grew(change, against), is_failure=True))
            elif new < old * (1 - SHRANK):
                findings.append(Finding(f"{change}: less than {against}. Keep it so: {WRITE}, and commit {FILE}"))
    return findings


def _grew(change: str, against: str) -> str:
    return (
        f"{change}: more than a tenth above {against}. If that is meant, write the new number down and say why in the "
        f"commit: {WRITE}, then commit {FILE}. If not: python -m benchmarks.cost_gate profile {change.split(':')[0]}"
    )


def _percent(old: float, new: float) -> str:
    return f"{(new / old - 1) * 100:+.1f} %" if old else "from nothing"


def raised_on_purpose(old: Mapping[str, Costs], new: Mapping[str, Costs]) -> dict[tuple[str, str], float]:
    """By which factor numbers of machines that both files know were raised: the largest, for each cost and count.

    This is how a growth that is meant passes on a machine which has no numbers of its own.
    """
    factors: dict[tuple[str, str], float] = {}
    for machine in old.keys() & new.keys():
        for cost in old[machine].keys() & new[machine].keys():
            for count in _WORDS:
                before, after = getattr(old[machine][cost], count), getattr(new[machine][cost], count)
                if before and after > before:
                    factors[cost, count] = max(factors.get((cost, count), 1.0), after / before)
    return factors
