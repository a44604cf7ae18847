"""Mutants of the watermark: what a state of Redis says that it has forgotten, and who keeps that true.

Each line that section 11 of the protocol names, where it is written: in the library, in the judge and in its migration,
in the audit. What the engine makes of it is in `lookups.py`.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.engine import one
from tests.mutants.judge import COPY, guard
from tests.mutants.ledger import REAL, lua
from tests.mutants.mutant import Edit, Mutant

HALT: Final = "engine/postgres/halt.py"
MIGRATION: Final = "engine/postgres/migrations/0005_watermark.sql"
QUERIES: Final = "engine/postgres/recovery.py"
AUDIT: Final = "engine/audit.py"
STORE: Final = "tests/contract/test_store.py"
POSTGRES: Final = "tests/contract/test_store_postgres.py"
AUDITED: Final = "tests/unit/test_audit.py"

RISES: Final = "    s.w = math.max(s.w, odd and s.m0 or s.m1)\n"
BEHIND: Final = "    if call.unlooked <= s.w or (call.looked ~= -1 and call.looked ~= s.bkt) then\n"
HIGHEST: Final = "        if call.most > s[m] then\n"
HIGHEST_THAT_WAS_FORGOTTEN: Final = "test_the_watermark_is_the_highest_id_time_that_was_forgotten"
ONE_BUCKET: Final = "test_a_look_up_counts_for_one_bucket"
LEFTOVERS: Final = "tests/contract/test_ledger_leftovers.py"
AS_SOON_AS_OTHERS: Final = "test_a_bucket_that_began_by_a_clock_that_is_ahead_closes_no_later_than_others"
KEPT_APART: Final = "test_ids_that_are_ahead_do_not_raise_the_watermark"

BUCKETS = [
    lua(
        "the-watermark-rises-with-what-is-forgotten",
        "No committed id that Redis has forgotten is above the watermark.",
        RISES,
        "",
        HIGHEST_THAT_WAS_FORGOTTEN,
    ),
    lua(
        "the-watermark-never-falls",
        "The same, of what was forgotten before.",
        RISES,
        "    s.w = odd and s.m0 or s.m1\n",
        HIGHEST_THAT_WAS_FORGOTTEN,
    ),
    lua(
        "later-calls-raise-their-bucket-s-highest",
        "The same, of a bucket's later calls.",
        HIGHEST,
        "        if s[m] == 0 then\n",
        HIGHEST_THAT_WAS_FORGOTTEN,
    ),
    lua(
        "later-calls-lower-nothing",
        "The same, of a bucket's earlier calls.",
        HIGHEST,
        "        if true then\n",
        HIGHEST_THAT_WAS_FORGOTTEN,
    ),
    lua(
        "free-events-raise-their-bucket-s-highest",
        "The same, of events that cost nothing.",
        "    elseif amount > 0 or #changes > 0 then\n",
        "    elseif amount > 0 then\n",
        "test_free_events_raise_the_watermark_as_others_do",
    ),
    lua(
        "the-older-bucket-is-forgotten",
        "An id is known in its bucket and in the next.",
        "    redis.call('UNLINK', odd and keys[4] or keys[5])\n",
        "    redis.call('UNLINK', odd and keys[5] or keys[4])\n",
        "test_an_id_is_known_in_its_bucket_and_the_next",
    ),
    lua(
        "both-buckets-are-asked",
        "The same.",
        "    for k = 5, s.ahead and 7 or 5 do\n",
        "    for k = 6, s.ahead and 7 or 5 do\n",
        "test_an_id_is_known_in_its_bucket_and_the_next",
    ),
    lua(
        "what-may-still-commit-is-not-forgotten",
        "The retry of an event whose flush is under way can be told from a new one.",
        "    if pending_in_older(keys, s) then\n",
        "    if false then\n",
        "test_a_bucket_is_not_forgotten_while_a_reservation_of_it_is_not_settled",
    ),
    lua(
        "an-advance-is-put-off",
        "What is pending is not read at every call.",
        "        s.began = at - age + 1000000\n",
        "",
        "test_a_bucket_is_not_forgotten_while_a_reservation_of_it_is_not_settled",
    ),
    lua(
        "a-bucket-closes-by-age",
        "No bucket closes before it is as old as the policy says: look-ups would be too old, each time.",
        "    if call.at - s.began >= call.age then\n",
        "    if true then\n",
        "test_a_bucket_closes_when_it_is_old_enough",
    ),
    lua(
        "a-bucket-that-a-clock-ahead-began-closes",
        "A clock that is ahead keeps no ids in a Redis that is short of memory.",
        "        s.began = call.at\n",
        "",
        AS_SOON_AS_OTHERS,
    ),
    lua(
        "a-call-that-comes-late-makes-no-bucket-older",
        "No bucket closes before it is as old as the policy says, where calls take long.",
        "    if s.began - call.at > 5000000 then\n",
        "    if s.began > call.at then\n",
        AS_SOON_AS_OTHERS,
    ),
    lua(
        "a-rebuild-begins-at-what-is-committed",
        "After a loss of Redis no committed id is above the watermark.",
        "w = tonumber(argv[6]), m0 = 0",
        "w = 0, m0 = 0",
        "test_a_rebuilt_window_begins_at_what_is_committed",
    ),
    Mutant(
        "a-state-of-another-format-is-another-image",
        "A state without a watermark is lost, and never kept.",
        [Edit("engine/redis/functions.lua", "'master_replid:(%x+)') .. ' 4'", "'master_replid:(%x+)')")],
        [f"{REAL}::test_a_state_of_another_format_is_lost"],
    ),
]

CALLS = [
    lua(
        "what-was-not-looked-up-is-above-the-watermark",
        "What Redis may have forgotten is looked up before it is reserved.",
        BEHIND,
        "    if call.looked ~= -1 and call.looked ~= s.bkt then\n",
        "test_what_was_not_looked_up_must_be_above_the_watermark",
    ),
    lua(
        "what-was-not-looked-up-is-not-at-the-watermark",
        "The same: the watermark itself is the id time of what was forgotten.",
        BEHIND,
        "    if call.unlooked < s.w or (call.looked ~= -1 and call.looked ~= s.bkt) then\n",
        "test_what_was_not_looked_up_must_be_above_the_watermark",
    ),
    lua(
        "a-look-up-counts-for-its-bucket",
        "What was committed after a look-up, and forgotten since, is not reserved again.",
        BEHIND,
        "    if call.unlooked <= s.w then\n",
        ONE_BUCKET,
    ),
    lua(
        "a-look-up-counts-for-no-later-bucket",
        "The same, where the engine knew of no other.",
        BEHIND,
        "    if call.unlooked <= s.w or call.looked > s.bkt then\n",
        ONE_BUCKET,
    ),
    lua(
        "a-look-up-counts-not-even-for-the-next-bucket",
        "What was pending in the older bucket may be committed, and forgotten by the very next advance.",
        BEHIND,
        "    if call.unlooked <= s.w or call.looked > s.bkt or (call.looked >= 0 and call.looked < s.bkt - 1) then\n",
        ONE_BUCKET,
    ),
]

AHEAD = [
    lua(
        "ids-that-are-ahead-lie-apart",
        "Ids of a clock that is ahead don't raise the watermark above all others when they are forgotten.",
        "            if kind >= 4 then ahead[#ahead + 1] = id end\n",
        "",
        KEPT_APART,
    ),
    lua(
        "ids-that-are-ahead-are-asked-for",
        "They are known where they lie.",
        "    for k = 5, s.ahead and 7 or 5 do\n",
        "    for k = 5, 5 do\n",
        KEPT_APART,
    ),
    lua(
        "ids-that-are-ahead-stay-until-the-watermark-has-passed-them",
        "No committed id that Redis has forgotten is above the watermark.",
        "        if most <= math.max(s.w, s.began) or (many",
        "        if true or (many",
        KEPT_APART,
    ),
    Mutant(
        "ids-that-were-ahead-go-when-nothing-raises-the-watermark",
        "Ended campaigns don't fill Redis with ids that were ahead.",
        [Edit("engine/redis/functions.lua", "most <= math.max(s.w, s.began)", "most <= s.w")],
        [f"{LEFTOVERS}::test_ids_that_were_ahead_go_when_their_time_has_passed"],
    ),
    Mutant(
        "the-watermark-rises-with-what-was-ahead",
        "No committed id that Redis has forgotten is above the watermark.",
        [Edit("engine/redis/functions.lua", "            s.w = math.max(s.w, most)\n", "")],
        [f"{LEFTOVERS}::test_ids_that_were_ahead_go_when_their_time_has_passed"],
    ),
    lua(
        "later-calls-raise-the-highest-that-is-ahead",
        "The same, of a bucket's later calls.",
        "ahead.m0 = math.max(ahead.m0, call.most_ahead)",
        "ahead.m0 = ahead.m0 == 0 and call.most_ahead or ahead.m0",
        "test_where_most_ids_are_ahead_they_are_forgotten_like_others",
    ),
    lua(
        "many-that-are-ahead-are-forgotten-like-others",
        "Memory is bounded, whatever clocks say.",
        " or (many > 1000 and many > others) then",
        " then",
        "test_where_most_ids_are_ahead_they_are_forgotten_like_others",
    ),
    lua(
        "few-that-are-ahead-raise-nothing",
        "A sender whose clock is ahead makes no others be looked up.",
        "(many > 1000 and many > others)",
        "(many > others)",
        KEPT_APART,
    ),
]

JUDGE = [
    guard(
        "the-judge-keeps-the-latest",
        "No id time that was committed is above `latest`, at which a rebuild begins.",
        "latest = greatest(l.latest, latests[i])",
        "latest = l.latest",
        "test_the_ledger_knows_the_highest_id_time_that_was_committed",
    ),
    guard(
        "the-latest-never-falls",
        "The same, of what was committed before.",
        "latest = greatest(l.latest, latests[i])",
        "latest = latests[i]",
        "test_the_ledger_knows_the_highest_id_time_that_was_committed",
    ),
    one(
        "the-latest-of-all-rows",
        "The same, of every row of a batch.",
        COPY,
        "max([row.id_time_us for row in batch.rows])",
        "batch.rows[0].id_time_us",
        f"{STORE}::test_the_ledger_knows_the_highest_id_time_that_was_committed",
    ),
    one(
        "the-latest-of-all-batches",
        "The same, of every batch of a flush.",
        COPY,
        "        of_campaign.latest_us = max(of_campaign.latest_us, max([",
        "        of_campaign.latest_us = max(0, max([",
        f"{STORE}::test_the_ledger_knows_the_highest_id_time_that_was_committed",
    ),
    one(
        "a-raise-returns-what-it-waited-for",
        "A rebuild begins at what was committed when no older batch can commit any more.",
        QUERIES,
        "        RETURNING l.campaign_id AS id, gen, spent, day, today, halted, latest\n",
        "        RETURNING l.campaign_id AS id, gen, spent, day, today, halted,\n"
        "                  (SELECT s.latest FROM ledger AS s WHERE s.campaign_id = l.campaign_id) AS latest\n",
        f"{POSTGRES}::test_raising_a_generation_waits_for_the_flush_that_holds_the_row",
    ),
    one(
        "rebuilt-books-begin-above-all-ids",
        "Whatever was wrong with a row, no committed id is above its `latest` when its books were rebuilt.",
        HALT,
        "latest = greatest(l.latest, $5)",
        "latest = greatest(l.latest, $5 * 0)",
        "tests/integration/test_recover.py::test_rebuilt_books_begin_above_every_id_time",
    ),
    one(
        "a-migration-begins-above-all-ids",
        "What was committed before the judge kept its id times is below `latest`, too.",
        MIGRATION,
        "UPDATE ledger SET latest = (extract(epoch FROM now()) * 1000000)::bigint WHERE day <> '1970-01-01';\n",
        "",
        f"{POSTGRES}::test_what_was_committed_before_the_watermark_is_below_it",
    ),
    one(
        "a-migration-sees-ids-that-were-ahead",
        "The same, of ids whose time was ahead when the judge began to keep it.",
        MIGRATION,
        " WHERE l.campaign_id = ahead.campaign_id;\n",
        " WHERE false;\n",
        f"{POSTGRES}::test_what_was_committed_before_the_watermark_is_below_it",
    ),
    one(
        "a-migration-sees-times-in-ids",
        "The same, where a UUIDv7 tells that time.",
        MIGRATION,
        "max(greatest(occurred, CASE WHEN of_id <= received + 3600000000 THEN of_id END)) AS latest\n",
        "max(occurred) AS latest\n",
        f"{POSTGRES}::test_what_was_committed_before_the_watermark_is_below_it",
    ),
    one(
        "a-migration-goes-by-what-can-be-an-id-time",
        "An id whose bits tell any time, beside an `occurred_at`, does not have all others looked up for ever.",
        MIGRATION,
        "CASE WHEN of_id <= received + 3600000000 THEN of_id END",
        "of_id",
        f"{POSTGRES}::test_what_was_committed_before_the_watermark_is_below_it",
    ),
    one(
        "rebuilt-books-go-by-what-can-be-an-id-time",
        "The same, where `headrace recover` reads it.",
        HALT,
        "CASE WHEN of_id <= received + 3600000000 THEN of_id END",
        "of_id",
        "tests/integration/test_recover.py::test_an_id_of_any_bits_does_not_raise_rebuilt_books",
    ),
    one(
        "rebuilt-books-see-times-in-ids",
        "No committed id is above a rebuilt `latest`, also where a UUIDv7 tells its time.",
        HALT,
        "max(greatest(occurred, CASE WHEN of_id <= received + 3600000000 THEN of_id END)) AS latest\n",
        "max(occurred) AS latest\n",
        "tests/integration/test_recover.py::test_rebuilt_books_begin_above_every_id_time",
    ),
    one(
        "an-older-judge-is-gone",
        "No engine of the version before commits without `latest`.",
        MIGRATION,
        "DROP FUNCTION headrace_guard(\n"
        "    bigint[], bigint[], int[], bigint[], bigint[], int[], bigint[], bigint[], bigint[], bigint[]\n"
        ");\n",
        "",
        f"{POSTGRES}::test_an_engine_of_the_version_before_commits_nothing",
    ),
]

AUDITS = [
    one(
        "audited-above-the-watermark",
        "An id that is above the watermark, and not known, is found; one below it is looked up in any case.",
        AUDIT,
        "id_time_us > self.watermark_us and self.generation >= generation",
        "self.generation >= generation",
        f"{AUDITED}::test_an_id_is_lost_above_the_watermark_only",
    ),
    one(
        "audited-under-its-generation",
        "A row of a generation that Redis has not followed yet is no finding: a recovery is under way.",
        AUDIT,
        "id_time_us > self.watermark_us and self.generation >= generation",
        "id_time_us > self.watermark_us",
        f"{AUDITED}::test_an_id_is_lost_above_the_watermark_only",
    ),
    one(
        "a-lost-id-is-a-finding",
        "What the audit has found, it tells.",
        AUDIT,
        '    return [Finding(campaign_id, "dedup window", "every id above the watermark", found, books=True)]\n',
        "    return []\n",
        "tests/integration/test_audit.py::test_an_id_above_the_watermark_that_redis_does_not_know_is_found",
    ),
]

MUTANTS = BUCKETS + CALLS + AHEAD + JUDGE + AUDITS
