"""The judge of a faulty hour: reads the journal and Postgres, and shares no code with the engine.

`python -m tests.faults.checker JOURNAL POSTGRES_URL` prints what it found.

- **lost**: acknowledged, and not a row. **double**: an id with more than one row.
- **phantom**: a row that nobody sent, that differs from what was sent, or whose every attempt was refused.
- **denied**: refused after it had been acknowledged, and not as invalid.
- **overspend**: micros above the budget that was in force (or above what was spent already when it was lowered), in
  all or on a spend day. **over cap**: impressions of a user and day above the largest cap that was in force.
- **unbalanced**: campaigns whose ledger row or rollup is not the sum of their rows.
- **indeterminate**: attempts without an answer, and no other attempt told what became of the event; `committed` of
  these are rows.
- **recovery**: from the end of the fault until the last event that was waiting then had its verdict, in seconds.
  **others**: the longest wait for a verdict, from the beginning of the fault on, in campaigns that it does not concern
  (the journal says which).
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

EVENT_TYPES = ("impression", "click", "conversion")
Row = tuple[int, str, int, str, int, Any]  # campaign, user, type, event id, cost in micros, spend day
Book = tuple[int, int, int]  # campaign, spent by the ledger, spent by the rollup


@dataclass
class Findings:
    """What the checker prints; the first group must be zero."""

    acknowledged: int = 0
    lost: int = 0
    double: int = 0
    phantom: int = 0
    denied: int = 0
    overspend_micros: int = 0
    over_cap: int = 0
    unbalanced: int = 0
    indeterminate: int = 0
    committed: int = 0
    recovery_seconds: float = 0.0
    others_seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """Whether a promise was broken, and how often."""
        return (
            self.lost + self.double + self.phantom + self.denied + self.overspend_micros + self.over_cap
            + self.unbalanced
        )  # fmt: skip

    def note(self, what: str, of: object) -> None:
        """Keep the first few examples."""
        if len(self.examples) < 8:
            self.examples.append(f"{what}: {of}")


@dataclass
class Event:
    """What the journal tells of one id."""

    sent: Mapping[str, Any]
    open: dict[int, float] = field(default_factory=dict)
    ok_since: float | None = None
    fails: int = 0
    infos: int = 0
    denied: bool = False
    first_invoke: float = 0.0
    settled: float | None = None


def read_journal(records: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Event], list[Mapping[str, Any]], list[float]]:
    """Events by id, plans in order, and the moments when a fault was over."""
    events: dict[str, Event] = {}
    plans: list[Mapping[str, Any]] = []
    clears: list[float] = []
    for record in records:
        at = record["t"]
        match record["what"]:
            case "plan":
                plans.append(record)
            case "clear":
                clears.append(at)
            case "fault":
                pass  # for _measure_recovery
            case "invoke":
                event = events.setdefault(record["id"], Event(record, first_invoke=at))
                event.open[record["attempt"]] = at
            case answer:
                event = events[record["id"]]
                asked = event.open.pop(record["attempt"])
                if answer == "info":
                    event.infos += 1
                    continue
                event.settled = event.settled or at
                if answer == "ok":
                    event.ok_since = event.ok_since or at
                else:
                    event.fails += 1
                    # (By the contract `invalid` is told first; what was valid may not be by another clock.)
                    again = event.ok_since is not None and asked > event.ok_since
                    event.denied |= again and record["reason"] != "invalid"
    return events, plans, clears


def check(journal: Path, db_url: str) -> Findings:
    """Judge one journal by what Postgres has."""
    with open(journal) as file:
        records = [json.loads(line) for line in file]
    campaigns = sorted({record["campaign"] for record in records if record["what"] == "plan"})
    with psycopg.connect(db_url) as connection:
        rows: list[Row] = connection.execute(
            "SELECT campaign_id, user_id, event_type, event_id::text, cost_micros, spend_day FROM events"
            " WHERE campaign_id = ANY(%s)",
            (campaigns,),
        ).fetchall()
        books: list[Book] = connection.execute(
            "SELECT campaign_id, spent, coalesce((SELECT sum(spend) FROM rollup WHERE rollup.campaign_id ="
            " ledger.campaign_id), 0) FROM ledger WHERE campaign_id = ANY(%s)",
            (campaigns,),
        ).fetchall()
    return judge(records, rows, books)


def judge(records: Sequence[Mapping[str, Any]], rows: Sequence[Row], books: Sequence[Book]) -> Findings:
    """What journal, rows and books say together."""
    events, plans, clears = read_journal(records)
    findings = Findings()
    _check_events(findings, events, rows)
    _check_money(findings, plans, rows, books)
    _check_caps(findings, plans, rows)
    _measure_recovery(findings, events, clears, [record for record in records if record["what"] == "fault"])
    return findings


def _check_events(findings: Findings, events: Mapping[str, Event], rows: Sequence[Row]) -> None:
    copies = Counter(row[3] for row in rows)
    for row in rows:
        event = events.get(row[3])
        sent = event.sent if event else {}
        told = (sent.get("campaign"), sent.get("user"), sent.get("type"))
        if event is None or told != (row[0], row[1], EVENT_TYPES[row[2]]):
            findings.phantom += 1
            findings.note("phantom, not as it was sent", row)
        elif event.fails and not event.infos and not event.open and event.ok_since is None:
            findings.phantom += 1
            findings.note("phantom, refused every time", row)
    for event_id, count in copies.items():
        if count > 1:
            findings.double += 1
            findings.note("double", event_id)
    for event_id, event in events.items():
        if event.ok_since is not None:
            findings.acknowledged += 1
            if event_id not in copies:
                findings.lost += 1
                findings.note("lost", event.sent)
        elif event.settled is None:
            findings.indeterminate += 1
            findings.committed += event_id in copies
        if event.denied:
            findings.denied += 1
            findings.note("denied", event.sent)


def _check_money(
    findings: Findings, plans: list[Mapping[str, Any]], rows: Sequence[Row], books: Sequence[Book]
) -> None:
    spent: dict[int, int] = defaultdict(int)
    days: dict[tuple[int, Any], int] = defaultdict(int)
    for campaign, _, _, _, cost, day in rows:
        spent[campaign] += cost
        days[campaign, day] += cost
    for campaign, booked, rolled_up in books:
        if not booked == rolled_up == spent[campaign]:
            findings.unbalanced += 1
            findings.note("unbalanced", (campaign, spent[campaign], booked, rolled_up))
    allowed: dict[int, int] = {}
    daily: dict[int, int] = defaultdict(int)
    for plan in plans:
        campaign = plan["campaign"]
        above = plan["spent"] - max(allowed.get(campaign, 0), plan["total_micros"])
        _count_overspend(findings, above, plan)
        # What is spent already stays spent when a budget is lowered.
        allowed[campaign] = max(plan["total_micros"], plan["spent"])
        daily[campaign] = max(daily[campaign], plan["daily_micros"])
    for campaign, limit in allowed.items():
        _count_overspend(findings, spent[campaign] - limit, campaign)
    for (campaign, day), amount in days.items():
        _count_overspend(findings, amount - daily[campaign], (campaign, day))


def _count_overspend(findings: Findings, above_micros: int, where: object) -> None:
    if above_micros > 0:
        findings.overspend_micros += above_micros
        findings.note(f"{above_micros} micros above the budget", where)


def _check_caps(findings: Findings, plans: list[Mapping[str, Any]], rows: Sequence[Row]) -> None:
    caps: dict[int, int | None] = {}
    for plan in plans:
        campaign, cap = plan["campaign"], plan["cap"]
        known = caps.get(campaign, 0)
        caps[campaign] = None if cap is None or known is None else max(cap, known)
    seen = Counter((row[0], row[1], row[5]) for row in rows if row[2] == 0)
    for (campaign, user, day), impressions in seen.items():
        cap = caps[campaign]
        if cap is not None and impressions > cap:
            findings.over_cap += impressions - cap
            findings.note(f"{impressions} impressions, cap {cap}", (campaign, user, day))


def _measure_recovery(
    findings: Findings, events: Mapping[str, Event], clears: list[float], faults: Sequence[Mapping[str, Any]]
) -> None:
    settled = [(event, event.settled) for event in events.values() if event.settled is not None]
    for clear in clears:
        waited = [end - clear for event, end in settled if event.first_invoke < clear < end]
        findings.recovery_seconds = max([findings.recovery_seconds, *waited])
    for fault in faults:
        waited = [
            end - max(event.first_invoke, fault["t"])
            for event, end in settled
            if event.sent["campaign"] in fault["others"] and end > fault["t"]
        ]
        findings.others_seconds = max([findings.others_seconds, *waited])


if __name__ == "__main__":
    found = check(Path(sys.argv[1]), sys.argv[2])
    print(found)
    sys.exit(1 if found.violations else 0)
