"""One seed, one history: tenants, pods and clients of one gateway, whose production code runs in virtual time.

Real are admission with ledger and queue, `Admit`, `Exchange`, `Attempts`, the relay, the sinks, the wire with its
pools, fleet, choice and closing, joined as `gateway.assembly` joins them. Played are the pods, the network, the
probes (they ask the model pods for their true numbers, as `backends.health` would, with latency both ways) and the
clients.

What a history is made of is a `Script`, drawn from the seed before anything runs, so that a test can change one
thing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

from backends.closing import Closing
from backends.engines.engine import Reading
from backends.fleet import Fleet, PodState
from backends.routing.choice import Choice
from backends.wire.pool import Pool
from backends.wire.transfer import Timeouts
from gateway.admit import Admit
from gateway.attempts import Attempts
from gateway.exchange import Exchange
from gateway.stream.pulse import Pulse
from tenancy.accounts import Lease
from tenancy.call import Call, Kind, Usage
from tenancy.policy import (
    BreakerSettings,
    Budget,
    Device,
    Key,
    Model,
    Pod,
    Policy,
    Profile,
    QueueSettings,
    ServedModel,
    StreamSettings,
    Tenant,
)
from tests.simulation import checkers
from tests.simulation.checkers import Checker, Complaints, Scene, WatchedAdmission
from tests.simulation.clients import STAYS, Departure, Visit
from tests.simulation.loop import OutOfBounds, VirtualLoop
from tests.simulation.model_pod import BLOCK_TOKENS, FRAMINGS, STEP_SECONDS, Conduct, ModelPod, Size, Work, raw
from tests.simulation.network import GRID_SECONDS, Network, Weather

START = 1000.0
PROBE_SECONDS = 0.2
CLOSE_PROBE_SECONDS = 0.02
DOWN_PROBE_SECONDS = 0.1
IDLE_TURNS = 20

CheckerT = TypeVar("CheckerT", bound=Checker)


class Broken(AssertionError):
    """A history broke an invariant; the message has its seed."""


@dataclass(frozen=True, slots=True)
class Guest:
    """One call to come."""

    at: float
    tenant: str
    key: str
    model: str
    prompt_bytes: int = 64
    output_tokens: int | None = 8
    length: int = 8
    sequences: int = 1
    streamed: bool = True
    wants_usage: bool = False
    may_wait: bool = True
    deadline: float | None = None
    departure: Departure = STAYS
    sip_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Outage:
    """A pod dies, or drains for good (`seconds` of `None`), or its address goes silent to who dials it."""

    at: float
    pod: str
    seconds: float | None
    is_silent: bool = False


@dataclass(frozen=True)
class Script:
    """All of a history but for what the network and the pods draw."""

    policy: Policy
    sizes: dict[str, Size]
    guests: tuple[Guest, ...]
    outages: tuple[Outage, ...] = ()
    conducts: Callable[[Random, str, str], Conduct] = lambda _random, _pod, _call: Conduct()
    """How a pod treats a request, by the pod's name and the call's id."""
    blind: frozenset[str] = frozenset()
    weather: Weather = field(default_factory=Weather)


@dataclass
class World:
    """A history. `run` brings it to its end, or raises `Broken`."""

    seed: int
    script: Script
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        script, policy = self.script, self.script.policy
        self.loop = loop = VirtualLoop(Random(f"{self.seed} loop"), start_at=START)
        self.complain = Complaints(loop.time)
        self.network = Network(loop, Random(f"{self.seed} network"), script.weather)
        self._random = Random(f"{self.seed} pods")
        self.fleet = Fleet(policy, clock=loop.time, on_change=self._fleet_changed, on_doubt=self._poke)
        self.closing: Closing[Lease] = Closing()
        self.choice = Choice(self.fleet, random=Random(f"{self.seed} choice"))
        self.admission = WatchedAdmission(policy, self.choice, loop.time())
        self.pods = {name: self._model_pod(name, size) for name, size in script.sizes.items()}
        self.scene = Scene(policy, self.admission, self.pods, self._serving, loop.time, self.complain)
        self.checkers = [kind(self.scene) for kind in checkers.ALL]
        self.admission.watch(self.scene, self.checkers)
        self.visits: list[Visit] = []
        self._pokes: dict[str, asyncio.Event] = {name: asyncio.Event() for name in self.pods}
        self._probes: list[asyncio.Task[None]] = []
        self._closing_timer: asyncio.TimerHandle | None = None
        self._seen_changes = -1
        loop.watch = self._look
        self._join()

    def _join(self) -> None:
        """What `gateway.assembly` joins."""
        loop, streams, queue = self.loop, self.script.policy.streams, self.script.policy.queue
        self.admit = Admit(self.admission, loop)
        self.attempts = Attempts(self.fleet, self.closing, loop, connect_pool=self._pool, poke=self._poke)
        every = min(1.0, streams.heartbeat_seconds / 3, max(queue.head_after_seconds / 3, 0.01))
        self.pulse = Pulse(every, clock=loop.time, call_later=loop.call_later)
        self.exchange = Exchange(self.script.policy, self.admit, self.attempts, self.pulse, loop)
        self._pools: list[Pool] = []

    def _pool(self, url: str) -> Pool:
        streams = self.script.policy.streams
        timeouts = Timeouts(
            streams.connect_timeout_seconds, streams.first_byte_timeout_seconds, streams.stall_timeout_seconds
        )
        connect = self.network.connector(url)
        pool = Pool(url, connect=connect, clock=self.loop.time, call_later=self.loop.call_later, timeouts=timeouts)
        self._pools.append(pool)
        return pool

    def _model_pod(self, name: str, size: Size) -> ModelPod:
        return ModelPod(
            name,
            self.script.policy.pods[name].url or f"http://{name}.1",
            size,
            self.loop,
            self.network,
            self._random,
            conduct=lambda call: self.script.conducts(self._random, name, call),
            witness=self,
            tells=name not in self.script.blind,
        )

    # ---- the history

    def run(self) -> None:
        """From the first guest to the last connection's end."""
        try:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(self._live())
        except OutOfBounds as error:
            waiting = [visit.call.id for visit in self.visits if visit.task is not None and not visit.task.done()]
            raise Broken(f"seed {self.seed}: {error}; under way: {waiting}") from error
        finally:
            self.loop.watch = None
            self._abandon()
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _live(self) -> None:
        for name in self.pods:
            self._rise(name)
            self._probes.append(self.loop.create_task(self._probe(name), name=f"probe of {name}"))
        self._fleet_changed()
        for outage in self.script.outages:
            self.loop.call_at(START + outage.at, self._fall, outage)
        for number, guest in enumerate(self.script.guests):
            self.loop.call_at(START + guest.at, self._come, number, guest)
        last = max((guest.at for guest in self.script.guests), default=0.0)
        await asyncio.sleep(last + 0.1)
        for visit in self.visits:
            assert visit.task is not None
            await asyncio.wait([visit.task])
        while any(self.closing.is_open(name) for name in self.pods):  # noqa: ASYNC110 – nobody tells when it is over
            await asyncio.sleep(0.1)
        self._checker(checkers.Settled, lambda checker: checker.check())
        await asyncio.sleep(max(8.0, self.script.policy.queue.timeout_seconds + 1))
        for task in self._probes:
            task.cancel()
        await asyncio.wait(self._probes)
        self._end_quietly()

    def _end_quietly(self) -> None:
        self.attempts.close()
        own = asyncio.current_task()
        leftovers: dict[str, object] = {
            "tasks": sorted(task.get_name() for task in asyncio.all_tasks() if task is not own),
            "connections": self.network.standing,
            "connections in the pools": [
                (pool.open, pool.dialling) for pool in self._pools if pool.open or pool.dialling
            ],
            "streams in the pulse": len(self.pulse),
            "timers": [repr(timer) for timer in self.loop.timers],
        }
        self._checker(checkers.Quiet, lambda checker: checker.check(leftovers))

    def _abandon(self) -> None:
        """Throw away what a broken history left, so that it says nothing more."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.set_exception_handler(lambda _loop, _context: None)
        pending = asyncio.all_tasks(self.loop)
        if pending:
            self.loop.run_until_complete(asyncio.wait(pending, timeout=5.0))

    def _checker(self, kind: type[CheckerT], ask: Callable[[CheckerT], None]) -> None:
        for checker in self.checkers:
            if isinstance(checker, kind):
                ask(checker)

    def _look(self) -> None:
        if self.scene.changes != self._seen_changes or self.loop.turns % IDLE_TURNS == 0:
            self._seen_changes = self.scene.changes
            for checker in self.checkers:
                checker.look()
        for fault in self.loop.faults:
            self.complain("0", f"the loop's exception handler was called: {fault}")
        if self.complain.found:
            raise Broken(f"seed {self.seed}: " + "; ".join(self.complain.found[:3]))

    def note(self, what: str) -> None:
        self.log.append(f"{self.loop.time():.6f} {what}")

    # ---- clients

    def _come(self, number: int, guest: Guest) -> None:
        tenant = self.script.policy.tenants[guest.tenant]
        key = next(key for key in tenant.keys if key.name == guest.key)
        now = self.loop.time()
        id_ = f"{guest.tenant}/{guest.key}/{number}"
        body: dict[str, Any] = {
            "model": guest.model,
            "messages": [{"role": "user", "content": "x"}],
            "user": guest.tenant,
            "true_id": id_,
            "true_prompt_tokens": guest.prompt_bytes // 4 + 8,
            "true_length": guest.length,
            "n": guest.sequences,
            "stream": guest.streamed,
        }
        if guest.output_tokens is not None:
            body["max_tokens"] = guest.output_tokens
        call = Call(
            id=id_,
            tenant=tenant,
            key=key,
            kind=Kind.CHAT,
            model=guest.model,
            arrived_at=now,
            prompt_bytes=guest.prompt_bytes,
            sequences=guest.sequences,
            output_tokens=guest.output_tokens,
            streamed=guest.streamed,
            wants_usage=guest.wants_usage,
            may_wait=guest.may_wait,
            deadline_at=None if guest.deadline is None else now + guest.deadline,
            size_bytes=guest.prompt_bytes + 2048,
            body=raw(body),
        )
        departure = guest.departure
        if departure.at is not None:
            departure = replace(departure, at=START + departure.at)
        visit = Visit(call, self.loop, departure, guest.sip_bytes)
        visit.has_left = lambda: self._left(visit)
        self.visits.append(visit)
        self.note(f"{call.id} comes")
        visit.begin(self._exchange(visit))

    def _exchange(self, visit: Visit) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            try:
                await self.exchange.run(visit.call, visit.sink, visit.leaving, visit.record)
            except Exception as error:
                self.complain("0", f"the exchange of {visit.call.id} raised {error!r}")
                raise
            record = visit.record
            self.note(
                f"{visit.call.id} ends {record.status} {record.code} {record.outcomes} {record.completion_tokens}"
            )
            for checker in self.checkers:
                checker.ended(visit)

        return run()

    def _left(self, visit: Visit) -> None:
        self.note(f"{visit.call.id} leaves")
        self.loop.call_later(checkers.LEAVING_SECONDS, self._is_gone, visit)

    def _is_gone(self, visit: Visit) -> None:
        for checker in self.checkers:
            checker.left(visit)

    # ---- pods

    def _rise(self, name: str) -> None:
        pod = self.pods[name]
        if self.script.policy.pods[name].is_supervised:
            pod.url = f"http://{name}.{pod.lives + 1}"
            self.fleet.started(name, pod.url)
        pod.start()
        self.note(f"{name} rises")

    def _fall(self, outage: Outage) -> None:
        name, pod = outage.pod, self.pods[outage.pod]
        if outage.seconds is None:
            self.note(f"{name} drains")
            self._checker(checkers.Drained, lambda checker: checker.drains(name))
            self.fleet.drain(name)
        elif outage.is_silent:
            self.network.silence(pod.url, True)
            self.loop.call_later(outage.seconds, self.network.silence, pod.url, False)
        elif pod.is_up:
            self.note(f"{name} falls")
            pod.stop()
            if self.script.policy.pods[name].is_supervised:
                self.fleet.exited(name, "it fell")
                self.admit.let_go(self.closing.gone(name))
            self.loop.call_later(outage.seconds, self._rise, name)

    async def _probe(self, name: str) -> None:
        """What `backends.health` does for one pod."""
        pod, poke, fleet = self.pods[name], self._pokes[name], self.fleet
        while True:
            poke.clear()
            known = fleet.pods[name]
            life, asked_at = known.life, self.loop.time()
            await asyncio.sleep(self.script.weather.latency(self._random))
            reading = pod.reading(asked_at) if pod.is_up and pod.url == known.url else None
            await asyncio.sleep(self.script.weather.latency(self._random))
            if known.life == life and known.url is not None:
                if reading is None:
                    fleet.failed(name, "refused")
                else:
                    fleet.take(name, reading)
                    fleet.ready(name)
                    self._read(name, reading)
            if self.closing.is_open(name):
                seconds = CLOSE_PROBE_SECONDS
            else:
                seconds = PROBE_SECONDS if known.state is PodState.READY else DOWN_PROBE_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await poke.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(5 * GRID_SECONDS)

    # ---- what one room tells another, as in `gateway.assembly`

    def _serving(self, tenant: str, model: str) -> tuple[str, ...]:
        return self.choice.serving(tenant, model).ready

    def _fleet_changed(self) -> None:
        self.admit.pods_changed(self.fleet.capacities())

    def _poke(self, name: str) -> None:
        self._pokes[name].set()

    def _read(self, name: str, reading: Reading) -> None:
        self.admit.let_go(self.closing.read(name, reading, self.loop.time()))
        self._watch_closing()

    def _watch_closing(self) -> None:
        due = self.closing.next_expiry()
        if due is not None and self._closing_timer is None:
            self._closing_timer = self.loop.call_at(due, self._expire_closing)

    def _expire_closing(self) -> None:
        self._closing_timer = None
        self.admit.let_go(self.closing.expire(self.loop.time()))
        self._watch_closing()

    # ---- what pods tell

    def arrived(self, pod: ModelPod, work: Work) -> None:
        self.scene.changes += 1
        self.note(f"{work.id} at {pod.name}: {work.conduct.kind}")
        for checker in self.checkers:
            checker.arrived(pod, work)

    def reported(self, pod: ModelPod, work: Work, prompt_tokens: int, completion_tokens: int) -> None:
        for checker in self.checkers:
            checker.reported(work, Usage(prompt_tokens, completion_tokens))

    def let_go(self, pod: ModelPod, work: Work) -> None:
        self.scene.changes += 1
        self.note(f"{work.id} off {pod.name}")


# ---- what a seed draws ----------------------------------------------------------------------------------------------

TROUBLES = ("status", "reset", "cut", "stall", "unfinished", "close", "error", "no_done", "drops", "pings")
STATUSES = (400, 429, 500, 503)


def a_script(seed: int) -> Script:
    """A policy, pods, clients and their troubles, as the seed has it."""
    random = Random(f"{seed} script")
    sizes, pods = _pods(random)
    profiles = {
        "plain": Profile("plain"),
        "lent": Profile("lent", overcommit_ratio=1.5),
    }
    tenants = {name: _tenant(random, name) for name in ("acme", "beta", "cora", "dune")[: random.randint(2, 4)]}
    policy = Policy(
        profiles=profiles,
        devices={"gpu0": Device("gpu0", memory_bytes=None)},
        models={
            "small": Model("small", context_tokens=2048, kv_bytes_per_token=64),
            "other": Model("other", context_tokens=2048, kv_bytes_per_token=64),
        },
        pods=pods,
        tenants=tenants,
        queue=QueueSettings(
            depth=random.choice((4, 12, 1000)),
            timeout_seconds=random.choice((0.5, 2.0, 5.0)),
            bypass_seconds=random.choice((0.0, 0.1, 0.5)),
            head_after_seconds=random.choice((0.3, 1.0, 15.0)),
        ),
        streams=StreamSettings(
            connect_timeout_seconds=0.3,
            first_byte_timeout_seconds=random.choice((0.4, 2.0)),
            stall_timeout_seconds=random.choice((0.2, 1.0)),
            heartbeat_seconds=random.choice((0.1, 0.5)),
        ),
        breaker=BreakerSettings(failures=random.choice((2, 5))),
    )
    trouble = random.choice((0.0, 0.1, 0.4))
    kinds = random.sample(TROUBLES, random.randint(1, 4))
    # The same for all: which of several has been let go, `closing` can only guess where one goes on for long.
    lingers = random.choice((0.0, 0.05, 0.3, 1.5))
    framing = {name: random.choice(FRAMINGS) for name in pods}
    blind = frozenset(name for name in pods if random.random() < 0.15)

    def conduct(drawn: Random, pod: str, _call: str) -> Conduct:
        kind = drawn.choice(kinds) if drawn.random() < trouble else "good"
        at = drawn.choice(STATUSES) if kind == "status" else drawn.randint(0, 6)
        if kind in ("reset", "cut"):
            at = drawn.choice((1, 30, 95, 200, drawn.randint(1, 1500)))
        return Conduct(kind, at, lingers, drawn.choice((1, 1, 5)), drawn.choice((1, 1, 1, 4)), framing[pod])

    guests = tuple(_guest(random, policy) for _ in range(random.choice((12, 25, 40))))
    return Script(policy, sizes, guests, _outages(random, list(pods)), conduct, blind, _weather(random))


def _pods(random: Random) -> tuple[dict[str, Size], dict[str, Pod]]:
    sizes: dict[str, Size] = {}
    pods: dict[str, Pod] = {}
    for number in range(random.randint(1, 4)):
        name = f"pod-{number}"
        sizes[name] = Size(random.choice((1, 2, 4, 8)), random.choice((8, 24, 200)), 64)
        is_ours = random.random() < 0.3
        is_dedicated = number > 0 and random.random() < 0.25
        pods[name] = Pod(
            name,
            devices=("gpu0",),
            models=tuple(ServedModel(model, model) for model in random.choice((("small",), ("small", "other")))),
            profile=random.choice((None, "plain", "lent")),
            engine="simulator",
            url=None if is_ours else f"http://{name}",
            command=("serve",) if is_ours else (),
            # Until its first reading a pod is as large as the file says.
            kv_memory_bytes=sizes[name].blocks * BLOCK_TOKENS * 64,
            concurrency=sizes[name].slots,
            memory_bytes=random.choice((0, 8192)) if is_dedicated else 0,
            tenants=frozenset({"acme"}) if is_dedicated else None,
        )
    return sizes, pods


def _tenant(random: Random, name: str) -> Tenant:
    block = BLOCK_TOKENS * 64
    budget = Budget(
        memory_bytes=random.choice((None, 8 * block, 20 * block, 60 * block)),
        concurrency=random.choice((None, 1, 2, 4)),
        requests_per_minute=random.choice((None, None, 10)),
        tokens_per_minute=random.choice((None, None, 1500)),
    )
    keys = (Key("0" * 64, "main"), Key("1" * 64, "ci", budget=Budget(concurrency=random.choice((None, 1, 2)))))
    return Tenant(
        name,
        keys=keys,
        profile=random.choice((None, "plain", "lent")),
        budget=budget,
        default_max_tokens=random.choice((4, 16)),
        queue_depth=random.choice((None, None, 3)),
    )


def _guest(random: Random, policy: Policy) -> Guest:
    at = round(random.choice((0.5, 0.8, 1.5, random.uniform(0.2, 3.0))) + random.randint(0, 5) * STEP_SECONDS, 2)
    departure = STAYS
    chance = random.random()
    if chance < 0.2:
        departure = Departure(at=at + random.randint(0, 40) * STEP_SECONDS)
    elif chance < 0.4:
        departure = Departure(suspension=random.randint(1, 6), window=random.choice(("suspended", "unwoken")))
    length = random.choice((1, 3, 8, 20))
    return Guest(
        at,
        tenant=random.choice(list(policy.tenants)),
        key=random.choice(("main", "main", "ci")),
        model=random.choice(("small", "small", "other")),
        prompt_bytes=random.choice((0, 64, 64, 200, 400)),
        output_tokens=random.choice((None, length, length + 4)),
        length=random.choice((length, length, 30)),
        sequences=random.choice((1, 1, 1, 2)),
        streamed=random.random() < 0.75,
        wants_usage=random.random() < 0.3,
        may_wait=random.random() < 0.85,
        deadline=random.choice((None, None, None, 0.05, 0.3, 1.0)),
        departure=departure,
        sip_bytes=random.choice((None, None, None, 20, 200)),
    )


def _outages(random: Random, pods: list[str]) -> tuple[Outage, ...]:
    outages: list[Outage] = []
    for _ in range(random.choice((0, 0, 1, 3))):
        at = round(random.uniform(0.4, 3.0), 2)
        seconds = random.choice((0.05, 0.3, 2.0, 4.0))
        outages += [Outage(at, pod, seconds, random.random() < 0.2) for pod in pods if random.random() < 0.6]
    if len(pods) > 1 and random.random() < 0.15:
        outages.append(Outage(round(random.uniform(0.5, 2.0), 2), random.choice(pods), None))
    return tuple(outages)


def _weather(random: Random) -> Weather:
    return Weather(most_steps=random.choice((0, 1, 3)), splits=random.choice((0.0, 0.2, 0.6)))


def live(seed: int, script: Script | None = None) -> World:
    """Let one history happen; raises `Broken` where it breaks an invariant."""
    world = World(seed, script or a_script(seed))
    world.run()
    return world
