"""`penstock loadtest`: the load generator, which stands alone and has a command line of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from loadtest.cli import main as run_loadtest


def main(words: Sequence[str], parser: type[argparse.ArgumentParser]) -> int:
    """Run what the words after `loadtest` say, and return the exit code."""
    return run_loadtest(words, parser)
