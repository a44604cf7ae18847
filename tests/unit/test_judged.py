"""Only Postgres makes a verdict: what Redis says, or nobody answers, is never enough. The engine over fakes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from copy import deepcopy
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine import clock as engine_clock
from engine import runtime
from engine.actor import Actor
from engine.campaign import CampaignState
from engine.clock import SteadyClock
from engine.errors import ConfigurationUnsafe, StoreUnavailable
from engine.model import DAY_US, SECOND_US, CampaignId, Event, HeartbeatReply, Status, instant_text
from engine.ports import BILLABLE, FREE, Batch, Committed, FlushReply, Unknown
from engine.processes import Engines
from engine.submission import Entry
from tests.contract.flushes import bunch, impression, raise_generation
from tests.contract.reservations import letters, reserve, reserved
from tests.fakes.ledger import Trouble as RedisTrouble
from tests.fakes.store import Trouble as PostgresTrouble
from tests.plans import NOON_US
from tests.unit.test_engine import World, shown

DEAD, OTHER = 0 << 40 | 9, 2 << 40 | 9  # tags of an engine that is not alive, and of one that our news don't know yet


@pytest.fixture
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    """A fresh engine on fresh fakes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


def fresh(world: World, campaign: int, user: str = "ada") -> Event:
    """An impression of this moment, which is not looked up first."""
    return shown(campaign, user, event_id=uuid.uuid4(), occurred_at=instant_text(world.now_us()))


def id_of(event: Event) -> bytes:
    """Its 16 bytes."""
    assert event.event_id is not None
    return event.event_id.bytes


async def held(world: World, campaign: int, tag: int, events: Sequence[Event], cost_micros: int) -> None:
    """Another engine's reservation, which waits for its commit."""
    book = world.ledger.books[CampaignId(campaign)]
    call = reserve(
        campaign_id=CampaignId(campaign), generation=book.generation, tag=tag, day=NOON_US // DAY_US,
        at_us=world.now_us(), time_us=world.now_us(), cost_micros=cost_micros,
        kinds=bytes([BILLABLE if cost_micros else FREE]) * len(events), ids=b"".join(map(id_of, events)),
    )  # fmt: skip
    assert await letters(world.ledger, call) == b"A" * len(events)


# --- what Redis knows ---


async def test_a_duplicate_that_postgres_does_not_have_is_none(autojump_clock: MockClock, world: World) -> None:
    """D is Redis's word, and Redis may be wrong: the sender is told to come again."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    event = fresh(world, campaign)
    world.ledger.books[CampaignId(campaign)].window.put([id_of(event)], OTHER, world.now_us())
    verdict = (await world.send(event))[0]
    assert verdict is not None
    assert verdict.status is Status.RETRY


async def test_what_another_engine_has_under_way_is_in_flight(autojump_clock: MockClock, world: World) -> None:
    """P is no duplicate: that engine may still be refused."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    event = fresh(world, campaign)
    await held(world, campaign, OTHER, [event], 1_000)
    assert await world.reasons(event) == ["in_flight"]


async def test_what_another_engine_has_committed_is_a_duplicate(autojump_clock: MockClock, world: World) -> None:
    """Though Redis was not told yet."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    event = fresh(world, campaign)
    await held(world, campaign, OTHER, [event], 1_000)
    row = impression(world.now_us(), event_id=id_of(event))
    generation = world.ledger.books[CampaignId(campaign)].generation
    assert await world.store.flush([bunch(CampaignId(campaign), [row], generation=generation)]) == Committed()
    assert await world.reasons(event) == ["duplicate"]


async def test_an_id_without_a_time_is_the_same_event_after_midnight(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its identity day would be another one, so the unique key would not notice."""
    campaign = await world.campaign()
    event = shown(campaign, event_id=uuid.uuid4())
    assert await world.reasons(event) == ["accepted"]
    for days in (1, 2):
        monkeypatch.setattr(world, "now_us", lambda days=days: NOON_US + days * DAY_US)
        assert await world.reasons(event) == ["duplicate"]
    assert world.spent(campaign) == 1_000


async def test_a_look_up_that_failed_is_no_news(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event may be committed, so it is not told that the budget has no room for it."""
    campaign = await world.campaign(total_budget="0.001")
    event = shown(campaign, event_id=uuid.uuid4())
    assert await world.reasons(event) == ["accepted"]
    world.forget_ids(campaign)

    async def fail(_: object) -> Any:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailable("as the test wished", certain=True)

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "look_up", fail)
        assert await world.reasons(event) == ["unavailable"]
    assert await world.reasons(event) == ["duplicate"]


async def test_a_refusal_of_a_redis_that_was_left_behind_is_not_told(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its generation was raised while it answered: the event is asked again."""
    campaign = await world.campaign()
    await world.send(shown(campaign))
    await trio.sleep(1)
    left_behind = world.ledger.answer

    async def refuse(calls: Sequence[Any]) -> list[Any]:
        monkeypatch.setattr(world.ledger, "answer", left_behind)
        row = await raise_generation(world.store, CampaignId(campaign))
        world.registry.generation_raised(row.campaign_id, row.generation)
        return [reserved(b"T", 1_000, 1_000) for _ in calls]

    monkeypatch.setattr(world.ledger, "answer", refuse)
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_a_redis_that_came_back_old_is_brought_to_the_newest_generation(
    autojump_clock: MockClock, world: World
) -> None:
    """Its own image, of a time before the last recovery: nobody goes back to it."""
    campaign = await world.campaign(total_budget="0.003")
    await world.send(shown(campaign))
    old = deepcopy(world.ledger.books)
    image = world.ledger.image
    world.ledger.forget()
    await world.send(shown(campaign))
    world.ledger.books, world.ledger.image = old, image
    assert await world.reasons(shown(campaign), shown(campaign)) == ["accepted", "total_budget"]


# --- what Postgres refused, and what nobody answered ---


async def test_an_unanswered_commit_is_asked_for_when_it_is_in_or_out_for_good(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection was cut, and Postgres commits a while later."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    flush, begun = world.store.flush, trio.Event()

    async def commit_slowly() -> None:
        begun.set()
        await trio.sleep(2)

    async with trio.open_nursery() as postgres:

        async def cut(batches: Sequence[Batch], **_: bool) -> FlushReply:
            monkeypatch.setattr(world.store, "flush", flush)
            world.store.hold = commit_slowly
            postgres.start_soon(flush, batches)
            await begun.wait()
            world.store.hold = None
            return Unknown("the connection was cut")

        monkeypatch.setattr(world.store, "flush", cut)
        assert await world.reasons(fresh(world, campaign)) == ["accepted"]
    assert await world.reasons(fresh(world, campaign)) == ["total_budget"]
    assert world.spent(campaign) == 2_000


async def test_what_postgres_refused_is_given_back(autojump_clock: MockClock, world: World) -> None:
    """A unique violation: the money of the refused reservation is free again."""
    campaign = await world.campaign(total_budget="0.003")
    known = fresh(world, campaign)
    assert await world.reasons(known) == ["accepted"]
    world.forget_ids(campaign)
    assert await world.reasons(known) == ["duplicate"]
    assert await world.reasons(*[shown(campaign) for _ in range(3)]) == ["accepted"] * 2 + ["total_budget"]


@pytest.mark.parametrize("trouble", list(RedisTrouble))
async def test_an_undo_is_repeated_until_it_is_answered(
    autojump_clock: MockClock, world: World, trouble: RedisTrouble
) -> None:
    """Nothing is held for ever because an answer was lost."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    await trio.sleep(1)
    world.store.trouble.append(PostgresTrouble.NOT_RUN)
    world.ledger.fail_next(trouble, answered=1)  # the reserve is answered
    world.ledger.fail_next(trouble)
    assert await world.reasons(shown(campaign)) == ["unavailable"]
    await trio.sleep(2)
    assert await world.ledger.pending_tags([CampaignId(campaign)]) == {campaign: []}
    assert await world.reasons(shown(campaign)) == ["accepted"]


# --- the remedy ---


async def test_a_rebuild_knows_what_committed_while_it_waited(autojump_clock: MockClock, world: World) -> None:
    """Redis forgot during a flush: the watermark is that of the raise, which waits for it."""
    campaign = await world.campaign(total_budget="0.003")
    await world.send(shown(campaign))
    event, release = fresh(world, campaign), trio.Event()
    world.store.hold = release.wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.send, event)
        await trio.sleep(0.1)
        world.ledger.forget()
        nursery.start_soon(world.send, fresh(world, campaign))
        await trio.sleep(0.1)
        release.set()
    assert world.spent(campaign) == 3_000
    assert await world.reasons(event) == ["duplicate"]


async def test_a_free_reservation_that_did_not_commit_leaves_no_id_behind(
    autojump_clock: MockClock, world: World
) -> None:
    """It costs nothing, so no sum tells that it was settled wrongly."""
    campaign = await world.campaign(pricing_model="cpc")
    await world.send(shown(campaign))
    world.store.trouble.append(PostgresTrouble.UNKNOWN_BEFORE)
    assert await world.reasons(fresh(world, campaign)) == ["accepted"]


async def test_a_free_reservation_that_did_commit_counts_for_the_cap(autojump_clock: MockClock, world: World) -> None:
    """It costs nothing, so no sum tells that it was settled wrongly."""
    campaign = await world.campaign(pricing_model="cpc", freq_cap_impressions_per_day=1)
    await world.send(shown(campaign, "bob"))
    world.store.trouble.append(PostgresTrouble.UNKNOWN_AFTER)
    assert await world.reasons(fresh(world, campaign)) == ["accepted"]
    assert await world.reasons(fresh(world, campaign)) == ["frequency_capped"]


async def test_a_row_that_somebody_else_paid_for_commits_no_reservation(
    autojump_clock: MockClock, world: World
) -> None:
    """A dead engine had reserved a stored event anew, and a new one with it: the new one is not known."""
    campaign = await world.campaign(pricing_model="cpc")
    stored, new = fresh(world, campaign), fresh(world, campaign, "eve")
    assert await world.reasons(stored) == ["accepted"]
    await trio.sleep(1)
    world.forget_ids(campaign)
    await held(world, campaign, DEAD, [stored, new], 0)
    await world.registry.recover_orphans()
    assert await world.reasons(new) == ["accepted"]


async def test_a_living_actor_gives_back_what_a_dead_engine_held(autojump_clock: MockClock, world: World) -> None:
    """Asked for when an engine dies, and once a minute."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))
    await held(world, campaign, DEAD, [fresh(world, campaign)], 1_000)
    await world.registry.recover_orphans()
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_a_failed_actor_of_an_unknown_campaign_ends_nobody_else(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no more when the answer comes that there is no such campaign."""
    campaign = await world.campaign()
    post = Actor.post

    def failing(actor: Actor, entries: Sequence[Entry], now: float) -> None:
        post(actor, entries, now)
        if actor.state.campaign_id == 77:
            raise RuntimeError("a fault in one actor")

    monkeypatch.setattr(Actor, "post", failing)
    assert await world.reasons(shown(77)) == ["unavailable"]
    await trio.sleep(1)
    assert await world.reasons(shown(campaign)) == ["accepted"]


async def test_what_a_failed_actor_had_reserved_is_given_back(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine lives, so nobody would take the reservation for an orphan."""
    campaign = await world.campaign(total_budget="0.002")
    await world.send(shown(campaign))

    def fault(*_: Any) -> Any:
        raise RuntimeError("as the test wished")

    with monkeypatch.context() as patch:
        patch.setattr(CampaignState, "apply", fault)
        assert await world.reasons(shown(campaign)) == ["unavailable"]
    assert await world.reasons(shown(campaign)) == ["accepted"]


# --- clocks and tags ---


@pytest.mark.parametrize("seconds", [-31, 31])
async def test_an_engine_whose_clock_is_far_off_takes_nothing(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """Until a heartbeat says that it is right again; its own clock is not set by it meanwhile."""
    campaign = await world.campaign()
    engines, offset = Engines(1), seconds
    clock = SteadyClock()
    right_us = clock.now_us()
    monkeypatch.setattr("engine.clock.machine_us", lambda: right_us + offset * SECOND_US)

    async def heartbeat(number: int, _: int) -> HeartbeatReply:
        await trio.lowlevel.checkpoint()
        return HeartbeatReply(offset * SECOND_US, frozenset([number]), number)

    monkeypatch.setattr(world.store, "heartbeat", heartbeat)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            runtime.heartbeats,
            world.engine,
            world.registry,
            engines,
            clock,
            world.store,
            world.ledger,
        )
        await trio.sleep(1)
        assert await world.reasons(shown(campaign)) == ["unavailable"]
        assert abs(clock.now_us() - right_us) < 5 * SECOND_US
        offset = seconds // 2
        await trio.sleep(world.settings.heartbeat_seconds)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        assert abs(clock.now_us() - right_us - offset * SECOND_US) < 5 * SECOND_US
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("days", [1, -1])
async def test_a_host_that_is_set_together_with_its_stores_moves_no_day(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Postgres and Redis agree with the new time; only the clock that nobody sets tells. Set back, all is as before."""
    campaign = await world.campaign()
    clock = SteadyClock()
    machine_us, set_us = engine_clock.machine_us, 0
    monkeypatch.setattr("engine.clock.machine_us", lambda: machine_us() + set_us)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            runtime.heartbeats, world.engine, world.registry, Engines(1), clock, world.store, world.ledger
        )
        await trio.sleep(1)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        before_us, set_us = clock.now_us(), days * DAY_US
        await trio.sleep(world.settings.heartbeat_seconds)
        assert await world.reasons(shown(campaign)) == ["unavailable"]
        (problem,) = await world.engine.problems()
        assert f"were set by {days * 86400}.0 s while the engine ran" in problem
        assert abs(clock.now_us() - before_us) < DAY_US // 2
        set_us = 0
        await trio.sleep(world.settings.heartbeat_seconds)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_a_clock_that_a_slow_answer_calls_right_is_not_what_later_ones_are_held_to(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be wrong by half of the time that the answer took; once it is corrected, the engine serves."""
    campaign = await world.campaign()
    started_us, wrong_us, seconds = engine_clock.machine_us(), 33 * SECOND_US, 8
    monkeypatch.setattr("engine.clock.even_us", lambda: int(trio.current_time() * SECOND_US))
    monkeypatch.setattr("engine.clock.machine_us", lambda: started_us + engine_clock.even_us() + wrong_us)

    async def heartbeat(number: int, _: int) -> HeartbeatReply:
        await trio.sleep(seconds)
        return HeartbeatReply(wrong_us - seconds * SECOND_US // 2, frozenset([number]), number, seconds * SECOND_US)

    monkeypatch.setattr(world.store, "heartbeat", heartbeat)
    clock = SteadyClock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            runtime.heartbeats, world.engine, world.registry, Engines(1), clock, world.store, world.ledger
        )
        await trio.sleep(9)
        wrong_us, seconds = 0, 0
        await trio.sleep(9)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_an_engine_whose_clock_is_not_that_of_redis_takes_nothing(
    autojump_clock: MockClock, world: World
) -> None:
    """Where Postgres runs on the engine's host, Redis's is the only other clock."""
    campaign = await world.campaign()
    async with trio.open_nursery() as nursery:
        world.ledger.behind_us = -31 * SECOND_US
        nursery.start_soon(
            runtime.heartbeats, world.engine, world.registry, Engines(1), SteadyClock(), world.store, world.ledger
        )
        await trio.sleep(1)
        assert await world.reasons(shown(campaign)) == ["unavailable"]
        world.ledger.behind_us = 0
        await trio.sleep(world.settings.heartbeat_seconds)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_an_engine_whose_postgres_became_unsafe_takes_nothing(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a heartbeat finds it right again."""
    campaign = await world.campaign()
    right = world.store.heartbeat

    async def heartbeat(*_: int) -> HeartbeatReply:
        await trio.lowlevel.checkpoint()
        raise ConfigurationUnsafe("this Postgres is a standby")

    async with trio.open_nursery() as nursery:
        monkeypatch.setattr(world.store, "heartbeat", heartbeat)
        nursery.start_soon(
            runtime.heartbeats, world.engine, world.registry, Engines(1), SteadyClock(), world.store, world.ledger
        )
        await trio.sleep(1)
        assert await world.reasons(shown(campaign)) == ["unavailable"]
        assert await world.engine.problems() == ["this Postgres is a standby"]
        monkeypatch.setattr(world.store, "heartbeat", right)
        await trio.sleep(world.settings.heartbeat_seconds)
        assert await world.reasons(shown(campaign)) == ["accepted"]
        nursery.cancel_scope.cancel()


def test_no_two_reservations_have_the_same_tag() -> None:
    """In one engine and in all of them: a row's tag says who paid for it."""
    tags = [engines.next_tag() for engines in (Engines(1), Engines(2)) for _ in range(3)]
    assert len(set(tags)) == 6
