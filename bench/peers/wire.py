"""What the peers share: HTTP bodies to entries, verdicts to answers, and how a server of the bench starts and ends.

The codec, the checks and the answers are the project's own, the very functions that the engine's listeners call: so
peers differ from the engine in their design and nowhere else. `rows.py` decodes in its own way.
Leaves out: deadlines, /healthz and /readyz, and problem bodies for paths and methods that are not there.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.codec import batch_answer, event_answer, read_events
from api.errors import Answer, BadRequest
from api.headers import read_idempotency_key
from config.settings import Settings
from engine import Entry, Event, Invalid, Reason, Status, StoredEvent, Submission, Verdict
from engine.arrival import ArrivalLimits, arrive
from engine.clock import machine_us
from engine.derived_ids import DerivedIds
from engine.model import DAY_US, EventId
from engine.pacing import seconds_between
from engine.postgres.database import normal_url
from engine.verdicts import DAILY_BUDGET, ID_REUSED, IN_FLIGHT, INACTIVE, OVERLOADED, TOTAL_BUDGET

SETTINGS: Final = Settings()  # the defaults, as the engine has them
_LIMITS: Final = ArrivalLimits.of(SETTINGS)
# Events that wait in one process; more are told to come again. The engine's bound.
WAITING_MAX: Final = SETTINGS.engine_events_max


# --- Requests and answers -----------------------------------------------------------------------------------


class Taker(Protocol):
    """Who gives each event of a submission its verdict: what lies behind the HTTP of a peer."""

    def submit(self, entries: Sequence[Entry]) -> None:
        """Take the entries of one request."""
        ...


class Waiting:
    """Entries of all requests, until a loop takes them: `Taker` on one side, `take` on the other."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._wake = asyncio.Event()

    def submit(self, entries: Sequence[Entry]) -> None:
        """Take the entries of one request."""
        if len(self._entries) + len(entries) > WAITING_MAX:
            settle_all(entries, OVERLOADED)
            return
        self._entries += entries
        self._wake.set()

    async def take(self) -> list[Entry]:
        """All that wait by then, up to the engine's round."""
        while not self._entries:
            self._wake.clear()
            await self._wake.wait()
        taken = self._entries[: SETTINGS.round_events_max]
        self._entries = self._entries[SETTINGS.round_events_max :]
        return taken


def submission_of(
    events: Sequence[Event | Invalid], done: Callable[[Submission], None], idempotency_key: str | None = None
) -> Submission:
    """The events of one request, checked; those that are invalid have their verdict. `done` is called at the end."""
    submission = Submission(machine_us(), 0.0, done, done)
    ids = None if idempotency_key is None else DerivedIds(idempotency_key, [event.campaign_id for event in events])
    invalid = 0
    for index, event in enumerate(events):
        entry = event if isinstance(event, Invalid) else arrive(event, submission, index, ids, _LIMITS)
        if isinstance(entry, Entry) and entry.refusal is not None and entry.refusal.detail is not None:
            entry = Invalid(entry.refusal.detail, EventId(entry.event_id))  # (no peer looks up what is too old)
        submission.entries.append(entry)
        if isinstance(entry, Invalid):
            submission.verdicts[index] = Verdict(Status.REJECTED, Reason.INVALID, entry.detail)
            invalid += 1
    submission.open += len(events) - invalid
    return submission


def entries_of(submission: Submission) -> list[Entry]:
    """Those that are still to be decided."""
    return [entry for entry in submission.entries if isinstance(entry, Entry)]


def as_duplicate(entry: Entry, stored: StoredEvent) -> Verdict:
    """The verdict for an event whose id is stored already."""
    return Verdict(Status.DUPLICATE, event=stored) if entry.same_event(stored) else ID_REUSED


def refusal(letter: str, now_us: int) -> Verdict:
    """The verdict behind a letter of `functions.lua` (or record.sql) that is neither A nor D."""
    if letter == "C":
        tomorrow_us = (now_us // DAY_US + 1) * DAY_US
        seconds = seconds_between(now_us, tomorrow_us)
        return Verdict(Status.REJECTED, Reason.FREQUENCY_CAPPED, "the user has had as many today as allowed", seconds)
    return _REFUSALS[letter]


_REFUSALS: Final = {"T": TOTAL_BUDGET, "Y": DAILY_BUDGET, "I": INACTIVE, "P": IN_FLIGHT}


def respond(answer: Answer) -> Response:
    """An answer of the codec as Starlette sends it."""
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, headers)


def event_app(open_taker: Callable[[], AbstractAsyncContextManager[Taker]]) -> FastAPI:
    """`POST /events/` and `POST /events/batch` in front of a taker, which lives as long as the app.

    The two are plain Starlette routes of the FastAPI app: the body is decoded by msgspec, so that FastAPI's own
    resolution of arguments would cost time and bring nothing.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_taker() as app.state.taker:
            gc.freeze()  # what was imported is never garbage: each full collection would look at it anew
            yield

    async def take(request: Request, *, batch: bool) -> Response:
        try:
            submission = await _take(request, request.app.state.taker, batch=batch)
        except BadRequest as refused:
            return respond(refused.answer)
        return respond(batch_answer(submission) if batch else event_answer(submission))

    async def take_event(request: Request) -> Response:
        return await take(request, batch=False)

    async def take_batch(request: Request) -> Response:
        return await take(request, batch=True)

    app = FastAPI(lifespan=lifespan)
    app.add_route("/events/", take_event, methods=["POST"])
    app.add_route("/events/batch", take_batch, methods=["POST"])
    return app


async def _take(request: Request, taker: Taker, *, batch: bool) -> Submission:
    """Read one request, and wait for its verdicts: one future, however many events it has."""
    body, headers = await request.body(), request.headers
    key = read_idempotency_key(headers.get("idempotency-key"))
    kind, encoding = headers.get("content-type", ""), headers.get("content-encoding", "")
    events = read_events(body, content_type=kind, content_encoding=encoding, batch=batch, limits=SETTINGS)
    decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(_: Submission) -> None:
        if not decided.done():  # (a request that was given up has a cancelled one)
            decided.set_result(None)

    submission = submission_of(events, done, key)
    taker.submit(entries_of(submission))
    submission.handed_on()
    await decided
    return submission


def settle_all(entries: Sequence[Entry], verdict: Verdict) -> None:
    """Give all of these the same verdict."""
    for entry in entries:
        entry.settle(verdict)


# --- Servers ------------------------------------------------------------------------------------------------


def database_url() -> str:
    """`DB_URL`, in the form that every driver reads."""
    return normal_url(os.environ["DB_URL"])


def redis_url() -> str:
    """`REDIS_URL`."""
    return os.environ["REDIS_URL"]


def listen() -> socket.socket:
    """A listening socket on a free port of 127.0.0.1."""
    return socket.create_server(("127.0.0.1", 0), backlog=1_024)


def announce(listener: socket.socket) -> None:
    """The one line that whoever started us waits for."""
    print(f"listening http://127.0.0.1:{listener.getsockname()[1]}", flush=True)


def serve(app: Any, **options: Any) -> None:
    """Serve an ASGI app with uvicorn until SIGTERM, and return. `options` are uvicorn's.

    No access log: a line a request would be the first thing that anybody who measures switches off.
    """
    listener = listen()

    class Announcing(uvicorn.Server):
        """Says where it listens, once it does."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Start, then tell."""
            await super().startup(sockets)
            announce(listener)

    # uvicorn raises the signal once more when it has ended; that must not be our death.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = Announcing(uvicorn.Config(app, access_log=False, log_level="warning", **options))
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
