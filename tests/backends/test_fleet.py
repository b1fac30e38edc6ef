from __future__ import annotations

from collections.abc import Collection

import pytest

from backends.engines.engine import Reading
from backends.engines.known import ENGINES
from backends.fleet import DOWN_AFTER_SECONDS, FRESH_SECONDS, STEPS, Fleet, PodState
from backends.outcome import Ending, Outcome
from tenancy.accounts import Capacity
from tenancy.policy import BreakerSettings, Pod, Policy, ServedModel
from tests.instruments.hand_clock import HandClock

OURS = "ours"
THEIRS = "theirs"


class House:
    """A fleet of one supervised pod and one that others run, and all that it said."""

    def __init__(self, **facts: object) -> None:
        tiny = (ServedModel("tiny", "tiny"),)
        pods = {
            OURS: Pod(OURS, ("gpu0",), tiny, engine="llama.cpp", slots=4),
            THEIRS: Pod(THEIRS, ("gpu0", "gpu1"), tiny, url="http://127.0.0.1:1", engine="vllm"),
        }
        self.clock = HandClock()
        self.changes = 0
        self.doubts: list[str] = []
        self.ejected: list[tuple[list[str], str]] = []
        self.fleet = Fleet(
            Policy(pods=pods, breaker=BreakerSettings(failures=3)),
            clock=self.clock,
            on_change=self._changed,
            on_doubt=self.doubts.append,
            on_eject=self._eject,
        )

    def _changed(self) -> None:
        self.changes += 1

    def _eject(self, pods: Collection[str], reason: str) -> None:
        self.ejected.append((list(pods), reason))

    def state(self, name: str) -> PodState:
        return self.fleet.pods[name].state

    def bring_up(self) -> None:
        self.fleet.started(OURS, "http://127.0.0.1:2")
        self.fleet.ready(OURS)
        self.fleet.ready(THEIRS)
        self.doubts.clear()
        assert self.state(OURS) is self.state(THEIRS) is PodState.READY


@pytest.fixture
def house() -> House:
    return House()


def test_every_state_has_its_row_in_the_table_and_none_leads_out_of_it() -> None:
    assert set(STEPS) == set(PodState)
    assert all(to in PodState and to is not state for state, targets in STEPS.items() for to in targets)
    assert STEPS[PodState.STOPPED] == frozenset()


def test_pods_start_as_coming(house: House) -> None:
    assert all(pod.state is PodState.STARTING and pod.is_coming for pod in house.fleet.pods.values())


def test_a_pod_without_an_address_cannot_become_ready(house: House) -> None:
    house.fleet.ready(OURS)
    assert house.state(OURS) is PodState.STARTING


def test_a_start_is_asked_about_at_once_and_ready_by_a_probe_alone(house: House) -> None:
    house.fleet.started(OURS, "http://127.0.0.1:2")
    assert house.doubts == [OURS]
    assert house.state(OURS) is PodState.STARTING
    house.fleet.report(OURS, Outcome(Ending.COMPLETE, 200))
    assert house.state(OURS) is PodState.STARTING
    house.fleet.ready(OURS)
    assert house.state(OURS) is PodState.READY


def test_each_change_is_told_once_and_what_is_derived_is_stale(house: House) -> None:
    before, version = house.changes, house.fleet.version
    house.fleet.ready(THEIRS)
    assert (house.changes, house.fleet.version) == (before + 1, version + 1)
    house.fleet.ready(THEIRS)
    house.fleet.report(THEIRS, Outcome(Ending.COMPLETE, 200))
    assert house.changes == before + 1


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.RESET])
def test_a_broken_connection_takes_out_our_own_pod_at_once_and_has_it_asked(house: House, ending: Ending) -> None:
    house.bring_up()
    house.fleet.report(OURS, Outcome(ending))
    assert house.state(OURS) is PodState.FAILING
    assert house.fleet.pods[OURS].is_coming
    assert house.doubts == [OURS]
    house.fleet.ready(OURS)
    assert house.state(OURS) is PodState.READY


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.RESET, Ending.CONNECT_TIMEOUT, Ending.STALLED])
def test_one_bad_outcome_has_somebody_elses_pod_asked_but_not_taken_out(house: House, ending: Ending) -> None:
    house.bring_up()
    house.fleet.report(THEIRS, Outcome(ending))
    assert house.state(THEIRS) is PodState.READY
    assert house.doubts == [THEIRS]


def test_several_bad_outcomes_in_a_row_take_a_pod_out_until_a_probe_succeeds(house: House) -> None:
    house.bring_up()
    for outcome in (Outcome(Ending.RESET), Outcome(Ending.RESET), Outcome(Ending.COMPLETE, 200), Outcome(Ending.RESET)):
        house.fleet.report(THEIRS, outcome)
    assert house.state(THEIRS) is PodState.READY
    house.fleet.report(THEIRS, Outcome(Ending.COMPLETE, 500))
    house.fleet.report(THEIRS, Outcome(Ending.MALFORMED, detail="no status line"))
    assert house.state(THEIRS) is PodState.FAILING
    assert house.fleet.pods[THEIRS].last_error == "no status line"
    house.fleet.ready(THEIRS)
    assert house.state(THEIRS) is PodState.READY
    assert house.fleet.pods[THEIRS].last_error == ""


@pytest.mark.parametrize(
    "outcome", [Outcome(Ending.LEFT), Outcome(Ending.COMPLETE, 503), Outcome(Ending.COMPLETE, 429)]
)
def test_leavings_and_a_full_engine_speak_against_nobody(house: House, outcome: Outcome) -> None:
    house.bring_up()
    for _ in range(10):
        house.fleet.report(THEIRS, outcome)
    assert house.state(THEIRS) is PodState.READY
    assert house.doubts == []


def test_a_probe_that_says_no_fails_the_pod_at_once_and_for_long_takes_it_down(house: House) -> None:
    house.bring_up()
    house.fleet.failed(THEIRS, "refused")
    assert house.state(THEIRS) is PodState.FAILING
    assert house.fleet.pods[THEIRS].is_coming
    house.clock.advance(DOWN_AFTER_SECONDS)
    house.fleet.failed(THEIRS, "refused")
    assert house.state(THEIRS) is PodState.DOWN
    assert not house.fleet.pods[THEIRS].is_coming
    assert house.fleet.pods[THEIRS].last_error == "refused"
    house.fleet.ready(THEIRS)
    assert house.state(THEIRS) is PodState.READY


def test_one_late_probe_is_forgiven_and_two_in_a_row_are_not(house: House) -> None:
    house.bring_up()
    house.fleet.failed(THEIRS, "late", is_certain=False)
    house.fleet.ready(THEIRS)
    house.fleet.failed(THEIRS, "late", is_certain=False)
    assert house.state(THEIRS) is PodState.READY
    house.fleet.failed(THEIRS, "late", is_certain=False)
    assert house.state(THEIRS) is PodState.FAILING


def test_a_pod_that_was_never_there_is_down_after_a_while_unless_it_is_ours_or_says_that_it_loads(house: House) -> None:
    house.fleet.started(OURS, "http://127.0.0.1:2")
    for _ in range(3):
        house.fleet.failed(OURS, "refused")
        house.fleet.failed(THEIRS, "loading", is_certain=False)
        house.clock.advance(DOWN_AFTER_SECONDS)
    assert house.state(OURS) is house.state(THEIRS) is PodState.STARTING
    house.fleet.failed(THEIRS, "refused")
    assert house.state(THEIRS) is PodState.DOWN


def test_a_supervised_pod_whose_process_ended_is_down_has_no_capacity_and_is_coming(house: House) -> None:
    house.bring_up()
    life = house.fleet.pods[OURS].life
    house.fleet.exited(OURS, "killed by SIGKILL")
    pod = house.fleet.pods[OURS]
    assert (pod.state, pod.url, pod.is_coming, pod.last_error) == (PodState.DOWN, None, True, "killed by SIGKILL")
    assert pod.life > life
    assert house.fleet.capacities()[OURS] is None
    house.fleet.started(OURS, "http://127.0.0.1:3")
    house.fleet.ready(OURS)
    assert house.fleet.capacities()[OURS] == Capacity(kv_bytes=None, slots=4)


def test_a_draining_pod_gets_nothing_new_whatever_probes_say_and_stops_with_its_process(house: House) -> None:
    house.bring_up()
    house.fleet.drain(OURS)
    house.fleet.ready(OURS)
    house.fleet.failed(OURS, "refused")
    house.fleet.report(OURS, Outcome(Ending.RESET))
    assert house.state(OURS) is PodState.DRAINING
    assert house.fleet.capacities()[OURS] is not None
    house.fleet.exited(OURS, "ended")
    assert house.state(OURS) is PodState.STOPPED
    house.fleet.started(OURS, "http://127.0.0.1:4")
    assert house.state(OURS) is PodState.STOPPED


def test_an_ejection_takes_out_every_pod_on_the_devices_and_tells_at_once(house: House) -> None:
    house.bring_up()
    lives = {name: pod.life for name, pod in house.fleet.pods.items()}
    house.fleet.eject({"gpu1"}, "Xid 94")
    assert house.ejected == [([THEIRS], "Xid 94")]
    assert (house.state(OURS), house.state(THEIRS)) == (PodState.READY, PodState.DOWN)
    house.fleet.eject(["gpu0"], "MPS server gone")
    assert house.ejected[1] == ([OURS], "MPS server gone")  # the other one is out already
    assert all(pod.life > lives[name] for name, pod in house.fleet.pods.items())


def test_readings_over_a_second_old_count_as_unknown(house: House) -> None:
    taken = Reading(asked_at=house.clock.now, running=1, kv_usage=0.5)
    house.fleet.take(THEIRS, taken)
    assert house.fleet.reading(THEIRS) == taken
    house.clock.advance(FRESH_SECONDS)
    assert house.fleet.reading(THEIRS) == taken
    house.clock.advance(0.001)
    assert house.fleet.reading(THEIRS) is None
    assert house.fleet.reading("nobody") is None


def test_a_reading_that_comes_late_does_not_replace_a_newer_one(house: House) -> None:
    house.fleet.take(THEIRS, Reading(asked_at=house.clock.now, running=2))
    house.fleet.take(THEIRS, Reading(asked_at=house.clock.now - 0.5, running=9))
    reading = house.fleet.reading(THEIRS)
    assert reading is not None
    assert reading.running == 2


def test_capacity_is_what_the_file_declares_and_else_what_the_pod_tells() -> None:
    told = Reading(asked_at=1000.0, kv_tokens=4096, slots=8, block_tokens=32)
    tiny = (ServedModel("tiny", "tiny"),)
    rows: list[tuple[dict[str, int], Capacity]] = [
        ({}, Capacity(kv_bytes=None, slots=8, block_tokens=32, kv_tokens=4096)),
        ({"concurrency": 64}, Capacity(kv_bytes=None, slots=64, block_tokens=32, kv_tokens=4096)),
        ({"concurrency": 64, "slots": 4}, Capacity(kv_bytes=None, slots=4, block_tokens=32, kv_tokens=4096)),
        ({"kv_memory_bytes": 1 << 30}, Capacity(kv_bytes=1 << 30, slots=8, block_tokens=32, kv_tokens=4096)),
    ]
    for facts, expected in rows:
        pod = Pod("p", ("p",), tiny, url="http://127.0.0.1:1", **facts)  # type: ignore[arg-type]
        fleet = Fleet(Policy(pods={"p": pod}), clock=HandClock())
        fleet.take("p", told)
        assert fleet.capacities()["p"] == expected


def test_a_size_once_told_is_kept_when_a_later_reading_leaves_it_out(house: House) -> None:
    house.fleet.take(THEIRS, Reading(asked_at=1000.0, kv_tokens=4096))
    changes = house.changes
    house.fleet.take(THEIRS, Reading(asked_at=1000.5, running=3))
    assert house.fleet.capacities()[THEIRS] == Capacity(kv_bytes=None, slots=None, kv_tokens=4096)
    assert house.changes == changes


def test_a_discovery_adds_pods_and_takes_them_away(house: House) -> None:
    house.fleet.add(Pod("found", ("gpu2",), (), url="http://127.0.0.1:5"))
    assert house.state("found") is PodState.STARTING
    assert house.doubts == ["found"]
    assert house.fleet.pods["found"].engine is None
    house.fleet.recognised("found", ENGINES["sglang"])
    assert house.fleet.pods["found"].engine is ENGINES["sglang"]
    house.fleet.remove("found")
    house.fleet.remove("found")
    assert "found" not in house.fleet.pods
    for tell in (house.fleet.ready, house.fleet.drain):
        tell("found")
    house.fleet.report("found", Outcome(Ending.RESET))


def test_a_new_policy_drains_what_it_leaves_out_and_brings_back_what_it_names_again(house: House) -> None:
    house.bring_up()
    whole = house.fleet.policy
    changes = house.changes
    house.fleet.adopt(Policy(pods={OURS: whole.pods[OURS]}))
    assert (house.state(OURS), house.state(THEIRS)) == (PodState.READY, PodState.DRAINING)
    assert house.changes == changes + 1
    house.fleet.adopt(whole)
    assert house.state(THEIRS) is PodState.STARTING
    house.fleet.ready(THEIRS)
    assert house.state(THEIRS) is PodState.READY


def test_what_is_told_may_call_back_into_the_fleet() -> None:
    pod = Pod("p", ("p",), (), url="http://127.0.0.1:1")
    seen: list[Capacity | None] = []
    fleet = Fleet(Policy(pods={"p": pod}), clock=HandClock(), on_change=lambda: seen.append(fleet.capacities()["p"]))
    fleet.ready("p")
    assert seen == [Capacity(kv_bytes=None, slots=None)]
