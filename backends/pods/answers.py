"""How the simulator answers: token by token as an event stream, or whole, in the form that vLLM gives it.

An `Answer` belongs to one call. It hears the tokens of all the call's sequences, writes them to the client, and ends
the call: in order, because the client left, or the way a fault demands. What a stream's events have in common is
encoded once; a token costs one join and one write.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from zlib import crc32

import msgspec

from backends.pods.batch import Sequence
from backends.pods.http1 import SIZES, Reply, framed
from backends.pods.misbehaviour import Fault, FaultKind
from backends.pods.openai_api import Ask, Kind, error_body
from backends.pods.tally import Rows
from backends.pods.words import Word

_DONE = framed(b"data: [DONE]\n\n")
_MARK = "\x00"
_AFTER_TOKENS = (
    FaultKind.RESET_AFTER_TOKENS,
    FaultKind.STALL_AFTER_TOKENS,
    FaultKind.END_EARLY_AFTER_TOKENS,
    FaultKind.ERROR_EVENT_AFTER_TOKENS,
)
_BROKEN = "The simulated engine was told to fail."


class Engine(Protocol):
    """What an answer may ask of the batch."""

    def leave(self, sequences: list[Sequence], reason: str) -> None: ...
    def pause(self, sequences: list[Sequence]) -> None: ...
    def resume(self, sequences: list[Sequence]) -> None: ...


class Answer:
    """One call's answer: whose it is, how it ends, and what befalls it."""

    def __init__(
        self,
        ask: Ask,
        reply: Reply,
        rows: Rows,
        engine: Engine,
        faults: Mapping[FaultKind, Fault],
        call_later: Callable[[float, Callable[[], None]], object],
        identity: str,
        created: int,
    ) -> None:
        self.ask = ask
        self.reply = reply
        self.identity = identity
        self.created = created
        self.sequences: list[Sequence] = []
        self._rows = rows
        self._engine = engine
        self._call_later = call_later
        self._open = len(ask.prompts) * ask.choices
        self._lingers: Fault | None = None
        self._fault: Fault | None = None
        self._tokens = 0
        self._is_over = False
        self._voices: list[StreamedVoice | WholeVoice] = []
        reply.left = self._client_left
        if faults:
            self._suffer(faults)

    def _suffer(self, faults: Mapping[FaultKind, Fault]) -> None:
        """Take note of what is to go wrong with this call."""
        self._lingers = faults.get(FaultKind.IGNORE_DISCONNECT)
        self._fault = next((faults[kind] for kind in _AFTER_TOKENS if kind in faults), None)
        if (limit := faults.get(FaultKind.RESET_AFTER_BYTES)) is not None:
            self.reply.body_budget = limit.count
            self.reply.spent = self._fail

    def voice(self, index: int) -> StreamedVoice | WholeVoice:
        """The receiver for the answer's sequence of this index."""
        voice = StreamedVoice(self, index) if self.ask.streamed else WholeVoice(self, index)
        self._voices.append(voice)
        return voice

    @property
    def is_plain(self) -> bool:
        """Whether its tokens may be written without being counted."""
        return self._fault is None and self.reply.body_budget is None

    def begin(self) -> None:
        """The call is accepted. A stream's head goes at once, as vLLM's does, long before the first token."""
        self._rows.arrive()
        if self.ask.streamed:
            self.reply.start_stream()
        if self._fault is not None and self._fault.kind is FaultKind.STALL_AFTER_TOKENS and self._fault.count == 0:
            self._misbehave(self._fault, None)

    def heard(self, finish: str | None) -> None:
        """A token of one sequence was written, its last one if `finish`."""
        self._tokens += 1
        if self._fault is not None and self._fault.count <= self._tokens and self._misbehave(self._fault, finish):
            return
        if finish is not None:
            self._end_one()

    def is_silent(self) -> bool:
        """Whether a fault ends the answer before its very first token; then it has."""
        return (
            self._fault is not None
            and self._fault.count == 0
            and self._tokens == 0
            and self._misbehave(self._fault, None)
        )

    def usage(self) -> dict[str, int]:
        """Tokens of the whole call."""
        prompt = self.ask.prompt_tokens
        completion = sum(sequence.generated for sequence in self.sequences)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _end_one(self) -> None:
        """One more sequence is at its end."""
        self._open -= 1
        if not self._open:
            self._complete()

    def _complete(self) -> None:
        if self._is_over:
            return
        if self.ask.streamed:
            if self.ask.wants_usage:
                self.reply.send(framed(_event(self, [], usage=self.usage())))
            self.reply.send(_DONE)
            self.reply.end()
        else:
            self.reply.whole(200, self._body())
        self._over(finished=True)

    def _body(self) -> bytes:
        choices = [voice.choice() for voice in self._voices if isinstance(voice, WholeVoice)]
        return msgspec.json.encode(_whole(self, choices))

    def _misbehave(self, fault: Fault, finish: str | None) -> bool:
        """Do what the fault says; true where the token with this `finish` is to have no further consequences."""
        self._fault = None
        if fault.kind is FaultKind.STALL_AFTER_TOKENS:
            self._engine.pause(self.sequences)
            if fault.seconds is not None:
                self._call_later(fault.seconds, lambda: self._engine.resume(self.sequences))
                if finish is not None:
                    self._call_later(fault.seconds, self._end_one)
            return finish is not None
        if fault.kind is FaultKind.RESET_AFTER_TOKENS:
            self.reply.reset()
        elif not self.ask.streamed:
            if fault.kind is FaultKind.ERROR_EVENT_AFTER_TOKENS:
                self.reply.whole(500, error_body(500, fault.message or _BROKEN, "InternalServerError"))
            else:
                self.reply.torn(self._body())
        else:
            if fault.kind is FaultKind.ERROR_EVENT_AFTER_TOKENS:
                error = error_body(500, fault.message or _BROKEN, "InternalServerError")
                self.reply.send(framed(b"data: %s\n\n" % error) + _DONE)
            self.reply.end()
        self._fail()
        return True

    def _fail(self) -> None:
        self._over(failed=True)

    def _client_left(self) -> None:
        self._rows.disconnect()
        if self._lingers is None or not self._lingers.value:
            self._over()
        else:
            self._call_later(self._lingers.value, self._over)

    def _over(self, *, finished: bool = False, failed: bool = False) -> None:
        """The call ends, once; what still runs of it is stopped."""
        if self._is_over:
            return
        self._is_over = True
        if not finished:
            self._engine.leave(self.sequences, "error" if failed else "abort")
        self._rows.end(finished=finished and not self.reply.was_left, failed=failed)
        self.sequences, self._voices = [], []  # which refer to this answer


class StreamedVoice:
    """One sequence of a streamed answer."""

    __slots__ = (
        *("_answer", "_index", "_has_spoken", "_is_plain", "_send", "_held", "_stop"),
        *("_lead", "_trail", "_base"),
    )

    def __init__(self, answer: Answer, index: int) -> None:
        self._answer = answer
        self._index = index
        self._has_spoken = False
        self._is_plain = False
        self._send = answer.reply.send
        self._held = ""
        self._stop = answer.ask.stop
        event = _event(answer, [_delta(answer.ask.kind, index, _MARK, None)])
        self._lead, self._trail = event.split(b"\\u0000")
        self._base = len(event) - len(b"\\u0000")
        self._trail += b"\r\n"

    def token(self, sequence: Sequence, word: Word | None, finish: str | None) -> str | None:
        """Write one token, as one chunk. Hot where nothing but that is to be done."""
        if self._is_plain and finish is None:
            assert word is not None
            self._send(self._event_of(word.raw))
            return None
        answer = self._answer
        answer.reply.hold()
        if not self._has_spoken:
            if answer.is_silent():
                return finish
            self._open()
            self._is_plain = not self._stop and answer.is_plain
        if finish is None and word is not None and not self._stop:
            answer.reply.send(self._event_of(word.raw))
        else:
            text, finish, met = self._release(word.text if word is not None else "", finish)
            delta = _delta(answer.ask.kind, self._index, text, finish, met)
            answer.reply.send(framed(_event(answer, [delta])))
        answer.heard(finish)
        answer.reply.flush()
        return finish

    def _event_of(self, raw: bytes) -> bytes:
        return b"".join((SIZES[self._base + len(raw)], self._lead, raw, self._trail))

    def _open(self) -> None:
        """What precedes the first token: the role, or the prompt where it is to be echoed."""
        self._has_spoken = True
        ask = self._answer.ask
        if ask.kind is Kind.CHAT:
            choice = {
                "index": self._index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            self._answer.reply.send(framed(_event(self._answer, [choice])))
        elif ask.echoes_prompt:
            prompt = ask.prompts[self._index // ask.choices].text
            self._answer.reply.send(framed(_event(self._answer, [_delta(ask.kind, self._index, prompt, None)])))

    def _release(self, text: str, finish: str | None) -> tuple[str, str | None, str | None]:
        """What may be shown now (vLLM, too, holds back for stop strings), why it ends, and the stop string met."""
        self._held += text
        shown, met = _until_stop(self._held, self._stop)
        if met is not None:
            return shown, "stop", met
        if finish is not None:
            return self._held, finish, None
        kept = max(len(stop) for stop in self._stop) - 1
        cut = max(0, len(self._held) - kept)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, None, None


class WholeVoice:
    """One sequence of an answer that goes out whole."""

    __slots__ = ("_answer", "_finish", "_index", "_met", "_text")

    def __init__(self, answer: Answer, index: int) -> None:
        self._answer = answer
        self._index = index
        self._text = ""
        self._finish: str | None = None
        self._met: str | None = None

    def token(self, sequence: Sequence, word: Word | None, finish: str | None) -> str | None:
        """Keep one token."""
        answer = self._answer
        if not self._text and answer.is_silent():
            return finish
        if word is not None:
            self._text += word.text
        if answer.ask.stop and word is not None:
            self._text, self._met = _until_stop(self._text, answer.ask.stop)
            finish = "stop" if self._met is not None else finish
        self._finish = finish
        answer.heard(finish)
        return finish

    def choice(self) -> dict[str, Any]:
        """The sequence as one of the answer's choices."""
        ask = self._answer.ask
        rest = {"logprobs": None, "finish_reason": self._finish, "stop_reason": self._met}
        if ask.kind is Kind.CHAT:
            message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": None, "tool_calls": []}
            return {"index": self._index, "message": message, **rest}
        if ask.kind is Kind.COMPLETION:
            prompt = ask.prompts[self._index // ask.choices].text if ask.echoes_prompt else ""
            return {"index": self._index, "text": prompt + self._text, **rest}
        return {"object": "embedding", "index": self._index, "embedding": _vector(ask, self._index)}


def _until_stop(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The text up to the first stop string, and that string; all of it and `None` where there is none."""
    found = [(position, stop) for stop in stops if (position := text.find(stop)) >= 0]
    if not found:
        return text, None
    position, stop = min(found)
    return text[:position], stop


def _event(answer: Answer, choices: list[dict[str, Any]], **more: object) -> bytes:
    """One server-sent event with these choices."""
    name = "chat.completion.chunk" if answer.ask.kind is Kind.CHAT else "text_completion"
    body = {
        "id": answer.identity,
        "object": name,
        "created": answer.created,
        "model": answer.ask.model,
        "choices": choices,
    }
    return b"data: %s\n\n" % msgspec.json.encode(body | more)


def _delta(kind: Kind, index: int, text: str, finish: str | None, met: str | None = None) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": {"content": text}} if kind is Kind.CHAT else {"text": text}
    choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
    return choice if finish is None and kind is Kind.CHAT else {**choice, "stop_reason": met}


def _whole(answer: Answer, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    if answer.ask.kind is Kind.EMBEDDING:
        usage = {"prompt_tokens": answer.ask.prompt_tokens, "total_tokens": answer.ask.prompt_tokens}
        return {
            "id": answer.identity,
            "object": "list",
            "created": answer.created,
            "model": answer.ask.model,
            "data": choices,
            "usage": usage,
        }
    name = "chat.completion" if answer.ask.kind is Kind.CHAT else "text_completion"
    head = {"id": answer.identity, "object": name, "created": answer.created, "model": answer.ask.model}
    return {**head, "choices": choices, "usage": answer.usage() | {"prompt_tokens_details": None}}


def _vector(ask: Ask, index: int) -> list[float] | str:
    """An embedding of the prompt: deterministic, of length about one, and without any meaning."""
    text = "".join(ask.prompts[index].pieces).encode("utf-8", "surrogatepass")
    scale = (ask.dimensions / 3.0) ** -0.5
    numbers = [(crc32(b"%d" % place, crc32(text)) / 2**31 - 1.0) * scale for place in range(ask.dimensions)]
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode() if ask.base64 else numbers
