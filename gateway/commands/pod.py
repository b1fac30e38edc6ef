"""`penstock pod`: run one pod program in the foreground, a simulated one or llama.cpp's server.

The programs and their options live in `backends.pods`; this is the door to them from Penstock's own command line. A
program is imported only when it is the one to run.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

_PROGRAMS = {
    "llama.cpp": (
        "backends.pods.llamacpp",
        "backends.pods.llamacpp",
        "llama.cpp's own server, with a small model that comes along",
    ),
    "simulator": (
        "backends.pods.settings",
        "backends.pods.simulator",
        "vLLM's API and metrics without model or GPU; deterministic, and faulty on demand",
    ),
}
"""Each program's name, where its options are declared, where it is run, and what it is."""

_NOT_RUN = {"vllm": "vLLM", "sglang": "SGLang", "openai": "a server that speaks OpenAI's API"}
"""Engines of the file that are no programs of ours."""

DESCRIPTION = """\
Run one inference pod by hand. `penstock serve` starts the pods of its configuration by itself; this is for trying
one, or for pods that live elsewhere and are named in the file by their URL.
"""
EPILOG = """\
examples:
  penstock pod llama.cpp --port 9001
  penstock pod simulator --port 9002 --slots 8 --ttft 50ms --itl 20ms
  penstock pod simulator --help
"""


def add(subparsers: Any) -> None:
    """Declare the command with its two programs and their options."""
    parser = subparsers.add_parser(
        "pod",
        help="run one pod: llama.cpp or the simulator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.elsewhere = {
        name: f"Penstock does not run {what} itself: start it yourself and give its url (pods: - {{url: …}})"
        for name, what in _NOT_RUN.items()
    }
    programs = parser.add_subparsers(dest="program", required=True, metavar="PROGRAM")
    for name, (declared_in, _, summary) in _PROGRAMS.items():
        declared = import_module(declared_in)
        pod = programs.add_parser(
            name,
            help=summary,
            description=declared.DESCRIPTION,
            epilog=declared.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        declared.add_options(pod)


def run(args: argparse.Namespace) -> int:
    """Run the pod until it is stopped; exit codes: 0 stopped, 1 it gave up, 2 misused."""
    _, program, _ = _PROGRAMS[args.program]
    return int(import_module(program).run(args))
