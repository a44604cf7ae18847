"""`headrace recover`, put together: a campaign's books rebuilt from its events, and Redis made to follow.

Owns the order of the steps, which may be broken off anywhere and repeated: compare clocks, because ours says when the
campaign's first bucket of the dedup window begins; halt the campaign (if nobody has), so that nothing of it can commit;
rewrite its books in Postgres, which puts it back in service; rebuild Redis from them. Engines
may run: those that are asked for the campaign meanwhile answer 503.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from config.settings import Settings, SettingsError
from engine.clock import SteadyClock, machine_us
from engine.errors import ConfigurationUnsafe, EngineError
from engine.halts import halt_reason
from engine.model import SECOND_US, CampaignId
from engine.ports import Ledger
from engine.postgres.engines import clock_offset_us
from engine.postgres.halt import Rebuilt, rebuild
from engine.postgres.store import PostgresStore, open_store
from engine.recovery import Case, Failed, Followed, Halted, Large, Outcome, Reads, Recovery
from engine.redis.ledger import open_ledger

# Rebuilds until Redis follows. One is enough, two if Redis is ahead of a Postgres that lost commits; more only if
# somebody halts the campaign at the same time.
_ROUNDS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one campaign. `trouble` says why it is not back in service, or not yet in Redis."""

    campaign_id: int
    rebuilt: Rebuilt | None = None
    generation: int = 0
    trouble: str = ""


async def recover(db_url: str, redis_url: str, campaign_ids: Sequence[int], settings: Settings) -> list[Recovered]:
    """Bring these campaigns back, one after the other. Raises an `EngineError` when a store can't be reached."""
    refusal: EngineError | SettingsError | None = None
    recovered: list[Recovered] = []
    async with open_store(db_url, settings) as store:
        try:
            await _compare_clocks(store, settings)
            async with open_ledger(redis_url, settings) as ledger:
                for campaign_id in campaign_ids:
                    recovered += [await _bring_back(store, ledger, CampaignId(campaign_id))]
        except (EngineError, SettingsError) as error:
            refusal = error
    if refusal is not None:
        raise refusal  # out here, because the loop's nurseries would wrap it in groups
    return recovered


async def _compare_clocks(store: PostgresStore, settings: Settings) -> None:
    """Raises `ConfigurationUnsafe` when this machine's clock is off by more than an engine's may be."""
    offset_us = await clock_offset_us(store.database, machine_us)
    if abs(offset_us) > settings.clock_refuse_seconds * SECOND_US:
        raise ConfigurationUnsafe(
            f"this machine's clock is {offset_us / SECOND_US:.0f} s off from Postgres's: set it right first"
        )


async def _bring_back(store: PostgresStore, ledger: Ledger, campaign_id: CampaignId) -> Recovered:
    clock = SteadyClock()
    recovery = Recovery(ledger, store, clock)
    found: Rebuilt | None = None
    above_generation = 0
    for _ in range(_ROUNDS_MAX):
        await store.halt(campaign_id, halt_reason(clock.now_us(), "headrace recover", "its books are being rebuilt"))
        rebuilt = await rebuild(store.database, campaign_id, above_generation=above_generation)
        if rebuilt is None:
            if await store.campaign(campaign_id) is None:
                return Recovered(campaign_id, trouble="there is no such campaign")
            continue  # another rebuild was faster: again, on top of it
        found = found or rebuilt
        raised = rebuilt.after.generation
        outcomes: list[Outcome] = []
        plan, _ = (await store.plans([campaign_id]))[campaign_id]
        users_from = None if plan.freq_cap_impressions_per_day is None else 0  # of whatever day the ledger says
        case = Case(campaign_id, rebuilt.plan_version, users_from, lambda _: None, outcomes.append)
        await recovery.recover([case], Reads.LITTLE, wait=True)
        if outcomes == [Large()]:  # (nobody else waits for it)
            outcomes.clear()
            await recovery.recover([case], Reads.MUCH, wait=True)
        match outcomes:
            case [Failed(why)]:
                return Recovered(campaign_id, found, raised, f"its books are right, but Redis did not follow: {why}")
            case [Followed(generation)]:
                stands = (await store.plans([campaign_id]))[campaign_id][1]
                if generation <= stands.generation:
                    return Recovered(campaign_id, found, generation)
                # Redis is ahead: Postgres was restored from a backup, say. Its books are right; rise above Redis.
                above_generation = generation
            case _:
                assert isinstance(outcomes[0], Halted), "it waited for its row, and read all of its users"
    return Recovered(campaign_id, found, trouble=f"not brought back in {_ROUNDS_MAX} rounds")
