"""The senders: new events and old ones, once or many times at once, to whichever engine.

Owns what is sent, and that every request is answered once and in time. What the answers must be is the checker's.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import trio

from engine.model import SECOND_US, Event, Status, instant_text, new_event_id
from engine.submission import Entry, Submission
from tests.simulation.cluster import Process
from tests.simulation.world import World

ANSWER_SECONDS: Final = 10.0 + 1.0  # the deadline, and slack for the tick that sees it
USERS: Final = "abcdefgh"
TYPES: Final = ("impression", "impression", "impression", "click", "conversion")
# An event that tells no time of its own is looked up on three days: sent again after 48 h, it may be a new one.
FORGOTTEN_US: Final = 46 * 3_600 * SECOND_US


@dataclass(slots=True)
class Sent:
    """A request that can be repeated."""

    events: list[Event]
    key: str | None
    first_us: int


class Clients:
    """Everybody who sends."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.campaigns: list[int] = []
        self.requests: list[Sent] = []
        self.sent_events = 0
        # What its events say of their time decides what an engine may know without a look-up: in some worlds, nothing.
        self.timed_share = world.source.choice((0.6, 0.6, 0.05))

    def request(self) -> Sent:
        """A new request, or one that was sent before, whole or in part."""
        source = self.world.source
        now_us = self.world.now_us()
        if self.requests and source.random() < 0.4:
            recent = self.requests[-8:] if source.random() < 0.6 else self.requests
            old = source.choice(recent)
            if now_us - old.first_us < FORGOTTEN_US:
                return old if old.key is not None else self._again(old)
        key = source.randbytes(4).hex() if source.random() < 0.1 else None
        events = [self._event(now_us, with_id=key is None) for _ in range(source.choice((1, 1, 2, 5)))]
        made = Sent(events, key, now_us)
        if key is not None or all(event.event_id is not None for event in events):
            self.requests.append(made)
        return made

    def _again(self, old: Sent) -> Sent:
        source = self.world.source
        events = [event for event in old.events if source.random() < 0.8] or old.events
        if source.random() < 0.05:  # the same id for another event
            events = [msgspec.structs.replace(event, user_id=source.choice(USERS)) for event in events]
        if source.random() < 0.2:  # twice in one request
            events = events + events[:1]
        return Sent(events, None, old.first_us)

    def untimed(self) -> Sent:
        """A new request, whose events tell nothing of their time."""
        source, now_us = self.world.source, self.world.now_us()
        events = [
            msgspec.structs.replace(
                self._event(now_us, with_id=True), event_id=uuid.UUID(bytes=source.randbytes(16), version=4),
                occurred_at=None,
            )
            for _ in range(source.choice((1, 2)))
        ]  # fmt: skip
        made = Sent(events, None, now_us)
        self.requests.append(made)
        return made

    def with_young(self, old: Sent) -> Sent:
        """A request once more, with a new event of its campaigns each, which tells that it is new."""
        return Sent(old.events + self.young(old).events, old.key, old.first_us)

    def young(self, old: Sent) -> Sent:
        """These alone."""
        now_us = self.world.now_us()
        campaigns = dict.fromkeys(event.campaign_id for event in old.events)
        events = [
            msgspec.structs.replace(
                self._event(now_us, with_id=True), campaign_id=each, occurred_at=instant_text(now_us)
            )
            for each in campaigns
        ]
        return Sent(events, None, now_us)

    def _event(self, now_us: int, *, with_id: bool) -> Event:
        source = self.world.source
        settings = self.world.settings
        age_us = source.choice((0, 0, 0, 1, 20, 100, 500, 3_600, 80_000)) * SECOND_US
        if source.random() < 0.2:
            age_us = -int(settings.occurred_ahead_seconds * source.random() * SECOND_US)
        event_id: uuid.UUID | None = None
        told_us: int | None = now_us - age_us if source.random() < self.timed_share else None
        if with_id and source.random() < 0.95:
            event_id = uuid.UUID(bytes=source.randbytes(16), version=4)
            if source.random() < self.timed_share / 2:
                event_id = uuid.UUID(bytes=new_event_id(now_us - age_us, source.randbytes(10)))
        return Event(
            campaign_id=source.choice(self.campaigns),
            user_id=source.choice(USERS),
            event_type=source.choice(TYPES),
            event_id=event_id,
            occurred_at=None if told_us is None else instant_text(told_us),
        )

    def send(self, process: Process, request: Sent) -> None:
        """Send a request to an engine, on a connection of its own."""

        async def exchange() -> None:
            await self.answer_of(process, request.events, request.key)

        process.start_soon(exchange)

    async def answer_of(self, process: Process, events: list[Event], key: str | None = None) -> Submission | None:
        """Send, and wait for the one answer. None: the process no longer serves."""
        await process.awake()
        engine, checker = process.engine, self.world.checker
        if engine is None:
            return None
        answers: list[Submission] = []
        done = trio.Event()
        sent_at = checker.moment

        def answer(submission: Submission) -> None:
            answers.append(submission)
            process.unanswered -= 1
            checker.answered(submission, sent_at)
            done.set()

        self.sent_events += len(events)
        process.unanswered += 1
        submission = engine.submit(events, answer, idempotency_key=key)
        checker.asked(submission)
        names = [_name(entry.event_id) for entry in submission.entries]
        self.world.note(process.name, f"request {names}")
        await self._in_time(process, done)
        if len(answers) != 1:
            checker.violated(f"{process.name}: a request was answered {len(answers)} times")
            return None
        told = [_told(submission.verdicts.get(index)) for index in range(len(events))]
        self.world.counts.update(f"verdict {each}" for each in told)
        self.world.note(process.name, f"answer {names}: {told}")
        if key is None:
            self._learn(events, submission)
        return submission

    def _learn(self, events: list[Event], submission: Submission) -> None:
        """An event that had no id is sent again, if at all, under the one that the server says it has given it."""
        known = [
            msgspec.structs.replace(event, event_id=uuid.UUID(bytes=entry.event_id))
            for event, entry in zip(events, submission.entries, strict=True)
            if event.event_id is None and isinstance(entry, Entry)
        ]
        if known and self.world.source.random() < 0.3:
            self.requests.append(Sent(known, None, self.world.now_us()))

    async def _in_time(self, process: Process, done: trio.Event) -> None:
        """Wait for an answer as long as a request may take; while the engine is frozen, no time passes for it."""
        since = trio.current_time()
        while not done.is_set():
            with trio.move_on_after(since + ANSWER_SECONDS - trio.current_time()):
                await done.wait()
                return
            if not process.frozen and process.thawed_at <= since:
                return
            await process.awake()
            since = process.thawed_at


def _name(event_id: bytes | uuid.UUID | None) -> str:
    return (event_id.bytes if isinstance(event_id, uuid.UUID) else event_id or b"").hex()[:6]


def _told(verdict: Any) -> str:
    if verdict is None:
        return Status.ACCEPTED.value
    return str(verdict.reason or verdict.status)
