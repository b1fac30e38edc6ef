"""The ledger: what every device, pod, tenant and key may hold, and the leases that hold it.

A lease holds bytes of KV memory and a slot on the pod, the same bytes and a slot on tenant and key. It is charged whole
or not at all, and released exactly once. Where a call moves on and leaves a part behind at a pod that may still run
it, both pods are charged, tenant and key once: until the call has ended and every such pod has let go, in any order.

Pods are charged, too: while one runs, it holds its memory limit and the device's overhead for a client on each of its
devices, and, where it is dedicated to one tenant, its whole limit on that tenant's memory; the calls on a dedicated
pod then charge no bytes to the tenant a second time. A pod that would overfill a device is not taken up, and gets no
calls.

This module checks and books. Whether to ask, in what order and with what answer is `admission`'s, the only caller.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenancy.accounts import Account, Capacity, Hold, Host, Lease, Owner, memory_limit
from tenancy.call import Call
from tenancy.need import Need
from tenancy.policy import Budget, Pod, Policy
from tenancy.rates import Window, bucket_of


class Ledger:
    """All accounts, hosts and leases. It answers `view` questions of a ranking, too: shares and calls of a pod."""

    def __init__(self, policy: Policy) -> None:
        self.hosts: dict[str, Host] = {}
        self.tenants: dict[str, Owner] = {}
        self.keys: dict[tuple[str, str], Owner] = {}
        self.devices: dict[str, Account] = {}
        self.left_out: dict[str, str] = {}
        self._policy = policy
        self._leases = 0
        self.adopt(policy)

    # what may be held

    def adopt(self, policy: Policy) -> None:
        """Take over the limits of `policy`. What is held stays held, also by owners that are no more."""
        self._policy = policy
        running = [host for host in self.hosts.values() if host.is_taken_up]
        for host in running:
            self._put_down(host)
        running += [self.hosts[name] for name in self.left_out]
        devices = frozenset(device for pod in policy.pods.values() for device in pod.devices) | frozenset(
            policy.devices
        )
        owners_before = self.tenants
        self._limit_owners(policy, devices)
        accounts = {name: self.devices.get(name) or Account(f"device/{name}") for name in sorted(devices)}
        for name, account in accounts.items():
            device = policy.devices.get(name)
            account.memory_limit = None if device is None else device.memory_bytes
        self.devices = accounts
        before = self.hosts
        self.hosts = {}
        for name, pod in policy.pods.items():
            host = before.get(name) or Host(pod)
            host.declare(pod, policy)
            self.hosts[name] = host
        leases = [lease for owner in owners_before.values() for lease in owner.account.leases]
        for lease in leases:  # their owners' limits may have changed form, or the pod its tenants
            owners = self.owners(lease.call)
            if owners is not None:
                self._rebook(lease, owners)
        self.left_out = {}
        for host in running:
            if self.hosts.get(host.name) is host:
                self._take_up(host)

    def _limit_owners(self, policy: Policy, devices: frozenset[str]) -> None:
        tenants, keys = self.tenants, self.keys
        self.tenants, self.keys = {}, {}
        for tenant in policy.tenants.values():
            owner = tenants.get(tenant.name) or Owner(tenant.name)
            owner.limit(tenant.budget, policy.profile_of(tenant.profile).overcommit_ratio, devices)
            self.tenants[tenant.name] = owner
            for key in tenant.keys:
                if key.budget != Budget():
                    place = (tenant.name, key.name)
                    owner = keys.get(place) or Owner(*place)
                    owner.limit(key.budget, 1.0, devices)
                    self.keys[place] = owner

    def run(self, capacities: Mapping[str, Capacity | None]) -> None:
        """Pods run with these capacities; those with `None`, or not named, do not. Stops are booked before starts."""
        for name, host in self.hosts.items():
            if capacities.get(name) is None:
                self.left_out.pop(name, None)
                if host.is_taken_up:
                    self._put_down(host)
        for name, host in self.hosts.items():
            capacity = capacities.get(name)
            if capacity is not None:
                host.measure(capacity, self._policy)
                if not host.is_taken_up:
                    self._take_up(host)

    def retry_left_out(self) -> bool:
        """Take up what did not fit before; whether any pod was."""
        names = list(self.left_out)
        for name in names:
            self._take_up(self.hosts[name])
        return len(self.left_out) < len(names)

    def _take_up(self, host: Host) -> None:
        holds = self._standing_of(host.pod)
        for account, bytes_, _ in holds:
            if not account.has_room(bytes_):
                self.left_out[host.name] = (
                    f"pod {host.name} would hold {bytes_} bytes on {account.name}, which has a limit of "
                    f"{account.memory_limit} and holds {account.memory_held}"
                )
                return
        for account, bytes_, slots in holds:
            account.take(bytes_, slots)
        self.left_out.pop(host.name, None)
        host.standing = holds
        host.is_taken_up = True

    def _put_down(self, host: Host) -> None:
        for account, bytes_, slots in host.standing:
            account.give_back(bytes_, slots)
        host.standing = ()
        host.is_taken_up = False

    def _standing_of(self, pod: Pod) -> tuple[Hold, ...]:
        limits = {name: memory_limit(pod, self._policy.devices.get(name), self._policy) for name in pod.devices}
        holds: list[Hold] = []
        for name, limit in limits.items():
            device = self._policy.devices.get(name)
            holds.append((self.devices[name], limit + (0 if device is None else device.overhead_bytes), 0))
        owner = None if pod.owner is None else self.tenants.get(pod.owner)
        if owner is not None:
            holds.extend(owner.memory_of_pod(pod, limits))
        return tuple(holds)

    # who is asked

    def owners(self, call: Call) -> tuple[Owner, ...] | None:
        """The accounts that pay for `call`: its key, where that has limits, and its tenant. `None`: no such tenant."""
        tenant = self.tenants.get(call.tenant.name)
        if tenant is None:
            return None
        key = self.keys.get((call.tenant.name, call.key.name))
        return (tenant,) if key is None else (key, tenant)

    # leases

    def grant(self, call: Call, need: Need, host: Host, owners: tuple[Owner, ...], now: float) -> Lease:
        """Charge every account and the rates. The caller has seen that all of it fits, in this very turn."""
        self._leases += 1
        bytes_ = host.weigh(need, call.model)
        tokens = need.tokens
        holds: tuple[Hold, ...] = ()
        windows: tuple[Window, ...] = ()
        assert host.is_taken_up, f"{host.name} was chosen and does not run"
        for owner in owners:
            account = owner.account
            assert not account.is_full() and owner.lacks_memory(bytes_, host) is None, account.name
            holds += owner.holds(bytes_, host)
            account.requests.charge(1, now)
            if account.tokens.limit is not None:
                account.tokens.charge(tokens, now)
                windows += (account.tokens,)
        pod = host.account
        # Whole at once: a struct that is made with one field more costs less than one whose field is set afterwards.
        lease = Lease(
            self._leases, call, need, host, now, bytes_, bucket_of(now), (pod, bytes_, 1), holds, windows, tokens
        )
        pod.lend(lease, bytes_, 1, now)
        assert not pod.is_overdrawn(), f"{host.name} was chosen and has no room"
        for account, held, slots in holds:
            account.lend(lease, held, slots, now)
        return lease

    def take_off(self, lease: Lease, now: float, *, let_go: bool) -> None:
        """The call goes on elsewhere: its pod's part is given back, or left behind as closing."""
        lease.left_behind = None
        if lease.pod_hold is None:
            return
        hold, lease.pod_hold = lease.pod_hold, None
        account, bytes_, slots = hold
        account.regain(lease, bytes_, slots, now)
        if not let_go:
            self._leases += 1
            behind = Lease(self._leases, lease.call, lease.need, lease.host, lease.granted_at)
            behind.is_closing = behind.is_settled = True
            behind.pod_hold = hold
            behind.bytes_ = bytes_
            if lease.parts is None:
                lease.parts = [lease]
            lease.parts.append(behind)
            behind.parts = lease.parts
            account.lend(behind, bytes_, slots, now)
            lease.host.closing += 1
            lease.left_behind = behind

    def put_on(self, lease: Lease, host: Host, owners: tuple[Owner, ...], now: float) -> None:
        """The call goes on, on `host`: slots of tenant and key stay taken, and their bytes become those of this pod."""
        assert lease.pod_hold is None and not lease.is_released
        lease.bytes_ = host.weigh(lease.need, lease.call.model)
        assert host.is_taken_up and host.fits(lease.bytes_), f"{host.name} was chosen and has no room"
        lease.host = host
        lease.is_moved = True
        self._rebook(lease, owners)
        lease.pod_hold = (host.account, lease.bytes_, 1)
        host.account.lend(lease, lease.bytes_, 1, now)

    def book(self, lease: Lease, more: int, now: float) -> None:
        """The call used so many tokens `more` than it was charged, or fewer: in the minute of its admission."""
        for window in lease.windows:
            window.correct(lease.bucket, more, now)

    def close(self, lease: Lease) -> None:
        """The call has ended for us, and the pod may go on with it."""
        assert not lease.is_closing and not lease.is_released and lease.pod_hold is not None
        lease.is_closing = True
        lease.host.closing += 1

    def release(self, lease: Lease, now: float) -> None:
        """Give back everything that the lease holds. Once."""
        assert not lease.is_released, f"{lease!r} is released twice"
        lease.is_released = True
        if lease.pod_hold is not None:
            lease.host.account.regain(lease, lease.bytes_, 1, now)
            if lease.is_closing:
                lease.host.closing -= 1
        parts = lease.parts
        if parts is not None:
            parts.remove(lease)
        if not parts:
            for account, bytes_, slots in lease.owner_holds:
                account.regain(lease, bytes_, slots, now)
            return
        payer = parts[0]
        if lease.owner_holds:  # it was the first: what it paid, the next one pays
            payer.owner_holds, lease.owner_holds = lease.owner_holds, ()
            for account, _, _ in payer.owner_holds:
                account.leases.pop(lease, None)
                account.leases[payer] = None
        owners = self.owners(lease.call)
        if owners is not None:
            self._rebook(payer, owners)

    def _rebook(self, lease: Lease, owners: tuple[Owner, ...]) -> None:
        """Charge `owners` with what the call of `lease` holds now: a slot, and the bytes of its largest part."""
        for account, held, slots in lease.owner_holds:
            account.give_back(held, slots)
            account.leases.pop(lease, None)
        largest: dict[Account, Hold] = {}
        for part in lease.parts or (lease,):
            for owner in owners:
                for hold in owner.holds(part.bytes_, part.host):
                    known = largest.get(hold[0])
                    if known is None or known[1] < hold[1]:
                        largest[hold[0]] = hold
        lease.owner_holds = tuple(largest.values())
        for account, held, slots in lease.owner_holds:
            account.take(held, slots)
            account.leases[lease] = None

    # the view of a ranking

    def load(self, pod: str) -> tuple[float, int]:
        """The reserved share of the pod's KV memory, or of its slots where that is not known, 0 to 1; and the calls
        that hold a slot on the pod, closing ones included.
        """
        account = self.hosts[pod].account
        share = 0.0
        if account.memory_limit:
            share = account.memory_held / account.memory_limit
        elif account.slots_limit:
            share = account.slots_held / account.slots_limit
        return share if share < 1.0 else 1.0, account.slots_held
