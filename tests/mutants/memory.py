"""Mutants of what short memory of Redis asks for: when buckets close, who is counted, and what a full Redis refuses."""

from __future__ import annotations

from typing import Final

from tests.mutants.engine import ACTOR, CAMPAIGN, DECISIONS, one
from tests.mutants.ledger import ADAPTER, CONTRACT, REAL
from tests.mutants.lookups import WINDOW

MEMORY: Final = "engine/memory.py"
FORGETTING: Final = "engine/forgetting.py"
PATIENCE: Final = "engine/patience.py"
RULES: Final = "tests/unit/test_memory.py"
ASKED: Final = "tests/unit/test_forgetting.py"

POLICY = [
    one(
        "buckets-live-as-long-as-the-setting-says",
        "While memory is plenty, a retry costs no look-up for minutes.",
        MEMORY,
        "min(max(over, 0.0), 1.0)",
        "min(max(over, 0.1), 1.0)",
        f"{RULES}::test_while_memory_is_plenty_buckets_live_as_long_as_the_setting_says",
    ),
    one(
        "no-bucket-is-younger-than-two-seconds",
        "However full Redis is, fresh events are not looked up.",
        MEMORY,
        "        return min(self._most_us(), max(BUCKET_MIN_US, self._needed_us()))\n",
        "        return min(self._most_us(), max(1, self._needed_us()))\n",
        f"{RULES}::test_from_a_share_on_buckets_close_at_their_least_age",
    ),
    one(
        "no-bucket-is-younger-than-look-ups-take",
        "A look-up counts for one bucket: most are not in vain.",
        MEMORY,
        "        return min(self._most_us(), max(BUCKET_MIN_US, self._needed_us()))\n",
        "        return min(self._most_us(), BUCKET_MIN_US)\n",
        f"{RULES}::test_a_bucket_is_several_times_as_old_as_the_slowest_lookup",
    ),
    one(
        "no-setting-is-younger-than-look-ups-take",
        "The same, where the setting is that short.",
        MEMORY,
        "        return max(self._bucket_us, self._needed_us())\n",
        "        return self._bucket_us\n",
        f"{RULES}::test_a_bucket_is_several_times_as_old_as_the_slowest_lookup",
    ),
    one(
        "look-ups-that-slow-down-count-at-once",
        "The same, where the age would rise slowly.",
        MEMORY,
        "        bucket_us = max(min(wanted_us, reached_us), self._least_us())\n",
        "        bucket_us = min(wanted_us, reached_us)\n",
        f"{RULES}::test_a_lookup_that_gets_slow_counts_at_once",
    ),
    one(
        "a-slow-look-up-is-remembered",
        "The next one may be as slow.",
        MEMORY,
        "self._lookups: deque[int] = deque(maxlen=_LOOKUPS_RECENT)",
        "self._lookups: deque[int] = deque(maxlen=1)",
        f"{RULES}::test_a_slow_lookup_is_remembered_for_a_minute",
    ),
    one(
        "a-short-setting-stays",
        "Whoever sets a second means it.",
        MEMORY,
        "        return min(self._most_us(), max(BUCKET_MIN_US, self._needed_us()))\n",
        "        return max(BUCKET_MIN_US, self._needed_us())\n",
        f"{RULES}::test_a_setting_below_the_least_age_stays",
    ),
    one(
        "the-age-rises-slowly",
        "Buckets free their memory one bucket later: their age does not swing.",
        MEMORY,
        "wanted_us if first else self.policy.bucket_us + _RISE_US",
        "wanted_us",
        f"{RULES}::test_the_age_falls_at_once_and_rises_slowly",
    ),
    one(
        "the-age-falls-at-once",
        "Memory that is short is given back now.",
        MEMORY,
        "max(min(wanted_us, reached_us), self._least_us())",
        "max(wanted_us, self.policy.bucket_us - _RISE_US, self._least_us())",
        f"{RULES}::test_the_age_falls_at_once_and_rises_slowly",
    ),
    one(
        "a-rise-is-foreseen",
        "A small Redis is not full between two observations.",
        MEMORY,
        "self._age_us((used_bytes + ahead_bytes) / max_bytes)",
        "self._age_us(used_bytes / max_bytes)",
        f"{RULES}::test_a_rise_that_goes_on_counts_before_it_has_come",
    ),
    one(
        "one-rise-is-no-rate",
        "A hash that doubles its table closes no bucket.",
        MEMORY,
        "        return min(before, rise)\n",
        "        return rise\n",
        f"{RULES}::test_memory_that_rises_once_is_no_rate",
    ),
    one(
        "buckets-close-one-after-the-other",
        "Half of Redis is not freed in one go.",
        MEMORY,
        "    return 1 + SPREAD * (number * _GOLDEN % 1)\n",
        "    return 1.0\n",
        f"{RULES}::test_buckets_of_many_campaigns_close_one_after_the_other",
    ),
    one(
        "without-a-limit-nothing-is-short",
        "Ids of a Redis without a limit are forgotten by age alone.",
        MEMORY,
        "        if not max_bytes:\n",
        "        max_bytes = max_bytes or 1\n        if False:\n",
        f"{RULES}::test_without_a_limit_nothing_is_short",
    ),
    one(
        "users-that-fill-redis",
        "Memory that can't be forgotten before midnight does not fill Redis.",
        MEMORY,
        "        if share >= NO_NEW_USERS_SHARE:\n",
        "        if False:\n",
        f"{RULES}::test_users_that_fill_redis_are_taken_no_more",
    ),
    one(
        "new-users-come-back-after-a-minute",
        "Whoever was told to come in minutes is not told again because a bucket was just forgotten.",
        MEMORY,
        "        return self._below >= _NEW_USERS_AFTER\n",
        "        return self._below >= 1\n",
        f"{RULES}::test_new_users_are_taken_again_after_a_minute_with_room",
    ),
    one(
        "a-minute-is-a-minute-in-a-row",
        "The same, where it was full in between.",
        MEMORY,
        "        self._below = self._below + 1 if share < NEW_USERS_SHARE else 0\n",
        "        self._below += share < NEW_USERS_SHARE\n",
        f"{RULES}::test_new_users_are_taken_again_after_a_minute_with_room",
    ),
]

LOOP = [
    one(
        "a-full-redis-is-told-once",
        "New users that are refused are told when that begins.",
        FORGETTING,
        "        if before.new_users and not policy.new_users:\n",
        "        if not policy.new_users:\n",
        f"{ASKED}::test_new_users_that_are_refused_are_told_once_when_it_begins_and_once_when_it_ends",
    ),
    one(
        "a-full-redis-is-told",
        "Nobody is refused in silence.",
        FORGETTING,
        "        if before.new_users and not policy.new_users:\n",
        "        if False:\n",
        f"{ASKED}::test_new_users_that_are_refused_are_told_once_when_it_begins_and_once_when_it_ends",
    ),
    one(
        "room-is-told-once",
        "And when it ends.",
        FORGETTING,
        "        elif policy.new_users and not before.new_users:\n",
        "        elif policy.new_users:\n",
        f"{ASKED}::test_new_users_that_are_refused_are_told_once_when_it_begins_and_once_when_it_ends",
    ),
    one(
        "readiness-says-who-is-refused",
        "Whoever asks for readiness hears it for as long as it is so.",
        FORGETTING,
        "        return [] if self.policy.new_users else [",
        "        return [] if True else [",
        f"{ASKED}::test_readiness_says_for_as_long_as_it_is_so_that_new_users_are_refused",
    ),
    one(
        "a-redis-that-is-not-heard-is-not-empty",
        "The policy stays while Redis can't be asked.",
        FORGETTING,
        "        if found is None:\n            return\n",
        "        found = found or (0, 0)\n",
        f"{ASKED}::test_while_redis_can_not_be_asked_the_policy_stays",
    ),
    one(
        "the-policy-hears-of-slow-look-ups",
        "Buckets live longer while Postgres is slow.",
        FORGETTING,
        "self._memory.observe(used_bytes, max_bytes, self._slowest_look_up_us())",
        "self._memory.observe(used_bytes, max_bytes, 0)",
        f"{ASKED}::test_while_look_ups_are_slow_buckets_live_longer",
    ),
    one(
        "a-look-up-under-way-is-as-slow-as-it-is-old",
        "The same, before the first slow one has its answer.",
        "engine/pace.py",
        "max(self._slowest_seconds, *self._ages(), 0.0)",
        "max(self._slowest_seconds, 0.0)",
        f"{ASKED}::test_while_look_ups_are_slow_buckets_live_longer",
    ),
    one(
        "calls-follow-the-policy-of-now",
        "Buckets of all campaigns close sooner as soon as memory is short.",
        "engine/registry.py",
        "            memory_policy=lambda: self.forgetting.policy,\n            run_soon",
        "            memory_policy=lambda policy=self.forgetting.policy: policy,\n            run_soon",
        f"{ASKED}::test_calls_follow_what_memory_asks_for",
    ),
    one(
        "a-call-names-the-age-of-buckets",
        "The same, in the call itself.",
        CAMPAIGN,
        "            int(policy.bucket_us * self._bucket_times),\n",
        "            480_000_000,\n",
        f"{DECISIONS}::test_a_call_names_how_memory_is_used",
    ),
    one(
        "a-call-names-the-room-for-users",
        "Where users fill Redis, it is told so.",
        CAMPAIGN,
        "            policy.new_users,\n",
        "            True,\n",
        f"{DECISIONS}::test_a_call_names_how_memory_is_used",
    ),
]

FULL = [
    one(
        "what-a-full-redis-refused-is-forgotten-for",
        "Redis does not stay full for ever: each call that it refuses closes a bucket.",
        ADAPTER,
        "        if refused:\n",
        "        if False:\n",
        f"{REAL}::test_a_full_redis_moves_on_with_the_window",
    ),
    one(
        "a-full-redis-closes-young-buckets",
        "The same, however old they may get while memory is plenty.",
        ADAPTER,
        "    bucket_us = min(refused.bucket_us, BUCKET_MIN_US)\n",
        "    bucket_us = refused.bucket_us\n",
        f"{REAL}::test_a_full_redis_moves_on_with_the_window",
    ),
    one(
        "a-full-redis-does-not-forget-at-every-call",
        "A look-up counts for one bucket: it has some seconds to be of use.",
        ADAPTER,
        "    bucket_us = min(refused.bucket_us, BUCKET_MIN_US)\n",
        "    bucket_us = 0\n",
        f"{CONTRACT}::test_a_full_ledger_does_not_forget_at_every_call",
    ),
    one(
        "a-full-redis-moves-the-day-on",
        "Users of a day that is over make room first.",
        ADAPTER,
        "    return Advance(refused.campaign_id, refused.generation, refused.day, refused.at_us, bucket_us)\n",
        "    return Advance(refused.campaign_id, refused.generation, 0, refused.at_us, bucket_us)\n",
        f"{CONTRACT}::test_a_full_ledger_moves_on_with_day_and_window",
    ),
    one(
        "advance-needs-no-memory",
        "What frees memory works without any.",
        "engine/redis/functions.lua",
        "callback = advance_idle, flags = frees}",
        "callback = advance_idle, flags = {}}",
        f"{CONTRACT}::test_a_full_ledger_moves_on_with_day_and_window",
    ),
    one(
        "what-a-full-redis-refused-is-tried-again",
        "Who comes when memory is short is accepted as soon as there is some.",
        ACTOR,
        "        elif reply.full and self._patience.full():\n",
        "        elif False:\n",
        f"{WINDOW}::test_what_a_full_redis_refused_is_tried_again_once_ids_are_forgotten",
    ),
    one(
        "what-a-full-redis-refused-was-not-tried",
        "An id of the server's is as new as before: that call certainly did nothing.",
        ACTOR,
        "            state.not_tried(request.entries)\n            self.mailbox.put_back(request.entries)\n",
        "            self.mailbox.put_back(request.entries)\n",
        f"{WINDOW}::test_an_id_made_by_the_server_is_new_still_after_a_full_redis",
    ),
    one(
        "a-full-redis-is-tried-a-few-times-only",
        "Whoever waits hears soon that there is no room.",
        PATIENCE,
        "        if self._full == FULL_MAX:\n",
        "        if self._full == 10 * FULL_MAX:\n",
        "tests/unit/test_patience.py::test_a_full_redis_is_tried_again_a_few_times_only",
    ),
    one(
        "a-call-that-was-decided-restores-patience",
        "A Redis that was full a while ago is tried as often as before.",
        PATIENCE,
        "        self._closed = self._full = 0\n",
        "        self._closed = 0\n",
        "tests/unit/test_patience.py::test_what_was_decided_begins_anew",
    ),
]

MUTANTS = POLICY + LOOP + FULL
