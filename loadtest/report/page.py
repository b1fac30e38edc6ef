"""The report of a run as one HTML file that anybody can open, keep and send: nothing in it comes from anywhere else.

What stands in the way of the figures comes first, then the figures, then where they come from. A section is there only
where it has something to say. Whatever came from outside (names, codes, addresses, the scenario) is escaped as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import msgspec
import yaml

from loadtest.report.drawing import Sheet, escape
from loadtest.report.figures import NOTHING, number
from loadtest.report.markup import card, figure, folded, section
from loadtest.report.page_opening import glance, head, marks, objectives
from loadtest.report.page_style import SCRIPT, policy, style
from loadtest.report.page_tables import counts_table, phase_table, server_table, strain_table, sweep_table
from loadtest.report.plots import Facet, isolation_plot, itl_plots, sweep_plots, ttft_plots
from loadtest.report.series import Series, series_of
from loadtest.report.time_plots import rss_plot, time_line
from loadtest.summary import Growth, PhaseResults, Summary
from tenancy.units import format_bytes

MOST_FACETS = 6  # phases drawn beside each other; all are in the tables
MOST_OPEN_TABLES = 4

_TERMS = (
    (
        "TTFT, time to first token",
        "From the moment at which a call was due by its schedule, not from when it was sent, to the first event with"
        " text, reasoning or a tool call. A target that stalls cannot hide the calls that waited meanwhile. Closed-loop"
        " users, who call again only after an answer, never come to wait in that way: their figures are blind to it.",
    ),
    ("ITL, inter-token latency", "Every gap between two events with text of one call, those of all calls pooled."),
    ("TPOT, time per output token", "(E2E − TTFT) ÷ (tokens − 1) of each call with two tokens or more."),
    ("E2E, end to end", "From the moment at which a call was due to the end of its answer."),
    (
        "Done",
        "A call whose answer was whole: a stream with a finish reason, [DONE], and a reported usage that fits what"
        " arrived. All else has failed, and is in no latency. A call that the tester left on purpose counts for TTFT"
        " and ITL only.",
    ),
    ("Good, goodput", "Done, and within every objective given. The share is of all calls due and not left on purpose."),
    ("Served", "Tokens received, over tokens asked for."),
    ("Jain's index", "(Σx)² ÷ (n · Σx²) over n tenants: 1 where all have the same, 1/n where one has everything."),
    (
        "p50, p99",
        "Half, or 99 %, of all were at least as fast. No p99 is told of fewer than 100, no p99.9 of fewer than 1,000.",
    ),
    ("Precision", "Latencies are counted in logarithmic buckets: what is read back is at most 0.8 % off."),
    (
        "Client-bound, machine-bound, censored",
        "The load tester was late or short of CPU; the whole machine was; calls had not ended, or were never sent, when"
        " a phase did, so that the slowest are missing from its latencies.",
    ),
)


def page(summary: Summary) -> str:
    """The whole report. Its size grows with tenants × phases, not with calls: some hundred kilobytes."""
    lines = series_of(summary)
    counted = [phase for phase in summary.phases if phase.is_counted]
    body = "".join(
        (
            head(summary),
            marks(summary, counted),
            glance(summary, counted),
            _legend(lines),
            _distributions(summary, counted, lines),
            _time_line(summary, lines),
            _isolation(summary, lines),
            _sweep(summary),
            _phases(summary),
            _server(summary),
            _strain(summary),
            _scenario(summary),
            _how_to_read(),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy())}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(summary.name)} · load test of {escape(summary.model)}</title>\n"
        f"<style>{style()}</style>\n</head>\n<body>\n<main>{body}</main>\n"
        f'<div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def _facets(facets: Sequence[Facet]) -> str:
    return "".join(f"<div><h4>{escape(facet.title)}</h4>{facet.svg}</div>" for facet in facets)


# ---- the plots -------------------------------------------------------------------------------------------------------


def _legend(lines: Sequence[Series]) -> str:
    """Each line's looks and name: a button that hides it in all plots. None is needed for one tenant."""
    if len(lines) < 2:
        return ""
    buttons = []
    for series in lines:
        swatch = Sheet(28, 12, "")
        swatch.line(f"line {series.css}", [(0, 6), (28, 6)])
        swatch.mark(f"shape {series.css}", 14, 6, series.shape, 3.4)
        drawn = str(swatch).replace("<svg ", '<svg class="swatch" aria-hidden="true" ', 1)
        label, named = escape(_flat(series.label)), escape(", ".join(series.tenants))
        buttons.append(
            f'<button type="button" aria-pressed="true" data-css="{series.css}" data-label="{label}" title="{named}">'
            f"{drawn}<span>{label}</span></button>"
        )
    told = f'<span class="soft">Tenants</span>{"".join(buttons)}'
    return f'<div class="legend" role="group" aria-label="tenants: press to hide or show">{told}</div>'


def _flat(text: str) -> str:
    """As tips write it, so that the script finds a row's tenant."""
    return " ".join(text.split())


def _distributions(summary: Summary, counted: Sequence[PhaseResults], lines: Sequence[Series]) -> str:
    phases = _phases_drawn(summary, counted)
    by_name = {phase.name: phase for phase in counted}
    alone = {entry.tenant: by_name[entry.alone] for entry in summary.isolation if entry.alone in by_name}
    kept = objectives(summary)
    first = ttft_plots(phases, lines, alone, kept.get("ttft"))
    gaps = itl_plots(phases, lines, alone, kept.get("itl"))
    css = "facets three" if len(phases) > 2 else "facets"
    ghosts = " Dotted: the same tenant alone." if alone else ""
    is_part = len(phases) < len(counted)
    left_out = f" {len(phases)} of {len(counted)} phases are drawn; the tables have all." if is_part else ""
    if closed := _closed_loop(summary):
        left_out += f" Closed loop, and so blind to what waits while the target stalls: {escape(', '.join(closed))}."
    lead = (
        "At p99, 99 % were at least as fast as the line. Each further nine has the same room, so that the tail is seen;"
        f" both axes are logarithmic, and a line ends where its calls are too few to tell.{ghosts}{left_out}"
    )
    drawn = []
    for title, caption, facets in (
        ("How long until the first token", "From the time a call was due to its first token.", first),
        ("How long between tokens", "Every gap between a call's tokens, all calls pooled.", gaps),
    ):
        if facets:
            body = _facets(facets) if len(phases) > 1 else f"<div>{facets[0].svg}</div>"
            drawn.append(figure(title, caption, body, css))
    pair = f'<div class="pair">{"".join(drawn)}</div>' if len(phases) == 1 and drawn else ""
    return section("Latency", lead, *([pair] if pair else drawn))


def _closed_loop(summary: Summary) -> list[str]:
    """The tenants that call again only after an answer."""
    asked = summary.scenario.get("tenants")
    tenants = [tenant for tenant in asked if isinstance(tenant, dict)] if isinstance(asked, list | tuple) else []
    arrivals = [(str(tenant.get("name", "")), tenant.get("arrivals")) for tenant in tenants]
    return [name for name, how in arrivals if isinstance(how, dict) and how.get("kind") == "closed"]


def _phases_drawn(summary: Summary, counted: Sequence[PhaseResults]) -> list[PhaseResults]:
    """All that are counted, as far as they fit; of a sweep the first, the last that was kept up with, the saturated."""
    held = [phase for phase in counted if phase.all.ttft.count or phase.all.itl.count]
    if (sweep := summary.sweep) is not None:
        loads = [min((step.load for step in sweep.steps), default=None), sweep.stable, sweep.saturated]
        # What was found lies between loads that were tried, where arrivals are drawn.
        names = [
            min(sweep.steps, key=lambda step: abs(step.load - load)).phase
            for load in loads
            if load is not None and sweep.steps
        ]
        told = [phase for name in dict.fromkeys(names) for phase in held if phase.name == name]
        held = told or held
    return held[:MOST_FACETS]


def _time_line(summary: Summary, lines: Sequence[Series]) -> str:
    drawn = time_line(summary, lines)
    caption = (
        "Thick line: the median first-token time of the calls due then. The band reaches up to p99, or to the slowest"
        " where they are mostly fewer than 100. Red bars above a strip: failed calls, taller for a larger share."
    )
    return section("Over time", "", figure("What happened when", caption, drawn, "wide")) if drawn else ""


def _isolation(summary: Summary, lines: Sequence[Series]) -> str:
    if not summary.isolation:
        return ""
    caption = (
        "First-token times of a phase over those of the phase in which the tenant was alone; at ×1 neighbours cost"
        " nothing. Hollow: p50; filled: p99; whiskers: 95 % confidence. One that reaches ×1 tells of no difference."
    )
    plot = isolation_plot(summary.isolation, lines)
    return section("Isolation between tenants", "", figure("What neighbours cost", caption, plot, "wide"))


def _sweep(summary: Summary) -> str:
    if (sweep := summary.sweep) is None:
        return ""
    unit = "calls a second" if sweep.of == "rate" else "users"
    if sweep.saturation is None:
        lead = f"No load was found that the target does not keep up with, up to the greatest one tried ({unit})."
    else:
        lead = f"The target keeps up to {number(sweep.saturation)} {unit}; beyond, calls pile up."
    caption = (
        "Crosses: loads that were not kept up with. Shaded: between the last kept up with and the first that was not."
    )
    plots = sweep_plots(sweep)
    drawn = figure("What it does under rising load", caption, _facets(plots), "facets") if plots else ""
    return section("Sweep", escape(lead), drawn, card(sweep_table(sweep)))


# ---- the tables ------------------------------------------------------------------------------------------------------


def _phases(summary: Summary) -> str:
    has_objectives = bool(objectives(summary))
    counted = [phase for phase in summary.phases if phase.is_counted]
    tables = [card(phase_table(phase, has_objectives=has_objectives)) for phase in counted]
    rest = [card(phase_table(phase, has_objectives=has_objectives)) for phase in summary.phases if not phase.is_counted]
    open_tables = 0 if summary.sweep else MOST_OPEN_TABLES  # a sweep's steps have a table of their own
    shown, more = tables[:open_tables], tables[open_tables:]
    parts = shown + ([folded(f"{len(more)} {'more ' if shown else ''}phases", "".join(more))] if more else [])
    parts += [folded("Warm-up, not counted", "".join(rest))] if rest else []
    lead = "Latencies are those of calls that were done. “Left”: calls that the tester cancelled on purpose."
    return section("Phase by phase", lead, *parts)


def _server(summary: Summary) -> str:
    watched = server_table(summary.phases)
    counts = counts_table(summary.counts) if summary.counts else ""
    return section("The server beside", "", card(watched), _growth(summary.growth), card(counts))


def _growth(growth: Growth | None) -> str:
    if growth is None:
        return ""
    told = f"{_size(growth.bytes_per_hour)} an hour (95 % confidence: {_size(growth.low)} to {_size(growth.high)})"
    if growth.low <= 0 <= growth.high:
        title = "Its memory: no growth that could be told from noise"
    else:
        verb = "grows" if growth.bytes_per_hour > 0 else "shrinks"
        title = f"Its memory {verb} by {_size(abs(growth.bytes_per_hour))} an hour"
    plot = rss_plot(growth)
    return figure(title, escape(f"Resident memory over the run, with its slope: {told}."), plot, "wide")


def _size(size: float) -> str:
    return format_bytes(round(size)) if isfinite(size) else NOTHING


def _strain(summary: Summary) -> str:
    if not summary.phases:
        return ""
    lead = (
        "How late its 20-ms timer and its sendings were, how much of a core its streams took, and how long anything on"
        " this machine waited for one. Over a limit (marked !), figures are partly the load tester's own."
    )
    return section("How the load tester itself fared", lead, card(strain_table(summary.phases)))


def _scenario(summary: Summary) -> str:
    if not summary.scenario:
        return ""
    asked = _as_written(msgspec.to_builtins(summary.scenario))
    told = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return section("What was asked", "", card(f"<pre>{escape(told)}</pre>"))


def _as_written(value: object) -> object:
    """As people would write it: bounds as a pair, what is not set or empty left out."""
    if isinstance(value, dict):
        if set(value) == {"low", "high"}:
            low, high = value["low"], value["high"]
            return low if low == high else [low, high]
        return {key: _as_written(inner) for key, inner in value.items() if inner not in (None, {}, [], ())}
    return [_as_written(inner) for inner in value] if isinstance(value, list | tuple) else value


def _how_to_read() -> str:
    told = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in _TERMS)
    keys = "Plots tell their values under pointer or finger; with the keyboard, tab to one and use the arrow keys."
    return section("How to read this", keys, card(f'<dl class="how">{told}</dl>'))
