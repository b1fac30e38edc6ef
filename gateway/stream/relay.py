"""The fast way from a pod to a client: the pod's own bytes, passed on as whole events.

The wire cuts what it reads at the last event that ends a chunk, so the relay neither parses nor re-frames: it looks for
`"usage"` and writes. Where the pod's framing cannot be kept (no chunks, chunks that do not end with events, a client of
HTTP/1.0) the same relay takes payload, cuts it into events and frames them anew.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.stream.sink import Sink
from gateway.stream.sse import EventSplitter, data_of, unchunk
from gateway.stream.usage import MARK, has_usage, usage_of, without_usage
from tenancy.call import Usage

_ERROR = b'data: {"error"'


class Relay:
    """Passes one attempt's events to a sink, and keeps what the end of the stream has to be judged by.

    `shows_usage` says whether the client asked for usage; if not, the event that carries it is kept back. `stop`
    ends the attempt where an event is out of bounds; `overflow` then says so.
    """

    __slots__ = (
        "_last",
        "_previous",
        "_shows_usage",
        "_sink",
        "_splitter",
        "_stop",
        "_write",
        "overflow",
        "pieces",
        "usage",
    )

    def __init__(self, sink: Sink, *, shows_usage: bool, stop: Callable[[], None]) -> None:
        self._sink = sink
        self._write = sink.write
        self._shows_usage = shows_usage
        self._stop = stop
        self._splitter: EventSplitter | None = None
        self._last = self._previous = b""
        self.pieces = 0
        self.usage: Usage | None = None
        self.overflow = ""

    def frames(self, data: bytes) -> None:
        """Hot: whole chunks that end with an event."""
        self.pieces += 1
        self._previous = self._last
        self._last = data
        if MARK in data and has_usage(data):
            self._pass_usage(unchunk(data))
        else:
            self._write(data)

    def payload(self, data: bytes) -> None:
        """Body bytes cut anywhere: whole events are framed and passed on, the rest waits."""
        if self._splitter is None:
            self._splitter = EventSplitter()
        try:
            for event in self._splitter.feed(data):
                self.pieces += 1
                self._previous = self._last
                self._last = event
                if MARK in event and has_usage(event):
                    self._pass_usage(event)
                else:
                    self._sink.write_event(event)
        except ValueError as fault:
            self.overflow = str(fault)
            self._stop()

    def _pass_usage(self, payload: bytes) -> None:
        splitter = EventSplitter()
        for event in [*splitter.feed(payload), splitter.rest]:
            data = data_of(event)
            usage, says_nothing_else = (None, False) if data is None else usage_of(data)
            if usage is not None:
                self.usage = usage
            if usage is None or self._shows_usage:
                self._sink.write_event(event)
            elif not says_nothing_else and data is not None:
                self._sink.write_event(b"data: " + without_usage(data) + b"\n\n")

    @property
    def has_finished(self) -> bool:
        """Whether the pod ended its stream on purpose: with `[DONE]`, or at least a reason to finish.

        Judged by the last two pieces alone, so that nothing has to be looked for while the stream runs.
        """
        return (
            b"data: [DONE]" in self._last
            or b"data:[DONE]" in self._last
            or self._has_reason(self._last)
            or self._has_reason(self._previous)
        )

    @property
    def has_error(self) -> bool:
        """Whether the pod itself reported an error at the end of its stream."""
        return _ERROR in self._last or _ERROR in self._previous

    @staticmethod
    def _has_reason(piece: bytes) -> bool:
        return b'"finish_reason":"' in piece or b'"finish_reason": "' in piece
