"""How short of memory Redis is, asked once a second, and what follows from that for every campaign of this process.

Owns the loop, the policy that is in force, and what is said of it in the log and to `/readyz`. What so much memory asks
for is decided in `memory.py`. Knows of Redis only `Ledger.memory`. While Redis can't be asked, the policy stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from engine import metrics
from engine.memory import OBSERVED_SECONDS, MemoryPolicy, Policy, megabytes
from engine.model import SECOND_US
from engine.ports import Ledger

log = logging.getLogger(__name__)

_USERS: Final = "Redis is full of users' counts, which stay until their day is over"
_REFUSED: Final = "new users of campaigns with a cap are answered 503 overloaded; all others are served"


class Forgetting:
    """`run` it in the engine's nursery."""

    def __init__(self, ledger: Ledger, slowest_look_up_us: Callable[[], int], bucket_us: int) -> None:
        """`slowest_look_up_us` tells of those since it was asked last; `bucket_us` is the age of a bucket's close."""
        self._ledger = ledger
        self._slowest_look_up_us = slowest_look_up_us
        self._memory = MemoryPolicy(bucket_us)

    @property
    def policy(self) -> Policy:
        """What the memory of now asks for."""
        return self._memory.policy

    async def run(self) -> None:
        """Ask, for ever."""
        while True:
            await self.observe()
            await trio.sleep(OBSERVED_SECONDS)

    async def observe(self) -> None:
        """Ask once."""
        found = await self._ledger.memory()
        if found is None:
            return
        used_bytes, max_bytes = found
        before = self.policy
        policy = self._memory.observe(used_bytes, max_bytes, self._slowest_look_up_us())
        metrics.redis_used_bytes.set(used_bytes)
        metrics.dedup_bucket_seconds.set(policy.bucket_us / SECOND_US)
        if before.new_users and not policy.new_users:
            share = f"{megabytes(used_bytes)} of {megabytes(max_bytes)}"
            log.warning("%s (%s used): %s. Give it more: maxmemory", _USERS, share, _REFUSED)
        elif policy.new_users and not before.new_users:
            log.warning("Redis has room again for users of campaigns with a cap (%s used)", megabytes(used_bytes))

    def notes(self) -> list[str]:
        """What is refused now though the engine is ready, a sentence each."""
        return [] if self.policy.new_users else [f"{_USERS}: {_REFUSED}"]
