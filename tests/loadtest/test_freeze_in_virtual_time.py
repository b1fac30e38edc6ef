"""What a server that stands still for a second does to the figures: the client's own arithmetic, on a virtual clock.

The schedule, the load and the client are the real ones, the server is that of `selfcheck`; sockets are in memory, and
nothing takes any time but what the server's delays say. So each call's latency is known to the microsecond: one that
arrives in the freeze waits for its end, and then for its first token; one whose first token falls into it waits for
its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from random import Random

import pytest

from loadtest.checking.answers import Delays
from loadtest.checking.rows import p99_over_freeze
from loadtest.checking.server import Connection as ServerConnection
from loadtest.checking.server import Freeze, Server
from loadtest.client import Client, Connection
from loadtest.histogram import Histogram
from loadtest.load import Load
from loadtest.messages import Call, Run
from loadtest.scenario import Arrivals, Phase, Scenario, Span, Target, Tenant
from loadtest.schedule import Schedule
from loadtest.streams import road_of
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network, Weather

SECONDS = 20.0
DELAYS = Delays(ttft=0.005, itl=0.01)
FREEZE = Freeze(after=9.0, seconds=1.0)
TOKENS = 3
FORMULA = DELAYS.ttft + FREEZE.seconds - 0.01 * SECONDS
"""The p99 of TTFT: arrivals are even, so the slowest hundredth came in the first 0.01·T of the freeze, and of these the
luckiest waits for what is left of it. (Not in it: calls that arrived in the TTFT before the freeze wait a second, too.)
"""
STILL_AIR = Weather(most_steps=0, splits=0.0, connect_steps=0)
URL = "http://127.0.0.1:1/v1"


class Machine:
    """Where the server runs: while it stands still, neither timers nor what arrives get through to it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._thaws_at = 0.0

    def stand_still(self, seconds: float) -> None:
        self._thaws_at = self._loop.time() + seconds

    def call_later(self, delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, self.run, call)

    def run(self, call: Callable[[], None]) -> None:
        if self._loop.time() < self._thaws_at - 1e-6:
            self._loop.call_at(self._thaws_at, self.run, call)
        else:
            call()


class Door(asyncio.Protocol):
    """A connection to a server on such a machine."""

    def __init__(self, machine: Machine, inside: ServerConnection) -> None:
        self._machine = machine
        self._inside = inside

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inside.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._machine.run(lambda: self._inside.data_received(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._machine.run(lambda: self._inside.connection_lost(exc))


@dataclass
class Lags:
    """How late calls were sent."""

    seconds: list[float] = field(default_factory=list)

    def note_send_lag(self, seconds: float) -> None:
        self.seconds.append(seconds)


@dataclass(frozen=True)
class Outcome:
    """What a run gave: its calls, and how late they were sent."""

    calls: list[Call]
    lags: list[float]

    def p99(self, latency: Callable[[Call], float]) -> float:
        """Nearest rank, of the values themselves."""
        values = sorted(latency(call) for call in self.calls)
        return values[ceil(0.99 * len(values)) - 1]


def ttft(call: Call) -> float:
    assert call.first is not None
    return call.first - call.scheduled


def ttft_from_sending(call: Call) -> float:
    assert call.first is not None
    return call.first - call.sent


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop(Random(1))
    yield loop
    loop.close()


def run(
    loop: VirtualLoop, arrivals: Arrivals, *, freeze: Freeze | None = FREEZE, open_streams: int = 10_000
) -> Outcome:
    """One phase of such arrivals over such a server."""
    tenant = Tenant("only", arrivals=arrivals, input=Span(16, 16), output=Span(TOKENS, TOKENS))
    phase = Phase("check", SECONDS, ("only",))
    scenario = Scenario(Target(URL, "plain"), (tenant,), (phase,), seed=11)
    machine, lags = Machine(loop), Lags()
    server = Server(DELAYS, freeze, clock=loop.time, call_later=machine.call_later, stand_still=machine.stand_still)
    network = Network(loop, Random(2), STILL_AIR)
    network.listen(URL, lambda: Door(machine, ServerConnection(server)))
    dial = network.connector(URL)

    async def connect(make: Callable[[], Connection]) -> Connection:
        made: list[Connection] = []

        def factory() -> Connection:
            made.append(make())
            return made[0]

        await dial(factory)
        return made[0]

    async def load() -> list[Call]:
        client = Client(connect, loop.time, loop)
        load = Load(
            scenario,
            Run(0, phase, drain_seconds=10.0, most_requests=100_000),
            Schedule(scenario, phase, None),
            [road_of(scenario, tenant)],
            [client],
            loop=loop,
            clock=loop.time,
            lag=lags,
            open_streams=open_streams,
            nonce="virtual",
        )
        load_seconds, _, reason = await load.run()
        (lane,) = load.take()
        await client.close()
        assert abs(load_seconds - SECONDS) < 1e-6
        assert not reason
        assert (lane.scheduled, lane.sent, lane.open, lane.waiting) == (len(lane.calls), len(lane.calls), 0, 0)
        return lane.calls

    calls = loop.run_until_complete(load())
    assert not loop.faults
    assert all(call.code == "" and call.events == TOKENS for call in calls)
    assert server.counts["plain"].answered == len(calls)
    assert server.counts["plain"].tokens == len(calls) * TOKENS
    return Outcome(calls, lags.seconds)


def expected_ttft(at: float) -> float:
    """What a call that arrives at that time must wait for its first token. The freeze counts from the first call."""
    thaws_at = FREEZE.after + FREEZE.seconds
    if FREEZE.after <= at < thaws_at:
        return thaws_at - at + DELAYS.ttft
    return thaws_at - at if FREEZE.after <= at + DELAYS.ttft < thaws_at else DELAYS.ttft


def test_an_open_loop_tells_each_call_what_it_waited_in_the_freeze(loop: VirtualLoop) -> None:
    # arrivals keep clear of the freeze's edges, where a rounding would decide
    outcome = run(loop, Arrivals("constant", rate=101))
    assert len(outcome.calls) == SECONDS * 101
    for call in outcome.calls:
        assert ttft(call) == pytest.approx(expected_ttft(call.scheduled), abs=1e-5), call.scheduled
    assert max(outcome.lags) < 1e-6


def test_an_open_loops_p99_is_ttft_and_freeze_less_a_hundredth_of_the_time(loop: VirtualLoop) -> None:
    outcome = run(loop, Arrivals("constant", rate=400))
    assert outcome.p99(ttft) == pytest.approx(FORMULA, rel=0.01)
    histogram = Histogram()
    histogram.add([ttft(call) for call in outcome.calls])
    assert histogram.quantile(0.99) == pytest.approx(outcome.p99(ttft), rel=0.01)


def test_poisson_arrivals_give_it_too_but_for_their_chance(loop: VirtualLoop) -> None:
    outcome = run(loop, Arrivals("poisson", rate=400))
    arrivals = sorted(call.scheduled for call in outcome.calls)
    exact = p99_over_freeze(arrivals, DELAYS.ttft, FREEZE.seconds, FREEZE.after)
    assert outcome.p99(ttft) == pytest.approx(exact, abs=1e-5)
    # 80 calls in the first 0.2 s of the freeze, give or take 9: 22 ms of the p99 are one deviation
    assert outcome.p99(ttft) == pytest.approx(FORMULA, abs=3 * 0.022)
    for call in outcome.calls:
        if abs(call.scheduled - outcome.calls[0].scheduled) < FREEZE.after - 1:
            assert ttft(call) == pytest.approx(DELAYS.ttft, abs=1e-5)


def test_a_closed_loop_is_blind_to_the_same_freeze(loop: VirtualLoop) -> None:
    outcome = run(loop, Arrivals("closed", users=10, think=Span(0.0, 0.02)))
    assert outcome.p99(ttft) == pytest.approx(DELAYS.ttft, abs=1e-5)
    # ten calls of thousands saw it, one of each user: nobody else asked meanwhile
    assert sum(call.ended - call.scheduled > FREEZE.seconds / 2 for call in outcome.calls) == 10
    assert len(outcome.calls) > 2000


def test_a_cap_on_open_streams_hides_nothing_of_the_wait(loop: VirtualLoop) -> None:
    capped = run(loop, Arrivals("constant", rate=400), open_streams=20)
    assert capped.p99(ttft) >= FORMULA
    # who counts from the sending is told that nothing happened
    assert capped.p99(ttft_from_sending) == pytest.approx(DELAYS.ttft, abs=1e-5)
    waited = [call for call in capped.calls if call.sent - call.scheduled > FREEZE.seconds / 2]
    assert len(waited) > 100


def test_without_a_freeze_all_are_as_fast_as_the_server_is(loop: VirtualLoop) -> None:
    outcome = run(loop, Arrivals("poisson", rate=200), freeze=None)
    for call in outcome.calls:
        assert ttft(call) == pytest.approx(DELAYS.ttft, abs=1e-5)
        assert call.ended - call.scheduled == pytest.approx(DELAYS.ttft + (TOKENS - 1) * DELAYS.itl, abs=1e-5)
        assert call.gap_count == TOKENS - 1
