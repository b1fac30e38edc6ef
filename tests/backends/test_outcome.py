"""What each way of ending says: whether the call may be tried elsewhere, whether the pod may go on, who is to blame."""

from __future__ import annotations

import pytest

from backends.outcome import Ending, Outcome

# ending: (is retryable, may still run, blames the pod)
ENDINGS = {
    Ending.LEFT: (False, True, False),
    Ending.REFUSED: (True, False, True),
    Ending.CONNECT_TIMEOUT: (True, False, True),
    Ending.RESET: (True, True, True),
    Ending.FIRST_BYTE_TIMEOUT: (True, True, True),
    Ending.STALLED: (True, True, True),
    Ending.MALFORMED: (True, True, True),
    Ending.UNFINISHED: (True, False, True),
    Ending.ERROR_EVENT: (True, False, True),
    Ending.EJECTED: (True, True, True),
}
# status of a whole answer: (is retryable, blames the pod)
STATUSES = {
    None: (False, False),
    200: (False, False),
    400: (False, False),
    404: (False, False),
    408: (True, False),
    429: (True, False),  # a full engine is not a broken one
    500: (True, True),
    501: (False, False),
    502: (True, True),
    503: (True, False),
    504: (True, True),
}


def test_the_table_knows_every_ending() -> None:
    assert {*ENDINGS, Ending.COMPLETE} == set(Ending)


@pytest.mark.parametrize("ending", list(ENDINGS), ids=lambda ending: ending.value)
@pytest.mark.parametrize("status", [None, 200, 400, 503])
def test_what_an_ending_says_does_not_depend_on_the_status(ending: Ending, status: int | None) -> None:
    outcome = Outcome(ending, status)
    assert (outcome.is_retryable, outcome.may_still_run, outcome.blames_pod) == ENDINGS[ending]
    assert not outcome.is_good


@pytest.mark.parametrize("status", list(STATUSES))
def test_of_a_whole_answer_the_status_says_it_and_nothing_runs_on(status: int | None) -> None:
    outcome = Outcome(Ending.COMPLETE, status)
    assert (outcome.is_retryable, outcome.blames_pod) == STATUSES[status]
    assert not outcome.may_still_run
    assert outcome.is_good == (status is None or status < 500)
