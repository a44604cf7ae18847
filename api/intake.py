"""The lean listener for events: one trio task serves all connections over a selector of its own.

Owns the loop, the paths, the cap on connections, the sweep for what waits too long, and the drain. Knows HTTP
through `intake_connection` and the engine through `submit`; a task or a wake-up a request would cost more than
the event itself (docs/architecture.md). Answers are written straight from the engine's call back.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Final, Protocol

import trio

from api.codec import JSON_HEADERS, start_reading
from api.errors import Answer, BadRequest, problem
from api.headers import read_idempotency_key
from api.intake_connection import Connection, Exchange
from api.intake_reader import Heads, Request
from api.slicing import Events, Reading, Turns, next_slice
from config.settings import Settings
from engine import Event, Invalid, Submission

__all__ = ["EventTaker", "Intake", "serve_intake"]

BUFFER_BYTES: Final = 64 << 10  # of one read: half of a batch of 1,000, so no connection takes the loop for long
TURN_BYTES_MAX: Final = 256 << 10  # of what is small or new; a turn has some of the large bodies, too, then others run
READ_BYTES_MIN: Final = TURN_BYTES_MAX // 128  # what a read counts for: 128 single events are some milliseconds
BULK_BYTES_MAX: Final = 128 << 10  # of large bodies: a batch of 1,000, a millisecond or two
FULL_BULK_BYTES_MAX: Final = 1 << 20  # the same, while all is refused, unread: less than a millisecond of copying
LONG_TURN_SECONDS: Final = 0.004  # of a turn, after which long bodies wait for turns of their own
ACCEPTS_A_TURN_MAX: Final = 64
SWEEP_SECONDS: Final = 1.0  # the shortest timeout that the settings allow
REFUSED_MAX: Final = 256  # refused connections that we wait for, so that they hear why; more are just closed

# What accept says when this process or the machine is out of something: it passes.
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_EVENT_PATHS: Final = {b"/events/": False, b"/events/batch": True}
_HEALTHY: Final = Answer(200, JSON_HEADERS, b'{"status":"ok"}')
_OVERLOADED: Final = problem(
    503, "overloaded", "more events are waiting than may wait: none of these was taken", retry_after_seconds=1
)
_READY: Final = Answer(200, JSON_HEADERS, b'{"status":"ready"}')
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


async def serve_intake(
    engine: EventTaker,
    listener: socket.socket,
    settings: Settings,
    stop: trio.Event,
    yielding: trio.Event | None = None,
) -> None:
    """Serve until `stop`, then close the listener, finish what is under way within `drain_seconds`, and return.

    With `yielding` set before, a successor accepts from the same listener: what waits in it is left to that one.
    Connections that are idle may send one more request until `stop`, and this returns as soon as there are none.
    Whoever sets `stop` sees that `yielding` is set, too.
    """
    await Intake(engine, listener, settings).run(stop, yielding)


class Intake:
    """All connections of one listening socket (`intake_connection.Loop`)."""

    def __init__(self, engine: EventTaker, listener: socket.socket, settings: Settings) -> None:
        self.settings = settings
        selector = selectors.DefaultSelector()
        self._descriptor = selector.fileno()  # of the selector itself: epoll's or kqueue's
        self.selector: selectors.BaseSelector = selector
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.now = time.monotonic()
        self.date = formatdate(usegmt=True).encode()
        self.draining = False
        self.body_bytes = 0
        self.heads: Heads = {}
        self.connections: set[Connection] = set()
        self._lingering: set[Connection] = set()
        self._engine = engine
        self._turns = Turns(settings)
        self._listener = listener
        self._accepting = False
        self._empty = trio.Event()
        self._nursery: trio.Nursery

    async def run(self, stop: trio.Event, yielding: trio.Event | None = None) -> None:
        """See `serve_intake`."""
        self._listener.setblocking(False)
        self._accept_again()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._serve)
                self._nursery.start_soon(self._sweep_for_ever)
                await (stop if yielding is None else yielding).wait()
                if not stop.is_set():
                    await self._yield_until(stop)
                self._begin_drain()
                with trio.move_on_after(self.settings.drain_seconds):
                    await self._empty.wait()
                self._nursery.cancel_scope.cancel()
        finally:
            for connection in [*self.connections, *self._lingering]:
                connection.close()
            self._listener.close()
            self.selector.close()

    # --- the loop -------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Handle what is ready, turn by turn: in each, some of what is small or new, then some of the large bodies.

        So a flood of large batches holds up nobody's single event for longer than a turn, nor the other way round.
        """
        bulk: dict[Connection, int] = {}  # in the middle of a body, and ready: first in, first out
        while True:
            if bulk:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._descriptor)
            self.now = time.monotonic()
            bytes_read = 0
            for key, ready in self.selector.select(0):
                if key.data is not None and key.data.in_body:
                    bulk[key.data] = ready
                    continue
                bytes_read += max(READ_BYTES_MIN, self._handle_ready(key.data, ready))
                if bytes_read >= TURN_BYTES_MAX:
                    self._handle_bulk(bulk)
                    await trio.lowlevel.checkpoint()
                    bytes_read = 0
            self._handle_bulk(bulk)

    def _handle_bulk(self, bulk: dict[Connection, int]) -> None:
        room = FULL_BULK_BYTES_MAX if self._engine.full else BULK_BYTES_MAX
        while bulk and room > 0:
            connection = next(iter(bulk))
            room -= self._handle_ready(connection, bulk.pop(connection))

    def _handle_ready(self, connection: Connection | None, ready: int) -> int:
        if connection is None:
            self._accept(ACCEPTS_A_TURN_MAX)
            return 0
        try:
            if ready & selectors.EVENT_WRITE:
                connection.on_writable()
            return connection.on_readable() if ready & selectors.EVENT_READ else 0
        except Exception:  # noqa: BLE001 - boundary: a fault of one connection ends that one
            _log.exception("a connection failed and is closed")
            connection.close()
            return 0

    def _accept(self, connections_max: int) -> None:
        for _ in range(connections_max):
            try:
                peer, _address = self._listener.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                _log.warning("no connection accepted for up to %s s: %s", SWEEP_SECONDS, error)
                self._stop_accepting()
                return
            try:
                self._welcome(peer)
            except OSError:  # it has gone already, or there is no room to watch it
                peer.close()

    def _welcome(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        full = len(self.connections) >= self.settings.connections_max
        if full and len(self._lingering) >= REFUSED_MAX:
            peer.close()
            return
        connection = Connection(peer, self)
        self.connections.add(connection)
        if full:
            connection.refuse(
                problem(503, "overloaded", "too many connections; use fewer, and keep them", retry_after_seconds=1)
            )

    def _accept_again(self) -> None:
        if not self._accepting and not self.draining:
            self.selector.register(self._listener, selectors.EVENT_READ, None)
            self._accepting = True

    def _stop_accepting(self) -> None:
        if self._accepting:
            self.selector.unregister(self._listener)
            self._accepting = False

    def lingers(self, connection: Connection) -> None:
        """It no longer counts against the cap."""
        self.connections.discard(connection)
        self._lingering.add(connection)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        self._lingering.discard(connection)
        self._check_empty()

    # --- time and end ---------------------------------------------------------------------------------------

    async def _sweep_for_ever(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Give up what has waited too long at `now`, in monotonic seconds."""
        self.now = now
        self.date = formatdate(usegmt=True).encode()
        for connection in [*self.connections, *self._lingering]:
            connection.expire(now)
        self._accept_again()

    async def _yield_until(self, stop: trio.Event) -> None:
        """Accept nothing more, not even what the kernel has queued: a successor does. Wait for `stop` or the last end.

        HTTP/1.1 has one way to say that a connection ends: in an answer. So what is idle, a connection that was
        accepted a moment ago included, is not closed under a request that may be on its way, but with its answer.
        """
        self.draining = True
        self._stop_accepting()
        self._listener.close()
        for connection in list(self.connections):
            connection.drain(patient=True)
        self._check_empty()
        async with trio.open_nursery() as waiting:
            for event in (stop, self._empty):
                waiting.start_soon(_cancel_at, event, waiting.cancel_scope)

    def _begin_drain(self) -> None:
        """Take nothing new. What the kernel has taken for us already is still ours to answer."""
        if not self.draining:
            self.draining = True
            self._accept(self.settings.connections_max)
        for key, ready in self.selector.select(0):
            self._handle_ready(key.data, ready)
        self._stop_accepting()
        self._listener.close()
        for connection in list(self.connections):
            connection.drain()
        self._check_empty()

    def _check_empty(self) -> None:
        if self.draining and not self.connections and not self._lingering:
            self._empty.set()

    # --- requests -------------------------------------------------------------------------------------------

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
                self._nursery.start_soon(self._answer_readiness, exchange)
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
        except Exception:  # noqa: BLE001 - boundary: a fault of one request ends its connection
            _log.exception("a body could not be read; its connection is closed")
            connection.close()

    async def _answer_readiness(self, exchange: Exchange) -> None:
        try:
            problems = await self._engine.problems()
        except Exception:  # noqa: BLE001 - boundary: a fault of one request ends its connection
            _log.exception("the readiness check failed")
            exchange.connection.close()
            return
        exchange.finish(problem(503, "not_ready", "; ".join(problems), retry_after_seconds=1) if problems else _READY)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _wrong_method(allow: bytes) -> Answer:
    return problem(405, "method_not_allowed", f"allowed here: {allow.decode()}").with_header(b"allow", allow)
