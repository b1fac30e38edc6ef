"""Head and body of a request → a `Call`, or the fault that says which field was wrong.

A body is parsed into its top-level keys alone, and each of these is sent on as it came: so a key that stands there
twice means one thing, and what Penstock does not know reaches the pod untouched. Looked into is what policy needs: the
model, how much output is asked for, and how long the prompt is. Text is measured in the JSON itself where that can be.

What a tenant may have is not decided here, and values that only a pod can judge are left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from gateway.http.errors import Fault, invalid_request, model_not_allowed, model_not_found
from tenancy.call import CHAT, COMPLETION, Call, Kind
from tenancy.directory import Directory, ModelNotAllowed, ModelUnknown
from tenancy.policy import Key, Tenant

Headers = Iterable[tuple[bytes, bytes]]
Body = dict[str, msgspec.Raw]

MOST_SEQUENCES = 128
MOST_OUTPUT_TOKENS = 2**31 - 1  # llama.cpp takes the lower 32 bits of what is more
_MOST_ID_BYTES = 128
_MOST_DEADLINE_DIGITS = 10
_MOST_TOLD_CHARACTERS = 64  # of a model's name: faults may be logged
_CALL_OVERHEAD_BYTES = 2048  # what a waiting call costs beside its body
_PASSED_ON = frozenset({b"traceparent", b"tracestate"})
_PRINTABLE = bytes(range(33, 127))

# Top-level values that chat templates put into the prompt: all of their JSON counts as text.
_PROMPT_FIELDS = frozenset({"tools", "functions", "documents", "chat_template", "chat_template_kwargs"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})
_UNTYPED_TEXT = frozenset({"text"})  # with anything else in it, a pod may take it for an image
_QUOTE, _BRACKET, _BRACE = b'"[{'

_EXAMPLE_MESSAGES = '[{"role": "user", "content": "Hello"}]'
_EXAMPLE_PART = '{"type": "text", "text": "Hello"}'


_Sequences = Annotated[int, msgspec.Meta(ge=1, le=MOST_SEQUENCES)]
_Tokens = Annotated[int, msgspec.Meta(ge=1, le=MOST_OUTPUT_TOKENS)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Named(msgspec.Struct):
    """What policy reads of a body, typed, in one pass of C code: a decoder for each value took 5,500 instructions."""

    model: str | msgspec.UnsetType = msgspec.UNSET


class _Generation(_Named):
    n: _Sequences | None = None
    best_of: _Sequences | None = None
    max_completion_tokens: _Tokens | None = None
    max_tokens: _Tokens | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Chat(_Generation):
    messages: list[Body] | msgspec.UnsetType = msgspec.UNSET


_top = msgspec.json.Decoder(Body).decode
_text = msgspec.json.Decoder(str).decode
_named = msgspec.json.Decoder(_Named).decode
_generation = msgspec.json.Decoder(_Generation).decode
_chat = msgspec.json.Decoder(_Chat).decode
_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_token_ids = msgspec.json.Decoder(list[int]).decode


class _WrongError(Exception):
    """A field is wrong; carries the fault. Ends the parsing, never leaves this module."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.fault = invalid_request(message, param)


# ---- the head --------------------------------------------------------------------------------------------------------


def key_of(headers: Headers) -> str:
    """The text of the key in the head, from `Authorization: Bearer` or else `x-api-key`; empty if there is none.

    No key is looked up like any other, so that missing and unknown cannot be told apart, by the answer or its time.
    """
    api_key = b""
    for name, value in headers:
        if name == b"authorization":
            value = value.strip()
            if value[:7].lower() == b"bearer ":  # and something after it, or the blank were stripped
                return value[7:].strip().decode("latin-1")
        elif name == b"x-api-key":
            api_key = value
    return api_key.strip().decode("latin-1")


def request_id_of(headers: Headers) -> str | None:
    """The request id that the client gave, if it can be echoed: printable ASCII without blanks, at most 128 bytes."""
    for name, value in headers:
        if name == b"x-request-id":
            if 0 < len(value) <= _MOST_ID_BYTES and not value.translate(None, _PRINTABLE):
                return value.decode("ascii")
            return None
    return None


# ---- the whole -------------------------------------------------------------------------------------------------------


def parse_call(
    kind: Kind,
    body: bytes,
    headers: Headers,
    tenant: Tenant,
    key: Key,
    directory: Directory,
    *,
    arrived_at: float,
    request_id: str,
) -> Call | Fault:
    """The call that `body` asks for on behalf of `tenant` and `key`, or a fault that names the field and what helps.

    Of what the client sent, a fault repeats nothing but the start of the model's name.

    O(body), about 15 µs for 6 KB. A text is decoded, once, only where it has escapes.
    """
    try:
        return _call(kind, body, dict(headers), tenant, key, directory, arrived_at, request_id)
    except _WrongError as wrong:
        return wrong.fault
    except RecursionError:
        return invalid_request("The body is nested too deeply.")


def _call(
    kind: Kind,
    body: bytes,
    headers: Mapping[bytes, bytes],
    tenant: Tenant,
    key: Key,
    directory: Directory,
    arrived_at: float,
    request_id: str,
) -> Call | Fault:
    fields = _fields(body, headers)
    try:
        stated = _chat(body) if kind is CHAT else _generation(body) if kind is COMPLETION else _named(body)
    except msgspec.ValidationError as error:
        raise _wrong(error) from None
    except msgspec.DecodeError as error:  # an escape in a string that is none
        raise _WrongError(f"The body is not JSON: {error}.", None) from None
    named = stated.model
    if not isinstance(named, str):
        raise _WrongError("'model' is missing. Name one of those that GET /v1/models lists.", "model")
    if not named:
        raise _WrongError("'model' must not be empty.", "model")
    found = directory.model(tenant, key, named)
    if isinstance(found, ModelUnknown):
        return model_not_found(named[:_MOST_TOLD_CHARACTERS])
    if isinstance(found, ModelNotAllowed):
        return model_not_allowed(named[:_MOST_TOLD_CHARACTERS])
    prompt = _Prompt()
    if isinstance(stated, _Chat):
        prompt.add_chat(stated.messages, fields)
    else:
        prompt.add_prompts(fields, "prompt" if kind is COMPLETION else "input")
    sequences, streamed, wants_usage = 1, False, False
    output_tokens: int | None = 0
    if isinstance(stated, _Generation):
        # How many outputs are made, for all prompts together.
        sequences = max(stated.n or 1, stated.best_of or 1) * (prompt.messages if kind is COMPLETION else 1)
        output_tokens = stated.max_tokens
        if stated.max_completion_tokens is not None:
            # It holds, as at OpenAI; the other is not sent on, so that no pod can take it instead.
            output_tokens = stated.max_completion_tokens
            fields.pop("max_tokens", None)
        streamed = stated.stream or False
        options = stated.stream_options
        wants_usage = streamed and options is not None and bool(options.include_usage)
    deadline_at, may_wait = _terms(headers, arrived_at)
    return Call(  # by position: msgspec looks for each name among all, 10,000 instructions in the end
        request_id,
        tenant,
        key,
        kind,
        found.name,
        arrived_at,
        prompt.text_bytes,
        prompt.tokens,
        prompt.images,
        prompt.messages,
        sequences,
        output_tokens,
        streamed,
        wants_usage,
        may_wait,
        deadline_at,
        len(body) + _CALL_OVERHEAD_BYTES,
        fields,
        {} if _PASSED_ON.isdisjoint(headers) else {name: headers[name] for name in _PASSED_ON & headers.keys()},
    )


def _fields(body: bytes, headers: Mapping[bytes, bytes]) -> Body:
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise _WrongError("Compressed bodies are not taken here. Send the body as it is.", "content-encoding")
    try:
        if not body.isascii():
            body.decode()  # what is passed on unread must be UTF-8, too
        return _top(body)
    except UnicodeDecodeError as error:
        raise _WrongError(f"The body is not UTF-8 (byte {error.start}).", None) from None
    except msgspec.ValidationError:
        raise _WrongError("The body must be a JSON object.", None) from None
    except msgspec.DecodeError as error:
        said = "it is empty" if not body else str(error)
        raise _WrongError(f"The body is not JSON: {said}.", None) from None


def _terms(headers: Mapping[bytes, bytes], arrived_at: float) -> tuple[float | None, bool]:
    """The client's deadline, and whether it would wait in the queue."""
    deadline_at = None
    stated = headers.get(b"x-penstock-deadline-ms")
    if stated is not None:
        digits = stated.strip()
        if not digits.isdigit() or len(digits) > _MOST_DEADLINE_DIGITS or int(digits) == 0:
            raise _WrongError(
                "'x-penstock-deadline-ms' must be a whole number of milliseconds "
                f"from 1 to {10**_MOST_DEADLINE_DIGITS - 1}.",
                "x-penstock-deadline-ms",
            )
        deadline_at = arrived_at + int(digits) / 1000
    queue = headers.get(b"x-penstock-queue")
    if queue is None:
        return deadline_at, True
    queue = queue.strip().lower()
    if queue not in (b"wait", b"never"):
        raise _WrongError("'x-penstock-queue' must be 'wait' or 'never'.", "x-penstock-queue")
    return deadline_at, queue == b"wait"


# ---- fields ----------------------------------------------------------------------------------------------------------


_WHAT = {
    "model": "a string",
    "stream": "true or false",
    "stream_options": 'an object such as {"include_usage": true}',
    "messages": "a list of objects",
    "n": f"a whole number from 1 to {MOST_SEQUENCES}",
    "best_of": f"a whole number from 1 to {MOST_SEQUENCES}",
    "max_tokens": f"a whole number from 1 to {MOST_OUTPUT_TOKENS}",
    "max_completion_tokens": f"a whole number from 1 to {MOST_OUTPUT_TOKENS}",
}
_FIELD = re.compile(r" - at `\$\.(\w+)((?:\[\d+\])?)")


def _wrong(error: msgspec.ValidationError) -> _WrongError:
    """The fault of a value that is not what `_WHAT` says, by where msgspec saw it: `… - at `$.messages[3]``."""
    place = _FIELD.search(str(error))
    assert place is not None, "a field is wrong, not the body"
    name = place[1]
    return _WrongError(f"'{name}' must be {_WHAT[name]}.", name + place[2])


class _Prompt:
    """Measures what becomes prompt."""

    __slots__ = ("images", "messages", "text_bytes", "tokens")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.tokens = 0
        self.images = 0
        self.messages = 0

    def add_chat(self, messages: list[Body] | msgspec.UnsetType, fields: Body) -> None:
        """Add the messages, and what else a chat template puts before them."""
        if messages is msgspec.UNSET:
            raise _WrongError(f"'messages' is missing. Give a list such as {_EXAMPLE_MESSAGES}.", "messages")
        if not messages:
            raise _WrongError("'messages' must not be empty.", "messages")
        self.messages = len(messages)
        text_bytes = 0
        for index, message in enumerate(messages):
            value = message.pop("content", None)
            if value is not None:
                content = bytes(value)
                if content[0] == _QUOTE and content.find(b"\\") < 0:  # `in` takes its left side for a number first
                    text_bytes += len(content) - 2  # the usual, without a call
                else:
                    self._add_content(content, index)
            message.pop("role", None)
            if message:  # tool calls, reasoning, names: templates print them as JSON or text
                text_bytes += sum(map(len, message.values()))
        self.text_bytes += text_bytes
        if not _PROMPT_FIELDS.isdisjoint(fields):
            self.text_bytes += sum(len(fields[name]) for name in _PROMPT_FIELDS & fields.keys())

    def _add_content(self, content: bytes, index: int) -> None:
        if content[0] == _QUOTE:
            self.text_bytes += _text_bytes(content)
        elif content[0] == _BRACKET:
            for position, part in enumerate(_raws(content)):
                self._add_part(bytes(part), f"messages[{index}].content[{position}]")
        elif content != b"null":
            place = f"messages[{index}].content"
            raise _WrongError(f"'{place}' must be a string or a list of parts.", place)

    def _add_part(self, raw: bytes, place: str) -> None:
        if raw[0] == _QUOTE:
            self.text_bytes += _text_bytes(raw)
            return
        try:
            part = _top(raw)
            stated = part.pop("type", None)
            is_text = part.keys() == _UNTYPED_TEXT if stated is None else _text(stated) in _TEXT_PARTS
        except msgspec.ValidationError:
            raise _WrongError(f"'{place}' must be a part such as {_EXAMPLE_PART}.", place) from None
        if is_text:  # each type has its text under a name of its own
            self.text_bytes += sum(_value_bytes(bytes(value)) for value in part.values())
            return
        self.images += 1  # sound, video and files, too: what they weigh is the pod's to know
        if "text" in part:
            self.text_bytes += _value_bytes(bytes(part["text"]))

    def add_prompts(self, fields: Body, name: str) -> None:
        """Add the prompts of a completion or the inputs of an embedding: texts, or token ids."""
        raw = fields.get(name)
        if raw is None:
            raise _WrongError(f"'{name}' is missing. Give a string, or a list of strings.", name)
        prompt = bytes(raw)
        self.messages = 1
        if prompt[0] == _QUOTE:
            self.text_bytes = _text_bytes(prompt)
        elif prompt[0] == _BRACKET:
            self._add_list(prompt, name)
        else:
            raise _WrongError(f"'{name}' must be a string, or a list of strings or token ids.", name)
        if "suffix" in fields:
            self.text_bytes += len(fields["suffix"])

    def _add_list(self, prompt: bytes, name: str) -> None:
        prompts = _raws(prompt)
        if not prompts:
            raise _WrongError(f"'{name}' must not be empty.", name)
        first = bytes(prompts[0])[0]
        if first != _QUOTE and first != _BRACKET:
            self.tokens = _tokens(prompt, name)
            return
        self.messages = len(prompts)
        for index, raw in enumerate(prompts):
            one = bytes(raw)
            if one[0] != first:
                raise _WrongError(f"'{name}' must hold strings alone, or token ids alone.", f"{name}[{index}]")
            if first == _QUOTE:
                self.text_bytes += _text_bytes(one)
            else:
                self.tokens += _tokens(one, f"{name}[{index}]")


def _tokens(raw: bytes, place: str) -> int:
    try:
        return len(_token_ids(raw))
    except msgspec.MsgspecError:
        raise _WrongError(f"'{place}' must be a list of token ids.", place) from None


def _value_bytes(raw: bytes) -> int:
    """Text in any JSON value: a string's bytes, or all of the JSON of what may hold strings."""
    if raw[0] == _QUOTE:
        return _text_bytes(raw)
    return len(raw) if raw[0] in (_BRACKET, _BRACE) else 0


def _text_bytes(raw: bytes) -> int:
    """UTF-8 bytes of a JSON string."""
    if raw.find(b"\\") < 0:
        return len(raw) - 2
    if raw.isascii() or b"\\u" in raw:
        text = _text(raw)
        return len(text) if text.isascii() else len(text.encode())
    # A run of r backslashes begins ceil(r / 2) escapes, and each stands for one byte. Decoding costs four times this.
    return len(raw) - 2 - raw.count(b"\\") + raw.count(b"\\\\")
