"""What the audit asks of Redis: the state and the pending reservations of campaigns, changing nothing.

Owns the reading of the keys that functions.lua writes (their forms are told there). One MULTI reads state, pending
records and the identity of the memory image, so they fit each other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
import redis
import trio

from config.settings import Settings
from engine.audit import Pending, RedisFacts, Window
from engine.errors import StoreUnavailable
from engine.model import CampaignId
from engine.redis.calls import FORMAT, keys_of, unpack_tag

_WINDOW: Final = struct.Struct(">5d")  # bucket, began, watermark, two highest id times
_BUCKETS: Final = 4  # of a dedup window
_FIELDS: Final = ("gen", "run", "open", "day", "total", "today")
# day, two buckets, amount, ids in one string, users. Ids are no text, so they are left as they came.
_RECORD: Final = msgspec.msgpack.Decoder(tuple[int, int, int, int, msgspec.Raw, msgspec.Raw])


class RedisReader:
    """Reads campaigns from one Redis. Get one with `open_reader`."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def read(self, campaign_ids: Sequence[int]) -> dict[int, RedisFacts]:
        """Those of the campaigns that are open in the present memory image. Raises `StoreUnavailable`."""
        return await trio.to_thread.run_sync(self._read, campaign_ids)

    def _read(self, campaign_ids: Sequence[int]) -> dict[int, RedisFacts]:
        with mapped_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.info("server")
            pipe.info("replication")
            for campaign in campaign_ids:
                state, pending, *_ = keys_of(CampaignId(campaign))
                pipe.hmget(state, _FIELDS)
                pipe.hgetall(pending)
            server, replication, *values = pipe.execute()
        image = _image(server, replication)
        states = zip(campaign_ids, values[::2], values[1::2], strict=True)
        return {campaign: _facts(state, pending) for campaign, state, pending in states if state[1:3] == [image, b"1"]}

    async def unknown(self, ids: Mapping[int, Sequence[bytes]]) -> dict[int, tuple[Window, list[bytes]]]:
        """The window of each campaign that is open in the present memory image, and those of the ids it doesn't know.

        Raises `StoreUnavailable`.
        """
        return await trio.to_thread.run_sync(self._unknown, ids)

    def _unknown(self, ids: Mapping[int, Sequence[bytes]]) -> dict[int, tuple[Window, list[bytes]]]:
        with mapped_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.info("server")
            pipe.info("replication")
            for campaign, wanted in ids.items():
                state, _, _, *buckets = keys_of(CampaignId(campaign))
                pipe.hmget(state, ("gen", "run", "open", "window"))
                for bucket in buckets if wanted else ():
                    pipe.hmget(bucket, wanted)
            server, replication, *values = pipe.execute()
        image, replies = _image(server, replication), iter(values)
        found: dict[int, tuple[Window, list[bytes]]] = {}
        for campaign, wanted in ids.items():
            generation, run, is_open, window = next(replies)
            tags = [next(replies) for _ in range(_BUCKETS)] if wanted else []
            if (run, is_open) == (image, b"1"):
                unknown = [each for each, *known in zip(wanted, *tags, strict=True) if not any(known)]
                found[campaign] = Window(int(generation), int(_WINDOW.unpack(window)[2])), unknown
        return found


@contextmanager
def open_reader(redis_url: str, settings: Settings) -> Iterator[RedisReader]:
    """A reader with a connection of its own, opened at the first read."""
    with redis.Redis.from_url(redis_url, socket_timeout=settings.ledger_timeout_seconds) as client:
        yield RedisReader(client)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn redis-py's errors into `StoreUnavailable`."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis: {str(error) or type(error).__name__}", certain=True) from error


def _image(server: Mapping[str, object], replication: Mapping[str, object]) -> bytes:
    """What a state of the present memory image says of itself: functions.lua, `run`."""
    return f"{server['run_id']} {replication['master_replid']} {FORMAT}".encode()


def _facts(state: Sequence[bytes], pending: Mapping[bytes, bytes]) -> RedisFacts:
    gen, _, _, day, total, today = state
    return RedisFacts(int(gen), int(day), int(total), int(today), tuple(map(_pending, pending.items())))


def _pending(record: tuple[bytes, bytes]) -> Pending:
    tag, packed = record
    day, _, _, amount, ids, _ = _RECORD.decode(packed)
    return Pending(unpack_tag(tag), bytes(ids)[-16:], day, amount)
