"""Short questions to one pod: a GET and its whole answer, over the wire.

What health and readiness ask has nothing to do with calls: a question must not wait behind a call, nor take its
connection. So whoever asks has a pool of its own for each pod; as it asks one question at a time, that is one
connection, kept from poll to poll, and replaced without a word where the pod has closed it meanwhile.

An answer must be whole in time, a trickle too, and of bounded size. Everything else is `Unanswered`, with a text for
people; what an answer means is for whoever asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from backends.outcome import COMPLETE, Ending, Outcome
from backends.wire.deadline import CallLater
from backends.wire.pool import Connect, Pool, connector
from backends.wire.transfer import STALL_TICKS, Timeouts, Transfer

LARGEST_ANSWER_BYTES = 4 * 1024 * 1024

IDLE_SECONDS = 30.0
"""How long a connection is kept without a question: of many pods, each is asked only every few seconds."""

_LATE = frozenset({Ending.CONNECT_TIMEOUT, Ending.FIRST_BYTE_TIMEOUT, Ending.STALLED})
_HEADERS = ((b"accept", b"*/*"), (b"user-agent", b"penstock"))


class Unanswered(Exception):
    """No whole answer came; the text is for people, one line. `is_late`: within the time, and not for good."""

    def __init__(self, reason: str, *, is_late: bool = False) -> None:
        super().__init__(reason)
        self.is_late = is_late


class Inquiry:
    """What asks one pod, wherever that pod is by now."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        call_later: CallLater,
        seconds: float,
        connect_to: Callable[[str], Connect] = connector,
    ) -> None:
        """`clock` and `call_later` are the loop's; an answer is whole within `seconds`, or late.

        `connect_to` gives the way to a URL: by default the one that calls take, certificates verified alike.
        """
        self._clock = clock
        self._call_later = call_later
        self._seconds = seconds
        self._connect_to = connect_to
        self._url = ""
        self._pool: Pool | None = None

    async def get(self, url: str, path: str, *, api_key: str | None) -> tuple[int, bytes]:
        """Ask the pod at `url` for `path`; give the status and the body. Raises `Unanswered`.

        `url` may have a path, which goes before. Redirections are not followed, and proxies that the environment
        names are not used.
        """
        headers = _HEADERS if api_key is None else (*_HEADERS, (b"authorization", b"Bearer " + api_key.encode()))
        try:
            transfer = self._connected(url).send(_Get(path, headers), frames=False, method="GET")
        except ValueError as error:
            raise Unanswered(f"GET {path}: {error}") from error
        body = _Body(transfer)
        timer = self._call_later(self._seconds, partial(transfer.fail, Ending.STALLED, ""))
        try:
            opened = await transfer.opened
            outcome = opened if isinstance(opened, Outcome) else await transfer.attach(body)
        finally:
            timer.cancel()
            if not transfer.is_over:  # nobody waits for it any more
                transfer.abort()
        if isinstance(opened, Outcome) or outcome.ending is not COMPLETE:
            raise Unanswered(f"GET {path}: {self._reason(outcome)}", is_late=outcome.ending in _LATE)
        coding = opened.get(b"content-encoding")
        if coding is not None and coding != b"identity":
            raise Unanswered(f"GET {path}: the answer is in a coding that nobody asked for: {coding.decode('latin-1')}")
        return opened.status, body.whole()

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _connected(self, url: str) -> Pool:
        if self._pool is None or url != self._url:
            self.close()
            # The time-out over all of it is ours; the wire's are there for a connection that is not made, and else as
            # long, so that its timer is not moved forward with every answer.
            timeouts = Timeouts(self._seconds, self._seconds, self._seconds * STALL_TICKS)
            self._pool = Pool(
                url,
                connect=self._connect_to(url),
                clock=self._clock,
                call_later=self._call_later,
                timeouts=timeouts,
                idle_seconds=IDLE_SECONDS,
            )
            self._url = url
        return self._pool

    def _reason(self, outcome: Outcome) -> str:
        match outcome.ending:
            case Ending.CONNECT_TIMEOUT:
                return outcome.detail
            case Ending.FIRST_BYTE_TIMEOUT | Ending.STALLED:
                return f"no answer in {self._seconds:g} s"
            case Ending.REFUSED:
                return f"no connection: {outcome.detail}"
            case Ending.RESET:
                return f"the connection was {outcome.detail}"
            case _:
                return outcome.detail


@dataclass(frozen=True, slots=True)
class _Get:
    """The request, as the pool takes it."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""


class _Body:
    """Takes an answer's body, up to its bound."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._pieces: list[bytes] = []
        self._size = 0

    def frames(self, data: bytes) -> None:
        """Never called: nobody asked for frames."""
        raise AssertionError(f"{len(data)} bytes came as frames")

    def payload(self, data: bytes) -> None:
        """Keep a piece."""
        self._size += len(data)
        if self._size > LARGEST_ANSWER_BYTES:
            self._pieces.clear()
            self._transfer.abort(Outcome(Ending.MALFORMED, None, f"more than {LARGEST_ANSWER_BYTES} bytes came"))
        else:
            self._pieces.append(data)

    def whole(self) -> bytes:
        """All that came."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
