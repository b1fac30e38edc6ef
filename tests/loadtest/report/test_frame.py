"""One picture of a running run."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from msgspec import structs
from rich.cells import cell_len
from rich.console import Console

from loadtest.report.frame import Sparkline, render
from loadtest.report.live_state import LiveState
from tests.loadtest.states import CROWD, CROWDED
from tests.loadtest.summaries import a_sweep


def drawn(state: LiveState, width: int = 100, height: int = 30, spark: Sparkline | None = None) -> list[str]:
    """The rows of one frame."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, highlight=False)
    console.print(render(state, width, height, spark or Sparkline()))
    assert isinstance(console.file, io.StringIO)
    return [row.rstrip() for row in console.file.getvalue().splitlines()]


def test_a_frame_tells_phase_progress_tenants_and_tool() -> None:
    title, progress, head, victim, crowd, every, tool = drawn(CROWDED, 110)
    assert title == "neighbours  phase 2 of 3: crowded  0:23 of 1:00"
    assert re.fullmatch(r"━+─+   41 %  1:37 left", progress)
    assert progress.count("━") / (progress.count("━") + progress.count("─")) == pytest.approx(0.41, abs=0.01)
    assert head.split() == "tenant due sent waiting open done failed tokens/s TTFT p50 p99 ITL p50 p99".split()  # noqa: SIM905
    assert re.fullmatch(r"victim +240 +238 +0 +12 +226 +0 +1,540 +52\.3 ms +180 ms +20\.1 ms +31\.0 ms", victim)
    assert crowd.startswith("crowd ") and every.startswith("all ")
    assert tool == "tool      timer lag p99 800 µs · 0.41 core · pressure 3.0 %"


def test_the_commonest_failure_stands_there_where_there_is_room() -> None:
    assert drawn(CROWDED, 140)[4].endswith("429 token_rate")
    assert "429" not in "".join(drawn(CROWDED, 100))


def test_tenants_that_have_no_room_are_counted_with_all() -> None:
    many = tuple(replace(CROWD, name=f"tenant-{number}") for number in range(40))
    rows = drawn(replace(CROWDED, tenants=many), 100, 14)
    assert [row.split("  ")[0] for row in rows if row.startswith(("tenant-", "all"))] == [
        *(f"tenant-{number}" for number in range(8)),
        "all 40",
    ]


def test_a_load_that_is_over_says_what_is_waited_for() -> None:
    title = drawn(replace(CROWDED, seconds=61.0))[0]
    assert title == "neighbours  phase 2 of 3: crowded  the load is over, 52 streams may end"


def test_a_run_whose_length_nobody_knows_has_no_bar() -> None:
    state = replace(CROWDED, progress=None, remaining_seconds=None, phase_seconds=None, phases=None)
    title, progress = drawn(state)[:2]
    assert (title, progress) == ("neighbours  phase 2: crowded  0:23", "running until it is done")


def test_a_run_of_one_phase_does_not_number_it() -> None:
    assert drawn(replace(CROWDED, phase_number=1, phases=1))[0] == "neighbours  crowded  0:23 of 1:00"


def test_warnings_are_whole_sentences_and_tenants_make_room_for_them() -> None:
    warning = "client-bound: the tool's own timer was late by 12 ms at p99, so that its figures are partly its own"
    rows = drawn(replace(CROWDED, warnings=(warning,)), 60)
    assert " ".join(rows[-2:]) == f"! {warning}"
    many = tuple(replace(CROWD, name=f"tenant-{number}") for number in range(40))
    rows = drawn(replace(CROWDED, tenants=many, warnings=(warning, warning)), 60, 16)
    assert len(rows) < 16
    assert any(row.startswith("all 40") for row in rows)


def test_a_sweep_shows_what_was_kept_up_with() -> None:
    sweep = a_sweep().sweep
    assert sweep is not None
    rows = drawn(replace(CROWDED, steps=sweep.steps), 120)
    said = "sweep     kept up with 4.00, 6.00, 9.00, 13.5, 20.2, 30.4; not with 32.0, 33.6, 37.2, 45.6"
    assert said in rows
    more = [*sweep.steps, structs.replace(sweep.steps[0], load=1.0), structs.replace(sweep.steps[0], load=31.0)]
    assert said.replace("4.00, 6.00, ", "6.00, ").replace("30.4", "30.4, 31.0") in drawn(
        replace(CROWDED, steps=more), 120
    )
    assert "sweep     kept up with none yet; not with 32.0" in drawn(replace(CROWDED, steps=[sweep.steps[-1]]))


def test_a_sparkline_takes_a_value_a_second_and_stands_on_zero() -> None:
    spark = Sparkline()
    for tick in range(40):
        spark.add(float(tick // 4), tick / 4)
    assert spark.text(20) == "▁▁▂▃▄▅▆▇██"
    assert spark.text(3) == "▇██"
    assert spark.text(0) == Sparkline().text(20) == ""
    assert "tokens/s  ▁▁▂▃▄▅▆▇██  39,840" in drawn(CROWDED, spark=spark)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_row_is_wider_than_the_terminal(width: int) -> None:
    state = replace(CROWDED, warnings=("client-bound: the tool's timer is late by 12 ms",))
    assert max(cell_len(row) for row in drawn(state, width)) <= width
