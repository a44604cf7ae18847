"""Peer b: what a good engineer would build instead. FastAPI on uvicorn, and one background batcher.

`python -m bench.peers.batcher`, with `DB_URL` and `REDIS_URL`. uvloop and httptools; msgspec decodes; asyncpg and
redis.asyncio; the engine's own Lua functions, binary COPY and guard. One process, one event loop, no actors.

The way of an event: it joins the list of all that waits. One loop takes that list, groups it by campaign and reserves
all of it in one pipelined round trip. What is accepted goes to the flushes, two of which are under way at a time: one
transaction each, COPY, guard, COMMIT. Then, and only then, the answers. Redis hears that a reservation is durable with
the campaign's next call, which counts before anything else does: so a later duplicate is told from one in flight.
A request waits on one future; accepted events have no verdict object; an id that is under way here joins its first.

Promises, in a run without crashes and with one process: no budget, no daily budget and no cap is passed; an id counts
once; a 200 is committed. Ids are known to Redis for one to two days.
Leaves out: recovery of any kind (a Redis or Postgres that fails, restarts or forgets leaves ids in flight and money
reserved; a refused flush is voided and answered 503, all of it), more than one process, changes of a campaign while it
runs, pacing, deadlines, halts, campaign time zones (the spend day is UTC's), and a look at Postgres for ids that are
older than Redis's memory: those of another day count anew.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, NamedTuple, cast

import asyncpg
import redis.asyncio

from bench.peers.duplicates import Pool, look_up
from bench.peers.wire import (
    SETTINGS,
    Waiting,
    as_duplicate,
    database_url,
    event_app,
    redis_url,
    refusal,
    serve,
    settle_all,
)
from engine import Campaign, Entry, Verdict
from engine.clock import machine_us
from engine.model import BILLABLE, DAY_US, CampaignId, EventType, StoredEvent
from engine.ports import (
    ALL_LOOKED_UP,
    COUNTS_FOR_CAP,
    FREE,
    NO_CAP,
    NO_TIME,
    NONE_LOOKED_UP,
    LedgerRow,
    Reserve,
    Reserved,
    Resolve,
)
from engine.ports import BILLABLE as BILLABLE_FLAG
from engine.postgres.campaigns import read_plans
from engine.postgres.copy import COLUMNS, guard_call, pack_rows, sum_rows
from engine.postgres.database import Database, teach_forms
from engine.redis.calls import Command, begin_command, read_begin, read_reply, ready_command, round_command
from engine.reservations import Reservation
from engine.steps import Emptied, Ready
from engine.verdicts import INACTIVE, UNAVAILABLE, UNKNOWN_CAMPAIGN

FLUSHES: Final = 2  # one commits while the next is sent, as in the engine
ROUNDS_WAITING_MAX: Final = 8  # for a flush: 40,000 events, as in the engine; then nothing more is reserved
COMMITTED_TAGS_MAX: Final = 500  # that one call carries: what the functions take at most is 1,000
# Answers of Postgres after which nobody knows whether the transaction committed: the session ended.
_UNCERTAIN: Final = ("08", "57P", "40003")
_SESSION: Final = {  # as the engine's flush sets it, for the plan of the guard
    "application_name": "headrace batcher", "synchronous_commit": "on", "jit": "off",
    "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}  # fmt: skip
# No id time is told, and all is said to have been looked up: so Redis never asks for a look-up.
_NO_LOOK_UPS: Final = {
    "unlooked_us": ALL_LOOKED_UP, "looked_bucket": NONE_LOOKED_UP, "most_us": NO_TIME, "most_ahead_us": NO_TIME
}  # fmt: skip
_COLUMNS: Final = COLUMNS.split(", ")
_log: Final = logging.getLogger(__name__)


class Lane:
    """One campaign: its plan, the ids that are under way, and the reservations that Redis believes pending."""

    __slots__ = ("cap", "committed", "flags", "generation", "plan", "under_way")

    def __init__(self, plan: Campaign, generation: int) -> None:
        cap = plan.freq_cap_impressions_per_day
        self.plan = plan
        self.generation = generation
        self.cap = NO_CAP if cap is None else cap
        self.under_way: dict[bytes, Entry] = {}
        self.committed: list[int] = []
        self.flags = [
            (BILLABLE_FLAG if kind is BILLABLE[plan.pricing_model] else FREE)
            | (COUNTS_FOR_CAP if cap is not None and kind is EventType.IMPRESSION else FREE)
            for kind in EventType
        ]

    def call(self, entries: Sequence[Entry], tag: int, now_us: int, committed: Sequence[int]) -> Reserve:
        """One reserve. Who is not active has no budget at all: then Redis still tells duplicates from new events."""
        plan, active = self.plan, self.plan.active
        flags = self.flags if active else [BILLABLE_FLAG] * len(EventType)
        return Reserve(
            campaign_id=plan.id,
            generation=self.generation,
            tag=tag,
            plan_version=plan.version,
            day=now_us // DAY_US,
            at_us=now_us,
            bucket_us=DAY_US,
            **_NO_LOOK_UPS,
            total_budget_micros=plan.total_budget_micros if active else -1,
            daily_budget_micros=plan.daily_budget_micros,
            allowance_micros=plan.daily_budget_micros,
            cap=self.cap if active else NO_CAP,
            cost_micros=plan.cost_micros if active else 0,
            new_users=True,
            kinds=bytes([flags[entry.event_type] for entry in entries]),
            ids=b"".join([entry.event_id for entry in entries]),
            users=[entry.user_id for entry in entries] if active and self.cap >= 0 else (),
            committed=committed,
        )


class Asked(NamedTuple):
    """One call, and the entries that its letters are about."""

    lane: Lane
    call: Reserve
    entries: Sequence[Entry]


class Batcher:
    """See the module. Get one with `open_batcher`."""

    def __init__(self, pool: Pool, ledger: Any, tasks: asyncio.TaskGroup) -> None:
        self._pool = pool
        self._ledger = ledger  # redis.asyncio's pool of connections, whose methods it leaves untyped
        self._tasks = tasks
        self._lanes: dict[int, Lane] = {}
        self._tags = itertools.count(machine_us())
        self._waiting = Waiting()
        self._rounds: asyncio.Queue[list[Reservation]] = asyncio.Queue(ROUNDS_WAITING_MAX)

    def submit(self, entries: Sequence[Entry]) -> None:
        """Take the entries of one request."""
        self._waiting.submit(entries)

    # --- reserve --------------------------------------------------------------------------------------------

    async def reserve_for_ever(self) -> None:
        """Round after round, each with all that waits by then."""
        while True:
            if reservations := await self._reserve(await self._waiting.take()):
                await self._rounds.put(reservations)

    async def _reserve(self, entries: Sequence[Entry]) -> list[Reservation]:
        missing = {entry.campaign_id for entry in entries} - self._lanes.keys()
        if missing and not await self._open_lanes(list(missing)):
            settle_all(entries, UNAVAILABLE)
            return []
        now_us = machine_us()
        asked = self._calls(entries, now_us)
        replies = await self._send([round_command(each.call) for each in asked])
        reservations: list[Reservation] = []
        known: list[Entry] = []
        for each, reply in zip(asked, map(read_reply, replies), strict=True):
            if isinstance(reply, Reserved):
                self._apply(each, reply, now_us, reservations, known)
            else:
                _log.warning("campaign %s: %s", each.lane.plan.id, reply)
                self._give_up(each.entries)
        if known:
            self._tasks.create_task(self._tell_duplicates(known))
        return reservations

    def _calls(self, entries: Sequence[Entry], now_us: int) -> list[Asked]:
        """The calls of a round. An id that is under way already joins that entry, and shares its fate."""
        groups: dict[int, list[Entry]] = {}
        for entry in entries:
            lane = self._lanes.get(entry.campaign_id)
            if lane is None:
                entry.settle(UNKNOWN_CAMPAIGN)
                continue
            first = lane.under_way.setdefault(entry.event_id, entry)
            if first is not entry:
                if first.repeats is None:
                    first.repeats = []
                first.repeats.append(entry)
            elif entry.campaign_id in groups:
                groups[entry.campaign_id].append(entry)
            else:
                groups[entry.campaign_id] = [entry]
        asked: list[Asked] = []
        for campaign_id, group in groups.items():
            lane = self._lanes[campaign_id]
            committed: Sequence[int] = lane.committed[:COMMITTED_TAGS_MAX]
            for start in range(0, len(group), SETTINGS.reserve_events_max):
                part = group[start : start + SETTINGS.reserve_events_max]
                asked.append(Asked(lane, lane.call(part, next(self._tags), now_us, committed), part))
                committed = ()
        return asked

    def _apply(
        self, asked: Asked, reply: Reserved, now_us: int, reservations: list[Reservation], known: list[Entry]
    ) -> None:
        lane, call, entries = asked
        lane.committed = lane.committed[len(call.committed) :]
        accepted: list[Entry] = []
        amount_micros = 0
        for entry, letter, kind in zip(entries, reply.letters.decode(), call.kinds, strict=True):
            if letter == "A":
                entry.cost_micros = call.cost_micros if kind & BILLABLE_FLAG else 0
                amount_micros += entry.cost_micros
                accepted.append(entry)
            elif letter == "D":
                known.append(entry)
            else:
                self._settle(entry, refusal(letter, now_us) if lane.plan.active or letter == "P" else INACTIVE)
        if accepted:
            reservations.append(Reservation(call, accepted, amount_micros))

    async def _open_lanes(self, campaign_ids: list[int]) -> bool:
        """Read plans, and make Redis know the campaigns as the ledger does. What Redis has already, it keeps."""
        database = cast(Database, self._pool)  # it fetches as a pool does
        try:
            plans = await read_plans(database, [CampaignId(campaign_id) for campaign_id in campaign_ids])
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            _log.exception("no plans")
            return False
        begun = await self._send([begin_command(number, row.generation) for number, (_, row) in plans.items()])
        new = [plan for plan, reply in zip(plans.values(), begun, strict=True) if read_begin(reply) == Emptied()]
        await self._send([_ready(plan, row) for plan, row in new])
        for number, (plan, row) in plans.items():
            self._lanes[number] = Lane(plan, row.generation)
        return True

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """One pipelined round trip: a reply a command, be it an error.

        Straight through a connection: redis.asyncio's Pipeline costs twice as much a command.
        """
        if not commands:
            return []
        connection = await self._ledger.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _read(connection) for _ in commands]
        except (redis.RedisError, OSError) as error:
            _log.exception("no answer")
            await connection.disconnect()
            return [redis.RedisError(str(error))] * len(commands)
        finally:
            await self._ledger.release(connection)

    # --- flush ----------------------------------------------------------------------------------------------

    async def flush_for_ever(self) -> None:
        """Flush after flush, each with all that is reserved by then."""
        while True:
            reservations = await self._rounds.get()
            while not self._rounds.empty() and sum(len(each.rows) for each in reservations) < SETTINGS.flush_events_max:
                reservations = reservations + self._rounds.get_nowait()
            try:
                await self._commit(reservations)
            except Exception as error:  # noqa: BLE001 - boundary: whatever Postgres said, the loop goes on
                _log.exception("a flush failed")
                await self._undo(reservations, error)
            else:
                self._answer(reservations)

    async def _commit(self, reservations: Sequence[Reservation]) -> None:
        """One transaction in three round trips: asyncpg can't send COPY and anything else in one message."""
        guard = guard_call(sum_rows(reservations))
        rows: Any = memoryview(pack_rows(reservations))  # asyncpg takes plain bytes for a path
        async with self._pool.acquire() as connection:
            try:
                await connection.execute("BEGIN")
                await connection.copy_to_table("events", source=rows, columns=_COLUMNS, format="binary")
                status = await connection.execute(f"{guard}; COMMIT")
            except BaseException:
                connection.terminate()  # Postgres rolls back, and nobody gets a connection in a failed transaction
                raise
        if status != "COMMIT":
            raise RuntimeError(f"{status} in place of COMMIT")

    def _answer(self, reservations: Sequence[Reservation]) -> None:
        """Committed: accepted. Those that joined an entry are its duplicates."""
        for reservation in reservations:
            lane = self._lanes[reservation.campaign_id]
            lane.committed.append(reservation.tag)
            under_way = lane.under_way
            for entry in reservation.rows:
                del under_way[entry.event_id]
                entry.settle(None)
                if entry.repeats is not None:
                    _settle_repeats(entry, entry.as_stored(reservation.tag))

    async def _undo(self, reservations: Sequence[Reservation], error: Exception) -> None:
        """Nothing was committed, if that is certain: give back what was reserved."""
        sqlstate = getattr(error, "sqlstate", None) or ""
        if isinstance(error, ValueError | asyncpg.PostgresError) and not sqlstate.startswith(_UNCERTAIN):
            voids = [Resolve(each.campaign_id, each.generation, each.tag, commit=False) for each in reservations]
            await self._send([round_command(void) for void in voids])
        for reservation in reservations:
            self._give_up(reservation.rows)

    async def resolve_all(self) -> None:
        """Tell Redis of all that is durable: nothing is pending after a clean end."""
        await self._send(
            [
                round_command(Resolve(lane.plan.id, lane.generation, tag, commit=True))
                for lane in self._lanes.values()
                for tag in lane.committed
            ]
        )

    # --- verdicts -------------------------------------------------------------------------------------------

    async def _tell_duplicates(self, known: Sequence[Entry]) -> None:
        """Redis knows these ids as committed: answer with what is stored."""
        try:
            found = await look_up(self._pool, known)
        except Exception:  # noqa: BLE001 - boundary: the events may be sent again
            _log.exception("a look-up failed")
            found = {}
        for entry in known:
            stored = found.get((entry.campaign_id, entry.event_id))
            if stored is None:
                self._settle(entry, UNAVAILABLE)
            else:
                del self._lanes[entry.campaign_id].under_way[entry.event_id]
                entry.settle(as_duplicate(entry, stored))
                _settle_repeats(entry, stored)

    def _settle(self, entry: Entry, verdict: Verdict) -> None:
        """Not accepted. Those that joined it are decided on their own."""
        del self._lanes[entry.campaign_id].under_way[entry.event_id]
        entry.settle(verdict)
        if entry.repeats is not None:
            self.submit(entry.repeats)
            entry.repeats = None

    def _give_up(self, entries: Sequence[Entry]) -> None:
        """No store will say more about these."""
        for entry in entries:
            self._settle(entry, UNAVAILABLE)


async def _read(connection: Any) -> Any:
    try:
        return await connection.read_response(disconnect_on_error=False)
    except redis.ResponseError as refused:
        return refused


def _ready(plan: Campaign, row: LedgerRow) -> Command:
    now_us = machine_us()
    return ready_command(Ready(plan.id, row.generation, row.spend, plan.version, row.latest_us, now_us, True))


def _settle_repeats(first: Entry, stored: StoredEvent) -> None:
    for entry in first.repeats or ():
        entry.settle(as_duplicate(entry, stored))
    first.repeats = None


async def _keep(_: object) -> None:
    """Leave a connection that comes back as it is: a session is never changed, and after trouble it is closed."""


@asynccontextmanager
async def open_batcher() -> AsyncIterator[Batcher]:
    """Stores connected, library loaded, loops running; at the end nothing is pending."""
    library = files("engine.redis").joinpath("functions.lua").read_text()
    async with (
        asyncpg.create_pool(
            database_url(), min_size=FLUSHES, init=teach_forms, reset=_keep, server_settings=_SESSION
        ) as pool,
        redis.asyncio.Redis.from_url(redis_url(), protocol=2) as ledger,
    ):
        await ledger.function_load(library, replace=True)
        async with asyncio.TaskGroup() as tasks:
            batcher = Batcher(pool, ledger.connection_pool, tasks)
            loops = [tasks.create_task(batcher.reserve_for_ever())]
            loops += [tasks.create_task(batcher.flush_for_ever()) for _ in range(FLUSHES)]
            yield batcher
            for loop in loops:
                loop.cancel()
        await batcher.resolve_all()


if __name__ == "__main__":
    serve(event_app(open_batcher), loop="uvloop", http="httptools")
