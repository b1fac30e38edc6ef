"""A simulated inference pod: an OpenAI-compatible server that behaves like vLLM, without a model and without a GPU.

It is what gateways are tested against: its tokens are deterministic, its times are set, its KV memory and slots are
finite, it counts what arrived, and it misbehaves on demand. This module is the program: its options, its endpoints,
its life. How sequences run is in `batch`, what they say in `words`, how it is sent in `answers`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
import uvloop

from backends.pods import kv_cache, misbehaviour, settings, tally, tokens
from backends.pods.answers import Answer
from backends.pods.batch import Batch
from backends.pods.batch import Sequence as Strand
from backends.pods.http1 import Connection, Reply, Request
from backends.pods.misbehaviour import Fault, FaultKind, Misbehaviour
from backends.pods.openai_api import Ask, Complaint, Kind, Prompt, Reader, error_body
from backends.pods.options import announce
from backends.pods.settings import Settings
from backends.pods.vllm_metrics import CONTENT_TYPE, Metrics
from backends.pods.words import Echo, Grammar, Source, Text

VERSION = "0.33.0"
"""The release of vLLM that is imitated."""
BACKLOG = 4096
KEPT_REQUESTS = 64
KEPT_BODY_BYTES = 64 * 1024


class Simulator:
    """One pod: its engine and its endpoints. `clock` is the wall clock, for `created`."""

    def __init__(self, wanted: Settings, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self.settings = wanted
        self.loop = loop
        self.connections: set[Connection] = set()
        self.faults = Misbehaviour()
        block_bytes = wanted.block_tokens * wanted.bytes_per_token
        self.pool = kv_cache.Pool(wanted.blocks, wanted.block_tokens, block_bytes, shares=wanted.shares_prefixes)
        self.metrics = Metrics(wanted.models[0], _cache_config(wanted))
        self.tally = tally.Tally()
        self.batch = Batch(
            self.pool,
            slots=wanted.slots,
            queue=wanted.queue,
            timing=wanted.timing,
            metrics=self.metrics,
            random=Random(wanted.seed),
            loop=loop,
        )
        self._clock = clock
        self._reader = Reader(wanted.models, wanted.context, wanted.dimensions, never_ends=wanted.output == "fixed")
        self._grammar = Grammar(wanted.mean_output, never_ends=False)
        self._endless = Grammar(wanted.mean_output, never_ends=True)
        self._calls = 0
        self._open: dict[Answer, None] = {}
        self._seen: deque[tuple[Request, float]] = deque(maxlen=KEPT_REQUESTS)
        self._instance = os.urandom(6).hex()
        self._server: asyncio.Server | None = None
        self._port = wanted.port
        self._engine_paths = {kind.value: kind for kind in Kind}
        self._routes: dict[tuple[str, str], Callable[[Request, Reply], None]] = {
            ("GET", "/health"): lambda _, reply: reply.whole(200, b""),
            ("GET", "/ping"): lambda _, reply: reply.whole(200, b""),
            ("GET", "/version"): lambda _, reply: reply.whole(200, msgspec.json.encode({"version": VERSION})),
            ("GET", "/metrics"): self._show_metrics,
            ("GET", "/v1/models"): self._show_models,
            ("POST", "/tokenize"): self._tokenize,
            ("GET", "/sim/counters"): lambda _, reply: reply.whole(200, msgspec.json.encode(self.counters())),
            ("GET", "/sim/requests"): self._show_requests,
            ("GET", "/sim/faults"): lambda _, reply: reply.whole(200, msgspec.json.encode(self.faults.armed())),
            ("POST", "/sim/faults"): self._arm,
            ("DELETE", "/sim/faults"): self._disarm,
            ("POST", "/sim/reset"): self._reset,
        }

    async def listen(self) -> str:
        """Begin to serve; returns the URL."""
        self._server = await self.loop.create_server(
            lambda: Connection(self.serve, self.connections, self.faults.refuses_connection),
            self.settings.host,
            self._port,
            backlog=BACKLOG,
        )
        self._port = self._server.sockets[0].getsockname()[1]
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self._port}"

    def serve(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        kind = self._engine_paths.get(request.path)
        key = self.settings.api_key
        if key and request.path.startswith("/v1") and request.header("authorization") != f"Bearer {key}":
            reply.whole(401, b'{"error":"Unauthorized"}')
        elif kind is not None and request.method == "POST":
            self._seen.append((request, self.loop.time()))
            try:
                self._run(self._reader.read(kind, request.body), reply)
            except Complaint as complaint:
                reply.whole(complaint.status, complaint.body)
        elif (route := self._routes.get((request.method, request.path))) is not None:
            route(request, reply)
        elif any(path == request.path for _, path in self._routes) or kind is not None:
            reply.whole(405, b'{"detail":"Method Not Allowed"}')
        else:
            reply.whole(404, b'{"detail":"Not Found"}')

    def counters(self) -> dict[str, Any]:
        """The answer to `GET /sim/counters`."""
        for sequence in (*self.batch.running, *self.batch.waiting):
            sequence.book()
        size = self.pool.block_bytes
        empty = kv_cache.Held()

        def row(counts: tally.Counts, held: kv_cache.Held) -> dict[str, Any]:
            return tally.as_json(counts) | {"kv_bytes": held.now * size, "most_kv_bytes": held.most * size}

        names = [*self.tally.tenants, *(name for name in self.pool.owners if name not in self.tally.tenants)]
        return {
            "all": row(self.tally.all, self.pool.all) | {"waiting": self.batch.waiting_count},
            "tenants": {
                name: row(self.tally.tenants.get(name) or tally.Counts(), self.pool.owners.get(name, empty))
                for name in names
            },
            "users": {name: tally.as_json(counts) for name, counts in self.tally.users.items()},
            "pool": {
                "blocks": self.pool.blocks,
                "block_tokens": self.pool.block_tokens,
                "block_bytes": size,
                "tokens": self.pool.blocks * self.pool.block_tokens,
                "bytes": self.pool.blocks * size,
            },
            "connections": len(self.connections),
        }

    def arm(self, fault: Fault) -> None:
        """Arm a fault; refusing for a time begins at once."""
        if fault.kind is FaultKind.REFUSE and fault.value is not None:
            self.loop.create_task(self._refuse(fault.value))
        else:
            self.faults.arm(fault)

    async def _refuse(self, seconds: float) -> None:
        """Close the listening socket for a time, and reset the connections on which nothing is answered."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for connection in [each for each in self.connections if each.is_idle]:
            connection.reset()
        await asyncio.sleep(seconds)
        await self.listen()

    def _run(self, ask: Ask, reply: Reply) -> None:
        """Put a call on the engine, or turn it away."""
        tenant = ask.salt.partition(":")[0]
        rows = self.tally.rows(tenant, ask.user)
        struck = _UNHARMED if self.faults.is_quiet else self.faults.strike(_fields(ask, tenant))
        if (fault := struck.get(FaultKind.STATUS)) is not None:
            _answer_status(reply, fault)
            return
        if (fault := struck.get(FaultKind.RESET)) is not None:
            self._hang(reply, rows, fault.value or 0.0)
            return
        self._calls += 1
        identity = f"{ask.kind.identity}-{self._instance}{self._calls:020x}"
        answer = Answer(ask, reply, rows, self.batch, struck, self.loop.call_later, identity, int(self._clock()))
        self._prepare(ask, answer, rows)
        if not self.batch.has_room(answer.sequences):
            rows.refuse()
            message = f"The waiting queue is full ({self.settings.queue} requests); try again later."
            reply.whole(503, error_body(503, message, "ServiceUnavailableError"))
            return
        reply.hold()
        answer.begin()
        self.batch.submit(answer.sequences)
        reply.flush()

    def _prepare(self, ask: Ask, answer: Answer, rows: tally.Rows) -> None:
        """Give the answer its sequences: for each prompt as many as there are choices."""
        for place, prompt in enumerate(ask.prompts):
            names = kv_cache.keys(ask.salt, prompt.pieces, self.pool.block_tokens)
            tail = prompt.pieces[len(names) * self.pool.block_tokens :]
            for choice in range(ask.choices):
                answer.sequences.append(
                    Strand(
                        ask.salt,
                        names.copy(),
                        tail.copy(),
                        len(prompt.pieces),
                        self._source(ask, prompt, choice),
                        ask.limits[place],
                        rows,
                        answer.voice(place * ask.choices + choice),
                    )
                )

    def _hang(self, reply: Reply, rows: tally.Rows, seconds: float) -> None:
        """Answer nothing, and reset the connection after a time."""

        def leave() -> None:
            rows.disconnect()
            rows.end(finished=False, failed=False)

        def reset() -> None:
            if not reply.is_over:
                reply.reset()
                rows.end(finished=False, failed=True)

        rows.arrive()
        reply.left = leave
        self.loop.call_later(seconds, reset)

    def _source(self, ask: Ask, prompt: Prompt, choice: int) -> Source:
        if self.settings.output == "echo":
            return Echo(prompt.heard, prompt.beginning)
        state = prompt.state + choice * 0x9E3779B1 & 0xFFFFFFFF
        return Text(
            self._endless if ask.ignores_end else self._grammar, state, prompt.beginning, is_reply=prompt.is_reply
        )

    def _show_metrics(self, request: Request, reply: Reply) -> None:
        reply.whole(200, self.metrics.text(self.batch), CONTENT_TYPE)

    def _show_models(self, request: Request, reply: Reply) -> None:
        created = int(self._clock())
        served = [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "vllm",
                "root": self.settings.models[0],
                "parent": None,
                "max_model_len": self.settings.context,
            }
            for name in self.settings.models
        ]
        reply.whole(200, msgspec.json.encode({"object": "list", "data": served}))

    def _tokenize(self, request: Request, reply: Reply) -> None:
        try:
            pieces = self._reader.tokenize(request.body)
        except Complaint as complaint:
            reply.whole(complaint.status, complaint.body)
            return
        numbers = [tokens.number(piece) for piece in pieces]
        body = {"count": len(pieces), "max_model_len": self.settings.context, "tokens": numbers, "token_strs": None}
        reply.whole(200, msgspec.json.encode(body))

    def _show_requests(self, request: Request, reply: Reply) -> None:
        """The last calls as they arrived, oldest first."""
        seen = [
            {
                "path": each.path,
                "headers": each.headers,
                "body": each.body[:KEPT_BODY_BYTES].decode("utf-8", "replace"),
                "at": at,
            }
            for each, at in self._seen
        ]
        reply.whole(200, msgspec.json.encode(seen))

    def _arm(self, request: Request, reply: Reply) -> None:
        try:
            fault = misbehaviour.read(request.body)
        except ValueError as error:
            reply.whole(400, error_body(400, str(error), "BadRequestError"))
            return
        reply.whole(200, msgspec.json.encode(fault.describe()))
        self.arm(fault)

    def _disarm(self, request: Request, reply: Reply) -> None:
        self.faults.disarm()
        reply.whole(200, b"[]")

    def _reset(self, request: Request, reply: Reply) -> None:
        for sequence in (*self.batch.running, *self.batch.waiting):
            sequence.book()
        self.tally.reset()
        self.pool.reset_peaks()
        self._seen.clear()
        reply.whole(200, b"{}")


_UNHARMED: dict[FaultKind, Fault] = {}


def _fields(ask: Ask, tenant: str) -> dict[str, str]:
    """What a fault may match of a call; see `misbehaviour.MATCHED`."""
    return {"salt": ask.salt, "tenant": tenant, "user": ask.user, "model": ask.model, "path": ask.kind.value}


def _answer_status(reply: Reply, fault: Fault) -> None:
    kind = {503: "ServiceUnavailableError", 429: "RateLimitError"}.get(
        fault.count, "InternalServerError" if fault.count >= 500 else "BadRequestError"
    )
    extra = f"retry-after: {fault.retry_after:g}\r\n".encode() if fault.retry_after is not None else b""
    reply.whole(
        fault.count, error_body(fault.count, fault.message or "The simulator was told to fail.", kind), extra=extra
    )


def _cache_config(wanted: Settings) -> dict[str, str]:
    """The labels of `vllm:cache_config_info`."""
    return {
        "block_size": str(wanted.block_tokens),
        "cache_dtype": "auto",
        "enable_prefix_caching": str(wanted.shares_prefixes),
        "gpu_memory_utilization": "0.9",
        "kv_cache_memory_bytes": str(wanted.kv_bytes),
        "kv_cache_size_tokens": str(wanted.blocks * wanted.block_tokens),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(wanted.blocks),
        "num_gpu_blocks_override": "None",
        "sliding_window": "None",
    }


def _die(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A bug of the simulator ends it, loudly: a pod that is half alive would cast doubt on what it is to test."""
    loop.default_exception_handler(context)
    os._exit(70)


async def _serve(wanted: Settings) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_die)
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, ended.set)
    simulator = Simulator(wanted, loop, time.time)
    url = await simulator.listen()
    for fault in wanted.faults:
        simulator.arm(fault)
    gc.freeze()
    announce(
        url,
        engine="simulator",
        pid=os.getpid(),
        models=list(wanted.models),
        slots=wanted.slots,
        context=wanted.context,
        kv_tokens=wanted.blocks * wanted.block_tokens,
        kv_bytes=wanted.blocks * wanted.block_tokens * wanted.bytes_per_token,
    )
    await ended.wait()


def run(parsed: argparse.Namespace) -> int:
    """Serve until a signal comes; 0 then, 2 where the options contradict each other or the port is taken."""
    try:
        uvloop.run(_serve(settings.read_options(parsed)))
    except (ValueError, OSError) as error:
        print(f"penstock pod simulator: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m backends.pods.simulator`."""
    parser = argparse.ArgumentParser(
        prog="penstock pod simulator",
        description=settings.DESCRIPTION,
        epilog=settings.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    settings.add_options(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
