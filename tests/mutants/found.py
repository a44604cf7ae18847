"""The faults that the simulation has found, put back. On trial is the script that finds each again, and no other test.

Most of these lines stand in other tables, too, where all tests may notice. Those of the library stand here once more as
the fake has them, because the simulation runs on that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.mutants import engine, lookups, memory, sweep
from tests.mutants.mutant import Edit, Mutant

TEST: Final = "tests/simulation/test_found.py::test_what_was_found_once_is_not_found_again"
TABLES: Final = engine.MUTANTS + lookups.MUTANTS + memory.MUTANTS + sweep.MUTANTS
ENGINE: Final = "engine/engine.py"
FAKE: Final = "tests/fakes/ledger.py"
LOOKED: Final = "call.looked_bucket not in (NONE_LOOKED_UP, book.window.number)"


def again(name: str, script: str) -> Mutant:
    """A mutant of another table, which only its script may notice."""
    mutant = next(each for each in TABLES if each.name == name)
    return replace(mutant, name=f"found-{name}", tests=[f"{TEST}[{script}]"], own=True)


def fake(name: str, protects: str, old: str, new: str, script: str) -> Mutant:
    """One edit of the fake Redis."""
    return Mutant(f"found-{name}", protects, [Edit(FAKE, old, new)], [f"{TEST}[{script}]"], own=True)


MUTANTS = [
    Mutant(
        "found-a-deadline-by-a-clock-that-steps",
        "A clock that is set back lets no request wait longer.",
        [
            Edit(ENGINE, "now = trio.current_time()\n        sub", "now = now_us / 1_000_000\n        sub"),
            Edit(ENGINE, "self._expire(trio.current_time())", "self._expire(self._clock.now_us() / 1_000_000)"),
        ],
        [f"{TEST}[a_clock_is_set_back]"],
        own=True,
    ),
    again("a-reply-counts-with-its-generation", "a_reply_is_thrown_away"),
    again("a-void-that-finds-another-redis", "a_void_finds_another_redis"),
    again("looked-up-beyond-midnight", "a_look_up_grows_old"),
    again("a-look-up-counts-under-its-generation", "a_look_up_outlives_a_recovery"),
    again("a-call-says-under-which-bucket-it-was-looked-up", "a_look_up_outlives_its_bucket"),
    again("looked-up-on-the-day-after", "a_repeat_was_committed_tomorrow"),
    fake(
        "a-look-up-counts-for-its-bucket",
        "What was committed after a look-up, and forgotten since, is not reserved again.",
        f" or {LOOKED}:",
        ":",
        "a_look_up_outlives_its_bucket",
    ),
    fake(
        "a-look-up-counts-for-no-later-bucket",
        "The same, where the engine knew of no other.",
        LOOKED,
        "call.looked_bucket > book.window.number",
        "a_look_up_outlives_its_bucket",
    ),
    fake(
        "a-look-up-counts-not-even-for-the-next-bucket",
        "What was pending in the older bucket may be committed, and forgotten by the very next advance.",
        LOOKED,
        "call.looked_bucket not in (NONE_LOOKED_UP, book.window.number, book.window.number - 1)",
        "an_advance_is_one_too_many",
    ),
    again("who-is-refused-as-a-new-user-is-helped", "new_users_are_refused"),
    again("calls-name-the-time-of-that-clock", "clocks_disagree"),
    fake(
        "ids-that-were-ahead-go-when-nothing-raises-the-watermark",
        "Ended campaigns don't fill Redis with ids that were ahead.",
        "max(book.watermark_us, book.began_us), at_us",
        "book.watermark_us, at_us",
        "the_last_ids_are_ahead",
    ),
    fake(
        "the-watermark-rises-with-what-was-ahead",
        "No committed id that Redis has forgotten is above the watermark.",
        "        book.watermark_us = max(book.watermark_us, ahead.most_in_older_us)\n",
        "",
        "the_last_ids_are_ahead",
    ),
    fake(
        "what-may-still-commit-is-not-forgotten",
        "The retry of an event whose flush is under way can be told from a new one.",
        "    if any(record.bucket < book.window.number for record in book.pending.values()):\n",
        "    if False:\n",
        "a_commit_outlasts_both_buckets",
    ),
]
