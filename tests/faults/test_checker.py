"""The checker finds what is wrong: a judge that always says yes proves nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from tests.faults.checker import Book, Findings, Row, judge

DAY = date(2026, 1, 1)
NEXT_DAY = date(2026, 1, 2)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
START = {"t": 0.0, "what": "start", "wall": NOON}
PLAN = {
    "t": 0.0, "what": "plan", "asked": 0.0, "campaign": 1, "total_micros": 3_000, "daily_micros": 9_000, "cap": None,
    "model": "cpm", "price_micros": 1_000_000, "zone": "UTC", "active": True, "spent": 0, "day": "1970-01-01",
    "today_micros": 0,
}  # fmt: skip
MEASURES = ("acknowledged", "indeterminate", "committed", "recovery_seconds", "others_seconds", "examples")


def plan(at: float, **fields: Any) -> dict[str, Any]:
    """A plan that was asked for half a second before it was acknowledged."""
    return {**PLAN, "t": at, "asked": at - 0.5, **fields}


def sent(event_id: str, *answers: str, start: float = 1.0, **fields: Any) -> list[dict[str, Any]]:
    """One attempt for each answer, one after the other; an answer may have its word with it, as in `fail paced`."""
    records: list[dict[str, Any]] = []
    for index, answer in enumerate(answers):
        what, _, word = answer.partition(" ")
        attempt = f"{event_id}-{start}-{index}"
        at = start + index
        words = {"ok": {"status": word or "duplicate"}, "fail": {"reason": word or "total_budget"}}.get(what, {})
        records += [
            {"t": at, "what": "invoke", "attempt": attempt, "id": event_id, "campaign": 1, "user": "ada",
             "type": "impression", **fields},
            {"t": at + 0.5, "what": what, "attempt": attempt, "id": event_id, **words},
        ]  # fmt: skip
    return records


def accepted(*names: str, start: float = 1.0, **fields: Any) -> list[dict[str, Any]]:
    """Events that were all accepted at the same time."""
    return [record for name in names for record in sent(name, "ok accepted", start=start, **fields)]


def row(event_id: str, cost: int = 1_000, user: str = "ada", day: date = DAY) -> Row:
    """What the table has of an impression."""
    return Row(1, user, 0, event_id, cost, day)


def rows(names: str) -> list[Row]:
    """One for each letter."""
    return [row(name) for name in names]


def book(*of: Row, campaign: int = 1) -> Book:
    """What the books say when they are the rows' sum."""
    day = max((each.spend_day for each in of), default=date(1970, 1, 1))
    spent = sum(each.cost_micros for each in of)
    return Book(campaign, spent, spent, day, sum(each.cost_micros for each in of if each.spend_day == day))


def found(
    records: list[dict[str, Any]], *stored: Row, plans: tuple[dict[str, Any], ...] = (PLAN,), head: Any = START
) -> dict[str, Any]:
    """The violations that the checker finds; the books are the rows' sum."""
    history = sorted([head, *plans, *records], key=lambda record: float(record["t"]))
    findings = judge(history, stored, [book(*stored)])
    clean = vars(Findings())
    return {name: count for name, count in vars(findings).items() if name not in MEASURES and count != clean[name]}


def test_what_is_as_it_should_be_is_not_complained_of() -> None:
    """Accepted and there; refused and not there; a repeat that is acknowledged again."""
    tight = {**PLAN, "total_micros": 1_000}
    records = sent("a", "ok accepted", "ok duplicate") + sent("b", "fail total_budget", start=1.6)
    assert found(records, row("a"), plans=(tight,)) == {}


def test_an_acknowledged_event_without_a_row_is_lost() -> None:
    """Whatever else was answered."""
    assert found(sent("a", "info", "ok")) == {"lost": 1}


def test_an_id_with_two_rows_is_double() -> None:
    """On whatever day."""
    assert found(accepted("a"), row("a"), row("a")) == {"double": 1}


def test_a_row_that_nobody_sent_is_a_phantom() -> None:
    """As is one that was sent with another user."""
    assert found([], row("a")) == {"phantom": 1}
    assert found(accepted("a"), row("a", user="eve")) == {"phantom": 1}


def test_a_row_whose_every_attempt_was_refused_is_a_phantom() -> None:
    """Nobody may be charged for what was refused."""
    records = sent("a", "fail inactive")
    assert found(records, row("a"), plans=(PLAN, plan(0.5, active=False))) == {"phantom": 1}


def test_a_refusal_after_an_acknowledgement_is_a_denial() -> None:
    """A retry of what was accepted is a duplicate, also when the budget is used up."""
    tight = {**PLAN, "total_micros": 1_000}
    assert found(sent("a", "ok accepted", "fail") + sent("b", "fail"), row("a"), plans=(tight,)) == {"denied": 1}


def test_an_acknowledged_event_is_invalid_only_by_a_clock_that_was_moved() -> None:
    """By the contract `invalid` is told first; without a wrong clock, nothing that was valid is invalid."""
    records = sent("a", "ok accepted", "fail invalid")
    moved = {"t": 0.5, "what": "clock", "whose": "first", "seconds": 900.0}
    assert found(records, row("a")) == {"denied": 1, "unfounded": 1}
    assert found([moved, *records], row("a")) == {}


def test_an_id_is_accepted_once() -> None:
    """Of copies sent at once one may hear it, and any number `duplicate`."""
    copies = sent("a", "ok accepted") + sent("a", "ok duplicate", start=1.1) + sent("a", "ok duplicate", start=1.2)
    assert found(copies, row("a")) == {}
    assert found(copies + sent("a", "ok accepted", start=1.3), row("a")) == {"twice": 1}


def test_what_was_sent_once_is_no_duplicate() -> None:
    """Unless an attempt before it may have recorded it."""
    assert found(sent("a", "ok duplicate"), row("a")) == {"twice": 1}
    assert found(sent("a", "info", "ok duplicate"), row("a")) == {}


@pytest.mark.parametrize("reason", ["total_budget", "daily_budget", "frequency_capped", "inactive", "paced", "invalid"])
def test_a_refusal_needs_a_plan_that_refuses(reason: str) -> None:
    """With room in every budget, no cap and an active campaign there is nothing to refuse."""
    assert found(sent("a", f"fail {reason}")) == {"unfounded": 1}


def test_a_refusal_that_a_plan_may_have_caused_is_sound() -> None:
    """Everything that was sent before counts as reserved, and a plan from the moment when it was asked for."""
    before = accepted("a")
    for reason, fields in (
        ("total_budget", {"total_micros": 1_999}),
        ("daily_budget", {"daily_micros": 1_999}),
        ("frequency_capped", {"cap": 1}),
        ("inactive", {"active": False}),
    ):
        changed = plan(4.4, **fields, spent=1_000, day=str(DAY), today_micros=1_000)
        at = changed["asked"] - 0.4
        assert found(before + sent("b", f"fail {reason}", start=at), row("a"), plans=(PLAN, changed)) == {}
        early = sent("b", f"fail {reason}", start=at - 0.2)
        assert found(before + early, row("a"), plans=(PLAN, changed)) == {"unfounded": 1}


def test_a_free_event_has_no_budget_that_refuses_it() -> None:
    """A click under cpm, when the impressions have used it up."""
    records = accepted("a", "b", "c") + sent("d", "fail total_budget", start=2.0, type="click")
    assert found(records, *rows("abc")) == {"unfounded": 1}


def test_a_row_costs_what_its_plan_says() -> None:
    """A thousandth of the price, half up, of an impression under cpm; a click is free."""
    odd = {**PLAN, "price_micros": 1_500}
    assert found(accepted("a"), row("a", cost=2), plans=(odd,)) == {}
    assert found(accepted("a"), row("a", cost=1), plans=(odd,)) == {"mispriced": 1}
    assert found(accepted("a"), row("a", cost=0)) == {"mispriced": 1}
    click = [{**record, "type": "click"} if "type" in record else record for record in accepted("a")]
    assert found(click, row("a", cost=0)._replace(kind=1)) == {}
    assert found(click, row("a")._replace(kind=1)) == {"mispriced": 1}


def test_a_row_costs_what_was_in_force_while_it_was_under_way() -> None:
    """The price before a change for what was sent before it, and no longer some time after it."""
    dearer = plan(4.0, price_micros=2_000_000)
    for start, costs in ((1.0, {1_000}), (3.4, {1_000, 2_000}), (4.5, {1_000, 2_000}), (9.0, {2_000})):
        fair = {
            cost for cost in (1_000, 2_000)
            if not found(accepted("a", start=start), row("a", cost=cost), plans=(PLAN, dearer))
        }  # fmt: skip
        assert fair == costs, start
    # Nobody knows when what was never answered was reserved.
    assert found(sent("a", "info"), row("a", cost=2_000), plans=(PLAN, dearer)) == {}


def test_a_row_is_on_a_day_that_its_zone_had() -> None:
    """Between its first attempt and its verdict."""
    assert found(accepted("a"), row("a", day=NEXT_DAY)) == {"misdated": 1}
    assert found(accepted("a"), row("a", day=date(2025, 12, 31))) == {"misdated": 1}
    east = {**PLAN, "zone": "Pacific/Kiritimati"}
    assert found(accepted("a"), row("a", day=NEXT_DAY), plans=(east,)) == {}
    assert found(accepted("a"), row("a"), plans=(east,)) == {"misdated": 1}
    late = {**START, "wall": NOON + 43_200 - 10}
    assert found(accepted("a", start=20.0), row("a", day=NEXT_DAY), head=late) == {}
    assert found(accepted("a", start=20.0), row("a"), head=late) == {"misdated": 1}


def test_a_clock_that_was_moved_moves_days() -> None:
    """Forward for good, once it was ahead; back only as long as it was behind."""
    ahead, behind, right = ({"t": at, "what": "clock", "whose": "first", "seconds": seconds}
                            for at, seconds in ((0.1, 86_400.0), (0.1, -86_400.0), (0.9, 0.0)))  # fmt: skip
    late = accepted("a", start=9.0)
    assert found([ahead, *accepted("a")], row("a", day=NEXT_DAY)) == {}
    assert found([ahead, right, *late], row("a", day=NEXT_DAY)) == {}
    assert found([behind, *late], row("a", day=date(2025, 12, 31))) == {}
    assert found([behind, right, *late], row("a", day=date(2025, 12, 31))) == {"misdated": 1}


def test_micros_above_the_budget_are_overspent() -> None:
    """In all, or on a day."""
    assert found(accepted(*"abcd"), *rows("abcd")) == {"overspend_micros": 1_000}
    daily = {**PLAN, "total_micros": 9_000, "daily_micros": 2_500}
    assert found(accepted(*"abcd"), *rows("abcd"), plans=(daily,)) == {"overspend_micros": 1_500}


def test_what_was_spent_before_a_budget_was_lowered_is_not_overspent() -> None:
    """And nothing may be added to it: in all, or on a day."""
    spent = {"spent": 2_000, "day": str(DAY), "today_micros": 2_000}
    for lower in (plan(3.0, **spent, total_micros=500), plan(3.0, **spent, daily_micros=500)):
        assert found(accepted("a", "b"), *rows("ab"), plans=(PLAN, lower)) == {}
        more = accepted("a", "b") + accepted("c", start=4.0)
        assert found(more, *rows("abc"), plans=(PLAN, lower)) == {"overspend_micros": 1_000}


def test_a_daily_budget_is_lowered_for_the_days_to_come() -> None:
    """What was spent on the day before says nothing about the next."""
    head = {**START, "wall": NOON + 43_200 - 10}
    lower = plan(3.0, spent=2_000, day=str(DAY), today_micros=2_000, daily_micros=1_000)
    records = accepted("a", "b") + accepted("c", start=20.0)
    next_day = row("c", day=NEXT_DAY)
    assert found(records, *rows("ab"), next_day, plans=(PLAN, lower), head=head) == {}
    lowest = {**lower, "daily_micros": 500}
    assert found(records, *rows("ab"), next_day, plans=(PLAN, lowest), head=head) == {"overspend_micros": 500}


def test_what_a_ledger_had_spent_when_a_plan_changed_was_within_the_plan_before() -> None:
    """What was overspent is not excused by a budget that is changed later."""
    raised = plan(3.0, spent=4_000, day=str(DAY), today_micros=4_000, total_micros=3_500)
    assert found(accepted(*"abcd"), *rows("abcd"), plans=(PLAN, raised)) == {"overspend_micros": 500}


def test_impressions_above_the_cap_are_over_cap() -> None:
    """For each user and day by itself, in whatever order they were reserved."""
    capped = {**PLAN, "cap": 1}
    records = accepted("a", "b", "c")
    assert found(records, *rows("abc"), plans=(capped,)) == {"over_cap": 2}
    records += accepted("d", user="eve") + accepted("e", start=43_300.0)
    others = [row("d", user="eve"), row("e", day=NEXT_DAY)]
    wide = {**capped, "total_micros": 90_000}
    assert found(records, *rows("abc"), *others, plans=(wide,)) == {"over_cap": 2}


def test_a_cap_that_is_set_counts_what_was_shown_before_it() -> None:
    """And lets through what was under way."""
    wide = {**PLAN, "total_micros": 90_000}
    capped = {**plan(3.0, cap=2), "total_micros": 90_000}
    before, after = accepted("a", "b", "c"), accepted("d", start=9.0)
    assert found(before, *rows("abc"), plans=(wide, capped)) == {}
    assert found(before + accepted("d", start=2.9), *rows("abcd"), plans=(wide, capped)) == {}
    assert found(before + after, *rows("abcd"), plans=(wide, capped)) == {"over_cap": 2}
    later = accepted("d", "e", "f", start=9.0)
    assert found(sent("a", "info") + later, *rows("adef"), plans=(wide, capped)) == {"over_cap": 1}


def test_books_that_are_not_the_sum_of_the_rows_are_unbalanced() -> None:
    """Ledger, rollup, or what was spent on the day; one book for each campaign."""
    history = [START, PLAN, *accepted("a")]
    sound = book(row("a"))
    for wrong in (sound._replace(spent=999), sound._replace(rolled_up=999), sound._replace(today_micros=999)):
        assert judge(history, rows("a"), [wrong]).unbalanced == 1
    assert judge(history, rows("a"), [sound]).unbalanced == 0
    assert judge(history, rows("a"), []).unbalanced == 1


def test_every_name_that_counts_is_a_violation() -> None:
    """A finding that is left out of the sum is no finding."""
    names = [name for name in vars(Findings()) if name not in MEASURES]
    for name in names:
        findings = Findings()
        findings.count(name, "wrong", 1)
        assert findings.violations == 1, name
    findings = Findings()
    findings.count("unmet", "no answer", 1, 2)
    assert (findings.unmet, findings.violations, findings.examples) == (2, 2, ["unmet, no answer: 1"])


def test_what_was_never_answered_is_indeterminate() -> None:
    """There or not, it is no fault; it is counted."""
    findings = judge([START, PLAN, *sent("a", "info"), *sent("b", "info")], rows("a"), [book(row("a"))])
    assert (findings.violations, findings.indeterminate, findings.committed) == (0, 2, 1)


def test_recovery_lasts_until_the_last_event_that_waited_has_its_verdict() -> None:
    """Events that came later don't count."""
    records = [
        START, PLAN, *sent("a", "info"), {"t": 2.0, "what": "clear"}, *sent("a", "ok", start=4.0),
        *sent("b", "info", "ok", start=9.0),
    ]  # fmt: skip
    findings = judge(records, rows("ab"), [book(*rows("ab"))])
    assert findings.violations == 0, findings
    assert findings.recovery_seconds == 2.5


@pytest.mark.parametrize(("names", "longest"), [("b", 0.25), ("bc", 0.5)])
def test_others_are_the_campaigns_that_a_fault_names_and_are_measured_from_its_beginning(
    names: str, longest: float
) -> None:
    """Their longest wait is told, be it during the fault; that of a campaign with something to recover is not."""
    others = [record for name in names for record in accepted(name, start={"b": 1.75, "c": 2.5}[name], campaign=2)]
    records = [
        START, PLAN, {**PLAN, "campaign": 2}, *sent("a", "info"), {"t": 2.0, "what": "fault", "others": [2]}, *others,
        {"t": 4.0, "what": "clear"}, *sent("a", "ok", start=5.0),
    ]  # fmt: skip
    stored = [row(name)._replace(campaign=2) for name in names]
    findings = judge(records, [*rows("a"), *stored], [book(*rows("a")), book(*stored, campaign=2)])
    assert findings.violations == 0, findings
    assert (findings.recovery_seconds, findings.others_seconds) == (1.5, longest)


PAST = {
    "t": 0.2,
    "what": "past",
    "campaign": 1,
    "first_tag": 1 << 40,
    "spent": 2_500,
    "day": str(DAY),
    "today_micros": 500,
}


def test_rows_of_before_count_in_the_books_and_for_the_budgets() -> None:
    """They are not among the rows that are judged one by one; their sums are in the journal."""
    history = [START, PLAN, PAST, *accepted("a")]
    sound = Book(1, 3_500, 3_500, DAY, 1_500)
    roomy = {**PLAN, "total_micros": 3_500}
    assert judge([START, roomy, PAST, *accepted("a")], rows("a"), [sound]).violations == 0
    assert judge(history, rows("a"), [sound]).overspend_micros == 500
    for wrong in (Book(1, 1_000, 1_000, DAY, 1_000), Book(1, 3_500, 3_500, DAY, 3_500)):
        assert judge(history, rows("a"), [wrong]).unbalanced == 1
