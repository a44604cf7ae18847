"""Redis's memory as policy: when buckets of the dedup window close, and whether capped campaigns take new users.

Owns the shares of memory at which something changes, and what so much memory holds. Knows no Redis and no clock, and no
200 rests on it: a bucket may close at any age, and what is refused is refused as overload.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from engine.model import SECOND_US

# How often `MemoryPolicy.observe` is told what Redis uses. Full rate fills 9 MB meanwhile: 3 % of 256 MB.
OBSERVED_SECONDS: Final = 1.0

# Below this share of its memory Redis keeps ids for as long as the setting says. After the first close of buckets their
# ids are still there, and a close frees the bucket before it: memory can rise by a third before the age tells.
FULL_AGE_SHARE: Final = 0.5
# From this share on buckets close at their least age, if look-ups are quick. A bucket that doubles its hash table adds
# up to a tenth of 256 MB: with 0.7 here, simulated use at full rate reached 0.79; with 0.65 it stays below 0.7.
LEAST_AGE_SHARE: Final = 0.65
# Ids of two such buckets at full rate are 40 MB: the smallest Redis that is allowed (64 MB) has room for them. An
# ordinary look-up takes milliseconds, and a fresh event a fraction of a second from its sender to Redis.
BUCKET_MIN_US: Final = 2 * SECOND_US
# A look-up counts only in the bucket in which it was sent: in one that is so many times as old, one of four at most
# has to be sent again. So slow look-ups let buckets grow older, up to this share, where memory wins: buckets close at
# `BUCKET_MIN_US`, and events whose look-ups take longer are answered 503 `unavailable`. With 0.75, simulated use of
# 256 MB at full rate stays below 0.85, whatever look-ups take.
LOOKUPS_LOSE_SHARE: Final = 0.75
_LOOKUPS_A_BUCKET: Final = 4
_LOOKUPS_RECENT: Final = round(60 / OBSERVED_SECONDS)  # observations: a slow minute of Postgres is over by then
# A bucket frees its memory one bucket later. If the age followed what Redis uses upwards at once, it would be far too
# high by then, and then far too low: buckets of 10 and 60 s in turn, where 33 would do. So it rises by half a second a
# second, and each bucket lives at most twice as long as the one before.
_RISE_US: Final = round(0.5 * OBSERVED_SECONDS * SECOND_US)

# Buckets of equal campaigns would close at once, and to free half of Redis in one go takes a core for a minute
# (measured: half of the throughput). So each campaign's live up to this part longer, in an order of their own.
SPREAD: Final = 0.25
_GOLDEN: Final = (5**0.5 - 1) / 2  # its multiples lie evenly between 0 and 1, however many there are

# Ids are at their least age from `LOOKUPS_LOSE_SHARE` on, so what fills Redis to this share is users, as a rule: they
# stay until their day is over. What is left takes the users of one observation, and of the calls that are under way.
NO_NEW_USERS_SHARE: Final = 0.85
NEW_USERS_SHARE: Final = 0.80
# Two buckets of the least age swing by more than the 0.05 between: a minute below it is longer than they live.
_NEW_USERS_AFTER: Final = round(60 / OBSERVED_SECONDS)  # observations

# `python -m bench.memory` weighs 72 to 87 bytes an id, and 80 to 95 a user whose name is a UUID: the more the emptier
# their hash tables, which double. So they are counted at their most.
BYTES_AN_ID: Final = 90
BYTES_A_USER: Final = 95
_MB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Policy:
    """What the memory of now asks for."""

    bucket_us: int  # the age at which a bucket of the dedup window closes
    new_users: bool  # whether capped campaigns take users that Redis does not know yet
    redis_ahead_us: int = 0  # Redis's clock less ours: by Redis's, ages of buckets are the same for all engines


class MemoryUse(NamedTuple):
    """What Redis says of its memory."""

    used_bytes: int
    max_bytes: int  # 0: no limit
    now_us: int | None  # by its clock; None: it does not say


class MemoryPolicy:
    """Follows what Redis uses, observation by observation, `OBSERVED_SECONDS` apart. One an engine process."""

    def __init__(self, bucket_us: int) -> None:
        """`bucket_us` is the age at which buckets close while memory is plenty."""
        self._bucket_us = bucket_us
        self._lookups: deque[int] = deque(maxlen=_LOOKUPS_RECENT)
        self.slowest_elsewhere_us = 0  # the slowest look-up of other engines lately: they look up in the same buckets
        self._used_bytes: int | None = None
        self._rise_bytes = 0
        self._below = 0  # observations in a row below NEW_USERS_SHARE
        self.policy = Policy(bucket_us, new_users=True)  # the latest

    @property
    def slowest_lookup_us(self) -> int:
        """The slowest look-up of this engine in the last minute."""
        return max(self._lookups, default=0)

    def observe(self, used_bytes: int, max_bytes: int, slowest_lookup_us: int) -> Policy:
        """What Redis uses, and may use (0: no limit), now; the policy that follows.

        `slowest_lookup_us` is the slowest look-up since the last observation, with the age of those that are still
        under way; 0 if there was none. It is remembered here for a minute.
        """
        first = self._used_bytes is None
        self._lookups.append(slowest_lookup_us)
        ahead_bytes = self._foreseen(used_bytes)
        if not max_bytes:
            self._below = 0
            self.policy = Policy(self._most_us(), new_users=True)
            return self.policy
        share = (used_bytes + ahead_bytes) / max_bytes
        wanted_us = self._age_us(share)
        reached_us = wanted_us if first else self.policy.bucket_us + _RISE_US
        bucket_us = max(min(wanted_us, reached_us), self._least_us(share))
        self.policy = Policy(bucket_us, self._takes_new_users(used_bytes / max_bytes))
        return self.policy

    def _foreseen(self, used_bytes: int) -> int:
        """How much more is used at the next observation: the lesser of the last two rises.

        (A hash that doubles its table rises once. That is no rate.)
        """
        rise = 0 if self._used_bytes is None else max(0, used_bytes - self._used_bytes)
        before, self._used_bytes, self._rise_bytes = self._rise_bytes, used_bytes, rise
        return min(before, rise)

    def _age_us(self, share: float) -> int:
        part = (share - FULL_AGE_SHARE) / (LEAST_AGE_SHARE - FULL_AGE_SHARE)
        return _between(self._most_us(), self._least_us(share), part)

    def _most_us(self) -> int:
        return max(self._bucket_us, self._needed_us())

    def _least_us(self, share: float) -> int:
        """No younger than look-ups need, until memory wins."""
        needed_us = min(self._most_us(), max(BUCKET_MIN_US, self._needed_us()))
        least_us = min(self._bucket_us, BUCKET_MIN_US)
        return _between(needed_us, least_us, (share - LEAST_AGE_SHARE) / (LOOKUPS_LOSE_SHARE - LEAST_AGE_SHARE))

    def _needed_us(self) -> int:
        return _LOOKUPS_A_BUCKET * max(self.slowest_lookup_us, self.slowest_elsewhere_us)

    def _takes_new_users(self, share: float) -> bool:
        if share >= NO_NEW_USERS_SHARE:
            self._below = 0
            return False
        if self.policy.new_users:
            return True
        self._below = self._below + 1 if share < NEW_USERS_SHARE else 0
        return self._below >= _NEW_USERS_AFTER


def _between(most_us: int, least_us: int, part: float) -> int:
    """From the most to the least, by the same factor with each part of the way: no step, at any size of memory."""
    return round(most_us * math.pow(least_us / most_us, min(max(part, 0.0), 1.0)))


def bucket_times(number: int) -> float:
    """How many times as old as the policy says a campaign's buckets become, by the campaign's number: 1 to 1.25."""
    return 1 + SPREAD * (number * _GOLDEN % 1)


def capacity(max_bytes: int) -> str:
    """What so much memory holds, in a sentence without its end. Not for 0, which is no limit."""
    ids = int(max_bytes * LEAST_AGE_SHARE) // BYTES_AN_ID
    rate = round(ids * SECOND_US / (2 * BUCKET_MIN_US * (1 + SPREAD)))
    users = int(max_bytes * NO_NEW_USERS_SHARE) // BYTES_A_USER
    return (
        f"about {_rounded(ids)} ids at once: at most {_rounded(rate)} events/s at the shortest dedup window, or "
        f"{_rounded(users)} users of capped campaigns a day"
    )


def megabytes(count: int) -> str:
    """A number of bytes, as people read it."""
    return f"{count / _MB:,.0f} MB"


def _rounded(number: int) -> str:
    """Two digits are as exact as the bytes that they rest on."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{number // unit * unit:,}"
