"""The head of an answer: what httptools parses of it, and what it says of the body and of the connection. Sans-I/O.

Strictness is llhttp's: it refuses what could be read in two ways (two lengths, a length beside chunks, bare line
feeds). Beyond that, an answer in a coding that nobody asked for, or that switches protocols, is no answer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import httptools
import msgspec

_KNOWN_HEADS: Final = 64  # of some pods, and of some seconds, for they hold the date; 8 MB if all were the largest


class Head(msgspec.Struct, frozen=True):
    """An answer's status and headers; names are lower-case. `is_stream`: its content type is `text/event-stream`."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    is_stream: bool

    def get(self, name: bytes) -> bytes | None:
        """The first value of the header `name` (lower-case), or `None`."""
        return next((value for key, value in self.headers if key == name), None)


class Announcement(msgspec.Struct, frozen=True):
    """A head, how the body after it is delimited, and whether the connection may be used again.

    `length` is the body's in bytes, 0 where there is none; with neither `is_chunked` nor a length the body lasts
    until the connection closes. A status below 200 announces nothing: another head follows.
    """

    head: Head
    is_chunked: bool
    length: int | None
    keeps_alive: bool


@lru_cache(_KNOWN_HEADS)  # a pod's answers nearly all have one head: 2,000 instructions instead of 26,000
def parse_head(data: bytes) -> Announcement | str:
    """Parse one head, from its status line to its empty line; a `str` says why it is none."""
    fields = _Fields()
    parser = httptools.HttpResponseParser(fields)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return "the pod switched protocols"
    except httptools.HttpParserError as error:
        return f"bad head: {error}"
    status = int(parser.get_status_code())
    kind = coding = connection = b""
    length = None
    for name, value in fields.headers:
        if name == b"content-type":
            kind = value.lower()
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            coding = coding + b"," + value.lower() if coding else value.lower()
        elif name == b"connection":
            connection += b"," + value.lower()
    if coding not in (b"", b"chunked"):
        return f"unknown transfer-encoding {coding!r}"
    if status in (204, 304):
        coding, length = b"", 0
    keeps_alive = parser.get_http_version() != "1.0"
    if connection:
        options = [option.strip() for option in connection.split(b",")]
        keeps_alive = b"close" not in options if keeps_alive else b"keep-alive" in options
    return Announcement(
        Head(status, tuple(fields.headers), kind.startswith(b"text/event-stream")),
        is_chunked=bool(coding),
        length=length,
        keeps_alive=keeps_alive,
    )


class _Fields:
    """What httptools calls back with a head's header fields."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip()))
