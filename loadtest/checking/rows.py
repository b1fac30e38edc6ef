"""What a self-check expects, and whether it was met: a row for each figure that is known beforehand.

Expected figures come from the server's delays, never from another measurement. Counts and codes are exact; times may be
off by 2 ms or 3 %, whichever is more, for timers and schedulers of ordinary machines come no nearer; a p99 behind
a freeze by 10 %, since arrivals are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from loadtest.checking.answers import Delays, Mode
from loadtest.summary import Distribution, PhaseResults, Results, Summary

SLACK_SECONDS = 0.002
SLACK_SHARE = 0.03
MEDIAN_OF_FEW_SLACK_SECONDS = 0.005
FREEZE_SLACK_SHARE = 0.1
THAW_SLACK_SHARE = 0.06
"""Four hundred calls have piled up when the server goes on: the last of them are read tens of milliseconds later."""
STOP_SLACK_SECONDS = 0.25
_BOUND = ("client-bound", "machine-bound")


@dataclass(frozen=True, slots=True)
class Row:
    """One check. `is_timing` says that a busy machine can make it fail; `is_blind`, that what holds is a blindness."""

    check: str
    expected: str
    measured: str
    tolerance: str
    holds: bool
    is_timing: bool = False
    is_blind: bool = False


def exactly(check: str, expected: object, measured: object) -> Row:
    """A figure that is to be met exactly."""
    return Row(check, _text(expected), _text(measured), "exact", expected == measured)


def near(check: str, expected: float, measured: float | None, slack: float | None = None) -> Row:
    """A time in seconds that is to be met nearly."""
    slack = max(SLACK_SECONDS, SLACK_SHARE * expected) if slack is None else slack
    holds = measured is not None and abs(measured - expected) <= slack
    return Row(check, _ms(expected), _ms(measured), f"± {_ms(slack)}", holds, is_timing=True)


def of_times(results: Results, delays: Delays, tokens: int, report: Mapping[str, Any]) -> list[Row]:
    """Rows for a plain load of calls of `tokens` each; `report` is the server's own."""
    counts = report["counts"]["plain"]
    whole = delays.ttft + (tokens - 1) * delays.itl
    return [
        near("TTFT, p50", delays.ttft, results.ttft.p50),
        near("ITL, p50", delays.itl, results.itl.p50),
        near("TPOT, p50", delays.itl, results.tpot.p50),
        near("E2E, p50", whole, results.e2e.p50),
        exactly("calls that the server answered", counts["answered"], results.done),
        exactly("calls scheduled and sent", (results.scheduled, results.scheduled), (results.done, results.sent)),
        exactly("tokens that the server wrote", counts["tokens"], results.events),
        exactly("tokens by its usage", results.done * tokens, results.tokens_received),
    ]


def of_modes(modes: Mapping[str, Mode], phase: PhaseResults, delays: Delays, tokens: int) -> list[Row]:
    """Rows for one tenant a mode, each of which calls the model of its name: what each mode's calls were found to be,
    and that times are right in all of those that are good.
    """
    found = {results.name: results for results in phase.tenants}
    rows = [_of_mode(name, mode, found[name], tokens) for name, mode in modes.items()]
    good = {name: found[name] for name, mode in modes.items() if not mode.code}
    gaps = {name: results.itl for name, results in good.items() if modes[name].burst == 1}
    rows.append(_all_near("TTFT, p50, in each good one", delays.ttft, {name: each.ttft for name, each in good.items()}))
    rows.append(_all_near("ITL, p50, in each good one", delays.itl, gaps))
    for name, mode in modes.items():
        if mode.burst > 1:  # what arrives together is one arrival
            rows.append(near(f"ITL, p50, {name}", delays.itl * mode.burst, found[name].itl.p50))
    return rows


def of_whole(modes: Mapping[str, Mode], phase: PhaseResults, delays: Delays, tokens: int) -> list[Row]:
    """The same for answers that are not streamed: their first token comes with the last."""
    found = {results.name: results for results in phase.tenants}
    rows = [_of_mode(name, mode, found[name], tokens) for name, mode in modes.items()]
    whole = delays.ttft + (tokens - 1) * delays.itl
    good = {name: found[name] for name, mode in modes.items() if not mode.code}
    rows.append(_all_near("TTFT, p50, of whole answers", whole, {name: each.ttft for name, each in good.items()}))
    return rows


def of_freeze(results: Results, delays: Delays, frozen: float, seconds: float, arrivals: Sequence[float]) -> list[Row]:
    """An open loop over a server that stood still for `frozen` seconds from the middle of its `seconds` on.

    Of calls that come evenly, the hundredth that waited longest came in the first 0.01·T of the freeze: the p99 is
    `ttft + F - 0.01·T`. A client that does not send while it waits would never see it (coordinated omission, Gil Tene).
    For the `arrivals` that were drawn it is known more nearly.
    """
    expected = delays.ttft + frozen - 0.01 * seconds
    exact = p99_over_freeze(arrivals, delays.ttft, frozen, seconds / 2)
    return [
        near("open loop: TTFT, p99: TTFT + F - 0.01 T", expected, results.ttft.p99, FREEZE_SLACK_SHARE * expected),
        near("open loop: the same, for the arrivals drawn", exact, results.ttft.p99, THAW_SLACK_SHARE * exact),
        exactly("open loop: calls done", len(arrivals), results.done),
    ]


def p99_over_freeze(arrivals: Sequence[float], ttft: float, frozen: float, after: float) -> float:
    """The p99 (nearest rank) of the first tokens of calls that arrive at these seconds, the earliest first, at a server
    that stands still for `frozen` seconds from `after` seconds after the first of them on.

    Who comes in the freeze waits for its end and then for its token; whose token falls into it waits for its end.
    """
    begins = arrivals[0] + after
    ends = begins + frozen
    waits = [
        ends - at + ttft if begins <= at < ends else max(ttft, ends - at if begins <= at + ttft < ends else 0.0)
        for at in arrivals
    ]
    return sorted(waits)[ceil(0.99 * len(waits)) - 1]


def of_blindness(results: Results, delays: Delays, frozen: float) -> list[Row]:
    """A closed loop over the same: its users wait with the server, so that hardly a call meets the freeze."""
    most = delays.ttft + 0.1 * frozen
    p99, greatest = results.ttft.p99, results.e2e.greatest
    is_blind = p99 is not None and p99 <= most
    return [
        Row("closed loop: TTFT, p99", f"≤ {_ms(most)}", _ms(p99), "blind", is_blind, is_timing=True, is_blind=is_blind),
        _at_least("closed loop: longest E2E", frozen, greatest),
    ]


def of_cap(results: Results, delays: Delays, frozen: float, seconds: float) -> list[Row]:
    """An open loop with few open streams over the same: who may not go out yet waits as well, so the p99 is no less."""
    expected = (delays.ttft + frozen - 0.01 * seconds) * (1 - FREEZE_SLACK_SHARE)
    return [
        _at_least("few streams: TTFT, p99", expected, results.ttft.p99),
        exactly("few streams: calls done", results.scheduled, results.done),
    ]


def of_cancels(results: Results, planned: tuple[int, int], report: Mapping[str, Any]) -> list[Row]:
    """A load of which some calls are left on purpose; `planned` are calls in all, and those to be left."""
    calls, left = planned
    counts = report["counts"]["plain"]
    return [
        exactly("calls left on purpose", left, results.cancelled),
        exactly("the others done", calls - left, results.done),
        exactly("clients that left, by the server", left, counts["left"]),
        exactly("failures", 0, results.failed),
        exactly("TTFTs and E2Es", (calls, calls - left), (results.ttft.count, results.e2e.count)),
    ]


def of_stop(summary: Summary, stopped: float) -> list[Row]:
    """A run whose streams' process stood still: it must say so, and name itself."""
    (phase,) = summary.phases
    longest = max((length for _, length in phase.strain.stalls), default=0.0)
    says = any(mark.kind == "client-bound" and "stood still" in mark.text for mark in summary.marks)
    kinds = ", ".join(sorted({mark.kind for mark in summary.marks})) or "no mark"
    return [
        Row("the run is marked", "client-bound", kinds, "stands still", says),
        near("its longest stop", stopped, longest, STOP_SLACK_SECONDS),
    ]


def bounds_of(summary: Summary, report: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Why a run's times may not be what the server's delays are: its marks, and, where a time was missed, lateness that
    used up the slack by itself: the tool's, or by its own `report` the server's.
    """
    found = [f"{mark.kind}: {mark.text}" for mark in summary.marks if mark.kind in _BOUND]
    if all(row.holds or not row.is_timing for row in rows):
        return found
    for phase in summary.phases:
        for lag, what in ((phase.strain.timer_lag_p99, "timer came"), (phase.strain.send_lag_p99, "calls were sent")):
            if lag is not None and lag > SLACK_SECONDS:
                found.append(f"the tool's own {what} {_ms(lag)} late at the p99")
    late = report["late"]["p50"]
    if late is not None and late > SLACK_SECONDS / 2:
        found.append(f"the server itself wrote its tokens {_ms(late)} late at the p50")
    return found


def _of_mode(name: str, mode: Mode, results: Results, tokens: int) -> Row:
    """Whether a mode's calls were found to be what they are, and, where that is bad, stayed out of the latencies."""
    calls = results.scheduled
    latencies = [results.ttft.count, results.e2e.count]
    measured = [f"{count} {code}" for code, count in results.codes.items()]
    if results.done:
        measured.insert(0, f"{results.done} done, {results.events} tokens")
    if mode.code:
        expected = f"{calls} {mode.code}"
        refused = calls if mode.status in (429, 503) else 0
        holds = (
            results.codes == {mode.code: calls}
            and (results.done, results.failed, results.refused) == (0, calls, refused)
            and not any((*latencies, results.tpot.count, results.itl.count))
        )
        if any(latencies):
            measured.append("in the latencies")
    else:
        expected = f"{calls} done, {calls * tokens} tokens"
        holds = (results.done, results.events) == (calls, calls * tokens) and latencies == [calls, calls]
    return Row(f"{name}: {mode.about}", expected, "; ".join(measured), "exact", holds and calls > 0)


def _all_near(check: str, expected: float, found: Mapping[str, Distribution]) -> Row:
    """The one of several medians that is farthest off."""
    if not found:
        return Row(check, _ms(expected), "none", "", False)
    worst = max(found, key=lambda name: inf if (p50 := found[name].p50) is None else abs(p50 - expected))
    row = near(check, expected, found[worst].p50, max(MEDIAN_OF_FEW_SLACK_SECONDS, SLACK_SHARE * expected))
    return Row(row.check, row.expected, f"{row.measured} ({worst})", row.tolerance, row.holds, is_timing=True)


def _at_least(check: str, expected: float, measured: float | None) -> Row:
    holds = measured is not None and measured >= expected
    return Row(check, f"≥ {_ms(expected)}", _ms(measured), "", holds, is_timing=True)


def _text(value: object) -> str:
    return " and ".join(map(_text, value)) if isinstance(value, Sequence) and not isinstance(value, str) else f"{value}"


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1000:.1f} ms"
