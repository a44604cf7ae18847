"""One call of reserve on its way through the engine: what it carries, and what the letters of its reply mean.

Owns these messages, the kinds of events that a call names, and the verdict behind each refusal. Pure: knows no store
and no actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.model import BILLABLE, SECOND_US, Campaign, EventType, Reason, Status, Verdict
from engine.pacing import SpendDay, seconds_between, seconds_until_room
from engine.ports import AHEAD, COUNTS_FOR_CAP, FREE, NO_TIME, Letter, Reserve
from engine.ports import BILLABLE as BILLABLE_FLAG
from engine.submission import Entry
from engine.verdicts import DAILY_BUDGET, INACTIVE, NO_ROOM, TOTAL_BUDGET

# An id time that is further ahead of us than this is that of a clock that is wrong. Such ids have buckets of their own,
# so that the watermark does not rise above the id times of all others when they are forgotten.
AHEAD_US: Final = 2 * SECOND_US


class ReserveRequest(msgspec.Struct, frozen=True, gc=False):
    """One call of reserve, and the entries that its letters are about."""

    call: Reserve
    entries: Sequence[Entry]
    plan: Campaign
    today: SpendDay


class Reservation:
    """The accepted entries of one call, on their way to Postgres (`ports.Batch`)."""

    __slots__ = ("amount_micros", "campaign_id", "generation", "rows", "spend_day", "tag")

    def __init__(self, call: Reserve, rows: Sequence[Entry], amount_micros: int) -> None:
        self.campaign_id = call.campaign_id
        self.generation = call.generation
        self.tag = call.tag
        self.spend_day = call.day
        self.amount_micros = amount_micros
        self.rows = rows


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """What `admit` decided: a call to send, entries to look up first, and entries that wait for the next call."""

    request: ReserveRequest | None
    late: Sequence[Entry]
    back: Sequence[Entry] = ()


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What `apply` decided: a reservation to flush, and entries whose ids Redis knows."""

    reservation: Reservation | None
    known: Sequence[tuple[Entry, Letter]]


def kinds_of(plan: Campaign) -> bytes:
    """The kind of each event type under a plan."""
    billable = BILLABLE[plan.pricing_model]
    capped = plan.freq_cap_impressions_per_day is not None
    return bytes(
        (BILLABLE_FLAG if event_type is billable else FREE)
        | (COUNTS_FOR_CAP if capped and event_type is EventType.IMPRESSION else FREE)
        for event_type in EventType
    )


def mark_ahead(entries: Sequence[Entry], kinds: bytes, now_us: int) -> tuple[int, int, bytes]:
    """The greatest id time of those that are not ahead, and of those that are; and the kinds, which say which are."""
    most_us = most_ahead_us = NO_TIME
    marked = bytearray(kinds)
    for place, entry in enumerate(entries):
        if entry.id_time_us > now_us + AHEAD_US:
            marked[place] |= AHEAD
            most_ahead_us = max(most_ahead_us, entry.id_time_us)
        else:
            most_us = max(most_us, entry.id_time_us)
    return most_us, most_ahead_us, bytes(marked)


def refusal(letter: int, request: ReserveRequest, today_micros: int, now_us: int) -> Verdict:
    """The verdict behind a letter that is neither accepted nor known, by the plan that it was decided under."""
    if not request.plan.active:
        return INACTIVE
    match Letter(bytes([letter])):
        case Letter.CAPPED:
            return Verdict(
                Status.REJECTED,
                Reason.FREQUENCY_CAPPED,
                f"the user has had {request.call.cap} impressions today, as many as the campaign allows",
                seconds_between(now_us, request.today.end_us),
            )
        case Letter.PACED:
            wait_seconds = seconds_until_room(request.plan, request.today, now_us, today_micros)
            return Verdict(
                Status.REJECTED, Reason.PACED, "the day has not reached this part of its budget", wait_seconds
            )
        case Letter.TOTAL:
            return TOTAL_BUDGET
        case Letter.DAILY:
            return DAILY_BUDGET
        case Letter.NO_ROOM:
            return NO_ROOM
    raise AssertionError(f"unknown letter {letter!r}")
