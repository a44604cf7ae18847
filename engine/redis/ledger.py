"""`Ledger` over Redis: each call a command, each round one pipelined exchange.

Owns the pool of connections, and what is checked of a Redis before it is trusted. Nothing is ever sent twice by
itself, because a repeated reserve is not the same call. Knows no actor and no Postgres; `connection.py` tells how
certain an answer is.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, Final

import redis
import trio
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.settings import Settings, SettingsError
from engine.clock import machine_us
from engine.errors import ConfigurationUnsafe, StoreUnavailable
from engine.leftovers import Advance, Drop, GiveBackReply, Survey
from engine.memory import BUCKET_MIN_US, MemoryUse, capacity, megabytes
from engine.model import CampaignId
from engine.ports import (
    BeginReply,
    LoadReply,
    NotRun,
    ReadyReply,
    Reserve,
    ReserveReply,
    Resolve,
    ResolveReply,
    Unknown,
)
from engine.redis import calls
from engine.redis.calls import Command
from engine.redis.connection import Connection, Part
from engine.steps import Begin, LoadUsers, Ready

# Besides the round's own connection and those of the recoveries: probes, the look for orphans, the sweep,
# and the question of how much memory is used.
_OTHER_CONNECTIONS: Final = 4
VERSION_MIN: Final = (7, 0)
_INFO: Final = ("server", "memory", "replication", "stats", "cluster")
# Keys that one SCAN looks at: seven a campaign. Redis does nothing else for 0.1 ms, and 1.5 ms for the looks at them.
_SCANNED: Final = 500

_log = logging.getLogger(__name__)


class RedisLedger:
    """See `engine.ports.Ledger`. Get one with `open_ledger`."""

    def __init__(
        self,
        make: Callable[[], Any],
        connections: int,
        timeout_seconds: float,
        now_us: Callable[[], int] = machine_us,
    ) -> None:
        """`make` gives a connection of redis-py, not yet connected. `now_us` is compared with Redis's clock."""
        self._now_us = now_us
        self._idle = [Connection(make, timeout_seconds) for _ in range(connections)]
        self._free = trio.Semaphore(connections)
        self._library = files("engine.redis").joinpath("functions.lua").read_text()

    async def round(
        self,
        parts: Iterable[Sequence[Reserve | Resolve]],
        heard: Callable[[Sequence[ReserveReply | ResolveReply]], None],
    ) -> None:
        """One pipelined round trip, part by part."""
        sent: deque[Sequence[Reserve | Resolve]] = deque()
        refused: list[Reserve] = []

        def commands() -> Iterator[list[Command]]:
            for part in parts:
                sent.append(part)
                yield [calls.round_command(call) for call in part]

        def hear(replies: list[Any]) -> None:
            for call, reply in zip(sent.popleft(), replies, strict=True):
                if calls.is_out_of_memory(reply) and isinstance(call, Reserve):
                    refused.append(call)
            heard([calls.read_reply(reply) for reply in replies])

        await self._exchange(commands(), hear)
        if refused:
            # Room comes from days and buckets that end with a reserve, which Redis now refuses.
            await self._send([calls.advance_command(_forget(call)) for call in refused])

    async def begin(self, calls_: Sequence[Begin]) -> list[BeginReply]:
        """Close campaigns under new generations."""
        commands = [calls.begin_command(call.campaign_id, call.generation) for call in calls_]
        return [calls.read_begin(reply) for reply in await self._send(commands)]

    async def settle(self, calls_: Sequence[Resolve]) -> list[LoadReply]:
        """Settle reservations of closed campaigns."""
        commands = [
            calls.resolve_command(call.campaign_id, call.generation, call.tag, commit=call.commit, needs=calls.CLOSED)
            for call in calls_
        ]
        return [calls.read_reply(reply) for reply in await self._send(commands)]

    async def load(self, calls_: Sequence[LoadUsers]) -> list[LoadReply]:
        """Chunks of a rebuild."""
        return [calls.read_reply(reply) for reply in await self._send(list(map(calls.load_command, calls_)))]

    async def ready(self, calls_: Sequence[Ready]) -> list[ReadyReply]:
        """Open campaigns again."""
        return [calls.read_reply(reply) for reply in await self._send(list(map(calls.ready_command, calls_)))]

    async def pending_tags(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, list[int]] | NotRun:
        """Tags of all reservations that wait for their commit."""
        replies = await self._send([(b"HKEYS", calls.keys_of(campaign_id)[1]) for campaign_id in campaign_ids])
        tags: dict[CampaignId, list[int]] = {}
        for campaign_id, reply in zip(campaign_ids, replies, strict=True):
            if not isinstance(reply, list):
                return NotRun(calls.read_reply(reply).detail)  # a read has no effect, answered or not
            tags[campaign_id] = [calls.unpack_tag(tag) for tag in reply]
        return tags

    async def survey(self, cursor: int) -> Survey | NotRun:
        """What Redis holds of some campaigns, from there on."""
        scanned = calls.read_scan(await self._send_one(calls.scan_command(cursor, _SCANNED)))
        if isinstance(scanned, NotRun):
            return scanned
        onward, campaign_ids = scanned
        replies = await self._send([calls.look_command(each) for each in campaign_ids]) if campaign_ids else []
        held = map(calls.read_look, campaign_ids, replies)
        return Survey(onward, [each for each in held if each is not None])

    async def give_back(self, calls_: Sequence[Advance | Drop]) -> list[GiveBackReply]:
        """Free what idle campaigns hold."""
        return [calls.read_reply(reply) for reply in await self._send(list(map(calls.give_back_command, calls_)))]

    async def probe(self, campaign_id: CampaignId) -> NotRun | Unknown | None:
        """How a reserve for this campaign would fail now."""
        reply = calls.read_reply(await self._send_one(calls.probe_command(campaign_id)))
        return reply if isinstance(reply, NotRun | Unknown) else None

    async def clock_offset_us(self) -> int | None:
        """Our clock minus Redis's, half of the round trip counted; None when Redis can't be asked."""
        sent_us = self._now_us()
        told = await self._send_one((b"TIME",))
        if not isinstance(told, list):
            return None
        seconds, micros = told
        return (sent_us + self._now_us()) // 2 - (int(seconds) * 1_000_000 + int(micros))

    async def memory(self) -> MemoryUse | None:
        """Bytes that Redis uses and may use, and its time; None when it can't be asked."""
        reply = await self._send_one((b"INFO", b"memory", b"server"))
        return _memory_of(_fields(reply)) if isinstance(reply, bytes) else None

    async def unsafe(self) -> str | None:
        """Why this Redis, as it is set up now, could forget a budget."""
        try:
            check_configuration(await self._info())
        except ConfigurationUnsafe as unsafe:
            return str(unsafe)
        except StoreUnavailable:
            pass  # who can't be asked takes no events either
        return None

    async def _prepare(self) -> None:
        """Check what the engine relies on, log what Redis holds, load the library.

        Raises `ConfigurationUnsafe`, `StoreUnavailable`.
        """
        info = await self._info()
        check_configuration(info)
        _log_memory(_memory_of(info))
        if await self._has_library():
            return
        loaded = await self._send_one((b"FUNCTION", b"LOAD", b"REPLACE", self._library))
        if calls.is_out_of_memory(loaded):
            raise StoreUnavailable(
                "Redis (REDIS_URL) is full, and has no room for the functions of this version: raise its maxmemory, or "
                "restart it empty; engines rebuild what they need from Postgres",
                certain=True,
            )
        _of_success(loaded)

    async def _has_library(self) -> bool:
        """Whether this very library is there: a Redis that is full takes none, and room comes from engines that run."""
        told = await self._send_one((b"FUNCTION", b"LIST", b"LIBRARYNAME", calls.LIBRARY, b"WITHCODE"))
        return isinstance(told, list) and any(self._library.encode() in library for library in told)

    async def _info(self) -> dict[str, str]:
        # (INFO tells the eviction policy, too; CONFIG would, but a managed Redis may forbid it.)
        return _fields(await self._told((b"INFO", *_INFO)))

    async def _told(self, command: Command) -> bytes:
        return _of_success(await self._send_one(command))

    async def _send_one(self, command: Command) -> Any:
        return (await self._send([command]))[0]

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        await self._exchange([commands], replies.extend)
        return replies

    async def _exchange(self, parts: Iterable[Part], heard: Callable[[list[Any]], None]) -> None:
        """One round trip. A lost library is loaded, and what did not run for it is sent once more."""
        held: list[tuple[Part, list[Any]]] = []  # from the part on that found no library

        def hear(part: Part, replies: list[Any]) -> None:
            if held or any(map(calls.function_is_missing, replies)):
                held.append((part, replies))
            else:
                heard(replies)

        async with self._free:
            connection = self._idle.pop()  # the one that was used last, so that few are kept open
            try:
                await connection.exchange(parts, hear)
                if held:
                    pairs = [pair for part, replies in held for pair in zip(part, replies, strict=True)]
                    missing = [command for command, reply in pairs if calls.function_is_missing(reply)]
                    again: deque[Any] = deque()
                    await connection.exchange([[(b"FUNCTION", b"LOAD", b"REPLACE", self._library)]], lambda *_: None)
                    await connection.exchange([missing], lambda _, replies: again.extend(replies))
                    for _, replies in held:
                        heard([again.popleft() if calls.function_is_missing(reply) else reply for reply in replies])
            finally:
                self._idle.append(connection)

    def _close(self) -> None:
        """Close every connection. Exchanges under way must have ended."""
        for connection in self._idle:
            connection.close()


def _fields(info: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def _memory_of(info: Mapping[str, str]) -> MemoryUse:
    """What Redis says of its memory. One that hides its limit counts as one without."""
    now_us = info.get("server_time_usec")
    return MemoryUse(
        int(info.get("used_memory", 0)), int(info.get("maxmemory", 0)), None if now_us is None else int(now_us)
    )


def _forget(refused: Reserve) -> Advance:
    """What gives back memory of the campaign whose call Redis had no memory for.

    However long look-ups take now: a full Redis refuses every event, so memory wins, as `engine/memory.py` has it.
    """
    bucket_us = min(refused.bucket_us, BUCKET_MIN_US)
    return Advance(refused.campaign_id, refused.generation, refused.day, refused.at_us, bucket_us)


def _log_memory(memory: MemoryUse) -> None:
    used, max_bytes = megabytes(memory.used_bytes), memory.max_bytes
    if max_bytes:
        _log.info("Redis may use %s, and uses %s: it holds %s", megabytes(max_bytes), used, capacity(max_bytes))
    else:
        _log.warning(
            "Redis (REDIS_URL) uses %s, and no maxmemory limits it: ids are forgotten by age alone, and it may grow "
            "until the machine is full; set its maxmemory",
            used,
        )


def _of_success(reply: Any) -> bytes:
    """What Redis said, if it did what it was told. Raises `StoreUnavailable`."""
    told = calls.read_reply(reply)
    if isinstance(told, NotRun | Unknown):
        raise StoreUnavailable(f"Redis can't be reached or used: {told.detail}", certain=True)
    assert isinstance(told, bytes)
    return told


@asynccontextmanager
async def open_ledger(
    redis_url: str, settings: Settings, *, now_us: Callable[[], int] = machine_us
) -> AsyncIterator[RedisLedger]:
    """Connect, load the library, and check what the engine relies on.

    Raises `StoreUnavailable` when Redis can't be reached, `ConfigurationUnsafe` when it could forget a budget, and
    `SettingsError` when the URL can't be read.
    """
    connections = 1 + settings.recoveries_max + _OTHER_CONNECTIONS
    make = _maker(redis_url, settings.ledger_timeout_seconds)
    ledger = RedisLedger(make, connections, settings.ledger_timeout_seconds, now_us)
    try:
        await ledger._prepare()
        yield ledger
    finally:
        ledger._close()


def _maker(redis_url: str, timeout_seconds: float) -> Callable[[], Any]:
    """What makes a connection of redis-py. What the ledger relies on goes before what the URL says."""
    parse_url: Any = redis.connection.parse_url  # redis-py leaves it untyped
    try:
        options = parse_url(redis_url)
    except ValueError as error:
        raise SettingsError(f"REDIS_URL can't be read: {error}") from None
    options |= {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "headrace",
    }
    # (Not from one of redis-py's pools: they count what they have made, also what could not connect.)
    options.pop("max_connections", None)
    return partial(options.pop("connection_class", redis.Connection), **options)


def check_configuration(info: Mapping[str, Any]) -> None:
    """Raise `ConfigurationUnsafe` when this Redis is too old, a replica, of a cluster, or may drop keys on its own."""
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
        raise ConfigurationUnsafe(f"this Redis (REDIS_URL) has version {version}: 7.0 or newer is needed")
    if info["role"] != "master":
        raise ConfigurationUnsafe("this Redis is a replica: point REDIS_URL to the primary")
    if int(info.get("cluster_enabled", 0)):
        raise ConfigurationUnsafe(
            "this Redis (REDIS_URL) is a node of a cluster (cluster-enabled yes): it would refuse every campaign whose "
            "keys belong to another node; point REDIS_URL to a Redis with cluster-enabled no"
        )
    policy = info["maxmemory_policy"]
    if policy != "noeviction":
        raise ConfigurationUnsafe(
            f"Redis (REDIS_URL) has maxmemory-policy = {policy}: it would drop budgets and ids under pressure; "
            "set it to noeviction"
        )
    if int(info.get("evicted_keys", 0)):
        raise ConfigurationUnsafe(
            f"Redis (REDIS_URL) has dropped {info['evicted_keys']} keys on its own since it was started: restart it, "
            "with maxmemory-policy = noeviction; engines rebuild what they need from Postgres"
        )
