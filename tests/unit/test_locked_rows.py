"""The engine over fakes, while another session holds rows in Postgres: nobody waits for it but its own campaigns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from engine.locks import HASTY_LOCK_SECONDS, LOCK_SECONDS, Locked, Suspects
from engine.model import CampaignId, Reason, Status
from engine.ports import Batch, FlushReply
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
    innocent, *locked = [await world.campaign() for _ in range(1 + culprits)]
    async with held(world.store, locked), trio.open_nursery() as nursery:
        for campaign in locked:
            nursery.start_soon(keep_sending, world, campaign)
        assert await slowest(world, innocent, 20) < INNOCENT_SECONDS
        nursery.cancel_scope.cancel()


async def test_what_is_held_is_unavailable_and_its_money_comes_back(autojump_clock: MockClock, world: World) -> None:
    """The culprit's sender hears 503; when the row is free again, its whole budget is there."""
    campaign = await world.campaign(total_budget="0.002")
    async with held(world.store, [campaign]):
        assert await world.reasons(shown(campaign), shown(campaign)) == [Reason.UNAVAILABLE] * 2
    assert await world.reasons(*[shown(campaign) for _ in range(3)]) == [Status.ACCEPTED] * 2 + [Reason.TOTAL_BUDGET]
    assert world.spent(campaign) == 2_000


async def test_a_row_that_is_held_for_less_than_a_second_costs_nobody_a_refusal(
    autojump_clock: MockClock, world: World
) -> None:
    """A campaign that made a flush wait is tried once more by itself."""
    locked, innocent = await world.campaign(), await world.campaign()
    async with trio.open_nursery() as nursery, held(world.store, [locked]):
        told: list[object] = []

        async def send(campaign: int) -> None:
            told.extend(await world.reasons(shown(campaign)))

        nursery.start_soon(send, locked)
        nursery.start_soon(send, innocent)
        await trio.sleep(1.5 * LOCK_SECONDS)
        assert told == ["accepted"]
    assert told == ["accepted", "accepted"]
    assert (world.spent(locked), world.spent(innocent)) == (1_000, 1_000)


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
    campaigns = [await world.campaign() for _ in range(110)]
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


async def test_others_of_a_flush_that_waited_are_not_undone(autojump_clock: MockClock, world: World) -> None:
    """Whoever is not named is sent again as it is: nothing of it is voided, and it is counted once."""
    campaigns = [await world.campaign() for _ in range(5)]
    async with held(world.store, campaigns[1:2]):
        told = await world.reasons(*map(shown, campaigns))
    assert told == [Reason.UNAVAILABLE if campaign == campaigns[1] else "accepted" for campaign in campaigns]
    for campaign in campaigns:
        assert world.spent(campaign) == (0 if campaign == campaigns[1] else 1_000)


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
