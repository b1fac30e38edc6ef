"""What streaming buys, on the real engine: the first character sooner, memory, bytes; the same prompts whole and
streamed.

    .venv/bin/python -m benchmarks.streaming [--quick] [--calls 100] [--document]

Two llama.cpp pods stand behind Penstock as in the demo. Times are a bare client's, whose cost is next to nothing;
memory is the gateway's and that of a process with OpenAI's SDK (`benchmarks.sdk_caller`), each time of a gateway and a
client that were started for it; bytes are counted on sockets. What a small model on two cores cannot show, hundreds of
long answers at once, a simulator pod shows. Figures go to benchmarks/results/streaming.json, and with `--document` into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httptools
import psutil
import uvloop

from benchmarks.calls import Target
from benchmarks.document import write_section
from benchmarks.programs import key_hash, serving, started_pod, wait_for
from benchmarks.resident import Resident
from benchmarks.streaming_findings import (
    MODES,
    Findings,
    Load,
    Mode,
    Times,
    Weight,
    Wire,
    mebibytes,
    milliseconds,
    section,
)
from loadtest.answer import Answer
from loadtest.client import Client, Flight, connect_to

RESULTS = Path(__file__).parent / "results"
KEY = "sk-penstock-benchmark"
TOP_LOGPROBS = 20  # the most that OpenAI's API knows
SLOTS = 8  # of each llama.cpp pod, as in the demo
PODS = 2

PROMPTS = (
    "Tell me a story about a river.",
    "Why does a river flow to the sea?",
    "Write a very long story about a fox.",
    "What is a computer?",
    "How does a mill work?",
    "Tell me about the rain.",
    "Count to one hundred.",
    "Write a story about a lighthouse and a storm.",
)

REAL = """
pods: [{pods}]
models: [{{name: tiny, context: 2048, kvBytesPerToken: 2048}}]
tenants: [{{name: bench, keys: ["sha256:{hash}"], budget: {{memory: 64Mi, concurrency: 16}}}}]
"""
REAL_POD = '{{name: chat-{n}, url: "http://127.0.0.1:{port}", engine: llama.cpp, models: [tiny], kvMemory: 32Mi}}'

SIMULATED = """
pods: [{{name: sim, url: "http://127.0.0.1:{port}", engine: simulator, models: [tiny], kvMemory: 64Gi}}]
models: [{{name: tiny, context: 32768, kvBytesPerToken: 4096}}]
tenants: [{{name: bench, keys: ["sha256:{hash}"], budget: {{memory: 64Gi, concurrency: 4000}}}}]
"""
SIMULATOR = ("backends.pods.simulator", "--model", "tiny", "--output", "fixed", "--slots", "4096", "--itl", "20ms")
SIMULATOR_SIZE = ("--kv-blocks", "4000000", "--context", "32768")


def body(prompt: str, tokens: int, mode: Mode) -> bytes:
    """A chat call that is answered with exactly `tokens` tokens, the same ones each time."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    asked["messages"] = [{"role": "user", "content": prompt}]
    if mode == "streamed":
        asked["stream"] = True
    return json.dumps(asked).encode()


def target(port: int) -> Target:
    """The gateway there, with the key."""
    return Target(f"http://127.0.0.1:{port}/v1", KEY)


# ---- times


class Bare:
    """The load tester's client on a clock that is finer than a loop's. A connection for each call at once, kept."""

    def __init__(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._target = target(port)
        self._client = Client(connect_to(loop, ("127.0.0.1", port)), time.perf_counter, loop)

    async def call(self, prompt: str, tokens: int, mode: Mode) -> tuple[float, float]:
        """Seconds to the first and to the last character; raises `RuntimeError` where the answer was not done."""
        ended: asyncio.Future[Flight] = asyncio.get_running_loop().create_future()
        answer = Answer(tokens, is_stream=mode == "streamed")
        began = time.perf_counter()
        self._client.send(
            Flight(began, self._target.request(body(prompt, tokens, mode)), answer, lambda f: ended.set_result(f))
        )
        flight = await ended
        if flight.code or answer.first is None:
            raise RuntimeError(f"a call of {tokens} tokens, {mode}, was not done: {flight.code}")
        return answer.first - began, flight.ended - began

    async def close(self) -> None:
        """Leave."""
        await self._client.close()


async def time_calls(port: int, tokens: int, at_once: int, calls: int) -> list[Times]:
    """`calls` calls or a few more in each mode, `at_once` at a time, the modes in turn."""
    bare = Bare(port)
    both = [Times(tokens, at_once, mode) for mode in MODES]
    for turn in range(-(-calls // at_once)):
        prompts = [PROMPTS[(turn * at_once + number) % len(PROMPTS)] for number in range(at_once)]
        for times in both:
            ended = await asyncio.gather(*(bare.call(prompt, tokens, times.mode) for prompt in prompts))
            times.first += [first for first, _ in ended]
            times.last += [last for _, last in ended]
    await bare.close()
    whole, streamed = both
    print(
        f"times    {tokens:>6,} tokens, {at_once:>3} at once: whole {milliseconds(whole.first)} ms; streamed, first "
        f"{milliseconds(streamed.first)} ms, last {milliseconds(streamed.last)} ms",
        flush=True,
    )
    return both


# ---- bytes


class Forwarder:
    """Passes everything on to one port, and counts the bytes of its answers to calls; probes are not counted."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.counted = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        is_call = False

        async def ask() -> None:
            nonlocal is_call
            while data := await reader.read(1 << 16):
                is_call = is_call or data.startswith(b"POST ")
                back.write(data)
            back.close()

        async def answer() -> None:
            while data := await there.read(1 << 16):
                self.counted += len(data) if is_call else 0
                writer.write(data)
            writer.close()

        with contextlib.suppress(ConnectionError, asyncio.CancelledError):  # whatever is open at the end is left
            await asyncio.gather(ask(), answer())
        back.close()
        writer.close()


class Reading:
    """One answer read from a socket: how many bytes there were, and the body among them (httptools' callbacks)."""

    def __init__(self) -> None:
        self.counted = 0
        self.body = b""
        self.is_whole = False
        self._parser = httptools.HttpResponseParser(self)

    def take(self, data: bytes) -> None:
        """The next bytes."""
        self.counted += len(data)
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.is_whole = True

    def text(self, mode: Mode) -> str:
        """The answer's text, of whichever form."""
        if mode == "whole":
            return str(json.loads(self.body)["choices"][0]["message"]["content"])
        events = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line.startswith(b"data: {")]
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


async def count_bytes(pod: int, lengths: Sequence[int], folder: Path) -> list[Wire]:
    """One call of each length in each mode, on a gateway whose only pod stands behind a counting forwarder; raises
    `RuntimeError` where the two modes' texts differ.
    """
    forwarder = Forwarder(pod)
    server = await asyncio.start_server(forwarder.carry, "127.0.0.1", 0)
    wires: list[Wire] = []
    with serving(real_file([server.sockets[0].getsockname()[1]]), folder) as (_, port, _):
        await asyncio.to_thread(wait_for, port, "/readyz")
        for tokens in lengths:
            texts = []
            for mode in MODES:
                forwarder.counted = 0
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(target(port).request(body(PROMPTS[0], tokens, mode)))
                reading = Reading()
                while not reading.is_whole:
                    reading.take(await reader.read(1 << 16))
                writer.close()
                texts.append(reading.text(mode))
                wires.append(Wire(tokens, mode, len(texts[-1]), forwarder.counted, reading.counted))
            if texts[0] != texts[1]:
                raise RuntimeError(f"the answer of {tokens} tokens is not the same whole and streamed")
            print(
                f"bytes    {tokens:>6,} tokens: whole {wires[-2].from_pod:,} from the pod, {wires[-2].to_client:,} to "
                f"the client; streamed {wires[-1].from_pod:,} and {wires[-1].to_client:,}",
                flush=True,
            )
    server.close()
    return wires


# ---- memory


async def bare_calls(port: int, tokens: int, at_once: int, mode: Mode) -> None:
    """So many calls at once."""
    bare = Bare(port)
    await asyncio.gather(*(bare.call(PROMPTS[0], tokens, mode) for _ in range(at_once)))
    await bare.close()


def weigh(file: str, load: Load, mode: Mode, folder: Path) -> Weight:
    """Start a gateway for `file` and a client, warm both up, and weigh them under this load."""
    with contextlib.ExitStack() as stack:
        pid, port, _ = stack.enter_context(serving(file, folder))
        wait_for(port, "/readyz")
        caller = stack.enter_context(sdk_caller(port, load, mode, folder)) if load.client == "sdk" else None
        for warm in MODES:
            uvloop.run(bare_calls(port, 4, 2, warm))
        said: dict[str, Any] = {"idle_bytes": 0, "peak_bytes": 0}
        gateway, process = Resident(pid), psutil.Process(pid)
        idle, before = gateway.forget_peak(), process.cpu_times()
        if caller is not None:
            assert caller.stdin is not None and caller.stdout is not None
            caller.stdin.write("\n")
            caller.stdin.flush()
            said = json.loads(caller.stdout.readline())
        else:
            uvloop.run(bare_calls(port, load.tokens, load.at_once, mode))
        after = process.cpu_times()
        weight = Weight(
            load=load,
            mode=mode,
            gateway_idle=idle,
            gateway_grown=gateway.peak_bytes() - idle,
            gateway_cpu=after.user + after.system - before.user - before.system,
            client_idle=said["idle_bytes"],
            client_grown=said["peak_bytes"] - said["idle_bytes"],
        )
    grown = f"gateway {mebibytes(idle)} + {mebibytes(weight.gateway_grown)} MiB, {weight.gateway_cpu:.2f} s of CPU"
    if load.client == "sdk":
        grown += f"; SDK {mebibytes(weight.client_idle)} + {mebibytes(weight.client_grown)} MiB"
    print(f"memory   {load.tokens:>6,} tokens, {load.at_once:>3} at once, {load.engine}, {mode}: {grown}", flush=True)
    return weight


@contextlib.contextmanager
def sdk_caller(port: int, load: Load, mode: Mode, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The SDK in a process of its own, warmed up: a line to it lets it begin, a line from it says how it went."""
    words = ["benchmarks.sdk_caller", target(port).url, "--prompt", PROMPTS[0], "--tokens", str(load.tokens)]
    words += ["--at-once", str(load.at_once), "--top-logprobs", str(load.top_logprobs)]
    words += ["--stream"] if mode == "streamed" else []
    with (folder / "sdk.log").open("w") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OPENAI_API_KEY": KEY},
        )
        with child:
            try:
                assert child.stdout is not None
                if not child.stdout.readline():
                    raise RuntimeError(f"the SDK's process failed: {(folder / 'sdk.log').read_text()[-400:]}")
                yield child
            finally:
                child.terminate()


# ---- all of it


def real_file(ports: Sequence[int]) -> str:
    """A gateway's file for llama.cpp pods at these ports."""
    pods = ", ".join(REAL_POD.format(n=number, port=port) for number, port in enumerate(ports))
    return REAL.format(pods=pods, hash=key_hash(KEY))


def measure_real(findings: Findings, folder: Path, *, calls: int, quick: bool) -> None:
    """Everything on llama.cpp: times, bytes, memory."""
    all_slots = SLOTS * PODS
    timed = [(50, 1), (400, 1)] if quick else [(50, 1), (200, 1), (800, 1), (1900, 1)]
    timed += [(50, all_slots)] if quick else [(50, all_slots), (200, all_slots), (400, all_slots)]
    weighed = [Load("llama.cpp", "sdk", tokens, at_once) for tokens, at_once in ((1900, 1), (1900, all_slots))]
    weighed += [Load("llama.cpp", "sdk", tokens, n, TOP_LOGPROBS) for tokens, n in ((1900, 1), (400, all_slots))]
    if quick:
        weighed = [Load("llama.cpp", "sdk", 50, all_slots), Load("llama.cpp", "sdk", 50, all_slots, TOP_LOGPROBS)]
    with contextlib.ExitStack() as stack:
        ports = []
        for number in range(PODS):
            place = folder / f"pod-{number}"
            place.mkdir()
            words = ["backends.pods.llamacpp", "--alias", "tiny", "--slots", str(SLOTS), "--context", "2048"]
            ports.append(stack.enter_context(started_pod(words, place)))
        with serving(real_file(ports), folder) as (_, port, _):
            wait_for(port, "/readyz")
            for mode in MODES:  # warms up
                uvloop.run(bare_calls(port, 50, all_slots, mode))
            for tokens, at_once in timed:
                findings.times += uvloop.run(time_calls(port, tokens, at_once, calls))
        findings.wires += uvloop.run(count_bytes(ports[0], sorted({tokens for tokens, _ in timed}), folder))
        findings.weights += [weigh(real_file(ports), load, mode, folder) for load in weighed for mode in MODES]


def measure_scale(findings: Findings, folder: Path, *, quick: bool) -> None:
    """Memory on the simulator: many calls at once, long ones."""
    loads = [Load("simulator", "bare", 1000, 200), Load("simulator", "bare", 8000, 200)]
    loads.append(Load("simulator", "sdk", 2000, 100))
    if quick:
        loads = [Load("simulator", "bare", 500, 100), Load("simulator", "sdk", 500, 20)]
    with started_pod([*SIMULATOR, *SIMULATOR_SIZE], folder) as pod:
        file = SIMULATED.format(port=pod, hash=key_hash(KEY))
        findings.weights += [weigh(file, load, mode, folder) for load in loads for mode in MODES]


def main() -> None:
    """Measure, with a line a step, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100, help="timed calls of each length and mode (default: 100)")
    parser.add_argument("--quick", action="store_true", help="few and short calls, for a look")
    parser.add_argument("--document", action="store_true", help="write the section of docs/benchmarks.md")
    asked = parser.parse_args()
    findings = Findings(cores=os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        measure_real(findings, Path(name), calls=5 if asked.quick else asked.calls, quick=asked.quick)
        measure_scale(findings, Path(name), quick=asked.quick)
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / "streaming.json"
    out.write_text(json.dumps(asdict(findings), indent=1) + "\n")
    print(f"\n{section(findings)}\n{out}")
    if asked.document:
        write_section("streaming", section(findings))


if __name__ == "__main__":
    main()
