"""What the two processes of a run say to each other: one carries the streams, the other decides, draws and reports.

Frames on a socket pair, each four bytes of length (big-endian) and a msgpack body. Counts are those of the phase so
far; gaps and calls are what came since the last message. Times are seconds from the phase's start unless they say
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from loadtest.histogram import Histogram
from loadtest.scenario import Phase, Scenario


class Begin(msgspec.Struct, tag="begin"):
    """First: the scenario, the address that each of the target's URLs was judged by (ip, port), and whether raw gaps
    are wanted.
    """

    scenario: Scenario
    addresses: list[tuple[str, int]]
    open_streams: int
    keep_gaps: bool = False


class Run(msgspec.Struct, tag="run"):
    """Run this phase; `index` counts phases. Streams may take up to `drain_seconds` to end after its last arrival.

    `most_requests` and `most_seconds` of load are what the bounds leave for it.
    """

    index: int
    phase: Phase
    drain_seconds: float
    most_requests: int
    most_seconds: float = float("inf")


class Stop(msgspec.Struct, tag="stop"):
    """End the phase now: send no more, leave what is open."""


class Sparse(msgspec.Struct, array_like=True):
    """A histogram in few bytes."""

    buckets: list[int] = []
    counts: list[int] = []
    total: float = 0.0
    least: float = float("inf")
    greatest: float = 0.0

    @classmethod
    def of(cls, histogram: Histogram) -> Sparse:
        """Take one apart."""
        buckets, counts = histogram.sparse()
        return cls(buckets, counts, histogram.total, histogram.least, histogram.greatest)

    def histogram(self) -> Histogram:
        """Put it together again."""
        return Histogram.of(self.buckets, self.counts, self.total, self.least, self.greatest)


CANCELLED = "cancelled"
"""The code of a call that its client left on purpose."""


class Call(msgspec.Struct, array_like=True, gc=False):
    """One call that ended, as its client saw it.

    `code` is empty for one that is done as it should be, `cancelled` for one that the client left on purpose, else what
    was wrong: an HTTP status and the error's own code (`429 token_rate`), `error_event <code>`, `cut`, `unfinished`,
    `no_done`, `usage_mismatch`, `malformed`, `not_a_stream`, `too_large`, `timeout`, `stopped` (open when the phase was
    ended); where no connection was made, `refused_connection`, `tls_failed`, `no_descriptors` or `no_ports`. `events`
    are those with text, reasoning or a tool call. `first`, `last`: of such events. `prompt_tokens` and
    `completion_tokens` are the reported usage, or -1. `longest_gap` and `gap_count` tell of the call's gaps; `gaps` are
    they where raw ones are kept.
    """

    scheduled: float
    sent: float
    first: float | None
    last: float | None
    ended: float
    input: int
    output: int
    events: int
    prompt_tokens: int
    completion_tokens: int
    status: int
    code: str
    longest_gap: float
    gap_count: int
    is_reused: bool
    request_id: str
    gaps: list[float] = []


class Lane(msgspec.Struct, array_like=True):
    """One tenant in one message. `waiting` are due and not sent; `events` arrived with text so far; `reads` brought
    them; `never_sent` is told when the phase has ended; `clipped` and `skipped` are calls of the trace that were too
    long.
    """

    scheduled: int
    sent: int
    open: int
    waiting: int
    events: int
    reads: int
    never_sent: int
    clipped: int
    skipped: int
    gaps: Sparse
    calls: list[Call]


class Strain(msgspec.Struct, array_like=True):
    """How the streams' process itself fared since the last message: lag of its 20-ms timer and of its sendings, CPU
    seconds it used, seconds it waited for a core, share of time somebody waited for one (0 to 1, or -1 where the kernel
    does not tell), its RSS, and when it stood still for long (start, seconds).
    """

    seconds: float
    timer_lag: Sparse
    send_lag: Sparse
    cpu_seconds: float
    starved_seconds: float
    pressure: float
    rss_bytes: int
    stalls: list[tuple[float, float]]


class Ready(msgspec.Struct, tag="ready"):
    """The streams' process is up."""

    pid: int


class Progress(msgspec.Struct, tag="progress"):
    """Four times a second, and once more as the phase ends. `lanes` are in the order of the phase's tenants.

    `lost_calls`: calls that were not told, since nobody read fast enough.
    """

    index: int
    at: float
    lanes: list[Lane]
    strain: Strain
    lost_calls: int = 0


class Ended(msgspec.Struct, tag="ended"):
    """The phase is over: its load took `load_seconds`, and with the streams' ends `seconds`.

    `reason` is empty where it came to its end, else what ended it: `requests` (as many as allowed), `seconds`
    (likewise), `drain` (streams were still open when the time to end was up), `stopped`.
    """

    index: int
    load_seconds: float
    seconds: float
    started_epoch: float
    reason: str = ""


class Failed(msgspec.Struct, tag="failed"):
    """The streams' process cannot go on."""

    reason: str


ToStreams = Begin | Run | Stop
FromStreams = Ready | Progress | Ended | Failed


def encode(message: ToStreams | FromStreams) -> bytes:
    """A whole frame."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


Message = TypeVar("Message", ToStreams, FromStreams)


class Frames(Generic[Message]):
    """Bytes as they come become messages, which `decode` reads."""

    def __init__(self, decode: Callable[[bytes], Message]) -> None:
        self._decode: Callable[[bytes], Message] = decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now."""
        buffer = self._buffer
        buffer += data
        messages: list[Message] = []
        at = 0
        while len(buffer) - at >= 4:
            end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
            if len(buffer) < end:
                break
            messages.append(self._decode(bytes(buffer[at + 4 : end])))
            at = end
        del buffer[:at]
        return messages


def to_streams() -> Frames[ToStreams]:
    """What the streams' process reads with."""
    return Frames(msgspec.msgpack.Decoder(ToStreams).decode)


def from_streams() -> Frames[FromStreams]:
    """What the other process reads with."""
    return Frames(msgspec.msgpack.Decoder(FromStreams).decode)
