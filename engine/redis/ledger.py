"""`Ledger` over Redis: redis-py's connections, used from worker threads.

Owns the connections and the certainty of each answer: what failed before a byte was sent did not run; after that
only a reply is certain. Nothing is ever sent twice by itself, because a repeated reserve is not the same call.
Knows no actor and no Postgres.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any, Final

import redis
import trio
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from config.settings import Settings
from engine.errors import ConfigurationUnsafe, StoreUnavailable
from engine.model import CampaignId, CampaignSpend, EventId
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

# Besides the round's own connection and those of the recoveries: pings and the look for orphans.
_OTHER_CONNECTIONS: Final = 2
VERSION_MIN: Final = (7, 0)


class RedisLedger:
    """See `engine.ports.Ledger`. Get one with `open_ledger`."""

    def __init__(self, pool: redis.ConnectionPool, connections: int) -> None:
        self._pool = pool
        self._threads = trio.CapacityLimiter(connections)
        self._library = files("engine.redis").joinpath("functions.lua").read_text()

    async def round(self, calls_: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
        """All calls in one pipelined round trip."""
        replies = await self._send([calls.round_command(call) for call in calls_])
        return [calls.read_reply(reply) for reply in replies]

    async def begin(self, campaign_id: CampaignId, generation: int) -> BeginReply:
        """Close a campaign under a new generation."""
        return calls.read_begin(await self._send_one(calls.begin_command(campaign_id, generation)))

    async def settle(self, campaign_id: CampaignId, generation: int, tag: int, *, commit: bool) -> LoadReply:
        """Settle one reservation of a closed campaign."""
        command = calls.resolve_command(campaign_id, generation, tag, commit=commit, needs=calls.CLOSED)
        reply: LoadReply = calls.read_reply(await self._send_one(command))
        return reply

    async def load_users(self, campaign_id: CampaignId, generation: int, users: Sequence[tuple[str, int]]) -> LoadReply:
        """One chunk of users of a rebuild."""
        reply: LoadReply = calls.read_reply(
            await self._send_one(calls.load_users_command(campaign_id, generation, users))
        )
        return reply

    async def load_ids(self, campaign_id: CampaignId, generation: int, turn: int, ids: Sequence[EventId]) -> LoadReply:
        """One chunk of ids of a rebuild."""
        reply: LoadReply = calls.read_reply(
            await self._send_one(calls.load_ids_command(campaign_id, generation, turn, ids))
        )
        return reply

    async def ready(
        self, campaign_id: CampaignId, generation: int, spend: CampaignSpend, turn: int, plan_version: int
    ) -> ReadyReply:
        """Open a campaign again."""
        command = calls.ready_command(campaign_id, generation, spend, turn, plan_version)
        reply: ReadyReply = calls.read_reply(await self._send_one(command))
        return reply

    async def pending_tags(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, list[int]] | NotRun:
        """Tags of all reservations that wait for their commit."""
        replies = await self._send([(b"HKEYS", calls.keys_of(campaign_id)[1]) for campaign_id in campaign_ids])
        tags: dict[CampaignId, list[int]] = {}
        for campaign_id, reply in zip(campaign_ids, replies, strict=True):
            if isinstance(reply, NotRun | Unknown):
                return NotRun(reply.detail)
            tags[campaign_id] = [calls.unpack_tag(tag) for tag in reply]
        return tags

    async def ping(self) -> bool:
        """Whether Redis answers."""
        return bool(await self._send_one((b"PING",)) == b"PONG")

    async def _send_one(self, command: Command) -> Any:
        return (await self._send([command]))[0]

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        return await trio.to_thread.run_sync(self._exchange, commands, limiter=self._threads)

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip, in a thread; the socket's timeout bounds it. A lost library is loaded, and asked again."""
        replies = self._round_trip(commands)
        missing = [at for at, reply in enumerate(replies) if isinstance(reply, RedisError)]
        if missing:
            self._round_trip([(b"FUNCTION", b"LOAD", b"REPLACE", self._library)])
            for at, reply in zip(missing, self._round_trip([commands[at] for at in missing]), strict=True):
                replies[at] = calls.read_error(reply) if isinstance(reply, RedisError) else reply
        return replies

    def _round_trip(self, commands: Sequence[Command]) -> list[Any]:
        """A reply a command: what Redis said, `NotRun`, `Unknown`, or the error of a missing function."""
        try:
            connection: Any = self._pool.get_connection()  # redis-py leaves these methods untyped
        except (RedisError, OSError) as error:
            return [NotRun(f"Redis can't be reached: {error}")] * len(commands)
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            while len(replies) < len(commands):
                replies.append(_read(connection))
        except (RedisError, OSError) as error:
            connection.disconnect()
            lost = Unknown(f"Redis gave no answer: {error}")
            replies += [lost] * (len(commands) - len(replies))
        except BaseException:
            connection.disconnect()  # half a reply is in the socket: nobody may read on from there
            raise
        finally:
            self._pool.release(connection)
        return replies


def _read(connection: Any) -> Any:
    """One reply. Raises what redis-py raises when the connection breaks."""
    try:
        return connection.read_response()
    except (ResponseError, BusyLoadingError) as error:
        return error if calls.function_is_missing(error) else calls.read_error(error)


@asynccontextmanager
async def open_ledger(redis_url: str, settings: Settings) -> AsyncIterator[RedisLedger]:
    """Connect, load the library, and check what the engine relies on.

    Raises `StoreUnavailable` when Redis can't be reached, `ConfigurationUnsafe` when it could forget a budget.
    """
    connections = 1 + settings.recoveries_max + _OTHER_CONNECTIONS
    pool = redis.ConnectionPool.from_url(
        redis_url,
        protocol=2,
        max_connections=connections,
        socket_timeout=settings.ledger_timeout_seconds,
        socket_connect_timeout=settings.ledger_timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        client_name="headrace",
    )
    ledger = RedisLedger(pool, connections)
    try:
        await trio.to_thread.run_sync(_prepare, redis.Redis(connection_pool=pool), ledger._library)
        yield ledger
    finally:
        pool.disconnect()


def _prepare(client: redis.Redis, library: str) -> None:
    try:
        info: dict[str, Any] = dict(client.info("server", "memory"))
        with suppress(ResponseError):  # a managed Redis may forbid CONFIG; INFO tells the policy as well
            info["maxmemory_policy"] = client.config_get("maxmemory-policy")["maxmemory-policy"]
        check_configuration(info)
        client.function_load(library, replace=True)
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis can't be reached or used: {error}", certain=True) from error


def check_configuration(info: dict[str, Any]) -> None:
    """Refuse a Redis that is too old or may evict. Raises `ConfigurationUnsafe`."""
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
        raise ConfigurationUnsafe(f"Redis is version {version}: functions need 7.0 or newer. Use a newer Redis.")
    policy = info["maxmemory_policy"]
    if policy != "noeviction":
        raise ConfigurationUnsafe(
            f"Redis has maxmemory-policy {policy}: it would drop budgets and ids under pressure. "
            "Set maxmemory-policy to noeviction."
        )
