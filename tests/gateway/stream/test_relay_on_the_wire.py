"""Relay and wire together, against a pod whose bytes come split, merged and broken at every position."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backends.outcome import Ending, Outcome
from backends.wire.pool import Pool
from backends.wire.transfer import Timeouts
from gateway.stream.relay import Relay
from tests.instruments.answers import ANSWERS, DONE, STREAM_HEAD, TERMINATOR, Answer, chunk, events_of, token
from tests.instruments.hand_clock import HandClock
from tests.instruments.memory_sink import MemorySink
from tests.instruments.memory_wire import MemoryPod

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
WITH_USAGE = STREAM_HEAD + b"".join(map(chunk, (token("Hi"), FINISH, USAGE, DONE))) + TERMINATOR
STREAMS = [answer for answer in ANSWERS if answer.is_stream and answer.events]


@dataclass(frozen=True, slots=True)
class Ask:
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Relayed:
    """What became of one answer."""

    outcome: Outcome
    relay: Relay | None
    sink: MemorySink


async def relayed(*reads: bytes, is_framed: bool = True, ends: str = "") -> Relayed:
    """What a client's sink gets when the pod's bytes come in these reads, and then perhaps an end or a reset."""
    clock, pod, sink = HandClock(), MemoryPod(), MemorySink(is_framed=is_framed)
    pool = Pool(
        "http://pod", connect=pod.connect, clock=clock, call_later=clock.call_later, timeouts=Timeouts(2, 120, 60)
    )
    transfer = pool.send(Ask(), frames=is_framed)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    relay: Relay | None = None
    ended: asyncio.Future[Outcome] | None = None
    for read in reads:
        pod.line.say(read)
        if relay is None and transfer.opened.done() and not isinstance(transfer.opened.result(), Outcome):
            sink.is_started = True
            relay = Relay(sink, transfer, shows_usage=False)
            ended = transfer.attach(relay)
    if ends == "end":
        pod.line.end()
    elif ends == "reset":
        pod.line.reset()
    for _ in range(3):
        await asyncio.sleep(0)
    if relay is None:
        opened = transfer.opened.result()
        if isinstance(opened, Outcome):
            return Relayed(opened, None, sink)
        sink.is_started = True
        relay = Relay(sink, transfer, shows_usage=False)
        ended = transfer.attach(relay)
    assert ended is not None
    outcome = ended.result()
    pool.close()
    return Relayed(outcome, relay, sink)


def two_reads(wire: bytes) -> Iterator[tuple[bytes, ...]]:
    yield (wire,)
    for at in range(1, len(wire)):
        yield wire[:at], wire[at:]
    yield tuple(wire[at : at + 1] for at in range(len(wire)))


@pytest.mark.parametrize("answer", STREAMS, ids=lambda answer: answer.name)
@pytest.mark.parametrize("is_framed", [True, False])
async def test_a_client_gets_the_same_whole_events_however_the_bytes_come(answer: Answer, is_framed: bool) -> None:
    for reads in two_reads(answer.wire):
        done = await relayed(*reads, is_framed=is_framed, ends="end" if answer.lasts_until_close else "")
        assert done.outcome.ending is Ending.COMPLETE, reads
        assert events_of(done.sink.payload) == answer.events, reads
        assert done.relay is not None
        assert done.relay.events == len(answer.events), reads
        assert done.relay.has_finished is (DONE.strip() in answer.wire), reads


@pytest.mark.parametrize("is_framed", [True, False])
async def test_usage_is_found_and_hidden_however_the_bytes_come(is_framed: bool) -> None:
    for reads in two_reads(WITH_USAGE):
        done = await relayed(*reads, is_framed=is_framed)
        assert done.relay is not None and done.relay.usage is not None, reads
        assert (done.relay.usage.prompt_tokens, done.relay.usage.completion_tokens) == (5, 2)
        assert done.sink.payload == token("Hi") + FINISH + DONE, reads
        assert done.relay.has_finished, reads


@pytest.mark.parametrize("ends", ["end", "reset"])
@pytest.mark.parametrize("is_framed", [True, False])
async def test_a_pod_that_dies_anywhere_leaves_whole_events_and_no_success(is_framed: bool, ends: str) -> None:
    for at in range(1, len(WITH_USAGE)):
        done = await relayed(WITH_USAGE[:at], is_framed=is_framed, ends=ends)
        assert done.outcome.ending is Ending.RESET, at
        # Whatever was passed on is a beginning of the stream that ends with an event: an error event may follow.
        payload = done.sink.payload
        assert (token("Hi") + FINISH + DONE).startswith(payload), at
        assert payload == b"" or payload.endswith(b"\n\n"), at


async def test_a_stream_that_ends_in_order_without_a_finish_has_none() -> None:
    wire = STREAM_HEAD + chunk(token("Hi")) + chunk(token("there")) + TERMINATOR
    for reads in two_reads(wire):
        done = await relayed(*reads)
        assert done.outcome.ending is Ending.COMPLETE
        assert done.relay is not None and not done.relay.has_finished, reads
