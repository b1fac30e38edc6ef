"""A client of the simulation: its side of the connection, its patience, and the moment at which it leaves.

What it gets goes through the production sink and outlet, into a transport that fills up as slowly as the client
reads. It keeps every byte, and takes them apart as strictly as HTTP and server-sent events allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from gateway.http.client import Client
from gateway.leaving import Leaving
from gateway.record import Record
from gateway.stream.sink import ClientSink
from tenancy.call import Call

HIGH_WATER = 600
LOW_WATER = 150
SIP_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Departure:
    """When a client leaves: at a time, or at its exchange's suspension number `suspension` (from 1), in one of its
    windows.

    suspended: in the turn after it · unwoken: its result is there, and the task has not been woken yet
    """

    at: float | None = None
    suspension: int = 0
    window: str = "suspended"


STAYS = Departure()


class Counted(Coroutine[Any, Any, None]):
    """A coroutine whose suspensions are counted: `suspended(number, what is awaited)` is called at each."""

    def __init__(
        self, inner: Coroutine[Any, Any, None], suspended: Callable[[int, object], None], woken: Callable[[], None]
    ) -> None:
        self._inner = inner
        self._suspended = suspended
        self._woken = woken
        self._count = 0

    def send(self, value: Any) -> Any:
        if self._count:
            self._woken()
        awaited = self._inner.send(value)
        self._count += 1
        self._suspended(self._count, awaited)
        return awaited

    def throw(self, *error: Any) -> Any:
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, None, None]:
        return self._inner.__await__()


class Cup(asyncio.Transport):
    """The client's transport: what is written waits in it until the client has read on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sip_bytes: int | None) -> None:
        super().__init__()
        self.flow: Callable[[bool], None] = lambda _: None
        self.written = bytearray()
        self.most_waiting = 0
        self.late_writes = 0
        self._loop = loop
        self._sip_bytes = sip_bytes
        self._waiting = 0
        self._is_sipping = False
        self._is_full = False
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._is_closing:
            self.late_writes += 1
            return
        self.written += data
        if self._sip_bytes is None:
            return
        self._waiting += len(data)
        self.most_waiting = max(self.most_waiting, self._waiting)
        if not self._is_full and self._waiting > HIGH_WATER:
            self._is_full = True
            self.flow(True)
        if not self._is_sipping:
            self._is_sipping = True
            self._loop.call_later(SIP_SECONDS, self._sip)

    def _sip(self) -> None:
        assert self._sip_bytes is not None
        self._waiting = max(0, self._waiting - self._sip_bytes)
        self._is_sipping = self._waiting > 0 and not self._is_closing
        if self._is_sipping:
            self._loop.call_later(SIP_SECONDS, self._sip)
        if self._is_full and self._waiting < LOW_WATER and not self._is_closing:
            self._is_full = False
            self.flow(False)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True


class Cycle:
    """What an answer changes of uvicorn's cycle; the connection would stay open."""

    def __init__(self, on_response: Callable[[], None]) -> None:
        self.dated = b"date: Thu, 01 Jan 1970 00:00:00 GMT"
        self.keep_alive = True
        self.more_body = False
        self.body = bytearray()
        self.waiting_for_100_continue = False
        self.response_started = False
        self.response_complete = False
        self.news: asyncio.Event | None = None
        self.on_response = on_response


@dataclass(eq=False)
class Visit:
    """One call of one client, from its arrival to its end."""

    call: Call
    loop: asyncio.AbstractEventLoop
    departure: Departure = STAYS
    sip_bytes: int | None = None
    left_at: float | None = None
    is_answered: bool = False
    woken_at: list[float] = field(default_factory=list)
    """When each suspension of its exchange ended."""
    has_left: Callable[[], object] = lambda: None
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        call = self.call
        self.transport = Cup(self.loop, self.sip_bytes)
        self._flow = FlowControl(self.transport)
        self.client = Client(self.transport, self._flow, "1.1")
        self.client.cycle = Cycle(self._answered)
        self.transport.flow = self._fills
        self.sink = ClientSink(self.client)
        self.leaving = Leaving()
        self.record = Record(
            call.id, call.kind.value, call.arrived_at, call.tenant.name, call.key.name, call.model, call.streamed
        )

    def begin(self, run: Coroutine[Any, Any, None]) -> None:
        """Let the exchange run, and leave as planned."""
        if self.departure.at is not None:
            self.loop.call_at(self.departure.at, self.leave)
        self.client.on_leave(self.leaving.leave)
        counted = Counted(run, self._suspended, lambda: self.woken_at.append(self.loop.time()))
        self.task = self.loop.create_task(counted, name=self.call.id)

    def leave(self) -> None:
        """The client closes its connection, unless it has its whole answer."""
        if self.left_at is None and not self.is_answered and not (self.task is not None and self.task.done()):
            self.left_at = self.loop.time()
            self.transport.close()
            self._flow.resume_writing()
            self.client.gone()
            self.has_left()

    def _suspended(self, number: int, awaited: object) -> None:
        if number == self.departure.suspension:
            if self.departure.window == "unwoken" and asyncio.isfuture(awaited):
                awaited.add_done_callback(lambda _: self.leave())  # comes before the task's own, which is added next
            else:
                self.loop.call_soon(self.leave)

    def _fills(self, is_full: bool) -> None:
        if is_full:
            self._flow.pause_writing()
        else:
            self._flow.resume_writing()
        self.client.flow(is_full)

    def _answered(self) -> None:
        assert not self.is_answered, "a second end"
        self.is_answered = True
        self.client.forget()


@dataclass(frozen=True, slots=True)
class Heard:
    """What a client made of the bytes it got. `fault` says where they were not HTTP or not whole events."""

    status: int = 0
    is_stream: bool = False
    is_whole: bool = False
    events: tuple[bytes, ...] = ()
    body: bytes = b""
    fault: str = ""


def heard(written: bytes) -> Heard:
    """Take an answer apart, as far as it came."""
    if not written:
        return Heard()
    head, found, rest = written.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 ") or not found:
        return Heard(fault=f"no head: {written[:40]!r}")
    status = int(head.split(b" ", 2)[1])
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if b"content-length" in fields:
        length = int(fields[b"content-length"])
        fault = f"{len(rest)} bytes of {length}" if len(rest) > length else ""
        return Heard(status, is_whole=len(rest) == length, body=rest, fault=fault)
    payload, is_whole = b"", False
    while rest:
        line, found, rest = rest.partition(b"\r\n")
        size = int(line, 16) if found else -1
        if is_whole or size < 0 or rest[size : size + 2] != b"\r\n":
            return Heard(status, True, fault=f"not a chunk: {(line + rest)[:40]!r}")
        is_whole = size == 0
        payload += rest[:size]
        rest = rest[size + 2 :]
    lines = [line for line in payload.split(b"\n") if not line.startswith(b":")]
    events = b"\n".join(lines).split(b"\n\n")
    fault = f"half an event: {events[-1][:40]!r}" if events[-1].strip() else ""
    return Heard(status, True, is_whole, tuple(event.strip(b"\n") for event in events[:-1]), fault=fault)
