"""One phase's load in virtual time: what goes out when, what is told of it, and where it ends. See `stage` for what is
asked of every one of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from loadtest import load as load_module
from loadtest.load import FAILED_PAUSE_SECONDS
from loadtest.messages import Call, Lane
from loadtest.scenario import Arrivals, Cancel, Phase, Scenario, Span, Target, Tenant
from loadtest.schedule import Schedule
from loadtest.traces import TraceRows
from tests.loadtest.stage import (
    ALSO,
    DONE,
    FAULTS,
    FINISH,
    HEAD,
    STILL_AIR,
    URL,
    Plan,
    RoundingLoop,
    a_scenario,
    a_tenant,
    chunk,
    live,
    world,
)
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Weather

HISTORIES = 80


def ttft(call: Call) -> float:
    assert call.first is not None
    return call.first - call.scheduled


# ---- open loop


def test_latencies_run_from_the_schedule_while_the_cap_holds_calls_back() -> None:
    """Ten calls a second, of which each takes half a second, one at a time."""
    stage = world(plan=lambda _: Plan(ttft=0.3, itl=0.1))
    scenario = a_scenario(Arrivals("constant", rate=10), 2.0, target=Target(URL, "m", timeout_seconds=60.0))
    load_seconds, seconds, reason = live(stage, lambda: stage.run(stage.load(scenario, cap=1), cap=1))
    (calls,) = stage.calls
    assert (len(calls), load_seconds, reason) == (20, 2.0, "")
    # A call is over with its last token, here: 0.3 + 2 · 0.1, and 0.1 more until the server says that it was the last.
    for number, call in enumerate(calls):
        assert call.scheduled == pytest.approx(number * 0.1, abs=1e-6)
        assert call.sent == pytest.approx(number * 0.6, abs=1e-6)
        assert ttft(call) == pytest.approx(number * 0.5 + 0.3, abs=1e-6)
        assert call.ended - call.scheduled == pytest.approx(number * 0.5 + 0.6, abs=1e-6)
    assert seconds == pytest.approx(20 * 0.6, abs=1e-6)
    assert len(stage.lags) == 1  # what waits for the cap is no lag of the loop's


def test_calls_that_wait_go_in_the_order_in_which_they_were_due() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.05))
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("poisson", rate=50), 3.0), cap=2), cap=2))
    (calls,) = stage.calls
    by_sending = sorted(calls, key=lambda call: call.sent)
    assert [call.scheduled for call in by_sending] == sorted(call.scheduled for call in calls)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_due_in_the_last_moment_is_sent_whichever_timer_comes_first(seed: int) -> None:
    """The last call of a trace comes exactly when the phase that ends with it does."""
    times = np.array([0.0, 0.25, 0.7, 0.7])
    ones = np.ones(4, dtype=np.int32)
    rows = TraceRows(times, ones, ones, np.zeros(4, dtype=np.int16), np.zeros(4, dtype=np.uint8), True)
    for new_loop in (VirtualLoop, RoundingLoop):
        stage = world(seed, new_loop=new_loop)
        load_seconds, _, reason = live(stage, lambda: stage.run(stage.load(a_scenario(None, None), rows=rows)))  # noqa: B023
        assert (load_seconds, reason) == (0.7, "")
        assert [round(call.scheduled, 2) for call in stage.calls[0]] == [0.0, 0.25, 0.7, 0.7]


def test_calls_that_were_due_while_the_loop_stood_still_are_sent_late_and_none_is_left_out() -> None:
    """The tool itself stands still for a second, over the end of the load: who leaves them out does not see it."""
    stage = world()
    load = stage.load(a_scenario(Arrivals("constant", rate=100), 2.0))

    async def story() -> tuple[float, float, str]:
        stage.loop.call_later(1.5, stage.loop.pass_time, 1.0)
        return await stage.run(load)

    assert live(stage, story)[2] == ""
    (calls,) = stage.calls
    assert len(calls) == 200
    late = [call for call in calls if call.sent - call.scheduled > 0.001]
    assert len(late) >= 49
    for call in late:
        assert call.sent == pytest.approx(2.5, abs=0.002)
        assert ttft(call) == pytest.approx(2.5 + 0.01 - call.scheduled, abs=0.002)
    assert max(stage.lags) == pytest.approx(1.0, abs=0.02)


def test_a_timer_that_comes_early_makes_no_latency_shorter_than_it_was() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.002), new_loop=RoundingLoop)
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("poisson", rate=300), 5.0))))
    (calls,) = stage.calls
    assert len(calls) > 1200
    for call in calls:
        assert -1e-9 <= call.sent - call.scheduled < 0.002
        assert call.first is not None and call.first - call.sent > 0.0004


def test_servers_take_turns() -> None:
    stage = world(urls=(URL, ALSO))
    target = Target(URL, "m", also=(ALSO,))
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("constant", rate=20), 2.0, target=target))))
    assert stage.pods.at == {URL: 20, ALSO: 20}
    assert {call.code for call in stage.calls[0]} == {""}


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, "usage_mismatch"), ({"top_k": 1}, "usage_mismatch"), ({"n": 2}, ""), ({"max_tokens": 9}, "")],
)
def test_more_tokens_than_asked_for_are_a_fault_unless_the_body_may_ask_for_more(
    body: dict[str, Any], code: str
) -> None:
    stage = world()

    class Generous(asyncio.Protocol):
        """Reports one token more than were asked for."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            usage = b'data: {"choices":[],"usage":{"completion_tokens":4}}\n\n'
            event = FINISH.replace(b"{}", b'{"content":"x"}')
            data = HEAD + b"".join(map(chunk, (event, usage, DONE))) + b"0\r\n\r\n"
            self._transport.write(data)  # type: ignore[attr-defined]

    stage.network.listen(URL, Generous)
    target = Target(URL, "m", body=body)
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("constant", rate=1), 1.0, target=target))))
    assert [call.code for call in stage.calls[0]] == [code]


# ---- closed loop


def test_each_user_calls_again_when_it_has_thought_after_the_end_of_its_last_answer() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.2, itl=0.05))
    arrivals = Arrivals("closed", users=4, think=Span(0.3, 0.3))
    live(stage, lambda: stage.run(stage.load(a_scenario(arrivals, 5.0))))
    (calls,) = stage.calls
    # 0.2 + 3 · 0.05 for the answer, 0.3 for the thought
    assert Counter(round(call.scheduled / 0.65, 6) for call in calls) == {float(round_): 4 for round_ in range(8)}
    for call in calls:
        assert call.sent == pytest.approx(call.scheduled, abs=1e-6)


def test_without_a_thought_a_user_calls_again_at_once_and_the_latency_starts_there() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.1, itl=0.0))
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("closed", users=1), 1.05))))
    (calls,) = stage.calls
    assert len(calls) == 11
    for before, call in itertools.pairwise(calls):
        assert call.scheduled == pytest.approx(before.ended, abs=1e-6)


def test_users_come_and_go_with_the_scale() -> None:
    for scale, expected in (((0.0, 1.0), range(10)), ((1.0, 0.0), range(10, 0, -1))):
        stage = world(plan=lambda _: Plan(ttft=0.01, itl=0.0))
        arrivals = Arrivals("closed", users=10, think=Span(0.04, 0.04))
        live(stage, lambda: stage.run(stage.load(a_scenario(arrivals, 10.0, scale=scale))))  # noqa: B023
        # user number n calls while the scale asks for n + 1/2; 0.05 s a round, so twenty calls a second and user
        per_second = Counter(int(call.scheduled) for call in stage.calls[0])
        for second, users in enumerate(expected):
            assert per_second[second] == pytest.approx(20 * (users + (0.5 if scale[1] else -0.5)), abs=10)


def test_a_user_whose_connection_is_refused_does_not_try_again_at_once() -> None:
    stage = world()
    stage.network.listen(URL, None)
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("closed", users=3), 2.0))))
    (calls,) = stage.calls
    assert {call.code for call in calls} == {"refused_connection"}
    assert len(calls) == 3 * round(2.0 / FAILED_PAUSE_SECONDS)
    assert {call.sent - call.ended for call in calls} == {0.0}  # it never was


def test_a_user_that_waits_behind_the_cap_calls_once() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.5))
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("closed", users=10), 3.0), cap=2), cap=2))
    most = max(
        sum(call.scheduled <= at < call.ended for call in stage.calls[0]) for at in [n * 0.01 for n in range(300)]
    )
    assert most == 10


# ---- where it ends


@pytest.mark.parametrize("arrivals", [Arrivals("constant", rate=10), Arrivals("closed", users=3)])
def test_no_more_calls_go_out_than_are_allowed(arrivals: Arrivals) -> None:
    stage = world(plan=lambda _: Plan(ttft=0.05))
    load_seconds, _, reason = live(stage, lambda: stage.run(stage.load(a_scenario(arrivals, 60.0), most=25)))
    assert reason == "requests"
    assert len(stage.calls[0]) == len(stage.pods.arrived) == 25
    assert {call.code for call in stage.calls[0]} == {""}  # those that are open may end
    if arrivals.kind == "constant":
        assert load_seconds == pytest.approx(2.5, abs=1e-6)  # when the one too many was due


def test_as_many_as_allowed_is_no_end_before_the_time() -> None:
    stage = world()
    told = live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("constant", rate=10), 2.0), most=20)))
    assert told[0] == 2.0 and told[2] == ""


def test_a_phase_may_take_no_longer_than_is_allowed() -> None:
    stage = world()
    load = stage.load(a_scenario(Arrivals("constant", rate=10), 60.0), most_seconds=2.0)
    load_seconds, _, reason = live(stage, lambda: stage.run(load))
    assert (load_seconds, reason) == (2.0, "seconds")
    assert [call.scheduled for call in stage.calls[0]][-1] == pytest.approx(2.0)
    assert len(stage.calls[0]) == 21


def test_calls_of_all_tenants_count_towards_what_is_allowed_and_those_that_wait_still_go() -> None:
    tenants = (a_tenant(Arrivals("constant", rate=100), "a"), a_tenant(Arrivals("closed", users=2), "b"))
    scenario = Scenario(Target(URL, "m"), tenants, (Phase("p", 10.0, ("a", "b")),))
    stage = world(plan=lambda _: Plan(ttft=0.5))
    _, _, reason = live(stage, lambda: stage.run(stage.load(scenario, cap=4, most=30), cap=4))
    assert reason == "requests"
    assert sum(map(len, stage.calls)) == 30
    assert {call.code for calls in stage.calls for call in calls} == {""}


def test_what_waits_at_the_loads_end_may_go_until_the_drain_is_over_and_what_never_went_is_told() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.97, itl=0.01))  # a second a call
    load = stage.load(a_scenario(Arrivals("constant", rate=10), 2.0), cap=2, drain=3.5)
    load_seconds, seconds, reason = live(stage, lambda: stage.run(load, cap=2))
    assert (load_seconds, reason) == (2.0, "drain")
    assert seconds == pytest.approx(5.5, abs=1e-6)
    (lane,) = stage.lanes
    # two a second for five seconds, and two that are open when the time is up
    assert (lane.scheduled, lane.sent, lane.never_sent, lane.waiting) == (20, 12, 8, 8)
    assert Counter(call.code for call in stage.calls[0]) == {"": 10, "stopped": 2}
    assert len(stage.pods.arrived) == 12


def test_a_phase_leaves_nothing_to_the_next_one() -> None:
    """Those that wait when it ends do not slip out as the open ones are ended."""
    stage = world(plan=lambda _: Plan(fault="hang"), urls=(URL, ALSO))
    scenario = a_scenario(Arrivals("constant", rate=50), 1.0, target=Target(URL, "m", also=(ALSO,)))

    async def story() -> None:
        for _ in range(2):
            assert (await stage.run(stage.load(scenario, cap=3, drain=0.5), cap=3))[2] == "drain"
            assert [call.code for call in stage.calls[0]] == ["stopped"] * 3
            assert stage.lanes[0].never_sent == 47
            await asyncio.sleep(1.0)
            assert len(stage.pods.arrived) == 3 * stage.index

    live(stage, story)


@pytest.mark.parametrize("at", [0.0, 0.005, 0.25, 0.33, 1.0, 1.3])
def test_it_can_be_stopped_at_any_moment(at: float) -> None:
    stage = world(plan=lambda _: Plan(ttft=0.4))
    load = stage.load(a_scenario(Arrivals("constant", rate=20), 1.0), cap=5)

    async def story() -> tuple[float, float, str]:
        stage.loop.call_later(at, load.stop)
        stage.loop.call_later(at, load.stop)
        return await stage.run(load, cap=5)

    load_seconds, seconds, reason = live(stage, story)
    assert reason == "stopped"
    assert load_seconds == pytest.approx(min(at, 1.0), abs=1e-6)
    assert seconds == pytest.approx(at, abs=1e-6)
    assert {call.code for call in stage.calls[0]} <= {"", "stopped"}
    assert all(call.ended <= at + 1e-6 for call in stage.calls[0])


def test_stopped_before_it_began_it_ends_at_once() -> None:
    stage = world()
    load = stage.load(a_scenario(Arrivals("closed", users=3), 5.0))
    load.stop()
    load_seconds, seconds, reason = live(stage, lambda: stage.run(load))
    assert (load_seconds, seconds, reason) == (0.0, 0.0, "stopped")
    assert stage.lanes[0].scheduled == 0


def test_a_load_is_part_of_its_phase_though_a_timer_comes_early() -> None:
    stage = world(new_loop=RoundingLoop)

    async def story() -> tuple[float, float, str]:
        await asyncio.sleep(0.001)
        stage.loop.pass_time(0.0009)
        return await stage.run(stage.load(a_scenario(Arrivals("closed", users=0), 3.0)))

    load_seconds, seconds, _ = live(stage, story)
    assert load_seconds == seconds == 3.0


def test_a_load_without_calls_takes_its_time_and_ends() -> None:
    stage = world()
    load_seconds, seconds, reason = live(
        stage, lambda: stage.run(stage.load(a_scenario(Arrivals("closed", users=0), 3.0)))
    )
    assert (load_seconds, seconds, reason) == (3.0, pytest.approx(3.0), "")


def test_a_call_without_an_end_is_ended_by_its_time_limit() -> None:
    stage = world(plan=lambda number: Plan(fault="hang" if number % 2 else ""))
    scenario = a_scenario(Arrivals("constant", rate=10), 3.0, target=Target(URL, "m", timeout_seconds=1.0))
    assert live(stage, lambda: stage.run(stage.load(scenario)))[2] == ""
    codes = Counter(call.code for call in stage.calls[0])
    assert codes == {"": 15, "timeout": 15}
    for call in stage.calls[0]:
        if call.code:
            assert 1.0 <= call.ended - call.sent <= 1.25 + 1e-6  # looked for four times a second
            assert call.events == 1


def test_a_time_limit_runs_from_the_sending_however_long_a_call_waited_behind_the_cap() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.8, itl=0.01), weather=Weather(most_steps=0, splits=0.0, connect_steps=9))
    scenario = a_scenario(Arrivals("constant", rate=10), 1.0, target=Target(URL, "m", timeout_seconds=1.0))
    live(stage, lambda: stage.run(stage.load(scenario, cap=1), cap=1))
    assert [call.code for call in stage.calls[0]] == [""] * 10
    assert max(map(ttft, stage.calls[0])) > 6


def test_a_connection_that_is_never_made_is_ended_by_the_time_limit_too() -> None:
    stage = world()
    stage.network.silence(URL, True)
    scenario = a_scenario(Arrivals("constant", rate=10), 1.0, target=Target(URL, "m", timeout_seconds=0.5))
    live(stage, lambda: stage.run(stage.load(scenario)))
    assert [call.code for call in stage.calls[0]] == ["timeout"] * 10


# ---- what is told


def test_gaps_are_told_of_calls_that_are_done_or_were_left_and_of_no_others() -> None:
    """Odd calls fail after two tokens that came a second apart; gaps of the others are a tenth."""
    stage = world(plan=lambda number: Plan(itl=1.0, fault="cut", after=2) if number % 2 else Plan(itl=0.1))
    scenario = a_scenario(Arrivals("constant", rate=5), 4.0, output=6, cancel=Cancel(0.5, Span(3, 3)))
    told: list[Lane] = []
    load = stage.load(scenario)
    take = load.take

    async def story() -> None:
        load.take = lambda: told.append(take()[0]) or [told[-1]]  # type: ignore[method-assign,func-returns-value]
        await stage.run(load)

    live(stage, story)
    codes = Counter(call.code for call in stage.calls[0])
    assert codes["cut"] == 10 and codes[""] + codes["cancelled"] == 10 and codes["cancelled"] > 1
    whole = told[0].gaps.histogram()
    for lane in told[1:]:
        whole.merge(lane.gaps.histogram())
    assert whole.count == codes[""] * 5 + codes["cancelled"] * 2
    assert whole.greatest == pytest.approx(0.1, abs=1e-3) and whole.least == pytest.approx(0.1, abs=1e-3)


def test_a_left_call_is_left_after_as_many_events_as_it_was_to_be() -> None:
    stage = world()
    scenario = a_scenario(Arrivals("constant", rate=20), 2.0, output=8, cancel=Cancel(1.0, Span(3, 3)))
    live(stage, lambda: stage.run(stage.load(scenario)))
    assert {(call.code, call.events, call.completion_tokens) for call in stage.calls[0]} == {("cancelled", 3, -1)}


@pytest.mark.parametrize("keep_gaps", [False, True])
def test_raw_gaps_come_with_their_calls_where_they_are_wanted(keep_gaps: bool) -> None:
    stage = world(plan=lambda _: Plan(itl=0.001))
    stage.keep_gaps = keep_gaps
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("constant", rate=1), 1.0, output=3000))))
    (call,) = stage.calls[0]
    assert (call.code, call.gap_count) == ("", 2999)
    assert len(call.gaps) == (2999 if keep_gaps else 0)
    assert sum(call.gaps) == pytest.approx(2.999 if keep_gaps else 0.0, rel=1e-3)


def test_while_nobody_reads_memory_is_bounded_and_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MOST_KEPT_CALLS", 30)
    monkeypatch.setattr(load_module, "MOST_KEPT_GAPS", 50)
    stage = world()
    load = stage.load(a_scenario(Arrivals("constant", rate=20), 5.0, output=8))

    async def story() -> None:
        await load.run()
        assert all(len(state.gaps) <= 50 for state in load._lanes)
        (lane,) = load.take()
        assert (len(lane.calls), load.lost_calls) == (30, 70)
        assert (lane.scheduled, lane.sent, lane.events, lane.reads) == (100, 100, 800, 800)
        assert sum(lane.gaps.counts) == 700  # of all of them
        (lane,) = load.take()
        assert (lane.calls, lane.gaps.counts, lane.events) == ([], [], 800)

    live(stage, story)


def test_what_is_read_in_time_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MOST_KEPT_CALLS", 30)
    monkeypatch.setattr(load_module, "MOST_KEPT_RAW_GAPS", 300)
    stage = world()
    stage.keep_gaps = True
    load = stage.load(a_scenario(Arrivals("constant", rate=20), 5.0, output=8))
    live(stage, lambda: stage.run(load))
    assert (len(stage.calls[0]), load.lost_calls) == (100, 0)


def test_raw_gaps_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MOST_KEPT_RAW_GAPS", 70)
    stage = world()
    stage.keep_gaps = True
    load = stage.load(a_scenario(Arrivals("constant", rate=20), 5.0, output=8))

    async def story() -> None:
        await load.run()
        (lane,) = load.take()
        assert (len(lane.calls), load.lost_calls) == (10, 90)

    live(stage, story)


def test_events_of_calls_under_way_are_told_as_they_come() -> None:
    stage = world(plan=lambda _: Plan(ttft=0.1, itl=0.1))
    load = stage.load(a_scenario(Arrivals("constant", rate=1), 1.0, output=50))

    async def story() -> list[int]:
        running = stage.loop.create_task(load.run())
        events = []
        for _ in range(4):
            await asyncio.sleep(1.0)
            events.append(load.take()[0].events)
        await running
        return events

    assert live(stage, story) == [pytest.approx(10 * second, abs=1) for second in (1, 2, 3, 4)]


def test_many_calls_that_wait_and_fail_at_once_are_no_deep_recursion() -> None:
    stage = world()
    stage.network.listen(URL, None)
    live(stage, lambda: stage.run(stage.load(a_scenario(Arrivals("constant", rate=4000), 1.0), cap=1), cap=1))
    assert Counter(call.code for call in stage.calls[0]) == {"refused_connection": 4000}


# ---- histories


def draw_plan(random: Random, faults: float) -> Plan:
    fault = random.choice(list(FAULTS)) if random.random() < faults else ""
    return Plan(random.choice([0.0, 0.02, 0.3]), random.choice([0.0, 0.01, 0.07]), fault, random.randint(0, 3))


def draw_tenant(random: Random, name: str) -> Tenant:
    arrivals = random.choice(
        [
            Arrivals("constant", rate=random.choice([1.0, 20.0, 60.0])),
            Arrivals("poisson", rate=random.choice([1.0, 20.0, 60.0])),
            Arrivals("gamma", rate=20.0, burstiness=0.2),
            Arrivals("closed", users=random.randint(0, 8), think=random.choice([Span(0, 0), Span(0, 0.2)])),
        ]
    )
    cancel = Cancel(random.choice([0.2, 1.0]), Span(1, 4)) if random.random() < 0.5 else None
    return replace(a_tenant(arrivals, name, cancel=cancel), output=Span(1, random.choice([1, 5, 12])))


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_whatever_happens_every_call_is_accounted_for(seed: int) -> None:
    random = Random(f"{seed}/history")
    faults = random.choice([0.0, 0.0, 0.2, 0.6])
    plans = Random(f"{seed}/plans")
    urls = (URL, ALSO) if random.random() < 0.3 else (URL,)
    stage = world(
        seed,
        plan=lambda _: draw_plan(plans, faults),
        weather=random.choice([STILL_AIR, Weather()]),
        urls=urls,
        new_loop=random.choice([VirtualLoop, RoundingLoop]),
    )
    tenants = tuple(draw_tenant(random, name) for name in "abc"[: random.randint(1, 3)])
    limit = random.choice([0.3, 2.0, 60.0])
    stops = random.random() < 0.3
    refuses = random.random() < 0.2

    async def phase(scenario: Scenario) -> None:
        cap, most = random.choice([1, 4, 50, 1000]), random.choice([10, 1000, 100_000])
        drain = random.choice([0.0, 0.5, 30.0])
        load = stage.load(scenario, cap=cap, drain=drain, most=most)
        seconds = scenario.phases[0].seconds
        assert seconds is not None
        began = stage.loop.time()
        stop_at = random.uniform(0, seconds * 1.3) if stops else None
        if stop_at is not None:
            stage.loop.call_later(stop_at, load.stop)
        if refuses:
            stage.loop.call_later(seconds * 0.3, stage.network.listen, URL, None)
            stage.loop.call_later(seconds * 0.7, stage.network.listen, URL, stage.pods.door(URL))
        load_seconds, took, reason = await stage.run(load, cap)
        assert reason in ("", "requests", "drain", "stopped")
        assert 0 <= load_seconds <= min(took, seconds) + 1e-6
        assert took <= seconds + drain + 0.01
        scheduled = sum(lane.scheduled for lane in stage.lanes)
        assert scheduled <= most
        if reason == "requests":
            assert scheduled == most
        if reason == "":
            assert load_seconds == seconds
            assert not any(lane.never_sent for lane in stage.lanes)
        planned = Counter(call.lane for call in Schedule(scenario, scenario.phases[0], None))
        for number, (tenant, lane) in enumerate(zip(tenants, stage.lanes, strict=True)):
            assert tenant.arrivals is not None
            if tenant.arrivals.kind != "closed" and reason in ("", "drain") and load_seconds == seconds:
                assert lane.scheduled == planned[number]
            for call in stage.calls[number]:
                check(call, began, load_seconds)

    def check(call: Call, began: float, load_seconds: float) -> None:
        """One call against what the server knows of it."""
        assert -1e-9 <= call.scheduled <= call.sent + 1e-9
        assert call.scheduled <= load_seconds + 0.002  # a timer's grain
        assert call.sent <= call.ended
        served = stage.pods.served.get(call.request_id)
        if served is None:
            assert call.code in ("refused_connection", "timeout", "stopped", "cut") and not call.events
            return
        if call.first is not None:
            assert call.last is not None and call.events
            assert call.sent <= call.first <= call.last <= call.ended
            # the network takes up to 3 ms, and what is written together may come together
            assert -1e-6 <= began + call.first - served.tokens[0] <= 0.0031
            assert -1e-6 <= began + call.last - served.tokens[call.events - 1] <= 0.0031
        else:
            assert not call.events and call.code != "cancelled"
        assert call.events <= len(served.tokens)
        if call.code == "":
            assert call.events == served.output == call.completion_tokens and served.is_whole
            assert call.gap_count <= call.events - 1
        elif call.code == "cancelled":
            assert call.events <= served.output
        elif call.code not in ("timeout", "stopped"):
            assert served.plan.fault, call
            # a reset may take with it what was on its way, and who is sent again may meet a closed door
            is_other = served.plan.fault == "reset" or (refuses and call.code == "refused_connection")
            assert is_other or call.code == FAULTS[served.plan.fault]

    async def story() -> None:
        for number in range(random.randint(1, 2)):
            seconds = random.choice([0.5, 2.0])
            scale = random.choice([(1.0, 1.0), (0.0, 2.0), (1.0, 0.0)])
            names = tuple(tenant.name for tenant in tenants)
            phases = (Phase(f"p{number}", seconds, names, scale),)
            target = Target(URL, "m", timeout_seconds=limit, also=urls[1:])
            await phase(Scenario(target, tenants, phases, seed=seed))

    live(stage, story)
