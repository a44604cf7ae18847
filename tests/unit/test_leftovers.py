"""The decision about one campaign of the sweep, rule by rule."""

from __future__ import annotations

import zoneinfo
from dataclasses import replace

import pytest

from engine.leftovers import (
    ABANDONED_SECONDS,
    LEAVE,
    PUT_OFF_US,
    RECOVER,
    Advance,
    Decision,
    Drop,
    Held,
    decide_due,
    decide_untrusted,
    is_due,
    latest_day,
)
from engine.memory import SPREAD
from engine.model import DAY_US, SECOND_US, CampaignId
from engine.pacing import spend_day

TODAY, NOW_US = 20_000, 20_000 * 86_400 * SECOND_US
BUCKET_US, IDLE_US = 5 * SECOND_US, 480 * SECOND_US  # memory is short: buckets close sooner than campaigns are idle
DUE_US, LONG_AGO_US = [NOW_US - int(age_us * (1 + SPREAD)) - PUT_OFF_US for age_us in (BUCKET_US, IDLE_US)]
HELD = Held(
    CampaignId(7), 3, ours=True, open=True, day=TODAY, bucket=4, began_us=DUE_US, used_us=DUE_US, pending=0,
    users=5, ids=9,
)  # fmt: skip


def decided(held: Held, today: int | None = TODAY, *, pressed: bool = False) -> Decision:
    """What is done with a campaign whose bucket should have closed."""
    return decide_due(held, today, NOW_US, BUCKET_US, IDLE_US, pressed=pressed)


def moved_on(day: int) -> Advance:
    """Day and bucket move on."""
    return Advance(HELD.campaign_id, HELD.generation, day, NOW_US, BUCKET_US)


def test_what_another_memory_image_wrote_is_dropped_at_once() -> None:
    """No caller trusts it."""
    held = replace(HELD, ours=False, pending=4)
    assert decide_untrusted(held, 0.0) == Drop(held)


def test_a_rebuild_is_dropped_only_when_nothing_of_it_moves_any_more() -> None:
    """Somebody may be at it: then it grows."""
    held = replace(HELD, open=False)
    assert decide_untrusted(held, ABANDONED_SECONDS - 1) is LEAVE
    assert decide_untrusted(held, ABANDONED_SECONDS) == Drop(held)


def test_an_open_campaign_is_looked_at_when_its_bucket_should_have_closed() -> None:
    """Its own calls close it in time, but for what each campaign has of its own, and the second that puts it off."""
    assert decide_untrusted(HELD, ABANDONED_SECONDS) is None
    assert is_due(HELD, NOW_US, BUCKET_US)
    assert not is_due(replace(HELD, began_us=DUE_US + 1), NOW_US, BUCKET_US)
    assert not is_due(replace(HELD, began_us=NOW_US + SECOND_US), NOW_US, BUCKET_US)  # by a clock that is ahead of ours


@pytest.mark.parametrize("pressed", [False, True])
def test_what_holds_reservations_is_recovered_first(pressed: bool) -> None:
    """They may be those of a dead engine, and nothing may be dropped before they are settled."""
    held = replace(HELD, pending=1)
    assert decided(held, pressed=pressed) is RECOVER
    assert decided(held, None, pressed=pressed) is LEAVE  # there is nothing to recover it by


def test_a_campaign_that_postgres_does_not_know_is_dropped() -> None:
    """Redis stood beside another database."""
    assert decided(HELD, None) == Drop(HELD)


def test_ids_go_bucket_by_bucket() -> None:
    """As if the campaign had had a call; users of today stay."""
    assert decided(HELD) == moved_on(TODAY)


def test_a_day_never_moves_back() -> None:
    """An engine whose clock is ahead has moved it on already."""
    assert decided(replace(HELD, day=TODAY + 1)) == moved_on(TODAY + 1)


@pytest.mark.parametrize("hour", [0, 9, 10, 11, 23])
def test_no_campaigns_day_is_later_than_the_latest(hour: int) -> None:
    """So what is left alone on that day is left alone in every zone."""
    now_us = TODAY * DAY_US + hour * 3_600 * SECOND_US
    assert latest_day(now_us) == max(spend_day(now_us, zone).day for zone in zoneinfo.available_timezones())


def test_users_of_a_day_that_is_over_go() -> None:
    """Those of today stay: their caps count, and a rebuild would have to read them."""
    held = replace(HELD, ids=0)
    assert decided(held) is LEAVE
    assert decided(held, TODAY + 1) == moved_on(TODAY + 1)


def test_a_full_redis_gives_back_users_of_today_too() -> None:
    """Of a campaign that is idle: it can be rebuilt, and whoever is refused for want of memory can't be helped else."""
    idle = replace(HELD, used_us=LONG_AGO_US)
    assert decided(idle, pressed=True) == Drop(idle)
    assert decided(replace(idle, ids=0), pressed=True) == Drop(replace(idle, ids=0))
    assert decided(idle, TODAY + 1, pressed=True) == moved_on(TODAY + 1)


def test_a_full_redis_takes_no_users_of_a_campaign_that_was_in_use_just_now() -> None:
    """However soon its buckets close: to read its users again would take longer than its next call is away."""
    recent = replace(HELD, used_us=LONG_AGO_US + 1)
    assert decided(recent, pressed=True) == moved_on(TODAY)
    assert decided(replace(recent, ids=0), pressed=True) is LEAVE


def test_a_campaign_that_was_never_used_is_idle_by_its_bucket() -> None:
    """A rebuild has begun it."""
    rebuilt = replace(HELD, used_us=0)
    assert decided(rebuilt, pressed=True) == moved_on(TODAY)
    assert decided(replace(rebuilt, began_us=LONG_AGO_US), pressed=True) == Drop(replace(rebuilt, began_us=LONG_AGO_US))


@pytest.mark.parametrize("pressed", [False, True])
def test_sums_alone_go_when_nobody_has_used_them_for_two_days(pressed: bool) -> None:
    """They are small, and a rebuild is dear."""
    held = replace(HELD, users=0, ids=0, used_us=LONG_AGO_US)
    assert decided(held, pressed=pressed) is LEAVE
    assert decided(held, TODAY + 1, pressed=pressed) is LEAVE
    assert decided(held, TODAY + 2, pressed=pressed) == Drop(held)
