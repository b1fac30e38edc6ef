"""Results as `vllm bench serve --save-result` writes them, for whatever reads those files."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec

from loadtest.histogram import Histogram
from loadtest.messages import Call
from loadtest.report.formats import (
    DoneCalls,
    Load,
    PhaseCalls,
    deviation,
    file_name,
    milliseconds,
    or_inf,
    peaks,
    pooled,
    prompt_tokens,
    quantile,
    write_file,
)
from loadtest.report.lines import tokens
from loadtest.summary import PhaseResults, Results, Summary


@dataclass(slots=True)
class _Requests:
    """vLLM's arrays, an entry a call in the order in which they ended: 56 bytes, and 4 more for each kept gap."""

    input_lens: array[int] = field(default_factory=lambda: array("i"))
    output_lens: array[int] = field(default_factory=lambda: array("i"))
    ttfts: array[float] = field(default_factory=lambda: array("d"))
    latencies: array[float] = field(default_factory=lambda: array("d"))
    start_times: array[float] = field(default_factory=lambda: array("d"))
    queue_times: array[float] = field(default_factory=lambda: array("d"))
    itls: list[array[float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def take(self, call: Call, started_epoch: float) -> None:
        """Note a call; one that is not done has zeros and an error, as vLLM notes it."""
        is_told = not call.code and call.first is not None and call.last is not None
        self.input_lens.append(prompt_tokens(call))
        self.output_lens.append(0 if call.code else tokens(call))
        self.ttfts.append(call.first - call.sent if is_told and call.first is not None else 0.0)
        self.latencies.append(call.last - call.sent if is_told and call.last is not None else 0.0)
        self.start_times.append(started_epoch + call.sent)
        self.queue_times.append(call.sent - call.scheduled)
        self.itls.append(array("f", [] if call.code else call.gaps))
        self.errors.append(call.code)

    def fields(self) -> dict[str, Any]:
        """As they stand in the file."""
        return {
            "input_lens": self.input_lens.tolist(),
            "output_lens": self.output_lens.tolist(),
            "ttfts": self.ttfts.tolist(),
            "itls": [gaps.tolist() for gaps in self.itls],
            "latencies": self.latencies.tolist(),
            "start_times": self.start_times.tolist(),
            "queue_times": self.queue_times.tolist(),
            "errors": self.errors,
        }


class Vllm:
    """One JSON object a phase, since one of theirs is one load.

    Followed: vllm/benchmarks/serve.py at 009e6d4a1cd6ba3fb2a9fc00f4ec06f5297232a1 (0.33). With one counted phase the
    file is at `path`; with more, each has its phase's name before the suffix (`run-alone.json`, `run-crowded.json`),
    since vLLM's own readers take each `*.json` of a folder as one result: its sweep's plots (a list of such objects),
    its nightly tables (`mean_ttft_ms`, …), and the converter to PyTorch's benchmark records.

    `keeps_requests` adds the arrays of `--save-detailed` but for texts, which are not kept (`itls` only hold what raw
    gaps were); memory then grows by some 100 bytes a call, and 4 a gap.

    Differences that stay: TTFT is that of the first event with text, where vLLM takes an event with a role alone, too;
    ITL pools the gaps of all calls; goodput honours an ITL objective as well; a p99 of under 100 samples is null;
    `max_concurrent_requests` and `max_output_tokens_per_s` are the greatest of the time line's stretches;
    `tokenizer_id` is null, since tokens are counted by the server's own usage; `request_rate`, `burstiness` and
    `max_concurrency` are null where a mix of tenants has no single one. `penstock` holds what has no place there:
    marks, codes, and each tenant's own figures.
    """

    def __init__(self, path: str, keeps_requests: bool = False) -> None:
        self.path = path
        self._phases = PhaseCalls()
        self._requests: dict[str, _Requests] = {}
        self._keeps_requests = keeps_requests

    def write(self, phase: str, tenant: str, call: Call, started_epoch: float, is_counted: bool = True) -> None:
        """Take a call that ended: 2 µs, 5 where requests are kept. `started_epoch`: when its phase began."""
        if is_counted:
            self._phases.take(phase, tenant, call, started_epoch)
            if self._keeps_requests:
                self._requests.setdefault(phase, _Requests()).take(call, started_epoch)

    def finish(self, summary: Summary) -> list[str]:
        """Write the files; returns their paths. Raises `FileFault`."""
        phases = [phase for phase in summary.phases if phase.is_counted]
        stem, suffix = os.path.splitext(self.path)
        paths = []
        for phase in phases:
            path = self.path if len(phases) == 1 else f"{stem}-{file_name(phase.name)}{suffix or '.json'}"
            write_file(path, msgspec.json.encode(self.result(summary, phase)))
            paths.append(path)
        return paths

    def result(self, summary: Summary, phase: PhaseResults) -> dict[str, Any]:
        """The object for one phase."""
        load = Load.of(summary, phase.name)
        seen = self._phases.all(phase.name)
        started = datetime.fromisoformat(summary.started) + timedelta(seconds=phase.at)
        backend = "openai" if summary.scenario.get("target", {}).get("endpoint") == "completions" else "openai-chat"
        requests = self._requests.get(phase.name)
        tokens_a_second, open_most = peaks(phase)
        return {
            "date": started.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": backend,
            "backend": backend,
            "label": summary.name,
            "model_id": summary.model,
            "tokenizer_id": None,
            "num_prompts": phase.all.scheduled,
            "request_rate": or_inf(load.rate),
            "burstiness": or_inf(load.burstiness),
            "max_concurrency": load.concurrency,
            **load.ramp(),
            **_figures(phase, phase.all, seen, load.has_objectives),
            "max_output_tokens_per_s": tokens_a_second,
            "max_concurrent_requests": open_most,
            "rtfx": 0.0,
            **(requests.fields() if requests else {}),
            "penstock": {
                "phase": phase.name,
                "ended": summary.ended,
                "marks": [mark for mark in summary.marks if mark.phase in ("", phase.name)],
                "codes": phase.all.codes,
                "cancelled": phase.all.cancelled,
                "never_sent": phase.all.never_sent,
                "tenants": {
                    tenant.name: _figures(phase, tenant, self._phases.of(phase.name, tenant.name), load.has_objectives)
                    for tenant in phase.tenants
                },
            },
        }


def _figures(phase: PhaseResults, results: Results, seen: DoneCalls, has_objectives: bool) -> dict[str, Any]:
    """Counts, rates over the whole phase (its streams' ends included, as in vLLM), and latencies in milliseconds."""
    inputs, outputs = seen.total("inputs"), seen.total("outputs")
    seconds = phase.seconds

    def rate(count: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    return {
        "duration": seconds,
        "completed": results.done,
        "failed": results.failed,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": rate(results.done),
        "request_goodput": rate(results.good) if has_objectives else None,
        "output_throughput": rate(outputs),
        "total_token_throughput": rate(inputs + outputs),
        **_latency("ttft", seen.histograms["ttft"]),
        **_latency("tpot", seen.histograms["tpot"]),
        **_latency("itl", pooled(results.itl)),
        **_latency("e2el", seen.histograms["latency"]),
        **_latency("client_queue_time", seen.histograms["wait"]),
        **_latency("ttft_including_client_queue", seen.histograms["ttft_due"]),
        **_latency("e2el_including_client_queue", seen.histograms["latency_due"]),
    }


def _latency(name: str, histogram: Histogram) -> dict[str, float | None]:
    return {
        f"mean_{name}_ms": milliseconds(histogram.mean),
        f"median_{name}_ms": milliseconds(quantile(histogram, 50)),
        f"std_{name}_ms": milliseconds(deviation(histogram)),
        f"p99_{name}_ms": milliseconds(quantile(histogram, 99)),
    }
