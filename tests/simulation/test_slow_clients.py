"""A client that reads slowly slows its own stream, and nothing piles up for it in the gateway."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.model_pod import Conduct
from tests.simulation.scenes import guest, scene
from tests.simulation.world import live


def test_a_long_answer_waits_at_the_pod_and_not_in_the_gateway() -> None:
    slow = replace(guest(0.2, length=1500), sip_bytes=2000)
    at_once = {"acme/main/0": Conduct(gap_steps=0)}
    world = live(1, scene([slow], concurrency={"acme": 1}, conducts=at_once))
    visit = world.visits[0]
    assert visit.record.completion_tokens == 1500
    assert len(visit.transport.written) > 100_000
    assert visit.transport.most_waiting < 2000
