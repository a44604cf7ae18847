"""Which clocks must agree before an engine takes events, and what it says when they do not."""

from __future__ import annotations

import logging

import pytest

from engine.clock_check import ClockCheck, Compared
from engine.model import DAY_US, SECOND_US

RIGHT = Compared(0, 0, 0)


@pytest.fixture
def clocks(caplog: pytest.LogCaptureFixture) -> ClockCheck:
    """Warns beyond two seconds, refuses beyond thirty."""
    caplog.set_level(logging.WARNING)
    return ClockCheck(2.0, 30.0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (Compared(31 * SECOND_US, None, None), "off from Postgres's; correct this machine's clock"),
        (Compared(0, 31 * SECOND_US, None), "off from Redis's; correct the clock of this host or of Redis's"),
        (Compared(0, 0, 31 * SECOND_US), "start Headrace again if the new time is right"),
    ],
)
def test_one_clock_that_disagrees_is_enough(clocks: ClockCheck, compared: Compared, said: str, sign: int) -> None:
    """The stores' clocks and the one that nobody sets have a veto each."""
    assert not clocks.check(Compared(*(None if us is None else sign * us for us in compared)))  # type: ignore[arg-type]
    assert clocks.wrong is not None
    assert said in clocks.wrong


def test_clocks_that_differ_by_what_is_allowed_are_right(clocks: ClockCheck) -> None:
    """An event's window and its day allow for that."""
    assert clocks.check(Compared(30 * SECOND_US, -30 * SECOND_US, 30 * SECOND_US))
    assert clocks.wrong is None


def test_a_refusal_is_told_once_when_it_begins_and_once_when_it_ends(
    clocks: ClockCheck, caplog: pytest.LogCaptureFixture
) -> None:
    """Not at each heartbeat; the number may change meanwhile."""
    for heartbeat in range(5):
        clocks.check(Compared(0, 0, -DAY_US - heartbeat))
    clocks.check(RIGHT)
    clocks.check(RIGHT)
    first, last = [record.getMessage() for record in caplog.records]
    assert "were set by 86400.0 s while the engine ran" in first
    assert last == "the clocks agree again: events are taken"


def test_a_warning_is_told_once_when_it_begins_and_once_when_it_ends(
    clocks: ClockCheck, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that wanders around the limit is one warning, too."""
    for off in (2.1, 1.9, 2.2, 1.8, 2.3, 0.9, 0.5):
        assert clocks.check(Compared(int(off * SECOND_US), None, None))
    first, last = [record.getMessage() for record in caplog.records]
    assert first == "this machine's clock is 2.1 s off from a store's: correct it in time"
    assert last == "this machine's clock is right again, 0.9 s off from a store's"


def test_a_redis_that_is_not_heard_makes_no_clock_right(clocks: ClockCheck) -> None:
    """What it said last holds until it says something else."""
    assert not clocks.check(Compared(0, DAY_US, 0))
    assert not clocks.check(Compared(0, None, 0))
    assert clocks.check(RIGHT)
