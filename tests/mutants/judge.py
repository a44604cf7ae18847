"""Mutants of the judge: the guard and the unique key in Postgres, and what its adapter takes for a commit."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

TABLES = "engine/postgres/migrations/0001_tables.sql"
GUARD = "engine/postgres/migrations/0005_watermark.sql"
OUTCOME = "engine/postgres/outcome.py"
FLUSH = "engine/postgres/flush.py"
COPY = "engine/postgres/copy.py"
SAFETY = "engine/postgres/safety.py"
CONTRACT = "tests/contract/test_store.py"
REAL = "tests/contract/test_store_postgres.py"
VALUES = "tests/contract/test_store_values.py"
ANSWERS = f"{VALUES}::test_each_answer_is_certain_or_unknown"


def guard(name: str, protects: str, old: str, new: str, *tests: str) -> Mutant:
    """One edit of the guard, and rules of the contract."""
    return Mutant(name, protects, [Edit(GUARD, old, new)], [f"{CONTRACT}::{test}" for test in tests])


def outcome(name: str, protects: str, old: str, new: str) -> Mutant:
    """One edit of the reading of answers."""
    return Mutant(name, protects, [Edit(OUTCOME, old, new)], [ANSWERS])


GUARDS = [
    guard(
        "generation-in-postgres",
        "What was reserved under an older generation can never commit.",
        "           AND l.gen = gens[i]\n",
        "",
        "test_another_generation_is_refused",
    ),
    guard(
        "day-in-postgres",
        "What was reserved for a day that is over can't commit.",
        "           AND l.day <= date '1970-01-01' + days[i]\n",
        "",
        "test_the_day_moves_only_forward",
    ),
    guard(
        "total-budget-in-postgres",
        "No commit passes the total budget, whatever Redis says.",
        "l.spent + amounts[i] <= l.total_budget\n               AND CASE",
        "CASE",
        "test_budgets_hold_to_the_last_micro",
    ),
    guard(
        "daily-budget-in-postgres",
        "No commit passes the daily budget, whatever Redis says.",
        "\n               AND CASE WHEN l.day = date '1970-01-01' + days[i] THEN l.today ELSE 0 END"
        " + amounts[i] <= l.daily_budget)",
        ")",
        "test_budgets_hold_to_the_last_micro",
    ),
    guard(
        "today-adds-up",
        "The day's spend is that of all its batches.",
        "today = CASE WHEN l.day = date '1970-01-01' + days[i] THEN l.today ELSE 0 END + amounts[i],",
        "today = amounts[i],",
        "test_budgets_hold_to_the_last_micro",
    ),
    guard(
        "spent-adds-up",
        "The total spend is that of all batches.",
        "SET spent = l.spent + amounts[i],",
        "SET spent = amounts[i],",
        "test_budgets_hold_to_the_last_micro",
    ),
    guard(
        "a-refusal-undoes-the-flush",
        "A flush that the guard refuses leaves no row behind.",
        "RAISE EXCEPTION 'the ledger refuses this flush' USING ERRCODE = 'HR001', DETAIL = refused::text;",
        "RETURN;",
        "test_a_refused_flush_leaves_nothing",
    ),
    guard(
        "each-campaign-is-judged",
        "One campaign that passes does not carry the others.",
        "IF cardinality(passed) <> cardinality(campaigns) THEN",
        "IF cardinality(passed) = 0 THEN",
        "test_a_refused_flush_leaves_nothing",
    ),
    Mutant(
        "unique-key",
        "An id is committed once, whatever Redis has forgotten.",
        [
            Edit(
                TABLES,
                "text,\n    UNIQUE (campaign_id, event_id, day)\n",
                "text\n",
            )
        ],
        [f"{CONTRACT}::test_a_repeated_id_is_refused_by_name"],
    ),
    Mutant(
        "budgets-reach-the-judge",
        "The change of a plan changes what the guard compares with.",
        [
            Edit(
                "engine/postgres/campaigns.py",
                '" FROM campaigns AS c WHERE c.id = $1 AND l.campaign_id = $1"',
                '" FROM campaigns AS c WHERE c.id = $1 AND l.campaign_id = $1 AND false"',
            )
        ],
        [f"{CONTRACT}::test_changes_rise_the_version_and_reach_the_judge"],
    ),
    Mutant(
        "a-recovery-raises-the-generation",
        "After a recovery's first step no older batch can commit.",
        [Edit("engine/postgres/recovery.py", "SET gen = gen + 1 FROM held", "SET gen = gen FROM held")],
        [f"{CONTRACT}::test_raising_a_generation_tells_the_ledger"],
    ),
    Mutant(
        "a-recovery-waits-in-order-of-campaign",
        "Recoveries and flushes never wait for each other in a circle.",
        [
            Edit(
                "engine/postgres/recovery.py",
                "ORDER BY campaign_id FOR NO KEY UPDATE",
                "ORDER BY campaign_id DESC FOR NO KEY UPDATE",
            )
        ],
        [f"{REAL}::test_generations_are_raised_in_order_of_campaign"],
    ),
    Mutant(
        "a-recovery-of-many-waits-for-nobody",
        "A flush that hangs holds up the recovery of its own campaigns only.",
        [Edit("engine/postgres/recovery.py", 'locked="SKIP LOCKED"', 'locked=""')],
        [f"{REAL}::test_rows_that_a_flush_holds_are_left_as_they_are"],
    ),
    Mutant(
        "a-look-up-asks-for-its-campaign",
        "The same id in another campaign is another event.",
        [
            Edit(
                "engine/postgres/recovery.py",
                "WHERE e.campaign_id = w.campaign_id\n"
                "                            AND e.event_id = w.event_id AND e.day = {day} LIMIT 1",
                "WHERE e.event_id = w.event_id AND e.day = {day} LIMIT 1",
            )
        ],
        [f"{CONTRACT}::test_a_look_up_is_of_one_campaign"],
    ),
]

OUTCOMES = [
    outcome(
        "commit-tag",
        "A 200 needs the command tag COMMIT.",
        '    if answer.tag == "ROLLBACK":\n        return NotRun("rolled back")\n    if answer.tag != "COMMIT":',
        "    if False:",
    ),
    outcome(
        "commit-with-a-warning",
        "A COMMIT that gave up waiting for its standby is unknown.",
        "    if answer.warning is not None:",
        "    if False:",
    ),
    outcome(
        "fatal-is-unknown",
        "FATAL and PANIC end a session at a point that nobody knows.",
        'if failure.severity != "ERROR" or failure.sqlstate.startswith(_UNCERTAIN):',
        "if failure.sqlstate.startswith(_UNCERTAIN):",
    ),
    outcome(
        "a-session-s-end-is-unknown",
        "An error about the connection says nothing of the commit.",
        'if failure.severity != "ERROR" or failure.sqlstate.startswith(_UNCERTAIN):',
        'if failure.severity != "ERROR":',
    ),
    outcome(
        "unique-violation-is-a-refusal",
        "A row that is there already is not this flush's.",
        "    causes = _causes(failure)\n",
        "    if failure.sqlstate == UNIQUE_VIOLATION:\n        return Committed()\n    causes = _causes(failure)\n",
    ),
    Mutant(
        "no-answer-of-postgres-is-unknown",
        "Once the flush is sent, a cut connection or a timeout is never 'it did not run'.",
        [Edit(FLUSH, "            if not begun:\n", "            if reply is None:\n")],
        [
            f"{REAL}::test_an_unanswered_commit_is_unknown",
            f"{REAL}::test_a_commit_without_an_answer_in_time_is_unknown",
        ],
    ),
    Mutant(
        "a-connection-after-trouble-is-closed",
        "The answer to one flush is not read as that of the next.",
        [
            Edit(
                FLUSH,
                "if self._session is not None and self._session.pgconn.transaction_status != TransactionStatus.IDLE:\n",
                "if False:\n",
            )
        ],
        [
            f"{REAL}::test_a_commit_without_an_answer_in_time_is_unknown",
            f"{REAL}::test_a_cancelled_flush_closes_its_connection",
        ],
    ),
    Mutant(
        "rows-cost-what-was-reserved",
        "The ledger and the events tell the same money.",
        [Edit(COPY, "        if amount != batch.amount_micros:\n", "        if False:\n")],
        [f"{REAL}::test_a_batch_that_does_not_add_up_never_runs"],
    ),
    Mutant(
        "one-generation-a-flush",
        "A batch is judged by its own generation and day.",
        [
            Edit(
                COPY,
                "if (of_campaign.generation, of_campaign.spend_day) != (batch.generation, batch.spend_day):",
                "if False:",
            )
        ],
        [f"{REAL}::test_a_batch_that_does_not_add_up_never_runs"],
    ),
    Mutant(
        "a-flush-waits-for-the-disk",
        "COMMIT means durable, whatever the database's default becomes.",
        [Edit(FLUSH, "SET synchronous_commit = on; SET statement", "SET statement")],
        [f"{REAL}::test_every_commit_waits_for_the_disk"],
    ),
    Mutant(
        "a-generation-waits-for-the-disk",
        "A generation that was raised stays raised after a crash.",
        [Edit("engine/postgres/database.py", '        "synchronous_commit": "on",\n', "")],
        [f"{REAL}::test_every_commit_waits_for_the_disk"],
    ),
    Mutant(
        "fsync",
        "A Postgres that may lose commits in a crash is refused.",
        [Edit(SAFETY, 'for name in ("fsync", "full_page_writes"):', "for name in ():")],
        [f"{VALUES}::test_an_unsafe_server_is_refused_by_name"],
    ),
    Mutant(
        "synchronous-commit",
        "A Postgres that answers before it has written is refused.",
        [Edit(SAFETY, 'if values["synchronous_commit"] == "off":', "if False:")],
        [f"{VALUES}::test_an_unsafe_server_is_refused_by_name"],
    ),
    Mutant(
        "postgres-is-the-primary",
        "A standby is refused.",
        [Edit(SAFETY, 'if values["in_recovery"] == "on":', "if False:")],
        [f"{VALUES}::test_an_unsafe_server_is_refused_by_name"],
    ),
    Mutant(
        "clock-is-compared",
        "An engine learns how far its clock is off from Postgres's.",
        [Edit("engine/postgres/engines.py", '(sent_us + heard_us) // 2 - row["now"]', "0")],
        [f"{REAL}::test_a_clock_that_is_off_is_told"],
    ),
]

MUTANTS = GUARDS + OUTCOMES
