"""Files in the shape of `vllm bench serve --save-result`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.report.vllm import Vllm
from loadtest.summary import Mark
from tests.loadtest.calls import STARTED, a_call, a_cancelled_call, a_refused_call
from tests.loadtest.summaries import a_noisy_neighbour, a_strained_run, a_summary

# what its readers take: the nightly tables, the converter to PyTorch's records, the sweep's plots and Pareto fronts
NIGHTLY = (
    "model_id",
    "completed",
    "max_concurrency",
    "request_throughput",
    "total_token_throughput",
    "output_throughput",
)
PYTORCH = tuple(f"{figure}_{of}_ms" for of in ("ttft", "tpot", "itl") for figure in ("median", "mean", "std", "p99"))
PLOTS = ("request_throughput", "p99_e2el_ms", "output_throughput", "request_rate", "max_concurrent_requests")
DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "errors")


def written(tmp_path: Path, calls: int = 100, **options: Any) -> dict[str, Any]:
    """What one phase's file holds: so many done calls of the victim, one refused and one left on purpose."""
    vllm = Vllm(str(tmp_path / "run.json"), **options)
    for _ in range(calls):
        vllm.write("load", "victim", a_call(), STARTED)
    vllm.write("load", "crowd", a_refused_call(), STARTED)
    vllm.write("load", "crowd", a_cancelled_call(), STARTED)
    assert vllm.finish(a_summary()) == [str(tmp_path / "run.json")]
    read: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    return read


def test_every_key_that_its_readers_take_is_there(tmp_path: Path) -> None:
    read = written(tmp_path)
    assert [key for key in (*NIGHTLY, *PYTORCH, *PLOTS) if key not in read] == []
    assert all(isinstance(read[key], (int, float)) for key in (*PYTORCH, *PLOTS))


def test_figures_are_theirs_in_their_units(tmp_path: Path) -> None:
    read = written(tmp_path)
    results, seconds = a_summary().phases[0].all, 61.5
    expected = {
        "date": "20261107-140322",
        "backend": "openai-chat",
        "endpoint_type": "openai-chat",
        "model_id": "tiny",
        "tokenizer_id": None,
        "num_prompts": results.scheduled,
        "request_rate": 20.0,
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": seconds,
        "completed": results.done,
        "failed": results.failed,
        "total_input_tokens": 1700,
        "total_output_tokens": 500,
        "request_throughput": results.done / seconds,
        "request_goodput": results.good / seconds,
        "output_throughput": 500 / seconds,
        "total_token_throughput": 2200 / seconds,
        "mean_ttft_ms": 750.0,
        "std_ttft_ms": 0.0,
        "p99_ttft_ms": 750.0,
        "median_tpot_ms": 500.0,
        "p99_e2el_ms": 2750.0,
        "mean_client_queue_time_ms": 250.0,
        "mean_ttft_including_client_queue_ms": 1000.0,
        "median_e2el_including_client_queue_ms": 3000.0,
    }
    assert {key: read[key] for key in expected} == pytest.approx(expected)
    assert results.itl.p99 is not None
    assert read["p99_itl_ms"] == pytest.approx(results.itl.p99 * 1e3)


def test_without_objectives_there_is_no_goodput(tmp_path: Path) -> None:
    summary = a_summary()
    summary.scenario["objectives"] = {}
    assert Vllm("run.json").result(summary, summary.phases[0])["request_goodput"] is None


def test_an_infinite_rate_is_the_word_that_its_readers_know(tmp_path: Path) -> None:
    summary = a_summary()
    for tenant in summary.scenario["tenants"]:
        tenant["arrivals"] = {"kind": "closed", "users": 30}
    result = Vllm("run.json").result(summary, summary.phases[0])
    assert (result["request_rate"], result["max_concurrency"]) == ("inf", 60)


def test_a_p99_of_99_samples_is_null(tmp_path: Path) -> None:
    read = written(tmp_path, calls=99)
    assert (read["p99_ttft_ms"], read["median_ttft_ms"]) == (None, 750.0)


def test_arrays_are_there_only_where_requests_are_kept(tmp_path: Path) -> None:
    read = written(tmp_path)
    assert [key for key in DETAILS if key in read] == []
    read = written(tmp_path, calls=1, keeps_requests=True)
    assert {key: read[key] for key in DETAILS} == {
        "input_lens": [17, 16, 16],
        "output_lens": [5, 0, 0],
        "ttfts": [0.75, 0.0, 0.0],
        "itls": [[0.5, 0.5, 1.0], [], []],
        "latencies": [2.75, 0.0, 0.0],
        "start_times": [STARTED + 1.25] * 3,
        "queue_times": [0.25] * 3,
        "errors": ["", "429 token_rate", "cancelled"],
    }
    assert "generated_texts" not in read


def test_each_counted_phase_has_a_file_of_its_own(tmp_path: Path) -> None:
    vllm = Vllm(str(tmp_path / "run.json"))
    vllm.write("alone", "victim", a_call(completion_tokens=1000), STARTED, is_counted=False)
    vllm.write("alone", "victim", a_call(completion_tokens=6), STARTED)
    vllm.write("crowded", "victim", a_call(completion_tokens=7), STARTED)
    paths = vllm.finish(a_noisy_neighbour())
    assert [Path(path).name for path in paths] == ["run-alone.json", "run-crowded.json", "run-after.json"]
    assert [json.loads(Path(path).read_text())["total_output_tokens"] for path in paths] == [6, 7, 0]
    assert json.loads(Path(paths[0]).read_text())["date"] == "20261107-140327"


def test_marks_codes_and_tenants_go_along(tmp_path: Path) -> None:
    summary = a_strained_run()
    summary.marks.append(Mark(kind="note", phase="another", text="not of this one"))
    vllm = Vllm(str(tmp_path / "run.json"))
    vllm.write("load", "victim", a_call(), STARTED)
    vllm.finish(summary)
    beside = json.loads((tmp_path / "run.json").read_text())["penstock"]
    assert [mark["kind"] for mark in beside["marks"]] == ["client-bound", "machine-bound", "censored", "note"]
    assert set(beside["codes"]) == {"429 token_rate", "timeout"}
    assert beside["tenants"]["victim"]["mean_ttft_ms"] == 750.0
    assert beside["tenants"]["crowd"]["mean_ttft_ms"] is None
