"""Small scripts for single questions: one model, few pods, few tenants, and one thing that goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from tenancy.policy import Budget, Key, Model, Pod, Policy, QueueSettings, ServedModel, StreamSettings, Tenant
from tests.simulation.model_pod import BLOCK_TOKENS, Conduct, Size
from tests.simulation.network import Weather
from tests.simulation.world import Guest, Outage, Script

STILL = Weather(most_steps=1, splits=0.0, connect_steps=0)


def scene(
    guests: Sequence[Guest],
    *,
    concurrency: Mapping[str, int],
    conducts: Mapping[str, Conduct] | None = None,
    pods: int = 1,
    slots: int = 8,
    weather: Weather = STILL,
    outages: Sequence[Outage] = (),
    streams: StreamSettings | None = None,
) -> Script:
    """Tenants with these budgets of concurrency, on `pods` alike; `conducts` by a call's id (`tenant/key/number`)."""
    sizes = {f"pod-{number}": Size(slots, 1000, 64) for number in range(pods)}
    policy = Policy(
        models={"small": Model("small", context_tokens=2048, kv_bytes_per_token=64)},
        pods={
            name: Pod(
                name,
                devices=(name,),
                models=(ServedModel("small", "small"),),
                engine="simulator",
                url=f"http://{name}",
                kv_memory_bytes=size.blocks * BLOCK_TOKENS * size.bytes_a_token,
                concurrency=size.slots,
            )
            for name, size in sizes.items()
        },
        tenants={
            name: Tenant(name, keys=(Key("0" * 64, "main"),), budget=Budget(concurrency=calls))
            for name, calls in concurrency.items()
        },
        queue=QueueSettings(timeout_seconds=5.0),
        streams=streams
        or StreamSettings(connect_timeout_seconds=1.0, first_byte_timeout_seconds=2.0, stall_timeout_seconds=1.0),
    )
    known = conducts or {}

    def conduct(_random: Random, _pod: str, call: str) -> Conduct:
        return known.get(call, Conduct())

    return Script(policy, sizes, tuple(guests), tuple(outages), conduct, weather=weather)


def guest(at: float, tenant: str = "acme", *, length: int = 8, streamed: bool = True) -> Guest:
    return Guest(at, tenant, "main", "small", length=length, output_tokens=length, streamed=streamed)
