from __future__ import annotations

import pytest

from gateway.stream.relay import Relay
from gateway.stream.sse import chunk
from tenancy.call import Usage
from tests.instruments.answers import unchunk
from tests.instruments.memory_sink import MemorySink

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a \\"usage\\" of words"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Started:
    """A relay on a started sink, and the source that it reads from."""

    def __init__(self, *, shows_usage: bool = False, is_framed: bool = True) -> None:
        self.sink = MemorySink(is_framed=is_framed)
        self.sink.is_started = True
        self.last = self.previous = b""
        self.aborts = 0
        self.relay = Relay(self.sink, self, shows_usage=shows_usage)

    def abort(self) -> None:
        self.aborts += 1

    def feed(self, mode: str, *pieces: bytes) -> None:
        for piece in pieces:
            framed = chunk(piece) if mode == "frames" else piece
            self.previous, self.last = self.last, framed
            if mode == "frames":
                self.relay.frames(framed)
            else:
                self.relay.payload(framed)


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_usage_is_kept_and_hidden_from_a_client_that_did_not_ask(mode: str) -> None:
    made = Started()
    made.feed(mode, TOKEN, FINISH, USAGE, DONE)
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == TOKEN + FINISH + DONE


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_usage_is_shown_to_a_client_that_asked(mode: str) -> None:
    made = Started(shows_usage=True)
    made.feed(mode, TOKEN, FINISH, USAGE, DONE)
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == TOKEN + FINISH + USAGE + DONE


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_usage_in_an_event_that_says_more_is_taken_out_of_it(mode: str) -> None:
    made = Started()
    made.feed(
        mode, b'data: {"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    )
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'


def test_usage_among_other_events_of_one_piece_is_found() -> None:
    made = Started()
    made.last = chunk(TOKEN + FINISH) + chunk(USAGE + DONE)
    made.relay.frames(made.last)
    assert made.relay.usage == Usage(5, 2)
    assert made.sink.payload == TOKEN + FINISH + DONE
    assert made.relay.has_finished


def test_frames_pass_untouched() -> None:
    made = Started()
    framed = b"%X;ext=1\r\n%b\r\n" % (len(TOKEN), TOKEN)
    made.relay.frames(framed)
    assert made.sink.sent == [framed]


def test_payload_is_cut_into_whole_events_and_framed_for_the_sink() -> None:
    made = Started()
    whole = TOKEN + FINISH
    for at in range(len(whole)):
        made.relay.payload(whole[at : at + 1])
    assert [unchunk(piece) for piece in made.sink.sent] == [TOKEN, FINISH]


def test_an_unframed_sink_gets_bare_events() -> None:
    made = Started(is_framed=False)
    made.feed("payload", TOKEN[:9], TOKEN[9:])
    assert made.sink.sent == [TOKEN]


@pytest.mark.parametrize(
    ("pieces", "has_finished"),
    [
        ((TOKEN, FINISH, USAGE, DONE), True),
        ((TOKEN, DONE), True),
        ((TOKEN, FINISH), True),
        ((TOKEN, FINISH, USAGE), True),
        ((TOKEN, b'data: {"choices":[{"finish_reason":null}]}\n\n'), False),
        ((TOKEN,), False),
        ((), False),
    ],
)
def test_a_stream_is_finished_only_with_a_finish(pieces: tuple[bytes, ...], has_finished: bool) -> None:
    made = Started()
    made.feed("frames", *pieces)
    assert made.relay.has_finished is has_finished


def test_an_error_that_the_pod_reports_is_known() -> None:
    made = Started()
    made.feed("frames", TOKEN, b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', DONE)
    assert made.relay.has_error


def test_an_event_out_of_bounds_stops_the_attempt() -> None:
    made = Started()
    made.relay.payload(b"data: " + b"x" * (9 * 1024 * 1024))
    assert made.aborts == 1
    assert "more than" in made.relay.overflow


@pytest.mark.parametrize("mode", ["frames", "payload"])
def test_events_are_counted_however_many_come_at_once(mode: str) -> None:
    made = Started()
    made.feed(mode, TOKEN, TOKEN + TOKEN + FINISH, DONE)
    assert made.relay.events == 5
