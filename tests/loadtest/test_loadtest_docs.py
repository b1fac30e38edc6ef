"""`docs/loadtest.md` has every key of a scenario, every option and every field of a line, and no other.

`python -m tests.loadtest.test_loadtest_docs` prints the tables as they should stand there.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from loadtest.reading import usage
from loadtest.reading.keys import ScenarioKeys
from loadtest.reading.options import ACTIONS, parse, parser_for, scenario_of
from loadtest.reading.scenario_file import read_scenario
from loadtest.reading.written import Written
from loadtest.report.lines import Lines
from loadtest.strain import MOST_CORE, MOST_PRESSURE, MOST_SEND_LAG_SECONDS, MOST_TIMER_LAG_SECONDS
from tests.loadtest.calls import a_call

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "loadtest.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


# ---- the tables ----------------------------------------------------------------------------------------------------


def key_tables() -> str:
    """A heading and a table for each mapping of a scenario, from the outside in."""
    return "\n".join(_mapping(ScenarioKeys, "")).rstrip() + "\n"


def _mapping(model: type[BaseModel], place: str) -> Iterator[str]:
    yield f"### {f'`{place}`' if place else 'The file'}\n\n{(model.__doc__ or '').strip()}\n"
    inner, rows = [], []
    for field in sorted(model.model_fields.values(), key=lambda field: not field.is_required()):
        kind, below, is_list = _kind(field)
        rows.append(f"| `{field.alias}` | {kind} | {_default(field)} | {field.description} |")
        if below is not None:
            inner.append((below, f"{place}.{field.alias}".removeprefix(".") + ("[]" if is_list else "")))
    yield "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for below, path in inner:
        yield from _mapping(below, path)


def _kind(field: Any) -> tuple[str, type[BaseModel] | None, bool]:
    written = next((entry for entry in field.metadata if isinstance(entry, Written)), None)
    if written is not None:
        return written.known_as, None, False
    models = [found for found in _flat(field.annotation) if isinstance(found, type) and issubclass(found, BaseModel)]
    is_list = list in [get_origin(found) for found in [field.annotation, *get_args(field.annotation)]]
    return "list (mapping)" if is_list else "mapping", models[0], is_list


def _flat(annotation: Any) -> list[Any]:
    return [annotation, *(found for inner in get_args(annotation) for found in _flat(inner))]


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    return "–" if field.default is None or field.default == {} else f"`{field.default}`"


def option_table() -> str:
    """A row for each option, with the actions that have it."""
    rows: dict[tuple[str, str], list[str]] = {}
    for action in ACTIONS:
        _, parser, _ = parser_for([] if action == "run" else [action], argparse.ArgumentParser)
        for option in parser._actions:
            if option.dest == "help":
                continue
            name = ", ".join(option.option_strings)
            metavar = option.metavar if option.choices is None else " or ".join(map(str, option.choices))
            said = " ".join(part for part in (name, str(metavar or "")) if part).replace("|", "\\|")
            rows.setdefault((said, (option.help or "").replace("%%", "%")), []).append(action)
    lines = [
        f"| `{said}` | {', '.join(actions)} | {meaning[:1].upper()}{meaning[1:]}. |"
        for (said, meaning), actions in rows.items()
    ]
    return "| option | of | meaning |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def test_every_key_of_a_scenario_is_explained_and_no_other() -> None:
    told = section("Every key of a scenario")
    assert told[told.index("### The file") :].strip() == key_tables().strip(), "bring docs/loadtest.md up to date"


def test_every_option_is_explained_and_no_other() -> None:
    told = section("Every option")
    assert told[told.index("| option |") :].strip() == option_table().strip(), "bring docs/loadtest.md up to date"


def test_every_field_of_a_line_is_explained_and_no_other(tmp_path: Path) -> None:
    lines = Lines(str(tmp_path / "calls.jsonl"), keeps_gaps=True)
    lines.write("main", "a", a_call(), started_epoch=0.0)
    lines.close()
    rows = [line.split("|")[1] for line in section("One line a call").splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == set(json.loads((tmp_path / "calls.jsonl").read_text()))


# ---- what else it says ---------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", [block for block in blocks("yaml") if block.startswith("target:")])
def test_every_scenario_that_it_shows_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "conv.csv").touch()
    read_scenario(text, {"VICTIM_KEY": "k", "CROWD_KEY": "k"}, source="docs", folder=tmp_path)


def commands() -> list[str]:
    lines = "\n".join(blocks("console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").split("  #")[0] for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_line_that_it_shows_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conv.csv").touch()
    Path("scenario.yaml").write_text(next(text for text in blocks("yaml") if "phases:" in text), encoding="utf-8")
    words = shlex.split(line.replace("$(pgrep -of my-server)", "4711"))
    assert " ".join(words[:2]) == usage.PROG
    args = parse(words[2:])
    if args.action in ("run", "sweep", "soak"):
        scenario_of(args, {"VICTIM_KEY": "k", "CROWD_KEY": "k", "A_KEY": "k", "B_KEY": "k"}, tmp_path)


def test_it_shows_scenarios_and_command_lines_of_every_action() -> None:
    assert len(blocks("yaml")) >= 3
    named = {action for action in ACTIONS if any(f"{usage.PROG} {action}" in line for line in commands())}
    assert named == set(ACTIONS) - {"run"}


def test_it_names_the_limits_from_which_a_run_is_marked() -> None:
    told = section("When the tool was the limit")
    for limit in (MOST_TIMER_LAG_SECONDS, MOST_SEND_LAG_SECONDS):
        assert f"{limit * 1000:g} ms" in told
    for share in (MOST_CORE, MOST_PRESSURE):
        assert f"{share:.0%}".replace("%", " %") in told


if __name__ == "__main__":
    print(key_tables(), option_table(), sep="\n")
