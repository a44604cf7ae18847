"""How long an actor bears with a Redis that refuses, rule by rule."""

from __future__ import annotations

from engine.patience import CLOSED_PAUSES_SECONDS, FULL_MAX, Patience


def test_a_closed_campaign_is_looked_at_again_and_in_the_end_recovered() -> None:
    """After growing pauses; then it begins anew."""
    patience = Patience()
    for _ in range(2):
        assert [patience.closed() for _ in CLOSED_PAUSES_SECONDS] == [*CLOSED_PAUSES_SECONDS]
        assert patience.meets_closed
        assert patience.closed() is None
        assert not patience.meets_closed


def test_a_full_redis_is_tried_again_a_few_times_only() -> None:
    """What does not help by then does not help soon, and whoever waits hears so; the next call is tried as often."""
    patience = Patience()
    for _ in range(2):
        assert [patience.full() for _ in range(FULL_MAX + 1)] == [True] * FULL_MAX + [False]


def test_what_was_decided_begins_anew() -> None:
    """A call that Redis has decided says that all is well."""
    patience = Patience()
    for _ in range(3):
        assert patience.closed() == CLOSED_PAUSES_SECONDS[0]
        assert [patience.full() for _ in range(FULL_MAX)] == [True] * FULL_MAX
        patience.restore()
        assert not patience.meets_closed
