"""Whole answers: a body collected to its end, or put together from a stream where the pod was asked for one.

A call that is not streamed goes to most pods as a stream all the same, and is joined here into the object that the
client expects: the first byte of a whole answer is its end, so neither a stall nor the tokens of a left call could be
seen, and llama.cpp would free no slot of it. The client sees nothing before the end; until then the call may still go
elsewhere.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.stream.sse import TEXT_NAMES, EventSplitter, data_of, frames_of, unchunk
from gateway.stream.usage import usage_of
from tenancy.call import Kind, Usage

MAX_BYTES = 128 * 1024 * 1024

_LF = 0x0A
_TEXTS = frozenset(TEXT_NAMES.decode().split("|"))
_TEXT = re.compile(rb'"(?:%b)"[ \t]*:[ \t]*("[^"\\]*+(?:\\.[^"\\]*+)*+")' % TEXT_NAMES)
_text_of = msgspec.json.Decoder(str).decode


class WholeBody:
    """Collects the body of an answer that the pod gives whole; at most `MAX_BYTES`, then `overflow` says so and
    `stop` is called.
    """

    def __init__(self, *, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._parts: list[bytes] = []
        self._size = 0
        self.overflow = ""

    def frames(self, data: bytes) -> None:
        raise AssertionError("a whole body is asked for without frames")

    def payload(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BYTES:
            self.overflow = f"an answer of more than {MAX_BYTES} bytes"
            self._parts.clear()
            self._stop()
        else:
            self._parts.append(data)

    @property
    def body(self) -> bytes:
        """What has arrived so far."""
        return b"".join(self._parts)


class _Alike:
    """Takes events that are like one that was read, byte for byte, but for the text that grows with each.

    `before` ends with the quote that opens that text in the event, `after` begins with the one that closes it. The
    texts go to `name` of `whole`, where that event's own text has been put already. All else in such an event has had
    its effect with the first one, and has none a second time.
    """

    __slots__ = ("_after", "_before", "_begin", "_end", "_name", "_texts", "_whole", "_write")

    def __init__(self, before: bytes, after: bytes, whole: dict[str, Any], name: str) -> None:
        self._before = before
        self._after = after
        self._begin = len(before)
        self._end = -len(after)
        self._whole = whole
        self._name = name
        # 1 to 4 bytes a character; a list of the texts would take 60 a token, most of it objects' heads.
        self._texts = io.StringIO()
        self._write = self._texts.write

    def take(self, event: bytes) -> bool:
        """Take the text of `event` if it is like the first one. Hot.

        What stands between the quotes, they included, is read as JSON: if that is one string, the event is the same
        JSON but for it. If it is not (a quote inside, broken UTF-8, half a surrogate pair), this is another event.
        """
        begin, end = self._begin, self._end
        if event[:begin] != self._before or event[end:] != self._after:
            return False
        try:
            text = _text_of(event[begin - 1 : end + 1])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        self._write(text)
        return True

    def join(self) -> None:
        """Put all texts where they belong; to be called once."""
        self._whole[self._name] += self._texts.getvalue()


class Assembled:
    """Puts a whole answer together from the events of a stream.

    `kind` tells the form of the answer. `has_error` says that the pod reported an error instead of going on;
    `has_finished` whether the stream ended on purpose; `overflow` what was out of bounds, upon which `stop` was
    called. An event that is like the one before but for its text is taken without reading the rest of it again.
    """

    def __init__(self, kind: Kind, *, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._kind = kind
        self._splitter = EventSplitter()
        self._size = 0
        self._envelope: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._alike: _Alike | None = None
        self._grown: dict[str, Any] | None = None  # to whose text the latest event added, where it did nothing else
        self.usage: Usage | None = None
        self.events = 0
        self.has_finished = False
        self.has_error = False
        self.overflow = ""

    def frames(self, data: bytes) -> None:
        """Whole chunks that end with an event. Hot where it is one, with an event like the one before."""
        alike = self._alike
        if alike is not None:
            # The size line has two digits or three. Where it has not, or where there are more chunks, this is no event
            # like the one before: what that begins with is longer than a chunk of one digit.
            payload = data[4:-2] if data[3] == _LF else data[5:-2]
            size = self._size + len(payload)
            if size <= MAX_BYTES and alike.take(payload):
                self._size = size
                self.events += 1
                return
        self.payload(b"".join(map(unchunk, frames_of(data))))
        if self._splitter.rest:  # a line's end too many, which goes before the next event
            self._join()

    def payload(self, data: bytes) -> None:
        """Body bytes cut anywhere."""
        self._size += len(data)
        if self._size > MAX_BYTES:
            self.overflow = f"an answer of more than {MAX_BYTES} bytes"
            self._stop()
            return
        try:
            for event in self._splitter.feed(data):
                if self._alike is not None and self._alike.take(event):
                    self.events += 1
                else:
                    self._take(event)
        except (ValueError, TypeError, AttributeError, RecursionError) as fault:
            self.overflow = f"an event that is no piece of an answer: {fault}"
            self._stop()

    def _take(self, event: bytes) -> None:
        """Read an event, and learn what those like it look like."""
        data = data_of(event)
        if data is None:
            return
        self._join()
        if data.strip() == b"[DONE]":
            self.has_finished = True
            return
        piece = msgspec.json.decode(data)
        if not isinstance(piece, dict):
            raise ValueError("not an object")
        self.events += 1
        if piece.get("error") is not None:
            self.has_error = True
            return
        if piece.get("usage") is not None:
            usage, _ = usage_of(data)
            if usage is not None:
                self.usage = usage
        choices = piece.pop("choices", None) or []
        for choice in choices:
            self._add(choice)
        # Later events carry more (usage, timings); the first one's identity stays.
        self._envelope = {
            **piece,
            **{name: self._envelope[name] for name in ("id", "created") if name in self._envelope},
        }
        self._learn(event, piece, choices)

    def _join(self) -> None:
        """The events that are alike are over for now."""
        if self._alike is not None:
            self._alike.join()
            self._alike = None

    def _learn(self, event: bytes, envelope: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        """Take events like this one as such from now on, if it but adds to a text and the one before did so too.

        That it was cut at the right string is tried, not parsed: with an `x` more there, that text has an `x` more
        and nothing else is different. 4 µs, so choices that take turns, of which no two events are alike, are spared.
        """
        before, self._grown = self._grown, None
        if len(choices) != 1 or choices[0].get("finish_reason") is not None:  # a finish is followed by none like it
            return
        choice = choices[0]
        is_chat = self._kind is Kind.CHAT
        piece = (choice.get("delta") or {}) if is_chat else choice
        name = _growing(choice, piece, is_chat=is_chat)
        if not name:
            return
        known = self._choices[int(choice.get("index", 0))]
        self._grown = whole = known["message"] if is_chat else known
        found = _TEXT.search(event) if whole is before else None
        if found is None:
            return
        begin, end = found.start(1) + 1, found.end(1) - 1
        grown = {**piece, name: piece[name] + "x"}
        expected = {**envelope, "choices": [{**choice, "delta": grown} if is_chat else grown]}
        with contextlib.suppress(RecursionError):  # nested as deep as can be read, but not compared
            if msgspec.json.decode(data_of(event[:end] + b"x" + event[end:]) or b"") == expected:
                self._alike = _Alike(event[:begin], event[end:], whole, name)

    def _add(self, piece: dict[str, Any]) -> None:
        index = int(piece.get("index", 0))
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        if piece.get("finish_reason") is not None:
            choice["finish_reason"] = piece["finish_reason"]
            self.has_finished = True
        if isinstance(piece.get("logprobs"), dict):
            _merge_logprobs(choice.setdefault("logprobs", {}), piece["logprobs"])
        if self._kind is Kind.CHAT:
            _merge(choice.setdefault("message", {"role": "assistant", "content": None}), piece.get("delta") or {})
        else:
            choice["text"] = choice.get("text", "") + (piece.get("text") or "")
        for name, value in piece.items():
            if choice.get(name) is None and name not in {"delta", "text", "logprobs"}:
                choice[name] = value

    @property
    def body(self) -> bytes:
        """The whole answer as JSON."""
        self._join()
        form = "chat.completion" if self._kind is Kind.CHAT else "text_completion"
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            for call in (choice.get("message") or {}).get("tool_calls") or []:
                call.pop("index", None)
        return msgspec.json.encode({**self._envelope, "object": form, "choices": choices})


def as_stream(kind: Kind, body: bytes, *, shows_usage: bool) -> bytes | None:
    """A whole answer as the events of a stream: one with all of it, and the end. `None` where it is no such answer."""
    try:
        answer = msgspec.json.decode(body)
        choices = answer["choices"]
        for choice in choices if kind is Kind.CHAT else ():
            choice["delta"] = choice.pop("message")
            for index, call in enumerate(choice["delta"].get("tool_calls") or []):
                call["index"] = index
    except (msgspec.DecodeError, RecursionError, TypeError, AttributeError, KeyError):
        return None
    if kind is Kind.CHAT:
        answer["object"] = "chat.completion.chunk"
    usage = answer.pop("usage", None)
    events = [answer]
    if shows_usage and usage is not None:
        events.append({**answer, "choices": [], "usage": usage})
    return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _growing(choice: dict[str, Any], piece: dict[str, Any], *, is_chat: bool) -> str:
    """The name of the text that this piece of an answer adds to, if a second time it would do nothing else.

    What is not a text that grows, a list or an object, is put where it was put before.
    """
    if isinstance(choice.get("logprobs"), dict):
        return ""
    if not is_chat:
        return "text" if isinstance(piece.get("text"), str) else ""
    names = [name for name, value in piece.items() if value is not None and (name != "role" or type(value) is not str)]
    return names[0] if len(names) == 1 and names[0] in _TEXTS and isinstance(piece[names[0]], str) else ""


def _merge(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """Join a delta to what came before: text grows, lists grow (those of indexed items item by item), the rest is
    replaced.
    """
    for name, value in delta.items():
        before = whole.get(name)
        if value is None:
            whole.setdefault(name, None)
        elif isinstance(value, str) and isinstance(before, str) and name not in {"role", "id", "type"}:
            whole[name] = before + value
        elif isinstance(value, list):
            whole[name] = _merge_lists(before if isinstance(before, list) else [], value)
        elif isinstance(value, dict):
            whole[name] = before if isinstance(before, dict) else {}
            _merge(whole[name], value)
        else:
            whole[name] = value


def _merge_logprobs(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """As `_merge`, but the items of lists are kept as the JSON that they become.

    With the 20 likeliest tokens beside it, a token takes 1.8 KB so, and 8.4 KB as objects.
    """
    for name, items in delta.items():
        if not isinstance(items, list) or not items:
            continue
        if any(isinstance(item, dict) and item.get("index") is not None for item in items):  # no pod's known to us
            if isinstance(whole.get(name), list):
                whole[name] = msgspec.json.decode(msgspec.json.encode(whole[name]))
        else:
            delta = {**delta, name: [msgspec.Raw(msgspec.json.encode(items)[1:-1])]}
    _merge(whole, delta)


def _merge_lists(before: list[Any], delta: list[Any]) -> list[Any]:
    for item in delta:
        index = item.get("index") if isinstance(item, dict) else None
        # Logprobs have no index: nothing is searched for them, or a long answer would cost the square of its tokens.
        known = None if index is None else next((one for one in before if one.get("index") == index), None)
        if known is None:
            before.append({**item} if isinstance(item, dict) else item)
        else:
            _merge(known, {name: value for name, value in item.items() if name != "index"})
    return before
