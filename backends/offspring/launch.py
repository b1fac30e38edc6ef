"""What is started, and how it is ended, as values.

A launch is written to the guardian as one line before anything runs, so the ending is known wherever it may be needed:
the guardian goes through the same steps whether the gateway asks for it or was itself killed. Whatever the steps do,
what is left after the last one is killed; no ending states that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Signal:
    """Signal the pod and all that it started, once by process group (and wake what was stopped)."""

    name: str = "SIGTERM"


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until nothing is left, at most `seconds`; `None`: until the grace is over, counted from the order to end."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """Run a program to its end, at most `timeout_seconds`; it is killed then, and the ending goes on either way.

    It runs in the launch's environment, to which `PENSTOCK_POD_PID` is added, and writes to the pod's log. For what
    has to happen before a pod may be signalled, such as taking a client off its MPS server.
    """

    argv: tuple[str, ...]
    timeout_seconds: float = 5.0


Step = Signal | Wait | Command


@dataclass(frozen=True, slots=True)
class Ending:
    """The steps that give a pod the chance to end by itself. They stop early where nothing is left.

    `grace_seconds` is the grace where nobody states one: the gateway is gone, or the pod's first process ended and left
    others behind. Nobody reads from the pod any more then, so it is short.
    """

    steps: tuple[Step, ...] = (Signal(), Wait())
    grace_seconds: float = 2.0

    def longest_seconds(self, grace_seconds: float) -> float:
        """The most that all steps can take, given the grace of the order."""
        waits = sum(step.seconds or 0.0 for step in self.steps if isinstance(step, Wait))
        return grace_seconds + waits + sum(step.timeout_seconds for step in self.steps if isinstance(step, Command))


@dataclass(frozen=True, slots=True)
class Launch:
    """The program of a pod: its words, its whole environment (nothing is added), its folder, its ending."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None = None
    ending: Ending = Ending()


def launch_order(launch: Launch) -> bytes:
    """The line that makes a guardian start `launch`."""
    assert launch.command, "a launch without a program"
    steps: list[tuple[str, tuple[str, ...], float | None]] = []
    for step in launch.ending.steps:
        match step:
            case Signal(name):
                steps.append(("signal", (name,), None))
            case Wait(seconds):
                steps.append(("wait", (), seconds))
            case Command(argv, timeout_seconds):
                steps.append(("command", argv, timeout_seconds))
    order = {
        "argv": launch.command,
        "env": dict(launch.env),
        "cwd": launch.cwd,
        "steps": steps,
        "grace": launch.ending.grace_seconds,
    }
    return json.dumps({"launch": order}).encode() + b"\n"


def end_order(grace_seconds: float) -> bytes:
    """The line that makes a guardian run the ending. A later one may only shorten the grace."""
    return json.dumps({"end": grace_seconds}).encode() + b"\n"


KILL_ORDER = b'{"kill": true}\n'
"""The line that makes a guardian skip what is left of the ending."""
