from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.sse import EventSplitter, chunk, data_of, frames_of, unchunk

EVENTS = [b"data: one\n\n", b": ping\n\n", b"data: two\r\n\r\n", b"event: x\ndata: three\n\n", b"data: four\r\r"]


@given(st.sets(st.integers(1, sum(map(len, EVENTS)) - 1)))
def test_events_are_whole_however_the_body_is_cut(cuts: set[int]) -> None:
    body = b"".join(EVENTS)
    splitter = EventSplitter()
    edges = [0, *sorted(cuts), len(body)]
    events = [event for start, end in itertools.pairwise(edges) for event in splitter.feed(body[start:end])]
    assert events == EVENTS
    assert splitter.rest == b""


def test_what_is_not_whole_waits() -> None:
    splitter = EventSplitter()
    assert list(splitter.feed(b"data: one\n\ndata: tw")) == [b"data: one\n\n"]
    assert splitter.rest == b"data: tw"


def test_an_event_without_end_is_bounded() -> None:
    splitter = EventSplitter(limit_bytes=10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        list(splitter.feed(b"data: far too long"))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\r\n\r\n", b"{}"),
        (b"event: x\ndata: a\ndata: b\n\n", b"a\nb"),
        (b": a comment\n\n", None),
        (b"event: x\n\n", None),
    ],
)
def test_data_is_read_as_the_standard_says(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8))
def test_unchunk_undoes_chunk(payloads: list[bytes]) -> None:
    assert b"".join(map(unchunk, frames_of(b"".join(map(chunk, payloads))))) == b"".join(payloads)


def test_an_empty_payload_makes_no_chunk_for_it_would_end_the_body() -> None:
    assert chunk(b"") == b""
