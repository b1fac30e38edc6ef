"""Dot plots with their spread, as SVG that stands alone and follows the reader's system, light or dark."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.side_by_side.figures import Cell
from loadtest.report.drawing import Scale, Sheet, even_ticks
from loadtest.report.page_style import DARK_COLOURS, DARK_GROUND, LIGHT_COLOURS, LIGHT_GROUND

Group = tuple[str, Sequence[tuple[str, Cell | None, bool]]]
"""A figure's title, and each gate with its cell and whether that is void."""

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _GROUP = 760.0, 130.0, 690.0, 38.0, 19.0, 26.0


def dot_plot(title: str, groups: Sequence[Group]) -> str:
    """A row for each gate under each figure: the median as a dot, least and most as a line, the number beside it."""
    names = [name for name, _, _ in groups[0][1]]
    height = _TOP + sum(_GROUP + _ROW * len(cells) for _, cells in groups) + 44
    highest = max((cell.high for _, cells in groups for _, cell, is_void in cells if cell and not is_void), default=1.0)
    lowest = min((cell.low for _, cells in groups for _, cell, is_void in cells if cell and not is_void), default=0.0)
    scale = Scale(min(0.0, lowest), highest * 1.05 or 1.0, _LEFT, _RIGHT)
    sheet = Sheet(_WIDTH, height, title)
    sheet.box("ground", 0, 0, _WIDTH, height)
    sheet.text("head", 16, 24, title)
    bottom = height - 40
    sheet.axis_below(scale, even_ticks(scale.low, scale.high), _TOP, bottom)
    y = _TOP
    for words, cells in groups:
        sheet.text("label", 16, y + 18, words)
        y += _GROUP + _ROW / 2
        for name, cell, is_void in cells:
            css = f"s{names.index(name)}"
            sheet.text("tick", _LEFT - 10, y + 4, name, "end")
            if cell is None:
                sheet.text("tick", _LEFT + 6, y + 4, "not measured")
            elif is_void:
                sheet.text("tick", _LEFT + 6, y + 4, "void")
            else:
                sheet.line(f"whisker {css}", [(scale(cell.low), y), (scale(cell.high), y)])
                sheet.mark(f"shape {css}", scale(cell.median), y, names.index(name), 4.5)
                sheet.text("tick", scale(cell.high) + 10, y + 4, _told(cell.median))
            y += _ROW
        y -= _ROW / 2
    return _standing_alone(str(sheet), len(names))


def _told(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _standing_alone(svg: str, series: int) -> str:
    light = "".join(f".s{at}{{stroke:{LIGHT_COLOURS[at]};fill:{LIGHT_COLOURS[at]}}}" for at in range(series))
    dark = "".join(f".s{at}{{stroke:{DARK_COLOURS[at]};fill:{DARK_COLOURS[at]}}}" for at in range(series))
    style = (
        "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#191c22}"
        f".head{{font-weight:650;font-size:15px}}.label{{font-weight:600}}.tick{{fill:#5a6270}}.ground{{fill:{LIGHT_GROUND}}}"
        f".grid{{stroke:#e6e9ee}}.axis{{stroke:#5a6270}}.whisker{{stroke-width:2.5;fill:none}}{light}"
        f"@media(prefers-color-scheme:dark){{text{{fill:#e7eaef}}.tick{{fill:#a2abb8}}.ground{{fill:{DARK_GROUND}}}"
        f".grid{{stroke:#272e38}}.axis{{stroke:#a2abb8}}{dark}}}"
    )
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{rest}\n'
