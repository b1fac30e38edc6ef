"""What the data path costs: µs of CPU a streamed chunk and a request, through Penstock and through nginx, in one
run.

    .venv/bin/python -m benchmarks.relay_cost [--rounds 5] [--quick]

The same simulator pod is behind both; the loads go through each in turn. Cost is the CPU time (user + system) of
the proxy's whole process tree over what it did, as the kernel counts it. Absolute times move between machines and
minutes: read the ratios. nginx (`apt-get install nginx-light`) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop

from benchmarks.calls import Caller, Target
from loadtest.client import Flight

KEY = "sk-penstock-benchmark"
TOKENS = 64
IN_FLIGHT = 32

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  limit_conn_zone $http_authorization zone=tenant:1m; limit_conn tenant 8000;
  upstream pod {{ server 127.0.0.1:{pod}; keepalive 512; }}
  server {{ listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""

PENSTOCK = """
pods:
  - {{name: sim, url: "http://127.0.0.1:{pod}", engine: simulator, models: [tiny], kvMemory: 64Gi, concurrency: 4096}}
models: [{{name: tiny, context: 32768, kvBytesPerToken: 4096}}]
tenants:
  - name: bench
    keys: ["sha256:{hash}"]
    budget: {{memory: 32Gi, concurrency: 4000, requestsPerMinute: 10000000, tokensPerMinute: 1000000000}}
"""


@dataclass(frozen=True, slots=True)
class Gate:
    """One way to the pod, and the process whose tree is charged for it (`None`: straight to the pod)."""

    name: str
    target: Target
    pid: int | None

    def cpu_seconds(self) -> float:
        """User and system time of the whole process tree, those that ended included."""
        if self.pid is None:
            return 0.0
        tree = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(times.user + times.system for times in (process.cpu_times() for process in tree))


def body(tokens: int) -> bytes:
    """A chat call that makes exactly `tokens` tokens."""
    return json.dumps(
        {
            "model": "tiny",
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "Tell me about the river and the mill. " * 8}],
        }
    ).encode()


async def streams(gate: Gate, count: int) -> list[Flight]:
    """`count` streams at once, each on a connection of its own."""
    caller = Caller(gate.target)
    flights = await asyncio.gather(*(caller.call(body(TOKENS)) for _ in range(count)))
    await caller.close()
    return flights


async def requests(gate: Gate, count: int) -> list[Flight]:
    """`count` one-token calls, `IN_FLIGHT` at a time, on kept connections."""
    caller = Caller(gate.target)

    async def one_after_the_other(share: int) -> list[Flight]:
        return [await caller.call(body(1)) for _ in range(share)]

    shares = await asyncio.gather(*(one_after_the_other(count // IN_FLIGHT) for _ in range(IN_FLIGHT)))
    await caller.close()
    return [flight for share in shares for flight in share]


async def cost(gate: Gate, load: str, size: int) -> float:
    """µs of CPU a chunk (`load` "streams") or a request ("requests"); raises where any call was not done."""
    before = gate.cpu_seconds()
    flights = await (streams(gate, size) if load == "streams" else requests(gate, size))
    spent = gate.cpu_seconds() - before
    failed = [flight.code for flight in flights if flight.code]
    if failed:
        raise RuntimeError(f"{gate.name}: {len(failed)} of {len(flights)} calls failed: {sorted(set(failed))}")
    done = sum(flight.answer.events for flight in flights) if load == "streams" else len(flights)
    return spent / done * 1e6


@contextlib.contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A child, ended at the end."""
    with log.open("w") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def free_port() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str) -> None:
    """Until something answers 200 there; at most 20 s."""
    import httpx

    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing answers at port {port}{path}")


def key_hash(key: str = KEY) -> str:
    """A key as the file wants it, without its prefix."""
    return hashlib.sha256(key.encode()).hexdigest()


@contextlib.contextmanager
def started_pod(words: list[str], folder: Path) -> Iterator[int]:
    """A pod program of our own (its module, and its options) on a free port, which is given."""
    with process([sys.executable, "-m", *words, "--port", "0"], folder / "pod.log") as pod:
        assert pod.stdout is not None
        yield int(json.loads(pod.stdout.readline())["ready"].rsplit(":", 1)[1])


@contextlib.contextmanager
def serving(file: str, folder: Path) -> Iterator[tuple[int, int, int]]:
    """A gateway for `file` (its text): its pid, its port and its admin port."""
    port, admin = free_port(), free_port()
    (folder / "penstock.yaml").write_text(file)
    command = [sys.executable, "-m", "gateway.cli", "serve", "-f", str(folder / "penstock.yaml")]
    with (folder / "access.log").open("w") as access, (folder / "penstock.log").open("w") as errors:
        gateway = subprocess.Popen(
            [*command, "--port", str(port), "--admin-port", str(admin)], stdout=access, stderr=errors
        )
        try:
            yield gateway.pid, port, admin
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway.wait(20)


@contextlib.contextmanager
def gates(folder: Path) -> Iterator[list[Gate]]:
    """The pod and what stands before it."""
    simulator = ["backends.pods.simulator", "--model", "tiny", "--slots", "4096", "--ttft", "50ms", "--itl", "20ms"]
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(started_pod([*simulator, "--kv-blocks", "4000000", "--context", "32768"], folder))
        made = [Gate("direct", Target(f"http://127.0.0.1:{pod}/v1"), None)]
        file = PENSTOCK.format(pod=pod, hash=key_hash())
        pid, port, _ = stack.enter_context(serving(file, folder))
        wait_for(port, "/readyz")
        made.append(Gate("penstock", Target(f"http://127.0.0.1:{port}/v1", KEY), pid))
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None:
            print("nginx is not installed (apt-get install nginx-light): left out", flush=True)
        else:
            port = free_port()
            (folder / "nginx.conf").write_text(NGINX.format(folder=folder, pod=pod, port=port))
            child = stack.enter_context(process([nginx, "-c", str(folder / "nginx.conf")], folder / "nginx.log"))
            wait_for(port, "/health")
            made.append(Gate("nginx", Target(f"http://127.0.0.1:{port}/v1", KEY), child.pid))
        yield made


def main() -> None:
    """Run, with a line a round, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, small loads")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    loads = [("streams", 100), ("streams", 400), ("requests", 640 if arguments.quick else 3200)]
    costs: dict[tuple[str, str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name, gates(Path(name)) as made:
        charged = [gate for gate in made if gate.pid is not None]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for gate in charged:
                runner.run(cost(gate, "requests", IN_FLIGHT))  # warm up
            for number in range(rounds):
                for load, size in loads:
                    for gate in charged:
                        spent = runner.run(cost(gate, load, size))
                        costs.setdefault((gate.name, load, size), []).append(spent)
                        print(f"round {number + 1}/{rounds}  {load} {size}  {gate.name}: {spent:.1f} µs", flush=True)
        memory = {gate.name: psutil.Process(gate.pid).memory_info().rss / 1e6 for gate in charged if gate.pid}
    print(f"\n{'':24}" + "".join(f"{gate.name:>22}" for gate in charged) + f"{'ratio':>10}")
    for load, size in loads:
        medians = [statistics.median(costs[gate.name, load, size]) for gate in charged]
        spreads = [
            f"{median:.1f} ({min(costs[gate.name, load, size]):.1f}–{max(costs[gate.name, load, size]):.1f})"
            for gate, median in zip(charged, medians, strict=True)
        ]
        label = f"µs a chunk, {size} streams" if load == "streams" else "µs a request"
        ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) > 1 else "–"
        print(f"{label:24}" + "".join(f"{spread:>22}" for spread in spreads) + f"{ratio:>10}")
    print("RSS afterwards: " + ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in memory.items()))


if __name__ == "__main__":
    main()
