"""Whole answers: a body collected to its end, or put together from a stream where the pod was asked for one.

A call that is not streamed goes to most pods as a stream all the same, and is joined here into the object that the
client expects: the first byte of a whole answer is its end, so neither a stall nor the tokens of a left call could be
seen, and llama.cpp would free no slot of it. The client sees nothing before the end; until then the call may still go
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.stream.sse import EventSplitter, data_of
from gateway.stream.usage import usage_of
from tenancy.call import Kind, Usage

MAX_BYTES = 128 * 1024 * 1024


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


class Assembled:
    """Puts a whole answer together from the events of a stream.

    `kind` tells the form of the answer. `has_error` says that the pod reported an error instead of going on;
    `has_finished` whether the stream ended on purpose; `overflow` what was out of bounds, upon which `stop` was
    called.
    """

    def __init__(self, kind: Kind, *, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._kind = kind
        self._splitter = EventSplitter()
        self._size = 0
        self._envelope: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.usage: Usage | None = None
        self.events = 0
        self.has_finished = False
        self.has_error = False
        self.overflow = ""

    def frames(self, data: bytes) -> None:
        raise AssertionError("a stream to be assembled is asked for without frames")

    def payload(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_BYTES:
            self.overflow = f"an answer of more than {MAX_BYTES} bytes"
            self._stop()
            return
        try:
            for event in self._splitter.feed(data):
                content = data_of(event)
                if content is not None:
                    self._take(content)
        except (ValueError, TypeError, AttributeError, RecursionError) as fault:
            self.overflow = f"an event that is no piece of an answer: {fault}"
            self._stop()

    def _take(self, data: bytes) -> None:
        if data.strip() == b"[DONE]":
            self.has_finished = True
            return
        event = msgspec.json.decode(data)
        if not isinstance(event, dict):
            raise ValueError("not an object")
        self.events += 1
        if event.get("error") is not None:
            self.has_error = True
            return
        usage, _ = usage_of(data)
        if usage is not None:
            self.usage = usage
        for choice in event.pop("choices", None) or []:
            self._add(choice)
        # Later events carry more (usage, timings); the first one's identity stays.
        self._envelope = {
            **event,
            **{name: self._envelope[name] for name in ("id", "created") if name in self._envelope},
        }

    def _add(self, piece: dict[str, Any]) -> None:
        index = int(piece.get("index", 0))
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        if piece.get("finish_reason") is not None:
            choice["finish_reason"] = piece["finish_reason"]
            self.has_finished = True
        if isinstance(piece.get("logprobs"), dict):
            _merge(choice.setdefault("logprobs", {}), piece["logprobs"])
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
