"""How a run is shown: tables on standard output, JSON in `benchmarks/results`, and the section of the document."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.document import PLOTS, write_section
from benchmarks.side_by_side.figures import (
    EXPLAINED,
    LEAST_ADDED_MS,
    ROWS,
    TARGETS,
    VOID_ADDED_MS,
    Cell,
    Figures,
    Round,
    Row,
)
from benchmarks.side_by_side.gates import (
    DIRECT,
    LITE,
    NGINX,
    NGINX_FILE,
    PEERS,
    PENSTOCK,
    PENSTOCK_FILE,
    Programs,
    settings,
)
from benchmarks.side_by_side.plots import dot_plot

RESULTS_FILE = "side-by-side.json"
BUSY_CORE = 0.8
BUSY_LAG_MS = 10.0
SECTION = "side-by-side"
ROOT = Path(__file__).parent.parent.parent
PLOTTED = {
    "chunk": ("CPU a streamed chunk, µs", ("streams-100 cpu", "streams-400 cpu", "slow-streams cpu")),
    "request": ("CPU a request, µs", ("one-token cpu", "whole cpu", "long-prompt cpu", "refusals cpu")),
    "first-token-p50": (
        "First token, added over going direct, p50, ms",
        ("streams-100 first_p50", "streams-400 first_p50"),
    ),
    "first-token-p99": (
        "First token, added over going direct, p99, ms",
        ("streams-100 first_p99", "streams-400 first_p99"),
    ),
}

Table = list[list[str]]


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run. `compared` counts the answers of each gate that were compared event by event; `busy_before_percent`
    is what other programs used of the machine just before it.
    """

    rounds: Sequence[Round]
    programs: Programs
    compared: dict[str, int]
    seconds: float
    words: Sequence[str]
    busy_before_percent: float = 0.0

    @property
    def figures(self) -> Figures:
        """What the rounds say."""
        return Figures(self.rounds)

    @property
    def gates(self) -> list[str]:
        """All that were measured, Penstock first, the direct way last."""
        seen = {gate for told in self.rounds for _, gate in told}
        return [name for name in (PENSTOCK, *PEERS, LITE, DIRECT) if name in seen]

    @property
    def rows(self) -> list[Row]:
        """The rows that have figures."""
        gates = [name for name in self.gates if name != DIRECT]
        return [row for row in ROWS if any(self.figures.cell(row, gate) is not None for gate in gates)]


def show(result: Result) -> None:
    """Tables and notes on standard output."""
    print(f"\nPenstock's figure over the peer's (median of ratios within a round){_how_many(result)}\n")
    print(aligned(ratio_table(result)))
    print("\nmedians (least–most)\n")
    print(aligned(figure_table(result)))
    for note in [
        *notes(result),
        f"{sum(result.compared.values()):,} answers compared event by event: {_compared(result)}",
    ]:
        print(f"\n{note}")
    print(f"\n{result.seconds / 60:.1f} min; {RESULTS_FILE} and plots are in benchmarks/results")


def write(result: Result, *, into_document: bool) -> None:
    """JSON and plots in `benchmarks/results`; with `into_document` the document's section and its plots, too."""
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / RESULTS_FILE).write_text(json.dumps(_as_json(result), indent=1) + "\n")
    folders = [folder, PLOTS] if into_document else [folder]
    for name, drawn in plots(result).items():
        for place in folders:
            place.mkdir(exist_ok=True)
            (place / f"{name}.svg").write_text(drawn)
    if into_document:
        write_section(SECTION, section(result))


# ---- tables


def ratio_table(result: Result) -> Table:
    """Ratios to each peer, and the targets."""
    peers = [name for name in result.gates if name not in (PENSTOCK, DIRECT)]
    table = [["", *(f"/ {peer}" for peer in peers), "target", "verdict"]]
    figures = result.figures
    for row in result.rows:
        targets = [target for target in TARGETS if (target.load, target.figure) == (row.load, row.figure)]
        told, verdicts = [], []
        for target in targets:
            wanted = "" if target.wanted is None else f" ({target.wanted:g})"
            bound = f"≤ {target.at_most:g}{wanted}"
            told.append(f"{bound} {row.unit}" if target.against is None else f"{bound} × {target.against}")
            verdicts.append(figures.verdict(target))
        ratios = [_ratio(figures, row, peer) for peer in peers]
        table.append([row.title, *ratios, "; ".join(told), "; ".join(verdicts)])
    return table


def figure_table(result: Result) -> Table:
    """The figures themselves."""
    table = [["", "", *result.gates]]
    for row in result.rows:
        cells = [_figure(result.figures, row, gate) for gate in result.gates]
        table.append([row.title, row.unit, *cells])
    return table


def aligned(table: Table) -> str:
    """A table for a terminal."""
    widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
    lines = []
    for line in table:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(table: Table) -> str:
    """A table for the document."""
    head, *rest = table
    lines = [head, ["---", *("---:" for _ in head[1:])], *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ratio(figures: Figures, row: Row, peer: str) -> str:
    found = figures.ratio(row, peer)
    if found is None:
        return "void" if figures.is_void(row.load, peer) or figures.is_void(row.load, PENSTOCK) else "–"
    peers = figures.cell(row, peer)
    if row.is_added and peers is not None and peers.median < (least := LEAST_ADDED_MS[row.figure]):
        return f"{found.median:.2f} of {least:g} ms"
    median, low, high = f"{found.median:.2f}", f"{found.low:.2f}", f"{found.high:.2f}"
    return median if low == high else f"{median} ({low}–{high})"


def _figure(figures: Figures, row: Row, gate: str) -> str:
    found = figures.cell(row, gate)
    if found is None or (gate == DIRECT and (row.is_added or row.unit != "ms")):
        return "–"
    void = " void" if figures.is_void(row.load, gate) else ""
    return spread(found) + void


def spread(found: Cell) -> str:
    """A median with the least and the most."""
    digits = 0 if found.median >= 100 else 1 if found.median >= 10 else 2
    median, low, high = (f"{value:.{digits}f}" for value in (found.median, found.low, found.high))
    return median if low == high else f"{median} ({low}–{high})"


def _compared(result: Result) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(result.compared.items()))


def _how_many(result: Result) -> str:
    return f", {len(result.rounds)} rounds"


# ---- notes


def notes(result: Result) -> list[str]:
    """What a reader has to know of this run: void figures, a busy client, peers that are missing, what was proved."""
    told = []
    for gate in result.gates:
        void = sorted({row.load for row in result.rows if result.figures.is_void(row.load, gate)})
        if void:
            why = EXPLAINED.get(gate, "not explained")
            told.append(
                f"void: {gate} adds more than {VOID_ADDED_MS:g} ms to the first token in {', '.join(void)}: {why}"
            )
    busy = sorted(
        {
            f"{load} through {gate}"
            for told_round in result.rounds
            for (load, gate), sample in told_round.items()
            if load in LATENCY_LOADS and (sample.client_core > BUSY_CORE or sample.client_lag_ms > BUSY_LAG_MS)
        }
    )
    if busy:
        told.append(
            f"WARNING: the client itself was busy (over {BUSY_CORE:.0%} of a core, or its loop late by more than "
            f"{BUSY_LAG_MS:g} ms), so first-token times may be its own: {', '.join(busy)}"
        )
    for load in LATENCY_LOADS:
        direct = result.figures.cell(Row(load, "first_p50", "", "ms"), DIRECT)
        if direct is not None and direct.high - direct.low > VOID_ADDED_MS:
            told.append(
                f"WARNING: the machine was too busy with other work: even going direct took between {direct.low:.0f} "
                f"and {direct.high:.0f} ms in {load}; run it again"
            )
    if result.busy_before_percent >= 5:
        told.append(f"other programs used {result.busy_before_percent:.0f} % of the machine just before the run")
    if LITE in result.gates:
        told.append(f"{LITE} was given a tenth of the streams and a twentieth of the requests, 4 in flight")
    told += [f"{name} is left out: {why}" for name, why in result.programs.left_out.items()]
    ours = [sample for told_round in result.rounds for (_, gate), sample in told_round.items() if gate == PENSTOCK]
    sent, refused, tokens = (sum(getattr(sample, key) for sample in ours) for key in ("sent", "refused", "tokens"))
    told.append(
        f"Penstock, everything on: {sent:,} requests sent = access-log lines = requests in /metrics (admin port only); "
        f"{refused:,} refused with 429 and {tokens:,} tokens, as its counters say; no lease left"
    )
    return told


LATENCY_LOADS = ("streams-100", "streams-400", "flood")


def machine() -> str:
    """Processor, cores, memory, kernel."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{model}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def versions(result: Result) -> str:
    """Of everything that was measured."""
    told = [f"Python {platform.python_version()}{_build()}", f"uvloop {version('uvloop')}", f"Penstock {commit()}"]
    return ", ".join([*told, *(f"{name} {number}" for name, number in result.programs.versions.items())])


def _build() -> str:
    """How this Python was built, where that makes it slower. Distributions build with profiles, told or not."""
    is_optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    if is_optimised or sys.base_prefix == "/usr":
        return ""
    return " (built without --enable-optimizations: a chunk costs a sixth more)"


def section(result: Result) -> str:
    """The generated section of the document."""
    lines = [
        f"- Machine: {machine()}",
        f"- Versions: {versions(result)}",
        f"- Run: {time.strftime('%Y-%m-%d')}, `python -m benchmarks.side_by_side {' '.join(result.words)}`, "
        f"{len(result.rounds)} rounds, {result.seconds / 60:.0f} minutes",
        *(f"- {name}: {settings(name)}" for name in result.gates),
        "",
        "Penstock's figure over the peer's:",
        "",
        markdown(ratio_table(result)),
        "",
        "The figures, as medians of the rounds with the least and the most:",
        "",
        markdown(figure_table(result)),
        "",
        *(f"![{title}](benchmarks/{name}.svg)\n" for name, (title, _) in PLOTTED.items()),
        *(f"- {note}" for note in notes(result)),
        f"- {sum(result.compared.values()):,} answers were compared event by event with the pod's: {_compared(result)}",
        "",
        *_block("Penstock's file", "yaml", PENSTOCK_FILE),
        *(_block("nginx's file", "nginx", NGINX_FILE) if NGINX in result.gates else ()),
    ]
    return "\n".join(lines)


def _block(title: str, language: str, template: str) -> list[str]:
    """A file as it was written, but for the names in braces, which are filled in for each run."""
    text = template.replace("{{", "{").replace("}}", "}").strip()
    return [f"{title} (ports, keys and folders are each run's own):", "", f"```{language}", text, "```", ""]


def plots(result: Result) -> dict[str, str]:
    """The drawings, by name."""
    drawn = {}
    for name, (title, keys) in PLOTTED.items():
        rows = [row for row in result.rows if f"{row.load} {row.figure}" in keys]
        if rows:
            gates = [gate for gate in result.gates if gate not in (DIRECT, LITE)]
            drawn[name] = dot_plot(
                title,
                [
                    (
                        row.title,
                        [
                            (gate, result.figures.cell(row, gate), result.figures.is_void(row.load, gate))
                            for gate in gates
                        ],
                    )
                    for row in rows
                ],
            )
    return drawn


def _as_json(result: Result) -> dict[str, object]:
    figures = result.figures
    return {
        "machine": machine(),
        "versions": versions(result),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "words": list(result.words),
        "busy_before_percent": result.busy_before_percent,
        "seconds": round(result.seconds, 1),
        "settings": {name: settings(name) for name in result.gates},
        "left_out": result.programs.left_out,
        "compared": result.compared,
        "targets": [{**asdict(target), "verdict": figures.verdict(target)} for target in TARGETS],
        "void": [[row.load, gate] for row in result.rows for gate in result.gates if figures.is_void(row.load, gate)],
        "rows": [
            {
                **asdict(row),
                "gates": {gate: asdict(found) for gate in result.gates if (found := figures.cell(row, gate))},
                "ratios": {peer: asdict(found) for peer in result.gates if (found := figures.ratio(row, peer))},
            }
            for row in result.rows
        ],
        "rounds": [
            [
                {
                    "load": load,
                    "gate": gate,
                    "figures": sample.figures,
                    "sent": sample.sent,
                    "client_core": round(sample.client_core, 3),
                    "client_lag_ms": round(sample.client_lag_ms, 2),
                }
                for (load, gate), sample in told.items()
            ]
            for told in result.rounds
        ],
    }
