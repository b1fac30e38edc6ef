"""Pods that run: started, watched until they are ready and while they serve, started again, and ended.

A supervised pod is kept running until somebody says stop. What is decided here is *when*: whose turn it is to start
(one at a time in a group of devices, so that each finds the memory it measures), whether a pod counts as ready (a list
of checks, asked while it serves, too), how long to wait before it is started again. How a process is started so that
nothing of it outlives us, and how it is ended, is `backends.offspring`'s; which pods get traffic is the fleet's, which
hears of all this by the four callbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any, Protocol

from backends.offspring import GUARDIAN, Launch, Offspring

_FIRST_CHECK_SECONDS = 0.02
_KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """A pod as a check sees it: its name, where it listens, and the pid of its process (also its session)."""

    name: str
    url: str
    pid: int


class ReadinessCheck(Protocol):
    """One thing that must be so before a pod gets traffic, and while it has any."""

    async def __call__(self, running: Running, /) -> str | None:
        """`None` where it is so, else the reason in a few words. What it raises counts as a reason."""
        ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """When a pod is ready, and for how long it may be not.

    `url`: where it listens; `None` where it announces that itself. A pod that is not ready `start_seconds` after its
    start is ended and started again. Then the checks are asked every `interval_seconds`, each for at most
    `check_seconds`; `failures` bad rounds in a row make it unready, one good round makes it ready again, and a pod
    whose rounds have been bad for `liveness_seconds` is ended and started again.
    """

    url: str | None = None
    checks: tuple[ReadinessCheck, ...] = ()
    start_seconds: float = 60.0
    interval_seconds: float = 2.0
    check_seconds: float = 5.0
    failures: int = 3
    liveness_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a pod is started again.

    At once after a run that served for `good_seconds`; after that `first_seconds`, times `factor` with each run that
    did not, up to `most_seconds`; of which a random half is left away, so that pods that fell together don't rise
    together.
    """

    first_seconds: float = 0.5
    factor: float = 2.0
    most_seconds: float = 30.0
    good_seconds: float = 60.0

    def seconds(self, bad_runs: int, random: Random) -> float:
        """The wait after `bad_runs` runs in a row that were not good."""
        if bad_runs == 0:
            return 0.0
        exponent = min(bad_runs - 1, 64)
        wait = min(self.most_seconds, self.first_seconds * self.factor**exponent)
        return wait * (1.0 - random.random() / 2)


class State(Enum):
    """Where a supervised pod stands."""

    WAITING = "waiting"  # for its turn in its group
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"  # it runs, and its checks say no
    ENDING = "ending"
    PAUSING = "pausing"  # before the next start
    STOPPED = "stopped"


_STEPS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.STARTING, State.STOPPED}),
    State.STARTING: frozenset({State.READY, State.ENDING, State.PAUSING}),  # PAUSING: the system refused to fork
    State.READY: frozenset({State.UNREADY, State.ENDING}),
    State.UNREADY: frozenset({State.READY, State.ENDING}),
    State.ENDING: frozenset({State.PAUSING}),
    State.PAUSING: frozenset({State.WAITING, State.STOPPED}),
    State.STOPPED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Pids:
    """The processes of a run: the guardian, and the pod's own first process, where it runs."""

    guardian: int
    pod: int | None


class _Run:
    """One run of a pod; `over` is set once, with the reason, by whatever ends the run first."""

    def __init__(self, offspring: Offspring) -> None:
        self.offspring = offspring
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.lacking = "it did not say where it listens"  # what it takes to be ready
        self.ready_at: float | None = None
        offspring.exited.add_done_callback(lambda exited: self.leave(exited.result()))

    def leave(self, reason: str) -> None:
        if not self.over.done():
            self.over.set_result(reason)


class _Charge:
    """A pod in our care, over all its runs."""

    def __init__(self, name: str, launch: Launch, readiness: Readiness, group: str) -> None:
        self.name = name
        self.launch = launch
        self.readiness = readiness
        self.group = group
        self.state = State.WAITING
        self.run: _Run | None = None
        self.bad_runs = 0
        self.stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.grace_seconds = launch.ending.grace_seconds
        self.task: asyncio.Task[None] | None = None

    def step(self, state: State) -> None:
        assert state in _STEPS[self.state], f"{self.name}: {self.state.value} → {state.value}"
        self.state = state


class Supervisor:
    """Keeps pods running.

    on_output(name, line)            what the pod wrote, line by line
    on_started(name, url)            its process runs; `url` where it is known by then
    on_ready(name, url)              its checks passed; also after `on_unready`
    on_unready(name, reason)         it runs on, but `failures` rounds of checks in a row said no
    on_exit(name, reason, seconds)   a run is over and gets no more traffic: the next start comes after `seconds` at the
                                     earliest, or not at all (`None`). Told at once, while what is left of it may be
                                     ending

    `clock` times runs; waiting is the loop's. Everything is called in the loop that `watch` was called in.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        random: Random,
        on_output: Callable[[str, str], None],
        on_started: Callable[[str, str | None], None],
        on_ready: Callable[[str, str], None],
        on_unready: Callable[[str, str], None],
        on_exit: Callable[[str, str, float | None], None],
        backoff: Backoff = Backoff(),
        guardian: Sequence[str] = GUARDIAN,
    ) -> None:
        self._clock = clock
        self._random = random
        self._on_output = on_output
        self._on_started = on_started
        self._on_ready = on_ready
        self._on_unready = on_unready
        self._on_exit = on_exit
        self._backoff = backoff
        self._guardian = guardian
        self._charges: dict[str, _Charge] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    def watch(self, name: str, launch: Launch, readiness: Readiness = Readiness(), *, group: str) -> None:
        """Start the pod as soon as it is its turn in its group, and keep it running until it is stopped."""
        known = self._charges.get(name)
        if known is not None and not (known.task and known.task.done()):
            raise ValueError(f"pod {name!r} is supervised already")
        charge = self._charges[name] = _Charge(name, launch, readiness, group)
        charge.task = asyncio.get_running_loop().create_task(self._keep(charge), name=f"supervise {name}")
        charge.task.add_done_callback(_surface)

    def state(self, name: str) -> State:
        return self._charges[name].state

    def pids(self, name: str) -> Pids | None:
        """The processes of the pod's present run, if there is one."""
        run = self._charges[name].run
        return None if run is None else Pids(run.offspring.guardian_pid, run.offspring.pod_pid)

    async def stop(self, name: str, grace_seconds: float) -> bool:
        """End the pod: its ending with this grace, then the kill. Returns whether nothing of it is left.

        It waits some seconds longer than the ending may take; what is left then hangs in the kernel, and its guardian
        goes on with it.
        """
        charge = self._charges[name]
        first_time = not charge.stopping.done()
        charge.grace_seconds = grace_seconds if first_time else min(grace_seconds, charge.grace_seconds)
        self._leave(charge, "stopped")
        assert charge.task is not None
        ends: set[asyncio.Future[None]] = {charge.task}
        if charge.run is not None:
            charge.run.offspring.end(charge.grace_seconds)
            ends.add(charge.run.offspring.gone)
        patience = charge.launch.ending.longest_seconds(charge.grace_seconds) + _KILL_SECONDS
        _, left = await asyncio.wait(ends, timeout=patience)
        return not left

    async def stop_all(self, grace_seconds: float) -> bool:
        """`stop` all pods at the same time."""
        return all(await asyncio.gather(*(self.stop(name, grace_seconds) for name in self._charges)))

    def kill_all(self) -> None:
        """Have all pods killed now, without their endings. Their guardians do it, whatever becomes of us."""
        for charge in self._charges.values():
            self._leave(charge, "killed")
            if charge.run is not None:
                charge.run.offspring.kill()

    def _leave(self, charge: _Charge, reason: str) -> None:
        if not charge.stopping.done():
            charge.stopping.set_result(None)
        if charge.run is not None:
            charge.run.leave(reason)

    # -- the life of a pod --------------------------------------------------------------------------------------------

    async def _keep(self, charge: _Charge) -> None:
        try:
            while await self._take_turn(charge):
                try:
                    pause = await self._start(charge)
                finally:
                    self._turns[charge.group].release()
                if charge.run is not None:
                    await self._serve(charge, charge.run)
                    pause = await self._finish(charge, charge.run)
                charge.step(State.PAUSING)
                await _first(charge.stopping, within=pause)
                if charge.stopping.done():
                    break
                charge.step(State.WAITING)
            charge.step(State.STOPPED)
        finally:
            if charge.run is not None:  # only if we were cancelled, or broke: nothing may run unwatched
                charge.run.offspring.kill()

    async def _take_turn(self, charge: _Charge) -> bool:
        """Wait for the group's turn; `False` where the pod was stopped before it came."""
        lock = self._turns.setdefault(charge.group, asyncio.Lock())
        turn = asyncio.ensure_future(lock.acquire())
        await _first(charge.stopping, turn)
        if not charge.stopping.done():
            return True
        turn.cancel()
        await asyncio.wait({turn})
        if not turn.cancelled():
            lock.release()
        return False

    async def _start(self, charge: _Charge) -> float:
        """Start a run and see it become ready, or see it end: then there is none, and the next may start in so long."""
        charge.step(State.STARTING)
        try:
            offspring = Offspring(
                charge.launch, lambda line: self._on_output(charge.name, line), guardian=self._guardian
            )
        except OSError as error:
            pause = self._pause(charge, served_seconds=0.0)
            self._on_exit(charge.name, f"it could not be started: {error.strerror}", pause)
            return pause
        run = charge.run = _Run(offspring)
        offspring.started.add_done_callback(lambda _: self._on_started(charge.name, charge.readiness.url))
        await self._become_ready(charge, run)
        return 0.0 if run.ready_at is not None else await self._finish(charge, run)

    async def _become_ready(self, charge: _Charge, run: _Run) -> None:
        readiness, offspring = charge.readiness, run.offspring

        def give_up() -> None:
            run.leave(f"not ready within {readiness.start_seconds:g} s: {run.lacking}")

        deadline = asyncio.get_running_loop().call_later(readiness.start_seconds, give_up)
        await _first(run.over, offspring.started)
        if readiness.url is None:
            await _first(run.over, offspring.announced)
        pause = min(_FIRST_CHECK_SECONDS, readiness.interval_seconds)
        while not run.over.done():
            lacking = await self._check(charge, run)
            if run.over.done():
                break
            if lacking is None:
                run.ready_at = self._clock()
                charge.step(State.READY)
                self._on_ready(charge.name, self._running(charge, run).url)
                break
            run.lacking = lacking
            await _first(run.over, within=pause)
            pause = min(2 * pause, readiness.interval_seconds)
        deadline.cancel()

    async def _serve(self, charge: _Charge, run: _Run) -> None:
        """Ask the checks again and again until the run is over."""
        readiness = charge.readiness
        bad_rounds, bad_since = 0, 0.0
        while not run.over.done():
            await _first(run.over, within=readiness.interval_seconds if readiness.checks else None)
            asked_at = self._clock()
            lacking = None if run.over.done() else await self._check(charge, run)
            if run.over.done():
                return
            if lacking is None:
                bad_rounds = 0
                if charge.state is State.UNREADY:
                    charge.step(State.READY)
                    self._on_ready(charge.name, self._running(charge, run).url)
                continue
            bad_rounds += 1
            bad_since = asked_at if bad_rounds == 1 else bad_since
            if bad_rounds >= readiness.failures and charge.state is State.READY:
                charge.step(State.UNREADY)
                self._on_unready(charge.name, lacking)
            if self._clock() - bad_since >= readiness.liveness_seconds:
                run.leave(f"not ready for {readiness.liveness_seconds:g} s: {lacking}")

    async def _finish(self, charge: _Charge, run: _Run) -> float:
        """End what is left of a run that is over; return how long to wait before the next."""
        charge.step(State.ENDING)
        pause = self._pause(charge, 0.0 if run.ready_at is None else self._clock() - run.ready_at)
        if charge.stopping.done():
            run.offspring.end(charge.grace_seconds)
            await _first(run.offspring.exited)
            self._on_exit(charge.name, run.over.result(), None)
        else:
            run.offspring.end(charge.launch.ending.grace_seconds)
            self._on_exit(charge.name, run.over.result(), pause)
        await _first(run.offspring.gone)
        charge.run = None
        return pause

    def _pause(self, charge: _Charge, served_seconds: float) -> float:
        charge.bad_runs = 0 if served_seconds >= self._backoff.good_seconds else charge.bad_runs + 1
        return self._backoff.seconds(charge.bad_runs, self._random)

    async def _check(self, charge: _Charge, run: _Run) -> str | None:
        """One round of checks, cut short where the run ends: what is lacking, if anything."""
        if not charge.readiness.checks:
            return None
        round_ = asyncio.ensure_future(_all(charge.readiness, self._running(charge, run)))
        await _first(run.over, round_)
        if not round_.done():
            round_.cancel()
            await asyncio.wait({round_})
        return None if round_.cancelled() else round_.result()

    def _running(self, charge: _Charge, run: _Run) -> Running:
        url = charge.readiness.url or run.offspring.announced.result()
        return Running(charge.name, url, run.offspring.started.result())


async def _all(readiness: Readiness, running: Running) -> str | None:
    for check in readiness.checks:
        try:
            async with asyncio.timeout(readiness.check_seconds):
                lacking = await check(running)
        except TimeoutError:
            lacking = f"no answer within {readiness.check_seconds:g} s"
        except Exception as error:
            lacking = f"{type(error).__name__}: {error}"
        if lacking is not None:
            return lacking
    return None


async def _first(*ahead: asyncio.Future[Any], within: float | None = None) -> None:
    """Wait until one of these is done, or the time is over; none of them is cancelled by it."""
    await asyncio.wait(ahead, timeout=within, return_when=asyncio.FIRST_COMPLETED)


def _surface(task: asyncio.Task[None]) -> None:
    """Let the loop tell of a bug of ours that ended the care for a pod, rather than the garbage collector."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": f"{task.get_name()} broke", "exception": error, "task": task}
        )
