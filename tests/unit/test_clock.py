"""The engine's clock goes on evenly, whatever the machine's clock does."""

from __future__ import annotations

import pytest

from engine import clock
from engine.clock import SteadyClock

HOUR_US = 3_600_000_000


def test_it_says_what_the_machine_says() -> None:
    """Within the time that asking takes."""
    before = clock.machine_us()
    now = SteadyClock().now_us()
    assert before - 1_000_000 < now < clock.machine_us() + 1_000_000


@pytest.mark.parametrize("step_us", [HOUR_US, -HOUR_US])
def test_a_step_of_the_machines_clock_is_not_seen_before_it_is_followed(
    monkeypatch: pytest.MonkeyPatch, step_us: int
) -> None:
    """Whoever compares clocks decides when."""
    steady = SteadyClock()
    before = steady.now_us()
    machine_us = clock.machine_us
    monkeypatch.setattr("engine.clock.machine_us", lambda: machine_us() + step_us)
    assert 0 <= steady.now_us() - before < HOUR_US // 2
    steady.follow(steady.reading_us())
    assert abs(steady.now_us() - before - step_us) < HOUR_US // 2


def test_a_clock_that_is_set_while_it_is_compared_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found to be right is no more what the machine says."""
    steady = SteadyClock()
    before, reading_us, machine_us = steady.now_us(), steady.reading_us(), clock.machine_us
    monkeypatch.setattr("engine.clock.machine_us", lambda: machine_us() + HOUR_US)
    steady.follow(reading_us + HOUR_US // 3)
    assert 0 <= steady.now_us() - before < HOUR_US // 4
