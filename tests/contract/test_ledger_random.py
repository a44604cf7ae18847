"""The fake and the real Redis, driven side by side by a random script: every reply is the same."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest

from engine.leftovers import Advance, Held, Survey, SweptLedger
from engine.model import CampaignId, CampaignSpend, Micros
from engine.ports import (
    AHEAD,
    ALL_LOOKED_UP,
    BILLABLE,
    COUNTS_FOR_CAP,
    NO_CAP,
    NO_TIME,
    NONE_LOOKED_UP,
    NotRun,
    Reserve,
    Resolve,
)
from engine.steps import Begin, Kept, LoadUsers, Ready
from tests.contract.reservations import AT_US, DAY, FakeRig, RedisRig, ask_all, redis_rig

STEPS: Final = 600
CAMPAIGNS: Final = [CampaignId(number) for number in (1, 2, 3)]
IDS: Final = [bytes([number]) * 16 for number in range(40)]
KINDS: Final = [
    kind | ahead for kind in (0, BILLABLE, COUNTS_FOR_CAP, BILLABLE | COUNTS_FOR_CAP) for ahead in (0, 0, 0, AHEAD)
]
USERS: Final = ["ada", "bob", "Zoë", "x" * 128]


@dataclass(slots=True)
class Script:
    """Draws the next step. It knows roughly where the campaigns are, so that most calls mean something."""

    draw: random.Random
    fake: FakeRig
    day: int = DAY
    at_us: int = AT_US
    version: int = 1
    tag: int = 1 << 40
    tags: list[int] = field(default_factory=list)

    def campaign(self) -> CampaignId:
        """One of few."""
        return self.draw.choice(CAMPAIGNS)

    def generation(self, campaign_id: CampaignId) -> int:
        """Mostly the one in force."""
        book = self.fake.fake.books.get(campaign_id)
        return (book.generation if book else 0) + self.draw.choices((0, 1, -1), (20, 1, 1))[0]

    def some_tag(self) -> int:
        """Mostly one that was given out."""
        return self.draw.choice(self.tags[-20:]) if self.tags and self.draw.random() < 0.95 else 1

    def move(self) -> None:
        """Midnight, time that passes, a new plan: now and then, and clocks may lag."""
        self.day += self.draw.choices((0, 1, -1), (40, 1, 0.5))[0]
        self.at_us += self.draw.choices((1_000, 400_000, 2_000_000, -100_000, -7_000_000), (60, 20, 2, 2, 1))[0]
        self.version += self.draw.choices((0, 1, -1), (40, 1, 0.5))[0]

    def reserve(self, campaign_id: CampaignId) -> Reserve:
        """A call of up to 12 events out of 40 ids and four users, under budgets that bite."""
        draw, events = self.draw, self.draw.randint(1, 12)
        self.tag += 1
        self.tags.append(self.tag)
        return Reserve(
            campaign_id=campaign_id,
            generation=self.generation(campaign_id),
            tag=self.tag,
            plan_version=self.version,
            day=self.day,
            at_us=self.at_us,
            bucket_us=draw.choice((1_000_000, 3_000_000)),
            **self.times(campaign_id),
            total_budget_micros=draw.choice((-1, 500, 100_000, 10**12)),
            daily_budget_micros=draw.choice((300, 1_000, 10**12)),
            allowance_micros=draw.choice((100, 800, 10**12)),
            cap=draw.choice((NO_CAP, 1, 2, 5)) if draw.random() < 0.2 else 2,
            cost_micros=draw.choice((0, 1, 50)),
            new_users=draw.random() < 0.9,
            kinds=bytes(draw.choices(KINDS, k=events)),
            ids=b"".join(draw.choices(IDS, k=events)),
            users=draw.choices(USERS, k=events),
            committed=[self.some_tag() for _ in range(draw.choice((0, 0, 1, 3)))],
        )

    def times(self, campaign_id: CampaignId) -> dict[str, int]:
        """Id times, and look-ups that count mostly."""
        draw, book = self.draw, self.fake.fake.books.get(campaign_id)
        bucket = (0 if book is None else book.window.number) - draw.choices((0, 1), (20, 1))[0]
        looked = draw.random() < 0.5
        time_us = self.at_us - draw.choice((0, 5, 1_000_000, 5_000_000))
        return {
            "unlooked_us": ALL_LOOKED_UP if looked else draw.choices((time_us, NO_TIME), (20, 1))[0],
            "looked_bucket": bucket if looked else NONE_LOOKED_UP,
            "most_us": draw.choice((time_us, NO_TIME)),
            "most_ahead_us": self.at_us + draw.choice((3_000_000, 7_000_000)),
        }

    def spend(self, campaign_id: CampaignId) -> CampaignSpend:
        """Mostly the sums that the campaign has, so that `ready` opens it."""
        book = self.fake.fake.books.get(campaign_id)
        if book is None or book.sums is None or self.draw.random() < 0.1:
            return CampaignSpend(Micros(self.draw.choice((0, 200))), self.day, Micros(self.draw.choice((0, 200))))
        return CampaignSpend(Micros(book.sums.total), book.sums.day, Micros(book.sums.today))

    def step(self) -> Callable[[SweptLedger], Awaitable[object]]:
        """The next step, to be done to both."""
        self.move()
        campaign = self.campaign()
        what = self.draw.choices(
            (self.round, self.begin, self.settle, self.load, self.ready, self.advance), (14, 2, 4, 2, 6, 2)
        )[0]
        return what(campaign)

    def round(self, campaign_id: CampaignId) -> Callable[[SweptLedger], Awaitable[object]]:
        """Up to four calls, of any campaigns."""
        calls: list[Reserve | Resolve] = [self.reserve(campaign_id)]
        for _ in range(self.draw.randint(0, 3)):
            other = self.campaign()
            if self.draw.random() < 0.4:
                calls.append(self.reserve(other))
            else:
                commit = self.draw.random() < 0.5
                calls.append(Resolve(other, self.generation(other), self.some_tag(), commit=commit))
        return lambda ledger: ask_all(ledger, calls)

    def some(self, campaign_id: CampaignId) -> list[CampaignId]:
        """That campaign, and up to three more steps of any."""
        return [campaign_id, *(self.campaign() for _ in range(self.draw.choice((0, 0, 1, 3))))]

    def begin(self, campaign_id: CampaignId) -> Callable[[SweptLedger], Awaitable[object]]:
        """Mostly the next generation."""
        calls = [
            Begin(each, self.generation(each) + self.draw.choices((1, 2), (6, 1))[0]) for each in self.some(campaign_id)
        ]
        return lambda ledger: ledger.begin(calls)

    def settle(self, campaign_id: CampaignId) -> Callable[[SweptLedger], Awaitable[object]]:
        """Pending tags, if there are any."""
        calls = []
        for each in self.some(campaign_id):
            book = self.fake.fake.books.get(each)
            pending = book is not None and sorted(book.pending)
            tag = self.draw.choice(pending) if pending else self.some_tag()
            calls.append(Resolve(each, self.generation(each), tag, commit=self.draw.random() < 0.5))
        return lambda ledger: ledger.settle(calls)

    def load(self, campaign_id: CampaignId) -> Callable[[SweptLedger], Awaitable[object]]:
        """Some users."""
        calls: list[LoadUsers] = []
        for each in self.some(campaign_id):
            generation = self.generation(each)
            users = [(user, self.draw.randint(1, 3)) for user in self.draw.sample(USERS, 2)]
            calls.append(LoadUsers(each, generation, users))
        return lambda ledger: ledger.load(calls)

    def advance(self, campaign_id: CampaignId) -> Callable[[SweptLedger], Awaitable[object]]:
        """As a sweep does."""
        calls = [
            Advance(each, self.generation(each), self.day, self.at_us, self.draw.choice((1_000_000, 5_000_000)))
            for each in self.some(campaign_id)
        ]
        return lambda ledger: ledger.give_back(calls)

    def ready(self, campaign_id: CampaignId) -> Callable[[SweptLedger], Awaitable[object]]:
        """Sums that fit, or not."""
        calls = [
            Ready(
                each,
                self.generation(each),
                self.spend(each),
                self.version,
                self.at_us - self.draw.choice((0, 1_000_000, 10_000_000)),
                self.at_us,
                users_loaded=self.draw.random() < 0.8,
            )
            for each in self.some(campaign_id)
        ]
        return lambda ledger: ledger.ready(calls)


def plain(reply: object) -> object:
    """A reply without what may differ: the order of pending reservations, and the words of a refusal."""
    match reply:
        case list():
            return [plain(each) for each in reply]
        case Kept(pending):
            return sorted((each.tag, each.first_id) for each in pending)
        case NotRun():
            return NotRun
        case dict():
            return {campaign: sorted(tags) for campaign, tags in reply.items()}
    return reply


async def everything(ledger: SweptLedger) -> list[Held]:
    """What both hold of every campaign."""
    held, cursor = list[Held](), 0
    while True:
        survey = await ledger.survey(cursor)
        assert isinstance(survey, Survey)
        held += survey.held
        cursor = survey.cursor
        if not cursor:
            return sorted(held, key=lambda each: each.campaign_id)


async def drive(seed: int, fake: FakeRig, real: RedisRig, steps: int = STEPS) -> set[str]:
    """Do the same to both, and return the kinds of replies that were met."""
    script, met = Script(random.Random(seed), fake), set[str]()
    for at in range(steps):
        if script.draw.random() < 0.01:
            befalls = script.draw.choice(("forget", "restart"))
            for rig in (fake, real):
                getattr(rig, befalls)()
        step = script.step()
        said, expected = await step(real.ledger), await step(fake.ledger)
        assert plain(said) == plain(expected), f"seed {seed}, step {at}"
        held = [await everything(rig.ledger) for rig in (real, fake)]
        assert held[0] == held[1], f"seed {seed}, step {at}"
        pending = [await rig.ledger.pending_tags(CAMPAIGNS) for rig in (real, fake)]
        assert plain(pending[0]) == plain(pending[1]), f"seed {seed}, step {at}"
        met |= _kinds(said)
    return met


def _kinds(reply: object) -> set[str]:
    replies: Sequence[object] = reply if isinstance(reply, list) else [reply]
    return {type(each).__name__ for each in replies} | {
        chr(letter) for each in replies for letter in getattr(each, "letters", b"")
    }


@pytest.mark.stores
async def test_the_fake_does_as_redis_does(redis_url: str) -> None:
    """Some hundred random steps; the seed is printed, and is new each time."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown by pytest when it fails
    async with redis_rig(redis_url) as real:
        await drive(seed, FakeRig(), real)


@pytest.mark.stores
async def test_the_random_script_meets_everything(redis_url: str) -> None:
    """With a fixed seed: every letter and every reply is met, so that the comparison compares something."""
    async with redis_rig(redis_url) as real:
        met = await drive(7, FakeRig(), real, steps=2 * STEPS)
    assert met == set("PDCTYWUA") | {
        "Behind", "Closed", "DayBehind", "Done", "Emptied", "Kept", "Lost", "Mismatch", "PlanBehind", "Reserved",
        "Stale",
    }  # fmt: skip
