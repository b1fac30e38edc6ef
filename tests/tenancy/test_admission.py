"""The decision itself: order of refusals, what they say, when coming back succeeds, and what rates are charged."""

from __future__ import annotations

from math import inf

import pytest

from tenancy.admission import Admitted, Capacity, Lease
from tenancy.call import Usage
from tenancy.policy import Budget, Key, Model, QueueSettings, Tenant
from tenancy.refusal import Code, Refusal
from tests.instruments.small_world import BLOCK, BYTES_A_BLOCK, World, admitted, pod, tenant


def test_the_lease_tells_the_output_to_ask_for() -> None:
    world = World([tenant("a", default_max_tokens=33)])
    assert world.lease("a", output_tokens=None).output_tokens == 33
    assert world.lease("a", output_tokens=20).output_tokens == 20


def test_too_long_is_our_word_only_beyond_eight_bytes_a_token() -> None:
    world = World([tenant("a")])
    world.adopt(models={"tiny": Model("tiny", 100, 1)})
    assert world.refusal("a", prompt_bytes=808).code is Code.CONTEXT_LENGTH_EXCEEDED
    world.lease("a", prompt_bytes=807)


KEY = Key("1", "ci", budget=Budget(concurrency=2, tokens_per_minute=64, memory_bytes=3 * BYTES_A_BLOCK))


@pytest.mark.parametrize(
    ("payer", "capacity", "blocks", "account"),
    [
        (tenant("a", memory_bytes=3 * BYTES_A_BLOCK), Capacity(), 4, "tenant/a"),
        (tenant("a", tokens_per_minute=63), Capacity(), 4, "tenant/a"),
        (tenant("a", requests_per_minute=0), Capacity(), 1, "tenant/a"),
        (tenant("a", concurrency=0), Capacity(), 1, "tenant/a"),
        (tenant("a", KEY), Capacity(), 5, "key/a/ci"),
        (tenant("a", KEY), Capacity(), 4, "key/a/ci"),
        (tenant("a"), Capacity(kv_bytes=3 * BYTES_A_BLOCK), 4, "pod/pod"),
        (tenant("a"), Capacity(slots=0), 1, "pod/pod"),
    ],
)
def test_what_never_fits_is_refused_for_good(payer: Tenant, capacity: Capacity, blocks: int, account: str) -> None:
    world = World([payer], capacities={"pod": capacity})
    refusal = world.refusal("a", blocks)
    assert (refusal.code, refusal.account) == (Code.EXCEEDS_BUDGET, account)
    assert refusal.retry_after_seconds is None
    assert refusal.asked is not None
    assert refusal.limit is not None
    assert refusal.asked > refusal.limit


def test_what_is_too_large_for_the_pods_that_run_may_fit_one_that_is_not_known_yet() -> None:
    world = World([tenant("a")], [pod("small"), pod("later")], {"small": Capacity(kv_bytes=BYTES_A_BLOCK)})
    world.ranking.set_ready(["small"])
    world.ticket("a", 5)


def test_reasons_are_named_in_the_contracts_order_and_the_slowest_tells_when_to_come_back() -> None:
    full = tenant("a", requests_per_minute=1, tokens_per_minute=100, concurrency=1, memory_bytes=BYTES_A_BLOCK)
    world = World([full], capacities={"pod": Capacity(slots=1)})
    lease = world.lease("a")
    assert world.refusal("a").code is Code.REQUEST_RATE
    world.adopt(tenants={"a": tenant("a", tokens_per_minute=17, concurrency=1, memory_bytes=BYTES_A_BLOCK)})
    assert world.refusal("a").code is Code.TOKEN_RATE
    world.adopt(tenants={"a": tenant("a", concurrency=1, memory_bytes=BYTES_A_BLOCK)})
    assert world.refusal("a", may_wait=False).code is Code.CONCURRENCY_BUDGET
    world.adopt(tenants={"a": tenant("a", memory_bytes=BYTES_A_BLOCK)})
    assert world.refusal("a", may_wait=False).code is Code.MEMORY_BUDGET
    world.adopt(tenants={"a": tenant("a")})
    assert world.refusal("a", may_wait=False).code is Code.POD_CAPACITY
    world.settle(lease)
    world.ranking.set_ready([])
    assert world.refusal("a").code is Code.NO_POD


def test_the_keys_limit_is_named_before_its_tenants() -> None:
    world = World([tenant("a", Key("1", "ci", budget=Budget(concurrency=1)), concurrency=1)])
    world.lease("a")
    assert world.refusal("a", may_wait=False).account == "key/a/ci"


def test_a_refusal_tells_limit_used_and_asked() -> None:
    world = World([tenant("a", memory_bytes=5 * BYTES_A_BLOCK)])
    world.lease("a", 3)
    refusal = world.refusal("a", 3, may_wait=False)
    assert (refusal.unit, refusal.limit, refusal.used, refusal.asked) == (
        "bytes",
        5 * BYTES_A_BLOCK,
        3 * BYTES_A_BLOCK,
        3 * BYTES_A_BLOCK,
    )


def test_coming_back_when_a_rate_says_succeeds_and_not_before() -> None:
    world = World([tenant("a", requests_per_minute=2, tokens_per_minute=100)])
    world.settle(world.lease("a", 3))
    world.now = 30.0
    world.settle(world.lease("a", 1))
    refusal = world.refusal("a", 4)
    assert refusal.code is Code.REQUEST_RATE
    assert refusal.retry_after_seconds is not None
    back = world.now + refusal.retry_after_seconds
    assert back == pytest.approx(60.1, abs=0.0011)
    world.now = back - 0.1
    assert world.refusal("a", 4).code is Code.REQUEST_RATE
    world.now = back
    world.lease("a", 4)


def test_the_slowest_of_two_spent_rates_tells_when_to_come_back() -> None:
    world = World([tenant("a", requests_per_minute=2, tokens_per_minute=100)])
    world.settle(world.lease("a", 1))
    world.now = 30.0
    world.settle(world.lease("a", 5))
    refusal = world.refusal("a", 3)
    assert refusal.code is Code.REQUEST_RATE
    assert refusal.retry_after_seconds == pytest.approx(60.1, abs=0.0011)


def comes_back(world: World, refusal: Refusal, seconds_a_token: float) -> None:
    """All leases end as their pods work; then the same call is admitted when the refusal said."""
    assert refusal.retry_after_seconds is not None
    assert refusal.retry_after_seconds == round(refusal.retry_after_seconds, 3)
    back = world.now + refusal.retry_after_seconds
    for lease in world.held:
        end = lease.granted_at + lease.output_tokens * seconds_a_token
        if end <= back:
            world.admission.settle(lease, Usage(8, lease.output_tokens), end)
    world.now = back


@pytest.mark.parametrize("short", ["concurrency", "memory", "pod"])
def test_coming_back_when_a_forecast_says_succeeds_if_nobody_else_came(short: str) -> None:
    limits: dict[str, int] = {
        "concurrency": {"concurrency": 3},
        "memory": {"memory_bytes": 9 * BYTES_A_BLOCK},
        "pod": {},
    }[short]
    capacity = Capacity(kv_bytes=9 * BYTES_A_BLOCK) if short == "pod" else Capacity(slots=4)
    world = World([tenant("a", **limits)], capacities={"pod": capacity})
    teacher = world.lease("a", 2)
    world.now = 24 * 0.02
    world.admission.settle(teacher, Usage(8, 24), world.now)
    world.held += [world.lease("a", 3), world.lease("a", 4), world.lease("a", 2)]
    refusal = world.refusal("a", 4, may_wait=False)
    comes_back(world, refusal, 0.02)
    world.lease("a", 4)


def test_a_refusal_changes_nothing() -> None:
    payer = tenant("a", concurrency=1, requests_per_minute=5, tokens_per_minute=500)
    world = World([payer])
    world.lease("a")
    before = world.admission.tenant_state("a"), world.admission.remaining("a", payer.keys[0], world.now)
    world.refusal("a", may_wait=False)
    assert before == (world.admission.tenant_state("a"), world.admission.remaining("a", payer.keys[0], world.now))


def test_rates_are_charged_once_a_call_however_often_it_moves() -> None:
    payer = tenant("a", requests_per_minute=10, tokens_per_minute=1000)
    world = World([payer], [pod("x"), pod("y")])
    lease = world.lease("a", 2)
    world.admission.move(lease, frozenset({lease.pod}), world.now, let_go=True)
    state = world.admission.remaining("a", payer.keys[0], world.now)
    assert (state.remaining_requests, state.remaining_tokens) == (9, 1000 - 2 * BLOCK)


@pytest.mark.parametrize(("usage", "left"), [(Usage(8, 4), 988), (Usage(500, 24), 476), (None, 968)])
def test_settling_books_what_was_used_up_or_down(usage: Usage | None, left: int) -> None:
    payer = tenant("a", tokens_per_minute=1000)
    world = World([payer])
    lease = world.lease("a", 2)
    world.admission.settle(lease, usage, 10.0)
    assert world.admission.remaining("a", payer.keys[0], 10.0).remaining_tokens == left


def test_a_waiting_head_meets_a_spent_rate_and_goes_at_its_exact_time() -> None:
    world = World([tenant("a", requests_per_minute=2)], capacities={"pod": Capacity(slots=1)})
    world.adopt(queue=QueueSettings(timeout_seconds=100.0))
    first = world.lease("a")
    waiting = world.ticket("a")
    assert world.admission.count(world.call("a"), world.now) is None
    assert world.settle(first) == []
    assert world.admission.next_expiry() == 60.1
    assert admitted(world.admission.expire(60.0)) == []
    assert admitted(world.admission.expire(60.1)) == [waiting]


def test_tokens_given_back_let_a_waiting_head_go_at_once() -> None:
    world = World([tenant("a", tokens_per_minute=100)], capacities={"pod": Capacity(slots=1)})
    first = world.lease("a", 4)
    waiting = world.ticket("a", 2)
    assert admitted(world.admission.settle(first, Usage(8, 2), 1.0)) == [waiting]


def test_counting_charges_a_request_alone_and_is_refused_like_a_call() -> None:
    payer = tenant("a", requests_per_minute=1, tokens_per_minute=100)
    world = World([payer])
    assert world.admission.count(world.call("a"), world.now) is None
    state = world.admission.remaining("a", payer.keys[0], world.now)
    assert (state.remaining_requests, state.remaining_tokens) == (0, 100)
    refused_ = world.admission.count(world.call("a"), world.now)
    assert refused_ is not None
    assert refused_.refusal.code is Code.REQUEST_RATE


def test_what_remains_is_that_of_the_tightest_of_key_and_tenant() -> None:
    key = Key("1", "ci", budget=Budget(requests_per_minute=3))
    world = World([tenant("a", key, requests_per_minute=100)])
    world.lease("a")
    state = world.admission.remaining("a", key, world.now)
    assert (state.limit_requests, state.remaining_requests) == (3, 2)
    assert state.reset_requests_seconds == pytest.approx(60.1)
    assert (state.limit_tokens, state.remaining_tokens, state.reset_tokens_seconds) == (None, None, None)


def test_a_lease_is_released_once() -> None:
    world = World([tenant("a")])
    lease = world.lease("a")
    world.settle(lease)
    with pytest.raises(AssertionError, match="settled twice"):
        world.settle(lease)
    closing = world.lease("a")
    world.settle(closing, let_go=False)
    world.admission.let_go([closing], world.now)
    with pytest.raises(AssertionError, match="released twice"):
        world.admission.let_go([closing], world.now)


def test_a_call_of_a_tenant_that_is_no_more_is_refused() -> None:
    world = World([tenant("a"), tenant("b")])
    call = world.call("a")
    world.adopt(tenants={"b": tenant("b")})
    answer = world.admission.admit(call, world.now)
    assert not isinstance(answer, Admitted)


def test_two_tenants_on_a_pod_that_would_hold_more_stay_within_their_own_limits() -> None:
    world = World([tenant("two", concurrency=2), tenant("four", concurrency=4)], capacities={"pod": Capacity(slots=64)})
    tickets = {name: [world.admit(name) for _ in range(20)] for name in ("two", "four")}
    running = [answer.lease for answers in tickets.values() for answer in answers if isinstance(answer, Admitted)]
    most = {"two": 0, "four": 0}
    finished = 0
    while running:
        for name in most:
            most[name] = max(most[name], world.admission.tenant_state(name).concurrency_held)
        world.now += 0.01
        for one in world.settle(running.pop(0)):
            assert isinstance(one.answer, Admitted)
            running.append(one.answer.lease)
        finished += 1
    assert most == {"two": 2, "four": 4}
    assert finished == 40


def test_mixed_sizes_come_within_one_call_of_the_budget_and_never_beyond() -> None:
    limit = 100 * BYTES_A_BLOCK
    world = World([tenant("a", memory_bytes=limit)], capacities={"pod": Capacity(kv_bytes=4 * limit)})
    sizes = [1, 7, 3, 20, 5, 2, 11]
    running: list[Lease] = []
    most = 0
    for step in range(300):
        answer = world.admit("a", sizes[step % 7], deadline_at=inf)
        if isinstance(answer, Admitted):
            running.append(answer.lease)
        most = max(most, world.admission.tenant_state("a").memory_reserved)
        if step % 3 == 2 and running:
            running += [one.answer.lease for one in world.settle(running.pop(0)) if isinstance(one.answer, Admitted)]
    assert limit - 20 * BYTES_A_BLOCK <= most <= limit
