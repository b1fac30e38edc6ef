"""The house rules that no tool checks: sizes, docstrings, purity, what no file may name, and uvicorn's private names.

Who may import whom is import-linter's (`make check`, contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import dis
import inspect
import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.http.client import ClientFlow, Cycle
from gateway.http.server import ClientProtocol
from tests.instruments.requires import find_program, requires_program

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "backends", "tenancy", "loadtest", "benchmarks")

MOST_LINES = 500
MAY_BE_LONGER: dict[str, str] = {}  # path → why it is one concept all the same


def modules(*under: str) -> list[Path]:
    """Every Python file below the folders or files named, relative to the root."""
    found = []
    for name in under:
        path = ROOT / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
    return [path.relative_to(ROOT) for path in found]


def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), str(module))


def test_a_module_is_one_concept_and_not_longer_than_one() -> None:
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in modules(*PACKAGES)}
    too_long = {path: length for path, length in lengths.items() if length > MOST_LINES and path not in MAY_BE_LONGER}
    assert not too_long, f"these hide a concept with no name yet: {too_long}"
    stale = [path for path in MAY_BE_LONGER if lengths.get(path, 0) <= MOST_LINES]
    assert not stale, f"no longer too long, take them off the list: {stale}"


def test_every_module_says_why_it_exists() -> None:
    mute = [str(path) for path in modules(*PACKAGES, "demo", "tests/instruments") if not ast.get_docstring(tree(path))]
    assert not mute


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in modules(*PACKAGES)}
    assert not [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()]


def test_a_module_imports_its_siblings_and_never_the_package_around_it() -> None:
    """Nearly every import cycle of large Python projects runs through an `__init__`."""
    roundabout = []
    for path in modules(*PACKAGES):
        above = {".".join(path.parts[:depth]) for depth in range(1, len(path.parts))}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.module in above and path.name != "__init__.py":
                folder = ROOT / node.module.replace(".", "/")
                names = [alias.name for alias in node.names]
                roundabout += [
                    f"{path}:{node.lineno} takes {name} from {node.module}"
                    for name in names
                    if not ((folder / f"{name}.py").exists() or (folder / name).is_dir())
                ]
    assert not roundabout


# ---- purity ----------------------------------------------------------------------------------------------------------

IMPURE = frozenset({"time", "random", "secrets", "uuid", "threading", "concurrent", "subprocess"})
AWAITING = frozenset({"asyncio", "socket", "selectors", "ssl", "httpx", "uvicorn", "fastapi", "starlette", "uvloop"})

# Under `exchange` everything runs in virtual time, too: time is the loop's, and randomness is passed in.
UNDER_EXCHANGE = (
    "gateway/stream",
    "gateway/leaving.py",
    "gateway/admit.py",
    "gateway/attempts.py",
    "gateway/exchange.py",
    "backends/wire",
    "backends/engines",
    "backends/routing",
    "backends/closing.py",
    "backends/fleet.py",
)


def imports_of(module: Path) -> Iterator[tuple[str, int]]:
    """Every name that the module imports, in full, with its line."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def impurities(under: tuple[str, ...], forbidden: frozenset[str]) -> list[str]:
    return [
        f"{path}:{line} imports {name}"
        for path in modules(*under)
        for name, line in imports_of(path)
        if name != "random.Random"  # a type, for what is passed in
        and (name in forbidden or name.split(".")[0] in forbidden)
    ]


def test_tenancy_awaits_nothing_and_reads_no_clock() -> None:
    assert not impurities(("tenancy",), IMPURE | AWAITING | {"os"})
    awaiting = [
        str(path)
        for path in modules("tenancy")
        if any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree(path)))
    ]
    assert not awaiting


def test_everything_under_exchange_runs_in_virtual_time() -> None:
    assert not impurities(UNDER_EXCHANGE, IMPURE | {"httpx", "uvicorn", "uvloop", "fastapi"})


# ---- programs --------------------------------------------------------------------------------------------------------


def test_ci_installs_every_program_that_a_test_needs() -> None:
    """A program missing from `.ci/run` would fail there on a new machine, and nowhere before."""
    found = re.search(r"^programs=\((.*)\)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    installed = {entry.split(":")[0] for entry in found[1].split()}
    needed = set()
    for path in modules("tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "requires_program":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: name the program as a literal"
                needed.add(node.args[0].value)
    assert installed == needed


# ---- what no file may name -------------------------------------------------------------------------------------------

NEVER_NAMED = {
    "a folder of somebody's machine": ["/home/[a-z]", "/root/", r"(?<![\w.])/(?:work)/"],
    "the address of a registry": [
        "index[-]url",
        "find[-]links",
        '"resolved": *"http',
        r"pypi\.",
        "pythonhosted",
        r"npmjs\.",
    ],
}


@requires_program("git", install="apt-get install git")
def test_no_file_names_a_machine_or_a_registry() -> None:
    git = find_program("git")
    assert git is not None
    # What git tracks and what it would track: everything but what .gitignore names.
    listing = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git clone")
    patterns = [(what, re.compile(pattern)) for what, patterns in NEVER_NAMED.items() for pattern in patterns]
    named = []
    for name in listing.stdout.decode().split("\0"):
        path = ROOT / name
        if not path.is_file() or path.suffix == ".gguf" or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            named += [
                f"{name}:{number} names {what}: {line.strip()[:120]}" for what, found in patterns if found.search(line)
            ]
    assert not named, "\n".join(named)


# ---- uvicorn's private names -----------------------------------------------------------------------------------------


def test_uvicorns_protocol_still_has_the_private_names_that_ours_builds_on() -> None:
    """uvicorn is pinned; a new version must pass this before `gateway.http.server` can be trusted on it."""
    for callback in (
        "connection_made",
        "connection_lost",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "on_response_complete",
        "pause_writing",
        "resume_writing",
        "shutdown",
        "on_url",
        "on_header",
    ):
        assert callable(getattr(HttpToolsProtocol, callback, None)), callback
    # What instances hold is set in __init__ alone, so that its code says which names they have.
    held = of_self(HttpToolsProtocol.__init__, "STORE_ATTR")
    assert {"app", "loop", "parser", "connections", "tasks", "transport", "flow", "scheme", "scope", "headers"} <= held
    assert {"expect_100_continue", "cycle"} <= held
    assert {"read_paused", "write_paused", "_is_writable_event"} <= of_self(FlowControl.__init__, "STORE_ATTR")
    in_a_cycle = of_self(RequestResponseCycle.__init__, "STORE_ATTR")
    assert {"disconnected", "keep_alive", "response_started", "response_complete", "chunked_encoding"} <= in_a_cycle


@pytest.mark.parametrize(
    ("theirs", "ours", "inherited"),
    [
        (HttpToolsProtocol, ClientProtocol, ["on_url", "on_header", "pause_writing", "resume_writing"]),
        (RequestResponseCycle, Cycle, ["send", "receive"]),
        (FlowControl, ClientFlow, ["drain", "pause_reading", "resume_reading", "resume_writing"]),
    ],
)
def test_what_uvicorns_methods_read_of_an_object_is_set_by_ours(theirs: type, ours: type, inherited: list[str]) -> None:
    """Ours do without uvicorn's `__init__`: what a new version's methods read besides would be missing."""
    methods = [value for value in vars(ours).values() if inspect.isfunction(value)]
    have = set(dir(ours)).union(*(of_self(method, "STORE_ATTR") for method in methods))
    have.add("access_logger")  # read where access_log is on, and ours is off
    for name in inherited:
        assert not of_self(vars(theirs)[name], "LOAD_ATTR", "LOAD_METHOD") - have, name


def of_self(method: Callable[..., Any], *operations: str) -> set[str]:
    """The attributes of `self` to which the method does this."""
    steps = itertools.pairwise(dis.get_instructions(method))
    return {step.argval for before, step in steps if before.argval == "self" and step.opname in operations}
