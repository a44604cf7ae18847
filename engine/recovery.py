"""The one remedy: raise the generation in Postgres, then make Redis follow (protocol.md, section 5).

Owns the order of the steps. Safe to run by anybody, at any time, twice at once. Knows Redis and Postgres only
through their ports, and no actor: who asks is told each step by `on_raised`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from engine.errors import StoreUnavailable
from engine.model import SECOND_US, CampaignId, EventId
from engine.ports import (
    Clock,
    Done,
    Emptied,
    EventStore,
    Kept,
    Ledger,
    LedgerRow,
    Lost,
    Mismatch,
    NotRun,
    Pending,
    Stale,
    Unknown,
    Wanted,
)

# How often one recovery starts over (a MISMATCH rebuilds the second time) before it reports that it failed.
ROUNDS_MAX: Final = 4
# Receive times are the clocks of engines, which may be off by 30 s: ids are read from a minute earlier.
CLOCK_SLACK_US: Final = 60 * SECOND_US


class RecoveryFailed(Exception):
    """A store is away, or Redis would not follow. Nothing is lost: recover again later."""


class CampaignHalted(Exception):
    """Its books differ: Redis is left as it is, so nothing reserved can commit before an operator has looked."""

    def __init__(self, generation: int, reason: str) -> None:
        super().__init__(reason)
        self.generation = generation
        self.reason = reason


class _StartOver(Exception):
    """Redis forgot or disagreed in the middle: raise the generation again."""


class _Overtaken(Exception):
    """Somebody has raised a newer generation: theirs goes on."""

    def __init__(self, generation: int) -> None:
        super().__init__(generation)
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Recovery:
    """`recover` a campaign. `turn_us` is the length of the dedup window's turn."""

    ledger: Ledger
    store: EventStore
    clock: Clock
    turn_us: int

    async def recover(self, campaign_id: CampaignId, plan_version: int, on_raised: Callable[[int], None]) -> int:
        """Fence what is under way, then bring Redis to what Postgres says; return the generation that is in force.

        `on_raised` is called with each generation that Postgres has committed, before Redis is touched: from
        then on, batches of older generations are in or out for good. Raises `RecoveryFailed` and `CampaignHalted`.
        """
        try:
            for _ in range(ROUNDS_MAX):
                row = await self._raise(campaign_id)
                on_raised(row.generation)
                if row.halted is not None:
                    raise CampaignHalted(row.generation, row.halted)
                try:
                    await self._follow(row, plan_version)
                except _StartOver:
                    continue
                except _Overtaken as newer:
                    return newer.generation
                return row.generation
        except StoreUnavailable as away:
            raise RecoveryFailed(str(away)) from away
        raise RecoveryFailed(f"Redis did not follow campaign {campaign_id} in {ROUNDS_MAX} rounds")

    async def _raise(self, campaign_id: CampaignId) -> LedgerRow:
        """Step 1, of which one more does no harm: an unknown outcome is repeated by the next attempt."""
        row = await self.store.raise_generation(campaign_id)
        if row is None:
            raise RecoveryFailed(f"campaign {campaign_id} is not in Postgres")
        return row

    async def _follow(self, row: LedgerRow, plan_version: int) -> None:
        """Steps 2 to 4, under the new generation."""
        begun = await self.ledger.begin(row.campaign_id, row.generation)
        now_us = self.clock.now_us()
        turn = now_us // self.turn_us
        match begun:
            case Kept(pending):
                await self._settle(row, list(pending))
            case Emptied():
                turn = await self._rebuild(row, turn, (now_us + CLOCK_SLACK_US) // self.turn_us)
            case _:
                _check(begun)
        _check(await self.ledger.ready(row.campaign_id, row.generation, row.spend, turn, plan_version))

    async def _settle(self, row: LedgerRow, pending: list[Pending]) -> None:
        """Every pending reservation: commit it if its first id stands under its very tag."""
        found = await self.store.look_up([Wanted(row.campaign_id, each.first_id, None) for each in pending])
        for each in pending:
            stored = found.get((row.campaign_id, each.first_id))
            commit = stored is not None and stored.batch == each.tag
            _check(await self.ledger.settle(row.campaign_id, row.generation, each.tag, commit=commit))

    async def _rebuild(self, row: LedgerRow, turn: int, latest: int) -> int:
        """Users of the ledger's day, and ids received in the last two turns, read after the raise; the turn reached.

        That is one more than ours where an engine's clock is ahead of it: its ids stay as long as it expects. It is
        never beyond `latest`, which no right clock has passed: whoever has the time would be refused until then.
        """
        async with aclosing(self.store.users_on(row.campaign_id, row.spend.day)) as chunks:
            async for users in chunks:
                _check(await self.ledger.load_users(row.campaign_id, row.generation, users))
        oldest = turn - 1
        async with aclosing(
            self.store.ids_received(row.campaign_id, oldest * self.turn_us - CLOCK_SLACK_US)
        ) as received:
            async for ids in received:
                turn = max(turn, await self._load_ids(row, oldest, latest, ids))
        return turn

    async def _load_ids(self, row: LedgerRow, oldest: int, latest: int, received: Sequence[tuple[EventId, int]]) -> int:
        """Load a chunk, each id under the turn in which it was received, by its receiver's clock; the latest of these.

        (The ids of every other turn share a bucket; one that stays longer than it must does no harm.)
        """
        of_turn: dict[int, list[EventId]] = {}
        for event_id, received_us in received:
            of_turn.setdefault(min(latest, max(oldest, received_us // self.turn_us)), []).append(event_id)
        for turn, ids in of_turn.items():
            _check(await self.ledger.load_ids(row.campaign_id, row.generation, turn, ids))
        return max(of_turn, default=oldest)


def _check(reply: object) -> None:
    """Go on after `Done`; otherwise raise what the reply means for a recovery."""
    match reply:
        case Done():
            return
        case Stale(generation):
            raise _Overtaken(generation)
        case Mismatch() | Lost() | Unknown():
            raise _StartOver
        case NotRun(detail):
            raise RecoveryFailed(detail)
        case _:
            raise _StartOver  # CLOSED in reverse: somebody opened it under this generation; fence again
