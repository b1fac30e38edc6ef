"""What one sees while a run goes on: a view that is redrawn in place, or plain lines where that would be in the way.

Inline, never on the terminal's other screen: what stood before stays, a phase that has ended leaves one line, and the
view itself goes when the run does, for the table to take its place. Nothing of a name, a code or a note reaches the
terminal but what can be printed. Views run in the process that decides; the streams' process never draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from loadtest.report.figures import count, duration, number
from loadtest.report.frame import Sparkline, render
from loadtest.report.live_state import LiveState, LiveTenant, clock, phase_in_a_line
from loadtest.report.table import printable

REDRAW_SECONDS: Final = 0.25
PLAIN_SECONDS: Final = 5.0
MOST_PLAIN_TENANTS: Final = 10


class View(Protocol):
    """Somebody who shows a run. `update` may be called as often as one likes."""

    def start(self) -> None:
        """Begin to show."""

    def update(self, state: LiveState) -> None:
        """This is how it stands."""

    def note(self, text: str) -> None:
        """Say something that stays."""

    def stop(self) -> None:
        """Leave the terminal as it should be; may be called twice."""


def view_for(plain: bool, stream: TextIO) -> View:
    """The view in place where `stream` is a terminal that can be drawn on, in UTF-8; else, or if asked, plain lines."""
    console = Terminal(file=stream, highlight=False)
    if plain or not console.is_terminal or console.is_dumb_terminal or console.options.ascii_only:
        return PlainView(stream)
    return RichView(console)


class Terminal(Console):
    """rich's console, but for a reader that is gone: rich would end the process there, and its standard output too."""

    def on_broken_pipe(self) -> None:
        """Pass the error on; called where it is handled."""
        raise


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a frame as they were drawn."""

    rows: list[list[Segment]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for at, row in enumerate(self.rows):
            if at:
                yield Segment.line()
            yield from row

    def broken_by(self, width: int) -> int:
        """How many rows more than these they are in a terminal of `width` cells that breaks what is too long."""
        lengths = (Segment.get_line_length(row) for row in self.rows)
        return sum(max(-(-length // width) - 1, 0) for length in lengths)


class RichView:
    """The view in place, drawn at most four times a second, in the turn of whoever calls `update`: 1 to 2 ms each.

    `now` tells monotonic seconds. A terminal that is gone ends the drawing, and not the run.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._live: Live | None = None
        self._state: LiveState | None = None
        self._drawn_at = float("-inf")
        self._drawn = _Rows([])
        self._drawn_width = 0
        self._spark = Sparkline()

    def start(self) -> None:
        """Hide the cursor and begin to draw."""
        if self._live is None:
            # without a thread of its own: nothing is drawn but in `update`, `note` and `stop`
            self._live = Live(
                _Rows([]),
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            self._do(self._live.start)

    def update(self, state: LiveState) -> None:
        """Draw it, if the last drawing is a quarter of a second ago or another phase has begun."""
        before, self._state = self._state, state
        at = self._now()
        self._spark.add(state.all.tokens_per_second, at)
        is_another = before is not None and before.phase_number != state.phase_number
        if is_another and before is not None:
            self.note(phase_in_a_line(before))
        if is_another or at - self._drawn_at >= REDRAW_SECONDS:
            self._drawn_at = at
            self._do(lambda: self._draw(state))

    def note(self, text: str) -> None:
        """Print it above the view."""
        self._do(lambda: self._print(text))

    def stop(self) -> None:
        """Take the view away, leave the last phase's line, show the cursor."""
        self._do(self._leave)

    def _draw(self, state: LiveState) -> None:
        if self._live is None:
            return
        self._make_up_for_a_narrower_terminal()
        console = self._console
        frame = render(state, console.width, console.height, self._spark)
        rows = console.render_lines(frame, pad=False)[: max(console.height - 1, 1)]
        self._drawn, self._drawn_width = _Rows(rows), console.width
        self._live.update(self._drawn, refresh=True)

    def _print(self, text: str) -> None:
        self._make_up_for_a_narrower_terminal()
        self._console.print(Text(printable(text)))

    def _leave(self) -> None:
        live = self._live
        if live is None:
            return
        self._make_up_for_a_narrower_terminal()
        self._live = None
        live.stop()
        if self._state is not None:
            self._console.print(Text(phase_in_a_line(self._state)))

    def _make_up_for_a_narrower_terminal(self) -> None:
        """A terminal that became narrower breaks the rows that stand there into more. Erase as many as there are too
        many, so that what Live erases next is the rest.
        """
        width = self._console.width
        if self._live is not None and width < self._drawn_width:
            up = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * self._drawn.broken_by(width)
            self._console.control(Control(*up))
            self._drawn_width = width

    def _do(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except (OSError, ValueError):  # the terminal is gone, or its file is closed
            self._live = None


class PlainView:
    """Lines for logs, pipes and those who asked for them: each tenant every `seconds`, phases as they begin and end.

    `now` tells monotonic seconds. A stream that is gone ends the lines, and not the run.
    """

    def __init__(
        self, stream: TextIO, seconds: float = PLAIN_SECONDS, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._seconds = seconds
        self._now = now
        self._state: LiveState | None = None
        self._said_at = 0.0
        self._warned: set[str] = set()
        self._is_over = False

    def start(self) -> None:
        """Nothing is to be done."""

    def update(self, state: LiveState) -> None:
        """Say how each tenant stands, if it is time; warnings and phases at once."""
        before, self._state = self._state, state
        if before is None or before.phase_number != state.phase_number:
            if before is not None:
                self._say(phase_in_a_line(before))
            of = "" if state.phases is None else f" of {state.phases}"
            takes = "" if state.phase_seconds is None else f", {clock(state.phase_seconds)} of load"
            self._say(f"{printable(state.phase)}: begins (phase {state.phase_number}{of}{takes})")
            self._said_at = self._now()
        for warning in state.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._say(f"warning: {printable(warning)}")
        if self._now() - self._said_at >= self._seconds:
            self._said_at = self._now()
            shown = state.tenants if len(state.tenants) <= MOST_PLAIN_TENANTS else [state.all]
            for tenant in shown:
                self._say(f"{printable(state.phase)} {clock(state.seconds)} {_tenant_in_a_line(tenant)}")

    def note(self, text: str) -> None:
        """Say it."""
        self._say(printable(text))

    def stop(self) -> None:
        """Say how the last phase ended."""
        state, self._state = self._state, None
        if state is not None:
            self._say(phase_in_a_line(state))

    def _say(self, text: str) -> None:
        if self._is_over:
            return
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(f"{text}\n".encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):
            self._is_over = True


def _tenant_in_a_line(tenant: LiveTenant) -> str:
    failed = f"{count(tenant.failed)} failed" + (f" ({printable(tenant.worst_code)})" if tenant.worst_code else "")
    return (
        f"{printable(tenant.name)}: {count(tenant.done)} done, {failed}, {count(tenant.open)} open, "
        f"{count(tenant.waiting)} waiting, {number(tenant.tokens_per_second)} tokens/s, "
        f"TTFT p50 {duration(tenant.ttft_p50)} p99 {duration(tenant.ttft_p99)}, "
        f"ITL p50 {duration(tenant.itl_p50)} p99 {duration(tenant.itl_p99)}"
    )
