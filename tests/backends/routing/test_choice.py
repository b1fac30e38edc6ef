from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engines.engine import Reading
from backends.fleet import Fleet, PodState
from backends.routing.choice import Choice
from tenancy.call import Call, Kind
from tenancy.policy import Key, Model, Pod, Policy, Profile, ServedModel, Tenant
from tests.instruments.hand_clock import HandClock

TINY = (ServedModel("tiny", "tiny"),)


class View:
    """A ledger's figures, made up."""

    def __init__(self, shares: dict[str, float] | None = None, calls: dict[str, int] | None = None) -> None:
        self.shares = shares or {}
        self.calls = calls or {}

    def load(self, pod: str) -> tuple[float, int]:
        return self.shares.get(pod, 0.0), self.calls.get(pod, 0)


def pod(name: str, **facts: object) -> Pod:
    return Pod(name, (f"gpu-of-{name}",), TINY, url="http://127.0.0.1:1", **facts)  # type: ignore[arg-type]


def fleet_of(pods: Sequence[Pod], *tenants: Tenant, clock: HandClock | None = None) -> Fleet:
    policy = Policy(
        profiles={
            "inference": Profile("inference"),
            "batch": Profile("batch"),
            "alone": Profile("alone", gpu_share=False),
        },
        models={"tiny": Model("tiny"), "other": Model("other")},
        pods={each.name: each for each in pods},
        tenants={each.name: each for each in tenants or (Tenant("acme", profile="inference"),)},
    )
    fleet = Fleet(policy, clock=clock or HandClock())
    for each in pods:
        fleet.ready(each.name)
    return fleet


def call_of(tenant: str = "acme") -> Call:
    return Call("c", Tenant(tenant, profile="inference"), Key("0" * 64, "k"), Kind.CHAT, "tiny", 0.0)


def choose(choice: Choice, ready: Sequence[str], fitting: Sequence[str], view: View | None = None) -> str | None:
    return choice.choose(call_of(), ready, lambda name: name in fitting, view or View())


def test_only_pods_that_are_ready_and_allowed_are_given_out() -> None:
    pods = [pod("a"), pod("b"), pod("c", tenants=frozenset({"globex"})), pod("d", profiles=frozenset({"batch"}))]
    fleet = fleet_of(pods)
    choice = Choice(fleet, Random(1))
    assert choice.serving("acme", "tiny").ready == ("a", "b")
    assert choice.serving("acme", "other").ready == ()
    assert choice.serving("nobody", "tiny").ready == ()
    fleet.drain("a")
    assert choice.serving("acme", "tiny").ready == ("b",)


def test_calls_wait_for_a_pod_that_is_coming_and_for_no_other() -> None:
    ours = Pod("ours", ("gpu0",), TINY, engine="simulator")
    fleet = fleet_of([pod("theirs"), ours])
    choice = Choice(fleet, Random(1))
    assert not choice.serving("acme", "tiny").is_coming
    fleet.failed("theirs", "refused")
    assert (choice.serving("acme", "tiny").ready, choice.serving("acme", "tiny").is_coming) == ((), True)
    fleet.remove("theirs")
    fleet.exited("ours", "crashed")
    assert choice.serving("acme", "tiny").is_coming
    fleet.drain("ours")
    assert not choice.serving("acme", "tiny").is_coming
    assert not choice.serving("acme", "other").is_coming


def test_the_answer_is_prebuilt_until_something_changes() -> None:
    fleet = fleet_of([pod("a")])
    choice = Choice(fleet, Random(1))
    first = choice.serving("acme", "tiny")
    fleet.take("a", Reading(asked_at=1000.0, running=3))
    assert choice.serving("acme", "tiny") is first
    fleet.failed("a", "refused")
    assert choice.serving("acme", "tiny") is not first


def test_a_tenant_that_shares_no_device_goes_only_where_all_pods_are_its_own() -> None:
    alone = Tenant("acme", profile="alone")
    pods = [
        pod("shared"),
        pod("mine", tenants=frozenset({"acme"})),
        Pod("beside", ("gpu0",), TINY, url="http://127.0.0.1:1", tenants=frozenset({"acme"})),
        Pod("neighbour", ("gpu0",), TINY, url="http://127.0.0.1:1"),
    ]
    choice = Choice(fleet_of(pods, alone), Random(1))
    assert choice.serving("acme", "tiny").ready == ("mine",)


def test_pods_of_the_tenants_profile_come_first_and_others_only_when_those_are_full() -> None:
    pods = [pod("other-1", profile="batch"), pod("own", profile="inference"), pod("other-2")]
    choice = Choice(fleet_of(pods), Random(1))
    ready = choice.serving("acme", "tiny").ready
    full = View({"own": 0.99})
    assert {choose(choice, ready, ready, full) for _ in range(20)} == {"own"}
    assert {choose(choice, ready, ("other-1", "other-2"), full) for _ in range(40)} == {"other-1", "other-2"}


def test_of_two_the_one_with_the_lower_share_in_use_is_taken() -> None:
    choice = Choice(fleet_of([pod("a"), pod("b")]), Random(1))
    assert {choose(choice, ("a", "b"), ("a", "b"), View({"a": 0.3, "b": 0.2})) for _ in range(20)} == {"b"}
    assert {choose(choice, ("a", "b"), ("a", "b"), View(calls={"a": 1, "b": 2})) for _ in range(20)} == {"a"}
    assert {choose(choice, ("a", "b"), ("a", "b")) for _ in range(40)} == {"a", "b"}


def test_what_the_pod_itself_says_counts_while_it_is_fresh() -> None:
    clock = HandClock()
    choice = Choice(fleet := fleet_of([pod("a"), pod("b")], clock=clock), Random(1))
    fleet.take("b", Reading(asked_at=clock.now, kv_usage=0.9))
    view = View({"a": 0.3, "b": 0.2})
    assert choose(choice, ("a", "b"), ("a", "b"), view) == "a"
    clock.advance(1.5)
    assert choose(choice, ("a", "b"), ("a", "b"), view) == "b"


def test_two_at_random_spread_calls_over_pods_that_are_alike() -> None:
    names = [f"p{number}" for number in range(10)]
    choice = Choice(fleet_of([pod(name) for name in names]), Random(7))
    counts = Counter(choose(choice, names, names) for _ in range(2000))
    assert set(counts) == set(names)
    assert max(counts.values()) < 300


def test_the_ledger_is_asked_about_as_few_pods_as_can_be() -> None:
    names = [f"p{number}" for number in range(50)]
    choice = Choice(fleet_of([pod(name) for name in names]), Random(3))
    asked: list[str] = []

    def fits(name: str) -> bool:
        asked.append(name)
        return True

    assert choice.choose(call_of(), names, fits, View()) == asked[0]
    assert len(asked) == 1


@given(
    ready=st.lists(st.sampled_from("abcdefgh"), unique=True),
    fitting=st.sets(st.sampled_from("abcdefgh")),
    shares=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1)),
    seed=st.integers(0, 5),
)
def test_the_choice_is_ready_and_fits_and_there_is_one_if_any_does(
    ready: list[str], fitting: set[str], shares: dict[str, float], seed: int
) -> None:
    pods = [pod(name, profile="inference" if name < "d" else None) for name in "abcdefgh"]
    choice = Choice(fleet_of(pods), Random(seed))
    asked: list[str] = []

    def fits(name: str) -> bool:
        asked.append(name)
        return name in fitting

    chosen = choice.choose(call_of(), ready, fits, View(shares))
    able = [name for name in ready if name in fitting]
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert chosen in able
        assert (chosen < "d") == any(name < "d" for name in able)
    assert len(asked) == len(set(asked))
    assert set(asked) <= set(ready)


@pytest.mark.parametrize("state", [state for state in PodState if state is not PodState.READY])
def test_no_other_state_gives_a_pod_out(state: PodState) -> None:
    fleet = fleet_of([pod("a")])
    fleet.pods["a"].state = state
    assert Choice(fleet, Random(1)).serving("acme", "tiny").ready == ()


def test_tenants_that_no_pod_tells_apart_share_one_answer() -> None:
    tenants = [Tenant(name, profile="inference") for name in ("acme", "globex", "initech")]
    tenants.append(Tenant("batcher", profile="batch"))
    tenants.append(Tenant("narrow", profile="inference", models=frozenset({"other"})))
    pods = [pod("a", profile="inference"), pod("b"), pod("c", tenants=frozenset({"initech"}))]
    choice = Choice(fleet_of(pods, *tenants), Random(1))
    acme, globex, initech, batcher, narrow = (choice.serving(tenant.name, "tiny") for tenant in tenants)
    assert acme is globex
    assert batcher.ready is acme.ready
    assert (initech.ready, narrow.ready) == (("a", "b", "c"), ())
    assert choice.serving("acme", "other").ready == ()
