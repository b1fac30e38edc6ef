"""`penstock schema`: the JSON Schema of the configuration, for editors."""

from __future__ import annotations

import argparse
import json
import sys

from tenancy.config.json_schema import json_schema
from tenancy.config.reference import reference

DESCRIPTION = """\
Print the JSON Schema (2020-12) of the configuration file. An editor that knows it completes keys, shows what they mean
and underlines what is wrong. `penstock check` finds more: names that do not exist, figures that cannot hold.
"""
EPILOG = """\
examples:
  penstock schema > penstock.schema.json
  then, as the first line of penstock.yaml (YAML language server: VS Code, Neovim, Helix ...):
  # yaml-language-server: $schema=./penstock.schema.json

  penstock schema --tables    the same as tables of every key, type, default and meaning
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of the configuration",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tables", action="store_true", help="print Markdown tables of every key instead")


def run(args: argparse.Namespace) -> int:
    """Print the schema; always good."""
    if args.tables:
        sys.stdout.write(reference())
    else:
        sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0
