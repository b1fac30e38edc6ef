"""The side that decides, with real streams' processes: what is left of a run when they die."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest

from loadtest.messages import Call, Progress
from loadtest.run import StreamsFailed, run_scenario
from loadtest.scenario import Arrivals, Phase, Scenario, Target
from loadtest.summary import PhaseResults, Summary, SweepStep
from loadtest.tally import Now
from tests.loadtest.stage import a_tenant


class Killer:
    """Kills the streams' process when the phase begins, or at the message of this number."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.pid = 0

    def ready(self, pid: object) -> None:
        assert isinstance(pid, int)
        self.pid = pid

    def phase_begins(self, phase: Phase, number: int, is_counted: bool) -> None:
        self._count()

    def calls_ended(self, phase: Phase, tenant: str, calls: Sequence[Call], started_epoch: float) -> None: ...

    def progressed(self, now: Now, progress: Progress) -> None:
        self._count()

    def phase_ended(self, results: PhaseResults, step: SweepStep | None) -> None: ...

    def _count(self) -> None:
        if self.left == 0:
            os.kill(self.pid, signal.SIGKILL)
        self.left -= 1


def killed_at(number: int) -> Summary:
    async def story() -> Summary:
        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        target = Target(f"http://127.0.0.1:{address[1]}/v1", "m")
        tenant = a_tenant(Arrivals("constant", rate=20))
        scenario = Scenario(target, (tenant,), (Phase("p", 20.0, ("only",)), Phase("q", 20.0, ("only",))))
        killer = Killer(number)
        try:
            return await run_scenario(
                scenario, addresses=[address], open_streams=100, watchers=[killer], on_ready=killer.ready
            )
        finally:
            server.close()

    return asyncio.run(asyncio.wait_for(story(), 30.0))


def test_what_was_told_before_the_streams_process_died_is_reported() -> None:
    found = killed_at(2)
    assert found.ended == "failed"
    assert [phase.name for phase in found.phases] == ["p"]
    assert found.phases[0].all.scheduled > 0
    assert "the run failed: the streams' process ended by itself" in [mark.text for mark in found.marks]


def test_of_a_streams_process_that_told_nothing_nothing_is_reported() -> None:
    with pytest.raises(StreamsFailed, match="ended by itself"):
        killed_at(0)
