"""The fast way from a pod to a client: the pod's own bytes, passed on as whole events.

The wire cuts what it reads at the last event that ends a chunk, so the relay neither parses nor re-frames: it looks
for `"usage"`, counts events and writes. Nearly all events of an answer differ in their text alone: once it has seen
one, it has the wire pass on others of that form without a look. Where the pod's framing cannot be kept (no chunks,
chunks that do not end with events, a client of HTTP/1.0) the same relay takes payload, cuts it into events and frames
them anew.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from backends.wire.transfer import NONE_ALIKE, Alike
from gateway.stream.sink import Sink
from gateway.stream.sse import TEXT_NAMES, EventSplitter, chunk, data_of, frames_of, unchunk
from gateway.stream.usage import MARK, has_usage, usage_of, without_usage
from tenancy.call import Usage

_ERROR = b'data: {"error"'
_DONE = b"data: [DONE]"
_CHUNK_END = b"\n\n\r\n"  # of nearly all
_LINE_OF_DATA = b"\r\ndata: "
_REASON = re.compile(rb'"finish_reason": ?"')
_END = re.compile(rb'"finish_reason": ?"|data:\[DONE\]')

# An event's text, as the only member of its delta that grows. Not one that is empty: often another member has the text.
_TEXT = re.compile(rb'"(?:%b)": ?"([^"\\]+)"(?! ?:)' % TEXT_NAMES)
_TRIES: Final = 8  # to find a form that fits, before the events of an answer count as all different


class Source(Protocol):
    """Where the pieces come from: a transfer, which keeps the last two of them anyway."""

    @property
    def last_two(self) -> tuple[bytes, bytes]: ...

    @property
    def alike(self) -> int: ...

    def pass_alike(self, form: Alike) -> None: ...

    def abort(self) -> None: ...


class Relay:
    """Passes one attempt's events to a sink, and judges at the end how it ended.

    `shows_usage` says whether the client asked for usage; if not, the event that carries it is kept back. An event out
    of bounds aborts the source; `overflow` then says so.
    """

    __slots__ = (
        "_alike_before",
        "_ends",
        "_seen",
        "_shows_usage",
        "_sink",
        "_source",
        "_splitter",
        "_tries",
        "overflow",
        "usage",
    )

    def __init__(self, sink: Sink, source: Source, *, shows_usage: bool) -> None:
        self._sink = sink
        self._source = source
        self._shows_usage = shows_usage
        self._splitter: EventSplitter | None = None
        self._ends = (b"", b"")
        self._seen = 0
        self._tries = _TRIES
        self._alike_before = 0
        self.usage: Usage | None = None
        self.overflow = ""

    @property
    def events(self) -> int:
        """Events with data that have come."""
        return self._seen + self._source.alike

    def frames(self, data: bytes) -> None:
        """Hot: whole chunks that end with an event."""
        # In generated text a line's end is escaped, so this stands before an event's data only.
        events = data.count(b"\ndata:")
        self._seen += events
        # Not `in`: it takes what it looks for as a number first, and drops the TypeError; 0.2 µs.
        mark = data.find(MARK)
        if mark >= 0:
            shown = self._shown(data, mark)
            if shown is not data:
                if shown:
                    self._sink.write(shown)
                return
        self._sink.write(data)
        if events == 1 and self._tries:
            self._learn(data)

    def _shown(self, data: bytes, mark: int) -> bytes:
        """What of whole chunks is for the client, where the first word for usage stands at `mark`."""
        # Nearly always that is a chunk of one event, at the stream's end, and says nothing else. Found by its ends and
        # told by its size, so that the others are not looked at: 31,000 instructions less than the way below.
        start = data.rfind(_CHUNK_END, 0, mark) + 4
        if start < 4:
            start = 0
        payload = data.find(_LINE_OF_DATA, start, start + 16) + 2
        end = data.find(_CHUNK_END, mark)
        if (
            payload >= 2
            and data[start:payload] == b"%x\r\n" % (end + 2 - payload)
            and data.find(b"\n", payload, end) < 0
            and data.find(MARK, end) < 0
        ):
            usage, says_nothing_else = usage_of(data[payload + 6 : end])
            if usage is not None and (says_nothing_else or self._shows_usage):
                self.usage = usage
                return data if self._shows_usage else data[:start] + data[end + 4 :]
        if not has_usage(data):
            return data
        return b"".join(
            [frame if MARK not in frame else chunk(self._without_hidden(unchunk(frame))) for frame in frames_of(data)]
        )

    def payload(self, data: bytes) -> None:
        """Body bytes cut anywhere: whole events are framed and passed on, the rest waits."""
        if self._splitter is None:
            self._splitter = EventSplitter()
        try:
            for event in self._splitter.feed(data):
                if data_of(event) is not None:
                    self._seen += 1
                    self._ends = (self._ends[1], event)
                shown = self._without_hidden(event) if MARK in event and has_usage(event) else event
                if shown:
                    self._sink.write_event(shown)
        except ValueError as fault:
            self.overflow = str(fault)
            self._source.abort()

    def _learn(self, data: bytes) -> None:
        """Have others go past here that are like this one event but for their text: two thirds of a chunk's cost.

        Of those it is known that they are one event each, and without usage, finish or error: neither stands around
        the text, which is a value, and without a quotation mark it cannot bring one.
        """
        alike = self._source.alike
        if alike - self._alike_before < _TRIES:  # the last form fitted to few
            self._tries -= 1
        self._alike_before = alike
        if not self._tries:
            self._source.pass_alike(NONE_ALIKE)  # to look for a form that never fits is a tenth of a chunk
            return
        text = _TEXT.search(data)
        if text is not None and _END.search(data) is None and data.find(_ERROR) < 0 and not has_usage(data):
            before = data[data.index(b"\r\n") + 2 : text.start(1)]
            self._source.pass_alike(Alike(before, data[text.end(1) :], self._sink.write))

    def _without_hidden(self, payload: bytes) -> bytes:
        """Events among which one has usage: that is kept for the settling, and hidden from who did not ask."""
        events = [payload]
        # More than one, or ended in another way: seldom.
        if payload.find(b"\n\n") != len(payload) - 2 or payload.find(b"\r") >= 0:
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
        return self._source.last_two if self._splitter is None else self._ends
