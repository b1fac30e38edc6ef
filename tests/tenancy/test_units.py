"""What people write for sizes, durations, shares and counts, and what is said when it is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenancy.units import (
    LARGEST_QUANTITY,
    format_bytes,
    format_duration,
    format_quantity,
    parse_count,
    parse_duration,
    parse_quantity,
    parse_ratio,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4Gi", 4 * 2**30),
        ("1.5Gi", 1536 * 2**20),
        (".5Ki", 512),
        ("500M", 500_000_000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("2.5e-1", 1),  # a part of a byte is rounded up, as Kubernetes does
        ("1E", 10**18),
        ("7", 7),
        (" 64Ki ", 65_536),
        (81_559, 81_559),
        (0, 0),
        ("9223372036854775807", LARGEST_QUANTITY),
    ],
)
def test_a_size_is_a_kubernetes_quantity(text: str | int, size: int) -> None:
    assert parse_quantity(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("4GB", "'G' is"),
        ("4gib", "'Gi' is"),
        ("4gi", "'Gi' is"),
        ("4 Gi", "write 4Gi"),
        ("100m", "Mi is 2^20"),
        ("4Qi", "'Qi' is no suffix"),
        ("-1", "not a size"),
        (-1, "below zero"),
        ("", "not a size"),
        ("Gi", "not a size"),
        ("1e999", "more than 2^63"),
        ("1" * 500, "not a size"),
        ("٤Gi", "not a size"),
        ("9223372036854775808", "more than 2^63"),
        (True, "True is not a size"),
    ],
)
def test_a_wrong_size_is_told_what_a_right_one_looks_like(text: str | int, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_quantity(text)
    assert hint in str(caught.value)
    assert "4Gi" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1m250ms", 60.25),
        ("2d", 172_800.0),
        ("1.5h", 5400.0),
        ("0s", 0.0),
        ("10", 10.0),
        (10, 10.0),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_written_as_go_writes_it_or_in_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10 seconds", "s", "-1s", "30m1h", "1s1s", "1e3s", -1, float("nan"), float("inf"), True]
)
def test_a_wrong_duration_is_told_what_a_right_one_looks_like(text: str | float) -> None:
    with pytest.raises(ValueError, match="not a duration; write 10s"):
        parse_duration(text)


def test_a_duration_of_more_than_ten_years_is_refused() -> None:
    with pytest.raises(ValueError, match="more than ten years"):
        parse_duration("99999d")


@pytest.mark.parametrize(
    ("text", "ratio"), [("20%", 0.2), ("0.2", 0.2), (0.2, 0.2), (1, 1.0), ("100%", 1.0), ("12.5 %", 0.125)]
)
def test_a_share_is_a_ratio_or_a_percentage(text: str | float, ratio: float) -> None:
    assert parse_ratio(text) == ratio


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (50, "write 50% or 0.5"),
        ("50", "write 50% or 0.5"),
        ("120%", "not between"),
        (-0.1, "not between"),
        ("half", "20%"),
        (True, "20%"),
    ],
)
def test_a_wrong_share_is_told_what_a_right_one_looks_like(text: str | float, hint: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_ratio(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [("100k", 100_000), ("100K", 100_000), ("1.5M", 1_500_000), ("128Ki", 131_072), ("600", 600), (600, 600)],
)
def test_a_count_may_have_a_suffix(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["1.5", "many", "", -3, True])
def test_a_wrong_count_is_told_what_a_right_one_looks_like(text: str | int) -> None:
    with pytest.raises(ValueError, match="write 600, 100k"):
        parse_count(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (1536, "1.50 KiB"),
        (3 * 2**29, "1.50 GiB"),
        (2**40, "1.00 TiB"),
        (-(2**30), "-1.00 GiB"),
    ],
)
def test_a_size_is_shown_with_two_decimals(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0s"), (90.0, "1m30s"), (5400.0, "1h30m"), (0.25, "250ms"), (2.5, "2s500ms")]
)
def test_a_duration_is_shown_as_it_would_be_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, LARGEST_QUANTITY))
def test_every_size_reads_back_from_what_is_written_for_it(size: int) -> None:
    assert parse_quantity(format_quantity(size)) == size


@given(st.integers(0, 100_000) | st.integers(0, 3650 * 86_400_000))
def test_every_duration_of_whole_milliseconds_reads_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("parse", [parse_quantity, parse_count, parse_duration, parse_ratio])
@given(text=st.text(max_size=30) | st.from_regex(r"[0-9.]{1,20}[eEkKMGi%smhd+-]{0,4}[0-9]{0,5}", fullmatch=True))
def test_any_text_is_a_number_or_a_value_error(parse: Callable[[str], float], text: str) -> None:
    try:
        assert parse(text) >= 0
    except ValueError as wrong:
        assert "write" in str(wrong)
