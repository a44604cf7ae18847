"""What a sender wrote, checked and made ready: an `Event` becomes an `Entry`, or an `Invalid`.

Owns the checks that a typed decode can't make (bytes, times) and the identity of an event: its id and its
identity day. Pure; knows no campaign. Each event passes here once.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final, NamedTuple, NoReturn

from config.settings import Settings
from engine.instants import NotAnInstant, instant_us
from engine.model import (
    DAY_US,
    EVENT_TYPES,
    SECOND_US,
    CampaignId,
    Event,
    EventId,
    Invalid,
    new_event_id,
)
from engine.submission import Entry, Submission

_RANDOM_BYTES: Final = 10  # of a UUIDv7
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


def arrive(
    event: Event, submission: Submission, index: int, idempotency_key: str | None, limits: ArrivalLimits
) -> Entry | Invalid:
    """Check one decoded event and make its entry.

    The identity day is the UTC date of `occurred_at`, else of the time inside a UUIDv7, else of receipt. It
    picks the partition, so a retry meets the same unique key.
    """
    now_us, bytes_max = submission.received_us, limits.string_bytes_max
    sent_id = None if event.event_id is None else event.event_id.int.to_bytes(16, "big")
    told_us = occurred_us = None
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
            told_us = occurred_us = instant_us(event.occurred_at)
            _check_occurred(occurred_us, now_us, limits)
        elif sent_id is not None and sent_id[6] >> 4 == 7 and sent_id[8] >> 6 == 2:
            told_us = int.from_bytes(sent_id[:6], "big") * 1_000  # a UUIDv7 (RFC 9562, section 5.7)
            if told_us > now_us + limits.ahead_us:
                _refuse_id(told_us, now_us, limits)
    except UnicodeEncodeError as wrong:
        field = "user_id" if wrong.object is event.user_id else "ad_id"
        return Invalid(f"{field}: must be Unicode text without lone surrogates", _told_id(sent_id))
    except ValueError as wrong:
        detail = f"occurred_at: {wrong}, or null" if isinstance(wrong, NotAnInstant) else str(wrong)
        return Invalid(detail, _told_id(sent_id))
    if sent_id is not None:
        event_id = sent_id
    elif idempotency_key is not None:
        event_id = derived_event_id(idempotency_key, index)
    else:
        # Nobody else can have this id, so it is never looked up: its time is the receipt's.
        event_id, told_us = new_event_id(now_us, os.urandom(_RANDOM_BYTES)), now_us
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
        told_us,
        (now_us if told_us is None else told_us) // DAY_US,
    )


def derived_event_id(idempotency_key: str, index: int) -> EventId:
    """The id of event `index` of a request: a UUIDv8 (RFC 9562, section 5.8) from the key, so a repeat is a repeat."""
    digest = bytearray(hashlib.sha256(f"{index}:{idempotency_key}".encode()).digest()[:16])
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return EventId(bytes(digest))


def _told_id(sent_id: bytes | None) -> EventId | None:
    return None if sent_id is None else EventId(sent_id)


def _refuse_text(field: str, encoded: bytes, bytes_max: int) -> NoReturn:
    if not 0 < len(encoded) <= bytes_max:
        raise ValueError(f"{field}: must have 1 to {bytes_max} bytes, not {len(encoded)}")
    raise ValueError(f"{field}: must not hold a NUL")


def _refuse_id(told_us: int, now_us: int, limits: ArrivalLimits) -> NoReturn:
    raise ValueError(
        f"event_id: a UUIDv7 whose time is {(told_us - now_us) // SECOND_US} s ahead of the server, "
        f"at most {limits.ahead_us // SECOND_US} s are allowed: correct the clock, or send occurred_at"
    )


def _check_occurred(occurred_us: int, now_us: int, limits: ArrivalLimits) -> None:
    if occurred_us < now_us - limits.past_us:
        raise ValueError(
            f"occurred_at: {(now_us - occurred_us) // SECOND_US} s old, "
            f"at most {limits.past_us // SECOND_US} s are allowed"
        )
    if occurred_us > now_us + limits.ahead_us:
        raise ValueError(
            f"occurred_at: {(occurred_us - now_us) // SECOND_US} s ahead of the server, "
            f"at most {limits.ahead_us // SECOND_US} s are allowed"
        )
