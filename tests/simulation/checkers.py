"""The invariants, one class each, by their numbers; each looks at one history while it runs, and says what it saw.

A checker is told what happens (`Checker`'s methods, all optional) and complains to `Complaints`; the loop stops at
the first complaint. What it goes by is what was seen at the pods, at the clients and in admission's public states
and answers, never the ledger's insides.

1 budgets, in the books and at the pods · 2 what runs is held · 3 quiet means nothing is left · 4 a refusal charges
nothing 5 settled is what was reported · 7 order inside a lane · 10 nobody waits past the deadline · 11 no room is
idle beside a head 16 one end, whole events, at most `max_tokens` (15) · 18 a left call ends at once · 19 buffers
are bounded · 20 a draining pod gets nothing new
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from backends.wire.transfer import HELD_BYTES_MAX
from tenancy.accounts import Lease
from tenancy.admission import Admission, Admitted, Answer, Decided, Queued, Refused, Ticket
from tenancy.call import Call, Usage
from tenancy.policy import Policy
from tests.simulation.clients import HIGH_WATER, Visit, heard
from tests.simulation.model_pod import BLOCK_TOKENS, ModelPod, Work

LEAVING_SECONDS = 0.05
"""What a call that was left may take to be gone from the gateway and from the wire."""


@dataclass
class Complaints:
    """What was found wrong, first things first."""

    clock: Callable[[], float]
    found: list[str] = field(default_factory=list)

    def __call__(self, number: str, text: str) -> None:
        self.found.append(f"invariant {number}, at {self.clock():.4f}: {text}")


@dataclass
class Scene:
    """What checkers may look at."""

    policy: Policy
    admission: Admission
    pods: dict[str, ModelPod]
    serving: Callable[[str, str], tuple[str, ...]]
    clock: Callable[[], float]
    complain: Complaints
    leases: dict[Lease, None] = field(default_factory=dict)
    """Held, by what admission answered: granted and neither settled nor let go."""
    changes: int = 0
    """Rises with every verb of admission, and with everything that comes to a pod or goes."""
    waiting: dict[Ticket, None] = field(default_factory=dict)
    """In the queue, by what admission answered, in the order of coming."""

    def at_pods(self) -> list[tuple[ModelPod, Work]]:
        """All requests at all pods, and what a pod goes on with although its call has left it."""
        return [(pod, work) for pod in self.pods.values() for work in pod.work]


class Checker:
    """What a history tells; a checker overrides what it has to know."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.complain = scene.complain

    def look(self) -> None:
        """A turn of the loop is over, in which something changed; every few turns also where nothing did."""

    def asked(self, call: Call, answer: Answer, before: object, after: object) -> None:
        """Admission answered an arrival; `before` and `after` are its public state then."""

    def granted(self, lease: Lease, ticket: Ticket | None) -> None:
        """A call was admitted, from the queue where there is a ticket."""

    def decided(self, ticket: Ticket, answer: Admitted | Refused) -> None:
        """A ticket's wait is over; it is in `scene.waiting` until this returns."""

    def settled(self, lease: Lease, usage: Usage | None) -> None:
        """A lease was settled."""

    def arrived(self, pod: ModelPod, work: Work) -> None:
        """A request is at a pod."""

    def reported(self, work: Work, usage: Usage) -> None:
        """A pod told a request's usage, in the last event or the whole answer that it sent."""

    def left(self, visit: Visit) -> None:
        """A client has left, `LEAVING_SECONDS` ago."""

    def ended(self, visit: Visit) -> None:
        """An exchange has returned."""


class Budgets(Checker):
    """1: what is held is never more than any limit, in the books after each turn, and at the pods at each arrival."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._calls: Counter[str] = Counter()
        self._requests: dict[str, list[float]] = {}

    def look(self) -> None:
        for name in self.scene.policy.tenants:
            state = self.scene.admission.tenant_state(name)
            if state.concurrency_limit is not None and state.concurrency_held > state.concurrency_limit:
                self.complain("1", f"{name} holds {state.concurrency_held} of {state.concurrency_limit} calls")
            if state.memory_limit is not None and state.memory_reserved > state.memory_limit:
                self.complain("1", f"{name} holds {state.memory_reserved} of {state.memory_limit} bytes")
        for name in self.scene.policy.pods:
            pod = self.scene.admission.pod_state(name)
            if pod.slots is not None and pod.calls > pod.slots:
                self.complain("1", f"{name} holds {pod.calls} of {pod.slots} calls")
            if pod.kv_capacity is not None and pod.kv_reserved > pod.kv_capacity:
                self.complain("1", f"{name} holds {pod.kv_reserved} of {pod.kv_capacity} bytes")

    def arrived(self, pod: ModelPod, work: Work) -> None:
        tenant = self.scene.policy.tenants[work.tenant]
        budget = tenant.budget
        here = self._at_pods(work.tenant)
        if budget.concurrency is not None and len(here) > budget.concurrency:
            self.complain("1", f"{len(here)} calls of {tenant.name} are at the pods, {budget.concurrency} allowed")
        key = key_of(work.id)
        limit = next((known.budget.concurrency for known in tenant.keys if known.name == key), None)
        of_key = sum(key_of(one.id) == key for _, one in here)
        if limit is not None and of_key > limit:
            self.complain("1", f"{of_key} calls of the key {tenant.name}/{key} are at the pods, {limit} allowed")
        if budget.memory_bytes is not None:
            ratio = self.scene.policy.profile_of(tenant.profile).overcommit_ratio
            shared = sum(other.held_bytes(one) for other, one in here if not self._is_own(other, tenant.name))
            if shared > budget.memory_bytes * ratio:
                self.complain(
                    "1", f"{shared} bytes of {tenant.name} are at the pods, of {budget.memory_bytes} × {ratio}"
                )
        on_pod = [one for other, one in self.scene.at_pods() if other is pod]
        if len(on_pod) > pod.size.slots or sum(one.blocks for one in on_pod) > pod.size.blocks:
            self.complain("1", f"{pod.name} has {len(on_pod)} calls and is asked for more than it holds")
        self._rate(work, budget.requests_per_minute)

    def _rate(self, work: Work, limit: int | None) -> None:
        """A call counts once, at its first arrival; what the way takes may bring two of them a little closer."""
        if limit is not None and self._calls[work.id] == 0:
            times = self._requests.setdefault(work.tenant, [])
            times.append(self.scene.clock())
            recent = sum(time > times[-1] - 59.0 for time in times)
            if recent > limit:
                self.complain("1", f"{recent} requests of {work.tenant} came in 59 s, {limit} a minute allowed")
        self._calls[work.id] += 1

    def _at_pods(self, tenant: str) -> list[tuple[ModelPod, Work]]:
        """What the tenant has at all pods. A call that moved on from a pod that may still run it is charged to both
        pods, and once to its tenant and key.
        """
        here = [(pod, work) for pod, work in self.scene.at_pods() if work.tenant == tenant]
        return list({work.id: (pod, work) for pod, work in here}.values())

    def _is_own(self, pod: ModelPod, tenant: str) -> bool:
        return self.scene.policy.pods[pod.name].owner == tenant


class Held(Checker):
    """2: a lease is released once, and not before its pod has let go: what is at a pod is held in the books."""

    def look(self) -> None:
        admission = self.scene.admission
        on: dict[str, list[Work]] = {}
        for pod, work in self.scene.at_pods():
            on.setdefault(pod.name, []).append(work)
        for name, works in on.items():
            state = admission.pod_state(name)
            if len(works) > state.calls:
                ids = [work.id for work in works]
                self.complain("2", f"{name} runs {len(works)} calls, and {state.calls} are held there: {ids}")
            held = sum(self.scene.pods[name].held_bytes(work) for work in works)
            if state.kv_capacity is not None and held > state.kv_reserved:
                self.complain("2", f"{name} runs calls of {held} bytes, and {state.kv_reserved} are held there")
        tenants = {work.id: work.tenant for works in on.values() for work in works}
        for tenant, calls in Counter(tenants.values()).items():
            state_of = admission.tenant_state(tenant)
            if calls > state_of.concurrency_held:
                self.complain("2", f"{calls} calls of {tenant} run, and {state_of.concurrency_held} are held")

    def granted(self, lease: Lease, ticket: Ticket | None) -> None:
        moving = ticket is not None and ticket.moving is lease
        if moving != (lease in self.scene.leases):
            self.complain("2", f"{lease!r} was granted twice, or moved without being held")


class Quiet(Checker):
    """3: when all clients are gone and all pods idle, nothing of a call is left. Called at the end."""

    def check(self, leftovers: dict[str, object]) -> None:
        admission = self.scene.admission
        for name in self.scene.policy.tenants:
            tenant = admission.tenant_state(name)
            if tenant.concurrency_held or tenant.queued:
                self.complain("3", f"{name} still holds {tenant.concurrency_held} calls and waits with {tenant.queued}")
        for name in self.scene.policy.pods:
            pod = admission.pod_state(name)
            if pod.calls or pod.kv_reserved or pod.closing:
                self.complain(
                    "3", f"{name} still holds {pod.calls} calls, {pod.kv_reserved} bytes, {pod.closing} closing"
                )
        if self.scene.leases or self.scene.waiting:
            self.complain("3", f"still held {list(self.scene.leases)}, still waiting {len(self.scene.waiting)}")
        for what, left in leftovers.items():
            if left:
                self.complain("3", f"{what} left: {left}")


class FreeRefusals(Checker):
    """4: a refusal changes no account."""

    def asked(self, call: Call, answer: Answer, before: object, after: object) -> None:
        if isinstance(answer, Refused) and before != after:
            self.complain("4", f"{call.id} was refused ({answer.refusal.code.value}): {before} became {after}")


class Settled(Checker):
    """5: what was booked for a call that a client has whole is what its pod reported, and the rates show it."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._reported: dict[str, Usage] = {}
        self._booked: dict[str, Usage | None] = {}
        self._charges: list[tuple[str, int, int]] = []
        """tenant, bucket of the grant, tokens that were booked"""

    def reported(self, work: Work, usage: Usage) -> None:
        self._reported[work.id] = usage

    def settled(self, lease: Lease, usage: Usage | None) -> None:
        self._booked[lease.call.id] = usage
        tokens = lease.need.tokens if usage is None else usage.total_tokens
        self._charges.append((lease.call.tenant.name, int(lease.granted_at * 10), tokens))

    def ended(self, visit: Visit) -> None:
        call = visit.call
        answer = heard(bytes(visit.transport.written))
        finished = answer.is_whole and answer.status == 200 and not any(b'"error"' in event for event in answer.events)
        if visit.left_at is None and finished:
            told, booked = self._reported.get(call.id), self._booked.get(call.id)
            if told != booked:
                self.complain("5", f"{call.id} used {told} by its pod's report, and {booked} was booked")

    def check(self) -> None:
        """At the end, while nothing is held."""
        now = int(self.scene.clock() * 10)
        for tenant in self.scene.policy.tenants.values():
            limit = tenant.budget.tokens_per_minute
            if limit is not None:
                used = sum(tokens for name, at, tokens in self._charges if name == tenant.name and at > now - 601)
                left = self.scene.admission.remaining(tenant.name, tenant.keys[0], self.scene.clock()).remaining_tokens
                if left != max(0, limit - used):
                    self.complain("5", f"{tenant.name} has {left} tokens left, of {limit} with {used} used")


class Order(Checker):
    """7: first come, first served, within a lane."""

    def decided(self, ticket: Ticket, answer: Admitted | Refused) -> None:
        if isinstance(answer, Admitted):
            self._first(ticket.call, ticket)

    def asked(self, call: Call, answer: Answer, before: object, after: object) -> None:
        if isinstance(answer, Admitted):
            self._first(call, None)

    def _first(self, call: Call, ticket: Ticket | None) -> None:
        lane = lane_of(call)
        for other in self.scene.waiting:
            if other is ticket:
                return
            is_before = lane_of(other.call) == lane and other.moving is None
            if is_before and (ticket is None or ticket.moving is None):
                self.complain("7", f"{call.id} was admitted before {other.call.id}, which came first")
                return


class Deadlines(Checker):
    """10: an entry is decided once, and at its deadline at the latest."""

    def look(self) -> None:
        now = self.scene.clock()
        for ticket in self.scene.waiting:
            if ticket.deadline_at < now - 1e-6:
                self.complain("10", f"{ticket.call.id} still waits, its deadline was {ticket.deadline_at:.4f}")

    def decided(self, ticket: Ticket, answer: Admitted | Refused) -> None:
        if ticket not in self.scene.waiting:
            self.complain("10", f"{ticket.call.id} was decided, and did not wait")
        if isinstance(answer, Admitted) and ticket.deadline_at < self.scene.clock() - 1e-6:
            self.complain("10", f"{ticket.call.id} was admitted after its deadline")


class NoIdleRoom(Checker):
    """11: a head that its own budget allows, and a ready pod has room for, does not wait, unless the room is kept.

    Rooms are kept for heads that have been waiting for longer than `bypass`; since when a head has been one is not
    public, so every entry that came so long ago counts. Budgets of keys are counted here; bytes of one pod that a
    tenant pays whole are not.
    """

    def look(self) -> None:
        heads: dict[tuple[str, str, str], Ticket] = {}
        for ticket in self.scene.waiting:
            known = heads.get(lane_of(ticket.call))
            if known is None or (ticket.moving is not None and known.moving is None):
                heads[lane_of(ticket.call)] = ticket
        if not heads:
            return
        keepers = [ticket for ticket in self.scene.waiting if self._is_old(ticket)]
        for ticket in heads.values():
            if ticket.moving is None and not self._is_barred(ticket):
                for name in self.scene.serving(ticket.call.tenant.name, ticket.call.model):
                    if self._fits(ticket, name) and not any(
                        self._could_use(keeper, name, ticket) for keeper in keepers
                    ):
                        self.complain("11", f"{name} has room for {ticket.call.id}, which waits")

    def _is_old(self, ticket: Ticket) -> bool:
        return ticket.entered_at + self.scene.policy.queue.bypass_seconds <= self.scene.clock() + 1e-6

    def _is_barred(self, ticket: Ticket) -> bool:
        call, now = ticket.call, self.scene.clock()
        state = self.scene.admission.tenant_state(call.tenant.name)
        if state.concurrency_limit is not None and state.concurrency_held >= state.concurrency_limit:
            return True
        limit = call.key.budget.concurrency
        of_key = sum((lease.call.tenant.name, lease.call.key.name) == lane_of(call)[::2] for lease in self.scene.leases)
        if limit is not None and of_key >= limit:
            return True
        rates = self.scene.admission.remaining(call.tenant.name, call.key, now)
        if rates.remaining_requests is not None and rates.remaining_requests < 1:
            return True
        return rates.remaining_tokens is not None and rates.remaining_tokens < ticket.need.tokens

    def _fits(self, ticket: Ticket, name: str) -> bool:
        pod = self.scene.admission.pod_state(name)
        bytes_ = self._bytes(ticket, name)
        tenant = self.scene.admission.tenant_state(ticket.call.tenant.name)
        is_own = self.scene.policy.pods[name].owner == ticket.call.tenant.name
        allows = is_own or tenant.memory_limit is None or tenant.memory_reserved + bytes_ <= tenant.memory_limit
        has_bytes = pod.kv_capacity is None or pod.kv_reserved + bytes_ <= pod.kv_capacity
        has_slot = pod.slots is None or pod.calls < pod.slots
        return allows and has_bytes and has_slot and name not in self.scene.admission.left_out()

    def _could_use(self, keeper: Ticket, name: str, ticket: Ticket) -> bool:
        serves = name in self.scene.serving(keeper.call.tenant.name, keeper.call.model)
        return serves and keeper is not ticket and name not in keeper.not_on

    def _bytes(self, ticket: Ticket, name: str) -> int:
        need = ticket.need
        if need.sequences == 1:
            blocks = -(-(need.prompt_tokens + need.output_tokens) // BLOCK_TOKENS)
        else:
            blocks = -(-need.prompt_tokens // BLOCK_TOKENS) - (-need.output_tokens // BLOCK_TOKENS) * need.sequences
        return blocks * BLOCK_TOKENS * self.scene.pods[name].size.bytes_a_token


class OneEnd(Checker):
    """16 (and 15): a stream has one end and nothing after it, whole events in order, and no more tokens than were
    asked for.
    """

    def ended(self, visit: Visit) -> None:
        answer = heard(bytes(visit.transport.written))
        name = visit.call.id
        if answer.fault:
            self.complain("16", f"{name} got what is no answer: {answer.fault}")
        if not answer.is_stream:
            if visit.left_at is None and not answer.is_whole:
                self.complain("16", f"{name} got no whole answer: {answer}")
            return
        tokens, ends = [], []
        for number, event in enumerate(answer.events):
            if event.startswith(b'data: {"error"') or event == b"data: [DONE]":
                ends.append((number, event))
            elif not event.startswith(b"data: "):
                self.complain("16", f"{name} got an event without data: {event!r}")
            else:
                choices = msgspec.json.decode(event[6:]).get("choices") or [{}]
                text = choices[0].get("delta", {}).get("content")
                if text is not None:
                    tokens.append(text)
                elif choices[0].get("finish_reason"):
                    ends.append((number, b"finish"))
        if tokens != [f"<{number}>" for number in range(len(tokens))]:
            self.complain("16", f"{name} got tokens out of order: {tokens}")
        if visit.call.output_tokens is not None and len(tokens) > visit.call.output_tokens:
            self.complain("15", f"{name} got {len(tokens)} tokens, and asked for {visit.call.output_tokens}")
        said = [event for _, event in ends]
        is_one = len([event for event in said if event != b"finish"]) == 1 or said == [b"finish"]
        last_at = len(answer.events) - 1
        is_last = bool(ends) and (ends[-1][0] == last_at or b'"usage"' in answer.events[last_at])
        if visit.left_at is None and not (answer.is_whole and is_one and is_last):
            self.complain(
                "16", f"{name} has no one end: {said}, of {len(answer.events)} events, whole: {answer.is_whole}"
            )


class GoneIsGone(Checker):
    """18: soon after a client left, its exchange is over, its pod has heard of it, and nothing is asked for it any
    more.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._left: dict[str, float] = {}

    def left(self, visit: Visit) -> None:
        call = visit.call
        self._left[call.id] = self.scene.clock()
        if visit.task is not None and not visit.task.done():
            self.complain("18", f"{call.id} left, and its exchange goes on")
        if any(lease.call is call and not lease.is_settled for lease in self.scene.leases):
            self.complain("18", f"{call.id} left, and its lease is not settled")
        for pod in self.scene.pods.values():
            for work in pod.work:
                if work.id == call.id and work.served is not None:
                    self.complain("18", f"{call.id} left, and {pod.name} still has its connection")

    def arrived(self, pod: ModelPod, work: Work) -> None:
        if work.id in self._left:
            self.complain("18", f"{work.id} left, and then came to {pod.name}")

    def settled(self, lease: Lease, usage: Usage | None) -> None:
        if lease.call.id in self._left:
            self.complain("18", f"{lease.call.id} left, and was charged later")


class Bounded(Checker):
    """19: what waits for a slow client is bounded; and nothing is written to one that is gone."""

    def ended(self, visit: Visit) -> None:
        if visit.transport.most_waiting > HIGH_WATER + HELD_BYTES_MAX + 4096:
            self.complain("19", f"{visit.transport.most_waiting} bytes waited for {visit.call.id}")
        if visit.transport.late_writes:
            self.complain("19", f"{visit.transport.late_writes} writes to {visit.call.id}, which was gone")


class Drained(Checker):
    """20: a pod that drains gets nothing new."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._drained: dict[str, float] = {}

    def drains(self, pod: str) -> None:
        """From now on."""
        self._drained.setdefault(pod, self.scene.clock())

    def granted(self, lease: Lease, ticket: Ticket | None) -> None:
        if lease.pod in self._drained:
            self.complain("20", f"{lease!r} was granted on a pod that drains since {self._drained[lease.pod]:.3f}")


ALL: tuple[type[Checker], ...] = (
    Budgets,
    Held,
    Quiet,
    FreeRefusals,
    Settled,
    Order,
    Deadlines,
    NoIdleRoom,
    OneEnd,
    GoneIsGone,
    Bounded,
    Drained,
)


class WatchedAdmission(Admission):
    """The production admission; what it is asked and answers is told to checkers."""

    checkers: list[Checker]
    scene: Scene

    def watch(self, scene: Scene, checkers: list[Checker]) -> None:
        self.scene = scene
        self.checkers = checkers
        self._caused: list[Decided] = []

    def admit(self, call: Call, now: float) -> Answer:
        self.scene.changes += 1
        before = self._shown()
        answer = super().admit(call, now)
        self._caused = self._tell(super().caused())
        caused = bool(self._caused)
        self._answered(call, answer)
        for checker in self.checkers:
            checker.asked(call, answer, before, before if caused else self._shown())
        return answer

    def move(self, lease: Lease, not_on: frozenset[str], now: float, *, let_go: bool) -> Answer:
        self.scene.changes += 1
        answer = super().move(lease, not_on, now, let_go=let_go)
        if isinstance(answer, Queued):
            self.scene.waiting[answer.ticket] = None
        return answer

    def settle(self, lease: Lease, usage: Usage | None, now: float, *, let_go: bool = True) -> list[Decided]:
        for checker in self.checkers:
            checker.settled(lease, usage)
        for ticket in [ticket for ticket in self.scene.waiting if ticket.moving is lease]:
            del self.scene.waiting[ticket]
        decided = super().settle(lease, usage, now, let_go=let_go)
        self._forget_released()
        return decided

    def let_go(self, leases: Sequence[Lease], now: float) -> list[Decided]:
        decided = super().let_go(leases, now)
        self._forget_released()
        return decided

    def _forget_released(self) -> None:
        for lease in [lease for lease in self.scene.leases if lease.is_settled and not is_held(lease)]:
            del self.scene.leases[lease]

    def leave(self, ticket: Ticket, now: float) -> list[Decided]:
        self.scene.waiting.pop(ticket, None)
        return super().leave(ticket, now)

    def caused(self) -> list[Decided]:
        self.scene.changes += 1  # every verb but `admit` and `move` ends with this
        caused, self._caused = self._caused, []
        return [*caused, *self._tell(super().caused())]

    def _tell(self, decided: list[Decided]) -> list[Decided]:
        for one in decided:
            for checker in self.checkers:
                checker.decided(one.ticket, one.answer)
            if isinstance(one.answer, Admitted):
                self._granted(one.answer.lease, one.ticket)
            self.scene.waiting.pop(one.ticket, None)
        return decided

    def _answered(self, call: Call, answer: Answer) -> None:
        if isinstance(answer, Queued):
            self.scene.waiting[answer.ticket] = None
        elif isinstance(answer, Admitted):
            self._granted(answer.lease, None)

    def _granted(self, lease: Lease, ticket: Ticket | None) -> None:
        for checker in self.checkers:
            checker.granted(lease, ticket)
        self.scene.leases[lease] = None

    def _shown(self) -> object:
        now = self.scene.clock()
        policy = self.scene.policy
        tenants = [self.tenant_state(name) for name in policy.tenants]
        pods = [self.pod_state(name) for name in policy.pods]
        rates = [self.remaining(tenant.name, key, now) for tenant in policy.tenants.values() for key in tenant.keys]
        return tenants, pods, rates


def is_held(lease: Lease) -> bool:
    """Whether it, or what its moves have left behind, is held anywhere."""
    part: Lease | None = lease
    while part is not None:
        if not part.is_released:
            return True
        part = part.left_behind
    return False


def key_of(call_id: str) -> str:
    """Ids are tenant/key/number, so that a pod can tell, too."""
    return call_id.split("/")[1]


def lane_of(call: Call) -> tuple[str, str, str]:
    return (call.tenant.name, call.model, call.key.name)
