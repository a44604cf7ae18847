"""The engine's clock goes on evenly, whatever the machine's clock does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine import clock
from engine.clock import SteadyClock
from engine.clock_check import ClockCheck
from engine.model import HeartbeatReply
from engine.runtime import judge_clock

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


def test_an_engine_that_started_by_a_wrong_clock_goes_by_the_right_one_as_soon_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by an answer that was slow: it serves from then on. What such an answer says binds no later one."""
    machine_us = clock.machine_us
    monkeypatch.setattr("engine.clock.machine_us", lambda: machine_us() + 24 * HOUR_US)
    steady = SteadyClock()
    monkeypatch.undo()
    engine: Any = SimpleNamespace(clocks=ClockCheck(2.0, 30.0))
    for _ in range(2):
        slow = HeartbeatReply(0, frozenset(), 1, round_trip_us=9_000_000)
        judge_clock(engine, steady, steady.reading_us(), slow, None)
        assert engine.clocks.wrong is None
        assert abs(steady.now_us() - clock.machine_us()) < 1_000_000
        assert steady.behind_us(0) is None


def test_a_clock_that_was_found_right_follows_none_that_a_slow_answer_calls_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on evenly, and the engine serves: what is wrong with the machine's clock, a faster answer will say."""
    steady, engine, machine_us = SteadyClock(), SimpleNamespace(clocks=ClockCheck(2.0, 30.0)), clock.machine_us
    told: Any = engine
    judge_clock(told, steady, steady.reading_us(), HeartbeatReply(0, frozenset(), 1), None)
    before_us = steady.now_us()
    monkeypatch.setattr("engine.clock.machine_us", lambda: machine_us() + 20_000_000)
    slow = HeartbeatReply(0, frozenset(), 1, round_trip_us=40_000_000)
    judge_clock(told, steady, steady.reading_us(), slow, None)
    assert engine.clocks.wrong is None
    assert 0 <= steady.now_us() - before_us < 10_000_000
