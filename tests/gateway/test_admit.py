"""The awaiting side of admission, with a real admission over one pod of two slots."""

from __future__ import annotations

import asyncio

import pytest

from gateway.admit import Admit
from gateway.leaving import Leaving
from tenancy.accounts import Capacity
from tenancy.admission import Admission, Admitted, Refused
from tenancy.call import Call, Kind, Usage
from tenancy.policy import Budget, Key, Model, Pod, Policy, QueueSettings, ServedModel, Tenant
from tenancy.refusal import Code
from tests.instruments.fixed_ranking import FixedRanking

USED = Usage(1, 1)


def policy(timeout_seconds: float = 5.0) -> Policy:
    return Policy(
        models={"tiny": Model("tiny", 4096, 1024)},
        pods={"pod": Pod("pod", ("pod",), (ServedModel("tiny", "tiny"),), url="http://pod")},
        tenants={"acme": Tenant("acme", keys=(Key("0" * 64, "one"),), budget=Budget(concurrency=1))},
        queue=QueueSettings(timeout_seconds=timeout_seconds),
    )


def made(facts: Policy) -> Admit:
    loop = asyncio.get_running_loop()
    ranking = FixedRanking(facts)
    admission = Admission(facts, ranking, loop.time())
    admit = Admit(admission, loop)
    admit.pods_changed({"pod": Capacity(kv_bytes=None, slots=2)})
    return admit


def call(facts: Policy, name: str) -> Call:
    tenant = facts.tenants["acme"]
    return Call(
        name, tenant, tenant.keys[0], Kind.CHAT, "tiny", asyncio.get_running_loop().time(), 100, output_tokens=10
    )


async def granted(admit: Admit, facts: Policy, name: str) -> Admitted:
    answer = await admit.admit(call(facts, name), Leaving())
    assert isinstance(answer, Admitted)
    return answer


async def test_a_call_waits_for_the_lease_before_it() -> None:
    facts = policy()
    admit = made(facts)
    first = await granted(admit, facts, "first")
    waiting = asyncio.ensure_future(admit.admit(call(facts, "second"), Leaving()))
    await asyncio.sleep(0)
    assert not waiting.done()
    admit.settle(first.lease, USED)
    second = await waiting
    assert isinstance(second, Admitted)
    admit.settle(second.lease, USED)
    assert admit.admission.tenant_state("acme").concurrency_held == 0


async def test_a_client_that_leaves_the_queue_holds_nothing() -> None:
    facts = policy()
    admit = made(facts)
    first = await granted(admit, facts, "first")
    leaving = Leaving()
    waiting = asyncio.ensure_future(admit.admit(call(facts, "second"), leaving))
    await asyncio.sleep(0)
    leaving.leave()
    assert await waiting is None
    assert admit.admission.tenant_state("acme").queued == 0
    admit.settle(first.lease, USED)
    assert admit.admission.tenant_state("acme").concurrency_held == 0


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_grant_and_a_leaving_in_one_turn_leave_no_lease_behind(leaves_first: bool) -> None:
    facts = policy()
    admit = made(facts)
    first = await granted(admit, facts, "first")
    leaving = Leaving()
    waiting = asyncio.ensure_future(admit.admit(call(facts, "second"), leaving))
    await asyncio.sleep(0)
    if leaves_first:
        leaving.leave()
        admit.settle(first.lease, USED)
    else:
        admit.settle(first.lease, USED)
        leaving.leave()
    assert await waiting is None
    assert admit.admission.tenant_state("acme").concurrency_held == 0


async def test_the_queue_s_time_out_comes_by_itself() -> None:
    facts = policy(timeout_seconds=0.02)
    admit = made(facts)
    first = await granted(admit, facts, "first")
    answer = await admit.admit(call(facts, "second"), Leaving())
    assert isinstance(answer, Refused)
    assert answer.refusal.code is Code.QUEUE_TIMEOUT
    admit.settle(first.lease, USED)


async def test_who_waits_when_the_gateway_drains_is_told() -> None:
    facts = policy()
    admit = made(facts)
    first = await granted(admit, facts, "first")
    waiting = asyncio.ensure_future(admit.admit(call(facts, "second"), Leaving()))
    await asyncio.sleep(0)
    admit.drain()
    answer = await waiting
    assert isinstance(answer, Refused)
    assert answer.refusal.code is Code.DRAINING
    admit.settle(first.lease, USED)


async def test_a_confirmation_may_still_say_no() -> None:
    facts = policy()
    inner = made(facts)

    async def never(_lease: object) -> bool:
        return False

    admit = Admit(inner.admission, asyncio.get_running_loop(), confirm=never)
    assert await admit.admit(call(facts, "first"), Leaving()) is None
    assert inner.admission.tenant_state("acme").concurrency_held == 0
