"""A history laid into a database: committed events of the past, millions a minute, and the books that go with them.

Owns what the rows are and how they get in. They are what an engine would have left: ids are UUIDv7 of then (or UUIDv4),
users come again but never beyond a cap, `ledger` and `rollup` say what the events say, so an audit finds nothing. The
rows are made inside Postgres, two connections at once, into tables that have no index yet: these become the partitions
of their days, as engine/postgres/partitions.py makes them, and attaching one builds its index. An index that is built
so is smaller than one that has grown.

The tags belong to an engine number that no process has. Nobody may write events meanwhile, and no engine may have used
the campaigns: what Redis holds of one would not fit its ledger row any more (if the history costs nothing, it fits).
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal

import psycopg
from psycopg import sql

from engine.model import BILLABLE, EventType, Micros, PricingModel, cost_per_event
from engine.postgres.partitions import partition_name
from engine.processes import TAG_BITS

CONNECTIONS: Final = 2  # a third one makes it no faster on two cores
CHUNK: Final = 500_000  # rows of a transaction: a second or two
BYTES_A_ROW: Final = 350  # of disk: row, index, and the log that is written meanwhile
RESERVATION_ROWS: Final = 1_000  # rows in a row whose reservations are told apart by their campaign alone
EVENTS_A_USER: Final = 4  # where nobody says else: most campaigns have such a cap, or a higher one
DAY_US: Final = 86_400_000_000

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([km]?)/(?:(\d+)(s|min|h|d)|(today))")
_MANY: Final = {"": 1, "k": 1_000, "m": 1_000_000}
_UNITS: Final = {"s": timedelta(seconds=1), "min": timedelta(minutes=1), "h": timedelta(hours=1)}

# `u` walks through 0 to 1 evenly, by the golden ratio: so does what is made of it. A row's campaign, user and type
# follow from its number alone. (`m` is what is random in an id.)
_INSERT: Final = """
INSERT INTO {table} (campaign_id, cost_micros, occurred_at, received_at, batch, event_id, day, spend_day, event_type,
                     user_id, ad_id)
SELECT campaigns[rank], CASE WHEN click THEN click_costs[rank] ELSE impression_costs[rank] END, at, at,
       %(tag)s::bigint + n / {reservation} * cardinality(campaigns) + rank, {id}, %(day)s::date, %(day)s::date,
       click::int::smallint, 'user-00000000000000' || 1000000000 + n %% %(users)s::bigint,
       'ad-' || campaigns[rank] %% 20
  FROM (SELECT n, us / 1000 AS ms, timestamptz 'epoch' + us * interval '1 microsecond' AS at,
               md5(%(tag)s::bigint || '-' || n) AS m, n * 7919 %% 1000 < %(clicks)s::int AS click,
               least(%(count)s::int, floor({rank})::int) AS rank
          FROM (SELECT n, n * 0.6180339887498949::float8 - floor(n * 0.6180339887498949::float8) AS u,
                       %(start_us)s::bigint + floor((n - %(zero)s::bigint) * %(apart_us)s::float8)::bigint AS us
                  FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n OFFSET 0) AS numbers OFFSET 0) AS rows,
       (SELECT %(campaigns)s::bigint[] AS campaigns, %(impression_costs)s::bigint[] AS impression_costs,
               %(click_costs)s::bigint[] AS click_costs) AS known
"""
_IDS: Final = {
    "v7": "('0' || to_hex(ms) || '7' || substr(m, 1, 3) || '8' || substr(m, 4, 15))::uuid",
    "v4": "overlay(overlay(m placing '4' from 13 for 1) placing '8' from 17 for 1)::uuid",
}

_SUMS: Final = """
CREATE TEMPORARY TABLE history_sums (campaign_id bigint, hour timestamptz, impressions bigint, clicks bigint,
                                     spend bigint, last_at timestamptz)
"""
_SUM_UP: Final = """
INSERT INTO history_sums
SELECT campaign_id, date_trunc('hour', occurred_at, 'UTC'), count(*) FILTER (WHERE event_type = 0),
       count(*) FILTER (WHERE event_type = 1), sum(cost_micros)::bigint, max(occurred_at)
  FROM {table} WHERE batch >= %(tag)s AND batch < %(tag)s + (1::bigint << %(bits)s) GROUP BY 1, 2
"""
_ROLLUP: Final = """
INSERT INTO rollup AS r (campaign_id, hour, impressions, clicks, conversions, spend)
SELECT campaign_id, hour, impressions, clicks, 0, spend FROM history_sums
    ON CONFLICT (campaign_id, hour) DO UPDATE
   SET impressions = r.impressions + excluded.impressions, clicks = r.clicks + excluded.clicks,
       spend = r.spend + excluded.spend
"""
_LEDGER: Final = """
WITH days AS (SELECT campaign_id, (hour AT TIME ZONE 'UTC')::date AS day, sum(spend)::bigint AS spend,
                     max(last_at) AS last_at FROM history_sums GROUP BY 1, 2),
     sums AS (SELECT campaign_id, sum(spend)::bigint AS spent, max(day) AS day, max(last_at) AS last_at,
                     (array_agg(spend ORDER BY day DESC))[1] AS today FROM days GROUP BY 1)
UPDATE ledger AS l
   SET spent = l.spent + s.spent, day = greatest(l.day, s.day),
       today = CASE WHEN l.day = s.day THEN l.today + s.today WHEN l.day < s.day THEN s.today ELSE l.today END{latest}
  FROM sums AS s WHERE l.campaign_id = s.campaign_id
"""
# The highest id time of what is committed, where the judge keeps it. (That of a UUIDv7 has whole milliseconds; a UUIDv4
# has none.)
_LATEST: Final = """,
       latest = greatest(l.latest, 1000 * floor(1000 * extract(epoch FROM s.last_at))::bigint)"""

Ids = Literal["v7", "v4"]


@dataclass(frozen=True, slots=True)
class Span:
    """So many events, evenly from `start` on, all before `end`."""

    rows: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class History:
    """What is laid in.

    `exponent` 0: all campaigns alike; 1: Zipf's law, the first campaign has most. A user comes at most `events_a_user`
    times a day. `first_tag`: that of another writer than an engine; None: of an engine that never lived.
    """

    spans: Sequence[Span]
    exponent: float = 0.0
    ids: Ids = "v7"
    events_a_user: int = EVENTS_A_USER
    clicks_share: float = 0.1
    first_tag: int | None = None

    @property
    def rows(self) -> int:
        """In all spans."""
        return sum(span.rows for span in self.spans)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` to `last`, all of one day; row n is of `start_us + floor((n - zero) * apart_us)`."""

    day: int  # since 1970
    users: int
    first: int
    last: int
    zero: int
    start_us: int
    apart_us: float


@dataclass(frozen=True, slots=True)
class Laid:
    """What came of it. The tags of its rows are `first_tag` and as many after it as an engine has."""

    rows: int
    days: int
    seconds: float
    first_tag: int


def span_of(text: str, now: datetime) -> Span:
    """`10m/10min`, `500k/24h`, `10m/today`, or `50m/365d`: of so many days, today included.

    Raises `ValueError` with what is allowed.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no history: rows/time, as in 10m/10min, 500k/24h, 50m/365d or 10m/today, is one")
    rows = int(float(found[1]) * _MANY[found[2]])
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if found[5]:
        start = midnight
    elif found[4] == "d":
        start = midnight - timedelta(days=max(1, int(found[3])) - 1)
    else:
        start = now - int(found[3]) * _UNITS[found[4]]
    return Span(rows, start, now)


def parts_of(history: History) -> list[Part]:
    """What is inserted at once, day by day: a day's rows have numbers of their own, in a row."""
    pieces = sorted(piece for span in history.spans for piece in _days_of(span))
    rows_of: dict[int, int] = {}
    for day, first, last, _, _ in pieces:
        rows_of[day] = rows_of.get(day, 0) + last - first + 1
    found: list[Part] = []
    number = 0
    for day, first, last, start_us, apart_us in pieces:
        users = -(-rows_of[day] // history.events_a_user)
        zero = number - first
        for begin in range(first, last + 1, CHUNK):
            end = min(begin + CHUNK - 1, last)
            found.append(Part(day, users, zero + begin, zero + end, zero, start_us, apart_us))
        number += last - first + 1
    return found


def _days_of(span: Span) -> Iterator[tuple[int, int, int, int, float]]:
    """Day, first and last row, start of the span, and microseconds between two rows."""
    start_us, end_us = _us(span.start), _us(span.end)
    if not span.rows:
        return
    apart_us = (end_us - start_us) / span.rows
    first = 0
    while first < span.rows:
        day = (start_us + math.floor(first * apart_us)) // DAY_US
        left_us = (day + 1) * DAY_US - start_us
        after = span.rows
        if math.floor((span.rows - 1) * apart_us) >= left_us:
            after = math.ceil(left_us / apart_us)
            while math.floor(after * apart_us) < left_us:  # (a division is rounded)
                after += 1
            while math.floor((after - 1) * apart_us) >= left_us:
                after -= 1
        yield day, first, after - 1, start_us, apart_us
        first = after


def _us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def rank_of(count: int, exponent: float) -> str:
    """SQL that makes a rank from 1 to `count` (rounded down) out of `u`: its number of rows falls with the exponent."""
    if exponent == 1.0:
        return f"power({count + 1}::float8, u)"
    power = 1.0 - exponent
    return f"power(1 + u * {(count + 1) ** power - 1!r}::float8, {1 / power!r}::float8)"


# --- Laying it in -----------------------------------------------------------------------------------------------


def lay_history(db_url: str, history: History, campaign_ids: Sequence[int] = ()) -> Laid:
    """Write it, over these campaigns or all, and leave the tables vacuumed and on disk. Raises `ValueError`."""
    started = time.monotonic()
    parts = parts_of(history)
    days = sorted({part.day for part in parts})
    with psycopg.connect(db_url, autocommit=True) as connection:
        _check_disk(connection, history.rows)
        values = _campaigns(connection, list(campaign_ids), history)
        values |= {"tag": _first_tag(connection, history), "clicks": round(1_000 * history.clicks_share)}
        loose = [day for day in days if _make_loose(connection, day)]
        insert = sql.SQL(_INSERT.format(
            table="{table}", id=_IDS[history.ids], rank=rank_of(values["count"], history.exponent),
            reservation=RESERVATION_ROWS,
        ))  # fmt: skip
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(partial(_insert, db_url, insert, values), parts))
        connection.execute("SET maintenance_work_mem = '512MB'")
        connection.execute(_SUMS)
        bounds = {"tag": values["tag"], "bits": TAG_BITS}
        for day in days:
            connection.execute(sql.SQL(_SUM_UP).format(table=_table(day)), bounds)
            if day in loose:
                _attach(connection, day)
        connection.execute(_ROLLUP)
        latest = _LATEST if history.ids == "v7" and _keeps_latest(connection) else ""
        connection.execute(_LEDGER.format(latest=latest))
        connection.execute("VACUUM (ANALYZE) events, ledger, rollup")
        connection.execute("CHECKPOINT")
    return Laid(history.rows, len(days), round(time.monotonic() - started, 1), values["tag"])


def make_past_partitions(db_url: str, days_back: int) -> None:
    """Partitions of the days before today, as far as there are none. They are empty."""
    with psycopg.connect(db_url, autocommit=True) as connection:
        today = _us(datetime.now(UTC)) // DAY_US
        for day in range(today - days_back, today):
            if not _exists(connection, day):
                _create(connection, day)
                _attach(connection, day)


def _check_disk(connection: psycopg.Connection[Any], rows: int) -> None:
    (folder,) = connection.execute("SHOW data_directory").fetchone() or ("",)
    if (free := shutil.disk_usage(folder).free) < rows * BYTES_A_ROW:
        raise ValueError(f"{rows:,} rows need {rows * BYTES_A_ROW >> 30} GB of disk, and {free >> 30} GB are free")


def _campaigns(connection: psycopg.Connection[Any], campaign_ids: list[int], history: History) -> dict[str, Any]:
    """Parameters that say which campaigns there are, and what an event of each costs."""
    rows = connection.execute(
        "SELECT id, pricing_model, unit_price_micros, freq_cap_impressions_per_day, timezone, gen FROM campaigns"
        " JOIN ledger ON campaign_id = id WHERE cardinality(%(ids)s::bigint[]) = 0 OR id = ANY (%(ids)s) ORDER BY id",
        {"ids": campaign_ids},
    ).fetchall()
    if not rows:
        raise ValueError("there are no campaigns to lay a history into")
    cap = min((cap for *_, cap, _, _ in rows if cap is not None), default=history.events_a_user)
    if cap < history.events_a_user:
        raise ValueError(f"a user would come {history.events_a_user} times a day, and a cap is {cap}")
    if any(zone != "UTC" for *_, zone, _ in rows):
        raise ValueError("a history has days of UTC, and a campaign has another time zone")
    costs: dict[EventType, list[int]] = {EventType.IMPRESSION: [], EventType.CLICK: []}
    for _, model, price, *_ in rows:
        for event_type, of_type in costs.items():
            billable = BILLABLE[PricingModel(model)] is event_type
            of_type.append(cost_per_event(PricingModel(model), Micros(price)) if billable else 0)
    made = [EventType.CLICK] if history.clicks_share == 1 else [EventType.IMPRESSION, EventType.CLICK]
    if any(gen and any(costs[event_type][at] for event_type in made) for at, (*_, gen) in enumerate(rows)):
        raise ValueError("an engine has used these campaigns already")
    return {
        "campaigns": [campaign for campaign, *_ in rows], "count": len(rows),
        "impression_costs": costs[EventType.IMPRESSION], "click_costs": costs[EventType.CLICK],
    }  # fmt: skip


def _first_tag(connection: psycopg.Connection[Any], history: History) -> int:
    if history.first_tag is not None:
        return history.first_tag
    (number,) = connection.execute("SELECT nextval('engine_number')").fetchone() or (0,)
    return int(number) << TAG_BITS


def _insert(db_url: str, statement: sql.SQL, values: dict[str, Any], part: Part) -> None:
    place = {"first": part.first, "last": part.last, "zero": part.zero, "start_us": part.start_us}
    day = datetime.fromtimestamp(part.day * DAY_US // 1_000_000, UTC).date()
    with psycopg.connect(db_url) as connection:
        connection.execute(
            statement.format(table=_table(part.day)),
            {**values, **place, "apart_us": part.apart_us, "users": part.users, "day": day},
        )


def _keeps_latest(connection: psycopg.Connection[Any]) -> bool:
    found = connection.execute(
        "SELECT FROM pg_attribute WHERE attrelid = 'ledger'::regclass AND attname = 'latest' AND NOT attisdropped"
    )
    return found.fetchone() is not None


# --- Partitions --------------------------------------------------------------------------------------------------


def _table(day: int) -> sql.Identifier:
    return sql.Identifier(partition_name(day))


def _exists(connection: psycopg.Connection[Any], day: int) -> bool:
    return connection.execute("SELECT to_regclass(%s)", [partition_name(day)]).fetchone() != (None,)


def _make_loose(connection: psycopg.Connection[Any], day: int) -> bool:
    """A table for the day that is no partition yet. False: there is one with rows in it, which is filled as it is."""
    if _exists(connection, day):
        if connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(_table(day))).fetchone() is not None:
            return False
        connection.execute(sql.SQL("DROP TABLE {}").format(_table(day)))
    _create(connection, day)
    return True


def _create(connection: psycopg.Connection[Any], day: int) -> None:
    connection.execute(sql.SQL("CREATE TABLE {} (LIKE events)").format(_table(day)))


def _attach(connection: psycopg.Connection[Any], day: int) -> None:
    start = datetime.fromtimestamp(day * DAY_US // 1_000_000, UTC).date()
    connection.execute(
        sql.SQL("ALTER TABLE events ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            _table(day), sql.Literal(str(start)), sql.Literal(str(start + timedelta(days=1)))
        )
    )
