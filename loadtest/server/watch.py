"""What the server costs while it is loaded: CPU and memory of a process on this machine, with all its children.

Workers come and go, and their CPU must not go with them: a child that was waited for lives on in its parent's account
of waited-for children, which the kernel keeps; one that nobody waited for is remembered as it was last seen. Memory is
the sum of resident sets, so pages that workers share count once for each: it is an upper bound, and its growth is what
it is read for (exact shares would take the kernel a walk through every page table).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import psutil

from loadtest.server.growth import Series, growth
from loadtest.summary import Growth, ServerCost

MOST_SAMPLES = 4096
"""Samples that are kept for the costs of phases, each of the last quarter of them and some of those before."""

_TICK_SECONDS = 0.02  # the kernel tells CPU in hundredths of a second, user and system time each cut off
_MOST_WORDS = 4
_MOST_CHARACTERS = 60
_HIDDEN = "…"
_SECRET = re.compile(r"key|token|secret|passw|credential|auth|bearer|[a-z]+-[A-Za-z0-9_-]{16,}", re.IGNORECASE)
_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_+=-]{20,}")


class Unwatchable(Exception):
    """A process that cannot be watched; the text says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process of the tree has used so far. `parent` is its key in the tree, or `None`; `waited_seconds` are
    those of its children that ended and were waited for, and of theirs.
    """

    parent: Hashable | None
    own_seconds: float
    waited_seconds: float
    rss_bytes: int


Tree = Mapping[Hashable, Usage]
"""Processes by a key that is one's own for good; numbers are given again."""


class Reader(Protocol):
    """Where trees come from."""

    command: str

    @property
    def is_over(self) -> bool:
        """Whether the first process had ended when it was last read."""

    def read(self) -> Tree:
        """The processes as they are now."""


class CpuTotal:
    """The CPU seconds of a tree whose members come and go; never falls."""

    def __init__(self) -> None:
        self._before: Tree = {}
        self._lost_seconds = 0.0

    def take(self, tree: Tree) -> float:
        """All seconds up to this tree: what its members and their waited-for children used, and what was last seen of
        members that vanished without having been waited for.
        """
        vanished: dict[Hashable | None, list[Usage]] = {}
        for key, usage in self._before.items():
            if key not in tree:
                vanished.setdefault(self._heir(key, tree), []).append(usage)
        for heir, usages in vanished.items():
            gone = sum(usage.own_seconds + usage.waited_seconds for usage in usages)
            inherited = 0.0
            if heir is not None:
                inherited = tree[heir].waited_seconds - self._before[heir].waited_seconds
            if gone - inherited > _TICK_SECONDS * (len(usages) + 1):
                self._lost_seconds += gone - inherited
        self._before = dict(tree)
        return self._lost_seconds + sum(usage.own_seconds + usage.waited_seconds for usage in tree.values())

    def _heir(self, key: Hashable, tree: Tree) -> Hashable | None:
        """The nearest ancestor that is still there: who may have waited for it."""
        parent = self._before[key].parent
        while parent is not None and parent not in tree:
            above = self._before.get(parent)
            parent = above.parent if above else None
        return parent if parent in self._before else None


class Sample(NamedTuple):
    """The tree at one time; `rss_most_bytes` is the most since the sample before."""

    at: float
    cpu_seconds: float
    rss_bytes: int
    rss_most_bytes: int


class Watch:
    """Watches the process of `--pid` and its children. Raises `Unwatchable` where that cannot be.

    `sample` is called about once a second, and at the beginning and end of each phase; it takes a few milliseconds, as
    all processes of the machine are looked through for children. Memory is bounded.
    """

    def __init__(self, pid: int, reader: Reader | None = None, most_samples: int = MOST_SAMPLES) -> None:
        self.pid = pid
        self._reader = reader or ProcessTree(pid)
        self.command = self._reader.command
        self.note = ""
        """What went wrong on the way, in words; empty while nothing did."""
        self._total = CpuTotal()
        self._samples: list[Sample] = []
        self._most_samples = most_samples
        self._series = Series()

    def sample(self, at: float) -> None:
        """Look now, `at` seconds after the run's start."""
        tree = self._reader.read()
        cpu_seconds = self._total.take(tree)
        if self.note:
            return  # its last figures stand
        if self._reader.is_over:
            self.note = f"process {self.pid} ({self.command}) ended before {at:.0f} s: its figures stop there"
            last = self._samples[-1] if self._samples else Sample(at, cpu_seconds, 0, 0)
            self._samples.append(last._replace(at=at, cpu_seconds=cpu_seconds))
            return
        rss = sum(usage.rss_bytes for usage in tree.values())
        self._samples.append(Sample(at, cpu_seconds, rss, rss))
        self._series.add(at, rss)
        if len(self._samples) > self._most_samples:
            self._thin()

    def cost(self, since: float, until: float, chunks: int, requests: int) -> ServerCost | None:
        """What it used between two times, in all and for each of so many chunks and requests; `None` where it was not
        seen in between. CPU is told to some hundredths of a second, times between samples evenly divided.
        """
        between = [sample for sample in self._samples if since <= sample.at <= until]
        if not between or until <= since:
            return None
        seconds = self._cpu_at(until) - self._cpu_at(since)
        return ServerCost(
            pid=self.pid,
            command=self.command,
            cpu_seconds=seconds,
            core=seconds / (until - since),
            us_a_chunk=seconds * 1e6 / chunks if chunks else None,
            us_a_request=seconds * 1e6 / requests if requests else None,
            rss_first_bytes=between[0].rss_bytes,
            rss_last_bytes=between[-1].rss_bytes,
            rss_most_bytes=max(sample.rss_most_bytes for sample in between),
        )

    def growth(self) -> Growth | None:
        """How fast its memory grows; `None` where that cannot be told yet."""
        return growth(self._series.points())

    def _cpu_at(self, at: float) -> float:
        before = self._samples[0]
        for sample in self._samples:
            if sample.at >= at:
                if sample.at == before.at:
                    return sample.cpu_seconds
                share = (at - before.at) / (sample.at - before.at)
                return before.cpu_seconds + max(share, 0.0) * (sample.cpu_seconds - before.cpu_seconds)
            before = sample
        return before.cpu_seconds

    def _thin(self) -> None:
        """Leave out the one older sample whose neighbours are closest, so that they lie evenly. CPU is a running total:
        only what lies in between gets coarser.
        """
        ats = [sample.at for sample in self._samples[: -(self._most_samples // 4)]]
        gaps = [later - earlier for earlier, later in zip(ats, ats[2:], strict=False)]
        closest = gaps.index(min(gaps)) + 1
        gone, following = self._samples[closest], self._samples[closest + 1]
        most = max(gone.rss_most_bytes, following.rss_most_bytes)
        self._samples[closest : closest + 2] = [following._replace(rss_most_bytes=most)]


class ProcessTree:
    """A process and its children as this machine shows them. Those that were once seen are followed when their parent
    has ended, too.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._root = psutil.Process(pid)
            self.command = described(self._root.cmdline()) or self._root.name()
            usage = _usage(self._root, {})
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            raise Unwatchable(f"no process has the number {pid}; `pgrep -af NAME` finds a server's") from None
        except psutil.AccessDenied:
            usage = None
        if usage is None:
            raise Unwatchable(
                f"process {pid} may not be read: it is another user's, or has just ended; run the load test as its user"
            )
        self.is_over = False
        self._known: list[psutil.Process] = []

    def read(self) -> Tree:
        """The processes as they are now, by psutil's identity: the number and the start in ticks after the boot."""
        found: dict[int, psutil.Process] = {}
        for top in [self._root, *self._known]:
            if top.pid not in found:
                found.update((process.pid, process) for process in _with_children(top))
        usages = {process: _usage(process, found) for process in found.values()}
        tree: dict[Hashable, Usage] = {process: usage for process, usage in usages.items() if usage is not None}
        self._known = [process for process in found.values() if process in tree]
        self.is_over = self._root not in tree or _is_zombie(self._root)
        return tree


def _usage(process: psutil.Process, found: Mapping[int, psutil.Process]) -> Usage | None:
    """What a process has used; `None` where it is gone or may not be read."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            return Usage(
                parent=found.get(process.ppid()),
                own_seconds=times.user + times.system,
                waited_seconds=times.children_user + times.children_system,
                rss_bytes=0 if process.status() == psutil.STATUS_ZOMBIE else process.memory_info().rss,
            )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def described(words: Collection[str]) -> str:
    """A command line that may stand in a report: the program's name and its first words up to the first option, and of
    these none that looks like a key. Options are left out whole, since their values may be secrets.
    """
    split = " ".join(words).split()
    if not split:
        return ""
    shown = [split[0].rpartition("/")[2]]
    for word in split[1:]:
        if word.startswith("-") and word != "-m":
            break
        if len(shown) > _MOST_WORDS:
            break
        is_secret = _SECRET.search(word) or _RANDOM.search(word) or "=" in word or "@" in word
        shown.append(_HIDDEN if is_secret else word)
    text = "".join(character for character in " ".join(shown) if character.isprintable())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
