"""Calls about reports."""

from __future__ import annotations

import msgspec
import pytest

from api.query import instant
from api.reports import ReportAnswer
from tests.fakes.api import FakeApi


async def test_a_report_has_counts_and_spend() -> None:
    """Open bounds are null."""
    api = FakeApi()
    await api.create()
    told = await api.send("GET", "/report/campaign/1")
    assert told.json == {
        "campaign_id": 1, "start": None, "end": None, "impressions": 2, "clicks": 1, "conversions": 0,
        "spend": "0.020000",
    }  # fmt: skip
    msgspec.json.decode(told.body, type=ReportAnswer)
    assert api.engine.asked == [(1, None, None)]


async def test_the_bounds_asked_for_are_the_bounds_told() -> None:
    """In UTC, to the microsecond."""
    api = FakeApi()
    await api.create()
    told = await api.send("GET", "/report/campaign/1?start=2026-01-31T01:00:00.5%2B01:00&end=2026-02-01")
    assert (told.json["start"], told.json["end"]) == ("2026-01-31T00:00:00.500000Z", "2026-02-01T00:00:00.000000Z")
    assert api.engine.asked == [(1, 1_769_817_600_500_000, 1_769_904_000_000_000)]
    assert (await api.send("GET", "/report/campaign/1?start=2026-01-31&end=2026-01-31")).status == 200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86_400), ("1970-01-01T00:00:01Z", 1), ("1970-01-01t00:00:01z", 1), ("1970-01-01 00:00:01Z", 1),
        ("1970-01-01T01:00:01+01:00", 1), ("1970-01-01T01:00:01 01:00", 1), ("1969-12-31T23:00:01-01:00", 1),
        ("1970-01-01T00:00:01.000000Z", 1), ("1970-01-01T00:00:01-00:00", 1),
    ],
)  # fmt: skip
def test_instants_that_are_read(text: str, seconds: int) -> None:
    """RFC 3339 with a zone, also where a plus sign became a space; or a date."""
    assert instant(text) == seconds * 1_000_000


@pytest.mark.parametrize(
    "bound",
    ["", "x", "yesterday", "1700000000", "2026-01-31T12:00:00", "2026-13-01", "2026-02-30", "2026-01-31T25:00:00Z",
     "2026-01-31T12:00:00.1234567Z", "2026-01-31T12:00Z", "2026-01", "20260131", "2026-01-31T12:00:00%2B24:00",
     "0000-01-01", "2026-01-31Z", "0001-01-01T00:00:00%2B00:01",
     "9999-12-31T23:59:59-00:01", "%D9%A2%D9%A0%D9%A2%D9%A6-01-31", "2026-W05-1"],
)  # fmt: skip
async def test_a_bound_that_can_not_be_read_is_refused(bound: str) -> None:
    """The old system ignored it, and answered something else."""
    api = FakeApi()
    await api.create()
    told = await api.send("GET", f"/report/campaign/1?start={bound}")
    assert (told.status, told.code, told.faults) == (422, "invalid_parameter", {"start"})
    assert api.engine.asked == []


@pytest.mark.parametrize(
    ("query", "faults"),
    [
        ("start=2026-02-01&end=2026-01-31", {"end"}), ("start=2026-01-01&start=2026-01-02", {"start"}),
        ("group_by=hour", {"group_by"}), ("timezone=UTC&format=csv&end=x", {"timezone", "format", "end"}),
    ],
)  # fmt: skip
async def test_a_question_is_answered_whole_or_refused(query: str, faults: set[str]) -> None:
    """Bounds in the wrong order, or a parameter that is not known (yet)."""
    api = FakeApi()
    await api.create()
    told = await api.send("GET", f"/report/campaign/1?{query}")
    assert (told.status, told.code, told.faults) == (422, "invalid_parameter", faults)


async def test_an_unknown_campaign_has_no_report() -> None:
    """404, not zeros."""
    told = await FakeApi().send("GET", "/report/campaign/7")
    assert (told.status, told.code) == (404, "campaign_not_found")
