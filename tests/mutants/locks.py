"""Mutants of what keeps one engine's trouble from others: whom a wait is blamed on, and whose sessions are ended."""

from __future__ import annotations

from typing import Final

from tests.mutants.engine import one
from tests.mutants.mutant import Edit, Mutant

OUTCOME: Final = "engine/postgres/outcome.py"
FLUSH: Final = "engine/postgres/flush.py"
FLUSHER: Final = "engine/flusher.py"
ENGINES: Final = "engine/postgres/engines.py"
STORE: Final = "engine/postgres/store.py"
DATABASE: Final = "engine/postgres/database.py"
CONTRACT: Final = "tests/contract/test_locks.py"
LANES: Final = "tests/unit/test_locked_rows.py"
ANSWERS: Final = "tests/contract/test_store_values.py::test_each_answer_is_certain_or_unknown"

MUTANTS: list[Mutant] = [
    one(
        "a-wait-is-blamed-on-its-row",
        "The campaign of the row that waited is named, and no other.",
        OUTCOME,
        "        if left <= 0:\n",
        "        if left < 0:\n",
        ANSWERS,
    ),
    one(
        "what-is-merely-slow-is-nobody-s-fault",
        "A statement that ran out of time without waiting for a lock names nobody.",
        OUTCOME,
        "    if failure.sqlstate == STATEMENT_TIMEOUT and not _TUPLE.search(failure.context):\n",
        "    if False:\n",
        ANSWERS,
    ),
    one(
        "a-flush-waits-for-a-lock-for-half-a-second",
        "No flush waits for a frozen engine as long as a statement may run.",
        FLUSH,
        "min(limit_ms, int(LOCK_SECONDS * 1_000))",
        "limit_ms",
        f"{CONTRACT}::test_a_flush_gives_up_before_its_statement_would",
    ),
    one(
        "all-held-rows-are-named",
        "A flush that waited for a row of the ledger asks whose rows are held.",
        FLUSH,
        "                if isinstance(reply, NotRun) and waited_for_ledger(answer):\n",
        "                if False:\n",
        f"{CONTRACT}::test_a_flush_names_every_campaign_whose_row_is_held",
    ),
    Mutant(
        "others-of-a-flush-that-waited-go-again",
        "A campaign that is not named is neither refused nor voided.",
        [
            Edit(
                FLUSHER,
                "        named = [each for each in part if each[1].campaign_id in reply.campaigns]\n",
                "        named = list(part)\n",
            ),
            Edit(
                FLUSHER,
                "        return [each for each in part if each[1].campaign_id not in reply.campaigns]\n",
                "        return []\n",
            ),
        ],
        [f"{LANES}::test_others_of_a_flush_that_waited_are_not_undone"],
    ),
    one(
        "a-suspect-is-flushed-apart",
        "Nobody waits for the same lock again and again.",
        FLUSHER,
        "            if not suspects and reservation.campaign_id in self._suspects:\n",
        "            if False:\n",
        f"{LANES}::test_whose_row_is_held_is_told_soon_however_much_waits_for_it",
    ),
    one(
        "one-flush-of-suspects-at-a-time",
        "Suspects never have all connections.",
        FLUSHER,
        "bool(self._apart) and not self._apart_under_way and (",
        "bool(self._apart) and (",
        f"{LANES}::test_a_flush_of_suspects_leaves_a_connection_to_the_others",
    ),
    one(
        "a-suspect-is-tried-once-more",
        "A row that is held for a moment costs no refusal.",
        FLUSHER,
        "        if apart:\n            numbers",
        "        if True:\n            numbers",
        f"{LANES}::test_a_row_that_is_held_for_less_than_a_second_costs_nobody_a_refusal",
    ),
    one(
        "a-queue-of-suspects-has-room-apart",
        "A row that is held for a moment costs no refusal under load, either.",
        FLUSHER,
        "            if self._events_apart and self._events_apart + events > self._queue_events_max:\n",
        "            if self._events_apart and self._events_apart + events > self._flush_events_max:\n",
        f"{LANES}::test_a_row_that_is_held_for_less_than_a_second_costs_a_full_queue_no_refusal",
    ),
    one(
        "what-waits-apart-for-the-same-rows-is-told-with-them",
        "A flood of a campaign whose row is held keeps nobody waiting in the lane.",
        FLUSHER,
        "            named += [each for each in self._apart if each[1].campaign_id in reply.campaigns]\n"
        "            self._apart = deque(each for each in self._apart if each[1].campaign_id not in reply.campaigns)\n",
        "",
        f"{LANES}::test_whose_row_is_held_is_told_soon_however_much_waits_for_it",
    ),
    one(
        "what-waits-for-locks-is-bounded",
        "Suspects don't fill the queue of all others.",
        FLUSHER,
        "            if self._events_apart and self._events_apart + events > self._queue_events_max:\n",
        "            if False:\n",
        f"{LANES}::test_the_lane_of_suspects_is_bounded",
    ),
    one(
        "only-the-dead-are-ended",
        "A living engine keeps its sessions.",
        ENGINES,
        "       AND number NOT IN (SELECT id FROM engines"
        " WHERE heartbeat_at >= clock_timestamp() - $4 * interval '1 second')\n",
        "       AND $4::float8 > 0\n",
        f"{CONTRACT}::test_nobody_else_is_ended",
    ),
    one(
        "who-asks-is-alive",
        "An engine whose row is gone does not end its own sessions.",
        ENGINES,
        "     WHERE number <> $3\n",
        "     WHERE $3::bigint IS NOT NULL\n",
        f"{CONTRACT}::test_sessions_of_a_dead_engine_are_ended",
    ),
    one(
        "a-heartbeat-waits-for-nobody",
        "An engine whose connections are all in use is not taken for dead.",
        STORE,
        "engines.heartbeat(self._pulse, number",
        "engines.heartbeat(self.database, number",
        f"{CONTRACT}::test_a_heartbeat_waits_for_no_query",
    ),
    one(
        "callers-leave-connections-to-events",
        "Look-ups and recoveries don't queue behind calls about campaigns.",
        STORE,
        "trio.Semaphore(settings.callers_at_once)",
        "trio.Semaphore(1_000_000)",
        f"{CONTRACT}::test_no_number_of_calls_from_outside_keeps_a_look_up_waiting",
    ),
    one(
        "the-dead-are-ended-before-a-raise-waits",
        "A recovery does not wait for a flush of an engine that is dead.",
        STORE,
        "        if wait:  # what holds",
        "        if False:  # what holds",
        f"{CONTRACT}::test_a_raise_ends_the_sessions_of_the_dead_before_it_waits",
    ),
    one(
        "the-dead-are-ended-before-their-campaigns-are-recovered",
        "A recovery does not meet what a dead engine holds.",
        "engine/runtime.py",
        "                await _end_dead_sessions(roster, engines)  # first",
        "                # first",
        f"{LANES}::test_whoever_finds_an_engine_dead_ends_its_sessions_before_it_recovers",
    ),
    one(
        "a-change-does-not-wait-for-ever",
        "A PATCH whose row is held is refused, and certainly nothing was done.",
        DATABASE,
        "        if isinstance(error, asyncpg.LockNotAvailableError):\n",
        "        if False:\n",
        f"{CONTRACT}::test_a_change_of_a_campaign_whose_row_is_held_is_refused_and_nothing_is_done",
    ),
]
