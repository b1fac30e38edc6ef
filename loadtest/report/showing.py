"""What a run tells while it goes on, as the live view wants it: how far it is, how its tenants and the tool fare."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from types import TracebackType

from loadtest.histogram import Histogram
from loadtest.messages import CANCELLED, Call, Progress, Strain
from loadtest.report.live import view_for
from loadtest.report.live_state import LiveState, LiveStrain, LiveTenant
from loadtest.scenario import Phase, Scenario
from loadtest.strain import StrainTotal, marks
from loadtest.summary import PhaseResults, SweepStep
from loadtest.tally import LaneNow, Now

LATELY = 20  # messages, so five seconds
WARNINGS = {
    "client-bound": "the tool itself is late, or its core is full; its own delay is in these latencies",
    "machine-bound": "this machine's cores are taken; these figures are its own, not the target's alone",
}
MOST_CODES = 50  # told apart in one phase of one tenant


class Showing:
    """Shows a run while it is inside its `with` block: a live view, or plain lines."""

    def __init__(self, scenario: Scenario, name: str, *, is_plain: bool) -> None:
        self._name = name
        self._view = view_for(is_plain, sys.stderr)
        self._planned = _planned(scenario)
        self._is_sweep = scenario.sweep is not None
        self._passed = 0.0
        self._number = 0
        self._codes: dict[str, Counter[str]] = defaultdict(Counter)
        self._strains: deque[Strain] = deque(maxlen=LATELY)
        self._steps: list[SweepStep] = []

    def __enter__(self) -> Showing:
        self._view.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._view.stop()

    def note(self, text: str) -> None:
        """Say something that does not belong to the figures."""
        self._view.note(text)

    def phase_begins(self, phase: Phase, number: int, is_counted: bool) -> None:
        self._number = number + 1
        self._codes.clear()
        self._strains.clear()

    def calls_ended(self, phase: Phase, tenant: str, calls: Sequence[Call], started_epoch: float) -> None:
        codes = self._codes[tenant]
        codes.update(call.code for call in calls if call.code not in ("", CANCELLED))
        if len(codes) > MOST_CODES:
            self._codes[tenant] = Counter(dict(codes.most_common(MOST_CODES)))

    def progressed(self, now: Now, progress: Progress) -> None:
        self._strains.append(progress.strain)
        phase_seconds = now.phase.seconds
        passed = self._passed + min(now.seconds, phase_seconds or now.seconds)
        self._view.update(
            LiveState(
                name=self._name,
                phase=now.phase.name,
                phase_number=self._number,
                phases=None if self._is_sweep else len(self._planned),
                seconds=now.seconds,
                phase_seconds=phase_seconds,
                tenants=[self._tenant(lane) for lane in now.lanes],
                all=self._tenant(now.all),
                progress=None if (whole := self._whole()) is None else min(passed / whole, 1.0),
                remaining_seconds=None if whole is None else max(whole - passed, 0.0),
                strain=self._strain(),
                warnings=self._warnings(),
                steps=tuple(self._steps),
            )
        )

    def phase_ended(self, results: PhaseResults, step: SweepStep | None) -> None:
        self._passed += results.load_seconds
        if step is not None:
            self._steps.append(step)

    def _whole(self) -> float | None:
        """Seconds of load in all, where they are known."""
        if self._is_sweep or any(seconds is None for seconds in self._planned):
            return None
        return sum(seconds for seconds in self._planned if seconds is not None) or None

    def _tenant(self, lane: LaneNow) -> LiveTenant:
        codes = self._codes.get(lane.name) or Counter()
        if lane.name not in self._codes:  # all together
            for each in self._codes.values():
                codes += each
        return LiveTenant(
            name=lane.name,
            scheduled=lane.scheduled,
            sent=lane.sent,
            open=lane.open,
            waiting=lane.waiting,
            done=lane.done,
            failed=lane.failed,
            refused=lane.refused,
            tokens_per_second=lane.tokens_per_second,
            ttft_p50=lane.ttft_p50,
            ttft_p99=lane.ttft_p99,
            itl_p50=lane.itl_p50,
            itl_p99=lane.itl_p99,
            worst_code=max(codes, key=codes.__getitem__, default=""),
        )

    def _strain(self) -> LiveStrain:
        lag = Histogram()
        for strain in self._strains:
            lag.merge(strain.timer_lag.histogram())
        seconds = sum(strain.seconds for strain in self._strains)
        told = [strain for strain in self._strains if strain.pressure >= 0]
        return LiveStrain(
            timer_lag_p99=lag.quantile(0.99),
            core=sum(strain.cpu_seconds for strain in self._strains) / seconds if seconds else None,
            pressure=sum(strain.pressure for strain in told) / len(told) if told else None,
        )

    def _warnings(self) -> list[str]:
        """What is wrong with the run itself lately, in words that stay while it is so: figures come at the end."""
        lately = StrainTotal()
        for strain in self._strains:
            lately.add(strain)
        return [f"{mark.kind}: {WARNINGS[mark.kind]}" for mark in marks(lately.summary(), "")]


def _planned(scenario: Scenario) -> list[float | None]:
    """Seconds of each phase, the warm-up among them."""
    warm_up: list[float | None] = [scenario.warmup_seconds] if scenario.warmup_seconds else []
    return warm_up + [phase.seconds for phase in scenario.phases]
