"""The audit's rules: what is a difference, what is a note, what is neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.audit import closing_line, run
from config.settings import Settings
from engine.audit import (
    AuditResult,
    CampaignFacts,
    Finding,
    HourCounts,
    HourDifference,
    LedgerFacts,
    Pending,
    PlanFacts,
    RedisFacts,
    Window,
    compare,
    compare_redis,
    compare_window,
    is_held,
)

PLAN = PlanFacts(version=1, total_budget_micros=5_000, daily_budget_micros=3_000, cap=2)
LEDGER = LedgerFacts(
    generation=4,
    spent_micros=4_000,
    day=20_000,
    today_micros=1_000,
    total_budget_micros=5_000,
    daily_budget_micros=3_000,
)
SOUND = CampaignFacts(
    7, PLAN, LEDGER, events=4, spent_micros=4_000, today_micros=1_000, latest_day=20_000, day_max_micros=3_000
)
HELD = RedisFacts(generation=4, day=20_000, total_micros=4_000, today_micros=1_000)


def facts(**fields: Any) -> CampaignFacts:
    """Sound facts, changed by `fields`."""
    return replace(SOUND, **fields)


def pending(tag: int = 1, day: int = 20_000, amount_micros: int = 500) -> Pending:
    """A reservation."""
    return Pending(tag, bytes(16), day, amount_micros)


def redis_findings(redis: RedisFacts | None, *committed: int) -> list[Finding]:
    """What is wrong in Redis."""
    return compare_redis(7, LEDGER, redis, committed)


def test_a_sound_campaign_has_no_findings() -> None:
    """What ties is silent, also at the very edge of a budget."""
    assert compare(SOUND) == []
    assert (
        compare(facts(plan=replace(PLAN, total_budget_micros=4_000), ledger=replace(LEDGER, total_budget_micros=4_000)))
        == []
    )


def test_a_new_campaign_has_no_findings() -> None:
    """Without events, the ledger's day says nothing."""
    assert compare(CampaignFacts(7, PLAN, replace(LEDGER, spent_micros=0, today_micros=0, day=0))) == []


@pytest.mark.parametrize(
    ("column", "check", "expected"),
    [
        ("spent_micros", "ledger spent", "0.004000"),
        ("today_micros", "ledger today", "0.001000"),
        ("total_budget_micros", "ledger total budget", "0.005000"),
        ("daily_budget_micros", "ledger daily budget", "0.003000"),
    ],
)
def test_the_ledger_says_what_events_and_plan_say(column: str, check: str, expected: str) -> None:
    """Each amount of the ledger row is compared."""
    wrong: dict[str, Any] = {column: 9}
    assert compare(facts(ledger=replace(LEDGER, **wrong))) == [Finding(7, check, expected, "0.000009", books=True)]


def test_the_ledger_stands_at_the_latest_spend_day() -> None:
    """A ledger whose day is not that of the latest events could spend a day's budget twice."""
    assert compare(facts(latest_day=20_001)) == [Finding(7, "ledger day", "2024-10-05", "2024-10-04", books=True)]


def test_a_rollup_that_differs_is_named_with_its_hour() -> None:
    """Counts and spend of both sides are shown."""
    hour = HourDifference(20_000 * 86_400_000_000, HourCounts(3, 1, 0, 3_000), HourCounts(2, 1, 0, 3_000))
    (finding,) = compare(facts(hours=(hour,)))
    assert finding.check == "rollup 2024-10-04 00:00Z"
    assert finding.expected == "3 impressions, 1 clicks, 0 conversions, 0.003000"
    assert finding.found == "2 impressions, 1 clicks, 0 conversions, 0.003000"


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ({"spent_micros": 5_001, "ledger": replace(LEDGER, spent_micros=5_001)}, "total budget"),
        ({"day_max_micros": 3_001}, "daily budget"),
        ({"users_above_cap": 1, "impressions_max": 3}, "frequency cap"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_that_was_passed(wrong: dict[str, Any], check: str, version: int) -> None:
    """It is a difference under a plan that never changed, and a note under one that did."""
    (finding,) = compare(facts(plan=replace(PLAN, version=version), **wrong))
    assert (finding.check, finding.note, finding.books) == (check, version > 1, False)


def test_an_id_twice_is_a_difference_whatever_the_plan() -> None:
    """No change of a plan explains it."""
    assert compare(facts(plan=replace(PLAN, version=9), ids_twice=2)) == [
        Finding(7, "event ids", "each once", "2 more than once")
    ]


@pytest.mark.parametrize("row", ["plan", "ledger"])
def test_events_need_their_campaign(row: str) -> None:
    """Events of a campaign without its rows are one finding."""
    missing: dict[str, Any] = {row: None}
    (finding,) = compare(facts(**missing))
    assert finding.found == "none, and 4 events"


def test_redis_holds_spend_and_reservations() -> None:
    """Reservations that wait for their commit count on top of the ledger."""
    reserved = replace(HELD, total_micros=4_500, today_micros=1_500, pending=(pending(),))
    assert redis_findings(HELD) == redis_findings(reserved) == []


def test_a_pending_reservation_that_is_committed_counts_once() -> None:
    """Redis hears of a commit later than Postgres."""
    redis = replace(HELD, pending=(pending(tag=5),))
    assert redis_findings(redis, 5) == []
    assert len(redis_findings(redis)) == 2


def test_redis_total_and_today_are_compared() -> None:
    """Either may be wrong by itself."""
    assert redis_findings(replace(HELD, total_micros=1)) == [
        Finding(7, "Redis total", "0.004000", "0.000001", books=True)
    ]
    assert redis_findings(replace(HELD, today_micros=1)) == [
        Finding(7, "Redis today", "0.001000", "0.000001", books=True)
    ]


def test_today_is_compared_on_the_same_day_only() -> None:
    """Redis may have reached a later spend day than any commit; yesterday's reservations are none of today's."""
    assert redis_findings(replace(HELD, day=20_001, today_micros=77)) == []
    yesterday = pending(day=19_999)
    assert redis_findings(replace(HELD, total_micros=4_500, pending=(yesterday,))) == []


def test_what_redis_does_not_hold_is_no_difference() -> None:
    """It is rebuilt at the next use."""
    other = replace(HELD, generation=3, total_micros=1)
    assert redis_findings(None) == redis_findings(other) == []
    assert [is_held(LEDGER, redis) for redis in (None, other, HELD)] == [False, False, True]


@pytest.mark.parametrize(
    ("id_time_us", "generation", "lost"),
    [(101, 4, True), (100, 4, False), (99, 4, False), (101, 3, True), (101, 5, False)],
)
def test_an_id_is_lost_above_the_watermark_only(id_time_us: int, generation: int, lost: bool) -> None:
    """What is not above it is looked up; a row of a later generation is one that Redis is to follow yet."""
    assert Window(generation=4, watermark_us=100).forgets(id_time_us, generation) is lost


def test_lost_ids_are_a_difference_that_a_rebuild_mends() -> None:
    """It begins above all that is committed."""
    (finding,) = compare_window(7, 1_000)
    assert (finding.campaign_id, finding.check, finding.books, finding.note) == (7, "dedup window", True, False)
    assert "1,000" in finding.found
    assert compare_window(7, 0) == []


def test_the_closing_line() -> None:
    """It says how much was audited, and leaves notes out of the differences."""
    note, difference = Finding(7, "total budget", "a", "b", note=True), Finding(7, "event ids", "a", "b")
    assert closing_line(AuditResult(12, 200_000, 0, [note])) == "audited 12 campaigns, 200,000 events: no difference"
    assert closing_line(AuditResult(1, 1, 0, [note, difference])) == "audited 1 campaign, 1 event: 1 difference"


def test_nothing_to_audit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without embedded stores and URLs, nothing is started; the exit status is 2."""
    assert run(Settings(data=str(tmp_path / "none"))) == 2
    assert "nothing to audit" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
