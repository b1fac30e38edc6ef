"""The gateway's side of one guardian: what starts it, hears what it reports, and reads what the pod writes.

Nothing here blocks the loop or needs a thread: the pipes are watched by the loop itself, which works the same on
asyncio and uvloop and needs no watcher of child processes. The pod's death with its guardian does not depend on the
thread that started the guardian either: the guardian's own only thread is the pod's parent.

Output is read at most 64 KiB at a time, and after a full read not again for a while, so that a pod that floods its log
waits for its pipe. Up to that rate, lines beyond an allowance are counted instead of shown: a chatty pod is not slowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.offspring.launch import KILL_ORDER, Launch, end_order, launch_order
from backends.offspring.lines import Allowance, Lines

# Imported by name, so that its byte code is kept, from a path to which nothing but its own folder is added. Isolated
# (-I) and without `site` (-S), no variable or start-up file of somebody else's runs in it.
_IMPORT_AND_RUN = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import guardian; guardian.main()"
GUARDIAN: tuple[str, ...] = (sys.executable, "-I", "-S", "-c", _IMPORT_AND_RUN)
"""The command that starts a guardian, without its arguments."""

_READ_BYTES = 64 * 1024
_FLOOD_PAUSE_SECONDS = 0.05
_MOST_READS_AT_THE_END = 16  # a pipe holds 64 KiB, or 1 MiB where its writer asked for that


class Offspring:
    """One run of one pod: started when made, over when `gone`.

    started    the pid of the pod's process, which is its session and process group, too
    announced  the URL that the pod named on its standard output: `{"ready": "http://…"}` on a line of its own
    exited     in words, how that process ended
    gone       nothing of the pod is left, and its guardian has ended

    `exited` and `gone` come always, the others where it gets so far; none is ever an exception. Making one forks, which
    takes one to three milliseconds, and raises OSError where the system refuses.
    """

    def __init__(self, launch: Launch, on_line: Callable[[str], None], *, guardian: Sequence[str] = GUARDIAN) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_line = on_line
        self.started: asyncio.Future[int] = self._loop.create_future()
        self.announced: asyncio.Future[str] = self._loop.create_future()
        self.exited: asyncio.Future[str] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._unwritten = launch_order(launch)
        self._unread = b""
        self._failure: str | None = None
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            orders, self._orders = _pipe(theirs, ours)
            self._reports, reports = _pipe(ours, theirs)
            output, output_end = _pipe(ours, theirs)
            errors, errors_end = _pipe(ours, theirs)
            for descriptor in (self._orders, self._reports, output, errors):
                os.set_blocking(descriptor, False)
            self._guardian = subprocess.Popen(
                [*guardian, *map(str, (os.getpid(), reports, output, errors))],
                stdin=orders,
                stdout=output_end,
                stderr=errors_end,
                pass_fds=(reports, output, errors),
                start_new_session=True,  # a terminal's Ctrl-C is the gateway's to act on
            )
            self._descriptors = ours.pop_all()
        self._outputs = (
            _Output(self._loop, output, on_line, self._look_for_url),
            _Output(self._loop, errors, on_line, None),
        )
        self._loop.add_reader(self._reports, self._read_reports)
        self._write_orders()

    @property
    def guardian_pid(self) -> int:
        return self._guardian.pid

    @property
    def pod_pid(self) -> int | None:
        """The pod's process, while it runs."""
        return self.started.result() if self.started.done() and not self.exited.done() else None

    def end(self, grace_seconds: float) -> None:
        """Run the ending, then kill what is left. Asked again, the shorter grace counts."""
        self._order(end_order(grace_seconds))

    def kill(self) -> None:
        """Kill everything, without any more steps of the ending."""
        self._order(KILL_ORDER)

    # -- orders -------------------------------------------------------------------------------------------------------

    def _order(self, line: bytes) -> None:
        if not self.gone.done():
            self._unwritten += line
            self._write_orders()

    def _write_orders(self) -> None:
        """Write as much as the pipe takes: an environment may be larger than it."""
        try:
            written = os.write(self._orders, self._unwritten)
        except BlockingIOError:
            written = 0
        except BrokenPipeError:  # the guardian has ended; the end of its reports says so
            written = len(self._unwritten)
        self._unwritten = self._unwritten[written:]
        if self._unwritten:
            self._loop.add_writer(self._orders, self._write_orders)
        else:
            self._loop.remove_writer(self._orders)

    # -- reports ------------------------------------------------------------------------------------------------------

    def _read_reports(self) -> None:
        try:
            data = os.read(self._reports, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._reports)
            self._await_guardian()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, report: dict[str, int | str]) -> None:
        match report:
            case {"started": int(pid)}:
                self.started.set_result(pid)
            case {"failed": str(reason)}:
                self._failure = reason
            case {"exited": int(status)}:
                self.exited.set_result(self._failure or _in_words(status))
            case {"note": str(text)}:
                self._on_line(text)
            case _:
                pass  # gone: the end of the reports says it, too

    def _await_guardian(self) -> None:
        """Its reports have ended, so it is in its last microseconds; nothing else tells when it is waited for."""
        if self._guardian.poll() is None:
            self._loop.call_later(0.002, self._await_guardian)
            return
        if not self.exited.done():
            # It was killed, which we do not do, or never ran. The pod died with it (PDEATHSIG); its group may have not.
            if self.started.done():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.started.result(), signal.SIGKILL)
            self.exited.set_result(f"its guardian {_in_words(self._guardian.returncode)}")
        self._loop.remove_writer(self._orders)
        for output in self._outputs:
            output.finish()
        self._descriptors.close()
        self.gone.set_result(None)

    def _look_for_url(self, line: str) -> None:
        if self.announced.done() or not line.startswith("{") or '"ready"' not in line:
            return
        try:
            match json.loads(line):
                case {"ready": str(url)}:
                    self.announced.set_result(url)
        except ValueError:
            return


class _Output:
    """One of a pod's two outputs, read line by line as fast as the allowance has it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        on_line: Callable[[str], None],
        look: Callable[[str], None] | None,
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._on_line = on_line
        self._look = look
        self._lines = Lines()
        self._allowance = Allowance()
        self._resumption: asyncio.TimerHandle | None = None
        self._resume()

    def finish(self) -> None:
        """Take in what is left in the pipe, now that nobody writes to it any more."""
        self._loop.remove_reader(self._descriptor)
        if self._resumption is not None:
            self._resumption.cancel()
        for _ in range(_MOST_READS_AT_THE_END):
            if not self._take():
                break
        self._show(self._lines.end())
        self._tell_left_out(math.inf)

    def _resume(self) -> None:
        self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        taken = self._take()
        if taken == 0:
            self._loop.remove_reader(self._descriptor)
        elif taken == _READ_BYTES:
            self._loop.remove_reader(self._descriptor)
            self._resumption = self._loop.call_later(_FLOOD_PAUSE_SECONDS, self._resume)

    def _take(self) -> int | None:
        """Read once: how many bytes came, 0 at the end, `None` where nothing is there now."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return None
        self._show(self._lines.feed(data))
        return len(data)

    def _show(self, lines: list[str]) -> None:
        now = self._loop.time()
        self._tell_left_out(now)
        if self._look is not None:
            for line in lines:
                self._look(line)
        for line in lines[: self._allowance.take(len(lines), now)]:
            self._on_line(line)

    def _tell_left_out(self, now: float) -> None:
        if count := self._allowance.left_out(now):
            self._on_line(f"({count:,} lines left out)")


def _pipe(reads: contextlib.ExitStack, writes: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed by these two; neither end is inherited unless it is named."""
    read, write = os.pipe()
    reads.callback(os.close, read)
    writes.callback(os.close, write)
    return read, write


def _in_words(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
