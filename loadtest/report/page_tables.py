"""The report's tables, as HTML: what each tenant met in each phase, and what was known of the server and of the tool.

Every figure that a plot shows stands in one of them, or in the plot's own tips.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.report.drawing import escape
from loadtest.report.figures import NOTHING, count, duration, number, part_of, share
from loadtest.report.markup import cell, row, soft, table, words
from loadtest.strain import MOST_CORE, MOST_PRESSURE, MOST_SEND_LAG_SECONDS, MOST_STARVED, MOST_TIMER_LAG_SECONDS
from loadtest.summary import Count, PhaseResults, Results, StrainSummary, SweepResults
from tenancy.units import format_bytes

MOST_CODES = 40  # an error's own code comes from the server, which may send any number of them
MOST_COUNTS = 400
_MOST_TENANTS_NAMED = 8

_CODES = {
    "cut": "the connection ended before the answer did",
    "unfinished": "the stream ended without a finish reason",
    "no_done": "the stream ended without [DONE]",
    "usage_mismatch": "the reported usage does not fit what arrived",
    "timeout": "no end within the time limit",
    "refused_connection": "nobody answered at the address",
    "malformed": "what came is no answer of this kind",
    "stopped": "still open when the phase was ended",
    "error_event": "the server said in mid-stream what was wrong",
    "not_a_stream": "a stream was asked for, and the answer was none",
    "too_large": "the answer was larger than is kept",
    "tls_failed": "no secure connection could be made",
    "no_descriptors": "this process has no file descriptors left",
    "no_ports": "this machine has no local ports left",
}


def phase_table(phase: PhaseResults, *, has_objectives: bool) -> str:
    """What each tenant met in a phase, then all of them; failures by code below."""
    load = f"· {duration(phase.load_seconds)} of load{'' if phase.is_counted else ', not counted'}"
    caption = f"{escape(phase.name)} {soft(load)}"
    has_left = bool(phase.all.cancelled)
    calls = ["due", "done", "failed", *(["left"] if has_left else []), *(["good"] if has_objectives else [])]
    rates = ["done", *(["good"] if has_objectives else []), "tokens"]
    groups = (
        f'<tr class="groups"><th></th><th colspan="{len(calls)}">calls</th><th colspan="{len(rates)}">a second</th>'
        '<th></th><th colspan="2">TTFT</th><th colspan="2">ITL</th><th>TPOT</th><th colspan="2">E2E</th></tr>'
    )
    headings = ["tenant", *calls, *rates, "served", "p50", "p99", "p50", "p99", "p50", "p50", "p99"]
    shown = (has_left, has_objectives)
    rows = [row(escape(results.name), _figures(results, *shown)) for results in phase.tenants]
    if len(phase.tenants) > 1:
        rows.append(row("all", _figures(phase.all, *shown), "all"))
    return table(caption, headings, rows, groups) + _below(phase) + codes_table(phase)


def codes_table(phase: PhaseResults) -> str:
    """Failures by code, most frequent first; empty where nothing failed."""
    codes = sorted(phase.all.codes.items(), key=lambda item: -item[1])
    if not codes:
        return ""
    rows = []
    for code, calls in codes[:MOST_CODES]:
        whose = sorted(
            ((results.codes[code], results.name) for results in phase.tenants if code in results.codes), reverse=True
        )
        named = [f"{name} {count(number_of)}" for number_of, name in whose[:_MOST_TENANTS_NAMED]]
        if len(whose) > _MOST_TENANTS_NAMED:
            named.append(f"and {len(whose) - _MOST_TENANTS_NAMED} more")
        told = [cell(count(calls)), cell(_meaning(code), "words"), cell(", ".join(named), "words")]
        rows.append(row(f"<code>{escape(code)}</code>", told))
    if left_out := codes[MOST_CODES:]:
        rows.append(row(f"{len(left_out)} other codes", [cell(count(sum(calls for _, calls in left_out)))]))
    headings = ["code", "calls", words("meaning"), words("by tenant")]
    return table(f"Failures in {escape(phase.name)}", headings, rows)


def sweep_table(sweep: SweepResults) -> str:
    """Each load of a sweep, in the order of loads."""
    headings = ["load", "done/s", "tokens/s", "failed", "TTFT p50", "TTFT p99", "TTFT slope", "at least"]
    headings += ["open slope", "at least", "most open", words("kept up?")]
    rows = []
    for step in sorted(sweep.steps, key=lambda step: step.load):
        told = [number(step.done_per_second), number(step.tokens_per_second), count(step.failed)]
        told += [duration(step.ttft_p50), duration(step.ttft_p99)]
        told += [_slope(step.ttft_slope, "s/s"), _slope(step.ttft_slope_low, "s/s")]
        told += [_slope(step.open_slope, "/s"), _slope(step.open_slope_low, "/s"), count(step.open_most)]
        verdict = f"no: {step.reason}" if step.is_saturated else "yes"
        rows.append(row(number(step.load), [*map(cell, told), cell(verdict, "words")]))
    return table("Steps of the sweep", headings, rows)


def server_table(phases: Sequence[PhaseResults]) -> str:
    """What the watched process used in each phase; empty where none was watched."""
    headings = ["phase", "CPU", "of a core", "CPU a chunk", "CPU a request", "RSS first", "last", "most"]
    rows, watched = [], ""
    for phase in phases:
        if (cost := phase.server) is not None:
            watched = f"Process {cost.pid} and its children: {cost.command}"
            told = [duration(cost.cpu_seconds), share(cost.core), _micro(cost.us_a_chunk), _micro(cost.us_a_request)]
            told += [format_bytes(size) for size in (cost.rss_first_bytes, cost.rss_last_bytes, cost.rss_most_bytes)]
            rows.append(row(escape(phase.name), map(cell, told)))
    return table(escape(watched), headings, rows) if rows else ""


def counts_table(counts: Sequence[Count]) -> str:
    """The server's own counts beside the client's; what differs is said in words and stands out."""
    headings = ["count", "server", "client", "difference", words("from")]
    rows = []
    for entry in counts[:MOST_COUNTS]:
        labels = ", ".join(f"{key}={value}" for key, value in entry.labels.items())
        css, difference = "", NOTHING
        if entry.client is not None:
            differs = entry.server - entry.client
            part = part_of(abs(differs), max(abs(entry.server), abs(entry.client)))
            css, difference = ("over", f"{differs:+,.10g} ({share(part)})") if differs else ("", "none")
        told = [cell(count(entry.server)), cell(count(entry.client)), cell(difference, css)]
        name = f"<code>{escape(entry.name)}</code> {soft(labels)}"
        rows.append(row(name, [*told, cell(entry.source, "words")]))
    more = len(counts) - MOST_COUNTS
    note = f'<p class="below">{count(more)} more stand in the JSON summary.</p>' if more > 0 else ""
    return table("Counts of both sides over the run", headings, rows) + note


def strain_table(phases: Sequence[PhaseResults]) -> str:
    """How the tool fared in each phase; what is over its limit stands out."""
    headings = [
        "phase",
        f"timer late, p99<br>(limit {MOST_TIMER_LAG_SECONDS * 1000:g} ms)",
        f"sent late, p99<br>(limit {MOST_SEND_LAG_SECONDS * 1000:g} ms)",
        f"of a core<br>(limit {MOST_CORE * 100:g} %)",
        f"waited for it<br>(limit {MOST_STARVED * 100:g} %)",
        f"CPU pressure<br>(limit {MOST_PRESSURE * 100:g} %)",
        "memory",
        "stood still",
        "calls lost",
    ]
    return table("The tool, phase by phase", headings, [_strain_row(phase.name, phase.strain) for phase in phases])


def _figures(results: Results, has_left: bool, has_objectives: bool) -> list[str]:
    due = results.scheduled - results.cancelled
    times = [results.ttft.p50, results.ttft.p99, results.itl.p50, results.itl.p99, results.tpot.p50]
    times += [results.e2e.p50, results.e2e.p99]
    told = [
        count(results.scheduled),
        count(results.done),
        count(results.failed),
        *([count(results.cancelled)] if has_left else []),
        *([share(part_of(results.good, due))] if has_objectives else []),
        number(results.done_per_second),
        *([number(results.good_per_second)] if has_objectives else []),
        number(results.tokens_per_second),
        share(results.share_served),
        *map(duration, times),
    ]
    return list(map(cell, told))


def _below(phase: PhaseResults) -> str:
    """What does not fit the columns, in a sentence each, where there is something to say."""
    everyone, said = phase.all, []
    if everyone.refused:
        said.append(f"{count(everyone.refused)} of the failed were refused (429 or 503)")
    if everyone.never_sent:
        said.append(f"{count(everyone.never_sent)} calls that were due were never sent")
    if everyone.clipped:
        said.append(f"{count(everyone.clipped)} calls of the trace were clipped to the context")
    if everyone.skipped:
        said.append(f"{count(everyone.skipped)} calls of the trace were skipped as too long")
    if len(phase.tenants) > 1 and phase.jain_tokens is not None:
        served = f", {phase.jain_served:.3f} of the share served" if phase.jain_served is not None else ""
        said.append(f"Jain's fairness index {phase.jain_tokens:.3f} of tokens a second{served}")
    return f'<p class="below">{escape("; ".join(said))}.</p>' if said else ""


def _meaning(code: str) -> str:
    status, _, _ = code.partition(" ")
    if status == "error_event":
        return "an error came within the stream"
    if status in ("429", "503"):
        return "refused by the server"
    if len(status) == 3 and status.isdecimal():
        return f"answered with status {status}"
    return _CODES.get(code, "")


def _strain_row(name: str, strain: StrainSummary) -> str:
    stood = ", ".join(f"{duration(length)} at {number(at)} s" for at, length in strain.stalls[:5])
    if len(strain.stalls) > 5:
        stood += f", {len(strain.stalls) - 5} more"
    told = [
        (duration(strain.timer_lag_p99), (strain.timer_lag_p99 or 0) > MOST_TIMER_LAG_SECONDS),
        (duration(strain.send_lag_p99), (strain.send_lag_p99 or 0) > MOST_SEND_LAG_SECONDS),
        (share(strain.core), strain.core > MOST_CORE),
        (share(strain.starved), strain.starved > MOST_STARVED),
        (share(strain.pressure), (strain.pressure or 0) > MOST_PRESSURE),
        (format_bytes(strain.rss_bytes) if strain.rss_bytes else NOTHING, False),
        (stood or "never", bool(stood)),
        (count(strain.lost_calls), bool(strain.lost_calls)),
    ]
    cells = [cell(f"{figure} !", "over") if is_over else cell(figure) for figure, is_over in told]
    return row(escape(name), cells)


def _slope(value: float, unit: str) -> str:
    return f"{value:+.3g} {unit}"


def _micro(us: float | None) -> str:
    return duration(us / 1e6) if us is not None else NOTHING
