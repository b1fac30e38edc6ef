"""A pod's output as lines of bounded length, and how many of them are shown.

Pure: bytes in, lines out. A pod may write without a newline for ever, or more lines than anybody reads; neither may
cost the gateway memory, or more than a known share of its time.
"""

from __future__ import annotations


class Lines:
    """Cuts a stream of bytes into lines.

    A carriage return ends a line, too (progress bars), and empty lines are left out. Of a line longer than `most_bytes`
    the head is returned and the rest skipped; no more than that is held between calls.
    """

    def __init__(self, most_bytes: int = 8192) -> None:
        self._most_bytes = most_bytes
        self._begun = b""
        self._is_skipping = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends; a cut one ends in `…`."""
        *ended, begun = data.replace(b"\r", b"\n").split(b"\n")
        lines: list[str] = []
        for piece in ended:
            self._take(piece, lines)
            if not self._is_skipping and self._begun:
                lines.append(self._begun.decode(errors="replace"))
            self._begun, self._is_skipping = b"", False
        self._take(begun, lines)
        return lines

    def end(self) -> list[str]:
        """The last line, where it was not ended."""
        return self.feed(b"\n")

    def _take(self, piece: bytes, lines: list[str]) -> None:
        if self._is_skipping:
            return
        self._begun += piece
        if len(self._begun) > self._most_bytes:
            lines.append(self._begun[: self._most_bytes].decode(errors="replace") + "…")
            self._begun, self._is_skipping = b"", True


class Allowance:
    """How many lines may be shown: at most `most` in each window of one second. The others are counted."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self._window_ends_at = 0.0
        self._left = 0
        self._left_out = 0

    def take(self, asked: int, now: float) -> int:
        """How many of the next `asked` lines to show."""
        if now >= self._window_ends_at:
            self._window_ends_at, self._left = now + 1.0, self._most
        given = min(asked, self._left)
        self._left -= given
        self._left_out += asked - given
        return given

    def left_out(self, now: float) -> int:
        """How many lines were left out since this was last asked; 0 while the window lasts in which they were."""
        if now < self._window_ends_at:
            return 0
        count, self._left_out = self._left_out, 0
        return count
