"""Two runs held against each other: what is not comparable is named, and the exit code tells what became worse."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from loadtest.cli import main
from loadtest.compare import Comparison, compare, print_comparison
from loadtest.summary import Mark, Summary, SweepResults, read, written
from tests.loadtest.summaries import CROWD, VICTIM, Mix, a_phase, a_summary, a_sweep
from tests.loadtest.tallied import a_run

SLOW = Mix("victim", rate=10, ttft=0.12, itl=0.033, output=128)
TWO = a_summary()
ALONE = a_phase("load", VICTIM, seconds=20.0)


def printed(comparison: Comparison, *, anyway: bool = False, width: int = 80) -> list[str]:
    """Its lines, as a terminal of that width shows them."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_comparison(comparison, console, anyway=anyway)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def made(**changes: Any) -> Summary:
    """A third of a minute, of one of two tenants only: that is told sooner."""
    return msgspec.structs.replace(TWO, **{"phases": [ALONE], **changes})


def slower(**changes: Any) -> Summary:
    """The same load, half as slow again."""
    return made(**{"phases": [a_phase("load", SLOW, seconds=20.0)], **changes})


def asked(summary: Summary, **changes: Any) -> Summary:
    """The same, of a scenario with these keys changed, as it is read from a file."""
    again = read(written(summary))
    for path, value in changes.items():
        place: Any = again.scenario
        *way, last = path.split("__")
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return again


def test_the_same_run_has_nothing_that_is_worse() -> None:
    comparison = compare(made(), made(), 0.1)
    assert (comparison.unusable, comparison.notes, comparison.is_worse) == ((), (), False)
    assert len(comparison.rows) == 10
    assert printed(comparison)[-3].startswith("Nothing became worse by more than 10 %")


def test_a_slower_run_is_worse_where_it_is_slower() -> None:
    before, after = (made(phases=[a_phase("load", victim, CROWD, seconds=20.0)]) for victim in (VICTIM, SLOW))
    comparison = compare(before, after, 0.1)
    over = {(each.tenant, each.metric) for each in comparison.rows if each.is_over}
    assert {("victim", "ttft_p50"), ("victim", "itl_p50"), ("victim", "tpot_p50"), ("victim", "e2e_p50")} <= over
    assert not {metric for tenant, metric in over if tenant == "crowd"}
    assert comparison.is_worse
    assert not compare(slower(), made(), 0.1).is_worse


def test_what_is_let_pass_decides() -> None:
    assert not compare(made(), slower(), 0.7).is_worse
    assert compare(made(), slower(), 0.3).is_worse


@pytest.mark.parametrize("kind", ["client-bound", "machine-bound"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_a_run_in_which_the_tool_was_the_limit_is_named_and_not_compared(kind: str, side: str) -> None:
    bound = made(marks=[Mark(kind=kind, phase="load", text="its core was full")])
    pair = (bound, slower()) if side == "A" else (made(), slower(marks=bound.marks))
    comparison = compare(*pair, 0.1)
    assert comparison.unusable == (f"{side} was {kind} in load: its core was full",)
    lines = printed(comparison)
    assert lines[2:] == [
        f"NOT COMPARABLE: {side} was {kind} in load: its core was full",
        "Nothing is compared. Run it again where that is mended, or say --anyway.",
    ]
    anyway = printed(comparison, anyway=True)
    assert anyway[2] == lines[2] and any(line.startswith("TTFT p50") for line in anyway)


def test_a_run_that_was_cut_short_is_named() -> None:
    assert compare(made(), made(ended="interrupted"), 0.1).unusable == ("B did not come to its end: interrupted",)


def test_different_loads_are_named_setting_by_setting() -> None:
    other = asked(made(), tenants__1__arrivals__rate=20.0, phases__0__seconds=30.0, target__stream=False)
    assert set(compare(made(), other, 0.1).unusable) == {
        "the load differs: tenants.crowd.arrivals.rate was 10.0, then 20.0",
        "the load differs: phases.load.seconds was 60.0, then 30.0",
        "the load differs: stream was True, then False",
    }


def test_a_tenant_that_one_run_lacks_is_named() -> None:
    other = asked(made())
    del other.scenario["tenants"][0]
    unusable = compare(made(), other, 0.1).unusable
    assert "the load differs: tenants.victim was there, then missing" in unusable


def test_many_differences_are_not_all_listed() -> None:
    other = asked(made())
    for tenant in other.scenario["tenants"]:
        tenant.update({f"key{number}": number for number in range(10)})
    unusable = compare(made(), other, 0.1).unusable
    assert len(unusable) == 9
    assert unusable[-1] == "the load differs in 12 more settings"


def test_another_target_and_another_place_of_the_trace_are_the_same_load() -> None:
    before = asked(made(), trace={"file": "/here/conv.csv", "speed": 20.0})
    after = asked(before, trace__file="/there/conv.csv", target__url="http://127.0.0.1:9/v1", target__model="other")
    assert compare(before, after, 0.1).unusable == ()
    assert compare(before, asked(before, trace__file="code.csv"), 0.1).unusable != ()


def test_what_should_be_borne_in_mind_is_noted() -> None:
    censored = Mark(kind="censored", phase="load", text="of 9 calls 2 were cut off")
    after = asked(slower(marks=[censored]), seed=8, objectives={"ttft": 0.1})
    comparison = compare(made(), after, 0.1)
    assert comparison.unusable == ()
    assert comparison.notes == (
        "B is censored in load: of 9 calls 2 were cut off",
        "the seed differs: calls come at other times",
        "the objectives differ: good calls are not compared",
    )
    assert "good_per_second" not in {each.metric for each in comparison.rows}
    assert "note: the seed differs: calls come at other times" in printed(comparison)


def test_phases_go_by_their_names_and_a_warm_up_is_none() -> None:
    warm_up, *others = (a_phase(name, VICTIM, seconds=10.0) for name in ("warm-up", "alone", "crowded", "after"))
    warm_up.is_counted = False
    before, after = made(phases=[warm_up, *others]), made(phases=[warm_up, *others[:2]])
    comparison = compare(before, after, 0.1)
    assert list(dict.fromkeys(each.phase for each in comparison.rows)) == ["alone", "crowded"]
    assert comparison.notes == ("only in one of the two: after",)


def test_runs_with_nothing_in_common_are_said_to_have_none() -> None:
    other = a_summary(phases=[a_phase("other", VICTIM)])
    comparison = compare(made(), other, 0.1)
    assert comparison.rows == () and not comparison.is_worse
    assert printed(comparison)[-1] == "The two have nothing in common that could be compared."


Found = tuple[float | None, float | None, float | None]


def swept(saturation: float | None, stable: float | None, saturated: float | None, of: str = "rate") -> Summary:
    """A sweep that found this, its steps from 4 to 45.6 a second."""
    run = a_sweep()
    assert run.sweep is not None
    found = SweepResults(
        of=of, steps=run.sweep.steps, saturation=saturation, stable=stable, saturated=saturated, throughput=saturation
    )
    return msgspec.structs.replace(run, sweep=found)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "is_over"),
    [
        ((31.0, 30.0, 32.0), (31.0, 30.0, 32.0), "same", False),
        ((31.0, 30.0, 32.0), (24.0, 23.5, 24.5), "worse", True),
        ((31.0, 30.0, 32.0), (39.0, 38.0, 40.0), "better", False),
        ((31.0, 20.0, 45.0), (25.0, 18.0, 40.0), "unsure", False),
        ((None, 45.0, None), (31.0, 30.0, 32.0), "worse", True),  # it held all that was tried
        ((None, 45.0, None), (50.0, 48.0, 52.0), "unsure", False),
        ((31.0, 30.0, 32.0), (None, 45.0, None), "better", False),
        ((31.0, 30.0, 32.0), (None, None, 4.0), "worse", True),  # it held nothing
    ],
)
def test_sweeps_are_compared_by_their_saturation(before: Found, after: Found, verdict: str, is_over: bool) -> None:
    comparison = compare(swept(*before), swept(*after), 0.1)
    (only,) = comparison.rows
    assert (only.metric, only.verdict, only.is_over) == ("saturation", verdict, is_over)
    assert len(comparison.notes) == sum(each[0] is None for each in (before, after))
    lines = printed(comparison)
    assert any(line.startswith("saturation ") for line in lines)
    assert any(line.startswith("The row has a confidence of 95 %") for line in lines)


def test_sweeps_of_different_things_or_without_saturation_have_no_row() -> None:
    nothing = swept(None, 45.0, None)
    comparison = compare(nothing, nothing, 0.1)
    assert comparison.rows == ()
    assert comparison.notes == (
        "A's saturation was not found: it lies beyond the loads that were tried",
        "B's saturation was not found: it lies beyond the loads that were tried",
    )
    assert compare(swept(31.0, 30.0, 32.0), swept(31.0, 30.0, 32.0, of="users"), 0.1).rows == ()


@pytest.mark.parametrize("width", [80, 120])
def test_all_fits_the_terminal_and_tells_which_runs_they_are(width: int) -> None:
    lines = printed(compare(made(name="before"), slower(name="after"), 0.1), width=width)
    assert lines[0] == "A  before: tiny at http://127.0.0.1:8080/v1, 2026-11-07T14:03:22+01:00"
    assert lines[1].startswith("B  after: tiny at ")
    assert all(len(line) <= width for line in lines)
    assert lines[3] == "victim in load"
    head = lines[4].split()
    assert head == ["A", "B", "change", "95", "%"]
    row = next(line for line in lines if line.startswith("TTFT p50"))
    assert row.endswith("WORSE !") and "+" in row
    verdict = " ".join(lines[-4:])
    assert "Worse by more than 10 % (!), and not by chance: TTFT p50" in verdict
    assert "Each of the 10 rows has a confidence of 95 %" in verdict


def test_verdicts_have_colours() -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False, force_terminal=True, color_system="standard")
    print_comparison(compare(made(), slower(), 0.1), console)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[31m  WORSE !\x1b[0m" in console.file.getvalue()


def test_names_from_a_file_cannot_act_on_the_terminal() -> None:
    lines = printed(compare(made(name="\x1b[2Jgone", url="http://x/\x07"), made(), 0.1))
    assert lines[0].startswith("A  ·[2Jgone: tiny at http://x/·")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    bound = made(marks=[Mark(kind="client-bound", phase="", text="late")])
    runs = {"before": made(), "same": made(), "slower": slower(), "bound": bound}
    for name, run in runs.items():
        (tmp_path / f"{name}.json").write_bytes(written(run))
    (tmp_path / "other.json").write_text('{"text": 1}')
    return {name: str(tmp_path / f"{name}.json") for name in (*runs, "other", "missing")}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["before", "same"], 0),
        (["before", "slower"], 1),
        (["before", "slower", "--fail-over", "90%"], 0),
        (["slower", "before"], 0),
        (["bound", "slower"], 2),
        (["bound", "slower", "--anyway"], 1),
        (["bound", "same", "--anyway"], 0),
        (["before", "other"], 2),
        (["before", "missing"], 2),
    ],
)
def test_the_exit_code_decides_for_ci(
    words: list[str], code: int, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(files.get(word, word) for word in words)]) == code
    said = capsys.readouterr()
    assert bool(said.err) == (words[1] in ("other", "missing"))


def test_no_change_is_not_worse_in_nineteen_of_twenty_runs_and_a_fifth_slower_is_found() -> None:
    worse, found, seeds = [], [], range(20)
    for seed in seeds:
        before, same = (a_run(1000 + 3 * seed + number) for number in (0, 1))
        comparison = compare(before, same, 0.1)
        assert comparison.unusable == ()
        worse += [seed] if comparison.is_worse else []
        if seed < 6:
            after = a_run(1002 + 3 * seed, slower=1.2)
            found += [seed] if compare(before, after, 0.1).is_worse else []
    assert len(worse) <= 1, f"seeds {worse} of {seeds}"
    assert found == list(range(6))
