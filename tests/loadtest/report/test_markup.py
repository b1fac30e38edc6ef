"""The HTML that the report is built from: what is text, and what is left out where it would be empty."""

from __future__ import annotations

from loadtest.report.markup import card, cell, figure, folded, section, soft, words


def test_titles_and_cells_are_text() -> None:
    made = (cell("<b>"), cell("<b>", "words"), soft("<b>"), words("<b>"), folded("<b>", ""), section("<b>", "", "x"))
    assert all("&lt;b&gt;" in one and "<b>" not in one for one in (*made, figure("<b>", "", "", "facets")))


def test_what_would_be_empty_is_left_out() -> None:
    assert section("a title", "a lead", "", "") == card("", "") == ""
