"""What admission answers, as values: admitted, queued or refused, and the states that metrics and headers show."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tenancy.accounts import Lease
from tenancy.queue import Ticket
from tenancy.refusal import Refusal


class Admitted(msgspec.Struct, frozen=True):
    """The call holds `lease` and may be sent to `lease.pod`."""

    lease: Lease
    queued_seconds: float = 0.0


class Queued(msgspec.Struct, frozen=True):
    """The call waits; what becomes of it is among the decisions of a later verb. The wait is unknown at first."""

    ticket: Ticket
    expected_wait_seconds: float | None = None


class Refused(msgspec.Struct, frozen=True):
    """The call is not admitted, and was charged nothing."""

    refusal: Refusal


Answer = Admitted | Queued | Refused


class Decided(msgspec.Struct, frozen=True):
    """What became of a ticket, caused by somebody else's verb."""

    ticket: Ticket
    answer: Admitted | Refused


class RateState(msgspec.Struct, frozen=True):
    """What is left of the minute, of the tightest of key and tenant; `None` where nothing limits."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_seconds: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TenantState:
    """A tenant's memory in bytes, its calls and its queue."""

    memory_limit: int | None
    memory_reserved: int
    concurrency_limit: int | None
    concurrency_held: int
    queued: int
    memory_guarantee: int | None = None
    memory_lent: int = 0


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod's KV memory in bytes and its calls, of which `closing` have ended for us but perhaps not for the pod."""

    kv_capacity: int | None
    kv_reserved: int
    slots: int | None
    calls: int
    closing: int
