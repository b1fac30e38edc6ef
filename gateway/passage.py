"""One call under way: what the exchange, the pulse and a deadline have to know of it between two steps.

It owns the answer's head (which headers are true by now), the heartbeats while nothing comes, and the notes for the
record.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.attempts import Attempt
from gateway.http.errors import Fault
from gateway.leaving import Leaving
from gateway.record import Record
from gateway.stream.sink import Headers, Sink
from gateway.stream.sse import HEARTBEAT
from gateway.verdict import late
from tenancy.admission import RateState
from tenancy.call import Call

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx in front would hold events back
)

_Names = tuple[bytes, bytes, bytes]
_REQUESTS: _Names = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS: _Names = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")


class Patience(NamedTuple):
    """After how much silence a waiting client gets the head of its stream, and a stream a heartbeat."""

    head_after_seconds: float
    heartbeat_seconds: float


class Passage:
    """The way of one call; `beat` is the pulse's, `expire` the deadline's, the rest is the exchange's."""

    __slots__ = (
        "_beat_pieces",
        "_patience",
        "_quiet_since",
        "call",
        "fault",
        "is_flowing",
        "leaving",
        "rates",
        "record",
        "sink",
    )

    def __init__(self, call: Call, sink: Sink, leaving: Leaving, record: Record, patience: Patience) -> None:
        self.call = call
        self.sink = sink
        self.leaving = leaving
        self.record = record
        self.rates: RateState | None = None
        self.fault: Fault | None = None
        self.is_flowing = False
        self._patience = patience
        self._quiet_since = call.arrived_at
        self._beat_pieces = 0

    def beat(self, now: float) -> None:
        """Send the head early if the stream has waited long for it, and a heartbeat where it was quiet for long."""
        if self.leaving.has_left:
            return
        sink = self.sink
        if not sink.is_started:
            is_late = now - self.call.arrived_at >= self._patience.head_after_seconds
            if is_late and sink.start_now(200, self.early_head()):
                sink.write_event(HEARTBEAT)
                self._quiet_since = now
        elif sink.pieces != self._beat_pieces:
            self._beat_pieces = sink.pieces
            self._quiet_since = now
        elif now - self._quiet_since >= self._patience.heartbeat_seconds:
            sink.write_event(HEARTBEAT)
            self._quiet_since = now

    def expire(self) -> None:
        """The client's own deadline has come: what has not begun to arrive by now is of no use to it."""
        if not self.is_flowing:
            self.end_with(late(self.call))

    def end_with(self, fault: Fault) -> None:
        """End the call now, as if its client left, but tell it `fault`."""
        if not self.leaving.has_left:
            self.fault = fault
            self.leaving.leave()

    def note(self, attempt: Attempt) -> None:
        """Write an attempt into the record."""
        record = self.record
        record.pod = attempt.pod
        record.attempts += 1
        # Not `.value`, which is a call in Python: 1,450 instructions.
        record.outcomes = (*record.outcomes, (attempt.pod, attempt.outcome.ending._value_))
        record.events = attempt.events
        record.first_token_at = attempt.first_at
        if not attempt.outcome.is_good:
            record.detail = attempt.outcome.detail

    def common(self) -> list[tuple[bytes, bytes]]:
        """The headers that every answer carries, and what is known of the limits."""
        headers = [(b"x-request-id", self.call.id.encode())]
        rates = self.rates
        if rates is not None and rates.limit_requests is not None:
            headers += _rate(_REQUESTS, rates.limit_requests, rates.remaining_requests, rates.reset_requests_seconds)
        if rates is not None and rates.limit_tokens is not None:
            headers += _rate(_TOKENS, rates.limit_tokens, rates.remaining_tokens, rates.reset_tokens_seconds)
        return headers

    def early_head(self) -> Headers:
        """The head of a stream of which nothing is known yet but that it goes on."""
        return [*self.common(), *_STREAM_HEADERS]

    def head(self, pod: str, attempts: int) -> list[tuple[bytes, bytes]]:
        """The headers of an answer that came from `pod` at the last of `attempts`, but for its content's type."""
        headers = self.common()
        if attempts:
            headers.append((b"x-penstock-pod", pod.encode()))
            headers.append((b"x-penstock-attempts", b"%d" % attempts))
            headers.append((b"x-penstock-queue-ms", b"%d" % int(self.record.queued_seconds * 1000 + 0.5)))
        return headers

    def stream_head(self, pod: str) -> Headers:
        """The head of a stream that comes from `pod`, asked for when its first event is there."""
        self.is_flowing = True
        return [*self.head(pod, self.record.attempts + 1), *_STREAM_HEADERS]


def _rate(names: _Names, limit: int, remaining: int | None, reset_seconds: float | None) -> Headers:
    limit_name, remaining_name, reset_name = names
    return (
        (limit_name, b"%d" % limit),
        (remaining_name, b"%d" % (remaining or 0)),
        (reset_name, b"%dms" % int((reset_seconds or 0.0) * 1000 + 0.5)),
    )
