"""The view of a running run: what a terminal shows while it goes on, and what is left there afterwards."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from loadtest.report.live import PlainView, RichView, Terminal, View, view_for
from loadtest.report.live_state import LiveState
from tests.loadtest.states import AFTER, CROWD, CROWDED


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A terminal's screen, as far as an inline view may use one: anything else that it is sent is an error."""

    encoding = "utf-8"
    sequences = re.compile(r"\x1b\[(\??)([\d;]*)([a-zA-Z])|([^\x1b])", re.DOTALL)

    def __init__(self) -> None:
        super().__init__()
        self.rows = [""]
        self.at = [0, 0]
        self.has_cursor = True
        self.most_rows = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for match in self.sequences.finditer(text):
            mode, numbers, verb, letter = match.groups()
            row, column = self.at
            if letter == "\n":
                self.at = [row + 1, 0]
                self.rows += [""] * (row + 2 - len(self.rows))
            elif letter == "\r":
                self.at = [row, 0]
            elif letter is not None:
                assert letter.isprintable(), f"{letter!r} was sent to the terminal"
                line = self.rows[row].ljust(column)
                self.rows[row] = line[:column] + letter + line[column + 1 :]
                self.at = [row, column + 1]
            elif verb == "A":
                self.at = [row - int(numbers or 1), column]
                assert self.at[0] >= 0
            elif verb == "K":
                assert numbers == "2"
                self.rows[row] = ""
            elif verb in "hl" and mode:
                assert numbers == "25", f"mode {numbers} was set"
                self.has_cursor = verb == "h"
            else:
                assert verb == "m", f"{match.group()!r} was sent to the terminal"
        self.most_rows = max(self.most_rows, len(self.shown()))
        return len(text)

    def shown(self) -> list[str]:
        """The rows that hold something."""
        rows = [row.rstrip() for row in self.rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def narrow(self, width: int) -> None:
        """Break every row that is longer, as terminals do; the cursor stays behind what it stood behind."""
        broken: list[str] = []
        for number, row in enumerate(self.rows):
            pieces = [row[at : at + width] for at in range(0, max(len(row), 1), width)]
            broken += pieces
            if number == self.at[0]:
                self.at = [len(broken) - 1, len(pieces[-1])]
        self.rows = broken


def a_view(screen: Screen, width: int = 100, height: int = 30) -> tuple[RichView, Console, Clock]:
    passing = Clock()
    console = Console(file=screen, width=width, height=height, force_terminal=True, highlight=False)
    return RichView(console, passing), console, passing


# ---- the view in place


@pytest.mark.parametrize("height", [4, 6, 8, 12, 30])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("tenants", [1, 2, 40])
def test_a_frame_fits_its_terminal(width: int, height: int, tenants: int) -> None:
    many = tuple(replace(CROWD, name=f"tenant-{number}") for number in range(tenants))
    state = replace(CROWDED, tenants=many, warnings=("client-bound: the tool's timer is late by 12 ms",))
    screen = Screen()
    view, _, _ = a_view(screen, width, height)
    view.start()
    view.update(state)
    assert len(screen.shown()) < height
    if height >= 12 and width >= 40:
        assert any(row.startswith("all") for row in screen.shown()) == (tenants > 1)


def test_a_frame_replaces_the_one_before_and_what_stood_above_stays() -> None:
    screen = Screen()
    screen.write("$ penstock loadtest\n")
    view, _, passing = a_view(screen)
    view.start()
    view.update(CROWDED)
    first = screen.shown()
    passing.now += 1
    view.update(replace(CROWDED, seconds=24.4))
    second = screen.shown()
    assert first[0] == second[0] == "$ penstock loadtest"
    assert len(first) == len(second) - 1  # the sparkline has two values now
    assert [row for row in second if "0:24 of 1:00" in row] == [second[1]]
    assert not screen.has_cursor


def test_it_is_drawn_at_most_four_times_a_second_but_for_a_new_phase() -> None:
    screen = Screen()
    view, _, passing = a_view(screen)
    view.start()
    view.update(CROWDED)
    passing.now += 0.2
    view.update(replace(CROWDED, seconds=30.0))
    assert "0:30" not in "".join(screen.shown())
    passing.now += 0.05
    view.update(replace(CROWDED, seconds=31.0))
    assert "0:31" in "".join(screen.shown())
    view.update(AFTER)
    assert "phase 3 of 3: after" in "".join(screen.shown())


def test_a_phase_that_is_over_leaves_a_line_and_the_view_goes_with_the_run() -> None:
    screen = Screen()
    view, _, passing = a_view(screen)
    view.start()
    view.update(CROWDED)
    view.note("the server is pid 4242")
    passing.now += 1
    view.update(AFTER)
    passing.now += 1
    view.update(replace(AFTER, seconds=59.5))
    view.stop()
    view.stop()
    screen.write("the table")
    assert screen.shown() == [
        "the server is pid 4242",
        "crowded: 23.4 s · 2,218 done · 12 failed (429 token_rate) · TTFT p50 380 ms, p99 1.21 s",
        "after: 59.5 s · 226 done · 0 failed · TTFT p50 52.3 ms, p99 180 ms",
        "the table",
    ]
    assert screen.has_cursor


def test_a_view_that_never_saw_a_state_leaves_nothing() -> None:
    screen = Screen()
    view, _, _ = a_view(screen)
    view.start()
    view.stop()
    assert screen.shown() == []
    assert screen.has_cursor


@pytest.mark.parametrize("width", [99, 70, 41])
def test_a_terminal_that_becomes_narrower_keeps_no_rest_of_a_frame(width: int) -> None:
    screen = Screen()
    screen.write("$ penstock loadtest\n")
    view, console, passing = a_view(screen, 120)
    view.start()
    view.update(CROWDED)
    screen.narrow(width)
    console.width = width
    passing.now += 1
    view.update(replace(CROWDED, seconds=24.4))
    rows = screen.shown()
    assert rows[0] == "$ penstock loadtest"
    assert sum("neighbours" in row for row in rows) == 1
    assert sum(row.startswith("victim") for row in rows) == 1
    view.stop()
    assert len([row for row in screen.shown() if row.strip()]) == 2 + (width < 88) + (width < 44)


def test_names_codes_and_notes_cannot_command_the_terminal() -> None:
    screen = Screen()  # it fails at anything that it should not be sent
    view, _, passing = a_view(screen, 160)
    wicked = "\x1b[2J\x07\r[red]x"
    tenant = replace(CROWD, name=wicked, worst_code=wicked)
    state = replace(
        CROWDED,
        name=wicked,
        phase=wicked,
        tenants=(tenant, tenant),
        all=replace(tenant, name="all"),
        warnings=(wicked,),
    )
    view.start()
    view.update(state)
    view.note(wicked)
    passing.now += 1
    view.update(replace(state, phase_number=3))
    view.stop()
    assert "·[2J··[red]x" in screen.shown()[0]


class Gone(io.StringIO):
    """A terminal that was closed."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("kind", ["rich", "plain"])
def test_a_terminal_that_is_gone_does_not_end_the_run(kind: str) -> None:
    assert Terminal.on_broken_pipe is not Console.on_broken_pipe, "rich's ends the process"
    gone = Gone()
    view: View = PlainView(gone)
    if kind == "rich":
        view = RichView(Terminal(file=gone, force_terminal=True, width=80, height=24))
    view.start()
    view.update(CROWDED)
    view.update(AFTER)
    view.note("still here")
    view.stop()


# ---- plain lines


def said_by_plain(*states: tuple[float, LiveState], **options: Any) -> list[str]:
    """What a plain view wrote, given states at these seconds."""
    stream, passing = io.StringIO(), Clock()
    view = PlainView(stream, now=passing, **options)
    view.start()
    for at, state in states:
        passing.now = 100.0 + at
        view.update(state)
    view.stop()
    return stream.getvalue().splitlines()


def test_plain_lines_tell_phases_at_once_and_tenants_every_five_seconds() -> None:
    assert said_by_plain((0, CROWDED), (4.9, CROWDED), (5, CROWDED), (9.9, CROWDED), (10, AFTER)) == [
        "crowded: begins (phase 2 of 3, 1:00 of load)",
        "crowded 0:23 victim: 226 done, 0 failed, 12 open, 0 waiting, 1,540 tokens/s, "
        "TTFT p50 52.3 ms p99 180 ms, ITL p50 20.1 ms p99 31.0 ms",
        "crowded 0:23 crowd: 1,992 done, 12 failed (429 token_rate), 40 open, 4 waiting, 38,300 tokens/s, "
        "TTFT p50 410 ms p99 1.24 s, ITL p50 31.2 ms p99 81.0 ms",
        "crowded: 23.4 s · 2,218 done · 12 failed (429 token_rate) · TTFT p50 380 ms, p99 1.21 s",
        "after: begins (phase 3 of 3, 1:00 of load)",
        "after: 1.00 s · 226 done · 0 failed · TTFT p50 52.3 ms, p99 180 ms",
    ]


def test_a_warning_is_said_once() -> None:
    warned = replace(CROWDED, warnings=("client-bound: \x1b[1mlate",))
    lines = said_by_plain(
        (0, CROWDED), (1, warned), (2, warned), (3, replace(warned, warnings=("another", *warned.warnings)))
    )
    assert lines[1:-1] == ["warning: client-bound: ·[1mlate", "warning: another"]


def test_many_tenants_are_one_line() -> None:
    many = replace(CROWDED, tenants=tuple(replace(CROWD, name=f"t{number}") for number in range(11)))
    lines = said_by_plain((0, many), (1, many), seconds=1.0)
    assert [line.split(":")[1] for line in lines if line.startswith("crowded 0")] == ["23 all"]


def test_what_the_streams_encoding_cannot_say_is_a_question_mark() -> None:
    raw = io.BytesIO()
    view = PlainView(io.TextIOWrapper(raw, encoding="ascii"))
    view.note("µ – said")
    assert raw.getvalue() == b"? ? said\n"


# ---- which of the two


def test_a_terminal_gets_the_view_in_place_and_all_else_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert Screen().isatty() and isinstance(view_for(False, Screen()), RichView)
    assert isinstance(view_for(True, Screen()), PlainView)
    assert isinstance(view_for(False, io.StringIO()), PlainView)
    ascii_only = Screen()
    ascii_only.encoding = "ascii"
    assert isinstance(view_for(False, ascii_only), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(False, Screen()), PlainView)
