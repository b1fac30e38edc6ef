"""SVG by hand: scales, ticks and sheets, apart from what is drawn with them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.drawing import (
    Scale,
    Sheet,
    escape,
    even_ticks,
    log_range,
    log_ticks,
    shortened,
    time_ticks,
    width_px,
)

DURATIONS = st.floats(1e-6, 1e5)


def test_a_logarithmic_scale_gives_each_decade_the_same_room() -> None:
    scale = Scale(0.001, 1, 0, 300, is_log=True)
    assert [round(scale(value)) for value in (0.001, 0.01, 0.1, 1)] == [0, 100, 200, 300]


def test_what_lies_outside_a_scale_is_drawn_at_its_edge() -> None:
    scale = Scale(0, 10, 100, 0)
    assert (scale(-5), scale(5), scale(99)) == (100, 50, 0)


def test_a_scale_of_one_value_has_it_in_the_middle() -> None:
    assert Scale(4, 4, 0, 100)(4) == 50


@given(st.lists(DURATIONS, min_size=1))
def test_a_logarithmic_range_holds_all_values_between_round_ends(values: list[float]) -> None:
    low, high = log_range(values)
    assert low <= min(values) * 1.0001 and max(values) * 0.9999 <= high
    assert high / low >= 4.9
    assert {f"{end:.0e}"[0] for end in (low, high)} <= {"1", "2", "5"}


def test_a_logarithmic_range_of_nothing_is_still_one() -> None:
    assert log_range([]) == log_range([0.0, -1.0, nan, inf]) == (0.001, 1.0)


@given(st.lists(DURATIONS, min_size=1))
def test_ticks_of_times_lie_within_and_at_least_two_are_labelled(values: list[float]) -> None:
    low, high = log_range(values)
    ticks = log_ticks(low, high, "time")
    assert all(low * 0.99 <= tick.value <= high * 1.01 for tick in ticks)
    assert sum(bool(tick.label) for tick in ticks) >= (2 if high / low > 99 or len(ticks) <= 7 else 1)


def test_decades_alone_are_labelled_where_the_axis_is_long() -> None:
    assert [tick.label for tick in log_ticks(0.001, 10, "time") if tick.label] == [
        "1 ms",
        "10 ms",
        "100 ms",
        "1 s",
        "10 s",
    ]
    assert [tick.label for tick in log_ticks(0.05, 1, "time")] == ["50 ms", "100 ms", "200 ms", "500 ms", "1 s"]
    assert [tick.label for tick in log_ticks(2, 50, "number")] == ["2", "5", "10", "20", "50"]
    assert [tick.label for tick in log_ticks(1e-6, 5e-6, "time")] == ["1 µs", "2 µs", "5 µs"]


@given(st.floats(0, 1e9), st.floats(1e-3, 1e9), st.integers(2, 9))
def test_even_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    ticks = even_ticks(low, low + span, most)
    assert len(ticks) <= most + 1
    assert all(low - span * 0.01 <= tick.value <= low + span * 1.01 for tick in ticks)


@given(st.floats(0.2, 3e6))
def test_ticks_of_a_runs_time_are_few(seconds: float) -> None:
    ticks = time_ticks(0, seconds)
    assert 2 <= len(ticks) <= 10
    assert len({tick.label for tick in ticks}) == len(ticks)


def test_ticks_of_a_runs_time_have_the_unit_that_fits() -> None:
    assert [tick.label for tick in time_ticks(0, 65)] == ["0 s", "10 s", "20 s", "30 s", "40 s", "50 s", "60 s"]
    assert [tick.label for tick in time_ticks(0, 600)][-1] == "10 min"
    assert [tick.label for tick in time_ticks(0, 21_600)][-1] == "6 h"


def test_nothing_that_is_not_finite_is_drawn() -> None:
    sheet = Sheet(100, 100, "a test")
    sheet.line("line", [(nan, 1), (2, inf)])
    sheet.area("band", [(1, nan), (2, 2)], [(1, 1)])
    sheet.box("box", nan, 0, 1, 1)
    sheet.box("box", 0, 0, inf, 1)
    sheet.mark("shape", nan, 1)
    sheet.text("label", 1, inf, "words")
    drawn = str(sheet)
    assert len(ElementTree.fromstring(drawn)) == 0
    assert "nan" not in drawn and "inf" not in drawn


def test_a_line_of_one_point_is_seen() -> None:
    sheet = Sheet(100, 100, "a test")
    sheet.line("line", [(10, 20)])
    assert 'd="M8 20L12 20"' in str(sheet)


@pytest.mark.parametrize("shape", range(8))
def test_each_shape_is_another_path(shape: int) -> None:
    def drawn(which: int) -> str:
        sheet = Sheet(20, 20, "")
        sheet.mark("shape", 10, 10, which)
        return str(sheet)

    assert len({drawn(which) for which in range(8)}) == 8
    assert drawn(shape) == drawn(shape + 8)


def test_words_from_outside_are_text_and_nothing_else() -> None:
    assert escape("<b a=\"1\" c='2'>&") == "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;"
    assert escape("a\x00b\x1bc\u202ed\ud800e") == "a\ufffdb\ufffdc\ufffdd\ufffde"
    sheet = Sheet(10, 10, '"><script>')
    sheet.text("label", 1, 1, "</text><script>")
    sheet.tip(0, 0, 1, 1, [("</title><script>\n\tx",), ("a\tb", "c\nd")])
    svg = ElementTree.fromstring(str(sheet))
    assert svg.get("aria-label") == '"><script>'
    assert [text.text for text in svg.iter("text")] == ["</text><script>"]
    assert [title.text for title in svg.iter("title")] == ["</title><script> x\na b\tc d"]


def test_only_a_sheet_with_tips_takes_the_focus() -> None:
    sheet = Sheet(10, 10, "a test")
    assert "tabindex" not in str(sheet)
    sheet.tip(0, 0, 1, 1, [("a",)])
    assert 'tabindex="0"' in str(sheet)


@given(st.text(max_size=40), st.floats(0, 300))
def test_a_shortened_text_fits(text: str, room_px: float) -> None:
    short = shortened(text, room_px)
    assert width_px(short) <= room_px or not short
    assert short == text or short.endswith("…") or not short
