"""What the simulator counts of itself: how many calls it had, how many at once, for all and per tenant and user.

Kept at every change, not sampled, so that a test can hold a gateway to its limits by what arrived at the pod. A call
is counted from its arrival to its end; its sequences run while they hold a slot. The tenant is what stands before the
first `:` of the call's cache salt, the user is the body's `user`. Memory is counted by `kv_cache`, per tenant.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Counts:
    """One row. `calls` are at the pod now, running or waiting; `running` are sequences in slots now."""

    calls: int = 0
    most_calls: int = 0
    running: int = 0
    most_running: int = 0
    started: int = 0
    finished: int = 0
    disconnected: int = 0
    failed: int = 0
    refused: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows in which one call counts."""

    rows: tuple[Counts, ...]

    def refuse(self) -> None:
        """The call was turned away because the queue is full, and never counted as being here."""
        for row in self.rows:
            row.refused += 1

    def arrive(self) -> None:
        for row in self.rows:
            row.started += 1
            row.calls += 1
            if row.calls > row.most_calls:
                row.most_calls = row.calls

    def run(self) -> None:
        """One of its sequences has taken a slot."""
        for row in self.rows:
            row.running += 1
            if row.running > row.most_running:
                row.most_running = row.running

    def rest(self) -> None:
        """One of its sequences has left its slot."""
        for row in self.rows:
            row.running -= 1

    def disconnect(self) -> None:
        """Its client has left; the call may still be here."""
        for row in self.rows:
            row.disconnected += 1

    def end(self, *, finished: bool, failed: bool) -> None:
        """The call is over: answered whole, or broken by a fault, or neither where its client left."""
        for row in self.rows:
            row.calls -= 1
            row.finished += finished
            row.failed += failed

    def add_tokens(self, tokens: int) -> None:
        for row in self.rows:
            row.tokens += tokens


class Tally:
    """All rows."""

    def __init__(self) -> None:
        self.all = Counts()
        self.tenants: dict[str, Counts] = {}
        self.users: dict[str, Counts] = {}

    def rows(self, tenant: str, user: str) -> Rows:
        """The rows for a call of this tenant (empty: none known) and user (empty: not counted by user)."""
        rows = (self.all, self.tenants.setdefault(tenant, Counts()))
        return Rows((*rows, self.users.setdefault(user, Counts())) if user else rows)

    def reset(self) -> None:
        """Begin all totals and peaks anew; what is here now stays counted, and rows without calls are forgotten."""
        self.tenants = {name: row for name, row in self.tenants.items() if row.calls}
        self.users = {name: row for name, row in self.users.items() if row.calls}
        for row in (self.all, *self.tenants.values(), *self.users.values()):
            row.most_calls, row.most_running = row.calls, row.running
            row.started = row.finished = row.disconnected = row.failed = row.refused = row.tokens = 0


def as_json(row: Counts) -> dict[str, Any]:
    """A row's numbers by name."""
    return asdict(row)
