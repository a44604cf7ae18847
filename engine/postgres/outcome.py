"""What an answer of Postgres to a flush means: committed, refused, certainly nothing, or unknown.

Owns the reading of SQLSTATEs for the flush. Pure: knows no connection. The rules, from the protocol:

- Only the command tag `COMMIT` is a commit: the COMMIT of an aborted transaction succeeds too, with `ROLLBACK`.
- An ERROR is certain: Postgres raises none after the commit record is written (it would be a PANIC).
- A wait for another session's lock that took too long names a row of the COPY, and so its campaign, or the ledger,
  which can be asked whose rows are held. Else nobody is named, and the flush is halved.
- FATAL and PANIC, the connection's own errors and "completion unknown" end a session at a point nobody knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.locks import Locked
from engine.model import CampaignId
from engine.ports import Batch, Committed, FlushReply, NotRun, RefusalCause, Refused, Unknown

REFUSED_BY_GUARD: Final = "HR001"
UNIQUE_VIOLATION: Final = "23505"
LOCK_TIMEOUT: Final = "55P03"
STATEMENT_TIMEOUT: Final = "57014"  # or an administrator who cancels the statement

# The session's end: connection exceptions, an administrator's or a crash's shutdown, "completion unknown".
_UNCERTAIN: Final = ("08", "57P", "40003")
# What a flush can be wrong with: data exceptions, integrity violations, the guard; and what a part of it may wait for.
_ABOUT_DATA: Final = ("22", "23", REFUSED_BY_GUARD, LOCK_TIMEOUT, STATEMENT_TIMEOUT)
# Detail of a unique violation, in any language: "Key (campaign_id, event_id, day)=(7, 0190…, 2026-01-01) …".
_KEY: Final = re.compile(r"\)=\((\d+), [0-9a-f]{8}-")
# Contexts, in any language: "COPY events, line 5"; "while locking tuple (0,2) in relation "ledger"", which is what a
# session says that waits for another one's row (of an index, too: "while inserting index tuple (0,6) in …").
_LINE: Final = re.compile(r"^COPY events\b\D*(\d+)", re.MULTILINE)
_TUPLE: Final = re.compile(r"\(\d+,\d+\)")
_LEDGER: Final = re.compile(r"^(?=.*\(\d+,\d+\)).*\bledger\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as Postgres reports it. `severity` is the untranslated one."""

    sqlstate: str
    severity: str
    message: str
    detail: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that Postgres said to one flush: the last command tag, the error, the first warning."""

    tag: str
    failure: Failure | None = None
    warning: str | None = None


def read_answer(answer: Answer, batches: Sequence[Batch]) -> FlushReply:
    """What the answer means for a flush of these batches, which were sent in this order."""
    if answer.failure is not None:
        return _read_failure(answer.failure, batches)
    if answer.tag == "ROLLBACK":
        return NotRun("rolled back")
    if answer.tag != "COMMIT":
        return Unknown(f"{answer.tag or 'nothing'} in place of COMMIT")
    if answer.warning is not None:
        # A COMMIT that gave up waiting for its synchronous standby says so in a warning, and its tag is COMMIT.
        return Unknown(f"committed with a warning: {answer.warning}")
    return Committed()


def waited_for_ledger(answer: Answer) -> bool:
    """Whether the flush gave up waiting for a row of the ledger: the ledger can be asked whose rows are held."""
    failure = answer.failure
    return (
        failure is not None
        and failure.sqlstate in (LOCK_TIMEOUT, STATEMENT_TIMEOUT)
        and bool(_LEDGER.search(failure.context))
    )


def _read_failure(failure: Failure, batches: Sequence[Batch]) -> FlushReply:
    told = f"{failure.sqlstate} {failure.message}"
    if failure.severity != "ERROR" or failure.sqlstate.startswith(_UNCERTAIN):
        return Unknown(told)
    causes = _causes(failure)
    if causes and causes.keys() <= {batch.campaign_id for batch in batches}:
        return Refused(causes)
    if (waited_for := _waited_for(failure, batches)) is not None:
        return Locked(frozenset([waited_for]), told)
    return NotRun(told, data=failure.sqlstate.startswith(_ABOUT_DATA))


def _causes(failure: Failure) -> dict[CampaignId, RefusalCause]:
    """Who is to blame; nobody when the detail can't be read (a pooler or a log setting may leave it out)."""
    if failure.sqlstate == REFUSED_BY_GUARD:
        try:
            told = json.loads(failure.detail)
            return {CampaignId(int(campaign)): RefusalCause(cause) for campaign, cause in told.items()}
        except ValueError:
            return {}
    named = _KEY.search(failure.detail) if failure.sqlstate == UNIQUE_VIOLATION else None
    return {CampaignId(int(named[1])): RefusalCause.DUPLICATE} if named else {}


def _waited_for(failure: Failure, batches: Sequence[Batch]) -> CampaignId | None:
    """Whose row of the COPY waited for a lock when time was up; None if none did, or nobody can say."""
    line = _LINE.search(failure.context)
    if line is None or failure.sqlstate not in (LOCK_TIMEOUT, STATEMENT_TIMEOUT):
        return None
    if failure.sqlstate == STATEMENT_TIMEOUT and not _TUPLE.search(failure.context):
        return None  # it was merely slow, and this is where it was
    left = int(line[1])
    for batch in batches:
        left -= len(batch.rows)
        if left <= 0:
            return batch.campaign_id
    return None
