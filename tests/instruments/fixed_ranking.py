"""A `Ranking` that a test sets by hand: which pods are ready for whom; the least loaded of those that fit is best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenancy.admission import LedgerView, Serving
from tenancy.call import Call
from tenancy.policy import Policy

NOWHERE = Serving((), False)


class FixedRanking:
    """Every pod in `ready` serves whom the policy lets it serve; models in `coming` have a pod that is starting."""

    def __init__(self, policy: Policy, ready: Sequence[str] | None = None) -> None:
        self.policy = policy
        self.ready = list(policy.pods) if ready is None else list(ready)
        self.coming: set[str] = set()
        self.asked = 0
        self._served: dict[tuple[str, str], Serving] = {}

    def set_ready(self, ready: Sequence[str], coming: Sequence[str] = ()) -> None:
        """From now on these pods are ready, and a pod is starting for each model in `coming`."""
        self.ready = list(ready)
        self.coming = set(coming)
        self._served = {}

    def serving(self, tenant: str, model: str) -> Serving:
        found = self._served.get((tenant, model))
        if found is None:
            owner = self.policy.tenants.get(tenant)
            if owner is None:
                return NOWHERE
            pods = self.policy.pods
            ready = tuple(name for name in self.ready if name in pods and self.policy.serves(pods[name], owner, model))
            found = self._served[(tenant, model)] = Serving(ready, not ready and model in self.coming)
        return found

    def choose(self, call: Call, ready: Sequence[str], fits: Callable[[str], bool], view: LedgerView) -> str | None:
        self.asked += 1
        fitting = [pod for pod in ready if fits(pod)]
        return min(fitting, key=view.load, default=None)
