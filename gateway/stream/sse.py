"""Server-sent events as bytes: where events end, what they carry, how the gateway's own are framed.

Only whole events are ever written to a client, so that a heartbeat, an error or a later pod's events can follow at any
moment. openai-python fails on a comment that is followed by a blank line, so a heartbeat is a comment with one newline.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

HEARTBEAT = b": hb\n"

TEXT_NAMES = b"content|text|reasoning_content|reasoning"
"""Under which names an event carries a piece of generated text, as alternatives of a pattern."""

# A blank line: two line ends in a row, each of the three that the standard knows. A CR that may be half of a CRLF waits
# for the next byte, so that no lone LF is left to begin the next event; in CR-only streams nothing waits.
_END = re.compile(rb"(?:\r\n|\n)(?:\r\n|\n|\r(?=[^\n]))|\r\r|\r(?!\n)\n")


def chunk(payload: bytes) -> bytes:
    """`payload` as one chunk of HTTP's chunked coding; an empty payload makes no chunk at all."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def frames_of(frames: bytes) -> list[bytes]:
    """Whole chunks, as a wire passes them (no terminator, nothing half), one by one."""
    parts: list[bytes] = []
    start, length = 0, len(frames)
    while start < length:
        line_end = frames.index(b"\r\n", start)
        end = line_end + int(frames[start:line_end], 16) + 4
        parts.append(frames[start:end])
        start = end
    return parts


def unchunk(frame: bytes) -> bytes:
    """The payload of one whole chunk."""
    return frame[frame.index(b"\r\n") + 2 : -2]


def data_of(event: bytes) -> bytes | None:
    """The event's data, its lines joined as the standard says, or `None` for a comment or an event without data."""
    if event[:6] == b"data: " and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # one line of data, as nearly always
    lines = [line for line in event.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n") if line[:5] == b"data:"]
    if not lines:
        return None
    return b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines)


class EventSplitter:
    """Cuts a body that arrives in pieces of any size into whole events; what is not whole yet waits.

    At most `limit_bytes` of an event wait; beyond that `feed` raises `ValueError`.
    """

    def __init__(self, limit_bytes: int = 8 * 1024 * 1024) -> None:
        self._rest = b""
        self._limit_bytes = limit_bytes

    @property
    def rest(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return self._rest

    def feed(self, payload: bytes) -> Iterator[bytes]:
        """Take more of the body; yield each event that is whole now, its blank line included."""
        body = self._rest + payload
        # An end may have come in two pieces: look again at the last three bytes of what waited.
        search_from = max(0, len(self._rest) - 3)
        start = 0
        if body.find(b"\r") < 0:  # as nearly always; the pattern takes 50 times as long a byte
            while (end := body.find(b"\n\n", search_from)) >= 0:
                search_from = end + 2
                yield body[start:search_from]
                start = search_from
        else:
            for match in _END.finditer(body, search_from):
                yield body[start : match.end()]
                start = match.end()
        self._rest = body[start:]
        if len(self._rest) > self._limit_bytes:
            raise ValueError(f"an event of more than {self._limit_bytes} bytes")
