"""Identity days that rows can have, and days in SQL."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from config.settings import Settings
from engine.days import EVER_ACCEPTED, Accepted
from engine.model import DAY_US, SECOND_US
from engine.postgres.days import days_sql
from tests.plans import NOON_US

ZONES = ["Etc/GMT+12", "America/New_York", "UTC", "Asia/Kolkata", "Pacific/Kiritimati"]
SETTINGS = [Settings(), Settings(occurred_past_seconds=604_800, occurred_ahead_seconds=3_600)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_event_that_is_accepted_has_one_of_the_days_of_its_receipt(settings: Settings) -> None:
    """Its own time is within the accepted past and ahead; no day more is named than such times have."""
    accepted = Accepted.of(settings)
    for seed in range(300):
        chance = random.Random(seed)
        start_us = NOON_US + chance.randrange(3 * DAY_US)
        end_us = start_us + chance.randint(1, 3 * DAY_US)
        days = accepted.days_of_receipt(start_us, end_us)
        for received_us in (start_us, chance.randrange(start_us, end_us), end_us - 1):
            time_us = received_us + chance.randint(-accepted.past_us, accepted.ahead_us)
            assert time_us // DAY_US in days
        assert days[0] == (start_us - accepted.past_us) // DAY_US
        assert days[-1] == (end_us - 1 + accepted.ahead_us) // DAY_US


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("zone", ZONES)
def test_every_event_of_a_spend_day_has_one_of_its_days(settings: Settings, zone: str) -> None:
    """Whatever the campaign's zone, however long it waited for its reservation, and however wrong a clock may be."""
    accepted = Accepted.of(settings)
    for seed in range(300):
        chance = random.Random(seed)
        reserved_us = NOON_US + chance.randrange(3 * DAY_US)
        date = datetime.fromtimestamp(reserved_us // SECOND_US, UTC).astimezone(ZoneInfo(zone)).date()
        received_us = reserved_us - chance.randint(0, 300 * SECOND_US) + chance.randint(-1_200, 1_200) * SECOND_US
        time_us = received_us + chance.randint(-accepted.past_us, accepted.ahead_us)
        spend_day = date.toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal()
        assert time_us // DAY_US in accepted.days_of_spend_day(spend_day)


def test_the_default_settings_name_five_days() -> None:
    """Three before the spend day, and the one after it."""
    assert list(Accepted.of(Settings()).days_of_spend_day(20_000)) == [19_997, 19_998, 19_999, 20_000, 20_001]


def test_what_any_setting_may_have_accepted_is_known_as_such() -> None:
    """Seven days back, and an hour ahead: what is named by it misses nothing that another engine has accepted."""
    assert list(EVER_ACCEPTED.days_of_spend_day(20_000)) == list(range(19_992, 20_002))


def test_days_in_sql_are_constants_each_once() -> None:
    """In order, so that the same days are the same text, which is prepared already."""
    assert days_sql([3, -1, 3]) == "(date '1970-01-01' + -1), (date '1970-01-01' + 3)".join("()")
