"""The door to what engine processes know of each other: who lives, and what the dead have left open.

Owns the port, which `engine/ports.py` shows beside the others. Knows no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from engine.model import HeartbeatReply


class Roster(Protocol):
    """Engine processes and housekeeping. Raises `StoreUnavailable`."""

    async def heartbeat(self, number: int, slowest_look_up_us: int = 0) -> HeartbeatReply:
        """Say that this engine lives, and how slow its look-ups are; hear of others, and how far our clock is off.

        Raises `ConfigurationUnsafe` when the server, as it is set up now, could lose a commit or can't take one.
        """
        ...

    async def end_dead_sessions(self, number: int) -> Mapping[int, int]:
        """End what engines that are dead have open in the store, so that nobody waits for their locks.

        By the number of each engine, how many of its sessions were ended. Never ends one of an engine that is alive by
        the store's own clock, or of engine `number`, which asks.
        """
        ...

    async def make_partitions(self) -> None:
        """Make the daily partitions from three days ago to `partitions_ahead_days`."""
        ...
