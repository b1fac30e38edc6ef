"""Gateways that are killed with SIGKILL while they start a pod, one after the other, each at a moment of its own.

python doomed_gateway.py asyncio|uvloop GRACE WORDS-OF-THE-POD < MOMENTS, where a moment is a line:

    gateway N         the gateway kills itself at the N-th line that it executes in backends.supervisor,
    backends.offspring
                      and the standard library's subprocess
    by-guardian N     the guardian kills the gateway at its own N-th line, the forked child's counted with it
    guardian N        the guardian kills itself at the N-th line by which it starts the pod, and the gateway lives on
    until
                      it has noticed
    copied N          the gateway forks when the pod is ready, and is killed; the copy lives on as long as the guardian
    microseconds N    the gateway is killed so long after it began

For each it writes one line of JSON: {"moment", "reached", "left"}. `reached` is false where the pod was ready before
the moment came (then the gateway is killed there). `left` counts the processes that were alive yet some seconds after.
That is exact: this program is the subreaper of them all, so that whatever outlives its parent becomes its child.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from random import Random
from types import FrameType

import psutil
import uvloop

import backends.offspring.child
import backends.offspring.launch
import backends.offspring.lines
import backends.supervisor
from backends.offspring import GUARDIAN, Ending, Launch
from backends.offspring.guardian import PR_SET_CHILD_SUBREAPER, descendants
from backends.supervisor import Supervisor

HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS_TO_VANISH = 10.0
TRACED = {
    module.__file__
    for module in (
        backends.supervisor,
        backends.offspring.child,
        backends.offspring.launch,
        backends.offspring.lines,
        subprocess,
    )
}


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Doom:
    """Kills this process at the n-th line of the traced modules."""

    def __init__(self, line: int) -> None:
        self._left = line

    def trace(self, frame: FrameType, event: str, _argument: object) -> Doom | None:
        return self(frame, event, _argument) if frame.f_code.co_filename in TRACED else None

    def __call__(self, _frame: FrameType, event: str, _argument: object) -> Doom:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                die()
        return self


def be_gateway(kind: str, number: int, loop: str, launch: Launch, not_reached: int) -> None:
    """Supervise one pod until the moment comes, or the pod is ready."""

    def on_ready(*_: object) -> None:
        if kind == "copied":
            outlive(supervisor)
        os.write(not_reached, b"x")
        die()

    async def serve() -> None:
        supervisor.watch("pod", launch, group="gpu")
        await asyncio.Event().wait()

    guardian: tuple[str, ...] = GUARDIAN
    if kind in {"by-guardian", "guardian"}:
        victim = "gateway" if kind == "by-guardian" else "guardian"
        guardian = (sys.executable, "-I", "-S", os.path.join(HERE, "tripping_guardian.py"), victim, str(number))
    supervisor = Supervisor(
        clock=time.monotonic,
        random=Random(0),
        on_output=lambda *_: None,
        on_started=lambda *_: None,
        on_ready=on_ready,
        on_unready=lambda *_: None,
        on_exit=die,
        guardian=guardian,
    )
    if kind == "gateway":
        sys.settrace(Doom(number).trace)
    (uvloop.run if loop == "uvloop" else asyncio.run)(serve())


def outlive(supervisor: Supervisor) -> None:
    """Fork a copy of the gateway that holds all its descriptors until the guardian is gone, or far too long."""
    pids = supervisor.pids("pod")
    assert pids is not None
    if os.fork() == 0:
        deadline = time.monotonic() + 2 * SECONDS_TO_VANISH
        while psutil.pid_exists(pids.guardian) and time.monotonic() < deadline:
            time.sleep(0.005)
        os._exit(0)


def vanish() -> int:
    """Wait until no process is left below this one; how many there are if some stay (they are killed then)."""
    deadline = time.monotonic() + SECONDS_TO_VANISH
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
        except ChildProcessError:
            return 0
    left = [pid for pid, _ in descendants(os.getpid())]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def main(loop: str, grace: float, pod: list[str]) -> None:
    """Kill a gateway for each line of standard input."""
    command = (sys.executable, "-S", os.path.join(HERE, "forking_pod.py"), *pod)
    launch = Launch(command, {}, ending=Ending(grace_seconds=grace))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for moment in sys.stdin:
        kind, number = moment.split()
        reading, not_reached = os.pipe()
        gateway = os.fork()
        if gateway == 0:
            try:
                be_gateway(kind, int(number), loop, launch, not_reached)
            finally:
                os._exit(1)
        os.close(not_reached)
        if kind == "microseconds":
            time.sleep(int(number) / 1e6)
            os.kill(gateway, signal.SIGKILL)
        os.waitpid(gateway, 0)
        left = vanish()
        reached = os.read(reading, 1) == b""
        os.close(reading)
        print(json.dumps({"moment": moment.strip(), "reached": reached, "left": left}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
