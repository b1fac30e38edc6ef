from __future__ import annotations

from typing import Any

from backends.engines.sglang import Sglang

ENGINE = Sglang()
LOADS = b"""{"timestamp":"2026-11-01T00:00:00+00:00","version":"0.5.23","accelerator":"H100","num_accelerators":1,
"loads":[{"dp_rank":0,"timestamp":1.5,"num_running_reqs":4,"num_waiting_reqs":2,"num_used_tokens":1200,
"max_total_num_tokens":400000,"token_usage":0.003,"gen_throughput":90.5,"cache_hit_rate":0.1,"utilization":0.2,
"max_running_requests":256},{"dp_rank":1,"num_running_reqs":1,"num_waiting_reqs":0,"max_total_num_tokens":400000,
"token_usage":0.5}]}"""
METRICS = b"""\
# TYPE sglang:token_usage gauge
sglang:token_usage{model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.28
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 162.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{model_name="meta-llama/Llama-3.1-8B-Instruct"} 2826.0
# TYPE sglang:max_total_num_tokens gauge
sglang:max_total_num_tokens{model_name="meta-llama/Llama-3.1-8B-Instruct"} 441962.0
"""
LOADS_PATH, METRICS_PATH = (probe.path for probe in ENGINE.probes)


def test_a_reading_comes_from_the_schedulers() -> None:
    reading = ENGINE.read({LOADS_PATH: LOADS, METRICS_PATH: METRICS}, 3.0)
    assert (reading.running, reading.waiting, reading.kv_tokens, reading.kv_usage) == (5, 2, 800_000, 0.5)


def test_stale_gauges_tell_the_pools_size_but_not_who_is_there() -> None:
    reading = ENGINE.read({METRICS_PATH: METRICS}, 3.0)
    assert (reading.busy, reading.kv_tokens, reading.kv_usage) == (None, 441_962, 0.28)


def test_what_is_not_understood_is_not_told() -> None:
    reading = ENGINE.read({LOADS_PATH: b'{"loads": [{"num_running_reqs": null}]}'}, 3.0)
    assert (reading.busy, reading.kv_tokens, reading.kv_usage) == (None, None, None)


def test_it_is_salted_and_gets_nothing_that_names_things_of_others(make_call: Any, make_pod: Any, sent: Any) -> None:
    reaching = {"rid": "a", "session_params": {"id": "b"}, "extra_key": "c", "bootstrap_room": 3, "routed_dp_rank": 0}
    body = sent(ENGINE.request(make_call({"messages": [], "cache_salt": "own", **reaching}), make_pod(), 64))
    assert body["cache_salt"] == "acme:own"
    assert not body.keys() & reaching.keys()
