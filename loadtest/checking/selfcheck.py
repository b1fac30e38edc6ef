"""Whether this tool, on this machine, measures what is there: it is run against a server of which everything is known.

The server (`server`) is a process of its own on loopback, the client is the whole client, its processes and
sockets and all. Checked are times, counts, what each kind of broken answer is taken for, a freeze of the server seen by
an open loop and missed by a closed one, calls left on purpose, and that a client which was itself stopped says so.

A check that fails while the run was marked as bound by the client or the machine proves nothing: it is to be repeated
when the machine is quiet, and until then the answer is no.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from loadtest import guard
from loadtest.checking import rows as check_rows
from loadtest.checking.answers import MODES, Delays
from loadtest.checking.rows import Row
from loadtest.messages import Call, Progress
from loadtest.run import run_scenario
from loadtest.scenario import Arrivals, Bounds, Cancel, Endpoint, Phase, Scenario, Span, Target, Tenant
from loadtest.schedule import Planned, Schedule
from loadtest.summary import PhaseResults, Results, Summary, SweepStep
from loadtest.tally import Now

SEED = 29
"""Its arrivals at the freeze are as many as are to be expected; those of another seed may be a tenth off."""
FREEZE_SECONDS = 1.0
STOP_SECONDS = 1.0
START_SECONDS = 20.0
CHECK_WIDTH = 50
TIMEOUT_SECONDS = 1.0
"""A call that is not answered: longer than any answer here takes, and not long to wait for."""

_GOOD, _BAD, _VOID = "✓", "✗", "?"
_FROZEN_DELAYS = Delays(ttft=0.02, itl=0.01)

Say = Callable[[str], None]


class ServerFailed(Exception):
    """The server of known delays did not start, or did not end as it should."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one part of the self-check found: its rows, why they may prove nothing, and a word on them."""

    rows: list[Row]
    bounds: list[str]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: what it is about, and what runs it."""

    title: str
    run: Callable[[], Awaitable[Found]]


async def selfcheck(quick: bool, say: Say) -> bool:
    """Run all checks, tell them row by row, and return whether all hold. Takes about 110 s, quick about 45.

    Raises `ServerFailed`, and `StreamsFailed` as `run_scenario` does.
    """
    return await tell(parts(quick), say)


async def tell(parts: Sequence[Part], say: Say) -> bool:
    """Run these parts one after the other and tell what each found; whether all rows hold."""
    say(_line("", "what", "expected", "measured", "within"))
    rows: list[tuple[Row, str]] = []
    for part in parts:
        say("")
        say(part.title)
        found = await part.run()
        for row in found.rows:
            rows.append((row, _verdict(row, found)))
            say(_line(rows[-1][1], row.check, row.expected, row.measured, row.tolerance))
        for text in (found.remark, *found.bounds):
            if text:
                say(f"      {text}")
    say("")
    say(_conclusion(rows))
    return all(row.holds for row, _ in rows)


def parts(quick: bool) -> list[Part]:
    """The parts of the self-check, in their order."""
    short = Delays(ttft=0.02, itl=0.01)
    long = Delays(ttft=0.2, itl=0.025)
    freeze = 6.0 if quick else 20.0
    some = 3.0 if quick else 6.0
    found = [Part("Times, 20 ms to the first token and 10 ms to each next", lambda: times(short, some))]
    if not quick:
        found.append(Part("Times, 200 ms and 25 ms", lambda: times(long, some)))
    return [
        *found,
        Part("What each kind of answer is taken for", lambda: modes(some)),
        Part("The same, /v1/completions", lambda: modes(some / 2, is_chat=False)),
        Part("Answers that are not streamed", lambda: whole(some / 2)),
        Part(f"The server stands still for {FREEZE_SECONDS:g} s of {freeze:g}: open loop", lambda: freeze_open(freeze)),
        Part("The same freeze, at most 20 streams open", lambda: freeze_capped(freeze)),
        Part("The same freeze, closed loop: what it cannot see", lambda: freeze_closed(freeze)),
        Part("Calls that are left on purpose", lambda: cancels(some)),
        Part(f"The tool itself is stopped for {STOP_SECONDS:g} s", lambda: stopped()),
    ]


# ---- the parts


async def times(delays: Delays, seconds: float) -> Found:
    """Known delays, a moderate load."""
    tokens = 20
    measured = await _measure(_scenario([_tenant("plain", _poisson(50), tokens)], seconds), delays)
    return measured.found(check_rows.of_times(measured.results, delays, tokens, measured.report))


async def modes(seconds: float, *, is_chat: bool = True) -> Found:
    """One tenant for each way of answering, all at once."""
    tokens, delays = 12, Delays()
    endpoint: Endpoint = "chat" if is_chat else "completions"
    scenario = _scenario([_tenant(name, _poisson(5), tokens) for name in MODES], seconds)
    target = replace(scenario.target, timeout_seconds=TIMEOUT_SECONDS, endpoint=endpoint)
    measured = await _measure(replace(scenario, target=target), delays)
    return measured.found(check_rows.of_modes(MODES, measured.summary.phases[0], delays, tokens))


async def whole(seconds: float) -> Found:
    """Answers that come in one piece, good and bad ones."""
    tokens, delays = 12, Delays()
    some = {name: MODES[name] for name in ("plain", "drops-idle", "no-finish", "usage-over", "status-429")}
    scenario = _scenario([_tenant(name, _poisson(10), tokens) for name in some], seconds)
    measured = await _measure(replace(scenario, target=replace(scenario.target, stream=False)), delays)
    return measured.found(check_rows.of_whole(some, measured.summary.phases[0], delays, tokens))


async def freeze_open(seconds: float) -> Found:
    """A freeze, seen by clients who come whatever happens."""
    scenario = _freeze_scenario(_poisson(400), seconds)
    arrivals = [call.at for call in _planned(scenario)]
    measured = await _measure(scenario, _FROZEN_DELAYS, freeze_after=seconds / 2)
    rows = check_rows.of_freeze(measured.results, _FROZEN_DELAYS, FREEZE_SECONDS, seconds, arrivals)
    return measured.found(rows, "clients come on during the freeze, and their waiting counts")


async def freeze_capped(seconds: float) -> Found:
    """The same, where most of them may not even be sent."""
    scenario = replace(_freeze_scenario(_poisson(400), seconds), bounds=Bounds(open_streams=20))
    measured = await _measure(scenario, _FROZEN_DELAYS, freeze_after=seconds / 2)
    p99 = measured.results.ttft_from_sending.p99
    remark = f"counted from the sending the p99 would be {p99 * 1000:.1f} ms" if p99 is not None else ""
    return measured.found(check_rows.of_cap(measured.results, _FROZEN_DELAYS, FREEZE_SECONDS, seconds), remark)


async def freeze_closed(seconds: float) -> Found:
    """The same, for users who wait for their answer before they ask again."""
    scenario = _freeze_scenario(Arrivals("closed", users=20), seconds)
    measured = await _measure(scenario, _FROZEN_DELAYS, freeze_after=seconds / 2)
    remark = (
        "a closed loop is blind to a freeze: nobody asks while it lasts, so that one call of each user saw it; "
        "for latencies under load use an open loop (--rate)"
    )
    return measured.found(check_rows.of_blindness(measured.results, _FROZEN_DELAYS, FREEZE_SECONDS), remark)


async def cancels(seconds: float) -> Found:
    """A share of calls is left after a few tokens."""
    # long answers: however late somebody is, a call is left long before its end
    tenant = replace(_tenant("plain", _poisson(40), 40), cancel=Cancel(share=0.3, after_tokens=Span(3, 8)))
    scenario = _scenario([tenant], seconds)
    planned = _planned(scenario)
    left = sum(call.cancel_after > 0 for call in planned)
    measured = await _measure(scenario, Delays(ttft=0.02, itl=0.02))
    return measured.found(check_rows.of_cancels(measured.results, (len(planned), left), measured.report))


async def stopped() -> Found:
    """The streams' process is stopped for a second, as by a debugger, a laptop's lid or a full disk."""
    scenario = _scenario([_tenant("plain", _poisson(50), 5)], 3.0 + STOP_SECONDS)
    measured = await _measure(scenario, Delays(), stopping=_Stopping())
    p99 = measured.results.ttft.p99
    remark = f"without the mark one would read a TTFT, p99, of {p99 * 1000:.0f} ms" if p99 is not None else ""
    return Found(check_rows.of_stop(measured.summary, STOP_SECONDS), [], remark)  # that it was bound is the point


class _Stopping:
    """Stops the streams' process a second into the run, and lets it go on."""

    def __init__(self) -> None:
        self.pid = 0

    def ready(self, pid: int) -> None:
        self.pid = pid

    def phase_begins(self, phase: Phase, number: int, is_counted: bool) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, self._send, signal.SIGSTOP)
        loop.call_later(1.0 + STOP_SECONDS, self._send, signal.SIGCONT)

    def calls_ended(self, phase: Phase, tenant: str, calls: Sequence[Call], started_epoch: float) -> None:
        pass

    def progressed(self, now: Now, progress: Progress) -> None:
        pass

    def phase_ended(self, results: PhaseResults, step: SweepStep | None) -> None:
        pass

    def _send(self, number: signal.Signals) -> None:
        assert self.pid > 0, "0 would stop this process and all of its group"
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


# ---- what they share


@dataclass(slots=True)
class Running:
    """A server of known delays: its base URL, and, once it has ended, what it says that it did."""

    url: str
    report: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def server(delays: Delays, *, freeze_after: float | None = None) -> AsyncIterator[Running]:
    """A server of these delays, that ends with the block, whose report is there afterwards."""
    options = ["--ttft", f"{delays.ttft}", "--itl", f"{delays.itl}", "--while-stdin"]
    if freeze_after is not None:
        options += ["--freeze", f"{FREEZE_SECONDS}", "--freeze-after", f"{freeze_after}"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.checking.server", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process; the server ends with its standard input
    )
    assert process.stdin is not None
    try:
        running = Running(f"{(await _told(process))['ready']}/v1")
        yield running
        process.stdin.close()
        running.report = await _told(process)
        await asyncio.wait_for(process.wait(), START_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _told(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next line of a server."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        told: dict[str, Any] = json.loads(line)
    except (TimeoutError, ValueError) as error:
        raise ServerFailed(f"the server of known delays says nothing: {error}") from error
    return told


@dataclass(frozen=True, slots=True)
class Measured:
    """A run, and what its server says."""

    summary: Summary
    report: Mapping[str, Any]

    @property
    def results(self) -> Results:
        """Of all tenants together."""
        return self.summary.phases[0].all

    def found(self, rows: list[Row], remark: str = "") -> Found:
        """These rows, with why they may prove nothing."""
        return Found(rows, check_rows.bounds_of(self.summary, self.report, rows), remark)


async def _measure(
    scenario: Scenario, delays: Delays, *, freeze_after: float | None = None, stopping: _Stopping | None = None
) -> Measured:
    """Run it against a server of these delays, which is there for this run only."""
    async with server(delays, freeze_after=freeze_after) as running:
        scenario = replace(scenario, target=replace(scenario.target, url=running.url))
        address = guard.resolve(running.url)
        summary = await run_scenario(
            scenario,
            addresses=[(address.ip, address.port)],
            open_streams=guard.room_for_streams(scenario.bounds.open_streams, address=address),
            watchers=[] if stopping is None else [stopping],
            on_ready=None if stopping is None else stopping.ready,
        )
    return Measured(summary, running.report)


def _freeze_scenario(arrivals: Arrivals, seconds: float) -> Scenario:
    """A load for a freeze. Two tokens: twenty streams carry it while nothing is wrong."""
    return _scenario([_tenant("plain", arrivals, 2)], seconds)


def _planned(scenario: Scenario) -> list[Planned]:
    return list(Schedule(scenario, scenario.phases[0], None))


def _poisson(rate: float) -> Arrivals:
    return Arrivals("poisson", rate=rate)


def _tenant(model: str, arrivals: Arrivals, tokens: int) -> Tenant:
    return Tenant(model, arrivals=arrivals, input=Span(32, 32), output=Span(tokens, tokens), model=model)


def _scenario(tenants: Sequence[Tenant], seconds: float) -> Scenario:
    phase = Phase("check", seconds, tuple(tenant.name for tenant in tenants))
    return Scenario(Target("", "plain", timeout_seconds=10.0), tuple(tenants), (phase,), seed=SEED)


# ---- what is said


def _verdict(row: Row, found: Found) -> str:
    if row.holds:
        return "blind" if row.is_blind else _GOOD
    return _VOID if row.is_timing and found.bounds else _BAD


def _line(verdict: str, check: str, expected: str, measured: str, tolerance: str) -> str:
    return f"{verdict:<5} {check:<{CHECK_WIDTH}} {expected:<26} {measured:<26} {tolerance}".rstrip()


def _conclusion(rows: Sequence[tuple[Row, str]]) -> str:
    missed = [row for row, _ in rows if not row.holds]
    if not missed:
        return f"All {len(rows)} checks hold: what this tool measures on this machine is the server's doing."
    said = f"{len(missed)} of {len(rows)} checks do not hold: {'; '.join(row.check for row in missed)}."
    if _BAD not in {verdict for _, verdict in rows}:
        return f"{said} The machine was too busy to judge: again when it is quiet."
    return said
