"""What two processes say to each other arrives as it was said, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import Histogram
from loadtest.messages import (
    Begin,
    Call,
    Ended,
    Failed,
    FromStreams,
    Lane,
    Progress,
    Ready,
    Run,
    Sparse,
    Stop,
    Strain,
    ToStreams,
    encode,
    from_streams,
    to_streams,
)
from loadtest.scenario import (
    Arrivals,
    Bounds,
    Cancel,
    Columns,
    Objectives,
    Phase,
    Scenario,
    Span,
    Sweep,
    Target,
    Tenant,
    Trace,
)

SCENARIO = Scenario(
    Target("http://[::1]:8080/v1", "m", body={"top_k": 1, "stop": ["a"]}, also=("http://127.0.0.1:2/v1",)),
    (
        Tenant(
            "a", "secret", Arrivals("gamma", 2.5, 0.3), Span(1, 9), Span(2, 2), Cancel(0.5, Span(1, 4)), 0.8, "other"
        ),
        Tenant("b", arrivals=Arrivals("closed", users=3, think=Span(0.0, 1.5))),
        Tenant("c"),
    ),
    (Phase("one", 60.0, ("a", "b"), (0.0, 2.0)), Phase("zwei – 二", None, ("c",))),
    seed=7,
    warmup_seconds=5.0,
    objectives=Objectives(ttft=0.5, e2e=30.0),
    bounds=Bounds(600.0, 100, 50),
    trace=Trace("conv.csv", {"c": 1.0}, 20.0, Columns("t", "i", "o", None), 2048, "skip"),
    sweep=Sweep("rate", 1.0, 64.0),
)

floats = st.floats(allow_nan=False)
counts = st.integers(0, 2**60)
words = st.text(max_size=12)
calls = st.builds(
    Call,
    scheduled=floats, sent=floats, first=st.none() | floats, last=st.none() | floats, ended=floats, input=counts,
    output=counts, events=counts, prompt_tokens=st.integers(-1, 9), completion_tokens=st.integers(-1, 9),
    status=st.integers(0, 599), code=words, longest_gap=floats, gap_count=counts, is_reused=st.booleans(),
    request_id=words, gaps=st.lists(floats, max_size=3),
)  # fmt: skip
sparses = st.builds(
    Sparse, buckets=st.lists(counts, max_size=3), counts=st.lists(counts, max_size=3),
    total=floats, least=floats, greatest=floats,
)  # fmt: skip
lanes = st.builds(
    Lane, scheduled=counts, sent=counts, open=counts, waiting=counts, events=counts, reads=counts, never_sent=counts,
    clipped=counts, skipped=counts, gaps=sparses, calls=st.lists(calls, max_size=3),
)  # fmt: skip
strains = st.builds(
    Strain, seconds=floats, timer_lag=sparses, send_lag=sparses, cpu_seconds=floats, starved_seconds=floats,
    pressure=floats, rss_bytes=counts, stalls=st.lists(st.tuples(floats, floats), max_size=2),
)  # fmt: skip
from_streams_messages = st.one_of(
    st.builds(Ready, pid=counts),
    st.builds(Failed, reason=words),
    st.builds(
        Ended, index=counts, load_seconds=floats, seconds=floats, started_epoch=floats, reason=words
    ),
    st.builds(Progress, index=counts, at=floats, lanes=st.lists(lanes, max_size=2), strain=strains, lost_calls=counts),
)  # fmt: skip
to_streams_messages = st.one_of(
    st.just(Stop()),
    st.builds(Run, index=counts, phase=st.sampled_from(SCENARIO.phases), drain_seconds=floats, most_requests=counts),
    st.builds(
        Begin, scenario=st.just(SCENARIO), addresses=st.lists(st.tuples(words, counts), max_size=2),
        open_streams=counts, keep_gaps=st.booleans(),
    ),
)  # fmt: skip


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(messages=st.lists(from_streams_messages, max_size=4), places=st.lists(st.integers(0, 10_000), max_size=12))
def test_what_the_streams_say_arrives_as_it_was_said(messages: list[FromStreams], places: list[int]) -> None:
    frames = from_streams()
    data = b"".join(encode(message) for message in messages)
    assert [message for piece in cut(data, places) for message in frames.feed(piece)] == messages


@given(messages=st.lists(to_streams_messages, max_size=4), places=st.lists(st.integers(0, 10_000), max_size=12))
def test_what_the_streams_are_told_arrives_as_it_was_said(messages: list[ToStreams], places: list[int]) -> None:
    frames = to_streams()
    data = b"".join(encode(message) for message in messages)
    assert [message for piece in cut(data, places) for message in frames.feed(piece)] == messages


def test_a_message_is_there_with_its_last_byte_and_no_sooner() -> None:
    frames, data = from_streams(), encode(Ready(7)) + encode(Failed("no"))
    heard: list[Any] = []
    for number in range(len(data)):
        heard += frames.feed(data[number : number + 1])
        assert len(heard) == (number + 1 >= len(encode(Ready(7)))) + (number + 1 == len(data))
    assert heard == [Ready(7), Failed("no")]


def test_a_scenario_arrives_with_all_that_it_says() -> None:
    (begin,) = to_streams().feed(encode(Begin(SCENARIO, [("127.0.0.1", 80)], 10)))
    assert isinstance(begin, Begin)
    assert begin.scenario == SCENARIO
    assert begin.scenario.tenants[0].key == "secret"
    assert begin.scenario.phases[1].tenants == ("c",)
    assert begin.addresses == [("127.0.0.1", 80)]


def test_a_message_of_the_other_direction_is_none_here() -> None:
    with pytest.raises(msgspec.ValidationError):
        to_streams().feed(encode(Ready(7)))
    with pytest.raises(msgspec.ValidationError):
        from_streams().feed(encode(Stop()))


@given(st.lists(st.floats(1e-6, 1e4), max_size=30))
def test_a_histogram_arrives_as_it_was(values: list[float]) -> None:
    histogram = Histogram()
    histogram.add(values)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(Sparse.of(histogram)), type=Sparse).histogram()
    assert again.sparse() == histogram.sparse()
    assert (again.total, again.least, again.greatest) == (histogram.total, histogram.least, histogram.greatest)


def test_a_message_of_which_only_counts_changed_is_small() -> None:
    """Four a second, of a hundred tenants: what it costs is seen by whoever measures."""
    lane = Lane(10**6, 10**6, 10**4, 0, 10**8, 10**8, 0, 0, 0, Sparse(), [])
    strain = Strain(0.25, Sparse([900], [12]), Sparse(), 0.1, 0.0, 0.0, 10**8, [])
    assert len(encode(Progress(0, 1.0, [lane] * 100, strain))) < 10_000
