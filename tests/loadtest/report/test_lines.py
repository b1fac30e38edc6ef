"""One JSON line a call."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import loadtest.report.lines
from loadtest.messages import Call
from loadtest.report.lines import FLUSH_BYTES, FileFault, Lines
from tests.loadtest.calls import STARTED, a_call, a_cancelled_call, a_refused_call


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def line_of(tmp_path: Path, call: Call, **options: Any) -> dict[str, Any]:
    path = tmp_path / "calls.jsonl"
    lines = Lines(str(path), **options)
    lines.write("crowded", "victim", call, STARTED)
    lines.close()
    (line,) = lines_of(path)
    return line


def test_a_call_that_is_done_has_every_field(tmp_path: Path) -> None:
    assert line_of(tmp_path, a_call()) == {
        "phase": "crowded",
        "tenant": "victim",
        "counted": True,
        "scheduled": STARTED + 1.0,
        "sent": STARTED + 1.25,
        "first": STARTED + 2.0,
        "last": STARTED + 4.0,
        "ended": STARTED + 4.5,
        "ttft": 1.0,
        "wait": 0.25,
        "e2e": 3.5,
        "tpot": 0.625,  # (E2E − TTFT) / (n − 1): 2.5 s over 4 tokens
        "tokens": 5,
        "input": 16,
        "output": 8,
        "prompt_tokens": 17,
        "completion_tokens": 5,
        "events": 4,
        "longest_gap": 1.0,
        "status": 200,
        "code": "",
        "reused": True,
        "request_id": "chatcmpl-1",
    }


def test_a_failed_call_has_no_latency_and_says_when_it_broke_off(tmp_path: Path) -> None:
    line = line_of(tmp_path, a_call(code="cut"))
    assert (line["ttft"], line["e2e"], line["tpot"]) == (None, None, None)
    assert (line["first"], line["ended"]) == (STARTED + 2.0, STARTED + 4.5)
    assert (line["code"], line["tokens"]) == ("cut", 4)


def test_a_refused_call_has_nulls_where_nothing_came(tmp_path: Path) -> None:
    line = line_of(tmp_path, a_refused_call())
    assert [line[name] for name in ("first", "last", "ttft", "prompt_tokens", "completion_tokens")] == [None] * 5
    assert (line["status"], line["code"], line["wait"], line["request_id"]) == (429, "429 token_rate", 0.25, "")


def test_a_call_left_on_purpose_has_a_ttft_and_no_end_to_end(tmp_path: Path) -> None:
    line = line_of(tmp_path, a_cancelled_call())
    assert (line["ttft"], line["e2e"], line["tpot"], line["tokens"]) == (1.0, None, None, 2)


@pytest.mark.parametrize(
    ("changes", "tpot"),
    [
        ({"completion_tokens": 1}, None),
        ({"completion_tokens": -1}, 2.5 / 3),  # no usage: by events
        ({"first": 4.5, "last": 4.5}, None),  # a whole answer at once
        ({"first": None, "last": None, "completion_tokens": 0}, None),
    ],
)
def test_tpot_needs_two_tokens_that_came_apart(tmp_path: Path, changes: dict[str, Any], tpot: float | None) -> None:
    assert line_of(tmp_path, a_call(**changes))["tpot"] == tpot


def test_gaps_are_there_only_where_raw_ones_are_kept(tmp_path: Path) -> None:
    assert "gaps" not in line_of(tmp_path, a_call())
    assert line_of(tmp_path, a_call(), keeps_gaps=True)["gaps"] == [0.5, 0.5, 1.0]


def test_a_call_of_the_warm_up_says_that_it_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    lines = Lines(str(path))
    lines.write("warm-up", "victim", a_call(), STARTED, is_counted=False)
    lines.close()
    assert [(line["phase"], line["counted"]) for line in lines_of(path)] == [("warm-up", False)]


def test_names_with_quotes_newlines_and_no_latin_stay_one_line(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    lines = Lines(str(path))
    lines.write('a "b"\n', "mieterin-ü-租户", a_call(), STARTED)
    lines.close()
    (line,) = lines_of(path)
    assert (line["phase"], line["tenant"]) == ('a "b"\n', "mieterin-ü-租户")


def test_the_docstring_names_every_field_in_order(tmp_path: Path) -> None:
    table = re.findall(r"^\| (`.*?) \|", loadtest.report.lines.__doc__ or "", re.MULTILINE)
    named = [name for row in table for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(line_of(tmp_path, a_call(), keeps_gaps=True))


def test_lines_wait_for_a_batch_and_a_flush_brings_them_out(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    lines = Lines(str(path))
    lines.write("load", "a", a_call(), STARTED)
    assert not path.exists()
    lines.flush()
    assert len(lines_of(path)) == 1
    size = path.stat().st_size
    for _ in range(FLUSH_BYTES // size + 1):
        lines.write("load", "a", a_call(), STARTED)
    assert path.stat().st_size >= FLUSH_BYTES
    lines.close()
    assert len(lines_of(path)) == FLUSH_BYTES // size + 2


def test_a_file_of_no_calls_is_made_only_when_opened(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "calls.jsonl"
    lines = Lines(str(path))
    lines.close()
    assert not path.exists()
    lines.open()
    assert path.read_bytes() == b""
    lines.close()


def test_a_file_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_text("an earlier run\n" * 1000)
    assert line_of(tmp_path, a_call())["phase"] == "crowded"


def test_a_place_that_cannot_be_written_is_a_fault_with_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "calls.jsonl")
    with pytest.raises(FileFault) as raised:
        Lines(path).open()
    assert raised.value.path == path
    assert str(raised.value).startswith(f"cannot write {path}: ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told_once_and_nothing_piles_up_behind_it() -> None:
    lines = Lines("/dev/full")
    lines.write("load", "a", a_call(), STARTED)
    with pytest.raises(FileFault, match="No space left on device"):
        lines.flush()
    for _ in range(1000):
        lines.write("load", "a", a_call(), STARTED)
    lines.flush()
    lines.close()
