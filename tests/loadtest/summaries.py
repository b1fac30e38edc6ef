"""Summaries of runs that never were, for tests of what is made from them: deterministic, and shaped like real ones.

Their figures hold together: distributions and time lines are made from the same calls by `loadtest.histogram`, totals
are sums, rates are counts by the phase's seconds. `a_summary()` is one phase of two tenants; the others tell a story
each. All take `**changes` for the fields of `Summary` that a test wants otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from loadtest.histogram import Histogram
from loadtest.scenario import Arrivals, Objectives, Phase, Scenario, Span, Sweep, Target, Tenant
from loadtest.summary import (
    Count,
    Distribution,
    Growth,
    Isolation,
    Mark,
    Moment,
    PhaseResults,
    Results,
    ServerCost,
    StrainSummary,
    Summary,
    SweepResults,
    SweepStep,
)

SEED = 20_231_107
TTFT_OBJECTIVE = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mix:
    """What one tenant meets in a made-up phase: `rate` calls a second, medians in seconds, a lognormal spread, and a
    share of calls in a tail eight times as slow.
    """

    name: str
    rate: float
    ttft: float = 0.08
    itl: float = 0.022
    spread: float = 0.35
    tail: float = 0.02
    output: int = 64
    codes: dict[str, float] = field(default_factory=dict)  # share of calls by code
    cancelled: float = 0.0


VICTIM = Mix("victim", rate=10, output=128)
CROWD = Mix(
    "crowd", rate=42, ttft=0.31, itl=0.034, spread=0.6, codes={"429 token_rate": 0.04, "timeout": 0.002}, cancelled=0.1
)


def a_distribution(values: Sequence[float] | Floats) -> Distribution:
    """Of these durations, in seconds."""
    histogram = Histogram()
    histogram.add(np.asarray(values, dtype=np.float64))
    return distribution_of(histogram)


def distribution_of(histogram: Histogram) -> Distribution:
    """With the rule of `summary`: no p99 under 100, no p999 under 1,000."""
    count = histogram.count
    if not count:
        return Distribution()
    buckets, counts = histogram.sparse()
    return Distribution(
        count=count,
        mean=histogram.mean,
        least=histogram.least,
        p50=histogram.quantile(0.5),
        p90=histogram.quantile(0.9),
        p95=histogram.quantile(0.95),
        p99=histogram.quantile(0.99) if count >= 100 else None,
        p999=histogram.quantile(0.999) if count >= 1000 else None,
        greatest=histogram.greatest,
        buckets=buckets,
        counts=counts,
    )


def a_phase(
    name: str = "load",
    *mixes: Mix,
    at: float = 0.0,
    seconds: float = 60.0,
    step: float = 1.0,
    seed: int = SEED,
    strain: StrainSummary | None = None,
    server: ServerCost | None = None,
    is_counted: bool = True,
) -> PhaseResults:
    """One phase of these tenants (victim and crowd where none are given), its time line in steps of `step` seconds."""
    mixes = mixes or (VICTIM, CROWD)
    made = [_made(mix, np.random.default_rng((seed, number)), seconds) for number, mix in enumerate(mixes)]
    return PhaseResults(
        name=name,
        at=at,
        load_seconds=seconds,
        seconds=seconds + 1.5,
        is_counted=is_counted,
        tenants=[_results(calls.mix.name, [calls], seconds) for calls in made],
        all=_results("all", made, seconds),
        jain_tokens=_jain([calls.tokens.sum() for calls in made]),
        jain_served=_jain([calls.is_done.mean() for calls in made if calls.is_done.size]),
        strain=strain or a_strain(),
        timeline={calls.mix.name: _timeline(calls, at, seconds, step) for calls in made},
        server=server,
    )


def a_strain(**changes: Any) -> StrainSummary:
    """A tool that kept up with ease."""
    easy = StrainSummary(
        timer_lag_p99=0.0006, send_lag_p99=0.0008, core=0.41, starved=0.004, pressure=0.03, rss_bytes=143 << 20
    )
    return msgspec.structs.replace(easy, **changes)


def a_server(**changes: Any) -> ServerCost:
    """A gateway that was watched by its pid."""
    cost = ServerCost(
        pid=4242,
        command="penstock serve penstock.yaml",
        cpu_seconds=31.4,
        core=0.523,
        us_a_chunk=11.8,
        us_a_request=184.0,
        rss_first_bytes=98 << 20,
        rss_last_bytes=104 << 20,
        rss_most_bytes=107 << 20,
    )
    return msgspec.structs.replace(cost, **changes)


def a_summary(**changes: Any) -> Summary:
    """A minute of two tenants, nothing wrong with it but some refusals."""
    return _summary([a_phase()], changes)


def a_noisy_neighbour(**changes: Any) -> Summary:
    """Alone, crowded, alone again, beside a server that was watched and whose counts were read."""
    crowded_victim = Mix("victim", rate=10, ttft=0.118, itl=0.027, spread=0.45, tail=0.03, output=128)
    phases = [
        a_phase("warmup", VICTIM, at=0, seconds=5, is_counted=False, server=a_server()),
        a_phase("alone", VICTIM, at=5, server=a_server(us_a_chunk=12.9, core=0.21, cpu_seconds=12.6)),
        a_phase("crowded", crowded_victim, CROWD, at=68, server=a_server()),
        a_phase("after", VICTIM, at=131, seed=SEED + 1, server=a_server(us_a_chunk=None, core=0.2, cpu_seconds=12.2)),
    ]
    isolation = [
        _isolation("victim", phases[1], phases[2], (0.04, 0.05), (0.22, 0.31)),
        _isolation("victim", phases[1], phases[3], (0.03, 0.03), (0.2, 0.27)),
    ]
    counts = [
        Count(
            name="penstock_tokens_total",
            labels={"tenant": results.name, "kind": "completion"},
            server=float(results.tokens_received + extra),
            client=float(results.tokens_received),
            source="/metrics",
        )
        for results, extra in zip(phases[2].tenants, (0, 37), strict=True)
    ]
    counts.append(Count(name="penstock_streams_open_most", labels={}, server=61, client=None, source="/metrics"))
    return _summary(phases, {"isolation": isolation, "counts": counts, **changes})


def a_sweep(**changes: Any) -> Summary:
    """Rising rates up to saturation near 31 calls a second, then halved."""
    phases, steps = [], []
    for number, load in enumerate((4.0, 6.0, 9.0, 13.5, 20.25, 30.375, 45.5625, 37.2, 33.6, 32.0)):
        is_saturated = load > 31.5
        done = min(load, 31.2)
        slowdown = 1 / (1 - min(load / 33, 0.93)) if not is_saturated else 14 + load
        mix = Mix("users", rate=done, ttft=0.045 * slowdown, itl=0.02 * (1 + done / 60), tail=0.01)
        phase = a_phase(f"{load:g}/s", mix, at=number * 22.0, seconds=20, seed=SEED + number)
        phases.append(phase)
        steps.append(
            SweepStep(
                load=load,
                phase=phase.name,
                done_per_second=done,
                tokens_per_second=phase.all.tokens_per_second,
                failed=12 if is_saturated else 0,
                ttft_p50=phase.all.ttft.p50,
                ttft_p99=phase.all.ttft.p99,
                ttft_slope=0.3 if is_saturated else 0.0004,
                ttft_slope_low=0.26 if is_saturated else -0.001,
                open_slope=load - done,
                open_slope_low=(load - done) * 0.9 - 0.01,
                open_most=round(load * 2),
                is_saturated=is_saturated,
                reason="first tokens came ever later, 0.3 s a second" if is_saturated else "",
            )
        )
    sweep = SweepResults(of="rate", steps=steps, saturation=31.2, stable=30.375, saturated=32.0, throughput=31.2)
    return _summary(phases, {"sweep": sweep, **changes}, sweep=Sweep(of="rate", start=4, most=100))


def a_soak(hours: float = 6.0, tenants: int = 3, **changes: Any) -> Summary:
    """A long run with a server that grows a little; its time line is as long as a tally keeps one."""
    seconds = hours * 3600
    mixes = [Mix(f"tenant-{number}", rate=0.4 + 0.1 * number) for number in range(tenants)]
    random = np.random.default_rng(SEED)
    at = np.arange(0, seconds, seconds / 3000)
    rss = (110 << 20) + at / 3600 * (1.4 * 2**20) + random.normal(0, 0.9 * 2**20, at.size)
    growth = Growth(
        bytes_per_hour=1.4 * 2**20,
        low=1.31 * 2**20,
        high=1.49 * 2**20,
        series=[(float(x), int(y)) for x, y in zip(at, rss, strict=True)],
    )
    phase = a_phase("soak", *mixes, seconds=seconds, step=seconds / 240, server=a_server())
    return _summary([phase], {"growth": growth, "name": "soak", **changes})


def a_crowd(tenants: int = 12, **changes: Any) -> Summary:
    """One phase of many tenants, each with its own speed."""
    mixes = [
        Mix(
            f"client-{number:02d}",
            rate=14 / (number + 1) ** 0.7,
            ttft=0.03 * 1.28 ** (number % 9),
            itl=0.015 * 1.1 ** (number % 7),
            codes={"503 no_capacity": 0.05} if number % 5 == 2 else {},
        )
        for number in range(tenants)
    ]
    return _summary([a_phase("replay", *mixes, seconds=120)], changes)


def a_strained_run(**changes: Any) -> Summary:
    """The tool stood still, shared its core, and had more calls due than streams to carry them."""
    strain = a_strain(
        timer_lag_p99=0.31, send_lag_p99=0.288, core=0.93, starved=0.22, pressure=0.47, stalls=[(21.3, 1.0)]
    )
    marks = [
        Mark(
            kind="client-bound",
            phase="load",
            text="The tool's 20-ms timer was late by 310 ms at p99 (limit 5 ms), and it stood still for 1.0 s at "
            "21.3 s: first-token times are partly its own. Run it on a core of its own, or offer less load.",
        ),
        Mark(
            kind="machine-bound",
            phase="load",
            text="Something waited for a core 47 % of the time (limit 20 %): target and tool shared too little CPU. "
            "Move one of them to another machine.",
        ),
        Mark(
            kind="censored",
            phase="load",
            text="312 calls were still open at the end and count as failed; the slowest may be missing from the "
            "latencies. Let the phase drain for longer.",
        ),
        Mark(kind="note", phase="", text="Requests were clipped to 2,048 tokens of input: 12 of 4,000."),
    ]
    return _summary([a_phase(strain=strain)], {"marks": marks, **changes})


def an_empty_run(**changes: Any) -> Summary:
    """Nobody was there: every call failed, and nothing was measured."""
    failed = Results(
        name="victim",
        scheduled=50,
        sent=50,
        failed=50,
        codes={"refused_connection": 50},
        ttft=Distribution(),
        ttft_from_sending=Distribution(),
        client_wait=Distribution(),
        itl=Distribution(),
        tpot=Distribution(),
        e2e=Distribution(),
    )
    phase = PhaseResults(
        name="load",
        at=0.0,
        load_seconds=5.0,
        seconds=5.0,
        is_counted=True,
        tenants=[failed],
        all=msgspec.structs.replace(failed, name="all"),
        strain=StrainSummary(),
    )
    return _summary([phase], {"ended": "interrupted", "seconds": 5.0, **changes})


@dataclass(frozen=True)
class _Calls:
    mix: Mix
    at: Floats
    ttft: Floats
    gaps: Floats  # one row a call
    is_done: npt.NDArray[np.bool_]
    codes: list[str]
    tokens: npt.NDArray[np.int64]


def _made(mix: Mix, random: np.random.Generator, seconds: float) -> _Calls:
    count = max(int(mix.rate * seconds), 1)
    ttft = mix.ttft * np.exp(random.normal(0, mix.spread, count))
    ttft[random.random(count) < mix.tail] *= 8
    kept = min(mix.output, 24)  # gaps kept of each call: enough for a shape
    gaps = mix.itl * np.exp(random.normal(0, 0.25, (count, kept)))
    fate = random.random(count)
    codes = np.full(count, "", dtype=object)
    low = 0.0
    for code, share in (*mix.codes.items(), ("cancelled", mix.cancelled)):
        codes[(fate >= low) & (fate < low + share)] = code
        low += share
    is_done = codes == ""
    tokens = np.where(is_done, mix.output, np.where(codes == "cancelled", mix.output // 4, 0))
    return _Calls(mix, np.sort(random.random(count)) * seconds, ttft, gaps, is_done, [str(c) for c in codes], tokens)


def _results(name: str, made: list[_Calls], seconds: float) -> Results:
    def joined(values: list[Floats]) -> Distribution:
        return a_distribution(np.concatenate([value.ravel() for value in values]))

    codes: dict[str, int] = {}
    for calls in made:
        for code in calls.codes:
            if code and code != "cancelled":
                codes[code] = codes.get(code, 0) + 1
    scheduled = sum(calls.at.size for calls in made)
    done = sum(int(calls.is_done.sum()) for calls in made)
    good = sum(int((calls.ttft[calls.is_done] <= TTFT_OBJECTIVE).sum()) for calls in made)
    received = sum(int(calls.tokens.sum()) for calls in made)
    asked = sum(calls.mix.output * calls.at.size for calls in made)
    cancelled = sum(calls.codes.count("cancelled") for calls in made)
    return Results(
        name=name,
        scheduled=scheduled,
        sent=scheduled,
        done=done,
        good=good,
        cancelled=cancelled,
        failed=sum(codes.values()),
        refused=sum(count for code, count in codes.items() if code.startswith(("429", "503"))),
        codes=codes,
        reused=scheduled // 2,
        events=received,
        reads=received,
        tokens_asked=asked,
        tokens_received=received,
        tokens_cancelled=sum(calls.codes.count("cancelled") * (calls.mix.output * 3 // 4) for calls in made),
        prompt_tokens_asked=scheduled * 128,
        prompt_tokens_reported=done * 128,
        done_per_second=done / seconds,
        good_per_second=good / seconds,
        tokens_per_second=received / seconds,
        share_served=received / asked if asked else None,
        ttft=joined([calls.ttft[calls.is_done] for calls in made]),
        ttft_from_sending=joined([calls.ttft[calls.is_done] - 1e-4 for calls in made]),
        client_wait=joined([np.full(calls.at.size, 1e-4) for calls in made]),
        itl=joined([calls.gaps[calls.is_done] for calls in made]),
        tpot=joined([calls.gaps[calls.is_done].mean(axis=1) for calls in made]),
        e2e=joined([(calls.ttft + calls.gaps.mean(axis=1) * calls.mix.output)[calls.is_done] for calls in made]),
    )


def _timeline(calls: _Calls, at: float, seconds: float, step: float) -> list[Moment]:
    moments = []
    ends = calls.at + calls.ttft + calls.gaps.mean(axis=1) * calls.mix.output
    failed = np.array([bool(code) and code != "cancelled" for code in calls.codes])
    for begin in np.arange(0, seconds, step):
        inside = (calls.at >= begin) & (calls.at < begin + step)
        histogram = Histogram()
        histogram.add(calls.ttft[inside & calls.is_done])
        buckets, counts = histogram.sparse()
        moments.append(
            Moment(
                at=at + float(begin),
                seconds=step,
                scheduled=int(inside.sum()),
                done=int((inside & calls.is_done).sum()),
                failed=int((inside & failed).sum()),
                tokens=int(calls.tokens[inside].sum()),
                open=int(((calls.at <= begin) & (ends > begin)).sum()),
                ttft_p50=histogram.quantile(0.5),
                ttft_p99=histogram.quantile(0.99) if histogram.count >= 100 else None,
                ttft_buckets=buckets,
                ttft_counts=counts,
            )
        )
    return moments


def _isolation(
    tenant: str,
    alone: PhaseResults,
    phase: PhaseResults,
    p50_width: tuple[float, float],
    p99_width: tuple[float, float],
) -> Isolation:
    """Of a tenant's first tokens; the intervals reach so far below and above the ratio."""
    before, now = (next(r for r in p.tenants if r.name == tenant).ttft for p in (alone, phase))
    assert before.p50 and now.p50 and before.p99 and now.p99
    p50, p99 = now.p50 / before.p50, now.p99 / before.p99
    return Isolation(
        tenant=tenant,
        alone=alone.name,
        phase=phase.name,
        calls_alone=before.count,
        calls=now.count,
        p50=p50,
        p50_interval=(p50 - p50_width[0], p50 + p50_width[1]),
        p99=p99,
        p99_interval=(p99 - p99_width[0], p99 + p99_width[1]),
    )


def _jain(values: list[Any]) -> float | None:
    total, squares = float(sum(values)), float(sum(value * value for value in values))
    return total * total / (len(values) * squares) if squares else None


def _summary(phases: list[PhaseResults], changes: dict[str, Any], sweep: Sweep | None = None) -> Summary:
    names = list(dict.fromkeys(results.name for phase in phases for results in phase.tenants))
    scenario = Scenario(
        target=Target(url="http://127.0.0.1:8080/v1", model="tiny"),
        tenants=tuple(
            Tenant(name, arrivals=Arrivals("poisson", rate=10.0), input=Span(64, 512), output=Span(64, 128))
            for name in names
        ),
        phases=tuple(
            Phase(phase.name, phase.load_seconds, tuple(results.name for results in phase.tenants)) for phase in phases
        ),
        seed=7,
        objectives=Objectives(ttft=TTFT_OBJECTIVE),
        sweep=sweep,
    )
    asked = msgspec.to_builtins(scenario)
    for tenant in asked["tenants"]:
        del tenant["key"]
    last = phases[-1]
    summary = Summary(
        name="neighbours",
        started="2026-11-07T14:03:22+01:00",
        seconds=last.at + last.seconds,
        ended="complete",
        url="http://127.0.0.1:8080/v1",
        model="tiny",
        scenario=asked,
        marks=[],
        phases=phases,
    )
    return msgspec.structs.replace(summary, **changes)
