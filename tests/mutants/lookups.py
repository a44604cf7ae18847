"""Mutants of what makes a retry a retry: what a look-up proves and for how long, and ids that a key gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.mutants.engine import ACTOR, ARRIVAL, CAMPAIGN, DECISIONS, LOOKUPS, one
from tests.mutants.found import TEST
from tests.mutants.mutant import Edit, Mutant

WINDOW: Final = "tests/unit/test_window.py"
TOO_OLD: Final = "tests/unit/test_too_old.py"


def found_by(mutant: Mutant, script: str) -> Mutant:
    """The same mutant, which only this script may notice."""
    return replace(mutant, name=f"found-{mutant.name}", tests=[f"{TEST}[{script}]"], own=True)


OUTLIVED: Final = one(
    "a-look-up-counts-under-its-generation",
    "A recovery lets a flush through that an earlier look-up did not see: nothing is counted twice for that.",
    CAMPAIGN,
    "elif entry.looked_up_under != generation:",
    "elif entry.looked_up_under == NOT_LOOKED_UP:",
    f"{WINDOW}::test_a_look_up_does_not_outlive_the_generation_under_which_it_began",
)
OUTLASTED: Final = one(
    "a-late-commit-ends-look-ups",
    "Redis may forget an id right after a late commit: nobody relies on a look-up from before it.",
    ACTOR,
    "if state.outlasted(reservation, now_us):",
    "if False:",
    f"{WINDOW}::test_a_commit_that_outlasts_the_window_ends_look_ups_that_missed_it",
)

MUTANTS = [
    OUTLIVED,
    OUTLASTED,
    found_by(OUTLIVED, "a_look_up_outlives_a_recovery"),
    found_by(OUTLASTED, "a_commit_outlasts_the_window"),
    Mutant(
        "a-look-up-counts-from-its-query",
        "A generation that is learnt while a query is under way makes its answer no younger.",
        [
            Edit(LOOKUPS, "        for each in batch:\n            each.actor.state.looking_up(each.entry)\n", ""),
            Edit(
                LOOKUPS,
                "        for each in reversed(batch):\n",
                "        for each in reversed(batch):\n            each.actor.state.looking_up(each.entry)\n",
            ),
        ],
        [f"{WINDOW}::test_a_look_up_does_not_outlive_the_generation_under_which_it_began"],
    ),
    one(
        "look-ups-are-made-again-for-as-long-as-a-sender-waits",
        "Recovery after recovery keeps no entry for ever.",
        CAMPAIGN,
        "            elif entry.attempts >= ATTEMPTS_MAX or entry.received_us < waits_us:\n                self.settle",
        "            elif entry.attempts >= ATTEMPTS_MAX or (\n"
        "                entry.received_us < waits_us and entry.looked_up_under == generation\n"
        "            ):\n                self.settle",
        f"{DECISIONS}::test_an_entry_is_looked_up_again_only_as_long_as_its_sender_may_wait",
    ),
    one(
        "too-old-is-looked-up",
        "The retry of an accepted event is not refused because it has grown too old meanwhile.",
        ARRIVAL,
        "if occurred_us < now_us - limits.past_us - REPEATED_US:",
        "if True:",
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
        "A short limit of age accepts nothing beyond it.",
        CAMPAIGN,
        "elif entry.refusal is None and entry.told_us is not None",
        "elif entry.told_us is not None",
        f"{TOO_OLD}::test_what_is_too_old_is_looked_up_even_where_it_is_young",
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
        "the-window-is-longer-than-requests-wait",
        "Redis knows what a look-up did not see until nobody reserves by that look-up any more.",
        "config/settings.py",
        "        if 3 * self.request_deadline_seconds + self.clock_slack_seconds > self.dedup_turn_seconds:\n",
        "        if False:\n",
        f"{WINDOW}::test_no_deadline_that_is_allowed_is_too_long_for_the_window",
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
