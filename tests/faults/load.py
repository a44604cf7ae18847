"""Senders that keep a journal: they send, resend, send the same at once, hang up, and retry until they hear a verdict.

Owns what is sent. Knows the engines only as base URLs that may be dead, and the answers as any sender sees them.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import trio

from tests.faults.journal import Journal

SENDERS = 3
BATCH_MAX = 16
ANSWER_SECONDS = 12.0  # longer than any engine under test lets a request wait, those with the defaults (10 s) included
SETTLE_SECONDS = 60.0  # how long a retry may go on when all is well again
SETTLE_MAX = 100  # events a request when what has no verdict is sent again
RETRY_PAUSE_SECONDS = 0.05
USERS = tuple(f"u{number}" for number in range(25))
FINAL = {402, 404, 422, 429}
OK = {"accepted", "duplicate"}

Body = dict[str, Any]


class Doubt(str):
    """Nothing is known of an event, and this is why."""

    __slots__ = ()


def client_of(timeout_seconds: float) -> httpx.AsyncClient:
    """A client for loopback: without certificates, whose loading costs more than a hundred requests."""
    return httpx.AsyncClient(timeout=timeout_seconds, trust_env=False, verify=False)


def uuid7(now: float, source: random.Random) -> uuid.UUID:
    """An id that tells its time (RFC 9562, section 5.7)."""
    head = int(now * 1_000) << 80 | 7 << 76 | source.getrandbits(12) << 64
    return uuid.UUID(int=head | 2 << 62 | source.getrandbits(62))


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


class Load:
    """Senders over some campaigns; `run` sends until `stop`, `settle` retries what has no verdict."""

    def __init__(
        self, journal: Journal, source: random.Random, listeners: Callable[[], Sequence[str]], campaigns: Sequence[int]
    ) -> None:
        self.journal = journal
        self.source = source
        self.listeners = listeners
        self.campaigns = campaigns
        self.clock_seconds = 0.0  # how far the senders' clock has been moved
        self.hours_back = 0  # events of so many hours ago, instead of now
        self.repeats = 0.2
        self.acknowledged: list[Body] = []
        self.unsettled: deque[Body] = deque()
        self._doubted: set[str] = set()  # ids of which an attempt had no verdict
        self.answers = 0
        self._stopping = False
        self._sending = 0
        self._go = trio.Event()
        self._go.set()

    # --- what is sent ---

    def event(self) -> Body:
        """A new event; with a time in its id, a time of its own, or none at all."""
        source = self.source
        now = time.time() + self.clock_seconds
        body = {
            "campaign_id": source.choice(self.campaigns),
            "user_id": source.choice(USERS),
            "event_type": source.choices(["impression", "click"], [9, 1])[0],
            "event_id": str(uuid.UUID(int=source.getrandbits(128), version=4)),
        }
        if self.hours_back:
            body["occurred_at"] = _text(now - self.hours_back * 3_600)
            return body
        match source.randrange(10):
            case 0:
                pass
            case 1 | 2:
                body["occurred_at"] = _text(now - source.choice([1, 30, 900, 7_000]))
            case _:
                body["event_id"] = str(uuid7(now, source))
        return body

    def batch(self) -> list[Body]:
        """What to send next: what has no verdict yet, some that were acknowledged, and new ones."""
        size = self.source.randint(1, BATCH_MAX)
        bodies = [self.unsettled.popleft() for _ in range(min(size, len(self.unsettled)))]
        while len(bodies) < size:
            if self.acknowledged and self.source.random() < self.repeats:
                bodies.append(self.source.choice(self.acknowledged))
            else:
                bodies.append(self.event())
        return list({body["event_id"]: body for body in bodies}.values())

    # --- sending ---

    async def run(self) -> None:
        """Send until `stop`."""
        async with trio.open_nursery() as nursery:
            for _ in range(SENDERS):
                nursery.start_soon(self._sender)

    def stop(self) -> None:
        """Send nothing new."""
        self._stopping = True

    async def hold(self) -> None:
        """Send nothing until `go_on`; returns when nothing is under way."""
        self._go = trio.Event()
        while self._sending:
            await trio.sleep(0.01)

    def go_on(self) -> None:
        """Send again."""
        self._go.set()

    async def _sender(self) -> None:
        async with client_of(ANSWER_SECONDS) as client:
            while not self._stopping:
                await self._go.wait()
                self._sending += 1
                bodies = self.batch()
                copies = 3 if self.source.random() < 0.1 else 1
                patience = 0.005 if self.source.random() < 0.03 else ANSWER_SECONDS
                async with trio.open_nursery() as nursery:
                    for _ in range(copies):
                        nursery.start_soon(self.attempt, client, bodies, patience)
                self._sending -= 1
                await trio.sleep(self.source.random() * 0.2)

    async def settle(self) -> list[str]:
        """Retry until every event has a verdict; ids that had none within the bound."""
        waiting = {body["event_id"]: body for body in self.unsettled}
        async with client_of(ANSWER_SECONDS) as client:
            with trio.move_on_after(SETTLE_SECONDS):
                while waiting:
                    bodies = list(waiting.values())
                    for start in range(0, len(bodies), SETTLE_MAX):
                        # Only a verdict takes an event off the list: one whose request hangs stays on it.
                        for event_id in await self.attempt(client, bodies[start : start + SETTLE_MAX], keep=True):
                            del waiting[event_id]
                    await trio.sleep(RETRY_PAUSE_SECONDS)
        self.unsettled.clear()
        return list(waiting)

    async def attempt(
        self, client: httpx.AsyncClient, bodies: Sequence[Body], patience: float = ANSWER_SECONDS, *, keep: bool = False
    ) -> dict[str, str]:
        """One request, journalled before and after. The verdicts by id."""
        numbers = [self._invoke(body) for body in bodies]
        outcomes: Sequence[str] = [Doubt("hung up")] * len(bodies)
        with trio.move_on_after(patience):
            outcomes = await self._post(client, bodies)
        told = {body["event_id"]: outcome for body, outcome in zip(bodies, outcomes, strict=True)}
        verdicts = {event_id: outcome for event_id, outcome in told.items() if not isinstance(outcome, Doubt)}
        self.answers += bool(verdicts)
        for number, body in zip(numbers, bodies, strict=True):
            self._note(number, body, told[body["event_id"]], keep)
        if len(verdicts) < len(told) and not keep:
            await trio.sleep(RETRY_PAUSE_SECONDS)
        return verdicts

    def _note(self, number: int, body: Body, outcome: str, keep: bool) -> None:
        event_id = body["event_id"]
        if isinstance(outcome, Doubt):
            self.journal.write("info", attempt=number, id=event_id, why=outcome)
            if keep or self._insists_on(event_id):
                self.unsettled.append(body)
        elif outcome in OK:
            self.journal.write("ok", attempt=number, id=event_id, status=outcome)
            self.acknowledged.append(body)
        else:
            self.journal.write("fail", attempt=number, id=event_id, reason=outcome)

    def _insists_on(self, event_id: str) -> bool:
        """Nine senders of ten retry until they hear a verdict; the others give up at the first doubt."""
        again = event_id in self._doubted
        self._doubted.add(event_id)
        return again or self.source.random() < 0.9

    def _invoke(self, body: Body) -> int:
        number = self.journal.attempt()
        self.journal.write(
            "invoke", attempt=number, id=body["event_id"], campaign=body["campaign_id"], user=body["user_id"],
            type=body["event_type"],
        )  # fmt: skip
        return number

    async def _post(self, client: httpx.AsyncClient, bodies: Sequence[Body]) -> Sequence[str]:
        """What each is told: `accepted`, `duplicate`, a reason, or a `Doubt`."""
        listeners = self.listeners()
        if not listeners:
            return [Doubt("nobody listens")] * len(bodies)
        base = self.source.choice(listeners)
        try:
            if len(bodies) == 1:
                return [_verdict(await client.post(f"{base}/events/", json=bodies[0]))]
            answer = await client.post(f"{base}/events/batch", json=bodies)
        except httpx.HTTPError as error:
            return [Doubt(f"{type(error).__name__} at {base}")] * len(bodies)
        if answer.status_code != 200:
            return [Doubt(f"{answer.status_code} at {base}")] * len(bodies)
        outcomes = ["accepted"] * len(bodies)
        for result in answer.json()["results"]:
            reason = result["reason"]
            words = {"rejected": reason, "duplicate": "duplicate", "retry": Doubt(f"{reason} at {base}")}
            outcomes[result["index"]] = words[result["status"]]
        return outcomes


def _verdict(answer: httpx.Response) -> str:
    """Of an event that was sent by itself."""
    if answer.status_code == 200:
        return str(answer.json()["status"])
    if answer.status_code in FINAL:
        return str(answer.json()["code"])
    return Doubt(f"{answer.status_code} {answer.text}")
