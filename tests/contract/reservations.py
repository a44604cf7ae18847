"""Calls and campaigns that ledger tests start from."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

import redis

from config.settings import Settings
from engine.leftovers import SweptLedger
from engine.model import CampaignId, CampaignSpend, EventId, Micros
from engine.ports import (
    BILLABLE,
    FREE,
    NO_CAP,
    NO_TIME,
    NONE_LOOKED_UP,
    BeginReply,
    Done,
    Ledger,
    LoadReply,
    ReadyReply,
    Reserve,
    Reserved,
    ReserveReply,
    Resolve,
    ResolveReply,
)
from engine.redis.ledger import open_ledger
from engine.steps import Begin, Emptied, LoadUsers, Ready
from tests.fakes.ledger import FakeLedger

CAMPAIGN = CampaignId(7)
DAY = 20_000
AT_US = DAY * 86_400_000_000 + 3_600_000_000  # now
BUCKET_US = 480_000_000  # age at which a bucket closes
COST = 1_000
PLENTY = 1_000_000_000_000

_tags = itertools.count(5 << 40)


class Rig(Protocol):
    """A ledger, and what can befall its memory."""

    ledger: SweptLedger

    def forget(self) -> None:
        """Nothing is left of the memory."""
        ...

    def restart(self) -> None:
        """The data is back, in another memory image."""
        ...

    def full(self) -> AbstractContextManager[None]:
        """Out of memory, for a while."""
        ...


class FakeRig:
    """The fake."""

    def __init__(self) -> None:
        self.fake = FakeLedger()
        self.ledger: SweptLedger = self.fake

    def forget(self) -> None:
        """Nothing is left."""
        self.fake.forget()

    def restart(self) -> None:
        """Another image."""
        self.fake.restart()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Full because we say so."""
        self.fake.full = True
        yield
        self.fake.full = False


class RedisRig:
    """A real Redis."""

    def __init__(self, ledger: SweptLedger, client: redis.Redis) -> None:
        self.ledger = ledger
        self.client = client

    def forget(self) -> None:
        """Nothing is left, not even the library."""
        self.client.flushall()
        self.client.function_flush("SYNC")

    def restart(self) -> None:
        """What was written names another image than ours."""
        for key in self.client.scan_iter("*:s"):
            self.client.hset(key, "run", "another run and replication")

    @contextmanager
    def full(self) -> Iterator[None]:
        """Any memory is too much."""
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)


@asynccontextmanager
async def redis_rig(redis_url: str) -> AsyncIterator[RedisRig]:
    """A rig on this Redis."""
    async with open_ledger(redis_url, Settings()) as ledger:
        with redis.Redis.from_url(redis_url) as client:
            yield RedisRig(ledger, client)


def new_ids(events: int) -> bytes:
    """Ids never seen before."""
    return random.randbytes(16 * events)


def reserve(events: int = 1, /, **fields: Any) -> Reserve:
    """Events with ids of their own, billable at 0.001, without limits, none looked up; changed by `fields`.

    `time_us` is the id time of all of them.
    """
    time_us = fields.pop("time_us", AT_US)
    ids = fields.get("ids") or new_ids(events)
    events = len(ids) // 16
    values: dict[str, Any] = {
        "campaign_id": CAMPAIGN,
        "generation": 1,
        "tag": next(_tags),
        "plan_version": 1,
        "day": DAY,
        "at_us": AT_US,
        "bucket_us": BUCKET_US,
        "unlooked_us": time_us,
        "looked_bucket": NONE_LOOKED_UP,
        "most_us": time_us,
        "most_ahead_us": NO_TIME,
        "total_budget_micros": PLENTY,
        "daily_budget_micros": PLENTY,
        "allowance_micros": PLENTY,
        "cap": NO_CAP,
        "cost_micros": COST,
        "new_users": True,
        "kinds": bytes([BILLABLE]) * events,
        "ids": ids,
        "users": [f"user {at}" for at in range(events)],
    }
    return Reserve(**{**values, **fields})


def spend(spent: int = 0, day: int = DAY, today: int | None = None) -> CampaignSpend:
    """A ledger row's sums."""
    return CampaignSpend(Micros(spent), day, Micros(spent if today is None else today))


async def opened(ledger: Ledger, campaign_id: CampaignId = CAMPAIGN, **fields: Any) -> None:
    """Open a campaign under generation 1, with nothing spent."""
    assert await begin(ledger, campaign_id, 1) == Emptied()
    sums, latest_us = fields.get("sums", spend()), fields.get("latest_us", 0)
    assert await ready(ledger, campaign_id, 1, sums, fields.get("version", 1), latest_us=latest_us) == Done()


async def begin(ledger: Ledger, campaign_id: CampaignId, generation: int) -> BeginReply:
    """Begin one recovery."""
    return (await ledger.begin([Begin(campaign_id, generation)]))[0]


async def settle(ledger: Ledger, campaign_id: CampaignId, generation: int, tag: int, *, commit: bool) -> LoadReply:
    """Settle one reservation of a closed campaign."""
    return (await ledger.settle([Resolve(campaign_id, generation, tag, commit)]))[0]


async def load_users(
    ledger: Ledger, campaign_id: CampaignId, generation: int, users: Sequence[tuple[str, int]]
) -> LoadReply:
    """Load one chunk of users."""
    return (await ledger.load([LoadUsers(campaign_id, generation, users)]))[0]


def to_open(
    campaign_id: CampaignId,
    generation: int,
    sums: CampaignSpend,
    plan_version: int,
    *,
    latest_us: int = 0,
    users_loaded: bool = True,
) -> Ready:
    """The call that opens a campaign."""
    return Ready(campaign_id, generation, sums, plan_version, latest_us, AT_US, users_loaded)


async def ready(
    ledger: Ledger, campaign_id: CampaignId, generation: int, sums: CampaignSpend, plan_version: int, **fields: Any
) -> ReadyReply:
    """Open one campaign again."""
    return (await ledger.ready([to_open(campaign_id, generation, sums, plan_version, **fields)]))[0]


def reserved(letters: bytes, total_micros: int, today_micros: int) -> Reserved:
    """A reply of a campaign whose first bucket is still the current one, and whose watermark is 0."""
    return Reserved(letters, total_micros, today_micros, 0, 0)


async def ask_all(ledger: Ledger, calls: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
    """A round of one part."""
    replies: list[ReserveReply | ResolveReply] = []
    await ledger.round([calls], replies.extend)
    return replies


async def ask(ledger: Ledger, call: Reserve | Resolve) -> ReserveReply | ResolveReply:
    """A round of one call."""
    return (await ask_all(ledger, [call]))[0]


async def letters(ledger: Ledger, call: Reserve) -> bytes:
    """The letters of a call that must be answered."""
    reply = await ask(ledger, call)
    assert isinstance(reply, Reserved), reply
    return reply.letters


async def fill(ledger: Ledger, campaign_id: CampaignId, generation: int, day: int, at_us: int, chunks: int) -> bool:
    """Let an open campaign hold so many thousand ids that are committed, as of that time; whether there was room."""
    tag, room = 0, True
    for _ in range(chunks):
        call = reserve(
            1_000,
            campaign_id=campaign_id,
            generation=generation,
            day=day,
            at_us=at_us,
            time_us=at_us,
            kinds=bytes([FREE]) * 1_000,
            committed=[tag],
        )
        room = room and isinstance(await ask(ledger, call), Reserved)
        tag = call.tag
    await ask(ledger, Resolve(campaign_id, generation, tag, commit=True))
    return room


def commit(call: Reserve) -> Resolve:
    """Tell that a reservation is durable."""
    return Resolve(call.campaign_id, call.generation, call.tag, commit=True)


def void(call: Reserve) -> Resolve:
    """Undo a reservation."""
    return Resolve(call.campaign_id, call.generation, call.tag, commit=False)


def ids_of(call: Reserve) -> list[EventId]:
    """The call's ids, one by one."""
    return [EventId(call.ids[at : at + 16]) for at in range(0, len(call.ids), 16)]
