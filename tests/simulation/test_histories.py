"""Some hundred histories, each drawn from its seed: budgets, queues, deaths, leavings, all at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from tests.simulation.world import live

SEEDS = 240
SEEDS_A_TEST = 20


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_every_history_keeps_the_invariants(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        live(seed)


def test_one_seed_is_one_history() -> None:
    for seed in (3, 21, 44):
        assert live(seed).log == live(seed).log


def test_a_history_does_not_depend_on_how_strings_are_hashed() -> None:
    told = "import hashlib; from tests.simulation.world import live; print(*({}))".format(
        "hashlib.sha256('\\n'.join(live(seed).log).encode()).hexdigest() for seed in (5, 9, 30)"
    )
    here = [hashlib.sha256("\n".join(live(seed).log).encode()).hexdigest() for seed in (5, 9, 30)]
    for hashing in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", told], env={**os.environ, "PYTHONHASHSEED": hashing}, capture_output=True, text=True
        )
        assert there.stdout.split() == here, there.stderr
