"""What an actor can set in motion, and the look-ups it asks for.

Owns the door between an actor and the loops that carry its work: rounds, flusher, look-ups, registry. Knows none
of them: each is a callable that never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from engine.memory import Policy
from engine.model import CampaignId, StoredEvent
from engine.reservations import Reservation
from engine.submission import Entry

if TYPE_CHECKING:
    from engine.actor import Actor


Found = Mapping[tuple[CampaignId, bytes], StoredEvent]  # what a look-up found


class Absent(Enum):
    """What to do with an entry that a look-up did not find."""

    AGAIN = "again"  # it is new: reserve it
    IN_FLIGHT = "in flight"  # somebody else has it under way
    CONTRADICTION = "contradiction"  # Redis says committed, Postgres does not have it


class LookUp(NamedTuple):
    """Entries to look up in Postgres; `tag` is that of their own reservation whose outcome is unknown."""

    actor: Actor
    entries: Sequence[Entry]
    absent: Absent
    tag: int | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What an actor can set in motion. None of these waits."""

    next_tag: Callable[[], int]
    memory_policy: Callable[[], Policy]
    run_soon: Callable[[Actor], None]
    flush: Callable[[Actor, Reservation], None]
    look_up: Callable[[LookUp], None]
    load: Callable[[Actor], None]
    recover: Callable[[Actor], None]
    rest: Callable[[Actor, float], None]
    crashed: Callable[[Actor], None]
    differs: Callable[[Actor, Entry], None]
