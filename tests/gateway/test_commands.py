"""The command line: what each command prints, what it answers to misuse, and with which exit code."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway import cli
from gateway.commands import keys
from tenancy.config.load import load
from tenancy.config.reference import reference

ROOT = Path(__file__).resolve().parents[2]
HASH = "sha256:" + "1".zfill(64)
GOOD = f"""\
devices: [{{name: gpu0, memory: 79Gi, overhead: 512Mi}}]
models: [{{name: m, kvBytesPerToken: 1Mi}}]
pods:
  - {{name: chat-0, device: gpu0, models: [m], engine: vllm, url: "http://a", memory: 20Gi, kvMemory: 10Gi}}
tenants:
  - {{name: acme, keys: ["{HASH}"], budget: {{memory: 4Gi, concurrency: 32}}, weight: 2}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "penstock.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def replaced(file: Path, old: str, new: str) -> str:
    """Put `new` for `old` in the file, and return its name."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    return str(file)


# ---- the command line as such --------------------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from gateway.cli import COMMANDS, main; code = main(['--help']); "
        "loaded = [name for name, _ in COMMANDS.values() if name in sys.modules]; "
        "sys.exit(code or loaded or 'pydantic' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for name, (_, meaning) in cli.COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(meaning)}$", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_teaches_with_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command, "new"] if command == "keys" else [command]
    assert cli.main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: penstock {command}")
    assert "examples:" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a command: serve, check, keys, schema, pod"),
        (["chackk"], "there is no command 'chackk'; did you mean 'check'?"),
        (["frobnicate"], "there is no command 'frobnicate'\n"),
        (["--verison"], "unknown argument '--verison'; did you mean --version?"),
        (["check", "--fiel", "x"], "penstock check: unknown argument '--fiel'; did you mean --file?"),
        (["check", "penstock.yaml"], "penstock check: unknown argument 'penstock.yaml'"),
        (["keys"], "penstock keys: the following arguments are required: VERB"),
        (["keys", "new", "acme", "--nam", "x"], "penstock keys new: unknown argument '--nam'; did you mean --name?"),
        (["keys", "new", "acme", "--concurrency", "0"], "argument --concurrency: must be at least 1, not 0"),
        (["keys", "new", "a b"], "argument TENANT: 'a b' is not a name"),
        (["keys", "new", "acme", "--expires", "2020-01-01"], "argument --expires: 2020-01-01 is past"),
        (["serve", "--port", "99999"], "argument --port: must be a whole number from 0 to 65535, not '99999'"),
        (["serve", "--port", "-1"], "argument --port: must be a whole number from 0 to 65535, not '-1'"),
        (["serve", "--port", "80x"], "argument --port: must be a whole number from 0 to 65535, not '80x'"),
        (["serve", "--admin-port", "70000"], "argument --admin-port: must be a whole number from 0 to 65535"),
    ],
)
def test_misuse_is_answered_with_what_was_meant(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    caught = capsys.readouterr()
    assert said in caught.err
    assert "--help` tells more" in caught.err
    assert caught.out == ""


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("penstock ")


def test_a_reader_that_has_gone_is_no_crash() -> None:
    code = f"{sys.executable} -m gateway.cli schema | head -1"
    ended = subprocess.run(["bash", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("{\n", "")


# ---- check ---------------------------------------------------------------------------------------------------------


def test_check_prints_the_plan_of_a_good_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-f", str(file)]) == 0
    shown = capsys.readouterr().out
    assert (
        shown
        == f"""\
Devices
  device     memory       left  pods (limit + overhead)
  gpu0    79.00 GiB  58.50 GiB  chat-0 20 GiB + 512 MiB

Pods
  pod     on    KV memory  tokens   at once  guaranteed to
  chat-0  gpu0  10.00 GiB  10,240  no limit  acme 4 GiB

Tenants
  tenant  keys    memory  at once   req/min   tok/min  served by
  acme       1  4.00 GiB       32  no limit  no limit  chat-0

Set, and without effect in this release
  tenants[].weight  tenants take turns one by one (line 6)

{file}: everything adds up
"""
    )


def test_check_prints_findings_with_their_lines_and_errors_fail(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = replaced(file, "memory: 20Gi", "memory: 80Gi")
    replaced(file, "memory: 4Gi", "memory: 11Gi")
    assert cli.main(["check", "-f", name]) == 1
    shown = capsys.readouterr().out
    assert f"  error    {name}:1: devices[0]\n           gpu0 is over-full by 1.50 GiB" in shown
    assert f"  warning  {name}:4: pods[0]\n           chat-0 holds 10.00 GiB, and 11.00 GiB" in shown
    assert shown.endswith(f"{name}: 1 error, 1 warning\n")


def test_check_stays_within_a_hundred_columns_with_many_names(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tenants = "".join(f"  - {{name: a-tenant-with-a-long-name-{n}, budget: {{memory: 3Gi}}}}\n" for n in range(200))
    pods = "".join(f'  - {{name: pod-{n}, device: gpu0, models: [m], url: "http://a:{n + 1}"}}\n' for n in range(30))
    replaced(file, "tenants:\n", pods + "tenants:\n" + tenants)
    assert cli.main(["check", "-f", str(file)]) == 0
    lines = capsys.readouterr().out.replace(str(file), "penstock.yaml").splitlines()
    assert max(len(line) for line in lines) <= 100
    assert any(line == "  and 141 more" for line in lines)


def test_check_prints_every_fault_on_a_line_of_its_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = replaced(file, "weight: 2", "weightt: 2, queue: {depth: -1}")
    assert cli.main(["check", "-f", name]) == 1
    caught = capsys.readouterr()
    assert caught.out == ""
    first, second, last = caught.err.splitlines()
    assert first.startswith(f"{name}:6: tenants[0].queue.depth: must be at least 0, not -1")
    assert second == f"{name}:6: tenants[0].weightt: unknown key; did you mean 'weight'?"
    assert last == "penstock: 2 faults"


def test_check_of_a_file_that_is_not_there_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "-f", str(tmp_path / "none.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert cli.main(["check", "-f", str(tmp_path / "binary")]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    assert cli.main(["check", "-f", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_check_reads_a_configmap_beside_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = "kind: ConfigMap\nmetadata: {name: kubeflow-gpu-profiles}\ndata:\n  a: |\n    maxMemory: 10Gi\n"
    (file.parent / "gpu.yaml").write_text(profiles, encoding="utf-8")
    replaced(file, "name: chat-0,", "name: chat-0, profile: a,")
    replaced(file, "devices:", "profiles: gpu.yaml\ndevices:")
    assert cli.main(["check", "-f", str(file)]) == 1
    assert "its profile a allows 10.00 GiB" in capsys.readouterr().out


def test_check_reads_standard_input() -> None:
    command = [sys.executable, "-m", "gateway.cli", "check", "-f", "-"]
    ended = subprocess.run(command, cwd=ROOT, input=GOOD, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("(standard input): everything adds up\n")


def test_check_looks_for_the_files_that_the_configuration_names(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = replaced(
        file, "tenants:\n", "  - {name: own, engine: llama.cpp, models: [m], model: nowhere.gguf}\ntenants:\n"
    )
    assert cli.main(["check", "-f", name]) == 1
    assert f"error    {name}:5: pods[1].model\n           there is no file nowhere.gguf;" in capsys.readouterr().out
    replaced(file, "nowhere.gguf", "penstock-tiny")
    assert cli.main(["check", "-f", name]) == 0


def test_serve_says_which_files_are_not_there_before_it_listens(file: Path) -> None:
    name = replaced(
        file, "tenants:\n", "server: {port: 0, tls: {cert: no.pem, key: no.pem}}\nadmin: {port: 0}\ntenants:\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve", "-f", name],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert '"event":"file_missing","place":"server.tls.cert","detail":"there is no file no.pem;' in ended.stderr


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_a_new_key_is_shown_once_with_the_line_that_goes_into_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "new", "acme"]) == 0
    shown = capsys.readouterr().out
    (key,) = re.findall(r"sk-penstock-[A-Za-z0-9_-]{43}", shown)
    (entry,) = yaml.safe_load(shown[shown.index("  - ") :])
    assert entry == "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def test_a_new_key_with_limits_of_its_own_loads_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--name 12 --concurrency 4 --requests-per-minute 60 --tokens-per-minute 10k --memory 2Gi --expires 2099-01-01"
    )
    assert cli.main(["keys", "new", "acme", *options.split(), "--model", "m"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].strip().removeprefix("- ")
    (key,) = load(GOOD.replace(f'"{HASH}"', line), {}).tenants["acme"].keys
    assert (key.name, key.models, key.budget.concurrency) == ("12", frozenset({"m"}), 4)
    assert (key.budget.requests_per_minute, key.budget.tokens_per_minute) == (60, 10_000)
    assert (key.budget.memory_bytes, key.expires_at) == (2 * 2**30, 4_070_908_800.0)


def test_no_two_keys_are_alike() -> None:
    assert len({keys.new_key() for _ in range(100)}) == 100


def test_a_new_key_can_be_had_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "new", "acme", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["entry"] == "sha256:" + hashlib.sha256(made["key"].encode()).hexdigest()


def test_a_tenant_that_the_file_lacks_gets_no_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "new", "acne", "-f", str(file)]) == 1
    caught = capsys.readouterr()
    assert f"{file} has no tenant 'acne'; did you mean 'acme'?" in caught.err
    assert caught.out == ""
    assert cli.main(["keys", "new", "acme", "-f", str(file)]) == 0
    assert cli.main(["keys", "new", "acme", "-f", str(file.parent / "none")]) == 2


def test_a_model_that_the_file_lacks_gets_no_key(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = replaced(file, "{name: m, kvBytesPerToken", "{name: qwen, aliases: [m], kvBytesPerToken")
    words = ["keys", "new", "acme", "-f", name, "--model"]
    assert cli.main([*words, "qwne"]) == 1
    caught = capsys.readouterr()
    assert f"{file} has no model 'qwne'; did you mean 'qwen'?" in caught.err
    assert caught.out == ""
    assert cli.main([*words, "m"]) == 0


def test_a_key_can_be_made_for_a_file_that_waits_for_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = replaced(file, f'"{HASH}"', '"${ACME_KEY}"')
    assert cli.main(["keys", "new", "acme", "-f", name]) == 0
    assert "sk-penstock-" in capsys.readouterr().out


# ---- schema --------------------------------------------------------------------------------------------------------


def test_the_schema_is_printed_as_json_and_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["required"]) == {"pods", "tenants"}
    assert cli.main(["schema", "--tables"]) == 0
    assert capsys.readouterr().out == reference()
