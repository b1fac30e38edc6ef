"""What a simulator is like: its settings, once, as a value and as options of its command line.

What an option means is said in its help, and nowhere else in code; `docs/simulator.md` says it at more length.
Contradictions between options are found here, before anything is started.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from backends.pods import misbehaviour, options
from backends.pods.batch import Timing
from backends.pods.misbehaviour import Fault

DESCRIPTION = """\
Run one simulated inference pod: vLLM's OpenAI-compatible API and metrics, with tokens that are made up. The text is a
deterministic function of the request, so that any simulator continues what another one began; times, slots and KV
memory are as set here; it counts every call (GET /sim/counters) and misbehaves on demand (POST /sim/faults).

When it listens, one line of JSON on standard output says where: {"ready": "http://127.0.0.1:40123", ...}. SIGTERM or
SIGINT ends it at once; open streams are cut.
"""
EPILOG = """\
examples:
  penstock pod simulator --port 9001 --slots 8 --ttft 50ms --itl 20ms
  penstock pod simulator --model qwen --kv-bytes 4Gi --kv-bytes-per-token 131072 --context 8192
  penstock pod simulator --fault reset_after_tokens:5 --fault '{"kind": "status", "value": 503, "times": 2}'

faults: a JSON object, or KIND:VALUE:TIMES. The kinds are in docs/simulator.md.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a simulator is like; see `add_options` for what each means."""

    host: str = "127.0.0.1"
    port: int = 0
    models: tuple[str, ...] = ("simulator",)
    slots: int = 8
    queue: int | None = None
    context: int = 4096
    blocks: int = 4096
    block_tokens: int = 16
    bytes_per_token: int = 4096
    shares_prefixes: bool = True
    kv_bytes: int | None = None
    timing: Timing = field(default_factory=Timing)
    output: str = "words"
    mean_output: int = 64
    dimensions: int = 64
    seed: int = 0
    api_key: str = ""
    faults: tuple[Fault, ...] = ()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the pod's options on `parser`; `run` reads what it parses."""
    server = parser.add_argument_group("server").add_argument
    server("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server("--port", type=options.port, default=0, help="port to listen on; 0 takes a free one (default: %(default)s)")
    server(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which it serves; may be given several times; others are unknown (default: simulator)",
    )
    server("--api-key", default="", metavar="KEY", help=options.API_KEY_HELP)

    room = parser.add_argument_group("what it holds").add_argument
    room("--slots", type=options.count, default=8, help="sequences that run at once (default: %(default)s)")
    room(
        "--queue",
        type=options.whole,
        default=None,
        metavar="N",
        help="requests that may wait; beyond them it answers 503 (default: any number)",
    )
    room(
        "--context",
        type=options.count,
        default=None,
        metavar="TOKENS",
        help="prompt and output of one request (default: 4096, or what the KV memory holds)",
    )
    room(
        "--block",
        type=options.count,
        default=16,
        metavar="TOKENS",
        help="tokens of one KV block (default: %(default)s)",
    )
    room("--kv-blocks", type=options.count, default=None, metavar="N", help="blocks of KV memory (default: 4096)")
    room(
        "--kv-bytes",
        type=options.size,
        default=None,
        metavar="SIZE",
        help="KV memory in bytes, such as 4Gi, instead of blocks",
    )
    room(
        "--kv-bytes-per-token",
        type=options.size,
        default=4096,
        metavar="SIZE",
        help="KV memory of one token (default: %(default)s)",
    )

    room(
        "--no-prefix-cache",
        action="store_true",
        help="prompts that begin alike share no blocks, so that each holds all of its own",
    )

    times = parser.add_argument_group("how long it takes").add_argument
    times(
        "--ttft",
        type=options.duration,
        default=0.05,
        metavar="TIME",
        help="from the start to the first token (default: 50ms)",
    )
    times(
        "--itl", type=options.duration, default=0.02, metavar="TIME", help="from one token to the next (default: 20ms)"
    )
    times(
        "--ttft-spread",
        type=options.duration,
        default=0.0,
        metavar="TIME",
        help="greatest deviation of --ttft to either side (default: 0)",
    )
    times(
        "--itl-spread",
        type=options.duration,
        default=0.0,
        metavar="TIME",
        help="greatest deviation of --itl to either side (default: 0)",
    )
    times(
        "--prefill-per-token",
        type=options.duration,
        default=0.0,
        metavar="TIME",
        help="added to --ttft for each prompt token not in the prefix cache (default: 0)",
    )
    times(
        "--itl-slope",
        type=options.duration,
        default=0.0,
        metavar="TIME",
        help="added to --itl for each running sequence (default: 0)",
    )
    times(
        "--seed",
        type=options.whole,
        default=0,
        help="seed of the spreads; the text does not depend on it (default: %(default)s)",
    )

    said = parser.add_argument_group("what it says").add_argument
    said(
        "--output",
        choices=("words", "fixed", "echo"),
        default="words",
        help="words that end by themselves, words up to the maximum, or the last user message (default: %(default)s)",
    )
    said(
        "--mean-output",
        type=options.count,
        default=64,
        metavar="TOKENS",
        help="mean length of words that end by themselves (default: %(default)s)",
    )
    said(
        "--dimensions", type=options.count, default=64, metavar="N", help="length of embeddings (default: %(default)s)"
    )
    said(
        "--fault",
        action="append",
        default=[],
        type=_fault,
        metavar="FAULT",
        help="misbehave from the start; may be given several times",
    )


def _fault(text: str) -> Fault:
    try:
        return misbehaviour.read_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_options(parsed: argparse.Namespace) -> Settings:
    """The simulator that the command line asks for; `ValueError` where its parts contradict each other."""
    if parsed.kv_bytes is not None and parsed.kv_blocks is not None:
        raise ValueError("give --kv-bytes or --kv-blocks, not both")
    blocks = parsed.kv_blocks or 4096
    if parsed.kv_bytes is not None:
        blocks = parsed.kv_bytes // (parsed.block * parsed.kv_bytes_per_token)
        if blocks < 1:
            raise ValueError("--kv-bytes holds not even one block of --block tokens of --kv-bytes-per-token each")
    held = blocks * parsed.block
    if parsed.context is not None and parsed.context > held:
        raise ValueError(
            f"--context {parsed.context} is more than the KV memory holds, {held} tokens; a request could never end"
        )
    return Settings(
        host=parsed.host,
        port=parsed.port,
        models=tuple(parsed.model) or ("simulator",),
        slots=parsed.slots,
        queue=parsed.queue,
        context=parsed.context or min(4096, held),
        blocks=blocks,
        block_tokens=parsed.block,
        bytes_per_token=parsed.kv_bytes_per_token,
        shares_prefixes=not parsed.no_prefix_cache,
        kv_bytes=parsed.kv_bytes,
        timing=Timing(
            first=parsed.ttft,
            between=parsed.itl,
            first_spread=parsed.ttft_spread,
            between_spread=parsed.itl_spread,
            prefill_per_token=parsed.prefill_per_token,
            between_slope=parsed.itl_slope,
        ),
        output=parsed.output,
        mean_output=parsed.mean_output,
        dimensions=parsed.dimensions,
        seed=parsed.seed,
        api_key=options.api_key(parsed),
        faults=tuple(parsed.fault),
    )
