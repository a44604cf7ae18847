"""Mutants of what makes a retry a retry: what is looked up, what that proves and for how long, and ids of a key."""

from __future__ import annotations

from typing import Final

from tests.mutants.engine import ACTOR, ARRIVAL, CAMPAIGN, DECISIONS, LOOKUPS, RESERVATIONS, one
from tests.mutants.mutant import Edit, Mutant

WINDOW: Final = "tests/unit/test_window.py"
TOO_OLD: Final = "tests/unit/test_too_old.py"


GENERATION: Final = one(
    "a-look-up-counts-under-its-generation",
    "A recovery lets a flush through that an earlier look-up did not see: nothing is counted twice for that.",
    CAMPAIGN,
    "                elif entry.looked_up_under == under:\n",
    "                elif entry.looked_up_under[1] == self.bucket:\n",
    f"{DECISIONS}::test_a_look_up_counts_under_the_generation_that_was_known_when_it_began",
)
BUCKET: Final = one(
    "a-look-up-counts-under-its-bucket",
    "What was committed after a look-up, and forgotten since, is not reserved again.",
    CAMPAIGN,
    "                elif entry.looked_up_under == under:\n",
    "                elif entry.looked_up_under[0] == self.generation:\n",
    f"{DECISIONS}::test_a_look_up_counts_under_the_bucket_that_was_known_when_it_began",
)
SAID: Final = one(
    "a-call-says-under-which-bucket-it-was-looked-up",
    "Redis is told, because the bucket may have closed since its last reply.",
    CAMPAIGN,
    "                    looked_bucket = self.bucket\n",
    "                    looked_bucket = NONE_LOOKED_UP\n",
    f"{DECISIONS}::test_a_call_says_what_was_looked_up_and_what_was_not",
)
LATER_DAY: Final = one(
    "looked-up-on-the-day-after",
    "Another try, received on the other side of midnight, may have been committed already.",
    LOOKUPS,
    "now_us // DAY_US + 2)",
    "now_us // DAY_US + 1)",
    f"{WINDOW}::test_a_repeat_is_found_though_a_clock_that_is_ahead_has_received_it_on_the_next_day",
)
DAYS: Final = f"{WINDOW}::test_an_id_without_a_time_is_looked_up_from_two_days_before_its_receipt_to_the_day_after_now"

MUTANTS = [
    GENERATION,
    BUCKET,
    SAID,
    LATER_DAY,
    one(
        "looked-up-beyond-midnight",
        "An event may wait over midnight, while another try of it is received and committed.",
        LOOKUPS,
        "now_us // DAY_US + 2)",
        "entry.received_us // DAY_US + 1)",
        DAYS,
    ),
    one(
        "looked-up-up-to-the-day-after-now",
        "The same, by clocks that disagree.",
        LOOKUPS,
        "now_us // DAY_US + 2)",
        "entry.received_us // DAY_US + 2)",
        DAYS,
    ),
    one(
        "looked-up-on-two-days-before",
        "A retry within 48 hours of an event that tells no time finds its row.",
        LOOKUPS,
        "(entry.received_us - clocks_differ_us) // DAY_US - 2, ",
        "(entry.received_us - clocks_differ_us) // DAY_US - 1, ",
        DAYS,
    ),
    one(
        "looked-up-on-the-days-before-its-receipt",
        "The same, however long it has waited since.",
        LOOKUPS,
        "(entry.received_us - clocks_differ_us) // DAY_US - 2, ",
        "(now_us - clocks_differ_us) // DAY_US - 2, ",
        DAYS,
    ),
    one(
        "looked-up-from-the-day-of-a-clock-that-is-behind",
        "The same, if the event was received first by a clock that was behind.",
        LOOKUPS,
        "(entry.received_us - clocks_differ_us) // DAY_US - 2, ",
        "entry.received_us // DAY_US - 2, ",
        f"{WINDOW}::test_a_retry_within_48_hours_is_found_though_a_clock_that_is_behind_has_received_the_first_try",
    ),
    one(
        "looked-up-on-its-own-day",
        "An event that tells its time is nowhere else.",
        LOOKUPS,
        "        return (entry.day,)\n",
        "        return (now_us // DAY_US,)\n",
        f"{WINDOW}::test_an_event_that_tells_a_time_is_looked_up_on_its_day",
    ),
    one(
        "a-call-says-what-was-not-looked-up",
        "Redis may have forgotten more since its last reply: it compares the least id time.",
        CAMPAIGN,
        "                    if id_time_us < unlooked_us:\n",
        "                    if unlooked_us == ALL_LOOKED_UP:\n",
        f"{DECISIONS}::test_a_call_says_what_was_looked_up_and_what_was_not",
    ),
    one(
        "a-call-says-its-greatest-id-time",
        "What is forgotten raises the watermark by the greatest of all.",
        CAMPAIGN,
        "max([entry.id_time_us for entry in entries]), NO_TIME",
        "entries[0].id_time_us, NO_TIME",
        f"{DECISIONS}::test_a_call_tells_the_greatest_id_time_of_those_that_are_ahead_and_of_the_others",
    ),
    one(
        "a-call-says-its-greatest-id-time-that-is-ahead",
        "The same, of those that lie apart.",
        RESERVATIONS,
        "            most_ahead_us = max(most_ahead_us, entry.id_time_us)\n",
        "            most_ahead_us = entry.id_time_us\n",
        f"{DECISIONS}::test_a_call_tells_the_greatest_id_time_of_those_that_are_ahead_and_of_the_others",
    ),
    one(
        "a-call-says-what-is-ahead",
        "Ids of a clock that is ahead lie apart.",
        RESERVATIONS,
        "            marked[place] |= AHEAD\n",
        "            pass\n",
        f"{DECISIONS}::test_a_call_tells_the_greatest_id_time_of_those_that_are_ahead_and_of_the_others",
    ),
    one(
        "two-seconds-are-no-wrong-clock",
        "Buckets of their own are for those that would be felt.",
        RESERVATIONS,
        "        if entry.id_time_us > now_us + AHEAD_US:\n",
        "        if entry.id_time_us > now_us:\n",
        f"{DECISIONS}::test_a_call_tells_the_greatest_id_time_of_those_that_are_ahead_and_of_the_others",
    ),
    one(
        "the-server-s-own-id-is-new-once",
        "A call that had no answer may have reserved, and committed, what the server has made the id of.",
        CAMPAIGN,
        "                elif not entry.made_here or entry.attempts:\n",
        "                elif not entry.made_here:\n",
        f"{DECISIONS}::test_an_id_made_by_the_server_is_looked_up_like_any_other_once_a_call_may_have_reserved_it",
    ),
    one(
        "the-server-s-own-id-is-new",
        "An id that nobody else can have sent costs no look-up.",
        CAMPAIGN,
        "                elif not entry.made_here or entry.attempts:\n",
        "                elif True:\n",
        f"{WINDOW}::test_an_id_made_by_the_server_is_not_looked_up",
    ),
    one(
        "behind-is-no-attempt",
        "However often a bucket closes, an event is not refused for that.",
        ACTOR,
        "        if isinstance(reply, Behind):\n            state.not_tried(request.entries)\n",
        "",
        f"{WINDOW}::test_what_was_looked_up_is_looked_up_again_after_an_advance",
    ),
    one(
        "who-lets-others-go-first-has-not-tried",
        "An id of the server's is as new as before, when another sort of event went with that call.",
        CAMPAIGN,
        "            for entry in back:\n                entry.attempts -= 1\n",
        "",
        f"{TOO_OLD}::test_who_lets_the_other_sort_go_first_is_not_looked_up_again",
    ),
    one(
        "every-reply-tells-the-window",
        "What has to be looked up is looked up at once, not asked of Redis first.",
        CAMPAIGN,
        "        self.see_window(call.generation, reply.bucket, reply.watermark_us)\n",
        "",
        f"{WINDOW}::test_redis_says_once_what_has_to_be_looked_up",
    ),
    one(
        "the-window-is-known-under-one-generation",
        "A rebuilt state has other buckets under the same numbers, and another watermark.",
        CAMPAIGN,
        "            self.bucket, self.watermark_us = NO_BUCKET, NOTHING_FORGOTTEN\n",
        "            pass\n",
        f"{DECISIONS}::test_what_redis_told_of_the_dedup_window_holds_under_its_generation_only",
    ),
    one(
        "the-window-is-told-under-its-generation",
        "A reply of an older generation tells nothing of the state that has taken its place.",
        CAMPAIGN,
        "        if generation == self.generation:\n            self.bucket",
        "        if True:\n            self.bucket",
        f"{DECISIONS}::test_what_redis_told_of_the_dedup_window_holds_under_its_generation_only",
    ),
    Mutant(
        "a-look-up-counts-from-its-query",
        "A generation that is learnt while a query is under way makes its answer no younger.",
        [
            Edit(LOOKUPS, "            state.looking_up(entries)\n", ""),
            Edit(
                LOOKUPS,
                "                look_up.actor.looked_up(look_up, found)\n\n    def",
                "                look_up.actor.state.looking_up(look_up.entries)\n"
                "                look_up.actor.looked_up(look_up, found)\n\n    def",
            ),
        ],
        [f"{WINDOW}::test_a_look_up_does_not_outlive_the_generation_under_which_it_began"],
    ),
    one(
        "look-ups-are-made-again-for-as-long-as-a-sender-waits",
        "Advance after advance keeps no entry for ever.",
        CAMPAIGN,
        "            elif entry.attempts >= ATTEMPTS_MAX or entry.received_us < waits_us:\n                self.settle",
        "            elif entry.attempts >= ATTEMPTS_MAX or (\n"
        "                entry.received_us < waits_us and entry.looked_up_under == under\n"
        "            ):\n                self.settle",
        f"{DECISIONS}::test_an_entry_is_looked_up_again_only_as_long_as_its_sender_may_wait",
    ),
    one(
        "too-old-is-looked-up",
        "The retry of an accepted event is not refused because it has grown too old meanwhile.",
        ARRIVAL,
        "        if time_us < now_us - limits.past_us - REPEATED_US:\n",
        "        if True:\n",
        f"{TOO_OLD}::test_a_repeat_that_has_grown_too_old_is_a_duplicate",
    ),
    one(
        "too-old-has-no-budget",
        "What is too old and new is not accepted.",
        CAMPAIGN,
        "if plan.active and entries[0].refusal is None:",
        "if plan.active:",
        f"{TOO_OLD}::test_what_is_too_old_and_new_is_refused_whatever_the_campaign_is",
    ),
    one(
        "too-old-is-never-young",
        "A limit of age that lies above the watermark accepts nothing beyond it.",
        CAMPAIGN,
        "(fresh if entry.refusal is None else too_old).append(entry)",
        "fresh.append(entry)",
        f"{TOO_OLD}::test_what_is_too_old_is_refused_though_redis_knows_that_it_is_new",
    ),
    one(
        "too-old-goes-by-turns",
        "Old events do not keep a campaign from accepting others.",
        CAMPAIGN,
        "self._asked_too_old = not (fresh and self._asked_too_old)",
        "self._asked_too_old = True",
        f"{TOO_OLD}::test_calls_without_a_budget_and_calls_with_one_take_turns",
    ),
    one(
        "too-old-is-refused-alone",
        "Who joins an event that is too old, and is not, does not share its refusal.",
        CAMPAIGN,
        " and (entry.refusal is None) is (first.refusal is None):",
        ":",
        f"{TOO_OLD}::test_who_joins_is_refused_for_its_age_only_if_it_has_that_age",
    ),
    one(
        "a-place-is-one-of-its-campaign",
        "A request that is repeated with its key, its campaigns in another order, counts nothing twice.",
        "engine/derived_ids.py",
        "self._places.append((campaign_id, counts[campaign_id]))",
        "self._places.append((campaign_id, len(self._places)))",
        "tests/unit/test_engine.py::test_a_key_in_another_order_of_campaigns_counts_nothing_twice",
    ),
    one(
        "a-bad-event-keeps-its-place",
        "An event that is corrected does not shift the ids of its neighbours, which would be counted twice.",
        "api/bad_events.py",
        "_id_of(raw), _campaign_of(raw))",
        "_id_of(raw))",
        "tests/unit/test_bad_campaigns.py",
    ),
]
