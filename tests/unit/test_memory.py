"""What the engine does as Redis's memory gets short, rule by rule."""

from __future__ import annotations

import itertools

import pytest

from engine.memory import (
    FULL_AGE_SHARE,
    LEAST_AGE_SHARE,
    LOOKUPS_LOSE_SHARE,
    NEW_USERS_SHARE,
    NO_NEW_USERS_SHARE,
    SPREAD,
    MemoryPolicy,
    Policy,
    bucket_times,
    capacity,
    megabytes,
)
from engine.model import SECOND_US

MB = 1 << 20
MAX = 1_000_000
FULL_US, LEAST_US = 480 * SECOND_US, 2 * SECOND_US
MINUTE = 60  # observations


def observed(policy: MemoryPolicy, *shares: float, slowest_lookup_us: int = 0) -> Policy:
    """The policy after observations of these shares of memory."""
    for share in shares:
        policy.observe(round(share * MAX), MAX, slowest_lookup_us)
    return policy.policy


def bucket_us(share: float) -> int:
    """The age at which buckets close, at first sight of this share."""
    return observed(MemoryPolicy(FULL_US), share).bucket_us


def test_while_memory_is_plenty_buckets_live_as_long_as_the_setting_says() -> None:
    """Before Redis was asked for the first time, too."""
    assert MemoryPolicy(FULL_US).policy == Policy(FULL_US, new_users=True)
    assert bucket_us(0.01) == bucket_us(FULL_AGE_SHARE) == FULL_US


def test_from_a_share_on_buckets_close_at_their_least_age() -> None:
    """However full it gets."""
    assert bucket_us(LEAST_AGE_SHARE) == bucket_us(1.2) == LEAST_US


def test_in_between_the_age_falls_by_the_same_factor_with_each_percent() -> None:
    """Halfway it is the geometric mean."""
    assert bucket_us((FULL_AGE_SHARE + LEAST_AGE_SHARE) / 2) == pytest.approx((FULL_US * LEAST_US) ** 0.5, abs=1)


def test_the_age_falls_at_once_and_rises_slowly() -> None:
    """Half a second a second: forgetting frees memory one bucket later."""
    policy = MemoryPolicy(FULL_US)
    assert observed(policy, 0.1, 0.9).bucket_us == LEAST_US
    assert observed(policy, 0.1).bucket_us == LEAST_US + SECOND_US // 2
    assert observed(policy, *[0.1] * 2_000).bucket_us == FULL_US


def test_a_rise_that_goes_on_counts_before_it_has_come() -> None:
    """Otherwise a small Redis is full between two observations."""
    assert observed(MemoryPolicy(FULL_US), 0.3, 0.4, 0.5).bucket_us == bucket_us(0.6)


def test_memory_that_rises_once_is_no_rate() -> None:
    """A hash that doubles its table does that."""
    assert observed(MemoryPolicy(FULL_US), 0.4, 0.4, 0.5).bucket_us == FULL_US


def test_a_bucket_is_several_times_as_old_as_the_slowest_lookup() -> None:
    """Whatever the setting, and whichever engine it is: a look-up counts only in the bucket in which it was sent."""
    slow_us = 3 * SECOND_US
    assert observed(MemoryPolicy(FULL_US), LEAST_AGE_SHARE, slowest_lookup_us=slow_us).bucket_us == 4 * slow_us
    assert observed(MemoryPolicy(SECOND_US), 0.1, slowest_lookup_us=slow_us).bucket_us == 4 * slow_us
    policy = MemoryPolicy(FULL_US)
    policy.slowest_elsewhere_us = slow_us
    assert observed(policy, LEAST_AGE_SHARE, slowest_lookup_us=1).bucket_us == 4 * slow_us


def test_when_memory_gets_shorter_still_slow_lookups_lose() -> None:
    """Else ids would fill Redis, and every event would be refused: the age falls to the least that there is."""
    slow_us = 3 * SECOND_US
    halfway = (LEAST_AGE_SHARE + LOOKUPS_LOSE_SHARE) / 2
    found_us = observed(MemoryPolicy(FULL_US), halfway, slowest_lookup_us=slow_us).bucket_us
    assert found_us == pytest.approx((4 * slow_us * LEAST_US) ** 0.5, abs=1)
    for share in (LOOKUPS_LOSE_SHARE, 1.2):
        assert observed(MemoryPolicy(FULL_US), share, slowest_lookup_us=slow_us).bucket_us == LEAST_US
    assert observed(MemoryPolicy(SECOND_US), LOOKUPS_LOSE_SHARE, slowest_lookup_us=slow_us).bucket_us == SECOND_US


def test_a_lookup_that_gets_slow_counts_at_once() -> None:
    """Where memory alone would let the age rise slowly: those in between would all be in vain."""
    policy = MemoryPolicy(FULL_US)
    assert observed(policy, LEAST_AGE_SHARE).bucket_us == LEAST_US
    assert observed(policy, LEAST_AGE_SHARE, slowest_lookup_us=3 * SECOND_US).bucket_us == 12 * SECOND_US


def test_a_slow_lookup_is_remembered_for_a_minute() -> None:
    """The next one may be as slow."""
    policy = MemoryPolicy(FULL_US)
    observed(policy, LEAST_AGE_SHARE, slowest_lookup_us=3 * SECOND_US)
    assert observed(policy, *[LEAST_AGE_SHARE] * (MINUTE - 1)).bucket_us == 12 * SECOND_US
    assert observed(policy, LEAST_AGE_SHARE).bucket_us == LEAST_US


def test_a_setting_below_the_least_age_stays() -> None:
    """Whoever sets a second means it."""
    assert observed(MemoryPolicy(SECOND_US), 0.9).bucket_us == SECOND_US


def test_users_that_fill_redis_are_taken_no_more() -> None:
    """They can't be forgotten before their day is over."""
    assert observed(MemoryPolicy(FULL_US), NO_NEW_USERS_SHARE - 0.01).new_users
    assert not observed(MemoryPolicy(FULL_US), NO_NEW_USERS_SHARE).new_users


def test_new_users_are_taken_again_after_a_minute_with_room() -> None:
    """Shorter dips come from buckets that close."""
    policy = MemoryPolicy(FULL_US)
    observed(policy, 0.9, *[NEW_USERS_SHARE - 0.01] * (MINUTE - 1))
    assert not observed(policy, NEW_USERS_SHARE).new_users
    assert not observed(policy, *[NEW_USERS_SHARE - 0.01] * (MINUTE - 1)).new_users
    assert observed(policy, NEW_USERS_SHARE - 0.01).new_users


def test_without_a_limit_nothing_is_short() -> None:
    """Redis may then use all of the machine: nobody says how much that is."""
    policy = MemoryPolicy(FULL_US)
    observed(policy, 0.9)
    assert policy.observe(1 << 50, 0, 0) == Policy(FULL_US, new_users=True)


@pytest.mark.parametrize("campaigns", [1, 100])
@pytest.mark.parametrize("rate", [110_000, 150_000])
@pytest.mark.parametrize(
    ("lookup_seconds", "least", "most"),
    [(0, 0.1, 0.7), (1, 0.1, 0.85), (3, 0.1, 0.85), (10, 0.1, 0.85), (60, 0.05, 0.85)],
)
def test_ids_at_full_rate_leave_a_part_of_a_small_redis_free(
    rate: int, campaigns: int, lookup_seconds: int, least: float, most: float
) -> None:
    """However slow look-ups are, and keep it in use.

    A model of two hashes a campaign, whose tables double, in 256 MB for ten minutes.
    """
    policy, max_bytes = MemoryPolicy(FULL_US), 256 * MB
    older, current, age, used_shares = 0, 0, 0, []
    for tenth in range(6_000):
        current += rate // campaigns // 10
        age += SECOND_US // 10
        if age >= policy.policy.bucket_us:
            older, current, age = current, 0, 0
        used = 10 * MB + campaigns * (hash_bytes(older) + hash_bytes(current))
        used_shares.append(used / max_bytes)
        if tenth % 10 == 0:
            policy.observe(used, max_bytes, lookup_seconds * SECOND_US)
    assert max(used_shares) < most
    assert min(used_shares[3_000:]) > least


def hash_bytes(entries: int) -> int:
    """A hash of Redis: its table has a power of two of slots, and the one before stays until all are moved."""
    slots = 1 << max(entries - 1, 3).bit_length()
    return 64 * entries + 8 * slots + (4 * slots if entries < slots * 3 // 4 else 0)


def test_what_memory_holds_is_said_in_round_numbers() -> None:
    """With ids at their least age in the longest buckets that it gives, or with users only."""
    assert capacity(1_024 * MB) == (
        "about 7,700,000 ids at once: at most 1,500,000 events/s at the shortest dedup window, or 9,600,000 users of "
        "capped campaigns a day"
    )
    assert megabytes(1_024 * MB) == "1,024 MB"


def test_buckets_of_many_campaigns_close_one_after_the_other() -> None:
    """To free all of them in one go would take a core for a minute. None closes sooner than look-ups allow."""
    times = sorted(bucket_times(number) for number in range(1, 1_001))
    assert 1 <= times[0] < 1 + SPREAD / 100
    assert 1 + SPREAD * 0.99 < times[-1] <= 1 + SPREAD
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) < 3 * SPREAD / 1_000
