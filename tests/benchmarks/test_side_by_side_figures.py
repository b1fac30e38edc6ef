"""Medians, ratios, void figures, verdicts, and the tables and drawings that are made of them."""

from __future__ import annotations

import pytest

from benchmarks.side_by_side.figures import ROWS, TARGETS, Cell, Figures, Round, Row, Target
from benchmarks.side_by_side.gates import Programs
from benchmarks.side_by_side.loads import Sample
from benchmarks.side_by_side.plots import dot_plot
from benchmarks.side_by_side.report import Result, aligned, figure_table, markdown, notes, ratio_table, section, spread

CHUNK = Row("streams-400", "cpu", "CPU a chunk", "µs")
ADDED = Row("streams-400", "first_p50", "added", "ms", is_added=True)
BOUND = Target("streams-400", "cpu", "nginx", 1.25, 1.0)


def a_round(load: str = "streams-400", **figures: dict[str, float]) -> Round:
    return {(load, gate.replace("_", "-")): Sample(told) for gate, told in figures.items()}


def rounds_of_cpu(*pairs: tuple[float, float]) -> Figures:
    return Figures([a_round(penstock={"cpu": ours}, nginx={"cpu": theirs}) for ours, theirs in pairs])


def test_a_ratio_is_made_within_each_round() -> None:
    figures = rounds_of_cpu((10, 10), (30, 20), (100, 50))
    assert figures.cell(CHUNK, "penstock") == Cell(30, 10, 100, 3)
    assert figures.ratio(CHUNK, "nginx") == Cell(1.5, 1.0, 2.0, 3)


def test_what_is_added_is_less_the_direct_way_of_the_same_round() -> None:
    figures = Figures(
        [
            a_round(penstock={"first_p50": 52.0}, nginx={"first_p50": 51.0}, direct={"first_p50": 50.0}),
            a_round(penstock={"first_p50": 73.0}, nginx={"first_p50": 71.0}, direct={"first_p50": 70.0}),
        ]
    )
    assert figures.cell(ADDED, "penstock") == Cell(2.5, 2.0, 3.0, 2)
    ratio = figures.ratio(ADDED, "nginx")
    assert ratio is not None and ratio.median == 2.5


def test_a_peer_that_adds_next_to_nothing_makes_no_huge_ratio() -> None:
    figures = Figures([a_round(penstock={"first_p50": 50.3}, nginx={"first_p50": 49.9}, direct={"first_p50": 50.0})])
    ratio = figures.ratio(ADDED, "nginx")
    assert ratio is not None and ratio.median == pytest.approx(3.0)


def test_what_waits_for_something_is_void_and_has_no_ratio() -> None:
    told = {"first_p50": 1050.0, "cpu": 1.0}
    late = a_round(penstock={"first_p50": 51.0, "cpu": 2.0}, vllm_router=told, direct={"first_p50": 50.0})
    figures = Figures([late])
    assert figures.is_void("streams-400", "vllm-router") and not figures.is_void("streams-400", "penstock")
    assert figures.ratio(CHUNK, "vllm-router") is None
    assert figures.verdict(Target("streams-400", "cpu", "vllm-router", 1.0)) == "void"


def test_connections_at_once_are_never_void() -> None:
    late = a_round("at-once", penstock={"first_p50": 900.0}, direct={"first_p50": 50.0})
    assert not Figures([late]).is_void("at-once", "penstock")


@pytest.mark.parametrize(("ours", "verdict"), [(9.0, "wanted met"), (12.0, "met"), (13.0, "NOT met")])
def test_a_target_is_met_or_not(ours: float, verdict: str) -> None:
    assert rounds_of_cpu((ours, 10.0)).verdict(BOUND) == verdict


def test_a_target_in_a_unit_needs_no_peer() -> None:
    figures = Figures([a_round("refusals", penstock={"cpu": 149.0})])
    assert figures.verdict(Target("refusals", "cpu", None, 150.0)) == "met"


def test_a_target_without_its_peer_is_not_measured() -> None:
    assert Figures([a_round(penstock={"cpu": 1.0})]).verdict(BOUND) == "not measured"


def test_every_target_has_its_row() -> None:
    known = {(row.load, row.figure) for row in ROWS}
    assert all((target.load, target.figure) in known for target in TARGETS)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (Cell(12.34, 11.0, 20.0, 5), "12.3 (11.0–20.0)"),
        (Cell(1.0, 1.0, 1.0, 1), "1.00"),
        (Cell(150.4, 99.0, 200.0, 3), "150 (99–200)"),
    ],
)
def test_a_median_is_told_with_its_spread(cell: Cell, told: str) -> None:
    assert spread(cell) == told


def a_result() -> Result:
    told = a_round(
        penstock={"cpu": 12.0, "first_p50": 51.0},
        nginx={"cpu": 10.0, "first_p50": 50.5},
        sglang_router={"cpu": 10.0, "first_p50": 92.0},
        direct={"first_p50": 50.0, "cpu": 0.0},
    )
    return Result([told], Programs(left_out={"vllm-router": "pip install said no"}), {"penstock": 4}, 60.0, ["--quick"])


def test_the_tables_have_ratios_targets_and_what_is_void() -> None:
    ratios = {line[0]: line[1:] for line in ratio_table(a_result())}
    assert ratios["CPU a chunk, 400 streams"][:2] == ["1.20", "void"]
    assert "met" in ratios["CPU a chunk, 400 streams"][-1]
    figures = {line[0]: line[1:] for line in figure_table(a_result())}
    assert figures["CPU a chunk, 400 streams"] == ["µs", "12.0", "10.0", "10.0 void", "–"]


def test_tables_keep_their_columns() -> None:
    table = [["", "a"], ["name", "1.0"]]
    assert aligned(table) == "        a\nname  1.0"
    assert markdown(table) == "|  | a |\n| --- | ---: |\n| name | 1.0 |"


def test_the_section_tells_what_is_missing_and_why_something_is_void() -> None:
    text = section(a_result())
    assert "vllm-router is left out: pip install said no" in text
    assert "sglang-router adds more than 20 ms" in text and "Nagle" in text


def test_a_machine_that_was_busy_is_told() -> None:
    told = [a_round(penstock={"first_p50": 60.0 + late}, direct={"first_p50": 50.0 + late}) for late in (0.0, 25.0)]
    told_notes = notes(Result(told, Programs(), {}, 60.0, []))
    assert any("even going direct took between 50 and 75 ms in streams-400" in note for note in told_notes)


def test_a_plot_stands_alone_and_draws_no_void_figure() -> None:
    cell = Cell(12.0, 11.0, 13.0, 5)
    drawn = dot_plot("CPU <a chunk>", [("100 streams", [("penstock", cell, False), ("nginx", cell, True)])])
    assert drawn.startswith("<svg") and "prefers-color-scheme:dark" in drawn
    assert drawn.count('class="whisker') == 1 and "void" in drawn and "CPU &lt;a chunk&gt;" in drawn
