"""`docs/logs.md` names every field of the access log, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.observe.logs import _Entry

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "logs.md").read_text(encoding="utf-8")


def test_every_field_of_the_access_log_is_explained_and_no_other() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(_Entry.__struct_fields__)
