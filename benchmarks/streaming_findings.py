"""What the measurements of `benchmarks.streaming` found: the facts, how a table is made of them, and what they say.

Pure: figures come in, text goes out. Every number of the text is one of the figures, and where the two ways hardly
differ the text says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from loadtest.summary import FEWEST_FOR_P99

Mode = Literal["whole", "streamed"]
MODES: tuple[Mode, ...] = ("whole", "streamed")

MIB = 2**20


@dataclass
class Times:
    """Calls of one length in one mode, as a bare client sees them; seconds from asking."""

    tokens: int
    at_once: int
    mode: Mode
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Wire:
    """One call's bytes, heads and framing included: of the pod's answer, and of the gateway's."""

    tokens: int
    mode: Mode
    characters: int
    from_pod: int
    to_client: int


@dataclass(frozen=True)
class Load:
    """`at_once` calls of one length, and who asks whom: OpenAI's SDK or a bare client; for `top_logprobs` a token."""

    engine: Literal["llama.cpp", "simulator"]
    client: Literal["sdk", "bare"]
    tokens: int
    at_once: int
    top_logprobs: int = 0


@dataclass(frozen=True)
class Weight:
    """What a load added at most to the memory of a warmed-up gateway and, where it was the SDK's, of the client's
    process (bytes over idle); and what it cost the gateway in CPU seconds.
    """

    load: Load
    mode: Mode
    gateway_idle: int
    gateway_grown: int
    gateway_cpu: float
    client_idle: int = 0
    client_grown: int = 0


@dataclass
class Findings:
    """All that one run measured."""

    cores: int
    times: list[Times] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)


Row = TypeVar("Row", Times, Wire, Weight)


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest rank: the smallest value with at least a share `q` of all at or below it."""
    ranked = sorted(values)
    return ranked[max(math.ceil(q * len(ranked)), 1) - 1]


def milliseconds(values: Sequence[float]) -> str:
    """Median and p99 of seconds, in milliseconds; no p99 of so few that it would only be the greatest of them."""
    high = f"{quantile(values, 0.99) * 1e3:,.0f}" if len(values) >= FEWEST_FOR_P99 else "–"
    return f"{quantile(values, 0.5) * 1e3:,.0f} / {high}"


def mebibytes(size: float) -> str:
    """Bytes in MiB, to a tenth."""
    return f"{size / MIB:,.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns flush right."""
    lines = [head, ["--:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---- tables


def table_of_times(times: Sequence[Times]) -> str:
    """First and last characters; a whole answer's first character comes with its last."""
    rows = []
    for whole, streamed in _pairs(times):
        sooner = quantile(whole.first, 0.5) / quantile(streamed.first, 0.5)
        rows.append(
            [
                f"{whole.tokens:,}",
                str(whole.at_once),
                str(len(whole.first)),
                milliseconds(whole.first),
                milliseconds(streamed.first),
                f"{sooner:,.1f} ×",
                milliseconds(streamed.last),
            ]
        )
    head = ["tokens", "at once", "calls each", "whole: first and last", "streamed: first", "sooner", "streamed: last"]
    return table(head, rows)


def table_of_wires(wires: Sequence[Wire]) -> str:
    """Bytes of one answer on both sides of the gateway."""
    rows = []
    for whole, streamed in _pairs(wires):
        rows.append(
            [
                f"{whole.tokens:,}",
                f"{whole.characters:,}",
                f"{whole.from_pod:,}",
                f"{whole.to_client:,}",
                f"{streamed.from_pod:,}",
                f"{streamed.to_client:,}",
                f"{streamed.to_client / whole.to_client:.0f} ×",
            ]
        )
    head = ["tokens", "characters", "whole: from the pod", "to the client", "streamed: from the pod", "to the client"]
    return table([*head, "streamed for whole"], rows)


def table_of_weights(weights: Sequence[Weight]) -> str:
    """Growth of the gateway over idle and its CPU a token, and of the SDK's process where that was the client."""
    head = ["tokens", "at once", "gateway: whole", "streamed", "CPU a token: whole", "streamed"]
    rows = []
    for whole, streamed in _pairs(weights):
        load, both = whole.load, (whole, streamed)
        named = f"{load.tokens:,}" + (f", {load.top_logprobs} logprobs each" if load.top_logprobs else "")
        row = [named, f"{load.at_once:,}", *(mebibytes(one.gateway_grown) for one in both)]
        row += [f"{one.gateway_cpu / (load.tokens * load.at_once) * 1e6:.0f} µs" for one in both]
        if load.client == "sdk":
            row += [mebibytes(one.client_grown) for one in both]
        rows.append(row)
    if weights[0].load.client == "sdk":
        head += ["SDK: whole", "streamed"]
    return table(head, rows)


# ---- the section


def section(findings: Findings) -> str:
    """The whole section in markdown, without its heading."""
    real = [weight for weight in findings.weights if weight.load.engine == "llama.cpp"]
    simulated = [weight for weight in findings.weights if weight.load.engine == "simulator"]
    bare = [weight for weight in simulated if weight.load.client == "bare"]
    by_sdk = [weight for weight in simulated if weight.load.client == "sdk"]
    parts = [
        f"**The real engine**: two llama.cpp pods of 8 slots, one thread each, as in the demo, with the model of 3 MB "
        f"that comes with Penstock; pods, gateway and client share {findings.cores} cores. The same prompts at "
        "temperature 0, each answer exactly so many tokens long, asked through Penstock whole and as a stream in turn. "
        "Milliseconds from asking to the first and to the last character, p50 / p99, as a bare client sees them (no "
        "p99 of fewer than 100 calls):",
        table_of_times(findings.times),
        _on_times(findings.times),
        "Bytes of one answer, heads and framing included, counted on the sockets:",
        table_of_wires(findings.wires),
        _on_wires(findings.wires),
        "Memory, MiB by which the peak of the resident set (the kernel's `VmHWM`, nothing sampled) stood above idle: "
        "the gateway's, and a process's with OpenAI's Python SDK that keeps no piece of a stream. Both are "
        "started and warmed up anew for each figure:",
        table_of_weights(real),
        _on_real_weights(real),
        "**A simulator pod, for the scale**: no model, vLLM's API, a token every 20 ms in each stream. Asked by a bare "
        "client in a process of its own:",
        table_of_weights(bare),
        _on_scale(bare),
        "Asked by the SDK:",
        table_of_weights(by_sdk),
        _on_sdk(by_sdk),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _on_times(times: Sequence[Times]) -> str:
    pairs = list(_pairs(times))
    alone = [pair for pair in pairs if pair[0].at_once == 1] or pairs
    whole, streamed = min(alone, key=lambda pair: abs(quantile(pair[0].first, 0.5) - 2.0))
    slower = statistics.median(quantile(s.last, 0.5) / quantile(w.last, 0.5) for w, s in pairs) - 1
    said = "later" if slower > 0 else "earlier"
    return (
        f"An answer that takes {quantile(whole.first, 0.5):.1f} s whole is one of {whole.tokens:,} tokens here: its "
        f"first character comes after {quantile(streamed.first, 0.5) * 1e3:,.0f} ms streamed. What streaming saves is "
        "the time of all tokens but the first, so it grows with the answer, and little is saved on a short "
        f"one. The last character comes {abs(slower):.0%} {said} streamed (median of the rows)."
    )


def _on_wires(wires: Sequence[Wire]) -> str:
    _, streamed = list(_pairs(wires))[-1]
    return (
        f"Streaming costs bytes: {streamed.to_client / streamed.tokens:,.0f} a token, for "
        f"{streamed.characters / streamed.tokens:.1f} characters of text. Penstock asks the pod for a stream in both "
        "cases and puts a whole answer together itself (llama.cpp frees the slot of a left stream at once, that of a "
        "left whole call only at its end), so between pod and gateway nothing is saved by asking whole."
    )


def _on_real_weights(weights: Sequence[Weight]) -> str:
    plain = _largest([weight for weight in weights if not weight.load.top_logprobs])
    rich = _largest([weight for weight in weights if weight.load.top_logprobs])
    text = (
        f"An answer of text is too small for this to matter: {_told(plain)}, beside "
        f"{mebibytes(plain[0].gateway_idle)} MiB that it holds idle and {mebibytes(plain[0].client_idle)} MiB that the "
        f"SDK's process does. Where a token carries more than its text it does matter: with the "
        f"{rich[0].load.top_logprobs} likeliest tokens beside each, {_told(rich)}. A streamed answer takes what is in "
        "flight, whatever its length."
    )
    return text


def _on_scale(weights: Sequence[Weight]) -> str:
    whole, streamed = _largest(weights)
    each = [one.gateway_grown / one.load.at_once / 1024 for one in (whole, streamed)]
    dearer = whole.gateway_cpu / streamed.gateway_cpu
    return (
        f"At the most, {_told((whole, streamed))}: {each[0]:,.0f} and {each[1]:,.0f} KiB a call. Down the rows the "
        "whole answers' share grows with their length; the streamed ones' is their connections. In CPU the whole ones "
        f"cost {dearer:.1f} times as much: each event is read as JSON to be put together, where a streamed one is "
        "passed on as it came."
    )


def _on_sdk(weights: Sequence[Weight]) -> str:
    whole, streamed = _largest(weights)
    apart = whole.client_grown - streamed.client_grown
    return (
        f"For a caller, streaming {'saves' if apart > 0 else 'costs'} {abs(apart) / whole.load.at_once / 1024:,.0f} "
        f"KiB a call at {whole.load.at_once:,} calls of {whole.load.tokens:,} tokens, beside "
        f"{mebibytes(whole.client_idle)} MiB that the SDK's process holds idle. Of answers of text a client streams "
        "for the time, not for the memory."
    )


def _told(pair: tuple[Weight, Weight]) -> str:
    whole, streamed = pair
    load = whole.load
    answers = "one answer" if load.at_once == 1 else f"{load.at_once:,} answers at once"
    return (
        f"{answers} of {load.tokens:,} tokens add {mebibytes(whole.gateway_grown)} MiB to the gateway whole, "
        f"{mebibytes(streamed.gateway_grown)} MiB streamed"
    )


def _largest(weights: Sequence[Weight]) -> tuple[Weight, Weight]:
    """The pair with the most tokens in it."""
    return max(_pairs(weights), key=lambda pair: pair[0].load.tokens * pair[0].load.at_once)


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Whole and streamed, of the same size each, in the order of the whole ones."""
    streamed = {_size(row): row for row in rows if row.mode == "streamed"}
    for row in rows:
        if row.mode == "whole" and _size(row) in streamed:
            yield row, streamed[_size(row)]


def _size(row: Times | Wire | Weight) -> object:
    if isinstance(row, Weight):
        return row.load
    return row.tokens, 1 if isinstance(row, Wire) else row.at_once
