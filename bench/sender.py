"""The lean sender: as many requests as one core can send, and what became of each event.

Owns the plan of sending, latencies and verdicts. A program of its own (`python -m bench.sender`), so that
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
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bench.bodies import OLD_STEM, STEM, Template, stem
from bench.connections import Connection, Connections
from bench.schedule import EvenSchedule, LogSchedule

BLOCK: Final = 4_096  # requests whose stems share their time: a fraction of a second's
BACKLOG_SECONDS_MAX: Final = 2.0  # an open loop gives up planned requests that would wait longer, and counts them
BUSY_MAX: Final = 0.92  # of a core: above, the sender was the limit
LATE_SECONDS_MAX: Final = 0.005  # at the median of an open loop: beyond, the sender could not keep its plan

# What is known of a request: nothing, or that all of it was accepted but for what is in `verdicts`, or was refused.
UNKNOWN, ALL, NONE = 0, 1, 2
ACCEPTED, DUPLICATE, REJECTED, RETRY = "a", "d", "r", "u"
_STATUS: Final = {"accepted": ACCEPTED, "duplicate": DUPLICATE, "rejected": REJECTED, "retry": RETRY}
_FINAL: Final = {402, 404, 422, 429}
_UNREAD: Final = {400, 413, 415}
START: Final = struct.Struct("d")


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


class Sender(Connections):
    """One step of load."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.host, job.port, job.connections)
        self.job = job
        self.batch = len(job.templates[0].lines)
        self._all_refused = b'"retry":%d,' % self.batch
        self.start = 0.0
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

    # --- sending --------------------------------------------------------------------------------------------

    def run(self, begun: Callable[[float], None] = lambda _: None) -> Sent:
        """Send for the job's time, wait for the last answers, and tell. `begun` is told the time of the start."""
        self.connect_all()
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
        self.wait_for_the_rest()
        return self._sent(seconds, cpu)

    def _run_closed(self) -> None:
        end = self.start + self.job.seconds
        burst = self.job.burst_seconds
        while (now := time.monotonic()) < end:
            pausing = burst and int((now - self.start) / burst) % 2
            self.reconnect()
            while self.idle and not pausing:
                self._send(self.idle.popleft(), time.monotonic())
            self.poll(min(0.05, end - now))

    def _run_open(self, schedule: EvenSchedule | LogSchedule) -> None:
        end = self.start + self.job.seconds
        planned = 0
        while (now := time.monotonic()) < end:
            due = schedule.due(now - self.start)
            hopeless = schedule.due(max(0.0, now - self.start - BACKLOG_SECONDS_MAX))
            if planned < hopeless:
                self.given_up += hopeless - planned
                planned = hopeless
            self.reconnect()
            fresh = planned
            while planned < due and self.idle:
                at = self.start + schedule.at(planned)
                if planned - fresh < len(self.idle):
                    self.late.append(now - at)
                self._send(self.idle.popleft(), at)
                planned += 1
            self.poll(max(0.0, min(0.05, self.start + schedule.at(planned) - time.monotonic())))

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
        self.sent_bytes += len(request)
        self.send(connection, number, request, planned)

    # --- answers --------------------------------------------------------------------------------------------

    def answered(self, connection: Connection, number: int, status: int, body: bytes) -> None:
        """Keep its verdicts."""
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

    def lost(self, connection: Connection, number: int) -> None:
        """None of its events has a verdict."""
        del number
        self._record(connection, 0, self.batch)

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
