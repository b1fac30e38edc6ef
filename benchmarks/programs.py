"""Programs that measurements start: pods, gateways and whatever stands beside them, each ended at the end.

They are in process groups of their own: an interrupt from the keyboard reaches the measurement alone, which then ends
them in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

STARTS_WITHIN_SECONDS = 30.0
ENDS_WITHIN_SECONDS = 20.0


@contextlib.contextmanager
def process(
    command: Sequence[str], log: Path, *, output: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A child with its errors in `log`, ended at the end. Its standard output is a pipe, or goes to the file `output`.

    `env` is added to the environment.
    """
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w"))
        stdout = subprocess.PIPE if output is None else stack.enter_context(output.open("w"))
        child = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=errors,
            text=True,
            env={**os.environ, **(env or {})},
            process_group=0,
        )
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(ENDS_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            if child.stdout is not None:
                child.stdout.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, path: str) -> None:
    """Until something answers 200 there; raises `RuntimeError` after `STARTS_WITHIN_SECONDS`."""
    end = time.monotonic() + STARTS_WITHIN_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing answers at port {port}{path}")


def key_hash(key: str) -> str:
    """A key as the file wants it, without its prefix."""
    return hashlib.sha256(key.encode()).hexdigest()


@contextlib.contextmanager
def started_pod(words: Sequence[str], folder: Path) -> Iterator[int]:
    """A pod program of our own (its module, and its options) on a free port, which is given."""
    with process([sys.executable, "-m", *words, "--port", "0"], folder / "pod.log") as pod:
        assert pod.stdout is not None
        yield int(json.loads(pod.stdout.readline())["ready"].rsplit(":", 1)[1])


@contextlib.contextmanager
def serving(file: str, folder: Path) -> Iterator[tuple[int, int, int]]:
    """A gateway for `file` (its text), its access log in `folder`: its pid, its port and its admin port."""
    port, admin = free_port(), free_port()
    (folder / "penstock.yaml").write_text(file)
    command = [sys.executable, "-m", "gateway.cli", "serve", "-f", str(folder / "penstock.yaml")]
    command += ["--port", str(port), "--admin-port", str(admin)]
    with process(command, folder / "penstock.log", output=folder / "access.log") as gateway:
        yield gateway.pid, port, admin
