"""What devices, pods, tenants and keys are charged, by the answers of admission: pods included, shares and lending."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from tenancy.admission import Admitted, Capacity, Lease
from tenancy.call import Usage
from tenancy.policy import Budget, Device, Key, Mps, Profile
from tenancy.refusal import Code
from tests.instruments.small_world import BYTES_A_BLOCK, World, pod, tenant


def test_a_call_charges_pod_tenant_and_key_the_same_bytes() -> None:
    world = World([tenant("acme", Key("1", "ci", budget=Budget(memory_bytes=2 * BYTES_A_BLOCK)))])
    world.lease("acme", 2)
    assert world.admission.pod_state("pod").kv_reserved == 2 * BYTES_A_BLOCK
    assert world.admission.tenant_state("acme").memory_reserved == 2 * BYTES_A_BLOCK
    refusal = world.refusal("acme", 1, may_wait=False)
    assert (refusal.code, refusal.account) == (Code.MEMORY_BUDGET, "key/acme/ci")


def test_memory_is_lent_up_to_the_ratio_and_no_byte_further() -> None:
    lent = Profile("lent", overcommit_ratio=1.5)
    world = World([tenant("acme", memory_bytes=4 * BYTES_A_BLOCK, profile="lent")], profiles={"lent": lent})
    world.lease("acme", 4)
    assert world.admission.tenant_state("acme").memory_lent == 0
    world.lease("acme", 2)
    state = world.admission.tenant_state("acme")
    assert (state.memory_guarantee, state.memory_limit) == (4 * BYTES_A_BLOCK, 6 * BYTES_A_BLOCK)
    assert state.memory_lent == 2 * BYTES_A_BLOCK
    assert world.refusal("acme", may_wait=False).code is Code.MEMORY_BUDGET


def test_the_ratio_multiplies_neither_concurrency_nor_keys() -> None:
    key = Key("1", "ci", budget=Budget(memory_bytes=BYTES_A_BLOCK))
    profiles = {"lent": Profile("lent", overcommit_ratio=2.0)}
    world = World([tenant("acme", key, Key("2", "main"), concurrency=2, profile="lent")], profiles=profiles)
    world.lease("acme", key=0)
    assert world.refusal("acme", key=0, may_wait=False).account == "key/acme/ci"
    world.lease("acme", key=1)
    assert world.refusal("acme", key=1, may_wait=False).code is Code.CONCURRENCY_BUDGET


def test_memory_by_device_is_shared_among_a_pods_devices_and_is_0_where_not_named() -> None:
    budget = {"gpu0": 2 * BYTES_A_BLOCK, "gpu1": BYTES_A_BLOCK}
    pods = [pod("wide", devices=("gpu0", "gpu1")), pod("elsewhere", "other", devices=("gpu2",))]
    world = World([tenant("acme", memory_by_device=budget)], pods)
    world.lease("acme", 2)
    assert world.admission.tenant_state("acme").memory_reserved == 2 * BYTES_A_BLOCK
    refusal = world.refusal("acme", 2, may_wait=False)
    assert (refusal.code, refusal.account, refusal.asked) == (Code.MEMORY_BUDGET, "tenant/acme/gpu1", BYTES_A_BLOCK)
    refusal = world.refusal("acme", model="other")
    assert (refusal.code, refusal.account, refusal.limit) == (Code.EXCEEDS_BUDGET, "tenant/acme/gpu2", 0)


def test_a_dedicated_pod_charges_its_limit_to_its_tenant_and_its_calls_charge_the_pod() -> None:
    own = pod("own", mps=Mps(10 * BYTES_A_BLOCK), tenants=frozenset({"acme"}))
    world = World([tenant("acme", memory_bytes=12 * BYTES_A_BLOCK)], [own, pod("shared", "other")])
    assert world.admission.tenant_state("acme").memory_reserved == 10 * BYTES_A_BLOCK
    world.lease("acme", 8)
    assert world.admission.tenant_state("acme").memory_reserved == 10 * BYTES_A_BLOCK
    assert world.admission.pod_state("own").kv_reserved == 8 * BYTES_A_BLOCK
    world.lease("acme", 2, model="other")
    assert world.refusal("acme", model="other", may_wait=False).code is Code.MEMORY_BUDGET
    world.admission.pods_changed({"shared": Capacity(slots=4)}, world.now)
    assert world.admission.tenant_state("acme").memory_reserved == 2 * BYTES_A_BLOCK


def test_a_pod_that_would_overfill_its_device_gets_no_calls_and_is_named() -> None:
    device = Device("gpu", memory_bytes=1000, overhead_bytes=50)
    pods = [pod("first", mps=Mps(600), devices=("gpu",)), pod("second", "other", mps=Mps(301), devices=("gpu",))]
    world = World([tenant("acme")], pods, devices={"gpu": device})
    assert list(world.admission.left_out()) == ["second"]
    assert "device/gpu" in world.admission.left_out()["second"]
    assert world.refusal("acme", model="other").code is Code.NO_POD
    world.admission.pods_changed({"second": Capacity(slots=1)}, world.now)
    assert not world.admission.left_out()
    world.lease("acme", model="other")


def test_a_profile_caps_a_pods_memory_and_one_that_does_not_share_takes_the_device() -> None:
    profiles = {"small": Profile("small", max_memory_bytes=300), "alone": Profile("alone", gpu_share=False)}
    device = Device("gpu", memory_bytes=1000, overhead_bytes=50)
    capped = pod("capped", mps=Mps(900), devices=("gpu",), profile="small")
    alone = pod("alone", mps=Mps(10), devices=("gpu",), profile="alone")
    world = World([tenant("acme")], [capped, alone], devices={"gpu": device}, profiles=profiles)
    assert list(world.admission.left_out()) == ["alone"]
    world.admission.pods_changed({"alone": Capacity()}, world.now)
    world.admission.pods_changed({"alone": Capacity(), "capped": Capacity()}, world.now)
    assert list(world.admission.left_out()) == ["capped"]


def test_a_pod_of_unknown_size_is_limited_by_slots_alone() -> None:
    world = World([tenant("acme")], capacities={"pod": Capacity(slots=2)})
    world.lease("acme", 5000)
    world.lease("acme", 5000)
    assert world.refusal("acme", may_wait=False).code is Code.POD_CAPACITY


def test_kv_tokens_and_bytes_give_the_weight_of_a_token_exactly() -> None:
    """1,000 bytes for 48 tokens: three blocks are the whole pool, though a block is no whole number of bytes."""
    world = World([tenant("acme")], [pod("pod", "unweighed")], {"pod": Capacity(kv_bytes=1000, kv_tokens=48)})
    world.lease("acme", 3, model="unweighed")
    assert world.admission.pod_state("pod").kv_reserved == 1000


def test_moving_keeps_the_tenants_charge_and_changes_the_pods() -> None:
    world = World([tenant("acme", concurrency=1)], [pod("a"), pod("b")])
    lease = world.lease("acme", 2)
    before = world.admission.tenant_state("acme")
    answer = world.admission.move(lease, frozenset({"a"}), world.now, let_go=True)
    assert isinstance(answer, Admitted)
    assert answer.lease is lease
    assert lease.pod == "b"
    assert world.admission.tenant_state("acme") == before
    assert (world.admission.pod_state("a").calls, world.admission.pod_state("b").calls) == (0, 1)
    assert lease.left_behind is None


def test_what_a_move_leaves_behind_stays_on_the_pod_until_it_lets_go() -> None:
    world = World([tenant("acme")], [pod("a"), pod("b")])
    lease = world.lease("acme", 2)
    world.admission.move(lease, frozenset({"a"}), world.now, let_go=False)
    state = world.admission.pod_state("a")
    assert (state.calls, state.closing, state.kv_reserved) == (1, 1, 2 * BYTES_A_BLOCK)
    assert world.admission.tenant_state("acme").concurrency_held == 1
    behind = lease.left_behind
    assert behind is not None
    world.settle(lease)
    world.admission.let_go([behind], world.now)
    assert world.admission.pod_state("a").calls == 0


@pytest.mark.parametrize("order", list(permutations(("call", "first pod", "second pod"))), ids=" then ".join)
def test_tenant_and_key_pay_once_until_the_call_has_ended_and_the_pods_it_left_have_let_go(
    order: tuple[str, ...],
) -> None:
    acme = tenant("acme", Key("1", "key", budget=Budget(concurrency=1)), memory_bytes=3 * BYTES_A_BLOCK)
    world = World([acme], [pod("a"), pod("b"), pod("c")])
    lease = world.lease("acme", 2)
    behind = [moved_on(world, lease, frozenset({lease.pod})) for _ in range(2)]
    pods = [lease.pod, *(part.pod for part in behind)]
    world.adopt(tenants={"acme": replace(acme, queue_depth=3)})
    for number, ends in enumerate(order):
        state = world.admission.tenant_state("acme")
        assert (state.concurrency_held, state.memory_reserved) == (1, 2 * BYTES_A_BLOCK)
        assert sum(world.admission.pod_state(name).calls for name in sorted(set(pods))) == 3 - number
        assert world.refusal("acme", may_wait=False).code is Code.CONCURRENCY_BUDGET
        if ends == "call":
            world.settle(lease)
        else:
            world.admission.let_go([behind[ends == "second pod"]], world.now)
    state = world.admission.tenant_state("acme")
    assert (state.concurrency_held, state.memory_reserved) == (0, 0)
    world.lease("acme", 3)


def test_a_tenant_pays_for_what_is_left_on_a_shared_pod_when_its_call_moves_to_its_own() -> None:
    own = pod("own", tenants=frozenset({"acme"}), memory_bytes=0)
    world = World([tenant("acme", memory_bytes=3 * BYTES_A_BLOCK)], [pod("shared"), own])
    world.ranking.set_ready(["shared"])
    lease = world.lease("acme", 2)
    world.ranking.set_ready(["shared", "own"])
    world.admission.pods_changed({name: Capacity(slots=4) for name in ("shared", "own")}, world.now)
    behind = moved_on(world, lease, frozenset({"shared"}))
    assert lease.pod == "own"
    assert world.admission.tenant_state("acme").memory_reserved == 2 * BYTES_A_BLOCK
    world.admission.let_go([behind], world.now)
    assert world.admission.tenant_state("acme").memory_reserved == 0
    assert world.admission.tenant_state("acme").concurrency_held == 1


def moved_on(world: World, lease: Lease, not_on: frozenset[str]) -> Lease:
    """Move `lease` to another pod; give what it left behind."""
    assert isinstance(world.admission.move(lease, not_on, world.now, let_go=False), Admitted)
    assert lease.left_behind is not None
    return lease.left_behind


def test_a_closing_lease_holds_everything_until_it_is_let_go() -> None:
    world = World([tenant("acme", concurrency=1)])
    lease = world.lease("acme", 2)
    world.admission.settle(lease, Usage(8, 1), world.now, let_go=False)
    assert lease.is_closing
    assert world.admission.tenant_state("acme").concurrency_held == 1
    assert world.admission.pod_state("pod").closing == 1
    world.admission.let_go([lease], world.now)
    assert lease.is_released
    assert world.admission.tenant_state("acme").concurrency_held == 0


def test_a_new_policy_keeps_what_is_held_and_takes_new_limits() -> None:
    world = World([tenant("acme", concurrency=3)])
    first = world.lease("acme")
    world.lease("acme")
    world.adopt(tenants={"acme": tenant("acme", concurrency=2)})
    assert world.admission.tenant_state("acme").concurrency_held == 2
    assert world.refusal("acme", may_wait=False).code is Code.CONCURRENCY_BUDGET
    world.settle(first)
    world.lease("acme")


def test_a_new_policy_may_change_the_form_of_a_budget() -> None:
    world = World([tenant("acme", memory_bytes=4 * BYTES_A_BLOCK)])
    lease = world.lease("acme", 3)
    world.adopt(tenants={"acme": tenant("acme", memory_by_device={"pod": 4 * BYTES_A_BLOCK})})
    assert world.admission.tenant_state("acme").memory_reserved == 3 * BYTES_A_BLOCK
    assert world.refusal("acme", 2, may_wait=False).code is Code.MEMORY_BUDGET
    world.settle(lease)
    assert world.admission.tenant_state("acme").memory_reserved == 0


def test_a_lease_of_a_tenant_that_is_no_more_still_settles() -> None:
    world = World([tenant("acme"), tenant("other")])
    lease = world.lease("acme")
    world.adopt(tenants={"other": tenant("other")})
    world.settle(lease)
    assert world.admission.pod_state("pod").calls == 0
