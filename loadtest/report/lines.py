"""One JSON line a call, written as calls end, so that a run of any length can be looked at call by call afterwards.

Each line has these fields, always all of them but `gaps`:

| field | what |
|---|---|
| `phase`, `tenant` | names from the scenario |
| `counted` | false for a call of the warm-up: it is in no table |
| `scheduled`, `sent`, `first`, `last`, `ended` | when it was due, went out, brought its first and last event with text, and was over: seconds since 1970, `first` and `last` null where no text came |
| `ttft` | from `scheduled` to `first`, in seconds; null for a call that failed |
| `wait` | from `scheduled` to `sent`, in seconds: what the client itself, or its limit of open streams, added |
| `e2e` | from `scheduled` to `ended`, in seconds; null for a call that failed or was left on purpose |
| `tpot` | from `first` to `ended`, over the tokens after the first; null as `e2e` is, under two tokens, and for an answer that came in one piece |
| `tokens` | reported completion tokens of a call that is done, else the events that brought text |
| `input`, `output` | tokens asked for |
| `prompt_tokens`, `completion_tokens` | as the server reported them; null where it did not |
| `events` | those with text, reasoning or a tool call |
| `longest_gap` | seconds between two such events, 0 where there are no two |
| `status`, `code` | HTTP status (0: none came); what was wrong: empty for a call that is done, `cancelled` for one left on purpose |
| `reused` | whether it went out on a connection that had carried others |
| `request_id` | the server's, or empty |
| `gaps` | seconds between events, only where raw ones are kept |

Latencies of failed calls are null, since they measure no answer; `first` and `ended` still tell when it broke off.
"""  # noqa: E501 - a table's row is one line

from __future__ import annotations

import os
from typing import Final

import msgspec

from loadtest.messages import CANCELLED, Call

FLUSH_BYTES: Final = 256 * 1024


class FileFault(Exception):
    """A file of the run cannot be written; `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot write {path}: {reason}")
        self.path = path
        self.reason = reason


class JsonLines:
    """A file of one JSON value a line. It is made with the first value, or by `open`, and replaces one that was there.

    Lines are held until `FLUSH_BYTES` have come together, `flush` or `close`. Every verb raises `FileFault` where the
    file cannot be made or has no room; nothing more is written then, what was written before stays.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._file: int | None = None
        self._is_broken = False

    def open(self) -> None:
        """Make the file now, so that a fault shows before any load is sent."""
        if self._file is None and not self._is_broken:
            try:
                os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise self._fault(error) from error

    def put(self, value: object) -> None:
        """Add one line."""
        buffer = self._buffer
        self._encoder.encode_into(value, buffer, -1)
        buffer += b"\n"
        if len(buffer) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is held to the kernel."""
        if not self._buffer or self._is_broken:
            self._buffer.clear()
            return
        self.open()
        assert self._file is not None
        held = bytes(self._buffer)
        self._buffer.clear()
        written = 0
        try:
            while written < len(held):
                written += os.write(self._file, held[written:] if written else held)
        except OSError as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Write the rest. A file that never had a line, nor was opened, is not made."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _fault(self, error: OSError) -> FileFault:
        self._is_broken = True
        self._buffer.clear()
        return FileFault(self.path, error.strerror or str(error))


class Lines:
    """The file of the calls. `keeps_gaps`: whether calls come with their raw gaps, and lines go out with them.

    4 µs a call, the kernel's part included: 10,000 a second take 4 % of a core; with 64 raw gaps each, 9 µs.
    """

    def __init__(self, path: str, keeps_gaps: bool = False) -> None:
        self._lines = JsonLines(path)
        self._keeps_gaps = keeps_gaps

    def open(self) -> None:
        """Make the file now; raises `FileFault`."""
        self._lines.open()

    def write(self, phase: str, tenant: str, call: Call, started_epoch: float, is_counted: bool = True) -> None:
        """Add the call's line; `started_epoch`: when its phase began, in seconds since 1970. Raises `FileFault`."""
        first, last = call.first, call.last
        line: dict[str, object] = {
            "phase": phase,
            "tenant": tenant,
            "counted": is_counted,
            "scheduled": started_epoch + call.scheduled,
            "sent": started_epoch + call.sent,
            "first": None if first is None else started_epoch + first,
            "last": None if last is None else started_epoch + last,
            "ended": started_epoch + call.ended,
            "ttft": ttft(call),
            "wait": call.sent - call.scheduled,
            "e2e": e2e(call),
            "tpot": tpot(call),
            "tokens": tokens(call),
            "input": call.input,
            "output": call.output,
            "prompt_tokens": call.prompt_tokens if call.prompt_tokens >= 0 else None,
            "completion_tokens": call.completion_tokens if call.completion_tokens >= 0 else None,
            "events": call.events,
            "longest_gap": call.longest_gap,
            "status": call.status,
            "code": call.code,
            "reused": call.is_reused,
            "request_id": call.request_id,
        }
        if self._keeps_gaps:
            line["gaps"] = call.gaps
        self._lines.put(line)

    def flush(self) -> None:
        """Hand what is held to the kernel; raises `FileFault`."""
        self._lines.flush()

    def close(self) -> None:
        """Write the rest; raises `FileFault`."""
        self._lines.close()


def ttft(call: Call) -> float | None:
    """Scheduled arrival to first token, of a call that is done or was left on purpose; else `None`."""
    return None if call.first is None or call.code not in ("", CANCELLED) else call.first - call.scheduled


def e2e(call: Call) -> float | None:
    """Scheduled arrival to end, of a call that is done; else `None`."""
    return None if call.code else call.ended - call.scheduled


def tpot(call: Call) -> float | None:
    """(E2E − TTFT) / (n − 1), of a call that is done and brought n ≥ 2 tokens in more than one piece; else `None`."""
    count = tokens(call)
    if call.code or count < 2 or call.first is None or call.ended <= call.first:
        return None
    return (call.ended - call.first) / (count - 1)


def tokens(call: Call) -> int:
    """Completion tokens as reported for a call that is done, else the events with text that came."""
    return call.events if call.code or call.completion_tokens < 0 else call.completion_tokens
