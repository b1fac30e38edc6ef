"""Why a call cannot run, in the contract's order, and when coming back would succeed.

Two questions about one call: can it ever be held (`too_long`, `never`), and what stands in its way now (`in_the_way`).
The first reason is the one that is named; the time to come back is that of the slowest. Rates tell their moment
exactly. For bytes and slots it is a forecast: the leases on the account end in the order that their pods' pace
suggests, until enough is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil

import msgspec

from tenancy.accounts import Account, Host, Lease, Owner
from tenancy.call import Call
from tenancy.need import LEAST_BYTES_A_TOKEN, Need
from tenancy.policy import Model
from tenancy.queue import Ticket
from tenancy.rates import Window
from tenancy.refusal import NO_POD, POD_CAPACITY, REQUEST_RATE, TOKEN_RATE, Code, Refusal
from tenancy.units import format_bytes

_MOST_SAMPLED = 32  # pods looked at for a forecast: the soonest of them is late at worst
_CLOSING_SECONDS = 2.0
POD_COMES_SECONDS = 5.0  # a guess: pods start in seconds to minutes
_FEWER, _SHORTER = "ask for fewer max_tokens", "send a shorter input"
_STANDING_SECONDS = 60.0  # what is held by a running pod comes back when it stops, which nobody foresees


class Reason(msgspec.Struct, frozen=True):
    """One thing that stands in a call's way; `seconds` from now it will be gone, if nobody else comes.

    `smaller` is how the call would ask for less of it, where that helps.
    """

    code: Code
    account: str
    unit: str
    limit: float | None
    used: float | None
    asked: float
    seconds: float
    smaller: str = ""

    def refusal(self, seconds: float) -> Refusal:
        """As the reason that is named; `seconds` are those of the slowest."""
        otherwise = f", or {self.smaller}" if self.smaller else ""
        return Refusal(
            self.code,
            self.account,
            f"{_sentence(self)} {_come_back_in(seconds, otherwise)}",
            self.unit,
            self.limit,
            self.used,
            self.asked,
            _rounded_up(seconds),
        )


def come_back(refusal: Refusal, seconds: float) -> Refusal:
    """The refusal with the time to come back, in numbers and in words."""
    message = f"{refusal.message} {_come_back_in(seconds)}"
    return msgspec.structs.replace(refusal, message=message, retry_after_seconds=_rounded_up(seconds))


def _come_back_in(seconds: float, otherwise: str = "") -> str:
    """Rounded up, so that nobody is early: to tenths, from ten on to whole seconds."""
    told = ceil(seconds) if seconds >= 10 else max(0.1, ceil(seconds * 10 - 1e-6) / 10)
    return f"Come back in {told:g} s{otherwise}."


def _rounded_up(seconds: float) -> float:
    return ceil(seconds * 1000 + 1e-6) / 1000


def too_long(call: Call, need: Need, model: Model | None) -> Refusal | None:
    """Why the model's context cannot hold the prompt, whatever it is estimated at; `None` if it may."""
    if model is not None and model.context_tokens is not None:
        least = call.prompt_bytes // LEAST_BYTES_A_TOKEN
        if least > model.context_tokens * need.prompts:
            return Refusal(
                Code.CONTEXT_LENGTH_EXCEEDED,
                f"model/{model.name}",
                f"The prompt has at least {least} tokens, and the context of {model.name} is {model.context_tokens} "
                f"tokens: shorten the prompt, or use a model with a longer context.",
                "tokens",
                model.context_tokens,
                0,
                least,
            )
    return None


def never(call: Call, need: Need, owners: Sequence[Owner], reach: Sequence[Host]) -> Refusal | None:
    """Why `call` could not be held even alone, or `None`. `reach`: all pods that may ever serve it.

    What may run now could also be held alone, so that who was admitted need not ask.
    """
    for owner in owners:
        account = owner.account
        if account.requests.limit is not None and account.requests.limit < 1:
            return _exceeds(account.name, "requests", 0, 1, f"{account.name} may make no requests at all.")
        if account.tokens.limit is not None and account.tokens.limit < need.tokens:
            text = _too_large(need, f"{need.tokens} tokens", f"{account.name} may use {account.tokens.limit} a minute")
            return _exceeds(account.name, "tokens", account.tokens.limit, need.tokens, text)
        if account.slots_limit is not None and account.slots_limit < 1:
            return _exceeds(account.name, "requests", 0, 1, f"{account.name} may have no calls at all.")
    refusal: Refusal | None = None
    for host in reach:
        bytes_ = host.weigh(need, call.model)
        short: Account | None = None
        for owner in owners:
            short = owner.never_holds(bytes_, host)
            if short is not None:
                break
        if short is None and (not host.is_known or host.could_hold(bytes_)):
            return None
        if refusal is None:
            refusal = _too_large_for(need, short or host.account, bytes_, is_pod=short is None)
    return refusal


def rates(owners: Sequence[Owner], tokens: int, now: float) -> list[Reason]:
    """The rates that are spent: requests before tokens, the key before its tenant."""
    found: list[Reason] = []
    for owner in owners:
        account = owner.account
        if not account.requests.fits(1, now):
            found.append(_spent(REQUEST_RATE, account.name, "requests a minute", account.requests, 1, now))
    for owner in owners:
        account = owner.account
        if not account.tokens.fits(tokens, now):
            found.append(_spent(TOKEN_RATE, account.name, "tokens a minute", account.tokens, tokens, now, _FEWER))
    return found


def in_the_way(ticket: Ticket, hosts: Sequence[Host], now: float) -> list[Reason]:
    """All that keeps the call from running now, in the order in which it is named; `hosts`: the pods that are ready.

    A call that only looks for another pod has its slots and has paid its rates.
    """
    call, need, owners = ticket.call, ticket.need, ticket.owners
    found: list[Reason] = []
    if ticket.moving is None:
        found = rates(owners, need.tokens, now)
        for owner in owners:
            account = owner.account
            if account.is_full():
                seconds = _frees_in(account, 0, 1, now)
                found.append(_held(Code.CONCURRENCY_BUDGET, account, "requests", 1, seconds))
    if hosts:
        found.extend(_memory_and_pods(call, need, owners, hosts, now))
    else:
        found.append(no_pod(call))
    return found


def no_pod(call: Call) -> Reason:
    """Nothing that is ready serves the call's model."""
    return Reason(NO_POD, f"model/{call.model}", "pods", None, 0, 1, POD_COMES_SECONDS)


def kept(hosts: Sequence[Host], seconds: float) -> Reason:
    """Pods have room, and keep it for calls that have been waiting for longer."""
    host = hosts[0]
    account = host.account
    return Reason(POD_CAPACITY, account.name, "bytes", account.memory_limit, account.memory_held, 0, seconds)


def _memory_and_pods(
    call: Call, need: Need, owners: Sequence[Owner], hosts: Sequence[Host], now: float
) -> Iterator[Reason]:
    """Memory is short where no pod's share of it fits; pods are where none that the memory allows has room."""
    soonest: tuple[float, Host, int] | None = None
    for host in islice(hosts, _MOST_SAMPLED):
        bytes_ = host.weigh(need, call.model)
        seconds = _room_in(host, bytes_, now)
        for owner in owners:
            for account, share, _ in owner.holds(bytes_, host):
                if not account.has_room(share):
                    seconds = max(seconds, _frees_in(account, share, 0, now))
        if soonest is None or seconds < soonest[0]:
            soonest = (seconds, host, bytes_)
    assert soonest is not None
    seconds, host, bytes_ = soonest
    if seconds == 0.0:
        return
    smaller = _FEWER if need.output_tokens else _SHORTER
    for owner in owners:
        short = owner.lacks_memory(bytes_, host)
        if short is not None and all(owner.lacks_memory(other.weigh(need, call.model), other) for other in hosts):
            asked = next(share for account, share, _ in owner.holds(bytes_, host) if account is short)
            yield _held(Code.MEMORY_BUDGET, short, "bytes", asked, seconds, smaller)
    if not any(other.fits(other.weigh(need, call.model)) for other in hosts):
        account = host.account
        if account.is_full():
            yield _held(POD_CAPACITY, account, "requests", 1, seconds)
        else:
            yield _held(POD_CAPACITY, account, "bytes", bytes_, seconds, smaller)


def _room_in(host: Host, bytes_: int, now: float) -> float:
    return 0.0 if host.fits(bytes_) else _frees_in(host.account, bytes_, 1, now)


def _frees_in(account: Account, bytes_: int, slots: int, now: float) -> float:
    """Seconds until `account` will have room, if its leases end as their pods' pace suggests."""
    over_bytes = 0 if account.memory_limit is None else account.memory_held + bytes_ - account.memory_limit
    over_slots = 0 if account.slots_limit is None else account.slots_held + slots - account.slots_limit
    for seconds, lease in sorted(((_remaining(lease, now), lease) for lease in account.leases), key=lambda end: end[0]):
        if over_bytes <= 0 and over_slots <= 0:
            break
        held_bytes, held_slots = lease.held_on(account)
        over_bytes -= held_bytes
        over_slots -= held_slots
        if over_bytes <= 0 and over_slots <= 0:
            return seconds
    return 0.0 if over_bytes <= 0 and over_slots <= 0 else _STANDING_SECONDS


def _remaining(lease: Lease, now: float) -> float:
    if lease.is_closing:
        return _CLOSING_SECONDS
    return lease.host.pace.remaining(lease.need.output_tokens, now - lease.granted_at)


def _spent(code: Code, account: str, unit: str, window: Window, asked: int, now: float, smaller: str = "") -> Reason:
    opens_at = window.opens_at(asked, now)
    seconds = _STANDING_SECONDS if opens_at is None else opens_at - now
    return Reason(code, account, unit, window.limit, window.used(now), asked, seconds, smaller)


def _held(code: Code, account: Account, unit: str, asked: int, seconds: float, smaller: str = "") -> Reason:
    if unit == "bytes":
        return Reason(code, account.name, unit, account.memory_limit, account.memory_held, asked, seconds, smaller)
    return Reason(code, account.name, unit, account.slots_limit, account.slots_held, asked, seconds)


def _exceeds(account: str, unit: str, limit: float | None, asked: float, message: str) -> Refusal:
    return Refusal(Code.EXCEEDS_BUDGET, account, message, unit, limit, None, asked)


def _too_large_for(need: Need, account: Account, bytes_: int, *, is_pod: bool) -> Refusal:
    """What no pod can hold, by the account that comes nearest: the payer's, or the pod's own."""
    if is_pod and account.slots_limit == 0:
        return _exceeds(account.name, "requests", 0, 1, f"{account.name} takes no calls at all.")
    most = f"{account.name} {'has' if is_pod else 'may hold'} {format_bytes(account.memory_limit or 0)} in all"
    text = _too_large(need, f"{format_bytes(bytes_)} of GPU memory", most)
    return _exceeds(account.name, "bytes", account.memory_limit, bytes_, text)


def _too_large(need: Need, asked: str, most: str) -> str:
    """`asked` is more than `most`: where it comes from, and what would make it less."""
    parts = f"prompt about {need.prompt_tokens} tokens"
    if not need.output_tokens:
        return f"This call needs {asked} ({parts}), and {most}: {_SHORTER}."
    times = f"{need.sequences} × " if need.sequences > 1 else ""
    parts += f" + {times}{need.output_tokens} tokens of output"
    return f"This call needs {asked} ({parts}), and {most}: lower max_tokens or n, or shorten the prompt."


def _sentence(reason: Reason) -> str:
    """What stands in the way, for people; sizes as they write them."""
    code, account, used, limit = reason.code, reason.account, reason.used, reason.limit
    if code is NO_POD:
        return f"No pod is ready for {account.removeprefix('model/')}."
    if code is REQUEST_RATE:
        return f"{account} has made {used} of its {limit} requests a minute."
    if code is TOKEN_RATE:
        return f"{account} has used {used} of its {limit} tokens a minute, and this call needs {reason.asked}."
    if code is POD_CAPACITY and not reason.asked:
        return f"{account} keeps the room that it has for calls that have been waiting longer."
    others = "; no other pod has room" if code is POD_CAPACITY else ""
    if reason.unit == "bytes":
        held, most, asked = (format_bytes(int(size or 0)) for size in (used, limit, reason.asked))
        return f"{account} holds {held} of its {most} of GPU memory, and this call needs {asked}{others}."
    return f"{account} has {used} calls under way, and may have {limit} calls at once{others}."
