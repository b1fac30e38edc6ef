"""What in the file cannot hold, will not always hold, or is good to know: every finding with its place.

A finding is an error where something that the file says can never come true, a warning where it sometimes will not or
nobody can tell, and a note where nothing is wrong. The sums are made elsewhere; what a call may ask is asked of the
ledger's own accounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from tenancy.accounts import Account, Host, Owner
from tenancy.config.faults import Path, listed, place_of
from tenancy.need import TOKENS_A_MESSAGE, Need
from tenancy.plan.sums import DevicePlan, PodPlan, Sums, TenantPlan
from tenancy.policy import Key, Model, Pod, Policy, Tenant
from tenancy.units import format_bytes, format_duration

_SHORTEST_PROMPT = TOKENS_A_MESSAGE + 1
_DAY = 86_400.0
_BUILT_IN_MODEL = "penstock-tiny"  # a name that stands for a file


class Severity(Enum):
    """How bad a finding is, worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the file's figures say about each other, and where in the file that is."""

    severity: Severity
    path: Path
    text: str

    @property
    def place(self) -> str:
        return place_of(self.path)


def contradictions(sums: Sums, now_epoch: float | None) -> list[Finding]:
    """Every finding, errors first, otherwise in the file's order; expiry is looked at where `now_epoch` is given."""
    findings: list[Finding] = []
    for device in sums.devices:
        findings += _on_device(sums, device)
    for pod in sums.pods:
        findings += _on_memory(sums, pod)
        findings += _on_capacity(sums, pod)
    findings += _on_servers(sums)
    findings += _on_models(sums)
    findings += _on_guarantees(sums)
    for tenant in sums.tenants:
        findings += _on_serving(sums, tenant)
        findings += _on_dedicated(sums, tenant)
        findings += _on_default_call(sums, tenant)
        findings += _on_keys(tenant, now_epoch)
        findings += _on_queue(sums, tenant)
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def missing_files(policy: Policy, exists: Callable[[str], bool]) -> Iterator[Finding]:
    """Every file that the policy names and that is not there: models of pods that we run, certificate and key."""
    named: list[tuple[Path, str | None]] = [
        (("pods", index, "model"), pod.model_file)
        for index, pod in enumerate(policy.pods.values())
        if pod.model_file != _BUILT_IN_MODEL
    ]
    named += [(("server", "tls", "cert"), policy.server.tls_cert), (("server", "tls", "key"), policy.server.tls_key)]
    for path, file in named:
        if file is not None and not exists(file):
            text = f"there is no file {file}"
            if not file.startswith("/"):
                text += "; a path that does not begin with / is looked for in the directory where Penstock is started"
            if path[-1] == "model":
                text += f"; `model: {_BUILT_IN_MODEL}` comes with Penstock"
            yield Finding(Severity.ERROR, path, text)


# devices


def _on_device(sums: Sums, planned: DevicePlan) -> Iterator[Finding]:
    device, path, memory = planned.device, planned.path, planned.memory_bytes
    if not planned.is_listed:
        return  # nothing is known of a pod's own device, and nobody shares it
    yield from _on_inventory(sums, planned)
    if not planned.charges:
        yield Finding(Severity.NOTE, path, f"no pod is on {device.name}")
    if memory is None:
        yield Finding(Severity.NOTE, path, f"the memory of {device.name} is not known: nothing is added up there")
        return
    if device.overhead_bytes >= memory:
        yield Finding(Severity.ERROR, (*path, "overhead"), f"the overhead of one process alone fills {device.name}")
    for charge in planned.charges:
        if charge.limit_bytes is None:
            text = f"nothing says how much of {device.name} {charge.pod} takes (`memory`): it counts as none"
            yield Finding(Severity.WARNING, _path_of(sums, charge.pod), text)
    if (planned.left_bytes or 0) < 0:
        yield Finding(Severity.ERROR, path, _over_full(sums, planned, memory))


def _over_full(sums: Sums, planned: DevicePlan, memory: int) -> str:
    name, excess = planned.device.name, format_bytes(-(planned.left_bytes or 0))
    taken = format_bytes(sum(charge.total_bytes for charge in planned.charges))
    parts = listed([f"{charge.pod} {format_bytes(charge.total_bytes)}" for charge in planned.charges])
    text = f"{name} is over-full by {excess}: {parts} with overhead, {taken} of {format_bytes(memory)}"
    for charge in planned.charges:
        profile = sums.policy.profile_of(sums.policy.pods[charge.pod].profile)
        if not profile.gpu_share and len(planned.charges) > 1:
            text += f"; {charge.pod} takes all of it, because its profile {profile.name} does not share"
    return text


def _on_inventory(sums: Sums, planned: DevicePlan) -> Iterator[Finding]:
    device = planned.device
    if sums.inventory is None or device.uuid is None:
        return
    found = sums.inventory.memory_bytes.get(device.uuid)
    if found is None:
        known = listed(list(sums.inventory.memory_bytes)) or "none"
        yield Finding(Severity.ERROR, (*planned.path, "uuid"), f"there is no GPU {device.uuid}; there is: {known}")
    elif device.memory_bytes is not None and device.memory_bytes > found:
        text = f"{device.name} has {format_bytes(found)}, not {format_bytes(device.memory_bytes)}"
        yield Finding(Severity.ERROR, (*planned.path, "memory"), text)


# pods


def _on_memory(sums: Sums, planned: PodPlan) -> Iterator[Finding]:
    pod, path = planned.pod, planned.path
    mps, declared = pod.mps.memory_bytes, pod.memory_bytes
    limit, where = (declared, (*path, "memory")) if mps is None else (mps, (*path, "mps", "memory"))
    if mps is not None and declared is not None and mps != declared:
        text = f"`mps.memory` says {format_bytes(mps)}, which counts, and `memory` {format_bytes(declared)}"
        yield Finding(Severity.WARNING, (*path, "memory"), text)
    if limit is None:
        return
    profile = sums.policy.profile_of(pod.profile)
    if profile.max_memory_bytes is not None and limit > profile.max_memory_bytes:
        most = format_bytes(profile.max_memory_bytes)
        text = f"{pod.name} takes {format_bytes(limit)}, and its profile {profile.name} allows {most}"
        yield Finding(Severity.ERROR, where, text)
    kv_bytes, devices = pod.kv_memory_bytes, len(pod.devices)
    if kv_bytes is not None and kv_bytes > limit * devices:
        room = format_bytes(limit) if devices == 1 else f"{devices} × {format_bytes(limit)}"
        text = f"{pod.name} cannot have {format_bytes(kv_bytes)} of KV memory in {room}"
        yield Finding(Severity.ERROR, (*path, "kvMemory"), text)


def _on_capacity(sums: Sums, planned: PodPlan) -> Iterator[Finding]:
    """What limits the calls on a pod where its KV memory does not, and whose memory they are not charged to."""
    pod, path, may_tell = planned.pod, planned.path, planned.tells_kv is not False
    models = listed(list(planned.unweighed))
    if planned.kv_bytes is None and (models or not may_tell):
        told = "its KV size is told by the pod when it runs, but in tokens: " if planned.tells_kv else ""
        why = f"{told}nothing says what a token of {models} weighs" if may_tell else "its KV size is not known"
        remedy = "`kvBytesPerToken`" if may_tell else "`kvMemory`"
        if planned.slots is not None:
            text = f"{pod.name} is limited by {planned.slots} calls at once alone: {why} ({remedy})"
            yield Finding(Severity.NOTE, path, text)
        elif pod.engine == "llama.cpp":  # it tells its slots
            yield Finding(Severity.NOTE, path, f"{pod.name} is limited by its slots alone: {why} ({remedy})")
        else:
            key = "slots" if pod.url is None else "concurrency"
            text = f"nothing limits {pod.name}: {why} ({remedy}), and it has no `{key}`"
            yield Finding(Severity.WARNING, path, text)
    budgeted = [guarantee.tenant for guarantee in planned.guarantees]
    if models and budgeted:
        follows = planned.kv_bytes is not None and may_tell
        since = f"until {pod.name} has told its KV size in tokens" if follows else "without `kvBytesPerToken`"
        text = f"{since}, calls for {models} on {pod.name} are not charged to the memory of {listed(budgeted)}"
        yield Finding(Severity.NOTE if follows else Severity.WARNING, (*path, "models"), text)


def _on_servers(sums: Sums) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for planned in sums.pods:
        pod = planned.pod
        if not planned.tenants:
            yield Finding(Severity.WARNING, planned.path, f"{pod.name} serves no tenant")
        if pod.url is not None and seen.setdefault(pod.url, pod.name) != pod.name:
            text = f"{pod.name} is the same server as {seen[pod.url]}, so what it holds is counted twice"
            yield Finding(Severity.WARNING, (*planned.path, "url"), text)


def _on_models(sums: Sums) -> Iterator[Finding]:
    served = {model.name for pod in sums.policy.pods.values() for model in pod.models}
    for index, name in enumerate(sums.policy.models):
        if name not in served:
            yield Finding(Severity.ERROR, ("models", index), f"no pod serves {name}")


# guarantees


def _on_guarantees(sums: Sums) -> Iterator[Finding]:
    """Guarantees against KV memory, summed over pods that serve the same tenants with the same models: any will do."""
    groups: dict[object, list[PodPlan]] = {}
    for planned in sums.pods:
        served = frozenset(item for item in sums.served[planned.pod.name].items() if item[1])
        groups.setdefault(served, []).append(planned)
    for group in groups.values():
        capacities = [planned.kv_bytes for planned in group]
        known = [capacity for capacity in capacities if capacity is not None]
        if len(known) == len(group) and group[0].guarantees:
            yield from _on_group(sums, group, known)


def _on_group(sums: Sums, group: Sequence[PodPlan], capacities: Sequence[int]) -> Iterator[Finding]:
    promised = _promised(sums, group)
    block = _block_bytes([sums.hosts[planned.pod.name] for planned in group])
    asked = sum(size // block for size in promised.values())
    held = sum(capacity // block for capacity in capacities)
    if asked <= held:
        return
    pods = listed([planned.pod.name for planned in group])
    sizes = [f"{name} {format_bytes(size)}" for name, size in promised.items()]
    total, room = format_bytes(sum(promised.values())), format_bytes(sum(capacities))
    text = f"{pods} hold{'s' if len(group) == 1 else ''} {room}, and {total} of it is guaranteed: {listed(sizes)}"
    yield Finding(Severity.WARNING, group[0].path, f"{text}; honoured in the queue's order, not at once")


def _promised(sums: Sums, group: Sequence[PodPlan]) -> dict[str, int]:
    """What each tenant may count on over all pods of a group; memory that is given per device adds up over devices."""
    each: dict[str, list[int]] = {}
    for planned in group:
        for guarantee in planned.guarantees:
            each.setdefault(guarantee.tenant, []).append(guarantee.guarantee_bytes)
    devices = dict.fromkeys(device for planned in group for device in planned.pod.devices)
    promised = {}
    for name, sizes in each.items():
        by_device = sums.policy.tenants[name].budget.memory_by_device
        in_all = max(sizes) if by_device is None else sum(by_device.get(device, 0) for device in devices)
        promised[name] = min(sum(sizes), in_all)
    return promised


def _block_bytes(hosts: Sequence[Host]) -> int:
    """What a block of KV memory weighs, if it is the same for all models of these pods; else one byte."""
    weights = {(*weight, host.block_tokens) for host in hosts for weight in host.weights.values()}
    if len(weights) != 1:
        return 1
    bytes_, tokens, block_tokens = next(iter(weights))
    return max(1, bytes_ * block_tokens // tokens)


# tenants


def _on_serving(sums: Sums, planned: TenantPlan) -> Iterator[Finding]:
    tenant, path = planned.tenant, planned.path
    may_use = [name for name in sums.policy.models if sums.policy.may_use(tenant, name)]
    lacking = [name for name in may_use if not any(name in served[tenant.name] for served in sums.served.values())]
    if not planned.pods:
        why = _why_not(sums, tenant, may_use)
        yield Finding(Severity.ERROR, path, f"no pod can serve {tenant.name}: {why}")
    elif lacking and tenant.models is not None:
        why = _why_not(sums, tenant, lacking)
        text = f"no pod serves {tenant.name} with {listed(lacking)}: {why}"
        yield Finding(Severity.WARNING, (*path, "models"), text)


def _why_not(sums: Sums, tenant: Tenant, models: Sequence[str]) -> str:
    pods = [pod for pod in sums.policy.pods.values() if any(served.name in models for served in pod.models)]
    reasons = [f"{pod.name} {_refuses(sums, pod, tenant)}" for pod in pods]
    return listed(reasons, 3) or f"no pod has {listed(list(models))}"


def _refuses(sums: Sums, pod: Pod, tenant: Tenant) -> str:
    if pod.tenants is not None and tenant.name not in pod.tenants:
        return f"serves {listed(sorted(pod.tenants))} alone"
    if pod.profiles is not None and (tenant.profile is None or tenant.profile not in pod.profiles):
        return f"serves profiles {listed(sorted(pod.profiles))} alone"
    shared = listed(list(pod.devices))
    wanted = f"profile {tenant.profile} (gpuShare: false) wants `tenants: [{tenant.name}]` on all pods there"
    return f"is on {shared}, and {wanted}"


def _on_dedicated(sums: Sums, planned: TenantPlan) -> Iterator[Finding]:
    """Pods of a tenant's own charge their whole memory to its budget, and are not taken up beyond it."""
    tenant, ratio = planned.tenant, sums.policy.profile_of(planned.tenant.profile).overcommit_ratio
    own = [pod.name for pod in sums.policy.pods.values() if pod.owner == tenant.name]
    by_device = tenant.budget.memory_by_device
    devices: list[str | None] = [None]
    if by_device is not None:
        devices = list(sums.policy.devices)
    for device in devices if own else ():
        budget = tenant.budget.memory_bytes if by_device is None or device is None else by_device.get(device, 0)
        taken = sums.dedicated_bytes(tenant, device)
        if budget is None or taken <= budget:
            continue
        there = "" if device is None else f" on {device}"
        text = f"{listed(own)} charge {format_bytes(taken)}{there} to {tenant.name}, which has {format_bytes(budget)}"
        path: Path = (*planned.path, "budget", "memory")
        if taken <= budget * ratio:
            yield Finding(Severity.WARNING, path, f"{text}: the rest is lent")
        else:
            yield Finding(Severity.ERROR, path, f"{text}: they cannot all run")


def _on_default_call(sums: Sums, planned: TenantPlan) -> Iterator[Finding]:
    """A call that states no maximum must fit: the tenant's memory and rate, and some pod."""
    tenant, path = planned.tenant, planned.path
    payers: list[tuple[Path, Owner]] = [((*path, "budget", "memory"), sums.ledger.tenants[tenant.name])]
    for index, key in enumerate(tenant.keys):
        if key.budget.memory_bytes is not None or key.budget.memory_by_device is not None:
            payers.append(((*path, "keys", index, "memory"), sums.ledger.keys[tenant.name, key.name]))
    largest = 0
    for model in sums.policy.models.values():
        hosts = [sums.hosts[pod] for pod in planned.pods if model.name in sums.served[pod][tenant.name]]
        if not hosts:
            continue
        need = _default_need(tenant, model)
        largest = max(largest, need.tokens)
        call = f"a call of {tenant.name} for {model.name} that states no maximum ({need.tokens:,} tokens)"
        weighed = [(host, host.weigh(need, model.name)) for host in hosts]
        if not any(host.could_hold(bytes_) for host, bytes_ in weighed):
            text = f"{call} takes {format_bytes(weighed[0][1])}, more than any pod holds"
            yield Finding(Severity.ERROR, (*path, "defaultMaxTokens"), text)
        for where, owner in payers:
            refusals = [(bytes_, owner.never_holds(bytes_, host)) for host, bytes_ in weighed]
            if all(account is not None for _, account in refusals):
                yield Finding(Severity.ERROR, where, f"{call} {_too_much(*refusals[0])}")
    rate = tenant.budget.tokens_per_minute
    if rate is not None and largest > rate:
        text = f"a call of {tenant.name} that states no maximum is {largest:,} tokens, and it has {rate:,} a minute"
        yield Finding(Severity.ERROR, (*path, "budget", "tokensPerMinute"), text)


def _too_much(bytes_: int, account: Account | None) -> str:
    assert account is not None
    return f"takes {format_bytes(bytes_)}, and {account.name} may hold {format_bytes(account.memory_limit or 0)}"


def _default_need(tenant: Tenant, model: Model) -> Need:
    """What the shortest call asks for that states no maximum."""
    output = tenant.default_max_tokens
    if model.context_tokens is not None:
        output = max(1, min(output, model.context_tokens - _SHORTEST_PROMPT))
    return Need(_SHORTEST_PROMPT, output, output)


def _on_keys(planned: TenantPlan, now_epoch: float | None) -> Iterator[Finding]:
    tenant = planned.tenant
    if not tenant.keys:
        text = f"{tenant.name} has no key, so nobody can call: `penstock keys new {tenant.name}` makes one"
        yield Finding(Severity.WARNING, planned.path, text)
    for index, key in enumerate(tenant.keys):
        path: Path = (*planned.path, "keys", index)
        if now_epoch is not None and key.expires_at is not None and key.expires_at <= now_epoch:
            days = max(1, round((now_epoch - key.expires_at) / _DAY))
            text = f"key {key.name} of {tenant.name} expired {days} day{'s' if days > 1 else ''} ago"
            yield Finding(Severity.WARNING, path, text)
        for name, own, of_tenant in _limits(key, tenant):
            if own is not None and of_tenant is not None and own > of_tenant:
                text = (
                    f"key {key.name} has a {name} of {own:,}, and {tenant.name} one of {of_tenant:,}, which holds first"
                )
                yield Finding(Severity.NOTE, (*path, name), text)


def _limits(key: Key, tenant: Tenant) -> Iterator[tuple[str, int | None, int | None]]:
    """The limits that a key and its tenant both may have."""
    own, of_tenant = key.budget, tenant.budget
    yield "memory", own.memory_bytes, of_tenant.memory_bytes
    yield "concurrency", own.concurrency, of_tenant.concurrency
    yield "requestsPerMinute", own.requests_per_minute, of_tenant.requests_per_minute
    yield "tokensPerMinute", own.tokens_per_minute, of_tenant.tokens_per_minute


def _on_queue(sums: Sums, planned: TenantPlan) -> Iterator[Finding]:
    tenant, path, of_all = planned.tenant, (*planned.path, "queue"), sums.policy.queue
    if tenant.queue_depth is not None and tenant.queue_depth > of_all.depth:
        text = f"{tenant.name} may queue {tenant.queue_depth:,} calls, and the queue of all holds {of_all.depth:,}"
        yield Finding(Severity.NOTE, (*path, "depth"), text)
    if tenant.queue_timeout_seconds is not None and tenant.queue_timeout_seconds > of_all.timeout_seconds:
        waits, most = format_duration(tenant.queue_timeout_seconds), format_duration(of_all.timeout_seconds)
        text = f"{tenant.name} may wait {waits}, but nobody waits longer than the {most} of `queue.timeout`"
        yield Finding(Severity.NOTE, (*path, "timeout"), text)


def _path_of(sums: Sums, pod: str) -> Path:
    return next(planned.path for planned in sums.pods if planned.pod.name == pod)
