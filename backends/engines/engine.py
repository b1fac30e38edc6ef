"""What the gateway has to know about the kinds of inference servers, one `Engine` a kind.

An engine is stateless: it shapes the request for its pod and reads what the pod publishes. Whoever knows how vLLM names
its gauges or what llama.cpp must not be sent is an engine's file and nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import msgspec

from tenancy.call import Call
from tenancy.policy import Pod


@dataclass(frozen=True, slots=True)
class Reading:
    """What a pod said of itself at `asked_at` (when the probe was *sent*, monotonic seconds). `None`: not published.

    `kv_tokens` is its KV pool's size in tokens and `kv_usage` the share of it in use (0–1); `running` and `waiting`
    count requests.
    """

    asked_at: float
    running: int | None = None
    waiting: int | None = None
    kv_tokens: int | None = None
    kv_usage: float | None = None
    slots: int | None = None
    block_tokens: int | None = None

    @property
    def busy(self) -> int | None:
        """Requests at the pod, running and waiting, or `None` where it does not tell."""
        return None if self.running is None else self.running + (self.waiting or 0)


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to GET from a pod.

    `once`: only until it has answered, after each start; else at every poll. `only_without`: only where that path, an
    earlier probe's, gave no answer.
    """

    path: str
    once: bool = False
    only_without: str | None = None


class UpstreamRequest(msgspec.Struct, frozen=True, gc=False):
    """What goes to the pod: path, extra headers (credentials among them) and the JSON body.

    `as_stream` says that the pod is asked for a stream although the client wants one whole answer.
    """

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    as_stream: bool


@dataclass(frozen=True, slots=True)
class Program:
    """How a pod's process is started: its command line, and what its environment must say beside the pod's own `env`.

    Secrets go through the environment, because every user of a machine can read command lines.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)


class Engine(Protocol):
    """One kind of inference server."""

    @property
    def name(self) -> str:
        """The word for it in `engine:`."""

    @property
    def health_path(self) -> str:
        """Answers 2xx while the pod can take calls."""

    @property
    def probes(self) -> Sequence[Probe]:
        """What is asked for a reading; all answers of one poll go to `read` together, those asked once too."""

    def request(self, call: Call, pod: Pod, output_tokens: int | None) -> UpstreamRequest:
        """The call as this pod must get it.

        The body is rewritten from its parsed top-level keys: `model` as the pod calls it, `output_tokens` written in
        where the client stated no maximum, usage asked for, priority and the like stripped, the cache salt set to the
        tenant's.
        """

    def read(self, answers: Mapping[str, bytes], asked_at: float) -> Reading:
        """A reading from the probes' bodies, by path; what is missing or not understood stays `None`."""

    def launch(self, pod: Pod, port: int, host: str, context_tokens: int | None = None) -> Program | None:
        """How such a pod is started on `port`, or `None` where Penstock cannot start this engine.

        `context_tokens` is what one call may have, prompt and output together; `None` leaves it to the program.
        """
