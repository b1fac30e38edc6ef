from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from backends.closing import CLEAN_READINGS, FALLBACK_SECONDS, LINGER_SECONDS, SETTLE_SECONDS, Closing
from backends.engines.engine import Reading


def reading(asked_at: float, busy: int | None) -> Reading:
    return Reading(asked_at=asked_at, running=busy)


@pytest.fixture
def closing() -> Closing[str]:
    return Closing()


def leave(
    closing: Closing[str], lease: str, *, sent: float, left: float, is_seen: bool = True, alike: str | None = None
) -> None:
    closing.sent("pod", lease, sent)
    if is_seen:
        closing.first_byte("pod", lease, sent)
    closing.left("pod", lease, left, attempt=lease, alike=alike)


def test_a_lease_is_let_go_by_a_reading_asked_for_after_the_leaving(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.is_open("pod")
    assert closing.read("pod", reading(1.0, 0), 1.01) == []
    assert closing.read("pod", reading(1.001, 0), 1.02) == ["a"]
    assert not closing.is_open("pod")
    assert closing.next_expiry() is None


def test_it_is_held_while_the_pod_is_busy_with_it_however_long(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    for second in range(2, 60):
        assert closing.read("pod", reading(second, 1), second) == []
        assert closing.expire(second) == []
    assert closing.read("pod", reading(60.0, 0), 60.0) == ["a"]


def test_attempts_still_open_are_not_mistaken_for_it(closing: Closing[str]) -> None:
    closing.sent("pod", "open", 0.0)
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(2.0, 2), 2.0) == []
    assert closing.read("pod", reading(3.0, 1), 3.0) == []
    assert closing.read("pod", reading(4.0, 1), 4.0) == ["a"]


def test_an_attempt_whose_end_was_on_its_way_when_the_reading_was_made_does_not_hide_it(closing: Closing[str]) -> None:
    closing.sent("pod", "open", 0.0)
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []  # the pod has finished the open one, and runs a
    closing.ended("pod", "open", 2.01)
    assert closing.read("pod", reading(2.02, 1), 2.03) == []
    assert closing.read("pod", reading(2.04, 0), 2.05) == ["a"]


def test_one_that_came_after_a_reading_is_not_taken_off_it(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    closing.sent("pod", "new", 2.0)
    closing.first_byte("pod", "new", 2.01)
    assert closing.read("pod", reading(2.1, 2), 2.1) == []
    assert closing.read("pod", reading(2.2, 2), 2.2) == []


def test_the_reading_before_says_nothing_of_what_was_left_after_it(closing: Closing[str]) -> None:
    closing.sent("pod", "open", 0.0)
    assert closing.read("pod", reading(1.0, 1), 1.0) == []
    leave(closing, "a", sent=0.0, left=1.5)
    assert closing.read("pod", reading(2.0, 2), 2.0) == []
    assert closing.read("pod", reading(3.0, 2), 3.0) == []


def test_an_attempt_that_was_left_is_not_taken_off_the_reading_before(closing: Closing[str]) -> None:
    closing.sent("pod", "b", 0.0)
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    closing.left("pod", "b", 2.01, attempt="b")
    assert closing.read("pod", reading(2.02, 1), 2.03) == []


def test_a_request_on_its_way_does_not_hide_it(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    closing.sent("pod", "new", 1.99)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    assert closing.read("pod", reading(1.99 + SETTLE_SECONDS, 1), 2.1) == []
    assert closing.read("pod", reading(2.2, 1), 2.2) == ["a"]


def test_one_that_has_begun_to_answer_counts_from_then_on(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    closing.sent("pod", "new", 1.99)
    closing.first_byte("pod", "new", 1.995)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    assert closing.read("pod", reading(2.01, 1), 2.01) == ["a"]


def test_one_that_begins_to_answer_after_the_reading_was_asked_for_is_not_in_it(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    closing.sent("pod", "new", 2.001)
    closing.first_byte("pod", "new", 2.002)
    assert closing.read("pod", reading(2.0, 1), 2.003) == []
    assert closing.read("pod", reading(2.01, 2), 2.01) == []
    assert closing.read("pod", reading(2.02, 1), 2.02) == []
    assert closing.read("pod", reading(2.03, 1), 2.03) == ["a"]


def test_one_whose_answer_we_leave_unread_may_have_finished_and_does_not_count(closing: Closing[str]) -> None:
    closing.sent("pod", "slow", 0.0)
    closing.first_byte("pod", "slow", 0.1)
    closing.held_back("pod", "slow", True)
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    assert closing.read("pod", reading(2.5, 1), 2.5) == []
    closing.held_back("pod", "slow", False)
    assert closing.read("pod", reading(3.0, 1), 3.0) == []
    assert closing.read("pod", reading(4.0, 1), 4.0) == ["a"]


def test_one_whose_answer_was_left_unread_between_two_readings_does_not_count_either(closing: Closing[str]) -> None:
    closing.sent("pod", "slow", 0.0)
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []  # it has finished: its end comes when it is read
    closing.held_back("pod", "slow", True)
    closing.held_back("pod", "slow", False)
    assert closing.read("pod", reading(2.1, 1), 2.1) == []


def test_a_call_that_left_before_it_can_have_arrived_is_not_let_go_by_its_absence(closing: Closing[str]) -> None:
    leave(closing, "a", sent=1.0, left=1.001, is_seen=False)
    assert closing.read("pod", reading(1.01, 0), 1.01) == []
    assert closing.read("pod", reading(1.002 + SETTLE_SECONDS, 0), 1.1) == ["a"]


def test_of_those_that_are_alike_as_many_are_let_go_as_must_be_gone_the_oldest_first(closing: Closing[str]) -> None:
    for number, lease in enumerate("abcd"):
        leave(closing, lease, sent=0.0, left=1.0 + number, alike="acme")
    assert closing.read("pod", reading(3.5, 2), 3.5) == ["a"]  # d left after this reading was asked for
    assert closing.read("pod", reading(5.0, 2), 5.0) == ["b"]
    assert closing.read("pod", reading(6.0, 0), 6.0) == ["c", "d"]


def test_of_those_that_are_not_alike_none_is_let_go_while_any_may_be_the_one_that_runs(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0, alike="acme")
    leave(closing, "b", sent=0.0, left=1.1, alike="beta")
    leave(closing, "c", sent=0.0, left=1.2, alike="beta")
    assert closing.read("pod", reading(2.0, 2), 2.0) == []  # a and one other, or the two others
    assert closing.read("pod", reading(2.1, 1), 2.1) == ["b"]  # a, or one of the two others
    assert closing.read("pod", reading(2.2, 0), 2.2) == ["a", "c"]


def test_a_lease_of_which_nothing_is_said_is_like_no_other(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    leave(closing, "b", sent=0.0, left=1.1)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []


def test_the_oldest_is_let_go_when_it_has_been_the_likeliest_to_be_gone_for_long(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    leave(closing, "b", sent=0.0, left=1.1)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    assert closing.read("pod", reading(1.9 + FALLBACK_SECONDS, 1), 1.9 + FALLBACK_SECONDS) == []
    assert closing.read("pod", reading(2.0 + FALLBACK_SECONDS, 1), 2.0 + FALLBACK_SECONDS) == ["a"]
    assert closing.read("pod", reading(20.0, 1), 20.0) == []
    assert closing.read("pod", reading(21.0, 0), 21.0) == ["b"]


def test_it_is_the_likeliest_beside_attempts_that_are_open_too(closing: Closing[str]) -> None:
    closing.sent("pod", "open", 0.0)
    leave(closing, "a", sent=0.0, left=1.0)
    leave(closing, "b", sent=0.0, left=1.1)
    gone: list[str] = []
    for tenth in range(20, 60):
        gone += closing.read("pod", reading(tenth / 10, 2), tenth / 10)
    assert gone == ["a"]


def test_a_reading_that_shows_more_makes_the_guess_begin_anew(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    leave(closing, "b", sent=0.0, left=1.1)
    assert closing.read("pod", reading(2.0, 1), 2.0) == []
    assert closing.read("pod", reading(3.0, 2), 3.0) == []
    assert closing.read("pod", reading(3.1, 2), 3.1) == []
    assert closing.read("pod", reading(3.2, 1), 3.2) == []
    assert closing.read("pod", reading(5.1, 1), 5.1) == []
    assert closing.read("pod", reading(5.2, 1), 5.2) == ["a"]


def test_an_old_reading_that_comes_late_is_not_believed(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(3.0, 1), 3.0) == []
    assert closing.read("pod", reading(2.0, 0), 3.1) == []


def test_where_nothing_is_published_time_stands_for_it(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(1.5, None), 1.5) == []
    assert closing.next_expiry() == 1.0 + FALLBACK_SECONDS
    assert closing.expire(1.0 + FALLBACK_SECONDS - 0.001) == []
    assert closing.expire(1.0 + FALLBACK_SECONDS) == ["a"]


def test_where_readings_fail_time_stands_for_it_from_the_last_one_on(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    assert closing.read("pod", reading(4.0, 1), 4.0) == []
    assert closing.expire(4.0) == []
    assert closing.next_expiry() == 4.0 + FALLBACK_SECONDS
    assert closing.expire(4.0 + FALLBACK_SECONDS) == ["a"]


def test_where_others_have_traffic_time_stands_for_it(closing: Closing[str]) -> None:
    assert closing.read("pod", reading(0.0, 3), 0.0) == []  # nothing is known of a pod that got nothing of ours
    closing.sent("pod", "open", 1.0)
    assert closing.read("pod", reading(2.0, 3), 2.0) == []
    leave(closing, "a", sent=2.0, left=3.0)
    assert closing.read("pod", reading(4.0, 3), 4.0) == []
    assert closing.expire(3.0 + FALLBACK_SECONDS) == ["a"]


def test_a_pod_that_is_idle_has_let_go_whatever_traffic_it_had(closing: Closing[str]) -> None:
    closing.sent("pod", "open", 0.0)
    closing.read("pod", reading(1.0, 5), 1.0)
    closing.ended("pod", "open", 1.5)
    leave(closing, "a", sent=2.0, left=3.0)
    assert closing.read("pod", reading(3.1, 0), 3.1) == ["a"]


def test_traffic_of_others_is_forgotten_after_some_readings_without_it(closing: Closing[str]) -> None:
    closing.sent("pod", "open", 0.0)
    closing.read("pod", reading(1.0, 2), 1.0)
    for number in range(CLEAN_READINGS):
        closing.read("pod", reading(2.0 + number, 1), 2.0 + number)
    leave(closing, "a", sent=2.0, left=20.0)
    closing.read("pod", reading(21.0, 2), 21.0)
    assert closing.expire(20.0 + FALLBACK_SECONDS) == []


def test_what_just_ended_or_came_in_parts_is_not_taken_for_traffic_of_others(closing: Closing[str]) -> None:
    closing.sent("pod", "in parts", 0.0, parts=4)
    closing.sent("pod", "short", 0.0)
    closing.ended("pod", "short", 1.0)
    closing.read("pod", reading(1.0, 5), 1.0)
    leave(closing, "a", sent=0.0, left=2.0)
    closing.read("pod", reading(3.9, 5), 3.9)
    assert closing.expire(2.0 + FALLBACK_SECONDS) == []
    closing.read("pod", reading(5.0 + LINGER_SECONDS, 6), 5.0 + LINGER_SECONDS)
    assert closing.expire(5.0 + LINGER_SECONDS) == ["a"]


def test_a_pod_that_is_gone_has_let_go_of_everything(closing: Closing[str]) -> None:
    leave(closing, "a", sent=0.0, left=1.0)
    leave(closing, "b", sent=0.0, left=2.0)
    closing.sent("pod", "open", 0.0)
    assert closing.gone("pod") == ["a", "b"]
    assert not closing.is_open("pod")
    closing.ended("pod", "open", 3.0)
    assert closing.gone("pod") == closing.gone("never seen") == []


class AgainstAPodThatLetsGoLate(RuleBasedStateMachine):
    """A model pod takes requests up to `SETTLE_SECONDS` late, and runs some that were left for as long as it likes.

    The ends that it sends are on their way for at most as long as the reading that is asked for next.

    Whatever the pod lets go of first, it never runs more than is charged; nor does it of those that are alike, until
    one has been left for `FALLBACK_SECONDS`. Where it lets go in the order of the leavings, no lease at all is let go
    that it still runs. And when quiet comes, two readings later nothing is held any more.
    """

    requests = Bundle("requests")

    @initialize(is_in_order=st.booleans())
    def start(self, is_in_order: bool) -> None:
        self.is_in_order = is_in_order
        self.now = 100.0
        self.closing: Closing[int] = Closing()
        self.ids = 0
        self.alike: dict[int, str] = {}
        self.on_their_way: dict[int, float] = {}  # request -> when it arrives at the pod
        self.at_pod: set[int] = set()
        self.ends: list[int] = []  # finished at the pod, and on its way to us
        self.open: set[int] = set()
        self.left_at: dict[int, float] = {}
        self.left: list[int] = []  # left, and held by the module under test
        self.held_back: set[int] = set()

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.06, 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for request, at in list(self.on_their_way.items()):
            if at <= self.now:
                del self.on_their_way[request]
                self.at_pod.add(request)

    @rule(
        target=requests,
        lag=st.sampled_from([0.0, 0.02, SETTLE_SECONDS]),
        answers=st.booleans(),
        alike=st.sampled_from(["acme", "beta"]),
    )
    def a_request_is_sent(self, lag: float, answers: bool, alike: str) -> int:
        self.ids += 1
        self.alike[self.ids] = alike
        self.closing.sent("pod", self.ids, self.now)
        self.open.add(self.ids)
        self.on_their_way[self.ids] = self.now + lag
        self.time_passes(0.0)
        if answers:
            self.its_first_byte_comes(self.ids)
        return self.ids

    @rule(request=requests)
    def its_first_byte_comes(self, request: int) -> None:
        if (request in self.at_pod or request in self.ends) and request in self.open - self.held_back:
            self.closing.first_byte("pod", request, self.now)

    @rule(request=requests, and_finishes=st.booleans())
    def its_answer_is_held_back(self, request: int, and_finishes: bool) -> None:
        if request in self.open:
            self.held_back.add(request)
            self.closing.held_back("pod", request, True)
            if and_finishes:
                self.it_finishes(request)
            if request in self.ends:
                self.ends.remove(request)

    @rule(request=requests)
    def its_answer_is_read_again(self, request: int) -> None:
        if request in self.held_back & self.open:
            self.held_back.discard(request)
            self.closing.held_back("pod", request, False)
            if not self._is_charged_at_pod(request):
                self.ends.append(request)

    @rule(request=consumes(requests))
    def its_client_leaves(self, request: int) -> None:
        if request in self.open and (self._is_charged_at_pod(request) or not self.is_in_order):
            self.open.discard(request)
            self.ends = [end for end in self.ends if end != request]
            self.left.append(request)
            self.left_at[request] = self.now
            self.closing.left("pod", request, self.now, attempt=request, alike=self.alike[request])

    @rule(request=requests)
    def it_finishes(self, request: int) -> None:
        if request in self.at_pod & self.open:
            self.at_pod.discard(request)
            if request not in self.held_back:
                self.ends.append(request)

    @rule()
    def ends_arrive(self) -> None:
        self._arrive(self.ends)

    @rule(which=st.integers(0, 5))
    def the_pod_lets_go_of_one(self, which: int) -> None:
        running = [request for request in self.left_at if self._is_charged_at_pod(request)]
        if self.is_in_order:
            which = 0
        if which < len(running) and running[which] in self.at_pod:
            self.at_pod.discard(running[which])

    @rule(
        takes=st.sampled_from([0.0, 0.001, 0.03]),
        then=st.sampled_from(["nothing", "one is sent", "one finishes", "one is read again"]),
        is_made_at_once=st.booleans(),
    )
    def a_reading_is_taken(self, takes: float, then: str, is_made_at_once: bool) -> None:
        """Asked for, made, and taken a little later; meanwhile something may happen."""
        asked_at, before = self.now, list(self.ends)
        busy = len(self.at_pod)
        if then == "one is sent":
            self.a_request_is_sent(0.0, True, "acme")
        elif then == "one finishes" and self.open & self.at_pod:
            self.it_finishes(min(self.open & self.at_pod))
        elif then == "one is read again" and self.open & self.held_back:
            self.its_answer_is_read_again(min(self.open & self.held_back))
        if not is_made_at_once:
            busy = len(self.at_pod)
        self.time_passes(takes)
        self._arrive(before)
        self._take(asked_at, busy)

    def _arrive(self, ends: list[int]) -> None:
        for request in list(ends):
            self.ends.remove(request)
            self.open.discard(request)
            self.closing.ended("pod", request, self.now)

    def _is_charged_at_pod(self, request: int) -> bool:
        return request in self.at_pod or request in self.on_their_way

    def _take(self, asked_at: float, busy: int) -> None:
        for lease in self.closing.read("pod", reading(asked_at, busy), self.now):
            self.left.remove(lease)
            if self.is_in_order:
                assert not self._is_charged_at_pod(lease), f"{lease} was let go while the pod runs it"

    @invariant()
    def the_pod_runs_no_more_than_is_charged(self) -> None:
        running = [*sorted(self.at_pod), *self.on_their_way]
        charged = [*sorted(self.open), *self.left]
        assert len(running) <= len(charged)
        lately = [one for one in running if self.left_at.get(one, self.now) > self.now - FALLBACK_SECONDS]
        for alike in ("acme", "beta"):
            of_these = sum(self.alike[one] == alike for one in lately)
            assert of_these <= sum(self.alike[one] == alike for one in charged), f"{alike} has more at the pod"
        assert self.closing.is_open("pod") == bool(self.left)

    def teardown(self) -> None:
        if not hasattr(self, "now"):
            return
        self.time_passes(1.0)
        self.at_pod &= self.open
        for request in sorted(self.held_back):
            self.its_answer_is_read_again(request)
        self.ends_arrive()
        for _ in range(2):
            self.time_passes(1.0)
            self._take(self.now, len(self.at_pod))
        assert self.left == []
        assert not self.closing.is_open("pod")


TestAgainstAPodThatLetsGoLate = AgainstAPodThatLetsGoLate.TestCase
TestAgainstAPodThatLetsGoLate.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
