"""No 60 seconds hold more than the limit, and the moment to come back is exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenancy.rates import Window, bucket_of

STEPS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 5)), max_size=60)  # (ticks of 50 ms, amount)


@given(STEPS)
def test_no_window_of_60_seconds_holds_more_than_the_limit(steps: list[tuple[int, int]]) -> None:
    window = Window(10)
    charged: list[tuple[int, int]] = []
    tick = 0
    for ticks, amount in steps:
        tick += ticks
        if window.fits(amount, tick / 20):
            window.charge(amount, tick / 20)
            charged.append((tick, amount))
    for start, _ in charged:
        assert sum(amount for at, amount in charged if start <= at <= start + 60 * 20) <= 10


@given(STEPS, st.integers(1, 10))
def test_it_opens_exactly_when_it_says(steps: list[tuple[int, int]], asked: int) -> None:
    window = Window(10)
    now = 1000.0
    for ticks, amount in steps:
        now += ticks / 20
        if window.fits(amount, now):
            window.charge(amount, now)
    opens_at = window.opens_at(asked, now)
    assert opens_at is not None
    assert opens_at >= now
    if opens_at > now:
        assert not window.fits(asked, max(now, opens_at - 0.1))
    assert window.fits(asked, opens_at)


def test_a_charge_counts_for_60_seconds_and_no_longer_than_a_bucket_more() -> None:
    window = Window(1)
    window.charge(1, 100.05)
    assert not window.fits(1, 160.05)
    assert window.fits(1, 160.1)


def test_more_than_the_limit_never_opens() -> None:
    assert Window(5).opens_at(6, 0.0) is None


def test_a_correction_counts_where_the_charge_was() -> None:
    window = Window(10)
    window.charge(8, 100.0)
    window.charge(1, 150.0)
    window.correct(bucket_of(100.0), -5, 150.0)
    assert window.used(150.0) == 4
    assert window.used(161.0) == 1


def test_a_correction_of_what_has_passed_changes_nothing() -> None:
    window = Window(10)
    window.charge(8, 100.0)
    window.correct(bucket_of(100.0), 5, 161.0)
    assert window.used(161.0) == 0


def test_an_under_estimate_closes_the_window_for_others() -> None:
    window = Window(10)
    window.charge(2, 100.0)
    window.correct(bucket_of(100.0), 13, 101.0)
    assert not window.fits(1, 101.0)
    assert window.opens_at(1, 101.0) == 160.1


def test_no_limit_counts_nothing_and_fits_always() -> None:
    window = Window(None)
    window.charge(10**9, 1.0)
    assert window.fits(10**9, 1.0)
    assert window.used(1.0) == 0


def test_it_empties_when_the_last_charge_has_passed() -> None:
    window = Window(10)
    assert window.state(5.0)[2] == 0.0
    window.charge(1, 100.0)
    window.charge(1, 130.02)
    assert window.state(140.0)[2] == 190.1 - 140.0
