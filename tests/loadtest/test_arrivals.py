"""When the calls of an open loop come: rates, spreads and ramps, with seeds that are named where a test fails."""

from __future__ import annotations

from itertools import islice, pairwise
from math import inf, sqrt
from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import times
from loadtest.scenario import ArrivalKind, Arrivals

LEVEL = (1.0, 1.0)


def arrivals_of(
    kind: ArrivalKind,
    rate: float,
    seconds: float,
    *,
    scale: tuple[float, float] = LEVEL,
    burstiness: float = 1.0,
    seed: int = 1,
) -> list[float]:
    return list(times(Arrivals(kind, rate=rate, burstiness=burstiness), Random(seed), seconds, scale))


def test_constant_arrivals_are_evenly_spaced_from_the_start_to_the_last_bit() -> None:
    assert arrivals_of("constant", 4, 2) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    last = next(islice(times(Arrivals("constant", rate=3), Random(1), inf, LEVEL), 1_000_000, None))
    assert last == 1_000_000 / 3  # no rounding is carried from one to the next


def test_no_call_comes_at_the_end_itself() -> None:
    assert arrivals_of("constant", 10, 0.5)[-1] == 0.4
    assert arrivals_of("constant", 10, 0.0) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("kind", "burstiness"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 1.0), ("gamma", 4.0)])
def test_random_arrivals_keep_the_rate_and_the_spread_of_their_law(
    kind: ArrivalKind, burstiness: float, seed: int
) -> None:
    at = arrivals_of(kind, 20, 2000, burstiness=burstiness, seed=seed)
    gaps = [later - earlier for earlier, later in pairwise([0.0, *at])]
    spread = 1 / sqrt(burstiness)
    # The mean of n gaps strays by spread/√n, half a percent here; five times that is no chance.
    assert fmean(gaps) == pytest.approx(1 / 20, rel=5 * spread / sqrt(len(gaps))), f"seed {seed}"
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(spread, rel=0.05), f"seed {seed}"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_poisson_gaps_are_exponential(seed: int) -> None:
    at = arrivals_of("poisson", 10, 2000, seed=seed)
    gaps = [later - earlier for earlier, later in pairwise(at)]
    for times_the_mean, share in ((0.1, 0.9048), (1.0, 0.3679), (3.0, 0.0498)):  # e^-x
        longer = fmean(gap > times_the_mean / 10 for gap in gaps)
        assert longer == pytest.approx(share, abs=0.015), f"seed {seed}"


def test_gamma_of_burstiness_one_has_the_spread_within_a_second_that_poisson_has() -> None:
    at = arrivals_of("gamma", 50, 2000, seed=4)
    counts = [0] * 2000
    for moment in at:
        counts[int(moment)] += 1
    assert pstdev(counts) ** 2 / fmean(counts) == pytest.approx(1, rel=0.15)  # Poisson's: variance = mean


@pytest.mark.parametrize(
    ("scale", "area"),
    [((0.0, 1.0), 500), ((1.0, 0.0), 500), ((0.5, 2.0), 1250), ((2.0, 2.0), 2000), ((1.0, 1.0), 1000)],
)
def test_up_to_any_moment_a_ramp_has_as_many_calls_as_the_area_under_its_rate(
    scale: tuple[float, float], area: int
) -> None:
    at = arrivals_of("constant", 10, 100, scale=scale)
    assert len(at) == pytest.approx(area, abs=1)
    begin, slope = 10 * scale[0], 10 * (scale[1] - scale[0]) / 100
    for number, moment in enumerate(at):
        assert begin * moment + slope * moment**2 / 2 == pytest.approx(number, abs=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_ramp_puts_a_quarter_of_its_calls_into_the_first_half_of_a_rise_from_nothing(seed: int) -> None:
    at = arrivals_of("poisson", 40, 500, scale=(0.0, 1.0), seed=seed)
    assert len(at) == pytest.approx(10_000, rel=0.05), f"seed {seed}"
    assert fmean(moment < 250 for moment in at) == pytest.approx(0.25, abs=0.025), f"seed {seed}"


def test_a_hardly_rising_rate_is_that_of_a_level_one() -> None:
    level = arrivals_of("poisson", 10, 100, seed=5)
    rising = arrivals_of("poisson", 10, 100, scale=(1.0, 1.0 + 1e-12), seed=5)
    assert rising == pytest.approx(level, abs=1e-8)


def test_a_longer_phase_begins_with_the_same_arrivals() -> None:
    assert arrivals_of("gamma", 10, 60, burstiness=0.5)[:200] == arrivals_of("gamma", 10, 30, burstiness=0.5)[:200]


@pytest.mark.parametrize("scale", [(0.0, 0.0), (1.0, 1.0)])
def test_without_a_rate_nobody_calls(scale: tuple[float, float]) -> None:
    assert arrivals_of("poisson", 0.0 if scale == LEVEL else 10.0, inf, scale=scale) == []


def test_a_phase_without_an_end_is_drawn_as_far_as_it_is_asked_for() -> None:
    endless = times(Arrivals("poisson", rate=100), Random(1), inf, (2.0, 2.0))
    assert len(list(islice(endless, 10_000))) == 10_000
    with pytest.raises(ValueError, match="a phase with an end"):
        next(times(Arrivals("poisson", rate=100), Random(1), inf, (1.0, 2.0)))


def test_a_closed_loop_has_no_times_of_its_own() -> None:
    with pytest.raises(ValueError, match="follow the answers"):
        next(times(Arrivals("closed", rate=1.0, users=3), Random(1), 10, LEVEL))


@given(
    kind=st.sampled_from(["constant", "poisson", "gamma"]),
    rate=st.floats(0, 200),
    burstiness=st.floats(0.01, 50),
    seconds=st.just(0.0) | st.floats(1e-6, 5),
    scale=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    seed=st.integers(),
)
def test_times_rise_within_the_phase_and_follow_from_the_seed(
    kind: ArrivalKind, rate: float, burstiness: float, seconds: float, scale: tuple[float, float], seed: int
) -> None:
    at = arrivals_of(kind, rate, seconds, scale=scale, burstiness=burstiness, seed=seed)
    assert at == sorted(at)
    assert all(0 <= moment < seconds for moment in at)
    assert at == arrivals_of(kind, rate, seconds, scale=scale, burstiness=burstiness, seed=seed)
