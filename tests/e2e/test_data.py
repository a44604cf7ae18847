"""A real ad log, sent by `headrace send`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import Program, headrace

LOG = Path(__file__).resolve().parents[3] / "shared" / "data" / "ipinyou_2013-10-21.ndjson"

pytestmark = pytest.mark.skipif(not LOG.exists(), reason="the real ad log is not beside this checkout")


def send(program: Program, campaign: dict[str, Any]) -> str:
    """Send the log to a campaign, its first event now."""
    sent = headrace(
        "send", str(LOG), "--url", program.intake, "--rebase-time", "--campaign", f"2821={campaign['id']}",
        env=program.env,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stdout + sent.stderr
    return sent.stdout + sent.stderr


def test_the_whole_log_is_counted_once_however_often_it_is_sent(program: Program) -> None:
    """10,000 impressions and 442 clicks; sent again, 10,442 duplicates and the same report."""
    campaign = program.create()
    assert "10,442" in send(program, campaign)
    report = program.report(campaign["id"])
    assert (report["impressions"], report["clicks"], report["spend"]) == (10_000, 442, "10.000000")
    again = send(program, campaign)
    assert "duplicate" in again
    assert "10,442" in again
    assert program.report(campaign["id"]) == report
    program.audit()


def test_a_cap_lets_through_exactly_what_a_count_over_the_log_allows(program: Program) -> None:
    """At most two impressions a user and day, all on one spend day."""
    campaign = program.create(freq_cap_impressions_per_day=2)
    events = [json.loads(line) for line in LOG.read_text().splitlines()]
    users = Counter(event["user_id"] for event in events if event["event_type"] == "impression")
    send(program, campaign)
    report = program.report(campaign["id"])
    assert report["impressions"] == sum(min(count, 2) for count in users.values())
    assert report["clicks"] == 442
    program.audit()
