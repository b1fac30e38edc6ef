"""Whether the tool tells on itself, on a clock that is moved by hand: lags, stops, cores, and what is said of them."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.messages import Sparse, Strain
from loadtest.strain import (
    MOST_STALLS,
    TICK_SECONDS,
    Own,
    StrainMeter,
    StrainTotal,
    marks,
    pressure_seconds,
    rss_bytes,
    starved_seconds,
)
from loadtest.summary import StrainSummary


class Handle:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """A loop and its clock. Timers fire when the loop is free, so a freeze makes them late; `grain` rounds delays to
    whole milliseconds, as uvloop does, and all come `early`.
    """

    def __init__(self, grain: float = 0.0, early: float = 0.0) -> None:
        self.now = 1000.0
        self.grain = grain
        self.early = early
        self.cpu = 0.0
        self.starved = 0.0
        self.pressure: float | None = 0.0
        self.armed = 0
        self._timers: list[tuple[float, int, Handle, Callable[[], object]]] = []
        self._order = count()
        self.meter = StrainMeter(
            self,
            lambda: self.now,
            Own(lambda: self.cpu, lambda: self.starved, lambda: self.pressure, lambda: 4096),
        )

    def call_later(self, seconds: float, callback: Callable[[], object], /) -> Handle:
        assert seconds >= 0
        self.armed += 1
        if self.grain:
            seconds = round(seconds / self.grain) * self.grain
        handle = Handle()
        heapq.heappush(self._timers, (self.now + seconds - self.early, next(self._order), handle, callback))
        return handle

    def run(self, seconds: float) -> None:
        """Let the loop work for some seconds."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, handle, callback = heapq.heappop(self._timers)
            if not handle.is_cancelled:
                self.now = max(self.now, due)
                callback()
        self.now = max(self.now, end)

    def freeze(self, seconds: float) -> None:
        """Time passes, and the loop does nothing."""
        self.now += seconds


def lags(strain: Strain) -> Histogram:
    return strain.timer_lag.histogram()


def strain(**more: float) -> Strain:
    known: dict[str, float] = {"seconds": 1.0, "cpu_seconds": 0.0, "starved_seconds": 0.0, "pressure": 0.0, **more}
    return Strain(
        seconds=known["seconds"],
        timer_lag=Sparse(),
        send_lag=Sparse(),
        cpu_seconds=known["cpu_seconds"],
        starved_seconds=known["starved_seconds"],
        pressure=known["pressure"],
        rss_bytes=int(known.get("rss_bytes", 0)),
        stalls=[],
    )


# ---- the meter ------------------------------------------------------------------------------------------------------


def test_a_loop_that_keeps_up_has_fifty_ticks_a_second_without_lag() -> None:
    world = World()
    world.meter.start()
    world.run(10.005)
    told = world.meter.take()
    assert lags(told).count == 500
    assert told.timer_lag.greatest < 1e-6
    assert told.stalls == []
    assert told.seconds == pytest.approx(10.005)


def test_a_stop_of_a_second_counts_as_the_fifty_ticks_that_it_swallowed() -> None:
    world = World()
    world.meter.start()
    world.run(0.1)  # the fifth tick was just now, the sixth is due in 20 ms
    world.freeze(1.0 + TICK_SECONDS)
    world.run(TICK_SECONDS / 2)
    told = world.meter.take()
    late = lags(told)
    assert late.count == 5 + 51
    assert told.timer_lag.greatest == pytest.approx(1.0)
    assert late.total == pytest.approx(sum(TICK_SECONDS * tick for tick in range(51)), rel=1e-6)
    assert late.quantile(0.99) == pytest.approx(1.0, rel=0.03)


def test_one_second_in_twenty_lies_at_the_p99_where_latencies_would_have_it() -> None:
    """The arithmetic of open-loop calls: with a share s of the time frozen for F seconds, lag p99 is F·(1 − 0.01/s)."""
    world = World()
    world.meter.start()
    world.run(19.0)
    world.freeze(1.0)
    world.run(0.001)
    assert lags(world.meter.take()).quantile(0.99) == pytest.approx(0.8, rel=0.05)


def test_a_stall_is_listed_with_its_start_and_length() -> None:
    world = World()
    world.meter.start()
    began = world.now
    world.run(2.0)
    world.freeze(0.5)
    world.run(1.0)
    ((start, length),) = world.meter.take(began).stalls
    assert start == pytest.approx(2.0, abs=TICK_SECONDS + 1e-6)
    assert length == pytest.approx(0.5, abs=TICK_SECONDS + 1e-6)


@pytest.mark.parametrize(("frozen", "stalls"), [(0.24, 0), (0.30, 1)])
def test_only_a_quarter_of_a_second_is_a_stall(frozen: float, stalls: int) -> None:
    world = World()
    world.meter.start()
    world.run(1.0)
    world.freeze(frozen)
    world.run(1.0)
    assert len(world.meter.take().stalls) == stalls


def test_who_takes_before_the_late_timer_fires_is_told_of_the_stop_all_the_same() -> None:
    world = World()
    world.meter.start()
    world.run(0.1)
    world.freeze(1.0)
    told = world.meter.take()
    assert told.timer_lag.greatest == pytest.approx(0.98)
    assert len(told.stalls) == 1
    world.run(1.0)
    after = world.meter.take()
    assert lags(after).count == pytest.approx(50, abs=1)
    assert after.timer_lag.greatest < 1e-6
    assert after.stalls == []


def test_taking_on_time_neither_adds_nor_loses_a_tick() -> None:
    world = World()
    world.meter.start()
    ticks = 0
    for _ in range(40):
        world.run(0.25)
        ticks += lags(world.meter.take()).count
    assert ticks == pytest.approx(500, abs=1)


def test_ticks_keep_their_grid_though_each_is_late() -> None:
    """A timer that is armed anew by its own lag would have fewer ticks, and a stop would shift all that follow."""
    world = World()
    world.meter.start()
    for _ in range(100):
        world.freeze(0.015)  # as though each turn took 15 ms
        world.run(0.005)
    assert lags(world.meter.take()).count == pytest.approx(100, abs=1)


@pytest.mark.parametrize("offset", [0.0, 0.0003, 0.0007])
def test_timers_of_whole_milliseconds_neither_spin_nor_count_as_lag(offset: float) -> None:
    world = World(grain=0.001)
    world.run(offset)
    world.meter.start()
    for _ in range(100):
        world.run(0.0201)
        world.freeze(0.0002)
    told = world.meter.take()
    assert world.armed <= 103
    assert told.timer_lag.greatest <= 0.0015
    assert marks(StrainSummary(timer_lag_p99=lags(told).quantile(0.99)), "x") == []


def test_a_timer_that_comes_early_is_on_time() -> None:
    world = World(early=0.0005)
    world.meter.start()
    world.run(1.0)
    told = world.meter.take()
    assert lags(told).count == 50
    assert told.timer_lag.greatest == 0.0


@given(st.lists(st.tuples(st.sampled_from(["run", "freeze", "take"]), st.floats(0.0, 1.5)), max_size=30))
def test_each_tick_that_fell_due_is_told_once(steps: list[tuple[str, float]]) -> None:
    world = World()
    world.meter.start()
    began, told = world.now, 0
    for step, seconds in steps:
        if step == "take":
            told += lags(world.meter.take()).count
        elif step == "run":
            world.run(seconds)
        else:
            world.freeze(seconds)
    world.run(0.001)
    told += lags(world.meter.take()).count
    assert abs(told - (world.now - began) / TICK_SECONDS) <= 1.001


def test_sendings_are_taken_once() -> None:
    world = World()
    world.meter.start()
    note = world.meter.note_send_lag
    for late in (0.001, 0.002, 0.003):
        note(late)
    told = world.meter.take()
    assert told.send_lag.histogram().count == 3
    assert told.send_lag.total == pytest.approx(0.006)
    note(0.004)  # the name is bound once, by who sends
    assert world.meter.take().send_lag.histogram().count == 1
    assert world.meter.take().send_lag.histogram().count == 0


def test_core_waiting_and_pressure_are_of_the_time_since_the_last_taking() -> None:
    world = World()
    world.cpu, world.starved, world.pressure = 100.0, 50.0, 7.0
    world.meter.start()
    world.run(2.0)
    world.cpu, world.starved, world.pressure = 101.0, 50.5, 7.4
    told = world.meter.take()
    assert (told.cpu_seconds, told.starved_seconds) == (1.0, 0.5)
    assert told.pressure == pytest.approx(0.2)
    assert told.rss_bytes == 4096
    world.run(1.0)
    again = world.meter.take()
    assert again.seconds == pytest.approx(1.0)
    assert (again.cpu_seconds, again.starved_seconds, again.pressure) == (0.0, 0.0, 0.0)


def test_what_was_before_the_start_is_not_counted() -> None:
    world = World()
    world.meter.note_send_lag(9.0)
    world.cpu = 5.0
    world.run(60.0)
    world.meter.start()
    world.run(1.0)
    told = world.meter.take()
    assert told.seconds == pytest.approx(1.0)
    assert told.cpu_seconds == 0.0
    assert told.send_lag.histogram().count == 0


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, 3.0), (3.0, None)])
def test_pressure_that_the_kernel_does_not_tell_is_not_told(before: float | None, after: float | None) -> None:
    world = World()
    world.pressure = before
    world.meter.start()
    world.run(1.0)
    world.pressure = after
    assert world.meter.take().pressure == -1.0


def test_pressure_is_a_share_whatever_the_kernel_rounds() -> None:
    world = World()
    world.meter.start()
    world.run(1.0)
    world.pressure = 1.3
    assert world.meter.take().pressure == 1.0


def test_a_meter_that_is_stopped_leaves_no_timer_and_ticks_no_more() -> None:
    world = World()
    world.meter.start()
    world.run(1.0)
    world.meter.stop()
    assert lags(world.meter.take()).count == pytest.approx(50, abs=1)
    world.run(5.0)
    assert lags(world.meter.take()).count == 0
    world.meter.stop()


def test_a_start_while_it_runs_does_not_tick_twice() -> None:
    world = World()
    world.meter.start()
    world.run(1.0)
    world.meter.start()
    world.run(1.0)
    assert lags(world.meter.take()).count == pytest.approx(50, abs=1)


def test_stalls_are_bounded_and_the_longest_are_kept() -> None:
    world = World()
    world.meter.start()
    for stop in range(MOST_STALLS + 50):
        world.freeze(0.3 + stop * 0.001)
        world.run(0.05)
    kept = world.meter.take().stalls
    assert len(kept) == MOST_STALLS
    assert min(length for _, length in kept) > 0.3 + 49 * 0.001 - TICK_SECONDS


def test_a_night_asleep_counts_as_an_hour() -> None:
    world = World()
    world.meter.start()
    world.freeze(8 * 3600.0)
    world.run(1.0)
    told = world.meter.take()
    assert lags(told).count == pytest.approx(180_000 + 50, abs=2)
    assert told.stalls[0][1] == pytest.approx(8 * 3600.0, abs=0.1)


# ---- what the kernel tells ------------------------------------------------------------------------------------------


def test_the_kernels_figures_are_read(tmp_path: Path) -> None:
    (tmp_path / "schedstat").write_text("609483 2500000000 2\n")
    (tmp_path / "cpu").write_text(
        "some avg10=0.00 avg60=0.18 avg300=0.39 total=5551947929\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    (tmp_path / "statm").write_text("765 427 399 5 0 123 0\n")
    assert starved_seconds(tmp_path / "schedstat") == 2.5
    assert pressure_seconds(tmp_path / "cpu") == pytest.approx(5551.947929)
    assert rss_bytes(tmp_path / "statm") > 427 * 1024


@pytest.mark.parametrize("text", [None, "", "nonsense", "some avg10=0.00 total=x", "0"])
def test_a_kernel_that_tells_nothing_stops_nobody(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    assert starved_seconds(path) == 0.0
    assert pressure_seconds(path) is None
    assert rss_bytes(path) == 0


def test_this_process_has_its_own_figures() -> None:
    own = Own()
    assert own.cpu_seconds() > 0
    assert own.starved_seconds() >= 0
    assert own.rss_bytes() > 2**20
    pressure = own.pressure_seconds()
    assert pressure is None or pressure >= 0


# ---- what follows ---------------------------------------------------------------------------------------------------


def test_messages_add_up_by_their_time() -> None:
    total = StrainTotal()
    total.add(strain(seconds=2.0, cpu_seconds=0.9, starved_seconds=0.3, pressure=0.8, rss_bytes=100))
    total.add(strain(seconds=6.0, cpu_seconds=0.3, starved_seconds=0.1, pressure=0.0, rss_bytes=300))
    total.add(strain(seconds=2.0, pressure=-1.0, rss_bytes=200))
    told = total.summary()
    assert told.core == pytest.approx(1.2 / 10)
    assert told.starved == pytest.approx(0.4 / 10)
    assert told.pressure == pytest.approx(0.8 * 2 / 8)  # of the time in which it was known
    assert told.rss_bytes == 300


def test_lags_of_all_messages_make_one_p99() -> None:
    total = StrainTotal()
    for late in (0.001, 0.010):
        part = strain()
        part.timer_lag = sparse(array("d", [late] * 50))
        part.send_lag = sparse(array("d", [late] * 49))
        total.add(part)
    told = total.summary()
    assert told.timer_lag_p99 == pytest.approx(0.010, rel=0.01)
    assert told.send_lag_p99 is None  # 98 sendings: no p99 under 100


def test_a_summary_of_nothing_says_nothing() -> None:
    told = StrainTotal().summary()
    assert told == StrainSummary()
    assert marks(told, "x") == []


def test_the_longest_stalls_of_a_phase_are_kept_in_order_of_time() -> None:
    total = StrainTotal()
    for message in range(3):
        part = strain()
        part.stalls = [(message * 100.0 + at, 0.3 + at / 1000) for at in range(MOST_STALLS)]
        total.add(part)
    stalls = total.summary().stalls
    assert len(stalls) == MOST_STALLS
    assert stalls == sorted(stalls)
    assert min(length for _, length in stalls) == pytest.approx(0.3 + 66 / 1000)


LIMITS = [
    (StrainSummary(timer_lag_p99=0.005), StrainSummary(timer_lag_p99=0.0051), "client-bound", "5.1 ms late"),
    (StrainSummary(send_lag_p99=0.005), StrainSummary(send_lag_p99=0.0061), "client-bound", "sent 6.1 ms late"),
    (StrainSummary(core=0.85), StrainSummary(core=0.86), "client-bound", "86% of a core"),
    (StrainSummary(), StrainSummary(stalls=[(3.0, 1.0)]), "client-bound", "still for 1.00 s from 3.0 s on"),
    (StrainSummary(pressure=0.20), StrainSummary(pressure=0.21), "machine-bound", "21% of the time"),
    (StrainSummary(starved=0.20), StrainSummary(starved=0.25), "machine-bound", "no core during 25%"),
]


@pytest.mark.parametrize(("good", "bad", "kind", "words"), LIMITS)
def test_each_limit_marks_from_just_above_it(good: StrainSummary, bad: StrainSummary, kind: str, words: str) -> None:
    assert marks(good, "steady") == []
    (mark,) = marks(bad, "steady")
    assert (mark.kind, mark.phase) == (kind, "steady")
    assert words in mark.text


def test_all_reasons_of_a_kind_stand_in_one_mark() -> None:
    told = marks(
        StrainSummary(
            timer_lag_p99=0.99, send_lag_p99=0.5, core=0.9, pressure=0.6, starved=0.5, stalls=[(1.0, 0.3), (5.0, 2.0)]
        ),
        "crowded",
    )
    assert [mark.kind for mark in told] == ["client-bound", "machine-bound"]
    client, machine = (mark.text for mark in told)
    for words in (
        "990.0 ms late",
        "sent 500.0 ms late",
        "90% of a core",
        "2.00 s from 5.0 s on, the longest of 2 stops",
    ):
        assert words in client
    assert "60% of the time" in machine


def test_a_container_that_hides_pressure_is_told_by_its_own_waiting() -> None:
    (mark,) = marks(StrainSummary(pressure=None, starved=0.4), "")
    assert mark.kind == "machine-bound"
    assert "the tool could have run and had no core during 40%" in mark.text


def sparse(values: array[float]) -> Sparse:
    histogram = Histogram()
    histogram.add(np.asarray(values))
    return Sparse.of(histogram)
