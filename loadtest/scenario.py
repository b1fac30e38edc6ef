"""What a run does, as facts: the target, the tenants' mixes, the phases, the bounds. Read from a file or from options.

Nothing here is read, drawn or sent; `scenario_file` makes a `Scenario` from YAML and `cli` one from options. Times are
seconds, sizes are tokens, rates are calls a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ArrivalKind = Literal["constant", "poisson", "gamma", "closed"]
Endpoint = Literal["chat", "completions"]
Usage = Literal["bounded", "exact", "off"]

PATHS: dict[str, str] = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, slots=True)
class Span:
    """A number between two bounds, drawn evenly; equal bounds: always that one. Both ends are included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go: `url` is a base URL as SDKs take it (it ends in /v1), `body` more top-level keys for each call.
    Where `also` names more of the same service, calls go to all of them in turn.

    `usage` says how strictly a reported usage is held against what arrived: `bounded` (no more events with text than
    tokens, no more tokens than asked), `exact` (one event a token), `off` (none is asked for).
    """

    url: str
    model: str
    endpoint: Endpoint = "chat"
    timeout_seconds: float = 120.0
    usage: Usage = "bounded"
    stream: bool = True
    body: dict[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def urls(self) -> tuple[str, ...]:
        """All base URLs."""
        return (self.url, *self.also)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When a tenant's calls come. Open loop (`constant`, `poisson`, `gamma`): `rate` a second, whatever happens to
    those before. `gamma`: shape `burstiness`, below 1 burstier than Poisson. `closed`: `users`, each of whom calls
    again `think` seconds after its last answer ended.
    """

    kind: ArrivalKind
    rate: float = 0.0
    burstiness: float = 1.0
    users: int = 0
    think: Span = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Cancel:
    """A share (0 to 1) of calls is left after so many events with text."""

    share: float
    after_tokens: Span


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant's mix. `shared_prefix` (0 to 1) is the part of each prompt that all its prompts have in common.

    `arrivals` may be missing where a trace gives the tenant its calls; then `input` and `output` come from there too.
    """

    name: str
    key: str = field(default="", repr=False)
    arrivals: Arrivals | None = None
    input: Span = Span(128, 128)
    output: Span = Span(64, 64)
    cancel: Cancel | None = None
    shared_prefix: float = 0.0
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the run in which `tenants` call. `scale` multiplies rates and users, going evenly from its first to
    its second number. `seconds` may be `None` only where a trace ends the phase.
    """

    name: str
    seconds: float | None
    tenants: tuple[str, ...]
    scale: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rising loads, in search of the first that the target does not keep up with.

    `of` is what rises: `rate` (calls a second of all tenants together, in the proportion of their own rates) or
    `users`. Steps of `step_seconds` go from `start` by `factor` up to `most`; then the bracket is halved until its ends
    are within `within` (a ratio) of each other.
    """

    of: Literal["rate", "users"]
    start: float
    most: float
    factor: float = 1.5
    step_seconds: float = 20.0
    within: float = 0.05


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a trace's columns."""

    time: str
    input: str
    output: str
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Calls as they once came. `split` gives each tenant a share of the clients (or, without a client column, of the
    rows); a client with a tenant's name is that tenant. Calls of more than `context` tokens have their input clipped
    (`over="clip"`) or are left out (`over="skip"`); both are counted. `columns=None`: told by the file's header.
    """

    file: str
    split: dict[str, float]
    speed: float = 1.0
    columns: Columns | None = None
    context: int | None = None
    over: Literal["clip", "skip"] = "clip"


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a good call keeps, in seconds; `None`: not judged. `itl` is held against the mean gap of the call."""

    ttft: float | None = None
    itl: float | None = None
    tpot: float | None = None
    e2e: float | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a run ends, whatever else: seconds of load in all, calls sent in all, streams open at once.

    `open_streams=None`: as many as descriptors and ports allow, up to 10,000.
    """

    seconds: float = 600.0
    requests: int = 100_000
    open_streams: int | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run, whole. Without `sweep` its phases are run in order, after `warmup_seconds` of the first one's load that
    are not counted.
    """

    target: Target
    tenants: tuple[Tenant, ...]
    phases: tuple[Phase, ...]
    seed: int = 0
    warmup_seconds: float = 0.0
    objectives: Objectives = Objectives()
    bounds: Bounds = Bounds()
    trace: Trace | None = None
    sweep: Sweep | None = None

    def tenant(self, name: str) -> Tenant:
        """The tenant of that name; there is one."""
        return next(tenant for tenant in self.tenants if tenant.name == name)
