"""The audit, put together: facts from both stores, judged by engine/audit.py; what it does about differences.

Owns the order of reading. Postgres alone is one snapshot. Redis and the ledger are two stores, and a running engine
moves both: campaigns that seem to differ are read once more, one by one, with the ledger row held so that no flush of
theirs can commit in between (a few milliseconds each). What differs then, differs.

The dedup windows are compared last, all campaigns in one pass over the youngest events: each piece of them is asked of
Redis after it was read.

Books that differ halt their campaign, once everything is judged: a reason in its ledger row and a raised generation,
the only thing that an audit changes. (A campaign that somebody recovers during the audit may be halted for what was
wrong before; nothing is lost by recovering it again.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import trio_asyncio  # type: ignore[import-untyped]

from config.settings import Settings
from engine.audit import AuditResult, Finding, compare, compare_redis, compare_window, is_held
from engine.clock import machine_us
from engine.errors import EngineError
from engine.halts import halt_reason
from engine.postgres.audit import ReadRedis, ids_above, read_both, read_facts
from engine.postgres.database import Database, normal_url, open_database
from engine.postgres.halt import halt as halt_campaign
from engine.redis.audit import RedisReader, open_reader

# One MULTI of Redis: two small hashes a campaign, about 0.3 ms in all.
CAMPAIGNS_A_READ: Final = 100


async def audit(db_url: str, redis_url: str, settings: Settings, *, halt: bool = True) -> AuditResult:
    """Recompute everything from the events, and compare; with `halt`, halt the campaigns whose books differ.

    Raises `StoreUnavailable` when a store can't be reached or gives up.
    """
    refusal: EngineError | None = None
    result = AuditResult()
    patience = settings.query_timeout_seconds
    with open_reader(redis_url, settings) as reader:
        async with (
            trio_asyncio.open_loop() as loop,
            # (It waits for a row as long as for any answer: nobody waits for an audit, whose passes take an hour.)
            open_database(loop, normal_url(db_url), 1, patience, lock_seconds=patience) as database,
        ):
            try:
                campaigns = await _audit_postgres(database, result)
                for start in range(0, len(campaigns), CAMPAIGNS_A_READ):
                    await _audit_redis(database, reader.read, campaigns[start : start + CAMPAIGNS_A_READ], result)
                await _audit_windows(database, reader, campaigns, result)
                if halt:
                    await _halt(database, result)
            except EngineError as error:
                refusal = error
    if refusal is not None:
        raise refusal  # out here, because the loop's nurseries would wrap it in groups
    result.findings.sort(key=lambda finding: finding.campaign_id)
    return result


async def _audit_postgres(database: Database, result: AuditResult) -> list[int]:
    """Judge what Postgres has; the campaigns with a ledger row."""
    everything = await read_facts(database)
    for facts in everything:
        result.campaigns += 1
        result.events += facts.events
        result.findings += compare(facts)
        if facts.ledger is not None and facts.ledger.halted is not None:
            result.halted[facts.campaign_id] = facts.ledger.halted
    return [facts.campaign_id for facts in everything if facts.ledger is not None]


async def _audit_redis(
    database: Database, read_redis: ReadRedis, campaigns: Sequence[int], result: AuditResult
) -> None:
    seen = await read_both(database, campaigns, read_redis, hold=False)
    for campaign, (ledger, redis, committed) in seen.items():
        if not is_held(ledger, redis):
            result.rebuilt_later += 1
        elif compare_redis(campaign, ledger, redis, committed):
            result.findings += await _judge_held(database, read_redis, campaign)


async def _judge_held(database: Database, read_redis: ReadRedis, campaign: int) -> list[Finding]:
    held = await read_both(database, [campaign], read_redis, hold=True)
    return [
        finding
        for ledger, redis, committed in held.values()
        for finding in compare_redis(campaign, ledger, redis, committed)
    ]


async def _audit_windows(
    database: Database, reader: RedisReader, campaigns: Sequence[int], result: AuditResult
) -> None:
    watermarks: dict[int, int] = {}
    for start in range(0, len(campaigns), CAMPAIGNS_A_READ):
        windows = await reader.unknown({campaign: [] for campaign in campaigns[start : start + CAMPAIGNS_A_READ]})
        watermarks |= {campaign: window.watermark_us for campaign, (window, _) in windows.items()}
    if not watermarks:
        return
    lost: Counter[int] = Counter()
    async with aclosing(ids_above(database, watermarks)) as pieces:
        async for piece in pieces:
            committed: defaultdict[int, dict[bytes, tuple[int, int]]] = defaultdict(dict)
            for campaign, event_id, id_time_us, generation in piece:
                committed[campaign][event_id] = id_time_us, generation
            asked = {campaign: list(ids) for campaign, ids in committed.items()}
            for campaign, (window, unknown) in (await reader.unknown(asked)).items():
                lost[campaign] += sum(window.forgets(*committed[campaign][event_id]) for event_id in unknown)
    for campaign, ids in lost.items():
        result.findings += compare_window(campaign, ids)


async def _halt(database: Database, result: AuditResult) -> None:
    """Halt each campaign that is in service and whose books differ."""
    books = {finding.campaign_id: finding for finding in reversed(result.differences) if finding.books}
    for campaign, first in sorted(books.items()):
        if campaign not in result.halted:
            what = f"{first.check}: expected {first.expected}, found {first.found}"
            result.halted[campaign] = halt_reason(machine_us(), "headrace audit", what)
            await halt_campaign(database, campaign, result.halted[campaign])
