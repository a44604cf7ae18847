"""Campaign id -> live actor: started on first use, passivated when idle, rebuilt after a fault.

Owns the actors' lives: loading their plans (many in one query), their pauses and restarts. Runs in
the engine's nursery; knows the stores only through the ports.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from config.settings import Settings
from engine import metrics
from engine.actor import Actor
from engine.campaign import CampaignState
from engine.errors import StoreUnavailable
from engine.flusher import Flusher
from engine.forgetting import Forgetting
from engine.halts import HALTED, Halts
from engine.leftovers import SweptLedger
from engine.lifecycle import Phase
from engine.lookups import LookUps
from engine.mailbox import Mailbox
from engine.model import SECOND_US, Campaign, CampaignId, Verdict
from engine.outages import Outages
from engine.ports import Clock, EventStore, NotRun
from engine.probes import Probes
from engine.processes import Engines
from engine.recoveries import PAUSES_SECONDS, Recoveries
from engine.recovery import Recovery
from engine.rounds import Rounds
from engine.services import Services
from engine.submission import Entry
from engine.sweep import Sweep
from engine.verdicts import OVERLOADED, UNAVAILABLE, UNKNOWN_CAMPAIGN
from engine.watched import WatchedLedger, WatchedStore

# Plans read in one query: what a round of many new campaigns asks for.
_LOADS_MAX = 1_000
_PASSIVATION_SECONDS = 5.0


class Registry:
    """All live actors of this process, and the loops that carry their work."""

    def __init__(
        self,
        settings: Settings,
        ledger: SweptLedger,
        store: EventStore,
        clock: Clock,
        engines: Engines,
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self.outages = Outages(settings.outage_quiet_seconds)
        ledger = self._ledger = WatchedLedger(ledger, self.outages, lambda: self.sweep.hurry())
        store = self._store = WatchedStore(store, self.outages)
        bucket_us = settings.dedup_bucket_seconds * SECOND_US
        self.probes = Probes(ledger, store, self.outages)
        self.sweep = Sweep(
            ledger,
            store,
            clock,
            number=engines.own,
            idle_us=bucket_us,
            memory_policy=lambda: self.forgetting.policy,
            orphaned=engines.orphaned,
            take_up=self._take_up,
        )
        self._clock = clock
        self._engines = engines
        self._nursery = nursery
        self.flusher = Flusher(
            store,
            self.outages,
            flush_events_max=settings.flush_events_max,
            queue_events_max=settings.flush_queue_events_max,
        )
        self._rounds = Rounds(ledger, self.flusher, clock, events_max=settings.round_events_max)
        self._look_ups = LookUps(store, clock, settings)
        self.forgetting = Forgetting(ledger, clock, self._look_ups.pace.slowest_us, bucket_us)
        self._recoveries = Recoveries(
            Recovery(ledger, store, clock),
            nursery,
            recoveries_max=settings.recoveries_max,
            recovered=self._recovered,
            halted=self._halted,
            outages=self.outages,
            others=lambda: engines.alive - {engines.own},
        )
        self.halts = Halts(store, clock, nursery)
        self._actors: dict[CampaignId, Actor] = {}
        self._loads: deque[Actor] = deque()
        self._load_work = trio.Event()
        self._load_later: set[Actor] = set()  # they could not be loaded, and will try again by themselves
        self._suspect: set[CampaignId] = set()  # their actor failed: the next one recovers first
        self._faults: dict[CampaignId, deque[float]] = {}
        self._services = Services(
            next_tag=engines.next_tag,
            memory_policy=lambda: self.forgetting.policy,
            run_soon=self._rounds.run_soon,
            flush=self.flusher.put,
            look_up=self._look_ups.put,
            load=self._load,
            recover=self._recoveries.put,
            rest=self._rest,
            crashed=self._crashed,
            differs=self._differs,
        )

    def __len__(self) -> int:
        return len(self._actors)

    def start(self) -> None:
        """Start the loops in the nursery."""
        self._nursery.start_soon(self._rounds.run)
        self._nursery.start_soon(self._rounds.resolve)
        for _ in range(self._settings.look_ups_at_once):
            self._nursery.start_soon(self._look_ups.run)
        self._nursery.start_soon(self._look_ups.run_elsewhere)
        self._nursery.start_soon(self._look_ups.shedding.run)
        self._nursery.start_soon(self.forgetting.run)
        self._nursery.start_soon(self._load_loop)
        self._nursery.start_soon(self._recoveries.run)
        self._nursery.start_soon(self._passivation_loop)
        self._nursery.start_soon(self.sweep.run)
        self._nursery.start_soon(self.probes.run)
        for _ in range(self._settings.flush_connections):
            self._nursery.start_soon(self.flusher.run)

    @property
    def campaigns_closed(self) -> int:
        """How many campaigns wait for their recovery."""
        return len(self._recoveries)

    def notes(self) -> list[str]:
        """What is refused though the engine is ready, a sentence each."""
        closed = self.campaigns_closed
        notes = [f"campaigns that are closed until they are recovered: {closed}"] if closed else []
        return notes + self.forgetting.notes() + self._look_ups.shedding.notes()

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run it in the engine's nursery."""
        self._nursery.start_soon(work)

    # --- mail -----------------------------------------------------------------------------------------------

    def refusal(self, campaign_id: CampaignId, events: int) -> Verdict | None:
        """Why so many events of a campaign can't be taken now, if so: to be asked right before `post`."""
        actor = self._actors.get(campaign_id)
        if actor is None:
            return self._refuse_new(campaign_id)
        return None if actor.mailbox.has_room(events) else OVERLOADED

    def post(self, campaign_id: CampaignId, entries: Sequence[Entry], now: float) -> None:
        """Hand entries that were not refused to their campaign's actor, at trio's time `now`."""
        actor = self._actors.get(campaign_id)
        if actor is None:
            actor = self._actors[campaign_id] = self._new_actor(campaign_id)
        try:
            actor.post(entries, now)
        except Exception:  # noqa: BLE001 - boundary: boundary.py
            actor.fail()

    def _refuse_new(self, campaign_id: CampaignId) -> Verdict | None:
        if self.halts.refuses(campaign_id):
            return HALTED
        if len(self._actors) >= self._settings.actors_max:
            self._passivate(older_than_seconds=0.0)
            if len(self._actors) >= self._settings.actors_max:
                return OVERLOADED
        if self._failing(campaign_id):
            return UNAVAILABLE
        return None

    def _new_actor(self, campaign_id: CampaignId) -> Actor:
        settings = self._settings
        state = CampaignState(campaign_id, wait_seconds=settings.request_deadline_seconds)
        return Actor(
            state,
            Mailbox(settings.mailbox_events_max),
            self._services,
            reserve_events_max=settings.reserve_events_max,
            used_at=trio.current_time(),
        )

    # --- plans ----------------------------------------------------------------------------------------------

    def adopt(self, plan: Campaign) -> None:
        """A plan was changed here: a live actor takes it at once."""
        actor = self._actors.get(plan.id)
        if actor is not None and actor.state.plan is not None:
            actor.state.adopt_plan(plan, self._clock.now_us())

    def plan_changed(self, campaign_id: CampaignId, version: int) -> None:
        """Postgres says that there is a newer plan: a live actor reads it, and goes on meanwhile."""
        actor = self._actors.get(campaign_id)
        if actor is not None and actor.state.plan is not None and actor.state.plan.version < version:
            actor.load()

    def generation_raised(self, campaign_id: CampaignId, generation: int) -> None:
        """Postgres says that somebody recovers this campaign, has halted it, or has rebuilt its books."""
        actor = self._actors.get(campaign_id)
        if self.halts.raised(campaign_id, generation) and actor is None:
            actor = self._actors[campaign_id] = self._new_actor(campaign_id)
            actor.load()
        elif actor is not None:
            news = generation > actor.state.generation_seen
            actor.generation_raised(generation)
            if news and actor.state.phase in (Phase.OPEN, Phase.RESERVING):
                actor.load()  # the row says which of these it is

    def read_all_again(self) -> None:
        """The news from Postgres was interrupted: every live actor reads its plan and generation again."""
        self.halts.forget()
        for actor in self._actors.values():
            actor.load()

    def _load(self, actor: Actor) -> None:
        self._loads.append(actor)
        self._load_work.set()

    async def _load_loop(self) -> None:
        while True:
            await self._load_work.wait()
            loads = [self._loads.popleft() for _ in range(min(len(self._loads), _LOADS_MAX))]
            if not loads:
                self._load_work = trio.Event()
                continue
            await self._load_batch(loads)

    async def _load_batch(self, loads: Sequence[Actor]) -> None:
        try:
            plans = await self._store.plans([actor.state.campaign_id for actor in loads])
        except StoreUnavailable:
            for actor in loads:
                self._load_failed(actor)
            return
        new = {actor.state.campaign_id for actor in loads if actor.state.plan is None} & plans.keys()
        doubtful = self._suspect & new | await self._orphaned(list(new))
        now_us = self._clock.now_us()
        for actor in loads:
            campaign_id = actor.state.campaign_id
            if campaign_id not in plans:
                actor.load_failed(UNKNOWN_CAMPAIGN)
                self._forget(actor)
                continue
            plan, row = plans[campaign_id]
            if row.halted is not None:
                self._halted(actor, row.generation, row.halted)
                continue
            self.halts.served(campaign_id)
            actor.loaded(plan, row, now_us)
            if campaign_id in doubtful:
                actor.doubt()

    def _load_failed(self, actor: Actor) -> None:
        actor.load_failed(UNAVAILABLE)
        if actor.state.plan is None:
            self._forget(actor)
        elif actor.state.phase is Phase.LOADING and actor not in self._load_later:
            self._load_later.add(actor)
            self._nursery.start_soon(self._load_again, actor)

    async def _load_again(self, actor: Actor) -> None:
        await trio.sleep(PAUSES_SECONDS[-1])
        self._load_later.discard(actor)
        if actor.state.phase is Phase.LOADING:
            actor.load()

    async def _orphaned(self, campaign_ids: Sequence[CampaignId]) -> set[CampaignId]:
        """Those that hold reservations of dead engines."""
        if not campaign_ids:
            return set()
        pending = await self._ledger.pending_tags(campaign_ids)
        if isinstance(pending, NotRun):
            return set()  # the reserve will meet the same trouble, and say so
        return {campaign_id for campaign_id, tags in pending.items() if any(map(self._engines.orphaned, tags))}

    async def recover_orphans(self) -> None:
        """Recover live campaigns that hold reservations of dead engines."""
        ids = [campaign_id for campaign_id, actor in self._actors.items() if actor.state.plan is not None]
        for start in range(0, len(ids), _LOADS_MAX):
            for campaign_id in await self._orphaned(ids[start : start + _LOADS_MAX]):
                actor = self._actors.get(campaign_id)
                if actor is not None and actor.state.phase is not Phase.LOADING:
                    with actor.boundary:
                        actor.doubt()

    def _take_up(self, campaign_id: CampaignId) -> None:
        """Nobody uses this campaign, and dead engines left reservations in it: its actor will find them, and recover.

        (Its place is that of an idle one, so it takes none from campaigns that are used.)
        """
        if campaign_id not in self._actors and len(self._actors) < self._settings.actors_max:
            actor = self._actors[campaign_id] = self._new_actor(campaign_id)
            actor.load()

    # --- recovered, halted, pauses, faults ---------------------------------------------------------------------------

    def _recovered(self, actor: Actor, generation: int) -> None:
        self._suspect.discard(actor.state.campaign_id)
        actor.recovered(generation)

    def _halted(self, actor: Actor, generation: int, reason: str) -> None:
        """Its row says so: it is no more, and new ones are refused."""
        if actor.state.phase is not Phase.STOPPED:
            self.halts.met(actor.state.campaign_id, generation, reason)
            self._end_halted(actor)

    def _differs(self, actor: Actor, entry: Entry) -> None:
        what = f"Redis calls event {uuid.UUID(bytes=entry.event_id)} committed, Postgres does not have it"
        self.halts.differs(actor.state.campaign_id, what)
        self._end_halted(actor)

    def _end_halted(self, actor: Actor) -> None:
        with actor.boundary:
            actor.halt(HALTED)
        self._forget(actor)

    def _rest(self, actor: Actor, seconds: float) -> None:
        self._nursery.start_soon(self._wake_later, actor, seconds)

    async def _wake_later(self, actor: Actor, seconds: float) -> None:
        await trio.sleep(seconds)
        with actor.boundary:
            actor.rested()

    def _crashed(self, actor: Actor) -> None:
        campaign_id = actor.state.campaign_id
        metrics.actor_faults.inc()
        self._suspect.add(campaign_id)
        self._forget(actor)
        faults = self._faults.setdefault(campaign_id, deque(maxlen=self._settings.restarts_max + 1))
        faults.append(trio.current_time())
        if not self._failing(campaign_id):
            # At once, not at its next use: what it had reserved is held until then, and only we know that.
            actor = self._actors[campaign_id] = self._new_actor(campaign_id)
            actor.load()

    def _failing(self, campaign_id: CampaignId) -> bool:
        """Whether an actor of this campaign failed more often than it may be restarted within the window."""
        faults = self._faults.get(campaign_id)
        if faults is None:
            return False
        oldest = trio.current_time() - self._settings.restart_window_seconds
        while faults and faults[0] < oldest:
            faults.popleft()
        if not faults:
            del self._faults[campaign_id]
        return len(faults) > self._settings.restarts_max

    # --- passivation ----------------------------------------------------------------------------------------

    async def _passivation_loop(self) -> None:
        while True:
            await trio.sleep(_PASSIVATION_SECONDS)
            self._passivate(self._settings.actor_idle_seconds)

    def _passivate(self, older_than_seconds: float) -> None:
        """Forget actors without mail for so long; what they knew is in the stores."""
        oldest = trio.current_time() - older_than_seconds
        for actor in [actor for actor in self._actors.values() if actor.used_at <= oldest and actor.idle]:
            actor.stop()
            self._forget(actor)

    def _forget(self, actor: Actor) -> None:
        if self._actors.get(actor.state.campaign_id) is actor:
            del self._actors[actor.state.campaign_id]

    @property
    def quiet(self) -> bool:
        """Nothing is under way in any actor."""
        return all(actor.state.quiet and actor.flushing == 0 and not actor.mailbox for actor in self._actors.values())
