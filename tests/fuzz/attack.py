"""A hostile hour, or 20,000 requests of it, against both listeners of a served program; and what it must leave true.

Owns the campaigns, the pace, the count of events and the samples of the process. The program is `headrace serve` on
stores of its own: `bench.serving`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import trio

from bench.serving import Serving
from tests.fuzz.mutate import CAMPAIGN, plan_of
from tests.fuzz.peer import converse

__all__ = ["Attack", "Found", "Sample"]

CAMPAIGNS = 9  # the table's events are for campaign 7; a mutated digit finds another one
SAMPLES = 10  # during an attack for a time
SAMPLE_SECONDS = 5.0  # during another
UNCUT_SHARE = 0.8  # of the attack, before any connection is cut: its count is nearly exact
SETTLE_SECONDS = 8.0  # lingering connections are gone by then
LOG_MARKS = ("Traceback", "ERROR", "CRITICAL")


class Sample(NamedTuple):
    """The process at one moment."""

    seconds: float
    connections: int  # so far
    rss_mib: float
    descriptors: int


class _Pace(NamedTuple):
    """How long and how fast; until `share` of it is done."""

    requests: int | None
    seconds: float | None
    rate: float | None
    share: float


@dataclass
class Found:
    """What an attack came to: `faults` must be empty."""

    faults: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    accepted: int = 0  # events, as whole connections were told
    unsure: int = 0  # that those which were cut may have had counted
    counted: int = 0  # in the campaigns' reports


class Attack:
    """Both listeners in turn, `connections` at once, for a number of connections or for a time."""

    def __init__(self, program: Serving, seed: int, *, first: int = 0, connections: int = 32) -> None:
        self.found = Found()
        self._program = program
        self._seed = seed
        self._next = self._first = first
        self._connections = connections
        self._addresses = [
            (str(urlsplit(url).hostname), urlsplit(url).port or 0) for url in (program.api, program.intake)
        ]

    async def run(
        self, *, requests: int | None = None, seconds: float | None = None, rate: float | None = None
    ) -> Found:
        """Attack, then count. One of `requests` and `seconds` is given; `rate` is connections a second."""
        async with httpx.AsyncClient(base_url=self._program.api, timeout=30, trust_env=False) as client:
            for _ in range(CAMPAIGNS):
                (await client.post("/campaigns/", content=CAMPAIGN)).raise_for_status()
            self._sample(0.0)
            begun = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sample_for_ever, begun, seconds)
                for share, cuts in ((UNCUT_SHARE, False), (1.0, True)):
                    async with trio.open_nursery() as attackers:
                        for _ in range(self._connections):
                            attackers.start_soon(self._attack, begun, _Pace(requests, seconds, rate, share), cuts)
                    await self._judge_events(client)
                nursery.cancel_scope.cancel()
            await trio.sleep(SETTLE_SECONDS if seconds else 0)
            self._sample(trio.current_time() - begun)
            await self._judge(client)
        return self.found

    async def _attack(self, begun: float, pace: _Pace, cuts: bool) -> None:
        while self._program.process.poll() is None:
            done = self._next - self._first
            if pace.requests is not None and done >= pace.requests * pace.share:
                return
            if pace.seconds is not None and trio.current_time() > begun + pace.seconds * pace.share:
                return
            self._next += 1
            if pace.rate is not None:
                await trio.sleep_until(begun + done / pace.rate)
            await self._converse(self._first + done, cuts)

    async def _converse(self, number: int, cuts: bool) -> None:
        plan = plan_of(self._seed, number)
        plan = plan._replace(cut=plan.cut and cuts)
        try:
            heard = await converse(self._addresses[number % 2], plan)
        except OSError as error:
            self.found.faults.append(f"connection {number}: {error!r}")
            return
        self.found.accepted += heard.accepted
        if not heard.whole:
            self.found.unsure += max(0, plan.events_max - heard.accepted)
        self.found.statuses.update(heard.answers)
        self.found.faults += [f"connection {number}: {fault}" for fault in heard.faults]

    async def _judge_events(self, client: httpx.AsyncClient) -> None:
        """Every 200 is counted, and nothing without one but what a connection that was cut had sent."""
        found = self.found
        if self._program.process.poll() is None:
            found.counted = await _count(client)
            if not found.accepted <= found.counted <= found.accepted + found.unsure:
                found.faults.append(
                    f"{found.accepted} events were answered 200, {found.counted} are counted ({found.unsure} unsure)"
                )

    async def _judge(self, client: httpx.AsyncClient) -> None:
        found = self.found
        if self._program.process.poll() is not None:
            found.faults.append("the program has ended")
            return
        for url in (self._program.api, self._program.intake):
            for path in ("/healthz", "/readyz"):
                status = (await client.get(url + path)).status_code
                if status != 200:
                    found.faults.append(f"{url}{path} is {status}")
        found.faults += _bad_lines(self._program.log)

    async def _sample_for_ever(self, begun: float, seconds: float | None) -> None:
        while True:
            await trio.sleep(seconds / SAMPLES if seconds else SAMPLE_SECONDS)
            self._sample(trio.current_time() - begun)

    def _sample(self, at: float) -> None:
        folder = Path(f"/proc/{self._program.process.pid}")
        if not folder.exists():  # not Linux, or no more
            return
        pages = int((folder / "statm").read_text().split()[1])
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
        self.found.samples.append(Sample(at, self._next - self._first, pages * 4_096 / 2**20, descriptors))


async def _count(client: httpx.AsyncClient) -> int:
    """Events in the reports of all campaigns, also of those that the attack has made."""
    counted, after = 0, 0
    while True:
        page = (await client.get("/campaigns/", params={"limit": 200, "after": after})).raise_for_status().json()
        for campaign in page["campaigns"]:
            report = (await client.get(f"/report/campaign/{campaign['id']}")).raise_for_status().json()
            counted += report["impressions"] + report["clicks"] + report["conversions"]
        if page["next"] is None:
            return counted
        after = page["next"]


def _bad_lines(log: Path) -> Iterator[str]:
    for line in log.read_text(errors="replace").splitlines():
        if any(mark in line for mark in LOG_MARKS):
            yield f"in the log: {line}"
