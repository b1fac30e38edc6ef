"""Requests as the simulator's clients send them: OpenAI's bodies, read and checked as vLLM checks them.

A body becomes an `Ask`: prompts in pieces, how long the answer may be, how it is wanted. What is wrong becomes a
`Complaint`, in vLLM's wording, because clients and gateways read that wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any
from zlib import crc32

import msgspec

from backends.pods import tokens

MOST_DIMENSIONS = 8192


class Kind(Enum):
    """The endpoints that run on the engine."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    EMBEDDING = "/v1/embeddings"

    identity: str
    """What the answers' ids begin with."""


Kind.CHAT.identity, Kind.COMPLETION.identity, Kind.EMBEDDING.identity = "chatcmpl", "cmpl", "embd"


class Complaint(Exception):
    """The request cannot be served; `body` is the error object that says so."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, kind, param)


def error_body(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    """An error object as vLLM forms it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `beginning` is the part of the answer that exists already; `state` condenses all before it.

    `heard` is what an echo repeats.
    """

    pieces: list[str]
    state: int
    beginning: str
    is_reply: bool
    heard: Sequence[str] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, checked. `limits` has one entry a prompt: the most tokens of each of its `choices` answers."""

    kind: Kind
    model: str
    prompts: list[Prompt]
    limits: list[int]
    choices: int = 1
    streamed: bool = False
    wants_usage: bool = False
    stop: tuple[str, ...] = ()
    seed: int = 0
    ignores_end: bool = False
    echoes_prompt: bool = False
    salt: str = ""
    user: str = ""
    dimensions: int = 0
    base64: bool = False

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.pieces) for prompt in self.prompts)


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    cache_salt: str | None = None


class _Chat(_Common, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    tools: msgspec.Raw = msgspec.Raw(b"")


class _Completion(_Common, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None


class _Embedding(_Common, kw_only=True):
    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: str | None = None


class _Tokenize(msgspec.Struct):
    prompt: str | None = None
    messages: list[_Message] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads bodies for one simulator: its models' names and its context."""

    models: tuple[str, ...]
    context: int
    dimensions: int = 64
    never_ends: bool = False
    _chat: Any = field(default_factory=lambda: msgspec.json.Decoder(_Chat), repr=False)
    _completion: Any = field(default_factory=lambda: msgspec.json.Decoder(_Completion), repr=False)
    _embedding: Any = field(default_factory=lambda: msgspec.json.Decoder(_Embedding), repr=False)

    def read(self, kind: Kind, text: bytes) -> Ask:
        """The request in `text`; raises `Complaint`."""
        if kind is Kind.CHAT:
            return self._read_chat(_decode(self._chat, text))
        if kind is Kind.COMPLETION:
            return self._read_completion(_decode(self._completion, text))
        return self._read_embedding(_decode(self._embedding, text))

    def tokenize(self, text: bytes) -> list[str]:
        """The pieces of `/tokenize`'s body."""
        body = _decode(msgspec.json.Decoder(_Tokenize), text)
        if body.messages is not None:
            chat = _Chat(
                messages=body.messages,
                add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
            )
            return _chat_prompt(chat, 0).pieces
        return tokens.split(body.prompt or "")

    def _read_chat(self, body: _Chat) -> Ask:
        prompt = _chat_prompt(body, body.seed or 0)
        asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        limit = self._limit(len(prompt.pieces), asked, None)
        return self._ask(Kind.CHAT, body, [prompt], [limit])

    def _read_completion(self, body: _Completion) -> Ask:
        prompts = [_raw_prompt(each, body.seed or 0) for each in _prompts(body.prompt, "prompt")]
        limits = [self._limit(len(prompt.pieces), body.max_tokens, 16) for prompt in prompts]
        return self._ask(Kind.COMPLETION, body, prompts, limits, echo=bool(body.echo))

    def _read_embedding(self, body: _Embedding) -> Ask:
        prompts = [_raw_prompt(each, 0) for each in _prompts(body.input, "input")]
        for prompt in prompts:
            if len(prompt.pieces) > self.context:
                raise self._too_long(len(prompt.pieces))
        dimensions = self.dimensions if body.dimensions is None else body.dimensions
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise Complaint(400, f"dimensions must be between 1 and {MOST_DIMENSIONS}.", param="dimensions")
        ask = self._ask(Kind.EMBEDDING, body, prompts, [0] * len(prompts))
        return replace(ask, streamed=False, dimensions=dimensions, base64=body.encoding_format == "base64")

    def _ask(self, kind: Kind, body: _Common, prompts: list[Prompt], limits: list[int], *, echo: bool = False) -> Ask:
        if body.model is not None and body.model not in self.models:
            raise Complaint(404, f"The model `{body.model}` does not exist.", "NotFoundError", "model")
        if body.cache_salt == "":
            raise Complaint(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")
        choices = 1 if body.n is None else body.n
        if not 1 <= choices <= 128:
            raise Complaint(400, f"n must be between 1 and 128, got {choices}.", param="n")
        streamed = bool(body.stream)
        if body.stream_options is not None and not streamed:
            raise Complaint(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        if "" in stop:
            raise Complaint(400, "stop cannot contain an empty string.", param="stop")
        return Ask(
            kind=kind,
            model=body.model or self.models[0],
            prompts=prompts,
            limits=limits,
            choices=choices,
            streamed=streamed,
            wants_usage=bool(body.stream_options and body.stream_options.include_usage),
            stop=stop,
            seed=body.seed or 0,
            ignores_end=bool(body.ignore_eos) or self.never_ends,
            echoes_prompt=echo,
            salt=body.cache_salt or "",
            user=body.user or "",
        )

    def _limit(self, prompt_tokens: int, asked: int | None, default: int | None) -> int:
        """The most tokens that may be said after a prompt; refuses what the context cannot hold."""
        left = self.context - prompt_tokens
        if asked is not None and asked < 1:
            raise Complaint(400, f"max_tokens must be at least 1, got {asked}.", param="max_tokens")
        if left < 1:
            raise self._too_long(prompt_tokens)
        if asked is not None and asked > left:
            raise Complaint(
                400,
                f"'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context length "
                f"is {self.context} tokens and your request has {prompt_tokens} input tokens ({asked} > "
                f"{self.context} - {prompt_tokens}). (parameter=max_tokens, value={asked})",
                param="max_tokens",
            )
        if asked is not None:
            return asked
        return left if default is None else min(left, default)

    def _too_long(self, prompt_tokens: int) -> Complaint:
        return Complaint(
            400,
            f"This model's maximum context length is {self.context} tokens. However, your request has {prompt_tokens} "
            f"input tokens. Please reduce the length of the input messages. (parameter=input_tokens, "
            f"value={prompt_tokens})",
            param="input_tokens",
        )


def _decode(decoder: Any, text: bytes) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise Complaint(400, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Complaint(400, f"The body is no JSON: {error}") from None


def _chat_prompt(body: _Chat, seed: int) -> Prompt:
    """The chat as pieces, and where the answer takes up.

    A trailing message of the assistant is the beginning of the answer unless a new one is asked for; its trailing
    blanks are dropped, as chat templates do.
    """
    if not body.messages:
        raise Complaint(400, "messages must not be empty", param="messages")
    if body.continue_final_message and body.add_generation_prompt:
        raise Complaint(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    is_open = body.messages[-1].role == "assistant" and (
        bool(body.continue_final_message) or not body.add_generation_prompt
    )
    state = crc32(b"%d" % seed)
    parts: list[tuple[str, list[str]]] = []
    if body.tools:
        parts.append(("tools", tokens.split(bytes(body.tools).decode())))
    beginning = ""
    for message in body.messages:
        text, images = _content(message)
        if is_open and message is body.messages[-1]:
            beginning = text = text.rstrip()
        else:
            state = crc32(f"\0{message.role}\0{text}".encode("utf-8", "surrogatepass"), state)
        parts.append((message.role, tokens.split(text) + [tokens.IMAGE] * (images * tokens.IMAGE_TOKENS)))
    heard = next((pieces for role, pieces in reversed(parts) if role == "user"), [])
    return Prompt(tokens.render(parts, is_open=is_open), state, beginning, is_reply=True, heard=heard)


def _content(message: _Message) -> tuple[str, int]:
    """A message's text, tool calls included, and the number of its images."""
    content = message.content or ""
    images = 0
    if not isinstance(content, str):
        images = sum(1 for part in content if part.type == "image_url")
        content = "\n".join(part.text for part in content if part.text is not None)
    return content + bytes(message.tool_calls).decode(), images


def _prompts(given: str | list[str | int | list[int]], name: str) -> list[str | list[int]]:
    """The separate prompts in what OpenAI allows: a text, texts, token ids, lists of token ids."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise Complaint(400, f"{name} must not be empty", param=name)
    if all(isinstance(each, int) for each in given):
        return [[each for each in given if isinstance(each, int)]]
    prompts = [each for each in given if not isinstance(each, int)]
    if len(prompts) != len(given):
        raise Complaint(400, f"{name} must be texts or token ids, not both", param=name)
    return prompts


def _raw_prompt(given: str | list[int], seed: int) -> Prompt:
    state = crc32(b"%d" % seed)
    if isinstance(given, str):
        pieces = tokens.split(given)
        return Prompt(pieces, state, given, is_reply=False, heard=pieces, text=given)
    pieces = [f"<{token}>" for token in given]
    return Prompt(pieces, crc32(",".join(pieces).encode(), state), "", is_reply=False, heard=pieces)
