"""How a run stands, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.report.live_state import clock, phase_in_a_line
from tests.loadtest.states import AFTER, CROWDED


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.9, "0:07"), (750, "12:30"), (3750, "1:02:30"), (-1, "0:00"), (float("inf"), "–")],
)
def test_clocks_are_read_as_clocks(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_phases_line_names_its_commonest_failure() -> None:
    said = "crowded: 23.4 s · 2,218 done · 12 failed (429 token_rate) · TTFT p50 380 ms, p99 1.21 s"
    assert phase_in_a_line(CROWDED) == said
    assert phase_in_a_line(AFTER) == "after: 1.00 s · 226 done · 0 failed · TTFT p50 52.3 ms, p99 180 ms"


def test_the_load_of_a_phase_is_over_at_its_seconds_and_never_where_nobody_knows_them() -> None:
    assert [replace(CROWDED, seconds=at).is_draining for at in (59.9, 60.0)] == [False, True]
    assert not replace(CROWDED, seconds=1e9, phase_seconds=None).is_draining
