"""All that one finished request was. Logs and metrics take it, each at the end of a request; there are no other
hooks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Record:
    """One finished request: who, what, where, how long, how much. Times are seconds of the loop's clock.

    `tenant`, `key` and `model` are empty until known. `code` is the error code of the contract, or empty; `status`
    is what the client got (499 where it left before any head). `refused_by` is the account that refused.
    """

    request_id: str
    endpoint: str
    arrived_at: float
    tenant: str = ""
    key: str = ""
    model: str = ""
    streamed: bool = False
    status: int = 0
    code: str = ""
    refused_by: str = ""
    pod: str = ""
    attempts: int = 0
    outcomes: tuple[tuple[str, str], ...] = ()  # (pod, ending) of each attempt
    queued_seconds: float = 0.0
    first_token_at: float | None = None
    ended_at: float = 0.0
    events: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_reported: bool = False
    client_left: bool = False
    bytes_in: int = 0
    detail: str = ""
