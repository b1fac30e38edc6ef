"""What the end of a call's last attempt means: what was used, and what the client is told where there is no answer.

Pure. A pod's own words about a client's mistake go to the client, in the contract's form; what would mislead it (the
gateway's own credentials, our paths, a pod's failure) does not. None of a pod's words go into logs: they may repeat the
prompt.
"""

from __future__ import annotations

from typing import Any

import msgspec

from backends.outcome import COMPLETE, FULL_STATUS, Outcome
from gateway.admit import NOT_USED
from gateway.attempts import Attempt
from gateway.http.errors import Fault, invalid_request
from tenancy.call import Call, Kind, Usage
from tenancy.need import Need

_TOO_LONG_TYPE = "exceed_context_size_error"  # llama.cpp's
_TOO_LONG_WORDS = "maximum context length"  # vLLM's and SGLang's
_WITHOUT_TEXT = 3  # events a sequence that carry no token: role, finish, usage or [DONE]
_WORDS = {Kind.CHAT: "chat completions", Kind.COMPLETION: "completions", Kind.EMBEDDING: "embeddings"}


def used(call: Call, need: Need, attempt: Attempt) -> Usage | None:
    """Tokens to book: as the pod reported them, else what was seen of them (an event is a token).

    `None` where nobody can know, because the pod was asked for a whole answer that nobody heard: then what was charged
    stands. Some engines report one of several sequences only, so with more than one the count is a floor.
    """
    seen = max(0, attempt.events - _WITHOUT_TEXT * call.sequences)
    if attempt.usage is not None:
        if call.sequences == 1 or attempt.usage.completion_tokens >= seen:
            return attempt.usage
        return Usage(attempt.usage.prompt_tokens, seen)
    if not attempt.is_sent or attempt.status >= 400:
        return NOT_USED
    if attempt.events:
        return Usage(need.prompt_tokens, max(1, attempt.events - 1), is_reported=False)
    if not attempt.outcome.may_still_run:
        return NOT_USED
    return Usage(need.prompt_tokens, 0, is_reported=False) if attempt.is_countable else None


def fault_of(call: Call, attempt: Attempt, attempts: int) -> Fault | None:
    """What the client is told instead of an answer; `None` where the attempt has one that it should get."""
    outcome, status = attempt.outcome, attempt.status
    if outcome.ending is COMPLETE and 200 <= status < 300:
        return None
    if outcome.ending is COMPLETE and status in FULL_STATUS:
        return Fault(
            429,
            "pod_capacity",
            "The pods that serve this model take no more requests now. Come back after the time given.",
            retry_after_seconds=outcome.retry_after_seconds or 1.0,
        )
    if outcome.ending is COMPLETE and status == 501:
        return invalid_request(
            f"The pods of {call.model} do not serve {_WORDS[call.kind]}. Use another model.", "model"
        )
    if outcome.ending is COMPLETE and _is_the_client_s(status):
        return _as_the_pod_says(status, attempt.body)
    if attempt.has_emitted:
        said = "The pod's stream broke after it had begun"
        return Fault(502, "pod_failed", f"{said} ({_ending(outcome)}): what came before this is not the whole answer.")
    return Fault(
        502, "pod_failed", f"No pod could answer: the last of {attempts} attempts ended with {_ending(outcome)}."
    )


def late(call: Call) -> Fault:
    """The client's own deadline has passed."""
    waited_ms = round(((call.deadline_at or call.arrived_at) - call.arrived_at) * 1000)
    return Fault(504, "deadline_exceeded", f"No answer within the {waited_ms} ms that x-penstock-deadline-ms allows.")


def draining() -> Fault:
    """The gateway ends before the answer does."""
    return Fault(
        503, "draining", "The gateway is being stopped and could not wait for this answer. Send the call again."
    )


def _is_the_client_s(status: int) -> bool:
    """Whether a pod's status speaks of what the client sent; 401, 403, 404, 405 and 408 speak of what we did."""
    return 400 <= status < 500 and status not in {401, 403, 404, 405, 408}


def _ending(outcome: Outcome) -> str:
    if outcome.ending is COMPLETE:
        return f"status {outcome.status}"
    return str(outcome.ending.value).replace("_", " ")


def _as_the_pod_says(status: int, body: bytes) -> Fault:
    """The pod's own message, whatever form its error has: OpenAI's, or vLLM's older flat one."""
    try:
        told: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        told = None
    error = told.get("error", told) if isinstance(told, dict) else None
    if not isinstance(error, dict):
        return Fault(status, "invalid_request", f"The pod refused the call with status {status}.")
    message, param = error.get("message"), error.get("param")
    text = message if isinstance(message, str) and message else f"The pod refused the call with status {status}."
    is_too_long = error.get("type") == _TOO_LONG_TYPE or _TOO_LONG_WORDS in text
    code = "context_length_exceeded" if is_too_long else "invalid_request"
    return Fault(status, code, text, param if isinstance(param, str) else None)
