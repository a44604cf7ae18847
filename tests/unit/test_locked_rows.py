"""The engine over fakes, while another session holds rows in Postgres: nobody waits for it but its own campaigns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from engine import runtime
from engine.clock import SteadyClock
from engine.locks import HASTY_LOCK_SECONDS, LOCK_SECONDS, Locked, Suspects
from engine.model import CampaignId, Reason, Status
from engine.ports import Batch, FlushReply
from engine.processes import Engines
from tests.fakes.store import FakeStore
from tests.unit.test_engine import World, shown

INNOCENT_SECONDS = 2.0  # what docs/guarantees.md promises


@pytest.fixture(params=[1, 2])
async def world(request: pytest.FixtureRequest, autojump_clock: MockClock) -> AsyncIterator[World]:
    """An engine on fresh fakes, with one and with two connections for flushes."""
    async with trio.open_nursery() as nursery:
        yield World(nursery, flush_connections=request.param)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def held(store: FakeStore, campaigns: Sequence[int]) -> AsyncIterator[None]:
    """Another session holds the ledger rows of these."""

    async def hold(*, task_status: trio.TaskStatus[None]) -> None:
        async with AsyncExitStack() as stack:
            for campaign in campaigns:
                await stack.enter_async_context(store.ledger[CampaignId(campaign)].lock)
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        yield
        nursery.cancel_scope.cancel()


async def in_use(world: World, number: int, **fields: object) -> list[int]:
    """Campaigns of which Redis knows, with an event each."""
    campaigns = [await world.campaign(**fields) for _ in range(number)]
    assert await world.reasons(*map(shown, campaigns)) == ["accepted"] * number
    return campaigns


async def slowest(world: World, campaign: int, seconds: float) -> float:
    """Send events of a campaign one after the other for so long: each is accepted; how long the slowest took."""
    ends, worst = trio.current_time() + seconds, 0.0
    while trio.current_time() < ends:
        started = trio.current_time()
        assert await world.reasons(shown(campaign)) == ["accepted"]
        worst = max(worst, trio.current_time() - started)
        await trio.sleep(0.05)
    return worst


async def keep_sending(world: World, campaign: int) -> None:
    """Events of one campaign, again and again, whatever is answered."""
    while True:
        await world.reasons(shown(campaign))
        await trio.sleep(0.02)


@pytest.mark.parametrize("culprits", [1, 30])
async def test_nobody_else_waits_for_rows_that_are_held(autojump_clock: MockClock, world: World, culprits: int) -> None:
    """Beside campaigns whose rows stay held, an innocent one is accepted, every time and soon."""
    innocent, *locked = await in_use(world, 1 + culprits)
    async with held(world.store, locked), trio.open_nursery() as nursery:
        for campaign in locked:
            nursery.start_soon(keep_sending, world, campaign)
        assert await slowest(world, innocent, 20) < INNOCENT_SECONDS
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("world", [2], indirect=True)
async def test_nobody_waits_again_for_a_campaign_that_is_known_to_wait(autojump_clock: MockClock, world: World) -> None:
    """The others have a connection that never meets the lock."""
    innocent, locked = await in_use(world, 2)
    async with held(world.store, [locked]), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(keep_sending, world, locked)
            await trio.sleep(LOCK_SECONDS / 7)
        await trio.sleep(2)
        assert await slowest(world, innocent, 10) < LOCK_SECONDS
        nursery.cancel_scope.cancel()


async def test_what_is_held_is_unavailable_and_its_money_comes_back(autojump_clock: MockClock, world: World) -> None:
    """The culprit's sender hears 503; when the row is free again, its whole budget is there."""
    [campaign] = await in_use(world, 1, total_budget="0.003")
    async with held(world.store, [campaign]):
        assert await world.reasons(shown(campaign), shown(campaign)) == [Reason.UNAVAILABLE] * 2
    assert await world.reasons(*[shown(campaign) for _ in range(3)]) == [Status.ACCEPTED] * 2 + [Reason.TOTAL_BUDGET]
    assert world.spent(campaign) == 3_000


async def test_a_row_that_is_held_for_less_than_a_second_costs_nobody_a_refusal(
    autojump_clock: MockClock, world: World
) -> None:
    """A campaign that made a flush wait is tried once more by itself."""
    locked, innocent = await in_use(world, 2)
    async with trio.open_nursery() as nursery, held(world.store, [locked]):
        told: list[object] = []

        async def send(campaign: int) -> None:
            told.extend(await world.reasons(shown(campaign)))

        nursery.start_soon(send, locked)
        nursery.start_soon(send, innocent)
        await trio.sleep(1.5 * LOCK_SECONDS)
        assert told == ["accepted"]
    assert told == ["accepted", "accepted"]
    assert (world.spent(locked), world.spent(innocent)) == (2_000, 2_000)


async def test_a_row_that_is_held_for_less_than_a_second_costs_a_full_queue_no_refusal(
    autojump_clock: MockClock,
) -> None:
    """However much waits when a disk stalls: more than one flush carries."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, reserve_events_max=10, flush_events_max=50)
        campaigns = await in_use(world, 3)
        told: list[object] = []

        async def send(campaign: int) -> None:
            told.extend(await world.reasons(*[shown(campaign) for _ in range(200)]))

        async with held(world.store, campaigns):
            for campaign in campaigns:
                nursery.start_soon(send, campaign)
            await trio.sleep(1.5 * LOCK_SECONDS)
        await trio.sleep(LOCK_SECONDS)
        assert told == ["accepted"] * 600
        nursery.cancel_scope.cancel()


async def test_whose_row_is_held_is_told_soon_however_much_waits_for_it(autojump_clock: MockClock) -> None:
    """Many full flushes of one campaign wait for one lock twice, not once each."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, reserve_events_max=10, flush_events_max=50)
        [campaign] = await in_use(world, 1)
        async with held(world.store, [campaign]):
            started = trio.current_time()
            assert await world.reasons(*[shown(campaign) for _ in range(1_000)]) == [Reason.UNAVAILABLE] * 1_000
            assert trio.current_time() - started < 4 * LOCK_SECONDS
        nursery.cancel_scope.cancel()


class OneByOne(FakeStore):
    """A hundred campaigns have ids that another session is writing: a flush finds one of them after the other."""

    locked: frozenset[int] = frozenset()

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """Wait for the first, as long as a flush may wait for a lock."""
        for batch in batches:
            if batch.campaign_id in self.locked:
                await trio.sleep(HASTY_LOCK_SECONDS if hasty else LOCK_SECONDS)
                return Locked(frozenset([batch.campaign_id]), "its key is taken")
        return await super().flush(batches, hasty=hasty)


@pytest.mark.parametrize("world", [2], indirect=True)
async def test_a_hundred_culprits_that_are_found_one_by_one_keep_nobody_waiting(
    autojump_clock: MockClock, world: World
) -> None:
    """One request over a hundred of them and ten others: the others' events are accepted, and soon."""
    store = OneByOne(world.now_us)
    world.store.flush = store.flush  # type: ignore[method-assign]
    store.ledger, store.campaigns, store.events = world.store.ledger, world.store.campaigns, world.store.events
    campaigns = await in_use(world, 110)
    store.locked = frozenset(campaigns) - frozenset(campaigns[::11])
    told: dict[int, list[object]] = {}

    async def send(campaign: int) -> None:
        told[campaign] = list(await world.reasons(shown(campaign)))

    async with trio.open_nursery() as nursery:
        for campaign in campaigns:
            nursery.start_soon(send, campaign)
        await trio.sleep(INNOCENT_SECONDS)
        for campaign in campaigns[::11]:
            assert told[campaign] == ["accepted"]
    for campaign in store.locked:
        assert told[campaign] == [Reason.UNAVAILABLE]


class Watched(FakeStore):
    """Notes how many flushes are under way, and whose."""

    def __init__(self, store: FakeStore) -> None:
        super().__init__(store.now_us)
        self.ledger, self.campaigns, self.events = store.ledger, store.campaigns, store.events
        self.under_way: list[frozenset[int]] = []
        self.most: dict[frozenset[int], int] = {}

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """As any other."""
        mine = frozenset(batch.campaign_id for batch in batches)
        self.under_way.append(mine)
        self.most[mine] = max(self.most.get(mine, 0), self.under_way.count(mine))
        try:
            return await super().flush(batches, hasty=hasty)
        finally:
            self.under_way.remove(mine)


@pytest.mark.parametrize("world", [2], indirect=True)
async def test_a_flush_of_suspects_leaves_a_connection_to_the_others(autojump_clock: MockClock, world: World) -> None:
    """Once a campaign is known to wait, it never has both connections."""
    [locked] = await in_use(world, 1)
    watched = Watched(world.store)
    async with held(world.store, [locked]), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(keep_sending, world, locked)
            await trio.sleep(LOCK_SECONDS / 7)  # (so that some are under way while others come)
        await trio.sleep(2)
        world.store.flush = watched.flush  # type: ignore[method-assign]
        await trio.sleep(10)
        assert watched.most == {frozenset([locked]): 1}
        nursery.cancel_scope.cancel()


async def test_the_lane_of_suspects_is_bounded(autojump_clock: MockClock) -> None:
    """A flood of a campaign whose row is held is refused, and never fills the queue of all others."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, reserve_events_max=10, flush_events_max=50, flush_queue_events_max=100)
        locked, innocent = await in_use(world, 2)
        async with held(world.store, [locked]):
            for _ in range(20):
                nursery.start_soon(flood, world, locked)
            for _ in range(40):
                assert await slowest(world, innocent, 0.1) < INNOCENT_SECONDS
                assert world.registry.flusher.events_waiting < 500
        nursery.cancel_scope.cancel()


async def flood(world: World, campaign: int) -> None:
    """A hundred events a request, again and again."""
    while True:
        await world.reasons(*[shown(campaign) for _ in range(100)])
        await trio.sleep(0.02)


async def test_others_of_a_flush_that_waited_are_not_undone(autojump_clock: MockClock, world: World) -> None:
    """Whoever is not named is sent again as it is: nothing of it is voided, and it is counted once."""
    campaigns = await in_use(world, 5)
    async with held(world.store, campaigns[1:2]):
        told = await world.reasons(*map(shown, campaigns))
    assert told == [Reason.UNAVAILABLE if campaign == campaigns[1] else "accepted" for campaign in campaigns]
    for campaign in campaigns:
        assert world.spent(campaign) == (1_000 if campaign == campaigns[1] else 2_000)


async def test_whoever_finds_an_engine_dead_ends_its_sessions_before_it_recovers(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not while it lives; what it left open would keep the recovery waiting."""
    seen: list[str] = []
    recover_orphans = world.registry.recover_orphans

    async def note() -> None:
        seen.append("recover" if 2 not in world.store.sessions else "too early")
        await recover_orphans()

    monkeypatch.setattr(world.registry, "recover_orphans", note)
    own, other = await world.store.register_engine(), await world.store.register_engine()
    world.store.sessions[other] = {"flush", "query"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            runtime.heartbeats, world.engine, world.registry, Engines(own), SteadyClock(), world.store, world.ledger
        )
        await trio.sleep(world.store.dead_after_us / 2_000_000)
        assert (world.store.sessions[other], seen) == ({"flush", "query"}, [])
        await trio.sleep(world.store.dead_after_us / 1_000_000)
        nursery.cancel_scope.cancel()
    assert seen == ["recover"]


def test_a_suspect_is_flushed_apart_until_it_commits_or_nobody_waits_for_it_any_more() -> None:
    """Each wait renews it; others are none."""
    suspects = Suspects()
    one, two = CampaignId(1), CampaignId(2)
    suspects.waited_for([one, two], 10.0)
    suspects.waited_for([two], 10.9)
    suspects.forget(11.5)
    assert (one in suspects, two in suspects) == (False, True)
    suspects.committed([one, two])
    assert two not in suspects
