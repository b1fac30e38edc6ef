"""The commit that a working tree came from, laid out beside it for as long as it is counted.

Where files that git tracks were changed, that is the last commit; where nothing was, the one before it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COUNTED = ("gateway", "backends", "tenancy", "loadtest")


class NoParentError(Exception):
    """There is no such commit here; the text says why, and what brings it."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A commit: what to call it, and where its files lie."""

    name: str
    tree: Path

    def text(self, path: str) -> str | None:
        """The text of a file of it, or `None` where it has none of that name."""
        with contextlib.suppress(OSError):
            return (self.tree / path).read_text(encoding="utf-8")
        return None


@contextlib.contextmanager
def parent_of(root: Path) -> Iterator[Parent]:
    """The commit that the clone at `root` came from, as files. Raises `NoParentError` where it is not here."""
    try:
        is_changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        name = "HEAD" if is_changed else "HEAD^"
        commit = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        is_shallow = _git(root, "rev-parse", "--is-shallow-repository") == "true"
    except OSError:
        raise NoParentError("git is not installed: apt-get install git") from None
    if commit is None:
        raise NoParentError(
            "the commit before this one is not in this clone, which is shallow: git fetch --deepen=1"
            if is_shallow
            else "this is no git clone, or its first commit"
        )
    with tempfile.TemporaryDirectory(prefix="penstock-parent-") as folder:
        tree = Path(folder) / "tree"
        if _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit) is None:
            raise NoParentError(f"git worktree add does not lay out {commit}")
        try:
            # compiled here, and not by a program that runs a fifth as fast
            packages = [str(tree / package) for package in _COUNTED]
            subprocess.run([sys.executable, "-m", "compileall", "-q", *packages], check=False, capture_output=True)
            yield Parent(f"{name} ({commit[:10]})", tree)
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _git(root: Path, *words: str) -> str | None:
    """What git says, or `None` where it fails."""
    said = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return None if said.returncode else said.stdout.strip()
