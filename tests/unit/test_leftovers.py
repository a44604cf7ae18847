"""The decision about one campaign of the sweep, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.leftovers import (
    ABANDONED_SECONDS,
    LEAVE,
    RECOVER,
    Drop,
    Held,
    MoveOn,
    decide_idle,
    decide_untrusted,
    is_idle,
)
from engine.model import CampaignId

TODAY, TURN = 20_000, 1_000
HELD = Held(CampaignId(7), 3, ours=True, open=True, day=TODAY, turn=TURN - 10, pending=0, users=5, ids=9)


def test_what_another_memory_image_wrote_is_dropped_at_once() -> None:
    """No caller trusts it."""
    held = replace(HELD, ours=False, pending=4)
    assert decide_untrusted(held, 0.0) == Drop(held)


def test_a_rebuild_is_dropped_only_when_nothing_of_it_moves_any_more() -> None:
    """Somebody may be at it: then it grows."""
    held = replace(HELD, open=False)
    assert decide_untrusted(held, ABANDONED_SECONDS - 1) is LEAVE
    assert decide_untrusted(held, ABANDONED_SECONDS) == Drop(held)


def test_an_open_campaign_is_judged_by_its_use() -> None:
    """Idle is whose window is two turns behind: nobody has used it for one turn at least."""
    assert decide_untrusted(HELD, ABANDONED_SECONDS) is None
    assert not is_idle(replace(HELD, turn=TURN + 1), TURN)  # by a clock that is ahead of ours
    assert not is_idle(replace(HELD, turn=TURN - 1), TURN)
    assert is_idle(replace(HELD, turn=TURN - 2), TURN)


@pytest.mark.parametrize("pressed", [False, True])
def test_what_holds_reservations_is_recovered_first(pressed: bool) -> None:
    """They may be those of a dead engine, and nothing may be dropped before they are settled."""
    held = replace(HELD, pending=1)
    assert decide_idle(held, TODAY, TURN, pressed=pressed) is RECOVER
    assert decide_idle(held, None, TURN, pressed=pressed) is LEAVE  # there is nothing to recover it by


def test_a_campaign_that_postgres_does_not_know_is_dropped() -> None:
    """Redis stood beside another database."""
    assert decide_idle(HELD, None, TURN, pressed=False) == Drop(HELD)


def test_ids_that_the_window_has_left_behind_go() -> None:
    """The window moves on just far enough, and never so far that the campaign would look used."""
    assert decide_idle(HELD, TODAY, TURN, pressed=False) == MoveOn(HELD, TODAY, HELD.turn + 2)
    assert decide_idle(replace(HELD, turn=TURN - 3), TODAY, TURN, pressed=False) is LEAVE


def test_users_of_a_day_that_is_over_go() -> None:
    """Those of today stay: their caps count, and a rebuild would have to read them."""
    held = replace(HELD, ids=0)
    assert decide_idle(held, TODAY, TURN, pressed=False) is LEAVE
    assert decide_idle(held, TODAY + 1, TURN, pressed=False) == MoveOn(held, TODAY + 1, held.turn)


def test_a_full_redis_gives_back_users_of_today_too() -> None:
    """What is idle can be rebuilt; whoever is refused for want of memory can't be helped otherwise."""
    held = replace(HELD, turn=TURN - 2)
    assert decide_idle(held, TODAY, TURN, pressed=True) == Drop(held)
    assert decide_idle(held, TODAY + 1, TURN, pressed=True) == MoveOn(held, TODAY + 1, TURN)


@pytest.mark.parametrize("pressed", [False, True])
def test_sums_alone_go_when_nobody_has_used_them_for_two_days(pressed: bool) -> None:
    """They are small, and a rebuild is dear."""
    held = replace(HELD, users=0, ids=0)
    assert decide_idle(held, TODAY, TURN, pressed=pressed) is LEAVE
    assert decide_idle(held, TODAY + 1, TURN, pressed=pressed) is LEAVE
    assert decide_idle(held, TODAY + 2, TURN, pressed=pressed) == Drop(held)
