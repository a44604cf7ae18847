"""The door to Postgres: one object that is the engine's `EventStore`, `CampaignStore` and `Roster`.

Owns the order in which connections are opened and checked, and nothing else: each topic has its module. A 200 rests
on `flush` (flush.py, and the guard in migrations/0005_watermark.sql).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import trio
import trio_asyncio  # type: ignore[import-untyped]

from config.settings import Settings
from engine.clock import machine_us
from engine.days import EVER_ACCEPTED, Accepted
from engine.errors import EngineError, StoreUnavailable
from engine.model import (
    Campaign,
    CampaignId,
    CampaignSpend,
    HeartbeatReply,
    NewCampaign,
    Report,
    StoredEvent,
)
from engine.ports import Batch, Committed, FlushReply, LedgerRow, NotRun, Unknown, Wanted
from engine.postgres import campaigns, engines, halt, recovery, reports
from engine.postgres.database import Database, normal_url, on_loop, open_connection, open_database
from engine.postgres.flush import FlushPool, open_flush_pool
from engine.postgres.listen import Listener, listen
from engine.postgres.migrate import migrate
from engine.postgres.partitions import make_partitions
from engine.postgres.safety import check_server
from engine.postgres.sessions import Signature


class PostgresStore:
    """Postgres as the engine sees it. Get one with `open_store`."""

    def __init__(
        self,
        db_url: str,
        settings: Settings,
        loop: trio_asyncio.TrioEventLoop,
        database: Database,
        pulse: Database,
        flushes: FlushPool,
        signature: Signature,
        now_us: Callable[[], int],
    ) -> None:
        """`pulse` is for heartbeats alone: whoever misses them takes this engine for dead."""
        self.database = database
        self._pulse = pulse
        # Look-ups and recoveries, for which events wait, have connections that no caller takes.
        self._callers = trio.Semaphore(settings.callers_at_once)
        self._db_url = db_url
        self._settings = settings
        self._accepted = Accepted.of(settings)
        self._loop = loop
        self._flushes = flushes
        self._signature = signature
        self._now_us = now_us

    # --- EventStore ---

    async def probe(self) -> str | None:
        """Why flushes, plans or look-ups fail now: an empty flush, and questions about what can't exist."""
        reply = await self._flushes.flush([])
        if not isinstance(reply, Committed):
            return f"flushes: {reply.detail if isinstance(reply, NotRun | Unknown) else reply}"
        try:
            await self.plans([CampaignId(0)])
            await self.look_up([Wanted(CampaignId(0), bytes(16), [0])])
        except StoreUnavailable as away:
            return str(away)
        return None

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """One transaction for all batches; at most one generation and spend day a campaign."""
        return await self._flushes.flush(batches, hasty=hasty)

    async def plans(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, tuple[Campaign, LedgerRow]]:
        """Plan and ledger row of those campaigns that exist."""
        return await campaigns.read_plans(self.database, campaign_ids)

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """Those of the wanted events that are committed, of any number of campaigns, in one query."""
        return await recovery.look_up(self.database, wanted)

    async def raise_generations(
        self, campaign_ids: Sequence[CampaignId], *, wait: bool
    ) -> dict[CampaignId, LedgerRow | None]:
        """`gen + 1` of each, committed, after every older batch of it is in or out for good; None: a flush holds it."""
        if wait:  # what holds the row may be a flush of an engine that died just now
            with suppress(StoreUnavailable):  # (who may not end it waits for it, and is told so at each heartbeat)
                dead_after_seconds = self._settings.engine_dead_seconds
                await engines.end_dead_sessions(self.database, self._signature.number, dead_after_seconds)
        return await recovery.raise_generations(self.database, campaign_ids, wait=wait)

    async def halt(self, campaign_id: CampaignId, reason: str) -> int | None:
        """Take it out of service, and raise its generation with that; whoever is halted already keeps the reason."""
        return await halt.halt(self.database, campaign_id, reason)

    async def events_since(self, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
        """About how many events each has since that spend day began."""
        return await recovery.events_since(self.database, EVER_ACCEPTED, days)

    def users_on(
        self, days: Mapping[CampaignId, int], *, whole: bool
    ) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
        """Impressions a user, each campaign on its spend day, in pieces of at most 10,000 users."""
        return recovery.users_on(self.database, EVER_ACCEPTED, days, whole=whole)

    # --- CampaignStore ---

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[Database]:
        """The turn of somebody from outside, of whom any number may call at once."""
        with trio.move_on_after(self._settings.query_timeout_seconds) as bound:
            await self._callers.acquire()
        if bound.cancelled_caught:
            raise StoreUnavailable("Postgres: too many calls wait for a connection", certain=True)
        try:
            yield self.database
        finally:
            self._callers.release()

    async def create_campaign(self, new: NewCampaign) -> tuple[Campaign, CampaignSpend]:
        """Write a campaign and its ledger row in one transaction."""
        async with self._calling() as database:
            return await campaigns.create_campaign(database, new)

    async def campaign(self, campaign_id: CampaignId) -> tuple[Campaign, CampaignSpend] | None:
        """A campaign and its spend, or None."""
        async with self._calling() as database:
            return await campaigns.read_campaign(database, campaign_id)

    async def page_campaigns(self, after: int, limit: int) -> list[tuple[Campaign, CampaignSpend]]:
        """Up to `limit` campaigns with numbers above `after`, in order."""
        async with self._calling() as database:
            return await campaigns.page_campaigns(database, after, limit)

    async def update_campaign(
        self, campaign_id: CampaignId, changes: Mapping[str, object]
    ) -> tuple[Campaign, CampaignSpend] | None:
        """Change the named fields of `Campaign`; `version + 1`, ledger and NOTIFY in the same transaction."""
        async with self._calling() as database:
            return await campaigns.update_campaign(database, campaign_id, changes)

    async def report(self, campaign_id: CampaignId, start_us: int | None, end_us: int | None) -> Report | None:
        """Counts and spend of events that occurred from start up to end, exact; None bounds are open."""
        async with self._calling() as database:
            return await reports.read_report(database, self._accepted, campaign_id, start_us, end_us)

    # --- Roster ---

    async def register_engine(self) -> int:
        """A number for this process, never given before; its sessions carry it from now on."""
        self._signature.number = await engines.register_engine(self.database)
        await self.database.sign()
        await self._pulse.sign()
        return self._signature.number

    async def heartbeat(self, number: int, slowest_look_up_us: int = 0) -> HeartbeatReply:
        """Say that this engine lives, and how slow its look-ups are; hear of others, and how far our clock is off.

        Raises `ConfigurationUnsafe` when the server, as it is set up now, could lose a commit or can't take one.
        """
        await self._pulse.run(check_server)  # (first: a standby takes no heartbeat, and should be told as what it is)
        dead_after_seconds = self._settings.engine_dead_seconds
        return await engines.heartbeat(self._pulse, number, slowest_look_up_us, dead_after_seconds, self._now_us)

    async def end_dead_sessions(self, number: int) -> Mapping[int, int]:
        """End what engines that are dead have open here; by engine, how many sessions."""
        return await engines.end_dead_sessions(self.database, number, self._settings.engine_dead_seconds)

    async def retire_engine(self, number: int) -> None:
        """Say goodbye: a clean stop leaves nothing to recover."""
        await engines.retire_engine(self.database, number)

    async def make_partitions(self) -> None:
        """Make the daily partitions from three days ago to `partitions_ahead_days`."""
        await make_partitions(self.database, self._settings.partitions_ahead_days)

    @asynccontextmanager
    async def listening(
        self,
        plan_changed: Callable[[CampaignId, int], None],
        generation_raised: Callable[[CampaignId, int], None],
        lost: Callable[[], None],
    ) -> AsyncIterator[None]:
        """Tell these of news while the block runs: listen.py says when each is called."""
        listener = Listener(plan_changed, generation_raised, lost)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen, listener)
            yield
            nursery.cancel_scope.cancel()

    async def _listen(
        self, listener: Listener, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await listen(
            self._loop,
            self._db_url,
            self._signature.name("listen"),
            listener,
            probe_seconds=self._settings.heartbeat_seconds,
            timeout_seconds=self._settings.query_timeout_seconds,
            task_status=task_status,
        )


@asynccontextmanager
async def open_store(
    db_url: str, settings: Settings, *, now_us: Callable[[], int] = machine_us
) -> AsyncIterator[PostgresStore]:
    """Postgres, checked, migrated, and with partitions for the days ahead.

    Raises `StoreUnavailable` when it can't be reached, `ConfigurationUnsafe` when it can't be trusted with a 200.
    """
    url = normal_url(db_url)
    patience = settings.query_timeout_seconds
    refusal: EngineError | None = None
    signature = Signature()
    async with (
        trio_asyncio.open_loop() as loop,
        open_database(loop, url, settings.query_connections, patience, signature) as database,
        open_database(loop, url, 1, patience, signature) as pulse,
        open_flush_pool(url, settings, signature) as flushes,
    ):
        store = PostgresStore(url, settings, loop, database, pulse, flushes, signature, now_us)
        try:
            await on_loop(loop, lambda: _prepare(url, patience))
            await store.make_partitions()
        except EngineError as error:
            refusal = error
        else:
            yield store
    if refusal is not None:
        raise refusal  # out here, because the loop's nurseries would wrap it in groups


async def _prepare(db_url: str, timeout_seconds: float) -> None:
    """Check and migrate on a connection of its own: a migration may take longer than a query (asyncio side)."""
    async with open_connection(db_url, timeout_seconds, application_name="headrace migrate") as connection:
        await check_server(connection)
        await migrate(connection)
