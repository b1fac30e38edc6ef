"""What other tools' files are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from loadtest.histogram import Histogram
from loadtest.report.formats import (
    INFINITE,
    DoneCalls,
    Load,
    PhaseCalls,
    deviation,
    file_name,
    peaks,
    pooled,
    quantile,
    write_file,
)
from loadtest.report.lines import FileFault
from loadtest.scenario import Arrivals, Bounds, Objectives, Phase, Scenario, Target, Tenant, Trace
from tests.loadtest.calls import STARTED, a_call, a_cancelled_call, a_refused_call
from tests.loadtest.summaries import a_distribution, a_noisy_neighbour, a_summary, a_sweep

SEED = 5


def load_of(*arrivals: Arrivals | None, **changes: Any) -> Load:
    """The load of a phase whose tenants arrive so; `scale` goes to the phase, all else to the scenario."""
    tenants = tuple(Tenant(f"t{number}", arrivals=each) for number, each in enumerate(arrivals))
    phase = Phase("load", 10.0, tuple(tenant.name for tenant in tenants), changes.pop("scale", (1.0, 1.0)))
    scenario = Scenario(Target("http://127.0.0.1:1/v1", "tiny"), tenants, (phase,), **changes)
    return Load.of(a_summary(scenario=msgspec.to_builtins(scenario)), "load")


def test_latencies_run_from_the_sending_and_from_the_schedule_apart() -> None:
    seen = DoneCalls()
    seen.take(a_call(), STARTED)
    seen.settle()
    means = {name: histogram.mean for name, histogram in seen.histograms.items()}
    assert means == {
        "ttft": 0.75,
        "latency": 2.75,
        "tpot": 0.5,
        "wait": 0.25,
        "ttft_due": 1.0,
        "latency_due": 3.0,
        "inputs": 17,
        "outputs": 5,
        "speed": 2.0,
    }


def test_what_is_noted_of_calls_does_not_pile_up() -> None:
    seen = DoneCalls()
    for _ in range(2500):
        seen.take(a_call(), STARTED)
    assert len(seen.rows) == 500
    assert seen.histograms["ttft"].count == 2000


def test_calls_that_are_not_done_are_in_no_figure_but_the_span() -> None:
    seen = DoneCalls()
    seen.take(a_refused_call(sent=0.5), STARTED)
    seen.take(a_cancelled_call(ended=9.0), STARTED)
    seen.settle()
    assert all(histogram.count == 0 for histogram in seen.histograms.values())
    assert (seen.first_sent, seen.last_ended) == (STARTED + 0.5, STARTED + 9.0)


def test_an_answer_without_text_has_a_wait_and_sizes_alone() -> None:
    seen = DoneCalls()
    seen.take(a_call(first=None, last=None, completion_tokens=0), STARTED)
    seen.settle()
    assert {name for name, histogram in seen.histograms.items() if histogram.count} == {"wait", "inputs", "outputs"}


def test_all_tenants_together_are_what_each_has_and_phases_stay_apart() -> None:
    phases = PhaseCalls()
    for _ in range(1200):  # more than one batch
        phases.take("load", "a", a_call(), STARTED)
    phases.take("load", "b", a_call(completion_tokens=7), STARTED)
    phases.take("other", "b", a_call(), STARTED)
    assert [phases.of("load", name).total("outputs") for name in ("a", "b", "nobody")] == [6000, 7, 0]
    assert phases.all("load").total("outputs") == 6007
    assert phases.all("load").total("outputs") == 6007, "asking changes nothing"


@pytest.mark.parametrize(
    ("count", "percent", "is_told"),
    [(99, 99, False), (100, 99, True), (9, 90, False), (10, 90, True), (1, 50, True), (0, 50, False), (99, 1, False)],
)
def test_a_quantile_is_told_from_enough_samples_on(count: int, percent: int, is_told: bool) -> None:
    histogram = Histogram()
    histogram.add(np.full(count, 0.5))
    assert (quantile(histogram, percent) is not None) == is_told


def test_the_deviation_is_numpys_to_one_percent() -> None:
    values = np.random.default_rng(SEED).lognormal(-3, 0.8, 5000)
    assert deviation(pooled(a_distribution(values))) == pytest.approx(np.std(values), rel=0.01), f"seed {SEED}"
    one = Histogram()
    one.add([0.123])
    assert deviation(one) == 0.0
    assert deviation(Histogram()) is None


def test_a_summarys_distribution_gives_its_histogram_back() -> None:
    histogram = pooled(a_distribution([0.1, 0.2, 0.4]))
    assert (histogram.count, histogram.least, histogram.greatest) == (3, 0.1, 0.4)
    assert histogram.mean == pytest.approx(0.7 / 3)


def test_open_loops_add_their_rates_up() -> None:
    assert load_of(Arrivals("poisson", rate=10), Arrivals("poisson", rate=5)) == Load(15.0, 1.0)
    assert load_of(Arrivals("gamma", rate=10, burstiness=0.5), scale=(2.0, 2.0)) == Load(20.0, 0.5)
    assert load_of(Arrivals("constant", rate=10)) == Load(10.0, INFINITE)
    assert load_of(Arrivals("constant", rate=10), Arrivals("poisson", rate=5)) == Load(15.0, None)
    assert load_of(Arrivals("poisson", rate=1), bounds=Bounds(open_streams=64)) == Load(1.0, 1.0, 64)


def test_closed_loops_add_their_users_up() -> None:
    arrivals = [Arrivals("closed", users=users) for users in (100, 20)]
    assert load_of(*arrivals) == Load(INFINITE, None, 120)
    assert load_of(*arrivals, scale=(0.5, 2.0)) == Load(INFINITE, None, 240)


def test_a_ramp_has_two_rates_and_not_one() -> None:
    load = load_of(Arrivals("poisson", rate=10), scale=(0.5, 2.0))
    assert (load.rate, load.ends) == (None, (5.0, 20.0))
    assert load.ramp() == {"ramp_up_strategy": "linear", "ramp_up_start_rps": 5.0, "ramp_up_end_rps": 20.0}
    assert load_of(Arrivals("poisson", rate=10)).ramp() == {}


def test_a_mix_of_loops_and_a_trace_have_no_one_figure() -> None:
    assert load_of(Arrivals("closed", users=9), Arrivals("poisson", rate=5)) == Load()
    assert load_of(None) == load_of(None, trace=Trace("conv.csv", {"t0": 1.0})) == Load()
    assert load_of(Arrivals("poisson", rate=5), trace=Trace("conv.csv", {"t0": 1.0})) == Load()


def test_objectives_are_seen_whatever_the_load() -> None:
    assert load_of(None, trace=Trace("conv.csv", {"t0": 1.0}), objectives=Objectives(itl=0.05)).has_objectives
    assert not load_of(Arrivals("poisson", rate=5)).has_objectives


def test_a_step_of_a_sweep_has_its_own_load() -> None:
    summary = a_sweep()
    assert summary.sweep is not None
    assert Load.of(summary, summary.sweep.steps[3].phase).rate == 13.5
    summary.sweep.of = "users"
    load = Load.of(summary, summary.sweep.steps[3].phase)
    assert (load.rate, load.concurrency) == (INFINITE, 14)


def test_a_scenario_that_is_none_of_ours_tells_no_load() -> None:
    assert Load.of(a_summary(scenario={"what": "ever"}), "load") == Load()


def test_peaks_are_those_of_all_tenants_at_one_time() -> None:
    phase = a_noisy_neighbour().phases[2]
    victim, crowd = phase.timeline.values()
    assert peaks(phase) == (
        max(a.tokens + b.tokens for a, b in zip(victim, crowd, strict=True)),
        max(a.open + b.open for a, b in zip(victim, crowd, strict=True)),
    )


@pytest.mark.parametrize(
    ("phase", "name"),
    [("alone", "alone"), ("20.5/s", "20.5_s"), ("../../etc", "_.._etc"), ("..", "phase"), ("", "phase")],
)
def test_a_phases_name_cannot_lead_a_path_astray(phase: str, name: str) -> None:
    assert file_name(phase) == name


def test_a_file_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    write_file(str(tmp_path / "new" / "a.json"), b"{}")
    with pytest.raises(FileFault, match=r"cannot write .*a\.json/b\.json"):
        write_file(str(tmp_path / "new" / "a.json" / "b.json"), b"{}")
