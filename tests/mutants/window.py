"""Mutants of the dedup window's rules for sleepers and wrong clocks, and of what gives back what a fault leaves."""

from __future__ import annotations

from tests.mutants.engine import ACTOR, CAMPAIGN, DECISIONS, RECOVERY, REGISTRY, one
from tests.mutants.ledger import lua

WINDOW = "tests/unit/test_window.py"
BOUNDS = "tests/unit/test_bounds.py"

MUTANTS = [
    one(
        "late-for-its-turn",
        "A call relies on Redis knowing what it did not look up: not longer than the window lasts.",
        CAMPAIGN,
        "turn_latest=(now_us + self.slack_us) // self.turn_us,",
        "turn_latest=(now_us + self.slack_us) // self.turn_us + 1,",
        f"{DECISIONS}::test_a_call_holds_for_a_turn_that_another_clock_may_have_reached",
    ),
    one(
        "a-reply-met-late-is-undone",
        "What was decided long before it is flushed is not flushed.",
        ACTOR,
        "elif isinstance(reply, Reserved) and now_us - request.decided_us <= state.wait_us:",
        "elif isinstance(reply, Reserved):",
        f"{WINDOW}::test_a_reply_that_is_met_after_a_long_sleep_is_undone",
    ),
    one(
        "a-wrong-turn-is-recovered",
        "A turn that no clock has reached does not close a campaign for ever.",
        "engine/patience.py",
        "if self._late_turns == LATE_TURNS_MAX:",
        "if False:",
        f"{WINDOW}::test_a_turn_that_no_clock_has_reached_is_put_right",
    ),
    lua(
        "a-wrong-turn-is-not-kept",
        "A recovery does not keep a turn that no clock has reached.",
        "        if s.bkt > bkt + 1 then return {'MISMATCH'} end\n",
        "",
        "test_ready_refuses_a_turn_that_no_clock_has_reached",
    ),
    one(
        "ids-under-their-own-turn",
        "An id stays in the window as long as the engine that received it expects.",
        RECOVERY,
        "generation, min(latest, max(oldest, turn)), chunk",
        "generation, min(oldest + 1, max(oldest, turn)), chunk",
        f"{WINDOW}::test_ids_from_a_clock_ahead_stay_as_long_as_it_expects",
    ),
    one(
        "a-rebuild-stays-in-time",
        "An event that a wrong clock received does not close its campaign until then.",
        RECOVERY,
        "generation, min(latest, max(oldest, turn)), chunk",
        "generation, max(oldest, turn), chunk",
        f"{WINDOW}::test_an_event_that_a_wrong_clock_received_does_not_close_its_campaign",
    ),
    one(
        "recover-compares-clocks",
        "The window is not rebuilt by a clock that is wrong.",
        "engine/recoverer.py",
        "            await _compare_clocks(store, settings)\n",
        "",
        "tests/integration/test_recover.py::test_a_machine_whose_clock_is_wrong_rebuilds_nothing",
    ),
    one(
        "what-was-compared-is-followed",
        "A clock that is set while it is compared is not followed.",
        "engine/clock.py",
        "        if abs(self.reading_us() - reading_us) < _STEP_US:\n            self._offset_us = reading_us",
        "        self._offset_us = reading_us",
        "tests/unit/test_clock.py::test_a_clock_that_is_set_while_it_is_compared_is_not_followed",
    ),
    one(
        "a-request-that-fails-frees-its-room",
        "Out of memory for a moment is not full for ever.",
        "engine/engine.py",
        "            self._events_open -= len(events)\n            raise",
        "            raise",
        f"{BOUNDS}::test_a_request_that_can_not_be_taken_leaves_nothing_behind",
    ),
    one(
        "a-round-gathers-for-a-moment-only",
        "A flush that hangs holds up no other campaign.",
        "engine/rounds.py",
        "with trio.move_on_after(GATHER_SECONDS):",
        "with trio.move_on_after(5):",
        f"{BOUNDS}::test_a_round_gathers_while_much_is_being_flushed",
    ),
    one(
        "a-remembered-head-fits-its-body",
        "Who sends the head of an earlier request sends its own body with it.",
        "api/intake_reader.py",
        "if head is not None and len(piece) == body_at + body_bytes:",
        "if head is not None:",
        "tests/unit/test_intake_reader.py",
    ),
    one(
        "only-a-whole-request-is-remembered",
        "What a head says of its body is what it says alone.",
        "api/intake_reader.py",
        "alone = len(piece) == body_at + len(body)",
        "alone = True",
        "tests/unit/test_intake_reader.py",
    ),
    one(
        "a-redis-that-is-ahead-is-caught-up-with",
        "A Postgres that was restored takes events again.",
        "engine/actor.py",
        "self.distrusts >= plan.version or row.generation < self._known_generation",
        "self.distrusts >= plan.version",
        "tests/unit/test_engine.py::test_a_redis_that_is_ahead_of_postgres_is_caught_up_with",
    ),
    one(
        "a-row-that-was-read-before-a-raise-proves-nothing",
        "Engines don't recover each other's recoveries.",
        "engine/actor.py",
        "row.generation < self._known_generation",
        "row.generation < state.generation",
        "tests/unit/test_engine.py::test_a_row_that_was_read_before_a_raise_is_no_reason_to_recover",
    ),
    one(
        "a-recovery-that-meets-its-own-generation-starts-over",
        "The same.",
        "engine/recovery.py",
        "case Stale(generation) if generation > self.rows[campaign_id].generation:",
        "case Stale(generation):",
        "tests/unit/test_engine.py::test_a_redis_that_is_ahead_of_postgres_is_caught_up_with",
    ),
    one(
        "who-fails-gives-back",
        "What a failed actor of a living process had reserved is not held for ever.",
        REGISTRY,
        "        if not self._failing(campaign_id):\n            # At once",
        "        if False:\n            # At once",
        f"{BOUNDS}::test_who_fails_gives_back_what_it_had_reserved_without_being_asked",
    ),
]
