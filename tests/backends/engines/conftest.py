"""Calls and pods as the HTTP face and the file make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from backends.engines.engine import UpstreamRequest
from tenancy.call import Call, Kind
from tenancy.policy import Key, Pod, ServedModel, Tenant

MakeCall = Callable[..., Call]
MakePod = Callable[..., Pod]


@pytest.fixture
def make_call() -> MakeCall:
    """Makes the call that a client's JSON body means; keyword arguments are the call's other facts."""

    def make(body: Mapping[str, Any] | bytes, *, kind: Kind = Kind.CHAT, **facts: Any) -> Call:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        parsed = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        stated = [msgspec.json.decode(parsed[key]) for key in ("max_tokens", "max_completion_tokens") if key in parsed]
        facts.setdefault("output_tokens", max((value for value in stated if value is not None), default=None))
        facts.setdefault("streamed", bytes(parsed.get("stream", b"")) == b"true")
        tenant = facts.pop("tenant", "acme")
        return Call(
            id="req-1",
            tenant=Tenant(tenant),
            key=Key(hash="0" * 64, name="ci"),
            kind=kind,
            model="tiny",
            arrived_at=0.0,
            body=parsed,
            **facts,
        )

    return make


@pytest.fixture
def make_pod() -> MakePod:
    """Makes a pod that serves `tiny`, called `org/Tiny-1B` there."""

    def make(**facts: Any) -> Pod:
        return Pod("pod-0", ("gpu0",), (ServedModel("other", "x"), ServedModel("tiny", "org/Tiny-1B")), **facts)

    return make


@pytest.fixture
def sent() -> Callable[[UpstreamRequest], dict[str, Any]]:
    """The JSON object that a request carries."""

    def decode(request: UpstreamRequest) -> dict[str, Any]:
        body = msgspec.json.decode(request.body)
        assert isinstance(body, dict)
        return body

    return decode
