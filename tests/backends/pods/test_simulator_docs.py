"""`docs/simulator.md` names every option, fault, count and metric of the simulator, and no other."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path

from backends.pods import settings
from backends.pods.misbehaviour import MATCHED, FaultKind
from backends.pods.tally import Counts
from backends.pods.vllm_metrics import Metrics
from tenancy.config.load import load
from tenancy.plan.plan import plan
from tests.instruments.pods import simulator

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "simulator.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}")[1].split("\n## ")[0]


def first_cells(text: str) -> set[str]:
    """What stands in code in the first cells of a section's tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(-*[a-z][\w-]*)", row)}


def test_every_option_is_explained_and_no_other() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    settings.add_options(parser)
    assert first_cells(section("Options")) == {action.option_strings[0] for action in parser._actions}


def test_the_file_that_it_shows_is_one_that_adds_up() -> None:
    shown = re.search(r"```yaml\n(.*?)```", section("In a configuration"), re.DOTALL)
    assert shown is not None
    policy = load(shown[1], {})
    assert plan(policy).findings == ()
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    assert settings.read_options(parser.parse_args(policy.pods["sim-0"].options)).kv_bytes == 4 * 2**30


def test_every_fault_is_explained_and_no_other() -> None:
    told = section("Faults")
    assert first_cells(told) == {kind.value for kind in FaultKind}
    assert all(f"`{name}`" in told for name in MATCHED)


async def test_every_count_is_explained_and_no_other() -> None:
    held = {"kv_bytes", "most_kv_bytes"}
    assert first_cells(section("Counts")) == {field.name for field in fields(Counts)} | held
    async with simulator() as pod:
        counters = await pod.counters()
    assert set(counters) == {"all", "tenants", "users", "pool", "connections"}
    assert set(counters["all"]) == {field.name for field in fields(Counts)} | held | {"waiting"}


def test_every_metric_is_named_and_no_other() -> None:
    class Idle:
        running_count = waiting_count = prefix_queries = prefix_hits = 0
        kv_usage = 0.0

    published = set(re.findall(r"^# TYPE (\S+)", Metrics("m", {}).text(Idle()).decode(), re.MULTILINE))
    assert set(re.findall(r"`(vllm:\w+)`", section("What it serves"))) == published
