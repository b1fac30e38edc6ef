"""How an attempt ended, as a value: what it says of the pod, and whether the call may be tried elsewhere.

Wires never raise into the code that awaits them; they end with one `Outcome`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
FULL_STATUS = frozenset({429, 503})
"""What a pod answers that is full: it says nothing against its health."""


class Ending(Enum):
    """The ways in which an attempt ends."""

    COMPLETE = "complete"  # the whole answer arrived, whatever its status
    LEFT = "left"  # we ended it: the client is gone, or somebody else's decision
    REFUSED = "refused"  # no connection: refused, unreachable, TLS failed
    CONNECT_TIMEOUT = "connect_timeout"
    RESET = "reset"  # the connection broke, or ended before the answer was whole
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    STALLED = "stalled"  # no data for the stall time while we were reading
    MALFORMED = "malformed"  # not HTTP as we know it, or out of bounds
    UNFINISHED = "unfinished"  # in order as HTTP, but the stream had no finish and no [DONE]
    ERROR_EVENT = "error_event"  # the pod itself reported an error inside its stream
    EJECTED = "ejected"  # the fleet took the pod out


COMPLETE: Final = Ending.COMPLETE
"""The usual one, at hand: in Python 3.11 reading a member from its enum takes 900 instructions, a global a few."""

# A connection that broke says nothing of the work behind it: a path may be cut while the pod runs on.
_UNHEARD = frozenset(
    {Ending.LEFT, Ending.FIRST_BYTE_TIMEOUT, Ending.STALLED, Ending.EJECTED, Ending.RESET, Ending.MALFORMED}
)


class Outcome(msgspec.Struct, frozen=True):  # made by C code; a frozen dataclass sets each field by a call, 0.7 µs
    """The end of one attempt. `status` is the pod's HTTP status where a head came; `detail` is for logs, one line."""

    ending: Ending
    status: int | None = None
    detail: str = ""
    retry_after_seconds: float | None = None

    @property
    def is_good(self) -> bool:
        """The pod answered whole, and not with a failure of its own."""
        return self.ending is COMPLETE and (self.status is None or self.status < 500)

    @property
    def is_retryable(self) -> bool:
        """Whether another pod may be asked, given that the client has seen nothing yet."""
        if self.ending is COMPLETE:
            return self.status in RETRYABLE_STATUS
        return self.ending is not Ending.LEFT

    @property
    def may_still_run(self) -> bool:
        """Whether the pod may go on with the work although we stopped listening."""
        # An ending's hash is Python code, which what is whole is spared.
        return self.ending is not COMPLETE and self.ending in _UNHEARD

    @property
    def blames_pod(self) -> bool:
        """Whether the outcome speaks against the pod's health: a full engine's 429 or 503 does not."""
        if self.ending is COMPLETE:
            return self.status in {500, 502, 504}
        return self.ending is not Ending.LEFT
