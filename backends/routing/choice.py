"""Which pod a call goes to, among those that the ledger says have room for it.

Lease and route are one decision: admission asks this ranking, and the ranking asks the ledger (`fits`) about as few
pods as it can. The order is the file's and the fleet's: pods of the tenant's own profile first; among equals two at
random, the one with the lower share of KV memory in use; when neither of the two fits, the others by what is known of
them, until one does. Two at random are nearly as good as looking at all, and calls that arrive at once do not all pick
the same pod.

What share is in use is the larger of two figures: what the ledger has reserved, which always stands, and what the pod
itself says, while that is fresh. Never a pod that fails or drains: who may be given work is the fleet's word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from backends.fleet import Fleet, PodState
from tenancy.admission import LedgerView, Serving
from tenancy.call import Call
from tenancy.policy import Tenant, tenants_named_by


@dataclass(frozen=True, slots=True)
class _Ranks:
    """The pods that may be given a tenant's calls for a model, those of the tenant's own profile apart."""

    serving: Serving
    own: tuple[str, ...]
    others: tuple[str, ...]

    def of(self, ready: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """The own and the other ones among `ready`, where that is not all of them."""
        if not self.own:
            return (), ready
        own = frozenset(self.own)
        return [pod for pod in ready if pod in own], [pod for pod in ready if pod not in own]


class Choice:
    """A ranking over a fleet: what admission asks for a pod."""

    def __init__(self, fleet: Fleet, random: Random) -> None:
        self._fleet = fleet
        self._random = random
        self._ranks: dict[tuple[str, str], _Ranks] = {}
        self._shared_ranks: dict[tuple[str | None, str | None, str], _Ranks] = {}
        self._ready: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._named: frozenset[str] = frozenset()
        self._version = -1

    def serving(self, tenant: str, model: str) -> Serving:
        """The pods that may be given this tenant's calls for this model now, and whether some are coming.

        O(1) but for the first question after a change of fleet or policy.
        """
        return self._ranks_of(tenant, model).serving

    def choose(self, call: Call, ready: Sequence[str], fits: Callable[[str], bool], view: LedgerView) -> str | None:
        """The best pod among `ready` for which `fits` is true, or `None` if none fits."""
        if len(ready) == 1:  # the one pod that a release offers, or the only one there is
            return ready[0] if fits(ready[0]) else None
        ranks = self._ranks_of(call.tenant.name, call.model)
        own, others = (ranks.own, ranks.others) if ready is ranks.serving.ready else ranks.of(ready)
        best = self._best(own, fits, view) if own else None
        return self._best(others, fits, view) if best is None and others else best

    def _best(self, pods: Sequence[str], fits: Callable[[str], bool], view: LedgerView) -> str | None:
        count = len(pods)
        first = int(self._random.random() * count)  # a fifth of what `sample` costs
        second = (first + 1 + int(self._random.random() * (count - 1))) % count
        one, other = pods[first], pods[second]
        if self._load(other, view) < self._load(one, view):
            one, other = other, one
        if fits(one):
            return one
        if other != one and fits(other):
            return other
        rest = [pod for pod in pods if pod not in {one, other}]
        self._random.shuffle(rest)
        rest.sort(key=lambda pod: self._load(pod, view))
        return next((pod for pod in rest if fits(pod)), None)

    def _load(self, pod: str, view: LedgerView) -> tuple[float, int]:
        """The share of KV memory in use, then the calls there: pods without a known size differ by these alone."""
        load = view.load(pod)
        reading = self._fleet.reading(pod)
        if reading is None or reading.kv_usage is None or reading.kv_usage <= load[0]:
            return load
        return reading.kv_usage, load[1]

    def _ranks_of(self, tenant: str, model: str) -> _Ranks:
        if self._version != self._fleet.version:
            self._forget()
        key = (tenant, model)
        ranks = self._ranks.get(key)
        if ranks is None:
            ranks = self._ranks[key] = self._shared(tenant, model)
        return ranks

    def _forget(self) -> None:
        """What was derived is stale."""
        self._version = self._fleet.version
        self._ranks.clear()
        self._shared_ranks.clear()
        self._ready.clear()
        pods = (*self._fleet.policy.pods.values(), *(pod.pod for pod in self._fleet.pods.values()))
        self._named = tenants_named_by(pods)

    def _shared(self, tenant_name: str, model: str) -> _Ranks:
        """The ranks of all tenants that no pod tells apart: they differ only where a pod names one of them.

        Made for each tenant they would take 0.5 ms and 8 KB with 1,000 pods, after each change of any pod.
        """
        policy = self._fleet.policy
        tenant = policy.tenants.get(tenant_name)
        if tenant is None or not policy.may_use(tenant, model):
            return _NOTHING
        like = (tenant_name if tenant_name in self._named else None, tenant.profile, model)
        ranks = self._shared_ranks.get(like)
        if ranks is None:
            ranks = self._shared_ranks[like] = self._made(tenant, model)
        return ranks

    def _made(self, tenant: Tenant, model: str) -> _Ranks:
        policy = self._fleet.policy
        serving = [pod for pod in self._fleet.pods.values() if policy.serves(pod.pod, tenant, model)]
        ready = [pod.pod for pod in serving if pod.state is PodState.READY]
        names = tuple(pod.name for pod in ready)
        return _Ranks(
            # One tuple for all who have the same pods: admission keeps one group for them, and `of` looks at identity.
            Serving(self._ready.setdefault(names, names), not ready and any(pod.is_coming for pod in serving)),
            own=tuple(pod.name for pod in ready if pod.profile == tenant.profile),
            others=tuple(pod.name for pod in ready if pod.profile != tenant.profile),
        )


_NOTHING = _Ranks(Serving(ready=(), is_coming=False), (), ())
