"""A pod in memory: it speaks HTTP/1.1 and server-sent events as vLLM does, and counts what it really holds.

It trusts nobody: who a request is of and how long its prompt is stand in the request itself, so its counts are a
second opinion on the gateway's. A request is on its books from the moment its last byte is read until the pod has
let go of it, whether anybody still listens or not; waiting for a slot counts, too. It misbehaves as its `Conduct`
says, drawn anew for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import msgspec

from backends.engines.engine import Reading
from tests.simulation.network import End, Network

BLOCK_TOKENS = 16
STEP_SECONDS = 0.01
"""First tokens, tokens and departures come on this grid, as clients do."""

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSING_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"
FRAMINGS = ("plain", "merged", "ragged", "unframed")


@dataclass(frozen=True, slots=True)
class Conduct:
    """What one request meets. `at` counts tokens, or bytes where it breaks at a byte.

    good · status (`at` is it) · reset (the pod breaks at a byte, and has let go) · cut (the network breaks at a
    byte, the pod learns of it as of any disconnect) · stall · unfinished (ends in order, without a finish) · close
    (ends early) · error (an error event) · no_done (a finish, and no `[DONE]`) · drops (good, then closes without
    having said so) · pings (comments first)

    A pod that is left goes on for `lingers` seconds.
    """

    kind: str = "good"
    at: int = 0
    lingers: float = 0.0
    first_steps: int = 2
    gap_steps: int = 1
    framing: str = "plain"


@dataclass(eq=False, slots=True)
class Work:
    """One request on a pod's books."""

    id: str
    tenant: str
    prompt_tokens: int
    max_tokens: int
    length: int
    streamed: bool
    conduct: Conduct
    served: _Served | None
    sequences: int = 1
    is_running: bool = False
    generated: int = 0
    written: int = 0
    timer: asyncio.TimerHandle | None = None
    held_back: bytes = b""

    @property
    def blocks(self) -> int:
        """What it may come to hold: its prompt once, and each output to its maximum."""
        if self.sequences == 1:
            return -(-(self.prompt_tokens + self.max_tokens) // BLOCK_TOKENS)
        return -(-self.prompt_tokens // BLOCK_TOKENS) + self.sequences * -(-self.max_tokens // BLOCK_TOKENS)


class Witness(Protocol):
    """Who is told what happens at pods."""

    def arrived(self, pod: ModelPod, work: Work) -> None: ...

    def reported(self, pod: ModelPod, work: Work, prompt_tokens: int, completion_tokens: int) -> None: ...

    def let_go(self, pod: ModelPod, work: Work) -> None: ...


@dataclass
class Size:
    """What a pod holds at once: calls, blocks of KV memory, and bytes a token."""

    slots: int
    blocks: int
    bytes_a_token: int


@dataclass(eq=False)
class ModelPod:
    """One pod. `conduct` tells how it treats the request of that id; `tells` is false for one that publishes
    nothing.
    """

    name: str
    url: str
    size: Size
    loop: asyncio.AbstractEventLoop
    network: Network
    random: Random
    conduct: Callable[[str], Conduct]
    witness: Witness
    tells: bool = True
    is_up: bool = False
    lives: int = 0
    work: dict[Work, None] = field(default_factory=dict)
    _connections: dict[_Served, None] = field(default_factory=dict)

    # life

    def start(self) -> None:
        self.is_up = True
        self.lives += 1
        self.network.listen(self.url, lambda: _Served(self))

    def stop(self) -> None:
        """The process dies, and all of it with it."""
        self.is_up = False
        self.network.listen(self.url, None)
        for work in list(self.work):
            self._let_go(work)
        for served in list(self._connections):
            served.end.reset(None)

    def reading(self, asked_at: float) -> Reading:
        """What it publishes of itself at this moment."""
        if not self.tells:
            return Reading(asked_at)
        running = sum(work.is_running for work in self.work)
        return Reading(
            asked_at,
            running=running,
            waiting=len(self.work) - running,
            kv_tokens=self.size.blocks * BLOCK_TOKENS,
            kv_usage=min(1.0, sum(work.blocks for work in self.work if work.is_running) / self.size.blocks),
            slots=self.size.slots,
            block_tokens=BLOCK_TOKENS,
        )

    def held_bytes(self, work: Work) -> int:
        return work.blocks * BLOCK_TOKENS * self.size.bytes_a_token

    # requests

    def connected(self, served: _Served) -> None:
        self._connections[served] = None

    def take(self, served: _Served, body: bytes) -> Work | None:
        """A whole request is here."""
        fields = msgspec.json.decode(body)
        maximum = int(fields.get("max_completion_tokens") or fields["max_tokens"])
        work = Work(
            id=fields["true_id"],
            tenant=fields.get("cache_salt") or fields["user"],
            prompt_tokens=fields["true_prompt_tokens"],
            max_tokens=maximum,
            length=min(maximum, fields["true_length"]),
            streamed=bool(fields.get("stream")),
            conduct=self.conduct(fields["true_id"]),
            served=served,
            sequences=fields.get("n", 1),
        )
        self.work[work] = None
        self.witness.arrived(self, work)
        self._begin_waiting()
        return work

    def left(self, served: _Served, work: Work | None) -> None:
        """The connection is gone; what ran on it may linger."""
        self._connections.pop(served, None)
        if work is None or work not in self.work:
            return
        work.served = None
        if work.timer is not None:
            work.timer.cancel()
        if work.conduct.lingers:
            work.timer = self.loop.call_later(work.conduct.lingers, self._let_go, work)
        else:
            self._let_go(work)

    def _begin_waiting(self) -> None:
        for work in list(self.work):
            running = [other for other in self.work if other.is_running]
            fits = sum(other.blocks for other in running) + work.blocks <= self.size.blocks
            if not work.is_running and len(running) < self.size.slots and fits:
                work.is_running = True
                if work.served is not None:
                    self._after(work.conduct.first_steps, self._first, work)

    def _after(self, steps: int, step: Callable[[Work], None], work: Work) -> None:
        work.timer = self.loop.call_later(steps * STEP_SECONDS, step, work)

    def _let_go(self, work: Work) -> None:
        if work in self.work:
            del self.work[work]
            if work.timer is not None:
                work.timer.cancel()
            self.witness.let_go(self, work)
            self._begin_waiting()

    # answers

    def _first(self, work: Work) -> None:
        conduct = work.conduct
        if conduct.kind == "status":
            self._let_go(work)
            retry = b"retry-after: 1\r\n" if conduct.at in (429, 503) else b""
            self._answer(work, b"%d No" % conduct.at, b'{"error":{"message":"no"}}', retry)
            return
        if not work.streamed:
            self._after(conduct.gap_steps * work.length, self._whole, work)
            return
        self._write(work, CLOSING_HEAD if conduct.framing == "unframed" else HEAD)
        if conduct.kind == "pings":
            self._event(work, b": ping\n\n")
        self._token(work)

    def _token(self, work: Work) -> None:
        conduct = work.conduct
        if conduct.kind in ("stall", "unfinished", "close", "error") and work.generated == min(
            conduct.at, work.length - 1
        ):
            self._break(work)
        elif work.generated < work.length:
            text = b'{"id":"%b","choices":[{"index":0,"delta":{"content":"<%d>"}}]}' % (
                work.id.encode(),
                work.generated,
            )
            work.generated += 1
            self._event(work, b"data: " + text + b"\n\n")
            if work in self.work:
                self._after(conduct.gap_steps, self._token, work)
        else:
            self._finish(work)

    def _finish(self, work: Work) -> None:
        self._event(work, b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
        used = work.prompt_tokens, work.generated * work.sequences
        self._event(work, b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n' % used)
        if work.conduct.kind != "no_done":
            self._event(work, DONE)
        if work in self.work:
            self.witness.reported(self, work, *used)
            self._let_go(work)
            self._end_body(work)

    def _break(self, work: Work) -> None:
        kind = work.conduct.kind
        if kind == "stall":
            return  # and is never heard of again
        if kind == "error":
            self._event(work, b'data: {"error":{"message":"engine died"}}\n\n')
        self._let_go(work)
        if kind == "close" and work.served is not None:
            work.served.end.close()
        else:
            self._end_body(work)

    def _whole(self, work: Work) -> None:
        work.generated = work.length
        if work.conduct.kind == "stall":
            return
        text = "".join(f"<{number}>" for number in range(work.length))
        used = {"prompt_tokens": work.prompt_tokens, "completion_tokens": work.length * work.sequences}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = msgspec.json.encode({"id": work.id, "choices": [choice], "usage": used})
        if self._answer(work, b"200 OK", body):
            self.witness.reported(self, work, used["prompt_tokens"], used["completion_tokens"])
            self._let_go(work)

    def _answer(self, work: Work, status: bytes, body: bytes, extra: bytes = b"") -> bool:
        """Send a whole answer; whether it went out whole."""
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
        is_out = self._write(work, head % (status, len(body), extra) + body)
        if is_out:
            self._answered(work)
        return is_out

    def _end_body(self, work: Work) -> None:
        if work.conduct.framing == "unframed":
            if work.served is not None:
                work.served.end.close()
            return
        if work.held_back:
            held, work.held_back = work.held_back, b""
            self._chunk(work, held)
        if self._write(work, b"0\r\n\r\n"):
            self._answered(work)

    def _answered(self, work: Work) -> None:
        served, work.served = work.served, None
        if served is not None:
            served.is_free()
            if work.conduct.kind == "drops":
                served.is_deaf = True
                self.loop.call_later(STEP_SECONDS / 2, served.end.close)

    def _event(self, work: Work, event: bytes) -> None:
        framing = work.conduct.framing
        if framing == "unframed":
            self._write(work, event)
        elif framing == "plain":
            self._chunk(work, event)
        else:
            held = work.held_back + event
            cut = len(held) if framing == "merged" else self.random.randrange(len(held) + 1)
            if framing == "merged" and self.random.random() < 0.4:
                cut = 0
            work.held_back = held[cut:]
            if cut:
                self._chunk(work, held[:cut])

    def _chunk(self, work: Work, payload: bytes) -> None:
        self._write(work, b"%x\r\n%b\r\n" % (len(payload), payload))

    def _write(self, work: Work, data: bytes) -> bool:
        served, conduct = work.served, work.conduct
        if served is None or served.end.is_closing():
            return False
        if conduct.kind in ("reset", "cut") and work.written + len(data) >= conduct.at:
            served.end.write(data[: max(1, conduct.at - work.written)])
            if conduct.kind == "reset":
                work.served = None
                self._let_go(work)
            # A cut loses no byte: a kept connection that dies without one is taken for a stale one, and asked again.
            served.end.reset(None, loses=conduct.kind == "reset")
            return False
        work.written += len(data)
        served.end.write(data)
        return True


class _Served(asyncio.Protocol):
    """One connection that the pod serves."""

    end: End

    def __init__(self, pod: ModelPod) -> None:
        self._pod = pod
        self.is_deaf = False
        self._received = b""
        self._work: Work | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, End)
        self.end = transport
        self._pod.connected(self)

    def data_received(self, data: bytes) -> None:
        if self.is_deaf:
            return
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        if len(body) >= length:
            assert self._work is None and len(body) == length, "a second request before the first was answered"
            self._received = b""
            self._work = self._pod.take(self, body)

    def eof_received(self) -> None:
        return None

    def is_free(self) -> None:
        """The answer is out; another request may come."""
        self._work = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._pod.left(self, self._work)


def raw(body: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """A call's body, as its top-level keys in raw JSON."""
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
