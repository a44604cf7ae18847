"""The judge of a faulty hour: reads the journal and Postgres, and shares no code with the engine.

`python -m tests.faults.checker JOURNAL POSTGRES_URL` prints what it found.

- **lost**: acknowledged, and not a row. **double**: an id with more than one row.
- **phantom**: a row that nobody sent, that differs from what was sent, or whose every attempt was refused.
- **denied**: refused after it had been acknowledged (as invalid only where clocks were moved: that is told first).
- **twice**: an id that was answered `accepted` twice, or `duplicate` when nothing had been sent before.
- **unfounded**: refused, though no plan that may have been in force can have been a reason.
- **mispriced**: rows whose cost is not that of a plan that may have been in force when they were reserved.
- **misdated**: rows on a spend day that the campaign's zone did not have between their first attempt and their verdict.
- **overspend**: micros above the budget that was in force (or above what was spent already when it was lowered), in
  all or on a spend day. **over cap**: impressions of a user and day above the cap that they must have met.
- **unbalanced**: campaigns whose ledger row or rollup is missing, or not the sum of their rows.
- **unmet**: campaigns that don't answer as their books and plan say when all is calm (tests/faults/probe.py).
- **indeterminate**: attempts without an answer, and no other attempt told what became of the event; `committed` of
  these are rows.
- **recovery**: from the end of the fault until the last event that was waiting then had its verdict, in seconds.
  **others**: the longest wait for a verdict, from the beginning of the fault on, in campaigns that it does not concern
  (the journal says which).
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.faults.history import Attempt, Event, History, Plan, read_journal

EVENT_TYPES = ("impression", "click", "conversion")
FOREVER = float("inf")
TAG_BITS = 40  # of a tag count within one engine's, or one history's


class Row(NamedTuple):
    """What the table has of an event."""

    campaign: int
    user: str
    kind: int
    event_id: str
    cost_micros: int
    spend_day: date


class Book(NamedTuple):
    """What ledger and rollup have of a campaign."""

    campaign: int
    spent: int
    rolled_up: int
    day: date
    today_micros: int


@dataclass
class Findings:
    """What the checker prints; all up to `unmet` must be zero, but for `acknowledged`, which must not."""

    acknowledged: int = 0
    lost: int = 0
    double: int = 0
    phantom: int = 0
    denied: int = 0
    twice: int = 0
    unfounded: int = 0
    mispriced: int = 0
    misdated: int = 0
    overspend_micros: int = 0
    over_cap: int = 0
    unbalanced: int = 0
    unmet: int = 0
    indeterminate: int = 0
    committed: int = 0
    recovery_seconds: float = 0.0
    others_seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """Whether a promise was broken, and how often."""
        return (
            self.lost + self.double + self.phantom + self.denied + self.twice + self.unfounded + self.mispriced
            + self.misdated + self.overspend_micros + self.over_cap + self.unbalanced + self.unmet
        )  # fmt: skip

    def note(self, what: str, of: object) -> None:
        """Keep the first few examples."""
        if len(self.examples) < 8:
            self.examples.append(f"{what}: {of}")

    def count(self, name: str, what: str, of: object, number: int = 1) -> None:
        """One more violation of this name, or so many."""
        setattr(self, name, getattr(self, name) + number)
        self.note(f"{name}, {what}", of)


def check(journal: Path, db_url: str) -> Findings:
    """Judge one journal by what Postgres has."""
    with open(journal) as file:
        records = [json.loads(line) for line in file]
    campaigns = sorted({record["campaign"] for record in records if record["what"] == "plan"})
    # Rows that were laid in before the journal began: their sums are in it (tests/faults/past.py).
    first_tag = next((record["first_tag"] for record in records if record["what"] == "past"), 0)
    with psycopg.connect(db_url) as connection:
        rows = connection.execute(
            "SELECT campaign_id, user_id, event_type, event_id::text, cost_micros, spend_day FROM events"
            " WHERE campaign_id = ANY(%s) AND (batch < %s OR batch >= %s)",
            (campaigns, first_tag, first_tag + (1 << TAG_BITS) if first_tag else 0),
        ).fetchall()
        books = connection.execute(
            "SELECT campaign_id, spent, coalesce((SELECT sum(spend) FROM rollup WHERE rollup.campaign_id ="
            " ledger.campaign_id), 0), day, today FROM ledger WHERE campaign_id = ANY(%s)",
            (campaigns,),
        ).fetchall()
    return judge(records, [Row(*row) for row in rows], [Book(*book) for book in books])


def judge(records: Iterable[Mapping[str, Any]], rows: Sequence[Row], books: Sequence[Book]) -> Findings:
    """What journal, rows and books say together."""
    history = read_journal(records)
    findings = Findings()
    _check_rows(findings, history, rows)
    _check_answers(findings, history, {row.event_id for row in rows})
    _check_refusals(findings, history)
    _check_books(findings, history, rows, books)
    _check_budgets(findings, history, rows)
    _check_caps(findings, history, rows)
    _measure_recovery(findings, history)
    return findings


# --- rows against what was sent ---


def _check_rows(findings: Findings, history: History, rows: Sequence[Row]) -> None:
    for event_id, copies in Counter(row.event_id for row in rows).items():
        if copies > 1:
            findings.count("double", "rows of one id", event_id)
    for row in rows:
        event = history.events.get(row.event_id)
        if event is None or (event.campaign, event.user, event.kind) != (row.campaign, row.user, EVENT_TYPES[row.kind]):
            findings.count("phantom", "not as it was sent", row)
            continue
        if event.refused_every_time:
            findings.count("phantom", "refused every time", row)
        _check_cost_and_day(findings, history, event, row)


def _check_cost_and_day(findings: Findings, history: History, event: Event, row: Row) -> None:
    start, end = _reserved_between(event)
    plans = history.in_force(row.campaign, start, end)
    if row.cost_micros not in {plan.cost_micros(event.kind) for plan in plans}:
        findings.count("mispriced", "at no price in force", row)
    first, last = history.days(plans[0].zone, start, end)
    if not first <= row.spend_day <= last:
        findings.count("misdated", f"not from {first} to {last}", row)


def _reserved_between(event: Event) -> tuple[float, float]:
    """When the reservation was made that paid for an event's row."""
    return event.first_invoke, FOREVER if event.ok_since is None else event.ok_since


# --- answers ---


def _check_answers(findings: Findings, history: History, stored: set[str]) -> None:
    for event_id, event in history.events.items():
        if event.ok_since is not None:
            findings.acknowledged += 1
            if event_id not in stored:
                findings.count("lost", "acknowledged, and no row", (event_id, event))
            _check_repeats(findings, history, event_id, event)
        elif event.settled is None:
            findings.indeterminate += 1
            findings.committed += event_id in stored


def _check_repeats(findings: Findings, history: History, event_id: str, event: Event) -> None:
    assert event.ok_since is not None
    words = Counter(attempt.word for attempt in event.attempts.values() if attempt.answer == "ok")
    # One reservation paid for it: who joins it under way, or finds it in Postgres, hears `duplicate`.
    if words["accepted"] > 1:
        findings.count("twice", "accepted more than once", (event_id, event))
    if words["duplicate"] and len(event.attempts) == 1:
        findings.count("twice", "a duplicate of nothing", (event_id, event))
    for attempt in event.attempts.values():
        excused = attempt.word == "invalid" and history.clocks_moved
        if attempt.answer == "fail" and attempt.asked > event.ok_since and not excused:
            findings.count("denied", attempt.word, (event_id, event))
            return


# --- refusals ---

Sent = Mapping[tuple[int, str, str], list[float]]


def _check_refusals(findings: Findings, history: History) -> None:
    sent = _sent(history)
    for event_id, event in history.events.items():
        for attempt in event.attempts.values():
            if attempt.answer == "fail" and not _founded(history, sent, event, attempt):
                findings.count("unfounded", attempt.word, (event_id, event))


def _sent(history: History) -> Sent:
    """When events were sent first, in order: by campaign and kind, of a user or of all ("")."""
    sent: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for event in history.events.values():
        for user in ("", event.user):
            sent[event.campaign, event.kind, user].append(event.first_invoke)
    for times in sent.values():
        times.sort()
    return sent


def _founded(history: History, sent: Sent, event: Event, attempt: Attempt) -> bool:
    """Whether a plan may have been in force that refuses this, with all that was sent by then counted as reserved."""
    plans = history.in_force(event.campaign, attempt.asked, attempt.told)
    cost_micros = max(plan.cost_micros(event.kind) for plan in history.plans[event.campaign])
    most_micros = cost_micros * bisect_left(sent[event.campaign, event.kind, ""], attempt.told)
    match attempt.word:
        case "invalid":
            return history.clocks_moved
        case "inactive":
            return any(not plan.active for plan in plans)
        case "total_budget":
            return any(most_micros > plan.total_micros for plan in plans)
        case "daily_budget":
            return any(most_micros > plan.daily_micros for plan in plans)
        case "frequency_capped":
            others = bisect_left(sent[event.campaign, event.kind, event.user], attempt.told) - 1
            caps = [plan.cap for plan in plans if plan.cap is not None]
            return event.kind == "impression" and any(others >= cap for cap in caps)
    return False


# --- money ---


def _check_books(findings: Findings, history: History, rows: Sequence[Row], books: Sequence[Book]) -> None:
    spent: dict[int, int] = defaultdict(int)
    days: dict[tuple[int, date], int] = defaultdict(int)
    for campaign, before in history.before.items():
        spent[campaign] += before.spent
        days[campaign, before.day] += before.today_micros
    for row in rows:
        spent[row.campaign] += row.cost_micros
        days[row.campaign, row.spend_day] += row.cost_micros
    by_campaign = {book.campaign: book for book in books}
    for campaign in history.plans:
        book = by_campaign.get(campaign)
        if book is None:
            findings.count("unbalanced", "no ledger row", campaign)
        elif not book.spent == book.rolled_up == spent[campaign] or book.today_micros != days[campaign, book.day]:
            findings.count("unbalanced", f"rows say {spent[campaign]}, {days[campaign, book.day]} on the day", book)


def _check_budgets(findings: Findings, history: History, rows: Sequence[Row]) -> None:
    amounts: dict[int, dict[date, int]] = {campaign: defaultdict(int) for campaign in history.plans}
    for campaign, before in history.before.items():
        amounts[campaign][before.day] += before.today_micros
        amounts[campaign][date.min] += before.spent - before.today_micros  # of any day before
    for row in rows:
        amounts[row.campaign][row.spend_day] += row.cost_micros
    for campaign, plans in history.plans.items():
        _check_total(findings, plans, sum(amounts[campaign].values()))
        for day, amount_micros in amounts[campaign].items():
            _check_day(findings, plans, day, amount_micros)


def _check_total(findings: Findings, plans: Sequence[Plan], amount_micros: int) -> None:
    limit_micros = 0
    for plan in plans:
        # What is spent already stays spent when a budget is lowered.
        _count_overspend(findings, plan.spent - max(limit_micros, plan.total_micros), plan)
        limit_micros = max(plan.total_micros, plan.spent)
    _count_overspend(findings, amount_micros - limit_micros, plans[-1])


def _check_day(findings: Findings, plans: Sequence[Plan], day: date, amount_micros: int) -> None:
    limit_micros = 0
    for plan in plans:
        if plan.day < day:  # nothing was spent on that day yet
            limit_micros = plan.daily_micros
        elif plan.day == day:
            _count_overspend(findings, plan.today_micros - max(limit_micros, plan.daily_micros), plan)
            limit_micros = max(plan.daily_micros, plan.today_micros)
        else:  # it may have been made just before the day ended
            limit_micros = max(limit_micros, plan.daily_micros)
            break
    _count_overspend(findings, amount_micros - limit_micros, (day, plans[-1]))


def _count_overspend(findings: Findings, above_micros: int, where: object) -> None:
    if above_micros > 0:
        findings.count("overspend_micros", f"{above_micros} above the budget", where, above_micros)


# --- caps ---


class Shown(NamedTuple):
    """One impression: reserved between these times, under a cap of at most so many."""

    start: float
    end: float
    cap: float


def _check_caps(findings: Findings, history: History, rows: Sequence[Row]) -> None:
    seen: dict[tuple[int, str, date], list[Shown]] = defaultdict(list)
    for row in rows:
        event = history.events.get(row.event_id)
        if event is not None and event.kind == "impression":
            start, end = _reserved_between(event)
            caps = [plan.cap for plan in history.in_force(row.campaign, start, end)]
            cap = max(FOREVER if cap is None else cap for cap in caps)
            seen[row.campaign, row.user, row.spend_day].append(Shown(start, end, cap))
    for user, impressions in seen.items():
        above = max(_above_cap(impressions, each) for each in impressions)
        if above > 0:
            findings.count("over_cap", f"{above} too many", (user, impressions), above)


def _above_cap(impressions: Sequence[Shown], first: Shown) -> int:
    """How many were shown too many, among those from this one on that met no larger cap.

    Whichever of these was reserved last has met all the others, and all that were there before this one was sent.
    """
    if first.cap == FOREVER:
        return 0
    capped = sum(each.start >= first.start and each.cap <= first.cap for each in impressions)
    before = sum(each.end < first.start for each in impressions)
    return capped + before - int(first.cap)


# --- times ---


def _measure_recovery(findings: Findings, history: History) -> None:
    settled = [(event, event.settled) for event in history.events.values() if event.settled is not None]
    for clear in history.clears:
        waited = [end - clear for event, end in settled if event.first_invoke < clear < end]
        findings.recovery_seconds = max([findings.recovery_seconds, *waited])
    for begin, others in history.faults:
        waited = [
            end - max(event.first_invoke, begin) for event, end in settled if event.campaign in others and end > begin
        ]
        findings.others_seconds = max([findings.others_seconds, *waited])


if __name__ == "__main__":
    found = check(Path(sys.argv[1]), sys.argv[2])
    print(found)
    sys.exit(1 if found.violations else 0)
