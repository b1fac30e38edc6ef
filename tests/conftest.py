"""What holds for every test: examples that repeat, and an account of what was skipped for a missing program.

Hypothesis draws the same examples in every run (`derandomize`), so a red test is red for everybody;
`--hypothesis-profile=search` draws new ones, and prints what reproduces a failure.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.instruments.requires import may_skip, missing_programs

# No deadline: two cores shared with other work say nothing about our code, and pytest-timeout ends what hangs.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", parent=settings.get_profile("repeatable"), derandomize=False, max_examples=1000)
settings.load_profile("repeatable")

_skipped_for = pytest.StashKey[dict[str, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_skipped_for] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = missing_programs(item)
    if not missing:
        return
    text = "; ".join(f"needs {program}: {install}" for program, install in missing.items())
    if not may_skip():
        pytest.fail(f"{text} (PENSTOCK_NO_SKIP is set, so this is no reason to skip)", pytrace=False)
    for program, install in missing.items():
        skipped = item.config.stash[_skipped_for]
        skipped.setdefault(f"{program} (bring it with: {install})", []).append(item.nodeid)
    pytest.skip(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = config.stash[_skipped_for]
    if not skipped:
        return
    terminalreporter.section("skipped for a missing program")
    for program, tests in sorted(skipped.items()):
        terminalreporter.line(f"{program}:")
        for test in tests:
            terminalreporter.line(f"  {test}")
