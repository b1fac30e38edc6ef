"""The guardian of one pod: a process of its own that starts the pod and outlives it, and leaves nothing behind.

Why a process: what must be done after the gateway was killed cannot be done by the gateway, and the kernel's own means
do not reach far enough. PDEATHSIG kills a child with its parent, but not the child's children, gives nobody the time
to end well, is lost where the parent dies before it is asked for, and fires when a *thread* of the parent ends. So:

- The gateway holds the write end of a pipe (standard input here) and nobody else does. The pipe's end is the gateway's
  end, however it died and at whatever moment, also before this program's first line ran. As a second sign, in case
  somebody inherited that end by a fork, the gateway's death makes us look at our parent.
- We are the *subreaper* of all that the pod starts: whatever forks, forks twice, or makes its own session comes to us
  when its parent dies. So "no children" (ECHILD) means that nothing is left, exactly, and until then we kill and wait.
- The pod is our child, forked by our only thread, with PDEATHSIG set and its parent looked at again after that: if even
  we are killed, it dies, too.

It decides nothing: the order to launch names the program and the ending, and orders are the gateway's. It is told by
pipe alone, and ignores the signals that a terminal or a service's stop sends around. Only these imports, for it starts
once a pod: 23 ms of CPU and 10.5 MiB (json and ctypes are half of that time).

The command line is the gateway's pid and three descriptors: for reports, and the read ends of the pod's output and
error (the write ends are our own standard output and error). So that the pod does not die of SIGPIPE where the gateway
died, the read ends are held open, and read into nothing during that ending. Orders come on standard input; JSON lines
both ways:

    {"launch": {"argv", "env", "cwd", "steps", "grace"}}     {"started": pid}, {"failed": why}
    {"end": grace in seconds}                                {"exited": status} (-9: by signal 9)
    {"kill": true}                                           {"note": text}, {"gone": true}

A step is [kind, words, seconds]: ["signal", [name], null], ["wait", [], seconds or null], ["command", argv, seconds].
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

ORDERS = 0
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
PARENT_DIED = signal.SIGUSR1


class Guardian:
    """What the guardian knows; `run` is its life."""

    def __init__(self, gateway: int, reports: int, outputs: list[int]) -> None:
        self._gateway = gateway
        self._reports = reports
        self._outputs = outputs
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._unread = b""
        self._argv: list[str] = []
        self._env: dict[str, str] = {}
        self._cwd: str | None = None
        self._steps: list[tuple[str, list[str], float | None]] = []
        self._grace = 0.0
        self._is_alone = False  # the gateway is gone
        self._is_hasty = False  # no more steps, only the kill
        self._ends_at: float | None = None  # when the grace is over; None: nothing says that the pod should end
        self._nothing_left = True
        self._pod = 0
        self._pod_runs = False
        self._command = 0  # the ending's present one
        self._command_status: int | None = None

        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        self._woken, wakes = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, PARENT_DIED):
            signal.signal(number, lambda _number, _frame: None)
        self._libc.prctl(PR_SET_PDEATHSIG, PARENT_DIED)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        for descriptor in (ORDERS, reports, *outputs):
            os.set_inheritable(descriptor, False)
        self._poll = select.poll()
        self._poll.register(ORDERS, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def run(self) -> None:
        """Wait for the launch, start the pod, see it end, and return when nothing is left of it."""
        try:
            while not self._argv and self._ends_at is None:
                self._listen(None)
            if self._ends_at is None:
                self._pod = self._start(self._argv, {}, "failed")
                self._pod_runs = True
                self._report({"started": self._pod})
            while self._ends_at is None:
                self._listen(None)
            self._run_ending()
        finally:
            self._kill_everything()
        self._report({"gone": True})

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _listen(self, until: float | None) -> None:
        """Sleep until an order, the end of a child, or the time `until`; take in whatever it is."""
        timeout = None if until is None else max(0, int((until - time.monotonic()) * 1000) + 1)
        for descriptor, _ in self._poll.poll(timeout):
            if descriptor == ORDERS:
                self._take_orders()
            elif descriptor == self._woken:
                os.read(self._woken, 4096)
            else:
                self._pass_over(descriptor)
        if os.getppid() != self._gateway:
            self._be_alone()
        self._reap()

    def _take_orders(self) -> None:
        data = os.read(ORDERS, 65536)
        if not data:
            self._be_alone()
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "launch" in order:
                launch = order["launch"]
                self._argv, self._env, self._cwd = launch["argv"], launch["env"], launch["cwd"]
                self._steps, self._grace = launch["steps"], launch["grace"]
            elif "end" in order:
                self._end_within(order["end"])
            elif "kill" in order:
                self._is_hasty = True
                self._end_within(0.0)

    def _be_alone(self) -> None:
        if self._is_alone:
            return
        self._is_alone = True
        self._poll.unregister(ORDERS)
        for descriptor in self._outputs:
            self._poll.register(descriptor, select.POLLIN)
        self._end_within(self._grace)

    def _pass_over(self, output: int) -> None:
        try:
            os.read(output, 65536)
        except BlockingIOError:  # a copy of the gateway reads it, too
            return

    def _end_within(self, grace: float) -> None:
        ends_at = time.monotonic() + grace
        self._ends_at = ends_at if self._ends_at is None else min(self._ends_at, ends_at)

    def _reap(self) -> None:
        """Take in the ends of children: the pod, a command, and any orphan of theirs."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._nothing_left = True
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._pod and self._pod_runs:
                self._pod_runs = False
                self._report({"exited": code})
                self._end_within(self._grace)
            elif pid == self._command:
                self._command_status = code

    # -- what goes out ------------------------------------------------------------------------------------------------

    def _report(self, report: dict[str, object]) -> None:
        try:
            os.write(self._reports, json.dumps(report).encode() + b"\n")
        except OSError:
            return  # the gateway is gone; its pipe tells us so, too

    def _start(self, argv: list[str], env: dict[str, str], report: str) -> int:
        """Fork a child into a session of its own that dies when we die, and execute `argv` in it.

        Where it cannot be executed, the child says why in a report of that kind, and ends with 127.
        """
        self._nothing_left = False
        guardian = os.getpid()
        settled, settling = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._settle(guardian)
                os.close(settling)
                os.execvpe(argv[0], argv, {**self._env, **env})
            except BaseException as error:
                reason = error.strerror if isinstance(error, OSError) else repr(error)
                place = "" if self._cwd is None else f" in {self._cwd!r}"
                self._report({report: f"cannot run {argv[0]!r}{place}: {reason}"})
            finally:
                os._exit(127)
        # The group exists from here on, and can be signalled. The exec itself is not waited for: it may hang on a disk.
        os.close(settling)
        os.read(settled, 1)
        os.close(settled)
        return pid

    def _settle(self, guardian: int) -> None:
        """In the child: own session, death with the guardian, and no trace of the guardian's ways with signals."""
        os.setsid()
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:  # it died before prctl could know
            os._exit(127)
        signal.set_wakeup_fd(-1)
        for number in (*IGNORED, signal.SIGCHLD, PARENT_DIED, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.dup2(os.open(os.devnull, os.O_RDONLY), ORDERS)
        if self._cwd is not None:
            os.chdir(self._cwd)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _run_ending(self) -> None:
        self._reap()
        for kind, words, seconds in self._steps:
            if self._nothing_left or self._is_hasty:
                return
            if kind == "signal":
                self._signal_all(signal.Signals[words[0]], signal.SIGCONT)
            elif kind == "wait":
                self._wait(seconds)
            elif kind == "command":
                self._run_command(words, seconds or 0.0)

    def _signal_all(self, *numbers: signal.Signals) -> None:
        """Signal every descendant once, by its process group.

        A group gets a signal in one step of the kernel's, so that no fork slips through inside it. Groups are looked up
        each time and never remembered: the number of one that ended may be somebody else's by now.
        """
        own = os.getpgrp()
        found = descendants(os.getpid())
        for target in {-group if group != own else pid for pid, group in found}:
            for number in numbers:
                try:
                    os.kill(target, number)
                except (ProcessLookupError, PermissionError):
                    break  # it ended meanwhile, or is not ours to end; either way it is waited for

    def _wait(self, seconds: float | None) -> None:
        fixed = None if seconds is None else time.monotonic() + seconds
        while not (self._nothing_left or self._is_hasty):
            until = fixed if fixed is not None else (self._ends_at or 0.0)  # a later order may have cut the grace
            if time.monotonic() >= until:
                return
            self._listen(until)

    def _run_command(self, argv: list[str], timeout: float) -> None:
        self._command_status = None
        self._command = self._start(argv, {"PENSTOCK_POD_PID": str(self._pod)}, "note")
        until = time.monotonic() + timeout
        while self._command_status is None and not self._is_hasty and time.monotonic() < until:
            self._listen(until)
        if self._command_status is None:
            self._report({"note": f"{argv[0]} of the pod's ending took more than {timeout:g} s, and is killed"})
            os.killpg(self._command, signal.SIGKILL)
        elif self._command_status != 0:
            self._report({"note": f"{argv[0]} of the pod's ending came to its end with {self._command_status}"})

    def _kill_everything(self) -> None:
        """Kill every descendant, in as many rounds as it takes: what forks meanwhile is found in the next."""
        pause = 0.005
        while True:
            self._reap()
            if self._nothing_left:
                return
            self._signal_all(signal.SIGKILL)
            if select.select([self._woken], [], [], pause)[0]:
                os.read(self._woken, 4096)
            pause = min(2 * pause, 0.5)  # what hangs in the kernel, in a GPU driver say, dies when it may


def descendants(root: int) -> list[tuple[int, int]]:
    """All processes below `root` as (pid, process group), from one look at /proc.

    Not `/proc/PID/task/TID/children`: not every kernel is built with it.
    """
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue  # it ended meanwhile
        _, parent, group, *_ = stat[stat.rindex(b")") + 2 :].split(None, 3)  # the name before may hold anything
        children.setdefault(int(parent), []).append((int(name), int(group)))
    found: list[tuple[int, int]] = []
    ahead = [root]
    while ahead:
        below = children.pop(ahead.pop(), [])  # taken out: a pid used again meanwhile cannot make this a circle
        found += below
        ahead += [pid for pid, _ in below]
    return found


def main() -> None:
    """Guard one pod; see above for the command line."""
    gateway, reports, *outputs = (int(word) for word in sys.argv[1:])
    Guardian(gateway, reports, outputs).run()
