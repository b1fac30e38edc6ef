"""Tests that need a program which pip cannot install: they skip where it is missing, and say what installs it.

A mark carries the program and the command; `tests/conftest.py` acts on it. A run ends with a list of what was skipped
for a missing program, and with `PENSTOCK_NO_SKIP=1` in the environment (as `.ci/run` sets it, after installing them)
such a skip is a failure, so that a test cannot rot unseen where nobody has its program.
"""

from __future__ import annotations

import os
import shutil

import pytest

_ALSO_IN = "/usr/local/sbin:/usr/sbin:/sbin"  # where servers live, and where PATH of a plain user does not look


def requires_program(program: str, *, install: str) -> pytest.MarkDecorator:
    """Mark a test, class or module (`pytestmark`) as needing `program`; `install` is the command that brings it.

    `@requires_program("nginx", install="apt-get install nginx")`
    """
    return pytest.mark.requires_program(program, install=install)


def find_program(program: str) -> str | None:
    """The path of `program`, looked for in PATH and in the folders of system programs; `None` where it is missing."""
    return shutil.which(program) or shutil.which(program, path=_ALSO_IN)


def missing_programs(item: pytest.Item) -> dict[str, str]:
    """The programs that `item` is marked with and that are not here, each with the command that installs it."""
    marks = item.iter_markers("requires_program")
    return {mark.args[0]: mark.kwargs["install"] for mark in marks if find_program(mark.args[0]) is None}


def may_skip() -> bool:
    """Whether a missing program is a reason to skip, or a failure."""
    return os.environ.get("PENSTOCK_NO_SKIP", "") not in ("1", "true", "yes")
