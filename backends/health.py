"""Asks every pod how it is, and tells the fleet.

One task a pod: whether it can take calls (its health path) and how full it is (what its engine publishes), each at its
own pace, never two polls of one pod at once. `poke` asks at once: when an attempt met something odd, and when something
was left at a pod and waits for it to let go; then the asking goes on by itself, at growing distances, until nothing is
open there.

Each pod is asked over a connection of its own (`backends.inquiry`), never over those that carry calls: a probe must not
wait behind a call or take its connection. A pod that cannot be reached, answers nonsense or answers too late is a
finding, not an error; no answer ends the loop. What a pod is (`engine` left out of the file) is asked here, too, once a
life.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random

from backends.engines.engine import Engine, Reading
from backends.engines.known import RECOGNITION_PATHS, recognise
from backends.fleet import Fleet, FleetPod, PodState
from backends.inquiry import Inquiry, Unanswered
from backends.wire.deadline import CallLater

FOLLOW_UP_SECONDS = (0.005, 0.005, 0.01, 0.01, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
"""How long after a poll a pod is asked again while something there is closing, or while it starts or fails; a poke
begins anew."""

CLOSEST_SECONDS = 0.005
"""No two polls of one pod begin closer than this, however often it is poked."""

_UNSETTLED = frozenset({PodState.STARTING, PodState.FAILING})


@dataclass(frozen=True, slots=True)
class Pace:
    """How often pods are asked, and how long an answer may take."""

    health_seconds: float = 1.0
    reading_seconds: float = 0.5
    timeout_seconds: float = 2.0
    at_once: int = 64
    """Regular polls under way at one time, over all pods; pokes do not queue behind them."""
    most_per_second: float = 100.0
    """Regular polls of all pods together: they cost CPU, so from 50 pods on each is asked less often."""


@dataclass(slots=True)
class _Watch:
    """One pod's task, and what it must not forget between polls."""

    inquiry: Inquiry
    poked: asyncio.Event = field(default_factory=asyncio.Event)
    follow_up: int | None = None
    """Which of `FOLLOW_UP_SECONDS` comes next, while a poke is followed up."""
    life: int = -1
    answers_once: dict[str, bytes] = field(default_factory=dict)
    asked_at: float = float("-inf")
    healthy_at: float = float("-inf")
    is_doubted: bool = False
    task: asyncio.Task[None] | None = None


class _Unwell(Exception):
    """The pod did not answer as it should; the text is for people. `is_certain`: it said no, and not merely late."""

    def __init__(self, reason: str, *, is_certain: bool = True) -> None:
        super().__init__(reason)
        self.is_certain = is_certain


class Health:
    """The probes of a whole fleet."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        clock: Callable[[], float],
        call_later: CallLater,
        random: Random,
        pace: Pace | None = None,
        on_reading: Callable[[str, Reading], None] = lambda _pod, _reading: None,
        is_closing: Callable[[str], bool] = lambda _pod: False,
    ) -> None:
        """Probes for `fleet`; nothing is asked before `run`. `clock` and `call_later` are the loop's.

        `on_reading(pod, reading)` gets every reading after the fleet has it; `is_closing(pod)` says whether the
        pod should be asked often.
        """
        self._fleet = fleet
        self._clock = clock
        self._call_later = call_later
        self._random = random
        self._pace = pace or Pace()
        self._on_reading = on_reading
        self._is_closing = is_closing
        self._watches: dict[str, _Watch] = {}
        self._places = asyncio.Semaphore(self._pace.at_once)
        self._wake = asyncio.Event()

    def poke(self, pod: str) -> None:
        """Ask `pod` at once, or right after the poll that is under way; many pokes in a row are one."""
        watch = self._watches.get(pod)
        if watch is None:
            self._wake.set()
        else:
            watch.follow_up = 0
            watch.poked.set()

    def check(self, pod: str) -> None:
        """Ask `pod` at once whether it can take calls: an attempt there met something that speaks against it."""
        watch = self._watches.get(pod)
        if watch is not None:
            watch.is_doubted = True
        self.poke(pod)

    async def run(self) -> None:
        """Ask all pods, those that come later too, until cancelled."""
        try:
            while True:
                self._wake.clear()
                self._follow_fleet()
                await _set_or_late(self._wake, self._pace.reading_seconds, self._call_later)
        finally:
            tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for watch in self._watches.values():
                watch.inquiry.close()
            self._watches.clear()

    # ---- one pod

    def _follow_fleet(self) -> None:
        for name in self._fleet.pods:
            watch = self._watches.get(name)
            if watch is None:
                inquiry = Inquiry(clock=self._clock, call_later=self._call_later, seconds=self._pace.timeout_seconds)
                watch = self._watches[name] = _Watch(inquiry)
                watch.task = asyncio.create_task(self._watch(name, watch), name=f"health of {name}")

    async def _watch(self, name: str, watch: _Watch) -> None:
        while (pod := self._fleet.pods.get(name)) is not None and pod.state is not PodState.STOPPED:
            watch.poked.clear()
            try:
                if watch.follow_up is None:
                    async with self._places:
                        await self._poll(name, pod, watch)
                else:
                    await self._poll(name, pod, watch)
            except Exception as error:  # a bug: it must not make the gateway blind to a pod for good
                self._fleet.failed(name, f"probing it broke: {error!r}")
            await self._rest(name, pod, watch)
        watch.inquiry.close()
        del self._watches[name]

    async def _rest(self, name: str, pod: FleetPod, watch: _Watch) -> None:
        """Wait for the next poll's time, or for a poke."""
        is_urgent = self._is_closing(name) or (pod.state in _UNSETTLED and pod.url is not None)
        if is_urgent:
            step = watch.follow_up or 0
            seconds = FOLLOW_UP_SECONDS[step]
            watch.follow_up = min(step + 1, len(FOLLOW_UP_SECONDS) - 1)
        else:
            watch.follow_up = None
            least = len(self._fleet.pods) / self._pace.most_per_second
            pace = max(self._pace.reading_seconds, least)
            seconds = pace * self._random.uniform(0.9, 1.1)  # so that polls spread out
        await _set_or_late(watch.poked, seconds, self._call_later)
        early = watch.asked_at + CLOSEST_SECONDS - self._clock()
        if early > 0:
            await asyncio.sleep(early)

    async def _poll(self, name: str, pod: FleetPod, watch: _Watch) -> None:
        url = pod.url
        if url is None:
            watch.inquiry.close()
            return
        if watch.life != pod.life:
            watch.life, watch.healthy_at = pod.life, float("-inf")
            watch.answers_once.clear()
        life = pod.life
        watch.asked_at = self._clock()
        is_due = (
            watch.is_doubted
            or pod.state is not PodState.READY
            or watch.asked_at - watch.healthy_at >= self._pace.health_seconds
        )
        watch.is_doubted = False
        try:
            engine = pod.engine or await self._recognise(pod, url, watch)
            if is_due:
                await self._ask_health(pod, url, engine, watch)
            reading = await self._ask_reading(pod, url, engine, watch)
        except _Unwell as error:
            if self._is_same(name, pod, life):
                self._fleet.failed(name, str(error), is_certain=error.is_certain)
            return
        if not self._is_same(name, pod, life):
            return
        self._fleet.recognised(name, engine)
        if reading is not None:
            self._fleet.take(name, reading)  # before `ready`, so that nothing is admitted beyond a size not known yet
        if is_due:
            watch.healthy_at = watch.asked_at
            self._fleet.ready(name)
        if reading is not None:
            self._on_reading(name, reading)

    def _is_same(self, name: str, pod: FleetPod, life: int) -> bool:
        """Whether what was asked still says something of the pod as it is now."""
        return self._fleet.pods.get(name) is pod and pod.life == life

    # ---- what is asked

    async def _recognise(self, pod: FleetPod, url: str, watch: _Watch) -> Engine:
        answers = {}
        for path in RECOGNITION_PATHS:
            status, body = await self._get(pod, url, path, watch)
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                raise _Unwell(f"GET {path} answered 503: still starting", is_certain=False)
            if status == HTTPStatus.OK:
                answers[path] = body
        return recognise(answers)

    async def _ask_health(self, pod: FleetPod, url: str, engine: Engine, watch: _Watch) -> None:
        status, body = await self._get(pod, url, engine.health_path, watch)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise _Unwell(f"GET {engine.health_path} answered {status}: the pod does not accept its `apiKey`")
        # what publishes nothing may know no health path either: any answer of its own says that it is there
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or (engine.probes and not 200 <= status < 300):
            said = body[:200].decode(errors="replace").strip()
            # a 503 is how servers say that they are still loading
            raise _Unwell(
                f"GET {engine.health_path} answered {status}: {said}",
                is_certain=status != HTTPStatus.SERVICE_UNAVAILABLE or pod.state is not PodState.STARTING,
            )

    async def _ask_reading(self, pod: FleetPod, url: str, engine: Engine, watch: _Watch) -> Reading | None:
        """What the engine publishes; a path that answers an error is simply not there.

        `None` where it came too late from a pod that serves: slow metrics are no reason to take it out.
        """
        answers = dict(watch.answers_once)
        asked_at = self._clock()
        for probe in engine.probes:
            if probe.path in answers or probe.only_without in answers:
                continue
            try:
                status, body = await self._get(pod, url, probe.path, watch)
            except _Unwell as error:
                if error.is_certain or pod.state is not PodState.READY:
                    raise
                return None
            if status == HTTPStatus.OK:
                answers[probe.path] = body
                if probe.once:
                    watch.answers_once[probe.path] = body
        return engine.read(answers, asked_at)

    async def _get(self, pod: FleetPod, url: str, path: str, watch: _Watch) -> tuple[int, bytes]:
        try:
            return await watch.inquiry.get(url, path, api_key=pod.pod.api_key)
        except Unanswered as error:
            raise _Unwell(str(error), is_certain=not error.is_late) from None


async def _set_or_late(event: asyncio.Event, seconds: float, call_later: CallLater) -> None:
    """Wait until the event is set; when the time is over it is set from here.

    `asyncio.timeout` would end the wait by cancelling the task that waits, and catch that.
    """
    timer = call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
