"""The configuration file from the disk, for every command that takes `-f FILE`.

Where files and the environment are read; what they say is `tenancy.config`'s affair. Faults are printed as a compiler
prints errors, `FILE:LINE: place: reason`, so that editors can jump to them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tenancy.config.faults import ConfigError
from tenancy.config.load import Loaded, Names, load_with_places, names_in
from tenancy.policy import Policy

DEFAULT_FILE = "penstock.yaml"
MOST_FAULTS = 100
"""How many faults are printed; a file that is no configuration at all has thousands."""


def add_file_option(parser: argparse.ArgumentParser) -> None:
    """Declare `-f FILE`."""
    meaning = f"the configuration; {DEFAULT_FILE} where left out (`penstock schema` describes it)"
    parser.add_argument("-f", "--file", metavar="FILE", default=DEFAULT_FILE, help=meaning)


def read_configuration(name: str) -> Loaded:
    """The configuration in a file, `-` for standard input; raises `ConfigError` or `OSError`.

    Files that it names are looked for beside it.
    """
    beside = Path(name).parent
    return load_with_places(
        _text(name), os.environ, source=_source(name), read_file=lambda other: _read(beside / other)
    )


def read_names(name: str) -> Names:
    """The tenants and models in a file, be the rest of it right or not: what is missing may be the key to come."""
    return names_in(_text(name), source=_source(name))


def is_file(name: str) -> bool:
    """Whether a file is there, as pods and listeners look for it: from the directory in which Penstock runs."""
    return Path(name).is_file()


def read_policy(name: str) -> Policy | None:
    """The policy in a file; `None`, once what is wrong was printed on standard error, where there is none to have."""
    try:
        return read_configuration(name).policy
    except ConfigError as error:
        print_faults(error)
    except OSError as error:
        print_unreadable(name, error)
    return None


def print_faults(error: ConfigError) -> None:
    """Every fault on standard error, one a line, and how many there are."""
    for fault in error.faults[:MOST_FAULTS]:
        print(fault, file=sys.stderr)
    count = len(error.faults)
    more = f", {count - MOST_FAULTS} of them not shown" if count > MOST_FAULTS else ""
    print(f"penstock: {count} fault{'s' if count != 1 else ''}{more}", file=sys.stderr)


def print_unreadable(name: str, error: OSError) -> None:
    """Why a file could not be read, on standard error."""
    reason = (
        f"there is no file {name}" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror or error}"
    )
    print(f"penstock: {reason}; name the configuration with -f FILE", file=sys.stderr)


def _text(name: str) -> str:
    content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise OSError(f"it is not UTF-8 text (byte {wrong.start})") from None


def _source(name: str) -> str:
    return "(standard input)" if name == "-" else name


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")
