"""What other tools' files are made from: calls measured as those tools measure them, and the load that was asked for.

`vllm` and `aiperf` write the files. Both tools count latencies from the *sending* of a call to its last token, and of
calls that are done alone. So that a file can be laid beside one of theirs, a key that both sides have means here what
it means there; what a call had waited in this client before stands apart, and the same figures from the scheduled
arrival stand beside them under keys of their own (`…_including_client_queue…`, vLLM's own word for it).

What cannot be told truly is null or left out: quantiles of fewer samples than they take, and what is not kept.
Quantiles and deviations come from histograms, at most 0.8 % off.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from loadtest.histogram import Histogram, middles
from loadtest.messages import Call
from loadtest.report.lines import FileFault, tokens
from loadtest.scenario import Phase, Scenario
from loadtest.summary import Distribution, PhaseResults, Summary

QUANTILES: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99)
MEASURED: Final = ("ttft", "latency", "tpot", "wait", "ttft_due", "latency_due", "inputs", "outputs", "speed")
NAN: Final = float("nan")
INFINITE: Final = float("inf")
SHAPES: Final = {"poisson": 1.0, "constant": INFINITE}  # of gamma arrivals that are the same


@dataclass(slots=True)
class DoneCalls:
    """The done calls of one tenant in one phase, as these formats measure them: histograms, and sums of tokens.

    `ttft` and `latency` run from the sending to the first and the last token, `…_due` from the scheduled arrival;
    `wait` lies between; `speed` is output tokens a second after the first.
    """

    first_sent: float = INFINITE
    last_ended: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in MEASURED})
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def take(self, call: Call, started_epoch: float) -> None:
        """Count a call, whatever became of it."""
        self.first_sent = min(self.first_sent, started_epoch + call.sent)
        self.last_ended = max(self.last_ended, started_epoch + call.ended)
        if call.code:
            return
        count = tokens(call)
        first, last = (NAN, NAN) if call.first is None or call.last is None else (call.first, call.last)
        tpot = (last - first) / (count - 1) if count > 1 and last > first else NAN
        self.rows.append(
            (
                first - call.sent,
                last - call.sent,
                tpot,
                call.sent - call.scheduled,
                first - call.scheduled,
                last - call.scheduled,
                prompt_tokens(call),
                count,
                1 / tpot,
            )
        )
        if len(self.rows) >= 1000:
            self.settle()

    def settle(self) -> None:
        """Move what was noted into the histograms: by the thousand it takes a hundredth of the time."""
        if self.rows:
            for name, column in zip(MEASURED, np.array(self.rows).T, strict=True):
                self.histograms[name].add(column[~np.isnan(column)])
            self.rows.clear()

    def merge(self, other: DoneCalls) -> None:
        """Take another tenant's."""
        other.settle()
        self.first_sent = min(self.first_sent, other.first_sent)
        self.last_ended = max(self.last_ended, other.last_ended)
        for name, histogram in self.histograms.items():
            histogram.merge(other.histograms[name])

    def total(self, name: str) -> int:
        """The sum of token counts."""
        return round(self.histograms[name].total)


class PhaseCalls:
    """What was seen, by phase and tenant."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, DoneCalls]] = {}

    def take(self, phase: str, tenant: str, call: Call, started_epoch: float) -> None:
        """Count a call of a phase that counts."""
        tenants = self._seen.setdefault(phase, {})
        seen = tenants.get(tenant)
        if seen is None:
            seen = tenants[tenant] = DoneCalls()
        seen.take(call, started_epoch)

    def of(self, phase: str, tenant: str) -> DoneCalls:
        """One tenant's, settled."""
        seen = self._seen.get(phase, {}).get(tenant) or DoneCalls()
        seen.settle()
        return seen

    def all(self, phase: str) -> DoneCalls:
        """All tenants' together."""
        united = DoneCalls()
        for seen in self._seen.get(phase, {}).values():
            united.merge(seen)
        return united


@dataclass(frozen=True, slots=True)
class Load:
    """What a phase asked for, as one figure each where there is one: calls a second (infinite: as fast as users call),
    the shape of their gamma arrivals (infinite: constant), users at once; the rates at both ends of a ramp.
    """

    rate: float | None = None
    burstiness: float | None = None
    concurrency: int | None = None
    ends: tuple[float, float] | None = None
    has_objectives: bool = False

    @classmethod
    def of(cls, summary: Summary, name: str) -> Load:
        """Read from the scenario that the summary keeps; unknown where it is not ours or the phase is not there."""
        try:
            scenario = msgspec.convert(summary.scenario, Scenario)
        except msgspec.ValidationError:
            return cls()
        objectives = scenario.objectives
        wanted = (objectives.ttft, objectives.itl, objectives.tpot, objectives.e2e)
        has_objectives = any(each is not None for each in wanted)
        if summary.sweep is not None:
            load = next((step.load for step in summary.sweep.steps if step.phase == name), None)
            if load is None or summary.sweep.of == "rate":
                return cls(rate=load, has_objectives=has_objectives)
            return cls(rate=INFINITE, concurrency=round(load), has_objectives=has_objectives)
        phase = next((phase for phase in scenario.phases if phase.name == name), None)
        if phase is None or scenario.trace is not None:
            return cls(has_objectives=has_objectives)
        return cls(*_mix(scenario, phase), has_objectives=has_objectives)

    def ramp(self) -> dict[str, str | float]:
        """vLLM's keys of a ramp; none where the rate stays."""
        if self.ends is None:
            return {}
        return {"ramp_up_strategy": "linear", "ramp_up_start_rps": self.ends[0], "ramp_up_end_rps": self.ends[1]}


def _mix(scenario: Scenario, phase: Phase) -> tuple[float | None, float | None, int | None, tuple[float, float] | None]:
    """Rate, burstiness, concurrency and ramp of a phase: told where all its tenants are of one loop."""
    arrivals = [scenario.tenant(name).arrivals for name in phase.tenants]
    kinds = {each.kind if each is not None else "" for each in arrivals}
    given = [each for each in arrivals if each is not None]
    low, high = phase.scale
    if kinds == {"closed"}:
        users = sum(each.users for each in given) * max(low, high)
        return INFINITE, None, round(users), None
    if not kinds or kinds & {"closed", ""}:
        return None, None, None, None
    rate = sum(each.rate for each in given)
    shapes = {SHAPES.get(each.kind, each.burstiness) for each in given}
    burstiness = shapes.pop() if len(shapes) == 1 else None
    if low == high:
        return rate * low, burstiness, scenario.bounds.open_streams, None
    return None, burstiness, scenario.bounds.open_streams, (rate * low, rate * high)


def peaks(phase: PhaseResults) -> tuple[float, int]:
    """The most tokens a second, and the most open streams, of the stretches of all tenants' time lines together."""
    tokens_at: dict[float, float] = {}
    open_at: dict[float, int] = {}
    for moments in phase.timeline.values():
        for moment in moments:
            tokens_at[moment.at] = tokens_at.get(moment.at, 0.0) + moment.tokens / moment.seconds
            open_at[moment.at] = open_at.get(moment.at, 0) + moment.open
    return max(tokens_at.values(), default=0.0), max(open_at.values(), default=0)


def pooled(distribution: Distribution) -> Histogram:
    """The histogram that a summary's distribution was made from."""
    count, least, greatest = distribution.count, distribution.least, distribution.greatest
    if not count or least is None or greatest is None:
        return Histogram()
    total = (distribution.mean or 0.0) * count
    return Histogram.of(distribution.buckets, distribution.counts, total, least, greatest)


def quantile(histogram: Histogram, percent: int) -> float | None:
    """`None` where there are too few samples to tell it: under 100 for p1 and p99, 10 for p90."""
    beyond = min(percent, 100 - percent)
    return histogram.quantile(percent / 100) if histogram.count * beyond >= 100 or percent == 50 else None


def deviation(histogram: Histogram) -> float | None:
    """The standard deviation of all values (not an estimate from a sample), as numpy's `std` has it."""
    mean = histogram.mean
    if mean is None:
        return None
    buckets, counts = histogram.sparse()
    values = np.clip(middles(buckets), histogram.least, histogram.greatest)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))


def or_inf(value: float | None) -> float | str | None:
    """JSON has no infinity; both tools' readers take the word."""
    return "inf" if value == INFINITE else value


def prompt_tokens(call: Call) -> int:
    """As reported, else as asked for."""
    return call.prompt_tokens if call.prompt_tokens >= 0 else call.input


def milliseconds(seconds: float | None) -> float | None:
    """The same in milliseconds."""
    return None if seconds is None else seconds * 1e3


def file_name(phase: str) -> str:
    """A phase's name with nothing in it that a path would take amiss."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in phase).strip(".") or "phase"


def write_file(path: str, content: bytes) -> None:
    """Write a whole file, with its folder. Raises `FileFault`."""
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise FileFault(path, error.strerror or str(error)) from error
