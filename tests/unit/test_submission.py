"""The verdicts of one request."""

from __future__ import annotations

from engine.submission import Submission
from engine.verdicts import UNAVAILABLE
from tests.plans import NOON_US, entry


def test_a_second_verdict_of_an_event_does_not_stand_for_another_event() -> None:
    """What its deadline has ended may be settled once more: the request waits for its other events all the same."""
    answered: list[Submission] = []
    request = Submission(NOON_US, NOON_US, answered.append, lambda _: None)
    late, open_ = entry(request), entry(request)
    request.handed_on()
    late.settle(UNAVAILABLE)
    late.settle(None)
    assert answered == []
    open_.settle(None)
    assert answered == [request]
    assert request.verdicts == {0: UNAVAILABLE}


def test_what_comes_after_the_deadline_changes_no_answer() -> None:
    """Its sender was told to come again, and may hear of the outcome then."""
    answered: list[Submission] = []
    request = Submission(NOON_US, NOON_US, answered.append, lambda _: None)
    late = entry(request)
    request.handed_on()
    request.expire(UNAVAILABLE)
    late.settle(None)
    assert answered == [request]
    assert request.verdicts == {0: UNAVAILABLE}
