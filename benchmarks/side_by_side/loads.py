"""The loads: what is sent through a gate, and what is measured while it goes.

Each is a value with `run`, which gives a `Sample`: figures by name (CPU in µs, times in ms, memory in MB) and the
counts that the checks need. Whatever is not done as it should raises `WrongError`. Connections are opened and used once
before anything is measured, except where opening them is the load.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from benchmarks.calls import Caller, clock
from benchmarks.side_by_side.checks import KeptAnswer, expect_done, expect_refused
from benchmarks.side_by_side.gates import Gate
from loadtest.answer import Answer
from loadtest.client import Flight

COMPARED_ONE_IN = 100
TICK_SECONDS = 0.005


@dataclass(slots=True)
class Sample:
    """One load through one gate, once.

    `sent`, `refused` and `tokens` count all that went through, warm-up included. `kept` has the bodies of the sampled
    answers by their requests. `client_core` and `client_lag_ms` (p99) tell how the client itself fared.
    """

    figures: dict[str, float] = field(default_factory=dict)
    sent: int = 0
    refused: int = 0
    tokens: int = 0
    kept: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    client_core: float = 0.0
    client_lag_ms: float = 0.0


class Load(Protocol):
    """A load. `seconds` is about how long it takes; `needs_tenants` leaves out gates that know of none."""

    @property
    def name(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def needs_tenants(self) -> bool: ...
    async def run(self, gate: Gate) -> Sample:
        """Send it and measure."""
        ...


def body(
    number: int, tokens: int, *, is_stream: bool = True, prompt_bytes: int = 0, tells_usage: bool = False
) -> bytes:
    """A chat call that makes exactly `tokens` tokens; the same number gets the same answer."""
    prompt = f"Tell me about mill number {number}. " + "The river and the mill, told at length. " * (prompt_bytes // 40)
    told: dict[str, object] = {
        "model": "tiny",
        "stream": is_stream,
        "max_tokens": tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": prompt}],
    }
    if tells_usage:
        told["stream_options"] = {"include_usage": True}
    return json.dumps(told).encode()


class Outing:
    """Calls of one load through one gate: numbered, counted, one in a hundred kept. `answers` has all, begun or not."""

    def __init__(self, gate: Gate, tokens: int, *, is_stream: bool = True, prompt_bytes: int = 0) -> None:
        self.sample = Sample()
        self.tokens = tokens
        self._gate = gate
        self._is_stream = is_stream
        self._prompt_bytes = prompt_bytes
        self._caller = Caller(gate.target)
        self._number = 0
        self.answers: list[Answer] = []
        self._kept: list[tuple[bytes, KeptAnswer]] = []

    async def call(self) -> Flight:
        """The next call."""
        number, self._number = self._number, self._number + 1
        return await self.call_number(number)

    async def call_number(self, number: int) -> Flight:
        """The call of this number."""
        is_kept = number % COMPARED_ONE_IN == 0
        request = body(
            number,
            self.tokens,
            is_stream=self._is_stream,
            prompt_bytes=self._prompt_bytes,
            tells_usage=self._is_stream and number % (2 * COMPARED_ONE_IN) == COMPARED_ONE_IN,
        )
        answer: Answer
        if is_kept:
            answer = kept = KeptAnswer(self.tokens, is_stream=self._is_stream)
            self._kept.append((request, kept))
        else:
            answer = Answer(self.tokens, is_stream=self._is_stream, usage="exact")
        self.answers.append(answer)
        return await self._caller.call(request, answer)

    async def open(self, connections: int) -> None:
        """Open so many connections and use each once, for one token."""
        request = body(0, 1)
        flights = await asyncio.gather(*(self._caller.call(request) for _ in range(connections)))
        expect_done(self._gate.name, flights, 1)
        self.sample.tokens += connections

    async def end(self, flights: Sequence[Flight]) -> Sample:
        """Check all, and leave."""
        await self._caller.close()
        expect_done(self._gate.name, flights, self.tokens)
        self.sample.sent += self._caller.calls
        self.sample.tokens += len(flights) * self.tokens
        self.sample.kept = {request: answer.body for request, answer in self._kept}
        return self.sample


@contextmanager
def watched(sample: Sample) -> Iterator[None]:
    """How the client itself fares meanwhile; without its garbage collector, whose pauses are not the gate's."""
    gc.collect()
    gc.disable()
    lags: list[float] = []
    probe = asyncio.get_running_loop().create_task(_probe(lags))
    wall, core = clock(), time.process_time()
    try:
        yield
    finally:
        sample.client_core = (time.process_time() - core) / (clock() - wall)
        probe.cancel()
        gc.enable()
        sample.client_lag_ms = percentile(lags, 0.99) * 1e3


async def _probe(lags: list[float]) -> None:
    while True:
        before = clock()
        await asyncio.sleep(TICK_SECONDS)
        lags.append(max(0.0, clock() - before - TICK_SECONDS))


def percentile(values: Iterable[float], share: float) -> float:
    """Of any values; 0 where there are none."""
    told = np.fromiter(values, float)
    return float(np.quantile(told, share)) if len(told) else 0.0


def first_token_ms(flights: Iterable[Flight], *, with_connecting: bool = False) -> dict[str, float]:
    """p50 and p99 from when the request was written, or from before its connection was opened."""
    told = [
        (flight.answer.first - (flight.scheduled if with_connecting else flight.sent)) * 1e3
        for flight in flights
        if flight.answer.first is not None and flight.sent is not None
    ]
    return {"first_p50": percentile(told, 0.5), "first_p99": percentile(told, 0.99)}


async def taking_turns(call: Callable[[], Awaitable[Flight]], in_flight: int, count: int) -> list[Flight]:
    """`count` calls, `in_flight` at a time."""

    async def one_after_the_other() -> list[Flight]:
        return [await call() for _ in range(count // in_flight)]

    shares = await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    return [flight for share in shares for flight in share]


@dataclass(frozen=True, slots=True)
class Streams:
    """`count` connections, each with `each` streams one after the other, starts spread over a stream's length.

    `flood`: beside them, so many calls a second of a tenant that is over its rate.
    """

    name: str
    count: int
    each: int
    tokens: int = 64
    stream_seconds: float = 1.31
    flood: int = 0

    @property
    def seconds(self) -> float:
        return (self.each + 1) * self.stream_seconds + 0.5

    @property
    def needs_tenants(self) -> bool:
        return self.flood > 0

    async def run(self, gate: Gate) -> Sample:
        outing = Outing(gate, self.tokens)
        sample = outing.sample
        await outing.open(self.count)

        async def one_after_the_other(number: int) -> list[Flight]:
            await asyncio.sleep(number * self.stream_seconds / self.count)
            return [await outing.call() for _ in range(self.each)]

        with watched(sample):
            flooding = asyncio.ensure_future(flooded(gate, self.flood, self.seconds)) if self.flood else None
            started, before = clock(), gate.cpu_seconds()
            shares = await asyncio.gather(*(one_after_the_other(number) for number in range(self.count)))
            spent = gate.cpu_seconds() - before
            if flooding is not None:
                flooding.cancel()
                sent, refused = await flooding
                sample.sent += sent
                sample.refused += refused
                sample.tokens += sent - refused
                sample.figures["refused_per_second"] = refused / (clock() - started)
        flights = [flight for share in shares for flight in share]
        gaps = [gap for flight in flights for gap in flight.answer.gaps]
        sample.figures |= first_token_ms(flights)
        sample.figures["gap_p99"] = percentile(gaps, 0.99) * 1e3
        if not self.flood:
            sample.figures["cpu"] = spent / (len(flights) * self.tokens) * 1e6
        return await outing.end(flights)


async def flooded(gate: Gate, per_second: int, seconds: float) -> tuple[int, int]:
    """Calls that are refused, at this pace until cancelled: how many were sent, and how many refused."""
    assert gate.spent is not None
    caller = Caller(gate.spent)
    request = body(0, 1)
    calls: list[asyncio.Task[Flight]] = []
    started = clock()
    try:
        while True:
            due = int((clock() - started) * per_second) - len(calls)
            calls += [asyncio.ensure_future(caller.call(request)) for _ in range(due)]
            await asyncio.sleep(TICK_SECONDS)
    except asyncio.CancelledError:
        flights = await asyncio.gather(*calls)
    await caller.close()
    return len(flights), expect_refused(gate.name, flights, admitted=2)


@dataclass(frozen=True, slots=True)
class Requests:
    """`count` calls on kept connections, `in_flight` at a time: µs of CPU a call."""

    name: str
    count: int
    in_flight: int = 32
    tokens: int = 1
    is_stream: bool = True
    prompt_bytes: int = 0
    needs_tenants: bool = False

    @property
    def seconds(self) -> float:
        return self.count / 2000 + 0.3

    async def run(self, gate: Gate) -> Sample:
        outing = Outing(gate, self.tokens, is_stream=self.is_stream, prompt_bytes=self.prompt_bytes)
        sample = outing.sample
        await outing.open(self.in_flight)
        with watched(sample):
            started, before = clock(), gate.cpu_seconds()
            flights = await taking_turns(outing.call, self.in_flight, self.count)
            spent, passed = gate.cpu_seconds() - before, clock() - started
        sample.figures |= {
            "cpu": spent / len(flights) * 1e6,
            "per_second": len(flights) / passed,
            "core": spent / passed,
        }
        sample.figures |= first_token_ms(flights)
        return await outing.end(flights)


@dataclass(frozen=True, slots=True)
class Refusals:
    """`count` calls of a tenant that is over its rate, `in_flight` at a time: µs of CPU a refusal."""

    name: str
    count: int
    in_flight: int = 32
    needs_tenants: bool = True

    @property
    def seconds(self) -> float:
        return self.count / 4000 + 0.3

    async def run(self, gate: Gate) -> Sample:
        assert gate.spent is not None
        sample = Sample()
        caller = Caller(gate.spent)
        request = body(0, 1)
        warm = await taking_turns(lambda: caller.call(request), self.in_flight, self.in_flight * 2)
        with watched(sample):
            before = gate.cpu_seconds()
            flights = await taking_turns(lambda: caller.call(request), self.in_flight, self.count)
            sample.figures["cpu"] = (gate.cpu_seconds() - before) / len(flights) * 1e6
        await caller.close()
        sample.sent = caller.calls
        sample.refused = expect_refused(gate.name, [*warm, *flights], admitted=2)
        sample.tokens = sample.sent - sample.refused
        return sample


@dataclass(frozen=True, slots=True)
class AtOnce:
    """`count` connections opened in one moment, a short stream on each: first tokens from before the connecting."""

    name: str
    count: int
    tokens: int = 8
    needs_tenants: bool = False

    @property
    def seconds(self) -> float:
        return 1.0

    async def run(self, gate: Gate) -> Sample:
        outing = Outing(gate, self.tokens)
        with watched(outing.sample):
            flights = await asyncio.gather(*(outing.call() for _ in range(self.count)))
        outing.sample.figures |= first_token_ms(flights, with_connecting=True)
        return await outing.end(flights)


@dataclass(frozen=True, slots=True)
class SlowStreams:
    """`count` streams of a token a second, opened over some seconds: CPU a chunk while all are open, and memory. A gate
    that had them all open for less than a second has no CPU figure, one that never had has none.

    Straight to the pod only those are sent that others are compared with.
    """

    name: str
    count: int
    tokens: int
    opening_seconds: float = 3.0
    needs_tenants: bool = False

    @property
    def seconds(self) -> float:
        return self.opening_seconds + self.tokens + 0.5

    async def run(self, gate: Gate) -> Sample:
        outing = Outing(gate, self.tokens)
        sample = outing.sample
        if gate.pid is None:
            compared = range(0, self.count, COMPARED_ONE_IN)
            return await outing.end(await asyncio.gather(*(outing.call_number(number) for number in compared)))

        async def one(number: int) -> Flight:
            await asyncio.sleep(number * self.opening_seconds / self.count)
            return await outing.call_number(number)

        with watched(sample):
            calls = [asyncio.ensure_future(one(number)) for number in range(self.count)]
            await asyncio.sleep(self.opening_seconds)
            while (  # noqa: ASYNC110 - looked at now and then: an event for each answer would cost the client more
                any(answer.first is None for answer in outing.answers) and not any(call.done() for call in calls)
            ):
                await asyncio.sleep(TICK_SECONDS * 20)
            started, before, chunks = clock(), gate.cpu_seconds(), sum(answer.events for answer in outing.answers)
            first_end = min(answer.first for answer in outing.answers if answer.first is not None) + self.tokens - 1
            await asyncio.sleep(max(0.0, first_end - started - 0.1))
            spent = gate.cpu_seconds() - before
            chunks = sum(answer.events for answer in outing.answers) - chunks
            sample.figures["open"] = sum(not call.done() for call in calls)
            if not any(call.done() for call in calls):
                sample.figures["resident"] = gate.resident_bytes() / 1e6
                if clock() - started >= 1:
                    sample.figures["cpu"] = spent / max(chunks, 1) * 1e6
            flights = await asyncio.gather(*calls)
        sample.figures |= first_token_ms(flights)
        return await outing.end(flights)
