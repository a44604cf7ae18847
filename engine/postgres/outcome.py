"""What an answer of Postgres to a flush means: committed, refused, certainly nothing, or unknown.

Owns the reading of SQLSTATEs for the flush. Pure: knows no connection. The rules, from the protocol:

- Only the command tag `COMMIT` is a commit: the COMMIT of an aborted transaction succeeds too, with `ROLLBACK`.
- An ERROR is certain: Postgres raises none after the commit record is written (it would be a PANIC).
- FATAL and PANIC, the connection's own errors and "completion unknown" end a session at a point nobody knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from engine.model import CampaignId
from engine.ports import Committed, FlushReply, NotRun, RefusalCause, Refused, Unknown

REFUSED_BY_GUARD: Final = "HR001"
UNIQUE_VIOLATION: Final = "23505"

# The session's end: connection exceptions, an administrator's or a crash's shutdown, "completion unknown".
_UNCERTAIN: Final = ("08", "57P", "40003")
# What a flush can be wrong with: data exceptions, integrity violations, the guard.
_ABOUT_DATA: Final = ("22", "23", REFUSED_BY_GUARD)
# Detail of a unique violation, in any language: "Key (campaign_id, event_id, day)=(7, 0190…, 2026-01-01) …".
_KEY: Final = re.compile(r"\)=\((\d+), [0-9a-f]{8}-")


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as Postgres reports it. `severity` is the untranslated one."""

    sqlstate: str
    severity: str
    message: str
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """All that Postgres said to one flush: the last command tag, the error, the first warning."""

    tag: str
    failure: Failure | None = None
    warning: str | None = None


def read_answer(answer: Answer, campaigns: Collection[CampaignId]) -> FlushReply:
    """What the answer means for a flush of these campaigns."""
    if answer.failure is not None:
        return _read_failure(answer.failure, campaigns)
    if answer.tag == "ROLLBACK":
        return NotRun("rolled back")
    if answer.tag != "COMMIT":
        return Unknown(f"{answer.tag or 'nothing'} in place of COMMIT")
    if answer.warning is not None:
        # A COMMIT that gave up waiting for its synchronous standby says so in a warning, and its tag is COMMIT.
        return Unknown(f"committed with a warning: {answer.warning}")
    return Committed()


def _read_failure(failure: Failure, campaigns: Collection[CampaignId]) -> FlushReply:
    told = f"{failure.sqlstate} {failure.message}"
    if failure.severity != "ERROR" or failure.sqlstate.startswith(_UNCERTAIN):
        return Unknown(told)
    causes = _causes(failure)
    if causes and causes.keys() <= set(campaigns):
        return Refused(causes)
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
