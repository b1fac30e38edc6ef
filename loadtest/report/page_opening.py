"""How the report opens: what was run, what stands in the way of its figures, and the figures that everybody asks for.

A run of one phase shows them large. A run of a few shows them as bars, phase by phase, since they are there to be held
against each other; a sweep shows what it found. Phases of different loads are never put together into one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from loadtest.report.drawing import escape
from loadtest.report.figures import count, duration, number, part_of, ratio, share
from loadtest.report.markup import section
from loadtest.summary import Isolation, Mark, PhaseResults, Summary, SweepResults

MOST_BARS = 4
MOST_WAIT_SECONDS = 0.005  # of a call before its sending, at the p99, of which nothing is said
MOST_SAID = 6  # marks of one kind before the rest are folded away

_ENDINGS = {
    "complete": "ran to its end",
    "interrupted": "was stopped by hand",
    "bounds": "ended at its bounds",
    "failed": "failed",
}
_KINDS = {
    "client-bound": ("bad", "Client-bound: the load tester itself was the limit"),
    "machine-bound": ("bad", "Machine-bound: this machine had too little CPU"),
    "censored": ("fair", "Censored: the slowest calls are missing from the latencies"),
    "note": ("note", "To be noted"),
}
_SIGNS = {"bad": "✖", "fair": "▲", "good": "✔"}  # a sign as well as a colour


class _Told(NamedTuple):
    """One measure of one phase: for a bar, as a figure, and in what context."""

    value: float | None
    figure: str
    context: str = ""


def objectives(summary: Summary) -> dict[str, float]:
    """The objectives that were given, in seconds."""
    asked = summary.scenario.get("objectives")
    told = asked if isinstance(asked, dict) else {}
    return {key: float(value) for key, value in told.items() if isinstance(value, int | float)}


def head(summary: Summary) -> str:
    """The title, and the facts of the run."""
    ending = f"{summary.ended} (it {_ENDINGS[summary.ended]})" if summary.ended in _ENDINGS else summary.ended
    target = summary.scenario.get("target")
    also = target.get("also") if isinstance(target, dict) else None
    more = f" and {len(also)} more in turn" if isinstance(also, list | tuple) and also else ""
    facts = [
        ("target", f"<code>{escape(summary.url)}</code>{more}"),
        ("model", escape(summary.model)),
        ("started", escape(summary.started.replace("T", " ", 1))),
        ("took", duration(summary.seconds)),
        ("ended", escape(ending)),
        ("calls done", count(sum(phase.all.done for phase in summary.phases if phase.is_counted))),
    ]
    told = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f'<header><p class="kicker">load test</p><h1>{escape(summary.name)}</h1><dl class="facts">{told}</dl></header>'
    )


def marks(summary: Summary, counted: Sequence[PhaseResults]) -> str:
    """Whatever makes the figures less than the target's own, worst first; else what makes one believe them."""
    said: list[str] = []
    if summary.ended != "complete":
        ending = _ENDINGS.get(summary.ended, f"ended: {summary.ended}")
        text = f"What follows tells of the {duration(summary.seconds)} that it ran, and of no more."
        said.append(_mark("bad" if summary.ended == "failed" else "fair", f"The run {ending}", f"<p>{text}</p>"))
    is_empty = not any(phase.all.done for phase in counted)
    if is_empty:
        text = "There is nothing to measure. The failures by code below say why."
        said.append(_mark("bad", "No call was done", f"<p>{text}</p>"))
    for kind in (*_KINDS, *sorted({mark.kind for mark in summary.marks} - set(_KINDS))):
        css, title = _KINDS.get(kind, ("note", kind))
        if told := [mark for mark in summary.marks if mark.kind == kind]:
            said.append(_mark(css, title, _mark_list(told)))
    is_bound = any(mark.kind in ("client-bound", "machine-bound") for mark in summary.marks)
    if not is_bound and not is_empty:
        waits = [wait for phase in counted if (wait := _wait(phase)) is not None]
        if (longest := max(waits, default=0.0)) > MOST_WAIT_SECONDS:
            said.append(_mark("fair", "Calls waited before they were sent", f"<p>{_held_back(longest)}</p>"))
        else:
            said.append(_mark("good", "The load tester kept up", f"<p>{_kept_up(counted)}</p>"))
    return f'<div class="marks" role="list">{"".join(said)}</div>' if said else ""


def glance(summary: Summary, counted: Sequence[PhaseResults]) -> str:
    """The headline figures."""
    cards = _sweep_cards(summary.sweep) if summary.sweep else ""
    cards += "".join(_isolation_card(entry) for entry in summary.isolation[:MOST_BARS])
    lead = ""
    if 0 < len(counted) <= MOST_BARS:
        measures = _measures(counted, has_objectives=bool(objectives(summary)))
        cards += "".join(_measure_card(title, counted, values) for title, values in measures.items())
        if any(len(phase.tenants) > 1 for phase in counted):
            lead = "All tenants of a phase together; each by itself is in the tables below."
    return section("At a glance", lead, f'<div class="cards">{cards}</div>' if cards else "")


def _mark(css: str, title: str, body: str) -> str:
    sign = f'<span aria-hidden="true">{_SIGNS.get(css, "▪")}</span>'
    return f'<div class="mark {css}" role="listitem"><h3>{sign} {escape(title)}</h3>{body}</div>'


def _mark_list(told: Sequence[Mark]) -> str:
    items = []
    for mark in told:
        where = f"In <b>{escape(mark.phase)}</b>: " if mark.phase else ""
        items.append(f"{where}{escape(_sentence(mark.text, is_first=not where))}")
    if len(items) == 1:
        return f"<p>{items[0]}</p>"
    listed = [f"<li>{item}</li>" for item in items]
    shown = f"<ul>{''.join(listed[:MOST_SAID])}</ul>"
    if more := listed[MOST_SAID:]:
        shown += f"<details><summary>{len(more)} more</summary><ul>{''.join(more)}</ul></details>"
    return shown


def _sentence(text: str, *, is_first: bool) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:] if is_first else text
    return f"{text}." if text and not text.endswith((".", "!", "?")) else text


def _wait(phase: PhaseResults) -> float | None:
    return phase.all.client_wait.p99 or phase.all.client_wait.greatest


def _held_back(longest: float) -> str:
    return (
        f"Up to {duration(longest)} at p99, for a connection or for the limit of open streams; the load tester itself"
        " was not late. That wait is part of TTFT and E2E, and what the limit made of it is not the target’s."
    )


def _kept_up(counted: Sequence[PhaseResults]) -> str:
    """The worst of all counted phases."""
    strains = [phase.strain for phase in counted]
    send = max((strain.send_lag_p99 for strain in strains if strain.send_lag_p99 is not None), default=None)
    timer = max((strain.timer_lag_p99 for strain in strains if strain.timer_lag_p99 is not None), default=None)
    told = [f"99 % of calls left within {duration(send)} of their time"] if send is not None else []
    told += [f"its timer was {duration(timer)} late at p99"] if timer is not None else []
    told.append(f"its streams took {share(max(strain.core for strain in strains))} of a core")
    return f"At its worst, {', '.join(told)}: the figures below are the target’s."


def _measures(counted: Sequence[PhaseResults], *, has_objectives: bool) -> dict[str, list[_Told]]:
    everyone = [phase.all for phase in counted]

    def timed(values: Sequence[float | None]) -> list[_Told]:
        return [_Told(value, duration(value), "" if value is not None else "too few to tell") for value in values]

    measures = {
        "Calls done a second": [
            _Told(of.done_per_second, number(of.done_per_second), f"{count(of.done)} done") for of in everyone
        ],
        "Tokens a second": [
            _Told(of.tokens_per_second, number(of.tokens_per_second), f"{count(of.tokens_received)} received")
            for of in everyone
        ],
        "First token, p50 (TTFT)": timed([of.ttft.p50 for of in everyone]),
        "First token, p99 (TTFT)": timed([of.ttft.p99 for of in everyone]),
        "Between tokens, p50 (ITL)": timed([of.itl.p50 for of in everyone]),
        "Between tokens, p99 (ITL)": timed([of.itl.p99 for of in everyone]),
        "Failed calls": [
            _Told(
                float(of.failed),
                count(of.failed),
                f"{share(part_of(of.failed, of.sent))} of {count(of.sent)}"
                + (f", {count(of.refused)} refused" if of.refused else ""),
            )
            for of in everyone
        ],
    }
    if has_objectives:
        goods = [(of, of.scheduled - of.cancelled) for of in everyone]
        measures["Met every objective"] = [
            _Told(part_of(of.good, due), share(part_of(of.good, due)), f"of {count(due)} due and not left")
            for of, due in goods
        ]
    return measures


def _measure_card(title: str, phases: Sequence[PhaseResults], values: Sequence[_Told]) -> str:
    """One measure: large for one phase, as bars for several."""
    if len(values) == 1:
        return _big(title, values[0].figure, "", values[0].context)
    most = max((told.value for told in values if told.value is not None and isfinite(told.value)), default=0.0)
    bars = []
    for phase, told in zip(phases, values, strict=True):
        name = escape(phase.name)
        filled = (told.value or 0) / most * 100 if most else 0
        bars.append(
            f'<span class="name" title="{name}">{name}</span><i style="width:{filled:.0f}%"></i>'
            f'<b title="{escape(told.context)}">{escape(told.figure)}</b>'
        )
    return f'<div class="card"><h3>{escape(title)}</h3><div class="bars">{"".join(bars)}</div></div>'


def _sweep_cards(sweep: SweepResults) -> str:
    unit = "calls a second" if sweep.of == "rate" else "users"
    if sweep.saturation is not None:
        between = f"between {number(sweep.stable)} and {number(sweep.saturated)}"
        cards = [_big("Keeps up to", number(sweep.saturation), unit, between)]
    else:
        most = max((step.load for step in sweep.steps), default=None)
        cards = [_big("Saturation", "not found", "", f"up to {number(most)} {unit}")]
    if sweep.throughput is not None:
        cards.append(_big("Done when saturated", number(sweep.throughput), "calls a second", ""))
    if (stable := next((step for step in sweep.steps if step.load == sweep.stable), None)) is not None:
        at = f"at {number(stable.load)} {unit}"
        cards.append(_big("First token, p50", duration(stable.ttft_p50), "", at))
        cards.append(_big("First token, p99", duration(stable.ttft_p99), "", at))
    return "".join(cards)


def _isolation_card(entry: Isolation) -> str:
    is_p99 = entry.p99 is not None
    middle, interval = (entry.p99, entry.p99_interval) if is_p99 else (entry.p50, entry.p50_interval)
    ends = f"95 % sure of {number(interval[0])} to {number(interval[1])}" if interval else ""
    percentile = f"TTFT {'p99' if is_p99 else 'p50'}" if middle is not None else ""
    return _big(f"{entry.tenant}, {entry.phase} over {entry.alone}", ratio(middle), percentile, ends)


def _big(title: str, figure: str, unit: str, below: str) -> str:
    small = f" <small>{escape(unit)}</small>" if unit else ""
    under = f'<div class="soft">{escape(below)}</div>' if below else ""
    return f'<div class="card"><h3>{escape(title)}</h3><div class="big">{escape(figure)}{small}</div>{under}</div>'
