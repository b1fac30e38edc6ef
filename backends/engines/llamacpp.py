"""llama.cpp's server: what it publishes, what it must not be sent, and how we start one.

Tried on the server inside xllamacpp 2026.10, and read in tools/server/server-schema.cpp:
- `n_predict` beats both `max_completion_tokens` and `max_tokens` (in this order), and `n_cmpl` beats `n`: a client
  could write past its budget with them, so they are not sent.
- `id_slot` picks the slot, and with it whoever's cached prompt lies there. `cached_tokens` in the usage tells exactly
  how much of a prompt was there before, and there is no salt: where several tenants share a pod, `cache_prompt` is off;
  a pod dedicated to one tenant keeps its client's word. LoRA scales and everything else belong to the one request.
- A client that leaves a call that is not streamed frees no slot: all whole generations are asked as streams.
- `/metrics` tells who runs and who waits, at one moment. Where it is switched off, `/slots` tells who runs; whether
  somebody waits is known then only while a slot is free. `/props` tells how many slots of which context there are. All
  three want the API key; `/health` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from backends.engines.body import BodyRules, shape
from backends.engines.engine import Probe, Program, Reading, UpstreamRequest
from backends.engines.prometheus_text import total
from tenancy.call import EMBEDDING, Call
from tenancy.policy import Pod

API_KEY_VARIABLE = "PENSTOCK_POD_API_KEY"

_SLOTS = "/slots"
_METRICS = "/metrics"
_PROPS = "/props"
RULES = BodyRules(
    stripped=frozenset({"priority", "cache_salt", "id_slot", "n_predict", "n_cmpl"}),
    is_salted=False,
    fixed={"cache_prompt": False},
    has_request_id=True,
)
T = TypeVar("T")


class _Slot(msgspec.Struct):
    is_processing: bool


class _Settings(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    total_slots: int
    default_generation_settings: _Settings


class LlamaCpp:
    """A llama.cpp server, found or started by us."""

    name = "llama.cpp"
    health_path = "/health"
    probes = (Probe(_METRICS), Probe(_SLOTS, only_without=_METRICS), Probe(_PROPS, once=True))

    def request(self, call: Call, pod: Pod, output_tokens: int | None) -> UpstreamRequest:
        as_stream = not call.streamed and call.kind is not EMBEDDING
        return shape(call, pod, output_tokens, RULES, as_stream=as_stream)

    def read(self, answers: Mapping[str, bytes], asked_at: float) -> Reading:
        """`n_ctx` of `/props` is one slot's context, so the pool is as many times that as there are slots."""
        running, waiting = _busy(answers)
        props = _decoded(answers.get(_PROPS), _Props)
        return Reading(
            asked_at=asked_at,
            running=running,
            waiting=waiting,
            kv_tokens=None if props is None else props.total_slots * props.default_generation_settings.n_ctx,
            slots=None if props is None else props.total_slots,
        )

    def launch(self, pod: Pod, port: int, host: str, context_tokens: int | None = None) -> Program | None:
        """Our own program around the embedded server; `None` where the file names no model file."""
        if pod.model_file is None:
            return None
        words = ["--model", pod.model_file, "--alias", _alias(pod)]
        return launch("backends.pods.llamacpp", pod, port, host, context_tokens, words)


def launch(module: str, pod: Pod, port: int, host: str, context_tokens: int | None, words: Sequence[str]) -> Program:
    """The command line of one of our own pod programs; `pod.options` come last, so that they win."""
    command = [sys.executable, "-m", module, "--host", host, "--port", str(port), *words]
    if pod.slots is not None:
        command += ["--slots", str(pod.slots)]
    if context_tokens is not None:
        command += ["--context", str(context_tokens)]
    env = {} if pod.api_key is None else {API_KEY_VARIABLE: pod.api_key}
    return Program((*command, *pod.options), env)


def _busy(answers: Mapping[str, bytes]) -> tuple[int | None, int | None]:
    """Who runs and who waits."""
    metrics = answers.get(_METRICS)
    if metrics is not None:
        running = total(metrics, b"llamacpp:requests_processing")
        waiting = total(metrics, b"llamacpp:requests_deferred")
        return None if running is None else int(running), None if waiting is None else int(waiting)
    slots = _decoded(answers.get(_SLOTS), list[_Slot])
    if slots is None:
        return None, None
    taken = sum(slot.is_processing for slot in slots)
    return (taken, 0) if taken < len(slots) else (None, None)


def _alias(pod: Pod) -> str:
    return pod.models[0].served if pod.models else pod.name


def _decoded(answer: bytes | None, kind: type[T]) -> T | None:
    if answer is None:
        return None
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError:
        return None
