"""Count what the data path costs, and hold it against the numbers in the tree.

    make costs                                                     count, compare, fail where a cost grew by a tenth
    make costs ARGS=--write                                        count, and write this machine's numbers down
    .venv/bin/python -m benchmarks.cost_gate profile chunk         where it comes from: chunk, request or admission

Instructions and system calls are counted by valgrind (`apt-get install valgrind`), never time. On a machine of which
benchmarks/costs.json knows nothing, the commit before is counted too, and compared with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.cost_gate.costs import PLANS, count_costs
from benchmarks.cost_gate.counting import CountError
from benchmarks.cost_gate.lockstep import StepError
from benchmarks.cost_gate.numbers import NUMBERS, Numbers, as_text, read_numbers, this_machine
from benchmarks.cost_gate.parent import NoParentError, parent_of
from benchmarks.cost_gate.profile import profile
from benchmarks.cost_gate.verdict import FILE, WRITE, Costs, Finding, compare, raised_on_purpose

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Do as the command line says; 0: no cost grew, 1: one did, or nothing could be counted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write the counts to {FILE}, for this machine")
    commands = parser.add_subparsers(dest="command")
    profiling = commands.add_parser("profile", help="where a cost comes from")
    profiling.add_argument("work", choices=sorted(PLANS))
    profiling.add_argument("--top", type=int, default=60, help="how many functions")
    arguments = parser.parse_args()
    try:
        if arguments.command == "profile":
            profile(arguments.work, ROOT, arguments.top)
            return 0
        return gate(is_writing=arguments.write)
    except (CountError, StepError) as error:
        print(f"cost gate: nothing counted: {error}", file=sys.stderr)
        return 1


def gate(*, is_writing: bool) -> int:
    """Count this tree, and write or compare."""
    machine = this_machine()
    numbers = read_numbers(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}
    print(f"counting on {machine}", flush=True)
    costs = count_costs(ROOT, _say)
    if is_writing:
        numbers[machine] = costs
        NUMBERS.write_text(as_text(numbers), encoding="utf-8")
        print(f"written to {FILE}")
        return 0
    known = numbers.get(machine)
    findings = against_parent(machine, costs, numbers) if known is None else compare(costs, known, FILE)
    for finding in findings:
        print(("FAILED  " if finding.is_failure else "note  ") + finding.text)
    is_good = not any(finding.is_failure for finding in findings)
    print("passed" if is_good else "failed")
    return 0 if is_good else 1


def against_parent(machine: str, costs: Costs, numbers: Numbers) -> list[Finding]:
    """Findings where the file has no numbers of this machine; the first says so."""
    unknown = f"{FILE} has no numbers of this machine ({machine})"
    advice = f"To have numbers of it: {WRITE} there, and commit {FILE}."
    try:
        with parent_of(ROOT) as parent:
            print(f"{unknown}: counting {parent.name} too", flush=True)
            try:
                before = count_costs(parent.tree, _say)
            except (CountError, StepError) as error:
                return [
                    Finding(f"{unknown}, and {parent.name} cannot be counted: NOTHING WAS COMPARED. {advice} {error}")
                ]
            text = parent.text(FILE)
            raised = raised_on_purpose(read_numbers(text), numbers) if text else {}
            note = Finding(f"{unknown}: compared with {parent.name}, counted in this run. {advice}")
            return [note, *compare(costs, before, parent.name, raised)]
    except NoParentError as error:
        return [Finding(f"{unknown}, and {error}: NOTHING WAS COMPARED. {advice}")]


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
