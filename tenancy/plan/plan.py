"""One plan: the sums and what contradicts in them, for whoever prints or refuses on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tenancy.accounts import Capacity
from tenancy.plan.contradictions import Finding, Severity, contradictions, missing_files
from tenancy.plan.sums import DevicePlan, Inventory, PodPlan, Sums, TenantPlan
from tenancy.policy import Policy


@dataclass(frozen=True, slots=True)
class Plan:
    """What everything adds up to, and what is to be said of it, errors first."""

    devices: tuple[DevicePlan, ...]
    pods: tuple[PodPlan, ...]
    tenants: tuple[TenantPlan, ...]
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """No finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def plan(
    policy: Policy,
    capacities: Mapping[str, Capacity | None] | None = None,
    inventory: Inventory | None = None,
    now_epoch: float | None = None,
    exists: Callable[[str], bool] | None = None,
) -> Plan:
    """Add up what `policy` promises, and find what cannot hold.

    `capacities` is what running pods told, by name; `inventory` the GPUs that there are; `now_epoch` the time against
    which expiry is held; `exists` tells whether a file that the configuration names is there. Without them the file's
    word is taken, and neither expiry nor files are looked at.
    """
    sums = Sums(policy, capacities or {}, inventory)
    findings = contradictions(sums, now_epoch)
    if exists is not None:
        findings = [*missing_files(policy, exists), *findings]
    return Plan(sums.devices, sums.pods, sums.tenants, tuple(findings))
