"""A program under callgrind, which writes out its counts at each mark: instructions and system calls, never time.

Callgrind counts nothing while the program starts, which makes that five times faster; it is switched on when the
program is ready. What a piece of work cost is what was counted between two marks. The marks cost something themselves,
always the same; whoever wants the work's cost alone takes the difference of two lengths.

A reading of the clock is a system call under valgrind and none outside it. It is not counted as one, so that the system
calls are those that `strace` shows.

What moves a count although the code is the same: another build of Python, another version of valgrind or of a library,
and, by little, the CPU's model, because the C library chooses its copying by what the CPU has. Timers run by the
clock, and a program that is counted is fifty times slower, so more of them fall into the same work; `costs` leaves them
out.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "ctermid"
"""The C function at which callgrind writes out its counts; Python calls it for `os.ctermid()` and for nothing else."""

MARKED = Path(__file__).with_name("marked.py")
START_SECONDS = 120.0
ASK_SECONDS = 60.0

_CALLS = "sysCount"
_CLOCKS = frozenset({"clock_gettime", "gettimeofday", "time"})
_POSITION = frozenset("0123456789+-*")  # what a line of costs begins with


class CountError(Exception):
    """Nothing could be counted; the text says why, and what helps."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was executed: instructions in user space, and system calls."""

    instructions: float
    system_calls: float


class Program:
    """A marked program that runs. `log` is what it wrote to standard error."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, is_counted: bool) -> None:
        self._process = process
        self._folder = folder
        self._is_counted = is_counted
        self._marks = 0

    @property
    def log(self) -> str:
        """What the program, and valgrind, wrote to standard error."""
        return (self._folder / "log").read_text(errors="replace")

    def slept(self) -> int:
        """How often it has gone to sleep, or -1 while it is awake. Raises `CountError` where it has ended."""
        try:
            text = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            text = ""
        facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        state = facts.get("State", "X")[0]
        if state in "ZX":
            raise CountError(f"the program that was to be counted has ended: {self.log[-2000:]}")
        return int(facts["voluntary_ctxt_switches"]) if state == "S" else -1

    def wait_asleep(self, since: int = -1) -> None:
        """Wait until it sleeps; with `since`, what `slept` gave before: until it has been awake after that."""
        while self.slept() <= since:
            time.sleep(0.0002)

    def ask(self, line: str) -> None:
        """Give it a line, and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], ASK_SECONDS)[0]:
            raise CountError(f"{line} units of its work take the program longer than {ASK_SECONDS:g} s")
        if not self._process.stdout.readline():
            raise CountError(f"the program that was to be counted has ended: {self.log[-2000:]}")

    def mark(self) -> Path:
        """A mark, once the program sleeps; the file with what was counted since the last one."""
        self.wait_asleep()
        before = self.slept()
        self._process.send_signal(signal.SIGUSR1)
        self._marks += 1
        written = self._folder / f"out.{self._marks}"
        while self._is_counted and not written.exists():
            self.slept()
            time.sleep(0.0005)
        self.wait_asleep(before)
        return written

    def _wait_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while "listening" not in self.log:
            self.slept()
            if time.monotonic() > end:
                raise CountError(f"the program was not ready within {START_SECONDS:g} s: {self.log[-2000:]}")
            time.sleep(0.02)
        self.wait_asleep()

    def _count_from_now(self) -> bool:
        """Switch counting on. False where this machine does not let one process look into another."""
        command = ["vgdb", f"--pid={self._process.pid}", "--wait=10", "instrumentation", "on"]
        try:
            return not subprocess.run(command, capture_output=True, timeout=30, check=False).returncode
        except (OSError, subprocess.TimeoutExpired):
            return False


@contextlib.contextmanager
def counted(words: list[str], tree: Path, folder: Path) -> Iterator[Program]:
    """A marked program of the packages in `tree`, ready and being counted; killed at the end."""
    if shutil.which("valgrind") is None:
        raise CountError("valgrind is not installed: apt-get install valgrind")
    for from_start in (False, True):
        command = [
            "valgrind",
            "--tool=callgrind",
            "--collect-systime=yes",
            f"--dump-before={MARK}",
            f"--instr-atstart={'yes' if from_start else 'no'}",
            f"--callgrind-out-file={folder}/out",
        ]
        with _running(command, words, tree, folder, {}) as program:
            if from_start or program._count_from_now():
                yield program
                return


@contextlib.contextmanager
def profiled(words: list[str], tree: Path, folder: Path) -> Iterator[Program]:
    """The same without valgrind: the first mark begins a Python profile, the second writes it to `folder`/profile."""
    with _running([], words, tree, folder, {"PROFILE_TO": str(folder / "profile")}) as program:
        yield program


@contextlib.contextmanager
def _running(
    before: list[str], words: list[str], tree: Path, folder: Path, extra: Mapping[str, str]
) -> Iterator[Program]:
    # Nothing of this process's environment: its size shifts stacks, and a setting there would be a setting of one run.
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(tree),
        "UV_USE_IO_URING": "0",  # by kernel, libuv would make other system calls
        **extra,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*before, sys.executable, "-P", str(MARKED), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if words[0] != "serve" else subprocess.DEVNULL,
            stderr=log,
            env=env,
            cwd=folder,
        )
        try:
            program = Program(process, folder, bool(before))
            program._wait_ready()
            yield program
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def counts_in(written: str) -> Counts:
    """The sums in the text of one of callgrind's files. Readings of the clock are no system calls, see the module."""
    events: list[str] = []
    sums: dict[str, int] = {}
    clock_readings = 0
    names: dict[str, str] = {}
    function = ""
    is_call = False  # the line after `calls=` says what was spent in the function called
    for line in written.splitlines():
        name, is_field, rest = line.partition("=")
        if is_field:
            if name in ("fn", "cfn"):  # a name is told once, wherever it comes first
                number, _, told = rest.partition(" ")
                named = names.setdefault(number, told.partition("@")[0])
                function = named if name == "fn" else function
            is_call = name == "calls"
        elif line.startswith("events:"):
            events = line.split()[1:]
        elif line.startswith("summary:"):
            sums = dict(zip(events, map(int, line.split()[1:]), strict=False))
        elif line[:1] in _POSITION:
            if function in _CLOCKS and not is_call:
                spent = dict(zip(events, line.split()[1:], strict=False))  # zeros at the end are left out
                clock_readings += int(spent.get(_CALLS, "0"))
            is_call = False
    if "Ir" not in sums:
        raise CountError("callgrind wrote no sums")
    return Counts(sums["Ir"], sums.get(_CALLS, 0) - clock_readings)
