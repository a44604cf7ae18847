"""The checker finds what is wrong: a judge that always says yes proves nothing."""

from __future__ import annotations

from typing import Any

from tests.faults.checker import Findings, Row, judge

PLAN = {"t": 0.0, "what": "plan", "campaign": 1, "spent": 0, "total_micros": 3_000, "daily_micros": 9_000, "cap": None}
DAY = "2026-01-01"


def sent(event_id: str, *answers: str, start: float = 1.0) -> list[dict[str, Any]]:
    """One attempt for each answer, one after the other."""
    records: list[dict[str, Any]] = []
    for index, answer in enumerate(answers):
        attempt = f"{event_id}-{start}-{index}"
        at = start + index
        records += [
            {"t": at, "what": "invoke", "attempt": attempt, "id": event_id, "campaign": 1, "user": "ada",
             "type": "impression"},
            {"t": at + 0.5, "what": answer, "attempt": attempt, "id": event_id, "reason": "total_budget"},
        ]  # fmt: skip
    return records


def row(event_id: str, cost: int = 1_000, user: str = "ada", day: str = DAY) -> Row:
    """What the table has of an event."""
    return (1, user, 0, event_id, cost, day)


def found(records: list[dict[str, Any]], *rows: Row, plans: tuple[dict[str, Any], ...] = (PLAN,)) -> dict[str, Any]:
    """What the checker finds that is not as it should be; the books are the rows' sum."""
    spent = sum(each[4] for each in rows)
    findings = judge([*plans, *records], rows, [(1, spent, spent)])
    clean = Findings(
        acknowledged=findings.acknowledged, others_seconds=findings.others_seconds, examples=findings.examples
    )  # fmt: skip
    return {name: value for name, value in vars(findings).items() if value != getattr(clean, name)}


def test_what_is_as_it_should_be_is_not_complained_of() -> None:
    """Accepted and there; refused and not there; a repeat that is acknowledged again."""
    assert found(sent("a", "ok", "ok") + sent("b", "fail"), row("a")) == {}


def test_an_acknowledged_event_without_a_row_is_lost() -> None:
    """Whatever else was answered."""
    assert found(sent("a", "info", "ok")) == {"lost": 1}


def test_an_id_with_two_rows_is_double() -> None:
    """On whatever day."""
    assert found(sent("a", "ok"), row("a"), row("a", day="2026-01-02")) == {"double": 1}


def test_a_row_that_nobody_sent_is_a_phantom() -> None:
    """As is one that was sent with another user."""
    assert found([], row("a")) == {"phantom": 1}
    assert found(sent("a", "ok"), row("a", user="eve")) == {"phantom": 1}


def test_a_row_whose_every_attempt_was_refused_is_a_phantom() -> None:
    """Nobody may be charged for what was refused."""
    assert found(sent("a", "fail"), row("a")) == {"phantom": 1}


def test_a_refusal_after_an_acknowledgement_is_a_denial() -> None:
    """A retry of what was accepted is a duplicate."""
    assert found(sent("a", "ok", "fail"), row("a")) == {"denied": 1}


def test_micros_above_the_budget_are_overspent() -> None:
    """In all, or on a day."""
    records = [record for name in "abcd" for record in sent(name, "ok")]
    rows = [row(name) for name in "abcd"]
    assert found(records, *rows) == {"overspend_micros": 1_000}
    daily = {**PLAN, "total_micros": 9_000, "daily_micros": 2_500}
    assert found(records, *rows, plans=(daily,)) == {"overspend_micros": 1_500}


def test_what_was_spent_before_a_budget_was_lowered_is_not_overspent() -> None:
    """And nothing may be added to it."""
    records = sent("a", "ok") + sent("b", "ok")
    lower = {**PLAN, "total_micros": 500, "spent": 2_000}
    assert found(records, row("a"), row("b"), plans=(PLAN, lower)) == {}
    assert found([*records, *sent("c", "ok")], row("a"), row("b"), row("c"), plans=(PLAN, lower)) == {
        "overspend_micros": 1_000
    }


def test_impressions_above_the_largest_cap_are_over_cap() -> None:
    """For each user and day by itself."""
    capped = {**PLAN, "cap": 1}
    records = [record for name in "abc" for record in sent(name, "ok")]
    rows = (row("a"), row("b"), row("c", day="2026-01-02"))
    assert found(records, *rows, plans=(capped,)) == {"over_cap": 1}


def test_books_that_are_not_the_sum_of_the_rows_are_unbalanced() -> None:
    """Ledger or rollup."""
    assert judge([PLAN, *sent("a", "ok")], [row("a")], [(1, 1_000, 999)]).unbalanced == 1
    assert judge([PLAN, *sent("a", "ok")], [row("a")], [(1, 999, 1_000)]).unbalanced == 1


def test_what_was_never_answered_is_indeterminate() -> None:
    """There or not, it is no fault; it is counted."""
    assert found(sent("a", "info") + sent("b", "info"), row("a")) == {"indeterminate": 2, "committed": 1}


def test_recovery_lasts_until_the_last_event_that_waited_has_its_verdict() -> None:
    """Events that came later don't count."""
    records = [
        *sent("a", "info", start=1.0),
        {"t": 2.0, "what": "clear"},
        *sent("a", "ok", start=4.0),
        *sent("b", "ok", start=9.0),
    ]
    assert found(records, row("a"), row("b")) == {"recovery_seconds": 2.5}


def test_others_are_the_campaigns_that_a_fault_names_and_are_measured_from_its_beginning() -> None:
    """Their longest wait is told, be it during the fault; that of a campaign with something to recover is not."""
    early, late = (
        [{**record, "campaign": 2} if "campaign" in record else record for record in sent(name, "ok", start=start)]
        for name, start in (("b", 1.8), ("c", 2.5))
    )
    fault = {"t": 2.0, "what": "fault", "others": [2]}
    records = [*sent("a", "info", start=1.0), fault, *early, *late, {"t": 4.0, "what": "clear"}]
    records = [*records, *sent("a", "ok", start=5.0)]
    rows = [row("a"), *((2, *row(name)[1:]) for name in "bc")]
    found = judge([PLAN, {**PLAN, "campaign": 2}, *records], rows, [(1, 1_000, 1_000), (2, 2_000, 2_000)])
    assert (found.recovery_seconds, found.others_seconds) == (1.5, 0.5)
    only_early = [record for record in records if record not in late]
    found = judge([PLAN, {**PLAN, "campaign": 2}, *only_early], rows[:2], [(1, 1_000, 1_000), (2, 1_000, 1_000)])
    assert round(found.others_seconds, 1) == 0.3
