"""The unit tests of engine/outages.py: what is logged of a state in which events are refused, and how often."""

from __future__ import annotations

import pytest

from engine.outages import (
    AGAIN_SECONDS,
    HELD_ROWS,
    QUIET_TIMES_MAX,
    REPEAT_SECONDS,
    STALLED_SECONDS,
    WORDS_MAX,
    Outages,
)

QUIET_SECONDS = 2.0


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand failures are two lines: the first with the store's words, the last with how long it took."""
    outages = Outages(QUIET_SECONDS)
    for tick in range(1_000):
        outages.failed("Redis", "OOM command not allowed", tick / 1_000)
    outages.works("Redis", 1 + QUIET_SECONDS)
    outages.works("Redis", 2 + QUIET_SECONDS)
    assert [record.getMessage() for record in caplog.records] == [
        (
            "Redis: OOM command not allowed: what needs it is answered 503 until it works again; "
            "it is asked again every 1 s"
        ),
        "Redis: works again after 3.0 s and 1000 failures",
    ]


def test_failures_and_successes_that_alternate_are_one_outage() -> None:
    """One campaign that is refused among others that are not keeps the outage, and readiness tells it."""
    outages = Outages(QUIET_SECONDS)
    for second in range(10):
        outages.failed("Redis", "MOVED 7 127.0.0.1:7001", float(second))
        outages.works("Redis", second + 0.5)
        assert outages.problems() == ["Redis: MOVED 7 127.0.0.1:7001"]
        assert len(outages) == 1
    outages.works("Redis", 9 + QUIET_SECONDS)
    assert outages.problems() == []
    assert len(outages) == 0


def test_another_reason_is_logged_again_after_a_while_only(caplog: pytest.LogCaptureFixture) -> None:
    """A store that fails in a new way gets one more line a minute; readiness has the newest reason at once."""
    outages = Outages(QUIET_SECONDS)
    outages.failed("Postgres", "no answer", 0.0)
    outages.failed("Postgres", "read-only", 1.0)
    assert outages.problems() == ["Postgres: read-only"]
    assert len(caplog.records) == 1
    outages.failed("Postgres", "disk full", REPEAT_SECONDS)
    assert len(caplog.records) == 2


def test_an_outage_that_comes_again_must_be_quiet_for_longer(caplog: pytest.LogCaptureFixture) -> None:
    """What no probe finds out begins and ends ever more seldom, up to a bound; after a good minute it is a new one."""
    outages = Outages(QUIET_SECONDS)
    now, quiet_seconds = 0.0, []
    for _ in range(4):
        outages.failed("Postgres", "53100 disk full", now)
        failed_at = now
        while len(outages):
            now += 0.5
            outages.works("Postgres", now)
        quiet_seconds.append(now - failed_at)
    assert quiet_seconds == [QUIET_SECONDS * times for times in (1, 2, QUIET_TIMES_MAX, QUIET_TIMES_MAX)]
    assert len(caplog.records) == 8
    outages.failed("Postgres", "53100 disk full", now + AGAIN_SECONDS)
    outages.works("Postgres", now + AGAIN_SECONDS + QUIET_SECONDS)
    assert len(outages) == 0


def test_what_concerns_one_campaign_alone_leaves_the_engine_ready(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged when it begins, and when it has not failed for a while, though nobody says that it works."""
    outages = Outages(QUIET_SECONDS)
    outages.failed("the flush of one campaign", "campaign 7: 23514 no partition", 0.0, blocks=False)
    assert outages.problems() == []
    assert len(outages) == 1
    outages.expire(1.0)
    assert len(outages) == 1
    outages.expire(QUIET_SECONDS)
    assert len(outages) == 0
    assert len(caplog.records) == 2


def test_what_anybody_may_read_holds_no_url_and_is_one_short_line() -> None:
    """A URL may hold a password; everything else of the store's words is told."""
    outages = Outages(QUIET_SECONDS)
    outages.failed("Redis", "Redis: can't\n connect  to redis://me:s3cret@10.0.0.1:6379/0: " + "x" * 1_000, 0.0)
    (problem,) = outages.problems()
    assert problem.startswith("Redis: can't connect to (a URL)")
    assert "s3cret" not in problem
    assert len(problem) <= len("Redis: ") + WORDS_MAX


def test_what_concerns_some_campaigns_concerns_all_when_nothing_commits() -> None:
    """A lock on a whole partition refuses every event: the engine is not ready, until a flush commits."""
    outages = Outages(QUIET_SECONDS)
    outages.committed(1.0)
    for second in (2.0, 3.0, 2.0 + STALLED_SECONDS - 0.1):
        outages.failed(HELD_ROWS, "campaign 1", second, blocks=False)
        assert outages.problems() == []
    outages.failed(HELD_ROWS, "campaign 1", 2.0 + STALLED_SECONDS, blocks=False)
    assert outages.problems() == [f"{HELD_ROWS}: campaign 1"]
    outages.committed(3.0 + STALLED_SECONDS)
    assert outages.problems() == []
    outages.expire(9.0 + STALLED_SECONDS + QUIET_SECONDS)
    assert len(outages) == 0


def test_a_store_that_fails_is_no_less_so_for_a_flush_that_commits() -> None:
    """Redis may refuse while Postgres does not."""
    outages = Outages(QUIET_SECONDS)
    outages.failed("Redis", "OOM", 1.0)
    outages.committed(1.5)
    assert outages.problems() == ["Redis: OOM"]
