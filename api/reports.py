"""Calls about reports: what a campaign delivered and spent between two instants.

Owns the question's parameters and the answer's JSON. A bound that can't be read is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta
from quart import request

from api.calls import JSON, Gives, Parameter, call
from api.campaigns import Instant, Money
from api.codec import JSON_HEADERS
from api.errors import Answer
from api.query import instant, read_query, refuse_query
from engine import Fault, Report
from engine.model import decimal_text, instant_text

__all__ = ["ReportCalls", "Reporter"]


class Reporter(Protocol):
    """The part of the engine that reports."""

    async def report(self, campaign_id: int, start_us: int | None, end_us: int | None) -> Report:
        """What a campaign delivered from start up to end."""
        ...


class ReportAnswer(msgspec.Struct):
    """What a campaign delivered by `occurred_at`, from `start` up to but not including `end`; null means open."""

    campaign_id: int
    start: Instant | None
    end: Instant | None
    impressions: int
    clicks: int
    conversions: int
    spend: Money


_Bound = Annotated[
    str,
    Meta(
        examples=["2026-01-31", "2026-01-31T12:00:00Z"],
        description="RFC 3339 with a zone, or a date for its midnight in UTC.",
    ),
]
_START: Final = Parameter("query", "start", _Bound, "Count events from this instant on.")
_END: Final = Parameter("query", "end", _Bound, "Count events before this instant.")


class ReportCalls:
    """Handlers of the calls about reports."""

    def __init__(self, engine: Reporter) -> None:
        self._engine = engine

    @call(
        "GET",
        "/report/campaign/<number:campaign_id>",
        tag="reports",
        parameters=(_START, _END),
        gives=Gives(200, "Counts and spend.", {JSON: ReportAnswer}),
        problems=("campaign_not_found", "store_unavailable"),
    )
    async def report_campaign(self, campaign_id: int) -> Answer:
        """Report what a campaign delivered and spent.

        Every event that was answered 200 is in it at once, and it is exact for any bounds.
        """
        query = read_query(request.args.to_dict(flat=False), {"start": instant, "end": instant})
        start_us, end_us = query.get("start"), query.get("end")
        if start_us is not None and end_us is not None and end_us < start_us:
            refuse_query([Fault("end", "must not be before start")])
        report = await self._engine.report(campaign_id, start_us, end_us)
        body = ReportAnswer(
            campaign_id=report.campaign_id,
            start=None if start_us is None else instant_text(start_us),
            end=None if end_us is None else instant_text(end_us),
            impressions=report.impressions,
            clicks=report.clicks,
            conversions=report.conversions,
            spend=decimal_text(report.spend_micros),
        )
        return Answer(200, JSON_HEADERS, msgspec.json.encode(body))
