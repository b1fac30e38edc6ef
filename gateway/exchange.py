"""A request's way, from the parsed call to the last byte. Read this first.

1–3. the HTTP face has read head and body, found the tenant and made the `Call` (`routes.endpoints`) 4. the cache
would be asked here 5–6. admission: a lease on a pod, from the queue if need be, or a refusal (`admit`) 7–8. an
attempt on that pod: opened, then relayed or collected (`attempts`) 9. if it broke and the client has seen nothing
of it, the lease moves and there is another attempt
10. the end: whoever still waits is told, the lease is settled, the record is full

Nothing here knows ASGI or sockets: the client is a `Sink` and a `Leaving`, pods are reached through `attempts`,
time comes from the loop. So the same code runs in virtual time.
"""

from __future__ import annotations

import asyncio

from backends.outcome import Ending, Outcome
from gateway.admit import NOT_USED, Admit
from gateway.attempts import Attempt, Attempts
from gateway.http.errors import Fault, from_refusal
from gateway.leaving import Leaving
from gateway.passage import Passage
from gateway.record import Record
from gateway.stream.pulse import Pulse
from gateway.stream.sink import Sink
from tenancy.accounts import Lease
from tenancy.admission import Refused
from tenancy.call import Call, Usage
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
        self.adopt(policy)

    def adopt(self, policy: Policy) -> None:
        """Use the new policy's settings from the next call on."""
        self._most_attempts = policy.retries.attempts
        self._head_after_seconds = policy.queue.head_after_seconds
        self._heartbeat_seconds = policy.streams.heartbeat_seconds

    async def run(self, call: Call, sink: Sink, leaving: Leaving, record: Record) -> None:
        """Bring `call` to its end: every byte of its answer is in `sink`, its lease is settled, and `record` tells
        it all.
        """
        passage = Passage(
            call,
            sink,
            leaving,
            record,
            heartbeat_seconds=self._heartbeat_seconds,
            head_after_seconds=self._head_after_seconds,
        )
        if call.streamed:
            self._pulse.join(passage)
        deadline = None
        if call.deadline_at is not None:
            deadline = self._loop.call_at(call.deadline_at, passage.expire)
        try:
            await self._run(passage)
        finally:
            self._pulse.part(passage)
            if deadline is not None:
                deadline.cancel()
            record.status = record.status or sink.status or LEFT_STATUS
            record.client_left = leaving.has_left and not passage.is_late
            record.ended_at = self._loop.time()

    async def _run(self, passage: Passage) -> None:
        call, record, leaving = passage.call, passage.record, passage.leaving
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

    async def _serve(self, passage: Passage, lease: Lease) -> None:
        """Attempt until one has an answer or none is left to make, then settle, then tell the client."""
        try:
            attempt, refused = await self._try(passage, lease)
        except BaseException:
            self._admit.settle(lease, NOT_USED)  # a fault of our own must not keep the tenant's budget
            raise
        self._settle(passage, attempt, lease)
        if passage.leaving.has_left:
            await self._give_up(passage)
        elif refused is not None and refused.code is not Code.NO_POD:
            await self._refuse(passage, from_refusal(refused))
        else:
            await self._finish(passage, attempt)

    async def _try(self, passage: Passage, lease: Lease) -> tuple[Attempt, Refusal | None]:
        """The last attempt, and why there was no other where admission refused one."""
        failed: list[str] = []
        while True:
            attempt = await self._attempts.make(passage.call, lease, passage.sink, passage.leaving, passage.stream_head)
            passage.note(attempt)
            if not self._may_try_again(passage, attempt):
                return attempt, None
            failed.append(attempt.pod)
            moving = self._admit.move(lease, frozenset(failed), passage.leaving, let_go=not attempt.is_left_behind)
            if attempt.is_left_behind:
                assert lease.left_behind is not None
                self._attempts.leave_behind(lease.left_behind, attempt)
                attempt.is_left_behind = False
            moved = await moving
            if moved is None or passage.leaving.has_left:
                return attempt, None
            if isinstance(moved, Refused):
                return attempt, moved.refusal
            assert moved.lease is lease, "a lease stays the same when it moves"

    def _may_try_again(self, passage: Passage, attempt: Attempt) -> bool:
        return (
            attempt.outcome.is_retryable
            and not attempt.has_emitted
            and not passage.leaving.has_left
            and passage.record.attempts < self._most_attempts
        )

    def _settle(self, passage: Passage, attempt: Attempt, lease: Lease) -> None:
        """Give the lease back and book what was used; what the pod may go on with stays charged."""
        usage = _used(attempt, lease)
        self._admit.settle(lease, usage, let_go=not attempt.is_left_behind)
        if attempt.is_left_behind:
            self._attempts.leave_behind(lease, attempt)
        record = passage.record
        record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        record.usage_reported = usage.is_reported

    async def _finish(self, passage: Passage, attempt: Attempt) -> None:
        """Tell the client how its last attempt ended, unless it has seen that already."""
        outcome = attempt.outcome
        if attempt.has_emitted:
            if not outcome.is_good and not attempt.has_ended:
                passage.record.code = "pod_failed"
                passage.sink.write_event(_pod_fault(outcome, passage.record.attempts).event())
            await passage.sink.end()
        elif outcome.is_good and not _is_ours_to_tell(attempt.status):
            headers = [*passage.head(attempt.pod, passage.record.attempts), (b"content-type", attempt.content_type)]
            if passage.sink.is_started:
                passage.sink.write_event(b"data: " + attempt.body.replace(b"\n", b" ") + b"\n\n")
                await passage.sink.end()
            else:
                self._pulse.part(passage)  # a heartbeat must not get into a whole answer that waits for its reader
                await passage.sink.answer(attempt.status, headers, attempt.body)
        else:
            await self._refuse(passage, _pod_fault(outcome, passage.record.attempts))

    async def _refuse(self, passage: Passage, fault: Fault) -> None:
        """Tell the client why there is no answer: as an answer of its own, or as one event where the head is out."""
        passage.record.code = fault.code
        passage.record.detail = fault.message
        if passage.sink.is_started:
            passage.sink.write_event(fault.event())
            await passage.sink.end()
        else:
            self._pulse.part(passage)
            await passage.sink.answer(fault.status, [*passage.common(), *fault.headers()], fault.body())

    async def _give_up(self, passage: Passage) -> None:
        """Nobody waits any longer, or the client's own deadline has passed."""
        if passage.is_late:
            await self._refuse(passage, _late(passage.call))


def _used(attempt: Attempt, lease: Lease) -> Usage:
    """What the call used: as the pod reported it, else what was seen of it: an event is a token."""
    if attempt.usage is not None:
        return attempt.usage
    if attempt.first_at is None or attempt.status >= 400:
        return NOT_USED
    return Usage(lease.need.prompt_tokens, attempt.events, is_reported=False)


def _is_ours_to_tell(status: int) -> bool:
    """Whether a pod's status would mislead the client: its own credentials, our path, the pod's load or failure."""
    return status >= 500 or status in {401, 403, 404, 405, 408, 429}


def _pod_fault(outcome: Outcome, attempts: int) -> Fault:
    """What the client hears when every allowed attempt has failed."""
    if outcome.ending is Ending.COMPLETE and outcome.status in {429, 503}:
        return Fault(
            429,
            "pod_capacity",
            "The pods that serve this model take no more requests now. Come back after the time given.",
            retry_after_seconds=outcome.retry_after_seconds or 1.0,
            is_retried=attempts > 1,
        )
    said = f"status {outcome.status}" if outcome.ending is Ending.COMPLETE else outcome.ending.value.replace("_", " ")
    return Fault(
        502, "pod_failed", f"No pod could answer: the last of {attempts} attempts ended with {said}.", is_retried=True
    )


def _late(call: Call) -> Fault:
    waited_ms = round(((call.deadline_at or call.arrived_at) - call.arrived_at) * 1000)
    return Fault(
        504,
        "deadline_exceeded",
        f"No answer within the {waited_ms} ms that x-penstock-deadline-ms allows.",
        is_retried=True,
    )
