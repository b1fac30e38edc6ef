from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest

from backends.engines.engine import Reading
from backends.fleet import Fleet, FleetPod, PodState
from backends.health import FOLLOW_UP_SECONDS, Health, Pace
from backends.inquiry import LARGEST_ANSWER_BYTES
from backends.outcome import Ending, Outcome
from tenancy.accounts import Capacity
from tenancy.policy import Pod, Policy, ServedModel
from tests.instruments.pods import simulator
from tests.instruments.until import until

QUICK = Pace(health_seconds=0.02, reading_seconds=0.02, timeout_seconds=0.15)
SLOW = Pace(health_seconds=3600.0, reading_seconds=3600.0, timeout_seconds=5.0)
GAUGES = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.25\n"
SIZE = b'vllm:cache_config_info{block_size="32",num_gpu_blocks="100"} 1\n'


class Server:
    """A pod's HTTP face that says what a test wants: `answers` by path, or `act` for what is no proper answer."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {"/health": (200, b""), "/metrics": (200, GAUGES + SIZE)}
        self.act: Callable[[asyncio.StreamWriter], None] | None = None
        self.slow: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.under_way = 0
        self.most_under_way = 0
        self.connections = 0
        self.url = ""

    @asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[Server]:
        """Listen until the end of the block."""
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            self.connections += 1
            try:
                await self._serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self.connections -= 1
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ", 2)[1]
            self.asked[path] += 1
            self.keys |= {line for line in head.split("\r\n") if line.lower().startswith("authorization")}
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                await (asyncio.Event() if path == self.slow else self.gate).wait()
            finally:
                self.under_way -= 1
            if self.act is not None:
                self.act(writer)
                await writer.drain()
                continue
            status, body = self.answers.get(path, (404, b"not here"))
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()


def watched() -> set[str]:
    """The tasks that ask pods."""
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("health of")}


class House:
    """One pod at `url`, its fleet and its health, running for the length of the block."""

    def __init__(self, url: str | None, pace: Pace = QUICK, **facts: object) -> None:
        facts = {"engine": "vllm"} | facts
        pod = Pod("pod", ("gpu0",), (ServedModel("tiny", "tiny"),), url=url, **facts)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        self.states: list[tuple[PodState, Capacity | None]] = []
        self.readings: list[Reading] = []
        self.is_closing = False
        self.fleet = Fleet(
            Policy(pods={"pod": pod}),
            clock=loop.time,
            on_change=lambda: self.states.append((self.pod.state, self.pod.capacity)),
            on_doubt=lambda name: self.health.check(name),
        )
        self.health = Health(
            self.fleet,
            clock=loop.time,
            call_later=loop.call_later,
            random=Random(1),
            pace=pace,
            on_reading=lambda _, reading: self.readings.append(reading),
            is_closing=lambda _: self.is_closing,
        )

    @property
    def pod(self) -> FleetPod:
        return self.fleet.pods["pod"]

    async def becomes(self, state: PodState) -> None:
        await until(lambda: self.pod.state is state, what=f"{state}")

    async def is_asked_again(self) -> None:
        count = len(self.readings)
        await until(lambda: len(self.readings) > count, what="another reading")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[House]:
        task = asyncio.create_task(self.health.run())
        try:
            yield self
        finally:
            assert not task.done(), "the probes have ended by themselves"
            task.cancel()
            await asyncio.wait({task})
            assert watched() == set()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().open() as opened:
        yield opened


async def test_a_pod_that_answers_becomes_ready_with_its_capacity_known_before(server: Server) -> None:
    async with House(server.url, api_key="pod-key").running() as house:
        await house.becomes(PodState.READY)
        known = Capacity(kv_bytes=None, slots=None, block_tokens=32, kv_tokens=3200)
        assert house.states == [(PodState.STARTING, known), (PodState.READY, known)]
        assert house.readings[0].kv_usage == 0.25
        assert house.fleet.reading("pod") is house.readings[-1]
        assert server.keys == {"authorization: Bearer pod-key"}


async def test_the_engine_is_recognised_where_the_file_does_not_say(server: Server) -> None:
    async with House(server.url, engine=None).running() as house:
        await house.becomes(PodState.READY)
        assert house.pod.engine is not None
        assert house.pod.engine.name == "vllm"
        await house.is_asked_again()
        assert server.asked["/props"] == 1


async def test_a_server_that_publishes_nothing_is_openai_and_ready(server: Server) -> None:
    server.answers = {}
    async with House(server.url, engine=None).running() as house:
        await house.becomes(PodState.READY)
        assert house.pod.engine is not None
        assert house.pod.engine.name == "openai"
        assert house.readings[0].busy is None


async def test_a_pod_that_dies_fails_and_is_found_again(server: Server) -> None:
    async with House(server.url).running() as house:
        await house.becomes(PodState.READY)
        server.answers["/health"] = (500, b"engine dead")
        await house.becomes(PodState.FAILING)
        assert house.pod.last_error == "GET /health answered 500: engine dead"
        server.answers["/health"] = (200, b"")
        await house.becomes(PodState.READY)


async def test_nobody_there_is_a_finding_and_the_asking_goes_on() -> None:
    server = Server()
    async with server.open():
        port = int(server.url.rpartition(":")[2])
    async with House(server.url).running() as house:
        await until(lambda: house.pod.last_error)
        assert house.pod.state is PodState.STARTING
        async with server.open(port):
            await house.becomes(PodState.READY)


async def test_a_wrong_key_is_said_so(server: Server) -> None:
    server.answers["/health"] = (401, b"")
    async with House(server.url).running() as house:
        await until(lambda: house.pod.last_error)
        assert house.pod.last_error == "GET /health answered 401: the pod does not accept its `apiKey`"
        assert house.pod.state is PodState.STARTING


async def test_an_address_of_something_else_is_no_pod(server: Server) -> None:
    del server.answers["/health"]
    async with House(server.url).running() as house:
        await until(lambda: house.pod.last_error)
        assert house.pod.last_error == "GET /health answered 404: not here"
        assert house.pod.state is PodState.STARTING


async def test_a_pod_that_loads_is_coming(server: Server) -> None:
    server.answers["/health"] = (503, b'{"error":{"message":"Loading model"}}')
    async with House(server.url).running() as house:
        await until(lambda: server.asked["/health"] >= 3)
        assert house.pod.is_coming
        server.answers["/health"] = (200, b"")
        await house.becomes(PodState.READY)


async def test_a_pod_that_answers_too_late_fails_and_comes_back(server: Server) -> None:
    async with House(server.url).running() as house:
        await house.becomes(PodState.READY)
        server.gate.clear()
        await house.becomes(PodState.FAILING)
        assert "no answer in 0.15 s" in house.pod.last_error
        server.gate.set()
        await house.becomes(PodState.READY)


@pytest.mark.parametrize(
    "act",
    [
        lambda writer: writer.write(b"nonsense\r\n\r\n"),
        lambda writer: writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"),
        lambda writer: writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (LARGEST_ANSWER_BYTES + 1)),
        lambda writer: writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://[\r\ncontent-length: 0\r\n\r\n"),
        lambda writer: writer.transport.abort(),
        lambda writer: writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-encoding: gzip\r\n\r\nabc"),
    ],
    ids=["nonsense", "half", "endless", "redirect", "reset", "coding"],
)
async def test_no_answer_ends_the_asking(server: Server, act: Callable[[asyncio.StreamWriter], None]) -> None:
    server.act = act
    async with House(server.url).running() as house:
        await until(lambda: sum(server.asked.values()) >= 3)
        server.act = None
        await house.becomes(PodState.READY)


async def test_a_pod_without_metrics_is_ready_and_tells_nothing(server: Server) -> None:
    del server.answers["/metrics"]
    async with House(server.url).running() as house:
        await house.becomes(PodState.READY)
        assert house.readings[0].busy is None


async def test_metrics_that_come_too_late_take_no_pod_out_that_is_well(server: Server) -> None:
    async with House(server.url).running() as house:
        await house.becomes(PodState.READY)
        server.slow = "/metrics"
        asked = server.asked["/metrics"]
        await until(lambda: server.asked["/metrics"] >= asked + 4)
        assert house.pod.state is PodState.READY


async def test_a_poke_asks_at_once_and_many_are_one(server: Server) -> None:
    async with House(server.url, SLOW).running() as house:
        await house.becomes(PodState.READY)
        await until(lambda: house.readings)
        server.gate.clear()
        house.health.poke("pod")
        await until(lambda: server.under_way == 1)
        for _ in range(100):
            house.health.poke("pod")
        server.gate.set()
        await until(lambda: len(house.readings) == 3)  # the first, the poked one, and one for all that came meanwhile
        await asyncio.sleep(0.05)
        assert len(house.readings) == 3
        assert server.most_under_way == 1
        assert server.asked["/health"] == 1  # pokes ask who is there, not whether it is well


async def test_a_doubt_asks_for_health_at_once_though_it_was_well_a_moment_ago(server: Server) -> None:
    async with House(server.url, SLOW).running() as house:
        await house.becomes(PodState.READY)
        server.answers["/health"] = (500, b"")
        house.fleet.report("pod", Outcome(Ending.RESET))
        await house.becomes(PodState.FAILING)
        server.answers["/health"] = (200, b"")
        await house.becomes(PodState.READY)  # a failing pod is asked often, whatever the pace


async def test_while_something_closes_a_pod_is_asked_at_growing_distances_until_it_let_go(server: Server) -> None:
    async with House(server.url, SLOW).running() as house:
        await house.becomes(PodState.READY)
        await until(lambda: house.readings)
        house.readings.clear()
        house.is_closing = True
        house.health.poke("pod")
        await until(lambda: len(house.readings) >= 5)
        house.is_closing = False
        times = [reading.asked_at for reading in house.readings]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert all(gap >= least - 0.001 for gap, least in zip(gaps, FOLLOW_UP_SECONDS, strict=False))
        await house.is_asked_again()  # the one that was on its way
        count = len(house.readings)
        await asyncio.sleep(0.2)
        assert len(house.readings) == count


async def test_a_reading_is_dated_when_it_was_asked_for(server: Server) -> None:
    loop = asyncio.get_running_loop()
    async with House(server.url, SLOW).running() as house:
        await house.becomes(PodState.READY)
        await until(lambda: house.readings)
        server.gate.clear()
        house.health.poke("pod")
        await until(lambda: server.under_way == 1)
        asked_by = loop.time()
        await asyncio.sleep(0.02)
        server.gate.set()
        await until(lambda: len(house.readings) == 2)
        assert house.readings[1].asked_at <= asked_by


async def test_what_is_asked_once_is_asked_again_in_the_next_life(server: Server) -> None:
    server.answers = {
        "/health": (200, b""),
        "/metrics": (200, b"llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n"),
        "/props": (200, b'{"total_slots":2,"default_generation_settings":{"n_ctx":512}}'),
    }
    async with House(None, engine="llama.cpp").running() as house:
        house.fleet.started("pod", server.url)
        await house.becomes(PodState.READY)
        await house.is_asked_again()
        assert server.asked["/props"] == 1
        assert server.asked["/slots"] == 0
        assert house.pod.capacity == Capacity(kv_bytes=None, slots=2, kv_tokens=1024)
        house.fleet.exited("pod", "crashed")
        house.fleet.started("pod", server.url)
        await house.becomes(PodState.READY)
        await house.is_asked_again()
        assert server.asked["/props"] == 2


async def test_an_answer_of_an_earlier_life_says_nothing_of_this_one(server: Server) -> None:
    async with House(None, SLOW).running() as house:
        server.gate.clear()
        house.fleet.started("pod", server.url)
        await until(lambda: server.under_way == 1)
        house.fleet.exited("pod", "crashed")
        server.gate.set()
        await until(lambda: server.asked["/metrics"])
        await until(lambda: server.under_way == 0)
        await asyncio.sleep(0.02)
        assert (house.pod.state, house.pod.last_error) == (PodState.DOWN, "crashed")
        assert house.readings == []


async def test_pods_that_come_later_are_asked_and_those_that_go_are_not(server: Server) -> None:
    async with House(server.url, SLOW).running() as house, Server().open() as other:
        await house.becomes(PodState.READY)
        house.fleet.add(Pod("late", ("gpu1",), (), engine="vllm", url=other.url))
        await until(lambda: house.fleet.pods["late"].state is PodState.READY)
        house.fleet.remove("late")
        house.health.poke("late")
        await until(lambda: watched() == {"health of pod"})


async def test_no_connection_is_left_open(server: Server) -> None:
    async with House(server.url).running() as house:
        await house.becomes(PodState.READY)
        assert server.connections == 1  # polls of one pod come one after the other
    await until(lambda: server.connections == 0)


async def test_many_pods_are_asked_less_often_and_few_at_a_time(server: Server) -> None:
    pace = Pace(health_seconds=0.01, reading_seconds=0.01, timeout_seconds=5.0, at_once=4, most_per_second=200.0)
    async with House(server.url, pace).running() as house:
        for number in range(99):
            house.fleet.add(Pod(f"pod-{number}", ("gpu0",), (), engine="vllm", url=server.url))
        await until(lambda: all(pod.state is PodState.READY for pod in house.fleet.pods.values()))
        house.readings.clear()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await until(lambda: len(house.readings) >= 100)
        assert loop.time() - begun > 0.25
        assert server.most_under_way <= 4 + 1


async def test_a_real_simulator_tells_its_pool_and_who_is_there() -> None:
    async with (
        simulator(slots=2, kv_blocks=64, block=16, itl="20ms") as pod,
        House(pod.url, engine=None).running() as house,
    ):
        await house.becomes(PodState.READY)
        assert house.pod.capacity is not None
        assert (house.pod.capacity.kv_tokens, house.pod.capacity.block_tokens) == (64 * 16, 16)
        body = {"model": "simulator", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}
        call = asyncio.create_task(pod.client.post("/v1/chat/completions", json=body))
        await until(lambda: house.readings[-1].busy == 1)
        assert (await call).status_code == 200
        await until(lambda: house.readings[-1].busy == 0)
