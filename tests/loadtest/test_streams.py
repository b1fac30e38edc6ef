"""The streams' process as the other one sees it: started over a socket pair, told what to do, left in the lurch."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from loadtest import load as load_module
from loadtest import streams as streams_module
from loadtest.messages import (
    Begin,
    Call,
    Ended,
    Failed,
    FromStreams,
    Progress,
    Ready,
    Run,
    Stop,
    ToStreams,
    encode,
    from_streams,
    to_streams,
)
from loadtest.pair import End
from loadtest.scenario import Arrivals, Phase, Scenario, Target, Tenant, Trace
from loadtest.strain import Own, StrainMeter
from loadtest.streams import MOST_UNREAD_BYTES, road_of
from tests.instruments.pods import simulator
from tests.loadtest.stage import Plan, World, a_scenario, a_tenant, live, world

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 20.0


class Front(asyncio.Protocol):
    """The other end: tells, and keeps what it is told."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[FromStreams | None] = asyncio.Queue()
        self._frames = from_streams()
        self.transport: asyncio.Transport
        self.process: asyncio.subprocess.Process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self.messages.put_nowait(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.messages.put_nowait(None)

    def tell(self, message: ToStreams) -> None:
        self.transport.write(encode(message))

    async def next(self) -> FromStreams | None:
        return await asyncio.wait_for(self.messages.get(), WAIT_SECONDS)

    async def phase(self, run: Run) -> tuple[list[Progress], Ended]:
        """Run a phase to its end."""
        self.tell(run)
        told: list[Progress] = []
        while not isinstance(message := await self.next(), Ended):
            assert isinstance(message, Progress)
            told.append(message)
        return told, message

    async def end(self) -> int:
        """Wait until the process has ended by itself."""
        return await asyncio.wait_for(self.process.wait(), WAIT_SECONDS)


@asynccontextmanager
async def started() -> AsyncIterator[Front]:
    """The process, without a word yet; it has ended when the block has, and nobody had to kill it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadtest.streams", str(theirs.fileno()), pass_fds=[theirs.fileno()], cwd=ROOT
        )
    _, front = await asyncio.get_running_loop().create_connection(Front, sock=ours)
    front.process = process
    try:
        yield front
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    finally:
        front.transport.close()
        await asyncio.wait_for(process.wait(), WAIT_SECONDS)


def scenario_for(url: str, *, seconds: float, **tenant: Any) -> Scenario:
    tenants = (
        replace(a_tenant(Arrivals("constant", rate=40.0), "a", output=4), key="secret-a", **tenant),
        replace(a_tenant(Arrivals("closed", users=2), "b", output=6), key="secret-b", **tenant),
    )
    return Scenario(Target(f"{url}/v1/", "tiny"), tenants, (Phase("both", seconds, ("a", "b")),), seed=3)


def begin(scenario: Scenario, **more: Any) -> Begin:
    host, _, port = scenario.target.url.split("/")[2].rpartition(":")
    return Begin(scenario, [(host, int(port))], open_streams=100, **more)


def calls_of(told: list[Progress], lane: int) -> list[Call]:
    return [call for progress in told for call in progress.lanes[lane].calls]


# ---- the process


async def test_it_runs_phase_after_phase_stops_when_told_and_ends_with_the_other_end() -> None:
    async with simulator(model="tiny", slots=64, ttft="5ms", itl="5ms") as pod, started() as front:
        scenario = scenario_for(pod.url, seconds=0.8)
        (phase,) = scenario.phases
        front.tell(begin(scenario))
        assert await front.next() == Ready(front.process.pid)

        told, ended = await front.phase(Run(0, phase, 10.0, 10_000))
        assert (ended.index, ended.load_seconds, ended.reason) == (0, 0.8, "")
        assert 0.8 <= ended.seconds < 5.0 and ended.started_epoch > 1.6e9
        assert len(told) >= 4
        last = told[-1]
        assert [progress.at for progress in told] == sorted(progress.at for progress in told)
        for number, lane in enumerate(last.lanes):
            calls = calls_of(told, number)
            assert Counter(call.code for call in calls) == {"": len(calls)}
            assert (lane.scheduled, lane.open, lane.waiting, lane.never_sent) == (len(calls), 0, 0, 0)
            assert lane.events == sum(call.events for call in calls)
        assert last.lanes[0].scheduled == 32
        assert last.lanes[1].scheduled > 4
        assert last.strain.rss_bytes > 0 and sum(progress.strain.cpu_seconds for progress in told) > 0
        counters = (await pod.counters())["all"]
        assert counters["tokens"] == sum(call.completion_tokens for lane in (0, 1) for call in calls_of(told, lane))

        # Ctrl-C is the other process's to deal with.
        front.process.send_signal(signal.SIGINT)

        front.tell(Stop())  # of a phase that has ended in the same moment: it is not the next one's
        endless = replace(phase, seconds=600.0)
        front.tell(Run(1, endless, 10.0, 10_000))
        while not (isinstance(message := await front.next(), Progress) and message.lanes[1].sent > 5):
            pass
        front.tell(Stop())
        while not isinstance(message := await front.next(), Ended):
            assert isinstance(message, Progress)
            last = message
        assert (message.index, message.reason) == (1, "stopped")
        assert message.load_seconds < 300
        assert all(lane.open == 0 for lane in last.lanes)
        await pod.until(lambda counters: counters["all"]["running"] == 0)

        requests = await pod.requests()
        headers = [dict(request["headers"]) for request in requests]
        assert {each["authorization"] for each in headers} == {"Bearer secret-a", "Bearer secret-b"}
        assert {request["path"] for request in requests} == {"/v1/chat/completions"}
        assert {each["host"] for each in headers} == {pod.url.removeprefix("http://")}
        assert len({each["x-request-id"] for each in headers}) == len(headers)

        front.transport.close()
        assert await front.end() == 0


async def test_left_alone_in_mid_phase_it_ends_and_leaves_its_calls() -> None:
    async with simulator(model="tiny", slots=64, ttft="5ms", itl="50ms") as pod, started() as front:
        scenario = scenario_for(pod.url, seconds=600.0)
        front.tell(begin(scenario))
        front.tell(Run(0, scenario.phases[0], 600.0, 10_000))
        while not (isinstance(message := await front.next(), Progress) and message.lanes[0].events > 0):
            pass
        front.transport.abort()
        assert await front.end() == 0
        await pod.until(lambda counters: counters["all"]["running"] == 0)


async def test_a_trace_that_cannot_be_replayed_is_told_and_is_the_end(tmp_path: Path) -> None:
    file = tmp_path / "broken.csv"
    file.write_text("t_s,client,input_tokens,output_tokens\n0.0,a,many,1\n")
    async with started() as front:
        scenario = replace(
            scenario_for("http://127.0.0.1:1", seconds=1.0), trace=Trace(str(file), {"a": 1.0}), tenants=(Tenant("a"),)
        )
        front.tell(begin(scenario))
        message = await front.next()
        assert isinstance(message, Failed)
        assert "broken.csv" in message.reason and "many" in message.reason
        assert await front.next() is None
        assert await front.end() == 0


@pytest.mark.parametrize("message", [None, Stop()])
async def test_without_a_beginning_it_ends(message: ToStreams | None) -> None:
    async with started() as front:
        if message is None:
            front.transport.close()
        else:
            front.tell(message)
        assert await front.end() == 0


def test_what_a_request_begins_with_follows_the_target_and_the_tenant() -> None:
    target = Target("https://me@pods.example:8443/gate/v1/", "m", endpoint="completions", stream=False)
    target = replace(target, also=("http://[::1]:80/v1",))
    scenario = Scenario(target, (Tenant("a"), Tenant("b", key="k")), ())
    heads = road_of(scenario, scenario.tenants[0]).heads
    assert heads[0].startswith(b"POST /gate/v1/completions HTTP/1.1\r\nhost: pods.example:8443\r\n")
    assert heads[1].startswith(b"POST /v1/completions HTTP/1.1\r\nhost: [::1]:80\r\n")
    assert all(b"\r\naccept: application/json\r\n" in head and head.endswith(b"\r\nx-request-id: ") for head in heads)
    assert b"authorization" not in heads[0]
    assert b"\r\nauthorization: Bearer k\r\n" in road_of(scenario, scenario.tenants[1]).heads[0]


# ---- somebody who does not read, in virtual time


class Ear:
    """The socket pair's transport. While it is `deaf`, what is written piles up."""

    def __init__(self) -> None:
        self.deaf = False
        self.told: list[FromStreams] = []
        self.unread_bytes = 0
        self._frames = from_streams()

    def get_write_buffer_size(self) -> int:
        return MOST_UNREAD_BYTES if self.deaf else 0

    def write(self, data: bytes) -> None:
        self.unread_bytes += len(data) if self.deaf else 0
        self.told += self._frames.feed(data)


Story = Callable[[Any, asyncio.Task[bool]], Coroutine[Any, Any, None]]


async def nothing(pipe: Any, running: asyncio.Task[bool]) -> None:
    return None


def run_phase(stage: World, scenario: Scenario, ear: Ear, *, own: Own | None = None, story: Story = nothing) -> bool:
    """A phase as the streams' process runs it."""
    pipe = End(to_streams())
    pipe.connection_made(cast(asyncio.WriteTransport, ear))
    quiet = Own(lambda: 0.0, lambda: 0.0, lambda: None, lambda: 1)

    async def whole() -> bool:
        meter = StrainMeter(stage.loop, stage.loop.time, own or quiet)
        meter.start()
        try:
            run = streams_module._run(stage.load(scenario), stage.index, pipe, meter, stage.loop)
            running = stage.loop.create_task(run)
            await story(pipe, running)
            return await running
        finally:
            meter.stop()

    return bool(live(stage, whole))


def test_what_is_not_read_waits_and_is_told_later_each_call_once() -> None:
    stage, ear = world(), Ear()

    async def story(pipe: Any, running: asyncio.Task[bool]) -> None:
        stage.loop.call_later(1.1, setattr, ear, "deaf", True)
        stage.loop.call_later(6.1, setattr, ear, "deaf", False)

    assert run_phase(stage, a_scenario(Arrivals("constant", rate=50), 10.0), ear, story=story)
    told = [message for message in ear.told if isinstance(message, Progress)]
    assert not ear.unread_bytes
    assert [message.at for message in told if 1.1 < message.at < 6.1] == []
    calls = calls_of(told, 0)
    assert len({call.request_id for call in calls}) == len(calls) == 500
    assert sum(sum(message.lanes[0].gaps.counts) for message in told) == 1000
    assert told[-1].lost_calls == 0
    assert isinstance(ear.told[-1], Ended)
    assert sum(message.strain.seconds for message in told) == pytest.approx(10.0, abs=0.3)


def test_what_is_never_read_is_bounded_and_the_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MOST_KEPT_CALLS", 100)
    stage, ear = world(), Ear()
    ear.deaf = True
    assert run_phase(stage, a_scenario(Arrivals("constant", rate=50), 10.0), ear)
    (progress, ended) = ear.told  # the phase's end is told in any case
    assert isinstance(progress, Progress) and isinstance(ended, Ended)
    assert (len(progress.lanes[0].calls), progress.lost_calls, progress.lanes[0].sent) == (100, 400, 500)


def test_time_limits_hold_while_nobody_reads() -> None:
    stage, ear = world(plan=lambda _: Plan(fault="hang")), Ear()
    ear.deaf = True
    target = Target("http://127.0.0.1:1/v1", "m", timeout_seconds=1.0)
    assert run_phase(stage, a_scenario(Arrivals("constant", rate=10), 5.0, target=target), ear)
    calls = calls_of([message for message in ear.told if isinstance(message, Progress)], 0)
    assert Counter(call.code for call in calls) == {"timeout": 50}
    assert max(call.ended - call.sent for call in calls) < 1.3


def test_a_fault_in_the_telling_ends_the_run_and_is_not_kept_for_itself() -> None:
    stage = world()

    def rss() -> int:
        if stage.loop.time() > 1002.0:
            raise OSError("no /proc here")
        return 1

    own = Own(lambda: 0.0, lambda: 0.0, lambda: None, rss)
    with pytest.raises(OSError, match="no /proc"):
        run_phase(stage, a_scenario(Arrivals("constant", rate=10), 500.0), Ear(), own=own)
    assert 1002.0 < stage.loop.time() < 1003.0


@pytest.mark.parametrize("message", [Stop(), None])
@pytest.mark.parametrize("at", [0.0, 0.25, 1.0, 2.0, 2.01])
@pytest.mark.parametrize("seed", range(4))
def test_a_word_from_the_other_end_is_heard_at_any_moment(at: float, message: ToStreams | None, seed: int) -> None:
    """In the moment in which the phase ends by itself, too: that the other end is gone must not be missed."""
    stage, ear = world(seed, plan=lambda _: Plan(ttft=0.0, itl=0.0)), Ear()
    left: list[Any] = []

    async def story(pipe: Any, running: asyncio.Task[bool]) -> None:
        stage.loop.call_later(at, pipe.messages.put_nowait, message)
        await running
        await asyncio.sleep(0.1)
        left.extend([] if pipe.messages.empty() else [pipe.messages.get_nowait()])

    listens = run_phase(stage, a_scenario(Arrivals("constant", rate=20), 2.0), ear, story=story)
    ended = ear.told[-1]
    assert isinstance(ended, Ended)
    is_heard = not left
    assert listens == (message is not None or not is_heard)
    if at < 2.0:
        assert is_heard and ended.reason == "stopped"
    if at > 2.0:
        assert not is_heard and ended.reason == ""
