"""A pod for tests that is hard to be rid of. It serves nothing; each process it becomes writes `pid N` on a line.

python forking_pod.py WORD…, in the order given:

    child        a child in the same group
    session      a child in a session of its own
    daemon       a child in a session of its own whose parent has ended
    stubborn     from here on SIGTERM, SIGINT and SIGHUP are ignored, by later children, too
    ready        say where it listens
    exit         the first process ends, what it started goes on
    flee         a child in a session of its own that forks again and ends, and so on without an end
    flood        write lines for ever
    verbose      at SIGTERM write 1 MB before ending
    marks PATH   at SIGTERM make the file PATH, at the very end of ending well

It then waits for a signal. Quick to start: run it with `-S`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # that nobody listens any more is no reason to end
        os.write(1, f"{line}\n".encode())


def stay() -> NoReturn:
    while True:
        signal.pause()


def fork_and_stay(*, own_session: bool, twice: bool) -> None:
    """Fork, and return when the new process has said its pid."""
    settled, settling = os.pipe()
    if os.fork() == 0:
        if own_session:
            os.setsid()
        if twice and os.fork() != 0:
            os._exit(0)
        say(f"pid {os.getpid()}")
        os.close(settling)
        stay()
    os.close(settling)
    os.read(settled, 1)
    os.close(settled)


def end_well(is_verbose: bool, marks: str | None) -> None:
    if is_verbose:
        for _ in range(1000):
            os.write(1, b"x" * 999 + b"\n")
    if marks is not None:
        os.close(os.open(marks, os.O_CREAT | os.O_WRONLY))
    os._exit(0)


def main(words: list[str]) -> None:
    is_verbose, marks = "verbose" in words, words[words.index("marks") + 1] if "marks" in words else None
    if is_verbose or marks is not None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: end_well(is_verbose, marks))
    say(f"pid {os.getpid()}")
    for word in words:
        match word:
            case "child" | "session" | "daemon":
                fork_and_stay(own_session=word != "child", twice=word == "daemon")
            case "flee":
                if os.fork() == 0:
                    while True:
                        os.setsid()
                        if os.fork() != 0:
                            os._exit(0)
            case "stubborn":
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
            case "ready":
                say('{"ready": "http://127.0.0.1:9"}')
            case "flood":
                while True:
                    os.write(1, b"y\n" * 4096)
            case "exit":
                os._exit(0)
    stay()


if __name__ == "__main__":
    main(sys.argv[1:])
