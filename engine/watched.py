"""The stores as the engine's loops see them: whoever calls, a refusal is noted, so that no steady one is silent.

Owns what counts as a failure of a store: a call that did not run, or that got no answer. What a store decides
(a budget that is used up, a generation that is over, a duplicate) is none. Says only what fails; that a store works
again is found out by `probes.py`. Knows no caller and no adapter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, TypeVar

import trio

from engine.errors import StoreBusy, StoreUnavailable
from engine.leftovers import Advance, Drop, GiveBackReply, Survey, SweptLedger
from engine.memory import MemoryUse
from engine.model import Campaign, CampaignId, StoredEvent
from engine.outages import HELD_ROWS, Outages
from engine.ports import (
    Batch,
    BeginReply,
    Committed,
    EventStore,
    FlushReply,
    LedgerRow,
    LoadReply,
    NotRun,
    ReadyReply,
    Reserve,
    ReserveReply,
    Resolve,
    ResolveReply,
    Unknown,
    Wanted,
)
from engine.steps import Begin, LoadUsers, Ready

T = TypeVar("T")
_Call = Reserve | Resolve | Begin | LoadUsers | Ready

REDIS: Final = "Redis"
POSTGRES: Final = "Postgres"
# What Postgres finds wrong with the data of one campaign's flush. The others of it go on, so the engine stays ready.
ONE_FLUSH: Final = "Postgres, the flush of one campaign"
_FAILURES: Final = frozenset((NotRun, Unknown))


class WatchedLedger:
    """`SweptLedger`, whose failures are told to `outages`, and want of memory to `when_full`, too."""

    def __init__(self, ledger: SweptLedger, outages: Outages, when_full: Callable[[], None]) -> None:
        self._ledger = ledger
        self._outages = outages
        self._when_full = when_full
        self.refused = CampaignId(0)  # the campaign of the latest failure; at first one that can't exist

    async def round(
        self,
        parts: Iterable[Sequence[Reserve | Resolve]],
        heard: Callable[[Sequence[ReserveReply | ResolveReply]], None],
    ) -> None:
        """One pipelined round trip."""
        sent: deque[Sequence[Reserve | Resolve]] = deque()

        def sending() -> Iterator[Sequence[Reserve | Resolve]]:
            for part in parts:
                sent.append(part)
                yield part

        def hear(replies: Sequence[ReserveReply | ResolveReply]) -> None:
            self._judge(sent.popleft(), replies)
            heard(replies)

        await self._ledger.round(sending(), hear)

    async def begin(self, calls: Sequence[Begin]) -> list[BeginReply]:
        """Close campaigns under new generations."""
        return self._judge(calls, await self._ledger.begin(calls))

    async def settle(self, calls: Sequence[Resolve]) -> list[LoadReply]:
        """Settle reservations of closed campaigns."""
        return self._judge(calls, await self._ledger.settle(calls))

    async def load(self, calls: Sequence[LoadUsers]) -> list[LoadReply]:
        """Chunks of a rebuild."""
        return self._judge(calls, await self._ledger.load(calls))

    async def ready(self, calls: Sequence[Ready]) -> list[ReadyReply]:
        """Open campaigns again."""
        return self._judge(calls, await self._ledger.ready(calls))

    async def pending_tags(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, list[int]] | NotRun:
        """Tags of all reservations that wait for their commit."""
        return self._judge_one(await self._ledger.pending_tags(campaign_ids))

    async def survey(self, cursor: int) -> Survey | NotRun:
        """What Redis holds of some campaigns. No event waits for the sweep, so its failures are no outage."""
        return await self._ledger.survey(cursor)

    async def give_back(self, calls: Sequence[Advance | Drop]) -> list[GiveBackReply]:
        """Free what idle campaigns hold."""
        return await self._ledger.give_back(calls)

    async def probe(self, campaign_id: CampaignId) -> NotRun | Unknown | None:
        """How a reserve would fail now."""
        return self._judge_one(await self._ledger.probe(campaign_id))

    async def memory(self) -> MemoryUse | None:
        """What Redis uses and may use. No event waits for the answer, so its lack is no outage."""
        return await self._ledger.memory()

    async def clock_offset_us(self) -> int | None:
        """How far this machine's clock is ahead of Redis's."""
        return await self._ledger.clock_offset_us()

    async def unsafe(self) -> str | None:
        """Why this Redis could forget a budget."""
        return await self._ledger.unsafe()

    def _judge(self, calls: Sequence[_Call], replies: list[T] | Sequence[T]) -> list[T]:
        if not _FAILURES.isdisjoint(map(type, replies)):  # (a round has hundreds of replies, and most often no failure)
            for call, reply in zip(calls, replies, strict=True):
                if isinstance(reply, NotRun | Unknown):
                    self.refused = call.campaign_id
                    self._failed(reply)
        return replies  # type: ignore[return-value]

    def _judge_one(self, reply: T) -> T:
        if isinstance(reply, NotRun | Unknown):
            self._failed(reply)
        return reply

    def _failed(self, reply: NotRun | Unknown) -> None:
        self._outages.failed(REDIS, reply.detail, trio.current_time())
        if isinstance(reply, NotRun) and reply.full:
            self._when_full()


class WatchedStore:
    """`EventStore`, whose failures are told to `outages`."""

    def __init__(self, store: EventStore, outages: Outages) -> None:
        self._store = store
        self._outages = outages

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """One transaction for all batches."""
        reply = await self._store.flush(batches, hasty=hasty)
        if isinstance(reply, Committed):
            self._outages.committed(trio.current_time())
            return reply
        if isinstance(reply, Unknown) or (isinstance(reply, NotRun) and not reply.data):
            self._failed(reply.detail)
        elif isinstance(reply, NotRun) and len(batches) == 1:  # (else it is halved until the culprit is found)
            what = f"campaign {batches[0].campaign_id}: {reply.detail}"
            self._outages.failed(ONE_FLUSH, what, trio.current_time(), blocks=False)
        return reply

    async def plans(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, tuple[Campaign, LedgerRow]]:
        """Plan and ledger row of those campaigns that exist."""
        with self._watching():
            return await self._store.plans(campaign_ids)

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """Those of the wanted events that are committed."""
        with self._watching():
            return await self._store.look_up(wanted)

    async def raise_generations(
        self, campaign_ids: Sequence[CampaignId], *, wait: bool
    ) -> dict[CampaignId, LedgerRow | None]:
        """`gen + 1` of each."""
        with self._watching():
            return await self._store.raise_generations(campaign_ids, wait=wait)

    async def halt(self, campaign_id: CampaignId, reason: str) -> int | None:
        """Take it out of service."""
        with self._watching():
            return await self._store.halt(campaign_id, reason)

    async def events_since(self, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
        """About how many events each has since that spend day began."""
        with self._watching():
            return await self._store.events_since(days)

    async def users_on(
        self, days: Mapping[CampaignId, int], *, whole: bool
    ) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
        """Impressions a user, in pieces."""
        with self._watching():
            async with aclosing(self._store.users_on(days, whole=whole)) as pieces:
                async for piece in pieces:
                    yield piece

    async def probe(self) -> str | None:
        """Why flushes, plans or look-ups fail now."""
        why = await self._store.probe()
        if why is not None:
            self._failed(why)
        return why

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except StoreBusy as held:  # of one campaign, whose recovery is tried again
            self._outages.failed(HELD_ROWS, str(held), trio.current_time(), blocks=False)
            raise
        except StoreUnavailable as away:
            self._failed(str(away))
            raise

    def _failed(self, why: str) -> None:
        self._outages.failed(POSTGRES, why, trio.current_time())
