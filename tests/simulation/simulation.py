"""A cluster under load and faults, then everything mended and checked.

Owns the order of things and the choice of faults. Everything random comes from the seed, so a seed tells all.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio
from trio import sleep  # (engines sleep by a gate of their own: cluster.py)

from engine.errors import EngineError, StoreBusy
from engine.model import DAY_US, SECOND_US, CampaignId, Event, Status
from tests.simulation.clients import Clients, Sent
from tests.simulation.cluster import Process
from tests.simulation.network import StoreLink, Wire
from tests.simulation.world import POSTGRES, REDIS, ZONES, Weather, World

PRICES: Final = {"cpm": ("1.00", "2.50", "0.50"), "cpc": ("0.001", "0.003"), "cpa": ("0.001", "0.002")}
AMOUNTS: Final = ("0.000001", "0.002", "0.01", "0.03", "1000")
CHANGES: Final[tuple[Callable[[random.Random], dict[str, object]], ...]] = (
    lambda source: {"active": source.random() < 0.7},
    lambda source: {"freq_cap_impressions_per_day": source.choice((None, 1, 2, 3))},
    lambda source: {"total_budget": source.choice(AMOUNTS)},
    lambda source: {"daily_budget": source.choice(AMOUNTS)},
    lambda source: {"unit_price": source.choice(PRICES["cpm"] + PRICES["cpc"])},
    lambda source: {"pacing": source.choice(("asap", "even"))},
)
# After the mending: the dead are known after three heartbeats, and looked for once a minute.
CALM_SECONDS: Final = 25.0
ORPHANS_SECONDS: Final = 70.0
DRAIN_SECONDS: Final = 2.0
# How much longer look-ups of an engine take, engine by engine: what they let the buckets of others wait for.
LOOK_UPS_SECONDS: Final = ((0.0,), (0.0,), (0.0, 0.3), (0.0, 3.0), (0.3, 1.0, 5.0))
CALM_LOOK_UP_SECONDS: Final = 0.3
# Two days without a use, after ids and users are given back, which moves the day on.
DAYS_UNTIL_EMPTY: Final = 5
SWEEPS_A_DAY: Final = 4


class Simulation:
    """The cluster, its senders, and who breaks things."""

    def __init__(self, world: World, *, halts: bool) -> None:
        self.world = world
        self.clients = Clients(world)
        self.processes: list[Process] = []
        self.leaving: list[Process] = []  # told to end
        self.born = 0
        self.look_ups_seconds: Sequence[float] = (0.0,)
        source = world.source
        # Each seed knows some faults only, each as often as it likes: rare ones then meet in pairs.
        self.faults = {fault: source.choice((0.0, 0.0, 1.0, 3.0)) for fault in self._faults()}
        self._insisting = 0  # operators who have not been answered yet
        if halts:
            self.faults[self._halt] = 1.0
        self.fault_share = source.choice((0.02, 0.05, 0.15))
        self.hurry = source.choice((0.0, 0.01, 0.3, 3.0))

    # --- steps ----------------------------------------------------------------------------------------------

    async def set_up(self) -> None:
        """Engines and campaigns."""
        source = self.world.source
        self.look_ups_seconds = source.choice(LOOK_UPS_SECONDS)
        for slot in range(source.choice((1, 2, 2, 3))):
            self.start_process(slot)
        await sleep(0.1)
        for _ in range(source.choice((1, 2, 3))):
            model = source.choice(("cpm", "cpm", "cpc", "cpa"))
            await self.create_campaign(
                {
                    "pricing_model": model,
                    "unit_price": source.choice(PRICES[model]),
                    "total_budget": source.choice(AMOUNTS[2:]),
                    "daily_budget": source.choice(AMOUNTS[2:]),
                    "freq_cap_impressions_per_day": source.choice((None, 1, 2)),
                    "pacing": source.choice(("asap", "asap", "even")),
                    "timezone": source.choice(ZONES),
                }
            )
        self.world.weather = Weather.of(source)

    async def create_campaign(self, fields: dict[str, object]) -> CampaignId:
        """Make a campaign, in calm weather."""
        engine = next(process.engine for process in self.processes if process.engine is not None)
        view = await engine.create_campaign({"name": "spring", **fields})
        found = await StoreLink(Wire(self.world, _Operator()), self.world.now_us).campaign(view.campaign.id)
        assert found is not None
        self.world.checker.planned(found[0])
        self.clients.campaigns.append(view.campaign.id)
        return view.campaign.id

    def start_process(self, slot: int) -> Process:
        """One more engine process, which begins to run with the next turn of the scheduler."""
        process = Process(self.world, slot, self.born)
        self.born += 1
        process.wire.look_up_seconds = self.world.source.choice(self.look_ups_seconds)
        self.processes.append(process)
        self.world.nursery.start_soon(process.run)
        return process

    async def step(self) -> None:
        """Send something, break or mend something, or let time pass."""
        source = self.world.source
        draw = source.random()
        if draw < self.fault_share and any(self.faults.values()):
            fault = source.choices(list(self.faults), list(self.faults.values()))[0]
            if fault():
                self.world.counts[f"fault: {fault.__name__.strip('_').replace('_', ' ')}"] += 1
        elif draw < 0.75:
            request = self.clients.request()
            for _ in range(source.choice((1, 1, 1, 1, 2, 3))):
                self.clients.send(source.choice(self.processes), request)
        else:
            await sleep(source.random() * source.choice((0, self.hurry, 0.5, 6)))
        await sleep(self.hurry * source.random() * 0.1)
        for campaign_id in self.clients.campaigns:
            self.world.checker.agree_in_detail(CampaignId(campaign_id))

    def _faults(self) -> list[Callable[[], bool]]:
        return [
            self._kill, self._terminate, self._freeze, self._partition, self._lose_news, self._step_clock,
            self._change_weather, self._change_plan, self._burst, self._leap, self._midnight,
            self._oversleep, self._sweep,
            self._restart_redis, self._empty_redis, self._fail_over, self._split, self._fill_redis, self._leave_redis,
            self._restart_postgres, self._stick_commits, self._leave_postgres,
        ]  # fmt: skip

    # --- faults of engines ----------------------------------------------------------------------------------

    def _kill(self) -> bool:
        process = self.world.source.choice(self.processes)
        self.processes.remove(process)
        process.kill()
        self.start_process(process.slot)
        return True

    def _terminate(self) -> bool:
        """One of a rolling restart, under load; sometimes whoever waits for its end loses patience."""
        source = self.world.source
        process = source.choice(self.processes)
        if process.frozen or process.engine is None:
            return False
        for _ in range(source.choice((0, 3))):
            self.clients.send(process, self.clients.request())
        self.processes.remove(process)
        self.leaving.append(process)
        self._later(process.terminate, (0, 0.001))
        if source.random() < 0.2:
            self._later(process.kill, (0.1, 1, 5))
        self.start_process(process.slot)
        return True

    def _freeze(self) -> bool:
        process = self.world.source.choice(self.processes)
        if process.frozen:
            process.thaw()
            return True
        process.freeze()
        self._later(process.thaw if self.world.source.random() < 0.9 else (lambda: None), (1, 8, 60))
        return True

    def _partition(self) -> bool:
        wire = self.world.source.choice(self.processes).wire
        store = self.world.source.choice((REDIS, POSTGRES))
        wire.cut ^= {store}
        if store in wire.cut:
            self._later(lambda: wire.cut.discard(store), (1, 4, 40))
        self.world.note(wire.sender.name, f"cut off from {sorted(wire.cut)}")
        return True

    def _lose_news(self) -> bool:
        news = self.world.source.choice(self.processes).news
        if news is not None:
            news.break_off()
        return news is not None

    def _step_clock(self) -> bool:
        process = self.world.source.choice(self.processes)
        process.offset_us = self.world.clock_offset_us()
        self.world.note(process.name, f"its clock is off by {process.offset_us / SECOND_US:.0f} s")
        return True

    # --- faults of the network, and what is no fault --------------------------------------------------------

    def _change_weather(self) -> bool:
        self.world.weather = Weather.of(self.world.source) if self.world.source.random() < 0.7 else Weather()
        return True

    def _change_plan(self) -> bool:
        source = self.world.source
        process = source.choice(self.processes)
        campaign_id = source.choice(self.clients.campaigns)
        changes: dict[str, object] = {}
        for _ in range(source.choice((1, 2))):
            changes |= source.choice(CHANGES)(source)

        async def change() -> None:
            if process.engine is not None:
                try:
                    await process.engine.update_campaign(campaign_id, changes)
                except EngineError as error:
                    self.world.note(process.name, f"plan not changed: {error}")

        if source.random() < 0.5:
            self._burst()
        process.start_soon(change)
        return True

    def _burst(self) -> bool:
        """One request from everywhere at once, or many requests to one engine."""
        source = self.world.source
        if source.random() < 0.5:
            request = self.clients.request()
            for process in self.processes * 2:
                self.clients.send(process, request)
        else:
            process = source.choice(self.processes)
            for _ in range(10):
                self.clients.send(process, self.clients.request())
        return True

    def _leap(self) -> bool:
        self.world.leap(None)
        return True

    def _midnight(self) -> bool:
        self.world.leap(self.world.source.choice(ZONES))
        return True

    def _oversleep(self) -> bool:
        """A commit hangs, its engine frozen or not, while buckets close; others hear its events again.

        (The weather is fair for that: it takes so many steps that few would be made in any other.)
        """
        world, source = self.world, self.world.source
        process = source.choice(self.processes)
        others = [each for each in self.processes if each is not process]
        if process.engine is None or process.frozen or not others:
            return False

        async def outlast() -> None:
            self._clear_up()
            if source.random() < 0.8:
                world.leap("UTC", before_seconds=6)  # identity days are UTC's
                await sleep(world.settings.heartbeat_seconds + 0.1)  # nobody is taken for dead
            request = self.clients.untimed()
            world.stuck = max(1, world.stuck)
            self.clients.send(process, request)
            await self._until(2, lambda: self._held(request))
            if world.calm or process not in self.processes or not self._held(request):
                return
            if not process.frozen and source.random() < 0.3:
                process.freeze()
                self._later(process.thaw, (1, 8, 60))
            world.leap_over_midnight()  # from those seconds before it
            if source.random() < 0.5:
                await world.close_buckets()
                for each in others:  # what they look up counts for the bucket that they know
                    self.clients.send(each, self.clients.young(request))
                await sleep(source.random() * source.choice((0.01, 0.1, 1)))
            await self._repeat(request, others)
            world.unstick()
            await self._until(1, lambda: not self._held(request))
            for _ in range(source.choice((0, 1, 2, 2, 3))):  # what has committed by now is forgotten
                await world.close_buckets()
                await sleep(source.random() * source.choice((0, 0, 0.1, 1)))
            for each in others:
                if each.frozen:
                    each.thaw()
                self.clients.send(each, self.clients.with_young(request))

        world.nursery.start_soon(outlast)
        return True

    async def _repeat(self, request: Sent, others: Sequence[Process]) -> None:
        """Send it to these; some freeze right after their look-up, or it is Redis's last moment."""
        world, source = self.world, self.world.source
        for each in others:
            befalls = source.choice(("nothing", "freeze", "freeze", "freeze", "loss"))
            if befalls == "freeze" and not each.frozen:
                each.wire.on_look_up = each.freeze
            elif befalls == "loss":
                each.wire.on_look_up = partial(world.restart_redis, emptied=True)
            self.clients.send(each, self.clients.with_young(request) if source.random() < 0.2 else request)
        await sleep(source.random() * source.choice((0.01, 0.1, 1)))
        for each in others:
            each.wire.on_look_up = None
            self.clients.send(each, self.clients.young(request))
        await sleep(source.random() * source.choice((0.01, 0.1, 1)))

    async def _until(self, seconds: float, happened: Callable[[], bool]) -> None:
        """Wait for something, but not for ever; and a moment more."""
        with trio.move_on_after(seconds):
            while not happened():  # noqa: ASYNC110
                await sleep(0.01)
        await sleep(0.01 * self.world.source.random())

    def _held(self, request: Sent) -> bool:
        """Whether an event of a request is reserved, and waits for its commit."""
        ids = {event.event_id.bytes for event in request.events if event.event_id is not None}
        pending = (record for book in self.world.redis.books.values() for record in book.pending.values())
        return any(not ids.isdisjoint(record.ids) for record in pending)

    def _sweep(self) -> bool:
        """An engine sweeps Redis now, as it does once a minute; most often when much time has passed in none."""
        source = self.world.source
        process = source.choice(self.processes)
        if process.registry is None or process.engine is None:
            return False
        if source.random() < 0.5:
            self.world.leap(None)
        process.start_soon(partial(process.registry.sweep.sweep, pressed=source.random() < 0.5))
        return True

    # --- faults of stores -----------------------------------------------------------------------------------

    def _restart_redis(self) -> bool:
        self.world.restart_redis(emptied=False)
        return True

    def _empty_redis(self) -> bool:
        self.world.restart_redis(emptied=True)
        return True

    def _fail_over(self) -> bool:
        return self._copied(split=False)

    def _split(self) -> bool:
        world = self.world
        if world.others:
            world.heal_split(back=world.source.random() < 0.5)
            return True
        old = world.redis
        if not self._copied(split=True):
            return False
        for process in self.processes:
            process.wire.redis = old if world.source.random() < 0.5 else None
        self._later(lambda: world.heal_split(back=world.source.random() < 0.5), (5, 30))
        return True

    def _copied(self, *, split: bool) -> bool:
        """Keep a copy of Redis, or go back to one."""
        if not self.world.copies or self.world.source.random() < 0.5:
            self.world.keep_copy()
            return False
        self.world.fail_over(split=split)
        self.world.note("redis", "split in two" if split else "failed over to an old copy")
        return True

    def _fill_redis(self) -> bool:
        redis = self.world.redis
        redis.full = not redis.full
        if redis.full:
            self._later(lambda: setattr(redis, "full", False), (1, 10))
        return True

    def _leave_redis(self) -> bool:
        self.world.redis_away = True
        self.world.break_connections(REDIS)
        self._later(lambda: setattr(self.world, "redis_away", False), (0.1, 1, 15))
        return True

    def _restart_postgres(self) -> bool:
        self.world.restart_postgres()
        for process in self.processes:
            if process.news is not None:
                process.news.break_off()
        return True

    def _stick_commits(self) -> bool:
        self.world.stuck += self.world.source.choice((1, 2, 5))
        return True

    def _leave_postgres(self) -> bool:
        self.world.postgres_away = True
        self._restart_postgres()
        self._later(lambda: setattr(self.world, "postgres_away", False), (0.1, 1, 15))
        return True

    def _later(self, mend: Callable[[], None], seconds: tuple[float, ...]) -> None:
        async def wait() -> None:
            await sleep(self.world.source.choice(seconds) * self.world.source.random())
            mend()

        self.world.nursery.start_soon(wait)

    def _halt(self) -> bool:
        """An audit takes a campaign out of service, and an operator brings it back later."""
        campaign_id = CampaignId(self.world.source.choice(self.clients.campaigns))
        self.world.nursery.start_soon(self._insist, partial(self.world.store.halt, campaign_id, "as the seed wished"))
        self._later(lambda: self.world.nursery.start_soon(self._rebuild, campaign_id), (1, 30, 300))
        return True

    async def _rebuild(self, campaign_id: CampaignId) -> None:
        """What `headrace recover` leaves in Postgres."""
        store = self.world.store
        if store.ledger[campaign_id].halted is not None:
            await self._insist(partial(store.raise_generations, [campaign_id], wait=True))
            store.ledger[campaign_id].halted = None
            await self._insist(partial(store.raise_generations, [campaign_id], wait=True))

    async def _insist(self, ask: Callable[[], Awaitable[object]]) -> None:
        """As an operator does who is told that somebody else holds the row."""
        self._insisting += 1
        while True:
            try:
                await ask()
            except StoreBusy:
                await sleep(1)
            else:
                break
        self._insisting -= 1

    # --- the end --------------------------------------------------------------------------------------------

    async def mend(self) -> None:
        """All is well again, and stays so; every campaign is used once more, by every engine."""
        world = self.world
        world.note("world", "mended")
        world.calm = True
        self._clear_up()
        world.stuck = 0
        world.unstick()
        world.heal_split(back=world.source.random() < 0.5)
        for process in self.processes:
            process.offset_us = 0
            process.wire.look_up_seconds = min(process.wire.look_up_seconds, CALM_LOOK_UP_SECONDS)
            process.thaw()
        while self._insisting:  # else a campaign may be halted when it was looked at  # noqa: ASYNC110
            await sleep(1)
        for campaign_id in self.clients.campaigns:
            await self._rebuild(CampaignId(campaign_id))
        await sleep(CALM_SECONDS)
        world.weather = Weather()  # (no fault that mends later changes it, but a plain rule is best)
        await self._probe()
        await sleep(ORPHANS_SECONDS)
        for trip in list(world.in_flight):
            trip.end(carried_out=False)
        await self._probe(strict=True)
        await self._end_one()
        await sleep(3)

    def _clear_up(self) -> None:
        """Fair weather, and stores that everybody reaches."""
        world = self.world
        world.weather = Weather()
        world.redis_away = world.postgres_away = world.redis.full = False
        for process in self.processes:
            process.wire.cut.clear()

    async def _probe(self, *, strict: bool = False) -> None:
        """Use every campaign on every engine, with the same events; `strict`: nothing can excuse a wrong answer."""
        checker = self.world.checker
        for campaign_id in self.clients.campaigns:
            events = [
                Event(
                    campaign_id=campaign_id,
                    user_id="z",
                    event_type=each,
                    event_id=uuid.UUID(bytes=self.world.source.randbytes(16), version=4),
                )
                for each in ("click", "impression", "conversion")
            ]
            for process in self.processes:
                began_us = self.world.now_us()
                answer = await self.clients.answer_of(process, events)
                if answer is None:
                    checker.violated(f"{process.name} does not serve when all is mended")
                elif strict:
                    checker.check_answer(answer, began_us)

    async def _end_one(self) -> None:
        """When all is well, an engine that is told to end finishes what it has, soon, and nobody hears a 503 of it."""
        process, checker = self.world.source.choice(self.processes), self.world.checker

        async def ask(campaign_id: int) -> None:
            events = [Event(campaign_id=campaign_id, user_id="y", event_type="click") for _ in range(3)]
            answer = await self.clients.answer_of(process, events)
            verdicts = [] if answer is None else list(answer.verdicts.values())
            if answer is None or any(each.status is Status.RETRY for each in verdicts):
                checker.violated(f"c{campaign_id}: {verdicts} by {process.name}, which was told to end meanwhile")

        async with trio.open_nursery() as nursery:
            for campaign_id in self.clients.campaigns:
                nursery.start_soon(ask, campaign_id)
            await sleep(self.world.source.choice((0.0001, 0.001, 0.01)))
            process.terminate()
        await sleep(DRAIN_SECONDS)
        if not (process.drained and process.ended):
            checker.violated(f"{process.name}: not at its end {DRAIN_SECONDS} s after it was told to")

    def check(self) -> None:
        """The invariants of the end."""
        checker = self.world.checker
        checker.check_end([CampaignId(each) for each in self.clients.campaigns])
        for process in self.processes:
            if process.registry is None or not process.registry.quiet:
                checker.violated(f"{process.name}: something is under way in the end")
        for process in self.leaving:
            if not process.ended:
                checker.violated(f"{process.name}: was told to end, and has not")

    async def outlive_campaigns(self) -> None:
        """Nobody sends any more, and days pass: engines sweep until Redis holds nothing."""
        world = self.world
        process = self.start_process(0)
        process.offset_us = 0
        await sleep(1)
        for _ in range(DAYS_UNTIL_EMPTY * SWEEPS_A_DAY):
            world.leapt_us += DAY_US // SWEEPS_A_DAY
            await sleep(1)
            if process.registry is None or process.engine is None:
                world.checker.violated(f"{process.name} does not serve when all is mended")
                return
            process.start_soon(partial(process.registry.sweep.sweep, pressed=False))
            await sleep(1)
            for campaign_id in world.redis.books:
                world.checker.agree(campaign_id)
                world.checker.agree_in_detail(campaign_id)
        for campaign_id, book in world.redis.books.items():
            world.checker.violated(f"c{campaign_id}: days after its last event, Redis holds {book}")


class _Operator:
    """Who makes the campaigns."""

    name = "operator"

    async def awake(self) -> None:
        """Always."""
