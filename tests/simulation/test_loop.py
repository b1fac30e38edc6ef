from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import pytest

from tests.simulation.loop import OutOfBounds, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop(Random(1))
    yield loop
    loop.close()


def test_an_hour_passes_at_once(loop: VirtualLoop) -> None:
    began = loop.time()
    loop.run_until_complete(asyncio.sleep(3000))
    assert loop.time() - began == pytest.approx(3000)


def test_a_wait_that_nothing_can_end_is_an_error(loop: VirtualLoop) -> None:
    with pytest.raises(OutOfBounds, match="deadlock"):
        loop.run_until_complete(loop.create_future())


def test_a_history_that_does_not_end_is_an_error(loop: VirtualLoop) -> None:
    async def forever() -> None:
        while True:  # noqa: ASYNC110 – that it never ends is the point
            await asyncio.sleep(100)

    with pytest.raises(OutOfBounds, match="not over"):
        loop.run_until_complete(forever())


def test_threads_and_sockets_are_errors(loop: VirtualLoop) -> None:
    with pytest.raises(OutOfBounds, match="thread"):
        loop.run_until_complete(asyncio.to_thread(print))
    with pytest.raises(OutOfBounds, match="socket"):
        loop.run_until_complete(loop.create_connection(asyncio.Protocol, "127.0.0.1", 1))


def test_what_the_exception_handler_hears_is_kept(loop: VirtualLoop) -> None:
    def fails() -> None:
        raise ValueError("no")

    loop.call_soon(fails)
    loop.run_until_complete(asyncio.sleep(1))
    assert "ValueError('no')" in loop.faults[0]


def test_timers_of_one_moment_run_in_one_turn_and_in_an_order_that_the_seed_draws() -> None:
    def order(seed: int) -> tuple[str, bool]:
        loop = VirtualLoop(Random(seed))
        ran: list[tuple[str, int]] = []
        for name in "abcd":
            loop.call_at(loop.time() + 1.0, lambda name=name: ran.append((name, loop.turns)))
        loop.run_until_complete(asyncio.sleep(2))
        loop.close()
        return "".join(name for name, _ in ran), len({turn for _, turn in ran}) == 1

    orders = [order(seed) for seed in range(10)]
    assert len({names for names, _ in orders}) > 3
    assert all(is_one_turn for _, is_one_turn in orders)
    assert order(7) == order(7)
