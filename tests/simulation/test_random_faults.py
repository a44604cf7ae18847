"""A seeded driver over fakes: whatever fails in whatever order, the books are right in the end."""

from __future__ import annotations

import random
import uuid

import pytest
import trio
from trio.testing import MockClock

from engine.errors import StoreUnavailable
from engine.model import CampaignId, Event, Status, datetime_from_us
from engine.submission import Submission
from tests.fakes.ledger import Trouble as RedisTrouble
from tests.fakes.store import Trouble as PostgresTrouble
from tests.unit.test_engine import World, shown

SEEDS = 30  # ten seconds; thousands belong to a target of their own
STEPS = 100
ANSWER_SECONDS = 15  # the deadline of 10 s, and slack
CHANGES = ({"active": False}, {"active": True}, {"freq_cap_impressions_per_day": 2}, {"total_budget": "0.05"})


class Driver:
    """Sends, breaks and mends at random, and remembers what was acknowledged."""

    def __init__(self, world: World, source: random.Random, nursery: trio.Nursery) -> None:
        self.world = world
        self.source = source
        self.nursery = nursery
        self.campaigns: list[int] = []
        self.events: list[Event] = []
        self.acknowledged: set[tuple[int, bytes]] = set()
        self.waiting = 0

    async def send(self, events: list[Event]) -> None:
        """One request, which must be answered exactly once and in time."""
        answers: list[Submission] = []
        done = trio.Event()

        def answer(submission: Submission) -> None:
            answers.append(submission)
            done.set()

        self.waiting += 1
        self.world.engine.submit(events, answer)
        with trio.fail_after(ANSWER_SECONDS):
            await done.wait()
        self.waiting -= 1
        assert len(answers) == 1
        for index, event in enumerate(events):
            verdict = answers[0].verdicts.get(index)
            if verdict is None or verdict.status is Status.DUPLICATE:
                assert event.event_id is not None
                self.acknowledged.add((event.campaign_id, event.event_id.bytes))

    def event(self) -> Event:
        """A new event, or one that was sent before."""
        if self.events and self.source.random() < 0.3:
            return self.source.choice(self.events)
        age_us = self.source.choice([0, 0, 1, 400, 40_000]) * 1_000_000
        told = datetime_from_us(self.world.now_us() - age_us) if self.source.random() < 0.7 else None
        event_id = uuid.UUID(int=self.source.getrandbits(128))
        made = shown(
            self.source.choice(self.campaigns), self.source.choice("abcd"), event_id=event_id, occurred_at=told
        )
        self.events.append(made)
        return made

    async def step(self) -> None:
        """Do one thing."""
        store, ledger, source = self.world.store, self.world.ledger, self.source
        match source.choices(range(10), [60, 6, 6, 2, 1, 2, 2, 2, 3, 14])[0]:
            case 0:
                self.nursery.start_soon(self.send, [self.event() for _ in range(source.randint(1, 6))])
            case 1:
                ledger.fail_next(source.choice(list(RedisTrouble)), answered=source.randint(0, 2))
            case 2:
                store.trouble.append(source.choice(list(PostgresTrouble)))
            case 3:
                ledger.forget()
            case 4:
                ledger.restart()
            case 5:
                ledger.away = not ledger.away
            case 6:
                store.away = not store.away
            case 7:
                ledger.deliver_late()
            case 8 if not store.away:
                await self.world.engine.update_campaign(source.choice(self.campaigns), source.choice(CHANGES))
            case _:
                await trio.sleep(source.random() * source.choice([0, 0.01, 1, 100, 1_000]))

    async def mend(self) -> None:
        """All is well again; every campaign is used once more."""
        store, ledger = self.world.store, self.world.ledger
        ledger.away = store.away = False
        store.trouble.clear()
        ledger._trouble.clear()
        await trio.sleep(40)
        ledger.deliver_late()
        for campaign in self.campaigns:
            await self.send([shown(campaign, "z", event_id=uuid.UUID(int=self.source.getrandbits(128)))])
        await trio.sleep(20)

    def check(self) -> None:
        """Acknowledged is stored, stored once, paid once, and Redis says the same."""
        store, ledger = self.world.store, self.world.ledger
        assert self.waiting == 0
        for number in self.campaigns:
            campaign = CampaignId(number)
            keys = [key for key in store.events if key[0] == campaign]
            ids = {event_id for _, event_id, _ in keys}
            assert len(ids) == len(keys), "an id twice"
            assert {event_id for of, event_id in self.acknowledged if of == campaign} <= ids, "acknowledged and lost"
            spent = self.world.spent(campaign)
            book = ledger.books.get(campaign)
            if book is not None and book.open and book.generation == store.ledger[campaign].gen:
                assert not book.pending
                assert book.sums is not None
                assert book.sums.total == spent
        assert self.world.registry.quiet


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_fails_the_books_are_right_in_the_end(autojump_clock: MockClock, seed: int) -> None:
    """Every request answered once, no acknowledged event lost or doubled, ledger and Redis equal to the rows."""
    source = random.Random(seed)
    async with trio.open_nursery() as nursery:
        driver = Driver(World(nursery), source, nursery)
        for _ in range(3):
            driver.campaigns.append(
                await driver.world.campaign(
                    total_budget=source.choice(["0.05", "1000"]),
                    daily_budget=source.choice(["0.03", "1000"]),
                    freq_cap_impressions_per_day=source.choice([None, 2]),
                    pacing=source.choice(["asap", "even"]),
                )
            )
        for _ in range(STEPS):
            try:
                await driver.step()
            except StoreUnavailable:
                continue
        await driver.mend()
        driver.check()
        nursery.cancel_scope.cancel()
