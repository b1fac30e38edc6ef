"""Results as AIPerf leaves them in its artifact folders, for whatever reads those: its plots, its users' notebooks."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec

from loadtest.histogram import Histogram
from loadtest.messages import CANCELLED, Call
from loadtest.report.formats import (
    INFINITE,
    QUANTILES,
    Load,
    PhaseCalls,
    deviation,
    file_name,
    milliseconds,
    pooled,
    prompt_tokens,
    quantile,
    write_file,
)
from loadtest.report.lines import JsonLines, tokens
from loadtest.summary import PhaseResults, Summary

_Value = dict[str, float | str | list[float]]


class Aiperf:
    """What AIPerf leaves in an artifact folder: `profile_export.jsonl` (a record a call, written as calls end) and
    `profile_export_aiperf.json` (the summary), in one folder a phase under `path`, which `aiperf plot PATH` finds.

    Followed: AIPerf 0.13.0, schema 1.4, its models and the loader of its plots, and the record's keys as in
    ai-dynamo/aiperf at 017c63d230ace93f323d5e423e95a6bb9aad1335.

    In a record `credit_issued_ns` is the scheduled arrival and `request_start_ns` the sending; `conversation_id` is the
    tenant; `request_ack_ns` is null, since a head's arrival is not kept; `inter_chunk_latency` needs raw gaps. In the
    summary it pools the gaps of all calls. `output_token_count`, which excludes reasoning, is left out: usage does not
    always tell the two apart. `input_config` is there where AIPerf has words for the load. A call left on purpose is an
    error with code 499 there, and so it is here.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._phases = PhaseCalls()
        self._files: dict[str, JsonLines] = {}
        self._count = 0

    def write(self, phase: str, tenant: str, call: Call, started_epoch: float, is_counted: bool = True) -> None:
        """Add the call's record; some 9 µs. Those of the warm-up are left out. Raises `FileFault`."""
        if not is_counted:
            return
        lines = self._files.get(phase)
        if lines is None:
            lines = self._files[phase] = JsonLines(self._file(phase, "profile_export.jsonl"))
        lines.put(self._record(tenant, call, started_epoch))
        self._count += 1
        self._phases.take(phase, tenant, call, started_epoch)

    def flush(self) -> None:
        """Hand what is held to the kernel; raises `FileFault`."""
        for lines in self._files.values():
            lines.flush()

    def finish(self, summary: Summary) -> list[str]:
        """Write the rest and the summaries; returns the folders. Raises `FileFault`."""
        for lines in self._files.values():
            lines.close()
        folders = []
        for phase in summary.phases:
            if phase.is_counted:
                path = self._file(phase.name, "profile_export_aiperf.json")
                write_file(path, msgspec.json.encode(self.result(summary, phase)))
                folders.append(os.path.dirname(path))
        return folders

    def _file(self, phase: str, name: str) -> str:
        return os.path.join(self.path, file_name(phase), name)

    def _record(self, tenant: str, call: Call, started_epoch: float) -> dict[str, Any]:
        # apart, so that differences are true to the nanosecond: a float of this size counts quarters of a microsecond
        started_ns = round(started_epoch * 1e6) * 1000

        def at(seconds: float) -> int:
            return started_ns + round(seconds * 1e9)

        is_cancelled = call.code == CANCELLED
        # Only keys that every AIPerf since 0.2 knows: some refuse a record with one that they do not.
        metadata = {
            "session_num": self._count,
            "x_request_id": call.request_id or None,
            "x_correlation_id": None,
            "conversation_id": tenant,
            "turn_index": 0,
            "credit_issued_ns": at(call.scheduled),
            "request_start_ns": at(call.sent),
            "request_ack_ns": None,
            "request_end_ns": at(call.ended),
            "worker_id": "penstock",
            "record_processor_id": "penstock",
            "benchmark_phase": "profiling",
            "was_cancelled": is_cancelled,
            "cancellation_time_ns": at(call.ended) if is_cancelled else None,
        }
        if call.code:
            metrics = {"error_isl": _value(call.input, "tokens")}
            return {"metadata": metadata, "metrics": metrics, "error": _error(call.code, call.status)}
        return {"metadata": metadata, "metrics": _metrics(call), "error": None}

    def result(self, summary: Summary, phase: PhaseResults) -> dict[str, Any]:
        """The summary for one phase."""
        load = Load.of(summary, phase.name)
        results, seen = phase.all, self._phases.all(phase.name)
        inputs, outputs = seen.total("inputs"), seen.total("outputs")
        errors = results.failed + results.cancelled
        started = datetime.fromisoformat(summary.started) + timedelta(seconds=phase.at)

        def rate(count: float) -> float:
            return count / phase.seconds if phase.seconds > 0 else 0.0

        blocks: dict[str, Any] = {
            "request_throughput": _scalar("requests/sec", rate(results.done)),
            "request_latency": _block("ms", seen.histograms["latency"]),
            "request_count": _scalar("requests", results.done),
            "completed_request_count": _scalar("requests", results.done + errors),
            "error_request_count": _scalar("requests", errors),
            "time_to_first_token": _block("ms", seen.histograms["ttft"]),
            "inter_token_latency": _block("ms", seen.histograms["tpot"]),
            "inter_chunk_latency": _block("ms", pooled(results.itl)),
            "output_token_throughput": _scalar("tokens/sec", rate(outputs)),
            "total_token_throughput": _scalar("tokens/sec", rate(inputs + outputs)),
            "output_token_throughput_per_user": _block("tokens/sec/user", seen.histograms["speed"]),
            "output_sequence_length": _block("tokens", seen.histograms["outputs"]),
            "input_sequence_length": _block("tokens", seen.histograms["inputs"]),
            "total_isl": _scalar("tokens", inputs),
            "total_osl": _scalar("tokens", outputs),
            "benchmark_duration": _scalar("sec", phase.seconds),
            "client_queue_time": _block("ms", seen.histograms["wait"]),
            "time_to_first_token_including_client_queue": _block("ms", seen.histograms["ttft_due"]),
            "request_latency_including_client_queue": _block("ms", seen.histograms["latency_due"]),
        }
        if load.has_objectives:
            blocks["good_request_count"] = _scalar("requests", results.good)
            blocks["goodput"] = _scalar("requests/sec", rate(results.good))
        if seen.last_ended:
            blocks["min_request_timestamp"] = _scalar("ns", round(seen.first_sent * 1e9))
            blocks["max_response_timestamp"] = _scalar("ns", round(seen.last_ended * 1e9))
        return {
            "schema_version": "1.4",
            **{name: block for name, block in blocks.items() if block},
            **_input_config(summary, load, results.scheduled),
            "metadata": {"model": summary.model},
            "was_cancelled": summary.ended != "complete",
            "error_summary": [
                {"error_details": _error(code, _status(code)), "count": count}
                for code, count in {**results.codes, CANCELLED: results.cancelled}.items()
                if count
            ],
            "start_time": started.isoformat(),
            "end_time": (started + timedelta(seconds=phase.seconds)).isoformat(),
            "penstock": {
                "phase": phase.name,
                "ended": summary.ended,
                "marks": [mark for mark in summary.marks if mark.phase in ("", phase.name)],
                "never_sent": results.never_sent,
            },
        }


def _input_config(summary: Summary, load: Load, requests: int) -> dict[str, Any]:
    """What was asked, in AIPerf's words; nothing where it has none, as for a trace or a mix of loops."""
    if load.rate == INFINITE:
        arrivals: dict[str, Any] = {"type": "concurrency", "concurrency": load.concurrency}
    elif load.rate is None or load.burstiness is None:
        return {}
    elif load.burstiness == INFINITE:
        arrivals = {"type": "constant", "rate": load.rate}
    elif load.burstiness == 1:
        arrivals = {"type": "poisson", "rate": load.rate}
    else:
        arrivals = {"type": "gamma", "rate": load.rate, "smoothness": load.burstiness}
    endpoint = summary.scenario.get("target", {}).get("endpoint", "chat")
    return {
        "input_config": {
            "models": {"items": [{"name": summary.model}]},
            "endpoint": {"type": endpoint, "urls": [summary.url]},
            "datasets": [{"name": "default", "type": "synthetic"}],
            "phases": [{"name": "profiling", **arrivals, "requests": max(requests, 1)}],
        }
    }


def _metrics(call: Call) -> dict[str, _Value]:
    """A done call's, in AIPerf's units; request latency ends with the last token, as theirs does."""
    count = tokens(call)
    metrics = {
        "input_sequence_length": _value(prompt_tokens(call), "tokens"),
        "output_sequence_length": _value(count, "tokens"),
    }
    if call.first is not None and call.last is not None:
        metrics["time_to_first_token"] = _value((call.first - call.sent) * 1e3, "ms")
        metrics["request_latency"] = _value((call.last - call.sent) * 1e3, "ms")
        if count > 1 and call.last > call.first:
            seconds = (call.last - call.first) / (count - 1)
            metrics["inter_token_latency"] = _value(seconds * 1e3, "ms")
            metrics["output_token_throughput_per_user"] = _value(1 / seconds, "tokens/sec/user")
        if call.gaps:
            metrics["inter_chunk_latency"] = _value([gap * 1e3 for gap in call.gaps], "ms")
    if call.prompt_tokens >= 0:
        metrics["usage_prompt_tokens"] = _value(call.prompt_tokens, "tokens")
    if call.completion_tokens >= 0:
        metrics["usage_completion_tokens"] = _value(call.completion_tokens, "tokens")
    return metrics


def _value(value: float | list[float], unit: str) -> _Value:
    return {"value": value, "unit": unit}


def _error(code: str, status: int) -> dict[str, Any]:
    if code == CANCELLED:
        return {"code": 499, "type": "RequestCancellationError", "message": "left on purpose by the client"}
    return {"code": status if status >= 400 else None, "type": code, "message": f"the call failed: {code}"}


def _status(code: str) -> int:
    """The HTTP status that a failure's code begins with; 0 where it is none."""
    head = code.split(" ", 1)[0]
    return int(head) if head.isdecimal() else 0


def _scalar(unit: str, value: float) -> dict[str, Any]:
    return {"unit": unit, "avg": value}


def _block(unit: str, histogram: Histogram) -> dict[str, Any]:
    """AIPerf's figures of one distribution; empty where there is none. `ms` turns seconds into milliseconds."""
    count = histogram.count
    if not count:
        return {}
    scale: Callable[[float | None], float | None] = milliseconds if unit == "ms" else lambda value: value
    figures = {
        "avg": scale(histogram.mean),
        **{f"p{percent}": scale(quantile(histogram, percent)) for percent in QUANTILES},
        "min": scale(histogram.least),
        "max": scale(histogram.greatest),
        "std": scale(deviation(histogram)),
        "sum": scale(histogram.total),
    }
    return {"unit": unit, **{name: value for name, value in figures.items() if value is not None}, "count": count}
