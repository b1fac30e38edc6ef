"""Two runs of the same load held against each other: what became better, what worse, what is chance. For CI, too.

What must not be compared is named instead: runs in which the tool or the machine was the limit, runs cut short, and
runs of different loads. The target may differ: that is what is compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from rich.console import Console
from rich.text import Text

from loadtest.differences import HIGHER_IS_BETTER, Change, Row, phase_rows, row
from loadtest.report.figures import duration, number, share
from loadtest.report.table import Column, fitted, printable
from loadtest.summary import Summary, SweepResults

LIMITS: Final = ("client-bound", "machine-bound")
MOST_NAMED: Final = 8
MOST_CHANGE: Final = 999.0  # where nothing bounds it
STYLES: Final = {"worse": "red", "better": "green", "unsure": "yellow", "same": "dim"}
NAMES: Final = {
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "itl_p50": "ITL p50",
    "itl_p99": "ITL p99",
    "tpot_p50": "TPOT p50",
    "e2e_p50": "E2E p50",
    "done_per_second": "done/s",
    "good_per_second": "good/s",
    "tokens_per_second": "tokens/s",
    "failed": "failed",
    "saturation": "saturation",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`rows` with a confidence of 95 % each; `unusable` says why they should not be believed, `notes` what to bear in
    mind. `a` and `b` say which runs they are.
    """

    a: str
    b: str
    rows: tuple[Row, ...]
    unusable: tuple[str, ...]
    notes: tuple[str, ...]
    fail_over: float

    @property
    def is_worse(self) -> bool:
        """Whether any figure became worse by more than is let pass, and not by chance."""
        return any(each.is_over for each in self.rows)


def compare(a: Summary, b: Summary, fail_over: float) -> Comparison:
    """Hold `b`, the later run, against `a`. `fail_over` (0.1: a tenth) is how much worse a figure may become.

    Phases and tenants are told by their names. Quantiles of too few calls (20, for a p99 100) are left out.
    """
    rows: list[Row] = []
    objectives = a.scenario.get("objectives") or {}
    has_objectives = any(objectives.values()) and objectives == (b.scenario.get("objectives") or {})
    if a.sweep is not None and b.sweep is not None:
        rows += _sweep_rows(a.sweep, b.sweep, fail_over)
    else:
        after = {phase.name: phase for phase in b.phases if phase.is_counted}
        for phase in a.phases:
            if phase.is_counted and phase.name in after:
                rows += phase_rows(phase, after[phase.name], fail_over, has_objectives=has_objectives)
    return Comparison(_run(a), _run(b), tuple(rows), tuple(_unusable(a, b)), tuple(_notes(a, b)), fail_over)


def print_comparison(comparison: Comparison, console: Console, *, anyway: bool = False) -> None:
    """Print why the runs should not be compared, if so; and the rows, unless that is so and nobody said `anyway`."""
    for name, run in (("A", comparison.a), ("B", comparison.b)):
        console.print(Text(f"{name}  {printable(run)}"))
    for reason in comparison.unusable:
        console.print(Text(f"NOT COMPARABLE: {printable(reason)}", style="bold red"))
    if comparison.unusable and not anyway:
        console.print(Text("Nothing is compared. Run it again where that is mended, or say --anyway."))
        return
    if comparison.unusable:
        console.print(Text("Compared anyway, as asked.", style="bold yellow"))
    by_place: dict[tuple[str, str], list[Row]] = {}
    for each in comparison.rows:
        by_place.setdefault((each.phase, each.tenant), []).append(each)
    for (phase, tenant), rows in by_place.items():
        console.print()
        console.print(Text(printable(f"{tenant} in {phase}" if tenant else phase), style="bold"))
        table = fitted(_columns(rows), console.width)
        for verdict, style in STYLES.items():
            table.highlight_regex(f"(?im)  {verdict}( !)?$", style)
        console.print(table)
    console.print()
    for note in comparison.notes:
        console.print(Text(f"note: {printable(note)}"))
    _print_verdict(comparison, console)


def _columns(rows: list[Row]) -> list[Column]:
    return [
        Column("", [NAMES.get(each.metric, printable(each.metric)) for each in rows], is_figure=False),
        Column("A", [_figure(each.metric, each.a) for each in rows]),
        Column("B", [_figure(each.metric, each.b) for each in rows]),
        Column("change", [_percent(each.change) for each in rows]),
        Column("95 %", [f"{_percent(each.low)} to {_percent(each.high)}" for each in rows], 1),
        Column("", [f"{each.verdict.upper()} !" if each.is_over else each.verdict for each in rows], is_figure=False),
    ]


def _print_verdict(comparison: Comparison, console: Console) -> None:
    over = [each for each in comparison.rows if each.is_over]
    limit = _percent(comparison.fail_over).lstrip("+")
    if not comparison.rows:
        console.print(Text("The two have nothing in common that could be compared.", style="bold yellow"))
        return
    if over:
        names = ", ".join(dict.fromkeys(NAMES.get(each.metric, each.metric) for each in over))
        console.print(Text(f"Worse by more than {limit} (!), and not by chance: {names}", style="bold red"))
    else:
        console.print(Text(f"Nothing became worse by more than {limit} that chance would not explain.", style="bold"))
    each_row = f"Each of the {len(comparison.rows)} rows" if len(comparison.rows) > 1 else "The row"
    console.print(
        Text(
            f"{each_row} has a confidence of 95 %: if nothing had changed, one in twenty would still look as if it"
            " had.",
            style="dim",
        )
    )


def _figure(metric: str, value: float) -> str:
    if metric == "failed":
        return share(value)
    return number(value) if metric in HIGHER_IS_BETTER else duration(value)


def _percent(part: float) -> str:
    """`+3.1 %`, `−12 %`, `×48`: a relative change, in no more digits than it deserves."""
    if part >= 9.995:
        return f"×{number(part + 1)}"
    digits = 1 if abs(part) < 0.0995 else 0
    text = f"{abs(part):.{digits}%}".replace("%", " %")
    return text if not float(f"{part * 100:.{digits}f}") else ("+" if part > 0 else "−") + text


def _sweep_rows(a: SweepResults, b: SweepResults, fail_over: float) -> Iterator[Row]:
    """The saturation, between whose brackets' far ends the change lies. Where only one of the two was found, the other
    lies beyond what was tried: that much is known of the change.
    """
    if a.of == b.of and a.steps and b.steps and (a.saturation or b.saturation):
        one, other = _saturation(a), _saturation(b)
        low = other.low / one.high - 1
        high = other.high / one.low - 1 if one.low > 0 else math.inf
        draws = np.linspace(low, min(high, MOST_CHANGE), 1001)
        change = Change(one.load, other.load, other.load / one.load - 1, draws)
        yield row("saturation", ("sweep", ""), change, fail_over)


class _Saturation(NamedTuple):
    load: float
    low: float
    high: float


def _saturation(sweep: SweepResults) -> _Saturation:
    """What was found, with its bracket; else the last load that was tried, and all beyond it."""
    if sweep.saturation:
        found = sweep.saturation
        return _Saturation(found, sweep.stable or found, sweep.saturated or found)
    if sweep.saturated is not None:
        return _Saturation(sweep.saturated, 0.0, sweep.saturated)
    tried = max(step.load for step in sweep.steps)
    return _Saturation(tried, tried, math.inf)


def _unusable(a: Summary, b: Summary) -> Iterator[str]:
    for name, run in (("A", a), ("B", b)):
        for mark in run.marks:
            if mark.kind in LIMITS:
                where = f" in {mark.phase}" if mark.phase else ""
                yield f"{name} was {mark.kind}{where}: {mark.text}"
        if run.ended != "complete":
            yield f"{name} did not come to its end: {run.ended}"
    differences = list(_different(_load(a), _load(b), ""))
    for difference in differences[:MOST_NAMED]:
        yield f"the load differs: {difference}"
    if more := differences[MOST_NAMED:]:
        yield f"the load differs in {len(more)} more settings"


def _notes(a: Summary, b: Summary) -> Iterator[str]:
    for name, run in (("A", a), ("B", b)):
        if run.sweep is not None and not run.sweep.saturation:
            yield f"{name}'s saturation was not found: it lies beyond the loads that were tried"
        for mark in run.marks:
            if mark.kind == "censored":
                yield f"{name} is {mark.kind} in {mark.phase}: {mark.text}"
    for what, effect in (("seed", "calls come at other times"), ("objectives", "good calls are not compared")):
        if _plain(a.scenario.get(what)) != _plain(b.scenario.get(what)):
            yield f"the {what} differ{'s' if what == 'seed' else ''}: {effect}"
    missing = {phase.name for phase in a.phases if phase.is_counted} ^ {p.name for p in b.phases if p.is_counted}
    if missing and a.sweep is None and b.sweep is None:
        yield f"only in one of the two: {', '.join(sorted(missing))}"


def _run(run: Summary) -> str:
    return f"{run.name}: {run.model} at {run.url}, {run.started}"


def _load(run: Summary) -> dict[str, Any]:
    """What a run asked of its target, as JSON has it; not where the target is, nor where a trace's file lies."""
    asked = {what: _plain(run.scenario.get(what)) for what in ("tenants", "phases", "trace", "sweep")}
    asked["stream"] = (run.scenario.get("target") or {}).get("stream", True)
    for what in ("tenants", "phases"):
        asked[what] = {str(each.get("name")): each for each in asked[what] or []}
    if asked["trace"]:
        asked["trace"]["file"] = PurePath(str(asked["trace"].get("file"))).name
    return asked


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _different(a: Any, b: Any, path: str) -> Iterator[str]:
    """Where two nested values differ, by path."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _different(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield f"{path} was {_said(a)}, then {_said(b)}"


def _said(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return "missing" if value is None else "there"
    return str(value)
