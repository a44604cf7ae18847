"""The unit tests of engine/outages.py: what is logged of a state in which events are refused, and how often."""

from __future__ import annotations

import pytest

from engine.outages import QUIET_SECONDS, REPEAT_SECONDS, Outages


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failures are two lines: the first with the store's words, the last with how long it took."""
    outages = Outages()
    for tick in range(1_000):
        outages.failed("Redis", "OOM command not allowed", tick / 1_000)
    outages.works("Redis", 1 + QUIET_SECONDS)
    outages.works("Redis", 2 + QUIET_SECONDS)
    assert [record.getMessage() for record in caplog.records] == [
        "Redis: OOM command not allowed: what needs it is answered 503 until it works again",
        "Redis: works again after 3.0 s and 1000 failures",
    ]


def test_failures_and_successes_that_alternate_are_one_outage() -> None:
    """One campaign that is refused among others that are not keeps the outage, and readiness tells it."""
    outages = Outages()
    for second in range(10):
        outages.failed("Redis", "MOVED 7 127.0.0.1:7001", float(second))
        outages.works("Redis", second + 0.5)
        assert outages.problems() == ["Redis: MOVED 7 127.0.0.1:7001"]
        assert "Redis" in outages
    outages.works("Redis", 9 + QUIET_SECONDS)
    assert outages.problems() == []
    assert "Redis" not in outages


def test_another_reason_is_logged_again_after_a_while_only(caplog: pytest.LogCaptureFixture) -> None:
    """A store that fails in a new way gets one more line a minute; readiness has the newest reason at once."""
    outages = Outages()
    outages.failed("Postgres", "no answer", 0.0)
    outages.failed("Postgres", "read-only", 1.0)
    assert outages.problems() == ["Postgres: read-only"]
    assert len(caplog.records) == 1
    outages.failed("Postgres", "disk full", REPEAT_SECONDS)
    assert len(caplog.records) == 2
