"""Messages and whole runs that never were, for tests of what is counted, summed up and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtest.histogram import Floats, Histogram
from loadtest.messages import Call, Ended, Lane, Progress, Sparse, Strain
from loadtest.scenario import Arrivals, Objectives, Phase, Scenario, Target, Tenant
from loadtest.summary import Summary
from loadtest.tally import Tally

TOKENS = 8
GAP = 0.01
ARRIVALS = 20_231_107


def a_scenario(*tenants: str, phases: Sequence[Phase] = (), **changes: Any) -> Scenario:
    """Of these tenants (`victim` where none are named), ten calls a second each."""
    names = tenants or ("victim",)
    asked: dict[str, Any] = {
        "target": Target("http://127.0.0.1:8080/v1", "tiny"),
        "tenants": tuple(Tenant(name, key="secret", arrivals=Arrivals("poisson", rate=10.0)) for name in names),
        "phases": tuple(phases) or (Phase("load", 60.0, names),),
        "objectives": Objectives(ttft=0.5),
    }
    return Scenario(**{**asked, **changes})


def a_lane(calls: Sequence[Call] = (), **told: Any) -> Lane:
    """A tenant in a message, all of whose calls that were due have ended unless `told` says otherwise."""
    scheduled = told.pop("scheduled", len(calls))
    counts: dict[str, Any] = {
        "sent": scheduled,
        "open": 0,
        "waiting": 0,
        "events": sum(call.events for call in calls),
        "reads": 0,
        "never_sent": 0,
        "clipped": 0,
        "skipped": 0,
        "gaps": Sparse(),
    }
    return Lane(scheduled=scheduled, calls=list(calls), **{**counts, **told})


def a_progress(at: float, *lanes: Lane, index: int = 0, lost_calls: int = 0) -> Progress:
    """A message of a tool at ease."""
    return Progress(index, at, list(lanes), Strain(0.25, Sparse(), Sparse(), 0.0, 0.0, -1.0, 0, []), lost_calls)


def sparse(values: Sequence[float] | Floats) -> Sparse:
    """These durations."""
    histogram = Histogram()
    histogram.add(values)
    return Sparse.of(histogram)


def calls_at(due: Floats, ttft: Floats, gap: float = GAP, failed: npt.NDArray[np.bool_] | None = None) -> list[Call]:
    """Calls of `TOKENS` tokens each, due at these times and with these latencies; some answered 429."""
    is_failed = np.zeros(due.size, dtype=np.bool_) if failed is None else failed
    return [
        Call(at, at, None, None, at + 0.01, 16, TOKENS, 0, -1, -1, 429, "429 rate", 0.0, 0, True, "")
        if refused
        else Call(
            at, at, at + first, at + first + 7 * gap, at + first + 7 * gap, 16, TOKENS, TOKENS, 16, TOKENS, 200,
            "", gap, TOKENS - 1, True, "",
        )
        for at, first, refused in zip(due.tolist(), ttft.tolist(), is_failed.tolist(), strict=True)
    ]  # fmt: skip


def a_run(
    seed: int,
    *,
    rate: float = 20.0,
    seconds: float = 20.0,
    slower: float = 1.0,
    refused: float = 0.0,
    **changes: Any,
) -> Summary:
    """One tenant with Poisson arrivals, the same in each run; independent lognormal TTFT about 100 ms times `slower`,
    gaps of 10 ms times `slower`, and a share of calls that is refused.
    """
    random = np.random.default_rng(ARRIVALS)
    due = np.sort(random.random(random.poisson(rate * seconds))) * seconds
    random = np.random.default_rng(seed)
    ttft = 0.1 * slower * np.exp(random.normal(0, 0.4, due.size))
    calls = calls_at(due, ttft, GAP * slower, random.random(due.size) < refused)
    calls.sort(key=lambda call: call.ended)
    scenario = a_scenario(phases=[Phase("load", seconds, ("victim",))], **changes)
    tally = Tally(scenario, "2026-11-07T14:03:22+01:00", f"seed {seed}")
    tally.begin(0, scenario.phases[0], 0.0, True)
    told = ended = events = 0
    for at in np.arange(1.0, seconds + 3.0):
        batch = [call for call in calls[ended : ended + int(rate * 5)] if call.ended <= at]
        ended += len(batch)
        told, events = int(np.searchsorted(due, at)), events + sum(call.events for call in batch)
        gaps = Sparse() if not batch else sparse(np.repeat(GAP * slower, sum(call.gap_count for call in batch)))
        tally.take(a_progress(float(at), a_lane(batch, scheduled=told, events=events, gaps=gaps)))
    assert ended == len(calls)
    tally.end(Ended(0, seconds, seconds + 1.0, 0.0))
    return tally.summary("complete")
