"""How the bytes of one HTTP/1.1 answer are read: what may be passed on, as what, and where the answer ends. Sans-I/O.

Pods of today answer streams in chunked framing, nearly always one event a chunk. Such chunks can go to a client as
they are, size line and all, if what goes out is only ever cut where a chunk and an event end together: then whatever
the gateway has to say itself (a heartbeat, an error, another pod's continuation) starts at a boundary, whenever the
pod dies. So there are two ways for a body to leave here:

- *frames*: whole chunks, each ending an event, exactly as the pod framed them;
- *payload*: the body without framing, cut anywhere, for every other answer, and from the first chunk on that does not
  end an event. There is no way back to frames within an answer.

This module decides that, and what is malformed, and when the answer is whole. The walk over the chunks is
`bytes.find` (a parser that calls back per chunk knows no offsets, and searching for an event's end in the *framed*
bytes is wrong where a payload holds a blank CRLF line). Whoever owns the socket decides what an early end means, and
when.

The last-chunk terminator and trailers never leave: the terminator a client gets is the gateway's own. Comments do not
open an answer, and a chunk of nothing but comments is dropped: what a client hears in silence is the gateway's to
say.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import cache
from typing import Final

from backends.wire.head import Announcement, Head, parse_head

HEAD_BYTES_MAX: Final = 65536  # the heads of interim (1xx) responses count, too
TAIL_BYTES_MAX: Final = 65536  # a chunk that is larger does not wait to be whole
SIZE_LINE_BYTES_MAX: Final = 1024
TRAILER_BYTES_MAX: Final = 16384

FAST_BYTES_MAX: Final = 4096  # reads of at least this size take the walk; four tables of this size are 0.9 MB
FRAME_HEAD_BYTES: Final = 10  # of a frame, compared to know it by: its size line and the name of its first field
FrameHeads = list[bytes]
NO_FRAME: Final[FrameHeads] = [b""] * FAST_BYTES_MAX  # no read begins so
FrameSizes = list[tuple[bytes, int]]
NO_SIZES: Final[FrameSizes] = [(b"", -1)] * FAST_BYTES_MAX  # no read is so long behind its size line

_DONE: Final = b"e\r\ndata: [DONE]\n\n\r\n"
_DONE_AND_END: Final = _DONE + b"0\r\n\r\n"
_DONE_AND_END_BYTES: Final = len(_DONE_AND_END)
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_EVENT_END_ANYWHERE: Final = re.compile(rb"\n\n|\r\r|\n\r\n")
_LEADING_COMMENTS: Final = re.compile(rb"(?:(?::[^\r\n]*+)?[\r\n])*+")
_LINE_OF_DATA: Final = re.compile(rb"[\r\n][^:\r\n]")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_BEGUN_SIZE_LINE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}([ \t]*;[\t\x20-\x7e\x80-\xff]*|[ \t]*)\r?")
_SIZE_OF: Final = {form % size: size for form in (b"%x", b"%X") for size in range(FAST_BYTES_MAX)}


class Reading(Enum):
    """What the next byte of an answer belongs to."""

    HEAD = "head"
    FRAMES = "frames"  # chunks, passed on as they came
    CHUNKS = "chunks"  # chunks, passed on as payload
    SIZED = "sized"  # by content-length
    UNTIL_CLOSE = "until_close"
    NOTHING = "nothing"  # the answer is whole
    BROKEN = "broken"  # what came is not an answer; `fault` says why


# Those that every answer meets: a module's name is read in half the time of a class's attribute.
_HEAD, _FRAMES, _NOTHING = Reading.HEAD, Reading.FRAMES, Reading.NOTHING


@cache
def frame_heads(*, is_upper: bool, field: bytes) -> FrameHeads:
    """For each n < `FAST_BYTES_MAX`: the first `FRAME_HEAD_BYTES` of n bytes that are exactly one chunk.

    A size line determines how long its chunk is, and the other way round; so a read of n bytes that begins with the
    n-th entry and ends in CRLF is one chunk, without any parsing. The payload begins with `field`, of which as much is
    in the entry as there is room for: so a comment never takes the fast way, and a payload is longer than what is
    tested at its end (a test for `\\n\\n\\r\\n` on a one-byte payload would see its size line). All entries are of one
    length because comparing a slice costs 60 ns, and `startswith` 250.
    """
    heads = NO_FRAME.copy()
    form = b"%X\r\n" if is_upper else b"%x\r\n"
    for size in range(len(field), FAST_BYTES_MAX):
        head = form % size
        if len(head) + len(field) >= FRAME_HEAD_BYTES and len(head) + size + 2 < FAST_BYTES_MAX:
            heads[len(head) + size + 2] = (head + field)[:FRAME_HEAD_BYTES]
    return heads


@cache
def frame_sizes(*, is_upper: bool) -> FrameSizes:
    """For each n < `FAST_BYTES_MAX`: the size line of n bytes that are exactly one chunk, and how many follow it."""
    sizes = NO_SIZES.copy()
    form = b"%X\r\n" if is_upper else b"%x\r\n"
    for size in range(1, FAST_BYTES_MAX):
        line = form % size
        if len(line) + size + 2 < FAST_BYTES_MAX:
            sizes[len(line) + size + 2] = (line, size + 2)
    return sizes


_USUAL_FIELD: Final = b"data: {"
_USUAL_HEADS: Final = frame_heads(is_upper=False, field=_USUAL_FIELD)
_USUAL_SIZES: Final = frame_sizes(is_upper=False)


def _field_of(frame: bytes, first: int) -> bytes:
    """How the frame's payload, which begins at `first`, begins: one of a few forms, each of which has its table."""
    for field in (_USUAL_FIELD, b"data:{", b"data: [", b"data:[", b"event: ", b"event:"):
        if frame.startswith(field, first):
            return field
    return _USUAL_FIELD


class Framing:
    """Reads one answer from the bytes of a connection, in whatever pieces they come.

    `frames`: whether whole chunks of a 2xx event stream may be passed on as they are. After each `feed`, see `head`,
    `is_whole`, `fault` (empty while all is well; it quotes no byte of the body, for it is logged) and, for what the
    payload was, `is_comment`.
    """

    __slots__ = (
        "_awaits_event",
        "_chunk_left",
        "_head_bytes",
        "_held",
        "_is_chunk_closing",
        "_left",
        "_line",
        "_reading",
        "_tail",
        "_wants_frames",
        "fast_end",
        "fast_heads",
        "fast_sizes",
        "fault",
        "has_leftover",
        "head",
        "is_comment",
        "is_whole",
        "keeps_alive",
    )

    def __init__(self, *, frames: bool) -> None:
        self.head: Head | None = None
        self.fault = ""
        self.is_whole = False  # the last byte of the answer has come
        self.keeps_alive = False  # by its head; what else forbids another request is the connection's to see
        self.has_leftover = False  # bytes came after the answer's end
        self.is_comment = False  # the last payload was comments of an event stream and nothing else
        self.fast_heads = _USUAL_HEADS
        self.fast_sizes = _USUAL_SIZES
        self.fast_end = b"\n\n\r\n"
        self._wants_frames = frames
        self._reading = _HEAD
        self._tail = b""  # begins with the first byte not yet understood
        self._head_bytes = 0
        self._left = 0  # bytes to come of a body by content-length
        self._chunk_left = 0  # payload bytes to come of the chunk that is being decoded
        self._is_chunk_closing = False  # that chunk's CRLF is to come
        self._awaits_event = False  # an event stream's payload is held until its first event is whole
        self._held = b""
        self._line = b"\n"  # the last line break of the payload and the byte after it: whether we are in a comment

    @property
    def is_between_frames(self) -> bool:
        """A whole chunk that ends an event may be passed on without `feed`, if one is next."""
        return self._reading is _FRAMES and not self._tail

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; give the frames and after them the payload that may be passed on by now, or nothing."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if self._reading is _HEAD:
            data = self._read_head(data)
            if not data:
                return b"", b""
        reading = self._reading
        if reading is _FRAMES:
            return self._walk(data)
        if reading is Reading.CHUNKS:
            payload = self._decode(data)
        elif reading is Reading.SIZED:
            payload = self._measure(data)
        elif reading is Reading.UNTIL_CLOSE:
            payload = data
        else:
            self.has_leftover = True
            return b"", b""
        return b"", self._let_out(payload)

    def end(self) -> bytes:
        """The connection has ended in order. Gives what was held back, if this makes the answer whole."""
        if self._reading is Reading.UNTIL_CLOSE:
            self._reading = _NOTHING
            self.is_whole = True
            return self._let_out(b"")
        return b""

    # The head

    def _read_head(self, data: bytes) -> bytes:
        """Read heads up to the final one; give what follows it."""
        while True:
            begun = data[:7]
            if begun != b"HTTP/1." and not b"HTTP/1.".startswith(begun):
                return self._break("the answer is not HTTP/1")
            end = data.find(b"\r\n\r\n") + 4
            if self._head_bytes + (end if end >= 4 else len(data)) > HEAD_BYTES_MAX:
                return self._break(f"the head is over {HEAD_BYTES_MAX} bytes")
            if end < 4:
                self._tail = data
                return b""
            self._head_bytes += end
            announced = parse_head(data[:end])
            data = data[end:]
            if isinstance(announced, str):
                return self._break(announced)
            if announced.head.status >= 200:
                self._begin_body(announced)
                return data
            if not data:
                return b""

    def _begin_body(self, announced: Announcement) -> None:
        """The final head is here: choose how the body is read."""
        self.head = announced.head
        self.keeps_alive = announced.keeps_alive
        self._awaits_event = announced.head.is_stream and announced.head.status < 300
        if announced.is_chunked:
            is_framed = self._wants_frames and self._awaits_event
            self._reading = _FRAMES if is_framed else Reading.CHUNKS
        elif announced.length is None:
            self._reading = Reading.UNTIL_CLOSE
            self.keeps_alive = False
        else:
            self._reading = Reading.SIZED if announced.length else _NOTHING
            self.is_whole = announced.length == 0
            self._left = announced.length

    # The body

    def _walk(self, data: bytes) -> tuple[bytes, bytes]:
        """Step from chunk to chunk; give the whole ones that end events, and payload from the first other one on.

        An incomplete chunk waits in the tail. 0.5 µs a chunk: many reads hold several chunks when the loop is busy.
        """
        received = len(data)
        begin = at = 0  # the frames to give are data[begin:at]
        kept: list[bytes] = []  # those before a dropped one
        payload = b""
        while at < received:
            if received - at == _DONE_AND_END_BYTES and data[at:] == _DONE_AND_END:  # spares most answers 1.8 µs
                at += len(_DONE)
                self._reading = _NOTHING
                self.is_whole = True
                break
            # Most sizes have two digits, and seeing that takes half the time of `find`, which parses its arguments.
            line_end = at + 2
            if data[line_end : at + 4] != b"\r\n":
                line_end = data.find(b"\r\n", at, at + SIZE_LINE_BYTES_MAX)
            if line_end < 0:
                self._wait_for_size_line(data, at)
                break
            size = _SIZE_OF.get(data[at:line_end])
            if size is None:
                size, is_plain = self._parse_size(data[at:line_end])
                if size and not is_plain:  # an extension is between the pod and us
                    payload = self._give_up_frames(data, at)
                    break
            if size <= 0:
                if size == 0 and not self._take_end(data, line_end):
                    self._tail = data[at:]
                break
            first = line_end + 2
            last = first + size
            if last + 2 > received:
                if size > TAIL_BYTES_MAX:
                    payload = self._give_up_frames(data, at)
                else:
                    self._tail = data[at:]
                break
            # Both tests stay inside the payload: the frame of a one-byte chunk "\n" ends as an event does.
            # Nearly every chunk passes the first one, a slice of 80 ns; the other two cost 210.
            if size < 2 or data[last - 2 : last + 2] != b"\n\n\r\n":
                if data[last : last + 2] != b"\r\n":
                    self._break("a chunk is not as long as its size says")
                    break
                if not data.endswith(_EVENT_ENDS, first, last):
                    payload = self._give_up_frames(data, at)
                    break
            if data[first] in b":\r\n" and _LINE_OF_DATA.search(b"\n" + data[first:last]) is None:
                kept.append(data[begin:at])
                begin = last + 2
            elif at == 0 and last + 2 == received:
                self._learn(data, line_end)
            at = last + 2
        frames = data[begin:at]
        if kept:
            kept.append(frames)
            frames = b"".join(kept)
        if frames:
            self._awaits_event = False
        if payload:
            payload = self._let_out(payload)
        return frames, payload

    def _learn(self, frame: bytes, line_end: int) -> None:
        """A read was one chunk and yet took the walk: take its ways for those of this pod from now on."""
        line = frame[:line_end]
        is_upper = line != line.lower()
        self.fast_heads = frame_heads(is_upper=is_upper, field=_field_of(frame, line_end + 2))
        self.fast_sizes = frame_sizes(is_upper=is_upper)
        self.fast_end = b"\r\n\r\n\r\n" if frame.endswith(b"\r\n\r\n\r\n") else b"\n\n\r\n"

    def _give_up_frames(self, data: bytes, at: int) -> bytes:
        """From here on this answer's body goes on as payload."""
        self._reading = Reading.CHUNKS
        return self._decode(data[at:])

    def _decode(self, data: bytes) -> bytes:
        """Take chunks apart; give their payload, also of incomplete ones."""
        parts: list[bytes] = []
        received = len(data)
        at = 0
        while at < received:
            if self._chunk_left:
                part = data[at : at + self._chunk_left]
                parts.append(part)
                at += len(part)
                self._chunk_left -= len(part)
                self._is_chunk_closing = self._chunk_left == 0
                continue
            if self._is_chunk_closing:
                if not b"\r\n".startswith(data[at : at + 2]):
                    self._break("a chunk is not as long as its size says")
                    break
                if received - at < 2:
                    self._tail = data[at:]
                    break
                self._is_chunk_closing = False
                at += 2
                continue
            line_end = data.find(b"\r\n", at, at + SIZE_LINE_BYTES_MAX)
            if line_end < 0:
                self._wait_for_size_line(data, at)
                break
            size, _ = self._parse_size(data[at:line_end])
            if size <= 0:
                if size == 0 and not self._take_end(data, line_end):
                    self._tail = data[at:]
                break
            self._chunk_left = size
            at = line_end + 2
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _measure(self, data: bytes) -> bytes:
        """Take what is left of a body whose length is known."""
        payload = data[: self._left]
        self._left -= len(payload)
        if self._left == 0:
            self._reading = _NOTHING
            self.is_whole = True
            self.has_leftover = len(data) > len(payload)
        return payload

    def _parse_size(self, line: bytes) -> tuple[int, bool]:
        """The size that a size line states, or -1 if it is none, and whether it states nothing else."""
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            self._break("a chunk begins with what is no size")
            return -1, True
        return int(match[1], 16), match[2] is None

    def _wait_for_size_line(self, data: bytes, at: int) -> None:
        """Keep a size line that has begun, if it can still become one."""
        line = data[at:]
        if len(line) >= SIZE_LINE_BYTES_MAX:
            self._break(f"a chunk's size line is over {SIZE_LINE_BYTES_MAX} bytes")
        elif not _BEGUN_SIZE_LINE.fullmatch(line):
            self._break("a chunk begins with what is no size")
        else:
            self._tail = line

    def _take_end(self, data: bytes, line_end: int) -> bool:
        """Whether the last chunk, its size line ending at `line_end`, and its trailers are whole; then the answer
        is."""
        # From the size line's own CRLF: without trailers the empty line follows at once.
        end = data.find(b"\r\n\r\n", line_end)
        if end < 0:
            if len(data) - line_end > TRAILER_BYTES_MAX:
                self._break(f"the trailers are over {TRAILER_BYTES_MAX} bytes")
            return False
        self._reading = _NOTHING
        self.is_whole = True
        self.has_leftover = len(data) > end + 4
        return True

    # What is let out

    def _let_out(self, payload: bytes) -> bytes:
        """Hold an event stream's payload until its first event, drop the comments before it; then let all through."""
        if self._awaits_event:
            held = self._held + payload
            dropped = _LEADING_COMMENTS.match(held)
            assert dropped is not None, "the pattern matches nothing, too"
            fresh_from = 0 if dropped.end() else max(0, len(self._held) - 2)
            held = held[dropped.end() :]
            if (
                self._reading is not _NOTHING
                and len(held) <= TAIL_BYTES_MAX
                and _EVENT_END_ANYWHERE.search(held, fresh_from) is None
            ):
                self._held = held
                return b""
            self._awaits_event = False
            self._held = b""
            payload = held
        if self.head is not None and self.head.is_stream and payload:
            lines = self._line + payload
            self.is_comment = _LINE_OF_DATA.search(lines) is None
            self._line = lines[max(lines.rfind(b"\n"), lines.rfind(b"\r")) :][:2]
        return payload

    def _break(self, fault: str) -> bytes:
        """This is no answer: nothing more is read."""
        self._reading = Reading.BROKEN
        self.fault = fault
        self._tail = b""
        return b""
