"""What Prometheus may ask: counts and times of finished requests, and what ledger and fleet hold at this moment.

Counts come from one `Record` a request, gauges are read when they are asked for. Labels are bounded: tenants and pods
by the file, models by the file's, and what is none of these counts as `other`. What each metric means stands in
docs/metrics.md, which is tested against what is defined here.
"""

from __future__ import annotations

from collections.abc import Iterator

from backends.fleet import Fleet, PodState
from gateway.http.errors import STATUSES
from gateway.observe.exposition import Counter, Counters, Family, Histograms, Sample
from gateway.record import Record
from tenancy.admission import Admission
from tenancy.policy import Policy
from tenancy.refusal import Code

OTHER = "other"

_WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_FIRST_TOKEN_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAP_BOUNDS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
_REQUEST_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_REFUSALS = frozenset(code.value for code in Code)

_WHO = ("tenant", "model")


class _Series:
    """The counters of one tenant and model, at hand."""

    __slots__ = (
        "_requests",
        "_who",
        "_by_status",
        "completion",
        "first_token",
        "gap",
        "prompt",
        "queue",
        "request",
    )

    def __init__(self, metrics: Metrics, tenant: str, model: str) -> None:
        self._requests = metrics.requests
        self._who = (tenant, model)
        self._by_status: dict[int, Counter] = {}
        self.prompt = metrics.tokens.child(tenant, model, "prompt")
        self.completion = metrics.tokens.child(tenant, model, "completion")
        self.request = metrics.request_seconds.child(tenant, model)
        self.queue = metrics.queue_seconds.child(tenant, model)
        self.first_token = metrics.first_token_seconds.child(tenant, model)
        self.gap = metrics.gap_seconds.child(tenant, model)

    def count(self, status: int) -> None:
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._requests.child(*self._who, str(status))
        counter.value += 1


class Metrics:
    """The metrics of one gateway."""

    def __init__(self, policy: Policy, admission: Admission, fleet: Fleet) -> None:
        self._admission = admission
        self._fleet = fleet
        self._series: dict[tuple[str, str], _Series] = {}
        self.requests = Counters(
            "penstock_requests_total", "Finished requests by the status that they ended with.", (*_WHO, "code")
        )
        self.refusals = Counters(
            "penstock_refusals_total", "Requests that policy refused, by the reason.", ("tenant", "code")
        )
        self.tokens = Counters(
            "penstock_tokens_total", "Tokens as pods reported them, or as they were counted here.", (*_WHO, "kind")
        )
        self.attempts = Counters("penstock_attempts_total", "Attempts on a pod by how they ended.", ("pod", "outcome"))
        self.first_token_seconds = Histograms(
            "penstock_time_to_first_token_seconds",
            "From a request's arrival to the first byte of its answer.",
            _WHO,
            _FIRST_TOKEN_BOUNDS,
        )
        self.gap_seconds = Histograms(
            "penstock_inter_token_seconds", "The mean time between a stream's tokens, once a stream.", _WHO, _GAP_BOUNDS
        )
        self.request_seconds = Histograms(
            "penstock_request_seconds", "From a request's arrival to its end.", _WHO, _REQUEST_BOUNDS
        )
        self.queue_seconds = Histograms(
            "penstock_queue_seconds", "How long admitted and refused requests waited.", _WHO, _WAIT_BOUNDS
        )
        self._tallies = (
            self.requests,
            self.refusals,
            self.tokens,
            self.attempts,
            self.first_token_seconds,
            self.gap_seconds,
            self.request_seconds,
            self.queue_seconds,
        )
        self.adopt(policy)

    def adopt(self, policy: Policy) -> None:
        """Take the tenants, models and pods of a new policy; what was counted stays."""
        self._policy = policy
        self._models = frozenset(policy.models)

    def take(self, record: Record) -> None:
        """Count a finished request. About 2 µs."""
        tenant, model = record.tenant, record.model
        if model and model not in self._models:
            model = OTHER
        series = self._series.get((tenant, model))
        if series is None:
            series = self._series[tenant, model] = _Series(self, tenant, model)
        code, status = record.code, record.status
        if code:
            if status == 200:  # a stream that broke has that in its head; it counts as what its error event says
                status = STATUSES.get(code, status)
            if code in _REFUSALS:
                self.refusals.child(tenant, code).add()
        series.count(status)
        for attempt in record.outcomes:
            self.attempts.child(*attempt).value += 1
        arrived_at, ended_at = record.arrived_at, record.ended_at
        series.request.observe(ended_at - arrived_at)
        if record.attempts or record.queued_seconds:
            series.queue.observe(record.queued_seconds)
        series.prompt.value += record.prompt_tokens
        series.completion.value += record.completion_tokens
        first_at = record.first_token_at
        if first_at is not None and record.streamed:
            series.first_token.observe(first_at - arrived_at)
            tokens = record.completion_tokens or record.events
            if tokens > 1:
                series.gap.observe((ended_at - first_at) / (tokens - 1))

    def expose(self) -> bytes:
        """Everything as Prometheus' text format 0.0.4 has it; about 0.5 µs a line."""
        parts = [family.expose() for family in self._tallies]
        parts += [family.text(samples) for family, samples in self._gauges()]
        return "".join(parts).encode()

    def _gauges(self) -> Iterator[tuple[Family, list[Sample]]]:
        tenants = {name: self._admission.tenant_state(name) for name in self._policy.tenants}
        yield (
            MEMORY_LIMIT,
            [((name,), state.memory_limit) for name, state in tenants.items() if state.memory_limit is not None],
        )
        yield MEMORY_RESERVED, [((name,), state.memory_reserved) for name, state in tenants.items()]
        yield (
            CONCURRENCY_LIMIT,
            [
                ((name,), state.concurrency_limit)
                for name, state in tenants.items()
                if state.concurrency_limit is not None
            ],
        )
        yield CONCURRENCY_HELD, [((name,), state.concurrency_held) for name, state in tenants.items()]
        yield QUEUED, [((name,), state.queued) for name, state in tenants.items()]
        capacity: list[Sample] = []
        reserved: list[Sample] = []
        for pod in self._policy.pods.values():
            state = self._admission.pod_state(pod.name)
            # A pod's memory is spread evenly over its devices, as in the ledger: the sum over them is the pod's.
            for device in pod.devices:
                if state.kv_capacity is not None:
                    capacity.append(((pod.name, device), state.kv_capacity / len(pod.devices)))
                reserved.append(((pod.name, device), state.kv_reserved / len(pod.devices)))
        yield KV_CAPACITY, capacity
        yield KV_RESERVED, reserved
        yield UP, [((name,), int(pod.state is PodState.READY)) for name, pod in self._fleet.pods.items()]


MEMORY_LIMIT = Family(
    "penstock_tenant_gpu_memory_limit_bytes", "KV memory that the tenant may hold at once, lent included.", ("tenant",)
)
MEMORY_RESERVED = Family(
    "penstock_tenant_gpu_memory_reserved_bytes", "KV memory that the tenant's calls hold now.", ("tenant",)
)
CONCURRENCY_LIMIT = Family(
    "penstock_tenant_concurrency_limit", "Calls that the tenant may have under way at once.", ("tenant",)
)
CONCURRENCY_HELD = Family("penstock_tenant_concurrency_held", "Calls that the tenant has under way.", ("tenant",))
QUEUED = Family("penstock_tenant_queued", "Calls of the tenant that wait in the queue.", ("tenant",))
KV_CAPACITY = Family("penstock_pod_kv_capacity_bytes", "KV memory of a pod, by device.", ("pod", "device"))
KV_RESERVED = Family("penstock_pod_kv_reserved_bytes", "KV memory of a pod that calls hold.", ("pod", "device"))
UP = Family("penstock_pod_up", "Whether the pod is given calls: 1 or 0.", ("pod",))
