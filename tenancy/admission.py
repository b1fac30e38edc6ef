"""The one decision: may this call run now, and where; and if not, does it wait, or is it refused, and why.

Admission stands over the ledger, the queue and a `Ranking` of pods, which backends answers. Lease and route are one
decision: a call is charged on the pod that the ranking chose among those that can hold it. Every verb takes the time,
changes state and returns what it decided; nothing here waits or does I/O.

Who is offered what. An arrival whose lane is empty is ranked over all pods; anything else waits its turn. A pod that
is given something back is offered to the lanes in turn, and the offer stops at the first head that it cannot hold,
once that head has been waiting for `bypass`: from then on the pod keeps its room for it, against later heads and
against arrivals alike. Before that, those who fit may pass, but an offer looks past `_MOST_PASSED` heads at most, so
that what a release costs does not depend on how many wait. When a head that pods kept room for is gone, these pods
are offered again. What frees a tenant or a key is offered to the lanes that are parked with it, and to nobody else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar

from tenancy import reasons
from tenancy.answer import Admitted, Answer, Decided, PodState, Queued, RateState, Refused, TenantState
from tenancy.call import Call, Usage
from tenancy.ledger import Capacity, Host, Lease, Ledger, Owner
from tenancy.need import Estimates
from tenancy.policy import Key, Policy
from tenancy.queue import Group, Lane, Queue, Ticket
from tenancy.rates import Window
from tenancy.refusal import Code, Refusal

__all__ = [
    "Admission",
    "Admitted",
    "Answer",
    "Capacity",
    "Decided",
    "Lease",
    "LedgerView",
    "PodState",
    "Queued",
    "Ranking",
    "RateState",
    "Refused",
    "Serving",
    "TenantState",
    "Ticket",
]

_MOST_PASSED = 16
_MOST_SAMPLED = 32  # pods looked at for a forecast

WorkT = TypeVar("WorkT", Host, Group, Owner, Lane)


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a tenant's calls for a model may go now. `is_coming`: no pod is ready, but one is starting."""

    ready: tuple[str, ...]
    is_coming: bool


class LedgerView(Protocol):
    """What a ranking may ask of the ledger."""

    def kv_share(self, pod: str) -> float:
        """The reserved share of the pod's KV memory, or of its slots where that is unknown; 0 to 1."""
        ...

    def calls_on(self, pod: str) -> int:
        """Calls that hold a slot on the pod."""
        ...


class Ranking(Protocol):
    """Which pods there are, and which is best; answered by backends."""

    def serving(self, tenant: str, model: str) -> Serving:
        """O(1), prebuilt; `ready` is the same tuple until something changes, and then `pods_changed` is called."""
        ...

    def choose(self, call: Call, ready: Sequence[str], fits: Callable[[str], bool], view: LedgerView) -> str | None:
        """The best of `ready` that fits, or `None` where none does; asks `fits` for as few as it can."""
        ...


class Admission:
    """Admits calls by budget and routes them; see the module. One event loop owns it: it is not safe for threads."""

    def __init__(self, policy: Policy, ranking: Ranking, now: float) -> None:
        self._policy = policy
        self._ranking = ranking
        self._ledger = Ledger(policy)
        self._queue = Queue(policy.queue)
        self._estimates = Estimates()
        self._is_draining = False
        self._groups: dict[tuple[str, ...], Group] = {}
        self._group_of: dict[tuple[str, str], Group] = {}
        self._groups_on: dict[Host, list[Group]] = {}
        self._reach: dict[tuple[str, str], tuple[Host, ...]] = {}
        self._moving: dict[Lease, Ticket] = {}
        # What has been caused and is still to be done or told; `_run` works it off before a verb returns.
        self._decided: list[Decided] = []
        self._hosts_to_offer: dict[Host, None] = {}
        self._groups_to_deal: dict[Group, None] = {}
        self._owners_to_serve: dict[Owner, None] = {}
        self._lanes_to_place: dict[Lane, None] = {}
        self._now = now

    # the verbs

    def admit(self, call: Call, now: float) -> Answer:
        """Admit `call`, queue it, or refuse it. What this caused for others is told by `caused`.

        All accounts and rates are charged, or none. Where a pod has room this takes some 10 µs, however many wait.
        """
        if self._is_draining:
            return Refused(_draining())
        owners = self._ledger.owners(call)
        if owners is None:
            return Refused(_vanished(call))
        model = self._policy.models.get(call.model)
        need = self._estimates.need(call, model)
        never = reasons.never(call, need, owners, self._reach_of(call), model)
        if never is not None:
            return Refused(never)
        serving = self._ranking.serving(call.tenant.name, call.model)
        group = self._group(call, serving)
        ticket = Ticket(call, need, owners, now, 0.0)
        is_full = False
        for owner in owners:
            account = owner.account
            if not (account.requests.fits(1, now) and account.tokens.fits(need.tokens, now)):
                return self._refused(ticket, group, now)
            is_full = is_full or account.is_full
        if not group.hosts and not serving.is_coming:
            return self._refused(ticket, group, now)
        if not is_full and self._queue.lane_of(call) is None:
            host = self._choose(ticket, group, now)
            if host is not None:
                lease = self._ledger.grant(call, need, host, owners, now)
                self._recheck(call.tenant.name, now)
                self._run(now)
                return Admitted(lease)
        return self._enqueue(ticket, group, now)

    def settle(self, lease: Lease, usage: Usage | None, now: float, *, let_go: bool = True) -> list[Decided]:
        """The call ended: book what it used (`None`: what it was charged stands) and release the lease.

        Without `let_go` the pod may still be running it: the lease is closing, and holds all it held, until `let_go` is
        called with it. A lease that is looking for another pod may be settled, too: its ticket then leaves the queue.
        """
        assert not lease.is_settled, f"{lease!r} is settled twice"
        lease.is_settled = True
        ticket = self._moving.pop(lease, None)
        if ticket is not None:
            self._take_out(ticket, now)
        self._book(lease, usage, now)
        if let_go or lease.pod_hold is None:
            self._release(lease, now)
        else:
            self._ledger.close(lease)
        self._recheck(lease.call.tenant.name, now)
        return self._finish(now)

    def let_go(self, leases: Sequence[Lease], now: float) -> list[Decided]:
        """The pods of these closing leases run them no more: release what they held."""
        for lease in leases:
            assert lease.is_closing, f"{lease!r} is not closing"
            self._release(lease, now)
        return self._finish(now)

    def leave(self, ticket: Ticket, now: float) -> list[Decided]:
        """The client of a queued call left; a ticket that was decided already is left alone.

        A lease that was looking for another pod stays its holder's, to be settled.
        """
        if ticket.is_waiting:
            self._take_out(ticket, now)
        return self._finish(now)

    def expire(self, now: float) -> list[Decided]:
        """Refuse those whose time is over, and admit heads whose rate has opened."""
        return self._finish(now)

    def next_expiry(self) -> float | None:
        """When `expire` will have something to do; `None` while nothing waits for a time."""
        return self._queue.next_expiry()

    def pods_changed(self, capacities: Mapping[str, Capacity | None], now: float) -> list[Decided]:
        """Pods became ready or did not stay so, or their capacity was learned: `None`, or no entry, is not running.

        What is held on a pod that is gone stays held until it is settled. O(pods + lanes).
        """
        self._ledger.run(capacities)
        self._regroup(now)
        return self._finish(now)

    def left_out(self) -> Mapping[str, str]:
        """Pods that run and get no calls because their limits overfill a device or their tenant's budget, and why."""
        return self._ledger.left_out

    def move(self, lease: Lease, not_on: frozenset[str], now: float, *, let_go: bool) -> Answer:
        """The call goes on elsewhere than on `not_on`: tenant and key stay charged, the pod's part changes.

        Where no pod has room the call waits at the head of its lane. Without `let_go` the pod that is left keeps its
        part as a closing lease, `lease.left_behind`, until `let_go` is called with that. The lease is the caller's to
        settle, whatever the answer. What this caused for others is told by `caused`.
        """
        assert not lease.is_settled and lease not in self._moving
        call = lease.call
        host = lease.host
        self._ledger.take_off(lease, now, let_go=let_go)
        if let_go:
            self._hosts_to_offer[host] = None
        owners = self._ledger.owners(call)
        if owners is None:
            self._run(now)
            return Refused(_vanished(call))
        serving = self._ranking.serving(call.tenant.name, call.model)
        group = self._group(call, serving)
        ticket = Ticket(call, lease.need, owners, now, self._deadline(call, now))
        ticket.moving = lease
        ticket.not_on = not_on
        if not serving.is_coming and group.names <= not_on:
            self._run(now)
            return Refused(reasons.no_pod(call).refusal(reasons.POD_COMES_SECONDS))
        chosen = self._choose(ticket, group, now)
        if chosen is not None:
            self._ledger.put_on(lease, chosen, owners, now)
            self._owners_to_serve.update(dict.fromkeys(owners))  # it may hold less of their memory there
            self._recheck(call.tenant.name, now)
            self._run(now)
            return Admitted(lease)
        if not call.may_wait or ticket.deadline_at <= now:
            self._run(now)
            return self._refused(ticket, group, now)
        self._moving[lease] = ticket
        lane = self._queue.add(ticket)
        self._new_head(lane, now)
        return self._answer_of(ticket, None, now)

    def count(self, call: Call, now: float) -> Refused | None:
        """Charge one request to the rates alone: for a call that is answered without a lease of its own."""
        owners = self._ledger.owners(call)
        if owners is None:
            return Refused(_vanished(call))
        found = list(reasons.rates(owners, 0, now))
        if found:
            return Refused(found[0].refusal(max(reason.seconds for reason in found)))
        for owner in owners:
            owner.account.requests.charge(1, now)
        self._recheck(call.tenant.name, now)
        self._run(now)
        return None

    def caused(self) -> list[Decided]:
        """What `admit`, `move` and `count` decided for others, told once; the other verbs return theirs themselves."""
        decided, self._decided = self._decided, []
        return decided

    def drain(self, now: float) -> list[Decided]:
        """Admit nothing new from now on. Who waits is refused, but for streams that have begun: they may go on."""
        self._is_draining = True
        for lane in list(self._queue.lanes.values()):
            for ticket in list(lane.tickets):
                if ticket.moving is None:
                    self._refuse(ticket, _draining(), now)
        return self._finish(now)

    def adopt(self, policy: Policy, now: float) -> list[Decided]:
        """Go by another policy. What is held or charged stays; who waits and can never be held any more is refused."""
        self._policy = policy
        self._ledger.adopt(policy)
        self._queue.settings = policy.queue
        self._estimates.keep_only(frozenset(policy.tenants), frozenset(policy.models))
        self._reach.clear()
        for lane in list(self._queue.lanes.values()):
            for ticket in list(lane.tickets):
                self._reconsider(ticket, now)
        self._regroup(now)
        return self._finish(now)

    # what is shown

    def remaining(self, tenant: str, key: Key, now: float) -> RateState:
        """What is left of the minute, by the tightest of key and tenant, for the `x-ratelimit-` headers."""
        key_owner = self._ledger.keys.get((tenant, key.name))
        owners = [owner for owner in (key_owner, self._ledger.tenants.get(tenant)) if owner is not None]
        requests = _tightest([owner.account.requests for owner in owners], now)
        tokens = _tightest([owner.account.tokens for owner in owners], now)
        return RateState(*requests, *tokens)

    def tenant_state(self, tenant: str) -> TenantState:
        """A tenant's memory, calls and queue, by the name in the file."""
        owner = self._ledger.tenants[tenant]
        standing = owner.standing
        return TenantState(
            memory_limit=standing.limit_bytes,
            memory_reserved=standing.held_bytes,
            concurrency_limit=owner.account.slots_limit,
            concurrency_held=owner.account.slots_held,
            queued=self._queue.entries_of(tenant),
            memory_guarantee=standing.guarantee_bytes,
            memory_lent=standing.lent_bytes,
        )

    def pod_state(self, pod: str) -> PodState:
        """A pod's memory and calls, by the name in the file."""
        host = self._ledger.hosts[pod]
        account = host.account
        return PodState(
            account.memory_limit, account.memory_held, account.slots_limit, account.slots_held, host.closing
        )

    # where calls may go

    def _reach_of(self, call: Call) -> tuple[Host, ...]:
        """All pods of the file that may ever serve the call."""
        pair = (call.tenant.name, call.model)
        reach = self._reach.get(pair)
        if reach is None:
            policy = self._policy
            tenant = policy.tenants[call.tenant.name]
            hosts = self._ledger.hosts.values()
            reach = self._reach[pair] = tuple(host for host in hosts if policy.serves(host.pod, tenant, call.model))
        return reach

    def _group(self, call: Call, serving: Serving) -> Group:
        """The group of pods that are ready for the call and taken up."""
        pair = (call.tenant.name, call.model)
        group = self._group_of.get(pair)
        if group is not None and (group.ready is serving.ready or group.ready == serving.ready):
            return group
        group = self._groups.get(serving.ready)
        if group is None:
            known = (self._ledger.hosts.get(name) for name in serving.ready)
            hosts = tuple(host for host in known if host is not None and host.is_taken_up)
            group = self._groups[serving.ready] = Group(serving.ready, hosts, self._queue.numbers)
            for host in hosts:
                on_host = self._groups_on.setdefault(host, [])
                for other in on_host:
                    other.neighbours[group] = None
                    group.neighbours[other] = None
                on_host.append(group)
        self._group_of[pair] = group
        return group

    def _choose(self, ticket: Ticket, group: Group, now: float, closed: set[str] | None = None) -> Host | None:
        """The ranking's choice among the pods that can hold the ticket's call.

        With `closed` it is the ticket's turn in its group: of its group's heads, only those before it keep room from it,
        on the pods that are closed.
        """
        call, need, owners, moving = ticket.call, ticket.need, ticket.owners, ticket.moving
        hosts = self._ledger.hosts

        def fits(pod: str) -> bool:
            host = hosts.get(pod)
            if host is None or not host.is_taken_up:
                return False
            bytes_ = host.weigh(need, call.model)
            if not host.fits(bytes_):
                return False
            for owner in owners:
                if owner.lacks_memory(bytes_, host, moving) is not None:
                    return False
            if closed is not None and pod in closed:
                return False
            return not self._is_kept(host, ticket.lane, None if closed is None else group, now)

        ready = group.ready
        if ticket.not_on:
            ready = tuple(pod for pod in ready if pod not in ticket.not_on)
        if not ready:
            return None
        chosen = self._ranking.choose(call, ready, fits, self._ledger)
        return None if chosen is None else hosts[chosen]

    def _is_kept(self, host: Host, own: Lane | None, in_turn: Group | None, now: float) -> bool:
        """Whether the host's room is kept for a head that has been waiting for it longer than `bypass`.

        A lane in a round yields to those before it, anybody else to all. For its own group `in_turn` has seen to that.
        """
        bypass = self._policy.queue.bypass_seconds
        number = None if own is None or own.group is None else own.group.turns.number_of(own.tenant)
        for group in self._groups_on.get(host, ()):
            if group is in_turn or not group.blocked:
                continue
            if number is None:
                for lane, since in group.blocked.items():
                    if since + bypass > now:
                        break
                    if _could_use(lane, host):
                        lane.keeps_room = True
                        return True
            else:
                for other, lane in group.turns:
                    if other >= number:
                        break
                    if group.blocked[lane] + bypass <= now and _could_use(lane, host):
                        lane.keeps_room = True
                        return True
        return False

    # who waits for what

    def _blocker(self, ticket: Ticket, group: Group, now: float) -> tuple[Owner, float | None] | None:
        """The owner whose own limits keep the call out, whatever the pods have; and when its rate opens, if it is that."""
        if ticket.moving is None:
            tokens = ticket.need.tokens
            for owner in ticket.owners:
                account = owner.account
                if not (account.requests.fits(1, now) and account.tokens.fits(tokens, now)):
                    times = (account.requests.opens_at(1, now), account.tokens.opens_at(tokens, now))
                    return owner, max((time for time in times if time is not None), default=None)
            for owner in ticket.owners:
                if owner.account.is_full:
                    return owner, None
        for owner in ticket.owners:
            kinds = group.kinds if owner.by_device is None else group.kinds_by_device
            if kinds and all(
                owner.lacks_memory(host.weigh(ticket.need, ticket.call.model), host, ticket.moving) for host in kinds
            ):
                return owner, None
        return None

    def _stand(self, lane: Lane, head: Ticket, group: Group, now: float) -> None:
        """The lane's head cannot run now: the lane goes where it will be thought of."""
        blocker = self._blocker(head, group, now)
        if blocker is None:
            if lane.group is not group:
                self._give_up_room(lane)
            self._queue.wait_for_pods(lane, group, now)
        else:
            self._give_up_room(lane)
            self._queue.park(lane, *blocker)

    def _give_up_room(self, lane: Lane) -> None:
        """The head for which pods kept room does not wait for them any more: they are dealt out again."""
        if lane.keeps_room:
            lane.keeps_room = False
            if lane.group is not None:
                self._groups_to_deal.update(lane.group.neighbours)

    def _new_head(self, lane: Lane, now: float) -> None:
        """The lane has another head than before, or none."""
        self._give_up_room(lane)
        if lane.tickets:
            self._queue.begins(lane, now)
            self._lanes_to_place[lane] = None
        else:
            self._queue.lift(lane)

    def _recheck(self, tenant: str, now: float) -> None:
        """The tenant was charged: its lanes that wait for pods may be barred by its own limits now."""
        for lane in self._queue.lanes_of(tenant):
            if lane.group is not None:
                head = lane.head
                assert head is not None
                blocker = self._blocker(head, lane.group, now)
                if blocker is not None:
                    self._give_up_room(lane)
                    self._queue.park(lane, *blocker)
                else:  # its turn went by, or of some pods its tenant's memory allows it no use any more
                    self._give_up_room(lane)

    def _take_out(self, ticket: Ticket, now: float) -> None:
        """The ticket leaves the queue undecided, or for a refusal."""
        assert ticket.lane is not None
        was_head = ticket.lane.head is ticket
        lane = self._queue.remove(ticket)
        if ticket.moving is not None:
            self._moving.pop(ticket.moving, None)
        if was_head:
            self._new_head(lane, now)

    def _refuse(self, ticket: Ticket, refusal: Refusal, now: float) -> None:
        self._take_out(ticket, now)
        self._decided.append(Decided(ticket, Refused(refusal)))

    def _regroup(self, now: float) -> None:
        """Pods or limits changed: every lane is stood anew, in its old order, and then all room is dealt out."""
        queue = self._queue
        since = {lane: time for group in self._groups.values() for lane, time in group.blocked.items()}
        in_turn = [lane for _, lane in heapq.merge(*(group.turns for group in self._groups.values()), key=_number)]
        parked = [lane for lane in queue.lanes.values() if lane.group is None]
        self._groups.clear()
        self._group_of.clear()
        self._groups_on.clear()
        self._groups_to_deal.clear()
        self._hosts_to_offer.clear()
        for lane in (*in_turn, *parked):
            queue.lift(lane)
            lane.keeps_room = False
        for lane in (*in_turn, *parked):
            self._stand_anew(lane, now)
        for group in self._groups.values():
            order = sorted(group.blocked, key=lambda lane: since.get(lane, now))
            for lane in order:
                group.blocked[lane] = since.get(lane, now)
                group.blocked.move_to_end(lane)
            self._groups_to_deal[group] = None

    def _stand_anew(self, lane: Lane, now: float) -> None:
        while (head := lane.head) is not None:
            serving = self._ranking.serving(lane.tenant, lane.model)
            group = self._group(head.call, serving)
            if serving.is_coming or not group.names <= head.not_on:
                self._stand(lane, head, group, now)
                return
            self._refuse(head, reasons.no_pod(head.call).refusal(reasons.POD_COMES_SECONDS), now)

    def _reconsider(self, ticket: Ticket, now: float) -> None:
        """The policy changed under a waiting ticket."""
        call = ticket.call
        owners = self._ledger.owners(call)
        if owners is None:
            self._refuse(ticket, _vanished(call), now)
            return
        ticket.owners = owners
        if ticket.moving is None:
            model = self._policy.models.get(call.model)
            never = reasons.never(call, ticket.need, owners, self._reach_of(call), model)
            if never is not None:
                self._refuse(ticket, never, now)

    # entering the queue

    def _enqueue(self, ticket: Ticket, group: Group, now: float) -> Answer:
        call, queue = ticket.call, self._queue
        settings, tenant = self._policy.queue, self._policy.tenants[call.tenant.name]
        depth = settings.depth if tenant.queue_depth is None else min(settings.depth, tenant.queue_depth)
        if not call.may_wait or depth == 0:
            return self._refused(ticket, group, now)
        held = queue.entries_of(tenant.name)
        if held >= depth:
            return self._refused(ticket, group, now, _full(f"tenant/{tenant.name}", "entries", depth, held, 1))
        ticket.deadline_at = self._deadline(call, call.arrived_at)
        wait = self._expected_wait(ticket, group, now)
        if ticket.deadline_at <= now + (wait or 0.0):
            return self._refused(ticket, group, now, _too_late(call, ticket.deadline_at, wait))
        while queue.is_full_for(call):
            victim = queue.gives_way(call)
            if victim is None or call.size_bytes > settings.bytes_:
                if queue.entries >= settings.depth:
                    full = _full("queue", "entries", settings.depth, queue.entries, 1)
                else:
                    full = _full("queue", "bytes", settings.bytes_, queue.bytes_, call.size_bytes)
                return self._refused(ticket, group, now, full)
            pushed = _full("queue", "entries", settings.depth, queue.entries, 1)
            self._refuse(victim, replace(pushed, retry_after_seconds=self._seconds_until(victim, now)), now)
        lane = queue.add(ticket)
        if lane.head is ticket:
            self._stand(lane, ticket, group, now)
        return self._answer_of(ticket, wait, now)

    def _answer_of(self, ticket: Ticket, wait: float | None, now: float) -> Answer:
        """What became of a ticket that was just queued, once everything that its coming caused is done."""
        self._run(now)
        if not ticket.is_waiting:
            for number, decided in enumerate(self._decided):
                if decided.ticket is ticket:
                    del self._decided[number]
                    return decided.answer
        return Queued(ticket, wait)

    def _deadline(self, call: Call, start: float) -> float:
        timeout = self._policy.queue.timeout_seconds
        tenant = self._policy.tenants.get(call.tenant.name)
        if tenant is not None and tenant.queue_timeout_seconds is not None:
            timeout = min(timeout, tenant.queue_timeout_seconds)
        return start + timeout if call.deadline_at is None else min(start + timeout, call.deadline_at)

    def _expected_wait(self, ticket: Ticket, group: Group, now: float) -> float | None:
        """(entries ahead that wait for the same account + 1) × the mean gap between releases there; pods × tenants."""
        call = ticket.call
        ahead = self._queue.entries_of(call.tenant.name)
        lane = self._queue.lane_of(call)
        blocker = self._blocker(ticket, group, now)
        owner = lane.owner if lane is not None and lane.group is None else blocker[0] if blocker else None
        if owner is not None:
            if owner is not ticket.owners[-1]:
                lanes = self._queue.lanes_of(call.tenant.name)
                ahead = sum(len(lane.tickets) for lane in lanes if lane.key == call.key.name)
            gap = owner.account.gaps.mean
            return None if gap is None else (ahead + 1) * gap
        tenants = len(group.turns)
        here = sum(len(lane.tickets) for lane in group.turns.lanes_of(call.tenant.name))
        gap = _gap_of(group)
        return None if gap is None else (here + 1) * gap * (tenants if here else tenants + 1)

    # refusals

    def _refused(self, ticket: Ticket, group: Group, now: float, refusal: Refusal | None = None) -> Refused:
        """Refuse an arrival: for `refusal`, or for the first reason why it cannot run now."""
        hosts = tuple(host for host in group.hosts if host.name not in ticket.not_on)
        found = reasons.in_the_way(ticket, hosts, now)
        wait = self._expected_wait(ticket, group, now) if self._queue.lane_of(ticket.call) is not None else None
        seconds = max([reason.seconds for reason in found] + [wait or 0.0])
        if refusal is not None:
            return Refused(replace(refusal, retry_after_seconds=_later(refusal, seconds)))
        if not found:  # every account would hold it: it is the queue that it may not pass
            found = [reasons.kept(hosts, self._policy.queue.bypass_seconds)]
            seconds = max(seconds, found[0].seconds)
        return Refused(found[0].refusal(seconds))

    def _seconds_until(self, ticket: Ticket, now: float) -> float:
        """When a ticket that gives up may come back."""
        call = ticket.call
        group = self._group(call, self._ranking.serving(call.tenant.name, call.model))
        found = reasons.in_the_way(ticket, group.hosts, now)
        return reasons.whole_milliseconds(max([reason.seconds for reason in found], default=1.0))

    # working off what was caused

    def _finish(self, now: float) -> list[Decided]:
        self._run(now)
        return self.caused()

    def _run(self, now: float) -> None:
        """Do all that has been caused so far, and what that causes."""
        while (late := self._queue.pop_expired(now)) is not None:
            refusal = _too_late(late.call, late.deadline_at, None)
            self._refuse(
                late, replace(refusal, retry_after_seconds=_later(refusal, self._seconds_until(late, now))), now
            )
        while (due := self._queue.pop_due(now)) is not None:
            self._lanes_to_place[due] = None
        while True:
            if self._hosts_to_offer:
                self._offer(_pop(self._hosts_to_offer), now)
            elif self._groups_to_deal:
                self._deal(_pop(self._groups_to_deal), now)
            elif self._owners_to_serve:
                self._serve(_pop(self._owners_to_serve), now)
            elif self._lanes_to_place:
                self._place(_pop(self._lanes_to_place), now)
            else:
                return

    def _offer(self, host: Host, now: float) -> None:
        """Offer one pod to the lanes in turn, until it holds no more or must keep its room."""
        groups = self._groups_on.get(host, ())
        while not host.account.is_full:
            lane = self._next_for(host, groups, now)
            if lane is None:
                return
            self._grant_head(lane, host, now)

    def _next_for(self, host: Host, groups: Sequence[Group], now: float) -> Lane | None:
        """The first lane in turn whose head the host can hold, unless it must keep its room for one before."""
        bypass = self._policy.queue.bypass_seconds
        first: Lane | None = None
        passed = 0
        barred: list[Lane] = []
        found: Lane | None = None
        for lane in _in_turn(groups):
            head, group = lane.head, lane.group
            assert head is not None and group is not None
            if host.name in head.not_on:
                continue
            bytes_ = host.weigh(head.need, lane.model)
            if self._blocker(head, group, now) is not None:
                barred.append(lane)
            elif host.fits(bytes_):
                if all(owner.lacks_memory(bytes_, host, head.moving) is None for owner in head.owners):
                    found = lane
                    break
            elif _could_use(lane, host):
                first = first or lane
                passed += 1
                if group.blocked[lane] + bypass <= now:
                    lane.keeps_room = True
                    break
                if passed == _MOST_PASSED:
                    first.keeps_room = True
                    break
        for lane in barred:
            assert lane.head is not None and lane.group is not None
            self._stand(lane, lane.head, lane.group, now)
        return found

    def _deal(self, group: Group, now: float) -> None:
        """Room may be anywhere in the group: rank its heads in turn, until one has to wait that may not be passed."""
        while (served := self._first_served(group, now)) is not None:
            self._grant_head(*served, now)

    def _first_served(self, group: Group, now: float) -> tuple[Lane, Host] | None:
        bypass = self._policy.queue.bypass_seconds
        first: Lane | None = None
        closed: set[str] = set()  # pods that keep their room for a head that may not be passed
        for passed, (_, lane) in enumerate(list(islice(group.turns, _MOST_PASSED)), start=1):
            head = lane.head
            assert head is not None
            if self._blocker(head, group, now) is not None:
                self._stand(lane, head, group, now)
                continue
            host = self._choose(head, group, now, closed)
            if host is not None:
                return lane, host
            first = first or lane
            if group.blocked[lane] + bypass <= now:
                lane.keeps_room = True
                closed.update(host.name for host in group.hosts if _could_use(lane, host))
                if len(closed) == len(group.hosts):
                    break
            if passed == _MOST_PASSED:
                first.keeps_room = True
        return None

    def _serve(self, owner: Owner, now: float) -> None:
        """The owner gave something back: its parked lanes are placed, in order."""
        for lane in list(self._queue.parked_with(owner)):
            head = lane.head
            if lane.owner is owner and head is not None and (head.moving is not None or not owner.account.is_full):
                self._place(lane, now)
        for lane in self._queue.lanes_of(owner.tenant):
            if lane.group is not None and lane.group.is_mixed_for(owner):
                self._place(lane, now)

    def _place(self, lane: Lane, now: float) -> None:
        """Rank the lane's head like an arrival, and the heads after it, until one must wait."""
        while (head := lane.head) is not None:
            group = self._group(head.call, self._ranking.serving(lane.tenant, lane.model))
            host = None
            if self._blocker(head, group, now) is None:
                host = self._choose(head, group, now)
            if host is None:
                self._stand(lane, head, group, now)
                return
            self._grant_head(lane, host, now)

    def _grant_head(self, lane: Lane, host: Host, now: float) -> None:
        ticket = lane.head
        assert ticket is not None
        self._queue.remove(ticket)
        lease = ticket.moving
        if lease is None:
            lease = self._ledger.grant(ticket.call, ticket.need, host, ticket.owners, now)
        else:
            self._ledger.put_on(lease, host, ticket.owners, now)
            self._owners_to_serve.update(dict.fromkeys(ticket.owners))
            del self._moving[lease]
        self._decided.append(Decided(ticket, Admitted(lease, now - ticket.entered_at)))
        self._give_up_room(lane)
        self._queue.served(lane, self._groups_on.get(host, ()), now)
        head = lane.head
        if head is None:
            self._queue.lift(lane)
        elif not head.need.is_at_least(ticket.need) or head.not_on != ticket.not_on:
            self._lanes_to_place[lane] = None  # it may fit where the head before it did not
        self._recheck(lane.tenant, now)

    # what is given back

    def _book(self, lease: Lease, usage: Usage | None, now: float) -> None:
        if usage is None:
            return
        self._ledger.book(lease, usage.total_tokens, now)
        if usage.total_tokens < lease.need.tokens:
            for owner in self._ledger.owners(lease.call) or ():
                self._owners_to_serve[owner] = None
        if not lease.is_moved:
            self._estimates.teach(lease.call, usage)
            lease.host.pace.learn(now - lease.granted_at, usage.completion_tokens)

    def _release(self, lease: Lease, now: float) -> None:
        self._ledger.release(lease, now)
        self._hosts_to_offer[lease.host] = None
        owners = self._ledger.owners(lease.call)
        for owner in owners or ():
            self._owners_to_serve[owner] = None
        if self._ledger.left_out and self._ledger.retry_left_out():
            self._regroup(now)


def _pop(work: dict[WorkT, None]) -> WorkT:
    item = next(iter(work))
    del work[item]
    return item


def _in_turn(groups: Sequence[Group]) -> Iterator[Lane]:
    if len(groups) == 1:
        return (lane for _, lane in groups[0].turns)
    return (lane for _, lane in heapq.merge(*(group.turns for group in groups), key=_number))


def _number(turn: tuple[int, Lane]) -> int:
    return turn[0]


def _could_use(lane: Lane, host: Host) -> bool:
    """Whether only the host's room keeps the lane's head from it."""
    head = lane.head
    assert head is not None
    bytes_ = host.weigh(head.need, lane.model)
    if host.name in head.not_on or not host.could_hold(bytes_):
        return False
    return all(owner.lacks_memory(bytes_, host, head.moving) is None for owner in head.owners)


def _gap_of(group: Group) -> float | None:
    """The mean gap between releases on any of the group's pods."""
    sampled = group.hosts[:_MOST_SAMPLED]
    gaps = [gap for host in sampled if (gap := host.account.gaps.mean) is not None]
    if not gaps:
        return None
    if min(gaps) <= 0.0:
        return 0.0
    return 1 / sum(1 / gap for gap in gaps) * len(sampled) / len(group.hosts)


def _tightest(windows: Iterable[Window], now: float) -> tuple[int | None, int | None, float | None]:
    """Limit, what is left and the seconds until all of it is back, of the window with the least left."""
    tightest: tuple[int, int, float] | None = None
    for window in windows:
        if window.limit is not None:
            left = max(0, window.limit - window.used(now))
            if tightest is None or left < tightest[1]:
                tightest = (window.limit, left, max(0.0, window.empties_at(now) - now))
    return (None, None, None) if tightest is None else tightest


def _later(refusal: Refusal, seconds: float) -> float | None:
    """When to come back, unless it is the client's own deadline that was too short."""
    return None if refusal.code is Code.DEADLINE_EXCEEDED else reasons.whole_milliseconds(seconds)


def _draining() -> Refusal:
    message = "this gateway is going away and admits nothing new"
    return Refusal(Code.DRAINING, "gateway", message, retry_after_seconds=1.0)


def _vanished(call: Call) -> Refusal:
    return Refusal(Code.NO_POD, f"tenant/{call.tenant.name}", "the tenant is not in the configuration any more")


def _full(account: str, unit: str, limit: int, used: int, asked: int) -> Refusal:
    message = f"the queue of {account} holds {used} of {limit} {unit}"
    return Refusal(Code.QUEUE_FULL, account, message, unit, limit, used, asked)


def _too_late(call: Call, deadline_at: float, wait: float | None) -> Refusal:
    """The wait ends at the client's own deadline, or at the queue's."""
    seconds = max(0.0, deadline_at - call.arrived_at)
    told = f"had no room within {seconds:.3g} s" if wait is None else f"would wait {wait:.3g} s of {seconds:.3g} s"
    is_own = call.deadline_at is not None and call.deadline_at <= deadline_at
    code = Code.DEADLINE_EXCEEDED if is_own else Code.QUEUE_TIMEOUT
    return Refusal(code, "queue", f"the call {told}", "seconds", seconds, wait, None)
