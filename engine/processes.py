"""Which engine processes live, and the numbers by which their reservations are told apart.

Owns the tags of this process. Knows no store: what a heartbeat brings is handed in.
"""

from __future__ import annotations

from typing import Final

from engine.model import HeartbeatReply

# Of a tag's 63 bits, those that count. A process that makes 10,000 reservations a second lives for three years before
# they are used up, and 8 million processes may be started.
TAG_BITS: Final = 40


class Engines:
    """Which engine processes live, as Postgres told us last. Only recovery asks; safety never does."""

    def __init__(self, own: int) -> None:
        assert own < 1 << (63 - TAG_BITS), "there are no numbers left for engine processes"
        self.own = own
        self.alive: frozenset[int] = frozenset([own])
        self.newest = own
        self._tags = 0

    def heard(self, reply: HeartbeatReply) -> None:
        """Take the news of a heartbeat."""
        self.alive = reply.alive | {self.own}
        self.newest = max(self.newest, reply.newest)

    def next_tag(self) -> int:
        """A number unique for ever: that of this process, and a counter."""
        self._tags += 1
        assert self._tags < 1 << TAG_BITS
        return self.own << TAG_BITS | self._tags

    def orphaned(self, tag: int) -> bool:
        """Whether the engine that made this tag is dead. One that is newer than our news of it is not."""
        return tag >> TAG_BITS <= self.newest and tag >> TAG_BITS not in self.alive
