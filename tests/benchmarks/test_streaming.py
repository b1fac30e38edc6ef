"""What streaming buys: how answers are read and weighed, and that the section says what was found and no more."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.resident import Resident, field_bytes
from benchmarks.streaming import Reading
from benchmarks.streaming_findings import (
    Findings,
    Load,
    Mode,
    Times,
    Weight,
    Wire,
    milliseconds,
    quantile,
    section,
    table_of_times,
    table_of_weights,
)

MIB = 2**20


def event(text: str | None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def chunked(*pieces: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def weight(load: Load, mode: Mode, gateway: float, client: float = 0.0) -> Weight:
    return Weight(load, mode, 64 * MIB, int(gateway * MIB), 1.0, 55 * MIB, int(client * MIB))


# ---- reading


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_a_stream_is_counted_to_the_byte_and_read_across_chunks_and_reads(step: int) -> None:
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    events = event(None) + event("Once ") + event("upon\n\nit") + usage + b"data: [DONE]\n\n"
    answer = chunked(events[:30], events[30:])
    reading = Reading()
    for at in range(0, len(answer), step):
        assert not reading.is_whole
        reading.take(answer[at : at + step])
    assert reading.is_whole
    assert reading.counted == len(answer)
    assert reading.text("streamed") == "Once upon\n\nit"


def test_a_whole_answer_is_read_to_its_promised_length() -> None:
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Once upon"}}]}).encode()
    reading = Reading()
    reading.take(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:10])
    assert not reading.is_whole
    reading.take(body[10:])
    assert reading.is_whole and reading.text("whole") == "Once upon"


# ---- weighing


def test_a_peak_that_is_over_is_still_known_and_can_be_forgotten() -> None:
    memory = Resident(os.getpid())
    idle = memory.forget_peak()
    block = os.urandom(32 * MIB)
    del block
    assert memory.peak_bytes() >= idle + 30 * MIB
    memory.forget_peak()
    assert memory.peak_bytes() < idle + 30 * MIB


def test_a_field_that_is_not_there_is_no_zero() -> None:
    status = Path("/proc/self/status").read_text()
    assert field_bytes(status, "VmRSS") > 0
    with pytest.raises(ValueError, match="no VmNone"):
        field_bytes(status, "VmNone")


# ---- telling


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [quantile(values, q) for q in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert quantile([3.0], 0.99) == 3.0


def test_no_p99_is_told_of_fewer_than_a_hundred() -> None:
    assert milliseconds([0.01] * 99) == "10 / –"
    assert milliseconds([0.01] * 98 + [2.0] * 2) == "10 / 2,000"


def test_whole_and_streamed_meet_in_a_row_whatever_their_order() -> None:
    times = [
        Times(50, 1, "streamed", [0.01], [0.1]),
        Times(50, 16, "whole", [0.4], [0.4]),
        Times(50, 1, "whole", [0.1], [0.1]),
        Times(50, 16, "streamed", [0.02], [0.5]),
    ]
    rows = table_of_times(times).splitlines()[2:]
    assert rows == [
        "| 50 | 16 | 1 | 400 / – | 20 / – | 20.0 × | 500 / – |",
        "| 50 | 1 | 1 | 100 / – | 10 / – | 10.0 × | 100 / – |",
    ]


def test_a_load_with_logprobs_is_not_taken_for_the_one_without() -> None:
    plain, rich = (Load("llama.cpp", "sdk", 400, 16, top_logprobs=number) for number in (0, 20))
    rows = table_of_weights(
        [
            weight(plain, "whole", 1, 2),
            weight(rich, "whole", 54, 18),
            weight(plain, "streamed", 0.5, 3),
            weight(rich, "streamed", 0.8, 3.4),
        ]
    ).splitlines()[2:]
    assert rows[0] == "| 400 | 16 | 1.0 | 0.5 | 156 µs | 156 µs | 2.0 | 3.0 |"
    assert rows[1].startswith("| 400, 20 logprobs each | 16 | 54.0 | 0.8 |")


def test_the_section_tells_the_answer_that_takes_two_seconds_and_what_does_not_differ() -> None:
    findings = Findings(cores=2)
    for tokens, seconds in ((50, 0.05), (1900, 1.9)):
        findings.times += [Times(tokens, 1, "whole", [seconds], [seconds]), Times(tokens, 1, "streamed", [0.012], [2])]
        findings.wires += [Wire(tokens, "whole", tokens * 4, 9, 9), Wire(tokens, "streamed", tokens * 4, 9, 90)]
    for load, whole, streamed in (
        (Load("llama.cpp", "sdk", 1900, 16), 0.9, 0.8),
        (Load("llama.cpp", "sdk", 400, 16, 20), 54, 0.8),
        (Load("simulator", "bare", 8000, 200), 20, 7),
        (Load("simulator", "sdk", 2000, 100), 4, 5),
    ):
        findings.weights += [weight(load, "whole", whole, 1), weight(load, "streamed", streamed, 3)]
    text = section(findings)
    assert "takes 1.9 s whole is one of 1,900 tokens here: its first character comes after 12 ms streamed" in text
    assert "16 answers at once of 1,900 tokens add 0.9 MiB to the gateway whole, 0.8 MiB streamed" in text
    assert "16 answers at once of 400 tokens add 54.0 MiB to the gateway whole, 0.8 MiB streamed" in text
    assert "streaming costs 20 KiB a call at 100 calls of 2,000 tokens" in text
