"""A server of exactly known delays, a process of its own: `selfcheck` measures it to learn whether it measures well.

The request's `model` names the mode of its answer (`answers.MODES`). Each stream has its own absolute schedule,
so that lateness does not add up, and the server knows how late it wrote each token itself: it tells at its end,
with what it counted, so that a fault of the measuring and one of the server can be told apart. A freeze stops the whole
process: nothing is read, nothing is written, and connections wait in the kernel, as with a real server that hangs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import httptools
import msgspec
import uvloop

from loadtest.checking.answers import MODES, Ask, Delays, End, Piece, script
from loadtest.histogram import Histogram
from tenancy.units import parse_duration

BACKLOG = 4096
EARLY_SECONDS = 0.0002
"""Timers of libuv are whole milliseconds and may fire early; what is due within this is on time."""
_RESET = struct.pack("ii", 1, 0)
_LATENESS_KEPT = 65_536
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Freeze:
    """The server stands still for `seconds`, from `after` seconds after its first call on."""

    after: float
    seconds: float


@dataclass(slots=True)
class Counts:
    """What the server counted in one mode: calls that arrived, that were answered as their mode is to be, and that were
    left by the client before; tokens that were written.
    """

    calls: int = 0
    answered: int = 0
    left: int = 0
    tokens: int = 0


class _Body(msgspec.Struct):
    """What of a call's body decides its answer."""

    model: str = "plain"
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    messages: list[dict[str, Any]] = []
    prompt: Any = ""


_decode = msgspec.json.Decoder(_Body).decode


class Server:
    """All connections' delays and counts. `clock` tells seconds, `call_later` sets timers, `stand_still` is the freeze:
    tests have them in virtual time.
    """

    def __init__(
        self,
        delays: Delays,
        freeze: Freeze | None = None,
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
        stand_still: Callable[[float], None] = time.sleep,
    ) -> None:
        self.delays = delays
        self.clock = clock
        self.call_later = call_later
        self.counts: dict[str, Counts] = {}
        self._freeze = freeze
        self._stand_still = stand_still
        self._lateness = array("d")
        self._late = Histogram()

    def arrive(self, mode: str) -> Counts:
        """Note a call."""
        if self._freeze is not None:
            freeze, self._freeze = self._freeze, None
            self.call_later(freeze.after, lambda: self._stand_still(freeze.seconds))
        counts = self.counts.setdefault(mode if mode in MODES else "plain", Counts())
        counts.calls += 1
        return counts

    def note_lateness(self, seconds: float) -> None:
        """A token was written so long after it was due. Hot."""
        self._lateness.append(seconds)
        if len(self._lateness) >= _LATENESS_KEPT:
            self._late.add(self._lateness)
            del self._lateness[:]

    def report(self) -> dict[str, Any]:
        """Counts by mode, and how late tokens were written, in seconds."""
        self._late.add(self._lateness)
        del self._lateness[:]
        late = {"p50": self._late.quantile(0.5), "p99": self._late.quantile(0.99)}
        return {"counts": {mode: asdict(counts) for mode, counts in self.counts.items()}, "late": late}


@dataclass(slots=True)
class _Playing:
    """One answer on its way."""

    pieces: tuple[Piece, ...]
    end: End
    arrived: float
    counts: Counts
    next: int = field(default=0)


class Connection(asyncio.Protocol):
    """One client's connection: reads a call, plays its answer, reads the next."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = bytearray()
        self._playing: _Playing | None = None

    # ---- asyncio's and httptools' callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but does not say so

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._playing is not None:
            self._playing.counts.left += 1
            self._playing = None

    def on_url(self, url: bytes) -> None:
        self._path = url
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._transport is None or self._playing is not None:
            self._leave()  # a second call before the first one's answer
            return
        try:
            ask = ask_of(self._path, bytes(self._body))
        except msgspec.MsgspecError:
            self._leave()
            return
        if ask is None:
            self._transport.write(_NOT_FOUND)
            return
        answer = script(ask, self._server.delays)
        self._playing = _Playing(answer.pieces, answer.end, self._server.clock(), self._server.arrive(ask.mode))
        self._play()

    # ---- the answer

    def _play(self) -> None:
        """Write what is due, each piece in a write of its own unless it is late already, and wait for what follows."""
        playing, transport, server = self._playing, self._transport, self._server
        if playing is None or transport is None or transport.is_closing():
            return
        now = server.clock()
        due = now + EARLY_SECONDS - playing.arrived
        pieces, index = playing.pieces, playing.next
        while index < len(pieces) and pieces[index].at <= due:
            piece = pieces[index]
            transport.write(piece.data)
            index += 1
            if piece.tokens:
                playing.counts.tokens += piece.tokens
                server.note_lateness(max(0.0, now - playing.arrived - piece.at))
        playing.next = index
        if index < len(pieces):
            server.call_later(playing.arrived + pieces[index].at - now, self._play)
        else:
            self._end(playing, transport)

    def _end(self, playing: _Playing, transport: asyncio.Transport) -> None:
        """Do with the connection what the answer's end asks for."""
        if playing.end is End.HANG:
            return  # until the client has had enough
        playing.counts.answered += 1
        self._playing = None
        if playing.end is End.CLOSE:
            transport.close()
        elif playing.end is End.RESET:
            connection = transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()

    def _leave(self) -> None:
        """What came is no call: there is nothing to say."""
        if self._transport is not None:
            self._transport.close()


def ask_of(path: bytes, body: bytes) -> Ask | None:
    """What a request asks for; `None` where no answer is known for its path. Raises `msgspec.MsgspecError` for a body
    that is none.
    """
    is_chat = path.endswith(b"/chat/completions")
    if not is_chat and not path.endswith(b"/completions"):
        return None
    asked = _decode(body)
    tokens = asked.max_completion_tokens or asked.max_tokens or 16
    said = asked.messages[-1].get("content", "") if asked.messages else asked.prompt
    words = said.count(" ") + 1 if isinstance(said, str) else 1
    wants_usage = bool((asked.stream_options or {}).get("include_usage"))
    return Ask(asked.model, tokens, asked.stream, is_chat, wants_usage, words)


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    freeze = Freeze(options.freeze_after, options.freeze) if options.freeze else None
    # not the loop's clock, which stands still within a turn
    server = Server(Delays(options.ttft, options.itl), freeze, clock=time.monotonic, call_later=loop.call_later)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", options.port, backlog=BACKLOG)
    is_over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, is_over.set)
    loop.add_signal_handler(signal.SIGINT, is_over.set)
    if options.while_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_on, is_over)
    _say({"ready": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "pid": os.getpid()})
    gc.collect()
    gc.freeze()  # a full collection of what stays anyway would be a delay that nobody knows
    await is_over.wait()
    listening.close()
    _say(server.report())


def _read_on(is_over: asyncio.Event) -> None:
    """Standard input says nothing, but it ends when whoever started this does."""
    if not os.read(sys.stdin.fileno(), 4096):
        is_over.set()


def _say(line: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # whoever started this is gone; nobody wants to know
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.checking.server",
        description="An OpenAI-compatible server on loopback that answers after exactly known delays. Prints one line "
        "of JSON when it listens, and another, with what it counted, when it ends.",
        epilog="The call's model picks how it is answered: "
        + "; ".join(f"{name} ({mode.about})" for name, mode in MODES.items())
        + ".",
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one (default)")
    parser.add_argument("--ttft", type=parse_duration, default=0.02, metavar="TIME", help="first token after (20ms)")
    parser.add_argument("--itl", type=parse_duration, default=0.01, metavar="TIME", help="from token to token (10ms)")
    parser.add_argument("--freeze", type=parse_duration, default=0.0, metavar="TIME", help="stand still once, so long")
    parser.add_argument(
        "--freeze-after", type=parse_duration, default=5.0, metavar="TIME", help="so long after the first call (5s)"
    )
    parser.add_argument("--while-stdin", action="store_true", help="end when standard input does")
    return parser


if __name__ == "__main__":
    uvloop.run(_serve(_parser().parse_args()))
