"""Refusals and faults in their HTTP form, and docs/errors.md against the table of codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.http.errors import (
    INTERNAL_ERROR,
    INVALID_API_KEY,
    STATUSES,
    Fault,
    from_refusal,
    headers_too_large,
    invalid_request,
    malformed,
    method_not_allowed,
    model_not_allowed,
    model_not_found,
    not_found,
    request_timeout,
    request_too_large,
)
from tenancy.refusal import Code, Refusal

DOCS = Path(__file__).resolve().parents[3] / "docs" / "errors.md"

MADE_HERE = [
    INTERNAL_ERROR,
    INVALID_API_KEY,
    headers_too_large(1),
    invalid_request("wrong"),
    malformed("wrong"),
    method_not_allowed("GET", "/", "POST"),
    model_not_allowed("m"),
    model_not_found("m"),
    not_found("GET", "/"),
    request_timeout("head", 1),
    request_too_large(1),
]


def refusal(code: Code, **facts: Any) -> Refusal:
    return Refusal(code, "tenant/acme", "No room.", **facts)


def error(fault: Fault) -> dict[str, Any]:
    inner = json.loads(fault.body())["error"]
    assert isinstance(inner, dict)
    return inner


def documented() -> list[tuple[int, str, str]]:
    row = re.compile(r"^\| (\d{3}) \| `(\w+)` \| `(\w+)` \|", re.MULTILINE)
    return [(int(status), code, kind) for status, code, kind in row.findall(DOCS.read_text())]


def test_the_docs_list_every_code_with_its_status_and_no_other() -> None:
    assert [(code, status) for status, code, _ in documented()] == sorted(
        ((code, status) for status, code, _ in documented()), key=lambda row: row[1]
    )
    assert {code: status for status, code, _ in documented()} == dict(STATUSES)


@pytest.mark.parametrize(("status", "code", "kind"), documented())
def test_the_docs_tell_the_type_of_every_code(status: int, code: str, kind: str) -> None:
    assert error(Fault(status, code, "")) == {"message": "", "type": kind, "param": None, "code": code} | (
        {"penstock": {"retry_after_ms": 1000}} if status in (429, 503) else {}
    )


@pytest.mark.parametrize("fault", MADE_HERE, ids=lambda fault: fault.code)
def test_every_fault_that_is_made_here_has_the_status_of_its_code(fault: Fault) -> None:
    assert STATUSES[fault.code] == fault.status


@pytest.mark.parametrize("code", Code)
def test_every_reason_of_policy_has_a_status(code: Code) -> None:
    fault = from_refusal(refusal(code))
    assert (fault.code, fault.status) == (code.value, STATUSES[code.value])


def test_a_refusal_tells_its_account_and_numbers() -> None:
    fault = from_refusal(
        refusal(Code.MEMORY_BUDGET, unit="bytes", limit=4.0, used=3.0, asked=1.5, retry_after_seconds=0.0123)
    )
    assert error(fault) == {
        "message": "No room.",
        "type": "rate_limit_error",
        "param": None,
        "code": "memory_budget",
        "penstock": {
            "account": "tenant/acme",
            "unit": "bytes",
            "limit": 4,
            "used": 3,
            "asked": 1.5,
            "retry_after_ms": 13,
        },
    }


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0.0, b"1", b"1"), (0.0001, b"1", b"1"), (1.0, b"1", b"1000"), (1.0001, b"2", b"1001"), (None, b"1", b"1000")],
)
def test_when_to_come_back_is_rounded_up(seconds: float | None, whole: bytes, milliseconds: bytes) -> None:
    headers = dict(from_refusal(refusal(Code.POD_CAPACITY, retry_after_seconds=seconds)).headers())
    assert headers[b"retry-after"] == whole
    assert headers[b"retry-after-ms"] == milliseconds
    assert b"x-should-retry" not in headers


def test_where_coming_back_would_not_help_no_time_is_told() -> None:
    headers = dict(from_refusal(refusal(Code.EXCEEDS_BUDGET)).headers())
    assert headers == {b"content-type": b"application/json"}


def test_a_limit_without_bound_is_not_told_as_a_number() -> None:
    told = error(from_refusal(refusal(Code.QUEUE_FULL, limit=float("inf"), retry_after_seconds=float("inf"))))
    assert told["penstock"] == {"account": "tenant/acme", "retry_after_ms": 1000}


@pytest.mark.parametrize(
    ("fault", "never_again"),
    [
        (Fault(502, "pod_failed", ""), True),
        (Fault(504, "deadline_exceeded", ""), True),
        (Fault(429, "pod_capacity", "", is_retried=True), True),
        (Fault(429, "pod_capacity", ""), False),
        (Fault(503, "no_pod", ""), False),
    ],
)
def test_a_client_is_told_not_to_retry_what_was_retried(fault: Fault, never_again: bool) -> None:
    assert ((b"x-should-retry", b"false") in fault.headers()) is never_again


def test_an_error_in_mid_stream_is_one_event_with_its_status() -> None:
    event = Fault(503, "no_pod", "None\nleft.", retry_after_seconds=2.0).event()
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    told = json.loads(event.removeprefix(b"data: "))["error"]
    assert told["penstock"] == {"status": 503, "retry_after_ms": 2000}
    assert told["code"] == "no_pod"
