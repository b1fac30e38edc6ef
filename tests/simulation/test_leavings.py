"""Clients that leave at every moment at which they can: nothing is lost by it, least of all a place in a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.clients import Departure
from tests.simulation.model_pod import Conduct
from tests.simulation.scenes import guest, scene
from tests.simulation.world import START, Guest, World, live

LATER = 8.0
"""When everything of the first calls is over, and a whole budget must be free."""


def crowd(leaver: Guest) -> list[Guest]:
    """Two who run, one who waits behind them and may leave, one who waits behind it; later the whole budget at once."""
    later = [replace(guest(LATER), streamed=streamed) for streamed in (True, False)]
    return [guest(0.2, length=20), guest(0.2, length=15), leaver, guest(0.3), *later]


def world_with(leaver: Guest, seed: int = 1, **more: Conduct) -> World:
    conducts = {f"acme/main/{name.removeprefix('call_')}": conduct for name, conduct in more.items()}
    script = scene(crowd(leaver), concurrency={"acme": 2}, slots=2, conducts=conducts)
    return live(seed, script)


def assert_whole_budget_is_free(world: World) -> None:
    for visit in world.visits[-2:]:
        assert (visit.record.status, visit.record.queued_seconds) == (200, 0.0), f"{visit.call.id}: {visit.record}"


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("kind", ["good", "reset", "status", "stall", "unfinished"])
def test_a_call_can_be_left_in_every_window_of_every_wait(streamed: bool, kind: str) -> None:
    leaver = replace(guest(0.25), streamed=streamed)
    trouble = Conduct(kind, at=503 if kind == "status" else 3)
    stays = world_with(leaver, call_2=trouble).visits[2]
    waits = len(stays.woken_at)
    assert waits >= 2
    for number in range(1, waits + 1):
        for window in ("suspended", "unwoken"):
            departs = Departure(suspension=number, window=window)
            assert_whole_budget_is_free(world_with(replace(leaver, departure=departs), call_2=trouble))
    for moment in sorted(set(stays.woken_at)):
        for seed in range(4):  # in the same turn as what ends the wait, before it or after it
            departs = Departure(at=moment - START)
            assert_whole_budget_is_free(world_with(replace(leaver, departure=departs), seed, call_2=trouble))


def test_a_hundred_streams_that_are_left_leave_nothing_behind() -> None:
    """Slots that leak on a leaving until the key is locked are the most common complaint of such gateways."""
    guests = [
        replace(guest(0.2 + number * 0.03), departure=Departure(at=0.2 + number * 0.03 + (number % 9) * 0.01))
        for number in range(100)
    ]
    guests += [guest(LATER), guest(LATER)]
    world = live(1, scene(guests, concurrency={"acme": 2}, slots=4))
    assert_whole_budget_is_free(world)


def test_deadlines_that_end_in_the_turn_of_a_grant_leave_nothing_behind() -> None:
    running = guest(0.2, length=20)
    ended = live(1, scene([running], concurrency={"acme": 1})).visits[0].record.ended_at - START
    for seed in range(8):
        waiting = replace(guest(0.25), deadline=ended - 0.25)
        world = live(seed, scene([running, waiting, guest(LATER)], concurrency={"acme": 1}))
        assert world.visits[-1].record.queued_seconds == 0.0
