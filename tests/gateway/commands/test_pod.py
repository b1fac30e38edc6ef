"""`penstock pod`: the pod programs from Penstock's own command line, with the options they have by themselves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import httpx
import pytest


@pytest.mark.parametrize(
    ("words", "engine"),
    [(["simulator", "--slots", "3", "--model", "m"], "simulator"), (["llama.cpp", "--slots", "3"], "llama.cpp")],
)
def test_a_pod_runs_until_it_is_stopped(words: list[str], engine: str) -> None:
    command = [sys.executable, "-m", "gateway.cli", "pod", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pod:
        assert pod.stdout is not None
        facts = json.loads(pod.stdout.readline())
        assert (facts["engine"], facts["slots"]) == (engine, 3)
        assert httpx.get(facts["ready"] + "/health").status_code == 200
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(10) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "PROGRAM"),
        (["simulatr"], "there is no PROGRAM 'simulatr'; did you mean 'simulator'?"),
        (["simulator", "--kv-blocks", "4", "--context", "1000"], "more than the KV memory holds"),
        (["vllm", "--model", "m"], "Penstock does not run vLLM itself: start it yourself and give its url"),
        (["simulator", "--port", "99999"], "must be a whole number from 0 to 65535, not '99999'"),
        (["llama.cpp", "--port", "65536"], "must be a whole number from 0 to 65535, not '65536'"),
        (["llama.cpp", "--model", "nowhere.gguf"], "there is no model at nowhere.gguf"),
    ],
)
def test_what_cannot_run_is_said_and_ends_with_2(words: list[str], says: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "pod", *words], capture_output=True, text=True, check=False, timeout=20
    )
    assert ended.returncode == 2
    assert says in ended.stderr


@pytest.mark.parametrize("words", [[], ["simulator"], ["llama.cpp"]])
def test_help_teaches_with_examples(words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "pod", *words, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert "examples:" in ended.stdout
