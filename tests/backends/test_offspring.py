"""Guardians and pods as real processes: what starts them, what they are told, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path

import psutil
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from backends.offspring import Command, Ending, Launch, Offspring, Signal, Wait
from backends.offspring.lines import Allowance, Lines
from tests.instruments.until import until

POD = Path(__file__).parents[1] / "instruments" / "forking_pod.py"
ENDING = Ending()
LONG = 30.0  # a grace that no test waits for


class Birth:
    """Starts offspring, keeps what they write, and ends them with the test."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._all: list[Offspring] = []

    def command(self, *argv: str, ending: Ending = ENDING, env: Mapping[str, str] | None = None) -> Offspring:
        offspring = Offspring(Launch(argv, env or {}, ending=ending), self.lines.append)
        self._all.append(offspring)
        return offspring

    def pod(self, *words: str, ending: Ending = ENDING) -> Offspring:
        return self.command(sys.executable, "-S", str(POD), *words, ending=ending)

    def python(self, code: str, ending: Ending = ENDING, env: Mapping[str, str] | None = None) -> Offspring:
        return self.command(sys.executable, "-S", "-c", code, ending=ending, env=env)

    @property
    def pids(self) -> list[int]:
        return [int(line.removeprefix("pid ")) for line in self.lines if line.startswith("pid ")]

    async def grown(self, count: int) -> list[int]:
        """The pids of the pod's processes, as soon as there are so many."""
        await until(lambda: len(self.pids) == count, what=f"{count} processes")
        return self.pids

    async def end(self) -> None:
        for offspring in self._all:
            offspring.kill()
            await asyncio.wait_for(offspring.gone, 10)


@pytest.fixture
async def birth() -> AsyncIterator[Birth]:
    birth = Birth()
    yield birth
    await birth.end()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid)]


async def within(
    future: asyncio.Future[str] | asyncio.Future[int] | asyncio.Future[None], seconds: float = 10.0
) -> object:
    return await asyncio.wait_for(asyncio.shield(future), seconds)


# -- the start --------------------------------------------------------------------------------------------------------


async def test_a_pod_is_the_guardians_child_in_a_session_of_its_own(birth: Birth) -> None:
    offspring = birth.pod("ready")
    assert await within(offspring.announced) == "http://127.0.0.1:9"
    pod = offspring.pod_pid
    assert pod is not None
    assert psutil.Process(pod).ppid() == offspring.guardian_pid
    assert os.getsid(pod) == os.getpgid(pod) == pod
    assert os.getsid(offspring.guardian_pid) == offspring.guardian_pid


async def test_a_pod_gets_its_environment_and_nothing_else(birth: Birth) -> None:
    offspring = birth.command("/usr/bin/env", env={"WHO": "chat-0"})
    await within(offspring.gone)
    assert birth.lines == ["WHO=chat-0"]


async def test_an_environment_larger_than_the_pipe_arrives_whole(birth: Birth) -> None:
    env = {f"V{number}": str(number) * 100_000 for number in range(8)}
    offspring = birth.python("import os; print(sum(len(v) for k, v in os.environ.items() if k[0] == 'V'))", env=env)
    await within(offspring.gone)
    assert birth.lines == ["800000"]


async def test_a_pod_has_no_trace_of_the_guardians_signals_and_descriptors(birth: Birth) -> None:
    code = "import os; print(open('/proc/self/status').read()); print('fds', sorted(os.listdir('/proc/self/fd')))"
    offspring = birth.command(sys.executable, "-S", "-c", code)
    await within(offspring.gone)
    status = "\n".join(birth.lines)
    assert re.search(r"SigBlk:\s+0+$", status, re.MULTILINE)
    # Nothing beyond what any child of ours ignores: Python's own two, and what we were started with.
    plain = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, stdout=asyncio.subprocess.PIPE)
    told, _ = await plain.communicate()
    assert _ignored(status) & ~_ignored(told.decode()) == 0
    assert birth.lines[-1] == "fds ['0', '1', '2', '3']"  # 3: the listing itself


def _ignored(status: str) -> int:
    found = re.search(r"SigIgn:\s+([0-9a-f]+)", status)
    assert found is not None
    return int(found[1], 16)


async def test_only_the_gateway_holds_the_end_of_the_pipe_by_which_a_guardian_lives(birth: Birth) -> None:
    first, second = birth.pod("child", "ready"), birth.pod("child", "ready")
    await within(first.announced)
    await within(second.announced)
    stranger = await asyncio.create_subprocess_exec("/bin/sleep", "60", close_fds=False)
    try:
        await until(lambda: psutil.Process(stranger.pid).name() == "sleep")
        for guardian in (first.guardian_pid, second.guardian_pid):
            pipe = os.readlink(f"/proc/{guardian}/fd/0")
            holders = [pid for pid in psutil.pids() if pid != guardian and pipe in descriptors(pid)]
            assert holders == [os.getpid()]
    finally:
        stranger.kill()
        await stranger.wait()


def descriptors(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # the listing's own is closed by now
                found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


async def test_a_program_that_is_not_there_is_named(birth: Birth) -> None:
    offspring = birth.command("/nowhere/vllm", "serve")
    assert await within(offspring.exited) == "cannot run '/nowhere/vllm': No such file or directory"
    await within(offspring.gone)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("pass", "exited with status 0"),
        ("import sys; sys.exit(3)", "exited with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
async def test_the_end_of_a_pod_is_told_in_words(birth: Birth, code: str, words: str) -> None:
    offspring = birth.python(code)
    assert await within(offspring.exited) == words
    await within(offspring.gone)
    assert offspring.pod_pid is None


async def test_a_guardian_is_small(birth: Birth) -> None:
    offspring = birth.pod("ready")
    await within(offspring.announced)
    assert psutil.Process(offspring.guardian_pid).memory_info().rss < 14 * 2**20


async def test_starting_and_ending_leaves_no_descriptor_open(birth: Birth) -> None:
    await within(birth.python("pass").gone)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await within(birth.python("pass").gone)
    assert len(os.listdir("/proc/self/fd")) == before


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_a_pod_that_ends_at_sigterm_is_not_waited_for_longer(birth: Birth) -> None:
    offspring = birth.pod("child", "ready")
    pids = await birth.grown(2)
    offspring.end(LONG)
    await within(offspring.gone)
    assert offspring.exited.result() == "was killed by SIGTERM"
    assert alive(pids) == []


async def test_what_ignores_sigterm_is_killed_after_the_grace(birth: Birth) -> None:
    offspring = birth.pod("stubborn", "child", "ready")
    pids = await birth.grown(2)
    offspring.end(0.2)
    await within(offspring.gone)
    assert offspring.exited.result() == "was killed by SIGKILL"
    assert alive(pids) == []


async def test_no_session_or_double_fork_gets_away(birth: Birth) -> None:
    offspring = birth.pod("child", "session", "daemon", "stubborn", "child", "session", "daemon", "ready")
    pids = await birth.grown(7)
    offspring.end(0.1)
    await within(offspring.gone)
    assert alive(pids) == []


async def test_a_pod_that_flees_by_forking_is_caught(birth: Birth) -> None:
    offspring = birth.pod("flee", "ready")
    await within(offspring.announced)
    offspring.end(0.1)
    await within(offspring.gone)


async def test_what_a_pod_left_behind_when_it_ended_is_ended_too(birth: Birth) -> None:
    offspring = birth.pod("child", "session", "stubborn", "daemon", "exit", ending=Ending(grace_seconds=0.1))
    pids = await birth.grown(4)
    assert await within(offspring.exited) == "exited with status 0"
    await within(offspring.gone)
    assert alive(pids) == []


async def test_a_stopped_pod_hears_the_signal(birth: Birth, tmp_path: Path) -> None:
    mark = tmp_path / "ended-well"
    offspring = birth.pod("marks", str(mark), "ready")
    (pod,) = await birth.grown(1)
    os.kill(pod, signal.SIGSTOP)
    offspring.end(LONG)
    await within(offspring.gone)
    assert mark.exists()


async def test_a_kill_order_cuts_a_long_grace_short(birth: Birth) -> None:
    offspring = birth.pod("stubborn", "session", "ready")
    pids = await birth.grown(2)
    offspring.end(LONG)
    offspring.kill()
    await within(offspring.gone)
    assert alive(pids) == []


async def test_a_later_order_shortens_the_grace_and_never_lengthens_it(birth: Birth) -> None:
    offspring = birth.pod("stubborn", "ready")
    await within(offspring.announced)
    offspring.end(LONG)
    offspring.end(0.1)
    offspring.end(LONG)
    await within(offspring.gone)


async def test_the_ending_runs_step_by_step_in_the_pods_environment(birth: Birth) -> None:
    steps = (
        Command(("/bin/sh", "-c", "echo first $WHO; kill -0 $PENSTOCK_POD_PID && echo it lives")),
        Signal("SIGUSR1"),
        Wait(5.0),
        Signal("SIGINT"),
        Wait(),
    )
    code = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("second", flush=True))
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
print("up", flush=True)
while True: signal.pause()
"""
    offspring = birth.python(code, Ending((*steps[:2], Wait(0.1), *steps[3:])), env={"WHO": "chat-0"})
    await until(lambda: "up" in birth.lines)
    offspring.end(LONG)
    await within(offspring.gone)
    assert birth.lines == ["up", "first chat-0", "it lives", "second"]
    assert offspring.exited.result() == "exited with status 0"


async def test_a_command_that_hangs_or_fails_does_not_hold_up_the_ending(birth: Birth) -> None:
    steps = (
        Command(("/bin/sleep", "60"), timeout_seconds=0.1),
        Command(("/bin/false",)),
        Command(("/nowhere/mps-control",)),
        Signal(),
        Wait(),
    )
    offspring = birth.pod("ready", ending=Ending(steps))
    await birth.grown(1)
    offspring.end(LONG)
    await within(offspring.gone)
    assert birth.lines[-4:] == [
        "/bin/sleep of the pod's ending took more than 0.1 s, and is killed",
        "/bin/false of the pod's ending came to its end with 1",
        "cannot run '/nowhere/mps-control': No such file or directory",
        "/nowhere/mps-control of the pod's ending came to its end with 127",
    ]
    assert offspring.exited.result() == "was killed by SIGTERM"


async def test_an_order_to_end_that_comes_with_the_launch_starts_nothing(birth: Birth) -> None:
    offspring = birth.pod("ready")
    offspring.end(LONG)
    await within(offspring.gone)
    assert not offspring.started.done() or offspring.exited.result().startswith("was killed")


# -- the death of one of them -----------------------------------------------------------------------------------------


async def test_a_guardian_does_not_mind_the_signals_of_terminals_and_services(birth: Birth) -> None:
    offspring = birth.pod("ready")
    pids = await birth.grown(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(offspring.guardian_pid, number)
    await until(lambda: pending_signals(offspring.guardian_pid) == 0)
    assert alive(pids) == pids
    offspring.end(LONG)
    await within(offspring.gone)
    assert alive(pids) == []


def pending_signals(pid: int) -> int:
    found = re.search(r"ShdPnd:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1], 16)


async def test_a_pod_and_its_group_die_with_a_guardian_that_was_killed(birth: Birth) -> None:
    offspring = birth.pod("stubborn", "child", "ready")
    pids = await birth.grown(2)
    os.kill(offspring.guardian_pid, signal.SIGKILL)
    assert await within(offspring.exited) == "its guardian was killed by SIGKILL"
    await within(offspring.gone)
    await until(lambda: not [pid for pid in alive(pids) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE])


# -- the output -------------------------------------------------------------------------------------------------------


async def test_both_outputs_are_read_to_their_last_unended_line(birth: Birth) -> None:
    code = "import sys; print('out'); sys.stderr.write('err\\nlast words'); sys.stderr.flush()"
    offspring = birth.python(code)
    await within(offspring.gone)
    assert sorted(birth.lines) == ["err", "last words", "out"]


async def test_a_pod_that_floods_its_log_is_held_back_and_the_lines_left_out_are_counted(birth: Birth) -> None:
    offspring = birth.pod("flood")
    loop = asyncio.get_running_loop()
    began = loop.time()
    await until(lambda: any("left out" in line for line in birth.lines))
    windows = loop.time() - began + 1
    shown = [line for line in birth.lines if line == "y"]
    assert len(shown) <= 1000 * (windows + 1)
    offspring.kill()
    await within(offspring.gone)
    seconds = loop.time() - began
    left_out = sum(int(line[1:].split()[0].replace(",", "")) for line in birth.lines if "left out" in line)
    read_bytes = 2 * (left_out + birth.lines.count("y"))
    assert read_bytes <= 64 * 1024 * (seconds / 0.05 + 20), "it was read faster than it should be"


# -- the other loop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "test",
    [
        test_a_pod_is_the_guardians_child_in_a_session_of_its_own,
        test_an_environment_larger_than_the_pipe_arrives_whole,
        test_no_session_or_double_fork_gets_away,
        test_a_pod_and_its_group_die_with_a_guardian_that_was_killed,
        test_both_outputs_are_read_to_their_last_unended_line,
        test_a_pod_that_floods_its_log_is_held_back_and_the_lines_left_out_are_counted,
    ],
    ids=lambda test: test.__name__.removeprefix("test_"),
)
def test_it_is_the_same_on_uvloop(test: Callable[[Birth], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        birth = Birth()
        try:
            await test(birth)
        finally:
            await birth.end()

    uvloop.run(run())


# -- lines, pure ------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_how_output_is_cut_into_reads_changes_no_line(pieces: list[bytes]) -> None:
    at_once, piecewise = Lines(most_bytes=16), Lines(most_bytes=16)
    whole = at_once.feed(b"".join(pieces)) + at_once.end()
    assert [line for piece in pieces for line in piecewise.feed(piece)] + piecewise.end() == whole


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"10%\r20%\r\n\n", ["10%", "20%"]),
        (b"0123456789\nx\n", ["01234567…", "x"]),
        (b"01234567\n", ["01234567"]),
        ("grün".encode() + b"\xff\n", ["grün\N{REPLACEMENT CHARACTER}"]),
    ],
)
def test_lines_end_at_either_return_and_are_bounded(data: bytes, lines: list[str]) -> None:
    assert Lines(most_bytes=8).feed(data) == lines


def test_a_line_without_an_end_is_told_once_and_held_no_longer() -> None:
    lines = Lines(most_bytes=8)
    assert [line for _ in range(1000) for line in lines.feed(b"0123")] == ["01230123…"]
    assert lines.feed(b"\nnext\n") == ["next"]


def test_an_allowance_is_spent_once_a_second_and_counts_what_it_refused() -> None:
    allowance = Allowance(most=10)
    assert [allowance.take(4, now) for now in (5.0, 5.1, 5.2, 5.9)] == [4, 4, 2, 0]
    assert allowance.left_out(5.99) == 0
    assert allowance.left_out(6.0) == 6
    assert allowance.take(4, 6.0) == 4
    assert allowance.left_out(7.0) == 0


def test_the_longest_ending_is_the_grace_and_all_fixed_times() -> None:
    ending = Ending((Command(("x",), 5.0), Signal(), Wait(2.0), Wait()))
    assert ending.longest_seconds(10.0) == 17.0
