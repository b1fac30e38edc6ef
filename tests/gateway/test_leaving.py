from __future__ import annotations

from gateway.leaving import Leaving


def test_a_leaving_undoes_what_waits_once() -> None:
    leaving, undone = Leaving(), []
    leaving.undo_with(lambda: undone.append("queue"))
    leaving.leave()
    leaving.leave()
    assert undone == ["queue"]
    assert leaving.has_left


def test_only_the_latest_step_is_undone() -> None:
    leaving, undone = Leaving(), []
    leaving.undo_with(lambda: undone.append("queue"))
    leaving.undo_with(lambda: undone.append("attempt"))
    leaving.leave()
    assert undone == ["attempt"]


def test_a_step_that_begins_after_the_leaving_is_undone_at_once() -> None:
    leaving, undone = Leaving(), []
    leaving.leave()
    leaving.undo_with(lambda: undone.append("attempt"))
    assert undone == ["attempt"]


def test_a_step_that_is_over_is_not_undone() -> None:
    leaving, undone = Leaving(), []
    leaving.undo_with(lambda: undone.append("queue"))
    leaving.undo_with(None)
    leaving.leave()
    assert undone == []
