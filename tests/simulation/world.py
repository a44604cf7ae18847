"""What every simulated engine shares: one random source, one time, the stores, the weather, and the trace.

Owns the faults of the stores themselves. Knows no engine: those see the world through `network.py`.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

import trio
from trio import sleep  # (engines sleep by a gate of their own: cluster.py)

from config.settings import Settings
from engine.leftovers import Advance
from engine.memory import SPREAD
from engine.model import DAY_US, SECOND_US, us_from_datetime
from tests.fakes.ledger import FakeLedger
from tests.fakes.store import FakeStore
from tests.simulation.checker import Checker

if TYPE_CHECKING:
    from tests.simulation.network import Trip

ZONES: Final = ("UTC", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati")
# Days around which a run begins: an ordinary one, a leap day, and two on which New York changes its clocks.
DATES: Final = ((2026, 1, 15), (2028, 2, 29), (2026, 3, 8), (2026, 11, 1))
DAY_SECONDS: Final = 86_400
TRACE_LINES: Final = 400
MAX_BYTES: Final = 1_000  # of Redis
REDIS, POSTGRES = "redis", "postgres"


@dataclass
class Weather:
    """How the network is: chances that one exchange goes wrong, and how. Calm unless told otherwise."""

    refused: float = 0.0
    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    pace_seconds: float = 0.001

    @classmethod
    def of(cls, source: random.Random) -> Weather:
        """Any weather: of each trouble none, a little or much."""
        refused, lost, unanswered, late, slow = (source.choice((0.0, 0.0, 0.0, 0.01, 0.03, 0.1)) for _ in range(5))
        return cls(refused, lost, unanswered, late, slow, source.choice((0.0, 0.001, 0.01, 0.3)))


class World:
    """One seed's world."""

    def __init__(self, source: random.Random, nursery: trio.Nursery, say: Callable[[str], None] | None) -> None:
        self.source = source
        self.nursery = nursery
        self.weather = Weather()
        self.calm = False  # everything is mended: no weather, no faults
        self.start_us = self._start_us()
        self.leapt_us = 0
        self.counts: Counter[str] = Counter()
        self.lines: deque[str] = deque(maxlen=TRACE_LINES)
        self._digest = hashlib.blake2b()
        self._say = say
        bucket, ahead, clock = source.choice(((1, 300, 30), (3, 20, 20), (90, 20, 20), (150, 0, 30), (480, 300, 30)))
        small = source.random() < 0.3
        self.settings = Settings(
            dedup_bucket_seconds=bucket,
            occurred_past_seconds=source.choice((172_800, 172_800, 120)),  # some retries come when they are too old
            occurred_ahead_seconds=ahead,
            clock_refuse_seconds=clock,
            actor_idle_seconds=source.choice((1, 20, 60)),
            reserve_events_max=2 if small else 1_000,
            round_events_max=3 if small else 5_000,
            flush_events_max=4 if small else 10_000,
            request_events_max=12 if small else 5_000,
            mailbox_events_max=12 if small else 20_000,
        )
        self.store = FakeStore(self.now_us)
        self.store.hold = self._hold
        self.memory_is_short = True  # at times, in some worlds
        self._used_bytes = source.choice(((0,), (0,), (580,), (700,), (0, 580, 700, 900)))
        self._images = 1
        self.redis = FakeLedger()
        self.others: list[FakeLedger] = []  # servers that believe they lead, too
        self.copies: deque[FakeLedger] = deque(maxlen=4)  # old states of Redis
        self.redis_away = self.postgres_away = False
        self.stuck = 0  # so many of the next COMMITs hang
        self._unstuck = trio.Event()
        self.in_flight: dict[Trip, None] = {}
        self.checker = Checker(self.store, self.servers, self.now_us)

    # --- time and trace -------------------------------------------------------------------------------------

    def _start_us(self) -> int:
        """A few minutes before midnight, here or there; or any time."""
        source = self.source
        zone = ZoneInfo(source.choice(ZONES))
        midnight = datetime(*source.choice(DATES), tzinfo=zone) + timedelta(days=1)
        return us_from_datetime(midnight.astimezone(UTC)) - source.choice((5, 60, 300, 40_000)) * SECOND_US

    def now_us(self) -> int:
        """The true time, which is Postgres's."""
        return self.start_us + self.leapt_us + int(trio.current_time() * SECOND_US)

    def clock_offset_us(self) -> int:
        """How far a machine's clock is off: most often not so far that its engine refuses to serve."""
        worst = int(self.settings.clock_refuse_seconds) - 3
        if self.source.random() < 0.1:
            return self.source.choice((worst + 10, -worst - 10, 3_600, DAY_SECONDS, -DAY_SECONDS)) * SECOND_US
        return self.source.choice((0, 0, 1, -1, worst, -worst)) * SECOND_US

    def leap(self, to_midnight_of: str | None, *, before_seconds: int = 2) -> None:
        """Let hours pass in no time, for everybody: as if the machines had slept."""
        now_us = self.now_us()
        if to_midnight_of is None:
            bucket = self.settings.dedup_bucket_seconds
            leap_us = self.source.choice((30, bucket // 2, bucket, bucket + 20, 2 * bucket, 7_200)) * SECOND_US
        else:
            local = datetime.fromtimestamp(now_us // SECOND_US, ZoneInfo(to_midnight_of))
            midnight = datetime(local.year, local.month, local.day, tzinfo=local.tzinfo) + timedelta(days=1)
            leap_us = max(0, us_from_datetime(midnight.astimezone(UTC)) - now_us - before_seconds * SECOND_US)
        self._leap_by(leap_us)

    def leap_over_midnight(self) -> None:
        """From a few seconds before it, and not for so long that requests end."""
        self._leap_by(6 * SECOND_US)

    async def close_buckets(self) -> None:
        """Let the current bucket of every campaign be closed: when it is old enough, or in no time.

        Both are policy: a sweep does it at any age where memory is that short.
        """
        if self.source.random() < 0.1:
            self._leap_by(round(self.settings.dedup_bucket_seconds * (1 + SPREAD) * SECOND_US))
            return
        self.note("world", "closes buckets")
        for campaign_id, book in list(self.redis.books.items()):
            if book.sums is not None:
                at_us = max(self.now_us(), book.began_us)
                await self.redis.give_back([Advance(campaign_id, book.generation, book.sums.day, at_us, 0)])

    def _leap_by(self, leap_us: int) -> None:
        if self.leapt_us + leap_us < 2 * DAY_US:
            self.leapt_us += leap_us
            self.note("leap", f"{leap_us / SECOND_US:.0f} s")

    def note(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        line = f"{trio.current_time():10.4f} {who:<10} {what}"
        self._digest.update(line.encode())
        self.lines.append(line)
        if self._say is not None:
            self._say(line)

    @property
    def digest(self) -> str:
        """A hash of the whole trace."""
        return self._digest.hexdigest()[:16]

    def used_bytes(self) -> int:
        """What Redis uses: in some worlds so much that buckets close soon, or that new users are refused."""
        return self.source.choice(self._used_bytes) if self.memory_is_short and not self.calm else 0

    # --- Redis ----------------------------------------------------------------------------------------------

    def servers(self) -> list[FakeLedger]:
        """Every Redis that believes it leads."""
        return [self.redis, *self.others]

    def _as_new_image(self, server: FakeLedger) -> FakeLedger:
        self._images += 1
        server.image = self._images
        return server

    def restart_redis(self, *, emptied: bool) -> None:
        """A new memory image, with or without the old data."""
        if emptied:
            self.redis.books.clear()
        self._as_new_image(self.redis)
        self.break_connections(REDIS)

    def keep_copy(self) -> None:
        """What a backup or a lagging replica has."""
        self.copies.append(copy.deepcopy(self.redis))

    def fail_over(self, *, split: bool) -> None:
        """To an old copy, which is another image; `split`: the old server goes on, for those who still reach it."""
        if not self.copies:
            return
        old, self.redis = self.redis, self._as_new_image(copy.deepcopy(self.source.choice(self.copies)))
        self.redis.full = False
        if split:
            self.others = [old]
        self.break_connections(REDIS)

    def heal_split(self, *, back: bool) -> None:
        """One of the two servers is found to lead."""
        if self.others and back:
            self.redis = self.others[0]
        self.others = []

    # --- Postgres -------------------------------------------------------------------------------------------

    async def _hold(self) -> None:
        """A COMMIT that hangs, and holds its ledger rows."""
        if self.stuck > 0:
            self.stuck -= 1
            with trio.move_on_after(self.source.choice((0.5, 8, 30))):
                await self._unstuck.wait()

    def unstick(self) -> None:
        """What hangs goes on."""
        self._unstuck.set()
        self._unstuck = trio.Event()

    def restart_postgres(self) -> None:
        """Every session ends; what was committing is in or out."""
        self.break_connections(POSTGRES)
        self.unstick()

    def break_connections(self, to: str) -> None:
        """What is under way to a store gets no answer; some of it is carried out."""
        for trip in [trip for trip in self.in_flight if trip.to == to]:
            trip.end(carried_out=self.source.random() < 0.5)

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        await sleep(seconds)
