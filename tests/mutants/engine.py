"""Mutants of the engine's side: what an actor makes of each answer, the recovery, and who is told what."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

ACTOR = "engine/actor.py"
ARRIVAL = "engine/arrival.py"
CAMPAIGN = "engine/campaign.py"
RESERVATIONS = "engine/reservations.py"
LOOKUPS = "engine/lookups.py"
RECOVERY = "engine/recovery.py"
REGISTRY = "engine/registry.py"
ARRIVING = "tests/unit/test_arrival.py"
DECISIONS = "tests/unit/test_campaign.py"
WORLD = "tests/unit/test_engine.py"
JUDGED = "tests/unit/test_judged.py"
BULK = "tests/unit/test_recovery.py"
QUEUES = "tests/unit/test_recoveries.py"
DEDUP = "tests/unit/test_window.py"
CLOCK = "tests/unit/test_clock.py"


def one(name: str, protects: str, file: str, old: str, new: str, *tests: str, second: bool = False) -> Mutant:
    """A mutant of one edit."""
    return Mutant(name, protects, [Edit(file, old, new)], tests, second)


UNKNOWN = [
    one(
        "no-void-of-an-unknown-outcome",
        "What may have committed is never undone.",
        ACTOR,
        "            case NotRun():\n                state.voids",
        "            case NotRun() | Unknown():\n                state.voids",
        f"{WORLD}::test_a_commit_without_a_certain_answer_is_counted_once",
    ),
    one(
        "an-unknown-outcome-is-recovered",
        "A COMMIT without an answer is fenced, and then known.",
        ACTOR,
        "                if self._unknown:\n                    self.doubt()\n",
        "",
        f"{WORLD}::test_a_commit_without_a_certain_answer_is_counted_once",
    ),
    Mutant(
        "looked-up-only-after-the-raise",
        "What an unknown COMMIT did is asked when it can't change any more.",
        [
            Edit(ACTOR, "if reservation.generation < seen]", "if reservation.generation <= seen]"),
            Edit(ACTOR, "if reservation.generation >= seen]", "if reservation.generation > seen]"),
        ],
        [f"{JUDGED}::test_an_unanswered_commit_is_asked_for_when_it_is_in_or_out_for_good"],
    ),
    one(
        "looked-up-under-its-own-tag",
        "A row of an unknown COMMIT is told accepted only if this very reservation paid for it.",
        ACTOR,
        "self._look_up(reservation.rows, Absent.AGAIN, reservation.tag)",
        "self._look_up(reservation.rows, Absent.AGAIN)",
        f"{WORLD}::test_a_commit_without_a_certain_answer_is_counted_once",
    ),
    one(
        "a-found-row-is-compared-with-the-tag",
        "A row that another reservation paid for is a duplicate.",
        CAMPAIGN,
        "        if stored.batch == tag:\n",
        "        if tag is not None:\n",
        f"{DECISIONS}::test_what_is_found_under_its_own_tag_is_accepted_and_otherwise_a_duplicate",
    ),
    one(
        "an-unanswered-reserve-is-recovered",
        "A reserve that may have run is fenced and settled.",
        ACTOR,
        "            case Lost() | Unknown():\n                self.doubt()\n",
        "            case Lost():\n                self.doubt()\n            case Unknown():\n                pass\n",
        f"{WORLD}::test_a_reserve_without_a_certain_answer_is_counted_once",
    ),
    one(
        "an-older-generation-is-recovered",
        "A Redis that came back old is brought to the newest generation.",
        ACTOR,
        "            case Stale(generation) if generation < state.generation:\n                self.doubt()\n",
        "            case Stale(generation) if generation < state.generation:\n"
        "                state.generation = state.generation_seen = generation\n",
        JUDGED,
    ),
]

REFUSED = [
    one(
        "a-refused-reservation-is-voided",
        "What Postgres refused does not hold money, users and ids for ever.",
        ACTOR,
        "        if cause is not RefusalCause.GENERATION:\n",
        "        if False:\n",
        JUDGED,
        WORLD,
    ),
    one(
        "what-did-not-run-is-voided",
        "A flush that certainly did not run holds nothing.",
        ACTOR,
        "            case NotRun():\n                state.voids.append((reservation.generation, reservation.tag))\n",
        "            case NotRun():\n",
        f"{WORLD}::test_without_postgres_events_are_unavailable_and_the_money_comes_back",
    ),
    one(
        "a-void-is-repeated-until-answered",
        "An undo whose answer was lost is not forgotten.",
        ACTOR,
        "        if isinstance(reply, NotRun | Unknown):\n            self._rest",
        "        if isinstance(reply, NotRun):\n            self._rest",
        JUDGED,
    ),
    one(
        "a-unique-violation-is-looked-up",
        "Only those events of a refused batch that are stored are duplicates.",
        ACTOR,
        "            self._look_up(entries, Absent.AGAIN)\n",
        "            for entry in entries:\n                state.settle_found(entry, entry.as_stored(0))\n",
        f"{WORLD}::test_a_row_that_redis_had_forgotten_is_a_duplicate_and_its_neighbours_are_accepted",
    ),
]

KNOWN = [
    one(
        "duplicate-is-looked-up",
        "Redis's word alone makes no duplicate.",
        ACTOR,
        "        if applied.known:\n",
        "        for entry, letter in list(applied.known):\n"
        "            if letter is Letter.DUPLICATE:\n"
        "                applied.known.remove((entry, letter))\n"
        "                self.state.settle_found(entry, entry.as_stored(0))\n"
        "        if applied.known:\n",
        JUDGED,
    ),
    one(
        "a-duplicate-that-is-not-stored",
        "What Postgres does not have is no duplicate, whatever Redis says.",
        ACTOR,
        "                elif look_up.absent is Absent.IN_FLIGHT:\n",
        "                elif look_up.absent is Absent.CONTRADICTION:\n"
        "                    state.settle_found(entry, entry.as_stored(0))\n"
        "                elif look_up.absent is Absent.IN_FLIGHT:\n",
        JUDGED,
    ),
    one(
        "in-flight-is-no-duplicate",
        "An event that is under way elsewhere is no duplicate by itself.",
        ACTOR,
        "                state.settle(entry, IN_FLIGHT)\n",
        "                state.settle_found(entry, entry.as_stored(0))\n",
        JUDGED,
    ),
    one(
        "in-flight-is-looked-up",
        "What another engine has committed meanwhile is a duplicate.",
        ACTOR,
        "        if applied.known:\n",
        "        for entry, letter in list(applied.known):\n"
        "            if letter is Letter.PENDING:\n"
        "                applied.known.remove((entry, letter))\n"
        "                self.state.settle(entry, IN_FLIGHT)\n"
        "        if applied.known:\n",
        JUDGED,
    ),
    one(
        "another-event-is-no-duplicate",
        "A duplicate is the same event, not another one under its id.",
        CAMPAIGN,
        "    if not entry.same_event(stored):\n        return ID_REUSED\n",
        "",
        f"{DECISIONS}::test_the_same_id_for_another_event_is_refused_as_reused",
    ),
    one(
        "who-joins-is-the-same-event",
        "Another event under the id of one that is refused does not share its refusal.",
        CAMPAIGN,
        "        elif entry.same_event(first.as_stored(0)) and",
        "        elif",
        f"{DECISIONS}::test_another_event_under_the_id_of_a_refused_one_is_not_refused_with_it",
    ),
    one(
        "late-lane",
        "An event that is not above the watermark is looked up in Postgres first.",
        CAMPAIGN,
        "                elif not entry.made_here or entry.attempts:\n",
        "                elif False:\n",
        f"{DECISIONS}::test_an_event_that_is_not_above_the_watermark_or_tells_no_time_is_looked_up_first",
    ),
    one(
        "late-lane-at-the-watermark",
        "The watermark is the highest id time that was forgotten: who has that very time may be that event.",
        CAMPAIGN,
        "if id_time_us > watermark_us:",
        "if entry.id_time_us >= watermark_us:",
        f"{DECISIONS}::test_an_event_that_is_not_above_the_watermark_or_tells_no_time_is_looked_up_first",
    ),
    one(
        "late-lane-without-a-time",
        "An id that tells no time may be old.",
        CAMPAIGN,
        "if id_time_us > watermark_us:",
        "if entry.id_time_us > watermark_us or entry.id_time_us == NO_TIME:",
        f"{DECISIONS}::test_an_event_that_is_not_above_the_watermark_or_tells_no_time_is_looked_up_first",
    ),
    one(
        "a-look-up-that-failed-says-nothing",
        "Nobody is told 'new' because Postgres could not be asked.",
        LOOKUPS,
        "            _fail(batch)\n            return\n        for look_up in reversed",
        "            found = {}\n        for look_up in reversed",
        JUDGED,
    ),
    one(
        "identity-day",
        "A retry on another day meets the same unique key.",
        ARRIVAL,
        "        (now_us if id_time_us == NO_TIME else id_time_us) // DAY_US,\n",
        "        now_us // DAY_US,\n",
        f"{ARRIVING}::test_the_identity_day_is_of_the_first_time_that_is_told",
    ),
    one(
        "id-time-of-the-server-s-own-id",
        "Sent again under the id that the server made, with its `occurred_at`, an event is looked up on the same day.",
        ARRIVAL,
        "        if occurred_us is None:\n            id_time_us = now_us\n",
        "        id_time_us = now_us\n",
        f"{ARRIVING}::test_an_id_made_by_the_server_has_day_and_id_time_of_its_event",
    ),
    one(
        "occurred-at-is-not-ahead",
        "An event that claims to be of the future would raise the watermark above all others.",
        ARRIVAL,
        '_judge_time("occurred_at:", occurred_us, now_us, limits)',
        '_judge_time("occurred_at:", occurred_us, now_us, limits._replace(ahead_us=1 << 60))',
        f"{ARRIVING}::test_what_types_cannot_say_is_refused_with_the_field",
    ),
    one(
        "an-id-is-not-ahead",
        "The same, of an id.",
        ARRIVAL,
        '_judge_time("event_id: a UUIDv7 whose time is", id_time_us, now_us, limits)',
        '_judge_time("event_id: a UUIDv7 whose time is", id_time_us, now_us, limits._replace(ahead_us=1 << 60))',
        f"{ARRIVING}::test_what_types_cannot_say_is_refused_with_the_field",
    ),
    one(
        "an-id-is-not-too-old",
        "An id of 1970 is not taken: no row of its day is kept, or looked for.",
        ARRIVAL,
        '_judge_time("event_id: a UUIDv7 whose time is", id_time_us, now_us, limits)',
        '_judge_time("event_id: a UUIDv7 whose time is", id_time_us, now_us, limits._replace(past_us=1 << 60))',
        f"{ARRIVING}::test_what_types_cannot_say_is_refused_with_the_field",
    ),
    one(
        "derived-ids-differ",
        "Two events of a request are not each other's duplicates because neither has an id.",
        "engine/derived_ids.py",
        'f"{campaign_id}:{place}:{key}"',
        'f"{campaign_id}:{key}"',
        f"{ARRIVING}::test_an_idempotency_key_makes_the_same_ids_again",
    ),
]

STATE = [
    one(
        "accepted-by-postgres-only",
        "A letter A is no 200.",
        CAMPAIGN,
        "                accepted.append(entry)\n",
        "                accepted.append(entry)\n                entry.settle(None)\n",
        f"{DECISIONS}::test_nothing_is_settled_before_its_commit",
    ),
    one(
        "an-inactive-campaign-has-no-budget",
        "A paused campaign accepts nothing.",
        CAMPAIGN,
        "        if plan.active and entries[0].refusal is None:\n",
        "        if entries[0].refusal is None:\n",
        f"{DECISIONS}::test_an_inactive_campaign_asks_for_no_money_and_refuses",
    ),
    one(
        "day-forward-in-the-engine",
        "A clock that goes back does not open yesterday again.",
        CAMPAIGN,
        "        if day > self.today.day:\n",
        "        if day != self.today.day:\n",
        f"{DECISIONS}::test_news_of_an_older_day_do_not_move_ours_back",
    ),
    one(
        "generation-forward-in-the-engine",
        "A generation older than one seen in Postgres is not used.",
        CAMPAIGN,
        "        if generation > self.generation_seen:\n",
        "        if generation != self.generation_seen:\n",
        f"{DECISIONS}::test_no_generation_older_than_one_seen_in_postgres_is_used",
    ),
    one(
        "told-under-an-older-generation",
        "Nobody is refused by a Redis that a recovery has left behind.",
        ACTOR,
        "discarded = state.phase is CLOSED or call.generation < state.generation_seen",
        "discarded = state.phase is CLOSED",
        JUDGED,
    ),
    one(
        "settled-once-in-a-request",
        "What comes after the deadline changes no answer.",
        "engine/submission.py",
        "        self.submission = None\n",
        "",
        "tests/unit/test_submission.py",
    ),
    one(
        "clock-refusal",
        "An engine whose clock is far off takes nothing: days and windows come from it.",
        "engine/engine.py",
        "if self._draining or self.unsafe or self.clocks.wrong:",
        "if self._draining or self.unsafe:",
        JUDGED,
    ),
    one(
        "clock-is-told",
        "Each heartbeat tells the engine how far its clock is off.",
        "engine/runtime.py",
        "Compared(postgres_us, redis_us, even_us)",
        "Compared(0, redis_us, even_us)",
        JUDGED,
    ),
    one(
        "clock-is-compared-with-redis",
        "Where Postgres runs on the engine's host, Redis's clock tells that the host's is wrong.",
        "engine/runtime.py",
        "Compared(postgres_us, redis_us, even_us)",
        "Compared(postgres_us, None, even_us)",
        JUDGED,
    ),
    one(
        "clock-is-compared-with-the-even-one",
        "A host that is set together with its stores begins no day.",
        "engine/runtime.py",
        "Compared(postgres_us, redis_us, even_us)",
        "Compared(postgres_us, redis_us, None)",
        JUDGED,
    ),
    one(
        "tags-are-unique",
        "No two reservations of an engine have the same tag.",
        "engine/processes.py",
        "        self._tags += 1\n",
        "        self._tags = 1\n",
        JUDGED,
    ),
    one(
        "tags-are-unique-over-engines",
        "No two engines have the same tag.",
        "engine/processes.py",
        "return self.own << TAG_BITS | self._tags",
        "return self._tags",
        JUDGED,
    ),
]

REMEDY = [
    Mutant(
        "rebuild-after-the-raise",
        "A rebuild knows what older batches left, when none of them can commit any more.",
        [
            Edit(
                RECOVERY,
                "        rows = await self.store.raise_generations(list(attempt.cases), wait=wait)\n",
                "        early = await self.store.plans(list(attempt.cases))\n"
                "        rows = await self.store.raise_generations(list(attempt.cases), wait=wait)\n",
            ),
            Edit(
                RECOVERY,
                "            attempt.rows[campaign_id] = row\n",
                "            known = early[campaign_id][1]\n"
                "            row = LedgerRow(campaign_id, row.generation, row.spend, known.latest_us)\n"
                "            attempt.rows[campaign_id] = row\n",
            ),
        ],
        [f"{DEDUP}::test_a_flush_that_a_rebuild_waits_for_is_below_its_watermark", JUDGED],
    ),
    Mutant(
        "users-are-read-after-the-raise",
        "A rebuild counts those impressions, too, that older batches left.",
        [
            Edit(
                RECOVERY,
                "                await self._raise(attempt, wait=wait)\n",
                "                early = await self.store.plans(list(attempt.cases))\n"
                "                days = {each: row.spend.day for each, (_, row) in early.items()}\n"
                "                attempt.early = [users async for users in self.store.users_on(days, whole=True)]\n"
                "                await self._raise(attempt, wait=wait)\n",
            ),
            Edit(RECOVERY, "            async for users in pieces:\n", "            for users in attempt.early:\n"),
        ],
        [f"{BULK}::test_what_a_flush_that_is_waited_for_has_committed_counts_for_the_cap"],
    ),
    one(
        "raised-before-redis-follows",
        "Redis opens only under a generation that Postgres has.",
        RECOVERY,
        "        rows = await self.store.raise_generations(list(attempt.cases), wait=wait)\n",
        "        rows = {each: row for each, (_, row) in (await self.store.plans(list(attempt.cases))).items()}\n",
        WORLD,
    ),
    one(
        "kept-is-committed-only-if-stored",
        "A pending reservation whose rows are not in Postgres is undone.",
        RECOVERY,
        "commit = stored is not None and stored.batch == each.tag",
        "commit = True",
        JUDGED,
        WORLD,
    ),
    one(
        "kept-is-undone-only-if-not-stored",
        "A pending reservation whose rows are in Postgres is not undone.",
        RECOVERY,
        "commit = stored is not None and stored.batch == each.tag",
        "commit = False",
        JUDGED,
        WORLD,
    ),
    one(
        "kept-is-committed-under-its-tag",
        "A row that another reservation paid for does not commit this one.",
        RECOVERY,
        "commit = stored is not None and stored.batch == each.tag",
        "commit = stored is not None",
        JUDGED,
    ),
    one(
        "rebuild-brings-users",
        "A cap holds over the loss of Redis.",
        RECOVERY,
        "                calls = list(attempt.loads_of_users(users))\n",
        "                calls: list[LoadUsers] = []\n",
        f"{BULK}::test_users_come_back_to_their_own_campaign",
    ),
    one(
        "rebuild-begins-at-the-latest",
        "A retry is a duplicate after the loss of Redis, whatever the budget says.",
        RECOVERY,
        "row.spend, version, row.latest_us, now_us,",
        "row.spend, version, 0, now_us,",
        f"{BULK}::test_no_id_comes_back_but_the_watermark_of_all",
    ),
    one(
        "a-rebuild-says-whose-users-it-read",
        "A cap that comes after a rebuild without users does not take everybody for a stranger.",
        RECOVERY,
        "uncounted, users_loaded=False)",
        "uncounted, users_loaded=True)",
        f"{BULK}::test_a_cap_that_asks_for_users_that_were_not_read_is_told_that_redis_is_lost",
    ),
    one(
        "without-a-cap-no-users-are-read",
        "A campaign without a cap is open at once, however many users it had.",
        RECOVERY,
        "        return today is not None and row.spend.day >= today\n",
        "        return True\n",
        f"{BULK}::test_no_users_are_read_where_no_cap_asks_for_them",
    ),
    one(
        "users-of-a-day-that-is-over-are-not-read",
        "Nor are those read that count no more.",
        RECOVERY,
        "        return today is not None and row.spend.day >= today\n",
        "        return today is not None\n",
        f"{BULK}::test_no_users_are_read_where_no_cap_asks_for_them",
    ),
    one(
        "users-of-this-very-day-are-read",
        "A cap holds over the loss of Redis on the day on which its users were counted.",
        RECOVERY,
        "        return today is not None and row.spend.day >= today\n",
        "        return today is not None and row.spend.day > today\n",
        f"{DEDUP}::test_a_campaign_whose_ledger_day_is_over_is_rebuilt_without_its_users",
    ),
    one(
        "a-cap-s-day-is-of-its-own-zone",
        "The users of a day that goes on in the campaign's own zone are read.",
        CAMPAIGN,
        "        return spend_day(now_us, plan.timezone).day\n",
        '        return spend_day(now_us, "UTC").day\n',
        f"{DECISIONS}::test_users_are_counted_where_a_cap_is_in_force",
    ),
    Mutant(
        "who-has-no-cap-waits-for-nobody",
        "A campaign without a cap is open before the users of others are read.",
        [
            Edit(RECOVERY, "        await self._ready(attempt, uncounted, users_loaded=False)\n", ""),
            Edit(
                RECOVERY,
                "            await self._read(attempt, to_read, reads)\n",
                "            await self._read(attempt, to_read, reads)\n"
                "        await self._ready(attempt, uncounted, users_loaded=False)\n",
            ),
        ],
        [f"{BULK}::test_who_has_no_cap_is_open_before_others_are_read"],
    ),
    one(
        "small-ones-first",
        "Small campaigns do not wait for larger ones.",
        RECOVERY,
        "in sorted(rows, key=lambda row: events[row.campaign_id]):",
        "in rows:",
        f"{BULK}::test_the_small_ones_go_on_first",
    ),
    one(
        "large-ones-block-nobody",
        "What is too much to be read by the key is left for a pass over the day's rows.",
        RECOVERY,
        "            if read > KEYED_EVENTS:\n",
        "            if False:\n",
        f"{BULK}::test_what_is_too_much_to_read_by_the_key_is_read_in_one_pass",
    ),
    one(
        "large-ones-have-a-queue-of-their-own",
        "While large campaigns are read, small ones are recovered.",
        "engine/recoveries.py",
        "self._queues[Reads.MUCH].put(actor, attempts)",
        "self._nursery.start_soon(self._recover, [(actor, attempts)], Reads.MUCH)",
        f"{QUEUES}::test_large_campaigns_that_come_while_others_are_read_share_the_next_pass",
    ),
    one(
        "whoever-needs-no-users-is-opened-first",
        "While a few users are read by the key, campaigns that need none are recovered.",
        "engine/recoveries.py",
        "        self._queues[Reads.NONE].put(actor, attempts)\n",
        "        self._queues[Reads.LITTLE].put(actor, attempts)\n",
        f"{QUEUES}::test_who_has_users_to_read_holds_up_nobody_who_has_none",
    ),
    one(
        "who-waited-for-its-row-joins-the-others",
        "No pass over the day's rows is for one campaign.",
        "engine/recoveries.py",
        "await self._recover([(actor, attempts)], Reads.NONE, wait=True)",
        "await self._recover([(actor, attempts)], Reads.MUCH, wait=True)",
        f"{QUEUES}::test_large_campaigns_whose_rows_were_held_share_the_next_pass",
    ),
    one(
        "a-row-that-is-held-is-asked-for-again",
        "A flush that ends within some ten milliseconds takes no campaign out of its bulk.",
        RECOVERY,
        "HELD_TRIES: Final = 3\n",
        "HELD_TRIES: Final = 1\n",
        f"{BULK}::test_a_row_that_a_flush_holds_for_a_moment_is_asked_for_again",
    ),
    one(
        "what-redis-had-no-memory-for-is-loaded-again",
        "A chunk that a full Redis refuses does not cost the whole pass again.",
        RECOVERY,
        "FULL_PAUSES_MAX: Final = 10",
        "FULL_PAUSES_MAX: Final = 0",
        f"{BULK}::test_what_redis_has_no_memory_for_is_loaded_again",
    ),
    one(
        "nobody-opens-with-a-chunk-that-did-not-run",
        "The replies to what was sent again count.",
        RECOVERY,
        "                replies[place] = reply\n",
        "                replies[place] = Done()\n",
        f"{BULK}::test_a_redis_that_stays_full_fails_a_rebuild_in_the_end",
    ),
    one(
        "what-another-engine-reads-is-left-to-it",
        "Two engines that are both used for a large campaign don't undo each other's reads for ever.",
        "engine/recoveries.py",
        "        alive = bool(left.others) and left.others <= self._others()\n",
        "        alive = False\n",
        f"{QUEUES}::test_engines_leave_to_each_other_what_they_read",
    ),
    one(
        "what-a-dead-engine-had-closed-is-taken-over",
        "A campaign is not closed for as long as the longest read because an engine died.",
        "engine/recoveries.py",
        "        alive = bool(left.others) and left.others <= self._others()\n",
        "        alive = True\n",
        f"{QUEUES}::test_what_another_engine_reads_is_taken_over",
    ),
    one(
        "nothing-is-left-for-ever",
        "A campaign that nobody recovers, whoever lives, is taken over in the end.",
        "engine/recoveries.py",
        "return alive and now < left.since + LEFT_SECONDS_MAX and ",
        "return alive and ",
        f"{QUEUES}::test_what_another_engine_reads_is_taken_over",
    ),
    one(
        "what-we-have-closed-is-ours",
        "A campaign whose actor failed while it was recovered is not left to engines that know nothing of it.",
        "engine/recoveries.py",
        " and self._ours.get(campaign_id) != generation\n",
        "\n",
        f"{QUEUES}::test_an_engine_recovers_what_it_has_closed_itself",
    ),
    one(
        "only-what-is-closed-is-left",
        "A campaign that is open, or that Redis has lost, is recovered by whoever needs it.",
        RECOVERY,
        "            if isinstance(reply, Done):\n                waiting",
        "            if True:\n                waiting",
        f"{BULK}::test_what_somebody_else_has_closed_is_left_to_them",
    ),
    one(
        "campaigns-that-are-closed-are-counted",
        "A campaign whose actor failed while its users were read is not told as closed twice.",
        "engine/recoveries.py",
        "        return sum(actor.state.phase is Phase.CLOSED for actor in self._closed)\n",
        "        return len(self._closed)\n",
        f"{QUEUES}::test_who_failed_while_it_was_read_is_no_longer_counted_as_closed",
    ),
    one(
        "nothing-is-read-only-before-the-first-commit",
        "Impressions that cost nothing count for the cap after the loss of Redis.",
        "engine/ports.py",
        "        return self.spend.day == UNTOUCHED_DAY\n",
        "        return self.spend.spent_micros == 0\n",
        "tests/contract/test_store.py::test_a_row_is_untouched_until_its_first_commit",
    ),
    one(
        "every-reply-of-a-bulk-counts",
        "No campaign opens with less than all that was read for it.",
        RECOVERY,
        "            if call.campaign_id in self.rows:\n                self.heed(",
        "            if call is calls[0] and call.campaign_id in self.rows:\n                self.heed(",
        BULK,
    ),
    one(
        "a-halted-campaign-is-not-opened",
        "Who is out of service stays so, whoever is recovered with it.",
        RECOVERY,
        "            if row.halted is not None:\n",
        "            if False:\n",
        BULK,
    ),
    one(
        "a-bulk-leaves-held-rows-alone",
        "A flush that hangs holds up its own campaigns only.",
        RECOVERY,
        "raise_generations(list(attempt.cases), wait=wait)",
        "raise_generations(list(attempt.cases), wait=True)",
        f"{BULK}::test_a_row_that_a_flush_holds_is_waited_for_alone",
    ),
    one(
        "orphans-are-looked-for",
        "Reservations of a dead engine are settled by the next actor.",
        REGISTRY,
        "doubtful = self._suspect & new | await self._orphaned(list(new))",
        "doubtful = self._suspect & new",
        f"{WORLD}::test_reservations_of_a_dead_engine_are_given_back",
    ),
    one(
        "orphans-of-live-actors",
        "An actor that lives settles the reservations of an engine that died.",
        REGISTRY,
        "                    with actor.boundary:\n                        actor.doubt()\n",
        "                    pass\n",
        JUDGED,
    ),
    one(
        "a-failed-actor-is-suspect",
        "What a failed actor had reserved is settled before the next one begins.",
        REGISTRY,
        "        self._suspect.add(campaign_id)\n",
        "",
        JUDGED,
        WORLD,
    ),
]

WAITING = [
    one(
        "nobody-is-reserved-too-late",
        "What nobody waits for any more is not reserved.",
        CAMPAIGN,
        "elif entry.attempts >= ATTEMPTS_MAX or entry.received_us < waits_us:",
        "elif entry.attempts >= ATTEMPTS_MAX:",
        f"{DECISIONS}::test_who_has_waited_too_long_is_not_reserved",
    ),
    one(
        "a-reply-counts-with-its-generation",
        "What is reserved while a plan is read again is not forgotten: nobody else would ever void it.",
        ACTOR,
        "discarded = state.phase is CLOSED or call.generation < state.generation_seen",
        "discarded = state.phase is not RESERVING or call.generation < state.generation_seen",
        f"{WORLD}::test_what_is_reserved_while_an_older_batch_is_refused_is_not_forgotten",
    ),
    one(
        "a-void-that-finds-another-redis",
        "A tag that another Redis may hold still is settled by a recovery.",
        ACTOR,
        "elif isinstance(reply, Lost) or (isinstance(reply, Stale) and reply.generation < call.generation):",
        "elif False:",
        f"{WORLD}::test_a_void_that_finds_another_redis_recovers_the_campaign",
    ),
    one(
        "no-event-while-a-store-is-unsafe",
        "A store that may lose a commit or a budget is not used.",
        "engine/engine.py",
        "if self._draining or self.unsafe or self.clocks",
        "if self._draining or self.clocks",
        f"{WORLD}::test_no_event_is_taken_while_a_store_is_unsafe",
    ),
    one(
        "the-clock-does-not-step",
        "Redis is not told to forget young ids by a clock that was set.",
        "engine/clock.py",
        "return even_us() + self._offset_us",
        "return machine_us()",
        "tests/unit/test_clock.py",
    ),
    one(
        "a-wrong-clock-is-not-followed",
        "The engine's clock follows the machine's only while that is right.",
        "engine/runtime.py",
        "even_us)) and (precise or behind_us is None):",
        "even_us)) or precise:",
        JUDGED,
    ),
    one(
        "a-slow-answer-is-no-comparison",
        "A clock that was found right follows none that a slow answer calls right.",
        "engine/runtime.py",
        " and (precise or behind_us is None):",
        ":",
        f"{CLOCK}::test_a_clock_that_was_found_right_follows_none_that_a_slow_answer_calls_right",
    ),
    one(
        "a-slow-answer-finds-no-clock-right",
        "What a slow answer says of a clock is nothing that later ones are held to.",
        "engine/runtime.py",
        "found_right=precise)",
        "found_right=True)",
        f"{JUDGED}::test_a_clock_that_a_slow_answer_calls_right_is_not_what_later_ones_are_held_to",
    ),
    one(
        "a-clock-is-found-right-by-who-says-so",
        "The same, in the clock itself.",
        "engine/clock.py",
        "            self._found_right |= found_right\n",
        "            self._found_right = True\n",
        f"{CLOCK}::test_an_engine_that_started_by_a_wrong_clock_goes_by_the_right_one_as_soon_as_it_is_told",
    ),
    one(
        "a-right-clock-is-followed-though-its-answer-was-slow",
        "An engine that started by a wrong clock goes by the right one, however slow Postgres is.",
        "engine/runtime.py",
        " and (precise or behind_us is None):",
        " and precise:",
        f"{CLOCK}::test_an_engine_that_started_by_a_wrong_clock_goes_by_the_right_one_as_soon_as_it_is_told",
    ),
]

MUTANTS = UNKNOWN + REFUSED + KNOWN + STATE + REMEDY + WAITING
