"""Any OpenAI-compatible server that we know nothing of: it publishes nothing, and gets nothing that OpenAI does not
know.

`/v1/models` is the one thing that all of them answer, so that is how their health is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.engines.body import BodyRules, shape
from backends.engines.engine import Probe, Program, Reading, UpstreamRequest
from tenancy.call import Call
from tenancy.policy import Pod

RULES = BodyRules(stripped=frozenset({"priority", "cache_salt"}), is_salted=False)


class OpenAi:
    """A server behind OpenAI's API."""

    name = "openai"
    health_path = "/v1/models"
    probes: tuple[Probe, ...] = ()

    def request(self, call: Call, pod: Pod, output_tokens: int | None) -> UpstreamRequest:
        return shape(call, pod, output_tokens, RULES, as_stream=False)

    def read(self, answers: Mapping[str, bytes], asked_at: float) -> Reading:
        return Reading(asked_at=asked_at)

    def launch(self, pod: Pod, port: int, host: str, context_tokens: int | None = None) -> Program | None:
        return None
