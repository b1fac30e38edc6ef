"""Penstock's own simulator: it speaks as vLLM does, and we can start it.

Shaped and read like vLLM on purpose, so that what is shown on the simulator is shown of the code that talks to vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from backends.engines import vllm
from backends.engines.body import can_be_joined, shape
from backends.engines.engine import Probe, Program, Reading, UpstreamRequest
from backends.engines.llamacpp import launch
from tenancy.call import Call
from tenancy.policy import Pod

RULES = replace(vllm.RULES, has_request_id=True)


class Simulator:
    """A simulator pod, found or started by us."""

    name = "simulator"
    health_path = "/health"
    probes = (Probe("/metrics"),)

    def request(self, call: Call, pod: Pod, output_tokens: int | None) -> UpstreamRequest:
        return shape(call, pod, output_tokens, RULES, as_stream=can_be_joined(call))

    def read(self, answers: Mapping[str, bytes], asked_at: float) -> Reading:
        return vllm.read(answers.get("/metrics", b""), asked_at)

    def launch(self, pod: Pod, port: int, host: str, context_tokens: int | None = None) -> Program | None:
        """One `--model` for every name that the pod serves under."""
        words = [word for served in pod.models for word in ("--model", served.served)]
        return launch("backends.pods.simulator", pod, port, host, context_tokens, words)
