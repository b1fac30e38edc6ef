"""Who is offered what: the groups of pods that lanes wait for, and the room that is dealt out among them.

A pod that is given something back is offered to the lanes in turn, and the offer stops at the first head that it cannot
hold, once that head has been waiting for `bypass`: from then on the pod keeps its room for it, against later heads and
against arrivals alike. Before that, those who fit may pass; but an offer passes `_MOST_PASSED` heads at most, so that
what a release costs does not depend on how many wait. When a head that pods kept room for is gone, all heads of its
group are ranked again, in turn. What a tenant or key is given back is offered to the lanes that are parked with it, and
to nobody else.

Each step may cause others. They are noted, not called, and `run` works them off until nothing is left to do: so no step
ever finds another half done. What became of tickets is collected in `decided`; whom to refuse, and why, is
`admission`'s.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from tenancy import reasons
from tenancy.accounts import Host, Lease, Owner
from tenancy.answer import Admitted, Decided, Refused
from tenancy.call import Call
from tenancy.ledger import Ledger
from tenancy.queue import Group, Lane, Queue, Ticket
from tenancy.refusal import Refusal

_MOST_PASSED = 16

WorkT = TypeVar("WorkT", Host, Group, Owner, Lane)


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a tenant's calls for a model may go now. `is_coming`: no pod is ready, but one is starting."""

    ready: tuple[str, ...]
    is_coming: bool


class LedgerView(Protocol):
    """What a ranking may ask of the ledger."""

    def load(self, pod: str) -> tuple[float, int]:
        """The reserved share of the pod's KV memory, or of its slots where that is unknown, 0 to 1; and its calls."""


class Ranking(Protocol):
    """Which pods there are, and which is best; answered by backends."""

    def serving(self, tenant: str, model: str) -> Serving:
        """O(1), prebuilt; `ready` is the same tuple until something changes, and then `pods_changed` is called."""

    def choose(self, call: Call, ready: Sequence[str], fits: Callable[[str], bool], view: LedgerView) -> str | None:
        """The best of `ready` that fits, or `None` where none does; asks `fits` for as few as it can."""


class Dealing:
    """Gives room to those whose turn it is. Owned by `Admission`, whose verbs call it and then `run`."""

    def __init__(self, ranking: Ranking, ledger: Ledger, queue: Queue) -> None:
        self.decided: list[Decided] = []
        self.moving: dict[Lease, Ticket] = {}
        self._ranking = ranking
        self._ledger = ledger
        self._queue = queue
        self._groups: dict[tuple[str, ...], Group] = {}
        self._group_of: dict[tuple[str, str], Group] = {}
        self._groups_on: dict[Host, list[Group]] = {}
        self._is_mixed = False  # some group has pods on which the same call takes more memory than on others
        self._hosts_to_offer: dict[Host, None] = {}
        self._groups_to_deal: dict[Group, None] = {}
        self._owners_to_serve: dict[Owner, None] = {}
        self._lanes_to_place: dict[Lane, None] = {}

    # what is noted, to be worked off

    def host_freed(self, host: Host) -> None:
        if self._queue.entries:
            self._hosts_to_offer[host] = None

    def owners_freed(self, owners: Sequence[Owner]) -> None:
        if self._queue.entries:
            for owner in owners:
                self._owners_to_serve[owner] = None

    def rate_opens(self, lane: Lane) -> None:
        self._lanes_to_place[lane] = None

    def run(self, now: float) -> None:
        """Do all that has been noted so far, and what that causes. Where nobody waits nothing is, and none need ask."""
        while self._queue.entries:
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
        for noted in (self._hosts_to_offer, self._groups_to_deal, self._owners_to_serve, self._lanes_to_place):
            noted.clear()

    # where calls may go

    def group(self, call: Call, serving: Serving) -> Group:
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
            self._is_mixed = self._is_mixed or len(group.kinds) > 1
            for host in hosts:
                on_host = self._groups_on.setdefault(host, [])
                for other in on_host:
                    other.neighbours[group] = None
                    group.neighbours[other] = None
                on_host.append(group)
        self._group_of[pair] = group
        return group

    def choose(self, ticket: Ticket, group: Group, now: float, closed: set[str] | None = None) -> Host | None:
        """The ranking's choice among the pods that can hold the ticket's call.

        With `closed` it is the ticket's turn in its group: of its group's heads, only those before it keep room from
        it, on the pods that are closed.
        """
        call, need, owners, moving = ticket.call, ticket.need, ticket.owners, ticket.moving
        hosts, queue, model = self._ledger.hosts, self._queue, ticket.call.model

        def fits(pod: str) -> bool:
            host = hosts.get(pod)
            if host is None or not host.is_taken_up:
                return False
            bytes_ = host.weigh(need, model)
            if not host.fits(bytes_):
                return False
            for owner in owners:
                if owner.lacks_memory(bytes_, host, moving) is not None:
                    return False
            if closed is not None and pod in closed:
                return False
            return not queue.entries or not self._is_kept(host, ticket.lane, None if closed is None else group, now)

        ready = group.ready
        if ticket.not_on:
            ready = tuple(pod for pod in ready if pod not in ticket.not_on)
        if not ready or (closed is None and group.blocked and self._is_closed(group, ticket.lane, now)):
            return None
        if queue.entries and not group.has_room_for(ticket):  # where somebody waits, most likely
            return None
        chosen = self._ranking.choose(call, ready, fits, self._ledger)
        return None if chosen is None else hosts[chosen]

    def _is_kept(self, host: Host, own: Lane | None, in_turn: Group | None, now: float) -> bool:
        """Whether the host's room is kept for a head that has been waiting for it longer than `bypass`.

        A lane in a round yields to those before it, anybody else to all. For its own group `in_turn` has seen to that.
        """
        bypass = self._queue.settings.bypass_seconds
        number = None if own is None or own.group is None else own.group.turns.number_of(own.tenant)
        for group in self._groups_on.get(host, ()):
            if group is in_turn or not group.blocked:
                continue
            if number is not None and in_turn is not None:  # its turn is near: few are before it
                for other, lane in group.turns:
                    if other >= number:
                        break
                    if group.blocked[lane] + bypass <= now and _head_could_use(lane, host):
                        lane.keeps_room = True
                        return True
                continue
            for lane, since in group.blocked.items():
                if since + bypass > now:
                    break
                if (number is None or group.turns.number_of(lane.tenant) < number) and _head_could_use(lane, host):
                    lane.keeps_room = True
                    return True
        return False

    def _is_closed(self, group: Group, own: Lane | None, now: float) -> bool:
        """Whether all pods of the group keep their room, as the one that has waited longest alone can tell. O(1)."""
        lane, since = next(iter(group.blocked.items()), (own, now))
        if lane is own or lane is None or since + self._queue.settings.bypass_seconds > now:
            return False
        in_round = None if own is None else own.group
        if in_round is not None and own is not None:
            number_of = group.turns.number_of
            if in_round is not group or number_of(own.tenant) <= number_of(lane.tenant):
                return False
        head = lane.head
        if head is None or not group.all_could_hold(head):
            return False
        lane.keeps_room = True
        return True

    # who waits for what

    def blocker(self, ticket: Ticket, group: Group, now: float) -> tuple[Owner, float | None] | None:
        """The owner whose own limits keep the call out, whatever pods have; and when its rate opens, if it is that."""
        owners, need, model = ticket.owners, ticket.need, ticket.call.model
        if ticket.moving is None:
            asked = need.tokens
            for owner in owners:
                account = owner.account
                if account.slots_limit is not None and account.slots_held >= account.slots_limit:
                    return owner, None
                requests, tokens = account.requests, account.tokens
                if not (requests.fits(1, now) and tokens.fits(asked, now)):
                    times = (requests.opens_at(1, now), tokens.opens_at(asked, now))
                    return owner, max((time for time in times if time is not None), default=None)
        for owner in owners:
            kinds = group.kinds if owner.by_device is None else group.kinds_by_device
            for host in kinds:
                if owner.lacks_memory(host.weigh(need, model), host, ticket.moving) is None:
                    break
            else:
                if kinds:
                    return owner, None
        return None

    def stand(self, lane: Lane, head: Ticket, group: Group, now: float) -> None:
        """The lane's head cannot run now: the lane goes where it will be thought of."""
        blocker = self.blocker(head, group, now)
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

    def _bequeath_room(self, lane: Lane, ticket: Ticket, groups: Sequence[Group], now: float) -> bool:
        """Whether the next in turn takes over the room kept for `ticket`, which was served, as it can use none of it.

        That is so where it asks no less and may not be passed either, and where room on the pods is all that both
        lack. In a full queue this is the rule, and then a release need not rank anybody.
        """
        group = lane.group
        if (
            group is None
            or len(groups) != 1
            or len(group.neighbours) != 1
            or ticket.not_on
            or ticket.moving is not None
        ):
            return False
        heir = next((other for _, other in group.turns if other is not lane), None)
        if (
            heir is None
            or heir.tenant == lane.tenant
            or group.blocked[heir] + self._queue.settings.bypass_seconds > now
        ):
            return False
        head = heir.head
        assert head is not None
        if not group.needs_no_less(head, ticket):
            return False
        lane.keeps_room = False
        heir.keeps_room = True
        return True

    def new_head(self, lane: Lane, now: float) -> None:
        """The lane has another head than before, or none."""
        self._give_up_room(lane)
        if lane.tickets:
            self._queue.begins(lane, now)
            self._lanes_to_place[lane] = None
        else:
            self._queue.lift(lane)

    def recheck(self, tenant: str, now: float) -> None:
        """The tenant was charged: its lanes that wait for pods may be barred by its own limits now."""
        for lane in self._queue.lanes_of(tenant):
            if lane.group is not None:
                head = lane.head
                assert head is not None
                blocker = self.blocker(head, lane.group, now)
                # Its turn went by, or of some pods its tenant's memory allows it no use any more, or of any.
                self._give_up_room(lane)
                if blocker is not None:
                    self._queue.park(lane, *blocker)

    def take_out(self, ticket: Ticket, now: float) -> None:
        """The ticket leaves the queue undecided, or for a refusal."""
        assert ticket.lane is not None
        was_head = ticket.lane.head is ticket
        lane = self._queue.remove(ticket)
        if ticket.moving is not None:
            self.moving.pop(ticket.moving, None)
        if was_head:
            self.new_head(lane, now)
        if not self._queue.entries:
            self.run(now)  # which forgets what was noted for those who waited

    def refuse(self, ticket: Ticket, refusal: Refusal, now: float) -> None:
        self.take_out(ticket, now)
        self.decided.append(Decided(ticket, Refused(refusal)))

    def regroup(self, now: float) -> None:
        """Pods or limits changed: every lane is stood anew, in its old order, and then all room is dealt out."""
        queue = self._queue
        since = {lane: time for group in self._groups.values() for lane, time in group.blocked.items()}
        in_turn = [lane for _, lane in heapq.merge(*(group.turns for group in self._groups.values()), key=_number)]
        parked = [lane for lane in queue.lanes.values() if lane.group is None]
        self._groups.clear()
        self._is_mixed = False
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
            if order:
                self._groups_to_deal[group] = None

    def _stand_anew(self, lane: Lane, now: float) -> None:
        while (head := lane.head) is not None:
            serving = self._ranking.serving(lane.tenant, lane.model)
            group = self.group(head.call, serving)
            if serving.is_coming or not group.names <= head.not_on:
                self.stand(lane, head, group, now)
                return
            self.refuse(head, reasons.no_pod(head.call).refusal(reasons.POD_COMES_SECONDS), now)

    # dealing it out

    def _offer(self, host: Host, now: float) -> None:
        """Offer one pod to the lanes in turn, until it holds no more or must keep its room."""
        groups = self._groups_on.get(host, ())
        while not host.account.is_full():
            if (lane := self._next_for(host, groups, now)) is None:
                return
            self._grant_head(lane, host, now)

    def _next_for(self, host: Host, groups: Sequence[Group], now: float) -> Lane | None:
        """The first lane in turn whose head the host can hold, unless it must keep its room for one before."""
        bypass = self._queue.settings.bypass_seconds
        first: Lane | None = None
        passed = 0
        barred: list[Lane] = []
        found: Lane | None = None
        for _, lane in _in_turn(groups):
            head, group = lane.head, lane.group
            assert head is not None and group is not None
            bytes_ = host.weigh(head.need, lane.model)
            if not _could_use(head, bytes_, host):
                continue
            if host.fits(bytes_):
                if self.blocker(head, group, now) is None:
                    found = lane
                    break
                barred.append(lane)
                continue
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
            self.stand(lane, lane.head, lane.group, now)
        return found

    def _deal(self, group: Group, now: float) -> None:
        """Room may be anywhere in the group: rank its heads in turn, until one has to wait that may not be passed."""
        while (served := self._first_served(group, now)) is not None:
            self._grant_head(*served, now)

    def _first_served(self, group: Group, now: float) -> tuple[Lane, Host] | None:
        bypass = self._queue.settings.bypass_seconds
        first: Lane | None = None
        least: Ticket | None = None  # of those that fit nowhere
        closed: set[str] = set()  # pods that keep their room for a head that may not be passed
        for passed, (_, lane) in enumerate(list(islice(group.turns, _MOST_PASSED)), start=1):
            head = lane.head
            assert head is not None
            if self.blocker(head, group, now) is not None:
                self.stand(lane, head, group, now)
                continue
            if least is None or not group.needs_no_less(head, least):
                host = self.choose(head, group, now, closed)
                if host is not None:
                    return lane, host
                least = head
            first = first or lane
            if group.blocked[lane] + bypass <= now:
                lane.keeps_room = True
                if group.all_could_hold(head):
                    break
                closed.update(host.name for host in group.hosts if _head_could_use(lane, host))
            if passed == _MOST_PASSED:
                first.keeps_room = True
        return None

    def _serve(self, owner: Owner, now: float) -> None:
        """The owner gave something back: its parked lanes are placed, in order."""
        for lane in list(self._queue.parked_with(owner)):
            head = lane.head
            if lane.owner is owner and head is not None and (head.moving is not None or not owner.account.is_full()):
                self._place(lane, now)
        if self._is_mixed or owner.by_device is not None:  # else pods are all that those in a round lack
            for lane in self._queue.lanes_of(owner.tenant):
                if lane.group is not None and lane.group.is_mixed_for(owner):
                    self._place(lane, now)

    def _place(self, lane: Lane, now: float) -> None:
        """Rank the lane's head like an arrival, and the heads after it, until one must wait."""
        while (head := lane.head) is not None:
            group = self.group(head.call, self._ranking.serving(lane.tenant, lane.model))
            host = None
            if self.blocker(head, group, now) is None:
                host = self.choose(head, group, now)
            if host is None:
                self.stand(lane, head, group, now)
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
            self.owners_freed(ticket.owners)
            del self.moving[lease]
        self.decided.append(Decided(ticket, Admitted(lease, now - ticket.entered_at)))
        groups = self._groups_on.get(host, ())
        if lane.keeps_room and not self._bequeath_room(lane, ticket, groups, now):
            self._give_up_room(lane)
        self._queue.served(lane, groups, now)
        head = lane.head
        if head is None:
            self._queue.lift(lane)
        elif not head.need.is_at_least(ticket.need) or head.not_on != ticket.not_on:
            self._lanes_to_place[lane] = None  # it may fit where the head before it did not
        self.recheck(lane.tenant, now)


def _pop(work: dict[WorkT, None]) -> WorkT:
    item = next(iter(work))
    del work[item]
    return item


def _in_turn(groups: Sequence[Group]) -> Iterator[tuple[int, Lane]]:
    if len(groups) == 1:
        return iter(groups[0].turns)
    return heapq.merge(*(group.turns for group in groups), key=_number)


def _number(turn: tuple[int, Lane]) -> int:
    return turn[0]


def _head_could_use(lane: Lane, host: Host) -> bool:
    head = lane.head
    assert head is not None
    return _could_use(head, host.weigh(head.need, lane.model), host)


def _could_use(head: Ticket, bytes_: int, host: Host) -> bool:
    """Whether only the host's room keeps a head, which would take `bytes_` there, from it."""
    if (head.not_on and host.name in head.not_on) or not host.could_hold(bytes_):
        return False
    for owner in head.owners:  # noqa: SIM110 - a generator costs more than all the rest
        if owner.lacks_memory(bytes_, host, head.moving) is not None:
            return False
    return True
