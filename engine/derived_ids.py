"""Ids of events that bring none, derived from their request's Idempotency-Key: a repeated request has the same ones.

Owns what an id is derived from: the key, the campaign, and the event's place among that campaign's events of the
request. The order of campaigns is no part of it, so whoever collects events campaign by campaign may repeat a request
in another order. Knows neither events nor verdicts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

from engine.model import EventId

__all__ = ["DerivedIds", "derived_event_id"]


class DerivedIds:
    """The ids that one request's key gives to its events."""

    __slots__ = ("_key", "_places")

    def __init__(self, key: str, campaigns: Iterable[int | None]) -> None:
        """Count places; `campaigns` are those of all events of the request, None where it can't be read."""
        self._key = key
        self._places: list[tuple[int | None, int]] = []
        counts: Counter[int | None] = Counter()
        for campaign_id in campaigns:
            self._places.append((campaign_id, counts[campaign_id]))
            counts[campaign_id] += 1

    def of(self, index: int) -> EventId:
        """The id of event `index` of the request."""
        campaign_id, place = self._places[index]
        assert campaign_id is not None, "an event that can't be decoded gets no id"
        return derived_event_id(self._key, campaign_id, place)


def derived_event_id(key: str, campaign_id: int, place: int) -> EventId:
    """A UUIDv8 (RFC 9562, section 5.8) for the event at this place among its campaign's events of the request."""
    digest = bytearray(hashlib.sha256(f"{campaign_id}:{place}:{key}".encode()).digest()[:16])
    digest[6] = 0x80 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return EventId(bytes(digest))
