"""In search of the load that a target just keeps up with: which load next, whether one was too much, what was found.

Pure: the plan gives a phase, is told how it went, and gives the next. Loads rise by a factor until a step saturates the
target, then the bracket between the last load kept up with and the first that was not is halved, until its ends are
within a ratio of each other.

**A rate is too much** where work piles up: the first token comes later the later a call is due, and more and more calls
are open. Both slopes must be positive with 95 % confidence, and by more than half a percent of overload: of a queue
that is given `x` percent more than it can serve, the wait grows by `x` hundredths of a second each second. Or where
more than 2 % of calls fail. The first part of a step is left out, in which calls fill the target and none ends.

**Users are too many** where more of them get no more done: a closed loop never piles up more than its users. The knee
is where the line of few users (each as fast as alone) meets the plateau (operational analysis: Denning and Buzen, ACM
Computing Surveys 10, 1978).

Whether a Poisson stream of some hundred calls is above or below the capacity hangs on how many came by chance, and the
bracket with it; how fast a target works while it is overloaded does not. So the capacity is told by the rate of answers
in the steps that were clearly too much, and that rate by turn decides on the steps that chance left open. In simulated
queues (4 slots of 0.5 s to 200 of 2 s, steps of 20 s) what is found is within 4 % of slots by service time where all
take as long, and within 8 % where they vary by half. It cannot be nearer than chance lets a step tell a mean: where
they vary as much as themselves, 150 calls a step tell it within 8 %, one standard deviation.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from loadtest.histogram import Floats
from loadtest.scenario import Phase, Scenario, Sweep
from loadtest.statistics import Slope, ordinary_slope, walking_slope
from loadtest.summary import PhaseResults, SweepResults, SweepStep

LEAST_OVERLOAD: Final = 0.005  # seconds of TTFT a second, and share of the calls offered that stay open
CLEAR_OVERLOAD: Final = 1.1  # calls offered by calls done, from which on a step's pace is the target's, not the load's
MOST_FAILED: Final = 0.02
SLOWED: Final = 1.15  # calls done before overload by calls done in it
LEAST_PART: Final = 0.75  # of a step: where bounds or a user end it before, it tells nothing
LEAST_GAIN: Final = 0.05  # of throughput, for half as many users again
KNEE: Final = 0.95  # of the plateau's throughput: where fewer users have that, the plateau begins before them
CLEAR_FEWER: Final = 1.5  # users at the knee by users that do not wait for each other
USUAL_FACTOR: Final = 1.5
MOST_DOWNWARD: Final = 8  # steps below the start, where that was too much already
FILLING_CALLS: Final = 2  # median calls that a step is given to fill the target
CALLS_IN_A_STEP: Final = 6  # a step is at least so many median calls long


class SweepPlan:
    """One sweep. `next` and `judge` take turns; `results` may be asked for at any time."""

    def __init__(self, sweep: Sweep, scenario: Scenario) -> None:
        self._sweep = sweep
        self._tenants = tuple(tenant.name for tenant in scenario.tenants)
        arrivals = [tenant.arrivals for tenant in scenario.tenants if tenant.arrivals is not None]
        self._unit = math.fsum(each.rate if sweep.of == "rate" else each.users for each in arrivals)
        assert self._unit > 0, f"no tenant has {sweep.of}"
        self._steps: list[SweepStep] = []
        self._failing: list[str] = []  # of each step: why too many of its calls failed, or nothing
        self._own_waits: list[str] = []  # of each: a word where its calls waited for us, or nothing
        self._has_plateau = False  # whether more users were seen to get no more done
        self._load = self._seconds = 0.0  # of the step that was given last
        self._is_cut_short = False
        self._call_seconds = 0.0  # of a median call, its wait left out

    def next(self) -> Phase | None:
        """The next step as a phase; `None` where the sweep is over. A step is at least six median calls long."""
        load = self._next_load()
        if load is None or self._is_cut_short:
            return None
        self._load = load
        self._seconds = max(self._sweep.step_seconds, CALLS_IN_A_STEP * self._call_seconds)
        scale = load / self._unit
        return Phase(f"{self._sweep.of} {load:g}", self._seconds, self._tenants, (scale, scale))

    def judge(
        self, results: PhaseResults, ttft_points: tuple[Floats, Floats], open_points: tuple[Floats, Floats]
    ) -> SweepStep:
        """How the step went that `next` gave last: its results, (due, TTFT) of its calls and (time, open) of its
        samples, times in seconds from its start. A word on users may change the verdict on steps before.
        """
        end = results.load_seconds
        self._is_cut_short = end < LEAST_PART * self._seconds
        self._call_seconds = _call_seconds(results)
        start = min(max(FILLING_CALLS * self._call_seconds, end / 10), end / 2)
        ttft, opened = _slope(ttft_points, start, end), _slope(open_points, start, end)
        step = SweepStep(
            load=self._load,
            phase=results.name,
            offered_per_second=results.all.scheduled / end if end > 0 else 0.0,
            done_per_second=_pace(results, start, end, "done"),
            tokens_per_second=_pace(results, start, end, "tokens"),
            failed=results.all.failed,
            ttft_p50=results.all.ttft.p50,
            ttft_p99=results.all.ttft.p99,
            ttft_slope=ttft.slope,
            ttft_slope_low=_told(ttft),
            open_slope=opened.slope,
            open_slope_low=_told(opened),
            open_most=int(open_points[1].max(initial=0)),
            is_saturated=False,
        )
        if self._is_cut_short:
            step.reason = f"ended after {end:.3g} of {self._seconds:.3g} s: not judged"
            return step
        self._steps.append(step)
        self._failing.append(_failing(results))
        self._own_waits.append(_own_wait(results))
        if self._sweep.of == "rate":
            self._judge_rates()
        else:
            self._judge_users()
        return step

    def _judge_rates(self) -> None:
        """What a clear step has shown of the target's pace decides on those that chance leaves open."""
        for step, failing in zip(self._steps, self._failing, strict=True):
            step.reason = failing or _piling_up(step)
            step.is_saturated = bool(step.reason)
        pace = self._throughput()
        for step, own_wait in zip(self._steps, self._own_waits, strict=True):
            if pace is not None and not step.is_saturated:
                step.reason = _more_than(step, pace)
                step.is_saturated = bool(step.reason)
            step.reason += own_wait if step.is_saturated else ""

    def _judge_users(self) -> None:
        """Once more of them got no more done, over two steps lest it was chance, all beyond the knee are too many."""
        step = self._steps[-1]
        before = self._steps[-3:-1] if step.load < self._sweep.most else self._steps[-2:-1]
        if not self._has_plateau and len(before) == (2 if step.load < self._sweep.most else 1):
            rose = math.log(step.load / before[0].load) / math.log(USUAL_FACTOR)
            is_flat = step.done_per_second < (1 + LEAST_GAIN) ** rose * before[0].done_per_second
            self._has_plateau = rose > 0 and is_flat and not any(self._failing[-3:])
        knee = self._knee() if self._has_plateau else None
        for each, failing in zip(self._steps, self._failing, strict=True):
            each.reason = failing or (_beyond(each, knee) if knee is not None else "")
            each.is_saturated = bool(each.reason)

    def results(self) -> SweepResults:
        """What was found so far, and the bracket: the last load that was kept up with, and the first that was not.

        Where chance put one of those on the wrong side of what was found, that is the bracket's end.
        """
        throughput = self._throughput()
        stable, saturated = self._stable(), self._saturated()
        low, high = stable.load if stable else None, saturated.load if saturated else None
        found = None
        if stable is not None and saturated is not None:
            found = self._knee() if self._sweep.of == "users" else throughput
        if found is not None and stable is not None and saturated is not None:
            if self._failing[self._steps.index(saturated)]:
                # what it does in overload it does by failing calls: it keeps up with less
                found = min(max(found, stable.load), saturated.load)
            elif self._sweep.of == "rate" and stable.done_per_second > SLOWED * found:
                found = stable.done_per_second  # overload slows this target down
            low, high = min(stable.load, found), max(saturated.load, found)
        return SweepResults(
            of=self._sweep.of, steps=self._steps, saturation=found, stable=low, saturated=high, throughput=throughput
        )

    def _next_load(self) -> float | None:
        sweep, stable, saturated = self._sweep, self._stable(), self._saturated()
        if not self._steps:
            return self._rounded(sweep.start)
        if saturated is None:
            last = self._steps[-1].load
            higher = min(max(self._rounded(last * sweep.factor), last + 1 if sweep.of == "users" else last), sweep.most)
            return higher if higher > last else None
        if stable is None:
            if not any(step.done_per_second for step in self._steps[-2:]) and len(self._steps) > 1:
                return None  # it is not the load
            lower = self._rounded(saturated.load / sweep.factor)
            return lower if 0 < lower < saturated.load and len(self._steps) <= MOST_DOWNWARD else None
        middle = self._rounded(math.sqrt(stable.load * saturated.load))
        is_found = saturated.load / stable.load <= 1 + sweep.within or not stable.load < middle < saturated.load
        return None if is_found else middle

    def _rounded(self, load: float) -> float:
        """Whole users, and rates of four digits."""
        return float(round(load)) if self._sweep.of == "users" else float(f"{load:.4g}")

    def _stable(self) -> SweepStep | None:
        """The greatest load that was kept up with, below the least that was not."""
        saturated = self._saturated()
        below = [
            step for step in self._steps if not step.is_saturated and (not saturated or step.load < saturated.load)
        ]
        return max(below, key=_load, default=None)

    def _saturated(self) -> SweepStep | None:
        """The least load that was too much."""
        return min((step for step in self._steps if step.is_saturated), key=_load, default=None)

    def _throughput(self) -> float | None:
        """Calls a second that the target does when it has more than enough to do.

        Told by the steps that were offered clearly more than that, whatever became of them: those that only just
        saturated it were chosen by a slow moment.
        """
        saturated = [step for step in self._steps if step.is_saturated]
        if not saturated:
            return None
        if self._sweep.of == "users":
            return _mean_pace(saturated)
        pace = max(saturated, key=_load).done_per_second
        for _ in range(2):
            clear = [step for step in saturated if step.offered_per_second >= CLEAR_OVERLOAD * pace]
            pace = _mean_pace(clear or saturated)
        return pace

    def _knee(self) -> float | None:
        """How many users it takes to reach the plateau, were each as fast as where they are few; `None`: not told."""
        fewest, *_ = steps = sorted(self._steps, key=_load)
        plateau = max(step.done_per_second for step in steps)
        if not 0 < fewest.done_per_second < KNEE * plateau:
            return fewest.load / 2 if plateau else None  # all are on the plateau: fewer are to be tried
        each = fewest.done_per_second / fewest.load
        for _ in range(3):
            knee = plateau / each
            few = [step for step in steps if step.load <= max(knee / CLEAR_FEWER, fewest.load)]
            many = [step for step in steps if step.load >= knee] or steps[-1:]
            each = math.fsum(step.done_per_second for step in few) / math.fsum(step.load for step in few)
            plateau = _mean_pace(many)
        return plateau / each


def _load(step: SweepStep) -> float:
    return step.load


def _mean_pace(steps: list[SweepStep]) -> float:
    return math.fsum(step.done_per_second for step in steps) / len(steps)


def _beyond(step: SweepStep, knee: float) -> str:
    return f"more users than {knee:.4g}, from where on they wait for each other" if step.load > knee else ""


def _failing(results: PhaseResults) -> str:
    """Why too many calls fail, or nothing; those that we stopped ourselves have not failed, if others were done."""
    if results.all.scheduled and not results.all.done + results.all.cancelled:
        return f"none of {results.all.scheduled:,} calls was done"
    ended = results.all.done + results.all.cancelled + results.all.failed
    failed = results.all.failed - results.all.codes.get("stopped", 0)
    if failed <= MOST_FAILED * max(ended, 1):
        return ""
    codes = ", ".join(code for code in results.all.codes if code != "stopped")
    return f"{failed / ended:.1%} of calls failed ({codes})"


def _own_wait(results: PhaseResults) -> str:
    """A word where calls waited for our own cap on open streams more than for the target, or nothing."""
    wait, ttft = results.all.client_wait.mean, results.all.ttft
    if wait is None or ttft.mean is None or ttft.least is None or wait <= max((ttft.mean - ttft.least) / 2, 0.01):
        return ""
    return "; but most of the wait was for this tool's cap on open streams: allow more of them"


def _piling_up(step: SweepStep) -> str:
    """Why the rate is too much, or nothing."""
    if step.ttft_slope_low <= LEAST_OVERLOAD or step.open_slope_low <= LEAST_OVERLOAD * step.offered_per_second:
        return ""
    return f"each second TTFT grew by {step.ttft_slope * 1000:.0f} ms and open calls by {step.open_slope:.2g}"


def _more_than(step: SweepStep, pace: float) -> str:
    """Why the rate is too much, told by what the target does in steps that clearly were, or nothing."""
    is_growing = step.ttft_slope > LEAST_OVERLOAD and step.open_slope > LEAST_OVERLOAD * step.offered_per_second
    if not is_growing or step.offered_per_second <= pace * (1 + LEAST_OVERLOAD):
        return ""
    return f"TTFT and open calls grew, and {step.offered_per_second:.4g} calls a second came where {pace:.4g} get done"


def _call_seconds(results: PhaseResults) -> float:
    """How long the median call took once it had its turn: its TTFT is taken to be that of the fastest one."""
    e2e, ttft = results.all.e2e.p50, results.all.ttft
    if e2e is None:
        return 0.0
    return e2e if ttft.p50 is None or ttft.least is None else max(e2e - ttft.p50 + ttft.least, 0.0)


def _slope(points: tuple[Floats, Floats], start: float, end: float) -> Slope:
    times, values = points
    within = (times >= start) & (times <= end)
    return min(
        ordinary_slope(times[within], values[within]),
        walking_slope(times[within], values[within]),
        key=lambda slope: slope.high - slope.low,
    )


def _told(slope: Slope) -> float:
    """The lower end as a number that JSON has: where nothing is known, the slope is not shown to be positive."""
    return slope.low if math.isfinite(slope.low) else min(slope.slope, 0.0)


def _pace(results: PhaseResults, start: float, end: float, what: str) -> float:
    """How many a second between two times: the slope of their sum over time, which minds bursts less than a count does.

    Answers of equal length that began together end together: a count over some of their periods is off by up to one.
    """
    ends: list[float] = []
    amounts: list[int] = []
    for moments in zip(*results.timeline.values(), strict=True):
        ends.append(moments[0].at - results.at + moments[0].seconds)
        amounts.append(sum(getattr(moment, what) for moment in moments))
    times, sums = np.array(ends), np.cumsum(np.array(amounts, dtype=np.float64))
    within = (times >= start) & (times <= end + 1e-9)
    return max(ordinary_slope(times[within], sums[within]).slope, 0.0) if within.sum() > 1 else 0.0
