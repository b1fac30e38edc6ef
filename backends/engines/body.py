"""The body and the headers of a call as a pod gets them.

Every engine rewrites the same few top-level keys; they differ only in which keys are dangerous on them. Those
differences are a `BodyRules`, and this is the one place that applies them. Nested values pass as they came
(`msgspec.Raw`), so the cost does not depend on the length of the prompt: about 7 µs for 6 KB.

Never sent to any pod: the client's credentials and its other headers. Of what came in, `traceparent` alone goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from backends.engines.engine import UpstreamRequest
from tenancy.call import CHAT, COMPLETION, EMBEDDING, Call
from tenancy.policy import Pod

_TRUE = msgspec.Raw(b"true")
_ONLY_USAGE = msgspec.Raw(b'{"include_usage":true}')
_NULL = b"null"
_JSON = (b"content-type", b"application/json")
_ACCEPT_JSON = (b"accept", b"application/json")
_ACCEPT_STREAM = (b"accept", b"text/event-stream")
_encode = msgspec.json.Encoder().encode
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_any = msgspec.json.Decoder().decode

MAXIMA = ("max_tokens", "max_completion_tokens")
"""The two keys by which a client states its maximum. All of vLLM, SGLang and llama.cpp let the second win in chats, and
know the first alone in completions."""

_WHOLE_ONLY = frozenset(
    {
        "use_beam_search",  # vLLM: refused in a stream
        "prompt_logprobs",  # vLLM: refused in a stream, which has no place for them
        "best_of",  # which outputs are the best is known at the end
        "routed_experts_prompt_start",  # vLLM gives routed experts with whole answers alone
        "audio",  # sound comes in pieces that cannot be put one after the other
        "modalities",
    }
)
_WHOLE_ONLY_CHAT = _WHOLE_ONLY | {
    "tools",  # not every tool parser can stream: some then drop calls, or all of the answer
    "functions",
    "echo",  # vLLM gives the prompt's log probabilities with it
}
_WHOLE_ONLY_COMPLETION = _WHOLE_ONLY | {"logprobs"}  # lists side by side, with offsets; with `echo` the prompt's, too
_WHOLE_ONLY_PREFIX = "return_"  # token ids, hidden states, prompt text …: beside the text, and each streamed in its way
_OFF = frozenset({_NULL, b"false", b"[]"})


@dataclass(frozen=True, slots=True)
class BodyRules:
    """What one kind of pod must not be sent, and what it must be.

    `stripped` keys are left out. `fixed` keys are written over the client's on a pod that several tenants share. A pod
    with `is_salted` gets `cache_salt`, so that no tenant can feel in the prefix cache what another has asked; others
    get none. `has_request_id` says that the pod may have `x-request-id`, which the client can choose: only where it is
    known to be nothing but a word for logs, because elsewhere one client's id can collide with another's.
    """

    stripped: frozenset[str]
    is_salted: bool
    fixed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    has_request_id: bool = False


def served_name(pod: Pod, model: str) -> str:
    """What `pod` itself calls `model`; a model that the file does not put on this pod keeps its name."""
    for served in pod.models:
        if served.name == model:
            return served.served
    return model


def can_be_joined(call: Call) -> bool:
    """Whether `call` wants a whole answer that can be put together from a stream of vLLM's or SGLang's.

    What is asked as a stream begins to answer at once, so that a long answer is no silence, a stall is seen, and what
    was made before the client left is counted. What a stream cannot give as the whole answer has it stays whole.
    """
    if call.streamed or call.kind is EMBEDDING:
        return False
    whole_only = _WHOLE_ONLY_CHAT if call.kind is CHAT else _WHOLE_ONLY_COMPLETION
    return not any(
        (key in whole_only or key.startswith(_WHOLE_ONLY_PREFIX)) and bytes(value) not in _OFF
        for key, value in call.body.items()
    )


def shape(call: Call, pod: Pod, output_tokens: int | None, rules: BodyRules, *, as_stream: bool) -> UpstreamRequest:
    """The request for `pod`: `call` under `rules`, asked as a stream where `as_stream` says so although it is whole."""
    is_stream = as_stream or call.streamed
    body = _body(call, pod, output_tokens, rules, as_stream)
    return UpstreamRequest(call.kind.path, _headers(call, pod, rules, is_stream), body, as_stream)


def _body(call: Call, pod: Pod, output_tokens: int | None, rules: BodyRules, as_stream: bool) -> bytes:
    body = dict(call.body)
    if not rules.stripped.isdisjoint(body):
        for key in rules.stripped:
            body.pop(key, None)
    body["model"] = served_name(pod, call.model)
    kind = call.kind
    if kind is not EMBEDDING:
        for key in MAXIMA:  # null means "not said" to clients and "no end" to llama.cpp of older builds
            if key in body and bytes(body[key]) == _NULL:
                del body[key]
        if kind is COMPLETION and "max_completion_tokens" in body:
            body["max_tokens"] = body.pop("max_completion_tokens")
        if call.output_tokens is None and output_tokens is not None:
            body.pop("max_completion_tokens", None)
            body["max_tokens"] = output_tokens
        if as_stream or call.streamed:
            body["stream"] = _TRUE
            body["stream_options"] = _with_usage(None if as_stream else body.get("stream_options"))
    if rules.fixed and pod.owner is None:
        body.update(rules.fixed)
    if rules.is_salted:
        body["cache_salt"] = _salt(call.tenant.name, call.body.get("cache_salt"))
    return _encode(body)


def _with_usage(options: msgspec.Raw | None) -> dict[str, msgspec.Raw] | msgspec.Raw:
    """The client's own stream options, with usage asked for."""
    if options is None:
        return _ONLY_USAGE
    try:
        kept = _raw_object(options)
    except msgspec.DecodeError:  # not an object: what a pod would refuse is not worth losing the usage for
        kept = {}
    return kept | {"include_usage": _TRUE}


def _salt(tenant: str, own: msgspec.Raw | None) -> str:
    """The tenant's salt, with the client's own value inside it."""
    value = None if own is None else _any(own)
    return f"{tenant}:{value}" if isinstance(value, str) and value else tenant


def _headers(call: Call, pod: Pod, rules: BodyRules, is_stream: bool) -> tuple[tuple[bytes, bytes], ...]:
    headers = [_JSON, _ACCEPT_STREAM if is_stream else _ACCEPT_JSON]
    if rules.has_request_id:
        headers.append((b"x-request-id", call.id.encode()))
    if pod.api_key is not None:
        headers.append((b"authorization", b"Bearer " + pod.api_key.encode()))
    trace = call.headers.get(b"traceparent")
    if trace is not None:
        headers.append((b"traceparent", trace))
    return tuple(headers)
