from __future__ import annotations

import json

import pytest

from gateway.stream.usage import has_usage, usage_of, without_usage
from tenancy.call import Usage


@pytest.mark.parametrize(
    ("data", "usage", "says_nothing_else"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}', Usage(3, 4), True),
        (b'{"choices":[{"index":0}],"usage":{"prompt_tokens":3,"completion_tokens":4}}', Usage(3, 4), False),
        (b'{"choices":[],"usage":null}', None, False),
        (b'{"choices":[]}', None, False),
        (b'{"data":[],"usage":{"prompt_tokens":9,"total_tokens":9}}', Usage(9, 0), False),
        (b"[DONE]", None, False),
        (b'{"usage":"much"}', None, False),
        (b"[" * 100_000, None, False),
    ],
)
def test_usage_is_read_where_it_is(data: bytes, usage: Usage | None, says_nothing_else: bool) -> None:
    assert usage_of(data) == (usage, says_nothing_else)


def test_a_null_usage_is_no_usage() -> None:
    assert not has_usage(b'data: {"usage":null,"choices":[]}\n\n')
    assert not has_usage(b'data: {"usage" : null}\n\n')
    assert has_usage(b'data: {"usage":null}\n\ndata: {"usage":{"prompt_tokens":1}}\n\n')


def test_without_usage_keeps_all_else() -> None:
    assert json.loads(without_usage(b'{"id":"x","usage":{"prompt_tokens":1},"choices":[{"a":1.50}]}')) == {
        "id": "x",
        "choices": [{"a": 1.5}],
    }
