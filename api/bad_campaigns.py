"""The campaign of an event that can't be decoded. The event keeps its place among that campaign's events by it.

Owns that one reading. Knows nothing of what is wrong with the event.
"""

from __future__ import annotations

import msgspec

__all__ = ["campaign_of"]


class _Named(msgspec.Struct):
    campaign_id: int


_NAMED = msgspec.json.Decoder(_Named)


def campaign_of(raw: bytes) -> int | None:
    """What a bad event names as its campaign, or None where that can't be read either."""
    try:
        return _NAMED.decode(raw).campaign_id
    except (ValueError, RecursionError):
        return None
