"""The pods, and which of them may be given work: the one place that knows.

`Fleet` owns every pod's state. Probes, outcomes of attempts, the supervisor and (later) watchers of devices tell it
what they saw; it decides what that means, by one table of allowed steps. It tells `on_change` when what may be given
out has changed, `on_doubt` when a pod should be asked at once how it is, and `on_eject` when attempts must end without
waiting for their sockets. It opens no connection and awaits nothing.

A pod becomes ready by a probe alone. What attempts meet can take that away, never give it: a refused or broken
connection to a pod that we run takes it out at once (its process is most likely gone), and to one that others run it is
asked first, because one reset must not take out somebody's only pod. While a pod fails it counts as coming back, so
that calls wait for it instead of being refused; only when it has failed every probe for some seconds is it down.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from types import MappingProxyType

from backends.engines.engine import Engine, Reading
from backends.engines.known import ENGINES
from backends.outcome import Ending, Outcome
from tenancy.accounts import Capacity
from tenancy.policy import Pod, Policy

FRESH_SECONDS = 1.0
"""A reading older than this counts as unknown."""

DEFAULT_BLOCK_TOKENS = 16

FAILING_AFTER_LATE_PROBES = 2
"""A pod that answers late once is busy; one that says no, or cannot be reached, fails at once."""

DOWN_AFTER_SECONDS = 3.0
"""A pod that has failed every probe for so long is down: no call waits for it any more."""

DOWN_AFTER_STARTS = 3
"""A pod of ours that ended so often in a row before it could take calls is tried on, but no call waits for it."""


class PodState(Enum):
    """Where a pod is in its life."""

    STARTING = "starting"  # coming: its process starts, or nobody has answered there yet
    READY = "ready"
    FAILING = "failing"  # probes or outcomes say no; it counts as coming back
    DRAINING = "draining"  # gets nothing new, finishes what it has
    DOWN = "down"  # its process ended, or nobody has answered for some probes; a supervised one comes back
    STOPPED = "stopped"  # for good


STEPS: Mapping[PodState, frozenset[PodState]] = MappingProxyType(
    {
        PodState.STARTING: frozenset({PodState.READY, PodState.DOWN, PodState.DRAINING, PodState.STOPPED}),
        PodState.READY: frozenset(
            {PodState.FAILING, PodState.STARTING, PodState.DOWN, PodState.DRAINING, PodState.STOPPED}
        ),
        PodState.FAILING: frozenset(
            {PodState.READY, PodState.STARTING, PodState.DOWN, PodState.DRAINING, PodState.STOPPED}
        ),
        PodState.DRAINING: frozenset({PodState.STARTING, PodState.STOPPED}),
        PodState.DOWN: frozenset({PodState.STARTING, PodState.READY, PodState.DRAINING, PodState.STOPPED}),
        PodState.STOPPED: frozenset(),
    }
)
"""The one table of allowed steps; staying where one is is always allowed."""

_RUNNING = frozenset({PodState.STARTING, PodState.READY, PodState.FAILING, PodState.DRAINING})
_TAKEN_OUT_BY_OUTCOME = frozenset({Ending.REFUSED, Ending.RESET})


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a pod said it is: kept when a later reading leaves it out."""

    kv_tokens: int | None = None
    slots: int | None = None
    block_tokens: int | None = None

    def updated(self, reading: Reading) -> Sizes:
        return Sizes(
            kv_tokens=reading.kv_tokens or self.kv_tokens,
            slots=reading.slots or self.slots,
            block_tokens=reading.block_tokens or self.block_tokens,
        )


@dataclass(slots=True)
class FleetPod:
    """One pod as it is now; the fleet alone changes it.

    `life` changes with each start, end and ejection, and none comes twice: what was asked of one says nothing of the
    next.
    """

    pod: Pod
    state: PodState
    url: str | None = None
    engine: Engine | None = None
    reading: Reading | None = None
    capacity: Capacity | None = None
    last_error: str = ""
    life: int = 0
    failed_starts: int = 0
    failed_probes: int = 0
    failed_since: float | None = None
    failed_attempts: int = 0
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def is_coming(self) -> bool:
        """Whether a call may wait for it."""
        if self.failed_starts >= DOWN_AFTER_STARTS:
            return False
        if self.state is PodState.DOWN:
            return self.pod.is_supervised
        return self.state in {PodState.STARTING, PodState.FAILING}


def _nothing(*_: object) -> None:
    return None


class Fleet:
    """Every pod and its state."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float],
        on_change: Callable[[], None] = _nothing,
        on_doubt: Callable[[str], None] = _nothing,
        on_eject: Callable[[Collection[str], str], None] = _nothing,
    ) -> None:
        """A fleet of the file's pods.

        `on_change()` is called after each change of what may be given out; `on_doubt(pod)` when that pod should be
        probed at once; `on_eject(pods, reason)` when what runs on those pods must end now. They may call back into the
        fleet.
        """
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._on_doubt = on_doubt
        self._on_eject = on_eject
        self._pods: dict[str, FleetPod] = {}
        self.pods: Mapping[str, FleetPod] = MappingProxyType(self._pods)
        """Every pod by name, in the order in which they came."""
        self._lives = count(1)
        self.version = 0
        """Rises with every change of a pod's state or capacity, or of the policy: what was derived is stale then."""
        for pod in policy.pods.values():
            self._pods[pod.name] = self._fresh(pod)

    # ---- what others ask

    @property
    def policy(self) -> Policy:
        return self._policy

    def reading(self, name: str) -> Reading | None:
        """The pod's last reading, if it is fresh enough to go by."""
        pod = self._pods.get(name)
        if pod is None or pod.reading is None or self._clock() - pod.reading.asked_at > FRESH_SECONDS:
            return None
        return pod.reading

    def capacities(self) -> Mapping[str, Capacity | None]:
        """What each pod holds, as declared or read; `None` for one that does not run."""
        return {name: pod.capacity if pod.state in _RUNNING else None for name, pod in self._pods.items()}

    # ---- what discoveries tell

    def add(self, pod: Pod) -> None:
        """A pod was found; one of that name that is here already takes the new facts, and is drained no longer."""
        self._add(pod)
        self._changed()

    def remove(self, name: str) -> None:
        """A pod is gone for good: nothing is heard of it any more."""
        pod = self._pods.pop(name, None)
        if pod is not None:
            pod.state = PodState.STOPPED
            self._changed()

    def adopt(self, policy: Policy) -> None:
        """Take a new policy whole: its pods are added or take their new facts, others are drained."""
        self._policy = policy
        for pod in policy.pods.values():
            self._add(pod)
        for name, known in self._pods.items():
            if name not in policy.pods and known.state is not PodState.STOPPED:
                known.state = self._allowed(known, PodState.DRAINING)
        self._changed()

    # ---- what the supervisor and the probes tell

    def started(self, name: str, url: str) -> None:
        """The pod's process was started, and will answer at `url`."""
        pod = self._pods.get(name)
        if pod is None or pod.state in {PodState.DRAINING, PodState.STOPPED}:
            return
        pod.url = url
        pod.life = next(self._lives)
        pod.failed_probes = pod.failed_attempts = 0
        pod.failed_since = pod.reading = None
        self._step(pod, PodState.STARTING)
        self._on_doubt(name)

    def recognised(self, name: str, engine: Engine) -> None:
        """The pod told what it is."""
        pod = self._pods.get(name)
        if pod is not None:
            pod.engine = engine

    def ready(self, name: str) -> None:
        """A probe found the pod able to take calls."""
        pod = self._pods.get(name)
        if pod is None:
            return
        pod.failed_probes, pod.failed_since = 0, None
        if pod.state in {PodState.STARTING, PodState.FAILING, PodState.DOWN} and pod.url is not None:
            pod.failed_attempts = pod.failed_starts = 0
            pod.last_error = ""
            self._step(pod, PodState.READY)

    def failed(self, name: str, reason: str, *, is_certain: bool = True) -> None:
        """A probe found the pod unable to take calls; `is_certain` is false where it was late, or says that it is
        loading.

        It fails then, and when nothing but failures came for a while it is down. A pod that has never answered stays
        coming for as long as its supervisor starts it, or it says that it is loading.
        """
        pod = self._pods.get(name)
        if pod is None:
            return
        pod.failed_probes += 1
        pod.last_error = reason
        if pod.failed_since is None:
            pod.failed_since = self._clock()
        is_over = self._clock() - pod.failed_since >= DOWN_AFTER_SECONDS
        match pod.state:
            case PodState.READY if is_certain or pod.failed_probes >= FAILING_AFTER_LATE_PROBES:
                self._step(pod, PodState.FAILING)
            case PodState.FAILING if is_over:
                self._step(pod, PodState.DOWN)
            case PodState.STARTING if is_over and is_certain and not pod.pod.is_supervised:
                self._step(pod, PodState.DOWN)
            case _:
                pass

    def exited(self, name: str, reason: str) -> None:
        """The pod's process ended."""
        pod = self._pods.get(name)
        if pod is None:
            return
        pod.last_error = reason
        pod.life = next(self._lives)
        pod.reading = None
        if pod.state in {PodState.STARTING, PodState.DOWN}:
            pod.failed_starts += 1
            self._changed()
        if pod.pod.is_supervised:
            pod.url = None
        if pod.state is PodState.DRAINING:
            self._step(pod, PodState.STOPPED)
        elif pod.state is not PodState.STOPPED:
            self._step(pod, PodState.DOWN)

    def drain(self, name: str) -> None:
        """Give the pod nothing new; what runs on it goes on."""
        pod = self._pods.get(name)
        if pod is not None and pod.state is not PodState.STOPPED:
            self._step(pod, PodState.DRAINING)

    def take(self, name: str, reading: Reading) -> None:
        """A reading of the pod has come in."""
        pod = self._pods.get(name)
        if pod is None or (pod.reading is not None and reading.asked_at < pod.reading.asked_at):
            return
        pod.reading = reading
        pod.sizes = pod.sizes.updated(reading)
        capacity = self._capacity(pod)
        if capacity != pod.capacity:
            pod.capacity = capacity
            self._changed()

    # ---- what attempts tell

    def report(self, name: str, outcome: Outcome) -> None:
        """An attempt on the pod has ended so."""
        pod = self._pods.get(name)
        if pod is None:
            return
        if outcome.is_good:
            pod.failed_attempts = 0
            return
        if not outcome.blames_pod or pod.state is not PodState.READY:
            return
        pod.failed_attempts += 1
        pod.last_error = outcome.detail or outcome.ending.value
        is_gone = pod.pod.is_supervised and outcome.ending in _TAKEN_OUT_BY_OUTCOME
        if is_gone or pod.failed_attempts >= self._policy.breaker.failures:
            self._step(pod, PodState.FAILING)
        self._on_doubt(name)

    def eject(self, devices: Collection[str], reason: str) -> None:
        """Take out every pod on `devices` at once; each comes back by its next start or probe."""
        gone = [
            name
            for name, pod in self._pods.items()
            if pod.state in _RUNNING and not set(devices).isdisjoint(pod.pod.devices)
        ]
        for name in gone:
            pod = self._pods[name]
            pod.life = next(self._lives)
            pod.last_error = reason
            pod.reading = None
            if pod.state is not PodState.DRAINING:
                self._step(pod, PodState.DOWN)
        if gone:
            self._on_eject(gone, reason)

    # ---- within

    def _add(self, pod: Pod) -> None:
        known = self._pods.get(pod.name)
        if known is None or known.state is PodState.STOPPED:
            self._pods[pod.name] = self._fresh(pod)
        else:
            known.pod = pod
            if not pod.is_supervised:
                known.url = pod.url
            if pod.engine is not None:
                known.engine = ENGINES[pod.engine]
            known.capacity = self._capacity(known)
            if known.state is PodState.DRAINING:
                known.state = self._allowed(known, PodState.STARTING)
        self._on_doubt(pod.name)

    def _fresh(self, pod: Pod) -> FleetPod:
        engine = None if pod.engine is None else ENGINES[pod.engine]
        found = FleetPod(pod, PodState.STARTING, url=pod.url, engine=engine, life=next(self._lives))
        found.capacity = self._capacity(found)
        return found

    def _capacity(self, pod: FleetPod) -> Capacity:
        """What the file declares comes first; what it leaves out, the pod may have told."""
        declared = [slots for slots in (pod.pod.concurrency, pod.pod.slots) if slots is not None]
        return Capacity(
            kv_bytes=pod.pod.kv_memory_bytes,
            slots=min(declared) if declared else pod.sizes.slots,
            block_tokens=pod.sizes.block_tokens or DEFAULT_BLOCK_TOKENS,
            kv_tokens=pod.sizes.kv_tokens,
        )

    def _step(self, pod: FleetPod, to: PodState) -> None:
        if to is not pod.state:
            pod.state = self._allowed(pod, to)
            self._changed()

    def _allowed(self, pod: FleetPod, to: PodState) -> PodState:
        assert to is pod.state or to in STEPS[pod.state], f"{pod.pod.name}: {pod.state.value} cannot become {to.value}"
        return to

    def _changed(self) -> None:
        self.version += 1
        self._on_change()
