"""The report's plots over time, as SVG: each tenant's way through the run, and a server's memory.

The time line has a strip of first-token times for each tenant, all on one scale, so that a neighbour's arrival is seen
where it hurts; tokens a second and open streams follow, all tenants together. Phases are shaded and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

from loadtest.report.drawing import (
    Point,
    Scale,
    Sheet,
    Tick,
    even_ticks,
    log_range,
    log_ticks,
    shortened,
    time_ticks,
    width_px,
)
from loadtest.report.figures import count, duration, number
from loadtest.report.series import Series, Slot, slots_of
from loadtest.summary import Growth, PhaseResults, Summary
from tenancy.units import format_bytes

MOST_SLOTS = 120  # over the whole run: what a finger can still point at
LEAST_SLOT_SECONDS = 1.0
MOST_RSS_POINTS = 300

_WIDTH, _LEFT, _RIGHT = 1040.0, 62.0, 1028.0
_TOP = 26.0
_PANEL_PX = 104.0
_FEW_LINES = 6


class _Stretch(NamedTuple):
    """A phase and each series' slots in it, in the order of the lines."""

    phase: PhaseResults
    slots: list[list[Slot]]


class _Strip(NamedTuple):
    """One tenant's strip of first-token times: its slots, phase by phase; failures get a lane above it."""

    series: Series
    slots: list[list[Slot]]
    plot_px: float
    lane_px: float

    @property
    def height(self) -> float:
        return 24 + self.lane_px + self.plot_px


def time_line(summary: Summary, lines: Sequence[Series]) -> str:
    """All tenants over the run; empty where no phase kept a time line."""
    end = max((phase.at + phase.seconds for phase in summary.phases), default=0.0)
    slot_seconds = max(end / MOST_SLOTS, LEAST_SLOT_SECONDS if end > 20 else 0.0)
    stretches = [
        _Stretch(phase, [slots_of(phase, series, slot_seconds) for series in lines]) for phase in summary.phases
    ]
    if not any(slots for stretch in stretches for slots in stretch.slots):
        return ""
    bounds = _ttft_range(stretches)
    strips = _strips(lines, stretches) if bounds else []
    height = _TOP + sum(strip.height for strip in strips) + 2 * (_PANEL_PX + 28) + 44
    sheet = Sheet(_WIDTH, height, "Time line of the run: first-token times, tokens a second and open streams by tenant")
    x = Scale(0, end, _LEFT, _RIGHT)
    bottom = height - 40
    _shade_phases(sheet, x, summary.phases, bottom)
    at = _TOP
    for strip in strips:
        if bounds:
            _draw_strip(sheet, x, at, bounds, strip)
        at += strip.height
    _panel(sheet, x, at + 24, "Tokens a second", lines, stretches, lambda slot: slot.tokens_per_second)
    at += _PANEL_PX + 28
    _panel(sheet, x, at + 24, "Open streams", lines, stretches, lambda slot: float(slot.open))
    sheet.axis_below(x, time_ticks(0, end), bottom, bottom, "since the run began")
    _put_tips(sheet, x, lines, stretches, bottom)
    return str(sheet)


def rss_plot(growth: Growth) -> str:
    """The server's memory over time, with the line of its growth and the band of that line's 95 % confidence."""
    series = growth.series[:: max(len(growth.series) // MOST_RSS_POINTS, 1)]
    if len(series) < 2:
        return ""
    times, sizes = [at for at, _ in growth.series], [size for _, size in growth.series]
    low, high = min(sizes), max(sizes)
    room = max((high - low) * 0.15, high * 0.02, 1)
    top, bottom = 16.0, 216.0
    sheet = Sheet(_WIDTH, bottom + 44, "Memory of the server over time")
    x = Scale(min(times), max(times), 84, _RIGHT)
    y = Scale(max(low - room, 0), high + room, bottom, top)
    sheet.axis_below(x, time_ticks(x.low, x.high), top, bottom, "since the run began")
    sheet.axis_left(y, _size_ticks(y.low, y.high), x.start_px, x.end_px)
    middle_time, middle_size = sum(times) / len(times), sum(sizes) / len(sizes)

    def fitted(slope: float, at: float) -> Point:
        return x(at), y(middle_size + slope / 3600 * (at - middle_time))

    ends = (x.low, middle_time, x.high)  # a line of least squares runs through the middle of its points
    sheet.area(
        "band ink",
        [fitted(growth.low if at < middle_time else growth.high, at) for at in ends],
        [fitted(growth.high if at < middle_time else growth.low, at) for at in ends],
    )
    sheet.line("rss plain", [(x(at), y(size)) for at, size in series])
    sheet.line("line ink", [fitted(growth.bytes_per_hour, at) for at in (x.low, x.high)])
    centres = [x(at) for at, _ in series]
    step = max((centres[-1] - centres[0]) / (len(centres) - 1), 1)
    for (at, size), centre in zip(series, centres, strict=True):
        sheet.tip(centre - step / 2, top, step, bottom - top, [(duration(at),), ("memory", format_bytes(size))])
    return str(sheet)


def _shade_phases(sheet: Sheet, x: Scale, phases: Sequence[PhaseResults], bottom: float) -> None:
    for number_of_phase, phase in enumerate(phases):
        left, right = x(phase.at), x(phase.at + phase.seconds)
        kind = "uncounted" if not phase.is_counted else "odd" if number_of_phase % 2 else "even"
        sheet.box(f"phase {kind}", left, 0, right - left, bottom)
        sheet.line("edge", [(left, 0), (left, bottom)])
    for phase in phases:  # after all shades, or the next one would cover a name's end
        left, right = x(phase.at), x(phase.at + phase.seconds)
        words = phase.name if phase.is_counted else f"{phase.name} (not counted)"
        if not phase.is_counted and width_px(words) > right - left - 8:
            words = phase.name
        sheet.text("head", left + 5, 15, shortened(words, right - left - 8))


def _ttft_range(stretches: Sequence[_Stretch]) -> tuple[float, float] | None:
    """Bounds of all strips, or `None` where no first token came."""
    told = [
        value
        for stretch in stretches
        for slots in stretch.slots
        for slot in slots
        for value in (slot.ttft_p50, slot.ttft_high)
        if value is not None
    ]
    return log_range(told) if told else None


def _strips(lines: Sequence[Series], stretches: Sequence[_Stretch]) -> list[_Strip]:
    plot_px = 120.0 if len(lines) <= 2 else 84.0 if len(lines) <= 4 else 46.0
    strips = []
    for at, series in enumerate(lines):
        slots = [stretch.slots[at] for stretch in stretches]
        has_failed = any(slot.failed for phase in slots for slot in phase)
        strips.append(_Strip(series, slots, plot_px, 13.0 if has_failed else 0.0))
    return strips


def _draw_strip(sheet: Sheet, x: Scale, above: float, bounds: tuple[float, float], strip: _Strip) -> None:
    top = above + strip.height - strip.plot_px
    y = Scale(*bounds, top + strip.plot_px, top, is_log=True)
    ticks = [tick for tick in log_ticks(*bounds, "time", most=4 if strip.plot_px > 60 else 2) if tick.label]
    sheet.axis_left(y, ticks, x.start_px, x.end_px)
    css = f"series {strip.series.css}"
    for slots in strip.slots:
        told = [
            (x(slot.at + slot.seconds / 2), y(slot.ttft_p50), y(slot.ttft_high))
            for slot in slots
            if slot.ttft_p50 is not None and slot.ttft_high is not None
        ]
        middle, high = [(at, p50) for at, p50, _ in told], [(at, p99) for at, _, p99 in told]
        sheet.area(f"band {css}", high, middle)
        sheet.line(f"thin {css}", high)
        sheet.line(f"line solid {css}", middle)
        for slot in slots:
            if slot.failed:
                left, right = x(slot.at), x(slot.at + slot.seconds)
                tall = 3 + (strip.lane_px - 3) * sqrt(min(slot.failed / max(slot.scheduled, slot.failed), 1))
                sheet.box(f"failed {css}", left, top - tall, max(right - left - 1, 1.5), tall)
    label_y = top - strip.lane_px - 3
    sheet.mark(f"shape {css}", x.start_px + 8, label_y - 4, strip.series.shape)
    sheet.text(f"label {css}", x.start_px + 20, label_y, f"{shortened(strip.series.label, 300)}: first token")


def _panel(
    sheet: Sheet,
    x: Scale,
    top: float,
    title: str,
    lines: Sequence[Series],
    stretches: Sequence[_Stretch],
    pick: Callable[[Slot], float],
) -> None:
    totals = [_totals(stretch, pick) if len(lines) > _FEW_LINES else {} for stretch in stretches]
    told = [pick(slot) for stretch in stretches for slots in stretch.slots for slot in slots]
    most = max([*told, *(value for total in totals for value in total.values())], default=0.0)
    y = Scale(0, most * 1.05 or 1, top + _PANEL_PX, top)
    sheet.axis_left(y, even_ticks(0, y.high, 4), x.start_px, x.end_px)
    for number_of_line, series in enumerate(lines):
        for stretch in stretches:
            points = [(x(slot.at + slot.seconds / 2), y(pick(slot))) for slot in stretch.slots[number_of_line]]
            sheet.line(f"line series {series.css}", points)
    for total in totals:
        sheet.line("line ink", [(x(at), y(value)) for at, value in sorted(total.items())])
    sheet.text("label", x.start_px + 4, top - 3, f"{title}{', all of them on top' if len(lines) > _FEW_LINES else ''}")


def _totals(stretch: _Stretch, pick: Callable[[Slot], float]) -> dict[float, float]:
    """All lines' sum, by the middle of the slot: where lines are many it is what one looks for."""
    sums: dict[float, float] = {}
    for slots in stretch.slots:
        for slot in slots:
            middle = slot.at + slot.seconds / 2
            sums[middle] = sums.get(middle, 0.0) + pick(slot)
    return sums


def _put_tips(sheet: Sheet, x: Scale, lines: Sequence[Series], stretches: Sequence[_Stretch], bottom: float) -> None:
    for stretch in stretches:
        at_each: dict[float, list[tuple[Series, Slot]]] = {}
        for series, slots in zip(lines, stretch.slots, strict=True):
            for slot in slots:
                at_each.setdefault(slot.at, []).append((series, slot))
        for at, present in sorted(at_each.items()):
            until = max(slot.at + slot.seconds for _, slot in present)
            heading = f"{stretch.phase.name}, {number(at)} to {number(until)} s"
            rows: list[tuple[str, ...]] = [(heading,), ("", "p50", "p99", "tokens/s", "open", "failed")]
            rows += [
                (
                    series.label,
                    duration(slot.ttft_p50),
                    f"{duration(slot.ttft_high)} max" if slot.is_slowest else duration(slot.ttft_high),
                    number(slot.tokens_per_second),
                    count(slot.open),
                    count(slot.failed),
                )
                for series, slot in present
            ]
            sheet.tip(x(at), _TOP, x(until) - x(at), bottom - _TOP, rows)


def _size_ticks(low: float, high: float) -> list[Tick]:
    """Round sizes in KiB, MiB or GiB."""
    unit, name = next(
        (unit, name)
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
        if high >= 2 * unit or unit == 1
    )
    return [Tick(tick.value * unit, f"{tick.label} {name}") for tick in even_ticks(low / unit, high / unit, 5)]
