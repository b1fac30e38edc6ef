"""Plots over percentiles, ratios and loads: what they show is what the summary says."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from loadtest.report.figures import duration, number
from loadtest.report.plots import isolation_plot, itl_plots, sweep_plots, ttft_plots
from loadtest.report.series import series_of
from loadtest.summary import Isolation, PhaseResults, Summary, SweepResults
from tests.loadtest.summaries import (
    Mix,
    a_crowd,
    a_noisy_neighbour,
    a_phase,
    a_summary,
    a_sweep,
    an_empty_run,
)
from tests.loadtest.svg_reading import attributes, numbers, of_class, points, svg, told_by, words


def counted(summary: Summary) -> list[PhaseResults]:
    return [phase for phase in summary.phases if phase.is_counted]


def sweep_of(summary: Summary) -> SweepResults:
    assert summary.sweep is not None
    return summary.sweep


@pytest.mark.parametrize("percentile", ["p50", "p90", "p95", "p99", "p99.9"])
def test_a_column_tells_the_summarys_own_figures(percentile: str) -> None:
    summary = a_summary()
    (first,) = ttft_plots(counted(summary), series_of(summary), {}, None)
    (gaps,) = itl_plots(counted(summary), series_of(summary), {}, None)
    field = percentile.replace(".", "")
    for results in summary.phases[0].tenants:
        for facet, distribution in ((first, results.ttft), (gaps, results.itl)):
            own = getattr(distribution, field)
            told = told_by(svg(facet.svg), f"{percentile}:")
            assert told.get(results.name) == ([duration(own)] if own is not None else None)


def test_a_tenant_with_99_calls_has_no_p99() -> None:
    few, enough = Mix("few", rate=99 / 60), Mix("enough", rate=100 / 60)
    summary = msgspec.structs.replace(a_summary(), phases=[a_phase("load", few, enough)])
    (facet,) = ttft_plots(counted(summary), series_of(summary), {}, None)
    assert set(told_by(svg(facet.svg), "p99:")) == {"enough"}
    few_end, enough_end = (points(of_class(svg(facet.svg), "line", css)[0])[-1] for css in ("t0", "t1"))
    assert few_end[0] < enough_end[0]


def test_each_tenant_has_its_line_its_mark_and_its_name() -> None:
    summary = a_summary()
    (facet,) = ttft_plots(counted(summary), series_of(summary), {}, None)
    drawing = svg(facet.svg)
    for css in ("t0", "t1"):
        assert len(of_class(drawing, "line", css)) == len(of_class(drawing, "shape", css)) == 1
    assert {"victim", "crowd"} <= set(words(drawing))


def test_a_curve_rises_with_the_percentile() -> None:
    summary = a_crowd(5)
    (facet,) = itl_plots(counted(summary), series_of(summary), {}, None)
    for line in of_class(svg(facet.svg), "line"):
        across, down = zip(*points(line), strict=True)
        assert list(across) == sorted(across)
        assert list(down) == sorted(down, reverse=True)  # down the screen is up in time


def test_names_beside_their_lines_do_not_cover_each_other() -> None:
    alike = [Mix(f"tenant-{at}", rate=10) for at in range(4)]
    summary = msgspec.structs.replace(a_summary(), phases=[a_phase("load", *alike)])
    (facet,) = ttft_plots(counted(summary), series_of(summary), {}, None)
    heights = sorted(float(label.get("y", "")) for label in of_class(svg(facet.svg), "label"))
    assert len(heights) == 4
    assert all(below - above >= 13 for above, below in pairwise(heights))


def test_phases_share_their_axes_so_that_they_can_be_compared() -> None:
    summary = a_noisy_neighbour()
    facets = ttft_plots(counted(summary), series_of(summary), {}, None)
    assert [facet.title for facet in facets] == ["alone", "crowded", "after"]
    ticks = [[text.text for text in of_class(svg(facet.svg), "tick")] for facet in facets]
    assert ticks[0] == ticks[1] == ticks[2]
    assert {"100 ms", "1 s", "p50", "p99"} <= set(map(str, ticks[0]))


def test_beside_others_a_tenant_is_held_against_itself_alone() -> None:
    summary = a_noisy_neighbour()
    alone, crowded, _ = counted(summary)
    facets = ttft_plots(counted(summary), series_of(summary), {"victim": alone}, None)
    drawings = [svg(facet.svg) for facet in facets]
    assert [len(of_class(drawing, "ghost")) for drawing in drawings] == [0, 1, 1]
    told = told_by(drawings[1], "p50:")
    assert told["victim, alone"] == [duration(alone.tenants[0].ttft.p50)]
    assert told["victim"] == [duration(crowded.tenants[0].ttft.p50)]


def test_a_phase_without_the_tenant_has_no_reference_for_it() -> None:
    summary = a_noisy_neighbour()
    alone = counted(summary)[0]
    others = a_phase("others", Mix("crowd", rate=20))
    facets = ttft_plots([alone, others], series_of(summary), {"victim": alone}, None)
    assert [len(of_class(svg(facet.svg), "ghost")) for facet in facets] == [0, 0]


@pytest.mark.parametrize(("objective", "is_drawn"), [(0.5, True), (0.000_001, False), (900.0, False), (None, False)])
def test_an_objective_is_drawn_where_it_lies_within_the_axis(objective: float | None, is_drawn: bool) -> None:
    summary = a_summary()
    (facet,) = ttft_plots(counted(summary), series_of(summary), {}, objective)
    assert bool(of_class(svg(facet.svg), "objective")) is is_drawn


def test_nothing_measured_is_nothing_drawn() -> None:
    summary = an_empty_run()
    assert ttft_plots(counted(summary), series_of(summary), {}, 0.5) == []
    assert itl_plots([], series_of(summary), {}, None) == []


# ---- isolation -------------------------------------------------------------------------------------------------------


def test_each_ratio_stands_between_the_ends_of_its_interval() -> None:
    summary = a_noisy_neighbour()
    drawing = svg(isolation_plot(summary.isolation, series_of(summary)))
    # a circle's path begins at its left; a tenant's own shape beside its name has another size
    dots = [
        (x + 5, y)
        for shape in ("hollow", "shape")
        for x, y, size, *_ in map(numbers, of_class(drawing, shape))
        if size == 5
    ]
    spans = [line for line in map(points, of_class(drawing, "whisker")) if line[0][1] == line[1][1]]
    assert len(dots) == len(spans) == 2 * len(summary.isolation)
    for (left, y), (right, _) in spans:
        assert [left < x < right for x, height in dots if height == y] == [True]


def test_a_ratio_above_one_stands_to_the_right_of_it() -> None:
    summary = a_noisy_neighbour()
    drawing = svg(isolation_plot(summary.isolation, series_of(summary)))
    one = points(of_class(drawing, "reference")[0])[0][0]
    told = [numbers(dot)[0] + 5 > one for dot in of_class(drawing, "hollow")]
    assert told == [entry.p50 is not None and entry.p50 > 1 for entry in summary.isolation] == [True, False]


def test_ratios_stand_beside_their_dots_in_figures() -> None:
    entry = Isolation(
        tenant="victim",
        alone="alone",
        phase="crowded",
        calls_alone=600,
        calls=610,
        p50=1.5,
        p50_interval=(1.4, 1.6),
        p99=None,
    )
    drawing = svg(isolation_plot([entry], series_of(a_summary())))
    assert "×1.50 (1.40 to 1.60)" in words(drawing) and "–" in words(drawing)
    told = told_by(drawing, "victim, crowded over alone")
    assert told == {"p50": ["×1.50 (1.40 to 1.60)"], "p99": ["–"], "calls": ["610 over 600"]}


# ---- sweep -----------------------------------------------------------------------------------------------------------


def test_a_sweep_marks_saturation_and_crosses_what_was_not_kept_up_with() -> None:
    sweep = sweep_of(a_sweep())
    throughput, latency = (svg(facet.svg) for facet in sweep_plots(sweep))
    saturated = sum(step.is_saturated for step in sweep.steps)
    assert len(of_class(throughput, "cross")) == saturated
    assert len(of_class(throughput, "shape")) == len(sweep.steps) - saturated
    assert "saturated at 31.2" in words(throughput) and "saturated at 31.2" in words(latency)
    assert len(of_class(throughput, "bracket")) == len(of_class(latency, "bracket")) == 1
    crosses = {cross.get("d", "").count("M") for cross in of_class(throughput, "cross")}
    assert crosses == {2}, "a cross is told from a circle by its shape"


def test_a_sweeps_line_runs_by_load_not_by_the_order_of_its_steps() -> None:
    sweep = sweep_of(a_sweep())
    assert [step.load for step in sweep.steps] != sorted(step.load for step in sweep.steps)
    for facet in sweep_plots(sweep):
        for line in of_class(svg(facet.svg), "line"):
            across = [x for x, _ in points(line)]
            assert across == sorted(across)


def test_a_sweeps_columns_tell_the_steps_figures() -> None:
    sweep = sweep_of(a_sweep())
    for facet in sweep_plots(sweep):
        for step in sweep.steps:
            told = told_by(svg(facet.svg), f"load {number(step.load)}")
            assert told["TTFT p99"] == [duration(step.ttft_p99)]
            assert told["failed"] == [str(step.failed)]


def test_a_sweep_that_found_nothing_has_no_saturation() -> None:
    sweep = msgspec.structs.replace(sweep_of(a_sweep()), saturation=None, stable=None, saturated=None)
    assert all(not of_class(svg(facet.svg), "saturation") for facet in sweep_plots(sweep))


def test_users_have_no_line_of_all_that_was_asked() -> None:
    rate = sweep_of(a_sweep())
    users = msgspec.structs.replace(rate, of="users")
    assert of_class(svg(sweep_plots(rate)[0].svg), "reference")
    assert not of_class(svg(sweep_plots(users)[0].svg), "reference")


def test_a_sweep_of_no_steps_or_of_nothing_done_is_drawn_as_far_as_it_goes() -> None:
    sweep = sweep_of(a_sweep())
    assert sweep_plots(msgspec.structs.replace(sweep, steps=[])) == []
    dead = [
        msgspec.structs.replace(step, done_per_second=0.0, ttft_p50=None, ttft_p99=None) for step in sweep.steps[:2]
    ]
    for facet in sweep_plots(msgspec.structs.replace(sweep, steps=dead)):
        assert not any("nan" in value or "inf" in value for value in attributes(svg(facet.svg)))
