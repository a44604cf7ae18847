"""Mutants of the sweep, and of what tells that events are refused."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

LUA = "engine/redis/functions.lua"
LEFTOVERS = "engine/leftovers.py"
SWEEP = "engine/sweep.py"
WATCHED = "engine/watched.py"
CONTRACT = "tests/contract/test_ledger_leftovers.py"
DECISIONS = "tests/unit/test_leftovers.py"
SWEEPING = "tests/unit/test_sweep.py"
ENGINE = "tests/unit/test_refusals.py"


def one(name: str, protects: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """One edit, and the tests that notice."""
    return Mutant(name, protects, [Edit(file, old, new)], tests)


MUTANTS = [
    one(
        "drop-without-pending",
        "What may commit still is never dropped.",
        LUA,
        "    if s[2] == this_image() and s[3] == '1' and redis.call('HLEN', keys[2]) > 0 then return {'USED'} end\n",
        "",
        f"{CONTRACT}::test_a_campaign_with_a_reservation_is_not_dropped",
    ),
    one(
        "drop-as-it-was-found",
        "A campaign that was used since it was found is not dropped.",
        LUA,
        "    if (s[4] and struct.unpack('>d', s[4]) or 0) ~= tonumber(argv[3]) then return {'USED'} end\n",
        "",
        f"{CONTRACT}::test_a_campaign_that_was_used_again_is_not_dropped",
    ),
    one(
        "drop-under-its-generation",
        "A campaign that was recovered since it was found is not dropped.",
        LUA,
        "    if s[1] ~= argv[1] then return {'STALE', s[1]} end\n",
        "",
        f"{CONTRACT}::test_a_campaign_that_was_recovered_meanwhile_is_not_dropped",
    ),
    one(
        "drop-what-is-open",
        "A campaign that is being recovered is not dropped as an open one.",
        LUA,
        "    if s[3] ~= argv[2] then return {'CLOSED'} end\n",
        "",
        f"{CONTRACT}::test_a_campaign_that_was_recovered_meanwhile_is_not_dropped",
    ),
    one(
        "the-sweep-moves-no-day-back",
        "Whoever sweeps may have decided long ago.",
        LUA,
        "    if day > s.day then\n",
        "    if day ~= s.day then\n",
        f"{CONTRACT}::test_a_day_and_a_window_never_move_back",
    ),
    one(
        "the-sweep-moves-the-day-on",
        "Users of a day that is over don't stay for ever.",
        LUA,
        "    if day > s.day then\n",
        "    if false then\n",
        f"{CONTRACT}::test_moving_on_leaves_ids_and_users_behind",
    ),
    one(
        "the-sweep-closes-what-is-old",
        "Two who sweep at once don't forget two buckets: what is in use stays known.",
        LUA,
        "    if at - s.began >= age then advance(keys, s, at, age) end\n    return {'OK'}\n",
        "    advance(keys, s, at, age)\n    return {'OK'}\n",
        f"{CONTRACT}::test_a_day_and_a_window_never_move_back",
    ),
    one(
        "idle-beyond-its-bucket",
        "A campaign that is in use closes its buckets by its own calls.",
        LEFTOVERS,
        "    return _is_old(held.began_us, now_us, bucket_us)\n",
        "    return True\n",
        f"{DECISIONS}::test_an_open_campaign_is_looked_at_when_its_bucket_should_have_closed",
    ),
    one(
        "in-use-just-now",
        "A full Redis drops no users of a campaign whose next call is a moment away.",
        LEFTOVERS,
        "    idle = _is_old(held.used_us or held.began_us, now_us, idle_us)\n",
        "    idle = True\n",
        f"{DECISIONS}::test_a_full_redis_takes_no_users_of_a_campaign_that_was_in_use_just_now",
    ),
    one(
        "a-sweep-is-no-use",
        "A full Redis gives back what is idle, however often its buckets were closed by sweeps.",
        LEFTOVERS,
        "_is_old(held.used_us or held.began_us,",
        "_is_old(held.began_us,",
        f"{SWEEPING}::test_a_full_redis_drops_what_is_idle_though_sweeps_have_closed_its_buckets",
    ),
    one(
        "a-call-that-accepts-is-a-use",
        "A full Redis drops no campaign that is in use.",
        LUA,
        "    if call.at - s.used >= 1000000 then changes[#changes + 1], changes[#changes + 2] = 'used', call.at end\n",
        "",
        f"{CONTRACT}::test_a_sweep_uses_no_campaign",
    ),
    one(
        "a-call-that-closes-a-bucket-is-a-use",
        "The same, where all that comes is refused.",
        LUA,
        "        redis.call('HSET', keys[1], 'used', call.at)\n",
        "",
        f"{CONTRACT}::test_a_sweep_uses_no_campaign",
    ),
    one(
        "pending-is-recovered-first",
        "What dead engines left pending is recovered before anything is dropped.",
        LEFTOVERS,
        "        return LEAVE if today is None else RECOVER\n",
        "        return LEAVE\n",
        f"{SWEEPING}::test_what_dead_engines_left_in_an_idle_campaign_is_recovered_first",
    ),
    one(
        "a-rebuild-goes-on",
        "A rebuild that is under way is not dropped.",
        LEFTOVERS,
        "return Drop(held) if unchanged_seconds >= ABANDONED_SECONDS else LEAVE",
        "return Drop(held)",
        f"{SWEEPING}::test_a_rebuild_that_stopped_is_dropped_and_one_that_goes_on_is_not",
    ),
    one(
        "a-wrong-clock-sweeps-nothing",
        "No spend day begins before it does.",
        SWEEP,
        "            if not self.clock_is_right():\n                return\n",
        "",
        f"{SWEEPING}::test_an_engine_whose_clock_is_wrong_sweeps_nothing",
    ),
    one(
        "who-is-refused-as-a-new-user-is-helped",
        "No user is refused for want of memory that an idle campaign holds.",
        SWEEP,
        "self._full.is_set() or not self._memory_policy().new_users, trio",
        "self._full.is_set(), trio",
        f"{SWEEPING}::test_while_new_users_are_refused_those_of_idle_campaigns_make_room",
    ),
    one(
        "no-campaign-is-idle-after-seconds",
        "A Redis that is full has no users read again and again.",
        SWEEP,
        "        self._idle_us = max(idle_us, IDLE_MIN_US)\n",
        "        self._idle_us = idle_us\n",
        f"{SWEEPING}::test_a_campaign_that_is_used_every_few_minutes_is_not_idle",
    ),
    one(
        "no-plan-is-asked-for-in-vain",
        "A Redis that is short of memory does not keep Postgres busy.",
        SWEEP,
        " and self._may_give(held, now_us, policy, pressed):",
        ":",
        f"{SWEEPING}::test_postgres_is_asked_only_for_campaigns_that_may_have_something_to_give",
    ),
    one(
        "a-zone-is-remembered",
        "The same, where it is the next day somewhere.",
        SWEEP,
        "        zone = self._zones.get(held.campaign_id)\n",
        "        zone: str | None = None\n",
        f"{SWEEPING}::test_postgres_is_asked_only_for_campaigns_that_may_have_something_to_give",
    ),
    one(
        "users-go-when-the-day-is-over-where-it-begins-first",
        "The day is that of the campaign's own zone.",
        LEFTOVERS,
        "    return (now_us + EARLIEST_ZONE_US) // DAY_US\n",
        "    return now_us // DAY_US\n",
        f"{DECISIONS}::test_no_campaigns_day_is_later_than_the_latest",
    ),
    one(
        "halted-is-evidence",
        "What Redis holds of a halted campaign is left to its operator.",
        SWEEP,
        "LEAVE if halted else self._due(",
        "self._due(",
        f"{SWEEPING}::test_a_halted_campaign_is_left_as_it_is",
    ),
    one(
        "a-refused-reserve-is-told",
        "No steady refusal of Redis is silent.",
        WATCHED,
        "if not _FAILURES.isdisjoint(map(type, replies)):",
        "if False:",
        f"{ENGINE}::test_a_redis_that_refuses_is_told",
    ),
    one(
        "a-refused-flush-is-told",
        "No steady refusal of Postgres is silent.",
        WATCHED,
        "if isinstance(reply, Unknown) or (isinstance(reply, NotRun) and not reply.data):",
        "if False:",
        f"{ENGINE}::test_a_postgres_that_refuses_flushes_is_told",
    ),
    one(
        "a-right-that-was-taken-away",
        "No administrator's change ends an engine.",
        "engine/postgres/database.py",
        '_AS_THEY_ARE: Final = ("22", "23")',
        '_AS_THEY_ARE: Final = ("22", "23", "42")',
        "tests/contract/test_store_postgres.py::test_a_right_that_was_taken_away_is_a_store_that_is_unavailable",
    ),
]
