"""The schema's keys become the facts of a `Policy`: aliases resolved, implied devices and models made.

The last step of loading, for files without faults. Nothing is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from tenancy.config import schema
from tenancy.policy import (
    AdminSettings,
    BreakerSettings,
    Budget,
    CacheSettings,
    Device,
    Key,
    LogSettings,
    Model,
    Mps,
    Pod,
    Policy,
    Profile,
    QueueSettings,
    RetrySettings,
    ServedModel,
    ServerSettings,
    StreamSettings,
    Tenant,
)

ADMIN_TOKEN = "PENSTOCK_ADMIN_TOKEN"
"""The variable that holds the admin token where the file says none."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def make_policy(file: schema.FileKeys, env: Mapping[str, str]) -> Policy:
    """The facts of a file in which everything is right."""
    models = _models(file)
    canonical = {name: model.name for model in models for name in (model.name, *model.aliases)}
    devices = [_device(keys) for keys in file.devices]
    devices += [Device(keys.name) for keys in file.pods if keys.device is None]
    return Policy(
        profiles=_by_name(_profile(keys) for keys in file.profiles),
        devices=_by_name(devices),
        models=_by_name(models),
        pods=_by_name(_pod(keys, canonical) for keys in file.pods),
        tenants=_by_name(_tenant(keys, canonical, file.cache) for keys in file.tenants),
        server=_server(file.server),
        admin=AdminSettings(file.admin.host, file.admin.port, file.admin.token or env.get(ADMIN_TOKEN) or None),
        queue=QueueSettings(
            depth=file.queue.depth,
            bytes_=file.queue.bytes,
            timeout_seconds=file.queue.timeout,
            bypass_seconds=file.queue.bypass,
            head_after_seconds=file.queue.head_after,
        ),
        retries=RetrySettings(
            attempts=file.retries.attempts,
            backoff_seconds=file.retries.backoff,
            factor=file.retries.factor,
            max_backoff_seconds=file.retries.max_backoff,
            jitter=file.retries.jitter,
            budget_ratio=file.retries.budget,
        ),
        breaker=BreakerSettings(
            failures=file.breaker.failures,
            rate=file.breaker.rate,
            window_seconds=file.breaker.window,
            minimum=file.breaker.minimum,
            open_for_seconds=file.breaker.open_for,
            eject_at_most=file.breaker.eject_at_most,
        ),
        streams=StreamSettings(
            connect_timeout_seconds=file.streams.connect_timeout,
            first_byte_timeout_seconds=file.streams.first_byte_timeout,
            stall_timeout_seconds=file.streams.stall_timeout,
            heartbeat_seconds=file.streams.heartbeat,
            keep_after_end_seconds=file.streams.keep_after_end,
            keep_bytes=file.streams.keep_bytes,
        ),
        cache=CacheSettings(file.cache.entries, file.cache.ttl, file.cache.bytes),
        logs=LogSettings(file.logs.level, file.logs.format),
    )


def _by_name(facts: Iterable[_N]) -> Mapping[str, _N]:
    return MappingProxyType({fact.name: fact for fact in facts})


def _profile(keys: schema.ProfileKeys) -> Profile:
    return Profile(
        name=keys.name,
        gpu_share=keys.gpu_share,
        max_memory_bytes=keys.max_memory,
        overcommit_ratio=keys.overcommit_ratio,
        priority=keys.priority,
        preemptible=keys.preemptible,
    )


def _device(keys: schema.DeviceKeys) -> Device:
    return Device(keys.name, uuid=keys.uuid, memory_bytes=keys.memory, overhead_bytes=keys.overhead)


def _models(file: schema.FileKeys) -> list[Model]:
    if file.models is None:
        return [Model(name) for name in dict.fromkeys(served.name for pod in file.pods for served in pod.models)]
    return [
        Model(
            name=keys.name,
            context_tokens=keys.context,
            kv_bytes_per_token=keys.kv_bytes_per_token,
            aliases=tuple(keys.aliases),
        )
        for keys in file.models
    ]


def _pod(keys: schema.PodKeys, canonical: Mapping[str, str]) -> Pod:
    mps = Mps() if keys.mps is None else Mps(memory_bytes=keys.mps.memory, threads_percent=keys.mps.threads)
    return Pod(
        name=keys.name,
        devices=keys.device or (keys.name,),
        models=tuple(ServedModel(canonical[served.name], served.served or served.name) for served in keys.models),
        profile=keys.profile,
        engine=keys.engine,
        url=keys.url,
        command=keys.command or (),
        env=MappingProxyType(dict(keys.env)),
        options=keys.options or (),
        model_file=keys.model,
        slots=keys.slots,
        mps=mps,
        api_key=keys.api_key,
        memory_bytes=keys.memory,
        kv_memory_bytes=keys.kv_memory,
        concurrency=keys.concurrency,
        continuation=keys.continuation,
        tenants=None if keys.tenants is None else frozenset(keys.tenants),
        profiles=None if keys.profiles is None else frozenset(keys.profiles),
    )


def _tenant(keys: schema.TenantKeys, canonical: Mapping[str, str], cache: schema.CacheKeys) -> Tenant:
    return Tenant(
        name=keys.name,
        keys=tuple(_key(key, canonical) for key in keys.keys),
        profile=keys.profile,
        models=_allowed(keys.models, canonical),
        budget=_budget(keys.budget),
        weight=keys.weight,
        default_max_tokens=keys.default_max_tokens,
        queue_depth=keys.queue.depth,
        queue_timeout_seconds=keys.queue.timeout,
        cache=None if keys.cache is None else _own_cache(keys.cache, cache),
    )


def _key(keys: schema.KeyKeys, canonical: Mapping[str, str]) -> Key:
    return Key(
        hash=keys.hash,
        name=keys.name or keys.hash[:8],
        models=_allowed(keys.models, canonical),
        budget=_budget(keys),
        expires_at=keys.expires,
    )


def _allowed(names: list[str] | None, canonical: Mapping[str, str]) -> frozenset[str] | None:
    return None if names is None else frozenset(canonical[name] for name in names)


def _budget(keys: schema.BudgetKeys) -> Budget:
    by_device = keys.memory if isinstance(keys.memory, dict) else None
    return Budget(
        memory_bytes=keys.memory if isinstance(keys.memory, int) else None,
        memory_by_device=None if by_device is None else MappingProxyType(dict(by_device)),
        concurrency=keys.concurrency,
        requests_per_minute=keys.requests_per_minute,
        tokens_per_minute=keys.tokens_per_minute,
    )


def _own_cache(own: schema.CacheOfTenantKeys, cache: schema.CacheKeys) -> CacheSettings:
    return CacheSettings(
        entries=cache.entries if own.entries is None else own.entries,
        ttl_seconds=cache.ttl if own.ttl is None else own.ttl,
        bytes_=cache.bytes if own.bytes is None else own.bytes,
    )


def _server(keys: schema.ServerKeys) -> ServerSettings:
    return ServerSettings(
        host=keys.host,
        port=keys.port,
        head_bytes=keys.head_bytes,
        body_bytes=keys.body_bytes,
        head_timeout_seconds=keys.head_timeout,
        body_timeout_seconds=keys.body_timeout,
        keep_alive_seconds=keys.keep_alive,
        drain_delay_seconds=keys.drain_delay,
        drain_timeout_seconds=keys.drain_timeout,
        tls_cert=None if keys.tls is None else keys.tls.cert,
        tls_key=None if keys.tls is None else keys.tls.key,
        cors_origins=tuple(keys.cors_origins),
    )
