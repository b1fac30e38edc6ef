"""The streams' process: it carries the calls of one phase after the other, and tells the other process what came.

    python -m loadtest.streams FD

FD is one end of a socket pair, on which messages go both ways. It neither draws nor sorts nor writes files, so that
what it measures is the target. It ends when the other end is closed, whatever it was doing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from typing import cast
from urllib.parse import urlsplit


import uvloop

from loadtest.client import Client, Connect, connect_to
from loadtest.load import Load, Road
from loadtest.messages import Begin, Ended, Failed, Frames, FromStreams, Progress, Ready, Run, Stop, ToStreams, encode
from loadtest.prompts import Prompts
from loadtest.scenario import PATHS, Scenario, Tenant
from loadtest.schedule import Schedule
from loadtest.strain import StrainMeter
from loadtest.traces import TraceError, TraceRows, read_trace

TICK_SECONDS = 0.25
MOST_UNREAD_BYTES = 8 << 20  # then what came is kept back until the other process reads again


class _Pipe(asyncio.Protocol):
    """The socket pair's end: messages in, messages out."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[ToStreams | None] = asyncio.Queue()
        self._frames = Frames(ToStreams)
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self.messages.put_nowait(cast(ToStreams, message))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.messages.put_nowait(None)

    @property
    def is_read(self) -> bool:
        """Whether the other process keeps up."""
        return self._transport is not None and self._transport.get_write_buffer_size() < MOST_UNREAD_BYTES

    def tell(self, message: FromStreams) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))


async def main(end: socket.socket) -> None:
    """Do as the other end says, until it is closed."""
    loop = asyncio.get_running_loop()
    _, pipe = await loop.create_connection(_Pipe, sock=end)
    first = await pipe.messages.get()
    if not isinstance(first, Begin):
        return
    try:
        rows = _trace_rows(first.scenario)
    except (TraceError, OSError) as wrong:
        pipe.tell(Failed(str(wrong)))
        return
    client = Client(_connect(loop, first), time.monotonic, loop)
    roads = {tenant.name: road_of(first.scenario, tenant) for tenant in first.scenario.tenants}
    meter = StrainMeter(loop, clock=time.monotonic)
    meter.start()
    nonce = secrets.token_hex(4)
    # What is here now stays: it need not be looked through again, and a collection in mid-run is a stall of our own.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    pipe.tell(Ready(os.getpid()))
    while isinstance(message := await pipe.messages.get(), Run | Stop):
        if isinstance(message, Stop):
            continue
        schedule = Schedule(first.scenario, message.phase, rows)
        load = Load(
            first.scenario,
            message,
            schedule,
            [roads[name] for name in message.phase.tenants],
            client,
            loop=loop,
            lag=meter,
            open_streams=first.open_streams,
            nonce=nonce,
            keep_gaps=first.keep_gaps,
        )
        if not await _run(load, message.index, pipe, meter, loop):
            break
    meter.stop()
    await client.close()


async def _run(load: Load, index: int, pipe: _Pipe, meter: StrainMeter, loop: asyncio.AbstractEventLoop) -> bool:
    """One phase, told four times a second; false where nobody listens any more."""

    def tell() -> None:
        pipe.tell(Progress(index, load.seconds, load.take(), meter.take(), load.lost_calls))

    def tick() -> None:
        nonlocal timer
        timer = loop.call_later(TICK_SECONDS, tick)
        if pipe.is_read:
            tell()

    meter.take()  # what lay between two phases is no strain of this one
    started_epoch = time.time()
    timer = loop.call_later(TICK_SECONDS, tick)
    running = loop.create_task(load.run())
    listening = loop.create_task(pipe.messages.get())
    listens = True
    while not running.done():
        await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            load.stop()
            if listening.result() is None:
                listens = False
                break
            listening = loop.create_task(pipe.messages.get())
    load_seconds, seconds, reason = await running
    timer.cancel()
    listening.cancel()
    await asyncio.wait({listening})
    tell()
    pipe.tell(Ended(index, load_seconds, seconds, started_epoch, reason))
    return listens


def road_of(scenario: Scenario, tenant: Tenant) -> Road:
    """How this tenant's requests are made."""
    parts = urlsplit(scenario.target.url)
    accepts = "text/event-stream" if scenario.target.stream else "application/json"
    lines = [
        f"POST {parts.path.rstrip('/')}{PATHS[scenario.target.endpoint]} HTTP/1.1",
        f"host: {parts.netloc.rpartition('@')[2]}",
        "user-agent: penstock-loadtest",
        f"accept: {accepts}",
        "content-type: application/json",
        *([f"authorization: Bearer {tenant.key}"] if tenant.key else []),
        "x-request-id: ",
    ]
    return Road("\r\n".join(lines).encode(), Prompts(scenario.target, tenant, scenario.seed))


def _connect(loop: asyncio.AbstractEventLoop, begin: Begin) -> Connect:
    parts = urlsplit(begin.scenario.target.url)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return connect_to(loop, begin.address, tls=tls, name=parts.hostname or "")


def _trace_rows(scenario: Scenario) -> TraceRows | None:
    if scenario.trace is None:
        return None
    names = [tenant.name for tenant in scenario.tenants]
    return read_trace(scenario.trace, names, seed=scenario.seed, most_rows=scenario.bounds.requests)


if __name__ == "__main__":
    # Ctrl-C is for the other process, which then says `Stop` and still gets the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(main(socket.socket(fileno=int(sys.argv[1]))))
