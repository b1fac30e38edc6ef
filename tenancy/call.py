"""One client request as a value: what policy has to know about it, and the parsed body that policy never looks into.

The HTTP face makes a `Call`; admission, routing, engines and the relay read it. Nobody changes one. Both are msgspec
structs, as one is made for each request: a frozen dataclass of as many fields takes 3 µs to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from tenancy.policy import Key, Tenant


class Kind(Enum):
    """What is asked of a pod; the value is the path below the pod's URL."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    EMBEDDING = "/v1/embeddings"

    def __init__(self, path: str) -> None:
        self.path = path  # `value` is a call into Python: 1,800 instructions


CHAT: Final = Kind.CHAT
COMPLETION: Final = Kind.COMPLETION
EMBEDDING: Final = Kind.EMBEDDING
"""The kinds, at hand: in Python 3.11 reading a member from its enum takes 900 instructions, a global a few."""


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request of one tenant.

    `prompt_bytes` counts UTF-8 bytes of text parts, `prompt_tokens` tokens that came as token ids, `images` the image
    parts, `messages` the messages or separate prompts; each of `sequences` outputs may be `output_tokens` long (`None`:
    the client stated no maximum). `arrived_at` and `deadline_at` are monotonic seconds of the loop's clock. `body` maps
    the body's top-level keys to their raw JSON; `size_bytes` is what the call costs the queue in memory.
    """

    id: str
    tenant: Tenant
    key: Key
    kind: Kind
    model: str
    arrived_at: float
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    images: int = 0
    messages: int = 1
    sequences: int = 1
    output_tokens: int | None = None
    streamed: bool = False
    wants_usage: bool = False
    may_wait: bool = True
    deadline_at: float | None = None
    size_bytes: int = 0
    body: Mapping[str, Any] = msgspec.field(default_factory=dict)
    headers: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        """Without body and headers, which are the client's alone."""
        return f"<Call {self.id} of {self.tenant.name} for {self.model}>"


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens that a call used. `is_reported` is false where they were counted here because the pod told none."""

    prompt_tokens: int
    completion_tokens: int
    is_reported: bool = True

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens
