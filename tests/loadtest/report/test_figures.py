"""Figures as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.figures import count, duration, number, part_of, ratio, share


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0 s"),
        (8.45e-4, "845 µs"),
        (0.0842, "84.2 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.314, "1.31 s"),
        (59.96, "60.0 s"),
        (312.4, "312 s"),
        (599.9, "10.0 min"),
        (7199, "2.00 h"),
        (21_600, "6.00 h"),
    ],
)
def test_a_duration_has_three_digits_and_a_unit(seconds: float | None, told: str) -> None:
    assert duration(seconds) == told


@given(st.floats(1e-6, 1e5))
def test_a_duration_is_never_off_by_more_than_its_digits(seconds: float) -> None:
    told, unit = duration(seconds).split()
    size = {"µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600}[unit]
    assert float(told.replace(",", "")) * size == pytest.approx(seconds, rel=0.0051)
    assert len(re.sub(r"\D", "", told).lstrip("0")) >= 3


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "–"), (0, "0"), (0.01234, "0.0123"), (4.5, "4.50"), (9.999, "10.0"), (31.16, "31.2"), (2410.4, "2,410")],
)
def test_a_number_has_three_digits(value: float | None, told: str) -> None:
    assert number(value) == told


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (None, "–"),
        (0, "0 %"),
        (1, "100 %"),
        (0.973, "97.3 %"),
        (0.9999, "99.9 %"),
        (0.0001, "< 0.1 %"),
        (1.2, "120.0 %"),
    ],
)
def test_a_share_that_is_neither_none_nor_all_is_not_told_as_such(part: float | None, told: str) -> None:
    assert share(part) == told


def test_counts_ratios_and_parts_are_told_plainly() -> None:
    assert [count(1204), count(2.5), count(None)] == ["1,204", "2.50", "–"]
    assert [ratio(1.314), ratio(None)] == ["×1.31", "–"]
    assert [part_of(1, 4), part_of(1, 0)] == [0.25, None]
