"""The command: plan the run, go through it, show it.

    .venv/bin/python -m benchmarks.side_by_side              all loads, five rounds: a quarter of an hour
    .venv/bin/python -m benchmarks.side_by_side --quick      all loads, smaller, two rounds: under three minutes

Absolute figures move between machines and minutes, and other work on the machine disturbs all of them: read the ratios.
Ctrl-C ends everything that was started.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import uvloop

from benchmarks.calls import clock
from benchmarks.side_by_side import report
from benchmarks.side_by_side.checks import Comparison, WrongError, expect_accounted
from benchmarks.side_by_side.figures import Round
from benchmarks.side_by_side.gates import LITE, PEERS, PENSTOCK, RESULTS, Gate, Programs, find_programs, opened
from benchmarks.side_by_side.loads import AtOnce, Load, Refusals, Requests, SlowStreams, Streams

LOGS_OF_WRONG = RESULTS / "wrong"
BUSY_BEFORE_PERCENT = 15.0
DESCRIPTORS = 16384  # two for each of 3,000 streams in a gate, and room


@dataclass(frozen=True, slots=True)
class World:
    """A pod's times, and the loads that are sent to such a pod. Pod and gates are started afresh for each.

    `most_rounds` bounds its rounds. `twin`: the times of a second pod for the direct way, where the first is so slow
    that waiting for what answers are compared with would double the run.
    """

    pod: str
    loads: Sequence[Load]
    most_rounds: int = 1000
    twin: str = ""


def worlds(*, is_quick: bool) -> list[World]:
    """All loads, or smaller ones."""
    each_100, each_400, part = (1, 1, 4) if is_quick else (4, 2, 1)
    steady: list[Load] = [
        Streams("streams-100", 100, each=each_100),
        Streams("streams-400", 400, each=each_400),
        AtOnce("at-once", 400),
        Refusals("refusals", 3200 // part),
        Streams("flood", 100, each=1 if is_quick else 2, flood=1000),
    ]
    quick: list[Load] = [
        Requests("one-token", 6400 // part),
        Requests("whole", 1600 // part, tokens=64, is_stream=False),
        Requests("long-prompt", 320 // part, in_flight=8, prompt_bytes=100_000),
    ]
    slow = SlowStreams("slow-streams", 3000, tokens=9, opening_seconds=4)
    return [
        World("--ttft 50ms --itl 20ms", steady),
        World(FAST, quick),
        World("--ttft 50ms --itl 1s", [slow], most_rounds=1 if is_quick else 1000, twin=FAST),
    ]


FAST = "--ttft 0 --itl 0"
POD_WORDS = ["--slots", "8192", "--kv-blocks", "4000000", "--context", "65536"]


@dataclass
class Progress:
    """A line a step on standard error, with about how long the rest takes."""

    planned_seconds: float
    done_seconds: float = 0.0
    started: float = field(default_factory=clock)

    def tell(self, words: str) -> None:
        """Say something."""
        print(words, file=sys.stderr, flush=True)

    def step(self, words: str, seconds: float) -> None:
        """A step of about so many seconds begins."""
        passed = clock() - self.started
        pace = passed / self.done_seconds if self.done_seconds else 1.2
        left = (self.planned_seconds - self.done_seconds) * pace
        self.tell(f"{words:<52} {left / 60:4.1f} min left")
        self.done_seconds += seconds


def plan(world: World, gates: Sequence[Gate], number: int) -> list[tuple[Load, Gate]]:
    """What is run in a round: each load through each gate, the order of the gates another in every round."""
    turned = [*gates[number % len(gates) :], *gates[: number % len(gates)]]
    return [
        (fitting, gate)
        for load in world.loads
        for gate in turned
        if not (load.needs_tenants and gate.spent is None)
        and (fitting := gentler(load) if gate.name == LITE else load) is not None
    ]


def gentler(load: Load) -> Load | None:
    """What LiteLLM can carry of a load: a millisecond a chunk makes 100 streams too many for it."""
    if isinstance(load, Streams) and load.count <= 100 and not load.flood:
        return replace(load, count=load.count // 10)
    if isinstance(load, Requests) and not load.prompt_bytes:
        return replace(load, count=load.count // 20, in_flight=4)
    return None


def run_world(world: World, programs: Programs, rounds: int, progress: Progress) -> tuple[list[Round], Comparison]:
    """All rounds of a world; raises `WrongError` where a gate, or Penstock's books, were wrong."""
    comparison = Comparison()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        twin = [*world.twin.split(), *POD_WORDS] if world.twin else []
        try:
            with opened(programs, [*world.pod.split(), *POD_WORDS], twin, folder) as gates:
                done = run_rounds(world, gates, min(rounds, world.most_rounds), comparison, progress)
                penstock = next(gate for gate in gates if gate.name == PENSTOCK)
                ours = [sample for told in done for (_, gate), sample in told.items() if gate == PENSTOCK]
                expect_accounted(penstock, *(sum(getattr(sample, key) for sample in ours) for key in COUNTED))
        except WrongError:
            shutil.copytree(folder, LOGS_OF_WRONG, dirs_exist_ok=True)
            raise
    return done, comparison


def run_rounds(
    world: World, gates: Sequence[Gate], rounds: int, comparison: Comparison, progress: Progress
) -> list[Round]:
    """Each load through each gate, so many times; raises `WrongError`."""
    done: list[Round] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in range(rounds):
            told: Round = {}
            for load, gate in plan(world, gates, number):
                progress.step(f"round {number + 1}/{rounds}  {load.name:<13} {gate.name}", load.seconds)
                sample = runner.run(load.run(gate))
                comparison.take(gate.name, sample.kept)
                told[load.name, gate.name] = sample
            comparison.settle()
            done.append(told)
    comparison.end()
    return done


COUNTED = ("sent", "refused", "tokens")


def together(parts: Sequence[Sequence[Round]]) -> list[Round]:
    """The rounds of several worlds, as if each round had gone through all of them."""
    most = max((len(part) for part in parts), default=0)
    merged: list[Round] = [{} for _ in range(most)]
    for part in parts:
        for told, more in zip(merged, part, strict=False):
            told |= more
    return merged


def chosen(all_worlds: Sequence[World], only: Collection[str]) -> list[World]:
    """The worlds with the loads that were asked for."""
    kept = [
        replace(world, loads=[load for load in world.loads if not only or load.name in only]) for world in all_worlds
    ]
    return [world for world in kept if world.loads]


def main() -> int:
    """Run as the command line says; the exit code: 1 where something was wrong."""
    names = [load.name for world in worlds(is_quick=True) for load in world.loads]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller loads, two rounds")
    parser.add_argument("--rounds", type=int, help="how often all loads go through all gates (5; quick: 2)")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="LOAD", help=", ".join(names))
    parser.add_argument("--with", nargs="+", choices=[LITE], default=[], dest="more", help="further peers")
    parser.add_argument("--without", nargs="+", choices=PEERS, default=[], help="peers to leave out")
    parser.add_argument("--document", action="store_true", help="write the figures into docs/benchmarks.md")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(DESCRIPTORS, hard)), hard))
    planned = chosen(worlds(is_quick=arguments.quick), arguments.only)
    progress = Progress(0.0)
    wanted = [name for name in (*PEERS, *arguments.more) if name not in arguments.without]
    programs = find_programs(wanted, progress.tell)
    gates = 2 + len(programs.commands)
    progress.planned_seconds = sum(
        load.seconds * (min(gates, 2) if load.needs_tenants else gates) * min(rounds, world.most_rounds)
        for world in planned
        for load in world.loads
    )
    before = psutil.cpu_percent(1.0)
    if before > BUSY_BEFORE_PERCENT:
        progress.tell(
            f"WARNING: other programs use {before:.0f} % of this machine: first-token times will be theirs, too"
        )
    progress.started = clock()
    parts, compared = [], dict[str, int]()
    try:
        for world in planned:
            done, comparison = run_world(world, programs, rounds, progress)
            parts.append(done)
            for name, count in comparison.compared.items():
                compared[name] = compared.get(name, 0) + count
    except WrongError as wrong:
        print(f"\nWRONG: {wrong}\nthe programs' logs are in {os.path.relpath(LOGS_OF_WRONG)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; everything that was started has been ended", file=sys.stderr)
        return 130
    result = report.Result(together(parts), programs, compared, clock() - progress.started, sys.argv[1:], before)
    report.show(result)
    report.write(result, into_document=arguments.document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
