from __future__ import annotations

import json
from typing import Any

import pytest

from backends.outcome import Ending, Outcome
from gateway.admit import NOT_USED
from gateway.attempts import Attempt
from gateway.verdict import draining, fault_of, late, used
from tenancy.call import Call, Kind, Usage
from tenancy.need import Need
from tenancy.policy import Key, Tenant

NEED = Need(40, 100, 100)
BROKEN = Outcome(Ending.RESET, 200)
LEFT = Outcome(Ending.LEFT, 200)
WHOLE = Outcome(Ending.COMPLETE, 200)


def call(**facts: Any) -> Call:
    tenant = Tenant("acme")
    return Call("one", tenant, Key("0" * 64, "k"), facts.pop("kind", Kind.CHAT), "tiny", 10.0, **facts)


def attempt(outcome: Outcome, **facts: Any) -> Attempt:
    return Attempt("pod", outcome, **{"status": outcome.status or 0, "is_sent": True, **facts})


@pytest.mark.parametrize(
    ("sequences", "tried", "booked"),
    [
        (1, attempt(WHOLE, usage=Usage(5, 7), events=9), Usage(5, 7)),
        (1, attempt(LEFT, events=8), Usage(40, 7, is_reported=False)),
        (1, attempt(LEFT), Usage(40, 0, is_reported=False)),
        (1, attempt(LEFT, is_countable=False), None),
        (1, attempt(Outcome(Ending.LEFT), is_sent=False), NOT_USED),
        (1, attempt(Outcome(Ending.COMPLETE, 500)), NOT_USED),
        (1, attempt(Outcome(Ending.REFUSED), is_sent=False), NOT_USED),
        # An engine that reports one of eight sequences: what was seen of the others counts.
        (8, attempt(WHOLE, usage=Usage(5, 400), events=3224), Usage(5, 3200)),
        (8, attempt(WHOLE, usage=Usage(5, 3200), events=3224), Usage(5, 3200)),
    ],
)
def test_what_was_used_is_what_was_reported_or_else_what_was_seen(
    sequences: int, tried: Attempt, booked: Usage | None
) -> None:
    assert used(call(sequences=sequences), NEED, tried) == booked


def pod_says(status: int, **error: Any) -> Attempt:
    return attempt(Outcome(Ending.COMPLETE, status), body=json.dumps({"error": error}).encode())


@pytest.mark.parametrize(
    ("tried", "status", "code"),
    [
        (pod_says(400, message="no such sampler"), 400, "invalid_request"),
        (pod_says(400, type="exceed_context_size_error", message="too long"), 400, "context_length_exceeded"),
        (pod_says(400, message="This model's maximum context length is 8"), 400, "context_length_exceeded"),
        (pod_says(422, message="odd"), 422, "invalid_request"),
        (pod_says(401, message="who are you"), 502, "pod_failed"),
        (pod_says(404, message="no such model"), 502, "pod_failed"),
        (pod_says(429, message="full"), 429, "pod_capacity"),
        (pod_says(503, message="full"), 429, "pod_capacity"),
        (pod_says(500, message="broken"), 502, "pod_failed"),
        (pod_says(501, message="no embeddings"), 400, "invalid_request"),
        (pod_says(302, message="elsewhere"), 502, "pod_failed"),
        (attempt(BROKEN, has_emitted=True), 502, "pod_failed"),
        (attempt(Outcome(Ending.CONNECT_TIMEOUT)), 502, "pod_failed"),
    ],
)
def test_a_client_hears_of_its_own_mistakes_in_the_pod_s_words_and_of_ours_in_our_own(
    tried: Attempt, status: int, code: str
) -> None:
    fault = fault_of(call(), tried, 1)
    assert fault is not None
    assert (fault.status, fault.code) == (status, code)
    if status < 500 and status != 429 and tried.status != 501:
        assert fault.message == json.loads(tried.body)["error"]["message"]
    if status >= 500:
        assert "who are you" not in fault.message
        assert "no such model" not in fault.message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"5", b'{"error": "text"}', b'{"error": {"message": 5}}'])
def test_a_refusal_in_no_known_form_is_still_told(body: bytes) -> None:
    fault = fault_of(call(), attempt(Outcome(Ending.COMPLETE, 400), body=body), 1)
    assert fault is not None
    assert (fault.status, fault.code) == (400, "invalid_request")
    assert fault.message


def test_the_older_flat_form_of_an_error_is_read() -> None:
    body = b'{"object":"error","message":"top_p must be in (0, 1]","type":"BadRequestError","param":"top_p","code":400}'
    fault = fault_of(call(), attempt(Outcome(Ending.COMPLETE, 400), body=body), 1)
    assert fault is not None
    assert (fault.message, fault.param, fault.code) == ("top_p must be in (0, 1]", "top_p", "invalid_request")


def test_a_good_answer_has_no_fault() -> None:
    assert fault_of(call(), attempt(WHOLE), 1) is None


def test_a_deadline_and_a_drain_have_faults_of_their_own() -> None:
    assert late(call(deadline_at=12.5)).status == 504
    assert "2500 ms" in late(call(deadline_at=12.5)).message
    assert (draining().status, draining().code) == (503, "draining")
