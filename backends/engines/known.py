"""The engines that Penstock knows, and how one is recognised where the file does not say.

A pod without `engine` is asked for a few paths once; what it publishes there tells what it is. Whoever answers but
cannot be told is `openai`.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.engines.engine import Engine
from backends.engines.llamacpp import LlamaCpp
from backends.engines.openai import OpenAi
from backends.engines.sglang import Sglang
from backends.engines.simulator import Simulator
from backends.engines.vllm import Vllm

ENGINES: Mapping[str, Engine] = {
    engine.name: engine for engine in (Vllm(), Sglang(), LlamaCpp(), Simulator(), OpenAi())
}

RECOGNITION_PATHS = ("/metrics", "/props", "/v1/models")

_SIGNS = (  # (path, what its body holds there, engine): the first that matches
    ("/metrics", b"vllm:", "vllm"),
    ("/metrics", b"sglang:", "sglang"),
    ("/metrics", b"llamacpp:", "llama.cpp"),
    ("/props", b'"total_slots"', "llama.cpp"),
    ("/v1/models", b'"owned_by":"vllm"', "vllm"),
    ("/v1/models", b'"owned_by":"sglang"', "sglang"),
    ("/v1/models", b'"owned_by":"llamacpp"', "llama.cpp"),
)


def recognise(answers: Mapping[str, bytes]) -> Engine:
    """The engine that gave these answers, by path of `RECOGNITION_PATHS`; paths that answered an error are left out."""
    packed = {path: answer.replace(b" ", b"") for path, answer in answers.items()}
    for path, sign, name in _SIGNS:
        if sign in packed.get(path, b""):
            return ENGINES[name]
    return ENGINES["openai"]
