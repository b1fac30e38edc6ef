"""`penstock`: the command line, from which each command's own module is reached.

Only the module of the command that was named is imported, so that `penstock --help` and a wrong word answer at once and
`penstock serve` does not wait for what other commands need. What the commands do and print is theirs; how a misused
command line is answered, and with what exit codes (0 good, 1 found wanting, 2 misused), is decided here for all.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType, ModuleType
from typing import Any, NoReturn

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "serve": ("gateway.commands.serve", "run the gateway that a file describes"),
        "check": ("gateway.commands.check", "say what is wrong with a file, and what it adds up to"),
        "keys": ("gateway.commands.keys", "make an API key for a tenant"),
        "schema": ("gateway.commands.schema", "print the JSON Schema of the file, for editors"),
        "pod": ("gateway.commands.pod", "run a pod: llama.cpp or the simulator"),
        "loadtest": ("gateway.commands.loadtest", "load any OpenAI-compatible server, and tell the truth about it"),
    }
)
"""Every command: its module, and what it is for. A module has `add(subparsers)` and `run(args) -> int`, or, where the
command has a command line of its own, `main(words, parser) -> int`.
"""

DESCRIPTION = "An OpenAI-compatible streaming gateway in front of inference pods that many tenants share."
EPILOG = """\
start here:
  penstock keys new acme                 a key for a tenant, and the line for the file
  penstock check -f penstock.yaml        is the file right, and does it add up?
  penstock serve -f penstock.yaml        run it
  penstock COMMAND --help                what a command does, with examples

exit codes: 0 good, 1 found wanting, 2 misused
"""
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints say what was probably meant, and where to read more.

    `elsewhere` are words that might be taken for its subcommands, and what to say of them.
    """

    elsewhere: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # `--na` may mean another option tomorrow

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n{self.format_usage()}`{self.prog} --help` tells more.\n")
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        known = action.choices
        if isinstance(action, argparse._SubParsersAction) and known is not None and value not in known:
            near = difflib.get_close_matches(value, list(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            self.error(self.elsewhere.get(value.lower()) or f"there is no {action.metavar} {value!r}; {hint}")
        super()._check_value(action, value)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Refuse arguments that the parser does not know, with the nearest that it does."""
        word = unknown[0]
        near = difflib.get_close_matches(word.split("=")[0], list(self._option_string_actions), n=1)
        self.error(f"unknown argument {word!r}" + (f"; did you mean {near[0]}?" if near else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except SystemExit as end:  # argparse's way to end after --help, or on misuse
        return end.code if isinstance(end.code, int) else 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(words: list[str]) -> int:
    named = next((word for word in words if not word.startswith("-")), None)
    parser = _Parser(
        prog="penstock",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"penstock {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    module: ModuleType | None = None
    for name, (path, meaning) in COMMANDS.items():
        if name == named:
            module = import_module(path)
            if hasattr(module, "main"):
                return int(module.main(words[words.index(name) + 1 :], _Parser))
            module.add(subparsers)
        else:
            subparsers.add_parser(name, help=meaning)
    if named is not None and module is None:
        near = difflib.get_close_matches(named, list(COMMANDS), n=1)
        parser.error(f"there is no command {named!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    args, unknown = parser.parse_known_args(words)
    if module is None:
        if unknown:
            parser.refuse(unknown)
        parser.error("name a command: " + ", ".join(COMMANDS))
    if unknown:
        _deepest(subparsers, words).refuse(unknown)
    return int(module.run(args))


def _deepest(subparsers: argparse._SubParsersAction[_Parser], words: Sequence[str]) -> _Parser:
    """The parser of the command, or of its own subcommand, that the words named."""
    parser: _Parser | None = None
    choices = dict(subparsers.choices)
    for word in words:
        if word in choices:
            parser = choices[word]
            inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            choices = dict(inner[0].choices) if inner else {}
    assert parser is not None, "a command was named"
    return parser


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a clone that was not installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
