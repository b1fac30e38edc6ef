"""The only HTTP form of a refusal or a fault: status, OpenAI's error object, and when to come back.

Policy speaks of refusals, wires of outcomes, parsing of faults; what a client reads of them is made here, so that one
code has one status and one shape, in an answer of its own as in the middle of a stream. `STATUSES` is the whole list of
codes; what causes each and what helps stands in docs/errors.md, which is tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from tenancy.refusal import Code, Refusal

STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "invalid_request": 400,
        Code.CONTEXT_LENGTH_EXCEEDED.value: 400,
        Code.EXCEEDS_BUDGET.value: 400,
        "invalid_api_key": 401,
        "model_not_allowed": 403,
        "model_not_found": 404,
        "not_found": 404,
        "method_not_allowed": 405,
        "request_timeout": 408,
        "request_too_large": 413,
        Code.REQUEST_RATE.value: 429,
        Code.TOKEN_RATE.value: 429,
        Code.CONCURRENCY_BUDGET.value: 429,
        Code.MEMORY_BUDGET.value: 429,
        Code.POD_CAPACITY.value: 429,
        Code.QUEUE_FULL.value: 429,
        Code.QUEUE_TIMEOUT.value: 429,
        "headers_too_large": 431,
        "internal_error": 500,
        "pod_failed": 502,
        Code.NO_POD.value: 503,
        Code.DRAINING.value: 503,
        Code.DEADLINE_EXCEEDED.value: 504,
    }
)
"""The status of every error code that Penstock itself answers with."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_NEVER_AGAIN = frozenset({502, 504})  # the gateway has tried what may be tried, or the client's own time is over
_COME_BACK = frozenset({429, 503})
_COME_BACK_SECONDS = 1.0  # where nobody could say when

_encode = msgspec.json.Encoder().encode


class Fault(msgspec.Struct, frozen=True):
    """What a client is told instead of an answer.

    `message` says what was wrong and what helps, in one or two sentences. `param` names the field or header at fault.
    `numbers` are those of the account that refused. `retry_after_seconds` is when coming back may succeed; a 429 or 503
    that does not know says one second. `is_retried` says that the gateway has used retries of its own.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_seconds: float | None = None
    is_retried: bool = False
    numbers: Mapping[str, str | float] | None = None

    def body(self) -> bytes:
        """OpenAI's error object, the numbers under `"penstock"`."""
        return _encode({"error": self._object(dict(self.numbers or {}), self._retry_after_ms())})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of an answer with `body()`; its length and `x-request-id` are the sender's to add."""
        headers = [(b"content-type", b"application/json")]
        milliseconds = self._retry_after_ms()
        if milliseconds is not None:
            headers.append((b"retry-after", b"%d" % math.ceil(milliseconds / 1000)))
            headers.append((b"retry-after-ms", b"%d" % milliseconds))
        if self.is_retried or self.status in _NEVER_AGAIN:
            headers.append((b"x-should-retry", b"false"))
        return headers

    def event(self) -> bytes:
        """The same as one event of a stream whose head is out, with the status that the head could not say."""
        return (
            b"data: "
            + _encode({"error": self._object({"status": self.status, **(self.numbers or {})}, self._retry_after_ms())})
            + b"\n\n"
        )

    def _object(self, numbers: dict[str, str | float], retry_after_ms: int | None) -> dict[str, object]:
        if retry_after_ms is not None:
            numbers["retry_after_ms"] = retry_after_ms
        kind = _TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        told: dict[str, object] = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        if numbers:
            told["penstock"] = numbers
        return told

    def _retry_after_ms(self) -> int | None:
        seconds = self.retry_after_seconds
        if self.status not in _COME_BACK:
            return None
        if seconds is None or not math.isfinite(seconds):
            seconds = _COME_BACK_SECONDS
        return max(1, math.ceil(seconds * 1000))


def from_refusal(refusal: Refusal) -> Fault:
    """A refusal as clients get it: its own words, and the account, unit, limit, used and asked as numbers."""
    code = refusal.code._value_  # not `.value`, which is a call in Python
    numbers: dict[str, str | float] = {"account": refusal.account}
    if refusal.unit:
        numbers["unit"] = refusal.unit
    for name, amount in (("limit", refusal.limit), ("used", refusal.used), ("asked", refusal.asked)):
        if type(amount) is int:  # as nearly all are
            numbers[name] = amount
        elif amount is not None and math.isfinite(amount):
            numbers[name] = int(amount) if amount == int(amount) else amount
    return Fault(STATUSES[code], code, refusal.message, None, refusal.retry_after_seconds, False, numbers)


def invalid_request(message: str, param: str | None = None) -> Fault:
    """A 400 that names the field or header at fault."""
    return Fault(400, "invalid_request", message, param)


def model_not_found(model: str) -> Fault:
    """The answer for a model that is not there, and for one that the tenant may not use: it must not tell which."""
    return Fault(
        404,
        "model_not_found",
        f"The model {model[:200]!r} does not exist or is not yours to use. GET /v1/models lists those that are.",
        "model",
    )


def model_not_allowed(model: str) -> Fault:
    """The tenant may use this model, but not with this key."""
    return Fault(
        403,
        "model_not_allowed",
        f"This key may not use the model {model[:200]!r}; other keys of its tenant may. See GET /v1/models.",
        "model",
    )


def not_found(method: str, path: str) -> Fault:
    """There is nothing at this path."""
    return Fault(404, "not_found", f"There is nothing at {path[:200]} ({method}). The base URL ends in /v1.")


def method_not_allowed(method: str, path: str, allowed: str) -> Fault:
    """There is something at this path, but not for this method."""
    return Fault(405, "method_not_allowed", f"{path[:200]} does not take {method}, but {allowed}.")


INVALID_API_KEY = Fault(
    401,
    "invalid_api_key",
    "No valid API key. Send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'. It may be mistyped, or expired.",
)
INTERNAL_ERROR = Fault(
    500, "internal_error", "The gateway failed at this request through a fault of its own. Its log has the request id."
)
NO_UPGRADE = invalid_request(
    'This server speaks HTTP/1.1 alone: no WebSocket and no CONNECT. For a stream, POST with "stream": true.', "upgrade"
)


def malformed(reason: str) -> Fault:
    """What came is not HTTP. `reason` is the parser's, and never holds what the client sent."""
    return invalid_request(
        f"This is not an HTTP/1.1 request ({reason}). Look at what lies between you and the gateway."
    )


def headers_too_large(limit_bytes: int) -> Fault:
    """The head, or the trailers of a body, are over their bound."""
    return Fault(
        431,
        "headers_too_large",
        f"The headers are longer than the {limit_bytes} bytes of server.headBytes. Send fewer.",
    )


def request_too_large(limit_bytes: int) -> Fault:
    """The body is over its bound, as declared or as counted."""
    return Fault(
        413,
        "request_too_large",
        f"The body is longer than the {limit_bytes} bytes of server.bodyBytes. Send a shorter one.",
    )


def request_timeout(part: str, seconds: float) -> Fault:
    """The request's `part`, head or body, came too slowly."""
    return Fault(
        408,
        "request_timeout",
        f"The request's {part} did not arrive whole within {seconds:g} s. Send it again, faster.",
    )
