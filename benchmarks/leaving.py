"""How long a left call holds its pod and its lease: from the client's RST until pod and gateway show it gone.

.venv/bin/python -m benchmarks.leaving [--times 20]

For the simulator and a real llama.cpp pod, streamed and not. Both ends are asked over and over, so each figure
includes up to one asking (some milliseconds).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.programs import key_hash, serving, started_pod, wait_for

KEY = "sk-penstock-benchmark"
GATEWAY = """
pods:
  - {{name: pod, url: "http://127.0.0.1:{pod}", engine: {engine}, models: [tiny], kvMemory: 64Gi, concurrency: 4096}}
models: [{{name: tiny, context: 32768, kvBytesPerToken: 4096}}]
tenants:
  - {{name: bench, keys: ["sha256:{hash}"], budget: {{memory: 32Gi, concurrency: 4000}}}}
"""
PODS = {
    "simulator": ["backends.pods.simulator", "--model", "tiny", "--slots", "8", "--ttft", "10ms", "--itl", "20ms"],
    "llama.cpp": ["backends.pods.llamacpp", "--alias", "tiny", "--slots", "2"],
}


async def get(port: int, path: str) -> str:
    """A GET on a connection of its own: the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nhost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.split(b"\r\n\r\n", 1)[1].decode()


async def busy(port: int, engine: str) -> int:
    """Calls that run at the pod, by its own word."""
    if engine == "simulator":
        return int(json.loads(await get(port, "/sim/counters"))["all"]["calls"])
    return sum(slot["is_processing"] for slot in json.loads(await get(port, "/slots")))


async def held(admin: int) -> int:
    """Leases of the tenant, by the gateway's word."""
    for line in (await get(admin, "/metrics")).splitlines():
        if line.startswith("penstock_tenant_concurrency_held"):
            return int(float(line.rsplit(" ", 1)[1]))
    raise RuntimeError("no such metric")


async def until(value: int, ask: Callable[[], Awaitable[int]]) -> None:
    """Ask until the answer is `value`; at most 10 s."""
    async with asyncio.timeout(10):
        while await ask() != value:
            pass


async def leave_once(pod: int, gateway: int, admin: int, engine: str, *, stream: bool) -> tuple[float, float]:
    """Seconds from leaving until the pod is idle, and until the lease is back."""
    body = json.dumps(
        {
            "model": "tiny",
            "stream": stream,
            "max_tokens": 1900,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "Write a very long story about a fox."}],
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    if stream:
        await reader.read(2000)
    await until(1, lambda: busy(pod, engine))
    writer.transport.abort()
    left = time.perf_counter()
    await until(0, lambda: busy(pod, engine))
    at_pod = time.perf_counter() - left
    await until(0, lambda: held(admin))
    return at_pod, time.perf_counter() - left


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    print(f"{'':26}{'pod idle, p50 / max':>22}{'lease back, p50 / max':>24}   (ms, {times} times each)")
    for engine, words in PODS.items():
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            folder = Path(name)
            with started_pod(words, folder) as pod:
                file = GATEWAY.format(pod=pod, hash=key_hash(KEY), engine=engine)
                with serving(file, folder) as (_, port, admin):
                    wait_for(port, "/readyz")
                    for stream in (True, False):
                        figures = [
                            asyncio.run(leave_once(pod, port, admin, engine, stream=stream)) for _ in range(times)
                        ]
                        row = "".join(
                            f"{statistics.median(column) * 1e3:>14.1f} / {max(column) * 1e3:.1f}"
                            for column in zip(*figures, strict=True)
                        )
                        print(f"{engine + (', streamed' if stream else ', whole'):26}{row}", flush=True)


if __name__ == "__main__":
    main()
