"""The demo and the README's example: what people copy from has to be right, and keys must stay where they belong."""

from __future__ import annotations

import asyncio
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from demo import run
from demo.run import POLICY, NotStarted, environment_for, keys_for, read_demo, refuse_taken, text_for
from tenancy.config.load import load
from tenancy.directory import Directory

ROOT = Path(__file__).resolve().parent.parent


def test_every_demo_key_opens_its_own_tenant(tmp_path: Path) -> None:
    text = POLICY.read_text(encoding="utf-8")
    keys = keys_for(list(read_demo(text).budgets), tmp_path / "keys.json")
    directory = Directory(load(text, environment_for(keys)))
    for tenant, key in keys.items():
        found = directory.find(key, now_epoch=0.0)
        assert found is not None
        assert found[0].name == tenant


def test_keys_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = keys_for(["a", "b"], path)
    assert keys_for(["a", "b"], path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(set(first.values())) == 2
    assert all(key.startswith("sk-penstock-") for key in first.values())
    assert keys_for(["a", "b", "new"], path)["a"] == first["a"]


def test_a_broken_key_file_is_named_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{")
    with pytest.raises(NotStarted, match="remove it for new keys"):
        keys_for(["a"], path)
    assert path.read_text() == "{"


def test_a_port_in_use_is_said_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(NotStarted, match="End what listens there"):
        refuse_taken("127.0.0.1", taken.getsockname()[1])


def test_what_is_printed_can_be_pasted() -> None:
    demo = read_demo(POLICY.read_text(encoding="utf-8"))
    keys = {tenant: f"sk-penstock-{tenant}" for tenant in demo.budgets}
    text = text_for(demo, keys, 1.0)
    first = next(iter(keys.values()))
    assert f'-H "Authorization: Bearer {first}"' in text
    assert f'"model": "{demo.model}"' in text
    assert all(key in text for key in keys.values())
    python = text[text.index("  from openai") : text.index("The budgets stand")]
    compile("\n".join(line.removeprefix("  ") for line in python.splitlines()), "snippet", "exec")


def test_a_terminal_that_has_gone_ends_nothing() -> None:
    code = (
        "import os, sys; from demo.run import say; end, pipe = os.pipe(); os.dup2(pipe, 1); os.close(end); "
        "say('one'); say('two'); sys.exit(3)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (3, "")


@pytest.mark.parametrize(
    ("status", "last"),
    [(0, "Ended."), (1, "Ended; streams that were still open after 10s were cut (server.drainTimeout).")],
)
async def test_the_end_says_how_long_it_may_take_and_whether_streams_were_cut(
    status: int, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUIET_SECONDS", 0.01)
    code = "import signal, sys; s = signal.sigwait([signal.SIGTERM]); sys.stdin.read(); sys.exit(int(sys.argv[1]))"
    code = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print('up', flush=True); {code}"
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(status), stdin=pipe, stdout=pipe)
    assert child.stdin is not None and child.stdout is not None
    assert await child.stdout.readline() == b"up\n"
    exited = asyncio.create_task(child.wait())
    ending = asyncio.create_task(run.end(child, exited, asyncio.Queue(), 10.0))
    said = ""
    while "Ending" not in said:
        await asyncio.sleep(0.005)
        said += capsys.readouterr().out
    assert said == "Ending: open streams may go on for 10s at most; Ctrl-C again ends them now.\n"
    child.stdin.close()
    await ending
    assert capsys.readouterr().out == last + "\n"


def test_the_readmes_file_is_one_that_would_be_served() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    assert list(load(found[1], {}).tenants) == ["acme"]
