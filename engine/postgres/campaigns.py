"""Campaigns: create, read, change, and the ledger row that goes with each.

Owns the SQL of the tables `campaigns` and `ledger` as campaign owners see them. A campaign and its ledger row are
written by the same transaction, which also tells every engine (`NOTIFY headrace_plan`). What values are allowed was
checked before (engine/plans.py).
"""

# ruff: noqa: S608
# SQL is put together here from the names of our own columns, never from values.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import asyncpg

from engine.model import Campaign, CampaignId, CampaignSpend, Micros, NewCampaign, Pacing, PricingModel
from engine.ports import LedgerRow
from engine.postgres.database import Connection, Database

_FIELDS: Final = (
    "name", "pricing_model", "unit_price_micros", "total_budget_micros", "daily_budget_micros",
    "freq_cap_impressions_per_day", "active", "pacing", "timezone",
)  # fmt: skip

_SELECT: Final = f"""
    SELECT c.id, {", ".join(f"c.{name}" for name in _FIELDS)}, c.version, c.created_at, l.gen, l.spent, l.day, l.today,
           l.halted, l.latest
      FROM campaigns AS c JOIN ledger AS l ON l.campaign_id = c.id
"""


async def create_campaign(database: Database, new: NewCampaign) -> tuple[Campaign, CampaignSpend]:
    """A new campaign and its ledger row."""
    places = ", ".join(f"${place}" for place in range(1, len(_FIELDS) + 1))

    async def create(connection: Connection) -> asyncpg.Record | None:
        campaign_id = await connection.fetchval(
            f"INSERT INTO campaigns ({', '.join(_FIELDS)}) VALUES ({places}) RETURNING id",
            *(getattr(new, name) for name in _FIELDS),
        )
        await connection.execute(
            "INSERT INTO ledger (campaign_id, total_budget, daily_budget) VALUES ($1, $2, $3)",
            campaign_id, new.total_budget_micros, new.daily_budget_micros,
        )  # fmt: skip
        return await _told(connection, campaign_id)

    row = await database.transaction(create)
    assert row is not None, "what was just written can be read"
    return _campaign(row), ledger_row(row).spend


async def update_campaign(
    database: Database, campaign_id: CampaignId, changes: Mapping[str, object]
) -> tuple[Campaign, CampaignSpend] | None:
    """Change some fields, and the version with them. None: no such campaign.

    A new budget waits for a flush that holds the ledger row, and every later flush is judged by it.
    """
    unknown = sorted(changes.keys() - set(_FIELDS))
    assert not unknown, f"not a field of a campaign: {unknown}"
    sets = "".join(f", {name} = ${place}" for place, name in enumerate(changes, 2))

    async def update(connection: Connection) -> asyncpg.Record | None:
        await connection.execute(
            f"UPDATE campaigns SET version = version + 1, updated_at = now(){sets} WHERE id = $1",
            campaign_id, *changes.values(),
        )  # fmt: skip
        await connection.execute(
            "UPDATE ledger AS l SET total_budget = c.total_budget_micros, daily_budget = c.daily_budget_micros"
            " FROM campaigns AS c WHERE c.id = $1 AND l.campaign_id = $1"
            " AND (l.total_budget, l.daily_budget) <> (c.total_budget_micros, c.daily_budget_micros)",
            campaign_id,
        )
        return await _told(connection, campaign_id)

    if not changes:
        return await read_campaign(database, campaign_id)
    row = await database.transaction(update)
    return None if row is None else (_campaign(row), ledger_row(row).spend)


async def read_campaign(database: Database, campaign_id: CampaignId) -> tuple[Campaign, CampaignSpend] | None:
    """One campaign and its spend. None: no such campaign."""
    found = (await read_plans(database, [campaign_id])).get(campaign_id)
    return None if found is None else (found[0], found[1].spend)


async def page_campaigns(database: Database, after: int, limit: int) -> list[tuple[Campaign, CampaignSpend]]:
    """The next `limit` campaigns in order of id, from the first id above `after`."""
    rows = await database.fetch(f"{_SELECT} WHERE c.id > $1 ORDER BY c.id LIMIT $2", after, limit)
    return [(_campaign(row), ledger_row(row).spend) for row in rows]


async def read_plans(
    database: Database, campaign_ids: Sequence[CampaignId]
) -> dict[CampaignId, tuple[Campaign, LedgerRow]]:
    """Plan and ledger row, of one snapshot, of those campaigns that exist."""
    rows = await database.fetch(f"{_SELECT} WHERE c.id = ANY ($1::bigint[])", campaign_ids)
    return {CampaignId(row["id"]): (_campaign(row), ledger_row(row)) for row in rows}


def ledger_row(row: asyncpg.Record) -> LedgerRow:
    """The judge's row, from a record with id, gen, spent, day, today, halted, latest."""
    spend = CampaignSpend(Micros(row["spent"]), row["day"], Micros(row["today"]), row["halted"])
    return LedgerRow(CampaignId(row["id"]), row["gen"], spend, row["latest"])


async def _told(connection: Connection, campaign_id: int) -> asyncpg.Record | None:
    """The campaign as it is now, and every engine told of it at commit."""
    row = await connection.fetchrow(f"{_SELECT} WHERE c.id = $1", campaign_id)
    if row is not None:
        await connection.execute("SELECT pg_notify('headrace_plan', $1)", f"{campaign_id} {row['version']}")
    return row


def _campaign(row: asyncpg.Record) -> Campaign:
    return Campaign(
        id=CampaignId(row["id"]),
        name=row["name"],
        pricing_model=PricingModel(row["pricing_model"]),
        unit_price_micros=Micros(row["unit_price_micros"]),
        total_budget_micros=Micros(row["total_budget_micros"]),
        daily_budget_micros=Micros(row["daily_budget_micros"]),
        freq_cap_impressions_per_day=row["freq_cap_impressions_per_day"],
        active=row["active"],
        pacing=Pacing(row["pacing"]),
        timezone=row["timezone"],
        version=row["version"],
        created_us=row["created_at"],
    )
