"""How much a tenant suffers from its neighbours: its first tokens beside others, over those when it was alone.

The first counted phase in which a tenant was the only one is the measure; each other phase that it took part in is held
against it, those in which it was alone again too: they tell what the ratio does without any neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from loadtest.scenario import Phase
from loadtest.statistics import Interval, Stretches, interval, resampled_quantiles
from loadtest.summary import FEWEST_FOR_P99, Isolation, Moment, PhaseResults

SEED: Final = 20_240_607  # of the resampling alone: the same run is told with the same intervals


def isolation(phases: Sequence[tuple[Phase, PhaseResults]]) -> list[Isolation]:
    """For each tenant that was alone once and had neighbours in another phase: its phases against the first alone."""
    counted = [(phase, results) for phase, results in phases if results.is_counted]
    tenants = dict.fromkeys(name for phase, _ in counted for name in phase.tenants)
    found: list[Isolation] = []
    for tenant in tenants:
        took_part = [(phase, results) for phase, results in counted if tenant in phase.tenants]
        alone = next((results for phase, results in took_part if len(phase.tenants) == 1), None)
        if alone is not None and any(len(phase.tenants) > 1 for phase, _ in took_part):
            others = [results for _, results in took_part if results is not alone]
            found += [_against(tenant, alone, other) for other in others]
    return found


def ttft_of(moments: Sequence[Moment]) -> Stretches:
    """The first-token latencies of a time line."""
    return Stretches([(moment.ttft_buckets, moment.ttft_counts) for moment in moments])


def ttft_ratio(first: Stretches, second: Stretches, q: float) -> tuple[float, Interval] | None:
    """A TTFT quantile of the second over that of the first, with its 95 % interval by block bootstrap of both time
    lines; `None` where either has too few calls for it.
    """
    fewest = FEWEST_FOR_P99 if q > 0.9 else 2
    one, other = first.quantile(q), second.quantile(q)
    if one is None or other is None or min(first.count, second.count) < fewest:
        return None
    random = np.random.default_rng(SEED)
    draws = resampled_quantiles(first, second, q, random)
    return other / one, interval(draws[1] / draws[0])


def _against(tenant: str, alone: PhaseResults, other: PhaseResults) -> Isolation:
    first, second = ttft_of(alone.timeline[tenant]), ttft_of(other.timeline[tenant])
    p50, p99 = ttft_ratio(first, second, 0.5), ttft_ratio(first, second, 0.99)
    return Isolation(
        tenant=tenant,
        alone=alone.name,
        phase=other.name,
        calls_alone=first.count,
        calls=second.count,
        p50=p50[0] if p50 else None,
        p50_interval=p50[1] if p50 else None,
        p99=p99[0] if p99 else None,
        p99_interval=p99[1] if p99 else None,
    )
