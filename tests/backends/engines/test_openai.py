from __future__ import annotations

from typing import Any

from backends.engines.openai import OpenAi

ENGINE = OpenAi()


def test_it_gets_nothing_that_openai_does_not_know(make_call: Any, make_pod: Any, sent: Any) -> None:
    request = ENGINE.request(make_call({"messages": [], "cache_salt": "own", "priority": 1}), make_pod(), 64)
    assert sent(request) == {"messages": [], "model": "org/Tiny-1B", "max_tokens": 64}
    assert not request.as_stream
    assert dict(request.headers).keys() == {b"content-type", b"accept"}


def test_it_publishes_nothing() -> None:
    assert not ENGINE.probes
    assert ENGINE.read({}, 4.0).busy is None
