"""Peer a: row at a time. FastAPI, SQLAlchemy and one Redis script a request: the design that the engine replaces.

`python -m bench.peers.rows`, with `DB_URL` and `REDIS_URL`. Endpoints are plain functions in FastAPI's pool of 40
threads, uvicorn is as it comes; pydantic decodes. An event locks its campaign's ledger row (`SELECT … FOR UPDATE`),
asks one Redis script about id and cap, and is inserted together with the money; a batch is a loop over its events.

Promises, in a run without crashes and with any number of processes: the row lock, held until the commit, makes the
events of a campaign follow each other. No budget, no daily budget and no cap is passed; an id counts once; a 200 is
committed. Redis remembers ids for two days.
Leaves out: recovery (what Redis was told before a commit that failed, stays told: that id is 503 from then on),
Idempotency-Key, compressed and NDJSON bodies, pacing, halts, campaign time zones (the spend day is UTC's). pydantic is
laxer than the contract where it reads times and ids.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import redis
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import BigInteger, ForeignKey, SmallInteger, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from api.codec import batch_answer, event_answer
from api.errors import problem
from bench.peers.wire import SETTINGS, as_duplicate, database_url, redis_url, refusal, respond, serve, submission_of
from engine import Entry, Event, Invalid, StoredEvent, Submission, Verdict
from engine.clock import machine_us
from engine.model import (
    BILLABLE,
    DAY_US,
    CampaignId,
    EventId,
    EventType,
    Micros,
    PricingModel,
    cost_per_event,
    datetime_from_us,
    us_from_datetime,
)
from engine.verdicts import IN_FLIGHT, UNAVAILABLE, UNKNOWN_CAMPAIGN

THREADS: Final = 40  # FastAPI's own number: each may need a connection
# KEYS  1 the id  2 impressions of the user on this day. ARGV  1 cap (-1: none)  2 "1" if there is room
# One call decides and writes; whoever is refused leaves nothing behind.
_SCRIPT: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'D' end
local cap = tonumber(ARGV[1])
if cap >= 0 and tonumber(redis.call('GET', KEYS[2]) or 0) >= cap then return 'C' end
if ARGV[2] ~= '1' then return 'N' end
redis.call('SET', KEYS[1], '1', 'EX', 172800)
if cap >= 0 then
    redis.call('INCR', KEYS[2])
    redis.call('EXPIRE', KEYS[2], 172800)
end
return 'A'
"""
_log: Final = logging.getLogger(__name__)


class Base(DeclarativeBase):
    """The tables as they are migrated; only what is used of them."""


class CampaignRow(Base):
    """A campaign."""

    __tablename__ = "campaigns"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    pricing_model: Mapped[str]
    unit_price_micros: Mapped[int] = mapped_column(BigInteger)
    freq_cap_impressions_per_day: Mapped[int | None]
    active: Mapped[bool]


class LedgerRow(Base):
    """What a campaign has spent, and may spend."""

    __tablename__ = "ledger"
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    spent: Mapped[int] = mapped_column(BigInteger)
    total_budget: Mapped[int] = mapped_column(BigInteger)
    day: Mapped[date]
    today: Mapped[int] = mapped_column(BigInteger)
    daily_budget: Mapped[int] = mapped_column(BigInteger)


class EventRow(Base):
    """An accepted event."""

    __tablename__ = "events"
    campaign_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    cost_micros: Mapped[int] = mapped_column(BigInteger)
    occurred_at: Mapped[datetime]
    received_at: Mapped[datetime]
    batch: Mapped[int] = mapped_column(BigInteger)
    spend_day: Mapped[date]
    event_type: Mapped[int] = mapped_column(SmallInteger)
    user_id: Mapped[str]
    ad_id: Mapped[str | None]


class EventIn(BaseModel):
    """An event as its sender wrote it. Lengths in bytes and times are checked by `engine.arrival`, as everywhere."""

    model_config = ConfigDict(extra="forbid")

    campaign_id: Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
    user_id: str
    event_type: Literal["impression", "click", "conversion"]
    ad_id: str | None = None
    event_id: UUID | None = None
    occurred_at: str | None = None

    def event(self) -> Event:
        """The same in the engine's words."""
        return Event(self.campaign_id, self.user_id, self.event_type, self.ad_id, self.event_id, self.occurred_at)


class Recorder:
    """Decides and writes one event after the other."""

    def __init__(self, sessions: sessionmaker[Session], client: redis.Redis) -> None:
        self._sessions = sessions
        self._script = client.register_script(_SCRIPT)

    def record(self, entry: Entry) -> Verdict | None:
        """One transaction for one event; None: accepted."""
        try:
            return self._record(entry)
        except (SQLAlchemyError, redis.RedisError):
            _log.exception("an event failed")
            return UNAVAILABLE

    def _record(self, entry: Entry) -> Verdict | None:
        with self._sessions.begin() as session:
            campaign = session.get(CampaignRow, entry.campaign_id)
            if campaign is None:
                return UNKNOWN_CAMPAIGN
            locked = select(LedgerRow).where(LedgerRow.campaign_id == entry.campaign_id).with_for_update()
            return self._decide(session, campaign, session.scalars(locked).one(), entry)

    def _decide(self, session: Session, campaign: CampaignRow, ledger: LedgerRow, entry: Entry) -> Verdict | None:
        now_us = machine_us()
        today = datetime_from_us(now_us).date()
        model = PricingModel(campaign.pricing_model)
        cost = cost_per_event(model, campaign.unit_price_micros) if entry.event_type is BILLABLE[model] else 0
        spent_today = ledger.today if ledger.day == today else 0
        no_room = "A"
        if not campaign.active:
            no_room = "I"
        elif cost > 0 and ledger.spent + cost > ledger.total_budget:
            no_room = "T"
        elif cost > 0 and spent_today + cost > ledger.daily_budget:
            no_room = "Y"
        cap = campaign.freq_cap_impressions_per_day
        counts = cap is not None and campaign.active and entry.event_type is EventType.IMPRESSION
        keys = [
            f"rows:id:{campaign.id}:{entry.event_id.hex()}",
            f"rows:cap:{campaign.id}:{today}:{entry.user_id}",
        ]
        letter = self._script(keys=keys, args=[cap if cap is not None and counts else -1, int(no_room == "A")]).decode()
        if letter == "D":
            return _duplicate(session, entry)
        if letter != "A":
            return refusal("C" if letter == "C" else no_room, now_us)
        entry.cost_micros = cost
        session.add(_row(entry, today))
        ledger.spent += cost
        ledger.today = spent_today + cost
        ledger.day = today
        return None


def _row(entry: Entry, today: date) -> EventRow:
    return EventRow(
        campaign_id=entry.campaign_id,
        event_id=UUID(bytes=entry.event_id),
        day=datetime_from_us(entry.day * DAY_US).date(),
        cost_micros=entry.cost_micros,
        occurred_at=datetime_from_us(entry.occurred_us),
        received_at=datetime_from_us(entry.received_us),
        batch=0,
        spend_day=today,
        event_type=int(entry.event_type),
        user_id=entry.user_id,
        ad_id=None if entry.ad is None else entry.ad.decode(),
    )


def _duplicate(session: Session, entry: Entry) -> Verdict:
    """What is stored under this id. Nothing, although Redis knows it: its transaction has failed."""
    same = EventRow.campaign_id == entry.campaign_id, EventRow.event_id == UUID(bytes=entry.event_id)
    row = session.scalars(select(EventRow).where(*same).limit(1)).one_or_none()
    if row is None:
        return IN_FLIGHT
    stored = StoredEvent(
        EventId(entry.event_id),
        CampaignId(row.campaign_id),
        row.ad_id,
        row.user_id,
        EventType(row.event_type),
        Micros(row.cost_micros),
        us_from_datetime(row.occurred_at),
        row.batch,
    )
    return as_duplicate(entry, stored)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = database_url().replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, pool_size=THREADS, isolation_level="READ COMMITTED")
    with redis.Redis.from_url(redis_url()) as client:
        app.state.recorder = Recorder(sessionmaker(engine), client)
        yield
    engine.dispose()


app = FastAPI(lifespan=_lifespan)


def _record(request: Request, events: list[Event | Invalid]) -> Submission:
    submission = submission_of(events, lambda _: None)
    for entry in submission.entries:
        if isinstance(entry, Entry):
            entry.settle(request.app.state.recorder.record(entry))
    return submission


@app.post("/events/")
def take_event(request: Request, event: EventIn) -> Response:
    """One event."""
    return respond(event_answer(_record(request, [event.event()])))


@app.post("/events/batch")
def take_batch(request: Request, events: Annotated[list[Any], Body()]) -> Response:
    """A batch, event by event."""
    if len(events) > SETTINGS.request_events_max:
        return respond(problem(413, "too_many_events", f"at most {SETTINGS.request_events_max} events"))
    return respond(batch_answer(_record(request, [_read(event) for event in events])))


def _read(event: Any) -> Event | Invalid:
    try:
        return EventIn.model_validate(event).event()
    except ValidationError as wrong:
        return Invalid(_told(wrong.errors()[0]))


def _told(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


@app.exception_handler(RequestValidationError)
async def refuse(request: Request, error: Exception) -> Response:
    """FastAPI's refusal of a body in the words of docs/api.md."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return respond(problem(400, "malformed_json", first["msg"]))
    if request.url.path == "/events/batch":
        return respond(problem(400, "not_an_array", "the body must be a JSON array of events"))
    return respond(problem(422, "invalid", _told(first)))


if __name__ == "__main__":
    serve(app)
