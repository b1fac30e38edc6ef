"""What the load tester itself can carry, and whether its figures are right: runs against simulators of known capacity.

    .venv/bin/python -m benchmarks.load_tester capacity      10,000 streams, 60,000 chunks a second
    .venv/bin/python -m benchmarks.load_tester steady        30,000 chunks a second for ten minutes: its own memory
    .venv/bin/python -m benchmarks.load_tester sweep         the saturation of three sizes that are known
    .venv/bin/python -m benchmarks.load_tester neighbour     a victim and a crowd, straight and through Penstock
    .venv/bin/python -m benchmarks.load_tester replay FILE   a trace for three tenants through Penstock, two pods behind

Each starts its own pods, uses the command line as anybody would, and leaves its reports in benchmarks/results. Two
cores are few: pods, gateway and tester share them, and a run says so (machine-bound).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.programs import key_hash, serving, started_pod, wait_for
from loadtest import summary as summaries
from loadtest.summary import Summary

RESULTS = Path(__file__).parent / "results"
KEYS = {name: f"sk-penstock-{name}" for name in ("victim", "crowd", "batch")}

SIMULATOR = ("backends.pods.simulator", "--model", "tiny", "--output", "fixed", "--kv-blocks", "1000000")


@contextlib.contextmanager
def pods(count: int, folder: Path, *options: str) -> Iterator[list[int]]:
    """Simulators with these options; their ports."""
    with contextlib.ExitStack() as stack:
        places = [folder / str(number) for number in range(count)]
        for place in places:
            place.mkdir()
        yield [stack.enter_context(started_pod([*SIMULATOR, *options], place)) for place in places]


def loadtest(name: str, words: Sequence[str], *, watch: bool = False) -> Summary:
    """Run the load tester with these words, its view on this terminal; its summary. `watch`: tell its memory."""
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "gateway.cli", "loadtest", *words, "--name", name]
    command += ["--json", str(out), "--html", str(RESULTS / f"{name}.html")]
    print(f"\n$ penstock loadtest {' '.join(words)}", flush=True)
    process = subprocess.Popen(command, env={**os.environ, **{f"{n.upper()}_KEY": key for n, key in KEYS.items()}})
    ended = threading.Event()
    if watch:
        threading.Thread(target=_tell_memory, args=(process.pid, ended), daemon=True).start()
    code = process.wait()
    ended.set()
    if not out.exists():
        raise SystemExit(f"the run ended with {code} and left no summary")
    return summaries.read(out.read_bytes())


def _tell_memory(pid: int, ended: threading.Event) -> None:
    """RSS of the tester's processes, every half minute, on standard error."""
    seconds = 0
    while not ended.wait(30):
        seconds += 30
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        sizes = " + ".join(f"{process.memory_info().rss / 2**20:.1f}" for process in tree)
        print(f"tester's RSS after {seconds} s: {sizes} MiB", file=sys.stderr, flush=True)


def capacity(folder: Path, seconds: int) -> None:
    """950 streams a second of 10.6 s each, constant arrivals."""
    with pods(2, folder, "--slots", "6000", "--ttft", "100ms", "--itl", "166ms") as ports:
        words = [f"http://127.0.0.1:{port}/v1" for port in ports]
        words += ["--model", "tiny", "--rate", "950", "--arrivals", "constant", "--duration", f"{seconds}s"]
        words += [
            "--input",
            "32",
            "--output",
            "64",
            "--max-streams",
            "11000",
            "--jsonl",
            str(RESULTS / "capacity.jsonl"),
        ]
        phase = loadtest("capacity", words).phases[0]
    open_most = max(moment.open for moment in phase.timeline[phase.tenants[0].name])
    print(f"open at most {open_most:,}; {phase.all.tokens_per_second:,.0f} tokens/s; core {phase.strain.core:.2f}")


def steady(folder: Path, seconds: int) -> None:
    """1,930 users: 30,000 chunks a second, while nothing else runs. A closed loop gives way where something does."""
    with pods(2, folder, "--slots", "3000", "--ttft", "100ms", "--itl", "60ms") as ports:
        words = [f"http://127.0.0.1:{port}/v1" for port in ports]
        words += ["--model", "tiny", "--users", "1930", "--duration", f"{seconds}s", "--plain"]
        words += ["--input", "32", "--output", "64", "--max-requests", "1M", "--jsonl", str(RESULTS / "steady.jsonl")]
        loadtest("steady", words, watch=True)


SIZES = ((4, 0.05, 0.010, 46), (32, 0.1, 0.020, 61), (128, 0.2, 0.030, 61))
"""Slots, TTFT and ITL in seconds, tokens: 0.5, 1.3 and 2.0 s of service; 8, 24.6 and 64 calls a second."""


def sweep(folder: Path, seconds: int) -> None:
    """Each size's saturation, beside slots ÷ service time."""
    found = []
    for number, (slots, ttft, itl, tokens) in enumerate(SIZES):
        expected = slots / (ttft + (tokens - 1) * itl)
        place = folder / f"size{number}"
        place.mkdir()
        with pods(1, place, "--slots", str(slots), "--ttft", f"{ttft}s", "--itl", f"{itl}s") as (port,):
            words = ["sweep", f"http://127.0.0.1:{port}/v1", "--model", "tiny", "--output", str(tokens), "--step"]
            words += [f"{seconds}s", "--rate", f"{expected / 4:.3g}-{expected * 4:.3g}", "--input", "32"]
            result = loadtest(f"sweep-{slots}", words).sweep
        assert result is not None
        found.append((slots, expected, result.saturation))
    for slots, expected, saturation in found:
        told = "not found" if saturation is None else f"{saturation:.2f}, {saturation / expected - 1:+.1%}"
        print(f"{slots} slots: {expected:.2f} calls/s expected, {told}")


NEIGHBOUR = """
target: {{url: "http://127.0.0.1:{port}/v1", model: tiny}}
seed: 7
warmup: 5s
objectives: {{ttft: 500ms, itl: 50ms}}
bounds: {{duration: 10m, requests: 200k}}
phases:
  - {{name: alone, duration: {seconds}s, tenants: [victim]}}
  - {{name: crowded, duration: {seconds}s}}
  - {{name: after, duration: {seconds}s, tenants: [victim]}}
tenants:
  - name: victim
    key: "${{VICTIM_KEY}}"
    arrivals: {{kind: poisson, rate: 20}}
    input: {{tokens: 64}}
    output: {{tokens: 16}}
  - name: crowd
    key: "${{CROWD_KEY}}"
    arrivals: {{kind: closed, users: 60}}
    input: {{tokens: [64, 512]}}
    output: {{tokens: 64}}
"""

GATEWAY = """
pods:
{pods}
models: [{{name: tiny, context: 8192, kvBytesPerToken: 4096}}]
tenants:
{tenants}
"""


def gateway_file(ports: Sequence[int], slots: int, budgets: dict[str, int]) -> str:
    """A gateway's file: these pods, and for each tenant how many calls it may have at once."""
    pod_lines = [
        f'  - {{name: sim{number}, url: "http://127.0.0.1:{port}", engine: simulator, models: [tiny], kvMemory: 32Gi, '
        f"concurrency: {slots}}}"
        for number, port in enumerate(ports)
    ]
    tenant_lines = [
        f'  - {{name: {name}, keys: ["sha256:{key_hash(KEYS[name])}"], budget: {{concurrency: {most}}}}}'
        for name, most in budgets.items()
    ]
    return GATEWAY.format(pods="\n".join(pod_lines), tenants="\n".join(tenant_lines))


def neighbour(folder: Path, seconds: int) -> None:
    """Victim and crowd on 32 slots: straight, where the crowd may take all, and where a budget holds it to 24."""
    scenario = folder / "neighbour.yaml"
    with pods(1, folder, "--slots", "32", "--ttft", "50ms", "--itl", "10ms") as ports:
        scenario.write_text(NEIGHBOUR.format(port=ports[0], seconds=seconds))
        loadtest("neighbour-straight", ["-f", str(scenario)])
        with serving(gateway_file(ports, 32, {"victim": 32, "crowd": 16}), folder) as (pid, port, admin):
            wait_for(port, "/readyz")
            scenario.write_text(NEIGHBOUR.format(port=port, seconds=seconds))
            words = ["-f", str(scenario), "--pid", str(pid), "--metrics", f"http://127.0.0.1:{admin}/metrics"]
            loadtest("neighbour-penstock", words)


REPLAY = """
target: {{url: "http://127.0.0.1:{port}/v1", model: tiny, usage: exact}}
seed: 7
bounds: {{duration: 10m, requests: 100k, openStreams: 4000}}
tenants:
  - {{name: victim, key: "${{VICTIM_KEY}}", cancel: {{share: 10%, afterTokens: [1, 32]}}}}
  - {{name: crowd, key: "${{CROWD_KEY}}"}}
  - {{name: batch, key: "${{BATCH_KEY}}"}}
trace: {{file: "{file}", speed: {speed}, split: {{victim: 1, crowd: 2, batch: 1}}, clip: 8192}}
"""


def replay(folder: Path, file: str, speed: int) -> None:
    """The trace through Penstock, its counts and the pods' beside the tester's."""
    scenario = folder / "replay.yaml"
    budgets = dict.fromkeys(KEYS, 3000)
    with pods(2, folder, "--slots", "2000", "--context", "8192", "--ttft", "30ms", "--itl", "5ms") as ports:
        with serving(gateway_file(ports, 2000, budgets), folder) as (pid, port, admin):
            wait_for(port, "/readyz")
            scenario.write_text(REPLAY.format(port=port, file=Path(file).resolve(), speed=speed))
            words = ["-f", str(scenario), "--pid", str(pid), "--metrics", f"http://127.0.0.1:{admin}/metrics"]
            for pod in ports:
                words += ["--metrics", f"http://127.0.0.1:{pod}/metrics"]
            summary = loadtest("replay", words)
    for results in (*summary.phases[0].tenants, summary.phases[0].all):
        whole = results.tokens_received + results.tokens_cancelled
        print(
            f"{results.name}: {results.scheduled:,} calls, {results.sent:,} sent, {results.done:,} done; received "
            f"{results.tokens_received:,} + cancelled {results.tokens_cancelled:,} = {whole:,} of "
            f"{results.tokens_asked:,} tokens"
        )


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("capacity", "steady", "sweep", "neighbour", "replay"))
    parser.add_argument("file", nargs="?", help="the trace that is replayed")
    parser.add_argument("--seconds", type=int, help="of load (a step, a phase)")
    parser.add_argument("--speed", type=int, default=20, help="of the trace (default 20)")
    args = parser.parse_args()
    if args.part == "replay" and args.file is None:
        parser.error("name the trace: replay FILE")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.part == "replay":
            replay(folder, args.file, args.speed)
        else:
            part = {"capacity": capacity, "steady": steady, "sweep": sweep, "neighbour": neighbour}[args.part]
            part(folder, args.seconds or {"capacity": 40, "steady": 600, "sweep": 15, "neighbour": 60}[args.part])


if __name__ == "__main__":
    main()
