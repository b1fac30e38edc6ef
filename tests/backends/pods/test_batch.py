"""The simulator's engine in virtual time: who runs, who waits, who is thrown out, and when each token comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backends.pods.batch import Batch, Sequence, Timing
from backends.pods.kv_cache import Pool, keys
from backends.pods.tally import Tally
from backends.pods.vllm_metrics import Metrics
from backends.pods.words import Grammar, Text, Word

BLOCK = 4
ENDLESS = Grammar(64, never_ends=True)


@dataclass
class Callback:
    at: float
    call: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Clock:
    """Time that passes only when it is told to."""

    now: float = 100.0
    callbacks: list[Callback] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None], /) -> Callback:
        self.callbacks.append(Callback(when, callback))
        return self.callbacks[-1]

    def call_soon(self, callback: Callable[[], None], /) -> Callback:
        return self.call_at(self.now, callback)

    def pass_until(self, moment: float) -> None:
        for _ in range(100_000):
            due = [each for each in self.callbacks if not each.is_cancelled and each.at <= moment]
            if not due:
                break
            first = min(due, key=lambda each: each.at)
            self.callbacks.remove(first)
            self.now = max(self.now, first.at)
            first.call()
        self.now = moment


@dataclass
class Listener:
    """Hears a sequence and notes when."""

    clock: Clock
    times: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None

    def token(self, sequence: Sequence, word: Word | None, finish: str | None) -> str | None:
        self.times.append(round(self.clock.now - 100.0, 6))
        self.text += word.text if word else ""
        self.finish = finish
        return finish


class Engine:
    """A batch with what it needs, and the sequences that were put on it."""

    def __init__(
        self, *, slots: int = 2, blocks: int = 100, queue: int | None = None, timing: Timing | None = None
    ) -> None:
        self.clock = Clock()
        self.pool = Pool(blocks, BLOCK, 64)
        self.tally = Tally()
        self.metrics = Metrics("m", {})
        self.batch = Batch(
            self.pool,
            slots=slots,
            queue=queue,
            timing=timing or Timing(first=0.05, between=0.02),
            metrics=self.metrics,
            random=Random(1),
            loop=self.clock,
        )
        self._seeds = count(1)

    def sequence(self, *, prompt: int = 3, limit: int = 5, salt: str = "a") -> tuple[Sequence, Listener]:
        seed = next(self._seeds)
        pieces = [f"{seed}.{place}" for place in range(prompt)]
        names = keys(salt, pieces, BLOCK)
        listener = Listener(self.clock)
        rows = self.tally.rows(salt, "")
        source = Text(ENDLESS, seed, "", is_reply=True)
        return Sequence(salt, names, pieces[len(names) * BLOCK :], prompt, source, limit, rows, listener), listener

    def submit(self, *, prompt: int = 3, limit: int = 5, salt: str = "a") -> tuple[Sequence, Listener]:
        sequence, listener = self.sequence(prompt=prompt, limit=limit, salt=salt)
        self.batch.submit([sequence])
        return sequence, listener

    def wait(self, seconds: float) -> None:
        self.clock.pass_until(self.clock.now + seconds)


def text(seed: int, length: int) -> str:
    """What an undisturbed sequence of this seed says."""
    source = Text(ENDLESS, seed, "", is_reply=True)
    return "".join(word.text for _ in range(length) if (word := source.next()) is not None)


def test_tokens_come_at_their_times() -> None:
    engine = Engine()
    _, listener = engine.submit(limit=4)
    engine.wait(1)
    assert listener.times == [0.05, 0.07, 0.09, 0.11]
    assert listener.finish == "length"


def test_a_mean_time_below_the_tick_is_kept_over_many_tokens() -> None:
    engine = Engine(timing=Timing(first=0.0, between=0.0003), blocks=300)
    _, listener = engine.submit(limit=1001)
    engine.wait(1)
    assert listener.times[-1] == pytest.approx(0.3, abs=0.0011)


def test_prefill_and_batch_size_slow_it_down_as_set() -> None:
    engine = Engine(timing=Timing(first=0.01, between=0.02, prefill_per_token=0.001, between_slope=0.005))
    _, first = engine.submit(prompt=10, limit=2)
    engine.submit(prompt=10, limit=50)
    engine.wait(1)
    assert first.times == [0.02, 0.05]


def test_spread_times_stay_within_their_bounds() -> None:
    engine = Engine(
        timing=Timing(first=0.05, between=0.02, first_spread=0.02, between_spread=0.01), slots=50, blocks=400
    )
    listeners = [engine.submit(limit=20)[1] for _ in range(50)]
    engine.wait(2)
    firsts = [listener.times[0] for listener in listeners]
    gaps = [after - before for each in listeners for before, after in zip(each.times, each.times[1:], strict=False)]
    assert 0.03 <= min(firsts) < max(firsts) <= 0.071
    assert 0.009 <= min(gaps) < max(gaps) <= 0.031
    assert sum(gaps) / len(gaps) == pytest.approx(0.02, rel=0.05)


def test_who_finds_no_slot_waits_in_order() -> None:
    engine = Engine(slots=1)
    for _ in range(3):
        engine.submit(limit=1)
    assert (engine.batch.running_count, engine.batch.waiting_count) == (1, 2)
    engine.wait(0.051)
    assert (engine.batch.running_count, engine.batch.waiting_count) == (1, 1)
    engine.wait(1)
    assert engine.tally.all.most_running == 1
    assert engine.pool.all.now == 0


def test_a_head_that_lacks_memory_is_not_passed() -> None:
    engine = Engine(slots=3, blocks=4)
    engine.submit(prompt=12, limit=2)
    engine.submit(prompt=12, limit=2)
    _, small = engine.submit(prompt=1, limit=1)
    engine.wait(0.06)
    assert small.times == []
    engine.wait(1)
    assert small.finish == "length"


def test_the_queue_holds_so_many_and_no_more() -> None:
    engine = Engine(slots=1, queue=1)
    assert engine.batch.has_room([engine.sequence()[0]])
    engine.submit()
    assert engine.batch.has_room([engine.sequence()[0]])
    engine.submit()
    assert not engine.batch.has_room([engine.sequence()[0]])
    engine.wait(1)
    assert engine.batch.has_room([engine.sequence()[0]])


def test_memory_grows_by_a_block_when_the_last_one_is_full() -> None:
    engine = Engine(timing=Timing(first=0.0, between=1.0))
    sequence, _ = engine.submit(prompt=3, limit=10)
    held = []
    for _ in range(9):
        held.append(engine.pool.all.now)
        engine.wait(1)
    assert held == [1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert sequence.generated == 10


def test_the_last_that_started_gives_way_and_says_the_rest_later() -> None:
    engine = Engine(slots=2, blocks=6)
    first, heard_first = engine.submit(prompt=7, limit=14)
    second, heard_second = engine.submit(prompt=7, limit=14)
    engine.wait(0.05 + 0.02 * 6)
    assert engine.metrics.preemptions == 1
    assert (first.holding is not None, second.holding is not None) == (True, False)
    engine.wait(5)
    assert (heard_first.finish, heard_second.finish) == ("length", "length")
    assert heard_second.text == text(2, 14)
    assert engine.pool.all.most <= 6
    assert engine.pool.all.now == 0


def test_who_gave_way_goes_on_before_those_who_never_ran() -> None:
    engine = Engine(slots=2, blocks=6)
    engine.submit(prompt=7, limit=14)
    preempted, _ = engine.submit(prompt=7, limit=14)
    waiting, _ = engine.submit(prompt=7, limit=2)
    engine.wait(0.05 + 0.02 * 6)
    assert list(engine.batch.waiting) == [preempted, waiting]


def test_leaving_frees_slot_and_memory_at_once_and_lets_the_next_one_start() -> None:
    engine = Engine(slots=1)
    first, heard = engine.submit(limit=1000)
    second, _ = engine.submit(limit=5)
    engine.wait(0.1)
    engine.batch.leave([first], "abort")
    assert (first.holding, second.holding is not None) == (None, True)
    heard_so_far = len(heard.times)
    engine.wait(1)
    assert len(heard.times) == heard_so_far
    assert engine.metrics.success["abort"] == 1


def test_who_leaves_the_queue_is_forgotten() -> None:
    engine = Engine(slots=1)
    engine.submit(limit=2)
    waiting, heard = engine.submit()
    engine.batch.leave([waiting], "abort")
    engine.wait(1)
    assert heard.times == []
    assert engine.batch.waiting_count == 0


def test_a_paused_sequence_holds_what_it_has_and_goes_on_without_a_gap() -> None:
    engine = Engine()
    sequence, heard = engine.submit(limit=6)
    engine.wait(0.08)
    engine.batch.pause([sequence])
    engine.wait(10)
    assert len(heard.times) == 2
    assert sequence.holding is not None
    engine.batch.resume([sequence])
    engine.wait(1)
    assert heard.text == text(1, 6)


def test_an_embedding_reads_its_prompt_and_says_nothing() -> None:
    engine = Engine()
    sequence, heard = engine.submit(prompt=9, limit=0)
    assert engine.pool.all.now == 3
    engine.wait(0.06)
    assert (heard.finish, sequence.generated, engine.pool.all.now) == ("stop", 0, 0)
    assert engine.metrics.generation_tokens == 0


@given(
    st.integers(1, 4),
    st.integers(8, 20),
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 18), st.floats(0, 1), st.booleans()), min_size=1, max_size=12
    ),
)
def test_whatever_comes_and_leaves_all_that_stay_are_served_and_nothing_is_left_behind(
    slots: int, blocks: int, calls: list[tuple[int, int, float, bool]]
) -> None:
    engine = Engine(slots=slots, blocks=blocks)
    stayed = []
    for prompt, limit, pause, leaves in calls:
        sequence, heard = engine.submit(prompt=prompt, limit=limit, salt="ab"[limit % 2])
        engine.wait(pause * 0.3)
        assert engine.batch.running_count <= slots
        assert engine.pool.all.now <= blocks
        if leaves:
            engine.batch.leave([sequence], "abort")
        else:
            stayed.append((sequence, heard, limit))
    engine.wait(60)
    assert all(heard.finish == "length" and sequence.generated == limit for sequence, heard, limit in stayed)
    assert (engine.batch.running_count, engine.batch.waiting_count, engine.pool.all.now) == (0, 0, 0)
    assert engine.pool.all.most <= blocks
    assert engine.tally.all.most_running <= slots
    assert engine.tally.all.running == 0
    assert engine.metrics.generation_tokens == engine.tally.all.tokens
