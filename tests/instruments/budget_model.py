"""A second, slow opinion on admission: what its answers must have charged, as plain lists, summed anew each time.

`BudgetModel` is told every answer in order and shares no arithmetic with the ledger. The checkers below it bear the
numbers of the invariants of the simulation, and each takes the model alone, so that a failure names the promise that
was broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor, inf

from tenancy.admission import Admitted, Answer, Capacity, Decided, Lease, Queued, Refused, Ticket
from tenancy.call import Call
from tenancy.need import Need
from tenancy.policy import Budget, Policy
from tests.instruments.fixed_ranking import FixedRanking

Place = tuple[str, ...]
LaneName = tuple[str, str, str]


@dataclass
class Held:
    """A lease as the model knows it: what it must hold on its pod, and what its tenant and key would pay for it alone.

    They pay once for all leases of a call, what moves left behind among them: for the largest.
    """

    lease: Lease
    on_pod: dict[Place, int]
    owed: dict[Place, int]
    payers: tuple[Place, ...]
    charged: list[tuple[Place, int]] = field(default_factory=list)  # index into the model's token events


@dataclass
class Charge:
    at: float
    amount: int


class BudgetModel:
    """The whole truth about budgets, as sums over lists."""

    def __init__(self, policy: Policy, ranking: FixedRanking) -> None:
        self.policy = policy
        self.ranking = ranking
        self.capacities: dict[str, Capacity | None] = {}
        self.left_out: frozenset[str] = frozenset()
        self.held: list[Held] = []
        self.waiting: list[Ticket] = []  # in the order of arrival; a moved one goes to the front
        self.decided: set[Ticket] = set()
        self.requests: dict[Place, list[Charge]] = {}
        self.tokens: dict[Place, list[Charge]] = {}
        self.over: dict[tuple[Place, str], int] = {}
        self.blocked_since: dict[Ticket, float] = {}
        self.head_since: dict[Ticket, float] = {}
        self.complaints: list[str] = []

    # arithmetic of its own

    def weight(self, pod: str, model: str) -> Fraction | None:
        stated = self.policy.models[model].kv_bytes_per_token
        if stated is not None:
            return Fraction(stated)
        capacity = self.capacities.get(pod)
        if capacity is None or capacity.kv_bytes is None or not capacity.kv_tokens:
            return None
        return Fraction(capacity.kv_bytes, capacity.kv_tokens)

    def size(self, need: Need, pod: str, model: str) -> int:
        weight, capacity = self.weight(pod, model), self.capacities.get(pod)
        if weight is None:
            return 0
        block = 16 if capacity is None else capacity.block_tokens
        if need.sequences == 1:
            blocks = ceil(Fraction(need.prompt_tokens + need.output_tokens, block))
        else:
            blocks = ceil(Fraction(need.prompt_tokens, block))
            blocks += need.sequences * ceil(Fraction(need.output_tokens, block))
        return ceil(blocks * block * weight)

    def pod_limits(self, pod: str) -> tuple[int | None, int | None]:
        capacity = self.capacities.get(pod)
        if capacity is None:
            return None, None
        bytes_ = capacity.kv_bytes
        if bytes_ is None and capacity.kv_tokens is not None:
            weights = [weight for model in self.models_of(pod) if (weight := self.weight(pod, model)) is not None]
            bytes_ = int(capacity.kv_tokens * min(weights)) if weights else None
        return bytes_, capacity.slots

    def models_of(self, pod: str) -> list[str]:
        return [served.name for served in self.policy.pods[pod].models]

    def budgets(self, call: Call) -> list[tuple[Place, Budget, float]]:
        tenant = self.policy.tenants[call.tenant.name]
        ratio = self.policy.profile_of(tenant.profile).overcommit_ratio
        key = next((key for key in tenant.keys if key.name == call.key.name), None)
        found: list[tuple[Place, Budget, float]] = [(("tenant", tenant.name), tenant.budget, ratio)]
        if key is not None and key.budget != Budget():
            found.insert(0, (("key", tenant.name, key.name), key.budget, 1.0))
        return found

    def owner_bytes(self, call: Call, pod: str, bytes_: int) -> dict[Place, int]:
        asked: dict[Place, int] = {}
        for place, budget, _ in self.budgets(call):
            if place[0] == "tenant" and self.policy.pods[pod].owner == call.tenant.name:
                continue
            if budget.memory_by_device is None:
                asked[place] = bytes_
            else:
                devices = self.policy.pods[pod].devices
                for device in devices:
                    asked[(*place, device)] = ceil(Fraction(bytes_, len(devices)))
        return asked

    def memory_limits(self) -> Iterator[tuple[Place, int]]:
        for tenant in self.policy.tenants.values():
            ratio = self.policy.profile_of(tenant.profile).overcommit_ratio
            owners: list[tuple[Place, Budget, float]] = [(("tenant", tenant.name), tenant.budget, ratio)]
            owners += [(("key", tenant.name, key.name), key.budget, 1.0) for key in tenant.keys]
            for place, budget, lent in owners:
                if budget.memory_bytes is not None:
                    yield place, floor(budget.memory_bytes * lent)
                if budget.memory_by_device is not None:
                    devices = {device for pod in self.policy.pods.values() for device in pod.devices}
                    for device in devices | set(budget.memory_by_device):
                        yield (*place, device), floor(budget.memory_by_device.get(device, 0) * lent)
        for pod in self.policy.pods:
            limit = self.pod_limits(pod)[0]
            if limit is not None:
                yield ("pod", pod), limit

    def call_limits(self) -> Iterator[tuple[Place, int]]:
        for tenant in self.policy.tenants.values():
            if tenant.budget.concurrency is not None:
                yield ("tenant", tenant.name), tenant.budget.concurrency
            for key in tenant.keys:
                if key.budget.concurrency is not None:
                    yield ("key", tenant.name, key.name), key.budget.concurrency
        for pod in self.policy.pods:
            slots = self.pod_limits(pod)[1]
            if slots is not None:
                yield ("pod", pod), slots

    def standing(self) -> dict[Place, int]:
        """What running pods themselves hold on their owners' memory and on devices."""
        held: dict[Place, int] = {}
        for name, pod in self.policy.pods.items():
            if self.capacities.get(name) is None or name in self.left_out:
                continue
            for device in pod.devices:
                limit = self.pod_memory(name, device)
                known = self.policy.devices.get(device)
                place: Place = ("device", device)
                held[place] = held.get(place, 0) + limit + (known.overhead_bytes if known else 0)
                if pod.owner is not None and pod.owner in self.policy.tenants:
                    by_device = self.policy.tenants[pod.owner].budget.memory_by_device is not None
                    place = ("tenant", pod.owner, device) if by_device else ("tenant", pod.owner)
                    held[place] = held.get(place, 0) + limit
        return held

    def pod_memory(self, name: str, device: str) -> int:
        pod = self.policy.pods[name]
        profile = self.policy.profile_of(pod.profile)
        known = self.policy.devices.get(device)
        if not profile.gpu_share and known is not None and known.memory_bytes is not None:
            return known.memory_bytes - known.overhead_bytes
        limit = pod.mps.memory_bytes or pod.memory_bytes or 0
        return limit if profile.max_memory_bytes is None else min(limit, profile.max_memory_bytes)

    def bytes_held(self) -> dict[Place, int]:
        total = dict(self.standing())
        for held in self.held:
            for place, bytes_ in held.on_pod.items():
                total[place] = total.get(place, 0) + bytes_
        for parts in self.by_call():
            for place, bytes_ in largest(parts).items():
                total[place] = total.get(place, 0) + bytes_
        return total

    def calls_held(self) -> dict[Place, int]:
        total: dict[Place, int] = {}
        for held in self.held:
            for place in held.on_pod:
                total[place] = total.get(place, 0) + 1
        for parts in self.by_call():
            for place in parts[0].payers:
                total[place] = total.get(place, 0) + 1
        return total

    def by_call(self) -> Iterator[list[Held]]:
        calls: dict[str, list[Held]] = {}
        for held in self.held:
            calls.setdefault(held.lease.call.id, []).append(held)
        yield from calls.values()

    # what happened

    def answered(self, call: Call, answer: Answer, now: float) -> None:
        if isinstance(answer, Admitted):
            if lane_of(call) in self.heads():
                self.complaints.append("7: an arrival was admitted before those who wait in its lane")
            self.granted(answer.lease, now)
        elif isinstance(answer, Queued):
            tenant = self.policy.tenants[call.tenant.name]
            patience = tenant.queue_timeout_seconds or self.policy.queue.timeout_seconds
            latest = min(call.arrived_at + min(patience, self.policy.queue.timeout_seconds), call.deadline_at or inf)
            if answer.ticket.deadline_at > latest:
                self.complaints.append(f"10: an entry may wait until {answer.ticket.deadline_at}, not {latest}")
            self.waiting.append(answer.ticket)

    def told(self, decided: Sequence[Decided], now: float) -> None:
        for one in decided:
            if one.ticket in self.decided:
                self.complaints.append("10: an entry was decided twice")
            if one.ticket not in self.waiting:
                self.complaints.append("10: an entry that does not wait was decided")
                continue
            self.decided.add(one.ticket)
            first = self.heads()[lane_of(one.ticket.call)]
            self.waiting.remove(one.ticket)
            if isinstance(one.answer, Admitted):
                if one.ticket is not first:
                    self.complaints.append("7: an entry was admitted before its lane's head")
                if one.ticket.deadline_at <= now:
                    self.complaints.append("10: an entry was admitted at or after its deadline")
                if one.ticket.moving is None:
                    self.granted(one.answer.lease, now)
                else:
                    self.put_on(one.answer.lease)

    def granted(self, lease: Lease, now: float) -> None:
        call = lease.call
        bytes_ = self.size(lease.need, lease.pod, call.model)
        payers = tuple(place for place, _, _ in self.budgets(call))
        held = Held(lease, {("pod", lease.pod): bytes_}, self.owner_bytes(call, lease.pod, bytes_), payers)
        for place, budget, _ in self.budgets(call):
            self.requests.setdefault(place, []).append(Charge(now, 1))
            tokens = self.tokens.setdefault(place, [])
            held.charged.append((place, len(tokens)))
            tokens.append(Charge(now, lease.need.prompt_tokens + lease.need.sequences * lease.need.output_tokens))
            self.check_rate(place, self.requests[place], budget.requests_per_minute, now)
            self.check_rate(place, tokens, budget.tokens_per_minute, now)
        self.held.append(held)

    def check_rate(self, place: Place, charges: list[Charge], limit: int | None, now: float) -> None:
        used = sum(charge.amount for charge in charges if charge.at >= now - 60.0)
        if limit is not None and used > limit:
            self.complaints.append(f"1: {place} was charged {used} within 60 s, and has {limit}")

    def counted(self, call: Call, now: float) -> None:
        for place, budget, _ in self.budgets(call):
            self.requests.setdefault(place, []).append(Charge(now, 1))
            self.check_rate(place, self.requests[place], budget.requests_per_minute, now)

    def of(self, lease: Lease) -> Held:
        return next(held for held in self.held if held.lease is lease)

    def parts_of(self, lease: Lease) -> list[Held]:
        """The lease and what its moves have left behind and is not let go."""
        return [held for held in self.held if held.lease.call is lease.call]

    def taken_off(self, lease: Lease) -> None:
        held = self.of(lease)
        if lease.left_behind is not None:
            self.held.append(Held(lease.left_behind, held.on_pod, held.owed, held.payers))
        held.on_pod = {}

    def put_on(self, lease: Lease) -> None:
        held = self.of(lease)
        bytes_ = self.size(lease.need, lease.pod, lease.call.model)
        held.owed = self.owner_bytes(lease.call, lease.pod, bytes_)
        held.on_pod = {("pod", lease.pod): bytes_}

    def booked(self, lease: Lease, tokens: int, now: float) -> None:
        """Corrections count while the bucket of the admission does."""
        for place, index in self.of(lease).charged:
            charge = self.tokens[place][index]
            if floor(charge.at * 10) > floor(now * 10) - 601:
                charge.amount = tokens

    def released(self, lease: Lease) -> None:
        self.held.remove(self.of(lease))

    # who waits for what

    def heads(self) -> dict[LaneName, Ticket]:
        found: dict[LaneName, Ticket] = {}
        for ticket in self.waiting:
            found.setdefault(lane_of(ticket.call), ticket)
        return found

    def is_barred(self, ticket: Ticket, pods: Sequence[str], now: float) -> bool:
        """Whether its own tenant or key keeps the ticket out, on every one of `pods`."""
        calls = self.calls_held()
        need = ticket.need
        if ticket.moving is None:
            for place, budget, _ in self.budgets(ticket.call):
                if budget.concurrency is not None and calls.get(place, 0) >= budget.concurrency:
                    return True
                requests = in_window(self.requests.get(place, ()), now) + 1
                tokens = in_window(self.tokens.get(place, ()), now)
                tokens += need.prompt_tokens + need.sequences * need.output_tokens
                if budget.requests_per_minute is not None and requests > budget.requests_per_minute:
                    return True
                if budget.tokens_per_minute is not None and tokens > budget.tokens_per_minute:
                    return True
        return bool(pods) and not any(self.allows(ticket, pod) for pod in pods)

    def allows(self, ticket: Ticket, pod: str) -> bool:
        """Whether tenant's and key's memory allow the ticket on `pod`."""
        held = self.bytes_held()
        own = {} if ticket.moving is None else largest(self.parts_of(ticket.moving))
        bytes_ = self.size(ticket.need, pod, ticket.call.model)
        limits = dict(self.memory_limits())
        asked = self.owner_bytes(ticket.call, pod, bytes_)
        return all(
            place not in limits or held.get(place, 0) - own.get(place, 0) + more <= limits[place]
            for place, more in asked.items()
        )

    def has_room(self, ticket: Ticket, pod: str) -> bool:
        bytes_, slots = self.pod_limits(pod)
        size = self.size(ticket.need, pod, ticket.call.model)
        place: Place = ("pod", pod)
        fits = bytes_ is None or self.bytes_held().get(place, 0) + size <= bytes_
        return fits and (slots is None or self.calls_held().get(place, 0) < slots)

    def could_use(self, ticket: Ticket, pod: str) -> bool:
        bytes_, slots = self.pod_limits(pod)
        size = self.size(ticket.need, pod, ticket.call.model)
        return pod in self.pods_for(ticket) and (bytes_ is None or size <= bytes_) and slots != 0

    def pods_for(self, ticket: Ticket) -> list[str]:
        ready = self.ranking.serving(ticket.call.tenant.name, ticket.call.model).ready
        running = (pod for pod in ready if self.capacities.get(pod) is not None and pod not in self.left_out)
        return [pod for pod in running if pod not in ticket.not_on]

    def note_blocked(self, now: float) -> None:
        """Remember since when each head has been waiting for pods without a break."""
        blocked: dict[Ticket, float] = {}
        heads: dict[Ticket, float] = {}
        for ticket in self.heads().values():
            heads[ticket] = self.head_since.get(ticket, now)
            if not self.is_barred(ticket, self.pods_for(ticket), now):
                blocked[ticket] = self.blocked_since.get(ticket, now)
        self.blocked_since, self.head_since = blocked, heads


def largest(parts: Sequence[Held]) -> dict[Place, int]:
    """What tenant and key pay for the parts of one call."""
    places = dict.fromkeys(place for part in parts for place in part.owed)
    return {place: max(part.owed.get(place, 0) for part in parts) for place in places}


def lane_of(call: Call) -> LaneName:
    return call.tenant.name, call.model, call.key.name


def in_window(charges: Sequence[Charge] | tuple[()], now: float) -> int:
    """What 100-ms buckets still count: the current one and the 600 before."""
    return sum(charge.amount for charge in charges if floor(charge.at * 10) >= floor(now * 10) - 600)


def check_1_no_account_holds_more_than_its_limit(model: BudgetModel) -> None:
    """Limits may fall below what is held (a pod comes back smaller, a new policy): then nothing more comes on top."""
    held, calls = model.bytes_held(), model.calls_held()
    found = [((place, "bytes"), held.get(place, 0), limit) for place, limit in model.memory_limits()]
    found += [((place, "calls"), calls.get(place, 0), limit) for place, limit in model.call_limits()]
    for device in model.policy.devices.values():
        if device.memory_bytes is not None:
            place = ("device", device.name)
            found.append(((place, "bytes"), held.get(place, 0), device.memory_bytes))
    for what, used, limit in found:
        ceiling = max(limit, model.over.get(what, 0))
        assert used <= ceiling, f"invariant 1: {what} holds {used} of {limit}"
        model.over[what] = used if used > limit else 0


def limits_are_about_to_change(model: BudgetModel) -> dict[tuple[Place, str], int]:
    """What is held now, to be excused after the change if it is over the new limits."""
    excused = {(place, "bytes"): used for place, used in model.bytes_held().items()}
    return excused | {(place, "calls"): used for place, used in model.calls_held().items()}


def check_told(model: BudgetModel) -> None:
    """Invariants 1 (rates), 7 and 10 as far as single answers can break them."""
    assert not model.complaints, model.complaints


def check_2_what_is_held_is_what_leases_hold(model: BudgetModel, shown: Mapping[Place, tuple[int, int]]) -> None:
    """Nothing leaks and nothing is released twice: the ledger's sums are those of the live leases."""
    held, calls = model.bytes_held(), model.calls_held()
    for place, (bytes_, slots) in shown.items():
        by_device = sum(held.get(part, 0) for part in held if part[: len(place)] == place)
        assert bytes_ == by_device, f"invariant 2: {place} shows {bytes_} bytes, leases hold {by_device}"
        assert slots == calls.get(place, 0), f"invariant 2: {place} shows {slots} calls, not {calls.get(place, 0)}"


def check_4_a_refusal_charged_nothing(answer: Answer, before: object, after: object) -> None:
    if isinstance(answer, Refused):
        assert before == after, f"invariant 4: refused with {answer.refusal.code}, and changed {before} to {after}"


def check_5_tokens_booked_are_tokens_reported(model: BudgetModel, shown: Mapping[Place, int], now: float) -> None:
    """`shown`: tokens remaining, of tenants and keys that have a limit."""
    for tenant in model.policy.tenants.values():
        for place, budget in [(("tenant", tenant.name), tenant.budget)] + [
            (("key", tenant.name, key.name), key.budget) for key in tenant.keys
        ]:
            if budget.tokens_per_minute is not None and place in shown:
                left = max(0, budget.tokens_per_minute - in_window(model.tokens.get(place, ()), now))
                assert shown[place] == left, f"invariant 5: {place} shows {shown[place]} tokens left, not {left}"


def check_10_nobody_waits_past_the_deadline(model: BudgetModel, now: float) -> None:
    for ticket in model.waiting:
        assert ticket.is_waiting, "invariant 10: a ticket left the queue and nobody was told"
        assert ticket.deadline_at > now, f"invariant 10: due at {ticket.deadline_at}, still waiting at {now}"


def check_11_no_room_is_idle_beside_an_eligible_head(model: BudgetModel, now: float) -> None:
    """Excused: room that is kept for another head which has been waiting for longer than `bypass`."""
    bypass = model.policy.queue.bypass_seconds
    heads = model.heads().values()
    for ticket in heads:
        pods = model.pods_for(ticket)
        if model.is_barred(ticket, pods, now):
            continue
        for pod in pods:
            if not (model.has_room(ticket, pod) and model.allows(ticket, pod)):
                continue
            keeper = any(
                other is not ticket
                and now - model.head_since.get(other, now) >= bypass
                and model.could_use(other, pod)
                and not model.has_room(other, pod)
                for other in heads
            )
            assert keeper, f"invariant 11: {pod} has room for {lane_of(ticket.call)}, which waits"


def check_11_nobody_passes_a_head_past_bypass(model: BudgetModel, lease: Lease, now: float) -> None:
    """An arrival that was admitted at once: no head had been waiting for its pod for longer than `bypass`."""
    for ticket, since in model.blocked_since.items():
        passed = now - since > model.policy.queue.bypass_seconds and model.could_use(ticket, lease.pod)
        passed = passed and model.allows(ticket, lease.pod)
        assert not passed, f"invariant 11: {lane_of(ticket.call)} has waited since {since} and was passed"
