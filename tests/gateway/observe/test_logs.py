"""The access log and the gateway's own: what stands in a line, what never does, and what a bad reader costs."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from gateway.observe.logs import FLUSH_SECONDS, AccessLog, Log
from gateway.record import Record


class Later:
    """Holds what was to be called later."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.calls.append((seconds, callback))

    def ring(self) -> None:
        calls, self.calls = self.calls, []
        for _, callback in calls:
            callback()


def epoch() -> float:
    return 1_700_000_000.25


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    with open(tmp_path / "log", "w+b", buffering=0) as stream:
        yield stream


def lines(file: IO[bytes]) -> list[dict[str, Any]]:
    file.seek(0)
    return [json.loads(line) for line in file.read().splitlines()]


def record(**facts: Any) -> Record:
    made = Record("r1", "/v1/chat/completions", 100.0, status=200, ended_at=100.5)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def pipe() -> Iterator[tuple[int, IO[bytes]]]:
    """A pipe: its reading end, and a stream to the other."""
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as stream:
        yield reader, stream
    os.close(reader)


def drained(reader: int) -> bytes:
    """All that the pipe holds now."""
    found = b""
    while select.select([reader], [], [], 0)[0]:
        found += os.read(reader, 65536)
    return found


# ---- the access log --------------------------------------------------------------------------------------------------


def test_a_record_is_one_line_written_within_a_tenth_of_a_second(file: IO[bytes]) -> None:
    later = Later()
    log = AccessLog(file, call_later=later, epoch=epoch)
    log.take(record())
    log.take(record(request_id="r2"))
    assert lines(file) == []
    assert [seconds for seconds, _ in later.calls] == [FLUSH_SECONDS]
    assert FLUSH_SECONDS <= 0.1
    later.ring()
    assert [line["request_id"] for line in lines(file)] == ["r1", "r2"]
    assert later.calls == []
    log.take(record(request_id="r3"))
    later.ring()
    assert len(lines(file)) == 3


def test_a_line_tells_all_that_is_known(file: IO[bytes]) -> None:
    log = AccessLog(file, call_later=Later(), epoch=epoch)
    log.take(
        record(
            tenant="acme",
            key="ci",
            model="tiny",
            streamed=True,
            pod="chat-1",
            attempts=2,
            outcomes=(("chat-0", "reset"), ("chat-1", "complete")),
            queued_seconds=0.0123,
            first_token_at=100.2,
            events=9,
            prompt_tokens=12,
            completion_tokens=8,
            usage_reported=True,
            bytes_in=300,
        )
    )
    log.close()
    assert lines(file) == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "request_id": "r1",
            "endpoint": "/v1/chat/completions",
            "status": 200,
            "total_ms": 500.0,
            "tenant": "acme",
            "key": "ci",
            "model": "tiny",
            "stream": True,
            "pod": "chat-1",
            "attempts": 2,
            "outcomes": [["chat-0", "reset"], ["chat-1", "complete"]],
            "queued_ms": 12.3,
            "first_token_ms": 200.0,
            "events": 9,
            "prompt_tokens": 12,
            "completion_tokens": 8,
            "usage_reported": True,
            "bytes_in": 300,
        }
    ]


def test_a_refusal_and_a_leaving_are_told(file: IO[bytes]) -> None:
    log = AccessLog(file, call_later=Later(), epoch=epoch)
    log.take(record(status=429, code="memory_budget", refused_by="tenant/acme", detail="No room.\nNone."))
    log.take(record(status=499, client_left=True))
    log.close()
    first, second = lines(file)
    assert (first["status"], first["code"], first["refused_by"]) == (429, "memory_budget", "tenant/acme")
    assert first["detail"] == "No room.\nNone."
    assert second["client_left"] is True


@pytest.mark.parametrize("format_", ["json", "text"])
def test_what_looks_like_a_key_in_a_detail_is_blotted_out(file: IO[bytes], format_: str) -> None:
    log = AccessLog(file, call_later=Later(), format=format_, epoch=epoch)
    log.take(record(detail="pod said: bad Authorization: Bearer abc.def, key sk-penstock-1234, /v1/x?token=qwe&a=b"))
    log.close()
    file.seek(0)
    text = file.read().decode()
    assert not any(secret in text for secret in ("abc.def", "penstock-1234", "qwe"))
    assert "a=b" in text


def test_a_line_is_bounded_and_one_line_whatever_a_detail_holds(file: IO[bytes]) -> None:
    log = AccessLog(file, call_later=Later(), format="text", epoch=epoch)
    log.take(record(detail="two\nlines " + "x" * 10_000))
    log.close()
    file.seek(0)
    text = file.read()
    assert text.count(b"\n") == 1
    assert len(text) < 1000
    assert text.startswith(b"2023-11-14T22:13:20.250Z 200 /v1/chat/completions total_ms=500.0")


def test_a_slow_reader_never_makes_the_gateway_wait_and_gets_whole_lines(pipe: tuple[int, IO[bytes]]) -> None:
    reader, stream = pipe
    later = Later()
    log = AccessLog(stream, call_later=later, epoch=epoch)
    for number in range(3000):  # far more than a pipe holds
        log.take(record(request_id=f"r{number}"))
    later.ring()
    seen = drained(reader)
    assert later.calls, "what is left is tried again"
    while later.calls:
        later.ring()
        seen += drained(reader)
    assert [json.loads(line)["request_id"] for line in seen.splitlines()] == [f"r{number}" for number in range(3000)]


def test_what_a_reader_never_takes_is_dropped_and_counted(pipe: tuple[int, IO[bytes]]) -> None:
    reader, stream = pipe
    later = Later()
    log = AccessLog(stream, call_later=later, epoch=epoch)
    for _ in range(10_000):
        log.take(record(detail="x" * 600))
    seen = b""
    while later.calls:
        later.ring()
        seen += drained(reader)
    *told, last = [json.loads(line) for line in seen.splitlines()]
    assert last["event"] == "lines_dropped"
    assert last["lines"] + len(told) == 10_000


def test_a_reader_that_is_gone_costs_nothing(pipe: tuple[int, IO[bytes]]) -> None:
    reader, stream = pipe
    log = AccessLog(stream, call_later=Later(), epoch=epoch)
    log.take(record())
    os.close(os.dup(reader))
    os.dup2(os.open(os.devnull, os.O_RDONLY), reader)  # the reading end is closed
    log.close()
    log.take(record())
    log.close()


# ---- the gateway's own -----------------------------------------------------------------------------------------------


def test_an_event_is_a_line_of_facts_written_at_once(file: IO[bytes]) -> None:
    log = Log(file, epoch=epoch)
    log.warning("pod_exited", pod="chat-0", code=-9, after=1.5)
    assert lines(file) == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "level": "warning",
            "event": "pod_exited",
            "pod": "chat-0",
            "code": -9,
            "after": 1.5,
        }
    ]


def test_levels_below_the_least_are_not_written(file: IO[bytes]) -> None:
    log = Log(file, level="warning", epoch=epoch)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line["event"] for line in lines(file)] == ["c", "d"]


def test_fields_of_any_kind_can_be_told(file: IO[bytes]) -> None:
    log = Log(file, epoch=epoch)
    log.info("odd", path=Path("/x"), error=ValueError("y"), names={"b"}, raw=b"z")
    assert lines(file)[0]["path"] == "/x"
    assert lines(file)[0]["error"] == "y"


def test_credentials_never_stand_in_a_line(file: IO[bytes]) -> None:
    log = Log(file, epoch=epoch)
    log.info("started", token="t0p", api_key="t0p", env={"A": "t0p"}, line="using Bearer t0p and sk-t0p", key="ci")
    assert b"t0p" not in json.dumps(lines(file)).encode()
    assert lines(file)[0]["key"] == "ci"  # the name of a key is none


def test_the_text_form_is_for_people(file: IO[bytes]) -> None:
    log = Log(file, format="text", epoch=epoch)
    log.error("pod_exited", pod="chat-0", reason="signal 9\nkilled", empty="")
    file.seek(0)
    assert file.read() == (
        b"2023-11-14T22:13:20.250Z ERROR   pod_exited pod=chat-0 reason='signal 9\\nkilled' empty=''\n"
    )
