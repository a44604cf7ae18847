"""All connections of one listening socket: one trio task serves them over a selector of its own.

Owns the loop, the cap on connections, the sweep for what waits too long, and the drain. Both listeners stand on it:
whatever a peer sends is read here, by `intake_reader`, and only whole requests are handed on. Knows HTTP through
`intake_connection` and nothing of what requests ask for: that is `handle`'s. A fault of one connection is logged and
ends that one.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from abc import ABC, abstractmethod
from email.utils import formatdate
from typing import Final

import trio

from api.descriptors import lingering_max
from api.errors import problem
from api.faults import in_one_line
from api.intake_connection import Connection, Exchange
from api.intake_reader import Heads, Request
from config.settings import Settings

__all__ = ["Connections"]

BUFFER_BYTES: Final = 64 << 10  # of one read: half of a batch of 1,000, so no connection takes the loop for long
TURN_BYTES_MAX: Final = 256 << 10  # of what is small or new; a turn has some of the large bodies, too, then others run
READ_BYTES_MIN: Final = TURN_BYTES_MAX // 128  # what a read counts for: 128 single events are some milliseconds
BULK_BYTES_MAX: Final = 128 << 10  # of large bodies: a batch of 1,000, a millisecond or two
FULL_BULK_BYTES_MAX: Final = 1 << 20  # the same, while all is refused, unread: less than a millisecond of copying
ACCEPTS_A_TURN_MAX: Final = 64
SWEEP_SECONDS: Final = 1.0  # the shortest timeout that the settings allow
DRAIN_SWEEP_SECONDS: Final = 0.1  # a drain waits for the last of those that are closed here
# Without free descriptors accepting fails at each sweep, or at every other while connections come and go: one outage.
QUIET_SECONDS: Final = 5.0

_CROWDED: Final = problem(503, "overloaded", "too many connections; use fewer, and keep them", retry_after_seconds=1)


class Connections(ABC):
    """All connections of one listening socket (`intake_connection.Loop`)."""

    def __init__(self, listener: socket.socket, settings: Settings, log: logging.Logger) -> None:
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
        self._lingering: dict[Connection, None] = {}  # the oldest first
        self._lingering_max = lingering_max(settings.connections_max)
        self._listener = listener
        self._log = log
        self._accepting = False
        self._failing: tuple[float, float] | None = None  # since when accepting fails, and when it did last
        self._empty = trio.Event()
        self._nursery: trio.Nursery

    @abstractmethod
    def handle(self, exchange: Exchange, request: Request) -> None:
        """One whole request: see that `exchange.finish` is called, now or later."""

    @property
    def full(self) -> bool:
        """Whether requests are refused unread for now, which makes large bodies cheap."""
        return False

    async def run(self, stop: trio.Event, yielding: trio.Event | None = None) -> None:
        """Serve until `stop`, then close the listener, finish what is under way within `drain_seconds`, and return.

        With `yielding` set before, a successor accepts from the same listener: what waits in it is left to that one.
        Connections that are idle may send one more request until `stop`, and this returns as soon as there are none.
        Whoever sets `stop` sees that `yielding` is set, too.
        """
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
        room = FULL_BULK_BYTES_MAX if self.full else BULK_BYTES_MAX
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
        except Exception as error:  # noqa: BLE001 - boundary: a fault of one connection ends that one
            self._fail(connection, error)
            return 0

    def _fail(self, connection: Connection, error: BaseException) -> None:
        self._log.error("a connection failed and is closed: %s", in_one_line(error))
        connection.close()

    def _accept(self, connections_max: int) -> None:
        for _ in range(connections_max):
            try:
                peer, _address = self._listener.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as error:  # out of descriptors or memory, or what the network says of a peer: it passes
                self._stop_accepting()
                self._note_failure(error)
                return
            try:
                self._welcome(peer)
            except OSError:  # it has gone already, or there is no room to watch it
                peer.close()

    def _note_failure(self, error: OSError) -> None:
        if self._failing is None:
            self._log.warning(
                "no new connection is accepted (%s), tried again every %s s: allow more files (ulimit -n), or lower "
                "HEADRACE_CONNECTIONS_MAX", error.strerror, SWEEP_SECONDS,
            )  # fmt: skip
            self._failing = self.now, self.now
        self._failing = self._failing[0], self.now

    def _note_success(self) -> None:
        if self._failing is not None and self.now - self._failing[1] >= QUIET_SECONDS:
            self._log.warning("connections are accepted again, after %.0f s", self._failing[1] - self._failing[0])
            self._failing = None

    def _welcome(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        full = len(self.connections) >= self.settings.connections_max
        connection = Connection(peer, self)
        self.connections.add(connection)
        if full:
            connection.refuse(_CROWDED)

    def _accept_again(self) -> None:
        if not self._accepting and not self.draining:
            try:
                self.selector.register(self._listener, selectors.EVENT_READ, None)
            except OSError as error:  # no memory, or too many watches of this user
                self._note_failure(error)
                return
            self._accepting = True

    def _stop_accepting(self) -> None:
        if self._accepting:
            self.selector.unregister(self._listener)
            self._accepting = False

    def lingers(self, connection: Connection) -> None:
        """It counts no longer among those that are served. Of those that linger, the oldest makes room."""
        self.connections.discard(connection)
        if len(self._lingering) >= self._lingering_max:
            next(iter(self._lingering)).close()
        self._lingering[connection] = None

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        self._lingering.pop(connection, None)
        self._check_empty()

    # --- time and end ---------------------------------------------------------------------------------------

    async def _sweep_for_ever(self) -> None:
        while True:
            await trio.sleep(DRAIN_SWEEP_SECONDS if self.draining else SWEEP_SECONDS)
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Give up what has waited too long at `now`, in monotonic seconds."""
        self.now = now
        self.date = formatdate(usegmt=True).encode()
        for connection in [*self.connections, *self._lingering]:
            try:
                connection.expire(now)
            except Exception as error:  # noqa: BLE001 - boundary: a fault of one connection ends that one
                self._fail(connection, error)
        self._note_success()
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
        self.now = time.monotonic()
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


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
