"""Whose turn it is, among the tenants that wait for the same pods: round robin.

A tenant that begins to wait joins at the end, and one that was served goes to the end, so that nobody is served twice
while another waits whom the pod could serve. Within a tenant its lanes take turns in the same way, so that one key
does not take all of its tenant's turns. The fair queue by weight comes behind this same face: `join`, `served`,
`withdraw`, and iteration in turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

LaneT = TypeVar("LaneT", bound=Hashable)


class _Place(Generic[LaneT]):
    """One tenant's place in the round, and its lanes in their turn."""

    __slots__ = ("lanes", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.lanes: OrderedDict[LaneT, None] = OrderedDict()


class Turns(Generic[LaneT]):
    """The round of the tenants waiting for one group of pods. Every step is O(1); `numbers` is shared by all rounds."""

    __slots__ = ("_numbers", "_places")

    def __init__(self, numbers: count[int]) -> None:
        self._numbers = numbers
        self._places: OrderedDict[str, _Place[LaneT]] = OrderedDict()

    def __len__(self) -> int:
        """How many tenants wait."""
        return len(self._places)

    def __iter__(self) -> Iterator[tuple[int, LaneT]]:
        """The lanes in turn, each with its tenant's number."""
        for place in self._places.values():
            for lane in place.lanes:
                yield place.number, lane

    def number_of(self, tenant: str) -> int:
        """The place of a waiting tenant: lower goes first, across rounds, too."""
        return self._places[tenant].number

    def join(self, tenant: str, lane: LaneT) -> None:
        """The lane begins to wait: its tenant, if it did not wait yet, comes last."""
        place = self._places.get(tenant)
        if place is None:
            place = self._places[tenant] = _Place(next(self._numbers))
        place.lanes[lane] = None

    def served(self, tenant: str, lane: LaneT) -> None:
        """The tenant was served through `lane`: it comes last now, and the lane comes last within it."""
        place = self._places.get(tenant)
        if place is not None:
            place.number = next(self._numbers)
            self._places.move_to_end(tenant)
            if lane in place.lanes:
                place.lanes.move_to_end(lane)

    def withdraw(self, tenant: str, lane: LaneT) -> None:
        """The lane waits here no more."""
        place = self._places[tenant]
        del place.lanes[lane]
        if not place.lanes:
            del self._places[tenant]

    def lanes_of(self, tenant: str) -> Iterator[LaneT]:
        """The tenant's lanes in their turn."""
        place = self._places.get(tenant)
        return iter(()) if place is None else iter(place.lanes)
