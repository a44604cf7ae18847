"""The audit of a run finds what is wrong: a judge that always says yes proves nothing."""

from __future__ import annotations

import time
import uuid
from array import array
from typing import Any

import psycopg
import pytest

from bench.bodies import Line, Template, stem
from bench.check import audit_run
from bench.results import Audit
from bench.sender import ALL, NONE, UNKNOWN, Sent
from config.settings import Settings
from engine.model import DAY_US, EventType
from engine.ports import NO_TIME, Committed
from engine.postgres.store import open_store
from tests.contract.flushes import COST, bunch, new_campaign
from tests.contract.flushes import Line as Row

pytestmark = pytest.mark.stores

NOW_US = time.time_ns() // 1_000
BASE = NOW_US // 1_000
USERS = ("u-#-0", "ada", "ada", "bob")  # the cap is 2
FIRST, SECOND = 0, 1  # requests of the same template


def template(campaign: int) -> Template:
    """Four impressions; the last is one of the request before, if there is one."""
    lines = [Line(f"{at:012x}", campaign, user, 0, False, False) for at, user in enumerate(USERS)]
    lines[3] = Line(f"{0:012x}", campaign, USERS[0], 0, True, False)
    return Template(b"", lines, True)


def sent(outcomes: tuple[int, int] = (ALL, ALL), *verdicts: tuple[int, int, str]) -> Sent:
    """Two requests; the second repeats an event of the first, whose own last event is its first one again."""
    return Sent(
        bases=[BASE], templates=array("i", [0, 0]).tobytes(), olds=array("q", [FIRST, FIRST]).tobytes(),
        outcomes=bytes(outcomes), verdicts=[*verdicts], finished=b"", latencies=b"", services=b"",
        answered_events=b"", refused_events=b"", counts={}, statuses={}, seconds=1.0, cpu_seconds=0.0, sent_bytes=0,
        received_bytes=0, given_up=0, late_seconds=0.0,
    )  # fmt: skip


REPEATS = ((FIRST, 3, "d"), (SECOND, 3, "d"))
CAPPED = ((SECOND, 1, "r"), (SECOND, 2, "r"))  # ada has had two
AGAIN = """
    INSERT INTO events
    SELECT campaign_id, 0, occurred_at, received_at, batch, event_id, day - 1, spend_day - 1, event_type, user_id, ad_id
      FROM events WHERE user_id LIKE 'u-%' LIMIT 1
"""
SOUND = sent((ALL, ALL), *REPEATS, *CAPPED)


def row(number: int, at: int) -> Row:
    """The row of an event."""
    own = stem(BASE, number).decode()
    event_id = uuid.UUID(f"{own}-{at:012x}").bytes
    user = USERS[at].replace("#", own).encode()
    return Row(event_id, user, None, EventType.IMPRESSION, COST, NOW_US, NOW_US, NOW_US // DAY_US, NO_TIME)


async def audited(database_url: str, told: Sent = SOUND, tamper: str = "") -> Audit:
    """Rows as a sound system leaves them, and what is done to them afterwards."""
    async with open_store(database_url, Settings()) as store:
        campaign = await new_campaign(store, freq_cap_impressions_per_day=2)
        rows = [row(FIRST, 0), row(FIRST, 1), row(FIRST, 2), row(SECOND, 0)]
        assert await store.flush([bunch(campaign, rows)]) == Committed()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(tamper or "SELECT 1")
    return audit_run(database_url, [template(campaign)], [told])


def found(audit: Audit) -> dict[str, Any]:
    """What it has found wrong."""
    names = ("lost", "double", "phantom", "denied", "overspend_micros", "over_cap", "unbalanced")
    return {name: count for name in names if (count := getattr(audit, name))}


async def test_a_sound_run_is_clean(database_url: str) -> None:
    """Accepted, repeated, capped: all as it was told."""
    audit = await audited(database_url)
    assert audit.clean
    assert (found(audit), audit.acknowledged, audit.unknown) == ({}, 4, 0)


async def test_an_unknown_outcome_is_no_fault(database_url: str) -> None:
    """There or not; it is counted."""
    audit = await audited(database_url, sent((ALL, UNKNOWN), REPEATS[0]))
    assert (found(audit), audit.unknown, audit.unknown_committed) == ({}, 3, 1)


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        ("DELETE FROM events WHERE user_id LIKE 'u-%'", {"lost": 2, "unbalanced": 1}),
        ("UPDATE events SET user_id = 'eve' WHERE user_id = 'ada'", {"phantom": 2}),
        ("UPDATE ledger SET spent = spent - 1", {"unbalanced": 1}),
        ("UPDATE campaigns SET total_budget_micros = 3500", {"overspend_micros": 500}),
        ("UPDATE campaigns SET daily_budget_micros = 3000", {"overspend_micros": 1_000}),
        ("UPDATE campaigns SET freq_cap_impressions_per_day = 1", {"over_cap": 1}),
        (AGAIN, {"double": 1}),
        ("UPDATE events SET batch = -1 WHERE user_id LIKE 'u-%'", {"lost": 2}),
    ],
)
async def test_what_is_not_as_it_was_told_is_found(database_url: str, tamper: str, expected: dict[str, int]) -> None:
    """Each lie under its own name."""
    assert found(await audited(database_url, SOUND, tamper)) == expected


async def test_a_row_that_was_refused_is_denied(database_url: str) -> None:
    """By its own verdict, or because its request was not even read."""
    assert found(await audited(database_url, sent((ALL, ALL), *REPEATS, *CAPPED, (SECOND, 0, "r")))) == {"denied": 1}


async def test_what_is_accepted_when_it_is_sent_again_was_not_denied(database_url: str) -> None:
    """A budget that was used up may have been raised since."""
    assert found(await audited(database_url, sent((ALL, ALL), (FIRST, 0, "r"), (FIRST, 3, "r"), *CAPPED))) == {}


async def test_what_is_refused_after_it_was_accepted_is_denied(database_url: str) -> None:
    """Sent again, it is a duplicate, whatever the budget is by then."""
    assert found(await audited(database_url, sent((ALL, ALL), REPEATS[0], (SECOND, 3, "r"), *CAPPED))) == {"denied": 1}


async def test_a_row_of_a_request_that_was_not_read_is_denied(database_url: str) -> None:
    """400 means that nothing was accepted."""
    assert found(await audited(database_url, sent((ALL, NONE), REPEATS[0])))["denied"] == 2


async def test_an_event_that_was_accepted_twice_is_double(database_url: str) -> None:
    """Even if it is one row."""
    assert found(await audited(database_url, sent((ALL, ALL), REPEATS[0], *CAPPED))) == {"double": 1}
