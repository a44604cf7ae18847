"""The light load that tells from when on each campaign takes events again.

Owns when a campaign is asked. A program of its own (`python -m bench.soak.probe`): a `Job` comes as the first line of
standard input. Every further byte is a **mark**: from then on no campaign counts as seen until an event that was sent
after the mark is accepted; its number and the time (by the monotonic clock that all processes share) go to standard
output, as a line of JSON. The end of standard input ends it.

Campaigns that are still to be seen are asked again as soon as they have answered; those that were seen, now and then.
A request asks for one campaign, or for a few where there are more campaigns than connections: it is answered when the
last of them is, so what is told is rather too late than too early.
"""

from __future__ import annotations

import heapq
import itertools
import os
import resource
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from bench.bodies import request_of, stem
from bench.connections import Connection, Connections

CONNECTIONS_MAX: Final = 2_000  # half of what a listener takes
EAGER_A_SECOND: Final = 4_000  # requests at most while all are to be seen
LIGHT_A_SECOND: Final = 500  # requests when all were
GAP_SECONDS_MIN: Final = 0.02


class Job(msgspec.Struct, frozen=True):
    """Where, and which campaigns."""

    host: str
    port: int
    campaigns: list[int]


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A campaign has accepted an event, sent after mark number `mark`. `at` is by the monotonic clock."""

    campaign: int
    at: float
    mark: int


class _Result(msgspec.Struct):
    index: int


class _Answer(msgspec.Struct):
    results: list[_Result]


_ANSWERS: Final = msgspec.json.Decoder(_Answer)
SEEN: Final = msgspec.json.Decoder(Seen)


def groups_of(campaigns: Sequence[int]) -> list[list[int]]:
    """Which are asked together."""
    size = -(-len(campaigns) // CONNECTIONS_MAX)
    return [list(campaigns[at : at + size]) for at in range(0, len(campaigns), size)]


def accepted_of(group: Sequence[int], status: int, body: bytes) -> Iterator[int]:
    """Those of a group whose event was accepted."""
    if status == 200 and len(group) == 1:
        yield group[0]
    elif status == 200:
        others = {result.index for result in _ANSWERS.decode(body).results}
        yield from (campaign for at, campaign in enumerate(group) if at not in others)


class Probe(Connections):
    """Asks until its standard input ends."""

    def __init__(self, job: Job, tell: Callable[[Seen], None]) -> None:
        self._groups = groups_of(job.campaigns)
        super().__init__(job.host, job.port, len(self._groups))
        self._host = f"{job.host}:{job.port}"
        self._tell = tell
        self._unseen = set(job.campaigns)
        self._marked_at = 0.0
        self._marks = 0
        self._numbers = itertools.count()
        self._gap = max(GAP_SECONDS_MIN, len(self._groups) / EAGER_A_SECOND)
        self._pause = len(self._groups) / LIGHT_A_SECOND
        now = time.monotonic()
        self._due = [(now, number) for number in range(len(self._groups))]

    def run(self, commands: int) -> None:
        """`commands` is the descriptor that marks come from."""
        self.epoll.register(commands, select.EPOLLIN)
        while True:
            self.reconnect()
            now = time.monotonic()
            while self.idle and self._due and self._due[0][0] <= now:
                _, number = heapq.heappop(self._due)
                self.send(self.idle.popleft(), number, self._request(number), now)
            self.poll(min(0.05, max(0.0, self._due[0][0] - now)) if self._due and self.idle else 0.05)
            if select.select([commands], [], [], 0)[0]:
                if not (marks := os.read(commands, 1 << 16)):
                    break
                self._mark(len(marks))
        self.epoll.unregister(commands)
        self.wait_for_the_rest()

    def _mark(self, marks: int) -> None:
        self._marked_at = time.monotonic()
        self._marks += marks
        self._unseen = {campaign for group in self._groups for campaign in group}
        self._due = [(self._marked_at, number) for _, number in self._due]

    def _request(self, number: int) -> bytes:
        bodies = []
        for campaign in self._groups[number]:
            own = stem(time.time_ns() // 1_000_000, next(self._numbers) & 0xFFFFFF).decode()
            event = {"campaign_id": campaign, "event_type": "impression", "user_id": f"p-{own}"}
            bodies.append(msgspec.json.encode({**event, "event_id": f"{own}-ffffffffffff"}))
        return request_of(bodies, self._host)

    def answered(self, connection: Connection, number: int, status: int, body: bytes) -> None:
        """Tell of those that are seen, and say when the group is asked again."""
        now, group = time.monotonic(), self._groups[number]
        if connection.sent_at >= self._marked_at:
            for campaign in accepted_of(group, status, body):
                if campaign in self._unseen:
                    self._unseen.discard(campaign)
                    self._tell(Seen(campaign, now, self._marks))
        self._again(number, now)

    def lost(self, connection: Connection, number: int) -> None:
        """The group is asked again when somebody listens."""
        del connection
        self._again(number, time.monotonic())

    def _again(self, number: int, now: float) -> None:
        eager = not self._unseen.isdisjoint(self._groups[number])
        heapq.heappush(self._due, (now + (self._gap if eager else self._pause), number))


def main() -> int:
    """Read the job, and run it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # often 1,024: a connection each would not fit
    commands = os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # unbuffered: marks follow
    job = msgspec.json.decode(commands.readline(), type=Job)

    def tell(seen: Seen) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")
        sys.stdout.buffer.flush()

    Probe(job, tell).run(commands.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
