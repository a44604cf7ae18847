"""Ceilings (d): what each part alone could do on this machine. Nothing here validates, dedups or holds a budget.

`python -m bench.peers.ceilings NAME`, with `DB_URL` and `REDIS_URL` as needed:
- `copy`: binary COPY of rows packed beforehand into `events`, 10,000 a transaction, one connection, the UNIQUE key and
  the partitions as they are. No ledger row changes, so the database is no good for an audit afterwards.
- `lua`: the Lua functions alone: reserve 1,000 events over 100 campaigns and resolve them, all in one pipelined round
  trip, packed beforehand. One connection that waits for each answer, so Redis idles a little. It empties that Redis.
- `uvicorn`: a raw ASGI app (uvloop, httptools) that reads the body and answers every request with the same 200.
- `intake`: the project's own intake, which decodes the events; behind it, instead of an engine, somebody who accepts
  everything at once and looks at nothing.

The first two take `--seconds` and print one line of JSON: name, events, seconds, and the CPU seconds of this client,
of the measured parts only. The servers print where they listen and end on SIGTERM.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any, Final

import psycopg
import redis
import trio

from api.intake import serve_intake
from bench.peers.wire import SETTINGS, announce, database_url, entries_of, listen, redis_url, serve, submission_of
from engine import Entry, Event, Invalid, Submission
from engine.clock import machine_us
from engine.model import DAY_US, SECOND_US, CampaignId, CampaignSpend, Micros, new_event_id
from engine.ports import BILLABLE, COUNTS_FOR_CAP, NO_CAP, NO_TIME, NONE_LOOKED_UP, Reserve, Resolve
from engine.postgres.copy import COLUMNS, pack_rows
from engine.redis.calls import Command, begin_command, ready_command, round_command
from engine.steps import Ready

CAMPAIGNS: Final = 100
COPY_ROWS: Final = 10_000  # a chunk: the engine's largest flush
COPY_CHUNKS: Final = 20  # packed ahead of a stretch that is measured: 27 MB, and a third of a second or more
LUA_EVENTS: Final = 1_000  # a round: a batch of the usual size
LUA_ROUNDS: Final = 100  # packed ahead of a stretch that is measured
_CAMPAIGN_IDS: Final = [CampaignId(number) for number in range(1, CAMPAIGNS + 1)]
AMPLE_MICROS: Final = 10**15  # a budget that never bites
BUCKET_US: Final = SETTINGS.dedup_bucket_seconds * SECOND_US


# --- Stretches of work that was prepared before the clock runs ----------------------------------------------


def measure(name: str, prepare: Callable[[], list[Callable[[], int]]], seconds: float) -> None:
    """Prepare a stretch, measure it, and so on until `seconds` are measured; then print the line."""
    events, wall, cpu = 0, 0.0, 0.0
    while wall < seconds:
        stretch = prepare()
        began, began_cpu = time.perf_counter(), time.process_time()
        for work in stretch:
            events += work()
            if wall + time.perf_counter() - began >= seconds:
                break
        wall += time.perf_counter() - began
        cpu += time.process_time() - began_cpu
    print(json.dumps({"name": name, "events": events, "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}))


@dataclass(slots=True)
class Rows:
    """The accepted events of one campaign, as `pack_rows` wants them."""

    campaign_id: CampaignId
    rows: Sequence[Entry]
    spend_day: int
    generation: int = 0
    tag: int = 0
    amount_micros: int = 0


def _entries(campaign_id: CampaignId, users: Iterator[int], count: int) -> list[Entry]:
    """New impressions of new users."""
    events = [Event(campaign_id, f"user-{next(users):012d}", "impression", "ad-1") for _ in range(count)]
    return entries_of(submission_of(events, lambda _: None))


def copy(seconds: float) -> None:
    """Raw COPY into `events`."""
    users = itertools.count(machine_us())
    statement = f"COPY events ({COLUMNS}) FROM STDIN (FORMAT binary)".encode()
    with psycopg.connect(database_url(), autocommit=True) as connection, connection.cursor() as cursor:

        def send(rows: bytes) -> int:
            with cursor.copy(statement) as stream:
                stream.write(rows)
            return COPY_ROWS

        def chunk() -> bytes:
            day = machine_us() // DAY_US
            count = COPY_ROWS // CAMPAIGNS
            return pack_rows([Rows(each, _entries(each, users, count), day) for each in _CAMPAIGN_IDS])

        chunks = min(COPY_CHUNKS, math.ceil(seconds * 50))
        measure("copy", lambda: [partial(send, chunk()) for _ in range(chunks)], seconds)


# --- Lua ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class LuaRounds:
    """Rounds of reserve and resolve, packed; every user and every id is new."""

    cap: int
    users: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    tags: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def commands(self) -> list[Command]:
        """One round: a reserve for each campaign, then a resolve for each."""
        calls = [self._reserve(campaign_id) for campaign_id in _CAMPAIGN_IDS]
        resolves = [Resolve(call.campaign_id, 0, call.tag, commit=True) for call in calls]
        return [*map(round_command, calls), *map(round_command, resolves)]

    def _reserve(self, campaign_id: CampaignId) -> Reserve:
        count, now_us = LUA_EVENTS // CAMPAIGNS, machine_us()
        kind = BILLABLE | (COUNTS_FOR_CAP if self.cap >= 0 else 0)
        return Reserve(
            campaign_id=campaign_id, generation=0, tag=next(self.tags), plan_version=1,
            day=now_us // DAY_US, at_us=now_us, bucket_us=BUCKET_US, unlooked_us=now_us, looked_bucket=NONE_LOOKED_UP,
            most_us=now_us, most_ahead_us=NO_TIME, total_budget_micros=AMPLE_MICROS, daily_budget_micros=AMPLE_MICROS,
            allowance_micros=AMPLE_MICROS, cap=self.cap, cost_micros=1_000, new_users=True,
            kinds=bytes([kind]) * count, ids=b"".join(new_event_id(now_us, os.urandom(10)) for _ in range(count)),
            users=[f"user-{next(self.users):012d}" for _ in range(count)],
        )  # fmt: skip


def lua(seconds: float, cap: int) -> None:
    """The Lua functions alone."""
    with redis.Redis.from_url(redis_url(), protocol=2) as client:
        client.flushall()
        client.function_load(files("engine.redis").joinpath("functions.lua").read_text(), replace=True)
        spend = CampaignSpend(Micros(0), machine_us() // DAY_US, Micros(0))
        for campaign_id in _CAMPAIGN_IDS:
            client.execute_command(*begin_command(campaign_id, 0))
            ready = Ready(campaign_id, 0, spend, 1, 0, machine_us(), users_loaded=True)
            client.execute_command(*ready_command(ready))
        connection: Any = client.connection_pool.get_connection()  # redis-py leaves its methods untyped
        rounds = LuaRounds(cap)

        def send(packed: Sequence[bytes]) -> int:
            connection.send_packed_command(packed)
            replies = [connection.read_response() for _ in range(2 * CAMPAIGNS)]
            accepted = sum(reply[1].count(b"A") for reply in replies[:CAMPAIGNS])
            assert accepted == LUA_EVENTS, replies[0]
            return LUA_EVENTS

        def stretch() -> list[Callable[[], int]]:
            packed = [
                connection.pack_commands(rounds.commands()) for _ in range(min(LUA_ROUNDS, math.ceil(seconds * 300)))
            ]
            return [partial(send, data) for data in packed]

        measure("lua", stretch, seconds)


# --- Constant answers ---------------------------------------------------------------------------------------

Scope = MutableMapping[str, Any]


async def constant_app(scope: Scope, receive: Callable[[], Any], send: Callable[[Scope], Any]) -> None:
    """Reads the body, answers 200."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


class Nobody:
    """Stands in for an engine (`api.intake.EventTaker`): every event is accepted, and is the same event."""

    def __init__(self) -> None:
        event = Event(1, "user-000000000001", "impression", "ad-1")
        self._accepted = entries_of(submission_of([event], lambda _: None))

    def submit(
        self,
        events: Sequence[Event | Invalid],
        answer: Callable[[Submission], None],
        *,
        idempotency_key: str | None = None,
    ) -> Submission:
        """Accept all of it."""
        del idempotency_key  # it would make ids, and here nobody has one
        submission = Submission(0, 0.0, answer, answer)
        submission.entries = [*self._accepted] * len(events)
        answer(submission)
        return submission

    full = False

    def overloaded(self) -> bool:
        """Never."""
        return False

    async def problems(self) -> list[str]:
        """None."""
        return []

    def notes(self) -> list[str]:
        """None."""
        return []


async def _serve_intake(listener: socket.socket) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_intake, Nobody(), listener, SETTINGS, stop)
            announce(listener)
            async for _ in signals:
                stop.set()
                break


def main() -> None:
    """Measure or serve, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.ceilings", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=["copy", "lua", "uvicorn", "intake"])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure (copy, lua)")
    parser.add_argument("--cap", type=int, default=NO_CAP, help="a frequency cap for all campaigns (lua); none: -1")
    asked = parser.parse_args()
    match asked.name:
        case "copy":
            copy(asked.seconds)
        case "lua":
            lua(asked.seconds, asked.cap)
        case "uvicorn":
            serve(constant_app, loop="uvloop", http="httptools", lifespan="off")
        case "intake":
            trio.run(_serve_intake, listen())


if __name__ == "__main__":
    main()
