"""What one answer turned out to be, judged from its bytes as they arrive, and when its tokens came.

An answer is done only with a finish, `[DONE]` and, where one is given, a usage that matches what arrived; everything
else ends under a code of its own. TTFT is the first event with non-empty text, reasoning or a tool call: an event that
only names a role, and a comment, are none. Gaps lie between *reads* that brought such events: events that were piled up
somewhere arrive together, and are no arrivals of their own.

Nothing here knows sockets or clocks: `take` is given the body's bytes and when they were read.
"""

from __future__ import annotations

import json
import sys
from array import array
from typing import Any

import msgspec

from loadtest.histogram import Counts, counts_of
from loadtest.scenario import Usage

MOST_REST_BYTES = 1 << 20  # of an event that has not ended yet
MOST_WHOLE_BYTES = 16 << 20
MOST_ERROR_BYTES = 64 << 10
MOST_RAW_GAPS = 1024  # of one answer; then they are folded into a histogram, 19 KiB whatever its length
MOST_CODE = 60  # characters of a code that a server made up

_QUOTE, _BACKSLASH = 0x22, 0x5C
_NOTHING_LEARNT = -1
_TEXT_KEYS = (b'"content"', b'"text"', b'"reasoning_content"', b'"reasoning"', b'"arguments"')


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    refusal: Any = None

    def has_text(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls or self.refusal)


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Answer:
    """One answer. `asked` is the maximum of tokens that was asked for (0: not known); `is_stream` that a stream was;
    with `keep_gaps` all gaps stay in `gaps`, 4 bytes each, else only the latest ones do.

    Times are the caller's clock. `events` counts events with text, `reads` the reads that brought any.
    """

    __slots__ = (
        "_asked",
        "_choices",
        "_error",
        "_finishes",
        "_folded",
        "_folded_sum",
        "_is_stream",
        "_learnt_bytes",
        "_most_gaps",
        "_prefix",
        "_rest",
        "_suffix",
        "_usage",
        "completion_tokens",
        "done_at",
        "events",
        "first",
        "gap_count",
        "gaps",
        "is_event_stream",
        "last",
        "longest_gap",
        "prompt_tokens",
        "reads",
        "status",
    )

    def __init__(
        self, asked: int = 0, *, is_stream: bool = True, usage: Usage = "bounded", keep_gaps: bool = False
    ) -> None:
        self.status = 0
        self.is_event_stream = False
        self.events = 0
        self.reads = 0
        self.first: float | None = None
        self.last = 0.0
        self.done_at: float | None = None
        self.gaps = array("f")
        self.prompt_tokens = -1
        self.completion_tokens = -1
        self._asked = asked
        self._is_stream = is_stream
        self._usage = usage
        self._most_gaps = sys.maxsize if keep_gaps else MOST_RAW_GAPS
        self._rest = b""
        self._choices = 1
        self._finishes = 0
        self._error = ""
        self._folded: Counts | None = None
        self._folded_sum = 0.0
        self.gap_count = 0
        self.longest_gap = 0.0
        self._prefix = self._suffix = b""
        self._learnt_bytes = _NOTHING_LEARNT

    # ---- as it arrives

    def take(self, body: bytes, now: float) -> None:
        """The next bytes of the body, read at `now`. An event that is like the one before but for its text costs 0.5
        µs; any other is parsed, 3 to 4 µs.
        """
        if not self._rest and self._is_alike(body):
            self.events += 1
            self.reads += 1
            self.gaps.append(now - self.last)
            self.last = now
            if len(self.gaps) > self._most_gaps:
                self._fold()
            return
        if self.is_event_stream and self.status == 200:
            self._take_events(body, now)
        elif len(self._rest) + len(body) <= (MOST_WHOLE_BYTES if self.status == 200 else MOST_ERROR_BYTES):
            self._rest += body
        elif self.status == 200:
            self._error = "too_large"

    def _take_events(self, body: bytes, now: float) -> None:
        """Bytes of an event stream, in whole events; what follows the last whole one waits. What follows `[DONE]` is
        nothing to anybody.
        """
        if self.done_at is not None:
            return
        text = self._rest + body
        events_before = self.events
        at = 0
        while self.done_at is None and (end := _end_of_event(text, at)) > 0:
            event = text[at:end]
            if self._is_alike(event):
                self.events += 1
            else:
                self._take_event(event, now)
            at = end
        self._rest = text[at:] if self.done_at is None else b""
        if len(self._rest) > MOST_REST_BYTES:
            self._error, self._rest = self._error or "malformed", b""
        if self.events == events_before:
            return
        self.reads += 1
        if self.first is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
            if len(self.gaps) > self._most_gaps:
                self._fold()
        self.last = now

    def _take_event(self, event: bytes, now: float) -> None:
        """One event with its blank line, read whole."""
        lines = event.splitlines()
        data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if not data:
            return  # a comment, or an event without data
        if data.startswith(b"[DONE]"):  # as OpenAI's own client has it
            self.done_at = now
            self._learnt_bytes = _NOTHING_LEARNT
            return
        chunk = _chunk_of(data)
        if chunk is None:
            self._error = self._error or "malformed"
            return
        if chunk.error is not None:
            self._error = self._error or f"error_event {_code_of(chunk.error)}".strip()
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
        has_text = has_finish = False
        for choice in chunk.choices or ():
            self._choices = max(self._choices, (choice.index or 0) + 1)
            if choice.finish_reason:
                has_finish = True
                self._finishes += 1
            has_text = has_text or bool(choice.text) or (choice.delta is not None and choice.delta.has_text())
        if has_text:
            self.events += 1
            if not has_finish and chunk.usage is None:
                self._learn(event)

    def _take_usage(self, usage: _Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.completion_tokens = usage.completion_tokens

    def _learn(self, event: bytes) -> None:
        """Remember what stands around the text of this event, so that the next one like it is counted unparsed."""
        for key in _TEXT_KEYS:
            at = event.find(key)
            begin = event.find(b'"', at + len(key))
            end = event.find(b'"', begin + 1)
            if at < 0 or event[at + len(key) : begin].strip() != b":" or end <= begin + 1:
                continue
            if b"\\" in event[begin:end]:
                return  # where such a string ends takes more than a search: the next event will do
            self._prefix, self._suffix = event[: begin + 1], event[end:]
            self._learnt_bytes = len(self._prefix) + len(self._suffix)
            return

    def _is_alike(self, event: bytes) -> bool:
        """Whether these bytes are one event that is known but for a text, which is there. Hot: 0.3 µs.

        What was learnt is an event with text, and without finish or usage, cut within one of its strings. With
        the same bytes around it, a plain string (no quote, no escape, no control character, valid UTF-8; not empty)
        leaves the JSON the same but for that string. So it is counted as parsing it would have.
        """
        text = event.removeprefix(self._prefix).removesuffix(self._suffix)
        if len(event) - len(text) != self._learnt_bytes or not text or _QUOTE in text or _BACKSLASH in text:
            return False
        try:
            return text.decode().isprintable()
        except UnicodeDecodeError:
            return False

    def _fold(self) -> None:
        """Put the raw gaps away as counts."""
        gaps = self.gaps
        counts = counts_of(gaps)
        self._folded = counts if self._folded is None else self._folded + counts
        self._folded_sum += sum(gaps)
        self.gap_count += len(gaps)
        self.longest_gap = max(self.longest_gap, max(gaps))
        self.gaps = array("f")

    # ---- at its end

    def folded(self) -> tuple[Counts, float] | None:
        """Counts by bucket, and the sum in seconds, of the gaps that are no longer in `gaps`, if there are such."""
        return None if self._folded is None else (self._folded, self._folded_sum)

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer is known yet."""
        return self.status != 0

    def tokens(self) -> int:
        """Tokens received: the reported ones, where there are such, else events."""
        return self.completion_tokens if self.completion_tokens >= 0 else self.events

    def end(self, now: float, *, is_whole: bool) -> str:
        """The code of the answer now that no more comes; empty where it is done as it should be.

        `is_whole` says that HTTP's framing came to its end. A stream that has its `[DONE]` is whole for its reader.
        """
        if self.gaps:
            self.gap_count += len(self.gaps)
            self.longest_gap = max(self.longest_gap, max(self.gaps))
        if self.status == 0:
            return "cut"
        if self.status != 200:
            return f"{self.status} {_code_in(self._rest)}".strip()
        if not self.is_event_stream:
            return self._end_whole(now, is_whole)
        if self._error:
            return self._error
        is_finished = self._finishes >= self._choices
        if self.done_at is None:
            if not is_whole:
                return "cut"
            return "no_done" if is_finished else "unfinished"
        if not is_finished:
            return "unfinished"
        return "" if self._usage_matches() else "usage_mismatch"

    def _end_whole(self, now: float, is_whole: bool) -> str:
        if self._error or not is_whole:
            return self._error or "cut"
        chunk = _chunk_of(self._rest)
        if chunk is None:
            return "not_a_stream" if self._is_stream else "malformed"
        if chunk.error is not None:
            return f"error_event {_code_of(chunk.error)}".strip()
        if self._is_stream:
            return "not_a_stream"
        if chunk.usage is not None:
            self._take_usage(chunk.usage)
        if not chunk.choices or not all(choice.finish_reason for choice in chunk.choices):
            return "unfinished"
        if any(choice.text or (choice.message is not None and choice.message.has_text()) for choice in chunk.choices):
            self.events = max(1, self.completion_tokens)
            self.reads = 1
            self.first = self.last = self.done_at = now
        return "" if self._usage_matches() else "usage_mismatch"

    def _usage_matches(self) -> bool:
        """An event with text carries at least one token; more than asked are never made; `exact`: one event a token."""
        tokens = self.completion_tokens
        if self._usage == "off" or tokens < 0:
            return True
        if self._asked and tokens > self._asked:
            return False
        if self._usage == "exact" and self.is_event_stream:
            return self.events == tokens
        return self.events <= tokens


def _end_of_event(text: bytes, at: int) -> int:
    """Where the event that begins at `at` ends, its blank line included; 0: not yet. Lines may end in CRLF."""
    plain = text.find(b"\n\n", at)
    if text.find(b"\r", at, plain if plain > 0 else len(text)) < 0:
        return plain + 2 if plain >= 0 else 0
    ends = [plain + 2] if plain >= 0 else []
    for blank in (b"\n\r\n", b"\r\r"):
        found = text.find(blank, at)
        if found >= 0:
            ends.append(found + len(blank))
    return min(ends, default=0)


def _chunk_of(data: bytes) -> _Chunk | None:
    """The chunk that is written there; `None` where it is no JSON, or JSON of another form."""
    try:
        if not data.isascii():
            data.decode()  # msgspec does not look at what it has no field for
        return _decode(data)
    except _UNREADABLE:
        pass
    try:
        # What clients read with takes more: halves of surrogate pairs, of an emoji that was cut between two tokens.
        return msgspec.convert(json.loads(data), _Chunk)
    except (*_UNREADABLE, ValueError):
        return None


def _code_in(body: bytes) -> str:
    """The code that an error's body names, or nothing. It may come as an event, to whom asked for a stream."""
    if body.startswith(b"data:"):
        body = body[5:].partition(b"\n")[0]
    try:
        answer = msgspec.json.decode(body)
    except _UNREADABLE:
        return ""
    return _code_of(answer.get("error", answer)) if isinstance(answer, dict) else ""


def _code_of(error: Any) -> str:
    """What an OpenAI error object calls itself, as one printable word. Where its code is but a number, as vLLM's and
    llama.cpp's, which repeat the status, its type says more.
    """
    if not isinstance(error, dict):
        return ""
    named = [error.get(key) for key in ("code", "type")]
    words = [word for word in named if isinstance(word, str) and word and not word.isdigit()]
    numbers = [str(word) for word in named if isinstance(word, str | int) and not isinstance(word, bool)]
    word = next(iter([*words, *numbers]), "")
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in word[:MOST_CODE])
