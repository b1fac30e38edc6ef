"""Folders in the shape of AIPerf's artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.messages import Call
from loadtest.report.aiperf import Aiperf
from tests.loadtest.calls import STARTED, a_call, a_cancelled_call, a_refused_call
from tests.loadtest.summaries import a_noisy_neighbour, a_summary, an_empty_run

START_NS = 1_766_666_666_250_000_000


def artifacts(tmp_path: Path, *calls: Call) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records and the summary of one phase in which these calls ended."""
    aiperf = Aiperf(str(tmp_path))
    for call in calls:
        aiperf.write("load", "victim", call, STARTED)
    (folder,) = aiperf.finish(a_summary())
    lines = (Path(folder) / "profile_export.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((Path(folder) / "profile_export_aiperf.json").read_text())


def test_a_done_call_is_a_record_in_its_keys_and_units(tmp_path: Path) -> None:
    (record,), _ = artifacts(tmp_path, a_call())
    assert record == {
        "metadata": {
            "session_num": 0,
            "x_request_id": "chatcmpl-1",
            "x_correlation_id": None,
            "conversation_id": "victim",
            "turn_index": 0,
            "credit_issued_ns": START_NS + 1_000_000_000,
            "request_start_ns": START_NS + 1_250_000_000,
            "request_ack_ns": None,
            "request_end_ns": START_NS + 4_500_000_000,
            "worker_id": "penstock",
            "record_processor_id": "penstock",
            "benchmark_phase": "profiling",
            "was_cancelled": False,
            "cancellation_time_ns": None,
        },
        "metrics": {
            "input_sequence_length": {"value": 17, "unit": "tokens"},
            "output_sequence_length": {"value": 5, "unit": "tokens"},
            "time_to_first_token": {"value": 750.0, "unit": "ms"},
            "request_latency": {"value": 2750.0, "unit": "ms"},
            "inter_token_latency": {"value": 500.0, "unit": "ms"},
            "output_token_throughput_per_user": {"value": 2.0, "unit": "tokens/sec/user"},
            "inter_chunk_latency": {"value": [500.0, 500.0, 1000.0], "unit": "ms"},
            "usage_prompt_tokens": {"value": 17, "unit": "tokens"},
            "usage_completion_tokens": {"value": 5, "unit": "tokens"},
        },
        "error": None,
    }


def test_a_failed_call_has_an_error_and_no_latency(tmp_path: Path) -> None:
    (refused, cut), _ = artifacts(tmp_path, a_refused_call(), a_call(code="cut"))
    assert refused["metrics"] == cut["metrics"] == {"error_isl": {"value": 16, "unit": "tokens"}}
    assert refused["error"] == {
        "code": 429,
        "type": "429 token_rate",
        "message": "the call failed: 429 token_rate",
    }
    assert (cut["error"]["code"], cut["error"]["type"]) == (None, "cut")


def test_a_call_left_on_purpose_is_cancelled_as_theirs_are(tmp_path: Path) -> None:
    (_, record), _ = artifacts(tmp_path, a_call(), a_cancelled_call())
    metadata = record["metadata"]
    assert (metadata["session_num"], metadata["was_cancelled"]) == (1, True)
    assert metadata["cancellation_time_ns"] == START_NS + 2_750_000_000
    assert (record["error"]["code"], record["error"]["type"]) == (499, "RequestCancellationError")


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    call = a_call(first=None, last=None, prompt_tokens=-1, completion_tokens=-1, events=0, gaps=[])
    (record,), _ = artifacts(tmp_path, call)
    assert record["metrics"] == {
        "input_sequence_length": {"value": 16, "unit": "tokens"},
        "output_sequence_length": {"value": 0, "unit": "tokens"},
    }


def test_the_summary_has_a_block_a_metric(tmp_path: Path) -> None:
    _, summary = artifacts(tmp_path, *[a_call()] * 100, a_refused_call(sent=1.1))
    results, seconds = a_summary().phases[0].all, 61.5
    ttft = summary["time_to_first_token"]
    percentiles = {f"p{percent}": 750.0 for percent in (1, 5, 10, 25, 50, 75, 90, 95, 99)}
    assert ttft == {
        "unit": "ms", "avg": 750.0, "min": 750.0, "max": 750.0, "std": 0.0, "count": 100, "sum": 75_000.0, **percentiles
    }  # fmt: skip
    scalars = {
        "request_count": ("requests", results.done),
        "error_request_count": ("requests", results.failed + results.cancelled),
        "request_throughput": ("requests/sec", results.done / seconds),
        "output_token_throughput": ("tokens/sec", 500 / seconds),
        "total_token_throughput": ("tokens/sec", 2200 / seconds),
        "total_isl": ("tokens", 1700),
        "total_osl": ("tokens", 500),
        "goodput": ("requests/sec", results.good / seconds),
        "benchmark_duration": ("sec", seconds),
    }
    assert {name: (summary[name]["unit"], summary[name]["avg"]) for name in scalars} == scalars
    span = [summary[name]["avg"] - START_NS for name in ("min_request_timestamp", "max_response_timestamp")]
    assert span == pytest.approx([1_100_000_000, 4_500_000_000], abs=1000)
    assert summary["request_latency"]["avg"] == 2750.0
    assert summary["time_to_first_token_including_client_queue"]["avg"] == 1000.0
    assert (summary["output_sequence_length"]["unit"], summary["output_sequence_length"]["avg"]) == ("tokens", 5)
    assert (summary["start_time"], summary["end_time"]) == (
        "2026-11-07T14:03:22+01:00",
        "2026-11-07T14:04:23.500000+01:00",
    )
    assert (summary["was_cancelled"], summary["metadata"]) == (False, {"model": "tiny"})


def test_errors_are_counted_by_code(tmp_path: Path) -> None:
    _, summary = artifacts(tmp_path, a_call())
    results = a_summary().phases[0].all
    counted = {each["error_details"]["type"]: each["count"] for each in summary["error_summary"]}
    assert counted == {**results.codes, "RequestCancellationError": results.cancelled}
    codes = {each["error_details"]["type"]: each["error_details"]["code"] for each in summary["error_summary"]}
    assert codes == {"429 token_rate": 429, "timeout": None, "RequestCancellationError": 499}


def test_errors_that_never_were_are_not_counted() -> None:
    summary = an_empty_run()
    result = Aiperf("nowhere").result(summary, summary.phases[0])
    assert [each["count"] for each in result["error_summary"]] == [50]
    assert result["was_cancelled"]


def test_blocks_of_nothing_are_left_out(tmp_path: Path) -> None:
    _, summary = artifacts(tmp_path, a_refused_call())
    assert "time_to_first_token" not in summary
    assert "request_count" in summary


@pytest.mark.parametrize(
    ("arrivals", "phase"),
    [
        ({"kind": "poisson", "rate": 5.0}, {"type": "poisson", "rate": 10.0}),
        ({"kind": "constant", "rate": 5.0}, {"type": "constant", "rate": 10.0}),
        ({"kind": "gamma", "rate": 5.0, "burstiness": 0.5}, {"type": "gamma", "rate": 10.0, "smoothness": 0.5}),
        ({"kind": "closed", "users": 30}, {"type": "concurrency", "concurrency": 60}),
    ],
)
def test_the_load_is_told_in_its_words(arrivals: dict[str, Any], phase: dict[str, Any]) -> None:
    summary = a_summary()
    for tenant in summary.scenario["tenants"]:
        tenant["arrivals"] = arrivals
    config = Aiperf("nowhere").result(summary, summary.phases[0])["input_config"]
    assert config["phases"] == [{"name": "profiling", "requests": summary.phases[0].all.scheduled, **phase}]
    assert (config["models"]["items"], config["endpoint"]["type"]) == ([{"name": "tiny"}], "chat")


def test_a_load_that_it_has_no_words_for_is_left_out() -> None:
    summary = a_summary()
    summary.scenario["tenants"][0]["arrivals"] = {"kind": "closed", "users": 3}
    assert "input_config" not in Aiperf("nowhere").result(summary, summary.phases[0])


def test_each_counted_phase_has_a_folder_of_its_own(tmp_path: Path) -> None:
    aiperf = Aiperf(str(tmp_path))
    for phase, is_counted in (("warmup", False), ("alone", True), ("crowded", True), ("after", True)):
        aiperf.write(phase, "victim", a_call(), STARTED, is_counted)
    aiperf.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "alone", "crowded"]
    folders = aiperf.finish(a_noisy_neighbour())
    assert folders == [str(tmp_path / name) for name in ("alone", "crowded", "after")]
    numbers = [
        json.loads((Path(each) / "profile_export.jsonl").read_text())["metadata"]["session_num"] for each in folders
    ]
    assert numbers == [0, 1, 2]
