"""The steps of a recovery as messages to the ledger, and what only a recovery hears back.

Owns these messages; `engine.ports` has those that every caller meets, and the doors that all of them cross. A step
names its campaign and the generation that Postgres has just committed: Redis refuses it under any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.model import CampaignId, CampaignSpend, EventId


@dataclass(frozen=True, slots=True)
class Begin:
    """Close the campaign under a new generation, keeping its state only if it can be trusted."""

    campaign_id: CampaignId
    generation: int


@dataclass(frozen=True, slots=True)
class LoadUsers:
    """At most 1,000 users and their impressions of the ledger's day."""

    campaign_id: CampaignId
    generation: int
    users: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Ready:
    """Open the campaign again, if its sums are the ledger's.

    What only an empty state takes: the watermark (`latest_us`, the highest id time of what is committed), when its
    first bucket begins, and whether the users of the ledger's day were loaded. If not, they are when a cap asks for
    them.
    """

    campaign_id: CampaignId
    generation: int
    spend: CampaignSpend
    plan_version: int
    latest_us: int
    at_us: int
    users_loaded: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """A pending reservation that `begin` found: its tag, the first of its ids, and its spend day."""

    tag: int
    first_id: EventId
    day: int


@dataclass(frozen=True, slots=True)
class Kept:
    """`begin` closed a state that can be trusted; these reservations have to be settled."""

    pending: Sequence[Pending]


@dataclass(frozen=True, slots=True)
class Emptied:
    """`begin` dropped the state: rebuild it from Postgres."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """`ready` found sums that differ from the ledger's."""
