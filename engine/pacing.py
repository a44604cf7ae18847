"""How much of a daily budget may be spent by now. Pure: everything takes `now`.

Owns the spend day (a campaign's own calendar day) and the allowance. Knows no reservation and no store: the
allowance is checked inside the reservation, so it holds for any number of engine processes.

`asap` allows the whole daily budget at once. `even` allows the part of it that the day has reached, plus a
burst, so that a new day can start: one minute's share of the budget (1/1440), or one event's cost if that is
more. The day's length is the calendar's: 23 or 25 hours when clocks change.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from engine.model import SECOND_US, Campaign, Micros, Pacing, datetime_from_us, us_from_datetime

_BURST_SHARES: Final = 1_440
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()


class SpendDay(NamedTuple):
    """One calendar day of a campaign: its number, and its instants (start included, end not)."""

    day: int
    start_us: int
    end_us: int


def spend_day(now_us: int, timezone: str) -> SpendDay:
    """The calendar day of an IANA time zone at an instant."""
    return day_of_number(datetime_from_us(now_us).astimezone(ZoneInfo(timezone)).toordinal() - _EPOCH_ORDINAL, timezone)


def day_of_number(day: int, timezone: str) -> SpendDay:
    """The calendar day with this number (days since 1970-01-01) in an IANA time zone."""
    zone = ZoneInfo(timezone)
    first = date.fromordinal(day + _EPOCH_ORDINAL)
    start = datetime.combine(first, time(), zone).astimezone(UTC)
    end = datetime.combine(first + timedelta(days=1), time(), zone).astimezone(UTC)
    return SpendDay(day, us_from_datetime(start), us_from_datetime(end))


def allowance_micros(plan: Campaign, today: SpendDay, now_us: int) -> Micros:
    """How much of the day's budget may be spent by `now_us`, what is spent already included."""
    if plan.pacing is Pacing.ASAP:
        return plan.daily_budget_micros
    elapsed_us = min(max(now_us - today.start_us, 0), today.end_us - today.start_us)
    reached = plan.daily_budget_micros * elapsed_us // (today.end_us - today.start_us)
    return Micros(min(plan.daily_budget_micros, reached + burst_micros(plan)))


def burst_micros(plan: Campaign) -> Micros:
    """What `even` pacing allows beyond the part of the budget that the day has reached."""
    return Micros(max(plan.cost_micros, plan.daily_budget_micros // _BURST_SHARES))


def seconds_until_room(plan: Campaign, today: SpendDay, now_us: int, spent_today_micros: int) -> int:
    """Whole seconds until the allowance has room for one more billable event; at least 1."""
    reached = spent_today_micros + plan.cost_micros - burst_micros(plan)
    length_us = today.end_us - today.start_us
    elapsed_us = -(-reached * length_us // plan.daily_budget_micros)
    return seconds_between(now_us, today.start_us + min(elapsed_us, length_us))


def seconds_between(now_us: int, then_us: int) -> int:
    """Whole seconds from now to then, rounded up; at least 1, as `Retry-After` wants it."""
    return max(1, -(-(then_us - now_us) // SECOND_US))
