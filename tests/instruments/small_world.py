"""One model, a few pods and tenants, and an admission over them: what tests of single rules need, in one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tenancy.admission import Admission, Admitted, Answer, Capacity, Decided, Lease, Queued, Refused, Ticket
from tenancy.call import Call, Kind
from tenancy.need import TOKENS_A_MESSAGE
from tenancy.policy import Budget, Key, Model, Pod, Policy, QueueSettings, ServedModel, Tenant
from tenancy.refusal import Refusal
from tests.instruments.fixed_ranking import FixedRanking

BLOCK = 16
BYTES_A_TOKEN = 100
BYTES_A_BLOCK = BLOCK * BYTES_A_TOKEN


def tenant(name: str, *keys: Key, **changes: Any) -> Tenant:
    budget = Budget(**{name: changes.pop(name) for name in list(changes) if name in Budget.__dataclass_fields__})
    return Tenant(name, keys or (Key(name, "key"),), budget=budget, **changes)


def pod(name: str, *models: str, **changes: Any) -> Pod:
    devices = changes.pop("devices", (name,))
    return Pod(name, devices, tuple(ServedModel(model, model) for model in models or ("tiny",)), **changes)


class World:
    """An admission whose calls need whole blocks: a call of n blocks asks n x 16 tokens, prompt included."""

    def __init__(
        self,
        tenants: Sequence[Tenant],
        pods: Sequence[Pod] = (),
        capacities: Mapping[str, Capacity] | None = None,
        queue: QueueSettings | None = None,
        **rest: Any,
    ) -> None:
        pods = pods or [pod("pod")]
        self.policy = Policy(
            models={"tiny": Model("tiny", 100_000, BYTES_A_TOKEN), "other": Model("other", 100_000, BYTES_A_TOKEN)},
            pods={one.name: one for one in pods},
            tenants={one.name: one for one in tenants},
            queue=queue or QueueSettings(),
            **rest,
        )
        self.ranking = FixedRanking(self.policy)
        self.admission = Admission(self.policy, self.ranking, 0.0)
        self.now = 0.0
        self.held: list[Lease] = []  # for a test to keep leases in
        self.calls = 0
        self.admission.pods_changed(capacities or {one.name: Capacity(slots=4) for one in pods}, self.now)

    def call(self, tenant: str, blocks: int = 1, key: int = 0, **changes: Any) -> Call:
        self.calls += 1
        payer = self.policy.tenants[tenant]
        facts: dict[str, Any] = {
            "kind": Kind.CHAT,
            "model": "tiny",
            "arrived_at": self.now,
            "output_tokens": blocks * BLOCK - TOKENS_A_MESSAGE,
        }
        return Call(f"call-{self.calls}", payer, payer.keys[key], **{**facts, **changes})

    def admit(self, tenant: str, blocks: int = 1, key: int = 0, **changes: Any) -> Answer:
        return self.admission.admit(self.call(tenant, blocks, key, **changes), self.now)

    def lease(self, tenant: str, blocks: int = 1, key: int = 0, **changes: Any) -> Lease:
        answer = self.admit(tenant, blocks, key, **changes)
        assert isinstance(answer, Admitted), answer
        return answer.lease

    def ticket(self, tenant: str, blocks: int = 1, key: int = 0, **changes: Any) -> Ticket:
        answer = self.admit(tenant, blocks, key, **changes)
        assert isinstance(answer, Queued), answer
        return answer.ticket

    def refusal(self, tenant: str, blocks: int = 1, key: int = 0, **changes: Any) -> Refusal:
        answer = self.admit(tenant, blocks, key, **changes)
        assert isinstance(answer, Refused), answer
        return answer.refusal

    def settle(self, lease: Lease, **how: Any) -> list[Decided]:
        return self.admission.settle(lease, None, self.now, **how)

    def adopt(self, **changes: Any) -> list[Decided]:
        self.policy = replace(self.policy, **changes)
        self.ranking.policy = self.policy
        self.ranking.set_ready([name for name in self.ranking.ready if name in self.policy.pods])
        return self.admission.adopt(self.policy, self.now)


def admitted(decided: Sequence[Decided]) -> list[Ticket]:
    return [one.ticket for one in decided if isinstance(one.answer, Admitted)]


def refused(decided: Sequence[Decided]) -> list[Refusal]:
    return [one.answer.refusal for one in decided if isinstance(one.answer, Refused)]
