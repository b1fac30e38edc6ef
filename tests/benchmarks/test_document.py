"""Generated sections of the document: what is replaced, and what stays."""

from __future__ import annotations

import pytest

from benchmarks.document import DOCUMENT, with_section

PAGE = "# Page\n\n<!-- begin one -->\nold\n<!-- end one -->\n\nby hand\n\n<!-- begin two -->\n<!-- end two -->\n"


def test_a_section_is_replaced_and_the_rest_stays() -> None:
    page = with_section(PAGE, "one", "\nnew\n\nlines\n")
    assert page == PAGE.replace("\nold\n", "\n\nnew\n\nlines\n\n")


def test_writing_the_same_twice_changes_nothing() -> None:
    page = with_section(PAGE, "two", "text")
    assert with_section(page, "two", "text") == page


@pytest.mark.parametrize(
    "page",
    [
        "no markers",
        "<!-- begin one -->",
        "<!-- end one -->\n<!-- begin one -->",
        "<!-- begin one -->\n<!-- end one -->\n<!-- begin one -->\n<!-- end one -->",
    ],
)
def test_a_page_without_one_such_section_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="one line '<!-- begin one -->'"):
        with_section(page, "one", "text")


def test_text_with_a_marker_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="marker line of its own"):
        with_section(PAGE, "one", "<!-- end one -->")


@pytest.mark.parametrize("name", ["side-by-side", "streaming", "admission"])
def test_the_document_has_the_sections_that_are_written(name: str) -> None:
    assert f"\n<!-- begin {name} -->\n" in with_section(DOCUMENT.read_text(), name, "text")
