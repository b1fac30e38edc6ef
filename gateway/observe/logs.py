"""The gateway's two logs: one line for each finished request, and what the gateway itself has to say.

Neither ever holds a prompt, an answer or a key: a `Record` has none, and whatever looks like a credential is blotted
out of texts that come from elsewhere, such as a pod's error message. Nor does a log ever stop the gateway: a reader
that is slow or gone costs lines, which are counted, never a request. How long a line stays in memory is decided here
(100 ms at most); where the stream leads is not.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.record import Record

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
FLUSH_SECONDS = 0.1

_MOST_WAITING_BYTES = 4 * 1024 * 1024  # for a reader that is slow
_FULL_BYTES = 64 * 1024  # enough to be written now
_MOST_DETAIL = 500
# What a pipe that says "writable" takes without making the writer wait. Written with plain blocking calls: O_NONBLOCK
# would be set for every process that shares the terminal.
_PIECE_BYTES = select.PIPE_BUF

_SECRET_FIELDS = frozenset({"authorization", "api_key", "x-api-key", "token", "password", "secret", "cookie", "env"})
_SECRET_TEXT = re.compile(r"(?i)(bearer\s+|\bsk-|[?&]token=|x-api-key:\s*)[^\s\"'&,;]+")
_BLOT = "***"
_MILLISECONDS = [f"{milliseconds:03d}Z" for milliseconds in range(1000)]

CallLater = Callable[[float, Callable[[], None]], object]
_encode = msgspec.json.Encoder(enc_hook=str).encode


class Stream(Protocol):
    """A file, pipe or terminal."""

    def fileno(self) -> int:
        """Its descriptor, which is written to directly."""


class _Lines:
    """Writes lines to a descriptor without ever waiting for its reader."""

    def __init__(self, stream: Stream) -> None:
        self._fd = stream.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._waiting = bytearray()
        self._is_broken = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, line: bytes) -> int:
        """Keep `line` for the next flush, or count it as dropped; gives how many bytes wait."""
        waiting = self._waiting
        if self._is_broken or len(waiting) + len(line) > _MOST_WAITING_BYTES:
            self.dropped += 1
        else:
            waiting += line
        return len(waiting)

    def flush(self) -> None:
        """Write what the reader takes now; the rest stays."""
        waiting = self._waiting
        written = 0
        try:
            while written < len(waiting) and self._is_writable():
                written += os.write(self._fd, waiting[written : written + _PIECE_BYTES])
        except OSError:
            self._is_broken = True
        if self._is_broken:
            waiting.clear()
        else:
            del waiting[:written]

    def _is_writable(self) -> bool:
        for _, events in self._poll.poll(0):
            if events & (select.POLLERR | select.POLLNVAL | select.POLLHUP):
                self._is_broken = True
                return False
            return True
        return False


class _Stamps:
    """Wall-clock times as text, in UTC; the part that changes once a second is made once a second."""

    def __init__(self, epoch: Callable[[], float]) -> None:
        self._epoch = epoch
        self._second = -1
        self._text = ""

    def now(self) -> str:
        epoch = self._epoch()
        second = int(epoch)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        return self._text + _MILLISECONDS[int((epoch - second) * 1000)]


class Log:
    """What the gateway has to say of itself, one line an event, at once: `log.warning("pod_exited", pod="chat-0")`.

    Fields are facts under plain names; a field named like a credential is blotted out. `level` is the least that is
    written, `format` is `json` or `text`.
    """

    def __init__(
        self, stream: Stream, *, level: str = "info", format: str = "json", epoch: Callable[[], float] = time.time
    ) -> None:
        self._lines = _Lines(stream)
        self._stamps = _Stamps(epoch)
        self._least = LEVELS[level]
        self._is_json = format == "json"

    def debug(self, event: str, /, **fields: object) -> None:
        """Of interest to who looks for a fault."""
        self._write("debug", event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Something happened as it should."""
        self._write("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something happened that somebody may have to look at."""
        self._write("warning", event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something failed that should not."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS[level] < self._least:
            return
        clean = {name: _BLOT if name in _SECRET_FIELDS else _without_secrets(value) for name, value in fields.items()}
        if self._is_json:
            line = _encode({"time": self._stamps.now(), "level": level, "event": event, **clean}) + b"\n"
        else:
            facts = "".join(f" {name}={_plain(value)}" for name, value in clean.items())
            line = f"{self._stamps.now()} {level.upper():7} {event}{facts}\n".encode(errors="replace")
        self._lines.add(line)
        self._lines.flush()


class _Entry(msgspec.Struct, omit_defaults=True):
    """One line of the access log; what is not known or not so is left out."""

    time: str
    request_id: str
    endpoint: str
    status: int
    total_ms: float
    code: str = ""
    tenant: str = ""
    key: str = ""
    model: str = ""
    stream: bool = False
    pod: str = ""
    attempts: int = 0
    outcomes: tuple[tuple[str, str], ...] = ()
    queued_ms: float = 0.0
    first_token_ms: float | None = None
    events: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usage_reported: bool = False
    client_left: bool = False
    bytes_in: int = 0
    refused_by: str = ""
    detail: str = ""


class AccessLog:
    """One line for each finished request. Lines are gathered and written after at most 100 ms, by `call_later`."""

    def __init__(
        self, stream: Stream, *, call_later: CallLater, format: str = "json", epoch: Callable[[], float] = time.time
    ) -> None:
        self._lines = _Lines(stream)
        self._stamps = _Stamps(epoch)
        self._call_later = call_later
        self._is_json = format == "json"
        self._is_due = False

    def take(self, record: Record) -> None:
        """Write down `record`. About 5 µs; never waits, never raises for the stream's sake."""
        arrived_at = record.arrived_at
        first_at = record.first_token_at
        entry = _Entry(  # by position: msgspec looks for each name among all, 12,500 instructions in the end
            self._stamps.now(),
            record.request_id,
            record.endpoint,
            record.status,
            _ms(record.ended_at - arrived_at),
            record.code,
            record.tenant,
            record.key,
            record.model,
            record.streamed,
            record.pod,
            record.attempts,
            record.outcomes if record.attempts > 1 else (),
            _ms(record.queued_seconds),
            None if first_at is None else _ms(first_at - arrived_at),
            record.events,
            record.prompt_tokens,
            record.completion_tokens,
            record.usage_reported,
            record.client_left,
            record.bytes_in,
            record.refused_by,
            _clean(record.detail[:_MOST_DETAIL]) if record.detail else "",
        )
        lines = self._lines
        if lines.add(_encode(entry) + b"\n" if self._is_json else _as_text(entry)) > _FULL_BYTES:
            lines.flush()
        if not self._is_due:
            self._is_due = True
            self._call_later(FLUSH_SECONDS, self._flush)

    def close(self) -> None:
        """Write what is gathered, as far as the reader takes it; later records are written as they come."""
        self._flush()

    def _flush(self) -> None:
        self._is_due = False
        lines = self._lines
        lines.flush()
        if lines.dropped and not len(lines):
            dropped, lines.dropped = lines.dropped, 0
            lines.add(_encode({"time": self._stamps.now(), "event": "lines_dropped", "lines": dropped}) + b"\n")
        if len(lines):
            self._is_due = True
            self._call_later(FLUSH_SECONDS, self._flush)


def _ms(seconds: float) -> float:
    return int(seconds * 10_000 + 0.5) / 10  # `round(…, 1)` goes through decimal digits: 2,200 instructions more


def _as_text(entry: _Entry) -> bytes:
    facts = [f"{entry.time} {entry.status} {entry.endpoint}"]
    for name in entry.__struct_fields__[4:]:
        value = getattr(entry, name)
        if value or name == "total_ms":
            facts.append(f"{name}={_plain(value)}")
    return (" ".join((*facts, f"request_id={entry.request_id}")) + "\n").encode(errors="replace")


def _plain(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(sign.isspace() or not sign.isprintable() for sign in text) else text


def _without_secrets(value: object) -> object:
    return _clean(value) if isinstance(value, str) else value


def _clean(text: str) -> str:
    return _SECRET_TEXT.sub(lambda found: found.group(1) + _BLOT, text)
