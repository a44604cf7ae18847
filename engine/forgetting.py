"""How short of memory Redis is, asked once a second, and what follows from that for every campaign of this process.

Redis tells its time with it: ages of buckets are told by its clock, or they would be of several engines' clocks.
Owns the loop, the policy that is in force, and what is said of it in the log and to `/readyz`. What so much memory asks
for is decided in `memory.py`. Knows of Redis only `Ledger.memory`. While Redis can't be asked, the policy stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from engine import metrics
from engine.memory import OBSERVED_SECONDS, MemoryPolicy, megabytes
from engine.model import SECOND_US
from engine.ports import Clock, Ledger

log = logging.getLogger(__name__)

_REFUSED: Final = (
    "Redis is nearly full: new users of campaigns with a cap are answered 503 overloaded; all others are served"
)
# As a rule it is full of users' counts; what is said must be true where something else fills it, too.
_MORE: Final = "It forgets ids as soon as it can, and users when their day is over. Give it more: maxmemory"
# An answer that took longer tells Redis's time too vaguely.
_PRECISE_US: Final = SECOND_US // 2


class Forgetting:
    """`run` it in the engine's nursery."""

    def __init__(self, ledger: Ledger, clock: Clock, slowest_look_up_us: Callable[[], int], bucket_us: int) -> None:
        """`slowest_look_up_us` tells of those since it was asked last; `bucket_us` is the age of a bucket's close."""
        self._ledger = ledger
        self._clock = clock
        self._slowest_look_up_us = slowest_look_up_us
        self._memory = MemoryPolicy(bucket_us)
        self.policy = self._memory.policy  # what the memory of now asks for

    @property
    def slowest_look_up_us(self) -> int:
        """The slowest look-up of this engine in the last minute."""
        return self._memory.slowest_lookup_us

    def heard(self, slowest_elsewhere_us: int) -> None:
        """Other engines look up in the same buckets, the slowest of them so slowly."""
        self._memory.slowest_elsewhere_us = slowest_elsewhere_us

    async def run(self) -> None:
        """Ask, for ever."""
        while True:
            await self.observe()
            await trio.sleep(OBSERVED_SECONDS)

    async def observe(self) -> None:
        """Ask once."""
        asked_us = self._clock.now_us()
        found = await self._ledger.memory()
        if found is None:
            return
        used_bytes, max_bytes, redis_us = found
        before, heard_us, ahead_us = self.policy, self._clock.now_us(), self.policy.redis_ahead_us
        if redis_us is not None and heard_us - asked_us <= _PRECISE_US:
            ahead_us = redis_us - (asked_us + heard_us) // 2
        policy = self._memory.observe(used_bytes, max_bytes, self._slowest_look_up_us())
        self.policy = replace(policy, redis_ahead_us=ahead_us)
        metrics.new_users_refused.set(not policy.new_users)
        metrics.redis_used_bytes.set(used_bytes)
        metrics.dedup_bucket_seconds.set(policy.bucket_us / SECOND_US)
        if before.new_users and not policy.new_users:
            share = f"{megabytes(used_bytes)} of {megabytes(max_bytes)}"
            log.warning("%s (%s used). %s", _REFUSED, share, _MORE)
        elif policy.new_users and not before.new_users:
            log.warning("Redis has room again for users of campaigns with a cap (%s used)", megabytes(used_bytes))

    def notes(self) -> list[str]:
        """What is refused now though the engine is ready, a sentence each."""
        return [] if self.policy.new_users else [_REFUSED]
