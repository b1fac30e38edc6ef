from __future__ import annotations

import sys
from typing import Any

from backends.engines.simulator import Simulator

ENGINE = Simulator()


def test_it_is_shaped_and_read_as_vllm_is(make_call: Any, make_pod: Any, sent: Any) -> None:
    body = sent(ENGINE.request(make_call({"messages": [], "cache_salt": "own"}), make_pod(), 64))
    assert body["cache_salt"] == "acme:own"
    assert ENGINE.read({"/metrics": b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"}, 0.0).busy == 4


def test_it_is_started_with_its_models_slots_and_options_and_its_key_in_the_environment(make_pod: Any) -> None:
    launch = ENGINE.launch(make_pod(slots=8, api_key="secret", options=("--itl", "20ms")), 4711, "127.0.0.1")
    assert launch is not None
    assert launch.command == (
        *(sys.executable, "-m", "backends.pods.simulator", "--host", "127.0.0.1", "--port", "4711"),
        *("--model", "x", "--model", "org/Tiny-1B", "--slots", "8", "--itl", "20ms"),
    )
    assert launch.env == {"PENSTOCK_POD_API_KEY": "secret"}
    assert "secret" not in repr(launch)
