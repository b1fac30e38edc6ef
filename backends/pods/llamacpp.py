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
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from backends.pods import options

BUILT_IN_MODEL = Path(__file__).with_name("penstock-tiny-q8_0.gguf")
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
  penstock pod llama.cpp --port 8081
  penstock pod llama.cpp --port 8081 --slots 4 --context 4096 --api-key s3cret
  penstock pod llama.cpp --model ./qwen3-0.6b-q8_0.gguf --alias qwen --gpu-layers 99
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the pod's options on `parser`; `run` reads what it parses."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=options.whole, default=0, help="port to listen on; 0 takes a free one (default: %(default)s)")
    add(
        "--model",
        type=_model_file,
        default=BUILT_IN_MODEL,
        metavar="GGUF",
        help=f"model file (default: {BUILT_IN_NAME}, the one that comes with Penstock, known by that name)",
    )
    add(
        "--alias",
        default=None,
        metavar="NAME",
        help="name under which the model is served (default: penstock-tiny, or the file's name)",
    )
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
        help="compute threads; more than one slows a busy machine (default: %(default)s)",
    )
    add(
        "--http-threads",
        type=options.count,
        default=None,
        metavar="N",
        help="one is held by each open connection: more than run, wait and probe at once (default: 2 x slots + 64)",
    )
    add(
        "--gpu-layers",
        type=options.whole,
        default=0,
        metavar="N",
        help="layers to put on the GPU; 99 is all (default: %(default)s)",
    )
    add("--api-key", default="", metavar="KEY", help="key that every request but /health must bring (default: none)")
    add("--embeddings", action="store_true", help="serve /v1/embeddings too (mean pooling)")
    add(
        "--ping",
        type=options.whole,
        default=None,
        metavar="SECONDS",
        help="send a comment after so much silence in a stream; 0 never (default: llama.cpp's 30)",
    )
    add("--verbose", action="store_true", help="let llama.cpp log every request to standard error")


def _model_file(name: str) -> Path:
    return BUILT_IN_MODEL if name == BUILT_IN_NAME else Path(name)


def run(parsed: argparse.Namespace) -> int:
    """Serve until a signal comes; returns 2 where the model cannot be read. Never returns after a good start."""
    if not parsed.model.is_file():
        print(f"penstock pod llama.cpp: no model at {parsed.model}", file=sys.stderr)
        return 2
    ended = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            name, lambda *_: os._exit(0)
        )  # the C++ threads hold nothing worth a tidy end, and take seconds for one

    import xllamacpp  # 34 MB of shared object: only where it is really run

    server = xllamacpp.Server(_parameters(xllamacpp, parsed))  # loads the model and serves from threads of its own
    options.announce(
        server.listening_address,
        engine="llama.cpp",
        pid=os.getpid(),
        model=_alias(parsed),
        slots=parsed.slots,
        context=parsed.context,
        build=xllamacpp.__version__,
    )
    ended.wait()  # the reference to `server` keeps it alive
    return 0


def _alias(parsed: argparse.Namespace) -> str:
    if parsed.alias is not None:
        return str(parsed.alias)
    return BUILT_IN_NAME if parsed.model == BUILT_IN_MODEL else str(parsed.model.stem)


def _parameters(xllamacpp: object, parsed: argparse.Namespace) -> object:
    """llama.cpp's parameters for `parsed`."""
    p = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    p.model.path = str(parsed.model)
    p.model_alias = {_alias(parsed)}
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
        p.sse_ping_interval = parsed.ping or -1
    if parsed.api_key:
        p.api_keys = [parsed.api_key]
    if parsed.embeddings:
        p.embedding = True
        p.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN  # type: ignore[attr-defined]
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
