"""The queue: calls that wait, and where their lanes stand.

A `Lane` is one tenant's calls for one model by one key, first come first served. Only its head is ever offered
anything, and a lane stands in one of two places: in the round of a `Group`, where its head waits for room on one of
the group's pods, or parked with an `Owner` (its key or tenant), where its head waits for that owner to give something
back or for a rate to open. So what a release has to look at is never more than the lanes that it can help.

A `Group` is a set of pods that some lanes may use: usually all pods of a model. It remembers since when each head has
been blocked, in that order, because past `bypass` nothing later may take room on the pods that the head could use.

This module keeps order, bounds and deadlines; whom to admit is `admission`'s.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import count
from math import inf

import msgspec

from tenancy.accounts import Host, Lease, Owner
from tenancy.call import Call
from tenancy.fairness import Turns
from tenancy.need import Need
from tenancy.policy import QueueSettings


class Ticket(msgspec.Struct, eq=False):
    """A place in the queue. `moving` is the lease that looks for another pod, where the call was admitted before."""

    call: Call
    need: Need
    owners: tuple[Owner, ...]
    entered_at: float
    deadline_at: float
    lane: Lane | None = None
    moving: Lease | None = None
    not_on: frozenset[str] = frozenset()
    is_waiting: bool = False


class Group:
    """Pods that the same lanes may use, the round of the lanes that wait for them, and the heads blocked there.

    `blocked` maps a lane to the time since which its head has been waiting for these pods, longest first. `kinds` has
    one host of each kind that a tenant's memory can tell apart, with devices (`kinds_by_device`) or without.
    `neighbours` are the groups that share a pod with this one, itself included.
    """

    __slots__ = (
        "blocked",
        "hosts",
        "kinds",
        "kinds_by_device",
        "least_memory",
        "names",
        "neighbours",
        "ready",
        "turns",
    )

    def __init__(self, ready: tuple[str, ...], hosts: tuple[Host, ...], numbers: count[int]) -> None:
        self.ready = ready
        self.hosts = hosts
        self.names = frozenset(host.name for host in hosts)
        self.neighbours: dict[Group, None] = {self: None}
        kinds: dict[object, Host] = {}
        kinds_by_device: dict[object, Host] = {}
        for host in hosts:
            kind = (tuple(host.weights.items()), host.block_tokens, host.owner)
            kinds.setdefault(kind, host)
            kinds_by_device.setdefault((kind, host.pod.devices), host)
        self.kinds = tuple(kinds.values())
        limits = [host.account.memory_limit for host in hosts if host.account.slots_limit != 0]
        known = [inf if limit is None else limit for limit in limits]
        self.least_memory = min(known) if known and len(known) == len(hosts) else None
        self.kinds_by_device = tuple(kinds_by_device.values())
        self.turns: Turns[Lane] = Turns(numbers)
        self.blocked: OrderedDict[Lane, float] = OrderedDict()

    def needs_no_less(self, ticket: Ticket, other: Ticket) -> bool:
        """Whether room on the pods is all that both lack, so that what cannot hold `other` cannot hold `ticket`."""
        if ticket.call.model != other.call.model or not ticket.need.is_at_least(other.need):
            return False
        if len(self.kinds) > 1 or other.not_on or ticket.not_on:
            return False
        for owner in ticket.owners + other.owners:
            if owner.by_device is not None and len(self.kinds_by_device) > 1:
                return False
        return True

    def all_could_hold(self, ticket: Ticket) -> bool:
        """Whether each of the pods, empty, would hold the call; `False` where that takes a look at each."""
        if not self.needs_no_less(ticket, ticket) or self.least_memory is None:
            return False
        return self.kinds[0].weigh(ticket.need, ticket.call.model) <= self.least_memory

    def has_room_for(self, ticket: Ticket) -> bool:
        """Whether any of the pods has room now: a tenth of what it takes a ranking to find that none has."""
        need, model = ticket.need, ticket.call.model
        is_one_kind = len(self.kinds) == 1
        bytes_ = self.kinds[0].weigh(need, model) if is_one_kind else 0
        for host in self.hosts:  # noqa: SIM110 - a generator costs as much again
            if host.fits(bytes_ if is_one_kind else host.weigh(need, model)):
                return True
        return False

    def is_mixed_for(self, owner: Owner) -> bool:
        """Whether `owner` may lack memory on some of the pods and not on others."""
        return len(self.kinds if owner.by_device is None else self.kinds_by_device) > 1


class Lane:
    """One tenant's waiting calls for one model by one key.

    `group` is set while it stands in a round, `owner` while it is parked. `keeps_room` tells that room was withheld
    from others for the sake of this lane's head: it is dealt out again when the head no longer waits.
    """

    __slots__ = ("due_at", "group", "head", "keeps_room", "key", "model", "owner", "tenant", "tickets")

    def __init__(self, tenant: str, model: str, key: str) -> None:
        self.tenant = tenant
        self.model = model
        self.key = key
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.head: Ticket | None = None  # the first of `tickets`
        self.group: Group | None = None
        self.owner: Owner | None = None
        self.due_at: float | None = None
        self.keeps_room = False


class _Holding:
    """What one tenant has in the queue, newest last."""

    __slots__ = ("bytes_", "lanes", "tickets")

    def __init__(self) -> None:
        self.lanes: dict[Lane, None] = {}
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.bytes_ = 0


class Queue:
    """All lanes, with the queue's bounds and deadlines."""

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self.lanes: dict[tuple[str, str, str], Lane] = {}
        self.entries = 0
        self.bytes_ = 0
        self._holdings: dict[str, _Holding] = {}
        self._parked: dict[Owner, OrderedDict[Lane, None]] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._due: list[tuple[float, int, Lane]] = []
        self._numbers = count()

    # entries

    def lane_of(self, call: Call) -> Lane | None:
        """The lane in which `call` has to wait behind others, if any waits there."""
        return self.lanes.get((call.tenant.name, call.model, call.key.name))

    def add(self, ticket: Ticket) -> Lane:
        """Put the ticket at the end of its lane; one that was admitted before goes to the head."""
        call = ticket.call
        place = (call.tenant.name, call.model, call.key.name)
        lane = self.lanes.get(place)
        if lane is None:
            lane = self.lanes[place] = Lane(*place)
        holding = self._holdings.get(lane.tenant)
        if holding is None:
            holding = self._holdings[lane.tenant] = _Holding()
        holding.lanes[lane] = None
        lane.tickets[ticket] = None
        lane.head = lane.head or ticket
        holding.tickets[ticket] = None
        if ticket.moving is not None:
            lane.tickets.move_to_end(ticket, last=False)
            lane.head = ticket
            holding.tickets.move_to_end(ticket, last=False)
        holding.bytes_ += call.size_bytes
        self.bytes_ += call.size_bytes
        self.entries += 1
        ticket.lane = lane
        ticket.is_waiting = True
        heapq.heappush(self._deadlines, (ticket.deadline_at, next(self._numbers), ticket))
        if len(self._deadlines) > 2 * self.entries + 64:  # those who left stay in the heap, and hold their bodies
            self._deadlines = [entry for entry in self._deadlines if entry[2].is_waiting]
            heapq.heapify(self._deadlines)
        return lane

    def remove(self, ticket: Ticket) -> Lane:
        """Take the ticket out. The caller sees to a lane whose head it was."""
        assert ticket.is_waiting and ticket.lane is not None, "a ticket left the queue twice"
        lane = ticket.lane
        ticket.is_waiting = False
        del lane.tickets[ticket]
        lane.head = next(iter(lane.tickets), None)
        holding = self._holdings[lane.tenant]
        del holding.tickets[ticket]
        holding.bytes_ -= ticket.call.size_bytes
        self.bytes_ -= ticket.call.size_bytes
        self.entries -= 1
        if not holding.tickets:
            del self._holdings[lane.tenant]
        if not lane.tickets:
            holding.lanes.pop(lane)
            del self.lanes[(lane.tenant, lane.model, lane.key)]
        if not self.entries:  # so that where nobody waits, no time is left to look for
            self._deadlines.clear()
            self._due.clear()
        return lane

    def entries_of(self, tenant: str) -> int:
        holding = self._holdings.get(tenant)
        return 0 if holding is None else len(holding.tickets)

    def lanes_of(self, tenant: str) -> list[Lane]:
        holding = self._holdings.get(tenant)
        return [] if holding is None else list(holding.lanes)

    @property
    def numbers(self) -> count[int]:
        """The one order of turns, for all rounds."""
        return self._numbers

    def gives_way(self, newcomer: Call) -> Ticket | None:
        """Who leaves so that `newcomer` finds a full queue open: the newest entry of the tenant that holds most.

        `None`: nobody but the newcomer itself, because its tenant would be the one that holds most. O(tenants waiting),
        and only while the queue is full.
        """
        by_bytes = self.bytes_ + newcomer.size_bytes > self.settings.bytes_
        most, most_held = None, -1
        for tenant, holding in self._holdings.items():
            held = holding.bytes_ if by_bytes else len(holding.tickets)
            if held > most_held:
                most, most_held = tenant, held
        mine = self._holdings.get(newcomer.tenant.name)
        if by_bytes:
            own = newcomer.size_bytes + (0 if mine is None else mine.bytes_)
        else:
            own = 1 + (0 if mine is None else len(mine.tickets))
        if most is None or most == newcomer.tenant.name or own >= most_held:
            return None
        newest = next(reversed(self._holdings[most].tickets))
        return newest if newest.moving is None else None

    def is_full_for(self, newcomer: Call) -> bool:
        """Whether `newcomer` would put the queue over its bounds."""
        return self.entries >= self.settings.depth or self.bytes_ + newcomer.size_bytes > self.settings.bytes_

    # where lanes stand

    def wait_for_pods(self, lane: Lane, group: Group, now: float) -> None:
        """The lane's head found no room on the group's pods: the lane stands in the group's round."""
        if lane.group is group:
            return
        self.lift(lane)
        lane.group = group
        group.turns.join(lane.tenant, lane)
        group.blocked[lane] = now

    def park(self, lane: Lane, owner: Owner, due_at: float | None) -> None:
        """The lane's head waits for `owner`, or until `due_at` for its rate."""
        if lane.owner is not owner:
            self.lift(lane)
            lane.owner = owner
            self._parked.setdefault(owner, OrderedDict())[lane] = None
        if due_at != lane.due_at:
            lane.due_at = due_at
            if due_at is not None:
                heapq.heappush(self._due, (due_at, next(self._numbers), lane))

    def lift(self, lane: Lane) -> None:
        """The lane stands nowhere: it is about to be placed again, or empty."""
        if lane.group is not None:
            lane.group.turns.withdraw(lane.tenant, lane)
            del lane.group.blocked[lane]
            lane.group = None
        elif lane.owner is not None:
            parked = self._parked[lane.owner]
            del parked[lane]
            if not parked:
                del self._parked[lane.owner]
            lane.owner = None
            lane.due_at = None

    def served(self, lane: Lane, groups: Iterable[Group], now: float) -> None:
        """The lane's head was admitted on a pod of `groups`: its tenant's turn is over there, and a new head begins."""
        for group in groups:
            group.turns.served(lane.tenant, lane)
        self.begins(lane, now)

    def begins(self, lane: Lane, now: float) -> None:
        """The lane has a new head, which waits for pods from now on."""
        if lane.group is not None:
            lane.group.blocked[lane] = now
            lane.group.blocked.move_to_end(lane)

    def parked_with(self, owner: Owner) -> Iterator[Lane]:
        parked = self._parked.get(owner)
        return iter(()) if parked is None else iter(parked)

    # time

    def next_expiry(self) -> float | None:
        """When a deadline passes or a rate opens next."""
        while self._deadlines and not self._deadlines[0][2].is_waiting:
            heapq.heappop(self._deadlines)
        while self._due and self._due[0][2].due_at != self._due[0][0]:
            heapq.heappop(self._due)
        times = [heap[0][0] for heap in (self._deadlines, self._due) if heap]
        return min(times) if times else None

    def pop_expired(self, now: float) -> Ticket | None:
        """A waiting ticket whose deadline has come, if any; the caller removes it."""
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.is_waiting:
                return ticket
        return None

    def pop_due(self, now: float) -> Lane | None:
        """A lane whose head's rate opens, if any; it stays parked until it is placed."""
        while self._due and self._due[0][0] <= now:
            due_at, _, lane = heapq.heappop(self._due)
            if lane.due_at == due_at:
                lane.due_at = None
                return lane
        return None
