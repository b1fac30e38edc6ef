"""Calls that never were, for tests of what is written of them."""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.messages import Call

STARTED = 1_766_666_666.25


def a_call(**changes: Any) -> Call:
    """Due at 1 s, sent a quarter of a second later, first token at 2 s, 5 tokens by 4 s, over at 4.5 s."""
    call = Call(
        scheduled=1.0,
        sent=1.25,
        first=2.0,
        last=4.0,
        ended=4.5,
        input=16,
        output=8,
        events=4,
        prompt_tokens=17,
        completion_tokens=5,
        status=200,
        code="",
        longest_gap=1.0,
        gap_count=3,
        is_reused=True,
        request_id="chatcmpl-1",
        gaps=[0.5, 0.5, 1.0],
    )
    return msgspec.structs.replace(call, **changes)


def a_refused_call(**changes: Any) -> Call:
    """Answered 429 at once."""
    refused: dict[str, Any] = {
        "first": None,
        "last": None,
        "ended": 1.5,
        "events": 0,
        "prompt_tokens": -1,
        "completion_tokens": -1,
        "status": 429,
        "code": "429 token_rate",
        "longest_gap": 0.0,
        "gap_count": 0,
        "request_id": "",
        "gaps": [],
    }
    return a_call(**{**refused, **changes})


def a_cancelled_call(**changes: Any) -> Call:
    """Left after two events."""
    left: dict[str, Any] = {
        "last": 2.5,
        "ended": 2.75,
        "events": 2,
        "prompt_tokens": -1,
        "completion_tokens": -1,
        "code": "cancelled",
        "gaps": [0.5],
    }
    return a_call(**{**left, **changes})
