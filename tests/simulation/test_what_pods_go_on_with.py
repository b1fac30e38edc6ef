"""What a pod goes on with although its call has left it stays charged, so that the budget holds at the pod, too.

Each of these has one thing that could hide from the gateway that a call of `acme` (budget: one) lingers at its pod:
then one more would be there beside it.
"""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.clients import Departure
from tests.simulation.model_pod import Conduct
from tests.simulation.network import Weather
from tests.simulation.scenes import STILL, guest, scene
from tests.simulation.world import Guest, live

LINGERS = Conduct(lingers=1.5)
LEAVES = replace(guest(0.2, length=20), departure=Departure(at=0.3))


def among(*others: Guest, conducts: dict[str, Conduct] | None = None, weather: Weather = STILL, seed: int = 1) -> None:
    """`acme` leaves a call at 0.3 s at which the pod goes on until 1.8 s, and asks again at 0.7 s; `others` are
    there too.
    """
    guests = [LEAVES, *others, guest(0.7)]
    known = {"acme/main/0": LINGERS, **(conducts or {})}
    live(seed, scene(guests, concurrency={"acme": 1, "beta": 9}, conducts=known, weather=weather))


def test_a_left_call_stays_charged_while_the_pod_goes_on_with_it() -> None:
    among()


def test_calls_of_others_at_the_same_pod_do_not_hide_it() -> None:
    among(guest(0.1, "beta", length=100), guest(0.25, "beta", length=100))


def test_a_call_whose_connection_breaks_stays_charged_while_the_pod_goes_on_with_it() -> None:
    broken = replace(guest(0.2, length=20))
    cut = Conduct("cut", at=500, lingers=1.5)
    live(1, scene([broken, guest(0.7)], concurrency={"acme": 1}, conducts={"acme/main/0": cut}))


def test_an_answer_that_waits_for_a_slow_client_does_not_hide_it() -> None:
    slow = replace(guest(0.1, "beta", length=20), sip_bytes=5)
    among(slow)


def test_a_request_whose_connection_is_being_made_does_not_hide_it() -> None:
    slowly = replace(STILL, connect_steps=400)
    for seed in range(12):
        among(guest(0.4, "beta"), weather=slowly, seed=seed)


def test_an_answer_whose_end_is_on_its_way_does_not_hide_it() -> None:
    windy = Weather(most_steps=8, splits=0.5)
    for seed in range(12):
        among(*(guest(0.1, "beta", length=length) for length in (26, 32, 38, 44, 50)), weather=windy, seed=seed)


def test_one_that_was_left_later_and_is_gone_does_not_let_it_go() -> None:
    among(replace(guest(0.25, "beta", length=20), departure=Departure(at=0.35)))
