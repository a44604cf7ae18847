"""The lane of look-ups over fakes: what it holds, whom it serves first, and what hears `overloaded`.

However slow Postgres is and whatever is sent, as much is answered as Postgres can answer, and fresh events are served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.lookups import ELSEWHERE_EVENTS_MAX
from engine.model import SECOND_US, Event, instant_text
from engine.ports import Reserve, ReserveReply, Resolve, ResolveReply, Wanted
from engine.shedding import QUIET_SECONDS
from engine.submission import Submission
from tests.fakes.store import Trouble
from tests.unit.test_engine import World, shown
from tests.unit.test_window import HOUR_US, Second, by_id, id_of, timeless

# One look-up at a time, of ten events at most.
NARROW = {"query_connections": 8, "lookup_events_max": 10}
SMALL = {
    "engine_events_max": 2_000, "mailbox_events_max": 500, "request_events_max": 100, "reserve_events_max": 100,
    "flush_events_max": 1_000,
}  # fmt: skip


class Queries:
    """Look-ups that do something else first; what each of them asks for."""

    def __init__(self, world: World, before: Callable[[Sequence[Wanted]], Awaitable[None]]) -> None:
        self.asked: list[list[bytes]] = []
        self._before, self._look_up = before, world.store.look_up
        world.store.look_up = self._answer  # type: ignore[method-assign]

    async def _answer(self, wanted: Sequence[Wanted]) -> Any:
        self.asked.append([each.event_id for each in wanted])
        await self._before(wanted)
        return await self._look_up(wanted)


def held(world: World) -> tuple[Queries, trio.Event]:
    """Queries hang until the event."""
    released = trio.Event()

    async def wait(_: Sequence[Wanted]) -> None:
        await released.wait()

    return Queries(world, wait), released


async def wait_a_second(_: Sequence[Wanted]) -> None:
    """A slow Postgres."""
    await trio.sleep(1)


def submitted(world: World, *events: Event) -> list[tuple[float, Counter[str]]]:
    """Send them as one request; when it is answered, the time that took and how often each verdict was heard."""
    started, heard = trio.current_time(), list[tuple[float, Counter[str]]]()

    def note(submission: Submission) -> None:
        verdicts = [submission.verdicts.get(index) for index in range(len(events))]
        reasons = ["accepted" if each is None else str(each.reason or each.status) for each in verdicts]
        heard.append((trio.current_time() - started, Counter(reasons)))

    world.engine.submit(events, note)
    return heard


def changed(world: World, event: Event) -> Event:
    """A repeat whose sender has changed its time: it is committed, and not on its own day."""
    return shown(event.campaign_id, event_id=event.event_id, occurred_at=instant_text(world.now_us() - 40 * HOUR_US))


def fresh(world: World, campaign: int) -> Event:
    """An event with an id of its sender's, which needs no look-up."""
    return by_id(world, campaign)


# --- beyond what Postgres can answer ---


async def test_twice_what_postgres_can_answer_costs_no_answer_that_it_could_give(autojump_clock: MockClock) -> None:
    """Who waits for a look-up whose turn comes too late would take the place of one that comes in time."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, lookup_events_max=10)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        Queries(world, wait_a_second)
        heard = Counter[tuple[int, str]]()

        async def one() -> None:
            (reason,) = await world.reasons(timeless(campaign))
            heard[int(trio.current_time()) // 20, str(reason)] += 1

        for _ in range(80 * 100):
            nursery.start_soon(one)
            await trio.sleep(1 / 80)
        for span in range(1, 5):
            assert heard[span, "accepted"] >= 0.95 * 20 * 10 * world.settings.look_ups_at_once
        assert not [span for span, reason in heard if reason == "unavailable"]
        nursery.cancel_scope.cancel()


async def test_what_can_not_be_looked_up_in_time_is_overloaded_at_once(autojump_clock: MockClock) -> None:
    """As slow as queries were of late; and what is taken is answered with time to spare."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        Queries(world, wait_a_second)
        for _ in range(30):
            await world.send(timeless(campaign))
        heard = submitted(world, *[timeless(campaign) for _ in range(100)])
        others = [submitted(world, timeless(campaign)) for _ in range(100)]
        await trio.sleep(0.1)
        assert [reasons for each in others for _, reasons in each] == [{"overloaded": 1}] * 100
        await trio.sleep(9)
        ((seconds, reasons),) = heard
        assert seconds <= world.settings.request_deadline_seconds * 3 / 4
        assert reasons["accepted"] >= 20
        assert reasons["accepted"] + reasons["overloaded"] == 100
        nursery.cancel_scope.cancel()


async def test_a_query_that_is_slow_counts_before_it_is_answered(autojump_clock: MockClock) -> None:
    """Postgres has stopped: what comes now would wait for it in vain."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        held(world)
        submitted(world, timeless(campaign))
        await trio.sleep(6)
        first = [submitted(world, timeless(campaign)) for _ in range(20)]
        await trio.sleep(0.1)
        assert sum(each == [] for each in first) == 9  # beside the one that is under way
        nursery.cancel_scope.cancel()


async def test_an_event_for_which_nobody_waits_is_not_looked_up(autojump_clock: MockClock) -> None:
    """Its place in the query is for others."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        queries, released = held(world)
        events = [timeless(campaign) for _ in range(15)]
        heard = submitted(world, *events)
        await trio.sleep(1)
        late = timeless(campaign)
        heard_late = submitted(world, late)
        await trio.sleep(world.settings.request_deadline_seconds - 0.5)
        assert [reasons for _, reasons in heard] == [{"unavailable": 15}]
        released.set()
        await trio.sleep(0.1)
        assert [reasons for _, reasons in heard_late] == [{"accepted": 1}]
        assert queries.asked == [[id_of(event) for event in events[:10]], [id_of(late)]]
        assert await world.reasons(events[12]) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_look_ups_that_are_refused_are_told_once_when_it_begins_and_once_when_it_ends(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, and by readyz in between."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        _, released = held(world)
        for _ in range(2):
            caplog.clear()
            assert world.engine.notes() == []
            submitted(world, timeless(campaign))
            await trio.sleep(3)
            for _ in range(5):
                submitted(world, *[timeless(campaign) for _ in range(20)])
                await trio.sleep(0.1)
            (note,) = world.engine.notes()
            assert note == caplog.messages[0]
            assert "answered 503 overloaded" in note
            released.set()
            await trio.sleep(QUIET_SECONDS + 1)
            assert world.engine.notes() == []
            _, ended = caplog.messages
            assert "in time again; events refused meanwhile: 81" in ended
            _, released = held(world)
        nursery.cancel_scope.cancel()


async def test_what_may_have_been_committed_is_looked_up_however_much_waits(autojump_clock: MockClock) -> None:
    """Its request is told the outcome, which no other can be told so well."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign, other = await world.campaign(), await world.campaign()
        await world.send(shown(campaign), shown(other))
        released = trio.Event()
        Queries(world, partial(hold_narrow, released))
        submitted(world, timeless(campaign))
        await trio.sleep(4)
        submitted(world, *[timeless(campaign) for _ in range(20)])
        world.store.trouble.append(Trouble.UNKNOWN_AFTER)
        heard = submitted(world, fresh(world, other))
        await trio.sleep(1)
        assert heard == []
        released.set()
        await trio.sleep(1)
        assert [reasons for _, reasons in heard] == [{"accepted": 1}]
        nursery.cancel_scope.cancel()


# --- room for others ---


async def test_look_ups_leave_room_for_fresh_events_of_others(autojump_clock: MockClock) -> None:
    """However many campaigns have some, and however long Postgres takes."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **SMALL)
        *late, other = [await world.campaign() for _ in range(11)]
        await world.send(*map(shown, (*late, other)))
        held(world)
        for _ in range(6):
            for campaign in late:
                submitted(world, *[timeless(campaign) for _ in range(50)])
            await trio.sleep(0.01)
        assert await world.reasons(fresh(world, other)) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_repeats_leave_room_for_fresh_events_of_others(autojump_clock: MockClock) -> None:
    """The same, of events that Redis knows."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **SMALL)
        *late, other = [await world.campaign() for _ in range(11)]
        await world.send(*map(shown, (*late, other)))
        sent = {campaign: [fresh(world, campaign) for _ in range(300)] for campaign in late}
        for campaign in late:
            assert await world.reasons(*sent[campaign]) == ["accepted"] * 300
        held(world)
        for start in range(0, 300, 100):
            for campaign in late:
                submitted(world, *sent[campaign][start : start + 100])
                await trio.sleep(0.01)
        assert await world.reasons(fresh(world, other)) == ["accepted"]
        nursery.cancel_scope.cancel()


async def test_look_ups_leave_room_in_their_own_campaign(autojump_clock: MockClock) -> None:
    """Its mailbox keeps their places, and has room for a request beside them."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **SMALL)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        held(world)
        heard = []
        for _ in range(5):
            heard.append(submitted(world, *[timeless(campaign) for _ in range(100)]))
            await trio.sleep(0.01)
        assert await world.reasons(fresh(world, campaign)) == ["accepted"]
        assert await world.reasons(*[fresh(world, campaign) for _ in range(100)]) == ["accepted"] * 100
        assert await world.reasons(*[fresh(world, campaign) for _ in range(101)]) == ["overloaded"] * 101
        await trio.sleep(11)
        assert sum((reasons for ((_, reasons),) in heard), Counter()) == {"unavailable": 400, "overloaded": 100}
        nursery.cancel_scope.cancel()


async def test_what_was_looked_up_gives_its_room_back(autojump_clock: MockClock) -> None:
    """New or known, answered or refused, with Postgres and without."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **SMALL)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        for _ in range(3):
            events = [timeless(campaign) for _ in range(100)]
            for world.store.away, *reasons in [
                (True, "unavailable", "unavailable", "unavailable"),
                (False, "accepted", "duplicate", "duplicate"),
                (True, "unavailable", "unavailable", "unavailable"),
            ]:
                for reason, sent in zip(
                    reasons, [events, events, [changed(world, event) for event in events]], strict=True
                ):
                    assert await world.reasons(*sent) == [reason] * 100
        world.store.away = False
        await trio.sleep(5)
        assert await world.reasons(*[fresh(world, campaign) for _ in range(500)]) == ["accepted"] * 500
        nursery.cancel_scope.cancel()


# --- who goes first ---


async def test_repeats_and_ids_that_tell_no_time_share_each_query(autojump_clock: MockClock) -> None:
    """A storm of one sort does not keep the other waiting; and what one does not need, the other has."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign = await world.campaign()
        known = [fresh(world, campaign) for _ in range(60)]
        assert await world.reasons(*known) == ["accepted"] * 60
        queries, released = held(world)
        submitted(world, timeless(campaign))
        await trio.sleep(0.1)
        new = [timeless(campaign) for _ in range(30)]
        submitted(world, *known)
        submitted(world, *new)
        await trio.sleep(0.1)
        released.set()
        await trio.sleep(1)
        of_new = [len({*map(id_of, new)} & {*asked}) for asked in queries.asked[1:]]
        assert [len(asked) for asked in queries.asked[1:]] == [10] * 9
        assert of_new == [5] * 6 + [0] * 3
        nursery.cancel_scope.cancel()


async def test_single_look_ups_take_turns(autojump_clock: MockClock) -> None:
    """Where a query has room for one event only."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **{**NARROW, "lookup_events_max": 1})
        campaign = await world.campaign()
        known, new = [fresh(world, campaign) for _ in range(4)], [timeless(campaign) for _ in range(4)]
        assert await world.reasons(*known) == ["accepted"] * 4
        queries, released = held(world)
        submitted(world, timeless(campaign))
        await trio.sleep(0.1)
        submitted(world, *known)
        submitted(world, *new)
        await trio.sleep(0.1)
        released.set()
        await trio.sleep(1)
        known_ids = {*map(id_of, known)}
        assert len(queries.asked) == 9
        assert [asked[0] in known_ids for asked in queries.asked[1:]] in ([True, False] * 4, [False, True] * 4)
        nursery.cancel_scope.cancel()


async def test_what_came_first_is_reserved_first_after_its_look_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests of one campaign in one query."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, **NARROW)
        campaign = await world.campaign()
        await world.send(shown(campaign))
        _, released = held(world)
        first, second, third = [timeless(campaign) for _ in range(3)]
        for each in (first, second, third):
            submitted(world, each)
            await trio.sleep(0.1)
        reserved: list[bytes] = []
        answer = world.ledger.answer

        async def note(calls: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
            reserved.extend(call.ids for call in calls if isinstance(call, Reserve))
            return await answer(calls)

        monkeypatch.setattr(world.ledger, "answer", note)
        released.set()
        await trio.sleep(1)
        assert b"".join(reserved) == b"".join(map(id_of, (first, second, third)))
        nursery.cancel_scope.cancel()


# --- known, and on none of its own days ---


async def hold_narrow(released: trio.Event, wanted: Sequence[Wanted]) -> None:
    """Queries over days that an event may have of its own hang; those of recoveries do not."""
    if all(each.days is not None and len(each.days) <= 4 for each in wanted):
        await released.wait()


async def hold_wide(released: trio.Event, wanted: Sequence[Wanted]) -> None:
    """Queries over more days than an event may have of its own hang."""
    if any(each.days is None or len(each.days) > 4 for each in wanted):
        await released.wait()


async def test_an_id_that_its_own_days_do_not_show_keeps_nobody_waiting(autojump_clock: MockClock) -> None:
    """Nor do buckets live longer for it: that is for look-ups of new events."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.ledger.used_and_max_bytes = (900, 1_000)
        campaign = await world.campaign()
        events = [fresh(world, campaign) for _ in range(10)]
        assert await world.reasons(*events) == ["accepted"] * 10
        released = trio.Event()
        Queries(world, partial(hold_wide, released))
        heard = []
        for event in events:
            heard.append(submitted(world, changed(world, event)))
            await trio.sleep(0.1)
        started = trio.current_time()
        assert await world.reasons(timeless(campaign)) == ["accepted"]
        assert trio.current_time() - started < 0.1
        await trio.sleep(5)
        assert world.registry.forgetting.policy.bucket_us <= 5 * SECOND_US
        released.set()
        await trio.sleep(0.1)
        assert [reasons for ((_, reasons),) in heard] == [{"duplicate": 1}] * 10
        nursery.cancel_scope.cancel()


async def test_what_is_in_flight_elsewhere_is_asked_for_on_its_own_days_only(autojump_clock: MockClock) -> None:
    """It was not committed when Redis was asked; when it is, Redis calls it so."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        second = Second(world, nursery)
        campaign = await world.campaign()
        assert await world.reasons(shown(campaign)) == await second.reasons(shown(campaign)) == ["accepted"]
        Queries(world, partial(hold_wide, trio.Event()))
        with world.store.commits_hang():
            event = fresh(world, campaign)
            heard = submitted(second, event)
            await trio.sleep(0.1)
            assert await world.reasons(event) == ["in_flight"]
        await trio.sleep(1)
        assert [reasons for _, reasons in heard] == [{"accepted": 1}]
        assert await world.reasons(event) == ["duplicate"]
        nursery.cancel_scope.cancel()


async def test_a_repeat_on_its_day_is_answered_before_one_that_is_on_another_day(autojump_clock: MockClock) -> None:
    """Though both came together."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        campaign = await world.campaign()
        events = [fresh(world, campaign) for _ in range(2)]
        assert await world.reasons(*events) == ["accepted"] * 2
        released = trio.Event()
        Queries(world, partial(hold_wide, released))
        repeated, moved = submitted(world, events[0]), submitted(world, changed(world, events[1]))
        await trio.sleep(0.1)
        assert [reasons for _, reasons in repeated] == [{"duplicate": 1}]
        assert moved == []
        nursery.cancel_scope.cancel()


async def test_ids_on_an_unknown_day_are_asked_for_a_few_at_a_time(autojump_clock: MockClock) -> None:
    """Each costs a probe of every day there is; what is more than some queries carry hears `overloaded`."""
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        campaign = await world.campaign()
        events = [fresh(world, campaign) for _ in range(1_200)]
        assert await world.reasons(*events) == ["accepted"] * 1_200
        released = trio.Event()
        queries = Queries(world, partial(hold_wide, released))
        heard = submitted(world, *[changed(world, event) for event in events])
        await trio.sleep(0.1)
        released.set()
        await trio.sleep(0.1)
        assert [reasons for _, reasons in heard] == [{"duplicate": 1_000, "overloaded": 200}]
        sizes = [len(asked) for asked in queries.asked]
        assert sorted(sizes) == [ELSEWHERE_EVENTS_MAX] * 10 + [200, 1_000]
        nursery.cancel_scope.cancel()
