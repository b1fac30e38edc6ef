"""The framing against every cut, against httptools, and against what no pod should send."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.framing import FAST_BYTES_MAX, FRAME_HEAD_BYTES, HEAD_BYTES_MAX, TAIL_BYTES_MAX, Framing, frame_heads
from tests.instruments.answers import (
    ANSWERS,
    DONE,
    STREAM_HEAD,
    TERMINATOR,
    Answer,
    chunk,
    events_of,
    token,
    unchunk,
)

EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

each_answer = pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)


@dataclass
class Read:
    """What a framing gave, piece by piece, and the framing itself."""

    framing: Framing
    frames: list[bytes] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    comments: int = 0

    @property
    def body(self) -> bytes:
        return b"".join(map(unchunk, self.frames)) + b"".join(self.payloads)

    def feed(self, data: bytes) -> None:
        frames, payload = self.framing.feed(data)
        if frames:
            assert not self.payloads, "no frames after payload"
            assert unchunk(frames).endswith(EVENT_ENDS), "frames end with an event"
            self.frames.append(frames)
        if payload:
            self.payloads.append(payload)
            self.comments += self.framing.is_comment


def read(pieces: Iterable[bytes], *, frames: bool = True) -> Read:
    result = Read(Framing(frames=frames))
    for piece in pieces:
        if piece:
            result.feed(piece)
    return result


def cut(wire: bytes, places: Sequence[int]) -> Iterator[bytes]:
    yield from (wire[begin:end] for begin, end in pairwise([0, *places, len(wire)]))


def check_whole(answer: Answer, result: Read) -> None:
    framing = result.framing
    if answer.lasts_until_close:
        assert not framing.is_whole
        result.payloads.append(framing.end())
    assert not framing.fault
    assert framing.is_whole
    assert not framing.has_leftover
    assert framing.keeps_alive is answer.keeps_alive
    assert framing.head is not None
    assert framing.head.status == answer.status
    if answer.is_stream:
        assert events_of(result.body) == answer.events
    else:
        assert result.body == answer.body
    if answer.is_framed:
        assert not result.payloads


# ---- every cut -------------------------------------------------------------------------------------------------------


@each_answer
@pytest.mark.parametrize("frames", [True, False], ids=["frames", "payload"])
def test_an_answer_means_the_same_wherever_it_is_cut(answer: Answer, frames: bool) -> None:
    framed = answer if frames else Answer(**{**vars(answer), "is_framed": False})
    check_whole(framed, read([answer.wire], frames=frames))
    check_whole(framed, read((answer.wire[i : i + 1] for i in range(len(answer.wire))), frames=frames))
    for place in range(1, len(answer.wire)):
        check_whole(framed, read(cut(answer.wire, [place]), frames=frames))


@each_answer
def test_an_answer_means_the_same_in_three_pieces(answer: Answer) -> None:
    # From the last bytes of the head on: what comes before is one state, which the cuts in two have covered.
    begin = answer.wire.index(b"\r\n\r\n")
    places = range(begin, len(answer.wire))
    # All pairs of the short ones; of the longer ones a fraction of all, every place among them.
    step = 1 if len(places) < 100 else 7
    for first, second in combinations(places, 2):
        if (second - first) % step == 0:
            check_whole(answer, read(cut(answer.wire, [first, second])))


@pytest.mark.parametrize("answer", [a for a in ANSWERS if not a.lasts_until_close], ids=lambda answer: answer.name)
def test_the_end_is_known_to_the_byte(answer: Answer) -> None:
    for size in range(len(answer.wire)):
        assert not read([answer.wire[:size]]).framing.is_whole
    for rest in (b"H", b"\r\n", TERMINATOR, answer.wire):
        for result in (read([answer.wire + rest]), read([answer.wire, rest])):
            assert result.framing.is_whole
            assert result.framing.has_leftover
            assert not result.framing.fault


@each_answer
def test_what_was_passed_on_when_a_pod_dies_is_the_beginning_and_ends_with_an_event(answer: Answer) -> None:
    for size in range(len(answer.wire)):
        for pieces in ([answer.wire[:size]], (answer.wire[i : i + 1] for i in range(size))):
            result = read(pieces)
            assert result.framing.end() == b"" or answer.lasts_until_close
            assert not result.framing.fault
            if answer.is_stream:
                events = events_of(result.body)
                assert events == answer.events[: len(events)]
            else:
                assert answer.body.startswith(result.body)


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_frames_go_on_exactly_as_the_pod_framed_them() -> None:
    frames = chunk(token("a"), b"%04X") + chunk(token("b") + token("c"))
    assert read([STREAM_HEAD + frames + TERMINATOR]).frames == [frames]


def test_a_frame_whose_bytes_end_as_an_event_does_is_not_taken_for_one() -> None:
    # The payload is one line break, and with its size line the frame ends in two.
    for payload, end in ((b"\n", b"\n\n"), (b"\r\n", b"\r\n\r\n"), (b"\r", b"\r\r")):
        result = read([STREAM_HEAD + chunk(token("a", end)), chunk(payload), chunk(token("b", end))])
        assert result.frames == [chunk(token("a", end))]
        assert result.payloads == [payload, token("b", end)]
        result = read([STREAM_HEAD + chunk(b"data: a"), chunk(payload), chunk(payload)])
        assert not result.frames
        assert result.payloads == [b"data: a" + payload + payload]


def test_what_waits_is_handed_over_first_when_frames_are_given_up() -> None:
    frames = chunk(token("a"))
    half = chunk(b"data: b")
    result = read([STREAM_HEAD + frames, half[:4], half[4:] + chunk(b"\n\n") + chunk(token("c"))])
    assert result.frames == [frames]
    assert b"".join(result.payloads) == b"data: b\n\n" + token("c")


def test_a_chunk_larger_than_the_tail_goes_on_as_payload_while_it_arrives() -> None:
    event = b"data: " + b"x" * TAIL_BYTES_MAX + b"\n\n"
    wire = chunk(token("a")) + chunk(event)
    result = read([STREAM_HEAD, wire[:1000], wire[1000:2000]])
    assert result.frames == [chunk(token("a"))]
    assert sum(map(len, result.payloads)) > 1000
    result.feed(wire[2000:])
    assert result.body == token("a") + event
    assert read([STREAM_HEAD + wire]).frames == [wire], "here whole in one read, it need not wait"


def test_a_chunk_just_below_the_tails_bound_waits() -> None:
    event = b"data: " + b"x" * (TAIL_BYTES_MAX - 8) + b"\n\n"
    wire = chunk(event)
    result = read([STREAM_HEAD, *cut(wire, range(1000, len(wire), 1000))])
    assert result.frames == [wire]
    assert not result.payloads


def test_an_extension_stays_between_the_pod_and_us() -> None:
    result = read([STREAM_HEAD + chunk(token("a")) + chunk(token("b"), extension=b";n=1") + chunk(token("c"))])
    assert result.frames == [chunk(token("a"))]
    assert result.payloads == [token("b") + token("c")]


def test_a_chunk_of_comments_is_dropped_and_its_neighbours_are_joined() -> None:
    result = read([STREAM_HEAD + chunk(token("a")) + chunk(b": ping\n\n") + chunk(token("b")) + chunk(b"\n\n")])
    assert result.frames == [chunk(token("a")) + chunk(token("b"))]


def test_only_an_event_stream_that_succeeded_is_framed() -> None:
    for head in (STREAM_HEAD.replace(b"200 OK", b"400 No"), CHUNKED_HEAD):
        result = read([head + chunk(token("a")) + TERMINATOR])
        assert not result.frames
        assert result.payloads == [token("a")]


# ---- the fast way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_upper", [False, True], ids=["lower", "upper"])
@pytest.mark.parametrize("field_name", [b"data:{", b"data: {", b"event:"])
def test_the_table_of_frames_knows_exactly_the_whole_chunks(is_upper: bool, field_name: bytes) -> None:
    heads = frame_heads(is_upper=is_upper, field=field_name)
    form = b"%X" if is_upper else b"%x"
    known = 0
    for size in range(16, FAST_BYTES_MAX):
        frame = chunk(field_name + b"." * (size - len(field_name) - 2) + b"\n\n", form)
        if len(frame) < FAST_BYTES_MAX:
            known += 1
            assert frame[:FRAME_HEAD_BYTES] == heads[len(frame)]
            for other in (len(frame) - 1, len(frame) + 1):
                assert other >= FAST_BYTES_MAX or frame[:FRAME_HEAD_BYTES] != heads[other]
    assert known > FAST_BYTES_MAX - 30
    smaller = 16 - len(field_name) if field_name == b"data: {" else 0
    assert sum(head != b"" for head in heads) == known + smaller


@given(data=st.binary(max_size=40), size=st.integers(0, 60))
def test_whatever_the_fast_way_takes_the_walk_takes_as_one_frame(data: bytes, size: int) -> None:
    # Bytes that are nearly a chunk: the size line and the end may lie.
    wire = b"%x\r\ndata: {" % size + data + b"\n\n\r\n"
    if wire[:FRAME_HEAD_BYTES] == frame_heads(is_upper=False, field=b"data: {")[len(wire)]:
        result = read([STREAM_HEAD, wire])
        assert result.frames == [wire]
        assert result.framing.is_between_frames


@pytest.mark.parametrize(
    ("payload", "form", "end"),
    [
        (token("abc"), b"%x", b"\n\n\r\n"),
        (token("abc", b"\r\n\r\n"), b"%x", b"\r\n\r\n\r\n"),
        (token("abc"), b"%X", b"\n\n\r\n"),
        (b"event: delta\n" + token("abc", b"\r\n\r\n"), b"%X", b"\r\n\r\n\r\n"),
    ],
    ids=["usual", "CRLF", "upper", "typed"],
)
def test_the_fast_way_learns_how_a_pod_writes(payload: bytes, form: bytes, end: bytes) -> None:
    frame = chunk(payload, form)
    framing = read([STREAM_HEAD, frame]).framing
    assert framing.is_between_frames
    assert frame.startswith(framing.fast_heads[len(frame)])
    assert framing.fast_end == end


def test_the_fast_way_is_closed_inside_a_chunk_and_after_frames_are_given_up() -> None:
    result = read([STREAM_HEAD, chunk(token("a")) + b"5"])
    assert not result.framing.is_between_frames
    result.feed(b"\r\ndat")
    assert not result.framing.is_between_frames
    result.feed(b"a:\r\n")
    assert result.payloads == [b"data:"]
    assert not result.framing.is_between_frames


# ---- what opens an answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [True, False], ids=["frames", "payload"])
def test_a_stream_gives_nothing_before_its_first_whole_event(frames: bool) -> None:
    wire = STREAM_HEAD + chunk(b": ping\r\n\r\n") + chunk(b":\n\n") + chunk(token("a"))
    for size in range(len(wire)):
        result = read((wire[i : i + 1] for i in range(size)), frames=frames)
        # Payload is given as soon as the event is whole, frames with the chunk's own end.
        assert not result.frames
        assert result.body == (b"" if frames or size < len(wire) - 2 else token("a"))
    assert read([wire], frames=frames).body == token("a")


def test_a_first_event_that_is_not_whole_is_given_at_the_end_and_at_the_bound() -> None:
    assert read([STREAM_HEAD + chunk(b": x\n\ndata: a") + TERMINATOR]).body == b"data: a"
    until_close = read([b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: x\n\ndata: a\n"])
    assert not until_close.payloads
    assert until_close.framing.end() == b"data: a\n"
    long = b"data: " + b"x" * TAIL_BYTES_MAX
    result = read([STREAM_HEAD, chunk(long[:60_000]), chunk(long[60_000:])])
    assert result.payloads == [long]


@pytest.mark.parametrize(
    ("payloads", "comments"),
    [
        ([b"data: a\n\n", b": ping\n\n", b"data: b\n\n"], 1),
        ([b"data: a\n\n", b": pi", b"ng data: x", b"\n\n", b"data: b\n\n"], 3),
        ([b"data: a\n\n", b": ping\n\ndata: b\n\n", b"\r\n", b":\r", b"\ndata", b": c\n\n"], 2),
        ([b"data: a\n\n", b"data: :", b":", b"\n", b"\n"], 1),
    ],
)
def test_a_payload_of_comments_is_told_from_data_however_it_is_cut(payloads: list[bytes], comments: int) -> None:
    result = read([STREAM_HEAD, *map(chunk, payloads)], frames=False)
    assert len(result.payloads) == len(payloads)
    assert result.comments == comments


# ---- httptools as the judge ------------------------------------------------------------------------------------------


class Judge:
    """What httptools makes of an answer."""

    def __init__(self, wire: bytes) -> None:
        self.body = b""
        self.is_whole = False
        self.fault = ""
        try:
            httptools.HttpResponseParser(self).feed_data(wire)
        except httptools.HttpParserError as error:
            self.fault = str(error)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True


line_ends = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
fragments = st.one_of(
    st.sampled_from([b"data: ", b"data:", b": ping", b"event: x", b"0", b"5", b"a;b", b"0\r\n\r\n"]),
    line_ends,
    st.binary(max_size=12),
)
payloads_of_chunks = st.lists(fragments, min_size=1, max_size=6).map(b"".join).filter(bool)
size_lines = st.tuples(
    st.sampled_from([b"%x", b"%X", b"%03x", b"%08X"]), st.sampled_from([b"", b"", b"", b";a=b", b';q="x y"', b";z"])
)
chunks = st.tuples(payloads_of_chunks, size_lines)
trailers = st.lists(st.sampled_from([b"a: b\r\n", b"x-long: " + b"y" * 50 + b"\r\n", b"e:\r\n"]), max_size=3)


def body_of(parts: list[tuple[bytes, tuple[bytes, bytes]]], ends: list[bytes]) -> bytes:
    framed = b"".join(chunk(payload, form, extension) for payload, (form, extension) in parts)
    return framed + b"0\r\n" + b"".join(ends) + b"\r\n"


def scatter(data: st.DataObject, wire: bytes) -> list[bytes]:
    places = data.draw(st.lists(st.integers(0, len(wire)), max_size=12).map(sorted), label="cuts")
    return [piece for piece in cut(wire, places) if piece]


@given(data=st.data(), parts=st.lists(chunks, max_size=8), ends=trailers)
def test_chunks_of_anything_are_decoded_as_httptools_decodes_them(
    data: st.DataObject, parts: list[tuple[bytes, tuple[bytes, bytes]]], ends: list[bytes]
) -> None:
    wire = CHUNKED_HEAD + body_of(parts, ends)
    judge = Judge(wire)
    assert judge.is_whole
    assert not judge.fault
    result = read(scatter(data, wire))
    assert result.framing.is_whole
    assert result.body == judge.body


@given(data=st.data(), parts=st.lists(chunks, max_size=8), ends=trailers)
def test_streams_of_anything_have_the_events_that_httptools_sees(
    data: st.DataObject, parts: list[tuple[bytes, tuple[bytes, bytes]]], ends: list[bytes]
) -> None:
    wire = STREAM_HEAD + body_of(parts, ends)
    judge = Judge(wire)
    result = read(scatter(data, wire))
    assert result.framing.is_whole
    assert events_of(result.body) == events_of(judge.body)


@given(
    data=st.data(),
    parts=st.lists(st.tuples(payloads_of_chunks, st.just((b"%x", b""))), min_size=1, max_size=4),
    change=st.sampled_from(["replace", "insert", "delete", "swap"]),
    byte=st.sampled_from(b"0159aAfFgxX+-_ \t\r\n;:\0\xff"),
)
def test_damaged_chunks_are_judged_as_httptools_judges_them(
    data: st.DataObject, parts: list[tuple[bytes, tuple[bytes, bytes]]], change: str, byte: int
) -> None:
    body = bytearray(body_of(parts, []))
    place = data.draw(st.integers(0, len(body) - 2), label="place")
    if change == "replace":
        body[place] = byte
    elif change == "insert":
        body.insert(place, byte)
    elif change == "delete":
        del body[place]
    else:
        body[place], body[place + 1] = body[place + 1], body[place]
    wire = CHUNKED_HEAD + bytes(body)
    judge = Judge(wire)
    for pieces in ([wire], scatter(data, wire)):
        framing = Framing(frames=False)
        payload = b"".join(framing.feed(piece)[1] for piece in pieces)
        if judge.is_whole:
            assert framing.is_whole
            assert payload == judge.body
            assert framing.has_leftover or not judge.fault
        elif framing.is_whole:
            # Only what we drop unread is read less strictly: extensions and trailers.
            assert any(word in judge.fault for word in ("extension", "header", "trailer", "token")), judge.fault
        elif judge.fault and not framing.fault:
            assert any(word in judge.fault for word in ("extension", "header", "trailer", "token")), judge.fault


# ---- what no pod should send -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [CHUNKED_HEAD, STREAM_HEAD], ids=["payload", "frames"])
@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"-5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"1_0\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"\r\n",
        b";x\r\n",
        b"5\nhello\r\n",
        b"12345678901234567\r\n",
        b"5;a\x00b\r\nhello\r\n",
        b"5;" + b"x" * 2000,
        b"5;" + b"x" * 2000 + b"\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhell\r\n0\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"0\r\n" + b"x: y\r\n" * 5000,
    ],
)
def test_a_malformed_body_is_a_fault_and_nothing_after_it_is_read(head: bytes, body: bytes) -> None:
    good = chunk(token("a"))
    for pieces in ([head + good + body], [head, *(good[i : i + 1] for i in range(len(good))), body]):
        result = read(pieces)
        assert result.framing.fault
        assert not result.framing.is_whole
        given = result.body
        result.feed(good)
        assert result.body == given


@pytest.mark.parametrize("head", [CHUNKED_HEAD, STREAM_HEAD], ids=["payload", "frames"])
@pytest.mark.parametrize("body", [b"secret\r\n", b"secret", b"5;secret" + b"x" * 2000, b"5\r\nhello secret"])
def test_a_fault_says_what_is_wrong_without_the_bodys_bytes(head: bytes, body: bytes) -> None:
    fault = read([head + body]).framing.fault
    assert fault
    assert "secret" not in fault


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"\x15\x03\x01",
        b"HTTP/1.1 2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: y\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4000,
    ],
    ids=lambda head: repr(head[:40]),
)
def test_a_malformed_head_is_a_fault(head: bytes) -> None:
    for pieces in ([head], (head[i : i + 1] for i in range(len(head)))) if len(head) < 1000 else ([head],):
        result = read(pieces)
        assert result.framing.fault
        assert result.framing.head is None


def test_a_head_is_read_with_lower_case_names_and_trimmed_values() -> None:
    framing = read([b"HTTP/1.1 429 Slow\r\nRetry-After:  7 \r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"]).framing
    assert framing.head is not None
    assert framing.head.status == 429
    assert framing.head.get(b"retry-after") == b"7"
    assert framing.head.get(b"set-cookie") == b"a"
    assert framing.head.get(b"x-none") is None
    assert not framing.head.is_stream


def test_the_last_event_of_a_stream_may_come_with_its_head_and_its_end() -> None:
    result = read([STREAM_HEAD + chunk(DONE) + TERMINATOR])
    assert result.frames == [chunk(DONE)]
    assert result.framing.is_whole
