"""Peer c: Postgres alone. One PL/pgSQL function takes a batch, decides all of it and writes it (record.sql).

`python -m bench.peers.plpgsql`, with `DB_URL`. FastAPI on uvicorn with uvloop and httptools, msgspec, asyncpg. What
arrives while calls are under way is the next call's batch, whatever requests it came with; a call is a transaction.

Promises, whatever crashes and with any number of processes: the ledger's row lock makes decisions follow each other,
and a call commits as a whole. No budget, no daily budget and no cap is passed; an id counts once on its identity day;
a 200 is committed.
Leaves out: pacing, deadlines, halts, campaign time zones (the spend day is UTC's), and an id that comes again with
another identity day, which counts anew. An id that is twice in one call, for two users, gives both the first's verdict.
It keeps a table of its own, `peer_impressions`, and does without the generation of the ledger.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Final

import asyncpg

from bench.peers.duplicates import Pool, look_up
from bench.peers.wire import Waiting, as_duplicate, database_url, event_app, refusal, serve, settle_all
from engine import Entry
from engine.clock import machine_us
from engine.model import DAY_US, Micros
from engine.postgres.database import teach_forms
from engine.verdicts import UNAVAILABLE, UNKNOWN_CAMPAIGN

CALLS: Final = 2  # one commits while the next is sent; more would only wait for each other's campaigns
_SESSION: Final = {
    "application_name": "headrace plpgsql", "synchronous_commit": "on", "jit": "off",
    # Planned once a session, when the tables may be empty: rows are found by their keys, and sets are joined as sets.
    "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_nestloop": "off",
}  # fmt: skip
_RECORD: Final = "SELECT letters, costs FROM peer_record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('peer_record'))"
_log: Final = logging.getLogger(__name__)


class Gatherer:
    """What waits, and the loops that take it. Get one with `open_gatherer`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting = Waiting()
        self._tags = itertools.count(machine_us())

    def submit(self, entries: Sequence[Entry]) -> None:
        """Take the entries of one request."""
        self._waiting.submit(entries)

    async def record_for_ever(self) -> None:
        """Call after call, each with all that waits by then."""
        while True:
            entries = await self._waiting.take()
            try:
                await self._record(entries)
            except Exception:  # noqa: BLE001 - boundary: whatever Postgres said, the loop goes on
                _log.exception("a call failed")
                settle_all(entries, UNAVAILABLE)

    async def _record(self, entries: Sequence[Entry]) -> None:
        now_us = machine_us()
        row = await self._pool.fetchrow(
            _RECORD,
            [entry.campaign_id for entry in entries],
            [entry.event_id for entry in entries],
            [entry.user_id for entry in entries],
            [None if entry.ad is None else entry.ad.decode() for entry in entries],
            [entry.event_type for entry in entries],
            [entry.occurred_us for entry in entries],
            [entry.received_us for entry in entries],
            [entry.day for entry in entries],
            now_us // DAY_US,
            next(self._tags),
        )
        assert row is not None
        known: list[Entry] = []
        for entry, letter, cost_micros in zip(entries, row["letters"], row["costs"], strict=True):
            if letter == "A":
                entry.cost_micros = Micros(cost_micros)
                entry.settle(None)
            elif letter == "D":
                known.append(entry)
            else:
                entry.settle(UNKNOWN_CAMPAIGN if letter == "U" else refusal(letter, now_us))
        if known:
            found = await look_up(self._pool, known)
            for entry in known:
                entry.settle(as_duplicate(entry, found[entry.campaign_id, entry.event_id]))


async def _keep(_: object) -> None:
    """Leave a connection that comes back as it is: a session is never changed."""


@asynccontextmanager
async def open_gatherer() -> AsyncIterator[Gatherer]:
    """The function made, the loops running."""
    async with asyncpg.create_pool(
        database_url(), min_size=CALLS, init=teach_forms, reset=_keep, server_settings=_SESSION
    ) as pool:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK)  # several processes may start at once
            await connection.execute(files("bench.peers").joinpath("record.sql").read_text())
        async with asyncio.TaskGroup() as tasks:
            gatherer = Gatherer(pool)
            loops = [tasks.create_task(gatherer.record_for_ever()) for _ in range(CALLS)]
            yield gatherer
            for loop in loops:
                loop.cancel()


if __name__ == "__main__":
    serve(event_app(open_gatherer), loop="uvloop", http="httptools")
