"""The HTML that all parts of the report are built from.

Titles and cells are text, and are escaped here; leads, captions, headings, names of rows and bodies are HTML, and come
escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadtest.report.drawing import escape


def section(title: str, lead: str, *parts: str) -> str:
    """A section with its heading and its lead; nothing where its parts are empty."""
    body = "".join(parts)
    told = f'<p class="lead">{lead}</p>' if lead else ""
    return f"\n<section><h2>{escape(title)}</h2>{told}{body}</section>" if body else ""


def figure(title: str, caption: str, body: str, css: str) -> str:
    """Drawings with a title and a caption; those of class `wide` scroll by themselves where the page is narrow."""
    return (
        f"<figure><h3>{escape(title)}</h3><figcaption>{caption}</figcaption>"
        f'<div class="{"scroll wide" if css == "wide" else css}">{body}</div></figure>'
    )


def card(*parts: str) -> str:
    """A framed piece of the page; nothing where its parts are empty."""
    body = "".join(parts)
    return f'<div class="card">{body}</div>' if body else ""


def folded(title: str, body: str) -> str:
    """What is seen when asked for."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def soft(text: str) -> str:
    """Text that stands back."""
    return f'<span class="soft">{escape(text)}</span>'


def table(caption: str, headings: Sequence[str], rows: Iterable[str], groups: str = "") -> str:
    """A table that scrolls by itself where the page is narrow; `groups` is a row above that of the headings."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{caption}</caption><thead>{groups}<tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(name: str, cells: Iterable[str], css: str = "") -> str:
    """A row with its name first, and whole cells."""
    return f'<tr class="{css}"><th scope="row">{name}</th>{"".join(cells)}</tr>'


def cell(text: str, css: str = "") -> str:
    """A figure; or, of class `words`, words, which may wrap."""
    return f'<td class="{css}">{escape(text)}</td>' if css else f"<td>{escape(text)}</td>"


def words(text: str) -> str:
    """The heading of a column of words."""
    return f'<div class="words">{escape(text)}</div>'
