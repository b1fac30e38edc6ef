"""Waiting for something to become so, without guessing how long it takes: asked again and again, up to a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], T], within: float = 10.0, what: str = "the condition") -> T:
    """The first true answer of `condition`, while the loop goes on; AssertionError after `within` seconds."""
    deadline = time.monotonic() + within
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {within:g} s"
        await asyncio.sleep(0.005)
    return answer
