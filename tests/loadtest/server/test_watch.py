"""What the server costs: CPU that no child takes along, memory, and processes that are not there any more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO

import psutil
import pytest

from loadtest.server.watch import CpuTotal, ProcessTree, Tree, Unwatchable, Usage, Watch, described


def usage(own: float, waited: float = 0.0, parent: Hashable | None = "root", rss: int = 0) -> Usage:
    return Usage(parent=parent, own_seconds=own, waited_seconds=waited, rss_bytes=rss)


def root(own: float, waited: float = 0.0, rss: int = 0) -> Usage:
    return usage(own, waited, None, rss)


class Told:
    """A reader of trees that a test makes up; the last one stays."""

    command = "python3 -m server"

    def __init__(self, *trees: Tree) -> None:
        self.trees = list(trees)

    @property
    def is_over(self) -> bool:
        return "root" not in self.trees[0]

    def read(self) -> Tree:
        if len(self.trees) > 1:
            del self.trees[0]
        return self.trees[0]


def watch(*trees: Tree) -> Watch:
    return Watch(42, Told({"root": root(0.0)}, *trees))


# ---- CPU ------------------------------------------------------------------------------------------------------------


def totals(*trees: Tree) -> list[float]:
    total = CpuTotal()
    return [round(total.take(tree), 6) for tree in trees]


def test_a_tree_is_the_sum_of_its_members_and_of_children_that_ended_before() -> None:
    assert totals({"root": root(2.0, 1.0), "worker": usage(3.0, 0.5)}) == [6.5]


def test_a_worker_that_was_waited_for_takes_nothing_along_and_counts_once() -> None:
    assert totals(
        {"root": root(1.0), "worker": usage(5.0)},
        {"root": root(1.5, 5.2)},  # it ran on for 0.2 s before it ended
        {"root": root(2.0, 5.2)},
    ) == [6.0, 6.7, 7.2]


def test_a_worker_that_nobody_waited_for_is_remembered_as_last_seen() -> None:
    assert totals(
        {"root": root(1.0), "worker": usage(5.0)},
        {"root": root(3.0)},
        {"root": root(4.0), "worker2": usage(1.0)},
    ) == [6.0, 8.0, 10.0]


def test_two_workers_of_which_one_was_waited_for_do_not_make_up_for_each_other() -> None:
    assert totals(
        {"root": root(0.0), "a": usage(5.0), "b": usage(3.0)},
        {"root": root(0.0, 5.0)},
    ) == [8.0, 8.0]


def test_what_a_parent_waited_for_goes_up_with_it() -> None:
    """A grandchild is waited for by a worker, which ends itself and is waited for, all between two looks."""
    assert totals(
        {"root": root(0.0), "worker": usage(2.0), "grandchild": usage(4.0, parent="worker")},
        {"root": root(0.0, 6.5)},
    ) == [6.0, 6.5]


def test_an_orphan_is_still_one_of_the_tree() -> None:
    assert totals(
        {"root": root(0.0), "worker": usage(2.0), "grandchild": usage(4.0, parent="worker")},
        {"root": root(0.0, 2.0), "grandchild": usage(4.5, parent=None)},
        {"root": root(0.0, 2.0)},
    ) == [6.0, 6.5, 6.5]


def test_children_too_short_to_be_seen_count_by_their_parents_account() -> None:
    assert totals({"root": root(1.0)}, {"root": root(1.0, 7.0)}) == [1.0, 8.0]


def test_the_kernels_hundredths_make_up_nothing() -> None:
    assert totals(
        {"root": root(1.0, 0.0), "a": usage(0.50), "b": usage(0.50)},
        {"root": root(1.0, 0.98)},
    ) == [2.0, 1.98]


def test_a_tree_that_is_gone_has_used_what_it_had() -> None:
    assert totals({"root": root(2.0, 1.0), "worker": usage(3.0)}, {}, {}) == [6.0, 6.0, 6.0]


# ---- costs ----------------------------------------------------------------------------------------------------------


def test_a_phase_costs_what_was_used_between_its_ends() -> None:
    watched = watch(
        {"root": root(10.0, rss=100)},
        {"root": root(11.0, rss=300), "worker": usage(0.5, rss=50)},
        {"root": root(12.0, rss=120), "worker": usage(1.0, rss=50)},
    )
    for at in (5.0, 6.0, 7.0):
        watched.sample(at)
    cost = watched.cost(5.0, 7.0, chunks=30_000, requests=300)
    assert cost is not None
    assert (cost.pid, cost.command) == (42, "python3 -m server")
    assert cost.cpu_seconds == pytest.approx(3.0)
    assert cost.core == pytest.approx(1.5)
    assert cost.us_a_chunk == pytest.approx(100.0)
    assert cost.us_a_request == pytest.approx(10_000.0)
    assert (cost.rss_first_bytes, cost.rss_most_bytes, cost.rss_last_bytes) == (100, 350, 170)


def test_ends_between_two_samples_share_them_evenly() -> None:
    watched = watch({"root": root(0.0)}, {"root": root(1.0)}, {"root": root(2.0)}, {"root": root(3.0)})
    for at in range(4):
        watched.sample(at * 10.0)
    cost = watched.cost(5.0, 25.0, 0, 0)
    assert cost is not None
    assert cost.cpu_seconds == pytest.approx(2.0)
    assert cost.us_a_chunk is None
    assert cost.us_a_request is None


def test_two_samples_at_one_time_are_a_phases_end_and_the_nexts_beginning() -> None:
    watched = watch({"root": root(0.0)}, {"root": root(1.0)}, {"root": root(1.0)}, {"root": root(3.0)})
    for at in (0.0, 10.0, 10.0, 20.0):
        watched.sample(at)
    first, second = watched.cost(0.0, 10.0, 1, 1), watched.cost(10.0, 20.0, 1, 1)
    assert first is not None and second is not None
    assert (first.cpu_seconds, second.cpu_seconds) == (1.0, 2.0)


@pytest.mark.parametrize(("since", "until"), [(0.0, 4.0), (8.0, 9.0), (6.0, 6.0), (7.0, 5.0)])
def test_a_time_that_nobody_looked_at_has_no_cost(since: float, until: float) -> None:
    watched = watch({"root": root(1.0)}, {"root": root(2.0)})
    watched.sample(5.0)
    watched.sample(7.0)
    assert watched.cost(since, until, 1, 1) is None
    assert watch().cost(0.0, 10.0, 1, 1) is None


def test_a_server_that_ends_in_the_middle_is_named_and_its_figures_stand() -> None:
    watched = watch(
        {"root": root(1.0, rss=100)},
        {"root": root(2.0, rss=200)},
        {"worker": usage(1.0, parent=None, rss=7)},
        {"worker": usage(9.0, parent=None, rss=7)},
    )
    for at in range(4):
        watched.sample(float(at))
    assert watched.note == "process 42 (python3 -m server) ended before 2 s: its figures stop there"
    cost = watched.cost(0.0, 3.0, 1, 1)
    assert cost is not None
    assert cost.cpu_seconds == pytest.approx(2.0)  # the worker's second of the last look, and no more
    assert cost.rss_last_bytes == 200


def test_a_server_that_ended_before_the_first_look_costs_nothing() -> None:
    watched = watch({})
    watched.sample(1.0)
    assert watched.note
    cost = watched.cost(0.0, 2.0, 1, 1)
    assert cost is not None
    assert cost.cpu_seconds == 0.0


def test_samples_are_bounded_and_keep_totals_the_most_memory_and_their_evenness() -> None:
    told = Told({"root": root(0.0)})
    watched = Watch(42, told, most_samples=256)
    for at in range(2560):
        told.trees = [{"root": root(at * 0.5, rss=900 if at == 77 else 100)}]
        watched.sample(float(at))
    ats = [sample.at for sample in watched._samples]
    assert len(ats) <= 256
    assert (ats[0], ats[-64:]) == (0.0, [float(at) for at in range(2496, 2560)])
    assert max(later - earlier for earlier, later in pairwise(ats)) <= 32  # 13 were even; halving makes 16
    whole, late = watched.cost(0.0, 2559.0, 1, 1), watched.cost(2500.0, 2559.0, 1, 1)
    assert whole is not None and late is not None
    assert whole.cpu_seconds == pytest.approx(2559 * 0.5)
    assert whole.rss_most_bytes == 900
    assert late.cpu_seconds == pytest.approx(59 * 0.5)
    assert late.rss_most_bytes == 100


def test_growth_is_that_of_the_whole_trees_memory() -> None:
    watched = watch()
    assert watched.growth() is None
    told = watched._reader
    assert isinstance(told, Told)
    for at in range(600):
        told.trees = [{"root": root(0.0, rss=1000), "worker": usage(0.0, rss=10 * at)}]
        watched.sample(float(at))
    grown = watched.growth()
    assert grown is not None
    assert grown.bytes_per_hour == pytest.approx(36_000)
    assert grown.series[-1] == (599.0, 1000 + 5990)


# ---- real processes -------------------------------------------------------------------------------------------------

# Each line on its input is a step; it answers when the step is done.
PARENT = """
import os, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
hold, keep = os.pipe()
for line in sys.stdin:
    word = line.strip()
    if word.startswith("start"):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.close(keep)
            if "child" in line and os.fork() == 0:
                os.read(hold, 1)  # until the first process ends
                os._exit(0)
            burn(0.2)
            print("burnt", flush=True)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        continue
    if word == "end":
        os.write(write, b"x")
        os.waitpid(child, 0)
    print(word, flush=True)
    if word == "quit":
        break
"""


@contextmanager
def server() -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str]]]:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        yield process, process.stdin, process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def step(word: str, into: IO[str], out: IO[str]) -> None:
    into.write(word + "\n")
    into.flush()
    out.readline()


def test_a_real_childs_cpu_stays_when_it_has_ended_and_its_memory_goes() -> None:
    with server() as (process, into, out):
        step("hello", into, out)
        watched = Watch(process.pid)
        watched.sample(0.0)
        step("start", into, out)
        watched.sample(1.0)
        step("end", into, out)
        watched.sample(2.0)
        both, ended = watched.cost(0.0, 1.0, 1, 1), watched.cost(0.0, 2.0, 1, 1)
        assert both is not None and ended is not None
        assert both.cpu_seconds >= 0.18
        assert ended.cpu_seconds >= both.cpu_seconds - 0.04
        assert both.rss_last_bytes > both.rss_first_bytes > 2**20
        assert ended.rss_last_bytes < both.rss_last_bytes
        assert watched.note == ""


def test_a_real_child_too_short_to_be_seen_is_in_its_parents_account() -> None:
    with server() as (process, into, out):
        step("hello", into, out)
        watched = Watch(process.pid)
        watched.sample(0.0)
        step("start", into, out)
        step("end", into, out)
        watched.sample(1.0)
        cost = watched.cost(0.0, 1.0, 1, 1)
        assert cost is not None
        assert cost.cpu_seconds >= 0.18


def test_a_real_orphan_is_followed_when_its_parent_has_ended() -> None:
    with server() as (process, into, out):
        step("hello", into, out)
        tree = ProcessTree(process.pid)
        step("start, and with a child", into, out)
        assert len(tree.read()) == 3
        step("end", into, out)
        assert len(tree.read()) == 2


def test_a_real_server_that_is_a_zombie_or_gone_has_ended() -> None:
    with server() as (process, into, out):
        step("hello", into, out)
        watched = Watch(process.pid)
        watched.sample(0.0)
        step("quit", into, out)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: ended, not waited for
        watched.sample(1.0)
        assert f"process {process.pid} " in watched.note
        process.wait()
        watched.sample(2.0)
    assert watched.note.endswith("ended before 1 s: its figures stop there")


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**40])
def test_a_number_that_is_no_process_is_refused_with_the_way_to_find_one(pid: int) -> None:
    with pytest.raises(Unwatchable, match=rf"no process has the number {pid}; `pgrep"):
        Watch(pid)


def test_a_process_that_may_not_be_read_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(self: psutil.Process) -> str:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "status", hidden)
    with pytest.raises(Unwatchable, match="may not be read"):
        Watch(os.getpid())


def test_a_child_that_may_not_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with server() as (process, into, out):
        step("hello", into, out)
        tree = ProcessTree(os.getpid())
        assert process.pid in {key.pid for key in tree.read() if isinstance(key, psutil.Process)}
        real = psutil.Process.status

        def hidden(self: psutil.Process) -> str:
            if self.pid == process.pid:
                raise psutil.AccessDenied(self.pid)
            return real(self)

        monkeypatch.setattr(psutil.Process, "status", hidden)
        assert process.pid not in {key.pid for key in tree.read() if isinstance(key, psutil.Process)}
        assert not tree.is_over


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ""),
        (["/usr/bin/python3.11", "-m", "vllm.entrypoints", "--api-key", "sk-1"], "python3.11 -m vllm.entrypoints"),
        (["vllm", "serve", "meta-llama/Llama-3.1-8B", "--port", "1"], "vllm serve meta-llama/Llama-3.1-8B"),
        (["server", "key=hunter2", "x"], "server … x"),
        (["server", "API_TOKEN"], "server …"),
        (["server", "sk-abcdefghijklmnopqrstuvwx"], "server …"),
        (["server", "0123456789abcdef0123456789"], "server …"),
        (["server", "http://me:hunter2@host/"], "server …"),
        (["mysql", "-phunter2"], "mysql"),
        (["redis-cli", "-a", "hunter2"], "redis-cli"),
        (["nginx: master process /usr/sbin/nginx -g daemon off;"], "nginx: master process /usr/sbin/nginx"),
        (["a", "b", "c", "d", "e", "f"], "a b c d e"),
        (["a\x1b[31m", "b"], "a[31m b"),
        (["x" * 200], "x" * 59 + "…"),
    ],
)
def test_a_command_is_told_without_what_may_be_secret(words: list[str], told: str) -> None:
    assert described(words) == told
