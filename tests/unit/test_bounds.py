"""What must stay bounded, or go on, whatever fails: flush workers, look-ups, loads, tags, and who fails alone."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from engine.actor import Actor
from engine.arrival import arrive
from engine.errors import StoreUnavailable
from engine.flusher import Flusher
from engine.model import CampaignId, Event, StoredEvent, instant_text
from engine.outages import Outages
from engine.ports import Batch, Committed, EventStore, FlushReply, Reserve, Resolve, Wanted
from engine.processes import TAG_BITS, Engines
from engine.reservations import Reservation
from engine.rounds import FLOOD_EVENTS_MIN, GATHER_SECONDS
from tests.fakes.store import FakeStore
from tests.unit.test_engine import World, shown
from tests.unit.test_window import Second


class CountingStore:
    """Flushes take a second; how many reservations each carries, and how many are under way at most."""

    running = most = 0

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """A second."""
        self.sizes.append(len(batches))
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(1)
        self.running -= 1
        return Committed()


class Told:
    """An actor, as far as the flusher knows it; a reservation of its own campaign, as well."""

    generation = spend_day = 1
    rows = (None,)

    def __init__(self, campaign_id: int) -> None:
        self.campaign_id = campaign_id

    def flushed(self, reservation: Reservation, reply: FlushReply) -> None:
        """Heard."""


async def test_flush_workers_that_end_together_are_both_found_again(autojump_clock: MockClock) -> None:
    """A worker that waited on a signal which nobody can give any more would be lost for ever."""
    store = CountingStore()
    flusher = Flusher(cast(EventStore, store), Outages(2.0), flush_events_max=1, queue_events_max=100)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(flusher.run)
        await trio.sleep(0.1)
        for _ in range(3):
            store.most = 0
            _put(flusher, 2)
            flusher.round_over()
            await trio.sleep(5)
            assert store.most == 2
        nursery.cancel_scope.cancel()


async def test_parts_of_a_round_are_flushed_together(autojump_clock: MockClock) -> None:
    """But the first of them at once if nothing is being flushed."""
    store = CountingStore()
    flusher = Flusher(cast(EventStore, store), Outages(2.0), flush_events_max=100, queue_events_max=100)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(flusher.run)
        for count in (1, 2, 3):
            await trio.sleep(0.1)
            _put(flusher, count)
        await trio.sleep(0.1)
        assert store.sizes == [1]
        flusher.round_over()
        await trio.sleep(0.1)
        assert store.sizes == [1, 5]
        nursery.cancel_scope.cancel()


def _put(flusher: Flusher, count: int) -> None:
    for campaign in range(count):
        told = Told(campaign)
        flusher.put(cast(Actor, told), cast(Reservation, told))


async def test_a_round_gathers_while_much_is_being_flushed(autojump_clock: MockClock) -> None:
    """Until a third as much waits; but for a moment only, as a flush that hangs holds up no other campaign."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        flooded, other = [await world.campaign() for _ in range(2)]
        await world.send(shown(flooded), shown(other))
        world.store.hold = trio.sleep_forever

        async def rounds_after(campaign: int, count: int) -> int:
            """Rounds that begin at once when so many events come."""
            trips = world.ledger.round_trips
            world.engine.submit([shown(campaign) for _ in range(count)], lambda _: None)
            await trio.testing.wait_all_tasks_blocked()
            return world.ledger.round_trips - trips

        assert await rounds_after(flooded, 30) == 1
        assert await rounds_after(other, 9) == 0
        trips = world.ledger.round_trips
        await trio.sleep(GATHER_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert world.ledger.round_trips == trips + 1
        assert await rounds_after(other, 13) == 1
        nursery.cancel_scope.cancel()


class SlowRounds:
    """Which events of which campaigns each round to Redis carries."""

    trip_seconds = 0.001

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = world
        self.calls: list[Reserve | Resolve] = []
        self._carried: list[dict[int, int]] = []
        self._real = world.ledger.answer
        monkeypatch.setattr(world.ledger, "answer", self._round)

    async def _round(self, calls: Sequence[Reserve | Resolve]) -> Any:
        self._carried.append({call.campaign_id: len(call.kinds) for call in calls if isinstance(call, Reserve)})
        await trio.sleep(self.trip_seconds)
        self.calls += calls
        return await self._real(calls)

    async def with_mail(self, mail: Mapping[int, int], *, busy_with: int) -> list[dict[int, int]]:
        """Those that carry so many events of each campaign, which come in this order while a round is under way."""
        await trio.sleep(1)  # until Redis has been told of all that is committed
        self._carried.clear()
        async with trio.open_nursery() as requests:
            for campaign, count in [(busy_with, 1), *mail.items()]:
                requests.start_soon(self._world.send, *[shown(campaign) for _ in range(count)])
                await trio.testing.wait_all_tasks_blocked()
        return [each for each in self._carried if each][1:]


async def test_a_flood_brings_no_more_than_it_may_while_others_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times what the others bring, or what is worth a round; all of it as soon as nobody else waits.

    The longer the way to Redis is, the more is worth it.
    """
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        flooded, few, many = [await world.campaign() for _ in range(3)]
        await world.send(shown(flooded), shown(few), shown(many))
        rounds = SlowRounds(world, monkeypatch)

        async def rounds_beside(count: int) -> list[dict[int, int]]:
            return await rounds.with_mail({flooded: 900, few: count}, busy_with=many)

        assert await rounds_beside(0) == [{flooded: 900}]
        assert await rounds_beside(3) == [{few: 3, flooded: FLOOD_EVENTS_MIN}, {flooded: 650}]
        assert await rounds_beside(40) == [{few: 40, flooded: 400}, {flooded: 500}]
        assert await rounds_beside(100) == [{few: 100, flooded: 900}]
        rounds.trip_seconds = 0.02
        assert await rounds_beside(3) == [{few: 3, flooded: 400}, {flooded: 500}]
        nursery.cancel_scope.cancel()


async def test_while_rounds_are_full_a_tag_waits_for_a_reserve_to_travel_with(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail goes first, for a second: then it is told all the same."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, round_events_max=10, reserve_events_max=10)  # so two places
        first, soon, later, *others = [await world.campaign() for _ in range(23)]
        await world.send(*map(shown, [first, soon, later, *others]))
        await trio.sleep(2)  # until Redis has been told of all that is committed
        rounds = SlowRounds(world, monkeypatch)
        rounds.trip_seconds = 0.3
        world.engine.submit([shown(first)], lambda _: None)
        for seconds, mail in ((0.1, others), (0.3, [soon]), (0.1, others[:2]), (1.2, others[2:4]), (0.1, [later])):
            await trio.sleep(seconds)
            world.engine.submit(list(map(shown, mail)), lambda _: None)
        await trio.sleep(10)
        told = [call.campaign_id for call in rounds.calls if isinstance(call, Reserve) or call.campaign_id == first]
        assert [each for each in told if each in (first, soon, later)] == [first, soon, first, later]
        nursery.cancel_scope.cancel()


async def test_who_had_more_mail_than_room_is_first_in_the_next_round(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each request that has an event of a large campaign waits until all others have been served, and again.

    But for a tenth of the places only: however many have more, those who wait get their turn.
    """
    async with trio.open_nursery() as nursery:
        world = World(nursery, round_events_max=190, reserve_events_max=190)  # so 20 places, and two for these
        first, large, *small = [await world.campaign() for _ in range(41)]
        await world.send(*map(shown, [first, large, *small]))
        rounds = SlowRounds(world, monkeypatch)
        assert await rounds.with_mail({large: 190} | dict.fromkeys(small[:38], 1), busy_with=first) == [
            {large: 171} | dict.fromkeys(small[:19], 1),
            {large: 19} | dict.fromkeys(small[19:38], 1),
        ]
        begun = await rounds.with_mail(dict.fromkeys(small, 30), busy_with=first)
        assert [len(set(begun[0]) & set(begun[1])), len(begun[1])] == [2, 20]
        nursery.cancel_scope.cancel()


async def test_where_a_round_has_one_place_nobody_has_it_for_ever(autojump_clock: MockClock) -> None:
    """However fast its mail comes."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, round_events_max=1, reserve_events_max=1)
        greedy, other = await world.campaign(), await world.campaign()
        await world.send(shown(greedy), shown(other))
        for _ in range(3):
            world.engine.submit([shown(greedy)] * 1_000, lambda _: None)
        assert await world.reasons(shown(other)) == ["accepted"]
        assert len(world.registry._actors[CampaignId(greedy)].mailbox) > 2_000
        nursery.cancel_scope.cancel()


class HangingStore(FakeStore):
    """Look-ups hang, and fail in the end."""

    hangs = False

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """Later, or never."""
        if self.hangs:
            await trio.sleep(10)
            raise StoreUnavailable("timeout", certain=True)
        return await super().look_up(wanted)


async def test_look_ups_are_bounded_while_postgres_hangs(autojump_clock: MockClock) -> None:
    """Requests end by their deadline and others take their place; what they waited for must not pile up."""
    async with trio.open_nursery() as nursery:
        world = World(
            nursery, engine_events_max=2_000, mailbox_events_max=2_000, request_events_max=500, lookup_events_max=500
        )
        world.store.__class__ = HangingStore
        campaign = CampaignId(await world.campaign())
        await world.send(shown(campaign))
        world.store.hangs = True  # type: ignore[attr-defined]
        for _ in range(3):
            for _ in range(5):
                world.engine.submit([shown(campaign, event_id=uuid.uuid4()) for _ in range(500)], lambda _: None)
                await trio.sleep(0.01)
            await trio.sleep(11)
        assert len(world.registry._actors[campaign].state.in_flight) <= 2_000 + world.settings.lookup_events_max
        nursery.cancel_scope.cancel()


async def test_a_campaign_that_cannot_be_loaded_is_tried_again_by_one_task(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much mail it got meanwhile, Postgres is asked once in a pause."""
    reads = 0

    async def plans(_: FakeStore, campaign_ids: Sequence[CampaignId]) -> Mapping[CampaignId, Any]:
        nonlocal reads
        reads += 1
        raise StoreUnavailable("refused", certain=True)

    async with trio.open_nursery() as nursery:
        world = World(nursery)
        campaign = CampaignId(await world.campaign())
        await world.send(shown(campaign))
        monkeypatch.setattr(FakeStore, "plans", plans)
        world.registry._actors[campaign]._read_again()
        for _ in range(100):
            world.engine.submit([shown(campaign)], lambda _: None)
            await trio.sleep(0.1)
        await trio.sleep(3)
        reads = 0
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert reads <= 11


async def test_who_fails_gives_back_what_it_had_reserved_without_being_asked(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives, so nobody else may; and its senders may have gone elsewhere."""
    async with trio.open_nursery() as nursery:
        first = World(nursery)
        second = Second(first, nursery)
        campaign = await first.campaign(total_budget="0.002")
        await first.send(shown(campaign))
        event = shown(campaign, event_id=uuid.uuid4(), occurred_at=instant_text(first.now_us()))
        with monkeypatch.context() as patched:
            patched.setattr(Actor, "_apply", lambda *_: 1 / 0)
            assert await first.reasons(event) == ["unavailable"]
        await trio.sleep(1)
        assert await second.reasons(event) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_a_request_that_can_not_be_taken_leaves_nothing_behind(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in its midst: its room is free again, what was taken goes on, and the engine drains."""
    async with trio.open_nursery() as nursery:
        world = World(
            nursery, mailbox_events_max=10, request_events_max=10, engine_events_max=10, reserve_events_max=10
        )
        first, second = await world.campaign(), await world.campaign()

        def run_out(event: Event, *rest: Any) -> Any:
            if event.campaign_id == second:
                raise MemoryError
            return arrive(event, *rest)

        with monkeypatch.context() as patched:
            patched.setattr("engine.engine.arrive", run_out)
            with pytest.raises(MemoryError):
                world.engine.submit([shown(first)] * 5 + [shown(second)] * 5, lambda _: pytest.fail("an answer"))
        assert not world.engine.overloaded()
        await trio.sleep(1)
        assert world.spent(first) == 5_000
        with trio.fail_after(1):
            await world.engine.drain()
        nursery.cancel_scope.cancel()


def test_tags_are_unique_for_longer_than_a_process_lives() -> None:
    """At 10,000 a second, for three years; and no engine's run into those of another."""
    engines = Engines((1 << (63 - TAG_BITS)) - 1)
    engines._tags = 10_000 * 86_400 * 365 * 3
    tag = engines.next_tag()
    assert tag < 1 << 63
    assert tag >> TAG_BITS == engines.own
