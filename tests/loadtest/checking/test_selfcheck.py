"""The self-check itself: what it says, and short runs on real sockets, of which only counts and codes are judged."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from loadtest.checking import rows as check_rows
from loadtest.checking import selfcheck
from loadtest.checking.answers import MODES, Delays
from loadtest.checking.rows import Row
from loadtest.checking.selfcheck import Found, Part

HOLDS = check_rows.exactly("counted", 5, 5)
WRONG = check_rows.exactly("counted wrongly", 5, 6)
LATE = check_rows.near("late", 0.02, 0.03)
BLIND = Row("closed", "20 ms", "20 ms", "blind", True, is_timing=True, is_blind=True)
BUSY = "machine-bound: something waited for a core"


def tell(*found: Found) -> tuple[bool, list[str]]:
    """What is said of these parts, and the answer."""

    def part(number: int, one: Found) -> Part:
        async def run() -> Found:
            return one

        return Part(f"part {number}", run)

    said: list[str] = []
    parts = [part(number, one) for number, one in enumerate(found)]
    return asyncio.run(selfcheck.tell(parts, said.append)), said


def verdicts(said: list[str], *rows: Row) -> list[str]:
    return [next(line for line in said if line[6:].startswith(row.check)).split()[0] for row in rows]


def test_all_is_well_where_every_row_holds() -> None:
    is_well, said = tell(Found([HOLDS], []), Found([BLIND], [], "a closed loop is blind to it"))
    assert is_well
    assert verdicts(said, HOLDS, BLIND) == ["✓", "blind"]
    assert "      a closed loop is blind to it" in said
    assert said[-1].startswith("All 2 checks hold")


def test_a_row_that_does_not_hold_is_named_at_the_end() -> None:
    is_well, said = tell(Found([HOLDS, WRONG], []), Found([LATE], []))
    assert not is_well
    assert verdicts(said, WRONG, LATE) == ["✗", "✗"]
    assert said[-1] == "2 of 3 checks do not hold: counted wrongly; late."


def test_a_time_missed_on_a_busy_machine_is_no_verdict_but_no_pass_either() -> None:
    is_well, said = tell(Found([HOLDS, LATE], [BUSY]))
    assert not is_well
    assert verdicts(said, LATE) == ["?"]
    assert f"      {BUSY}" in said
    assert said[-1].endswith("The machine was too busy to judge: again when it is quiet.")


def test_a_wrong_count_is_wrong_on_a_busy_machine_too() -> None:
    is_well, said = tell(Found([WRONG], [BUSY]))
    assert not is_well
    assert verdicts(said, WRONG) == ["✗"]
    assert "again" not in said[-1]


def test_a_busy_part_excuses_no_other() -> None:
    _, said = tell(Found([HOLDS], [BUSY]), Found([LATE], []))
    assert verdicts(said, LATE) == ["✗"]
    assert "again" not in said[-1]


def test_a_busy_machine_on_which_all_holds_is_said_and_passes() -> None:
    is_well, said = tell(Found([HOLDS], [BUSY]))
    assert is_well
    assert f"      {BUSY}" in said


def test_what_each_mode_is_about_fits_its_column() -> None:
    for name, mode in MODES.items():
        assert len(f"{name}: {mode.about}") <= selfcheck.CHECK_WIDTH


def test_quick_has_all_kinds_of_checks() -> None:
    assert len(selfcheck.parts(quick=True)) == len(selfcheck.parts(quick=False)) - 1


async def test_on_real_sockets_each_kind_of_answer_is_taken_for_what_it_is() -> None:
    found = await selfcheck.modes(1.0)
    counted = [row for row in found.rows if not row.is_timing]
    assert len(counted) == len(MODES)
    assert [row for row in counted if not row.holds] == []


async def test_on_real_sockets_calls_left_on_purpose_are_counted_by_both_sides() -> None:
    found = await selfcheck.cancels(0.5)
    assert [row for row in found.rows if not row.holds] == []


async def test_a_server_ends_with_its_block_whatever_happens_in_it() -> None:
    with pytest.raises(KeyError):
        async with selfcheck.server(Delays()) as running:
            raise KeyError
    port = urlsplit(running.url).port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
