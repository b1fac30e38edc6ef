"""A run as a process: what signals, a target that hangs and streams that die leave of its report."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from loadtest.cli import main

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 30.0
METRICS = b"llamacpp:tokens_predicted_total 1\n"
ANSWER = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)

Asked = Callable[[bytes, int], Awaitable[bytes | None]]
"""The body for a request line, given how many there were of its method before; `None`: no answer ever."""


async def run(words: list[str], folder: Path, asked: Asked, begun: Callable[[Process], None]) -> tuple[int, str]:
    """Run the load tester against a server that answers as `asked` says; its exit code, and what it said."""
    seen: dict[bytes, int] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # only whether somebody is there was asked
            writer.close()
            return
        method = head.split(b" ")[0]
        seen[method] = seen.get(method, 0) + 1
        body = await asked(head, seen[method] - 1)
        if body is None:
            await reader.read()
            await asyncio.sleep(0)
        else:
            kind = b"text/plain" if method == b"GET" else b"text/event-stream"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n%b" % (kind, body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    words = [word.replace("BASE", base) for word in words]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", *words, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=PIPE
    )
    try:
        begun(process)
        _, said = await asyncio.wait_for(process.communicate(), WAIT_SECONDS)
        assert process.returncode is not None
        return process.returncode, said.decode()
    finally:
        if process.returncode is None:
            process.kill()
        server.close()


class Interrupting:
    """Answers, and interrupts the load tester at the request of this method and number, which is never answered."""

    def __init__(self, method: bytes, number: int, how: signal.Signals) -> None:
        self.method, self.number, self.how = method, number, how
        self.process: Process

    def begun(self, process: Process) -> None:
        self.process = process

    async def __call__(self, head: bytes, number: int) -> bytes | None:
        if head.startswith(self.method) and number >= self.number:
            if number == self.number:
                self.process.send_signal(self.how)
            return None
        return METRICS if head.startswith(b"GET") else ANSWER


def result(folder: Path) -> Any:
    return json.loads((folder / "x.json").read_bytes())


LOAD = ["BASE/v1", "--model", "m", "--rate", "50", "--duration", "1s", "--plain", "--json", "x.json"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_the_wait_for_the_servers_counts_gets_the_report_without_them(
    how: signal.Signals, tmp_path: Path
) -> None:
    hangs = Interrupting(b"GET", 1, how)
    code, _ = asyncio.run(run([*LOAD, "--metrics", "BASE/metrics"], tmp_path, hangs, hangs.begun))
    found = result(tmp_path)
    assert (code, found["ended"], found["counts"]) == (0, "complete", [])
    assert [m["text"] for m in found["marks"] if "counts" in m["text"]] == [
        "interrupted before the server's counts were read"
    ]


def test_calls_that_are_left_when_a_run_is_interrupted_are_no_failures_of_the_target(tmp_path: Path) -> None:
    hangs = Interrupting(b"POST", 0, signal.SIGINT)
    code, said = asyncio.run(run([*LOAD, "--duration", "20s"], tmp_path, hangs, hangs.begun))
    found = result(tmp_path)
    assert (code, found["ended"]) == (130, "interrupted")
    assert found["phases"][0]["all"]["codes"] == {"stopped": found["phases"][0]["all"]["failed"]}
    assert "calls failed" not in said


def test_a_result_is_not_overwritten_by_its_own_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    answers = Interrupting(b"POST", 10_000, signal.SIGINT)
    assert asyncio.run(run(LOAD, tmp_path, answers, answers.begun))[0] == 0
    before = path.read_bytes()
    assert main(["report", str(path), "--html", str(path)]) == 2
    assert "is the result itself" in capsys.readouterr().err
    assert path.read_bytes() == before
