"""Mutants of the reservation: the library in Redis, and what its adapter takes for certain."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

LUA = "engine/redis/functions.lua"
ADAPTER = "engine/redis/ledger.py"
CONNECTION = "engine/redis/connection.py"
CALLS = "engine/redis/calls.py"
CONTRACT = "tests/contract/test_ledger.py"
REAL = "tests/contract/test_ledger_redis.py"
CONFIGURATION = "tests/contract/test_ledger_configuration.py"
READING = "tests/unit/test_redis_calls.py"


def lua(name: str, protects: str, old: str, new: str, *tests: str, second: bool = False) -> Mutant:
    """One edit of the library, and rules of the contract."""
    return Mutant(name, protects, [Edit(LUA, old, new)], [f"{CONTRACT}::{test}" for test in tests], second)


STATE = [
    lua(
        "memory-image",
        "What another memory image wrote is never trusted.",
        "if not s[1] or s[2] ~= this_image() then",
        "if not s[1] then",
        "test_another_memory_image_is_lost",
    ),
    lua(
        "generation-in-redis",
        "A call of another generation changes nothing.",
        "if s[1] ~= gen then return nil, {'STALE', s[1]} end",
        "",
        "test_another_generation_is_told",
    ),
    lua(
        "open-in-redis",
        "While a campaign is recovered, nothing is reserved.",
        "if s[3] ~= open then return nil, {'CLOSED'} end",
        "",
        "test_a_closed_campaign_takes_no_reservations",
        "test_an_open_campaign_takes_no_rebuild",
    ),
    lua(
        "plan-version",
        "Cap and status of an old plan decide nothing once a newer plan is known.",
        "if ver < s.ver then return {'PLAN', tostring(s.ver)} end",
        "",
        "test_an_older_plan_is_refused",
    ),
    lua(
        "day-forward-in-redis",
        "A spend day that is over is never reserved on again.",
        "    if day < s.day then return {'DAY', tostring(s.day)} end\n",
        "",
        "test_days_only_move_forward",
    ),
    Mutant(
        "a-refused-reserve-moves-no-day-back",
        "A call that Redis had no memory for does not bring back a day that is over.",
        [Edit(LUA, "    if day > s.day then\n", "    if day ~= s.day then\n")],
        [f"{REAL}::test_a_full_redis_moves_forward_only"],
    ),
    lua(
        "reached-without-acceptance",
        "A plan or day that was seen is kept, though nothing was accepted under it.",
        "    if ver > s.ver or not same_day then\n",
        "    if #accepted > 0 and (ver > s.ver or not same_day) then\n",
        "test_days_only_move_forward",
        "test_a_plan_is_remembered_though_nothing_was_accepted",
    ),
    lua(
        "sums-go-on",
        "What is reserved counts for the next call, also where plan and day stay.",
        "    elseif amount > 0 or #changes > 0 then\n",
        "    elseif false then\n",
        "test_the_total_budget_is_never_passed",
    ),
    Mutant(
        "arguments-that-fit",
        "What another version sends is refused, not guessed at.",
        [Edit(LUA, "if type(numbers) ~= 'table' or #numbers ~= 14 then return nil end", "")],
        ["tests/contract/test_ledger_arguments.py::test_arguments_that_do_not_fit_are_refused"],
    ),
    lua(
        "new-cap-asks-for-rebuild",
        "A cap set in mid-day counts the impressions before it.",
        "if call.cap >= 0 and same_day and s.unc == day then",
        "if false then",
        "test_a_cap_that_is_new_today_has_the_campaign_rebuilt",
    ),
    lua(
        "uncounted-day-is-noted",
        "A day with impressions that nobody counted is known as such.",
        "    if call.cap < 0 and s.unc ~= call.day then"
        " changes[#changes + 1], changes[#changes + 2] = 'unc', call.day end\n",
        "",
        "test_a_cap_that_is_new_today_has_the_campaign_rebuilt",
    ),
    lua(
        "uncounted-day-is-noted-by-a-rebuild",
        "A rebuild without users is known to have counted none: a cap that comes later on that day has them read.",
        "        if argv[8] == '0' then redis.call('HSET', keys[1], 'unc', day) end\n",
        "",
        "test_a_campaign_that_was_opened_without_its_users_is_rebuilt_when_a_cap_asks_for_them",
    ),
    lua(
        "new-day-counts-anew",
        "Yesterday's impressions refuse nobody today.",
        "    if not same_day then redis.call('UNLINK', keys[3]) end\n",
        "",
        "test_midnight_forgets_users_who_have_not_come_yet",
    ),
]

LETTERS = [
    lua(
        "in-flight-apart-from-duplicate",
        "A reservation that waits for its commit is no committed event.",
        "if seen[id] or (known and pending[known]) then letters[i] = 'P'",
        "if seen[id] then letters[i] = 'P'",
        "test_a_pending_id_is_in_flight",
    ),
    lua(
        "twice-in-a-call",
        "An id that comes twice in a call is reserved once.",
        "if seen[id] or (known and pending[known]) then letters[i] = 'P'",
        "if known and pending[known] then letters[i] = 'P'",
        "test_the_same_id_twice_in_a_call_is_in_flight",
    ),
    lua(
        "duplicate-is-known",
        "An id in the window is not reserved again.",
        "        elseif known then letters[i] = 'D'\n",
        "",
        "test_a_committed_id_is_a_duplicate",
    ),
    lua(
        "duplicate-before-cap",
        "A retry of a committed event is a duplicate, whatever the cap says.",
        "elseif known then letters[i] = 'D'\n        elseif user and count[user] >= cap then letters[i] = 'C'",
        "elseif user and count[user] >= cap then letters[i] = 'C'\n        elseif known then letters[i] = 'D'",
        "test_the_letters_have_an_order",
    ),
    lua(
        "cap",
        "Nobody sees more impressions a day than the cap allows.",
        "        elseif user and count[user] >= cap then letters[i] = 'C'\n",
        "",
        "test_a_user_at_the_cap_is_refused",
    ),
    lua(
        "cap-counts-within-a-call",
        "Each event of a call sees the impressions before it, and they are kept.",
        "if user then count[user] = count[user] + 1 end",
        "",
        "test_a_user_at_the_cap_is_refused",
    ),
    lua(
        "cap-is-kept",
        "Impressions that were counted are known to the next call.",
        "if at > 0 then redis.call('HSET', keys[3], unpack(counts)) end",
        "",
        "test_a_user_at_the_cap_is_refused",
    ),
    lua(
        "total-budget-in-redis",
        "What passes the total budget is told so.",
        "        elseif billable and total + cost > call.total_budget then letters[i] = 'T'\n",
        "",
        "test_the_total_budget_is_never_passed",
    ),
    lua(
        "daily-budget-in-redis",
        "What passes the daily budget is told so.",
        "        elseif billable and today + cost > call.daily_budget then letters[i] = 'Y'\n",
        "",
        "test_the_daily_budget_is_never_passed",
    ),
    lua(
        "allowance",
        "Pacing holds for all engines together: nobody but Redis asks for it.",
        "        elseif billable and today + cost > call.allowance then letters[i] = 'W'\n",
        "",
        "test_the_allowance_is_never_passed",
    ),
    lua(
        "reservations-add-up",
        "A reservation counts in total and today.",
        "if billable then total, today, amount = total + cost, today + cost, amount + cost end",
        "if billable then amount = amount + cost end",
        "test_accepted_events_are_reserved",
    ),
    lua(
        "money-is-exact",
        "Sums keep their last micro.",
        "redis.call('HSET', keys[1], 'total', total, 'today', today, unpack(changes))",
        "redis.call('HSET', keys[1], 'total', tostring(total), 'today', tostring(today), unpack(changes))",
        "test_money_is_exact_up_to_the_last_micro",
    ),
    lua(
        "ids-are-kept",
        "A reserved id is known to the next call.",
        "        put(keys[4 + s.bkt % 2], ids, call.tag)\n",
        "",
        "test_a_pending_id_is_in_flight",
    ),
    lua(
        "record-is-kept",
        "A reservation can be undone, and is in flight until it is settled.",
        "    redis.call('HSET', keys[2], call.tag, record)\n",
        "",
        "test_a_pending_id_is_in_flight",
    ),
    lua(
        "no-room-for-new-users",
        "Where users fill Redis, their counts do not grow.",
        "        elseif user and not call.new_users and count[user] == 0 then letters[i] = 'U'\n",
        "",
        "test_without_room_for_users_new_ones_are_not_counted",
    ),
    lua(
        "known-users-go-on",
        "A user who is counted needs no room.",
        "        elseif user and not call.new_users and count[user] == 0 then letters[i] = 'U'\n",
        "        elseif user and not call.new_users then letters[i] = 'U'\n",
        "test_without_room_for_users_new_ones_are_not_counted",
    ),
    lua(
        "no-room-comes-after-budgets",
        "Who would be refused in any case is not told to come again.",
        "        elseif user and count[user] >= cap then letters[i] = 'C'\n",
        "        elseif user and count[user] >= cap then letters[i] = 'C'\n"
        "        elseif user and not call.new_users and count[user] == 0 then letters[i] = 'U'\n",
        "test_without_room_for_users_new_ones_are_not_counted",
    ),
]

UNDO = [
    lua(
        "void-gives-back-the-total",
        "Money of a refused reservation is free again.",
        "    redis.call('HSET', keys[1], 'total', s.total - amount)\n",
        "",
        "test_a_void_undoes_money_users_and_ids",
    ),
    lua(
        "void-gives-back-today",
        "Today's money of a refused reservation is free again.",
        "        redis.call('HSET', keys[1], 'today', s.today - amount)\n",
        "",
        "test_a_void_undoes_money_users_and_ids",
    ),
    lua(
        "void-removes-users",
        "An impression that was refused does not count for the cap.",
        "if redis.call('HINCRBY', keys[3], users[i], -users[i + 1]) <= 0 then"
        " redis.call('HDEL', keys[3], users[i]) end",
        "",
        "test_a_void_undoes_money_users_and_ids",
    ),
    lua(
        "void-removes-ids",
        "An id left behind would turn a retry into a false duplicate.",
        "    redis.call('HDEL', keys[4 + bkt % 2], unpack(ids))\n",
        "",
        "test_a_void_undoes_money_users_and_ids",
    ),
    lua(
        "void-removes-ids-that-are-ahead",
        "The same, of those that lie in buckets of their own.",
        "    if ahead_bkt >= 0 then redis.call('HDEL', keys[6 + ahead_bkt % 2], unpack(ids)) end\n",
        "",
        "test_a_void_undoes_ids_that_are_ahead_and_others",
    ),
    lua(
        "void-finds-the-bucket-of-its-record",
        "The same, when a bucket has closed since.",
        "    redis.call('HDEL', keys[4 + bkt % 2], unpack(ids))\n",
        "    redis.call('HDEL', keys[4 + s.bkt % 2], unpack(ids))\n",
        "test_a_void_after_its_bucket_has_closed_still_undoes_ids",
    ),
    lua(
        "void-of-an-old-day",
        "Users of an old day are not taken from the new day's counts.",
        "    if day == s.day then\n        redis.call('HSET', keys[1], 'today'",
        "    if true then\n        redis.call('HSET', keys[1], 'today'",
        "test_a_void_after_midnight_leaves_the_new_day_alone",
    ),
    lua(
        "settled-once",
        "What is settled is settled: a void that is repeated gives nothing back twice.",
        "    redis.call('HDEL', keys[2], argv[2])\n",
        "",
        "test_settling_twice_is_settling_once",
    ),
]

RECOVERY = [
    lua(
        "begin-newer-only",
        "A recovery that somebody has overtaken changes nothing.",
        "if gen <= stored then return {'STALE', s[1]} end",
        "",
        "test_begin_refuses_a_generation_that_is_not_newer",
        second=True,
    ),
    lua(
        "begin-keeps-the-direct-predecessor",
        "A state that missed a generation is dropped.",
        "if gen == stored + 1 and s[2] == this_image()",
        "if s[2] == this_image()",
        "test_begin_drops_what_is_more_than_one_behind",
    ),
    lua(
        "begin-keeps-this-image",
        "A state that came back from elsewhere is dropped.",
        "if gen == stored + 1 and s[2] == this_image() and s[3] == '1' then",
        "if gen == stored + 1 and s[3] == '1' then",
        "test_another_memory_image_is_lost",
    ),
    lua(
        "begin-keeps-what-is-open",
        "A recovery that stopped half-way is begun anew.",
        "and s[2] == this_image() and s[3] == '1' then",
        "and s[2] == this_image() then",
        "test_begin_drops_what_is_closed",
    ),
    lua(
        "begin-drops-everything",
        "A rebuild starts from nothing.",
        "    local run = this_image()\n    redis.call('UNLINK', unpack(keys))\n",
        "    local run = this_image()\n",
        "test_begin_drops_what_is_more_than_one_behind",
    ),
    lua(
        "ready-compares-sums",
        "A kept state opens only with the ledger's sums.",
        "if s.day < day or s.total ~= tonumber(total) or s.today ~= (s.day > day and 0 or tonumber(today)) then",
        "if false then",
        "test_ready_refuses_other_sums_than_the_ledgers",
    ),
    lua(
        "ready-refuses-pending",
        "A kept state opens only when every reservation is settled.",
        "if redis.call('HLEN', keys[2]) > 0 then return {'MISMATCH'} end",
        "",
        "test_ready_refuses_what_is_still_pending",
        second=True,
    ),
]

CERTAINTY = [
    Mutant(
        "no-answer-of-redis-is-unknown",
        "A cut connection is never read as 'it did not run'.",
        [Edit(CONNECTION, 'Unknown(f"Redis gave no answer', 'NotRun(f"Redis gave no answer')],
        [f"{REAL}::test_a_call_without_an_answer_is_unknown"],
    ),
    Mutant(
        "a-connection-after-silence-is-closed",
        "An answer that comes late is not read as that of the next call.",
        [
            Edit(
                CONNECTION,
                "            if not whole:\n                self.close()",
                "            if not whole:\n                pass",
            )
        ],
        [f"{REAL}::test_a_connection_that_owes_an_answer_is_not_used_again"],
    ),
    Mutant(
        "what-was-not-sent-did-nothing",
        "Of a round that breaks, parts that were not sent are told, and certain.",
        [
            Edit(
                CONNECTION,
                "            for part in parts:\n                heard(",
                "            for part in ():\n                heard(",
            )
        ],
        [f"{REAL}::test_of_a_round_that_breaks_the_parts_that_were_not_sent_did_nothing"],
    ),
    Mutant(
        "a-fault-of-who-is-told-is-none-of-redis",
        "A fault in the engine ends it, and is not answered as an unknown outcome.",
        [
            Edit(
                CONNECTION,
                "            with _not_ours():\n                heard(owed.popleft(), told)",
                "            heard(owed.popleft(), told)",
            )
        ],
        [f"{REAL}::test_a_fault_of_who_is_told_is_not_taken_for_one_of_redis"],
    ),
    Mutant(
        "parts-keep-their-order",
        "A reply is not taken for that of another part while the library is loaded.",
        [Edit(ADAPTER, "if held or any(map(", "if any(map(")],
        [f"{REAL}::test_parts_after_a_lost_library_keep_their_order"],
    ),
    Mutant(
        "only-what-did-not-run-is-sent-again",
        "A reserve that was answered is not sent twice.",
        [
            Edit(
                ADAPTER,
                "missing = [command for command, reply in pairs if calls.function_is_missing(reply)]",
                "missing = [command for command, _ in pairs]",
            )
        ],
        [f"{REAL}::test_only_the_calls_that_did_not_run_are_sent_again"],
    ),
    Mutant(
        "an-error-from-inside-is-unknown",
        "What fails after a function has begun may have been written in part.",
        [Edit(CALLS, "    if _FROM_INSIDE in told:\n        return Unknown(told)\n", "")],
        [f"{READING}::test_any_other_error_is_unknown"],
    ),
    Mutant(
        "an-error-that-nobody-knows-is-unknown",
        "Only refusals that come before the first write are certain.",
        [
            Edit(
                CALLS,
                "full=full)\n    return Unknown(told)\n",
                "full=full)\n    return NotRun(told)\n",
            )
        ],
        [f"{READING}::test_any_other_error_is_unknown"],
    ),
    Mutant(
        "redis-never-evicts",
        "A Redis that may drop a campaign's keys is refused.",
        [Edit(ADAPTER, '    if policy != "noeviction":\n', "    if False:\n")],
        [f"{CONFIGURATION}::test_an_unsafe_redis_is_refused"],
    ),
    Mutant(
        "redis-is-the-primary",
        "A replica is refused.",
        [Edit(ADAPTER, '    if info["role"] != "master":\n', "    if False:\n")],
        [f"{CONFIGURATION}::test_an_unsafe_redis_is_refused"],
    ),
]

MUTANTS = STATE + LETTERS + UNDO + RECOVERY + CERTAINTY
