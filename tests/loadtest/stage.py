"""Where loads are tried in virtual time: the schedule, the load and the client are the real ones, connections are in
memory, and the server does what its plan says.

What always holds is asked at each look: calls that were due are sent or wait; calls that were sent are open or have
ended, once; gaps are told of those that are done or were left; and when a phase is over nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import httptools

from loadtest.client import Client, Connection
from loadtest.load import Load
from loadtest.messages import Call, Lane, Run
from loadtest.scenario import Arrivals, Cancel, Phase, Scenario, Span, Target, Tenant
from loadtest.schedule import Schedule
from loadtest.streams import road_of
from loadtest.traces import TraceRows
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network, Weather

STILL_AIR = Weather(most_steps=0, splits=0.0, connect_steps=0)
URL = "http://127.0.0.1:1/v1"
ALSO = "http://127.0.0.1:2/v1"

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"code":"engine_dead"}}\n\n'
BUSY = b'{"error":{"code":"queue_full"}}'


class RoundingLoop(VirtualLoop):
    """Its timers go by whole milliseconds and fire up to one and a half early, as uvloop's do."""

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        at = int(self.time() * 1000) / 1000 + round(delay * 1000) / 1000
        return self.call_at(max(self.time(), at), callback, *args, context=context)


# ---- a server


@dataclass(frozen=True)
class Plan:
    """What the server does with one call: seconds to the first token, from each to the next, and how it goes wrong."""

    ttft: float = 0.01
    itl: float = 0.01
    fault: str = ""  # one of FAULTS
    after: int = 1  # tokens that come before it does


FAULTS = {
    "503": "503 queue_full",
    "error": "error_event engine_dead",
    "cut": "cut",
    "reset": "cut",
    "garbage": "malformed",
    "no finish": "unfinished",
    "no done": "no_done",
    "hang": "",
    "slam": "cut",
}
"""What a server can do wrong, and the code of it, if nothing else ends the call first."""


@dataclass
class Served:
    """What the server knows of one call."""

    arrived: float
    output: int
    plan: Plan
    tokens: list[float] = field(default_factory=list)  # when each was written
    is_whole: bool = False


class Pods:
    """All servers. `plan` says what each does with the n-th call to arrive (from 0)."""

    def __init__(self, loop: VirtualLoop, plan: Callable[[int], Plan]) -> None:
        self.loop = loop
        self.plan = plan
        self.served: dict[str, Served] = {}
        self.arrived: list[str] = []
        self.at: Counter[str] = Counter()

    def door(self, url: str) -> Callable[[], asyncio.Protocol]:
        return lambda: _Served(self, url)


class _Served(asyncio.Protocol):
    """A server's end of a connection."""

    def __init__(self, pods: Pods, url: str) -> None:
        self._pods = pods
        self._url = url
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._id = ""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._id = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        pods = self._pods
        plan = pods.plan(len(pods.arrived))
        pods.arrived.append(self._id)
        pods.at[self._url] += 1
        served = pods.served[self._id] = Served(pods.loop.time(), json.loads(self._body)["max_tokens"], plan)
        if plan.fault == "slam":
            self._transport.abort()
        elif plan.fault == "503":
            head = b"HTTP/1.1 503 Busy\r\ncontent-length: %d\r\n\r\n" % len(BUSY)
            pods.loop.call_later(plan.ttft, self._write, head + BUSY)
        elif plan.fault != "hang" or plan.after:
            self._write(HEAD)
            pods.loop.call_later(plan.ttft, self._token, served)

    def _token(self, served: Served) -> None:
        plan = served.plan
        if plan.fault and len(served.tokens) >= plan.after:
            self._fail(plan.fault)
        elif len(served.tokens) < served.output:
            served.tokens.append(self._pods.loop.time())
            self._write(chunk(b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'))
            self._pods.loop.call_later(plan.itl, self._token, served)
        else:
            usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":%d}}\n\n' % served.output
            self._write(b"".join(map(chunk, (FINISH, usage, DONE))) + b"0\r\n\r\n")
            served.is_whole = not self._transport.is_closing()

    def _fail(self, fault: str) -> None:
        if fault == "cut":
            self._transport.close()
        elif fault == "reset":
            self._transport.abort()
        elif fault == "error":
            self._write(chunk(ERROR) + chunk(DONE) + b"0\r\n\r\n")
        elif fault == "garbage":
            self._write(b"zz\r\n\r\n")
        elif fault == "no finish":
            self._write(chunk(DONE) + b"0\r\n\r\n")
        elif fault == "no done":
            self._write(chunk(FINISH) + b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# ---- a phase


@dataclass
class World:
    """One history: where a load runs, and what was seen of it."""

    loop: VirtualLoop
    pods: Pods
    network: Network
    clients: list[Client]
    lags: list[float] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    calls: list[list[Call]] = field(default_factory=list)
    index: int = 0
    keep_gaps: bool = False

    def note_send_lag(self, seconds: float) -> None:
        self.lags.append(seconds)

    def load(
        self,
        scenario: Scenario,
        *,
        cap: int = 1000,
        drain: float = 30.0,
        most: int = 100_000,
        most_seconds: float = inf,
        rows: TraceRows | None = None,
    ) -> Load:
        (phase,) = scenario.phases
        self.index += 1
        return Load(
            scenario,
            Run(self.index, phase, drain, most, most_seconds),
            Schedule(scenario, phase, rows),
            [road_of(scenario, scenario.tenant(name)) for name in phase.tenants],
            self.clients,
            clock=self.loop.time,
            loop=self.loop,
            lag=self,
            open_streams=cap,
            nonce=f"{self.index:08x}",
            keep_gaps=self.keep_gaps,
        )

    def look(self, load: Load, cap: int) -> None:
        """Take what came, as the streams' process does four times a second, and hold it against what always holds."""
        load.end_overdue()
        lanes = load.take()
        if not self.calls:
            self.calls = [[] for _ in lanes]
        for number, lane in enumerate(lanes):
            self.calls[number] += lane.calls
            assert lane.scheduled == lane.sent + lane.waiting
            assert lane.sent == lane.open + len(self.calls[number])
            entering = [call for call in lane.calls if call.code in ("", "cancelled")]
            assert sum(lane.gaps.counts) == sum(call.gap_count for call in entering)
            assert lane.gaps.greatest == max((call.longest_gap for call in entering), default=0.0)
            if self.lanes:
                assert lane.events >= self.lanes[number].events
                assert lane.reads >= self.lanes[number].reads
            assert lane.events >= sum(call.events for call in self.calls[number])
            assert lane.never_sent in (0, lane.waiting)
        assert sum(lane.open for lane in lanes) <= cap
        self.lanes = lanes

    async def run(self, load: Load, cap: int = 1000) -> tuple[float, float, str]:
        """The phase to its end, looked at four times a second."""
        self.lanes, self.calls = [], []

        async def look_always() -> None:
            while True:
                await asyncio.sleep(0.25)
                self.look(load, cap)

        looking = self.loop.create_task(look_always())
        try:
            return await load.run()
        finally:
            looking.cancel()
            await asyncio.wait({looking})
            self.look(load, cap)
            assert all(lane.open == 0 for lane in self.lanes)
            assert all(lane.never_sent == lane.waiting for lane in self.lanes)
            assert all(not client.flights for client in self.clients)
            ids = [call.request_id for calls in self.calls for call in calls]
            assert len(set(ids)) == len(ids) == sum(lane.sent for lane in self.lanes)


def world(
    seed: int = 1,
    *,
    plan: Callable[[int], Plan] = lambda _: Plan(),
    weather: Weather = STILL_AIR,
    urls: tuple[str, ...] = (URL,),
    new_loop: type[VirtualLoop] = VirtualLoop,
) -> World:
    loop = new_loop(Random(f"{seed}/ties"))
    network = Network(loop, Random(f"{seed}/network"), weather)
    pods = Pods(loop, plan)
    clients = []
    for url in urls:
        network.listen(url, pods.door(url))
        clients.append(Client(_connect(network, url), loop.time, loop))
    return World(loop, pods, network, clients)


def _connect(network: Network, url: str) -> Any:
    dial = network.connector(url)

    async def connect(make: Callable[[], Connection]) -> Connection:
        made: list[Connection] = []

        def factory() -> Connection:
            made.append(make())
            return made[0]

        await dial(factory)
        return made[0]

    return connect


def live(world: World, story: Callable[[], Any]) -> Any:
    """Run a story in the world's loop; whatever it was, nothing is left of it."""

    async def whole() -> Any:
        try:
            return await story()
        finally:
            for client in world.clients:
                await client.close()

    try:
        told = world.loop.run_until_complete(whole())
        world.loop.run_until_complete(asyncio.sleep(0.1))
        assert not world.loop.faults
        assert not asyncio.all_tasks(world.loop)
        assert world.network.standing == 0
        return told
    finally:
        world.loop.close()


def a_tenant(arrivals: Arrivals | None, name: str = "only", *, output: int = 3, cancel: Cancel | None = None) -> Tenant:
    return Tenant(name, arrivals=arrivals, input=Span(16, 16), output=Span(output, output), cancel=cancel)


def a_scenario(
    arrivals: Arrivals | None,
    seconds: float | None,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    target: Target | None = None,
    output: int = 3,
    cancel: Cancel | None = None,
) -> Scenario:
    tenant = a_tenant(arrivals, output=output, cancel=cancel)
    return Scenario(target or Target(URL, "m"), (tenant,), (Phase("p", seconds, ("only",), scale),), seed=5)
