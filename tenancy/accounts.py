"""Who may hold what, and what is held: the rows of the ledger.

An `Account` is a name with limits; whose it is makes no difference to it, so that an end user or a day's quota
would be further rows. A `Host` is a pod with its account, an `Owner` a tenant or a key with its. A `Lease` is what
one admitted call holds on all its accounts at once. They are changed by `ledger` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from tenancy.call import Call
from tenancy.lending import Standing, limit_of
from tenancy.need import Need
from tenancy.pace import Gaps, Pace
from tenancy.policy import Budget, Device, Pod, Policy
from tenancy.rates import Window


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a pod holds, as declared or as its engine tells: KV memory in bytes or in tokens, and calls at once.

    With neither size known, or no weight of a token, the pod is limited by its slots alone.
    """

    kv_bytes: int | None = None
    slots: int | None = None
    block_tokens: int = 16
    kv_tokens: int | None = None


class Account:
    """Something with limits, and what is held against them: bytes of memory, slots, requests and tokens a minute."""

    __slots__ = (
        "gaps",
        "leases",
        "memory_held",
        "memory_limit",
        "name",
        "requests",
        "slots_held",
        "slots_limit",
        "tokens",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory_limit: int | None = None
        self.memory_held = 0
        self.slots_limit: int | None = None
        self.slots_held = 0
        self.requests = Window(None)
        self.tokens = Window(None)
        self.gaps = Gaps()
        self.leases: dict[Lease, None] = {}

    def is_full(self) -> bool:  # no property, as asking one takes three times as long; likewise below
        """No slot is free."""
        return self.slots_limit is not None and self.slots_held >= self.slots_limit

    def has_room(self, bytes_: int) -> bool:
        """Whether `bytes_` more would stay within the memory limit."""
        return self.memory_limit is None or self.memory_held + bytes_ <= self.memory_limit

    def take(self, bytes_: int, slots: int) -> None:
        assert bytes_ >= 0 and slots >= 0
        self.memory_held += bytes_
        self.slots_held += slots

    def give_back(self, bytes_: int, slots: int) -> None:
        self.memory_held -= bytes_
        self.slots_held -= slots
        assert self.memory_held >= 0 and self.slots_held >= 0, f"{self.name} gave back more than it held"

    def lend(self, lease: Lease, bytes_: int, slots: int, now: float) -> None:
        """`lease` holds this much of the account from `now` on."""
        if slots and not self.slots_held:
            self.gaps.began(now)
        self.leases[lease] = None
        self.memory_held += bytes_
        self.slots_held += slots

    def regain(self, lease: Lease, bytes_: int, slots: int, now: float) -> None:
        """`lease` holds nothing of the account any more."""
        self.memory_held -= bytes_
        self.slots_held -= slots
        assert self.memory_held >= 0 and self.slots_held >= 0, f"{self.name} gave back more than it held"
        if slots:
            self.gaps.released(now)
        del self.leases[lease]

    def is_overdrawn(self) -> bool:
        """More is held than may be: only a limit that was lowered since may cause that."""
        if self.memory_limit is not None and self.memory_held > self.memory_limit:
            return True
        return self.slots_limit is not None and self.slots_held > self.slots_limit


Hold = tuple[Account, int, int]
"""What a lease holds on one account: the account, bytes, slots."""


class Lease(msgspec.Struct, eq=False):
    """What one admitted call holds, from its grant until it is released; `pod` is where it runs.

    `output_tokens` is the most output a sequence may have, to be written into the pod's body. A lease is closing when
    its call has ended for us while the pod may still be running it: then it is settled, yet holds what it held.
    `left_behind` is the closing part that the last move left on the pod before. Such a part is a lease, too, and until
    the first of them is left a call has one lease alone, and `parts` is `None`. From then on `parts`, which they share,
    are all leases of the call that are not released. Each holds its own place on its own pod; tenant and key pay for
    the call once, for the largest of its parts, and it is the first of them on which that is booked.
    """

    id: int
    call: Call
    need: Need
    host: Host
    granted_at: float
    bytes_: int = 0  # of KV memory, on its pod
    bucket: int = 0  # of the minute that it was charged in
    pod_hold: Hold | None = None
    owner_holds: tuple[Hold, ...] = ()
    windows: tuple[Window, ...] = ()  # of tokens, that the call was charged to
    tokens: int = 0  # that they were charged
    is_closing: bool = False
    is_moved: bool = False
    is_settled: bool = False
    is_released: bool = False
    left_behind: Lease | None = None
    parts: list[Lease] | None = None

    @property
    def pod(self) -> str:
        return self.host.name

    @property
    def output_tokens(self) -> int:
        return self.need.stated_output_tokens

    def held_on(self, account: Account) -> tuple[int, int]:
        """The bytes and slots that this lease holds on `account`."""
        if self.pod_hold is not None and self.pod_hold[0] is account:
            return self.pod_hold[1:]
        return next((hold[1:] for hold in self.owner_holds if hold[0] is account), (0, 0))

    def __repr__(self) -> str:
        state = "released" if self.is_released else "closing" if self.is_closing else "held"
        return f"<Lease {self.id} {self.call.tenant.name} on {self.pod} {state}>"


class Host:
    """A pod as the ledger knows it: its account, what a token weighs on it, and whether it is taken up."""

    __slots__ = (
        "_weighed",
        "_weighed_bytes",
        "account",
        "block_tokens",
        "closing",
        "is_known",
        "is_taken_up",
        "name",
        "owner",
        "pace",
        "pod",
        "standing",
        "weights",
    )

    def __init__(self, pod: Pod) -> None:
        self.name = pod.name
        self.account = Account(f"pod/{pod.name}")
        self.pace = Pace()
        self.closing = 0
        self.is_taken_up = False
        self.standing: tuple[Hold, ...] = ()  # what the pod itself holds while it is taken up
        self.is_known = False
        self.block_tokens = 16
        self.weights: dict[str, tuple[int, int]] = {}  # model -> bytes a token, as a fraction
        self._weighed: Need | None = None
        self._weighed_bytes = 0
        self.pod = pod
        self.owner = pod.owner

    def declare(self, pod: Pod, policy: Policy) -> None:
        """Take over what the file says of the pod; of its capacity nothing is known before it runs."""
        self.pod = pod
        self.owner = pod.owner
        if not self.is_known:
            self._weigh_models(policy, None, None)

    def measure(self, capacity: Capacity, policy: Policy) -> None:
        """Take over what the pod holds; what its engine does not tell is what the file declares, or unknown."""
        memory = capacity.kv_bytes if capacity.kv_bytes is not None else self.pod.kv_memory_bytes
        slots = capacity.slots
        if slots is None:
            slots = self.pod.concurrency if self.pod.concurrency is not None else self.pod.slots
        self.block_tokens = max(1, capacity.block_tokens)
        self._weigh_models(policy, memory, capacity.kv_tokens)
        if memory is None and capacity.kv_tokens is not None and self.weights:
            memory = capacity.kv_tokens * min(bytes_ for bytes_, _ in self.weights.values())
        self.account.memory_limit = memory
        self.account.slots_limit = slots
        self.is_known = True

    def _weigh_models(self, policy: Policy, memory: int | None, tokens: int | None) -> None:
        self.weights = {}
        self._weighed = None
        for served in self.pod.models:
            model = policy.models.get(served.name)
            if model is not None and model.kv_bytes_per_token is not None:
                self.weights[served.name] = (model.kv_bytes_per_token, 1)
            elif memory is not None and tokens:
                self.weights[served.name] = (memory, tokens)

    def weigh(self, need: Need, model: str) -> int:
        """The bytes of KV memory that `need` takes here; 0 where a token's weight is not known."""
        if need is self._weighed:  # a decision asks the same several times over
            return self._weighed_bytes
        weight = self.weights.get(model)
        bytes_ = 0
        if weight is not None:  # whole numbers all the way: no float rounds a byte away
            block = self.block_tokens
            bytes_ = -(-need.blocks(block) * block * weight[0] // weight[1])
        self._weighed, self._weighed_bytes = need, bytes_
        return bytes_

    def could_hold(self, bytes_: int) -> bool:
        """Whether the pod, empty, would hold a call of that size."""
        account = self.account
        return (account.memory_limit is None or bytes_ <= account.memory_limit) and account.slots_limit != 0

    def fits(self, bytes_: int) -> bool:
        """Whether a slot and `bytes_` are free now."""
        account = self.account
        if account.slots_limit is not None and account.slots_held >= account.slots_limit:
            return False
        return account.memory_limit is None or account.memory_held + bytes_ <= account.memory_limit


class Owner:
    """A tenant or a key: who pays. Memory is one figure over all devices, or one account a device."""

    __slots__ = ("account", "by_device", "guarantee_bytes", "is_tenant", "tenant")

    def __init__(self, tenant: str, key: str | None = None) -> None:
        self.account = Account(f"tenant/{tenant}" if key is None else f"key/{tenant}/{key}")
        self.by_device: dict[str, Account] | None = None
        self.guarantee_bytes: int | None = None
        self.tenant = tenant
        self.is_tenant = key is None

    def limit(self, budget: Budget, ratio: float, devices: frozenset[str]) -> None:
        """Take over the limits of `budget`, multiplying memory by `ratio`; what is held stays held."""
        account = self.account
        account.slots_limit = budget.concurrency
        account.requests.limit = budget.requests_per_minute
        account.tokens.limit = budget.tokens_per_minute
        account.memory_limit = limit_of(budget.memory_bytes, ratio)
        self.guarantee_bytes = budget.memory_bytes
        if budget.memory_by_device is None:
            self.by_device = None
            return
        before = self.by_device or {}
        self.guarantee_bytes = sum(budget.memory_by_device.values())
        self.by_device = {}
        for device in sorted(devices | set(budget.memory_by_device)):
            share = before.get(device) or Account(f"{account.name}/{device}")
            share.memory_limit = limit_of(budget.memory_by_device.get(device, 0), ratio)
            self.by_device[device] = share

    def lacks_memory(self, bytes_: int, host: Host, credit: Lease | None = None) -> Account | None:
        """The account on which `bytes_` on `host` do not fit now, if any; what `credit` holds counts as free."""
        if self.by_device is None:
            account = self.account
            if account.memory_limit is None:
                return None
            more = bytes_ if credit is None else bytes_ - credit.held_on(account)[0]
            is_short = account.memory_held + more > account.memory_limit
            return account if is_short and not self._paid_whole(host) else None
        for account, share, _ in self._shares(bytes_, host):
            more = share if credit is None else share - credit.held_on(account)[0]
            if not account.has_room(more):
                return account
        return None

    def never_holds(self, bytes_: int, host: Host) -> Account | None:
        """The account whose limit is below what `bytes_` on `host` ask of it, if any."""
        if self.by_device is None:
            account = self.account
            limit = account.memory_limit
            return account if limit is not None and bytes_ > limit and not self._paid_whole(host) else None
        for account, share, _ in self._shares(bytes_, host):
            if account.memory_limit is not None and share > account.memory_limit:
                return account
        return None

    def holds(self, bytes_: int, host: Host) -> tuple[Hold, ...]:
        """What a call of `bytes_` on `host` holds here: one slot, and its bytes where they count."""
        if self.by_device is None:
            return ((self.account, 0 if host.owner is not None and self._paid_whole(host) else bytes_, 1),)
        return ((self.account, 0, 1), *self._shares(bytes_, host))

    def memory_of_pod(self, pod: Pod, bytes_a_device: Mapping[str, int]) -> tuple[Hold, ...]:
        """What a pod dedicated to this owner holds here while it runs."""
        if self.by_device is None:
            return ((self.account, sum(bytes_a_device.values()), 0),)
        return tuple((self.by_device[device], bytes_a_device[device], 0) for device in pod.devices)

    @property
    def standing(self) -> Standing:
        """Guarantee, limit and what is held, over all devices."""
        if self.by_device is None:
            return Standing(self.guarantee_bytes, self.account.memory_limit, self.account.memory_held)
        shares = self.by_device.values()
        limit = sum(share.memory_limit or 0 for share in shares)
        return Standing(self.guarantee_bytes, limit, sum(share.memory_held for share in shares))

    def _paid_whole(self, host: Host) -> bool:
        """The tenant pays for a pod dedicated to it by the whole pod; a key's limits count calls there as anywhere."""
        return self.is_tenant and host.owner == self.tenant

    def _shares(self, bytes_: int, host: Host) -> Iterator[Hold]:
        if self.by_device is None or self._paid_whole(host):
            return
        devices = host.pod.devices
        share = -(-bytes_ // len(devices))
        for device in devices:
            yield self.by_device[device], share, 0


def memory_limit(pod: Pod, device: Device | None, policy: Policy) -> int:
    """What `pod` may take of `device`, without the overhead: its MPS limit or declared memory, capped by its profile.

    A profile that does not share takes the whole device. A pod that nothing is known of counts as 0: `check` says so.
    """
    profile = policy.profile_of(pod.profile)
    if not profile.gpu_share and device is not None and device.memory_bytes is not None:
        return max(0, device.memory_bytes - device.overhead_bytes)
    limit = pod.mps.memory_bytes if pod.mps.memory_bytes is not None else pod.memory_bytes
    if limit is None:
        return 0
    return limit if profile.max_memory_bytes is None else min(limit, profile.max_memory_bytes)
