"""vLLM: what it publishes, and what it must not be sent.

Read in vLLM's sources (entrypoints/openai/*/protocol.py, v1/metrics/loggers.py): `cache_salt` keeps tenants apart in
the prefix cache (1–1,024 characters); a `priority` other than 0 is an error unless the server schedules by it;
`kv_transfer_params`, `ec_transfer_params`, `session_id` and `request_id` name things that belong to all clients of the
server, and `x-request-id` becomes the engine's own id of the request, which must not be there twice: none is sent.
`max_completion_tokens` wins over `max_tokens` in chats, and completions know `max_tokens` alone (16 where it is left
out). Gauges are set at every step of the engine, one set of labels a data-parallel rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.engines.body import BodyRules, can_be_joined, shape
from backends.engines.engine import Probe, Program, Reading, UpstreamRequest
from backends.engines.prometheus_text import Sample, samples, total
from tenancy.call import Call
from tenancy.policy import Pod

_METRICS = "/metrics"
RULES = BodyRules(
    stripped=frozenset({"priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params"}),
    is_salted=True,
)


class Vllm:
    """A vLLM server that somebody else runs."""

    name = "vllm"
    health_path = "/health"
    probes = (Probe(_METRICS),)

    def request(self, call: Call, pod: Pod, output_tokens: int | None) -> UpstreamRequest:
        """Whole calls go as streams where these can be joined: a whole answer's first byte is its end."""
        return shape(call, pod, output_tokens, RULES, as_stream=can_be_joined(call))

    def read(self, answers: Mapping[str, bytes], asked_at: float) -> Reading:
        return read(answers.get(_METRICS, b""), asked_at)

    def launch(self, pod: Pod, port: int, host: str, context_tokens: int | None = None) -> Program | None:
        return None


def read(metrics: bytes, asked_at: float) -> Reading:
    """A reading from an exposition with vLLM's names; ranks are added up, and the fullest one tells the usage."""
    usage = samples(metrics, b"vllm:kv_cache_usage_perc") or samples(metrics, b"vllm:gpu_cache_usage_perc")
    caches = samples(metrics, b"vllm:cache_config_info")
    sizes = [_cache_tokens(cache) for cache in caches]
    known = [size for size in sizes if size is not None]
    return Reading(
        asked_at=asked_at,
        running=_count(total(metrics, b"vllm:num_requests_running")),
        waiting=_count(total(metrics, b"vllm:num_requests_waiting")),
        kv_tokens=sum(known) if known and len(known) == len(sizes) else None,
        kv_usage=max(sample.value for sample in usage) if usage else None,
        block_tokens=_label(caches[0], "block_size") if caches else None,
    )


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)


def _label(sample: Sample, label: str) -> int | None:
    """A whole number out of an info gauge's label; vLLM writes Python's `None` where it has none yet."""
    text = sample.labels.get(label, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _cache_tokens(cache: Sample) -> int | None:
    told = _label(cache, "kv_cache_size_tokens")
    if told is not None:
        return told
    blocks, block = _label(cache, "num_gpu_blocks"), _label(cache, "block_size")
    return blocks * block if blocks is not None and block is not None else None
