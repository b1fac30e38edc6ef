"""The end of a run as one value: what tables, the HTML page, other tools' formats and `compare` are made from.

It is the JSON summary, field by field, and can be read back. Times are seconds, rates are a second, shares 0 to 1.
A figure that cannot be told truly is `None`: no p99 under 100 samples, no p999 under 1,000.
"""

from __future__ import annotations

from typing import Any

import msgspec

VERSION = 1
FEWEST_FOR_P99 = 100
"""Samples under which no p99 is told: of fewer, it would only be the greatest of them."""


class Distribution(msgspec.Struct, kw_only=True):
    """Durations; `buckets` and `counts` are the histogram's (see `histogram`)."""

    count: int = 0
    mean: float | None = None
    least: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    greatest: float | None = None
    buckets: list[int] = []
    counts: list[int] = []


class Results(msgspec.Struct, kw_only=True):
    """What one tenant (or all, under the name `all`) met in one phase.

    `done` met everything that a good stream needs; `failed` is by `codes`; `good` are those of `done` that met every
    objective. `tokens_received` are the reported completion tokens of done calls and the counted events of all others;
    `tokens_cancelled` what cancelled calls had still been asked for. `ttft` and `e2e` run from the scheduled arrival,
    `ttft_from_sending` from the sending; `client_wait` lies between the two. `share_served` is tokens received by
    tokens asked, less those of cancelled calls that were not wanted any more.
    """

    name: str
    scheduled: int = 0
    sent: int = 0
    never_sent: int = 0
    done: int = 0
    good: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    codes: dict[str, int] = {}
    clipped: int = 0
    skipped: int = 0
    reused: int = 0
    events: int = 0
    reads: int = 0
    tokens_asked: int = 0
    tokens_received: int = 0
    tokens_cancelled: int = 0
    prompt_tokens_asked: int = 0
    prompt_tokens_reported: int = 0
    done_per_second: float = 0.0
    good_per_second: float = 0.0
    tokens_per_second: float = 0.0
    share_served: float | None = None
    ttft: Distribution
    ttft_from_sending: Distribution
    client_wait: Distribution
    itl: Distribution
    tpot: Distribution
    e2e: Distribution


class Moment(msgspec.Struct, kw_only=True):
    """One stretch of a tenant's time line, from `at` seconds after the run's start; TTFT is that of calls scheduled in
    it, with its histogram.
    """

    at: float
    seconds: float
    scheduled: int = 0
    done: int = 0
    failed: int = 0
    tokens: int = 0
    open: int = 0
    ttft_p50: float | None = None
    ttft_p99: float | None = None
    ttft_buckets: list[int] = []
    ttft_counts: list[int] = []


class StrainSummary(msgspec.Struct, kw_only=True):
    """How the tool fared. `core` is the share of one core that its streams took, `core_most` in its busiest 5 s."""

    timer_lag_p99: float | None = None
    send_lag_p99: float | None = None
    core: float = 0.0
    core_most: float = 0.0
    starved: float = 0.0
    pressure: float | None = None
    rss_bytes: int = 0
    stalls: list[tuple[float, float]] = []
    lost_calls: int = 0


class Mark(msgspec.Struct, kw_only=True):
    """Why a run's figures are not, or not only, the target's: `client-bound`, `machine-bound`, `censored`, `note`.

    `phase` is empty where it is about the whole run.
    """

    kind: str
    phase: str
    text: str


class ServerCost(msgspec.Struct, kw_only=True):
    """What the process of `--pid`, with all its children, used in a phase."""

    pid: int
    command: str
    cpu_seconds: float
    core: float
    us_a_chunk: float | None
    us_a_request: float | None
    rss_first_bytes: int
    rss_last_bytes: int
    rss_most_bytes: int


class Growth(msgspec.Struct, kw_only=True):
    """The slope of the server's RSS, bytes an hour, with its 95 % confidence; `series` is (seconds, bytes)."""

    bytes_per_hour: float
    low: float
    high: float
    series: list[tuple[float, int]] = []


class Count(msgspec.Struct, kw_only=True):
    """One figure that both sides know: ours, and the server's as its `/metrics` grew over the run."""

    name: str
    labels: dict[str, str]
    server: float
    client: float | None
    source: str = ""


class PhaseResults(msgspec.Struct, kw_only=True):
    """One phase. `at` is its start, in seconds after the run's; `jain` is Jain's fairness index over the tenants, of
    tokens a second and of the share served.
    """

    name: str
    at: float
    load_seconds: float
    seconds: float
    is_counted: bool
    tenants: list[Results]
    all: Results
    jain_tokens: float | None = None
    jain_served: float | None = None
    strain: StrainSummary
    timeline: dict[str, list[Moment]] = {}
    server: ServerCost | None = None


class Isolation(msgspec.Struct, kw_only=True):
    """How much a tenant's first tokens suffered from others: a phase's TTFT over that of the one where it was alone.

    Each ratio comes with its 95 % confidence (low, high).
    """

    tenant: str
    alone: str
    phase: str
    calls_alone: int
    calls: int
    p50: float | None = None
    p50_interval: tuple[float, float] | None = None
    p99: float | None = None
    p99_interval: tuple[float, float] | None = None


class SweepStep(msgspec.Struct, kw_only=True):
    """One load of a sweep. `is_saturated` for the reason given; slopes are seconds of TTFT a second, and open streams a
    second, each with the lower end of its confidence. Calls and tokens a second are those once the step was filled;
    `offered_per_second` came, which by chance may be more or fewer than `load` asked for.
    """

    load: float
    phase: str
    offered_per_second: float = 0.0
    done_per_second: float
    tokens_per_second: float
    failed: int
    ttft_p50: float | None
    ttft_p99: float | None
    ttft_slope: float
    ttft_slope_low: float
    open_slope: float
    open_slope_low: float
    open_most: int
    is_saturated: bool
    reason: str = ""


class SweepResults(msgspec.Struct, kw_only=True):
    """`saturation` is the load that the target just keeps up with (`None`: not found up to the greatest), between
    `stable` and `saturated`; `throughput` is calls a second done when saturated.
    """

    of: str
    steps: list[SweepStep]
    saturation: float | None
    stable: float | None
    saturated: float | None
    throughput: float | None


class Summary(msgspec.Struct, kw_only=True):
    """A whole run. `scenario` holds what was asked, keys left out. `ended` says how: `complete`, `interrupted`,
    `bounds` or `failed`.
    """

    version: int = VERSION
    name: str
    started: str
    seconds: float
    ended: str
    url: str
    model: str
    scenario: dict[str, Any]
    marks: list[Mark]
    phases: list[PhaseResults]
    isolation: list[Isolation] = []
    sweep: SweepResults | None = None
    counts: list[Count] = []
    growth: Growth | None = None


def read(text: bytes) -> Summary:
    """A summary from its JSON. Raises `msgspec.ValidationError` or `msgspec.DecodeError` where it is none."""
    return msgspec.json.decode(text, type=Summary)


def written(summary: Summary) -> bytes:
    """Its JSON, in one line: indented, each bucket of each histogram would have a line of its own."""
    return msgspec.json.encode(summary) + b"\n"
