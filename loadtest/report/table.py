"""The end of a run on a terminal: first what is wrong with the figures, then the figures, a table a phase.

It is read at 80 columns and up, with colour or without: marks are words, not colours. Names and codes come from files
and servers, so nothing of them reaches the terminal but what can be printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.report.figures import count, duration, number, part_of, ratio, share
from loadtest.summary import (
    Count,
    Growth,
    Isolation,
    PhaseResults,
    Results,
    ServerCost,
    Summary,
    SweepResults,
    SweepStep,
)

PIPED_WIDTH: Final = 112
MIB: Final = 1 << 20
GAP: Final = 2
LEAST_NAME: Final = 12
MOST_NAME: Final = 24
MOST_CODES: Final = 4
MOST_TENANTS: Final = 20
MOST_COUNTS: Final = 20
LOUD: Final = {"client-bound": "bold red", "machine-bound": "bold red", "censored": "bold yellow"}
COUNTED_THINGS: Final = {"rate": "calls a second", "users": "users"}


def result_console() -> Console:
    """Where results are printed: this terminal, or, where there is none, as wide as all columns need."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPED_WIDTH)


def print_summary(summary: Summary, console: Console, files: Mapping[str, str] | None = None) -> None:
    """Print all of it, as wide as the console is. `files` were written, by what they are (`report`: its path)."""
    marks = _print_marks(summary, console)
    _print_head(summary, console)
    phases = [phase for phase in summary.phases if phase.is_counted]
    if summary.sweep is not None:
        _print_sweep(summary.sweep, console)
    if summary.sweep is None or len(phases) == 1:  # a sweep's steps are its phases: each stands in its table already
        has_goal = any((summary.scenario.get("objectives") or {}).values())
        for phase in phases:
            _print_phase(phase, console, has_goal)
    if not phases:
        console.print(Text("No phase came to be counted."))
    _print_isolation(summary.isolation, console)
    _print_counts(summary.counts, console)
    console.print()
    costs = [phase.server for phase in phases if phase.server is not None]
    if costs:
        _say(console, "server", f"pid {costs[-1].pid}: {printable(costs[-1].command)}")
    if tool := _tool(phases):
        _say(console, "tool", tool)
    if summary.growth is not None:
        _say(console, "memory", growth_in_words(summary.growth))
    for what, path in (files or {}).items():
        _say(console, what, printable(path))
    for mark in summary.marks:
        if mark.kind not in LOUD:
            _say(console, "note", printable(f"{mark.phase}: {mark.text}" if mark.phase else mark.text))
    if marks:
        # a long table scrolls its beginning out of sight
        console.print(Text(f"!! {', '.join(marks)}: see the top", style="bold red"))


def printable(text: str) -> str:
    """The same without what a terminal would act on: control characters become `·`."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "·" for letter in text)


def growth_in_words(growth: Growth) -> str:
    """The slope of a server's memory, and whether it can be told from none."""
    slope, low, high = (_mib(each, signed=True) for each in (growth.bytes_per_hour, growth.low, growth.high))
    verdict = (
        "it grows" if growth.low > 0 else "it shrinks" if growth.high < 0 else "no growth can be told from the noise"
    )
    return f"{slope} an hour (95 %: {low} to {high}): {verdict}"


def _print_head(summary: Summary, console: Console) -> None:
    console.print()
    endings = {
        "complete": "complete",
        "interrupted": "interrupted; what follows is what there was by then",
        "bounds": "ended by its bounds before it was complete",
        "failed": "failed on the way; what follows is what there was by then",
    }
    console.print(Text(printable(f"{summary.name}: {summary.model} at {summary.url}"), style="bold"))
    is_bad = summary.ended in ("failed", "interrupted")
    ending = endings.get(summary.ended, printable(summary.ended))
    console.print(Text(f"{duration(summary.seconds)}, {ending}", style="bold yellow" if is_bad else ""))


def _print_marks(summary: Summary, console: Console) -> list[str]:
    """What the figures are not, before any of them; returns each kind in capitals."""
    kinds = []
    for kind, style in LOUD.items():
        for mark in summary.marks:
            if mark.kind == kind:
                where = f" in {printable(mark.phase)}" if mark.phase else ""
                console.print()
                console.print(Text.assemble((f"!! {kind.upper()}{where}: ", style), printable(mark.text)))
                kinds.append(kind.upper())
    return list(dict.fromkeys(kinds))


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: its head, its cells, and its rank, by which it stays where room is scarce (0: first)."""

    head: str
    cells: Sequence[str]
    rank: int = 0
    is_figure: bool = True

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(map(cell_len, (self.head, *self.cells)))


def fitted(columns: Sequence[Column], width: int, last_style: str = "") -> Text:
    """A table no wider than `width` in which no figure is cut short: columns of higher rank are left out first.

    Columns that are no figures give way down to 12 cells each. `last_style` is that of the last row. Laid out here,
    since rich's own table takes 16 ms for ten tenants, and the live view draws one four times a second.
    """
    names = [each for each in columns if not each.is_figure]
    room = width + GAP - sum(min(each.width, LEAST_NAME) + GAP for each in names)
    figures = []
    for each in sorted((each for each in columns if each.is_figure), key=lambda each: each.rank):
        room -= each.width + GAP
        if room < 0:
            room += each.width + GAP
            break
        figures.append(each)
    shown = []
    for each in columns:
        if not each.is_figure:
            least = min(each.width, LEAST_NAME)
            size = min(each.width, MOST_NAME, least + max(room, 0))
            room -= size - least
            shown.append([_cut(cell, size) for cell in (each.head, *each.cells)])
        elif each in figures:
            shown.append([" " * (each.width - cell_len(cell)) + cell for cell in (each.head, *each.cells)])
    rows = [(" " * GAP).join(cells).rstrip() for cells in zip(*shown, strict=True)]
    styles = ["dim", *[""] * (len(rows) - 2), last_style]
    parts = [(row, style) for row, style in zip(rows, styles, strict=False)]
    return Text("\n", no_wrap=True, overflow="ellipsis").join(Text(*part) for part in parts)


def _cut(text: str, size: int) -> str:
    """To exactly `size` cells."""
    return set_cell_size(text, size) if cell_len(text) <= size else set_cell_size(text, size - 1) + "…"


Figure = Callable[[Results], str]

FIGURES: Final[tuple[tuple[str, int, Figure], ...]] = (
    ("sent", 8, lambda of: count(of.sent)),
    ("done", 0, lambda of: count(of.done)),
    ("failed", 1, lambda of: count(of.failed)),
    ("good", 9, lambda of: share(part_of(of.good, of.done))),
    ("tokens/s", 4, lambda of: number(of.tokens_per_second)),
    ("TTFT p50", 2, lambda of: duration(of.ttft.p50)),
    ("p99", 3, lambda of: duration(of.ttft.p99)),
    ("ITL p50", 5, lambda of: duration(of.itl.p50)),
    ("p99", 6, lambda of: duration(of.itl.p99)),
    ("TPOT p50", 11, lambda of: duration(of.tpot.p50)),
    ("E2E p50", 7, lambda of: duration(of.e2e.p50)),
    ("p99", 10, lambda of: duration(of.e2e.p99)),
)


def _print_phase(phase: PhaseResults, console: Console, has_goal: bool) -> None:
    console.print()
    drained = phase.seconds - phase.load_seconds
    ends = f", {duration(drained)} more for streams to end" if drained >= 0.1 else ""
    console.print(Text(f"{printable(phase.name)}  {duration(phase.load_seconds)} of load{ends}", style="bold"))
    has_several = len(phase.tenants) > 1
    shown = phase.tenants[:MOST_TENANTS]
    names = [printable(results.name) for results in shown]
    rows = [*shown, phase.all] if has_several else shown
    if has_several:
        names.append("all" if len(shown) == len(phase.tenants) else f"all {len(phase.tenants)}")
    columns = [Column("tenant", names, is_figure=False)]
    columns += [
        Column(name, [figure(results) for results in rows], rank)
        for name, rank, figure in FIGURES
        if has_goal or name != "good"
    ]
    console.print(fitted(columns, console.width, "bold" if has_several else ""))
    for results in shown:
        if fate := _fate(results):
            _say(console, printable(results.name), fate)
    if has_several and phase.jain_tokens is not None:
        served = f", {phase.jain_served:.3f} of the share served" if phase.jain_served is not None else ""
        _say(console, "fairness", f"Jain's index {phase.jain_tokens:.3f} of tokens a second{served}")
    if has_goal and phase.all.done:
        good = f"{number(phase.all.good_per_second)} a second, {share(part_of(phase.all.good, phase.all.done))}"
        _say(console, "goodput", f"{good} of the calls that were done met every objective")
    if phase.server is not None:
        _say(console, "server", _server(phase.server))


def _fate(results: Results) -> str:
    """What became of the calls that were not done, and how long the client held calls back; empty where all is well."""
    parts = [f"{count(many)} × {printable(code)}" for code, many in list(results.codes.items())[:MOST_CODES]]
    if len(results.codes) > MOST_CODES:
        rest = sum(list(results.codes.values())[MOST_CODES:])
        parts.append(f"{count(rest)} × {len(results.codes) - MOST_CODES} other codes")
    told = (
        (results.cancelled, "left on purpose"),
        (results.never_sent, "never sent"),
        (results.clipped, "clipped"),
        (results.skipped, "skipped as too long"),
    )
    parts += [f"{count(many)} {what}" for many, what in told if many]
    wait = results.client_wait.p99 or results.client_wait.greatest
    if wait is not None and wait > 0.005:
        parts.append(f"held back by the client {duration(wait)} (p99), which TTFT and E2E include")
    return " · ".join(parts)


def _server(cost: ServerCost) -> str:
    parts = [f"{cost.core:.2f} core"]
    if cost.us_a_chunk is not None:
        parts.append(f"{duration(cost.us_a_chunk / 1e6)}/chunk")
    if cost.us_a_request is not None:
        parts.append(f"{duration(cost.us_a_request / 1e6)}/request")
    first, last, most = (size / MIB for size in (cost.rss_first_bytes, cost.rss_last_bytes, cost.rss_most_bytes))
    peak = f" (most {most:,.0f})" if most > 1.05 * max(first, last) else ""
    return f"{' · '.join(parts)} · RSS {first:,.0f} → {last:,.0f} MiB{peak}"


def _print_isolation(isolation: Sequence[Isolation], console: Console) -> None:
    if not isolation:
        return
    console.print()
    console.print(Text("TTFT beside others, as a multiple of TTFT alone", style="bold"))
    columns = [
        Column("tenant", [printable(each.tenant) for each in isolation], is_figure=False),
        Column("in", [printable(each.phase) for each in isolation], is_figure=False),
        Column("alone in", [printable(each.alone) for each in isolation], is_figure=False),
        Column("calls", [count(each.calls) for each in isolation], 4),
        Column("alone", [count(each.calls_alone) for each in isolation], 5),
        Column("p50", [ratio(each.p50) for each in isolation]),
        Column("95 %", [_interval(each.p50_interval) for each in isolation], 3),
        Column("p99", [ratio(each.p99) for each in isolation], 1),
        Column("95 %", [_interval(each.p99_interval) for each in isolation], 2),
    ]
    console.print(fitted(columns, console.width))


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{number(interval[0])}–{number(interval[1])}"


def _print_sweep(sweep: SweepResults, console: Console) -> None:
    console.print()
    what = COUNTED_THINGS.get(sweep.of, printable(sweep.of))
    console.print(Text(f"Sweep of {what}", style="bold"))
    steps = sorted(sweep.steps, key=lambda step: step.load)
    columns = [
        Column("load", [number(step.load) for step in steps]),
        Column("kept up", ["no" if step.is_saturated else "yes" for step in steps]),
        Column("done/s", [number(step.done_per_second) for step in steps], 1),
        Column("tokens/s", [number(step.tokens_per_second) for step in steps], 5),
        Column("failed", [count(step.failed) for step in steps], 4),
        Column("TTFT p50", [duration(step.ttft_p50) for step in steps], 2),
        Column("p99", [duration(step.ttft_p99) for step in steps], 3),
        Column("most open", [count(step.open_most) for step in steps], 6),
    ]
    console.print(fitted(columns, console.width))
    for reason, loads in _reasons(steps).items():
        also = f" (also at {', '.join(loads[1:])})" if loads[1:] else ""
        _say(console, f"no at {loads[0]}", reason + also)
    if sweep.saturation is None:
        found = f"not found up to {number(max((step.load for step in sweep.steps), default=None))} {what}"
    else:
        found = f"{number(sweep.saturation)} {what}"
        if sweep.stable is not None and sweep.saturated is not None:
            found += f" (it kept up with {number(sweep.stable)}, and not with {number(sweep.saturated)})"
        if sweep.throughput is not None:
            found += f"; {number(sweep.throughput)} calls a second were done when saturated"
    _say(console, "saturation", found)


def _reasons(steps: Sequence[SweepStep]) -> dict[str, list[str]]:
    """The loads at which the target did not keep up, by why."""
    reasons: dict[str, list[str]] = {}
    for step in steps:
        if step.is_saturated:
            reasons.setdefault(printable(step.reason) or "no reason told", []).append(number(step.load))
    return reasons


def _tool(phases: Sequence[PhaseResults]) -> str:
    """How the tool itself fared, at its worst; empty where nothing is known."""

    def worst(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    strains = [phase.strain for phase in phases]
    timer, sending = worst(each.timer_lag_p99 for each in strains), worst(each.send_lag_p99 for each in strains)
    core, pressure = worst(max(each.core, each.core_most) for each in strains), worst(each.pressure for each in strains)
    parts = [
        f"timer lag p99 {duration(timer)}" if timer is not None else "",
        f"send lag p99 {duration(sending)}" if sending is not None else "",
        f"{core:.2f} of a core at most" if core else "",
        f"pressure {pressure:.0%}" if pressure is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _print_counts(counts: Sequence[Count], console: Console) -> None:
    if not counts:
        return
    console.print()
    console.print(Text("The server's counts beside ours", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    table.add_column("count", overflow="fold")
    for name in ("server", "client", "differs by"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in counts[:MOST_COUNTS]:
        labels = ", ".join(f"{name}={value}" for name, value in each.labels.items())
        table.add_row(
            Text(printable(f"{each.name} {{{labels}}}" if labels else each.name)),
            count(each.server),
            count(each.client),
            _difference(each),
        )
    console.print(table)
    if len(counts) > MOST_COUNTS:
        console.print(Text(f"  and {len(counts) - MOST_COUNTS} more, in the JSON summary"))


def _difference(each: Count) -> Text:
    if each.client is None:
        return Text("")
    difference = each.server - each.client
    if difference == 0:
        return Text("nothing")
    of_it = f" ({share(abs(difference) / abs(each.client))})" if each.client else ""
    sign = "+" if difference > 0 else "−"
    return Text(f"{sign}{count(abs(difference))}{of_it}", style="bold")


def _say(console: Console, label: str, text: str) -> None:
    """A line with its label, wrapped under itself."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, max_width=24, overflow="ellipsis", style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(Text(f"  {label}"), Text(text))
    console.print(grid)


def _mib(size: float, *, signed: bool = False) -> str:
    mib = size / MIB
    sign = "−" if mib < 0 else "+" if signed else ""
    return f"{sign}{abs(mib):,.1f} MiB" if abs(mib) < 100 else f"{sign}{abs(mib):,.0f} MiB"
