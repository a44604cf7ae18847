"""The engine over fakes: what it does when a store answers, fails, forgets or says nothing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from config.settings import Settings
from engine.campaign import CampaignState
from engine.engine import Engine
from engine.model import DAY_US, CampaignId, Event, Invalid, Reason, Status, Verdict, instant_text
from engine.ports import (
    Batch,
    FlushReply,
    NotRun,
    Reserve,
    Reserved,
    ReserveReply,
    Resolve,
    ResolveReply,
)
from engine.processes import Engines
from engine.recovery import Recovery
from engine.registry import Registry
from engine.submission import Submission
from tests.contract.reservations import reserve
from tests.fakes.ledger import FakeLedger
from tests.fakes.ledger import Trouble as RedisTrouble
from tests.fakes.store import FakeStore
from tests.fakes.store import Trouble as PostgresTrouble
from tests.plans import NOON_US
from tests.remedy import recover_alone

FIELDS = {
    "name": "spring", "pricing_model": "cpm", "unit_price": "1.00", "total_budget": "1000", "daily_budget": "1000"
}  # fmt: skip


class World:
    """An engine on fake stores, under a clock that moves with trio's."""

    def __init__(self, nursery: trio.Nursery, **settings: Any) -> None:
        self.store = FakeStore(self.now_us)
        self.ledger = FakeLedger()
        self.settings = Settings(**settings)
        self.clock_step_us = 0
        self.registry = Registry(self.settings, self.ledger, self.store, self, Engines(1), nursery)
        self.engine = Engine(self.settings, self.registry, self.store, self)
        self.registry.start()
        nursery.start_soon(self.engine.tick)

    def now_us(self) -> int:
        """Noon, and what trio's clock has moved since."""
        return NOON_US + int(trio.current_time() * 1_000_000) + self.clock_step_us

    async def campaign(self, **fields: object) -> int:
        """Make a campaign: cpm at 1.00 and plenty of budget, unless told otherwise."""
        return (await self.engine.create_campaign({**FIELDS, **fields})).campaign.id

    async def send(self, *events: Event | Invalid) -> list[Verdict | None]:
        """Send events as one request; None stands for accepted."""
        submission: Submission = await self.engine.record(events)
        return [submission.verdicts.get(index) for index in range(len(events))]

    async def reasons(self, *events: Event | Invalid) -> list[Status | Reason]:
        """Send events as one request; the reason of each, or its status if there is none."""
        verdicts = await self.send(*events)
        return [Status.ACCEPTED if each is None else each.reason or each.status for each in verdicts]

    def spent(self, campaign: int) -> int:
        """What the ledger row says, which must be what the rows cost."""
        spent = self.store.ledger[CampaignId(campaign)].spent
        assert spent == 1_000 * len(self.store.rows_of(CampaignId(campaign)))
        return spent

    def forget_ids(self, campaign: int) -> None:
        """Have Redis lose all ids of a campaign, without telling: it calls committed events new."""
        book = self.ledger.books[CampaignId(campaign)]
        for bucket in book.window.ids + book.ahead.ids:
            bucket.clear()


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """A fresh engine on fresh fakes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


def shown(campaign: int, user: str = "ada", **fields: Any) -> Event:
    """An impression."""
    return Event(campaign_id=campaign, user_id=user, event_type="impression", **fields)


async def test_events_are_accepted_up_to_the_budget(autojump_clock: MockClock, world: World) -> None:
    """Five impressions of 0.001 for 0.005."""
    campaign = await world.campaign(total_budget="0.005")
    assert await world.reasons(*[shown(campaign) for _ in range(7)]) == ["accepted"] * 5 + ["total_budget"] * 2
    assert world.spent(campaign) == 5_000


async def test_one_round_trip_and_one_transaction_carry_all_campaigns(autojump_clock: MockClock, world: World) -> None:
    """Twenty campaigns with mail: one round, one flush."""
    campaigns = [await world.campaign() for _ in range(20)]
    await world.send(*map(shown, campaigns))
    trips, flushes = world.ledger.round_trips, world.store.flushes
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * 20
    assert (world.ledger.round_trips - trips, world.store.flushes - flushes) == (1, 1)


async def test_an_unknown_campaign_is_told_and_forgotten(autojump_clock: MockClock, world: World) -> None:
    """It leaves no actor behind."""
    assert await world.reasons(shown(77)) == ["unknown_campaign"]
    assert len(world.registry) == 0


async def test_a_redis_that_forgot_is_rebuilt(autojump_clock: MockClock, world: World) -> None:
    """Caps, budgets and duplicates hold across the loss."""
    campaign = await world.campaign(freq_cap_impressions_per_day=1, total_budget="0.002")
    first = shown(campaign, event_id=uuid.uuid4())
    assert await world.reasons(first) == ["accepted"]
    world.ledger.forget()
    assert await world.reasons(first, shown(campaign)) == ["duplicate", "frequency_capped"]
    assert await world.reasons(shown(campaign, "bob"), shown(campaign, "eve")) == ["accepted", "total_budget"]


async def test_a_cap_that_is_new_today_counts_what_was_shown_before_it(autojump_clock: MockClock, world: World) -> None:
    """Impressions that were accepted without a cap are not forgotten by it."""
    campaign = await world.campaign()
    assert await world.reasons(shown(campaign), shown(campaign)) == ["accepted"] * 2
    await world.engine.update_campaign(campaign, {"freq_cap_impressions_per_day": 2})
    assert await world.reasons(shown(campaign), shown(campaign, "bob")) == ["frequency_capped", "accepted"]


@pytest.mark.parametrize("trouble", list(RedisTrouble))
async def test_a_reserve_without_a_certain_answer_is_counted_once(
    autojump_clock: MockClock, world: World, trouble: RedisTrouble
) -> None:
    """Whether it ran, never ran, or runs late: one row, and the budget is whole in the end."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    await trio.sleep(1)  # Redis has heard of that commit, so the next round trip is the reserve
    world.ledger.fail_next(trouble)
    event = shown(campaign, "bob", event_id=uuid.uuid4())
    told = await world.reasons(event)
    assert told in (["accepted"], ["unavailable"])
    world.ledger.deliver_late()
    assert (await world.reasons(event))[0] in ("accepted", "duplicate")
    assert await world.reasons(shown(campaign, "eve")) == ["total_budget"]
    assert world.spent(campaign) == 2_000


@pytest.mark.parametrize("trouble", [each for each in PostgresTrouble if each is not PostgresTrouble.CULPRIT_UNNAMED])
async def test_a_commit_without_a_certain_answer_is_counted_once(
    autojump_clock: MockClock, world: World, trouble: PostgresTrouble
) -> None:
    """What committed is accepted, what did not is reserved again or told to come again."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    world.store.trouble.append(trouble)
    event = shown(campaign, "bob", event_id=uuid.uuid4())
    told = await world.reasons(event)
    assert told == (["unavailable"] if trouble is PostgresTrouble.NOT_RUN else ["accepted"])
    assert (await world.reasons(event))[0] in ("accepted", "duplicate")
    assert await world.reasons(shown(campaign, "eve")) == ["total_budget"]
    assert world.spent(campaign) == 2_000


async def test_an_unnamed_culprit_does_not_cost_the_others(autojump_clock: MockClock, world: World) -> None:
    """The flush is halved until every innocent campaign is through."""
    campaigns = [await world.campaign() for _ in range(4)]
    await world.send(*map(shown, campaigns))
    world.store.trouble.extend([PostgresTrouble.CULPRIT_UNNAMED, PostgresTrouble.CULPRIT_UNNAMED])
    told = await world.reasons(*map(shown, campaigns))
    assert told.count(Status.ACCEPTED) >= 3


async def test_a_row_that_redis_had_forgotten_is_a_duplicate_and_its_neighbours_are_accepted(
    autojump_clock: MockClock, world: World
) -> None:
    """The unique key is the last line: whoever lies about times meets it."""
    campaign = await world.campaign()
    known = shown(campaign, event_id=uuid.uuid4())
    assert await world.reasons(known) == ["accepted"]
    world.forget_ids(campaign)
    looks_new = Event(
        campaign_id=campaign, user_id="ada", event_type="impression", event_id=known.event_id,
        occurred_at=instant_text(world.now_us()),
    )  # fmt: skip
    assert await world.reasons(shown(campaign, "bob"), looks_new) == ["accepted", "duplicate"]
    assert world.spent(campaign) == 2_000


async def test_what_is_reserved_while_an_older_batch_is_refused_is_not_forgotten(
    autojump_clock: MockClock, world: World
) -> None:
    """A zombie's flush is refused and its plan read again; its next reservation is under way meanwhile."""
    campaign = CampaignId(await world.campaign())
    await world.send(shown(campaign))
    release_flush, release_round = trio.Event(), trio.Event()
    flush, round_ = world.store.flush, world.ledger.answer

    async def late_flush(batches: Any, **_: Any) -> Any:
        await release_flush.wait()
        return await flush(batches)

    async def late_round(calls: Any) -> Any:
        replies = await round_(calls)
        await release_round.wait()
        return replies

    async with trio.open_nursery() as nursery:
        world.store.flush = late_flush  # type: ignore[method-assign]
        nursery.start_soon(world.send, shown(campaign, "old"))
        await trio.sleep(1)
        await recover_alone(Recovery(world.ledger, world.store, world), campaign)
        world.registry.generation_raised(campaign, world.store.ledger[campaign].gen)
        world.ledger.answer = late_round  # type: ignore[method-assign]
        nursery.start_soon(world.send, shown(campaign, "new"))
        await trio.sleep(1)
        release_flush.set()
        await trio.sleep(1)
        release_round.set()
    await trio.sleep(1)
    assert not world.ledger.books[campaign].pending
    assert world.spent(campaign) == 3_000


async def test_without_postgres_events_are_unavailable_and_the_money_comes_back(
    autojump_clock: MockClock, world: World
) -> None:
    """Nothing is held for ever by events that were refused."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    world.store.away = True
    assert await world.reasons(shown(campaign, "bob")) == ["unavailable"]
    world.store.away = False
    assert await world.reasons(shown(campaign, "eve")) == ["accepted"]
    assert world.spent(campaign) == 2_000


async def test_without_redis_events_are_unavailable_and_accepted_again_when_it_is_back(
    autojump_clock: MockClock, world: World
) -> None:
    """No restart, no waiting for the deadline."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    world.ledger.away = True
    before = trio.current_time()
    assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert trio.current_time() - before < world.settings.request_deadline_seconds
    world.ledger.away = False
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_a_paused_campaign_refuses_new_events_and_knows_the_old(autojump_clock: MockClock, world: World) -> None:
    """A retry of an accepted event is a duplicate, never `inactive`."""
    campaign = await world.campaign()
    known = shown(campaign, event_id=uuid.uuid4())
    await world.send(known)
    await world.engine.update_campaign(campaign, {"active": False})
    assert await world.reasons(known, shown(campaign)) == ["duplicate", "inactive"]


async def test_a_full_mailbox_refuses_at_once(autojump_clock: MockClock) -> None:
    """While the plan is being read, only so much waits."""
    async with trio.open_nursery() as nursery:
        world = World(
            nursery, mailbox_events_max=10, request_events_max=10, reserve_events_max=10, engine_events_max=100
        )
        campaign = await world.campaign()
        answers: list[Submission] = []
        for _ in range(2):
            world.engine.submit([shown(campaign)] * 8, answers.append)
        assert [set(answer.verdicts) for answer in answers] == [set(range(8))]
        assert answers[0].verdicts[0].reason is Reason.OVERLOADED
        assert answers[0].entries == [shown(campaign)] * 8, "what is refused is not worth a look"
        nursery.cancel_scope.cancel()


async def test_what_is_refused_is_told_the_id_that_its_key_gives_it(autojump_clock: MockClock) -> None:
    """Sent again under that id, alone and without the key, it is the event that was stored before."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, mailbox_events_max=3, request_events_max=3, reserve_events_max=3, engine_events_max=100)
        campaign = await world.campaign()
        events = [shown(campaign), shown(campaign, "bob")]
        await world.engine.record(events, idempotency_key="2026-11-23T12")
        answers: list[Submission] = []
        for key in (None, "2026-11-23T12"):
            world.engine.submit(events, answers.append, idempotency_key=key)
        assert answers[0].verdicts[1].reason is Reason.OVERLOADED
        told = [event for event in answers[0].entries if isinstance(event, Event)]
        await trio.sleep(1)
        assert await world.reasons(*told) == ["duplicate"] * 2
        nursery.cancel_scope.cancel()


async def test_a_key_in_another_order_of_campaigns_counts_nothing_twice(
    autojump_clock: MockClock, world: World
) -> None:
    """Neither does a neighbour that is corrected, as long as its campaign could be read; other content is told."""
    one, two = await world.campaign(), await world.campaign()
    key = "2026-11-23T12"
    bad = Invalid("user_id: is missing", campaign_id=one)
    sent: list[list[Event | Invalid]] = [
        [shown(one, "ada"), bad, shown(two, "bob"), shown(one, "eve"), Invalid("no event")],
        [shown(two, "bob"), shown(one, "ada"), shown(one, "dan"), shown(one, "eve")],
        [shown(one, "mia"), shown(two, "bob")],
    ]
    told: list[dict[int, Status | Reason]] = []
    for events in sent:
        submission = await world.engine.record(events, idempotency_key=key)
        told.append({index: each.reason or each.status for index, each in sorted(submission.verdicts.items())})
    assert told == [
        {1: Reason.INVALID, 4: Reason.INVALID},
        {0: Status.DUPLICATE, 1: Status.DUPLICATE, 3: Status.DUPLICATE},
        {0: Reason.ID_REUSED, 1: Status.DUPLICATE},
    ]


async def test_an_engine_is_full_until_its_events_have_their_verdicts(autojump_clock: MockClock) -> None:
    """What was taken before is finished; then there is room again."""
    async with trio.open_nursery() as nursery:
        world = World(
            nursery, mailbox_events_max=10, request_events_max=10, reserve_events_max=10, engine_events_max=10
        )
        campaign = await world.campaign()
        assert not world.engine.overloaded()
        answered = trio.Event()
        world.engine.submit([shown(campaign)] * 10, lambda _: answered.set())
        assert world.engine.overloaded()
        await answered.wait()
        assert not world.engine.overloaded()
        nursery.cancel_scope.cancel()


async def test_what_has_no_verdict_at_its_deadline_is_unavailable(autojump_clock: MockClock, world: World) -> None:
    """The work behind it goes on to its end."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    release = trio.Event()
    world.store.hold = release.wait
    event = shown(campaign, event_id=uuid.uuid4())
    assert await world.reasons(event) == ["unavailable"]
    release.set()
    world.store.hold = None
    assert await world.reasons(event) == ["duplicate"]


async def test_a_clock_that_is_set_back_lets_no_request_wait_longer(autojump_clock: MockClock, world: World) -> None:
    """Deadlines are kept by a clock that never steps."""
    campaign = await world.campaign()
    world.store.hold = trio.sleep_forever
    with trio.fail_after(world.settings.request_deadline_seconds + 1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.send, shown(campaign))
            await trio.sleep(1)
            world.clock_step_us = -3_600_000_000


async def test_a_reply_that_is_thrown_away_holds_nothing(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused flush sends the actor back to its plan while a reserve is under way: what that reserved is undone."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    flush, round_ = world.store.flush, world.ledger.answer
    flushes, rounds = trio.Event(), trio.Event()

    async def late_flush(batches: Sequence[Batch], **_: bool) -> FlushReply:
        await flushes.wait()
        return await flush(batches)

    async def late_round(calls: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
        replies = await round_(calls)
        await rounds.wait()
        return replies

    monkeypatch.setattr(world.store, "flush", late_flush)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.send, shown(campaign))
        await trio.sleep(0.2)  # its flush is under way
        monkeypatch.setattr(world.ledger, "answer", late_round)
        nursery.start_soon(world.send, shown(campaign, "bob"))
        await trio.sleep(0.2)  # its reserve has no answer yet
        await world.store.update_campaign(CampaignId(campaign), {"total_budget_micros": 1})
        flushes.set()
        await trio.sleep(0.2)
        rounds.set()
    await trio.sleep(1)
    assert await world.ledger.pending_tags([CampaignId(campaign)]) == {campaign: []}


async def test_a_void_that_finds_another_redis_recovers_the_campaign(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Redis that held the reservation may be back: only a newer generation is sure to end it."""
    campaign = await world.campaign()
    await world.send(shown(campaign))

    async def fail(_: object, **__: bool) -> NotRun:
        world.ledger.restart()
        return NotRun("as the test wished")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "flush", fail)
        assert await world.reasons(shown(campaign)) == ["unavailable"]
    await trio.sleep(1)
    book = world.ledger.books[CampaignId(campaign)]
    assert (book.open, book.image) == (True, world.ledger.image)


async def test_a_redis_that_is_ahead_of_postgres_is_caught_up_with(autojump_clock: MockClock, world: World) -> None:
    """Postgres was restored from a backup, or is a new one beside an old Redis: events are taken, and counted once."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    for _ in range(3):
        await recover_alone(Recovery(world.ledger, world.store, world), campaign)
    await trio.sleep(world.settings.actor_idle_seconds + 10)
    world.store.ledger[CampaignId(campaign)].gen -= 3
    event = shown(campaign, event_id=uuid.uuid4())
    assert [await world.reasons(event) for _ in range(2)] == [["accepted"], ["duplicate"]]
    assert world.spent(campaign) == 2_000


async def test_a_row_that_was_read_before_a_raise_is_no_reason_to_recover(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another engine has raised the generation meanwhile, and NOTIFY was faster than the row."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    plans = world.store.plans

    async def slow_plans(campaign_ids: Sequence[CampaignId]) -> Any:
        read = await plans(campaign_ids)
        await trio.sleep(1)
        return read

    monkeypatch.setattr(world.store, "plans", slow_plans)
    world.registry._actors[CampaignId(campaign)].load()
    await trio.sleep(0.5)
    await recover_alone(Recovery(world.ledger, world.store, world), campaign)
    raised = world.store.ledger[CampaignId(campaign)].gen
    world.registry.generation_raised(CampaignId(campaign), raised)
    await trio.sleep(5)
    assert world.store.ledger[CampaignId(campaign)].gen == raised
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_a_campaign_with_invalid_events_only_has_no_actor(autojump_clock: MockClock, world: World) -> None:
    """Nothing of it is ever asked for."""
    assert await world.reasons(shown(77, ""), shown(77, "")) == ["invalid"] * 2
    assert len(world.registry) == 0


async def test_each_event_of_a_request_has_the_verdict_of_its_place(autojump_clock: MockClock, world: World) -> None:
    """They are taken campaign by campaign, and answered in the order in which they were sent."""
    first, second = await world.campaign(), await world.campaign(total_budget="0.001")
    assert await world.reasons(
        shown(second), shown(first), shown(first, ""), shown(77), shown(second), Invalid("no event"), shown(first)
    ) == [
        "accepted", "accepted", "invalid", "unknown_campaign", "total_budget", "invalid", "accepted",
    ]  # fmt: skip


async def test_an_idle_actor_is_passivated_and_starts_again_where_it_was(
    autojump_clock: MockClock, world: World
) -> None:
    """What it knew is in the stores."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    await trio.sleep(world.settings.actor_idle_seconds + 10)
    assert len(world.registry) == 0
    assert await world.reasons(shown(campaign), shown(campaign)) == ["accepted", "total_budget"]


async def test_reservations_of_a_dead_engine_are_given_back(autojump_clock: MockClock, world: World) -> None:
    """An actor that starts finds them, and recovers."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    await trio.sleep(world.settings.actor_idle_seconds + 10)
    book = world.ledger.books[CampaignId(campaign)]
    tag = 0 << 40 | 9  # of engine 0, which is not alive
    held = reserve(
        campaign_id=CampaignId(campaign), generation=book.generation, tag=tag, day=NOON_US // DAY_US,
        at_us=world.now_us(), time_us=world.now_us(),
    )  # fmt: skip
    assert isinstance((await world.ledger.answer([held]))[0], Reserved)
    assert await world.reasons(shown(campaign)) == ["accepted"]


@pytest.mark.parametrize(
    ("decision", "spent_micros"), [("admit", 2_000), ("apply", 2_000), ("settle_committed", 3_000)]
)
async def test_a_fault_in_an_actor_costs_its_campaign_a_recovery_and_nobody_else_anything(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch, decision: str, spent_micros: int
) -> None:
    """Its requests are told to come again (also what is committed already); the next one finds a new actor."""
    broken, sound = await world.campaign(), await world.campaign()
    await world.send(shown(broken), shown(sound))
    decide = getattr(CampaignState, decision)

    def fault(state: CampaignState, *arguments: Any) -> Any:
        if state.campaign_id == broken:
            raise RuntimeError("as the test wished")
        return decide(state, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CampaignState, decision, fault)
        assert await world.reasons(shown(broken), shown(sound)) == ["unavailable", "accepted"]
    assert await world.reasons(shown(broken)) == ["accepted"]
    assert world.spent(broken) == spent_micros


async def test_a_campaign_whose_actor_keeps_failing_answers_fast(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many restarts in the window it is refused, until the window has passed."""
    campaign = await world.campaign()

    def fault(*_: Any) -> Any:
        raise RuntimeError("as the test wished")

    with monkeypatch.context() as patch:
        patch.setattr(CampaignState, "apply", fault)
        for _ in range(world.settings.restarts_max + 1):
            assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert await world.reasons(shown(campaign)) == ["unavailable"]
    await trio.sleep(world.settings.restart_window_seconds + 1)
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_draining_finishes_what_was_taken_and_takes_nothing_more(autojump_clock: MockClock, world: World) -> None:
    """Redis knows every outcome when it is over."""
    campaign = await world.campaign()
    answers: list[Submission] = []
    world.engine.submit([shown(campaign)] * 5, answers.append)
    await world.engine.drain()
    assert [answer.verdicts for answer in answers] == [{}]
    assert await world.ledger.pending_tags([CampaignId(campaign)]) == {campaign: []}
    assert await world.reasons(shown(campaign)) == ["unavailable"]


async def test_no_event_is_taken_while_a_store_is_unsafe(autojump_clock: MockClock, world: World) -> None:
    """Neither ready nor right: nothing is reserved, and the reason is told."""
    campaign = await world.campaign()
    world.engine.unsafe = "Redis may drop keys"
    assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert await world.engine.problems() == ["Redis may drop keys"]
    world.engine.unsafe = None
    assert await world.reasons(shown(campaign)) == ["accepted"]
