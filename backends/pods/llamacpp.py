"""A llama.cpp pod: llama.cpp's own C++ HTTP server in a process of its own, with a small model beside it.

`xllamacpp` carries the whole server as one wheel, so a pod needs no compiler and no download. This module decides how
such a server is configured for many tenants: a fixed context a slot (so that its capacity is slots x context and
nothing is shared between calls), no cache of prompts in RAM, one compute thread, and more HTTP threads than
connections. What it then does with requests is llama.cpp's business; what the gateway must know of that is in
`backends/engines/llamacpp.py`, and the quirks that were seen are in this folder's README.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends.pods import options

BUILT_IN = "penstock-tiny"
BUILT_IN_FILE = Path(__file__).with_name("penstock-tiny-q8_0.gguf")
BUILT_IN_NAME = "penstock-tiny"
SPARE_HTTP_THREADS = 64

DESCRIPTION = """\
Run one llama.cpp server with its OpenAI-compatible API. Without --model it serves the small model that comes with
Penstock: fluent English that knows nothing, good for demonstrations and tests, on any CPU.

When it listens, one line of JSON on standard output says where: {"ready": "http://127.0.0.1:40123", ...}. llama.cpp's
own log goes to standard error. SIGTERM or SIGINT ends it at once; open streams are cut.
"""
EPILOG = """\
examples:
  penstock pod llama.cpp --port 9001
  penstock pod llama.cpp --port 9001 --slots 4 --context 4096 --api-key s3cret
  penstock pod llama.cpp --model ./qwen3-0.6b-q8_0.gguf --alias qwen --gpu-layers 99
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the pod's options on `parser`; `run` reads what it parses."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=options.port, default=0, help="port to listen on; 0 takes a free one (default: %(default)s)")
    add("--model", default=BUILT_IN, metavar="GGUF", help="model file; %(default)s comes with Penstock (default)")
    add("--alias", default=None, metavar="NAME", help="name under which it is served (default: that of the file)")
    add(
        "--slots",
        type=options.count,
        default=8,
        help="requests that run at once; others wait inside llama.cpp (default: %(default)s)",
    )
    add(
        "--context",
        type=options.count,
        default=2048,
        metavar="TOKENS",
        help="context of each slot, prompt and output together (default: %(default)s)",
    )
    add(
        "--threads",
        type=options.count,
        default=1,
        help="compute threads; on a busy machine more of them are slower (default: %(default)s)",
    )
    add(
        "--http-threads",
        type=options.count,
        default=None,
        metavar="N",
        help="each open connection holds one, so more than run, wait and probe at once (default: 2 x slots + 64)",
    )
    add(
        "--gpu-layers",
        type=options.whole,
        default=0,
        metavar="N",
        help="layers to put on the GPU; 99 is all (default: %(default)s)",
    )
    add("--api-key", default="", metavar="KEY", help=options.API_KEY_HELP)
    add("--embeddings", action="store_true", help="serve /v1/embeddings as well (mean pooling)")
    add(
        "--ping",
        type=options.count,
        default=None,
        metavar="SECONDS",
        help="send a comment after so much silence in a stream (default: llama.cpp's 30)",
    )
    add("--verbose", action="store_true", help="let llama.cpp log to standard error")


def run(parsed: argparse.Namespace) -> int:
    """Serve until a signal comes. Returns 2 where there is no model, 1 where llama.cpp gives up, else never."""
    model = BUILT_IN_FILE if parsed.model == BUILT_IN else Path(parsed.model)
    if not model.is_file():
        print(f"penstock pod llama.cpp: there is no model at {model}", file=sys.stderr)
        return 2
    # While a model loads no handler of Python's could run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed assertion calls gdb, and dies seconds later
    import xllamacpp  # 34 MB of shared object, so only where it is really run

    alias = parsed.alias or model.stem.removesuffix("-q8_0")
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, parsed, model, alias))  # serves from threads of its own
    except RuntimeError as error:
        reason = f"the model cannot be read, or port {parsed.port} is taken; --verbose shows more"
        print(f"penstock pod llama.cpp: {error} ({reason})", file=sys.stderr)
        return 1
    ended, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())  # not signal.pause(): a signal just before it, or on a C++ thread, is lost
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    options.announce(
        server.listening_address,
        engine="llama.cpp",
        pid=os.getpid(),
        model=alias,
        slots=parsed.slots,
        context=parsed.context,
        build=xllamacpp.__version__,
    )
    ended.recv(1)
    os._exit(0)  # at once: the C++ threads hold nothing worth a tidy end, and take seconds for one


def _parameters(xllamacpp: Any, parsed: argparse.Namespace, model: Path, alias: str) -> Any:
    """llama.cpp's parameters for `parsed`."""
    p = xllamacpp.CommonParams()
    p.model.path = str(model)
    p.model_alias = {alias}
    p.hostnames, p.port = [parsed.host], parsed.port
    p.n_parallel, p.n_ctx, p.kv_unified = parsed.slots, parsed.slots * parsed.context, False
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = parsed.threads
    p.n_gpu_layers, p.fit_params = parsed.gpu_layers, False
    p.endpoint_metrics = p.endpoint_slots = p.endpoint_props = True
    p.cont_batching = p.use_jinja = p.prefill_assistant = p.warmup = True
    p.ui, p.offline, p.cache_ram_mib = False, True, 0
    p.n_threads_http = parsed.http_threads or parsed.slots * 2 + SPARE_HTTP_THREADS
    p.timeout_read = p.timeout_write = 600
    if not parsed.verbose:
        p.verbosity = 1
    if parsed.ping is not None:
        p.sse_ping_interval = parsed.ping
    if key := options.api_key(parsed):
        p.api_keys = [key]
    if parsed.embeddings:
        p.embedding = True
        # A pooled prompt is one physical batch, and one that the slots do not divide fails an assertion of ggml.
        p.n_batch = p.n_ubatch = -(-max(parsed.context, 512) // parsed.slots) * parsed.slots
        p.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m backends.pods.llamacpp`."""
    parser = argparse.ArgumentParser(
        prog="penstock pod llama.cpp",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
