"""The lean sender: as many requests as one core can send, and what became of each event.

Owns sockets, the plan of sending, latencies and verdicts. A program of its own (`python -m bench.sender`), so that
its CPU can be told from everybody else's: a `Job` comes on standard input, and to standard output go the time of its
start (`START`, by the monotonic clock that all processes share) and at the end a `Sent`. Knows the system only as an
HTTP address. It does what a load generator must, and nothing that costs: requests are encoded beforehand, one epoll
serves all connections, one request is under way on each.

- **Closed loop**: each connection sends its next request when it has the answer to the last one.
- **Open loop**: requests are planned at a rate. When all connections are busy they wait, and their latency counts from
  the planned time: a system that stalls is not spared the requests that it made wait (coordinated omission).
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bench.bodies import OLD_STEM, STEM, Template, stem
from bench.schedule import EvenSchedule, LogSchedule

ANSWER_BYTES: Final = 1 << 18
BLOCK: Final = 4_096  # requests whose stems share their time: a fraction of a second's
BACKLOG_SECONDS_MAX: Final = 2.0  # an open loop gives up planned requests that would wait longer, and counts them
GRACE_SECONDS: Final = 12.0  # for answers, after the last request: more than a system lets a request wait
CONNECT_SECONDS: Final = 5.0
BUSY_MAX: Final = 0.92  # of a core: above, the sender was the limit
LATE_SECONDS_MAX: Final = 0.005  # at the median of an open loop: beyond, the sender could not keep its plan

# What is known of a request: nothing, or that all of it was accepted but for what is in `verdicts`, or was refused.
UNKNOWN, ALL, NONE = 0, 1, 2
ACCEPTED, DUPLICATE, REJECTED, RETRY = "a", "d", "r", "u"
_STATUS: Final = {"accepted": ACCEPTED, "duplicate": DUPLICATE, "rejected": REJECTED, "retry": RETRY}
_FINAL: Final = {402, 404, 422, 429}
_UNREAD: Final = {400, 413, 415}
START: Final = struct.Struct("d")
RECONNECT_SECONDS: Final = 0.05  # between attempts, while nobody listens


class Job(msgspec.Struct):
    """One step."""

    host: str
    port: int
    templates: list[Template]
    connections: int
    seconds: float
    rate: float | None  # requests a second; None: closed loop
    burst_seconds: float
    first_template: int  # so that steps don't all begin with the same
    times: bytes = b""  # array of double: when each request is planned, in place of a rate; then the job is done


class Sent(msgspec.Struct):
    """What was sent and answered. Request `n` has the stem `stem(bases[n // BLOCK], n)`."""

    bases: list[int]
    templates: bytes  # array of int32, one a request
    olds: bytes  # array of int64: the request whose stem was the earlier one, or -1
    outcomes: bytes  # one byte a request
    verdicts: list[tuple[int, int, str]]  # request, place in it, verdict: where it is not ACCEPTED by ALL
    finished: bytes  # array of double: seconds from the start, one an answer, in order
    latencies: bytes  # array of double: seconds, beside it
    services: bytes  # array of double: seconds since it was really sent, beside it
    answered_events: bytes  # array of int32: events with a verdict, beside it
    refused_events: bytes  # array of int32: events without one, beside it
    counts: dict[str, int]  # events by verdict
    statuses: dict[int, int]  # answers by HTTP status; 0: none came
    seconds: float
    cpu_seconds: float
    sent_bytes: int
    received_bytes: int
    given_up: int  # planned requests that were never sent
    late_seconds: float  # at the median, by which an idle connection sent after the plan

    @property
    def was_limit(self) -> bool:
        """Whether the sender itself held the load down."""
        return self.cpu_seconds > BUSY_MAX * self.seconds or self.late_seconds > LATE_SECONDS_MAX


class _Result(msgspec.Struct):
    index: int
    status: str


class _BatchAnswer(msgspec.Struct):
    results: list[_Result]


class Connection:
    """One connection: what it sends, what has arrived of the answer."""

    __slots__ = ("fd", "number", "planned", "received", "rest", "sent_at", "socket", "wanted")

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), CONNECT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self.number = -1  # the request that is under way
        self.planned = self.sent_at = 0.0
        self.rest = memoryview(b"")
        self.received = b""
        self.wanted = 0  # bytes of the whole answer, once its head is here

    def send(self, request: bytes) -> bool:
        """Begin; False when the socket is full and the rest waits."""
        self.rest = memoryview(request)
        return self.send_rest()

    def send_rest(self) -> bool:
        """Go on; True when all of it is out."""
        while self.rest:
            try:
                self.rest = self.rest[self.socket.send(self.rest) :]
            except BlockingIOError:
                return False
        return True

    def receive(self) -> tuple[int, bytes] | None:
        """Status and body of the answer, once it is whole. Raises `ConnectionError` at the system's end."""
        try:
            piece = self.socket.recv(ANSWER_BYTES)
        except BlockingIOError:
            return None
        if not piece:
            raise ConnectionResetError("closed by the system")
        self.received = piece if not self.received else self.received + piece
        if not self.wanted:
            head = self.received.find(b"\r\n\r\n")
            if head < 0:
                return None
            self.wanted = head + 4 + content_length(self.received[:head])
        if len(self.received) < self.wanted:
            return None
        answer, self.received, self.wanted = self.received, b"", 0
        return int(answer[9:12]), answer[answer.find(b"\r\n\r\n") + 4 :]


def content_length(head: bytes) -> int:
    """Of an answer's head. Raises `ConnectionError` when it has none: such answers are not made for many."""
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ConnectionResetError("an answer without Content-Length")
    end = lower.find(b"\r\n", at + 2)
    return int(lower[at + 17 : end if end > 0 else None])


class Sender:
    """One step of load."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.batch = len(job.templates[0].lines)
        self._all_refused = b'"retry":%d,' % self.batch
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque()
        self.start = 0.0
        self.under_way = 0
        self.bases: list[int] = []
        self.templates = array("i")
        self.olds = array("q")
        self.outcomes = bytearray()
        self.verdicts: list[tuple[int, int, str]] = []
        self.finished, self.latencies, self.services = array("d"), array("d"), array("d")
        self.answered_events, self.refused_events = array("i"), array("i")
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.sent_bytes = self.received_bytes = self.given_up = 0
        self.late = array("d")
        self._known: dict[int, int] = {}  # template -> a request of it that was answered 200
        self._reconnect_at = 0.0

    # --- sending --------------------------------------------------------------------------------------------

    def run(self, begun: Callable[[float], None] = lambda _: None) -> Sent:
        """Send for the job's time, wait for the last answers, and tell. `begun` is told the time of the start."""
        for _ in range(self.job.connections):
            self._connect()
        cpu = time.process_time()
        self.start = time.monotonic()
        begun(self.start)
        if self.job.times:
            self._run_open(LogSchedule(array("d", self.job.times)))
        elif self.job.rate is not None:
            self._run_open(EvenSchedule(self.job.rate, self.job.burst_seconds))
        else:
            self._run_closed()
        seconds = time.monotonic() - self.start
        cpu = time.process_time() - cpu
        self._wait_for_the_rest()
        return self._sent(seconds, cpu)

    def _run_closed(self) -> None:
        end = self.start + self.job.seconds
        burst = self.job.burst_seconds
        while (now := time.monotonic()) < end:
            pausing = burst and int((now - self.start) / burst) % 2
            self._reconnect()
            while self.idle and not pausing:
                self._send(self.idle.popleft(), time.monotonic())
            self._poll(min(0.05, end - now))

    def _run_open(self, schedule: EvenSchedule | LogSchedule) -> None:
        end = self.start + self.job.seconds
        planned = 0
        while (now := time.monotonic()) < end:
            due = schedule.due(now - self.start)
            hopeless = schedule.due(max(0.0, now - self.start - BACKLOG_SECONDS_MAX))
            if planned < hopeless:
                self.given_up += hopeless - planned
                planned = hopeless
            self._reconnect()
            fresh = planned
            while planned < due and self.idle:
                at = self.start + schedule.at(planned)
                if planned - fresh < len(self.idle):
                    self.late.append(now - at)
                self._send(self.idle.popleft(), at)
                planned += 1
            self._poll(max(0.0, min(0.05, self.start + schedule.at(planned) - time.monotonic())))

    def _wait_for_the_rest(self) -> None:
        end = time.monotonic() + GRACE_SECONDS
        while self.under_way and time.monotonic() < end:
            self._poll(0.05)
        for connection in list(self.connections.values()):
            self._lose(connection)

    def _connect(self) -> None:
        connection = Connection(self.job.host, self.job.port)
        self.connections[connection.fd] = connection
        self.epoll.register(connection.fd, select.EPOLLIN)
        self.idle.append(connection)

    def _send(self, connection: Connection, planned: float) -> None:
        number = len(self.outcomes)
        if number % BLOCK == 0:
            self.bases.append(time.time_ns() // 1_000_000)
        template = (self.job.first_template + number) % len(self.job.templates)
        form = self.job.templates[template]
        own = stem(self.bases[-1], number)
        request = form.request.replace(STEM, own)
        old = -1
        if form.repeats:
            old = self._known.get(template, number)
            request = request.replace(OLD_STEM, stem(self.bases[old // BLOCK], old))
        self.templates.append(template)
        self.olds.append(old)
        self.outcomes.append(UNKNOWN)
        connection.number, connection.planned, connection.sent_at = number, planned, time.monotonic()
        self.under_way += 1
        self.sent_bytes += len(request)
        try:
            if not connection.send(request):
                self.epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        except ConnectionError:
            self._lose(connection)

    # --- answers --------------------------------------------------------------------------------------------

    def _poll(self, seconds: float) -> None:
        for fd, what in self.epoll.poll(seconds):
            connection = self.connections[fd]
            try:
                if what & select.EPOLLOUT and connection.send_rest():
                    self.epoll.modify(fd, select.EPOLLIN)
                if what & ~select.EPOLLOUT:
                    answer = connection.receive()
                    if answer is not None:
                        self._answered(connection, *answer)
            except ConnectionError:
                self._lose(connection)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        number, connection.number = connection.number, -1
        self.under_way -= 1
        self.received_bytes += len(body)
        if status == 200:
            refused = self._read(number, body)
            self._known.setdefault(self.templates[number], number)
        elif status in _FINAL and self.batch == 1:
            self.outcomes[number] = ALL
            self.verdicts.append((number, 0, REJECTED))
            self.counts[REJECTED] += 1
            refused = 0
        else:
            self.outcomes[number] = NONE if status in _UNREAD else UNKNOWN
            refused = self.batch
        self._record(connection, status, refused)
        self.idle.append(connection)

    def _read(self, number: int, body: bytes) -> int:
        """Verdicts of a 200; how many events have none."""
        self.outcomes[number] = ALL
        if self.batch == 1:
            verdict = ACCEPTED if b'"status":"accepted"' in body else DUPLICATE
            if verdict is DUPLICATE:
                self.verdicts.append((number, 0, verdict))
            self.counts[verdict] += 1
            return 0
        if b'"results":[]' in body:
            self.counts[ACCEPTED] += self.batch
            return 0
        if self._all_refused in body:  # not worth reading: an overloaded system says so often
            self.outcomes[number] = UNKNOWN
            return self.batch
        found = [(number, each.index, _STATUS[each.status]) for each in _ANSWERS.decode(body).results]
        self.verdicts += found
        told = Counter(verdict for _, _, verdict in found)
        self.counts.update(told)
        self.counts[ACCEPTED] += self.batch - len(found)
        return told[RETRY]

    def _lose(self, connection: Connection) -> None:
        """No answer will come on it, and nothing is known of what was under way."""
        if connection.number >= 0:
            self.under_way -= 1
            self._record(connection, 0, self.batch)
        else:
            self.idle.remove(connection)
        del self.connections[connection.fd]
        connection.socket.close()

    def _reconnect(self) -> None:
        """Make up for connections that were lost, as far as somebody listens."""
        now = time.monotonic()
        if len(self.connections) < self.job.connections and now >= self._reconnect_at:
            try:
                while len(self.connections) < self.job.connections:
                    self._connect()
            except OSError:
                self._reconnect_at = now + RECONNECT_SECONDS

    def _record(self, connection: Connection, status: int, refused: int) -> None:
        now = time.monotonic()
        self.finished.append(now - self.start)
        self.latencies.append(now - connection.planned)
        self.services.append(now - connection.sent_at)
        self.answered_events.append(self.batch - refused)
        self.refused_events.append(refused)
        self.statuses[status] += 1

    def _sent(self, seconds: float, cpu: float) -> Sent:
        late = sorted(self.late)
        return Sent(
            self.bases, self.templates.tobytes(), self.olds.tobytes(), bytes(self.outcomes), self.verdicts,
            self.finished.tobytes(), self.latencies.tobytes(), self.services.tobytes(),
            self.answered_events.tobytes(), self.refused_events.tobytes(), dict(self.counts), dict(self.statuses),
            seconds, cpu, self.sent_bytes, self.received_bytes, self.given_up, late[len(late) // 2] if late else 0.0,
        )  # fmt: skip


_ANSWERS: Final = msgspec.json.Decoder(_BatchAnswer)


def main(_: Sequence[str] | None = None) -> int:
    """Read the job, run it, write when it began and what came of it."""
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    gc.disable()  # nothing here is a cycle, and a collection is a pause that the system would be blamed for
    output = sys.stdout.buffer

    def begun(at: float) -> None:
        output.write(START.pack(at))
        output.flush()

    output.write(msgspec.msgpack.encode(Sender(job).run(begun)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
