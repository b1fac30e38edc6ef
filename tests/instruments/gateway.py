"""A whole gateway as its own process, as users run it: `penstock serve` on a file, on ports of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 30.0


def hash_of(key: str) -> str:
    """A key as the file wants it."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@dataclass(slots=True)
class Running:
    """A gateway that listens. `log` and `access` are its lines so far."""

    process: asyncio.subprocess.Process
    url: str
    admin: str
    log: list[dict[str, Any]] = field(default_factory=list)
    access: list[dict[str, Any]] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def ready(self) -> None:
        """Until `/readyz` says so."""
        async with httpx.AsyncClient() as client, asyncio.timeout(START_SECONDS):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(self.url + "/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.02)

    async def metric(self, name: str, **labels: str) -> float:
        """One sample of `/metrics`; 0 where it is not there."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(self.admin + "/metrics")).text
        for line in text.splitlines():
            if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                head, _, value = line.rpartition(" ")
                if head.split("{", 1)[0] == name:
                    return float(value)
        return 0.0

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def gateway(file: str, folder: Path, *, ready: bool = True) -> AsyncIterator[Running]:
    """`penstock serve` on `file` (its text); waits until it is ready, and ends it at the end, by force if need be."""
    path = folder / "penstock.yaml"
    path.write_text(file)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway.cli",
        "serve",
        "-f",
        str(path),
        "--port",
        "0",
        "--admin-port",
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    running = Running(process, "", "")
    listening = asyncio.Event()

    async def follow(stream: asyncio.StreamReader, lines: list[dict[str, Any]]) -> None:
        async for line in stream:
            try:
                lines.append(json.loads(line))
            except ValueError:
                running.stray.append(line.decode("utf-8", "replace"))
                continue
            if lines[-1].get("event") == "listening":
                running.url, running.admin = lines[-1]["url"], lines[-1]["admin"]
                listening.set()

    assert process.stdout is not None and process.stderr is not None
    followers = [
        asyncio.create_task(follow(process.stderr, running.log)),
        asyncio.create_task(follow(process.stdout, running.access)),
    ]
    try:
        waiting = asyncio.create_task(listening.wait())
        await asyncio.wait({waiting, followers[0]}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert listening.is_set(), f"the gateway did not start: {running.log} {running.stray}"
        if ready:
            await running.ready()
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.gather(*followers)
