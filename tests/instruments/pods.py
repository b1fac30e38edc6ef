"""Pods for tests: a simulator or a llama.cpp server as a process of its own, gone at the end of the block.

    async with simulator(slots=2, itl="5ms") as pod:
        ...  # pod.url, pod.pid
        counters = await pod.counters()

Options are those of the command line, with underscores: `kv_bytes="1Mi"`, `model=["a", "b"]`, `embeddings=True`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
STOP_SECONDS = 5.0
POLL_SECONDS = 0.005


@dataclass
class PodProcess:
    """A pod that runs. `facts` is what it printed when it was ready."""

    url: str
    pid: int
    facts: dict[str, Any]
    client: httpx.AsyncClient = field(repr=False)
    process: asyncio.subprocess.Process = field(repr=False)

    async def counters(self) -> dict[str, Any]:
        """What the simulator counted: rows under `all`, `tenants` and `users`."""
        return await self._get("/sim/counters")  # type: ignore[no-any-return]

    async def requests(self) -> list[dict[str, Any]]:
        """The last calls as the simulator got them, oldest first: path, headers, body."""
        return await self._get("/sim/requests")  # type: ignore[no-any-return]

    async def metrics(self) -> dict[str, float]:
        """The pod's metrics by line, labels included."""
        text = (await self.client.get("/metrics")).text
        lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    async def arm(self, kind: str, value: float | str | None = None, **more: Any) -> None:
        """Let the simulator misbehave: `times`, `match`, `seconds`, `message` and `retry_after` go with it."""
        answer = await self.client.post("/sim/faults", json={"kind": kind, "value": value, **more})
        answer.raise_for_status()

    async def disarm(self) -> None:
        """Forget all faults that are armed."""
        (await self.client.delete("/sim/faults")).raise_for_status()

    async def reset(self) -> None:
        """Begin the simulator's counts anew."""
        (await self.client.post("/sim/reset")).raise_for_status()

    async def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 5.0) -> dict[str, Any]:
        """The first counters for which `holds` is true; fails after `seconds`, showing the last."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not holds(counters := await self.counters()):
            assert loop.time() < deadline, f"not within {seconds} s: {json.dumps(counters)}"
            await asyncio.sleep(POLL_SECONDS)
        return counters

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        os.kill(self.pid, signal.SIGKILL)

    async def _get(self, path: str) -> Any:
        answer = await self.client.get(path)
        answer.raise_for_status()
        return answer.json()


@asynccontextmanager
async def simulator(**options: Any) -> AsyncIterator[PodProcess]:
    """A simulator with these options."""
    async with _pod("backends.pods.simulator", options) as pod:
        yield pod


@asynccontextmanager
async def llama_cpp(**options: Any) -> AsyncIterator[PodProcess]:
    """A llama.cpp pod with these options, by default with the model that comes with Penstock."""
    async with _pod("backends.pods.llamacpp", options) as pod:
        yield pod


@asynccontextmanager
async def _pod(module: str, options: dict[str, Any]) -> AsyncIterator[PodProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments(options), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        assert line, f"{module} {options} ended with {await process.wait()} before it was ready"
        facts = json.loads(line)
        # llama.cpp's server drops a connection after a streamed answer without saying so: none of its is kept
        kept = 0 if module.endswith("llamacpp") else 4
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept)
        async with httpx.AsyncClient(base_url=facts["ready"], timeout=10.0, limits=limits, trust_env=False) as client:
            yield PodProcess(facts["ready"], process.pid, facts, client, process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def arguments(options: dict[str, Any]) -> list[str]:
    """Keyword options as a command line; the port is a free one unless it is given."""
    words: list[str] = []
    for name, value in {"port": 0, **options}.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for each in value:
                words += (flag, str(each))
        elif value is not None and value is not False:
            words += (flag, str(value))
    return words


async def misused(module: str, words: Sequence[str]) -> str:
    """What a pod program says on standard error when it is given these words; it must end with 2."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *words, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), START_SECONDS)
    assert process.returncode == 2
    return " ".join(said.decode().split())
