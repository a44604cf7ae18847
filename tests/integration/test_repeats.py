"""Retries of events from before a loss of Redis, of every kind, on real stores: each is a duplicate."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec
import pytest
import redis
import trio

from config.settings import Settings
from engine import Event
from engine.engine import Engine
from engine.model import SECOND_US, Status, instant_text, new_event_id
from engine.runtime import open_engine
from engine.submission import Entry

pytestmark = pytest.mark.stores

EACH: Final = 10_000  # events of a kind
BATCH: Final = 5_000
HOUR_US: Final = 3_600 * SECOND_US
AHEAD_US: Final = 240 * SECOND_US
FIELDS = {
    "name": "spring", "pricing_model": "cpm", "unit_price": "1.00", "total_budget": "1000", "daily_budget": "1000"
}  # fmt: skip
# What an event's id tells (a UUIDv7's time, or nothing), and its `occurred_at`: how long ago, in micros.
KINDS: Final[dict[str, tuple[int | None, int | None]]] = {
    "v7": (0, None),
    "v7 with a time": (0, 5 * SECOND_US),
    "v4": (None, None),
    "v4 with a time": (None, 0),
    "v7 ahead": (-AHEAD_US, None),
    "v4 with a time ahead": (None, -AHEAD_US),
    "v7 late": (47 * HOUR_US, None),
    "v4 with a late time": (None, 47 * HOUR_US),
}


def made(campaign: int, kind: str) -> list[Event]:
    """Events of one kind, of two users."""
    now_us = time.time_ns() // 1_000
    id_ago_us, ago_us = KINDS[kind]
    return [
        Event(
            campaign_id=campaign,
            user_id=("ada", "bob")[number % 2],
            event_type="impression",
            event_id=uuid.uuid4()
            if id_ago_us is None
            else uuid.UUID(bytes=new_event_id(now_us - id_ago_us, os.urandom(10))),
            occurred_at=None if ago_us is None else instant_text(now_us - ago_us),
        )
        for number in range(EACH)
    ]


async def told(engine: Engine, events: Sequence[Event]) -> set[str]:
    """What the engine says of these events."""
    heard: set[str] = set()
    for start in range(0, len(events), BATCH):
        batch = events[start : start + BATCH]
        submission = await engine.record(batch)
        verdicts = [submission.verdicts.get(index) for index in range(len(batch))]
        heard |= {Status.ACCEPTED.value if each is None else str(each.reason or each.status) for each in verdicts}
    return heard


async def told_in_time(engine: Engine, events: Sequence[Event]) -> set[str]:
    """The same, once its campaign is open."""
    with trio.fail_after(30):
        while "unavailable" in (heard := await told(engine, events)):  # noqa: ASYNC110
            await trio.sleep(0.1)
    return heard


async def test_a_retry_of_an_event_from_before_the_loss_of_redis_is_a_duplicate(
    database_url: str, redis_url: str
) -> None:
    """Ten thousand of each kind: after Redis was emptied, and by an engine that knows nothing of before."""
    sent: dict[str, list[Event]] = {}
    async with open_engine(Settings(), db_url=database_url, redis_url=redis_url) as engine:
        for kind in KINDS:
            campaign = (await engine.create_campaign(FIELDS)).campaign.id
            sent[kind] = made(campaign, kind)
            assert await told_in_time(engine, sent[kind]) == {"accepted"}
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        for kind, events in sent.items():
            assert await told_in_time(engine, events) == {"duplicate"}, kind
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    async with open_engine(Settings(), db_url=database_url, redis_url=redis_url) as engine:
        for kind, events in sent.items():
            assert await told_in_time(engine, events[:BATCH]) == {"duplicate"}, kind
            assert await told_in_time(engine, made(events[0].campaign_id, kind)[:10]) == {"accepted"}, kind


async def test_an_id_that_the_server_made_is_that_of_its_event_for_ever(database_url: str, redis_url: str) -> None:
    """Sent again with the id that its first answer told, and its own time, it is a duplicate: also without Redis."""
    now_us = time.time_ns() // 1_000
    async with open_engine(Settings(), db_url=database_url, redis_url=redis_url) as engine:
        campaign = (await engine.create_campaign(FIELDS)).campaign.id
        for ago_us in (None, 0, 30 * HOUR_US, -AHEAD_US):
            occurred_at = None if ago_us is None else instant_text(now_us - ago_us)
            event = Event(campaign_id=campaign, user_id="ada", event_type="impression", occurred_at=occurred_at)
            submission = await engine.record([event])
            assert not submission.verdicts
            (entry,) = submission.entries
            assert isinstance(entry, Entry)
            again = msgspec.structs.replace(event, event_id=uuid.UUID(bytes=entry.event_id))
            assert await told(engine, [again]) == {"duplicate"}
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
            assert await told_in_time(engine, [again]) == {"duplicate"}
