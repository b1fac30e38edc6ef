"""The supervisor with real pods: turns, readiness, restarts, stops; and the deaths of gateways at many moments."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
import uvloop

from backends.offspring import Ending, Launch
from backends.supervisor import Backoff, Readiness, Running, State, Supervisor
from tests.instruments.until import until

ROOT = Path(__file__).parents[2]
INSTRUMENTS = ROOT / "tests" / "instruments"
URL = "http://127.0.0.1:9"
PLAIN = Readiness()
LONG = 30.0


class Ward:
    """A supervisor, a clock that can be put forward, and all that it told."""

    def __init__(self, first_seconds: float = 0.02) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.lines: list[str] = []
        self.ahead_seconds = 0.0
        loop = asyncio.get_running_loop()
        self.supervisor = Supervisor(
            clock=lambda: loop.time() + self.ahead_seconds,
            random=Random(1),
            on_output=lambda _name, line: self.lines.append(line),
            on_started=lambda *facts: self.told.append(("started", *facts)),
            on_ready=lambda *facts: self.told.append(("ready", *facts)),
            on_unready=lambda *facts: self.told.append(("unready", *facts)),
            on_exit=lambda *facts: self.told.append(("exit", *facts)),
            backoff=Backoff(first_seconds=first_seconds),
        )

    def watch(
        self, name: str, *words: str, readiness: Readiness = PLAIN, group: str = "gpu0", grace: float = 0.1
    ) -> None:
        command = (sys.executable, "-S", str(INSTRUMENTS / "forking_pod.py"), *words)
        self.supervisor.watch(name, Launch(command, {}, ending=Ending(grace_seconds=grace)), readiness, group=group)

    @property
    def kinds(self) -> list[str]:
        return [told[0] for told in self.told]

    def pod(self, name: str) -> int:
        pids = self.supervisor.pids(name)
        assert pids is not None
        assert pids.pod is not None
        return pids.pod

    async def heard(self, *told: object, times: int = 1) -> tuple[Any, ...]:
        """The last of the events that begin so, as soon as there are so many."""

        def found() -> list[tuple[Any, ...]]:
            return [event for event in self.told if event[: len(told)] == told]

        await until(lambda: len(found()) >= times, within=30, what=f"{told} × {times}, among {self.told},")
        return found()[times - 1]

    async def written(self, count: int) -> list[int]:
        """The pids of the pods' processes, as soon as so many have said theirs."""

        def pids() -> list[int]:
            return [int(line.removeprefix("pid ")) for line in self.lines if line.startswith("pid ")]

        await until(lambda: len(pids()) >= count, what=f"{count} processes")
        return pids()


@pytest.fixture
async def ward() -> AsyncIterator[Ward]:
    ward = Ward()
    yield ward
    ward.supervisor.kill_all()
    assert await ward.supervisor.stop_all(0)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid)]


class Asked:
    """A readiness check whose answer the test sets, and that remembers whom it was asked about."""

    def __init__(self, answer: str | None = None) -> None:
        self.answer = answer
        self.about: list[Running] = []

    async def __call__(self, running: Running) -> str | None:
        self.about.append(running)
        return self.answer


# -- ready ------------------------------------------------------------------------------------------------------------


async def test_a_pod_that_says_where_it_listens_is_ready(ward: Ward) -> None:
    ward.watch("chat-0", "ready")
    await ward.heard("ready", "chat-0", URL)
    assert ward.told == [("started", "chat-0", None), ("ready", "chat-0", URL)]
    assert ward.supervisor.state("chat-0") is State.READY


async def test_a_pod_with_a_given_url_is_ready_when_its_checks_pass(ward: Ward) -> None:
    check = Asked("it loads its weights")
    ward.watch("vllm-0", readiness=Readiness(url="http://10.0.0.7:8000", checks=(Asked(), check)))
    await until(lambda: len(check.about) >= 2)
    assert ward.told == [("started", "vllm-0", "http://10.0.0.7:8000")]
    check.answer = None
    await ward.heard("ready", "vllm-0", "http://10.0.0.7:8000")
    assert check.about[-1] == Running("vllm-0", "http://10.0.0.7:8000", ward.pod("vllm-0"))


async def test_a_pod_that_is_not_ready_in_time_is_ended_and_started_again(ward: Ward) -> None:
    ward.watch("mute", "stubborn", readiness=Readiness(start_seconds=0.15))
    _, _, reason, seconds = await ward.heard("exit", "mute")
    assert reason == "not ready within 0.15 s: it did not say where it listens"
    assert 0.01 <= seconds <= 0.02
    await ward.heard("exit", "mute", reason, times=2)


async def test_what_was_lacking_last_is_the_reason(ward: Ward) -> None:
    ward.watch("slow", "ready", readiness=Readiness(start_seconds=0.5, checks=(Asked("2 of 4 clients attached"),)))
    await ward.heard("exit", "slow", "not ready within 0.5 s: 2 of 4 clients attached")


async def test_a_check_that_raises_or_hangs_says_no(ward: Ward) -> None:
    async def breaks(_running: Running) -> str | None:
        raise ConnectionError("refused")

    async def hangs(_running: Running) -> str | None:
        await asyncio.Event().wait()
        return None

    ward.watch("a", "ready", readiness=Readiness(start_seconds=1, checks=(breaks,)), group="a")
    ward.watch("b", "ready", readiness=Readiness(start_seconds=1, checks=(hangs,), check_seconds=0.05), group="b")
    await ward.heard("exit", "a", "not ready within 1 s: ConnectionError: refused")
    await ward.heard("exit", "b", "not ready within 1 s: no answer within 0.05 s")


async def test_checks_go_on_while_a_pod_serves(ward: Ward) -> None:
    check = Asked()
    ward.watch("chat-0", "ready", readiness=Readiness(checks=(check,), interval_seconds=0.01, failures=3))
    await ward.heard("ready")
    check.answer = "its MPS server is in FAULT"
    asked = len(check.about)
    assert await ward.heard("unready") == ("unready", "chat-0", "its MPS server is in FAULT")
    assert len(check.about) >= asked + 3
    assert ward.supervisor.state("chat-0") is State.UNREADY
    check.answer = None
    await ward.heard("ready", times=2)
    assert ward.supervisor.state("chat-0") is State.READY
    assert "exit" not in ward.kinds


async def test_a_pod_that_stays_unready_is_started_again(ward: Ward) -> None:
    check = Asked()
    readiness = Readiness(checks=(check,), interval_seconds=0.01, failures=2, liveness_seconds=20)
    ward.watch("chat-0", "ready", readiness=readiness)
    await ward.heard("ready")
    check.answer = "no answer"
    await ward.heard("unready")
    ward.ahead_seconds += 20
    assert (await ward.heard("exit"))[2] == "not ready for 20 s: no answer"
    check.answer = None
    await ward.heard("ready", times=2)


# -- again ------------------------------------------------------------------------------------------------------------


async def test_a_killed_pod_is_told_at_once_and_comes_back(ward: Ward) -> None:
    ward.watch("chat-0", "ready")
    await ward.heard("ready")
    first = ward.pod("chat-0")
    os.kill(first, signal.SIGKILL)
    assert (await ward.heard("exit"))[:3] == ("exit", "chat-0", "was killed by SIGKILL")
    await ward.heard("ready", times=2)
    assert ward.pod("chat-0") != first


async def test_what_a_dead_pod_left_behind_is_gone_before_the_next_one_starts(ward: Ward) -> None:
    ward.watch("chat-0", "stubborn", "child", "session", "ready")
    await ward.heard("ready")
    pids = await ward.written(3)
    os.kill(ward.pod("chat-0"), signal.SIGKILL)
    await ward.heard("started", times=2)
    assert alive(pids) == []


async def test_after_a_good_run_a_pod_starts_again_at_once_and_then_more_slowly(ward: Ward) -> None:
    ward.watch("chat-0", "ready")
    await ward.heard("ready")
    ward.ahead_seconds += 60
    os.kill(ward.pod("chat-0"), signal.SIGKILL)
    assert (await ward.heard("exit"))[3] == 0
    for times in (2, 3, 4):
        await ward.heard("ready", times=times)
        os.kill(ward.pod("chat-0"), signal.SIGKILL)
        await ward.heard("exit", times=times)
    seconds = [told[3] for told in ward.told if told[0] == "exit"]
    for waited, most in zip(seconds[1:], (0.02, 0.04, 0.08), strict=True):
        assert most / 2 <= waited <= most


async def test_a_program_that_is_not_there_is_tried_again_and_again(ward: Ward) -> None:
    ward.supervisor.watch("typo", Launch(("/nowhere/vllm",), {}), group="gpu0")
    assert (await ward.heard("exit", times=3))[2] == "cannot run '/nowhere/vllm': No such file or directory"


async def test_a_system_that_refuses_to_fork_is_asked_again(ward: Ward) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # what is open stays so
    try:
        ward.watch("chat-0", "ready")
        assert (await ward.heard("exit"))[2] == "it could not be started: Too many open files"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await ward.heard("ready")


@pytest.mark.parametrize(
    ("bad_runs", "most"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (100_000, 30.0)]
)
def test_waits_double_up_to_half_a_minute(bad_runs: int, most: float) -> None:
    random = Random(7)
    waits = [Backoff().seconds(bad_runs, random) for _ in range(200)]
    assert all(most / 2 <= wait <= most for wait in waits)
    assert most == 0 or len(set(waits)) > 100, "pods that fell together would rise together"


# -- turns ------------------------------------------------------------------------------------------------------------


async def test_pods_of_a_group_start_one_after_the_other(ward: Ward) -> None:
    hold = Asked("not yet")
    ward.watch("a", "ready", readiness=Readiness(checks=(hold,), interval_seconds=0.02))
    ward.watch("b", "ready")
    ward.watch("other", "ready", group="gpu1")
    await ward.heard("ready", "other")
    await until(lambda: hold.about)
    assert ward.supervisor.state("b") is State.WAITING
    assert ward.supervisor.pids("b") is None
    hold.answer = None
    await ward.heard("ready", "b")
    own = [told[:2] for told in ward.told if told[1] != "other"]
    assert own == [("started", "a"), ("ready", "a"), ("started", "b"), ("ready", "b")]


async def test_a_start_that_failed_gives_its_turn_away(ward: Ward) -> None:
    ward.watch("a", readiness=Readiness(start_seconds=0.1))
    ward.watch("b", "ready")
    await ward.heard("ready", "b")
    events = [told[:2] for told in ward.told]
    assert events.index(("exit", "a")) < events.index(("started", "b"))


async def test_a_pod_that_waits_for_its_turn_is_stopped_at_once(ward: Ward) -> None:
    ward.watch("a")
    ward.watch("b", "ready")
    ward.watch("c", "ready")
    await ward.heard("started", "a")
    assert await ward.supervisor.stop("b", LONG)
    assert ward.supervisor.state("b") is State.STOPPED
    assert await ward.supervisor.stop("a", LONG)
    await ward.heard("ready", "c")
    assert "b" not in {told[1] for told in ward.told}


# -- stop -------------------------------------------------------------------------------------------------------------


async def test_a_stopped_pod_stays_stopped_until_it_is_watched_again(ward: Ward) -> None:
    ward.watch("chat-0", "child", "daemon", "ready")
    await ward.heard("ready")
    pids = await ward.written(3)
    assert await ward.supervisor.stop("chat-0", LONG)
    assert alive(pids) == []
    assert ward.told[-1] == ("exit", "chat-0", "stopped", None)
    assert ward.supervisor.pids("chat-0") is None
    ward.watch("chat-0", "ready")
    await ward.heard("ready", times=2)
    with pytest.raises(ValueError, match="supervised already"):
        ward.watch("chat-0", "ready")


async def test_a_pod_is_stopped_while_it_starts_and_while_it_pauses() -> None:
    ward = Ward(first_seconds=1000)
    ward.watch("starts", group="a")
    ward.watch("pauses", "exit", group="b")
    await ward.heard("exit", "pauses")
    await until(lambda: ward.supervisor.state("pauses") is State.PAUSING)
    await ward.heard("started", "starts")
    assert await ward.supervisor.stop_all(LONG)
    assert {ward.supervisor.state(name) for name in ("starts", "pauses")} == {State.STOPPED}


async def test_all_pods_end_at_the_same_time(ward: Ward) -> None:
    for name in ("a", "b", "c"):
        ward.watch(name, "stubborn", "ready", group=name)
        await ward.heard("ready", name)
    stopping = asyncio.ensure_future(ward.supervisor.stop_all(0.3))
    await until(lambda: {ward.supervisor.state(name) for name in "abc"} == {State.ENDING})
    assert "exit" not in ward.kinds
    assert await stopping
    assert ward.kinds.count("exit") == 3


async def test_a_second_signal_kills_at_once_what_was_given_grace(ward: Ward) -> None:
    ward.watch("chat-0", "stubborn", "session", "ready")
    await ward.heard("ready")
    pids = await ward.written(2)
    stopping = asyncio.ensure_future(ward.supervisor.stop_all(LONG))
    await until(lambda: ward.supervisor.state("chat-0") is State.ENDING)
    ward.supervisor.kill_all()
    assert await asyncio.wait_for(stopping, 10)
    assert alive(pids) == []


async def test_a_later_stop_may_shorten_the_grace(ward: Ward) -> None:
    ward.watch("chat-0", "stubborn", "ready")
    await ward.heard("ready")
    patient = asyncio.ensure_future(ward.supervisor.stop("chat-0", LONG))
    await until(lambda: ward.supervisor.state("chat-0") is State.ENDING)
    assert await ward.supervisor.stop("chat-0", 0.1)
    assert await patient


async def test_a_cancelled_supervisor_leaves_nothing(ward: Ward) -> None:
    ward.watch("chat-0", "stubborn", "session", "ready")
    await ward.heard("ready")
    pids = await ward.written(2)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "supervise chat-0"]
    task.cancel()
    await until(lambda: alive(pids) == [])


# -- the other loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "test",
    [
        test_a_killed_pod_is_told_at_once_and_comes_back,
        test_checks_go_on_while_a_pod_serves,
        test_pods_of_a_group_start_one_after_the_other,
        test_a_stopped_pod_stays_stopped_until_it_is_watched_again,
    ],
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_it_is_the_same_on_uvloop(test: Callable[[Ward], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        ward = Ward()
        try:
            await test(ward)
        finally:
            ward.supervisor.kill_all()
            assert await ward.supervisor.stop_all(0)

    uvloop.run(run())


# -- the gateway's death ----------------------------------------------------------------------------------------------


def doom(loop: str, moments: list[str], *pod: str, grace: float = 0.02) -> list[dict[str, Any]]:
    """Kill a gateway at each of these moments (see tests/instruments/doomed_gateway.py), and see what is left."""
    done = subprocess.run(
        [sys.executable, str(INSTRUMENTS / "doomed_gateway.py"), loop, str(grace), *pod],
        input="\n".join(moments),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert [end["moment"] for end in ends] == moments
    return ends


def spread(kind: str, step: int, last: int) -> list[str]:
    """Moments from the first to beyond the last one of a start."""
    return [f"{kind} {number}" for number in range(1, last + 1, step)]


HARD_TO_BE_RID_OF = ("child", "session", "daemon", "stubborn", "child", "session", "daemon", "ready")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_gateway_killed_at_any_line_of_a_start_leaves_nothing(loop: str) -> None:
    ends = doom(loop, [*spread("gateway", 24, 720), "gateway 100000"], *HARD_TO_BE_RID_OF)
    assert [end for end in ends if end["left"]] == []
    assert sum(end["reached"] for end in ends) >= 20
    assert not ends[-1]["reached"], "a gateway that nobody killed did not get its pod ready"


def test_a_gateway_killed_at_any_line_of_the_guardians_start_leaves_nothing() -> None:
    ends = doom("uvloop", spread("by-guardian", 4, 130), *HARD_TO_BE_RID_OF)
    assert [end for end in ends if end["left"]] == []
    assert sum(end["reached"] for end in ends) >= 20


def test_a_gateway_killed_at_any_time_of_a_start_leaves_nothing() -> None:
    ends = doom("uvloop", spread("microseconds", 2_500, 80_000), *HARD_TO_BE_RID_OF)
    assert [end for end in ends if end["left"]] == []


def test_a_guardian_killed_at_any_line_by_which_it_starts_a_pod_takes_the_pod_with_it() -> None:
    ends = doom("asyncio", [f"guardian {line}" for line in range(1, 41)], "stubborn", "ready")
    assert [end for end in ends if end["left"]] == []
    assert 20 <= sum(end["reached"] for end in ends) < 40, "all lines were meant, and some beyond"


def test_a_gateway_that_left_its_descriptors_to_a_fork_is_missed_all_the_same() -> None:
    (end,) = doom("uvloop", ["copied 1"], *HARD_TO_BE_RID_OF)
    assert end["left"] == 0


def test_a_pod_ends_well_though_nobody_reads_what_it_writes_any_more(tmp_path: Path) -> None:
    mark = tmp_path / "ended-well"
    (end,) = doom("asyncio", ["gateway 100000"], "verbose", "marks", str(mark), "ready", grace=LONG)
    assert end["left"] == 0
    assert mark.exists()
