"""Admission under everything at once, on a coarse grid of time, against a model that only sums lists.

Calls of several tenants, keys, models and sizes arrive, end, leave, move and close, while pods come, go and change and
rates, deadlines and `bypass` run out. After each step every invariant is checked by its own checker.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tenancy.admission import Admission, Admitted, Capacity, Lease, Queued, Ticket
from tenancy.call import Call, Kind, Usage
from tenancy.policy import Budget, Device, Key, Model, Mps, Pod, Policy, Profile, QueueSettings, ServedModel, Tenant
from tests.instruments import budget_model as checks
from tests.instruments.budget_model import BudgetModel, Place
from tests.instruments.fixed_ranking import FixedRanking

KIB = 1024
TICK = 0.25

SMALL, LARGE, FREE = "small", "large", "free"


def tenants(memory: int, concurrency: int) -> dict[str, Tenant]:
    """Each has another form of budget: lent memory, memory by device, rates, a dedicated pod."""
    found = [
        Tenant(
            "lent",
            keys=(Key("1", "main"), Key("2", "narrow", budget=Budget(concurrency=1, memory_bytes=100 * KIB))),
            profile="generous",
            default_max_tokens=100,
            budget=Budget(memory_bytes=memory * KIB, concurrency=concurrency),
            queue_depth=4,
            queue_timeout_seconds=10.0,
        ),
        Tenant(
            "spread",
            keys=(Key("3", "main"),),
            budget=Budget(memory_by_device={"gpu0": 150 * KIB, "gpu1": 60 * KIB}, concurrency=3),
        ),
        Tenant(
            "rated",
            keys=(Key("4", "main"), Key("5", "slow", budget=Budget(requests_per_minute=3))),
            budget=Budget(requests_per_minute=8, tokens_per_minute=1200),
            queue_timeout_seconds=70.0,
            queue_depth=6,
        ),
        Tenant("owner", keys=(Key("6", "main"),), budget=Budget(memory_bytes=250 * KIB, concurrency=4)),
    ]
    return {tenant.name: tenant for tenant in found}


def policy(memory: int = 200, concurrency: int = 3, bypass: float = 1.0) -> Policy:
    def pod(name: str, devices: tuple[str, ...], models: tuple[str, ...], memory: int, owner: str | None = None) -> Pod:
        return Pod(
            name,
            devices,
            tuple(ServedModel(model, model) for model in models),
            mps=Mps(memory * KIB),
            tenants=None if owner is None else frozenset({owner}),
        )

    pods = [
        pod("pod-a", ("gpu0",), (SMALL, LARGE), 300),
        pod("pod-b", ("gpu0", "gpu1"), (SMALL,), 200),
        pod("pod-c", ("gpu1",), (SMALL, LARGE), 120, "owner"),
        pod("pod-d", ("gpu1",), (FREE,), 100),
        pod("pod-e", ("gpu0",), (LARGE,), 90),  # overfills gpu0 while pod-a and pod-b run, by what a client costs
    ]
    return Policy(
        profiles={"generous": Profile("generous", overcommit_ratio=1.5)},
        devices={
            "gpu0": Device("gpu0", memory_bytes=600 * KIB, overhead_bytes=10 * KIB),
            "gpu1": Device("gpu1", memory_bytes=600 * KIB, overhead_bytes=10 * KIB),
        },
        models={
            SMALL: Model(SMALL, 512, 256),
            LARGE: Model(LARGE, 2048),
            FREE: Model(FREE, None, None),
        },
        pods={one.name: one for one in pods},
        tenants=tenants(memory, concurrency),
        queue=QueueSettings(depth=10, bytes_=100_000, timeout_seconds=75.0, bypass_seconds=bypass),
    )


CAPACITIES: dict[str, list[Capacity | None]] = {
    "pod-a": [Capacity(256 * KIB, 6, 16, 1024), Capacity(128 * KIB, None, 16, 512), None],
    "pod-b": [Capacity(160 * KIB, 3), Capacity(None, 2, 32, 512), None],
    "pod-c": [Capacity(100 * KIB, 4, 16, 300), None],
    "pod-d": [Capacity(None, 2), Capacity(None, None), None],
    "pod-e": [Capacity(400 * KIB, 4, 16, 1600), None],
}


class AdmissionMachine(RuleBasedStateMachine):
    """One admission, its model, and a clock that only goes by quarter seconds."""

    leases = Bundle("leases")
    closing = Bundle("closing")
    tickets = Bundle("tickets")

    @initialize(bypass=st.sampled_from([0.0, 1.0, 3.0]))
    def start(self, bypass: float) -> None:
        self.now = 1000.0
        self.calls = 0
        self.policy = policy(bypass=bypass)
        self.ranking = FixedRanking(self.policy)
        self.admission = Admission(self.policy, self.ranking, self.now)
        self.model = BudgetModel(self.policy, self.ranking)
        self.found: list[Lease] = []
        self.change({name: choices[0] for name, choices in CAPACITIES.items()})

    # steps

    @rule(
        target=tickets,
        who=st.sampled_from([("lent", 0), ("lent", 1), ("spread", 0), ("rated", 0), ("rated", 1), ("owner", 0)]),
        model=st.sampled_from([SMALL, SMALL, LARGE, FREE]),
        prompt=st.sampled_from([0, 40, 200]),
        output=st.sampled_from([1, 60, 120, 250, None]),
        sequences=st.sampled_from([1, 1, 1, 2]),
        may_wait=st.sampled_from([True] * 7 + [False]),
        deadline=st.sampled_from([None, None, None, 0.5, 4.0]),
        size=st.sampled_from([10, 10, 40_000]),
        times=st.sampled_from([1, 1, 2, 5]),
    )
    def arrive(
        self,
        who: tuple[str, int],
        model: str,
        prompt: int,
        output: int | None,
        sequences: int,
        may_wait: bool,
        deadline: float | None,
        size: int,
        times: int,
    ) -> object:
        tickets = [
            self.one_arrives(who, model, prompt, output, sequences, may_wait, deadline, size) for _ in range(times)
        ]
        return multiple(*(ticket for ticket in tickets if ticket is not None))

    def one_arrives(
        self,
        who: tuple[str, int],
        model: str,
        prompt: int,
        output: int | None,
        sequences: int,
        may_wait: bool,
        deadline: float | None,
        size: int,
    ) -> Ticket | None:
        self.calls += 1
        tenant = self.policy.tenants[who[0]]
        call = Call(
            f"call-{self.calls}",
            tenant,
            tenant.keys[who[1]],
            Kind.CHAT,
            model,
            self.now,
            prompt_bytes=prompt,
            output_tokens=output,
            sequences=sequences,
            may_wait=may_wait,
            deadline_at=None if deadline is None else self.now + deadline,
            size_bytes=size,
        )
        before = self.shown()
        answer = self.admission.admit(call, self.now)
        if isinstance(answer, Admitted):
            checks.check_11_nobody_passes_a_head_past_bypass(self.model, answer.lease, self.now)
            self.found.append(answer.lease)
        self.model.answered(call, answer, self.now)
        caused = self.admission.caused()
        self.told(caused)
        if not caused:
            checks.check_4_a_refusal_charged_nothing(answer, before, self.shown())
        return answer.ticket if isinstance(answer, Queued) else None

    @rule(target=leases)
    def pick_up(self) -> object:
        """Leases that admission gave out, by answer or by decision, become known to the other rules."""
        found, self.found = self.found, []
        return multiple(*found)

    @rule(
        target=closing,
        lease=consumes(leases),
        prompt=st.sampled_from([0, 10, 300]),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        known=st.sampled_from([True, True, False]),
        let_go=st.sampled_from([True, True, False]),
    )
    def settle(self, lease: Lease, prompt: int, share: float, known: bool, let_go: bool) -> object:
        usage = Usage(prompt, int(lease.need.output_tokens * share)) if known else None
        moving = next((ticket for ticket in self.model.waiting if ticket.moving is lease), None)
        if moving is not None:
            self.model.waiting.remove(moving)
        if usage is not None:
            self.model.booked(lease, usage.total_tokens, self.now)
        if let_go or not self.model.of(lease).on_pod:  # a move was refused, or waits
            self.model.released(lease)
        self.told(self.admission.settle(lease, usage, self.now, let_go=let_go))
        assert lease.is_released or lease.is_closing
        return lease if lease.is_closing and not lease.is_released else multiple()

    @rule(lease=consumes(closing))
    def let_go(self, lease: Lease) -> None:
        self.model.released(lease)
        self.told(self.admission.let_go([lease], self.now))

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: Ticket) -> None:
        if ticket in self.model.waiting:
            self.model.waiting.remove(ticket)
        self.told(self.admission.leave(ticket, self.now))

    @rule(
        target=closing, lease=leases, not_on=st.sampled_from([(), ("pod-a",), ("pod-a", "pod-b")]), let_go=st.booleans()
    )
    def move(self, lease: Lease, not_on: tuple[str, ...], let_go: bool) -> object:
        if lease.is_settled or any(ticket.moving is lease for ticket in self.model.waiting):
            return multiple()
        was_on_pod = bool(self.model.of(lease).on_pod)
        answer = self.admission.move(lease, frozenset(not_on), self.now, let_go=let_go)
        assert (lease.left_behind is not None) == (was_on_pod and not let_go), "invariant 2: what was left is not held"
        if was_on_pod:
            self.model.taken_off(lease)
        if isinstance(answer, Admitted):
            assert lease.pod not in not_on
            self.model.put_on(lease)
        elif isinstance(answer, Queued):
            self.model.waiting.insert(0, answer.ticket)
        self.told(self.admission.caused())
        for ticket in list(self.model.blocked_since):  # who was the head begins to wait anew
            if checks.lane_of(ticket.call) == checks.lane_of(lease.call):
                del self.model.blocked_since[ticket]
        return multiple() if lease.left_behind is None else lease.left_behind

    @rule(who=st.sampled_from([("rated", 0), ("rated", 1)]))
    def count(self, who: tuple[str, int]) -> None:
        tenant = self.policy.tenants[who[0]]
        call = Call("counted", tenant, tenant.keys[who[1]], Kind.CHAT, SMALL, self.now)
        before = self.shown()
        refused = self.admission.count(call, self.now)
        if refused is None:
            self.model.counted(call, self.now)
        else:
            checks.check_4_a_refusal_charged_nothing(refused, before, self.shown())
        self.told(self.admission.caused())

    @rule(ticks=st.sampled_from([1, 1, 2, 4, 5, 16, 40, 241]))
    def wait(self, ticks: int) -> None:
        """Time passes, and `expire` is called when it was asked for."""
        until = self.now + ticks * TICK
        while (due := self.admission.next_expiry()) is not None and due <= until:
            self.now = max(self.now, due)
            self.told(self.admission.expire(self.now))
            self.every_invariant_holds()
        self.now = until

    @rule(
        name=st.sampled_from(sorted(CAPACITIES)),
        number=st.sampled_from([0, 0, 0, 1, 2]),
        ready=st.sampled_from([True, True, True, False]),
    )
    def pod_changes(self, name: str, number: int, ready: bool) -> None:
        choices = CAPACITIES[name]
        capacity = choices[number % len(choices)]
        names = [pod for pod in self.ranking.ready if pod != name]
        if capacity is not None and ready:
            names.append(name)
        self.ranking.set_ready(sorted(names), coming=() if ready else (SMALL,))
        self.change({**self.model.capacities, name: capacity})

    @rule(memory=st.sampled_from([120, 200]), concurrency=st.sampled_from([2, 3]))
    def adopt(self, memory: int, concurrency: int) -> None:
        excused = checks.limits_are_about_to_change(self.model)
        self.policy = policy(memory, concurrency, self.policy.queue.bypass_seconds)
        self.model.policy = self.ranking.policy = self.policy
        self.ranking.set_ready(self.ranking.ready, sorted(self.ranking.coming))
        decided = self.admission.adopt(self.policy, self.now)
        self.model.over = excused
        self.model.left_out = frozenset(self.admission.left_out())
        self.told(decided)

    @rule(lease=leases)
    def settle_twice(self, lease: Lease) -> None:
        """A lease that was settled cannot be settled again: our own bug, and loud."""
        if lease.is_settled:
            with pytest.raises(AssertionError, match="is settled twice"):
                self.admission.settle(lease, None, self.now)

    # what they share

    def change(self, capacities: dict[str, Capacity | None]) -> None:
        excused = checks.limits_are_about_to_change(self.model)
        decided = self.admission.pods_changed(capacities, self.now)
        self.model.capacities = capacities
        self.model.left_out = frozenset(self.admission.left_out())
        self.model.over = excused
        self.told(decided)

    def told(self, decided: object) -> None:
        assert isinstance(decided, list)
        self.model.left_out = frozenset(self.admission.left_out())
        self.model.told(decided, self.now)
        for one in decided:
            if isinstance(one.answer, Admitted) and one.ticket.moving is None:
                self.found.append(one.answer.lease)

    def shown(self) -> dict[Place, object]:
        shown: dict[Place, object] = {("pod", pod): self.admission.pod_state(pod) for pod in self.policy.pods}
        for tenant in self.policy.tenants.values():
            shown["tenant", tenant.name] = self.admission.tenant_state(tenant.name)
            for key in tenant.keys:
                state = self.admission.remaining(tenant.name, key, self.now)
                shown["key", tenant.name, key.name] = (state.remaining_requests, state.remaining_tokens)
        return shown

    @invariant()
    def every_invariant_holds(self) -> None:
        if not hasattr(self, "model"):
            return
        model, admission = self.model, self.admission
        held: dict[Place, tuple[int, int]] = {}
        for pod in self.policy.pods:
            state = admission.pod_state(pod)
            held["pod", pod] = (state.kv_reserved, state.calls)
        tokens: dict[Place, int] = {}
        for tenant in self.policy.tenants.values():
            account = admission.tenant_state(tenant.name)
            held["tenant", tenant.name] = (account.memory_reserved, account.concurrency_held)
            left = admission.remaining(tenant.name, tenant.keys[0], self.now).remaining_tokens
            if left is not None:
                tokens["tenant", tenant.name] = left
        model.note_blocked(self.now)
        checks.check_told(model)
        checks.check_1_no_account_holds_more_than_its_limit(model)
        checks.check_2_what_is_held_is_what_leases_hold(model, held)
        checks.check_5_tokens_booked_are_tokens_reported(model, tokens, self.now)
        checks.check_10_nobody_waits_past_the_deadline(model, self.now)
        checks.check_11_no_room_is_idle_beside_an_eligible_head(model, self.now)

    def teardown(self) -> None:
        """Invariant 3: when all have ended or left, nothing is held, nothing waits, and no timer is wanted."""
        if not hasattr(self, "model"):
            return
        while self.model.held or self.model.waiting:
            for ticket in list(self.model.waiting):
                self.leave(ticket) if ticket in self.model.waiting else None
            for held in list(self.model.held):
                self.model.released(held.lease)
                if held.lease.is_closing and not held.lease.is_released:
                    self.told(self.admission.let_go([held.lease], self.now))
                else:
                    self.told(self.admission.settle(held.lease, None, self.now))
        for pod in self.policy.pods:
            state = self.admission.pod_state(pod)
            assert (state.kv_reserved, state.calls, state.closing) == (0, 0, 0), f"invariant 3: {pod} holds {state}"
        self.told(self.admission.pods_changed({}, self.now))
        for name in self.policy.tenants:
            tenant = self.admission.tenant_state(name)
            assert (tenant.memory_reserved, tenant.concurrency_held, tenant.queued) == (0, 0, 0), f"3: {name}: {tenant}"
        assert self.admission.next_expiry() is None, "invariant 3: a timer is left"


AdmissionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAdmissionKeepsEveryInvariant = AdmissionMachine.TestCase


class Walk:
    """A long random history of the same steps: busier than what Hypothesis draws, so that queues fill and drain."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.machine = AdmissionMachine()
        self.machine.start(bypass=self.random.choice([0.0, 1.0, 3.0]))
        self.leases: list[Lease] = []
        self.closing: list[Lease] = []
        self.steps: dict[Callable[[], None], int] = {
            self.arrive: 12,
            self.settle: 6,
            self.let_go: 2,
            self.leave: 2,
            self.move: 2,
            self.wait: 3,
            self.pod_changes: 1,
            self.adopt: 1,
            self.count: 1,
        }

    def step(self) -> None:
        [step] = self.random.choices(list(self.steps), list(self.steps.values()))
        step()
        self.machine.every_invariant_holds()
        self.leases += self.machine.found
        self.machine.found = []

    def arrive(self) -> None:
        choice = self.random.choice
        who = choice([("lent", 0), ("lent", 1), ("spread", 0), ("rated", 0), ("rated", 1), ("owner", 0)])
        self.machine.one_arrives(
            who,
            choice([SMALL, SMALL, LARGE, FREE]),
            choice([0, 40, 200]),
            choice([1, 60, 120, 250, None]),
            choice([1, 1, 1, 2]),
            self.random.random() < 0.9,
            choice([None, None, None, 0.5, 4.0]),
            choice([10, 10, 40_000]),
        )

    def settle(self) -> None:
        if self.leases:
            lease = self.leases.pop(self.random.randrange(len(self.leases)))
            let_go = self.random.random() < 0.7
            prompt, share = self.random.choice([0, 10, 300]), self.random.choice([0.0, 0.5, 1.0])
            self.machine.settle(lease, prompt, share, self.random.random() < 0.7, let_go)
            self.machine.settle_twice(lease)
            if lease.is_closing:
                self.closing.append(lease)

    def let_go(self) -> None:
        if self.closing:
            self.machine.let_go(self.closing.pop(self.random.randrange(len(self.closing))))

    def leave(self) -> None:
        if self.machine.model.waiting:
            self.machine.leave(self.random.choice(self.machine.model.waiting))

    def move(self) -> None:
        if self.leases:
            lease = self.random.choice(self.leases)
            not_on = self.random.choice([(), ("pod-a",), ("pod-a", "pod-b")])
            behind = self.machine.move(lease, not_on, self.random.random() < 0.5)
            if isinstance(behind, Lease):
                self.closing.append(behind)

    def wait(self) -> None:
        self.machine.wait(self.random.choice([1, 1, 2, 4, 5, 16, 40, 120, 237]))

    def pod_changes(self) -> None:
        name = self.random.choice(sorted(CAPACITIES))
        self.machine.pod_changes(name, self.random.choice([0, 0, 1, 2]), self.random.random() < 0.8)

    def adopt(self) -> None:
        self.machine.adopt(self.random.choice([120, 200]), self.random.choice([2, 3]))

    def count(self) -> None:
        self.machine.count(self.random.choice([("rated", 0), ("rated", 1)]))


@pytest.mark.parametrize("seed", range(20))
def test_a_long_history_keeps_every_invariant(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(150):
        walk.step()
    walk.machine.teardown()
