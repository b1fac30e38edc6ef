"""The two ends of a gateway's wires, held by one hand: its client and its pod, one step at a time.

A step is something that the gateway has to do: take a request, pass on a chunk. The next step begins when the gateway
has done the last one and sleeps again in its loop, so that each finds it in the same state and costs the same. What the
pod says is what the simulator pod says on the wire, read for read.

Polls come when the gateway likes. They are answered, and counted in `polls`: who counts a cost leaves out what a poll
fell into.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator

from benchmarks.programs import key_hash

KEY = "sk-penstock-cost-gate"
FILE = """
server: {{host: 127.0.0.1, port: {port}}}
admin: {{host: 127.0.0.1, port: {admin}}}
pods:
  - {{name: sim, url: "http://127.0.0.1:{pod}", engine: simulator, models: [tiny], kvMemory: 64Gi, concurrency: 4096}}
models: [{{name: tiny, context: 32768, kvBytesPerToken: 4096}}]
tenants:
  - name: bench
    keys: ["sha256:{hash}"]
    budget: {{memory: 32Gi, concurrency: 4000, requestsPerMinute: 10000000, tokensPerMinute: 1000000000}}
"""

PATIENCE_SECONDS = 120.0
"""For one step. A gateway that is counted runs fifty times slower than one that is not."""

_POLL_SECONDS = 5.0  # to wait for a poll: they come every half second

_METRICS = b"""\
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0
vllm:cache_config_info{block_size="16",kv_cache_size_tokens="6400000",num_gpu_blocks="400000",engine="0"} 1.0
"""
_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: penstock-simulator\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LAST = b"0\r\n\r\n"


class StepError(Exception):
    """The gateway did not do what a step expects of it; the text says which, and what it did."""


def _chunk(rest: str) -> bytes:
    event = (
        b'data: {"id":"chatcmpl-cdb7df07944600000000000000000001","object":"chat.completion.chunk",'
        b'"created":1795526584,"model":"tiny","choices":' + rest.encode() + b"}\n\n"
    )
    return b"%x\r\n%b\r\n" % (len(event), event)


def _token(word: str, finish: str = "null") -> bytes:
    return _chunk(f'[{{"index":0,"delta":{{"content":"{word}"}},"logprobs":null,"finish_reason":{finish}}}]')


_ROLE = _chunk('[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]')
_WORDS = [_token(word) for word in (" while", " to", " the", " river", ",", " mill", " and", " a")]
_END = (
    _token("Was", '"length","stop_reason":null')
    + _chunk('[],"usage":{"prompt_tokens":80,"total_tokens":81,"completion_tokens":1}')
    + b"e\r\ndata: [DONE]\n\n\r\n"
    + _LAST
)


class _Wire:
    """One socket, and what came through it that nobody has taken yet."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.came = bytearray()

    def message(self) -> bytes | None:
        """A whole request, taken, or `None` while it is not whole."""
        head, found, rest = bytes(self.came).partition(b"\r\n\r\n")
        if not found:
            return None
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return None
        end = len(head) + 4 + length
        whole = bytes(self.came[:end])
        del self.came[:end]
        return whole


class Ends:
    """A pod that listens on `pod_port`, and one client, which connects with `connect`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self.pod_port: int = self._listener.getsockname()[1]
        self.polls = 0
        self._slept: Callable[[], int] = lambda: -1
        self._is_holding = False
        self._held: _Wire | None = None
        self._client: _Wire | None = None
        self._called: _Wire | None = None
        self._word = 0

    def close(self) -> None:
        """Close every socket."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    # ---- the gateway's process ---------------------------------------------------------------------------------------

    def attend(self, slept: Callable[[], int]) -> None:
        """From now on the gateway is the process of which `slept` says how often it has slept, or -1: it is awake."""
        self._slept = slept

    def rest(self, since: int = -1) -> int:
        """Wait until the gateway sleeps and has asked nothing that is not answered; how often it has slept by then.

        With `since`, what an earlier `rest` gave: until it has been awake after that.
        """
        slept = -1

        def is_at_rest() -> bool:
            nonlocal slept
            slept = self._slept()
            return slept > since and not self._pump(0.0) and self._slept() == slept

        self._until(is_at_rest, "falls asleep again")
        return slept

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """A poll is under way, and gets its answer afterwards: no other comes meanwhile, but see `polls`."""
        self._is_holding = True
        end = time.monotonic() + _POLL_SECONDS
        while self._held is None and time.monotonic() < end:
            self._pump(0.0005)
        self.rest()
        try:
            yield
        finally:
            self._is_holding = False
            if self._held is not None:
                self._answer(self._held, _METRICS)
                self._held = None
            self.rest()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def connect(self, port: int) -> None:
        """A client comes."""
        link = socket.create_connection(("127.0.0.1", port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        self._client = _Wire(link)
        self._selector.register(link, selectors.EVENT_READ, self._client)
        self.rest()

    def ask(self, tokens: int) -> None:
        """The client sends a call for `tokens` tokens; the pod has it, and nothing has been answered."""
        body = json.dumps(
            {
                "model": "tiny",
                "stream": True,
                "max_tokens": tokens,
                "ignore_eos": True,
                "messages": [{"role": "user", "content": "Tell me about the river and the mill. " * 8}],
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        assert self._client is not None
        self._client.link.sendall(head.encode() + body)
        self._until(lambda: self._called is not None, "passes a call on to the pod")
        self.rest()

    def begin(self) -> None:
        """The pod answers with its head, and after it the first chunk, which names the role; the client has both."""
        slept = self.rest()
        self._say(_HEAD)
        self.rest(slept)
        self._say(_ROLE)
        self._hear(b"\n\n", "passes on the first chunk")

    def chunk(self) -> None:
        """The pod makes one token; the client has it."""
        self._say(_WORDS[self._word])
        self._word = (self._word + 1) % len(_WORDS)
        self._hear(b"\n\n", "passes on a chunk")

    def end(self) -> None:
        """The pod says the last token, the usage and the end in one piece; the client has the end."""
        self._say(_END)
        self._hear(b"data: [DONE]\n\n\r\n" + _LAST, "ends the answer")
        self._called = None

    def request(self) -> None:
        """A whole call for one token, as the simulator answers it: its head, and later all the rest at once."""
        self.ask(1)
        slept = self.rest()
        self._say(_HEAD)
        self.rest(slept)
        self._say(_ROLE + _END)
        self._hear(b"data: [DONE]\n\n\r\n" + _LAST, "answers a call for one token")
        self._called = None

    def _say(self, piece: bytes) -> None:
        assert self._called is not None
        self._called.link.sendall(piece)

    def _hear(self, end: bytes, does: str) -> None:
        client = self._client
        assert client is not None
        self._until(lambda: client.came.rfind(end) >= 0, does)
        self.rest()
        if b"HTTP/1.1 4" in client.came or b"HTTP/1.1 5" in client.came or b"error" in client.came:
            raise StepError(f"the gateway refused: {bytes(client.came)!r}")
        client.came.clear()

    # ---- sockets -----------------------------------------------------------------------------------------------------

    def _until(self, is_done: Callable[[], bool], does: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_done():
            self._pump(0.0005)
            if time.monotonic() > end:
                came = b"" if self._client is None else bytes(self._client.came)
                raise StepError(f"waited {PATIENCE_SECONDS:g} s until the gateway {does}; the client has {came!r}")

    def _pump(self, seconds: float) -> bool:
        """Take what comes within `seconds`, and answer polls; whether anything came."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            if key.data is None:
                link, _ = self._listener.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._selector.register(link, selectors.EVENT_READ, _Wire(link))
                continue
            wire: _Wire = key.data
            piece = wire.link.recv(1 << 18)
            if not piece:
                self._selector.unregister(wire.link)
                wire.link.close()
                if wire is self._client:
                    raise StepError("the gateway closed the client's connection")
                if wire is self._held:
                    self._held = None
                    self.polls += 1
                continue
            wire.came += piece
            if wire is not self._client:
                self._take(wire)
        return bool(ready)

    def _take(self, wire: _Wire) -> None:
        while (message := wire.message()) is not None:
            if message.startswith(b"POST "):
                if self._called is not None:
                    raise StepError("the gateway sent the pod a second call")
                self._called = wire
                continue
            is_reading = message.startswith(b"GET /metrics ")
            if is_reading and self._is_holding and self._held is None:
                self._held = wire
            else:
                self.polls += 1
                self._answer(wire, _METRICS if is_reading else b"")

    def _answer(self, wire: _Wire, body: bytes) -> None:
        wire.link.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def policy_file(pod_port: int, port: int, admin_port: int) -> str:
    """The text of a `penstock.yaml` for these ends."""
    return FILE.format(pod=pod_port, port=port, admin=admin_port, hash=key_hash(KEY))
