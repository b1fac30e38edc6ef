"""What the cost gate says of counted costs, and that a count repeats."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.cost_gate.__main__ import ROOT
from benchmarks.cost_gate.costs import PLANS, Plan, admission_at_work, count_one, per_unit
from benchmarks.cost_gate.counting import CountError, Counts, counted, counts_in
from benchmarks.cost_gate.numbers import NUMBERS, as_text, read_numbers
from benchmarks.cost_gate.parent import NoParentError, parent_of
from benchmarks.cost_gate.profile import python_table
from benchmarks.cost_gate.verdict import FILE, WRITE, Finding, compare, raised_on_purpose
from tests.instruments.requires import find_program, requires_program

BEFORE = {"chunk": Counts(10_000, 3.0)}


def findings(chunk: Counts, raised: Mapping[tuple[str, str], float] | None = None) -> list[Finding]:
    return compare({"chunk": chunk}, BEFORE, "the tree", raised or {})


# ---- the comparison


def test_a_cost_that_stays_as_it_was_is_not_spoken_of() -> None:
    assert findings(Counts(10_000, 3.0)) == []


@pytest.mark.parametrize("chunk", [Counts(11_000, 3.0), Counts(9_500, 3.0), Counts(10_000, 3.3)])
def test_a_growth_up_to_a_tenth_and_a_small_gain_pass(chunk: Counts) -> None:
    assert findings(chunk) == []


def test_a_growth_over_a_tenth_fails_and_says_what_from_what_to_what_and_how_to_accept_it() -> None:
    (finding,) = findings(Counts(11_001, 3.0))
    assert finding.is_failure
    assert finding.text.startswith("chunk: instructions from 10,000 to 11,001 (+10.0 %; the relay, a chunk)")
    for part in ("the tree", WRITE, FILE, "python -m benchmarks.cost_gate profile chunk"):
        assert part in finding.text


def test_one_more_system_call_a_chunk_fails() -> None:
    (finding,) = findings(Counts(10_000, 4.0))
    assert finding.is_failure
    assert "system calls from 3.0 to 4.0 (+33.3 %" in finding.text


def test_a_system_call_where_there_was_none_fails() -> None:
    (finding,) = compare({"admission": Counts(1000, 1.0)}, {"admission": Counts(1000, 0.0)}, "the tree")
    assert finding.is_failure
    assert "from 0.0 to 1.0 (from nothing" in finding.text


def test_a_gain_passes_and_asks_to_be_written_down() -> None:
    (finding,) = findings(Counts(9_000, 3.0))
    assert not finding.is_failure
    assert "from 10,000 to 9,000 (-10.0 %" in finding.text
    assert WRITE in finding.text


def test_a_cost_that_the_numbers_do_not_have_passes_and_asks_to_be_written_down() -> None:
    (finding,) = compare({"request": Counts(1, 1.0)}, {}, FILE)
    assert not finding.is_failure
    assert finding.text == f"request: {FILE} knows no such cost. Write it down: {WRITE}"


# ---- machines without numbers


def test_numbers_raised_for_other_machines_raise_what_may_be_counted_here() -> None:
    old = {"one": {"chunk": Counts(1000, 3.0)}, "gone": {"chunk": Counts(1, 1.0)}}
    new = {"one": {"chunk": Counts(1500, 3.0)}, "new": {"chunk": Counts(9999, 9.0)}}
    raised = raised_on_purpose(old, new)
    assert raised == {("chunk", "instructions"): 1.5}
    assert findings(Counts(16_000, 3.0), raised) == []
    (finding,) = findings(Counts(17_000, 3.0), raised)
    assert finding.is_failure


def test_numbers_that_were_lowered_raise_nothing() -> None:
    assert raised_on_purpose({"one": BEFORE}, {"one": {"chunk": Counts(9000, 2.0)}}) == {}


def git(folder: Path, *words: str) -> None:
    program = find_program("git")
    assert program is not None
    person = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run([program, "-C", str(folder), *person, *words], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with two commits, in which `word` says which."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for word in ("first", "second"):
        (folder / "word").write_text(word)
        git(folder, "add", "word")
        git(folder, "commit", "--quiet", "-m", word)
    return folder


@requires_program("git", install="apt-get install git")
def test_a_clean_clone_is_held_against_the_commit_before_its_last(clone: Path) -> None:
    with parent_of(clone) as parent:
        assert parent.name.startswith("HEAD^ (")
        assert parent.text("word") == "first"
        assert parent.text("nothing") is None
        tree = parent.tree
    assert not tree.exists()


@requires_program("git", install="apt-get install git")
def test_a_clone_with_changes_is_held_against_its_last_commit(clone: Path) -> None:
    (clone / "word").write_text("third")
    with parent_of(clone) as parent:
        assert parent.name.startswith("HEAD (")
        assert parent.text("word") == "second"


@requires_program("git", install="apt-get install git")
def test_a_shallow_clone_says_what_brings_its_parent(clone: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", clone.as_uri(), str(shallow))
    with pytest.raises(NoParentError, match="shallow: git fetch --deepen=1"), parent_of(shallow):
        pass


@requires_program("git", install="apt-get install git")
def test_what_is_no_clone_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoParentError, match="no git clone"), parent_of(tmp_path):
        pass


# ---- numbers


def test_the_file_of_numbers_is_read_as_it_is_written() -> None:
    text = NUMBERS.read_text(encoding="utf-8")
    numbers = read_numbers(text)
    assert as_text(numbers) == text
    for machine, costs in numbers.items():
        assert costs.keys() == PLANS.keys(), machine


def test_a_unit_costs_the_difference_of_two_lengths_in_windows_without_a_timer() -> None:
    plan = Plan("something", 10, 30, 3)
    short = [Counts(110, 30), Counts(105, 31), Counts(112, 30), Counts(111, 30)]
    long = [Counts(311, 90), Counts(900, 92)]
    assert per_unit(plan, short, long) == Counts(10, 3.0)


def test_readings_of_the_clock_are_no_system_calls() -> None:
    written = """\
events: Ir sysCount sysTime
fn=(1) main
1 100
cfn=(2) clock_gettime@@GLIBC_2.17
calls=7 0
2 70 7 1
+1 20
fn=(2)
0 70 7 1
fn=(3) read
* 10 2
summary: 200 9 1
"""
    assert counts_in(written) == Counts(200, 2)


def test_what_callgrind_did_not_finish_is_no_count() -> None:
    with pytest.raises(CountError, match="no sums"):
        counts_in("events: Ir\n")


def test_a_profile_is_told_for_one_unit_the_dearest_first() -> None:
    spent = {
        ("/there/gateway/stream/sink.py", 10, "write"): (20, 20, 0.001, 0.002, None),
        ("~", 0, "<built-in method len>"): (10, 10, 0.003, 0.003, None),
    }
    heading, *lines = python_table(spent, 10)
    assert heading.split() == ["calls", "own", "µs", "all", "µs", "function"]
    assert lines[0].split(maxsplit=3) == ["1.00", "300.00", "300.00", "<built-in method len>"]
    assert lines[1].split(maxsplit=3) == ["2.00", "100.00", "200.00", "gateway/stream/sink.py:10 write"]


# ---- counting


@requires_program("valgrind", install="apt-get install valgrind")
def test_a_count_repeats(tmp_path: Path) -> None:
    """Admission alone, twice in one process: it sets no timer, so that it costs the same to a thousandth."""
    with admission_at_work(counted, ROOT, tmp_path) as bench:
        one, other = count_one(bench, "admission"), count_one(bench, "admission")
    assert one.instructions > 1000
    assert one.system_calls == other.system_calls == 0
    assert other.instructions == pytest.approx(one.instructions, rel=0.005)
