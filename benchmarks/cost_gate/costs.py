"""The costs, and how each is counted.

A cost is the difference between windows of two lengths, over the difference of their lengths: what happens once a
window cancels out. What the clock sets off (polls, the log's flushes, timers) is not the work's, and is known by its
system calls: the windows with the fewest count, and of these the median.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.cost_gate.counting import Counts, Program, counted, counts_in
from benchmarks.cost_gate.lockstep import Ends, policy_file
from benchmarks.programs import free_port

Work = Callable[[int], None]
Start = Callable[[list[str], Path, Path], AbstractContextManager[Program]]

_MOST_TRIES = 10  # for one window, where polls come although none should


@dataclass(frozen=True, slots=True)
class Plan:
    """How a cost is counted: windows of `short` and of `long` units in turn, `windows` of each."""

    what: str
    short: int
    long: int
    windows: int


PLANS = {
    # So short that timers leave some windows alone: the log is written 100 ms after a request.
    "chunk": Plan("the relay, a chunk", 8, 40, 9),
    "request": Plan("a whole request for one token", 0, 1, 15),
    "admission": Plan("admission, a call admitted and settled", 50, 250, 2),  # no timers
}


class Bench:
    """A program at work: `does` names what it can be made to do, each a number of times."""

    def __init__(self, program: Program, does: dict[str, Work], ends: Ends | None) -> None:
        self._program = program
        self._ends = ends
        self.does = does

    def windows(self, work: str, *lengths: int) -> list[Path]:
        """Callgrind's files for so many units of `work`, one after the other; the program sleeps between them."""
        ends, do = self._ends, self.does[work]
        for _ in range(_MOST_TRIES):
            written = []
            with contextlib.nullcontext() if ends is None else ends.undisturbed():
                self._program.mark()
                polls = 0 if ends is None else ends.polls
                for length in lengths:
                    do(length)
                    written.append(self._program.mark())
            if ends is None or ends.polls == polls:
                break
        return written


@contextlib.contextmanager
def gateway_at_work(start: Start, tree: Path, folder: Path) -> Iterator[Bench]:
    """A gateway of `tree` between its two ends, warm: it does requests, or chunks once no request follows."""
    ends = Ends()
    try:
        port, admin = free_port(), free_port()
        (folder / "penstock.yaml").write_text(policy_file(ends.pod_port, port, admin))
        with start(["serve", "-f", str(folder / "penstock.yaml")], tree, folder) as program:
            ends.attend(program.slept)
            ends.connect(port)
            is_streaming = False

            def request(many: int) -> None:
                for _ in range(many):
                    ends.request()

            def chunk(many: int) -> None:
                nonlocal is_streaming
                if not is_streaming:
                    is_streaming = True
                    ends.ask(30_000)
                    ends.begin()
                for _ in range(many):
                    ends.chunk()

            request(20)
            yield Bench(program, {"request": request, "chunk": chunk}, ends)
    finally:
        ends.close()


@contextlib.contextmanager
def admission_at_work(start: Start, tree: Path, folder: Path) -> Iterator[Bench]:
    """Admission of `tree` by itself, with 1,000 tenants and 1,000 pods."""
    with start(["admission"], tree, folder) as program:
        yield Bench(program, {"admission": lambda many: program.ask(str(many))}, None)


def per_unit(plan: Plan, short: Sequence[Counts], long: Sequence[Counts]) -> Counts:
    """What one unit costs, from the counts of windows of both lengths; system calls to a tenth."""
    over = plan.long - plan.short
    least, most = _undisturbed(short), _undisturbed(long)
    instructions = round((most.instructions - least.instructions) / over)
    return Counts(instructions, round((most.system_calls - least.system_calls) / over, 1))


def _undisturbed(windows: Sequence[Counts]) -> Counts:
    fewest = min(counts.system_calls for counts in windows)
    return Counts(median(counts.instructions for counts in windows if counts.system_calls == fewest), fewest)


def count_costs(tree: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Counts]:
    """Every cost of the packages in `tree`; `say` gets each as it is known. Raises `CountError` or `StepError`.

    Takes half a minute, most of it until the gateway has started.
    """
    costs: dict[str, Counts] = {}
    for at_work in (gateway_at_work, admission_at_work):
        with tempfile.TemporaryDirectory(prefix="penstock-costs-") as name, at_work(counted, tree, Path(name)) as bench:
            for work in bench.does:
                costs[work] = count_one(bench, work)
                say(f"{work}: {costs[work].instructions:,} instructions, {costs[work].system_calls} system calls")
    return costs


def count_one(bench: Bench, work: str) -> Counts:
    """What one unit of `work` costs."""
    plan = PLANS[work]
    bench.does[work](plan.long)  # once, unseen: what is made when it is first needed
    short, long = [], []
    for _ in range(plan.windows):
        # A short one on either side: polls and what else comes twice a second keep a step, and one may always be hit.
        written = bench.windows(work, plan.short, plan.long, plan.short)
        before, middle, after = (counts_in(each.read_text()) for each in written)
        short += [before, after]
        long.append(middle)
    return per_unit(plan, short, long)
