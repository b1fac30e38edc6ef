"""Start, drain and end of the gateway's process, and what its signals mean.

The first SIGTERM or Ctrl-C drains: `/readyz` says 503, after `drainDelay` nothing new is admitted, open streams
finish (at most `drainTimeout`), pods that we run are ended, exit 0. A second signal ends it at once: connections
are cut, pods killed.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from gateway.assembly import Gateway
from gateway.observe.logs import Log, Stream
from tenancy.policy import Policy

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Lifecycle:
    """The phases of one gateway's life; `stop` may come from a signal or from a test."""

    def __init__(self, gateway: Gateway, policy: Policy, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        self._gateway = gateway
        self._policy = policy
        self._log = log
        self._loop = loop
        self._stop_asked = loop.create_future()
        self._end_asked = loop.create_future()

    def stop(self, reason: str) -> None:
        """The first call drains, the second ends it all."""
        for asked in (self._stop_asked, self._end_asked):
            if not asked.done():
                asked.set_result(reason)
                return

    async def run(self, on_listening: Callable[[Gateway], None]) -> int:
        """Serve until stopped; the exit code: 0 after an orderly drain, 1 where it was ended before its streams
        were.
        """
        gateway = self._gateway
        await gateway.start()
        # Requests leave no cycles behind (20,000 with the collector off), so that it need not look after every
        # 700 objects, nor walk what start-up made: together 7 % of what a one-token request costs.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000)
        on_listening(gateway)
        reason = await self._stop_asked
        self._log.info("draining", reason=reason, open=gateway.open_calls)
        drained = await self._drain()
        await gateway.end(at_once=not drained)
        self._log.info("ended", drained=drained)
        return 0 if drained else 1

    async def _drain(self) -> bool:
        settings = self._policy.server
        gateway = self._gateway
        gateway.is_draining = True
        await self._unless_ended(asyncio.sleep(settings.drain_delay_seconds))
        gateway.drain()
        await self._unless_ended(asyncio.wait_for(gateway.quiet(), settings.drain_timeout_seconds))
        return gateway.open_calls == 0

    async def _unless_ended(self, step: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(step)
        await asyncio.wait({task, self._end_asked}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def serve(policy: Policy, log: Log, access_to: Stream, on_listening: Callable[[Gateway], None]) -> int:
    """Run a gateway for `policy` in this process's main thread until it is told to stop; returns the exit code."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        life = Lifecycle(Gateway(policy, loop=loop, log=log, access_to=access_to), policy, log, loop)
        for number in SIGNALS:
            loop.add_signal_handler(number, life.stop, signal.Signals(number).name)
        return await life.run(on_listening)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
