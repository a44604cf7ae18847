"""The lean listener for events, on `connections`: its paths, and the engine behind them.

Knows the engine through `submit`; a task or a wake-up a request would cost more than the event itself
(docs/architecture.md). Answers are written straight from the engine's call back.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from api.codec import JSON_HEADERS, start_reading
from api.connections import Connections
from api.errors import Answer, BadRequest, problem
from api.faults import in_one_line
from api.headers import read_idempotency_key
from api.intake_connection import Exchange
from api.intake_reader import Request
from api.readiness import readiness
from api.slicing import Events, Reading, Turns, next_slice
from config.settings import Settings
from engine import Event, Invalid, Submission

__all__ = ["EventTaker", "Intake", "serve_intake"]

LONG_TURN_SECONDS: Final = 0.004  # of a turn, after which long bodies wait for turns of their own
READINESS_ANSWERS_A_TURN: Final = 128  # as many as small requests are read in a turn: a millisecond
_EVENT_PATHS: Final = {b"/events/": False, b"/events/batch": True}
_HEALTHY: Final = Answer(200, JSON_HEADERS, b'{"status":"ok"}')
_OVERLOADED: Final = problem(
    503, "overloaded", "more events are waiting than may wait: none of these was taken", retry_after_seconds=1
)
_log = logging.getLogger("headrace.intake")


class EventTaker(Protocol):
    """The part of the engine that the intake needs."""

    def submit(
        self,
        events: Sequence[Event | Invalid],
        answer: Callable[[Submission], None],
        *,
        idempotency_key: str | None = None,
    ) -> Submission:
        """Take the events of one request; `answer` is called once, maybe before this returns."""
        ...

    @property
    def full(self) -> bool:
        """Whether there is no room for another request."""
        ...

    def overloaded(self) -> bool:
        """The same, of a request that is here, and refused if so."""
        ...

    async def problems(self) -> list[str]:
        """Why it can't take events now."""
        ...

    def notes(self) -> list[str]:
        """What it refuses though it can."""
        ...


async def serve_intake(
    engine: EventTaker,
    listener: socket.socket,
    settings: Settings,
    stop: trio.Event,
    yielding: trio.Event | None = None,
) -> None:
    """See `Connections.run`."""
    await Intake(engine, listener, settings).run(stop, yielding)


class Intake(Connections):
    """The intake's listener: what each whole request asks for."""

    def __init__(self, engine: EventTaker, listener: socket.socket, settings: Settings) -> None:
        super().__init__(listener, settings, _log)
        self._engine = engine
        self._turns = Turns(settings)
        self._readiness_asked: list[Exchange] = []  # for whom one check is under way

    @property
    def full(self) -> bool:
        """The engine's."""
        return self._engine.full

    def handle(self, exchange: Exchange, request: Request) -> None:
        """One whole request."""
        method, path = request.head.method, request.head.path
        if path in _EVENT_PATHS:
            if method == b"POST":
                self._submit(exchange, request)
            else:
                exchange.finish(_wrong_method(b"POST"))
        elif path in (b"/healthz", b"/readyz"):
            if method not in (b"GET", b"HEAD"):
                exchange.finish(_wrong_method(b"GET, HEAD"))
            elif path == b"/healthz":
                exchange.finish(_HEALTHY)
            else:
                self._readiness_asked.append(exchange)
                if len(self._readiness_asked) == 1:
                    self._nursery.start_soon(self._answer_readiness)
        else:
            exchange.finish(
                problem(404, "not_found", "the intake has POST /events/ and /events/batch; all else is at the api")
            )

    def _submit(self, exchange: Exchange, request: Request) -> None:
        if self._engine.overloaded():
            exchange.finish(_OVERLOADED)  # at once and unread: what was taken keeps its share of the machine
            return
        head = request.head
        if head.ignored is not None:
            exchange.finish(head.ignored)
            return
        exchange.batch = _EVENT_PATHS[head.path]
        try:
            key = None if head.idempotency_key is None else read_idempotency_key(head.idempotency_key)
            events = start_reading(
                request.body,
                content_type=head.content_type,
                content_encoding=head.content_encoding,
                batch=exchange.batch,
                limits=self.settings,
            )
            if not isinstance(events, list):
                read = self._read_at_once(events)
                if read is None:
                    self._nursery.start_soon(self._read_in_turns, exchange, key, events, len(request.body))
                    return
                events = read
        except BadRequest as refused:
            exchange.finish(refused.answer)
            return
        self._engine.submit(events, exchange.submitted, idempotency_key=key)

    def _read_at_once(self, reading: Reading) -> Events | None:
        """Read a body that may be long if it isn't, and if this turn of the loop has time for it."""
        return next_slice(reading) if time.monotonic() < self.now + LONG_TURN_SECONDS else None

    async def _read_in_turns(self, exchange: Exchange, key: str | None, reading: Reading, size: int) -> None:
        """Read the rest of a long body. Its answer has its place; nobody waits for it once its connection is closed."""
        connection = exchange.connection
        try:
            events = await self._turns.finish(reading, size, lambda: connection.closed)
            if events is not None:
                self._engine.submit(events, exchange.submitted, idempotency_key=key)
        except BadRequest as refused:
            exchange.finish(refused.answer)
        except Exception as error:  # noqa: BLE001 - boundary: a fault of one request ends its connection
            _log.error("a body could not be read; its connection is closed: %s", in_one_line(error))
            connection.close()

    async def _answer_readiness(self) -> None:
        """One check for all who ask until it is done: a task for each would be thousands, out of one packet."""
        answer: Answer | None = None
        try:
            answer = readiness(await self._engine.problems(), self._engine.notes())
        except Exception as error:  # noqa: BLE001 - boundary: a fault of the check ends the connections that wait for it
            _log.error("the readiness check failed: %s", in_one_line(error))
        asked, self._readiness_asked = self._readiness_asked, []
        for number, exchange in enumerate(asked, 1):
            if answer is None:
                exchange.connection.close()
            else:
                exchange.finish(answer)
            if number % READINESS_ANSWERS_A_TURN == 0:
                await trio.lowlevel.checkpoint()


def _wrong_method(allow: bytes) -> Answer:
    return problem(405, "method_not_allowed", f"allowed here: {allow.decode()}").with_header(b"allow", allow)
