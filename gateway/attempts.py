"""One attempt: a call sent to the pod that its lease is on, and its answer passed on or collected.

An attempt ends with an `Attempt`, whatever happened: how it ended, what the client has seen of it, what was used.
Whether there is another one is the exchange's decision. What the attempt may leave running at its pod is told to
`closing`, so that the budget holds there, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping
from itertools import count

import msgspec

from backends.closing import Closing
from backends.fleet import Fleet, PodState
from backends.outcome import COMPLETE, FULL_STATUS, Ending, Outcome
from backends.wire.head import Head
from backends.wire.pool import Pool
from backends.wire.transfer import Transfer
from gateway.leaving import Leaving
from gateway.stream.relay import Relay
from gateway.stream.sink import Headers, Sink
from gateway.stream.usage import usage_of
from gateway.stream.whole import Assembled, WholeBody
from tenancy.accounts import Lease
from tenancy.call import EMBEDDING, Call, Kind, Usage

_JUST_AFTER_SECONDS = 0.001  # a reading must be newer than the moment from which it counts


_CONNECTION_BROKE = frozenset({Ending.REFUSED, Ending.RESET})

# Not the pod's own words: they may repeat the prompt, and details are logged.
_ERROR_EVENT = "the pod reported an error inside its stream"


class Attempt(msgspec.Struct):
    """One try of a call on one pod.

    `is_sent` says that the request went out, `is_countable` that its events can be counted while they come, and
    `is_left_behind` that the pod may go on with it although nobody listens. `status`, `content_type` and
    `body` are a whole answer (or the pod's error) to be given to the client; `has_emitted` says that the client has
    seen events of this attempt. `events` counts the events that came, `first_at` is when the first did.
    """

    pod: str
    outcome: Outcome
    status: int = 0
    has_emitted: bool = False
    has_ended: bool = False
    usage: Usage | None = None
    events: int = 0
    first_at: float | None = None
    number: int = 0
    is_sent: bool = False
    is_countable: bool = True
    is_left_behind: bool = False
    content_type: bytes = b"application/json"
    body: bytes = b""


class Attempts:
    """Makes attempts on the pods of `fleet` through one `Pool` each.

    `connect_pool` makes the pool of a pod's URL; `poke` has a pod asked at once how it is.
    """

    def __init__(
        self,
        fleet: Fleet,
        closing: Closing[Lease],
        loop: asyncio.AbstractEventLoop,
        *,
        connect_pool: Callable[[str], Pool],
        poke: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._closing = closing
        self._loop = loop
        self._connect_pool = connect_pool
        self._poke = poke
        self._pools: dict[str, tuple[str, Pool]] = {}
        self._open: dict[str, dict[int, Transfer]] = {}
        self._numbers = count(1)

    async def make(
        self, call: Call, lease: Lease, sink: Sink, leaving: Leaving, head: Callable[[str], Headers]
    ) -> Attempt:
        """Try `call` on the pod of `lease`; the head that the client gets, if it comes to that, is asked of `head`."""
        name = lease.pod
        pod = self._fleet.pods[name]
        if pod.url is None or pod.engine is None:
            return Attempt(name, Outcome(Ending.REFUSED, detail="the pod has no address yet"))
        request = pod.engine.request(call, pod.pod, lease.output_tokens)
        number = next(self._numbers)
        is_countable = call.streamed or request.as_stream
        # An answer that is put together here keeps no frames, but as such its chunks come past all parsing.
        is_framed = sink.is_framed if call.streamed else request.as_stream
        transfer = self._pool(name, pod.url).send(request, frames=is_framed)
        del request  # with the prompt in it, and a stream may be long
        open_here = self._open.setdefault(name, {})
        open_here[number] = transfer

        way = _Way(transfer, self._closing, self._loop, name, number, _parts(call))
        transfer.on_carried = way.carried
        if transfer.is_sent:
            way.carried(True)
        leaving.undo_with(transfer.abort)
        try:
            opened = await transfer.opened
            if isinstance(opened, Outcome):
                attempt = Attempt(name, opened)
            else:
                first_at = way.answered()
                if not opened.is_stream or not 200 <= opened.status < 300:
                    attempt = await self._collect(name, opened, transfer)
                elif call.streamed:
                    attempt = await self._relay(call, name, opened, way, sink, head)
                else:
                    attempt = await self._assemble(call.kind, name, opened, transfer)
                attempt.first_at = first_at
        except BaseException:
            transfer.abort()
            self._closing.ended(name, number, self._loop.time())
            raise
        finally:
            leaving.undo_with(None)
            sink.follow(None)
            del open_here[number]
        attempt.number = number
        attempt.is_sent = transfer.is_sent
        attempt.is_countable = is_countable
        attempt.is_left_behind = attempt.outcome.may_still_run and transfer.is_sent
        if not attempt.is_left_behind:
            self._closing.ended(name, number, self._loop.time())
        self._fleet.report(name, attempt.outcome)
        return attempt

    def not_on(self, call: Call, failures: Mapping[str, Outcome]) -> frozenset[str]:
        """Where a call that failed so should not go next, the last failure last.

        Not to a device that failed it, while another can serve; a full pod's 429 or 503 is the pod's alone. Where no
        other pod is ready, and this one's connection broke, it is the one to wait for: it may be starting anew.
        """
        policy = self._fleet.policy
        serving = [
            pod.pod
            for pod in self._fleet.pods.values()
            if pod.state is PodState.READY and policy.serves(pod.pod, call.tenant, call.model)
        ]
        broken = {
            device
            for name, outcome in failures.items()
            if outcome.status not in FULL_STATUS and name in self._fleet.pods
            for device in self._fleet.pods[name].pod.devices
        }
        beside = {pod.name for pod in serving if broken & set(pod.devices)}
        if any(pod.name not in failures and pod.name not in beside for pod in serving):
            return frozenset(failures) | beside
        if any(pod.name not in failures for pod in serving):
            return frozenset(failures)
        *_, last = failures.values()
        return frozenset() if last.ending in _CONNECTION_BROKE else frozenset(failures)

    def leave_behind(self, lease: Lease, attempt: Attempt) -> None:
        """Hold `lease` as closing until the attempt's pod has let go of it."""
        now = self._loop.time()
        told_from = self._closing.left(attempt.pod, lease, now, attempt=attempt.number, alike=_alike(lease))
        self._poke(attempt.pod)
        if told_from > now:  # it left so early that the pod may not have seen it yet: ask again as soon as that is over
            self._loop.call_at(told_from + _JUST_AFTER_SECONDS, self._poke, attempt.pod)

    async def _relay(
        self,
        call: Call,
        pod: str,
        opened: Head,
        way: _Way,
        sink: Sink,
        head: Callable[[str], Headers],
    ) -> Attempt:
        headers = head(pod)
        if not sink.is_started:
            await sink.start(200, headers)
        del headers  # a kilobyte that a stream does not need again
        transfer = way.transfer
        relay = Relay(sink, transfer, shows_usage=call.wants_usage)
        if transfer.is_over:  # short answers often come in one read, and go out in one write
            sink.gather()
        else:
            sink.follow(way)
        outcome = await transfer.attach(relay)
        has_error = relay.has_error
        outcome = _judged(outcome, opened.status, relay.overflow, has_error, relay.has_finished)
        return Attempt(pod, outcome, opened.status, True, has_error, relay.usage, relay.events)

    async def _assemble(self, kind: Kind, pod: str, opened: Head, transfer: Transfer) -> Attempt:
        answer = Assembled(kind, stop=transfer.abort)
        outcome = await transfer.attach(answer)
        outcome = _judged(outcome, opened.status, answer.overflow, answer.has_error, answer.has_finished)
        body = answer.body if outcome.is_good else b""
        return Attempt(pod, outcome, status=opened.status, body=body, usage=answer.usage, events=answer.events)

    async def _collect(self, pod: str, opened: Head, transfer: Transfer) -> Attempt:
        answer = WholeBody(stop=transfer.abort)
        outcome = await transfer.attach(answer)
        if answer.overflow:
            outcome = Outcome(Ending.MALFORMED, opened.status, answer.overflow)
        elif outcome.ending is COMPLETE:
            outcome = Outcome(COMPLETE, opened.status, _hint(opened.status), _retry_after(opened))
        usage, _ = usage_of(answer.body)
        content_type = opened.get(b"content-type") or b"application/json"
        return Attempt(pod, outcome, status=opened.status, content_type=content_type, body=answer.body, usage=usage)

    def _pool(self, name: str, url: str) -> Pool:
        known = self._pools.get(name)
        if known is not None and known[0] == url:
            return known[1]
        if known is not None:
            known[1].close()  # the pod came back at another address
        pool = self._connect_pool(url)
        self._pools[name] = (url, pool)
        return pool

    def cut(self, pod: str, reason: str) -> None:
        """End every attempt on `pod` at once, without waiting for its sockets."""
        for transfer in list(self._open.get(pod, {}).values()):
            transfer.fail(Ending.EJECTED, reason)

    def close(self) -> None:
        """Close every idle connection; for the end of the gateway."""
        for _, pool in self._pools.values():
            pool.close()


def _judged(outcome: Outcome, status: int, overflow: str, has_error: bool, has_finished: bool) -> Outcome:
    """How a stream ended that ended so as HTTP, by what was in it."""
    if overflow:
        return Outcome(Ending.MALFORMED, status, overflow)
    if outcome.ending is COMPLETE and has_error:
        return Outcome(Ending.ERROR_EVENT, status, _ERROR_EVENT)
    if outcome.ending is COMPLETE and not has_finished:
        return Outcome(Ending.UNFINISHED, status, "the stream ended without a finish")
    return outcome


def _alike(lease: Lease) -> Hashable:
    """Leases of which it makes no difference which is given back first: they hold the same of the same accounts.

    What a move has split is like no other: its parts pay for tenant and key together.
    """
    if lease.parts is not None:
        return lease.id
    return lease.call.tenant.name, lease.call.key.name, lease.need


def _parts(call: Call) -> int:
    """As how many requests a pod may count the call: it takes separate prompts and outputs one by one."""
    return call.messages if call.kind is EMBEDDING else call.sequences


def _hint(status: int) -> str:
    """What a pod's status may mean for who runs it; for the log."""
    if status < 400:
        return ""
    if status in {401, 403}:
        return f"the pod answered {status}: is its apiKey in the file right?"
    if status == 404:
        return "the pod answered 404: is its url right (without /v1), and is `served` the name that it knows?"
    return f"the pod answered {status}"


def _retry_after(head: Head) -> float | None:
    """The pod's Retry-After in seconds, where it is a number; a date is not worth a parser here."""
    value = head.get(b"retry-after")
    return float(value) if value is not None and value.isdigit() else None


class _Way:
    """A transfer to a pod, as `closing` is told of it: when it was sent and seen, and while a slow client holds it
    back, so that the pod's end may go unseen.
    """

    __slots__ = ("_closing", "_loop", "_number", "_parts", "_pod", "transfer")

    def __init__(
        self,
        transfer: Transfer,
        closing: Closing[Lease],
        loop: asyncio.AbstractEventLoop,
        pod: str,
        number: int,
        parts: int,
    ) -> None:
        self.transfer = transfer
        self._closing = closing
        self._loop = loop
        self._pod = pod
        self._number = number
        self._parts = parts

    def carried(self, is_carried: bool) -> None:
        """A connection took the request, or died unanswered with it."""
        if is_carried:
            self._closing.sent(self._pod, self._number, self._loop.time(), parts=self._parts)
        else:
            self._closing.ended(self._pod, self._number, self._loop.time())

    def answered(self) -> float:
        """The pod has begun to answer: when."""
        now = self._loop.time()
        self._closing.first_byte(self._pod, self._number, now)
        return now

    # The flow that a sink follows

    @property
    def pieces(self) -> int:
        return self.transfer.pieces

    def pause(self) -> None:
        self._closing.held_back(self._pod, self._number, True)
        self.transfer.pause()

    def resume(self) -> None:
        self._closing.held_back(self._pod, self._number, False)
        self.transfer.resume()
