"""How often a store that died is started again."""

from __future__ import annotations

from engine.embedded.keeper import Starts


def test_the_first_start_is_at_once_and_each_further_one_waits_twice_as_long() -> None:
    """What killed it once may be over; a disk that is full takes somebody's time."""
    starts, now, pauses = Starts(5, 60.0), 0.0, []
    while (pause := starts.pause_seconds(now)) is not None:
        pauses.append(pause)
        now += pause
        starts.count(now)
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_after_a_window_without_deaths_the_next_is_the_first() -> None:
    """One that dies once an hour is started again for ever."""
    starts = Starts(1, 60.0)
    for now in (0.0, 3_600.0, 7_200.0):
        assert starts.pause_seconds(now) == 0.0
        starts.count(now)
        assert starts.pause_seconds(now + 59.0) is None


def test_none_may_be_allowed() -> None:
    """Then somebody else looks after the stores."""
    assert Starts(0, 60.0).pause_seconds(0.0) is None
