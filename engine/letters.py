"""What a call of reserve says of each of its events, and what Redis says of it: a byte each.

Owns both alphabets, which are those of `functions.lua`.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

# Flags of one event in `Reserve.kinds`.
FREE: Final = 0
BILLABLE: Final = 1
COUNTS_FOR_CAP: Final = 2
AHEAD: Final = 4


class Letter(bytes, Enum):
    """What Redis says of one event. The letters are those of `functions.lua`; a test compares the two."""

    PENDING = b"P"  # in flight: reserved by an earlier call, or earlier in this one
    DUPLICATE = b"D"
    CAPPED = b"C"
    TOTAL = b"T"
    DAILY = b"Y"
    PACED = b"W"
    NO_ROOM = b"U"  # there is no memory for the count of another user
    ACCEPTED = b"A"
