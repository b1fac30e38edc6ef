"""The real guardian, which at the n-th line it executes kills somebody: its gateway, or itself.

python tripping_guardian.py gateway|guardian LINE, and then a guardian's arguments. Lines are counted on in the forked
child up to its exec; "itself" is the guardian's own process, also when the line is the child's. For the gateway every
line counts, for itself those by which a pod is started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(
    os.path.join(HERE, "..", "..", "backends", "offspring")
)  # alone, as the real one: not the whole package

import guardian  # type: ignore[import-not-found]  # noqa: E402


class Trip:
    """Counts the guardian's lines, and kills at the one that was asked for."""

    def __init__(self, victim: str, line: int) -> None:
        self._victim = os.getppid() if victim == "gateway" else os.getpid()
        self._functions = {"_start", "_settle"} if victim == "guardian" else None
        self._left = line

    def trace(self, frame: FrameType, event: str, _argument: object) -> Trip | None:
        code = frame.f_code
        counts = code.co_filename == guardian.__file__ and (self._functions is None or code.co_name in self._functions)
        return self(frame, event, _argument) if counts else None

    def __call__(self, _frame: FrameType, event: str, _argument: object) -> Trip:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._victim, signal.SIGKILL)
        return self


if __name__ == "__main__":
    victim, line, *arguments = sys.argv[1:]
    sys.argv[1:] = arguments
    sys.settrace(Trip(victim, int(line)).trace)
    guardian.main()
