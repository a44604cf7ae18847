"""The sender of a soak: batches at full rate for as long as you like, in memory that does not grow.

Owns what makes each request new, and what is counted. A program of its own (`python -m bench.soak.steady`), so that its
CPU and memory can be told from everybody else's: a `Job` comes on standard input; a `Tick` goes to standard output each
second, as a line of JSON. It keeps nothing of what it has sent, so the audit of a run (bench/check.py) can't judge it.

Every id is new, and of now. One of version 7 has the request's own stem (bench/bodies.py); one of version 4 is random
in itself, since ids of one request that begin alike would lie together in an index.
"""

from __future__ import annotations

import gc
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bench.bodies import STEM, stem
from bench.connections import Connection, Connections
from bench.history import Ids

TICK_SECONDS: Final = 1.0
OWN_USER: Final = b'"u-' + STEM  # how a template names a user who comes once
GROUP: Final = b"&" * len(STEM)  # in its place: one of those who come again
_ID: Final = re.compile('(?<="event_id":")' + re.escape(STEM.decode()) + "-[0-9a-f]{12}")


class Job(msgspec.Struct, frozen=True):
    """What to send. `templates` are whole requests of `batch` events each, as bench/bodies.py makes them.

    `groups` 0: every event has a user of its own. Else each place of a template has so many users.
    """

    host: str
    port: int
    templates: list[bytes]
    batch: int
    connections: int
    seconds: float
    ids: Ids
    groups: int = 0


class Tick(msgspec.Struct):
    """What was answered since the tick before. `reasons` are those of `rejected` and `refused`, in events."""

    at_seconds: float = 0.0  # since the start
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    refused: int = 0  # answered 503 or `retry`, or not answered
    reasons: dict[str, int] = {}
    latencies_ms: list[float] = []


class _Result(msgspec.Struct):
    status: str
    reason: str = ""


class _Answer(msgspec.Struct):
    results: list[_Result]


class _Problem(msgspec.Struct):
    code: str = ""


_ANSWERS: Final = msgspec.json.Decoder(_Answer)
_PROBLEMS: Final = msgspec.json.Decoder(_Problem)
TICKS: Final = msgspec.json.Decoder(Tick)


class Requests:
    """Makes every request anew. Pure but for what is random."""

    def __init__(self, templates: Sequence[bytes], ids: Ids, groups: int) -> None:
        if groups:
            templates = [template.replace(OWN_USER, b'"u-' + GROUP) for template in templates]
        self._templates = templates
        self._pieces = [_ID.split(template.decode()) for template in templates] if ids == "v4" else []
        self._groups = groups

    def make(self, number: int, milliseconds: int) -> bytes:
        """Request `number`, of that time."""
        at = number % len(self._templates)
        request = _with_random_ids(self._pieces[at]) if self._pieces else self._templates[at]
        request = request.replace(STEM, stem(milliseconds, number & 0xFFFFFF))
        if self._groups:
            request = request.replace(GROUP, b"%0*d" % (len(GROUP), random.randrange(self._groups)))
        return request


def _with_random_ids(pieces: list[str]) -> bytes:
    digits = os.urandom(16 * (len(pieces) - 1)).hex()
    whole = [""] * (2 * len(pieces) - 1)
    whole[::2] = pieces
    whole[1::2] = [
        f"{digits[at : at + 8]}-{digits[at + 8 : at + 12]}-4{digits[at + 13 : at + 16]}"
        f"-8{digits[at + 17 : at + 20]}-{digits[at + 20 : at + 32]}"
        for at in range(0, len(digits), 32)
    ]
    return "".join(whole).encode()


def count_answer(tick: Tick, status: int, body: bytes, batch: int) -> None:
    """Add the verdicts of one batch's answer."""
    if status != 200:
        tick.refused += batch
        _add(tick, f"http {status} {_PROBLEMS.decode(body).code}".rstrip(), batch)
        return
    if b'"results":[]' in body:
        tick.accepted += batch
        return
    others = Counter((result.status, result.reason) for result in _ANSWERS.decode(body).results)
    tick.accepted += batch - others.total()
    for (verdict, reason), count in others.items():
        if verdict == "duplicate":
            tick.duplicate += count
            continue
        if verdict == "rejected":
            tick.rejected += count
        else:
            tick.refused += count
        _add(tick, f"{verdict} {reason}".rstrip(), count)


def _add(tick: Tick, reason: str, count: int) -> None:
    tick.reasons[reason] = tick.reasons.get(reason, 0) + count


class Steady(Connections):
    """A closed loop: each connection sends its next request when it has the answer to the last one."""

    def __init__(self, job: Job, tell: Callable[[Tick], None]) -> None:
        super().__init__(job.host, job.port, job.connections)
        self._job = job
        self._tell = tell
        self._requests = Requests(job.templates, job.ids, job.groups)
        self._tick = Tick()

    def run(self) -> None:
        """Send for the job's time, and wait for the last answers."""
        self.connect_all()
        start = time.monotonic()
        end, next_tick = start + self._job.seconds, start + TICK_SECONDS
        number = 0
        while (now := time.monotonic()) < end:
            if now >= next_tick:
                self._told(now - start)
                next_tick += TICK_SECONDS
            self.reconnect()
            while self.idle:
                request = self._requests.make(number, time.time_ns() // 1_000_000)
                self.send(self.idle.popleft(), number, request, time.monotonic())
                number += 1
            self.poll(min(0.05, end - now))
        self.wait_for_the_rest()
        self._told(time.monotonic() - start)

    def _told(self, at_seconds: float) -> None:
        self._tick.at_seconds = round(at_seconds, 3)
        self._tell(self._tick)
        self._tick = Tick()

    def answered(self, connection: Connection, number: int, status: int, body: bytes) -> None:
        """Count it."""
        del number
        self._tick.latencies_ms.append(round(1e3 * (time.monotonic() - connection.sent_at), 2))
        count_answer(self._tick, status, body, self._job.batch)

    def lost(self, connection: Connection, number: int) -> None:
        """Count it as refused."""
        del connection, number
        self._tick.refused += self._job.batch
        _add(self._tick, "no answer", self._job.batch)


def main() -> int:
    """Read the job, run it, and tell each second."""
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    gc.disable()  # nothing here is a cycle, and a collection is a pause that the system would be blamed for

    def tell(tick: Tick) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(tick) + b"\n")
        sys.stdout.buffer.flush()

    Steady(job, tell).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
