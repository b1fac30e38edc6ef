"""The one decision: may this call run now, and where; and if not, does it wait, or is it refused, and why.

Admission stands over the ledger, the queue and a `Ranking` of pods, which backends answers. Lease and route are one
decision: a call is charged on the pod that the ranking chose among those that can hold it. Every verb takes the time,
changes state and returns what it decided; nothing here waits or does I/O.

An arrival whose lane is empty is ranked over all pods that are ready; any other waits its turn, which is `dealing`'s
matter. Why a call cannot run, and when coming back would help, is told by `reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tenancy import reasons
from tenancy.accounts import Capacity, Host, Lease
from tenancy.answer import Admitted, Answer, Decided, PodState, Queued, RateState, Refused, TenantState
from tenancy.call import Call, Usage
from tenancy.dealing import Dealing, LedgerView, Ranking, Serving
from tenancy.ledger import Ledger
from tenancy.need import Estimates
from tenancy.policy import Key, Policy, tenants_named_by
from tenancy.queue import Group, Queue, Ticket
from tenancy.rates import Window
from tenancy.refusal import Code, Refusal
from tenancy.units import format_bytes

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

_MOST_SAMPLED = 32  # pods looked at for a forecast

_Left = tuple[int | None, int | None, float | None]
_UNLIMITED: _Left = (None, None, None)


class Admission:
    """Admits calls by budget and routes them; see the module. One event loop owns it: it is not safe for threads."""

    def __init__(self, policy: Policy, ranking: Ranking, now: float) -> None:
        self._policy = policy
        self._ranking = ranking
        self._ledger = Ledger(policy)
        self._queue = Queue(policy.queue)
        self._estimates = Estimates()
        self._dealing = Dealing(ranking, self._ledger, self._queue)
        self._is_draining = False
        self._named = tenants_named_by(policy.pods.values())
        self._reach: dict[tuple[str | None, str | None, str], tuple[Host, ...]] = {}

    # the verbs

    def admit(self, call: Call, now: float) -> Answer:
        """Admit `call`, queue it, or refuse it. What this caused for others is told by `caused`.

        All accounts and rates are charged, or none. Where a pod has room this takes some 10 µs, however many wait.
        """
        if self._is_draining:
            return Refused(_draining())
        ledger, dealing, queue = self._ledger, self._dealing, self._queue
        owners = ledger.owners(call)
        if owners is None:
            return Refused(_vanished(call))
        model = self._policy.models.get(call.model)
        need = self._estimates.need(call, model)
        too_long = reasons.too_long(call, need, model)
        if too_long is not None:
            return Refused(too_long)
        serving = self._ranking.serving(call.tenant.name, call.model)
        group = dealing.group(call, serving)
        ticket = Ticket(call, need, owners, now, 0.0)
        tokens = need.tokens
        is_full = is_spent = False
        for owner in owners:
            account = owner.account
            if account.is_full():
                is_full = True
            if not (account.requests.fits(1, now) and account.tokens.fits(tokens, now)):
                is_spent = True
        if not is_full and not is_spent and (not queue.entries or queue.lane_of(call) is None):
            host = dealing.choose(ticket, group, now)
            if host is not None:
                lease = ledger.grant(call, need, host, owners, now)
                if queue.entries:  # where nobody waits, this causes nothing
                    dealing.recheck(call.tenant.name, now)
                    self._run(now)
                return Admitted(lease)
        # Asked last, because what was admitted could be held: 4 µs that only those pay who are not.
        never = reasons.never(call, need, owners, self._reach_of(call))
        if never is not None:
            return Refused(never)
        if is_spent or (not group.hosts and not serving.is_coming):
            return self._refused(ticket, group, now)
        return self._enqueue(ticket, group, now)

    def settle(self, lease: Lease, usage: Usage | None, now: float, *, let_go: bool = True) -> list[Decided]:
        """The call ended: book what it used (`None`: what it was charged stands) and release the lease.

        Without `let_go` the pod may still be running it: the lease is closing, and holds all it held, until `let_go` is
        called with it. A lease that is looking for another pod may be settled, too: its ticket then leaves the queue.
        """
        assert not lease.is_settled, f"{lease!r} is settled twice"
        lease.is_settled = True
        dealing = self._dealing
        if lease in dealing.moving:
            dealing.take_out(dealing.moving[lease], now)
        if usage is not None:
            self._book(lease, usage, now)
        if let_go or lease.pod_hold is None:
            self._release(lease, now)
        else:
            self._ledger.close(lease)
            dealing.owners_freed(self._ledger.owners(lease.call) or ())  # it may have used fewer tokens
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
            self._dealing.take_out(ticket, now)
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
        self._dealing.regroup(now)
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
        assert not lease.is_settled and lease not in self._dealing.moving
        call = lease.call
        host = lease.host
        self._ledger.take_off(lease, now, let_go=let_go)
        if let_go:
            self._dealing.host_freed(host)
        owners = self._ledger.owners(call)
        if owners is None:
            self._run(now)
            return Refused(_vanished(call))
        serving = self._ranking.serving(call.tenant.name, call.model)
        group = self._dealing.group(call, serving)
        ticket = Ticket(call, lease.need, owners, now, self._deadline(call, now))
        ticket.moving = lease
        ticket.not_on = not_on
        if not serving.is_coming and group.names <= not_on:
            self._run(now)
            return Refused(reasons.no_pod(call).refusal(reasons.POD_COMES_SECONDS))
        chosen = self._dealing.choose(ticket, group, now)
        if chosen is not None:
            self._ledger.put_on(lease, chosen, owners, now)
            self._dealing.owners_freed(owners)  # it may hold less of their memory there
            self._dealing.recheck(call.tenant.name, now)
            self._run(now)
            return Admitted(lease)
        if not call.may_wait or ticket.deadline_at <= now:
            self._run(now)
            return self._refused(ticket, group, now)
        self._dealing.moving[lease] = ticket
        lane = self._queue.add(ticket)
        self._dealing.new_head(lane, now)
        return self._answer_of(ticket, None, now)

    def count(self, call: Call, now: float) -> Refused | None:
        """Charge one request to the rates alone: for a call that is answered without a lease of its own."""
        owners = self._ledger.owners(call)
        if owners is None:
            return Refused(_vanished(call))
        found = reasons.rates(owners, 0, now)
        if found:
            return Refused(found[0].refusal(max(reason.seconds for reason in found)))
        for owner in owners:
            owner.account.requests.charge(1, now)
        self._dealing.recheck(call.tenant.name, now)
        self._run(now)
        return None

    def caused(self) -> list[Decided]:
        """What `admit`, `move` and `count` decided for others, told once; the other verbs return theirs themselves."""
        decided = self._dealing.decided
        if not decided:
            return []
        self._dealing.decided = []
        return decided

    def drain(self, now: float) -> list[Decided]:
        """Admit nothing new from now on. Who waits is refused, but for streams that have begun: they may go on."""
        self._is_draining = True
        for lane in list(self._queue.lanes.values()):
            for ticket in list(lane.tickets):
                if ticket.moving is None:
                    self._dealing.refuse(ticket, _draining(), now)
        return self._finish(now)

    def adopt(self, policy: Policy, now: float) -> list[Decided]:
        """Go by another policy. What is held or charged stays; who waits and can never be held any more is refused."""
        self._policy = policy
        self._ledger.adopt(policy)
        self._queue.settings = policy.queue
        self._estimates.keep_only(frozenset(policy.tenants), frozenset(policy.models))
        self._named = tenants_named_by(policy.pods.values())
        self._reach.clear()
        for lane in list(self._queue.lanes.values()):
            for ticket in list(lane.tickets):
                self._reconsider(ticket, now)
        self._dealing.regroup(now)
        return self._finish(now)

    # what is shown

    def remaining(self, tenant: str, key: Key, now: float) -> RateState:
        """What is left of the minute, by the tightest of key and tenant, for the `x-ratelimit-` headers."""
        requests = tokens = _UNLIMITED
        for owner in (self._ledger.keys.get((tenant, key.name)), self._ledger.tenants.get(tenant)):
            if owner is not None:
                requests = _tighter(requests, owner.account.requests, now)
                tokens = _tighter(tokens, owner.account.tokens, now)
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
        policy = self._policy
        tenant = policy.tenants[call.tenant.name]
        if not policy.may_use(tenant, call.model):
            return ()
        # Kept for tenants that no pod tells apart together: for each, 10,000 of them and 1,000 pods would take 80 MB.
        like = (tenant.name if tenant.name in self._named else None, tenant.profile, call.model)
        reach = self._reach.get(like)
        if reach is None:
            hosts = self._ledger.hosts.values()
            reach = self._reach[like] = tuple(host for host in hosts if policy.serves(host.pod, tenant, call.model))
        return reach

    def _reconsider(self, ticket: Ticket, now: float) -> None:
        """The policy changed under a waiting ticket."""
        call = ticket.call
        owners = self._ledger.owners(call)
        if owners is None:
            self._dealing.refuse(ticket, _vanished(call), now)
            return
        ticket.owners = owners
        if ticket.moving is None:
            never = reasons.too_long(call, ticket.need, self._policy.models.get(call.model))
            never = never or reasons.never(call, ticket.need, owners, self._reach_of(call))
            if never is not None:
                self._dealing.refuse(ticket, never, now)

    # entering the queue

    def _enqueue(self, ticket: Ticket, group: Group, now: float) -> Answer:
        call, queue = ticket.call, self._queue
        settings, tenant = self._policy.queue, self._policy.tenants[call.tenant.name]
        depth = settings.depth if tenant.queue_depth is None else min(settings.depth, tenant.queue_depth)
        if not call.may_wait or depth == 0:
            return self._refused(ticket, group, now)
        held = queue.entries_of(tenant.name)
        if tenant.queue_depth is not None and held >= depth:
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
            self._dealing.refuse(victim, reasons.come_back(pushed, self._seconds_until(victim, now)), now)
        lane = queue.add(ticket)
        if lane.head is ticket:
            self._dealing.stand(lane, ticket, group, now)
        return self._answer_of(ticket, wait, now)

    def _answer_of(self, ticket: Ticket, wait: float | None, now: float) -> Answer:
        """What became of a ticket that was just queued, once everything that its coming caused is done."""
        self._run(now)
        if not ticket.is_waiting:
            for number, decided in enumerate(self._dealing.decided):
                if decided.ticket is ticket:
                    del self._dealing.decided[number]
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
        blocker = self._dealing.blocker(ticket, group, now)
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
        hosts = group.hosts
        if ticket.not_on:
            hosts = tuple(host for host in hosts if host.name not in ticket.not_on)
        found = reasons.in_the_way(ticket, hosts, now)
        seconds = 0.0
        if self._queue.lane_of(ticket.call) is not None:
            seconds = self._expected_wait(ticket, group, now) or 0.0
        for reason in found:
            if reason.seconds > seconds:
                seconds = reason.seconds
        if refusal is not None:
            return Refused(_later(refusal, seconds))
        if not found:  # every account would hold it: it is the queue that it may not pass
            found = [reasons.kept(hosts, self._policy.queue.bypass_seconds)]
            seconds = max(seconds, found[0].seconds)
        return Refused(found[0].refusal(seconds))

    def _seconds_until(self, ticket: Ticket, now: float) -> float:
        """When a ticket that gives up may come back."""
        call = ticket.call
        group = self._dealing.group(call, self._ranking.serving(call.tenant.name, call.model))
        found = reasons.in_the_way(ticket, group.hosts, now)
        return max([reason.seconds for reason in found], default=1.0)

    # working off what was caused

    def _finish(self, now: float) -> list[Decided]:
        if self._queue.entries:
            self._run(now)
        return self.caused()

    def _run(self, now: float) -> None:
        """Refuse those whose time is over, and do all that has been caused so far, and what that causes."""
        while (late := self._queue.pop_expired(now)) is not None:
            refusal = _too_late(late.call, late.deadline_at, None)
            self._dealing.refuse(late, _later(refusal, self._seconds_until(late, now)), now)
        while (due := self._queue.pop_due(now)) is not None:
            self._dealing.rate_opens(due)
        self._dealing.run(now)

    # what is given back

    def _book(self, lease: Lease, usage: Usage, now: float) -> None:
        more = usage.prompt_tokens + usage.completion_tokens - lease.tokens
        self._ledger.book(lease, more, now)
        if more > 0 and self._queue.entries:
            self._dealing.recheck(lease.call.tenant.name, now)
        if not lease.is_moved:
            self._estimates.teach(lease.call, usage)
            lease.host.pace.learn(now - lease.granted_at, usage.completion_tokens)

    def _release(self, lease: Lease, now: float) -> None:
        self._ledger.release(lease, now)
        if self._queue.entries:
            self._dealing.host_freed(lease.host)
            self._dealing.owners_freed(self._ledger.owners(lease.call) or ())
        if self._ledger.left_out and self._ledger.retry_left_out():
            self._dealing.regroup(now)


def _gap_of(group: Group) -> float | None:
    """The mean gap between releases on any of the group's pods."""
    sampled = group.hosts[:_MOST_SAMPLED]
    gaps = [gap for host in sampled if (gap := host.account.gaps.mean) is not None]
    if not gaps:
        return None
    if min(gaps) <= 0.0:
        return 0.0
    return 1 / sum(1 / gap for gap in gaps) * len(sampled) / len(group.hosts)


def _tighter(known: _Left, window: Window, now: float) -> _Left:
    """What `known` and `window` leave of a rate: the one with less, as its limit, that, and when all of it is back."""
    if window.limit is None:
        return known
    state = window.state(now)
    return known if known[1] is not None and known[1] <= state[1] else state


def _later(refusal: Refusal, seconds: float) -> Refusal:
    """With the time to come back, unless it is the client's own deadline that was too short."""
    return refusal if refusal.code is Code.DEADLINE_EXCEEDED else reasons.come_back(refusal, seconds)


def _draining() -> Refusal:
    return reasons.come_back(
        Refusal(Code.DRAINING, "gateway", "This gateway is about to end, and admits nothing new."), 1
    )


def _vanished(call: Call) -> Refusal:
    return Refusal(Code.NO_POD, f"tenant/{call.tenant.name}", "This tenant is not in the configuration any more.")


def _full(account: str, unit: str, limit: int, used: int, asked: int) -> Refusal:
    whose = "The queue of all" if account == "queue" else f"The queue of {account}"
    if unit == "bytes":
        sizes = f"{format_bytes(used)} of its {format_bytes(limit)}, and this call is {format_bytes(asked)}"
        message = f"{whose} holds calls of {sizes}."
    else:
        message = f"{whose} is full: {used} of {limit} calls wait."
    return Refusal(Code.QUEUE_FULL, account, message, unit, limit, used, asked)


def _too_late(call: Call, deadline_at: float, wait: float | None) -> Refusal:
    """The wait ends at the client's own deadline, or at the queue's."""
    seconds = max(0.0, deadline_at - call.arrived_at)
    is_own = call.deadline_at is not None and call.deadline_at <= deadline_at
    code = Code.DEADLINE_EXCEEDED if is_own else Code.QUEUE_TIMEOUT
    told = f"would wait about {wait:.1f} s, longer than the" if wait else "found no room within the"
    remedy = ": give x-penstock-deadline-ms more time, or leave it out" if is_own else ""
    message = f"This call {told} {seconds:.1f} s that it may wait{remedy}."
    return Refusal(code, "queue", message, "seconds", seconds, wait, None)
