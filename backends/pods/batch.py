"""The simulator's engine: sequences that wait, run in slots, take turns in time and give up their memory.

It stands for vLLM's scheduler. A waiting sequence starts when there is a slot and memory for its prompt, strictly in
order; its first token comes after the prefill, and each further one after the inter-token time. Where a running
sequence needs a block and none is free, the sequence that started last is preempted: its memory is taken, it waits at
the head of the queue, and later computes its prompt and all that it has said again.

Time is a wheel of ticks: one timer serves all sequences, however many there are. Decisions here are about time, slots
and memory; what a token says is the business of its source, who hears it that of its receiver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil
from random import Random
from typing import Protocol

from backends.pods.kv_cache import Holding, Key, Pool, chain
from backends.pods.tally import Rows
from backends.pods.vllm_metrics import Metrics
from backends.pods.words import Source, Word

TICK_SECONDS = 0.001


class Receiver(Protocol):
    """Who hears a sequence's tokens."""

    def token(self, sequence: Sequence, word: Word | None, finish: str | None) -> str | None:
        """A token (`None`: the end of the text) and, with the last one, why it is the last: `stop` or `length`.

        Answers `finish`, or why the sequence is to end with this token after all (a stop string was met).
        """


class Timers(Protocol):
    """The part of an event loop that the engine needs."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], None], /) -> Cancellable: ...
    def call_soon(self, callback: Callable[[], None], /) -> Cancellable: ...


class Cancellable(Protocol):
    """A callback that may still be called off."""

    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take, in seconds. Spreads are the greatest deviation to either side, evenly distributed."""

    first: float = 0.05
    between: float = 0.02
    first_spread: float = 0.0
    between_spread: float = 0.0
    prefill_per_token: float = 0.0
    between_slope: float = 0.0  # added for each sequence that runs

    def prefill(self, tokens: int, random: Random) -> float:
        """From the start of a sequence to its first token, for so many tokens to compute."""
        return max(
            0.0, self.first + self.prefill_per_token * tokens + self.first_spread * (2.0 * random.random() - 1.0)
        )

    def gap(self, running: int, random: Random) -> float:
        """From one token to the next."""
        gap = self.between + self.between_slope * running
        if self.between_spread:
            gap += self.between_spread * (2.0 * random.random() - 1.0)
        return gap if gap > 0.0 else 0.0


class Sequence:
    """One prompt being answered. `limit` is the most tokens it may say: 0 for an embedding, which only reads."""

    __slots__ = (
        *("salt", "keys", "tail", "prompt_tokens", "source", "limit", "rows", "receiver"),
        *("generated", "quiet", "holding", "room", "due", "due_at", "arrived_at", "last_at", "is_over", "is_paused"),
        "_booked",
    )

    def __init__(
        self,
        salt: str,
        keys: list[Key],
        tail: list[str],
        prompt_tokens: int,
        source: Source,
        limit: int,
        rows: Rows,
        receiver: Receiver,
    ) -> None:
        self.salt = salt
        self.keys = keys  # names of its full blocks
        self.tail = tail  # the pieces after them
        self.prompt_tokens = prompt_tokens
        self.source = source
        self.limit = limit
        self.rows = rows
        self.receiver = receiver
        self.generated = 0
        self.quiet = 0  # below so many tokens said, the next one needs nothing but time
        self.holding: Holding | None = None
        self.room = 0  # tokens that its blocks can hold
        self.due = -1  # the tick of its next token
        self.due_at = 0.0
        self.arrived_at = 0.0
        self.last_at = 0.0
        self.is_over = False
        self.is_paused = False
        self._booked = 0  # tokens that are in the tally already

    def book(self) -> None:
        """Bring the tally up to what the sequence has said; not done at every token, but before every reading."""
        self.rows.add_tokens(self.generated - self._booked)
        self._booked = self.generated

    @property
    def tokens(self) -> int:
        """Prompt and output so far."""
        return self.prompt_tokens + self.generated


class Batch:
    """All sequences of one simulator. Everything happens in the loop's thread, in `submit`, `leave` and the timer."""

    def __init__(
        self,
        pool: Pool,
        *,
        slots: int,
        queue: int | None,
        timing: Timing,
        metrics: Metrics,
        random: Random,
        loop: Timers,
    ) -> None:
        self.pool = pool
        self.slots = slots
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}  # in the order in which they started
        self._queue = queue
        self._timing = timing
        self._metrics = metrics
        self._random = random
        self._loop = loop
        self._clock: Callable[[], float] = loop.time
        self._wheel: dict[int, list[Sequence]] = {}
        self._ticks: list[int] = []
        self._timer: Cancellable | None = None
        self._timer_tick = -1
        self._is_turning = False

    @property
    def running_count(self) -> int:
        return len(self.running)

    @property
    def waiting_count(self) -> int:
        return len(self.waiting)

    @property
    def kv_usage(self) -> float:
        return self.pool.usage

    @property
    def prefix_queries(self) -> int:
        return self.pool.queried_tokens

    @property
    def prefix_hits(self) -> int:
        return self.pool.hit_tokens

    def has_room(self, sequences: list[Sequence]) -> bool:
        """Whether sequences may be submitted: they start at once, or the queue holds them."""
        if self._queue is None or len(self.waiting) + len(sequences) <= self._queue:
            return True
        if self.waiting or len(self.running) + len(sequences) > self.slots:
            return False
        if len(sequences) == 1:
            return self.pool.fits(sequences[0].keys, sequences[0].prompt_tokens)
        return sum(self.pool.blocks_for(sequence.prompt_tokens) for sequence in sequences) <= self.pool.free

    def submit(self, sequences: list[Sequence]) -> None:
        """Take sequences in; those that find a slot and memory start at once."""
        now = self._clock()
        for sequence in sequences:
            sequence.arrived_at = now
            self.waiting.append(sequence)
        self._fill(now)
        if self._ticks and self._ticks[0] <= _ticks_until(now) and not self._is_turning:
            self._turn()
        else:
            self._arm()

    def leave(self, sequences: list[Sequence], reason: str) -> None:
        """End sequences that nobody wants any more: slots and memory are free when this returns."""
        for sequence in sequences:
            if not sequence.is_over:
                self._end(sequence, reason)
        self._fill(self._clock())
        self._arm()

    def pause(self, sequences: list[Sequence]) -> None:
        """Let sequences say nothing more until `resume`; they keep what they hold."""
        for sequence in sequences:
            sequence.is_paused = True
            sequence.quiet = 0

    def resume(self, sequences: list[Sequence]) -> None:
        """Let paused sequences go on."""
        for sequence in sequences:
            sequence.is_paused = False
            if sequence.holding is not None:
                self._schedule(sequence, max(self._clock(), sequence.due_at))
        self._arm()

    def _fill(self, now: float) -> None:
        """Start the head of the queue, and again, as long as slots and memory suffice."""
        while self.waiting and len(self.running) < self.slots:
            sequence = self.waiting[0]
            holding = self.pool.take(sequence.salt.partition(":")[0], sequence.keys, sequence.tokens)
            if holding is None:
                return
            self.waiting.popleft()
            self.running[sequence] = None
            sequence.rows.run()
            sequence.holding = holding
            sequence.room = holding.blocks * self.pool.block_tokens
            if sequence.generated == 0:
                self._metrics.queue_time.observe(now - sequence.arrived_at)
            computed = sequence.tokens - holding.reused * self.pool.block_tokens
            self._schedule(sequence, now + self._timing.prefill(computed, self._random))

    def _schedule(self, sequence: Sequence, at: float) -> None:
        sequence.due_at = at
        sequence.due = tick = ceil(at / TICK_SECONDS - 1e-6)
        row = self._wheel.get(tick)
        if row is not None:
            row.append(sequence)
            return
        self._wheel[tick] = [sequence]
        heappush(self._ticks, tick)

    def _arm(self) -> None:
        """Set the timer to the next tick at which something is due."""
        if not self._ticks or self._is_turning:
            return
        tick = self._ticks[0]
        if self._timer is not None:
            if tick >= self._timer_tick:
                return
            self._timer.cancel()
        self._timer_tick = tick
        if tick > _ticks_until(self._clock()):
            self._timer = self._loop.call_at(tick * TICK_SECONDS, self._turn)
        else:
            self._timer = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Every sequence whose time has come says its next token."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_turning = True
        now = self._clock()
        last = _ticks_until(now)
        due: list[Sequence] = []
        while self._ticks and self._ticks[0] <= last:
            tick = heappop(self._ticks)
            due += [sequence for sequence in self._wheel.pop(tick) if sequence.due == tick]
        generated = 0
        for sequence in due:
            if 0 <= sequence.due <= last:  # not ended, preempted or started anew by a sequence before it
                generated += 1
                if 0 < sequence.generated < sequence.quiet:
                    self._say(sequence, now, sequence.source.next(), None)
                else:
                    self._step(sequence, now)
        self._metrics.generation_tokens += generated
        self._is_turning = False
        self._arm()

    def _step(self, sequence: Sequence, now: float) -> None:
        """One token where something else is to be done: the first, the last, one that needs a block, one held back."""
        if sequence.is_paused or (sequence.tokens > sequence.room and not self._grow(sequence)):
            self._metrics.generation_tokens -= 1
        elif sequence.limit == 0:
            self._metrics.generation_tokens -= 1
            self._metrics.prompt_tokens += sequence.prompt_tokens
            sequence.receiver.token(sequence, None, "stop")
            self._end(sequence, "stop")
            self._fill(now)
        else:
            if not sequence.generated:
                self._metrics.prompt_tokens += sequence.prompt_tokens
            sequence.quiet = min(sequence.limit - 1, sequence.room - sequence.prompt_tokens + 1)
            is_last = sequence.generated + 1 >= sequence.limit
            self._say(sequence, now, sequence.source.next(), "length" if is_last else None)

    def _say(self, sequence: Sequence, now: float, word: Word | None, finish: str | None) -> None:
        """The next token reaches the receiver; the one after it is due later, or this was the last. Hot: 1.5 µs."""
        if sequence.generated:
            self._metrics.inter_token.observe(now - sequence.last_at)
        else:
            self._metrics.first_token.observe(now - sequence.arrived_at)
        sequence.last_at = now
        sequence.generated += 1
        if word is None:
            finish = "stop"
        else:
            sequence.tail.append(word.text)
        finish = sequence.receiver.token(sequence, word, finish)
        if finish is None:
            if not sequence.is_over:
                self._schedule(sequence, sequence.due_at + self._timing.gap(len(self.running), self._random))
        elif not sequence.is_over:
            self._end(sequence, finish)
            self._fill(now)

    def _grow(self, sequence: Sequence) -> bool:
        """One more block for a running sequence, taken from the last that started where none is free.

        False where that was itself.
        """
        holding = sequence.holding
        assert holding is not None
        size = self.pool.block_tokens
        full, sequence.tail = sequence.tail[:size], sequence.tail[size:]
        name = chain(sequence.salt, sequence.keys[-1] if sequence.keys else None, full)
        sequence.keys.append(name)
        self.pool.seal(holding, name)
        while not self.pool.extend(holding):
            victim = next(reversed(self.running))
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.room += size
        return True

    def _preempt(self, sequence: Sequence) -> None:
        assert sequence.holding is not None
        self.pool.release(sequence.holding)
        sequence.holding = None
        sequence.due = -1
        sequence.quiet = 0
        del self.running[sequence]
        sequence.rows.rest()
        self.waiting.appendleft(sequence)
        self._metrics.preemptions += 1

    def _end(self, sequence: Sequence, reason: str) -> None:
        sequence.is_over = True
        sequence.due = -1
        if sequence.holding is not None:
            self.pool.release(sequence.holding)
            sequence.holding = None
            del self.running[sequence]
            sequence.rows.rest()
        else:
            self.waiting.remove(sequence)
        sequence.book()
        self._metrics.success[reason] += 1
        self._metrics.whole_request.observe(self._clock() - sequence.arrived_at)


def _ticks_until(now: float) -> int:
    """The ticks that are over; times are multiples of the tick, but for what floating point makes of them."""
    return int(now / TICK_SECONDS + 1e-6)
