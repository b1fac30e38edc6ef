from __future__ import annotations

from gateway.stream.pulse import Pulse
from tests.instruments.hand_clock import HandClock


class Stream:
    """Notes when it was beaten, and leaves after so many beats."""

    def __init__(self, pulse: Pulse, beats: int = 99) -> None:
        self._pulse = pulse
        self._beats = beats
        self.beaten: list[float] = []

    def beat(self, now: float) -> None:
        self.beaten.append(now)
        if len(self.beaten) == self._beats:
            self._pulse.part(self)


def test_it_beats_while_a_stream_is_open_and_rests_when_none_is() -> None:
    clock = HandClock()
    pulse = Pulse(1.0, clock=clock, call_later=clock.call_later)
    began = clock.now
    stream = Stream(pulse, beats=2)
    pulse.join(stream)
    clock.advance(5.0)
    assert [at - began for at in stream.beaten] == [1.0, 2.0]
    assert len(pulse) == 0
    again = Stream(pulse, beats=1)
    pulse.join(again)
    clock.advance(5.0)
    assert [at - began for at in again.beaten] == [6.0]


def test_a_stream_that_parts_during_a_beat_does_not_disturb_the_others() -> None:
    clock = HandClock()
    pulse = Pulse(1.0, clock=clock, call_later=clock.call_later)
    first, second = Stream(pulse, beats=1), Stream(pulse, beats=2)
    pulse.join(first)
    pulse.join(second)
    clock.advance(3.0)
    assert (len(first.beaten), len(second.beaten)) == (1, 2)
