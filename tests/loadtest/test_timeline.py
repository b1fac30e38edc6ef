"""The time line: bounded, and nothing that happened is lost from it, however long the phase."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.histogram import buckets_of
from loadtest.timeline import (
    DONE,
    FAILED,
    FEWEST_STRETCHES,
    FIRST_STRETCH_SECONDS,
    MOST_IN_ALL,
    MOST_STRETCHES,
    SCHEDULED,
    TOKENS,
    Timeline,
)

NAMES = {SCHEDULED: "scheduled", DONE: "done", FAILED: "failed", TOKENS: "tokens"}


@dataclass
class Plain:
    """All that happened, kept one by one."""

    counts: list[tuple[int, int, float, int]] = field(default_factory=list)
    ttft: list[tuple[int, float, float]] = field(default_factory=list)
    open: list[tuple[int, float, int]] = field(default_factory=list)


times = st.one_of(st.floats(0, 30), st.floats(0, 500), st.floats(0, 40_000))
happenings = st.lists(
    st.tuples(
        st.sampled_from(["count", "add", "open", "ttft"]),
        st.integers(0, 2),
        st.sampled_from(list(NAMES)),
        st.lists(st.tuples(times, st.integers(0, 50), st.floats(1e-6, 50)), max_size=4),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(happenings)
def test_nothing_is_lost_and_all_stands_where_it_happened(
    happened: list[tuple[str, int, int, list[tuple[float, int, float]]]],
) -> None:
    line, plain = Timeline(3), Plain()
    for how, lane, what, each in happened:
        dues, amounts, latencies = (np.array([one[n] for one in each], dtype=np.float64) for n in range(3))
        if how == "count":
            line.count(lane, what, dues, amounts.astype(np.int64))
            plain.counts += [(lane, what, t, int(n)) for t, n in zip(dues.tolist(), amounts.tolist(), strict=True)]
        elif how == "ttft":
            line.add_ttft(lane, dues, latencies)
            plain.ttft += [(lane, t, y) for t, y in zip(dues.tolist(), latencies.tolist(), strict=True)]
        else:
            for t, n in zip(dues.tolist(), amounts.astype(int).tolist(), strict=True):
                if how == "add":
                    line.add(lane, what, t, n)
                    plain.counts.append((lane, what, t, n))
                else:
                    line.see_open(lane, t, n)
                    plain.open.append((lane, t, n))
    counted = Counter({(lane, what, slot(line, at)): 0 for lane, what, at, _ in plain.counts})
    for lane, what, at, n in plain.counts:
        counted[lane, what, slot(line, at)] += n
    lengths = set()
    for lane in range(3):
        streams: dict[int, int] = {}
        for owner, at, n in plain.open:
            if owner == lane:
                streams[slot(line, at)] = max(streams.get(slot(line, at), 0), n)
        ttft: dict[int, Counter[int]] = {}
        for owner, at, y in plain.ttft:
            if owner == lane:
                ttft.setdefault(slot(line, at), Counter())[int(buckets_of(y))] += 1
        moments = line.moments(lane, 100.0)
        lengths.add(len(moments))
        assert len(moments) <= MOST_STRETCHES
        assert [moment.at for moment in moments] == [100.0 + n * line.stretch_seconds for n in range(len(moments))]
        for number, moment in enumerate(moments):
            for what, name in NAMES.items():
                assert getattr(moment, name) == counted.pop((lane, what, number), 0)
            streams.setdefault(number, 0)
            assert moment.open == streams.pop(number)
            assert moment.ttft_buckets == sorted(moment.ttft_buckets)
            held = dict(zip(moment.ttft_buckets, moment.ttft_counts, strict=True))
            assert held == ttft.pop(number, {})
        assert not any(streams.values()) and not ttft
    assert not any(counted.values())
    assert len(lengths) == 1


def slot(line: Timeline, at: float) -> int:
    """In which stretch a time lies, now that the line has grown."""
    return int(at / line.stretch_seconds)


def test_the_line_is_bounded_however_long_the_phase() -> None:
    line = Timeline(1)
    for hour in range(240):
        line.count(0, DONE, np.arange(hour * 3600, (hour + 1) * 3600, 9.0))
        assert len(line.moments(0, 0.0)) <= MOST_STRETCHES
    moments = line.moments(0, 0.0)
    assert sum(moment.done for moment in moments) == 240 * 400
    assert len(moments) > MOST_STRETCHES // 2
    assert moments[-1].at + moments[-1].seconds >= 240 * 3600 - 9


@pytest.mark.parametrize("lanes", [1, 50, 51, 100, 300, 1000])
def test_many_tenants_have_fewer_stretches_each(lanes: int) -> None:
    line = Timeline(lanes)
    assert FEWEST_STRETCHES <= line.most <= MOST_STRETCHES
    assert lanes * line.most <= max(MOST_IN_ALL, lanes * FEWEST_STRETCHES)
    assert line.most % 2 == 0


def test_a_stretch_begins_at_a_quarter_second_and_doubles_when_the_line_is_full() -> None:
    line = Timeline(1)
    full = MOST_STRETCHES * FIRST_STRETCH_SECONDS
    line.add(0, DONE, full - 0.01, 1)
    assert line.stretch_seconds == FIRST_STRETCH_SECONDS
    line.add(0, DONE, full, 1)
    assert line.stretch_seconds == 2 * FIRST_STRETCH_SECONDS
    line.add(0, DONE, 5 * full, 1)
    assert line.stretch_seconds == 8 * FIRST_STRETCH_SECONDS


def test_what_came_a_clocks_grain_before_the_start_is_in_the_first_stretch() -> None:
    line = Timeline(1)
    line.count(0, DONE, np.array([-1e-9]))
    assert [moment.done for moment in line.moments(0, 5.0)] == [1]


def test_a_stretch_tells_a_p99_from_a_hundred_calls_on() -> None:
    line = Timeline(1)
    line.add_ttft(0, np.full(99, 0.1), np.full(99, 0.05))
    line.add_ttft(0, np.full(100, 0.3), np.linspace(0.01, 1.0, 100))
    few, enough = line.moments(0, 0.0)
    assert few.ttft_p50 == pytest.approx(0.05, rel=0.01) and few.ttft_p99 is None
    assert enough.ttft_p50 == pytest.approx(0.5, rel=0.02) and enough.ttft_p99 == pytest.approx(0.99, rel=0.01)


def test_calls_are_counted_whether_sorted_in_or_not() -> None:
    line = Timeline(1)
    for _ in range(20):
        line.add_ttft(0, np.full(10_000, 0.1), np.full(10_000, 0.05))
    assert line.moments(0, 0.0)[0].ttft_counts == [200_000]


def test_a_phase_in_which_nothing_happened_has_no_line() -> None:
    assert Timeline(2).moments(1, 0.0) == []
