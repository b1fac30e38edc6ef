"""Which of the leases left at a pod may stand for each other."""

from __future__ import annotations

from gateway.attempts import _alike
from tenancy.accounts import Capacity, Lease
from tenancy.admission import Admission, Admitted
from tenancy.call import Call, Kind
from tenancy.policy import Budget, Key, Model, Pod, Policy, ServedModel, Tenant
from tests.instruments.fixed_ranking import FixedRanking

TENANT = Tenant("acme", keys=(Key("0" * 64, "one"),), budget=Budget(concurrency=3))
POLICY = Policy(
    models={"tiny": Model("tiny", 4096, 1024)},
    pods={name: Pod(name, (name,), (ServedModel("tiny", "tiny"),), url=f"http://{name}") for name in ("left", "right")},
    tenants={"acme": TENANT},
)


def admission() -> Admission:
    made = Admission(POLICY, FixedRanking(POLICY), 0.0)
    made.pods_changed({"left": Capacity(slots=4), "right": Capacity(slots=4)}, 0.0)
    return made


def lease_of(made: Admission, name: str) -> Lease:
    answer = made.admit(Call(name, TENANT, TENANT.keys[0], Kind.CHAT, "tiny", 0.0, 100, output_tokens=10), 0.0)
    assert isinstance(answer, Admitted)
    return answer.lease


def test_leases_that_hold_the_same_are_alike() -> None:
    made = admission()
    assert _alike(lease_of(made, "first")) == _alike(lease_of(made, "second"))


def test_what_a_move_left_behind_is_like_no_whole_lease() -> None:
    made = admission()
    whole, moved = lease_of(made, "whole"), lease_of(made, "moved")
    made.move(moved, frozenset({moved.pod}), 1.0, let_go=False)
    assert moved.left_behind is not None
    assert len({_alike(whole), _alike(moved), _alike(moved.left_behind)}) == 3
