"""Who waits, where, how long, who gives way, and whose turn it is."""

from __future__ import annotations

import pytest

from tenancy.admission import Admitted, Capacity, Queued, Refused, Ticket
from tenancy.policy import Budget, Key, QueueSettings
from tenancy.refusal import Code
from tests.instruments.small_world import World, admitted, pod, refused, tenant


def full_world(*tenants: str, depth: int = 1000, bytes_: int = 10**6, timeout_seconds: float = 100.0) -> World:
    """The one slot of the one pod is taken by `tenants[0]`, so that all others wait for it."""
    settings = QueueSettings(depth=depth, bytes_=bytes_, timeout_seconds=timeout_seconds)
    world = World([tenant(name) for name in tenants], capacities={"pod": Capacity(slots=1)}, queue=settings)
    world.held.append(world.lease(tenants[0]))
    return world


def test_tenants_take_turns_and_each_is_served_in_order() -> None:
    world = full_world("busy", "a", "b")
    a = [world.ticket("a") for _ in range(3)]
    b = [world.ticket("b") for _ in range(2)]
    order, lease = [], world.held[0]
    for _ in range(5):
        decided = world.settle(lease)
        order += admitted(decided)
        answer = decided[0].answer
        assert isinstance(answer, Admitted)
        lease = answer.lease
    assert order == [a[0], b[0], a[1], b[1], a[2]]


def test_one_key_does_not_take_all_of_its_tenants_turns() -> None:
    keys = (Key("1", "greedy"), Key("2", "modest"))
    world = World([tenant("busy"), tenant("a", *keys)], capacities={"pod": Capacity(slots=1)})
    lease = world.lease("busy")
    greedy = [world.ticket("a", key=0) for _ in range(3)]
    modest = world.ticket("a", key=1)
    first = world.settle(lease)
    assert admitted(first) == [greedy[0]]
    assert isinstance(first[0].answer, Admitted)
    assert admitted(world.settle(first[0].answer.lease)) == [modest]


def test_a_blocked_chat_call_does_not_hold_an_idle_pod_of_another_model() -> None:
    world = World(
        [tenant("a")], [pod("chat"), pod("vectors", "other")], {"chat": Capacity(slots=1), "vectors": Capacity(slots=1)}
    )
    world.lease("a")
    world.ticket("a")
    world.lease("a", model="other")


def test_a_head_blocked_by_its_own_tenant_is_skipped_and_thought_of_when_the_tenant_has_room() -> None:
    world = World([tenant("narrow", concurrency=1), tenant("busy")], capacities={"pod": Capacity(slots=3)})
    own = world.lease("narrow")
    others = [world.lease("busy"), world.lease("busy")]
    barred = world.ticket("narrow")
    waiting = world.ticket("busy")
    assert admitted(world.settle(others[0])) == [waiting]
    assert admitted(world.settle(own)) == [barred]


def test_a_key_at_its_limit_does_not_hold_up_its_tenants_other_key() -> None:
    keys = (Key("1", "ci", budget=Budget(concurrency=1)), Key("2", "main"))
    world = World([tenant("a", *keys)])
    ci = world.lease("a", key=0)
    barred = world.ticket("a", key=0)
    world.lease("a", key=1)
    assert admitted(world.settle(ci)) == [barred]


def large_beside_small(bypass: float) -> tuple[World, Ticket]:
    """A pod of 10 blocks holds two of 4; the large call of 8 waits since 0."""
    world = World(
        [tenant("small"), tenant("large")],
        capacities={"pod": Capacity(kv_bytes=10 * 1600)},
        queue=QueueSettings(bypass_seconds=bypass, timeout_seconds=100.0),
    )
    world.held += [world.lease("small", 4), world.lease("small", 4)]
    return world, world.ticket("large", 8)


def test_small_calls_pass_a_large_one_for_as_long_as_bypass() -> None:
    world, _ = large_beside_small(bypass=1.0)
    world.now = 0.99
    world.lease("small", 2)


def test_after_bypass_nobody_takes_the_room_that_a_large_call_waits_for() -> None:
    world, large = large_beside_small(bypass=1.0)
    world.now = 1.0
    small = [world.ticket("small", 2) for _ in range(5)]
    assert admitted(world.settle(world.held[0])) == []
    assert admitted(world.settle(world.held[1])) == [large, small[0]]


def test_room_that_was_kept_is_dealt_out_when_the_large_call_leaves() -> None:
    world, large = large_beside_small(bypass=1.0)
    world.now = 2.0
    small = [world.ticket("small", 1) for _ in range(2)]
    assert admitted(world.admission.leave(large, world.now)) == small


def test_a_large_call_keeps_no_room_on_pods_that_it_could_never_use() -> None:
    world = World(
        [tenant("small"), tenant("large")],
        [pod("big"), pod("little")],
        {"big": Capacity(kv_bytes=10 * 1600), "little": Capacity(kv_bytes=2 * 1600)},
        queue=QueueSettings(bypass_seconds=0.0),
    )
    world.lease("small", 5)
    world.ticket("large", 8)
    assert world.lease("small", 2).pod == "little"
    world.ticket("small", 2)  # though the big pod has room for it


def test_fifty_small_calls_a_second_do_not_starve_a_large_one() -> None:
    world, large = large_beside_small(bypass=1.0)
    running = list(world.held)
    granted_at = None
    for step in range(500):
        world.now = step * 0.02
        answer = world.admit("small", 2)
        if isinstance(answer, Admitted):
            running.append(answer.lease)
        if running and step % 10 == 0:
            for one in world.settle(running.pop(0)):
                if isinstance(one.answer, Admitted):
                    if one.ticket is large:
                        granted_at = world.now
                    else:
                        running.append(one.answer.lease)
        if granted_at is not None:
            break
    assert granted_at is not None
    assert granted_at < 5.0


def test_the_queue_of_all_is_bounded_and_the_newest_of_the_greediest_gives_way() -> None:
    world = full_world("busy", "greedy", "modest", depth=3)
    greedy = [world.ticket("greedy") for _ in range(3)]
    modest = world.ticket("modest")
    [pushed] = world.admission.caused()
    assert pushed.ticket is greedy[2]
    assert isinstance(pushed.answer, Refused)
    assert pushed.answer.refusal.code is Code.QUEUE_FULL
    assert modest.is_waiting


def test_who_would_hold_most_is_refused_itself() -> None:
    world = full_world("busy", "greedy", depth=2)
    for _ in range(2):
        world.ticket("greedy")
    refusal = world.refusal("greedy")
    assert (refusal.code, refusal.account, refusal.limit) == (Code.QUEUE_FULL, "queue", 2)
    assert world.admission.caused() == []


def test_the_queue_is_bounded_in_bytes() -> None:
    world = full_world("busy", "a", "b", bytes_=100)
    world.ticket("a", size_bytes=60)
    assert world.refusal("b", size_bytes=101).code is Code.QUEUE_FULL
    world.ticket("b", size_bytes=50)
    assert len(world.admission.caused()) == 1


def test_a_tenants_own_depth_and_timeout_may_be_smaller() -> None:
    own = tenant("a", queue_depth=1, queue_timeout_seconds=2.0)
    world = World([tenant("busy"), own], capacities={"pod": Capacity(slots=1)})
    world.lease("busy")
    assert world.ticket("a").deadline_at == 2.0
    refusal = world.refusal("a")
    assert (refusal.code, refusal.account) == (Code.QUEUE_FULL, "tenant/a")


def test_depth_0_means_that_nobody_waits() -> None:
    world = full_world("busy", "a", depth=0)
    assert world.refusal("a").code is Code.POD_CAPACITY


@pytest.mark.parametrize(("deadline", "code"), [(None, Code.QUEUE_TIMEOUT), (4.0, Code.DEADLINE_EXCEEDED)])
def test_who_waited_too_long_is_refused_at_the_deadline(deadline: float | None, code: Code) -> None:
    world = full_world("busy", "a", timeout_seconds=10.0)
    ticket = world.ticket("a", deadline_at=deadline)
    due = world.admission.next_expiry()
    assert due == ticket.deadline_at == (deadline or 10.0)
    assert world.admission.expire(due - 0.01) == []
    [refusal] = refused(world.admission.expire(due))
    assert refusal.code is code
    assert world.admission.next_expiry() is None


def test_nobody_is_admitted_after_the_deadline_even_if_expire_was_late() -> None:
    world = full_world("busy", "a", timeout_seconds=10.0)
    world.ticket("a")
    world.now = 10.5
    decided = world.settle(world.held[0])
    assert [refusal.code for refusal in refused(decided)] == [Code.QUEUE_TIMEOUT]
    assert admitted(decided) == []


def test_who_leaves_frees_the_place() -> None:
    world = full_world("busy", "a", depth=1)
    ticket = world.ticket("a")
    world.admission.leave(ticket, world.now)
    assert world.admission.leave(ticket, world.now) == []
    assert world.admission.tenant_state("a").queued == 0
    world.ticket("a")


def test_the_expected_wait_is_unknown_before_five_releases_and_then_refuses_whom_it_is_too_long_for() -> None:
    world = full_world("busy", "a")
    lease = world.held[0]
    for step in range(1, 6):
        answer = world.admit("a")
        assert isinstance(answer, Queued)
        assert answer.expected_wait_seconds is None
        world.now = step * 2.0
        [decided] = world.settle(lease)
        assert isinstance(decided.answer, Admitted)
        lease = decided.answer.lease
    answer = world.admit("a")
    assert isinstance(answer, Queued)
    assert answer.expected_wait_seconds == pytest.approx(2.0)
    answer = world.admit("a")
    assert isinstance(answer, Queued)
    assert answer.expected_wait_seconds == pytest.approx(4.0)
    assert world.refusal("a", deadline_at=world.now + 5.0).code is Code.DEADLINE_EXCEEDED
    world.ticket("a", deadline_at=world.now + 7.0)


def test_where_a_pod_is_coming_the_call_waits_and_where_none_is_it_is_refused() -> None:
    world = World([tenant("a")])
    world.ranking.set_ready([], coming=["tiny"])
    world.admission.pods_changed({}, world.now)
    ticket = world.ticket("a")
    assert world.refusal("a", may_wait=False).code is Code.NO_POD
    world.ranking.set_ready(["pod"])
    assert admitted(world.admission.pods_changed({"pod": Capacity(slots=1)}, world.now)) == [ticket]
    waiting = world.ticket("a")
    world.ranking.set_ready([])
    [decided] = world.admission.pods_changed({}, world.now)
    assert decided.ticket is waiting
    assert refused([decided])[0].code is Code.NO_POD


def test_new_pods_are_dealt_out_evenly() -> None:
    world = World([tenant(name) for name in "abcd"], [pod("x"), pod("y")])
    world.ranking.set_ready([], coming=["tiny"])
    world.admission.pods_changed({}, world.now)
    for name in "abcd":
        world.ticket(name)
    world.ranking.set_ready(["x", "y"])
    capacities = {"x": Capacity(slots=4), "y": Capacity(slots=4)}
    assert len(admitted(world.admission.pods_changed(capacities, world.now))) == 4
    assert world.admission.pod_state("x").calls == world.admission.pod_state("y").calls == 2


def test_a_moved_call_waits_at_the_head_of_its_lane_and_is_never_pushed_out() -> None:
    world = World(
        [tenant("a", queue_depth=1), tenant("b")],
        [pod("x"), pod("y")],
        {"x": Capacity(slots=1), "y": Capacity(slots=1)},
        queue=QueueSettings(depth=2, timeout_seconds=100.0),
    )
    moving = world.lease("a")
    other = world.lease("b")
    behind = world.ticket("a")
    answer = world.admission.move(moving, frozenset({moving.pod}), world.now, let_go=False)
    assert isinstance(answer, Queued)
    [decided] = world.settle(other)
    assert decided.ticket is answer.ticket
    assert isinstance(decided.answer, Admitted)
    assert decided.answer.lease is moving
    assert moving.pod == other.pod
    assert behind.is_waiting


def test_a_lease_that_waits_for_another_pod_may_be_settled() -> None:
    world = World([tenant("a"), tenant("b")], [pod("x"), pod("y")], {"x": Capacity(slots=1), "y": Capacity(slots=1)})
    moving = world.lease("a")
    world.lease("b")
    answer = world.admission.move(moving, frozenset({moving.pod}), world.now, let_go=True)
    assert isinstance(answer, Queued)
    world.settle(moving)
    assert moving.is_released
    assert not answer.ticket.is_waiting
    assert world.admission.tenant_state("a").concurrency_held == 0
    assert world.admission.next_expiry() is None


def test_draining_refuses_who_waits_and_who_comes_but_lets_streams_move() -> None:
    world = World([tenant("a"), tenant("b")], [pod("x"), pod("y")], {"x": Capacity(slots=1), "y": Capacity(slots=1)})
    moving, other = world.lease("a"), world.lease("b")
    waiting = world.ticket("b")
    answer = world.admission.move(moving, frozenset({moving.pod}), world.now, let_go=False)
    assert isinstance(answer, Queued)
    [decided] = world.admission.drain(world.now)
    assert decided.ticket is waiting
    assert refused([decided])[0].code is Code.DRAINING
    assert world.refusal("a").code is Code.DRAINING
    assert admitted(world.settle(other)) == [answer.ticket]


def test_a_new_policy_refuses_waiting_calls_that_can_never_run_any_more() -> None:
    world = full_world("busy", "a", "gone")
    waiting = world.ticket("a", 3)
    gone = world.ticket("gone")
    decided = world.adopt(tenants={"busy": tenant("busy"), "a": tenant("a", memory_bytes=1600)})
    codes = {one.ticket: one.answer.refusal.code for one in decided if isinstance(one.answer, Refused)}
    assert codes == {waiting: Code.EXCEEDS_BUDGET, gone: Code.NO_POD}
