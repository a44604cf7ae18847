"""What a sender wrote, checked and made ready: an `Event` becomes an `Entry`, or an `Invalid`.

Owns the checks that a typed decode can't make (bytes, times) and the identity of an event: its id and its
identity day. Pure; knows no campaign. Each event passes here once.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple, NoReturn

from config.settings import Settings
from engine.derived_ids import DerivedIds
from engine.instants import NotAnInstant, instant_us
from engine.model import (
    DAY_US,
    EVENT_TYPES,
    SECOND_US,
    CampaignId,
    Event,
    EventId,
    Invalid,
    Reason,
    Status,
    Verdict,
    new_event_id,
)
from engine.ports import NO_TIME
from engine.submission import Entry, Submission

_RANDOM_BYTES: Final = 10  # of a UUIDv7
# An event that is too old by no more than this may be the repeat of one that was accepted: it is looked up before it is
# refused. Senders repeat within seconds, and after an outage of theirs within minutes; an hour has room for both.
REPEATED_US: Final = 3_600 * SECOND_US
# RFC 9562, 5.9 and 5.10: what a sender has in place of an id that it forgot to make, so all its events have it.
_NO_IDS: Final = frozenset([bytes(16), b"\xff" * 16])


class ArrivalLimits(NamedTuple):
    """The settings that an arriving event is held to."""

    string_bytes_max: int
    past_us: int
    ahead_us: int

    @classmethod
    def of(cls, settings: Settings) -> ArrivalLimits:
        """The limits, in the units that are compared."""
        return cls(
            settings.string_bytes_max,
            settings.occurred_past_seconds * SECOND_US,
            settings.occurred_ahead_seconds * SECOND_US,
        )


def arrive(  # noqa: C901 - one pass over the fields, for each event: a function for each of them would cost
    event: Event, submission: Submission, index: int, ids: DerivedIds | None, limits: ArrivalLimits
) -> Entry | Invalid:
    """Check one decoded event and make its entry. `ids` are those of the request's Idempotency-Key, if it has one.

    The identity day is the UTC date of `occurred_at`, else of the time inside a UUIDv7, else of receipt. It
    picks the partition, so a retry meets the same unique key.
    """
    now_us, bytes_max = submission.received_us, limits.string_bytes_max
    refusal = None
    sent_id = None if event.event_id is None else event.event_id.int.to_bytes(16, "big")
    id_time_us, occurred_us, made_here = NO_TIME, None, False
    try:
        if sent_id in _NO_IDS:
            raise ValueError("event_id: must not be the nil or the max UUID, which name no event")
        user = event.user_id.encode()
        if not 0 < len(user) <= bytes_max or 0 in user:
            _refuse_text("user_id", user, bytes_max)
        ad = None
        if event.ad_id is not None:
            ad = event.ad_id.encode()
            if not 0 < len(ad) <= bytes_max or 0 in ad:
                _refuse_text("ad_id", ad, bytes_max)
        if event.occurred_at is not None:
            id_time_us = occurred_us = instant_us(event.occurred_at)
            refusal = _judge_time("occurred_at:", occurred_us, now_us, limits)
        elif sent_id is not None and sent_id[6] >> 4 == 7 and sent_id[8] >> 6 == 2:
            id_time_us = int.from_bytes(sent_id[:6], "big") * 1_000  # a UUIDv7 (RFC 9562, section 5.7)
            if not now_us - limits.past_us <= id_time_us <= now_us + limits.ahead_us:  # (a call would cost each event)
                refusal = _judge_time("event_id: a UUIDv7 whose time is", id_time_us, now_us, limits)
    except UnicodeEncodeError as wrong:
        field = "user_id" if wrong.object is event.user_id else "ad_id"
        return Invalid(f"{field}: must be Unicode text without lone surrogates", _told_id(sent_id))
    except ValueError as wrong:
        return Invalid(_why(wrong), _told_id(sent_id))
    if sent_id is not None:
        event_id = sent_id
    elif ids is not None:
        event_id = ids.of(index)
    elif refusal is not None and refusal.detail is not None:
        return Invalid(refusal.detail)
    else:
        event_id, made_here = new_event_id(now_us, os.urandom(_RANDOM_BYTES)), True
        if occurred_us is None:
            id_time_us = now_us
    return Entry(
        submission,
        index,
        CampaignId(event.campaign_id),
        event_id,
        EVENT_TYPES[event.event_type],
        event.user_id,
        user,
        ad,
        now_us if occurred_us is None else occurred_us,
        now_us,
        id_time_us,
        (now_us if id_time_us == NO_TIME else id_time_us) // DAY_US,
        refusal,
        made_here,
    )


def _why(wrong: ValueError) -> str:
    return f"occurred_at: {wrong}, or null" if isinstance(wrong, NotAnInstant) else str(wrong)


def _told_id(sent_id: bytes | None) -> EventId | None:
    return None if sent_id is None else EventId(sent_id)


def _refuse_text(field: str, encoded: bytes, bytes_max: int) -> NoReturn:
    if not 0 < len(encoded) <= bytes_max:
        raise ValueError(f"{field}: must have 1 to {bytes_max} bytes, not {len(encoded)}")
    raise ValueError(f"{field}: must not hold a NUL")


def _judge_time(what: str, time_us: int, now_us: int, limits: ArrivalLimits) -> Verdict | None:
    """None if the time is allowed. Raises `ValueError`, or, for what may still be a repeat, returns the refusal."""
    if time_us < now_us - limits.past_us:
        detail = f"{what} {(now_us - time_us) // SECOND_US} s old, at most {limits.past_us // SECOND_US} s are allowed"
        if time_us < now_us - limits.past_us - REPEATED_US:
            raise ValueError(detail)
        return Verdict(Status.REJECTED, Reason.INVALID, detail)
    if time_us > now_us + limits.ahead_us:
        raise ValueError(
            f"{what} {(time_us - now_us) // SECOND_US} s ahead of the server, "
            f"at most {limits.ahead_us // SECOND_US} s are allowed"
        )
    return None
