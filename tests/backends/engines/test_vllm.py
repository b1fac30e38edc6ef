from __future__ import annotations

from typing import Any

import pytest

from backends.engines.vllm import Vllm

ENGINE = Vllm()
MESSAGES = [{"role": "user", "content": "Hello"}]

# Cut from a server's exposition: the names, labels and number formats are vLLM's.
METRICS = b"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 14385.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-4B"} 3.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-4B"} 2.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-4B"} 1.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-4B"} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-4B",reason="capacity"} 1.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-4B"} 0.0625
vllm:kv_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-4B"} 0.25
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",cpu_offload_gb="0",enable_prefix_caching="True",engine="0",\
kv_cache_size_tokens="SIZE",num_gpu_blocks="27862",sliding_window="None"} 1.0
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "acme"),
        ({"cache_salt": "s3cret"}, "acme:s3cret"),
        ({"cache_salt": ""}, "acme"),
        ({"cache_salt": 7}, "acme"),
    ],
)
def test_the_salt_is_the_tenants_with_the_clients_own_inside(
    make_call: Any, make_pod: Any, sent: Any, own: dict[str, Any], expected: str
) -> None:
    assert sent(ENGINE.request(make_call({"messages": MESSAGES, **own}), make_pod(), 64))["cache_salt"] == expected


def test_what_names_things_of_other_clients_is_stripped(make_call: Any, make_pod: Any, sent: Any) -> None:
    reaching = {
        "request_id": "of-another",
        "session_id": "of-another",
        "kv_transfer_params": {"remote_block_ids": [1]},
        "ec_transfer_params": {},
    }
    body = sent(ENGINE.request(make_call({"messages": MESSAGES, **reaching}), make_pod(), 64))
    assert not body.keys() & reaching.keys()


def test_a_reading_adds_up_the_ranks_and_takes_the_fullest() -> None:
    reading = ENGINE.read({"/metrics": METRICS.replace(b"SIZE", b"445792")}, 12.5)
    assert (reading.asked_at, reading.running, reading.waiting, reading.busy) == (12.5, 5, 1, 6)
    assert (reading.kv_usage, reading.kv_tokens, reading.block_tokens) == (0.25, 445_792, 16)


def test_the_size_in_tokens_is_preferred_to_blocks() -> None:
    assert ENGINE.read({"/metrics": METRICS.replace(b"SIZE", b"400000")}, 0.0).kv_tokens == 400_000
    assert ENGINE.read({"/metrics": METRICS.replace(b"SIZE", b"None")}, 0.0).kv_tokens == 27_862 * 16


def test_a_pool_of_which_one_rank_is_unknown_is_unknown() -> None:
    two = METRICS.replace(b"SIZE", b"None") + b'vllm:cache_config_info{block_size="16",engine="1"} 1.0\n'
    assert ENGINE.read({"/metrics": two}, 0.0).kv_tokens is None


@pytest.mark.parametrize("answers", [{}, {"/metrics": b""}, {"/metrics": b"<html>"}, {"/metrics": b"\xff\xfe vllm:\n"}])
def test_what_is_not_understood_is_not_told(answers: dict[str, bytes]) -> None:
    reading = ENGINE.read(answers, 1.0)
    assert (reading.busy, reading.kv_tokens, reading.kv_usage, reading.block_tokens) == (None, None, None, None)


def test_penstock_starts_no_vllm(make_pod: Any) -> None:
    assert ENGINE.launch(make_pod(), 1, "127.0.0.1") is None
