"""When an open loop sends."""

from __future__ import annotations

from math import inf

import pytest

from bench.schedule import EvenSchedule, LogSchedule


@pytest.mark.parametrize("burst_seconds", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("request_number", [0, 1, 9, 20, 205])
def test_a_request_is_due_from_its_time_on(burst_seconds: float, request_number: int) -> None:
    """And not before."""
    schedule = EvenSchedule(10.0, burst_seconds)
    at = schedule.at(request_number)
    assert schedule.due(at + 1e-6) > request_number
    assert schedule.due(at - 0.01) < request_number + 1


def test_between_bursts_nothing_becomes_due() -> None:
    """A second of load, a second of nothing."""
    schedule = EvenSchedule(10.0, 1.0)
    assert [schedule.due(at) for at in (0.5, 1.0, 1.5, 2.0, 2.5)] == [5, 10, 10, 10, 15]


def test_a_log_is_sent_as_it_happened_and_then_no_more() -> None:
    """Two at once are due at once."""
    schedule = LogSchedule([0.0, 1.0, 1.0, 5.0])
    assert [schedule.due(at) for at in (0.0, 0.9, 1.0, 4.0, 9.0)] == [1, 1, 3, 3, 4]
    assert schedule.at(3) == 5.0
    assert schedule.at(4) == inf
