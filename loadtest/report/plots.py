"""The report's plots over percentiles, ratios and loads, as SVG; `time_plots` has those over time.

A distribution is drawn by percentiles, the way HdrHistogram does: the x axis runs by the logarithm of the share that is
slower, so that p99 and p99.9 have as much room as the median, and ends where a tenant's calls are too few to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import log10
from typing import Literal, NamedTuple, TypeVar

from loadtest.report.drawing import Scale, Sheet, Tick, even_ticks, log_range, log_ticks, round_duration, shortened
from loadtest.report.figures import count, duration, number, ratio
from loadtest.report.series import Pool, Series
from loadtest.summary import Distribution, Isolation, PhaseResults, Results, SweepResults, SweepStep

MOST_LABELLED = 4  # lines with their name beside them; the legend names all
_STOPS = (
    *(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99),
    *(0.993, 0.995, 0.997, 0.998, 0.999, 0.9995, 0.9999, 0.99995, 0.99999),
)
_DECADES = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_MOST_DECADES = 5.0
_CURVE_POINTS = 80
_CURVE_START = tuple(-log10(1 - share) for share in (0.01, 0.02, 0.04, 0.08))


ValueT = TypeVar("ValueT")


class Facet(NamedTuple):
    """One of several drawings that share their axes."""

    title: str
    svg: str


class _Curve(NamedTuple):
    series: Series
    pool: Pool
    name: str
    is_reference: bool


def ttft_plots(
    phases: Sequence[PhaseResults], lines: Sequence[Series], alone: dict[str, PhaseResults], objective: float | None
) -> list[Facet]:
    """First-token times of each phase; `alone` are phases to hold a tenant's curve against, by tenant."""
    return _percentile_plots("First-token time", lambda results: results.ttft, phases, lines, alone, objective)


def itl_plots(
    phases: Sequence[PhaseResults], lines: Sequence[Series], alone: dict[str, PhaseResults], objective: float | None
) -> list[Facet]:
    """Gaps between tokens of each phase, likewise."""
    return _percentile_plots("Gap between tokens", lambda results: results.itl, phases, lines, alone, objective)


def isolation_plot(isolation: Sequence[Isolation], lines: Sequence[Series]) -> str:
    """Ratios to being alone, one row a tenant and phase, p50 hollow and p99 filled, each with its interval."""
    row_px, left, right, top = 46.0, 230.0, 660.0, 40.0
    bottom = top + row_px * len(isolation)
    sheet = Sheet(
        1040, bottom + 44, "First-token times over those of the tenant alone, p50 and p99, with 95 % intervals"
    )
    told = [
        value
        for entry in isolation
        for middle, interval in ((entry.p50, entry.p50_interval), (entry.p99, entry.p99_interval))
        for value in (middle, *(interval or ()))
        if value is not None
    ]
    low, high = log_range([*told, 0.8, 1.25])
    scale = Scale(low, high, left, right, is_log=True)
    ticks = [Tick(tick.value, tick.label and f"×{tick.label}") for tick in log_ticks(low, high, "number")]
    sheet.axis_below(scale, ticks, top, bottom, "times the first-token time when alone (logarithmic)")
    sheet.line("reference", [(scale(1), top - 6), (scale(1), bottom)])
    sheet.text("tick", scale(1), top - 12, "as when alone", "middle")
    sheet.text("head", right + 30, top - 12, "p50")
    sheet.text("head", right + 208, top - 12, "p99")
    looks = {tenant: series for series in lines for tenant in series.tenants}
    for at, entry in enumerate(isolation):
        y = top + row_px * (at + 0.5)
        series = looks.get(entry.tenant, Series("rest", entry.tenant, (entry.tenant,)))
        if at % 2:
            sheet.box("stripe", 0, y - row_px / 2, sheet.width, row_px)
        sheet.mark(f"shape series {series.css}", 12, y - 1, series.shape)
        sheet.text("label", 26, y - 4, shortened(entry.tenant, left - 60))
        sheet.text("tick", 26, y + 12, shortened(f"in {entry.phase}, over {entry.alone}", left - 36))
        for middle, interval, dy, is_filled in (
            (entry.p50, entry.p50_interval, -8.0, False),
            (entry.p99, entry.p99_interval, 8.0, True),
        ):
            if middle is None:
                continue
            if interval:
                ends = [scale(end) for end in interval]
                sheet.line(f"whisker series {series.css}", [(ends[0], y + dy), (ends[1], y + dy)])
                for end in ends:
                    sheet.line(f"whisker series {series.css}", [(end, y + dy - 4), (end, y + dy + 4)])
            sheet.mark(f"{'shape' if is_filled else 'hollow'} series {series.css}", scale(middle), y + dy, 0, 5)
        sheet.text("label", right + 30, y + 4, _ratio_with_interval(entry.p50, entry.p50_interval))
        sheet.text("label", right + 208, y + 4, _ratio_with_interval(entry.p99, entry.p99_interval))
        rows = [
            (f"{entry.tenant}, {entry.phase} over {entry.alone}",),
            ("p50", _ratio_with_interval(entry.p50, entry.p50_interval)),
            ("p99", _ratio_with_interval(entry.p99, entry.p99_interval)),
            ("calls", f"{count(entry.calls)} over {count(entry.calls_alone)}"),
        ]
        sheet.tip(0, y - row_px / 2, sheet.width, row_px, rows)
    return str(sheet)


def sweep_plots(sweep: SweepResults) -> list[Facet]:
    """Throughput and first-token times over the load, with the load at which the target was saturated."""
    steps = sorted(sweep.steps, key=lambda step: step.load)
    loads = [step.load for step in steps if step.load > 0]
    if not loads:
        return []
    is_log = max(loads) / min(loads) > 5
    axis = _load_scale(loads, is_log)
    done = [step.done_per_second for step in steps]
    ideal = loads if sweep.of == "rate" else []
    throughput = _sweep_sheet(sweep, steps, axis, "Calls done a second, over the load")
    if is_log and min(done, default=0) > 0:
        low, high = log_range([*done, *(min(load, max(done) * 1.6) for load in ideal)])
        y = Scale(low, high, _SWEEP_BOTTOM, _SWEEP_TOP, is_log=True)
        throughput.axis_left(y, log_ticks(low, high, "number"), axis.start_px, axis.end_px)
    else:
        y = Scale(0, max(done, default=0) * 1.15 or 1, _SWEEP_BOTTOM, _SWEEP_TOP)
        throughput.axis_left(y, even_ticks(0, y.high), axis.start_px, axis.end_px)
    asked = [load for load in ideal if load <= y.high]
    throughput.line("reference", [(axis(load), y(load)) for load in asked])
    _draw_steps(throughput, steps, axis, y, lambda step: step.done_per_second, "ink", "done")

    latency = _sweep_sheet(sweep, steps, axis, "First-token time, p50 and p99, over the load")
    low, high = log_range(value for step in steps for value in (step.ttft_p50, step.ttft_p99) if value is not None)
    y = Scale(low, high, _SWEEP_BOTTOM, _SWEEP_TOP, is_log=True)
    latency.axis_left(y, log_ticks(low, high, "time"), axis.start_px, axis.end_px)
    _draw_steps(latency, steps, axis, y, lambda step: step.ttft_p50, "ink", "p50")
    _draw_steps(latency, steps, axis, y, lambda step: step.ttft_p99, "ink dashed", "p99")
    for sheet in (throughput, latency):
        _put_tips(sheet, steps, axis)
    return [
        Facet("Calls done a second", str(throughput)),
        Facet("First-token time", str(latency)),
    ]


_SWEEP_TOP, _SWEEP_BOTTOM, _SWEEP_WIDTH, _SWEEP_HEIGHT = 24.0, 250.0, 500.0, 296.0


def _percentile_plots(
    what: str,
    pick: Callable[[Results], Distribution],
    phases: Sequence[PhaseResults],
    lines: Sequence[Series],
    alone: dict[str, PhaseResults],
    objective: float | None,
) -> list[Facet]:
    curves = [_curves(phase, pick, lines, alone) for phase in phases]
    held = [curve.pool for facet in curves for curve in facet]
    if not held:
        return []
    low, high = log_range(value for pool in held for value in pool.quantiles((0.01, pool.last_share)))
    decades = min(max(log10(max(pool.count for pool in held)), 1.0), _MOST_DECADES)
    width = 340.0 if len(phases) > 2 else 500.0
    x = Scale(0, decades, 56, width - 10)
    y = Scale(low, high, 250, 12, is_log=True)
    facets = []
    kept = objective if objective is not None and low < objective < high else None
    for phase, drawn in zip(phases, curves, strict=True):
        sheet = Sheet(width, 296, f"{what} by percentile in {phase.name}")
        ticks = [Tick(-log10(1 - share), _percentile(share)) for share in _DECADES if -log10(1 - share) <= decades]
        sheet.axis_below(x, ticks, y.end_px, y.start_px, "percentile")
        sheet.axis_left(y, log_ticks(low, high, "time"), x.start_px, x.end_px)
        if kept is not None:
            sheet.line("objective", [(x.start_px, y(kept)), (x.end_px, y(kept))])
        _draw_curves(sheet, x, y, drawn)
        if kept is not None:
            sheet.text("tick halo", x.start_px + 6, y(kept) - 5, f"objective {round_duration(kept)}")
        _put_percentile_tips(sheet, x, y, drawn)
        facets.append(Facet(phase.name, str(sheet)))
    return facets


def _curves(
    phase: PhaseResults,
    pick: Callable[[Results], Distribution],
    lines: Sequence[Series],
    alone: dict[str, PhaseResults],
) -> list[_Curve]:
    found = []
    for series in lines:
        before = alone.get(series.label)
        if before is not None and before.name != phase.name:
            found.append(_Curve(series, _pool(before, pick, series), f"{series.label}, {before.name}", True))
        found.append(_Curve(series, _pool(phase, pick, series), series.label, False))
    found = [curve for curve in found if curve.pool.count]
    # a reference belongs beside the curve that it is held against, and nowhere else
    present = {curve.series.css for curve in found if not curve.is_reference}
    return [curve for curve in found if curve.series.css in present]


def _pool(phase: PhaseResults, pick: Callable[[Results], Distribution], series: Series) -> Pool:
    return Pool.of(pick(results) for results in phase.tenants if results.name in series.tenants)


def _draw_curves(sheet: Sheet, x: Scale, y: Scale, curves: Sequence[_Curve]) -> None:
    ends = []
    for series, pool, _, is_reference in curves:
        last = min(log10(pool.count), x.high)
        exponents = [start for start in _CURVE_START if start < last / _CURVE_POINTS]
        exponents += [last * at / _CURVE_POINTS for at in range(1, _CURVE_POINTS + 1)]
        values = pool.quantiles([1 - 10**-exponent for exponent in exponents])
        points = [(x(exponent), y(value)) for exponent, value in zip(exponents, values, strict=True)]
        sheet.line(f"{'ghost' if is_reference else 'line'} series {series.css}", points)
        if not is_reference:
            sheet.mark(f"shape series {series.css}", *points[-1], series.shape)
            ends.append((points[-1][1], points[-1][0], series))
    if len(ends) <= MOST_LABELLED:
        lowest = float("-inf")
        for end_y, end_x, series in sorted(ends, key=lambda end: end[0]):
            lowest = max(end_y - 9, lowest + 14, y.end_px + 10)
            sheet.text(f"label halo series {series.css}", end_x - 8, lowest, shortened(series.label, 130), "end")


def _put_percentile_tips(sheet: Sheet, x: Scale, y: Scale, curves: Sequence[_Curve]) -> None:
    furthest = max((curve.pool.last_share for curve in curves), default=0)
    stops = [stop for stop in _STOPS if stop <= furthest + 1e-9 and -log10(1 - stop) <= x.high + 1e-9]
    told = {id(curve): curve.pool.quantiles(stops) for curve in curves}
    centres = [x(-log10(1 - stop)) for stop in stops]
    for at, (stop, left, right) in enumerate(_columns(stops, centres, x.start_px, x.end_px)):
        rows: list[tuple[str, ...]] = [(f"{_percentile(stop)}: {stop * 100:.7g} % came within",)]
        rows += [
            (curve.name, duration(told[id(curve)][at])) for curve in curves if stop <= curve.pool.last_share + 1e-9
        ]
        sheet.tip(left, y.end_px, right - left, y.start_px - y.end_px, rows)


def _columns(
    values: Sequence[ValueT], centres: Sequence[float], start: float, end: float
) -> Iterable[tuple[ValueT, float, float]]:
    """Each value with the left and right edge of its column: halfway to its neighbours."""
    edges = [start, *((one + other) / 2 for one, other in pairwise(centres)), end]
    return zip(values, edges, edges[1:], strict=False)


def _percentile(share: float) -> str:
    return f"p{share * 100:.7g}"


def _ratio_with_interval(middle: float | None, interval: tuple[float, float] | None) -> str:
    if middle is None or interval is None:
        return ratio(middle)
    return f"{ratio(middle)} ({number(interval[0])} to {number(interval[1])})"


def _load_scale(loads: Sequence[float], is_log: bool) -> Scale:
    if is_log:
        return Scale(min(loads) * 0.85, max(loads) * 1.15, 56, _SWEEP_WIDTH - 10, is_log=True)
    return Scale(0, max(loads) * 1.08, 56, _SWEEP_WIDTH - 10)


def _sweep_sheet(sweep: SweepResults, steps: Sequence[SweepStep], axis: Scale, label: str) -> Sheet:
    sheet = Sheet(_SWEEP_WIDTH, _SWEEP_HEIGHT, label)
    if sweep.stable is not None and sweep.saturated is not None:
        left, right = axis(sweep.stable), axis(sweep.saturated)
        sheet.box("bracket", left, _SWEEP_TOP, max(right - left, 1), _SWEEP_BOTTOM - _SWEEP_TOP)
    title = "calls asked a second" if sweep.of == "rate" else "users"
    kind: Literal["number"] = "number"
    ticks = log_ticks(axis.low, axis.high, kind) if axis.is_log else even_ticks(0, axis.high)
    sheet.axis_below(axis, ticks, _SWEEP_TOP, _SWEEP_BOTTOM, f"{title}{' (logarithmic)' if axis.is_log else ''}")
    if sweep.saturation is not None:
        at = axis(sweep.saturation)
        sheet.line("saturation", [(at, _SWEEP_TOP - 4), (at, _SWEEP_BOTTOM)])
        is_left = at < (axis.start_px + axis.end_px) / 2
        words = f"saturated at {number(sweep.saturation)}"
        sheet.text("label", at, _SWEEP_TOP - 9, words, "start" if is_left else "end")
    return sheet


def _draw_steps(
    sheet: Sheet,
    steps: Sequence[SweepStep],
    x: Scale,
    y: Scale,
    pick: Callable[[SweepStep], float | None],
    css: str,
    name: str,
) -> None:
    """A line over the steps; where the target did not keep up its marks are crosses."""
    told = [(step, value) for step in steps if step.load > 0 and (value := pick(step)) is not None]
    points = [(x(step.load), y(value)) for step, value in told]
    sheet.line(f"line {css}", points)
    for (step, _), point in zip(told, points, strict=True):
        sheet.mark(f"{'cross' if step.is_saturated else 'shape'} {css}", *point, 5 if step.is_saturated else 0, 4)
    if points:
        above = points[0][1] - 10
        sheet.text("label halo", points[0][0], above, name)


def _put_tips(sheet: Sheet, steps: Sequence[SweepStep], axis: Scale) -> None:
    told = [step for step in steps if step.load > 0]
    centres = [axis(step.load) for step in told]
    for step, left, right in _columns(told, centres, axis.start_px, axis.end_px):
        rows = [
            (f"load {number(step.load)}{', did not keep up' if step.is_saturated else ''}",),
            ("done a second", number(step.done_per_second)),
            ("tokens a second", number(step.tokens_per_second)),
            ("TTFT p50", duration(step.ttft_p50)),
            ("TTFT p99", duration(step.ttft_p99)),
            ("failed", count(step.failed)),
        ]
        sheet.tip(left, _SWEEP_TOP, right - left, _SWEEP_BOTTOM - _SWEEP_TOP, rows)
