from __future__ import annotations

import pytest

from backends.engines.known import ENGINES, recognise


@pytest.mark.parametrize(
    ("answers", "name"),
    [
        ({"/metrics": b"# TYPE vllm:num_requests_running gauge\n"}, "vllm"),
        ({"/metrics": b"# TYPE sglang:token_usage gauge\n"}, "sglang"),
        ({"/metrics": b"# TYPE llamacpp:requests_deferred gauge\n"}, "llama.cpp"),
        ({"/props": b'{"total_slots":4}'}, "llama.cpp"),
        ({"/metrics": b"python_info 1\n", "/v1/models": b'{"data": [{"owned_by": "vllm"}]}'}, "vllm"),
        ({"/v1/models": b'{"data":[{"id":"m","owned_by":"sglang"}]}'}, "sglang"),
        ({"/v1/models": b'{"data":[{"id":"m","owned_by":"organization-owner"}]}'}, "openai"),
        ({}, "openai"),
    ],
)
def test_an_engine_is_told_by_what_it_publishes(answers: dict[str, bytes], name: str) -> None:
    assert recognise(answers).name == name


def test_every_engine_goes_by_its_own_name() -> None:
    assert all(name == engine.name for name, engine in ENGINES.items())
    assert set(ENGINES) == {"vllm", "sglang", "llama.cpp", "simulator", "openai"}
