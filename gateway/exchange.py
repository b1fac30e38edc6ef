"""A request's way, from the parsed call to the last byte. Read this first.

 1–3. the HTTP face has read head and body, found the tenant and made the `Call` (`routes.endpoints`)
 4. the cache would be asked here
 5–6. admission: a lease on a pod, from the queue if need be, or a refusal (`admit`)
 7–8. an attempt on that pod: opened, then relayed or collected (`attempts`)
 9. if it broke and the client has seen nothing of it, the lease moves and there is another attempt
10. the end: the lease is settled, the client is told what it has not seen yet (`verdict`), the record is full

Nothing here knows ASGI or sockets: the client is a `Sink` and a `Leaving`, pods are reached through `attempts`, time
comes from the loop. So the same code runs in virtual time.
"""

from __future__ import annotations

import asyncio

import msgspec

from backends.outcome import Ending, Outcome
from gateway.admit import NOT_USED, Admit
from gateway.attempts import Attempt, Attempts
from gateway.http.errors import Fault, from_refusal
from gateway.leaving import Leaving
from gateway.passage import Passage, Patience
from gateway.record import Record
from gateway.stream.pulse import Pulse
from gateway.stream.sink import Sink
from gateway.stream.whole import as_stream
from gateway.verdict import draining, fault_of, used
from tenancy.accounts import Lease
from tenancy.admission import Refused
from tenancy.call import EMBEDDING, Call, Usage
from tenancy.policy import Policy
from tenancy.refusal import Code, Refusal

LEFT_STATUS = 499  # nginx's word for a client that left before its answer


class Exchange:
    """Carries calls through; one for the whole gateway. `adopt` gives it a new policy for the calls to come."""

    def __init__(
        self, policy: Policy, admit: Admit, attempts: Attempts, pulse: Pulse, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._admit = admit
        self._attempts = attempts
        self._pulse = pulse
        self._loop = loop
        self._open: dict[Passage, None] = {}
        self.adopt(policy)

    def adopt(self, policy: Policy) -> None:
        """Use the new policy's settings from the next call on."""
        self._most_attempts = policy.retries.attempts
        self._patience = Patience(policy.queue.head_after_seconds, policy.streams.heartbeat_seconds)

    def cut_all(self) -> None:
        """End every open call now; its client is told that the gateway is being stopped."""
        for passage in list(self._open):
            passage.end_with(draining())

    async def run(self, call: Call, sink: Sink, leaving: Leaving, record: Record) -> None:
        """Bring `call` to its end: its answer is in `sink` to the last byte, its lease is settled, `record` is full."""
        passage = Passage(call, sink, leaving, record, self._patience)
        self._open[passage] = None
        if call.streamed:
            self._pulse.join(passage)
        deadline = None
        if call.deadline_at is not None:
            deadline = self._loop.call_at(call.deadline_at, passage.expire)
        try:
            answer = await self._admit.admit(call, leaving)
            passage.rates = self._admit.admission.remaining(call.tenant.name, call.key, self._loop.time())
            if answer is None:
                await self._give_up(passage)
            elif isinstance(answer, Refused):
                record.queued_seconds = self._loop.time() - call.arrived_at
                record.refused_by = answer.refusal.account
                await self._refuse(passage, from_refusal(answer.refusal))
            else:
                record.queued_seconds = answer.queued_seconds
                await self._serve(passage, answer.lease)
        finally:
            del self._open[passage]
            self._pulse.part(passage)
            if deadline is not None:
                deadline.cancel()
            record.client_left = leaving.has_left and passage.fault is None
            record.status = record.status or sink.status or (LEFT_STATUS if record.client_left else 0)
            record.ended_at = self._loop.time()

    async def _serve(self, passage: Passage, lease: Lease) -> None:
        """Attempt until one has an answer or none is left to make, then settle, then tell the client."""
        refused = None
        try:
            attempt = await self._attempts.make(passage.call, lease, passage.sink, passage.leaving, passage.stream_head)
            passage.note(attempt)
            if self._may_try_again(passage, attempt):
                attempt, refused = await self._try_again(passage, lease, attempt)
        except BaseException:
            self._admit.settle(lease, NOT_USED)  # a fault of our own must not keep the tenant's budget
            raise
        self._settle(passage, attempt, lease)
        if passage.leaving.has_left:
            await self._give_up(passage)
        elif refused is not None and refused.code is not Code.NO_POD:
            await self._refuse(passage, msgspec.structs.replace(from_refusal(refused), is_retried=True))
        else:
            await self._finish(passage, attempt)

    async def _try_again(self, passage: Passage, lease: Lease, attempt: Attempt) -> tuple[Attempt, Refusal | None]:
        """The last attempt after this one, and why there was no other where admission refused one."""
        call, leaving, record = passage.call, passage.leaving, passage.record
        failures: dict[str, Outcome] = {}
        while True:
            failures.pop(attempt.pod, None)
            failures[attempt.pod] = attempt.outcome
            not_on = self._attempts.not_on(call, failures)
            moving = self._admit.move(lease, not_on, leaving, let_go=not attempt.is_left_behind)
            if attempt.is_left_behind:
                assert lease.left_behind is not None
                self._attempts.leave_behind(lease.left_behind, attempt)
                attempt.is_left_behind = False
            began = self._loop.time()
            moved = await moving
            record.queued_seconds += self._loop.time() - began
            if moved is None or leaving.has_left:
                return attempt, None
            if isinstance(moved, Refused):
                return attempt, moved.refusal
            assert moved.lease is lease, "a lease stays the same when it moves"
            attempt = await self._attempts.make(call, lease, passage.sink, leaving, passage.stream_head)
            passage.note(attempt)
            if not self._may_try_again(passage, attempt):
                return attempt, None

    def _may_try_again(self, passage: Passage, attempt: Attempt) -> bool:
        return (
            attempt.outcome.is_retryable
            and not attempt.has_emitted
            and not passage.leaving.has_left
            and passage.record.attempts < self._most_attempts
        )

    def _settle(self, passage: Passage, attempt: Attempt, lease: Lease) -> None:
        """Give the lease back and book what was used; what the pod may go on with stays charged."""
        usage = used(passage.call, lease.need, attempt)
        self._admit.settle(lease, usage, let_go=not attempt.is_left_behind)
        if attempt.is_left_behind:
            self._attempts.leave_behind(lease, attempt)
        record = passage.record
        known = usage or Usage(lease.need.prompt_tokens, 0, is_reported=False)
        record.prompt_tokens, record.completion_tokens = known.prompt_tokens, known.completion_tokens
        record.usage_reported = known.is_reported

    async def _finish(self, passage: Passage, attempt: Attempt) -> None:
        """Tell the client how its last attempt ended, unless it has seen that already."""
        sink, record = passage.sink, passage.record
        fault = fault_of(passage.call, attempt, record.attempts)
        if attempt.has_emitted and fault is not None:
            record.code = fault.code
            if not attempt.has_ended:  # else the pod's own error event is there
                sink.write_event(fault.event())
            await sink.end()
        elif attempt.has_emitted:
            await sink.end()
        elif fault is not None:
            await self._refuse(passage, fault)
        elif passage.call.streamed and passage.call.kind is not EMBEDDING:
            await self._answer_as_stream(passage, attempt)
        else:
            headers = [*passage.head(attempt.pod, record.attempts), (b"content-type", attempt.content_type)]
            await sink.answer(attempt.status, headers, attempt.body)

    async def _answer_as_stream(self, passage: Passage, attempt: Attempt) -> None:
        """A pod that cannot stream gave its answer whole: it goes out as a stream of one event."""
        sink = passage.sink
        events = as_stream(passage.call.kind, attempt.body, shows_usage=passage.call.wants_usage)
        if events is None:
            malformed = Outcome(Ending.MALFORMED, attempt.status, "the pod's answer is not what was asked for")
            fault = fault_of(passage.call, Attempt(attempt.pod, malformed), passage.record.attempts)
            assert fault is not None
            return await self._refuse(passage, fault)
        if not sink.is_started:
            await sink.start(200, passage.stream_head(attempt.pod))
        sink.write_event(events)
        await sink.end()

    async def _refuse(self, passage: Passage, fault: Fault) -> None:
        """Tell the client why there is no answer: as an answer of its own, or as one event where the head is out."""
        sink, record = passage.sink, passage.record
        if record.attempts > 1:
            fault = msgspec.structs.replace(fault, is_retried=True)  # retries must not multiply
        record.code = fault.code
        if sink.is_started:
            sink.write_event(fault.event())
            await sink.end()
        else:
            self._pulse.part(passage)  # a heartbeat must not get into a whole answer that waits for its reader
            headers = passage.head(record.pod, record.attempts)
            await sink.answer(fault.status, [*headers, *fault.headers()], fault.body())

    async def _give_up(self, passage: Passage) -> None:
        """Nobody waits any longer; or we ended it, and the client is told why."""
        if passage.fault is not None:
            await self._refuse(passage, passage.fault)
