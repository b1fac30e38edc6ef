"""Why a call was not admitted: a value that names the account, its numbers, and when to come back.

The codes are the contract's; their HTTP status and wording are made in one place, by the HTTP face.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec


class Code(Enum):
    """Every reason for which policy refuses a call, in the order in which reasons are named."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    EXCEEDS_BUDGET = "exceeds_budget"
    REQUEST_RATE = "request_rate"
    TOKEN_RATE = "token_rate"
    CONCURRENCY_BUDGET = "concurrency_budget"
    MEMORY_BUDGET = "memory_budget"
    POD_CAPACITY = "pod_capacity"
    NO_POD = "no_pod"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    DRAINING = "draining"


NO_POD: Final = Code.NO_POD
REQUEST_RATE: Final = Code.REQUEST_RATE
TOKEN_RATE: Final = Code.TOKEN_RATE
POD_CAPACITY: Final = Code.POD_CAPACITY
"""Those that a refusal is made from or compared with, at hand, as the kinds of `tenancy.call` are."""


class Refusal(msgspec.Struct, frozen=True):
    """A decision not to admit; it charged nothing.

    `account` names whose limit it was (`tenant/acme`, `key/acme/ci`, `pod/chat-0`, `tenant/acme/gpu0`, `queue`),
    `unit` what is counted (`bytes`, `requests`, `tokens`, `entries`), and `limit`, `used` and `asked` are in that
    unit. `retry_after_seconds` is `None` where coming back would not help.
    """

    code: Code
    account: str
    message: str
    unit: str = ""
    limit: float | None = None
    used: float | None = None
    asked: float | None = None
    retry_after_seconds: float | None = None
