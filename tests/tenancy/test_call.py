from __future__ import annotations

from tenancy.call import Call, Kind
from tenancy.policy import Key, Tenant


def test_a_call_is_shown_without_what_only_the_client_may_know() -> None:
    tenant = Tenant("acme", (Key("0" * 64, "ci"),))
    body, headers = {"messages": b"a secret"}, {b"authorization": b"a secret"}
    call = Call("call-1", tenant, tenant.keys[0], Kind.CHAT, "tiny", 0.0, body=body, headers=headers)
    assert repr(call) == "<Call call-1 of acme for tiny>"


def test_calls_are_told_apart_by_what_they_are_not_by_what_they_hold() -> None:
    tenant = Tenant("acme", (Key("0" * 64, "ci"),))
    one, other = (Call("call-1", tenant, tenant.keys[0], Kind.CHAT, "tiny", 0.0) for _ in range(2))
    assert one in [one]
    assert one != other
    assert len({one, other}) == 2
