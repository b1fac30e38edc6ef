"""Guarantee and lending: what of a tenant's memory is its own, and what it was lent.

A tenant's `memory` is guaranteed; its profile's `overcommitRatio` multiplies it into the limit, up to which memory is
lent while the pods have room. What is lent can be told from what is held at any time, so nothing here has a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a tenant stands with its memory, in bytes. `None`: nothing is guaranteed and nothing limits it."""

    guarantee_bytes: int | None
    limit_bytes: int | None
    held_bytes: int

    @property
    def lent_bytes(self) -> int:
        """What is held beyond the guarantee."""
        return 0 if self.guarantee_bytes is None else max(0, self.held_bytes - self.guarantee_bytes)


def limit_of(guarantee_bytes: int | None, overcommit_ratio: float) -> int | None:
    """The most that may be held under a guarantee: rounded down, so that no float lends a byte too much."""
    if guarantee_bytes is None:
        return None
    return guarantee_bytes if overcommit_ratio == 1.0 else floor(guarantee_bytes * overcommit_ratio)
