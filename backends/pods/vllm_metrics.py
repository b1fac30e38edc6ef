"""The simulator's metrics as vLLM publishes them: names, labels and buckets of vLLM's own `/metrics`.

Whoever reads vLLM's metrics (a gateway, a dashboard, an autoscaler) reads the simulator's without noticing. Gauges
are read from the pool and the batch at the moment they are asked for; histograms and counters are kept here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")

_FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
_BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_WHOLE = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)


class Histogram:
    """Observations by bucket."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        """About 0.15 µs."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Its lines in Prometheus' text form."""
        running = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            running += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {float(running)}'
        yield f"{name}_count{{{labels}}} {float(running)}"
        yield f"{name}_sum{{{labels}}} {self._total}"


class State(Protocol):
    """What is read from the batch when metrics are asked for."""

    @property
    def running_count(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...
    @property
    def kv_usage(self) -> float: ...
    @property
    def prefix_queries(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...


class Metrics:
    """What has to be kept between two readings, and how all of it is written."""

    def __init__(self, model: str, cache_config: Mapping[str, str]) -> None:
        escaped = model.replace("\\", r"\\").replace('"', r"\"")
        self._labels = f'engine="0",model_name="{escaped}"'
        self._cache_config = ",".join(f'{name}="{value}"' for name, value in sorted(cache_config.items()))
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.success = dict.fromkeys(FINISHED_REASONS, 0)
        self.first_token = Histogram(_FIRST)
        self.inter_token = Histogram(_BETWEEN)
        self.whole_request = Histogram(_WHOLE)
        self.queue_time = Histogram(_WHOLE)

    def text(self, state: State) -> bytes:
        """The answer to `GET /metrics`."""
        return ("\n".join(self._lines(state)) + "\n").encode()

    def _lines(self, state: State) -> Iterator[str]:
        gauges = (
            ("num_requests_running", "Number of requests in model execution batches.", state.running_count),
            ("num_requests_waiting", "Number of requests waiting to be processed.", state.waiting_count),
            ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", state.kv_usage),
        )
        for name, text, value in gauges:
            yield from self._head(name, text, "gauge")
            yield f"vllm:{name}{{{self._labels}}} {float(value)}"
        yield from self._head("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
        yield f'vllm:cache_config_info{{{self._cache_config},engine="0"}} 1.0'
        counters = (
            (
                "prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                state.prefix_queries,
            ),
            ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", state.prefix_hits),
            ("num_preemptions", "Cumulative number of preemption from the engine.", self.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", self.prompt_tokens),
            ("generation_tokens", "Number of generation tokens processed.", self.generation_tokens),
        )
        for name, text, value in counters:
            yield from self._head(name, text, "counter")
            yield f"vllm:{name}_total{{{self._labels}}} {float(value)}"
        yield from self._head("request_success", "Count of successfully processed requests.", "counter")
        for reason, times in self.success.items():
            yield f'vllm:request_success_total{{{self._labels},finished_reason="{reason}"}} {float(times)}'
        histograms = (
            ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", self.first_token),
            ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", self.inter_token),
            ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", self.whole_request),
            ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", self.queue_time),
        )
        for name, text, histogram in histograms:
            yield from self._head(name, text, "histogram")
            yield from histogram.lines(f"vllm:{name}", self._labels)

    def _head(self, name: str, text: str, kind: str) -> Iterator[str]:
        yield f"# HELP vllm:{name}{'_total' if kind == 'counter' else ''} {text}"
        yield f"# TYPE vllm:{name}{'_total' if kind == 'counter' else ''} {kind}"
