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
from urllib.parse import urlsplit

import uvloop

from loadtest.client import Client, Connect, connect_to
from loadtest.load import Load, Road
from loadtest.messages import (
    Begin,
    Ended,
    Failed,
    Progress,
    Ready,
    Run,
    Stop,
    ToStreams,
    to_streams,
)
from loadtest.pair import End
from loadtest.prompts import Prompts
from loadtest.scenario import PATHS, Scenario, Tenant
from loadtest.schedule import Schedule
from loadtest.strain import StrainMeter
from loadtest.traces import TraceError, rows_of

TICK_SECONDS = 0.25
MOST_UNREAD_BYTES = 8 << 20  # then what came is kept back until the other process reads again


async def main(end: socket.socket) -> None:
    """Do as the other end says, until it is closed."""
    loop = asyncio.get_running_loop()
    _, pipe = await loop.create_connection(lambda: End(to_streams()), sock=end)
    first = await pipe.messages.get()
    if not isinstance(first, Begin):
        return
    try:
        rows = rows_of(first.scenario)
    except (TraceError, OSError) as wrong:
        pipe.tell(Failed(str(wrong)))
        pipe.close()
        while await pipe.messages.get() is not None:  # until what was told last is out
            pass
        return
    clients = [
        Client(_connect(loop, url, address), time.monotonic, loop)
        for url, address in zip(first.scenario.target.urls, first.addresses, strict=True)
    ]
    roads = {tenant.name: road_of(first.scenario, tenant) for tenant in first.scenario.tenants}
    meter = StrainMeter(loop, clock=time.monotonic)
    meter.start()
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
            clients,
            clock=time.monotonic,
            loop=loop,
            lag=meter,
            open_streams=first.open_streams,
            nonce=secrets.token_hex(4),
            keep_gaps=first.keep_gaps,
        )
        if not await _run(load, message.index, pipe, meter, loop):
            break
    meter.stop()
    for client in clients:
        await client.close()


async def _run(
    load: Load, index: int, pipe: End[ToStreams], meter: StrainMeter, loop: asyncio.AbstractEventLoop
) -> bool:
    """One phase, told four times a second; false where nobody listens any more."""

    def tell() -> None:
        pipe.tell(Progress(index, load.seconds, load.take(), meter.take(load.began), load.lost_calls))

    async def tell_always() -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            load.end_overdue()
            unread = pipe.unread_bytes
            if unread is not None and unread < MOST_UNREAD_BYTES:
                tell()

    meter.take()  # what lay between two phases is no strain of this one
    started_epoch = time.time()
    running = loop.create_task(load.run())
    telling = loop.create_task(tell_always())
    listening = loop.create_task(pipe.messages.get())
    listens = True
    try:
        while not running.done():
            await asyncio.wait({running, listening, telling}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()  # it has no end but a fault of ours, and a run that is not told is none
            if listening.done():
                load.stop()
                if listening.result() is None:
                    listens = False
                    break
                listening = loop.create_task(pipe.messages.get())
        load_seconds, seconds, reason = await running
    finally:
        for task in (running, listening, telling):
            task.cancel()
        await asyncio.wait({running, listening, telling})
    tell()
    pipe.tell(Ended(index, load_seconds, seconds, started_epoch, reason))
    return listens


def road_of(scenario: Scenario, tenant: Tenant) -> Road:
    """How this tenant's requests are made."""
    heads = tuple(_head(url, scenario, tenant) for url in scenario.target.urls)
    return Road(heads, Prompts(scenario.target, tenant, scenario.seed))


def _head(url: str, scenario: Scenario, tenant: Tenant) -> bytes:
    parts = urlsplit(url)
    lines = [
        f"POST {parts.path.rstrip('/')}{PATHS[scenario.target.endpoint]} HTTP/1.1",
        f"host: {parts.netloc.rpartition('@')[2]}",
        "user-agent: penstock-loadtest",
        f"accept: {'text/event-stream' if scenario.target.stream else 'application/json'}",
        "content-type: application/json",
        *([f"authorization: Bearer {tenant.key}"] if tenant.key else []),
        "x-request-id: ",
    ]
    return "\r\n".join(lines).encode()


def _connect(loop: asyncio.AbstractEventLoop, url: str, address: tuple[str, int]) -> Connect:
    parts = urlsplit(url)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    return connect_to(loop, address, tls=tls, name=parts.hostname or "")


if __name__ == "__main__":
    # Ctrl-C is for the other process, which then says `Stop` and still gets the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(main(socket.socket(fileno=int(sys.argv[1]))))
