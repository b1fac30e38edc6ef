"""What the file's figures add up to: each device's pods, each pod's KV memory and guarantees, each tenant's pods.

Whether a sum is right is not said here: `contradictions` looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenancy.accounts import Capacity, memory_limit
from tenancy.config.faults import Path
from tenancy.ledger import Ledger
from tenancy.lending import limit_of
from tenancy.policy import Device, Pod, Policy, Tenant

_TELLS_ITS_KV_SIZE = frozenset({"vllm", "sglang", "llama.cpp", "simulator"})


@dataclass(frozen=True, slots=True)
class Inventory:
    """The GPUs that are really there: memory in bytes by UUID, less what the driver keeps for itself."""

    memory_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Charge:
    """What a pod takes of a device; `limit_bytes` of `None`: nobody said."""

    pod: str
    limit_bytes: int | None
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return (self.limit_bytes or 0) + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """A device, and what its pods take of it. `is_listed`: the file lists it, instead of its being a pod's own."""

    device: Device
    path: Path
    is_listed: bool
    memory_bytes: int | None
    charges: tuple[Charge, ...]

    @property
    def left_bytes(self) -> int | None:
        """What is left; negative where the device is over-full."""
        return None if self.memory_bytes is None else self.memory_bytes - sum(c.total_bytes for c in self.charges)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a tenant may count on at a pod, and up to what it may be lent there."""

    tenant: str
    guarantee_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod: its capacity, as far as it is known, and whose guarantees stand against it.

    `tells_kv`: its engine tells its KV size in tokens once it runs (`None`: its engine is not known yet). `unweighed`
    are the models of which nothing says yet what a token weighs.
    """

    pod: Pod
    path: Path
    kv_bytes: int | None
    kv_tokens: int | None
    slots: int | None
    tells_kv: bool | None
    unweighed: tuple[str, ...]
    tenants: tuple[str, ...]
    guarantees: tuple[Guarantee, ...]


@dataclass(frozen=True, slots=True)
class TenantPlan:
    """A tenant: what it is guaranteed, up to what it may be lent, and the pods that serve it."""

    tenant: Tenant
    path: Path
    guarantee_bytes: int | None
    limit_bytes: int | None
    pods: tuple[str, ...]


class Sums:
    """All sums of a policy, made once. `served[pod][tenant]` are the models that the pod serves to the tenant."""

    def __init__(self, policy: Policy, capacities: Mapping[str, Capacity | None], inventory: Inventory | None) -> None:
        self.policy = policy
        self.inventory = inventory
        self._capacities = {name: capacities.get(name) or Capacity() for name in policy.pods}
        self.ledger = Ledger(policy)  # nothing runs on it: asked what it would hold and refuse
        self.hosts = self.ledger.hosts
        for name, host in self.hosts.items():
            host.measure(self._capacities[name], policy)
        self.served = {
            pod.name: {
                tenant.name: tuple(model.name for model in pod.models if policy.serves(pod, tenant, model.name))
                for tenant in policy.tenants.values()
            }
            for pod in policy.pods.values()
        }
        self._dedicated: dict[tuple[str, str], int] = {}
        for pod in policy.pods.values():
            for name in pod.devices if pod.owner is not None else ():
                place = (pod.owner or "", name)
                limit = memory_limit(pod, policy.devices.get(name), policy)
                self._dedicated[place] = self._dedicated.get(place, 0) + limit
        self.devices = tuple(self._device(device, i) for i, device in enumerate(policy.devices.values()))
        self.pods = tuple(self._pod(pod, ("pods", i)) for i, pod in enumerate(policy.pods.values()))
        self.tenants = tuple(self._tenant(tenant, ("tenants", i)) for i, tenant in enumerate(policy.tenants.values()))

    def dedicated_bytes(self, tenant: Tenant, device: str | None = None) -> int:
        """What the pods that are this tenant's alone charge to its memory, on one device or on all."""
        if device is not None:
            return self._dedicated.get((tenant.name, device), 0)
        return sum(self._dedicated.get((tenant.name, name), 0) for name in self.policy.devices)

    def _device(self, device: Device, index: int) -> DevicePlan:
        pods = list(self.policy.pods.values())
        charges = tuple(
            Charge(pod.name, memory_limit(pod, device, self.policy) or None, device.overhead_bytes)
            for pod in pods
            if device.name in pod.devices
        )
        memory = device.memory_bytes
        if memory is None and self.inventory is not None and device.uuid is not None:
            memory = self.inventory.memory_bytes.get(device.uuid)
        own = next((i for i, pod in enumerate(pods) if pod.name == device.name and pod.devices == (device.name,)), None)
        is_listed = own is None or device != Device(device.name)
        path: Path = ("devices", index) if own is None or is_listed else ("pods", own)
        return DevicePlan(device, path, is_listed, memory, charges)

    def _pod(self, pod: Pod, path: Path) -> PodPlan:
        host, kv_tokens = self.hosts[pod.name], self._capacities[pod.name].kv_tokens
        kv_bytes, weights = host.account.memory_limit, set(host.weights.values())
        if kv_tokens is None and kv_bytes is not None and len(weights) == 1:
            bytes_, tokens = next(iter(weights))
            kv_tokens = kv_bytes * tokens // (bytes_ * host.block_tokens) * host.block_tokens
        tenants = tuple(name for name, models in self.served[pod.name].items() if models)
        guarantees = (self._guarantee(pod, self.policy.tenants[name]) for name in tenants)
        return PodPlan(
            pod=pod,
            path=path,
            kv_bytes=kv_bytes,
            kv_tokens=kv_tokens,
            slots=host.account.slots_limit,
            tells_kv=None if pod.engine is None else pod.engine in _TELLS_ITS_KV_SIZE,
            unweighed=tuple(model.name for model in pod.models if model.name not in host.weights),
            tenants=tenants,
            guarantees=tuple(guarantee for guarantee in guarantees if guarantee is not None),
        )

    def _guarantee(self, pod: Pod, tenant: Tenant) -> Guarantee | None:
        """What a tenant may hold at a pod at once: all of its memory, less what its own pods take of it."""
        if pod.owner == tenant.name:
            return None  # its calls there charge the pod alone
        budget, ratio = tenant.budget, self.policy.profile_of(tenant.profile).overcommit_ratio
        if budget.memory_by_device is not None:
            left = [budget.memory_by_device.get(name, 0) - self.dedicated_bytes(tenant, name) for name in pod.devices]
            guarantee = max(0, min(left)) * len(pod.devices)
        elif budget.memory_bytes is not None:
            guarantee = max(0, budget.memory_bytes - self.dedicated_bytes(tenant))
        else:
            return None
        return Guarantee(tenant.name, guarantee, limit_of(guarantee, ratio) or 0)

    def _tenant(self, tenant: Tenant, path: Path) -> TenantPlan:
        by_device = tenant.budget.memory_by_device
        guarantee = tenant.budget.memory_bytes if by_device is None else sum(by_device.values())
        limit = limit_of(guarantee, self.policy.profile_of(tenant.profile).overcommit_ratio)
        pods = tuple(name for name, served in self.served.items() if served[tenant.name])
        return TenantPlan(tenant, path, guarantee, limit, pods)
