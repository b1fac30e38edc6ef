"""SVG by hand: scales, ticks, and a sheet that lines, marks and words are put on.

Nothing here knows of runs or tenants. Colours are the style sheet's: shapes carry classes. Whatever comes from outside
goes through `escape`. A column with a tip is what pointer, finger and arrow keys find (see `page_style`); without
scripts its tip is a plain `<title>`, which browsers show by themselves.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Literal, NamedTuple

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # control and direction
_CHARACTER_PX = 7.3  # of 12-px text, bold, in the widest of the usual fonts
_TIME_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)


class Tick(NamedTuple):
    """A value on an axis; one without a label is only a fine line."""

    value: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Values onto pixels. A logarithmic one takes values above 0; what lies outside is drawn at the edge."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.is_log:
            low, high, value = log10(low), log10(high), log10(value)
        part = (value - low) / (high - low) if high > low else 0.5
        return self.start_px + part * (self.end_px - self.start_px)


def escape(text: str) -> str:
    """Text from outside as text of the page, in an attribute too: no markup, no control or direction characters."""
    return html.escape(_UNSEEN.sub("\ufffd", text))


def width_px(text: str) -> float:
    """About how wide a text of 12 px is."""
    return len(text) * _CHARACTER_PX


def shortened(text: str, room_px: float) -> str:
    """As much of a text as fits, with an ellipsis; empty where that would be less than three letters."""
    if width_px(text) <= room_px:
        return text
    kept = floor(room_px / _CHARACTER_PX) - 1
    return f"{text[:kept].rstrip()}…" if kept >= 3 else ""


def log_range(values: Iterable[float]) -> tuple[float, float]:
    """Bounds of a logarithmic axis around what is finite and above 0: 1, 2 or 5 of a decade, a factor of 5 at least."""
    positive = [value for value in values if isfinite(value) and value > 0]
    if not positive:
        return 0.001, 1.0
    low, high = _round_log(min(positive), down=True), _round_log(max(positive), down=False)
    while high / low < 4.9:
        low, high = _round_log(low * 0.99, down=True), _round_log(high * 1.01, down=False)
    return low, high


def log_ticks(low: float, high: float, label: Literal["time", "number"], most: int = 7) -> list[Tick]:
    """Ticks at 1, 2 and 5 of each decade; decades alone are labelled where all would be more than `most`."""
    steps = [
        (step, float(f"{step}e{decade}"))
        for decade in range(floor(log10(low)) - 1, ceil(log10(high)) + 1)
        for step in (1, 2, 5)
    ]
    inside = [(step, value) for step, value in steps if low * 0.999 <= value <= high * 1.001]
    is_crowded = len(inside) > most
    told = round_duration if label == "time" else round_number
    return [Tick(value, told(value) if step == 1 or not is_crowded else "") for step, value in inside]


def round_number(value: float) -> str:
    """`5`, `0.2`, `1,000`: a number that is round, as it is."""
    return f"{value:,.10g}"


def round_duration(seconds: float) -> str:
    """`500 ms`, `1 s`: a duration that is round, without the zeros that a measured one has."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size * 0.999:
            return f"{seconds / size:,.4g} {unit}"
    return f"{seconds / 1e-6:,.4g} µs"


def even_ticks(low: float, high: float, most: int = 6) -> list[Tick]:
    """At most `most` round numbers in equal steps."""
    span = max(high - low, 1e-9)
    magnitude = 10.0 ** floor(log10(span / most))
    step = next(size * magnitude for size in (1, 2, 5, 10) if span / (size * magnitude) <= most)
    first = ceil(low / step - 1e-9)
    return [Tick(index * step, round_number(index * step)) for index in range(first, floor(high / step + 1e-9) + 1)]


def time_ticks(low: float, high: float, most: int = 9) -> list[Tick]:
    """Times of a run in round seconds, minutes or hours."""
    step = next((float(size) for size in _TIME_STEPS if (high - low) / size <= most), 86_400.0)
    while (high - low) / step > most:
        step *= 2
    size, unit = (1.0, "s") if step < 60 else (60.0, "min") if step < 3600 else (3600.0, "h")
    first = ceil(low / step - 1e-9)
    values = [index * step for index in range(first, floor(high / step + 1e-9) + 1)]
    return [Tick(value, f"{value / size:.4g} {unit}") for value in values]


class Sheet:
    """One drawing. Coordinates are pixels of its own width and height; a point that is not finite is never drawn."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width = width
        self.height = height
        self._label = label
        self._parts: list[str] = []
        self._tips: list[str] = []

    def __str__(self) -> str:
        focus = ' tabindex="0"' if self._tips else ""
        size = f"{_px(self.width)} {_px(self.height)}"
        opening = f'<svg viewBox="0 0 {size}" role="img" aria-label="{escape(self._label)}"{focus}>'
        return f"{opening}{''.join(self._parts + self._tips)}</svg>"

    def line(self, css: str, points: Sequence[Point]) -> None:
        """A line through the points; a single one gets a short stroke, so that it is seen."""
        points = [point for point in points if _is_drawable(point)]
        if len(points) == 1:
            (x, y), *_ = points
            points = [(x - 2, y), (x + 2, y)]
        if points:
            self._parts.append(f'<path class="{css}" d="M{_path(points)}"/>')

    def area(self, css: str, upper: Sequence[Point], lower: Sequence[Point]) -> None:
        """What lies between two lines."""
        points = [point for point in (*upper, *reversed(lower)) if _is_drawable(point)]
        if len(points) > 2:
            self._parts.append(f'<path class="{css}" d="M{_path(points)}Z"/>')

    def box(self, css: str, x: float, y: float, width: float, height: float) -> None:
        """A rectangle from its upper left corner."""
        if _is_drawable((x, y)) and _is_drawable((width, height)) and width > 0 and height > 0:
            self._parts.append(f'<rect class="{css}" {_box(x, y, width, height)}/>')

    def mark(self, css: str, x: float, y: float, shape: int = 0, size: float = 4) -> None:
        """A small shape of the eight that there are, centred on a point."""
        if _is_drawable((x, y)):
            self._parts.append(f'<path class="{css}" d="{_shape(shape, x, y, size)}"/>')

    def text(self, css: str, x: float, y: float, text: str, anchor: Anchor = "start") -> None:
        """Words, from anywhere."""
        if text and _is_drawable((x, y)):
            where = "" if anchor == "start" else f' text-anchor="{anchor}"'
            self._parts.append(f'<text class="{css}" x="{_px(x)}" y="{_px(y)}"{where}>{escape(text)}</text>')

    def tip(self, x: float, y: float, width: float, height: float, rows: Sequence[Sequence[str]]) -> None:
        """A column that tells its figures: a heading, then rows of cells, the first of which is a name."""
        told = "\n".join("\t".join(" ".join(cell.split()) for cell in row) for row in rows)
        column = f'<rect class="hit" {_box(x, y, max(width, 0.1), height)}>'
        self._tips.append(f"{column}<title>{escape(told)}</title></rect>")

    def axis_below(self, scale: Scale, ticks: Sequence[Tick], top: float, bottom: float, title: str = "") -> None:
        """The x axis: fine lines from `bottom` up to `top`, labels below, the title under them."""
        for tick in ticks:
            x = scale(tick.value)
            self._parts.append(f'<path class="grid" d="M{_px(x)} {_px(top)}V{_px(bottom)}"/>')
            self.text("tick", x, bottom + 15, tick.label, "middle")
        self._parts.append(f'<path class="axis" d="M{_px(scale.start_px)} {_px(bottom)}H{_px(scale.end_px)}"/>')
        self.text("title", (scale.start_px + scale.end_px) / 2, bottom + 32, title, "middle")

    def axis_left(self, scale: Scale, ticks: Sequence[Tick], left: float, right: float) -> None:
        """The y axis: fine lines from `left` to `right`, labels before them."""
        for tick in ticks:
            y = scale(tick.value)
            self._parts.append(f'<path class="grid" d="M{_px(left)} {_px(y)}H{_px(right)}"/>')
            self.text("tick", left - 6, y + 4, tick.label, "end")


def _round_log(value: float, *, down: bool) -> float:
    decade = floor(log10(value) + (1e-9 if down else -1e-9))
    steps = [float(f"{step}e{decade}") for step in (1, 2, 5)] + [float(f"1e{decade + 1}")]
    if down:
        return max((step for step in steps if step <= value * 1.0001), default=steps[0])
    return min((step for step in steps if step >= value * 0.9999), default=steps[-1])


def _is_drawable(point: Point) -> bool:
    return isfinite(point[0]) and isfinite(point[1])


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Iterable[Point]) -> str:
    return "L".join(f"{_px(x)} {_px(y)}" for x, y in points)


def _box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(height)}"'


def _shape(shape: int, x: float, y: float, size: float) -> str:
    """Circle, square, triangle, diamond, triangle down, cross, plus, bar."""
    s, big = size, size * 1.3
    corners: tuple[tuple[Point, ...], ...] = (
        (),
        ((-s, -s), (s, -s), (s, s), (-s, s)),
        ((0, -big), (big, s), (-big, s)),
        ((0, -big), (big, 0), (0, big), (-big, 0)),
        ((0, big), (big, -s), (-big, -s)),
    )
    strokes: tuple[tuple[Point, ...], ...] = (
        ((-s, -s), (s, s), (-s, s), (s, -s)),
        ((-big, 0), (big, 0), (0, -big), (0, big)),
        ((0, -big), (0, big)),
    )
    shape %= len(corners) + len(strokes)
    if shape == 0:
        return f"M{_px(x - s)} {_px(y)}a{_px(s)} {_px(s)} 0 1 0 {_px(2 * s)} 0a{_px(s)} {_px(s)} 0 1 0 {_px(-2 * s)} 0Z"
    if shape < len(corners):
        return f"M{_path([(x + dx, y + dy) for dx, dy in corners[shape]])}Z"
    ends = [(x + dx, y + dy) for dx, dy in strokes[shape - len(corners)]]
    return "".join(f"M{_path(ends[at : at + 2])}" for at in range(0, len(ends), 2))
