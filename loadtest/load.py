"""One phase's load: calls go out when they are due, and what came of each is noted. Open loop, closed loop and trace.

A call's latencies run from when it was *scheduled*. Where the cap on open streams holds it back, or a connection takes
its time, that is part of them: nothing that waits is hidden (no coordinated omission). Calls that are due are sent in
one go by one timer; there is no task a call.

Numbers are noted, never sorted and never drawn: `take` gives what came since the last time, for the other process.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np

from loadtest.answer import Answer
from loadtest.client import Client, Flight
from loadtest.histogram import Histogram
from loadtest.messages import CANCELLED, Call, Lane, Run, Sparse
from loadtest.prompts import Prompts
from loadtest.scenario import Scenario
from loadtest.schedule import ClosedUsers, Planned, Schedule

_MORE_TOKENS = {"max_tokens", "max_completion_tokens", "n", "best_of", "prompt"}
EARLY_SECONDS = 0.0005  # a timer may fire this much early; such a call is sent, and its latencies run from its sending
FAILED_PAUSE_SECONDS = 0.1  # a user whose call failed waits so long: refusals alone could be ten thousand a second
MOST_KEPT_CALLS = 100_000  # while the other process does not read
MOST_KEPT_GAPS = 1 << 16  # of one tenant; then they become counts, 20 ns each
MOST_KEPT_RAW_GAPS = 1 << 22  # where they are wanted with their calls: 130 MB


class NotesLag(Protocol):
    """Whom to tell how late a call was sent."""

    def note_send_lag(self, seconds: float) -> None: ...


class Road(NamedTuple):
    """How one tenant's requests are made: for each server the head up to the request's id, and the bodies."""

    heads: tuple[bytes, ...]
    prompts: Prompts


class _Flown(Flight):
    """A flight of this load: whose it is, what it asked for, and, in a closed loop, which user waits for it."""

    __slots__ = ("client", "input", "lane", "launched", "output", "user")

    client: Client
    lane: int
    launched: float  # when it was given to the client, in seconds from the phase's start
    input: int
    output: int
    user: int


class _LaneState:
    """What is known of one tenant's calls in this phase."""

    def __init__(self, road: Road, users: ClosedUsers | None) -> None:
        self.road = road
        self.users = users
        self.scheduled = self.sent = self.open = self.waiting = 0
        self.events = self.reads = 0  # of calls that have ended
        self.calls: list[Call] = []
        self.gaps = array("f")
        self.folded = Histogram()

    def fold(self) -> None:
        """Count the gaps that are kept one by one."""
        self.folded.add(np.frombuffer(self.gaps, dtype=np.float32))
        self.gaps = array("f")


class Load:
    """The load of one phase, once. `run` ends when the last stream has, at the latest `drain_seconds` after the load.
    Calls that wait behind the cap when the load ends may still go in that time; those that never do are told.

    `roads` are in the order of the phase's tenants; `nonce` is a word of eight letters that no other phase has. `clock`
    is the clients', to which calls go in turn.
    """

    def __init__(
        self,
        scenario: Scenario,
        run: Run,
        schedule: Schedule,
        roads: Sequence[Road],
        clients: Sequence[Client],
        *,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        lag: NotesLag,
        open_streams: int,
        nonce: str,
        keep_gaps: bool = False,
    ) -> None:
        self._target = scenario.target
        self._phase = run.phase
        self._drain_seconds = run.drain_seconds
        self._left = run.most_requests
        self._most_seconds = run.most_seconds
        self._schedule = schedule
        self._planned = iter(schedule)
        self._next: Planned | None = None
        self._lanes = [_LaneState(road, schedule.closed(number)) for number, road in enumerate(roads)]
        self._clients = clients
        self._clock = clock
        self._loop = loop
        self._lag = lag
        self._cap = open_streams
        self._nonce = nonce
        self._keep_gaps = keep_gaps
        # Some keys of a body make more of an answer than was asked for here: then usage has no upper bound.
        self._knows_most = not _MORE_TOKENS & scenario.target.body.keys()
        self._began = clock()
        self._number = 0
        self._open = 0
        self._waiting: deque[tuple[float, int, int, int, int, int]] = deque()
        self._pauses: dict[tuple[int, int], float] = {}  # of each user, before the next call
        self._timers: set[asyncio.TimerHandle] = set()
        self._is_loading = True
        self._load_seconds = 0.0
        self._reason = ""
        self._over: asyncio.Future[None] = loop.create_future()
        self._kept_calls = self._kept_raw_gaps = 0
        self.lost_calls = 0
        """Calls that nobody was told of, for nobody read."""

    @property
    def began(self) -> float:
        """When the phase began, by the client's clock."""
        return self._began

    @property
    def seconds(self) -> float:
        """Seconds since the phase began."""
        return self._clock() - self._began

    async def run(self) -> tuple[float, float, str]:
        """Run it: seconds of load, seconds in all, and why it ended early, or nothing."""
        self._began = self._clock()
        ends_at = min(self._schedule.ends_at, self._most_seconds)
        reason = "seconds" if ends_at < self._schedule.ends_at else ""
        self._after(ends_at, lambda: self._come_to_end(ends_at, reason))
        for lane, state in enumerate(self._lanes):
            if state.users is not None:
                for user in range(state.users.count):
                    starts_at = state.users.start_of(user)
                    if starts_at < ends_at:
                        self._after(starts_at, self._user_calls(lane, user, starts_at))
        self._next = next(self._planned, None)
        self._send_due()
        try:
            await self._over
        finally:
            for timer in self._timers:
                timer.cancel()
            for client in self._clients:
                client.end_all("stopped")
        return self._load_seconds, max(self.seconds, self._load_seconds), self._reason

    def stop(self) -> None:
        """Send no more, and leave what is open."""
        self._end_load(self.seconds, "stopped")
        self._finish("stopped")

    # ---- what goes out

    def _send_due(self, until: float = 0.0) -> None:
        """Send all calls whose time has come, and those up to `until` in any case; set the timer for the next."""
        until = max(until, self.seconds + EARLY_SECONDS)
        while self._next is not None and self._is_loading:
            planned = self._next
            if planned.at > until:
                self._after(planned.at, self._send_due)
                return
            self._due(planned.at, planned.lane, planned.input, planned.output, planned.cancel_after, -1)
            self._next = next(self._planned, None)

    def _due(self, at: float, lane: int, input_tokens: int, output: int, cancel_after: int, user: int) -> None:
        """A call's time has come: it goes out, or waits behind the cap."""
        if self._left <= 0:
            self._end_load(self.seconds, "requests")
            return
        self._left -= 1
        self._lanes[lane].scheduled += 1
        if self._open >= self._cap:  # whoever waits goes as soon as it is not
            self._lanes[lane].waiting += 1
            self._waiting.append((at, lane, input_tokens, output, cancel_after, user))
            return
        self._lag.note_send_lag(max(0.0, self.seconds - at))
        self._send(at, lane, input_tokens, output, cancel_after, user)

    def _send(self, at: float, lane: int, input_tokens: int, output: int, cancel_after: int, user: int) -> None:
        state = self._lanes[lane]
        state.sent += 1
        state.open += 1
        self._open += 1
        self._number += 1
        request_id = f"{self._nonce}-{self._number:x}"
        # Short, as each of its letters may be a token; the phases of a run have other ones with all but certainty.
        body = state.road.prompts.body(f"{self._nonce[:4]}{self._number:x}", input_tokens, output)
        server = self._number % len(self._clients)
        request = b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (
            state.road.heads[server],
            request_id.encode(),
            len(body),
            body,
        )
        answer = Answer(
            output if self._knows_most else 0,
            is_stream=self._target.stream,
            usage=self._target.usage,
            keep_gaps=self._keep_gaps,
        )
        flight = _Flown(
            min(at, self.seconds), request, answer, self._landed, cancel_after=cancel_after, request_id=request_id
        )
        flight.lane, flight.input, flight.output, flight.user = lane, input_tokens, output, user
        flight.launched = self.seconds
        flight.client = self._clients[server]
        flight.client.send(flight)

    def _user_calls(self, lane: int, user: int, at: float) -> Callable[[], None]:
        """A closed-loop user's next call, at its time."""

        def call() -> None:
            users = self._lanes[lane].users
            assert users is not None
            if self._is_loading and at < users.stop_of(user):
                input_tokens, output, cancel_after, pause = users.next(user)
                self._pauses[lane, user] = pause
                self._due(at, lane, input_tokens, output, cancel_after, user)

        return call

    # ---- what comes back

    def _landed(self, flight: Flight) -> None:
        """A call has ended: note it, and let go what waited for it."""
        assert isinstance(flight, _Flown)
        self._open -= 1
        state = self._lanes[flight.lane]
        state.open -= 1
        self._note(state, flight)
        if flight.user >= 0 and self._is_loading:
            self._think(flight)
        # Once it is over, those that are left end here one by one: none of those that wait takes their place.
        while self._waiting and self._open < self._cap and not self._over.done():
            waited = self._waiting.popleft()
            self._lanes[waited[1]].waiting -= 1
            self._send(*waited)
        if not self._is_loading and not self._open:
            self._finish()

    def _think(self, flight: _Flown) -> None:
        pause = self._pauses[flight.lane, flight.user]
        if flight.code not in ("", CANCELLED):
            pause = max(pause, FAILED_PAUSE_SECONDS)
        at = self.seconds + pause
        call = self._user_calls(flight.lane, flight.user, at)
        # Not from here even without a pause: this is still inside the reading of the answer before.
        if pause > 0:
            self._after(at, call)
        else:
            self._loop.call_soon(call)

    def _note(self, state: _LaneState, flight: _Flown) -> None:
        answer = flight.answer
        state.events += answer.events
        state.reads += answer.reads
        if flight.code in ("", CANCELLED):
            state.gaps.extend(answer.gaps)
            folded = answer.folded()
            if folded is not None:
                state.folded.add_counts(folded[0], folded[1], answer.longest_gap)
            if len(state.gaps) > MOST_KEPT_GAPS:
                state.fold()
        if self._kept_calls >= MOST_KEPT_CALLS or self._kept_raw_gaps >= MOST_KEPT_RAW_GAPS:
            self.lost_calls += 1
            return
        self._kept_calls += 1
        self._kept_raw_gaps += len(answer.gaps) if self._keep_gaps else 0
        began = self._began
        state.calls.append(
            Call(
                scheduled=flight.scheduled,
                sent=flight.launched,
                first=None if answer.first is None else answer.first - began,
                last=None if answer.first is None else answer.last - began,
                ended=flight.ended - began,
                input=flight.input,
                output=flight.output,
                events=answer.events,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                status=answer.status,
                code=flight.code,
                longest_gap=answer.longest_gap,
                gap_count=answer.gap_count,
                is_reused=flight.is_reused,
                request_id=flight.request_id,
                gaps=answer.gaps.tolist() if self._keep_gaps else [],
            )
        )

    def end_overdue(self) -> None:
        """End calls that are past their time-out, which runs from when they went out, connecting included."""
        latest = self.seconds - self._target.timeout_seconds
        for client in self._clients:
            overdue = []
            for flight in client.flights:  # in the order in which they went out
                assert isinstance(flight, _Flown)
                if flight.launched > latest:
                    break
                overdue.append(flight)
            for flight in overdue:
                client.end(flight, "timeout")

    def take(self) -> list[Lane]:
        """What came of each tenant's calls since the last time. O(open streams): 0.1 µs each."""
        events, reads = [0] * len(self._lanes), [0] * len(self._lanes)
        for flight in chain.from_iterable(client.flights for client in self._clients):
            assert isinstance(flight, _Flown)
            events[flight.lane] += flight.answer.events
            reads[flight.lane] += flight.answer.reads
        self._kept_calls = self._kept_raw_gaps = 0
        return [
            self._take_lane(number, state, events[number], reads[number]) for number, state in enumerate(self._lanes)
        ]

    def _take_lane(self, number: int, state: _LaneState, events: int, reads: int) -> Lane:
        state.fold()
        gaps, calls = state.folded, state.calls
        state.folded, state.calls = Histogram(), []
        return Lane(
            scheduled=state.scheduled,
            sent=state.sent,
            open=state.open,
            waiting=state.waiting,
            events=state.events + events,
            reads=state.reads + reads,
            never_sent=state.waiting if self._over.done() else 0,
            clipped=self._schedule.clipped[number],
            skipped=self._schedule.skipped[number],
            gaps=Sparse.of(gaps),
            calls=calls,
        )

    # ---- its end

    def _come_to_end(self, at: float, reason: str) -> None:
        """The load's time is up. What was due before and was not sent yet still goes: timers have their grain, and a
        loop that stood still would leave out just those calls that felt it.
        """
        self._send_due(until=at)
        self._end_load(at, reason)

    def _end_load(self, at: float, reason: str = "") -> None:
        """No more arrivals; what is open may end, and what waits behind the cap may still go."""
        if not self._is_loading:
            return
        self._is_loading = False
        self._load_seconds = at
        self._reason = reason
        if self._open:
            self._after(self.seconds + self._drain_seconds, lambda: self._finish("drain"))
        else:
            self._finish()

    def _finish(self, reason: str = "") -> None:
        if not self._over.done():
            self._reason = self._reason or reason
            self._over.set_result(None)

    def _after(self, at: float, call: Callable[[], None]) -> None:
        """Call at so many seconds into the phase."""

        def fire() -> None:
            self._timers.discard(timer)
            call()

        timer = self._loop.call_later(max(0.0, at - self.seconds), fire)
        self._timers.add(timer)
