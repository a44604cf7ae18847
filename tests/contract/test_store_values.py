"""The pure parts of the judge's adapter: what an answer means, what is safe, how a span is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.errors import ConfigurationUnsafe
from engine.locks import Locked
from engine.model import CampaignId
from engine.ports import Committed, FlushReply, NotRun, RefusalCause, Refused, Unknown
from engine.postgres.copy import HOUR_US
from engine.postgres.database import normal_url
from engine.postgres.outcome import Answer, Failure, read_answer, waited_for_ledger
from engine.postgres.reports import cut_span
from engine.postgres.safety import check_values
from tests.contract.flushes import bunch, impression

THREE, SEVEN = CampaignId(3), CampaignId(7)
KEY = "Key (campaign_id, event_id, day)=(7, 0190a1b2-0000-7000-8000-000000000000, 2026-01-01) already exists."
SAFE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "server_version_num": "180004",
    "server_encoding": "UTF8",
    "in_recovery": "off",
}


# A flush of one event of campaign 3, and two of campaign 7.
BATCHES = [bunch(THREE, [impression(0)]), bunch(SEVEN, [impression(0), impression(0)])]
WAITS = 'while inserting index tuple (0,6) in relation "events_20261201_campaign_id_event_id_day_key"'
LEDGER = 'while locking tuple (0,2) in relation "ledger"\nSQL statement "SELECT FROM ledger WHERE …"'


def failed(sqlstate: str, detail: str = "", severity: str = "ERROR", context: str = "") -> Answer:
    """An answer that is an error."""
    return Answer("SELECT 1", Failure(sqlstate, severity, "no", detail, context))


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (Answer("COMMIT"), Committed()),
        (Answer("ROLLBACK"), NotRun("rolled back")),
        (Answer(""), Unknown("nothing in place of COMMIT")),
        (Answer("COMMIT", warning="canceling wait"), Unknown("committed with a warning: canceling wait")),
        (failed("HR001", '{"7": "day"}'), Refused({SEVEN: RefusalCause.DAY})),
        (failed("HR001", '{"7": "budget"}'), Refused({SEVEN: RefusalCause.BUDGET})),
        (failed("HR001", '{"7": "generation"}'), Refused({SEVEN: RefusalCause.GENERATION})),
        (failed("HR001", ""), NotRun("HR001 no", data=True)),
        (failed("23505", KEY), Refused({SEVEN: RefusalCause.DUPLICATE})),
        (failed("23505", KEY.replace("Key", "Schlüssel")), Refused({SEVEN: RefusalCause.DUPLICATE})),
        (failed("23505", ""), NotRun("23505 no", data=True)),
        (failed("23505", KEY.replace("(7,", "(8,")), NotRun("23505 no", data=True)),
        (failed("22P05"), NotRun("22P05 no", data=True)),
        (failed("40P01"), NotRun("40P01 no")),
        (failed("53100"), NotRun("53100 no")),
        (failed("57014"), NotRun("57014 no", data=True)),
        (failed("57014", context="COPY events, line 1"), NotRun("57014 no", data=True)),
        (failed("57014", context=f"{WAITS}\nCOPY events, line 2"), Locked(frozenset([SEVEN]), "57014 no")),
        (failed("55P03"), NotRun("55P03 no", data=True)),
        (failed("55P03", context=f"{WAITS}\nCOPY events, line 1"), Locked(frozenset([THREE]), "55P03 no")),
        (failed("55P03", context=f"{WAITS}\nCOPY events, line 2"), Locked(frozenset([SEVEN]), "55P03 no")),
        (failed("55P03", context="COPY events, Zeile 3"), Locked(frozenset([SEVEN]), "55P03 no")),
        (failed("55P03", context="COPY events, line 4"), NotRun("55P03 no", data=True)),
        (failed("55P03", context="COPY events, line 1", severity="FATAL"), Unknown("55P03 no")),
        (failed("55P03", context=LEDGER), NotRun("55P03 no", data=True)),
        (failed("57P01", severity="FATAL"), Unknown("57P01 no")),
        (failed("57P01"), Unknown("57P01 no")),
        (failed("08006"), Unknown("08006 no")),
        (failed("XX000", severity="PANIC"), Unknown("XX000 no")),
        (failed("", severity=""), Unknown(" no")),
    ],
)
def test_each_answer_is_certain_or_unknown(answer: Answer, reply: FlushReply) -> None:
    """Only the tag COMMIT commits; an ERROR is certain; the end of a session is not."""
    assert read_answer(answer, BATCHES) == reply


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (failed("55P03", context=LEDGER), True),
        (failed("57014", context=LEDGER), True),
        (failed("55P03", context=LEDGER.replace("in relation", "in Relation").replace('"', "»")), True),
        (failed("55P03", context='SQL statement "SELECT FROM ledger WHERE …"'), False),  # the whole table is locked
        (failed("55P03", context=f"{WAITS}\nCOPY events, line 1"), False),
        (failed("40P01", context=LEDGER), False),
        (Answer("COMMIT"), False),
    ],
)
def test_the_ledger_is_asked_when_a_row_of_it_was_waited_for(answer: Answer, asked: bool) -> None:
    """Only then can it tell whose rows are held."""
    assert waited_for_ledger(answer) == asked


def test_a_safe_server_is_taken() -> None:
    """What we rely on is there."""
    check_values(SAFE)
    check_values({**SAFE, "synchronous_commit": "remote_apply"})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fsync", "off", "fsync = off"),
        ("full_page_writes", "off", "full_page_writes = off"),
        ("synchronous_commit", "off", "synchronous_commit = off"),
        ("server_version_num", "140011", "version 14: 15 or newer"),
        ("server_encoding", "SQL_ASCII", "encoding SQL_ASCII"),
        ("in_recovery", "on", "standby"),
    ],
)
def test_an_unsafe_server_is_refused_by_name(name: str, value: str, said: str) -> None:
    """Each thing that could make a 200 wrong is refused with a sentence about it."""
    with pytest.raises(ConfigurationUnsafe, match=said):
        check_values({**SAFE, name: value})


@pytest.mark.parametrize("start", [None, 0, 1, HOUR_US - 1, HOUR_US, HOUR_US + 1, 5 * HOUR_US])
@pytest.mark.parametrize("end", [None, 0, 1, HOUR_US - 1, HOUR_US, HOUR_US + 1, 2 * HOUR_US, 5 * HOUR_US + 7])
def test_a_span_is_cut_without_gap_or_overlap(start: int | None, end: int | None) -> None:
    """The three parts follow each other, cover the span, and the middle is whole hours."""
    cut = cut_span(start, end)
    low = start or 0
    assert all(part[0] <= part[1] for part in cut)
    assert cut.hours[0] % HOUR_US == cut.hours[1] % HOUR_US == 0
    covered = [part for part in (cut.before, cut.hours, cut.after) if part[0] < part[1]]
    assert all(left[1] == right[0] for left, right in pairwise(covered))
    if end is not None:
        assert sum(part[1] - part[0] for part in covered) == max(0, end - low)
    if covered:
        assert covered[0][0] == low


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_each_scheme_is_the_same_address(scheme: str) -> None:
    """The old system's URL works unchanged."""
    assert normal_url(f"{scheme}://me@/db?host=/tmp/x") == "postgresql://me@/db?host=/tmp/x"
