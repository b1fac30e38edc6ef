"""`costs.json`: what each cost was, for every machine that it was counted on, and which machine this one is.

A number stands for one build of Python under one version of valgrind on one architecture: instructions of another say
nothing of this one.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.cost_gate.counting import CountError, Counts

NUMBERS = Path(__file__).parent.with_name("costs.json")

Numbers = dict[str, dict[str, Counts]]


def this_machine() -> str:
    """The name of what counts here: architecture, Python and how it was built, valgrind."""
    try:
        said = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise CountError("valgrind is not installed, or does not run: apt-get install valgrind") from None
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    build = [platform.python_compiler()]
    build += [
        word for word, option in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto")) if option in arguments
    ]
    python = f"{platform.python_implementation()} {platform.python_version()} ({', '.join(build)})"
    return f"{platform.machine()}, {python}, {said.strip().replace('valgrind-', 'valgrind ')}"


def read_numbers(text: str) -> Numbers:
    """The numbers in a file's text, by machine and cost."""
    return {
        machine: {cost: Counts(**counts) for cost, counts in costs.items()}
        for machine, costs in json.loads(text).items()
    }


def as_text(numbers: Mapping[str, Mapping[str, Counts]]) -> str:
    """The file's text for `numbers`."""
    plain = {
        machine: {cost: asdict(counts) for cost, counts in costs.items()} for machine, costs in sorted(numbers.items())
    }
    return json.dumps(plain, indent=2) + "\n"
