"""The fast way from a pod to a client: the pod's own bytes, passed on as whole events.

The wire cuts what it reads at the last event that ends a chunk, so the relay neither parses nor re-frames: it looks
for `"usage"`, counts events and writes. Where the pod's framing cannot be kept (no chunks, chunks that do not end
with events, a client of HTTP/1.0) the same relay takes payload, cuts it into events and frames them anew.
"""

from __future__ import annotations

import re
from typing import Protocol

from gateway.stream.sink import Sink
from gateway.stream.sse import EventSplitter, chunk, data_of, frames_of, unchunk
from gateway.stream.usage import MARK, has_usage, usage_of, without_usage
from tenancy.call import Usage

_ERROR = b'data: {"error"'
_DONE = b"data: [DONE]"
_REASON = re.compile(rb'"finish_reason": ?"')
_END = re.compile(rb'"finish_reason": ?"|data:\[DONE\]')


class Source(Protocol):
    """Where the pieces come from: a transfer, which keeps the last two of them anyway."""

    @property
    def last(self) -> bytes: ...

    @property
    def previous(self) -> bytes: ...

    def abort(self) -> None: ...


class Relay:
    """Passes one attempt's events to a sink, and judges at the end how it ended.

    `shows_usage` says whether the client asked for usage; if not, the event that carries it is kept back. `events`
    counts events with data. An event out of bounds aborts the source; `overflow` then says so.
    """

    __slots__ = ("_ends", "_shows_usage", "_sink", "_source", "_splitter", "events", "overflow", "usage")

    def __init__(self, sink: Sink, source: Source, *, shows_usage: bool) -> None:
        self._sink = sink
        self._source = source
        self._shows_usage = shows_usage
        self._splitter: EventSplitter | None = None
        self._ends = (b"", b"")
        self.events = 0
        self.usage: Usage | None = None
        self.overflow = ""

    def frames(self, data: bytes) -> None:
        """Hot: whole chunks that end with an event."""
        # In generated text a line's end is escaped, so this stands before an event's data only.
        self.events += data.count(b"\ndata:")
        # Not `in`: it takes what it looks for as a number first, and drops the TypeError; 0.2 µs.
        if data.find(MARK) < 0 or not has_usage(data):
            self._sink.write(data)
            return
        shown = [
            frame if frame.find(MARK) < 0 else chunk(self._without_hidden(unchunk(frame))) for frame in frames_of(data)
        ]
        if any(shown):
            self._sink.write(b"".join(shown))

    def payload(self, data: bytes) -> None:
        """Body bytes cut anywhere: whole events are framed and passed on, the rest waits."""
        if self._splitter is None:
            self._splitter = EventSplitter()
        try:
            for event in self._splitter.feed(data):
                if data_of(event) is not None:
                    self.events += 1
                    self._ends = (self._ends[1], event)
                shown = self._without_hidden(event) if MARK in event and has_usage(event) else event
                if shown:
                    self._sink.write_event(shown)
        except ValueError as fault:
            self.overflow = str(fault)
            self._source.abort()

    def _without_hidden(self, payload: bytes) -> bytes:
        """Events among which one has usage: that is kept for the settling, and hidden from who did not ask."""
        events = [payload]
        if payload.find(b"\n\n") != len(payload) - 2:  # more than one, or ended in another way: seldom
            splitter = EventSplitter()
            events = [*splitter.feed(payload), splitter.rest]
        shown: list[bytes] = []
        for event in events:
            data = data_of(event) if event.find(MARK) >= 0 else None
            usage, says_nothing_else = (None, False) if data is None else usage_of(data)
            if usage is not None:
                self.usage = usage
            if usage is None or self._shows_usage:
                shown.append(event)
            elif not says_nothing_else and data is not None:
                shown.append(b"data: " + without_usage(data) + b"\n\n")
        return b"".join(shown)

    @property
    def has_finished(self) -> bool:
        """Whether the pod ended its stream on purpose: with `[DONE]`, or at least a reason to finish.

        Judged by the last two pieces alone, so that nothing has to be looked for while the stream runs.
        """
        before, last = self._last_two()
        if last.find(_DONE) >= 0:  # as nearly always
            return True
        return _END.search(last) is not None or _REASON.search(before) is not None

    @property
    def has_error(self) -> bool:
        """Whether the pod itself reported an error at the end of its stream."""
        before, last = self._last_two()
        return last.find(_ERROR) >= 0 or before.find(_ERROR) >= 0

    def _last_two(self) -> tuple[bytes, bytes]:
        return (self._source.previous, self._source.last) if self._splitter is None else self._ends
