"""What `make run` starts: the gateway of `demo/penstock.yaml`, and what to paste into another terminal.

The keys of the demo tenants are made at the first run and kept in `demo/.keys.json`, readable by its owner alone; the
gateway gets their hashes, in the environment. It runs as a child of this process, ends with it however that ends, and
logs to `demo/penstock.log`, so that the terminal stays readable. Everything that the text shows is read from the YAML.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tenancy.directory import hash_key
from tenancy.units import format_duration, parse_duration

DEMO = Path(__file__).resolve().parent
ROOT = DEMO.parent
POLICY = DEMO / "penstock.yaml"
KEYS = DEMO / ".keys.json"
LOG = DEMO / "penstock.log"

READY_WITHIN_SECONDS = 120.0
ASK_EVERY_SECONDS = 0.1
QUIET_SECONDS = 2.0  # a start that takes longer says that it is still at it


def say(text: str, end: str = "\n") -> None:
    """Print at once. A terminal or pipe that has gone, such as `tee` after Ctrl-C, must not end what is under way."""
    try:
        print(text, end=end, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class NotStarted(Exception):
    """Why the demo is not up, in words for the terminal."""


@dataclass(frozen=True)
class Demo:
    """What the YAML says and the text shows: where the gateway listens, its first model, its tenants in order, how
    long open streams may go on at the end."""

    host: str
    port: int
    model: str
    pods: int
    drain_seconds: float
    budgets: dict[str, dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def read_demo(text: str) -> Demo:
    """Take from the YAML what the text shows; whether the file is right is for the gateway to say."""
    document = yaml.safe_load(text)
    return Demo(
        host=document["server"]["host"],
        port=document["server"]["port"],
        model=document["models"][0]["name"],
        pods=len(document["pods"]),
        drain_seconds=parse_duration(document["server"]["drainTimeout"]),
        budgets={tenant["name"]: tenant["budget"] for tenant in document["tenants"]},
    )


def keys_for(tenants: list[str], path: Path) -> dict[str, str]:
    """One key a tenant, from `path`; keys not there yet are made and kept."""
    try:
        kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise NotStarted(f"{path} is not the JSON that this program wrote ({error}); remove it for new keys.") from None
    keys = {tenant: kept.get(tenant) or f"sk-penstock-{secrets.token_urlsafe(32)}" for tenant in tenants}
    if keys != kept:
        # Written beside and moved: never half a file, and never readable by others for a moment.
        beside = path.with_suffix(f".{os.getpid()}")
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(keys, file, indent=2)
        beside.replace(path)
    return keys


def environment_for(keys: dict[str, str]) -> dict[str, str]:
    """The variables that the YAML reads: the hash of each tenant's key, 64 hex digits."""
    return {f"DEMO_{tenant.upper()}_KEY_SHA256": hash_key(key) for tenant, key in keys.items()}


def text_for(demo: Demo, keys: dict[str, str], seconds: float) -> str:
    """What the terminal shows once the gateway is ready."""
    key = next(iter(keys.values()))
    say = json.dumps([{"role": "user", "content": "Tell me a story about a river."}])
    rows = [("tenant", "at once", "KV memory", "a minute", "key")]
    for tenant, budget in demo.budgets.items():
        rate = f"{budget['requestsPerMinute']} requests" if "requestsPerMinute" in budget else "no limit"
        rows.append((tenant, str(budget["concurrency"]), budget["memory"], rate, keys[tenant]))
    table = "\n".join(f"  {name:<10}{calls:<9}{memory:<11}{rate:<14}{key}" for name, calls, memory, rate, key in rows)
    return f"""
Penstock is up at {demo.url} after {seconds:.1f} s: {demo.pods} llama.cpp pods on the CPU, {len(keys)} tenants.

{table}

Paste into another terminal:

  curl -N {demo.url}/v1/chat/completions \\
    -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{demo.model}", "stream": true, "messages": {say}}}'

Or in Python (.venv/bin/python has the SDK):

  from openai import OpenAI

  client = OpenAI(base_url="{demo.url}/v1", api_key="{key}")
  stream = client.chat.completions.create(
      model="{demo.model}", messages={say}, stream=True
  )
  for chunk in stream:
      print(chunk.choices[0].delta.content or "", end="", flush=True)

The budgets stand in {POLICY.relative_to(ROOT)}, the log in {LOG.relative_to(ROOT)}. Ctrl-C ends everything.
`penstock` is .venv/bin/penstock here: `.venv/bin/penstock check --help`, and so on.
"""


# ---- the gateway as a child ----------------------------------------------------------------------------------------


def refuse_taken(host: str, port: int) -> None:
    """Say at once that the port is taken, instead of letting the gateway fail behind its log."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NotStarted(
                f"{host}:{port} cannot be used ({error.strerror}). End what listens there (an earlier `make run`?), "
                f"or change server.port in {POLICY.relative_to(ROOT)}."
            ) from None


def end_with(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the gateway: ask for SIGTERM when this process dies, even by SIGKILL."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def ask() -> None:
        if libc is not None:
            libc.prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return ask


async def start(environment: dict[str, str]) -> asyncio.subprocess.Process:
    """Start `penstock serve`, in a process group of its own: Ctrl-C reaches it through us alone, and so once."""
    with LOG.open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "serve", "-f", str(POLICY)),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=end_with(os.getpid()),
        )


def last_lines(count: int = 12) -> str:
    lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(f"  {line}" for line in lines) or "  (the log is empty)"


async def until_ready(url: str) -> None:
    """Return when the gateway says that it can take calls."""
    async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
        while True:
            try:
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not listening yet
            await asyncio.sleep(ASK_EVERY_SECONDS)


async def show_waiting(began: float) -> None:
    """After two seconds, a line that counts: rewritten on a terminal, a new one every five seconds elsewhere."""
    clock, on_terminal = asyncio.get_running_loop().time, sys.stdout.isatty()
    await asyncio.sleep(QUIET_SECONDS)
    while True:
        line = f"Starting the gateway and its pods, {clock() - began:.0f} s so far (log: {LOG.relative_to(ROOT)}) ..."
        say(f"\r{line}" if on_terminal else line, end="" if on_terminal else "\n")
        await asyncio.sleep(1.0 if on_terminal else 5.0)


async def first_of(*tasks: asyncio.Task[Any], within: float | None = None) -> None:
    await asyncio.wait(tasks, timeout=within, return_when=asyncio.FIRST_COMPLETED)


async def bring_up(demo: Demo, exited: asyncio.Task[Any], leaving: asyncio.Task[Any]) -> float | None:
    """Wait until the gateway is ready, and return the seconds it took; `None` if Ctrl-C came first."""
    clock = asyncio.get_running_loop().time
    began = clock()
    ready = asyncio.create_task(until_ready(demo.url))
    waiting = asyncio.create_task(show_waiting(began))
    await first_of(ready, exited, leaving, within=READY_WITHIN_SECONDS)
    was_ready, seconds = ready.done(), clock() - began
    ready.cancel()
    waiting.cancel()
    if seconds > QUIET_SECONDS and sys.stdout.isatty():
        say("")
    if leaving.done():
        return None
    if exited.done():
        raise NotStarted(f"The gateway ended with exit status {exited.result()}. Its last words:\n{last_lines()}")
    if not was_ready:
        raise NotStarted(f"The gateway is not ready after {seconds:.0f} s. Its last words:\n{last_lines()}")
    return seconds


async def run() -> int:
    demo = read_demo(POLICY.read_text(encoding="utf-8"))
    keys = keys_for(list(demo.budgets), KEYS)
    refuse_taken(demo.host, demo.port)
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, None)

    child = await start(environment_for(keys))
    exited = asyncio.create_task(child.wait())
    leaving = asyncio.create_task(signals.get())
    try:
        seconds = await bring_up(demo, exited, leaving)
        if seconds is not None:
            say(text_for(demo, keys, seconds))
            await first_of(exited, leaving)
        if not leaving.done():
            raise NotStarted(f"The gateway ended with exit status {exited.result()}. Its last words:\n{last_lines()}")
    finally:
        await end(child, exited, signals, demo.drain_seconds)
    return 0 if exited.result() in (0, -signal.SIGTERM) else 1  # the latter: before it had its handlers


async def end(
    child: asyncio.subprocess.Process, exited: asyncio.Task[Any], signals: asyncio.Queue[None], drain_seconds: float
) -> None:
    """SIGTERM to the gateway, which lets open streams finish; each further Ctrl-C sends one more, which ends it now."""
    longest = format_duration(drain_seconds)
    if exited.done():
        return
    again = asyncio.create_task(signals.get())
    child.terminate()
    await first_of(exited, again, within=QUIET_SECONDS)
    if not exited.done() and not again.done():
        say(f"Ending: open streams may go on for {longest} at most; Ctrl-C again ends them now.")
        await first_of(exited, again)
    was_patient = exited.done()
    while not exited.done():
        child.terminate()
        again = asyncio.create_task(signals.get())
        await first_of(exited, again)
    again.cancel()
    cut = f"Ended; streams that were still open after {longest} were cut (server.drainTimeout)."
    say(cut if was_patient and exited.result() == 1 else "Ended.")


def main() -> int:
    try:
        return asyncio.run(run())
    except NotStarted as why:
        print(why, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the signals were ours
        return 0


if __name__ == "__main__":
    sys.exit(main())
