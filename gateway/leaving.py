"""A client's leaving as a value: a flag, and the one thing to do at once when it happens.

Cancelling the task of a client that left would end it between any two lines, with a lease in one hand and a grant
on its way. So nothing is cancelled: each step of an exchange says what a leaving would have to undo while that step
waits, and that ends the one future that the step awaits. After every wait the exchange looks at `has_left`.
"""

from __future__ import annotations

from collections.abc import Callable


class Leaving:
    """Whether the client has gone. Made for one call; `leave` may come at any moment, and more than once."""

    __slots__ = ("_undo", "has_left")

    def __init__(self) -> None:
        self.has_left = False
        self._undo: Callable[[], None] | None = None

    def leave(self) -> None:
        """The client is gone: end what is awaited now. Further calls do nothing."""
        if self.has_left:
            return
        self.has_left = True
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def undo_with(self, undo: Callable[[], None] | None) -> None:
        """Name what a leaving must undo from here on (`None`: nothing); called at once if the client has left
        already.
        """
        if undo is not None and self.has_left:
            undo()
        else:
            self._undo = undo
