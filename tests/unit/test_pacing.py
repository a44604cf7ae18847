"""Allowance and spend days."""

from __future__ import annotations

import pytest

from engine.model import DAY_US, SECOND_US, Pacing
from engine.pacing import allowance_micros, burst_micros, day_of_number, seconds_until_room, spend_day
from tests.plans import NOON_US, micros, plan

EVEN = plan(pacing=Pacing.EVEN, daily_budget_micros=micros("1440"))


def test_asap_allows_the_whole_daily_budget_at_once() -> None:
    """`asap` never holds anything back."""
    today = spend_day(NOON_US, "UTC")
    assert allowance_micros(plan(), today, today.start_us) == plan().daily_budget_micros


def test_even_allows_the_part_that_the_day_has_reached_and_the_burst() -> None:
    """At noon half of the budget, and one minute's share."""
    today = spend_day(NOON_US, "UTC")
    assert allowance_micros(EVEN, today, NOON_US) == micros("720") + micros("1")


def test_a_new_day_starts_with_room_for_one_event() -> None:
    """The burst is at least one event's cost, whatever the budget."""
    poor = plan(pacing=Pacing.EVEN, daily_budget_micros=micros("0.005"))
    today = spend_day(NOON_US, "UTC")
    assert allowance_micros(poor, today, today.start_us) == poor.cost_micros == burst_micros(poor)


def test_the_allowance_never_passes_the_daily_budget() -> None:
    """Neither at the end of the day nor after it."""
    today = spend_day(NOON_US, "UTC")
    for now_us in (today.end_us - 1, today.end_us, today.end_us + DAY_US):
        assert allowance_micros(EVEN, today, now_us) == EVEN.daily_budget_micros


def test_before_its_day_a_campaign_has_only_the_burst() -> None:
    """An engine whose clock lags behind the spend day is not negative."""
    tomorrow = day_of_number(spend_day(NOON_US, "UTC").day + 1, "UTC")
    assert allowance_micros(EVEN, tomorrow, NOON_US) == burst_micros(EVEN)


@pytest.mark.parametrize(
    ("timezone", "day", "hours"),
    [("UTC", 20_541, 24), ("Europe/Berlin", 20_541, 23), ("Europe/Berlin", 20_751, 25), ("Pacific/Apia", 20_541, 24)],
)
def test_a_day_is_as_long_as_the_calendar_says(timezone: str, day: int, hours: int) -> None:
    """29 March and 25 October 2026 have 23 and 25 hours in Berlin."""
    length = day_of_number(day, timezone)
    assert (length.end_us - length.start_us) // (3_600 * SECOND_US) == hours
    assert spend_day(length.start_us, timezone) == spend_day(length.end_us - 1, timezone) == length


def test_the_spend_day_is_the_campaigns_own() -> None:
    """At 12:00 UTC it is already tomorrow in Kiritimati."""
    assert spend_day(NOON_US, "Pacific/Kiritimati").day == spend_day(NOON_US, "UTC").day + 1


def test_after_the_told_seconds_there_is_room_and_a_second_earlier_there_is_none() -> None:
    """`Retry-After` of a paced event is exact to the second."""
    today = spend_day(NOON_US, "UTC")
    spent = allowance_micros(EVEN, today, NOON_US)
    wait = seconds_until_room(EVEN, today, NOON_US, spent)
    assert spent + EVEN.cost_micros <= allowance_micros(EVEN, today, NOON_US + wait * SECOND_US)
    costly = plan(pacing=Pacing.EVEN, daily_budget_micros=micros("1440"), unit_price_micros=micros("60000"))
    wait = seconds_until_room(costly, today, NOON_US, micros("720"))
    assert micros("720") + costly.cost_micros <= allowance_micros(costly, today, NOON_US + wait * SECOND_US)
    assert micros("720") + costly.cost_micros > allowance_micros(costly, today, NOON_US + (wait - 2) * SECOND_US)


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("day", [20_541, 20_600, 20_751])
def test_over_a_day_with_more_events_than_budget_spend_follows_the_plan_within_one_percent(
    timezone: str, day: int
) -> None:
    """Two events a second for a budget of one: within 1 % of the plan at every minute, all spent at the end."""
    paced = plan(pacing=Pacing.EVEN, daily_budget_micros=micros("86.4"), timezone=timezone)
    today = day_of_number(day, timezone)
    length_us = today.end_us - today.start_us
    spent = 0
    for now_us in range(today.start_us, today.end_us, SECOND_US // 2):
        if spent + paced.cost_micros <= allowance_micros(paced, today, now_us):
            spent += paced.cost_micros
        if (now_us - today.start_us) % (60 * SECOND_US) == 0:
            reached = paced.daily_budget_micros * (now_us - today.start_us) / length_us
            assert abs(spent - reached) <= paced.daily_budget_micros * 0.01
            assert spent <= reached + burst_micros(paced)
    assert spent == paced.daily_budget_micros
