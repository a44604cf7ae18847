"""One connection of a listener: its requests go to the loop, its answers go out in the order of the requests.

Owns the socket, the order of answers, what waits to be sent, and what is waited for until when. Knows no engine
and no path. Nothing here waits: the loop says when the socket is ready, and when time is up.

    OPEN -> LAST -> CLOSED        no more requests (the sender's end, or our drain): answer, then close
    OPEN -> LAST -> LINGERING -> CLOSED       refused, or asked to close: what the sender still sends is thrown away
                                              for a while, because closing at once would destroy the answer on its way
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final, Protocol

from api.codec import batch_answer, event_answer
from api.errors import Answer, problem
from api.faults import in_one_line
from api.intake_reader import Head, Heads, Request, RequestReader
from api.response import CONTINUE, encode_answer
from config.settings import Settings
from engine import Submission

__all__ = ["Connection", "Exchange", "Loop"]

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE
# After a refusal: what most senders need to see the answer; 16 full bodies a second are 64 MiB/s.
LINGER_SECONDS: Final = 2.0
LINGER_BODIES_MAX: Final = 16
# In a drain, for what is arriving, for the next bytes to be read, and for lingering: the drain must end.
DRAIN_SECONDS: Final = 1.0

_NO_HEAD: Final = Head(b"", b"", keep_alive=True, asks_keep_alive=False)  # of what is no request
_log = logging.getLogger("headrace.intake")


class Loop(Protocol):
    """What a connection needs of the loop that serves it."""

    settings: Settings
    selector: selectors.BaseSelector
    buffer: memoryview  # one for all connections: what is read is parsed at once
    now: float  # monotonic seconds, at most one turn or one sweep old
    date: bytes
    draining: bool
    body_bytes: int  # of all requests that are arriving
    heads: Heads

    def handle(self, exchange: Exchange, request: Request) -> None:
        """See that `exchange.finish` is called, now or later."""
        ...

    def lingers(self, connection: Connection) -> None:
        """It serves no more, and is not closed yet."""
        ...

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        ...


class Exchange:
    """One request and its answer, which waits until those before it are out."""

    __slots__ = ("answer", "batch", "connection", "head")

    def __init__(self, connection: Connection, head: Head = _NO_HEAD) -> None:
        self.connection = connection
        self.head = head
        self.batch = False
        self.answer: Answer | None = None

    def finish(self, answer: Answer) -> None:
        """Answer the request; this writes to the socket."""
        self.answer = answer
        self.connection.write_answers()

    def submitted(self, submission: Submission) -> None:
        """The engine's call when all verdicts are in. What goes wrong here is this connection's, not the engine's."""
        try:
            self.finish(batch_answer(submission) if self.batch else event_answer(submission))
        except Exception as error:  # noqa: BLE001 - boundary: see above
            _log.error("an answer failed; its connection is closed: %s", in_one_line(error))
            self.connection.close()


class Phase(Enum):
    """Where a connection is in its life."""

    OPEN = "open"
    LAST = "last"
    LINGERING = "lingering"
    CLOSED = "closed"


# Names of their own, here and below: they are asked so often that looking them up in their class would tell.
OPEN, LAST, LINGERING, CLOSED = Phase.OPEN, Phase.LAST, Phase.LINGERING, Phase.CLOSED


class Waiting(Enum):
    """What a connection waits for; each has its time."""

    READER = "reader"  # the sender does not read its answers
    REQUEST = "request"  # a request has begun, and is not whole
    VERDICT = "verdict"
    IDLE = "idle"
    END = "end"


READER, REQUEST, VERDICT = Waiting.READER, Waiting.REQUEST, Waiting.VERDICT
IDLE, END = Waiting.IDLE, Waiting.END
_NOTHING: Final = memoryview(b"")


class Connection:
    """One sender's connection."""

    __slots__ = (
        "_body_bytes", "_deadline", "_exchanges", "_linger_bytes", "_lingers", "_loop", "_out", "_phase", "_reader",
        "_socket", "_waiting", "_watched", "on_change",
    )  # fmt: skip

    def __init__(self, peer: socket.socket, loop: Loop) -> None:
        self._socket = peer
        self._loop = loop
        self._reader = RequestReader(loop.settings, loop.heads)
        self._exchanges: deque[Exchange] = deque()  # not written yet, in the order of the requests
        self._out = bytearray()  # written, but the socket has no room for it
        self.on_change: Callable[[], None] | None = None  # called when `unsent` ends, and when the connection does
        self._phase = OPEN
        self._waiting = IDLE
        self._deadline = inf
        self._watched = 0
        self._body_bytes = 0  # what we have added to the loop's
        self._lingers = False
        self._linger_bytes = LINGER_BODIES_MAX * loop.settings.request_bytes_max
        self._wait(renew=True)

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._phase is CLOSED

    # --- reading --------------------------------------------------------------------------------------------

    @property
    def in_body(self) -> bool:
        """Part of a body has come, and more is to come."""
        return self._body_bytes > 0

    def on_readable(self) -> int:
        """Take what has arrived, one buffer at most, and hand on whole requests. Returns the bytes taken."""
        if self._phase in (LAST, CLOSED):
            return 0  # it was ready, but something else came between
        try:
            size = self._socket.recv_into(self._loop.buffer)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.close()
            return 0
        if self._phase is LINGERING:
            self._linger_bytes -= size
            if size == 0 or self._linger_bytes < 0:
                self.close()
        elif size == 0:
            self._on_end()
        else:
            self._read(self._loop.buffer[:size])
        return size

    def _read(self, data: memoryview) -> None:
        reader = self._reader
        reader.room = self._loop.settings.pipelined_requests_max - len(self._exchanges)
        reader.feed(data)
        requests, reader.requests = reader.requests, []
        for position, request in enumerate(requests, 1):
            exchange = Exchange(self, request.head)
            self._exchanges.append(exchange)
            drained = self._loop.draining and position == len(requests) and not reader.partial
            if not request.head.keep_alive or drained:
                self._phase = LAST
            self._loop.handle(exchange, request)
            if self._phase is not OPEN:
                break
        if self._phase is OPEN:
            self._read_on(reader)
        if self._body_bytes != reader.body_bytes:
            self._count_body()
        self._wait(renew=bool(requests))

    def _read_on(self, reader: RequestReader) -> None:
        """What the reader says of a request that is not whole."""
        if reader.refusal is not None:
            self.refuse(reader.refusal)
        elif self._loop.body_bytes + reader.body_bytes - self._body_bytes > self._loop.settings.intake_bytes_max:
            self.refuse(problem(503, "overloaded", "too many bodies are arriving at once", retry_after_seconds=1))
        elif reader.awaits_continue:
            reader.awaits_continue = False
            exchange = Exchange(self)
            self._exchanges.append(exchange)
            exchange.finish(CONTINUE)

    def _count_body(self) -> None:
        if self.closed:
            return
        self._loop.body_bytes += self._reader.body_bytes - self._body_bytes
        self._body_bytes = self._reader.body_bytes

    def _on_end(self) -> None:
        """The sender sends no more; it may still read."""
        if self._reader.partial:
            self.refuse(problem(400, "malformed_http", "the connection ended before the request was whole"))
        else:
            self._phase = LAST
            self._go_on()

    def refuse(self, answer: Answer) -> None:
        """Answer this after all that is under way, and read no further request."""
        self._reader.refuse(answer)
        self._count_body()
        self._phase = LAST
        self._lingers = True
        exchange = Exchange(self)
        self._exchanges.append(exchange)
        exchange.finish(answer)

    def drain(self, *, patient: bool = False) -> None:
        """Take no new request; one that has begun to arrive may end. `patient`: an idle one may have one more."""
        if self._phase is OPEN and not self._reader.partial and (self._exchanges or not patient):
            self._phase = LAST
            self._go_on()
        if not patient and self._waiting in (READER, REQUEST):
            self._deadline = min(self._deadline, self._loop.now + DRAIN_SECONDS)

    # --- writing --------------------------------------------------------------------------------------------

    def write_answers(self) -> None:
        """Send the answers that are ready and whose turn it is."""
        if self.closed:
            return
        exchanges, parts = self._exchanges, []
        while exchanges and (answer := exchanges[0].answer) is not None:
            exchange = exchanges.popleft()
            last = self._phase is LAST and not exchanges
            parts.append(encode_answer(answer, exchange.head, self._loop.date, last))
        if not parts:
            return
        if last:
            self._lingers = self._lingers or not self._loop.draining or self._has_unread()
        if not self._out:
            self._send(b"".join(parts))
        elif len(self._out) <= self._loop.settings.answer_bytes_max:
            self._out += b"".join(parts)
        else:
            self.close()  # it asks, but does not read

    def write(self, part: bytes) -> None:
        """Send a part of the answer whose turn it is; its exchange finishes with `SENT` when nothing is `unsent`."""
        if self._out:
            self._out += part
        elif not self.closed:
            self._send(part)

    @property
    def unsent(self) -> bool:
        """Whether something waits until its reader makes room."""
        return bool(self._out)

    def is_last(self, exchange: Exchange) -> bool:
        """Whether the connection ends with this answer, as far as is known now."""
        return self._phase is LAST and self._exchanges[-1] is exchange

    def on_writable(self) -> None:
        """The socket has room again, or there is room for requests that have come already."""
        if self._out and not self.closed:
            out, self._out = self._out, bytearray()
            self._send(out)
        if self._reader.unread and self._phase is OPEN and not self._out and self._has_room():
            self._read(_NOTHING)
            if not self._out and self.on_change is not None:
                self.on_change()

    def _send(self, data: bytes | bytearray) -> None:
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._out = bytearray(memoryview(data)[sent:])
        self._go_on(renew=sent > 0)

    # --- ending ---------------------------------------------------------------------------------------------

    def _go_on(self, *, renew: bool = False) -> None:
        """Wait for what comes next; or end, if nothing does."""
        if self._phase is not LAST or self._exchanges or self._out:
            self._wait(renew=renew)
        elif self._lingers:
            self._linger()
        else:
            self.close()

    def _has_unread(self) -> bool:
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _linger(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._phase = LINGERING
        self._loop.lingers(self)
        self._wait(renew=True)

    def expire(self, now: float) -> None:
        """Give up what has waited too long."""
        if now < self._deadline:
            return
        if self._waiting is REQUEST:
            self.refuse(problem(408, "request_timeout", "the request did not arrive in time"))
        else:
            self.close()

    def close(self) -> None:
        """Close it now, whatever is under way. Verdicts that come later are not sent."""
        if self.closed:
            return
        self._phase = CLOSED
        if self._watched:
            self._watch(0)
        self._socket.close()
        self._exchanges.clear()
        self._out.clear()
        self._loop.body_bytes -= self._body_bytes
        self._loop.forget(self)
        if self.on_change is not None:
            self.on_change()

    # --- waiting --------------------------------------------------------------------------------------------

    def _wait(self, *, renew: bool) -> None:
        """Find out what is waited for now; its time begins if that is new, or if there was progress (`renew`)."""
        settings, timeout = self._loop.settings, inf
        if self._phase is CLOSED:
            return
        if self._phase is LINGERING:
            waiting, timeout = END, DRAIN_SECONDS if self._loop.draining else LINGER_SECONDS
        elif self._out:
            waiting, timeout = READER, settings.read_timeout_seconds
        elif self._reader.partial and self._has_room():
            waiting, timeout = REQUEST, settings.read_timeout_seconds
        elif self._exchanges:
            waiting = VERDICT  # the engine has its own deadline
        else:
            waiting, timeout = IDLE, settings.idle_timeout_seconds
        if renew or waiting is not self._waiting:
            self._waiting = waiting
            self._deadline = self._loop.now + timeout
        wanted = self._wanted()
        if wanted != self._watched:
            self._watch(wanted)

    def _wanted(self) -> int:
        """The readiness of the socket that matters now: who does not read its answers is not read."""
        if self._out:
            return WRITE
        if self._phase is OPEN:
            if not self._has_room():
                return 0
            return WRITE if self._reader.unread else READ  # a socket that can be written is ready at once
        return READ if self._phase is LINGERING else 0

    def _has_room(self) -> bool:
        return len(self._exchanges) < self._loop.settings.pipelined_requests_max

    def _watch(self, wanted: int) -> None:
        selector = self._loop.selector
        if self._watched == 0:
            selector.register(self._socket, wanted, self)
        elif wanted == 0:
            selector.unregister(self._socket)
        else:
            selector.modify(self._socket, wanted, self)
        self._watched = wanted
