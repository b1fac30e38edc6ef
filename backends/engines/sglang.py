"""SGLang: what it publishes, and what it must not be sent.

Read in SGLang's sources (entrypoints/openai/protocol.py, entrypoints/v1_loads.py): `cache_salt` keeps tenants apart in
the radix cache; `rid`, `session_params`, the bootstrap and rank keys name things of the whole server, and a second
request with a known id is refused (its `x-request-id` becomes the id in newer builds, so none is sent).
`max_completion_tokens` wins over `max_tokens` in chats, and completions know `max_tokens` alone.

Its gauges are written now and then (every 40 decode steps, we believe; not verified): good for the size of the pool, of
no use to tell whether a request is still there. `/v1/loads` asks the schedulers themselves, so running and waiting come
from there alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from backends.engines.body import BodyRules, can_be_joined, shape
from backends.engines.engine import Probe, Program, Reading, UpstreamRequest
from backends.engines.prometheus_text import samples, total
from tenancy.call import Call
from tenancy.policy import Pod

_METRICS = "/metrics"
_LOADS = "/v1/loads?include=core"
RULES = BodyRules(
    stripped=frozenset(
        {
            "priority",
            "rid",
            "session_id",
            "session_params",
            "extra_key",
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "routed_dp_rank",
            "disagg_prefill_dp_rank",
            "data_parallel_rank",
            "custom_labels",
        }
    ),
    is_salted=True,
)


class _Load(msgspec.Struct):
    """One rank's load."""

    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float | None = None
    max_total_num_tokens: int | None = None


class _Loads(msgspec.Struct):
    loads: list[_Load]


class Sglang:
    """An SGLang server that somebody else runs."""

    name = "sglang"
    health_path = "/health"
    probes = (Probe(_LOADS), Probe(_METRICS))

    def request(self, call: Call, pod: Pod, output_tokens: int | None) -> UpstreamRequest:
        return shape(call, pod, output_tokens, RULES, as_stream=can_be_joined(call))

    def read(self, answers: Mapping[str, bytes], asked_at: float) -> Reading:
        """Ranks are added up, and the fullest one is the pool's usage."""
        metrics = answers.get(_METRICS, b"")
        loads = _loads(answers.get(_LOADS, b""))
        sizes = [load.max_total_num_tokens for load in loads if load.max_total_num_tokens is not None]
        usages = [load.token_usage for load in loads if load.token_usage is not None]
        if not usages:
            usages = [sample.value for sample in samples(metrics, b"sglang:token_usage")]
        size = sum(sizes) if sizes else total(metrics, b"sglang:max_total_num_tokens")
        return Reading(
            asked_at=asked_at,
            running=sum(load.num_running_reqs for load in loads) if loads else None,
            waiting=sum(load.num_waiting_reqs for load in loads) if loads else None,
            kv_tokens=None if size is None else int(size),
            kv_usage=max(usages) if usages else None,
        )

    def launch(self, pod: Pod, port: int, host: str, context_tokens: int | None = None) -> Program | None:
        return None


def _loads(answer: bytes) -> list[_Load]:
    try:
        return msgspec.json.decode(answer, type=_Loads).loads
    except msgspec.DecodeError:
        return []
