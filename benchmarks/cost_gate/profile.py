"""Where a cost comes from: C functions by instructions, as callgrind sees them, and Python functions by time.

The second distorts: the profiler adds to every Python call and to none inside C. Read it for the numbers of calls.
"""

from __future__ import annotations

import marshal
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.cost_gate.costs import admission_at_work, gateway_at_work
from benchmarks.cost_gate.counting import counted, counts_in, profiled

LENGTHS = {"chunk": 400, "request": 40, "admission": 400}
_PYTHON_LENGTHS = {"chunk": 1000, "request": 200, "admission": 1000}

_SYSTEM_CALL_ROWS = 12


def profile(work: str, tree: Path, top: int) -> None:
    """Print both profiles of `work`, the `top` functions of each."""
    at_work = admission_at_work if work == "admission" else gateway_at_work
    with tempfile.TemporaryDirectory(prefix="penstock-costs-") as name:
        folder, length = Path(name), LENGTHS[work]
        with at_work(counted, tree, folder) as bench:
            bench.does[work](length)
            (written,) = bench.windows(work, length)
        counts = counts_in(written.read_text())
        print(f"{work}, {length} times: {counts.instructions / length:,.0f} instructions", end="")
        print(f" and {counts.system_calls / length:.2f} system calls each, marks and timers included\n")
        for event, rows in (("Ir", top), ("sysCount", _SYSTEM_CALL_ROWS)):
            print("\n".join(_c_functions(written, event, rows)) + "\n")
    with tempfile.TemporaryDirectory(prefix="penstock-costs-") as name:
        folder, length = Path(name), _PYTHON_LENGTHS[work]
        with at_work(profiled, tree, folder) as bench:
            bench.does[work](length)
            bench.windows(work, length)
        print(f"\nPython functions, {length} times; each time:")
        print("\n".join(python_table(marshal.loads((folder / "profile").read_bytes()), length)[: top + 1]))


def _c_functions(written: Path, event: str, rows: int) -> list[str]:
    """The functions of one of callgrind's files with most of `event`, with a heading; without folders."""
    command = ["callgrind_annotate", "--auto=no", "--threshold=100", f"--show={event}", f"--sort={event}", str(written)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    start = next((number for number, line in enumerate(lines) if "file:function" in line), 0)
    return [re.sub(r"[^ ]*/(?=[^/ ]*:)", "", line) for line in lines[start : start + rows + 2]]


def python_table(spent: Mapping[tuple[str, int, str], tuple[int, int, float, float, object]], length: int) -> list[str]:
    """Calls, own time and time with all that was called from there, of one unit; the dearest first.

    `spent` is what a profile holds: file, line and name to calls, primitive calls, own and whole seconds.
    """
    lines = [f"{'calls':>8} {'own µs':>8} {'all µs':>8}  function"]
    for (file, line, function), (_, calls, own, whole, _) in sorted(spent.items(), key=lambda item: -item[1][2]):
        place = function if file == "~" else f"{'/'.join(Path(file).parts[-3:])}:{line} {function}"
        lines.append(f"{calls / length:8.2f} {own / length * 1e6:8.2f} {whole / length * 1e6:8.2f}  {place}")
    return lines
