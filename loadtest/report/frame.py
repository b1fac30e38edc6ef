"""One picture of a running run, as rich can draw it: as wide and as high as there is room for.

Where room is scarce columns are left out, then tenants; no figure is cut short. It is redrawn four times a second: 1 ms
for three tenants, 1.5 for ten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from loadtest.report.figures import count, duration, number, share
from loadtest.report.live_state import LiveState, LiveStrain, LiveTenant, clock
from loadtest.report.table import Column, fitted, printable
from loadtest.summary import SweepStep

SPARK_SECONDS: Final = 1.0
MOST_STEPS: Final = 6
MOST_WARNINGS: Final = 3
MOST_BAR: Final = 80
BARS: Final = "▁▂▃▄▅▆▇█"
FILLED: Final = "━"
EMPTY: Final = "─"


class Sparkline:
    """The last `most` values, one a second, as bars from zero to their greatest."""

    def __init__(self, most: int = 60) -> None:
        self._values: deque[float] = deque(maxlen=most)
        self._at = float("-inf")

    def add(self, value: float, at: float) -> None:
        """Take a value, unless one was taken within the last second."""
        if at - self._at >= SPARK_SECONDS:
            self._values.append(value)
            self._at = at

    def text(self, width: int) -> str:
        """The newest on the right, at most `width` cells; empty under two values."""
        shown = list(self._values)[-max(width, 0) :] if width > 0 else []
        greatest = max(shown, default=0.0)
        if len(shown) < 2 or greatest <= 0:
            return ""
        return "".join(BARS[min(int(value / greatest * len(BARS)), len(BARS) - 1)] for value in shown)


def render(state: LiveState, width: int, height: int, spark: Sparkline) -> RenderableType:
    """A frame of at most `width` cells and, with one row to spare, `height` rows."""
    parts: list[RenderableType] = [_title(state), _progress(state, width)]
    last: list[RenderableType] = []
    bars = spark.text(width - 24)
    if bars:
        last.append(_line(("tokens/s  ", "dim"), bars, f"  {number(state.all.tokens_per_second)}"))
    if state.steps:
        last.append(_steps(state.steps))
    if tool := _tool(state.strain):
        last.append(_line(("tool      ", "dim"), tool))
    warnings = [f"! {printable(warning)}" for warning in state.warnings[:MOST_WARNINGS]]
    taken = len(parts) + len(last) + sum(-(-cell_len(warning) // width) + 1 for warning in warnings)
    parts.append(_tenants(state, width, max(height - 2 - taken, 1)))
    # words are broken rather than cut, which may take a row more than there are cells for
    last += [Text(warning, style="bold yellow") for warning in warnings]
    return Group(*parts, *last)


def _title(state: LiveState) -> Text:
    of = "" if state.phases is None else f" of {state.phases}"
    phase = f"phase {state.phase_number}{of}: " if state.phases != 1 else ""
    now = f"the load is over, {count(state.all.open)} streams may end" if state.is_draining else state.phase_clock
    return _line((printable(state.name), "bold"), "  ", phase, (printable(state.phase), "bold"), f"  {now}")


def _progress(state: LiveState, width: int) -> Text:
    if state.progress is None:
        return _line(("running until it is done", "dim"))
    done = min(max(state.progress, 0.0), 1.0)
    left = "" if state.remaining_seconds is None else f"  {clock(state.remaining_seconds)} left"
    words = f"  {done:4.0%}".replace("%", " %") + left
    cells = max(min(width, MOST_BAR) - len(words), 4)
    filled = round(done * cells)
    return _line((FILLED * filled, "green"), (EMPTY * (cells - filled), "dim"), words)


def _tenants(state: LiveState, width: int, most: int) -> Text:
    """At most `most` rows; the last one is of all together, where there are several."""
    has_several = len(state.tenants) > 1
    shown = list(state.tenants[: max(most - 1, 0)]) if has_several else list(state.tenants)
    names = [printable(tenant.name) for tenant in shown]
    if has_several:
        shown.append(state.all)
        names.append("all" if len(shown) > len(state.tenants) else f"all {len(state.tenants)}")
    columns = [Column("tenant", names, is_figure=False)]
    columns += [Column(head, [figure(tenant) for tenant in shown], rank) for head, rank, figure in FIGURES]
    if any(tenant.worst_code for tenant in shown):
        columns.append(Column("mostly", [printable(tenant.worst_code) for tenant in shown], 10))
    return fitted(columns, width, "bold" if has_several else "")


FIGURES: Final[tuple[tuple[str, int, Callable[[LiveTenant], str]], ...]] = (
    ("due", 9, lambda of: count(of.scheduled)),
    ("sent", 8, lambda of: count(of.sent)),
    ("waiting", 7, lambda of: count(of.waiting)),
    ("open", 4, lambda of: count(of.open)),
    ("done", 0, lambda of: count(of.done)),
    ("failed", 1, lambda of: count(of.failed)),
    ("tokens/s", 3, lambda of: number(of.tokens_per_second)),
    ("TTFT p50", 2, lambda of: duration(of.ttft_p50)),
    ("p99", 2, lambda of: duration(of.ttft_p99)),
    ("ITL p50", 5, lambda of: duration(of.itl_p50)),
    ("p99", 6, lambda of: duration(of.itl_p99)),
)


def _steps(steps: Sequence[SweepStep]) -> Text:
    """The greatest loads that were kept up with, and the least that were not."""
    ordered = sorted(steps, key=lambda step: step.load)
    kept = [number(step.load) for step in ordered if not step.is_saturated][-MOST_STEPS:]
    lost = [number(step.load) for step in ordered if step.is_saturated][:MOST_STEPS]
    words = f"kept up with {', '.join(kept)}" if kept else "kept up with none yet"
    return _line(("sweep     ", "dim"), words, f"; not with {', '.join(lost)}" if lost else "")


def _tool(strain: LiveStrain) -> str:
    parts = [
        f"timer lag p99 {duration(strain.timer_lag_p99)}" if strain.timer_lag_p99 is not None else "",
        f"{strain.core:.2f} core" if strain.core is not None else "",
        f"pressure {share(strain.pressure)}" if strain.pressure is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _line(*parts: str | tuple[str, str]) -> Text:
    """One row, whatever the width."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")
