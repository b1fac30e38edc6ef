"""`penstock loadtest`: words become an action, and the action an exit code (0 good, 1 found wanting, 2 misused)."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest import session
from loadtest import summary as summaries
from loadtest.checking.selfcheck import selfcheck
from loadtest.reading.faults import ScenarioError
from loadtest.reading.options import parse, scenario_of
from loadtest.report.page import page
from loadtest.report.table import print_summary, result_console
from loadtest.session import GOOD, MISUSED, WANTING
from loadtest.summary import Summary


def main(words: Sequence[str], parser: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Do what the words say, and return the exit code."""
    args = parse(words, parser)
    if args.action == "compare":
        return _compare(args)
    if args.action == "report":
        return _report(args)
    if args.action == "selfcheck":
        return GOOD if asyncio.run(selfcheck(args.quick, _print)) else WANTING
    try:
        scenario = scenario_of(args, os.environ, Path.cwd())
    except ScenarioError as wrong:
        for fault in wrong.faults:
            sys.stderr.write(f"{fault}\n")
        return MISUSED
    return session.run(args, scenario)


def _compare(args: argparse.Namespace) -> int:
    from loadtest.compare import compare, print_comparison

    before, after = _read(args.before), _read(args.after)
    if before is None or after is None:
        return MISUSED
    comparison = compare(before, after, args.fail_over)
    print_comparison(comparison, result_console(), anyway=args.anyway)
    if comparison.unusable and not args.anyway:
        return MISUSED
    return WANTING if comparison.is_worse else GOOD


def _report(args: argparse.Namespace) -> int:
    summary = _read(args.summary)
    if summary is None:
        return MISUSED
    files = {}
    if args.html is not None and Path(args.html).absolute() == Path(args.summary).absolute():
        sys.stderr.write(f"--html: {args.html} is the result itself; name another file\n")
        return MISUSED
    if args.html is not None:
        try:
            Path(args.html).write_text(page(summary), encoding="utf-8")
        except OSError as wrong:
            sys.stderr.write(f"{args.html} cannot be written: {wrong.strerror}\n")
            return MISUSED
        files["page"] = args.html
    print_summary(summary, result_console(), files)
    return GOOD


def _read(path: str) -> Summary | None:
    try:
        return summaries.read(Path(path).read_bytes())
    except OSError as wrong:
        sys.stderr.write(f"{path} cannot be read: {wrong.strerror}\n")
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        sys.stderr.write(f"{path} is no result of `penstock loadtest --json`: {wrong}\n")
    return None


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
