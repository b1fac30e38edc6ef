"""Plots over time: every tenant's way through the run, and a server's memory."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from loadtest.report.figures import count, duration, number
from loadtest.report.series import series_of
from loadtest.report.time_plots import MOST_RSS_POINTS, MOST_SLOTS, rss_plot, time_line
from loadtest.summary import Growth, Moment
from tests.loadtest.summaries import Mix, a_crowd, a_noisy_neighbour, a_phase, a_soak, a_summary, a_sweep, an_empty_run
from tests.loadtest.svg_reading import attributes, numbers, of_class, points, svg, tips, words


def test_a_column_tells_its_moments_own_figures() -> None:
    phase = a_phase("load", Mix("busy", rate=300), seconds=30)
    summary = msgspec.structs.replace(a_summary(), phases=[phase], seconds=30.0)
    told = tips(svg(time_line(summary, series_of(summary))))
    for tip, moment in zip(told, phase.timeline["busy"], strict=True):
        assert tip[0] == [f"load, {number(moment.at)} to {number(moment.at + 1)} s"]
        assert tip[2] == [
            "busy",
            duration(moment.ttft_p50),
            duration(moment.ttft_p99),
            number(moment.tokens / moment.seconds),
            count(moment.open),
            count(moment.failed),
        ]


def test_phases_are_named_and_shaded_and_a_warm_up_looks_otherwise() -> None:
    summary = a_noisy_neighbour()
    drawing = svg(time_line(summary, series_of(summary)))
    assert {"alone", "crowded", "after"} <= set(words(drawing))
    assert len(of_class(drawing, "phase")) == 4
    assert len(of_class(drawing, "uncounted")) == 1
    order = [(shape.get("class") or "").split()[0] for shape in drawing]
    last_shade = max(at for at, css in enumerate(order) if css == "phase")
    assert order.index("head") > last_shade, "a name is not covered by the next phase's shade"


def test_each_tenant_has_a_strip_and_a_line_in_each_phase_it_was_in() -> None:
    summary = a_noisy_neighbour()
    drawing = svg(time_line(summary, series_of(summary)))
    assert {"victim: first token", "crowd: first token"} <= set(words(drawing))
    # victim: warm-up and three phases, each with a median, tokens and open streams; crowd: one phase
    assert (len(of_class(drawing, "line", "t0")), len(of_class(drawing, "line", "t1"))) == (4 * 3, 1 * 3)
    assert (len(of_class(drawing, "band", "t0")), len(of_class(drawing, "band", "t1"))) == (4, 1)


def test_all_strips_have_one_scale() -> None:
    summary = a_noisy_neighbour()
    drawing = svg(time_line(summary, series_of(summary)))
    assert words(drawing).count("1 s") == words(drawing).count("100 ms") == 2


def test_failures_are_marked_where_and_only_where_they_happened() -> None:
    phase = a_phase("load", Mix("one", rate=5), Mix("two", rate=5), seconds=30)
    for moments in phase.timeline.values():
        for moment in moments:
            moment.failed = 0
    phase.timeline["two"][7].failed = 3
    summary = msgspec.structs.replace(a_summary(), phases=[phase], seconds=30.0)
    drawing = svg(time_line(summary, series_of(summary)))
    (bar,) = of_class(drawing, "failed")
    assert "t1" in (bar.get("class") or "").split()
    tip = next(hit for hit in of_class(drawing, "hit") if (hit[0].text or "").startswith("load, 7.00 to"))
    assert abs(float(bar.get("x", "")) - float(tip.get("x", ""))) < 0.2
    assert (tip[0].text or "").split("\n")[3].split("\t")[-1] == "3"


def test_a_gap_in_the_calls_is_a_gap_in_the_strip_not_a_line_to_zero() -> None:
    phase = a_phase("load", Mix("one", rate=5), seconds=6)
    phase.timeline["one"][3] = Moment(at=3.0, seconds=1.0)
    summary = msgspec.structs.replace(a_summary(), phases=[phase], seconds=6.0)
    drawing = svg(time_line(summary, series_of(summary)))
    (median,) = of_class(drawing, "solid")
    assert len(points(median)) == 5


def test_a_long_run_has_no_more_columns_than_a_finger_can_point_at() -> None:
    summary = a_soak()
    drawing = svg(time_line(summary, series_of(summary)))
    assert MOST_SLOTS / 2 < len(tips(drawing)) <= MOST_SLOTS + len(summary.phases)


def test_where_lines_are_many_their_sum_is_drawn_too() -> None:
    few, many = a_crowd(6), a_crowd(12)
    assert not of_class(svg(time_line(few, series_of(few))), "line", "ink")
    assert len(of_class(svg(time_line(many, series_of(many))), "line", "ink")) == 2


def test_a_sweep_of_many_phases_keeps_their_names_apart() -> None:
    summary = a_sweep()
    drawing = svg(time_line(summary, series_of(summary)))
    heads = [(float(head.get("x", "")), head.text or "") for head in of_class(drawing, "head")]
    assert len(heads) == len(summary.phases)
    for (left, name), (right, _) in pairwise(heads):
        assert left + 7.3 * len(name) <= right


def test_a_run_without_a_time_line_draws_none() -> None:
    assert time_line(an_empty_run(), series_of(an_empty_run())) == ""
    nobody = a_summary(phases=[])
    assert time_line(nobody, series_of(nobody)) == ""


def test_a_run_in_which_nothing_came_back_still_shows_its_open_streams() -> None:
    phase = a_phase("load", Mix("one", rate=5), seconds=3)
    phase.timeline["one"] = [Moment(at=float(at), seconds=1.0, scheduled=5, open=5 * at) for at in range(3)]
    summary = msgspec.structs.replace(a_summary(), phases=[phase], seconds=3.0)
    drawing = svg(time_line(summary, series_of(summary)))
    assert "Open streams" in words(drawing) and not of_class(drawing, "band")
    assert not any("nan" in value for value in attributes(drawing))


# ---- memory ----------------------------------------------------------------------------------------------------------


def growth_of(series: list[tuple[float, int]]) -> Growth:
    return Growth(bytes_per_hour=3600.0 * 2**20, low=3500.0 * 2**20, high=3700.0 * 2**20, series=series)


def test_the_slope_runs_through_the_samples_it_was_fitted_to() -> None:
    drawing = svg(rss_plot(growth_of([(float(at), (100 + at) << 20) for at in range(101)])))
    (samples,) = of_class(drawing, "rss")
    (slope,) = of_class(drawing, "line")
    assert points(slope)[0] == points(samples)[0]
    assert points(slope)[-1] == points(samples)[-1]
    (band,) = of_class(drawing, "band")
    assert min(numbers(band)[1::2]) < points(slope)[-1][1]


def test_a_soaks_samples_are_thinned_and_each_left_tells_its_own_size() -> None:
    growth = a_soak().growth
    assert growth is not None
    drawing = svg(rss_plot(growth))
    assert len(tips(drawing)) <= MOST_RSS_POINTS
    assert tips(drawing)[0][1] == ["memory", f"{growth.series[0][1] / 2**20:.2f} MiB"]


def test_two_samples_are_the_fewest_that_make_a_plot() -> None:
    assert rss_plot(growth_of([(0.0, 1 << 20)])) == ""
    assert rss_plot(growth_of([])) == ""
    assert of_class(svg(rss_plot(growth_of([(0.0, 1 << 20), (1.0, 1 << 20)]))), "rss")
