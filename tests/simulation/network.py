"""The network between one engine process and the stores: the ports, with delay, loss and partition on the way.

Owns what can happen to a message. A store acts when the message arrives, in one step; what its engine hears of it,
and when, is another matter. Knows no engine code.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, Protocol, TypeVar

import trio
from trio import sleep

from engine.errors import StoreBusy, StoreUnavailable
from engine.leftovers import Advance, Drop, GiveBackReply, Survey
from engine.memory import MemoryUse
from engine.model import Campaign, CampaignId, CampaignSpend, HeartbeatReply, NewCampaign, Report, StoredEvent
from engine.ports import (
    Batch,
    BeginReply,
    Committed,
    FlushReply,
    LedgerRow,
    LoadReply,
    NotRun,
    ReadyReply,
    Reserve,
    Reserved,
    ReserveReply,
    Resolve,
    ResolveReply,
    Unknown,
    Wanted,
)
from engine.recovery import KEYED_EVENTS
from engine.steps import Begin, LoadUsers, Ready
from tests.fakes.ledger import FakeLedger
from tests.simulation.world import MAX_BYTES, POSTGRES, REDIS, World

T = TypeVar("T")
C = TypeVar("C")
R = TypeVar("R")
PIECE: Final = 3  # rows of one piece of a rebuild: small, so that things happen between two
QUIET_AFTER_SECONDS: Final = 12  # a listening connection that was cut without a word is found out by then


class NotReached(Exception):
    """Certainly nothing happened."""


class NoAnswer(Exception):
    """It happened, or not, or will."""


class Sender(Protocol):
    """The engine process at this end of the wire."""

    name: str

    async def awake(self) -> None:
        """Wait while the process is frozen."""
        ...


@dataclass(slots=True)
class Fate:
    """What befalls one exchange."""

    request_seconds: float
    answer_seconds: float
    lost: bool
    unanswered: bool
    noticed: bool  # the connection breaks at once; otherwise only the timeout tells


class Trip:
    """One exchange under way."""

    __slots__ = ("arrived", "done", "replied", "reply", "scope", "to")

    def __init__(self, to: str) -> None:
        self.to = to
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.arrived = False
        self.replied = False
        self.reply: Any = None

    def end(self, *, carried_out: bool) -> None:
        """The connection breaks."""
        if not carried_out:
            self.scope.cancel()
        self.done.set()


class Wire:
    """One engine's connections to both stores."""

    def __init__(self, world: World, sender: Sender) -> None:
        self.world = world
        self.sender = sender
        self.cut: set[str] = set()  # stores that can't be reached
        self.dead = False  # its engine was killed
        self.redis: FakeLedger | None = None  # the server that it still believes in, after a split
        self.look_up_seconds = 0.0  # how much longer its look-ups take than those of others
        self.on_look_up: Callable[[], None] | None = None  # what befalls when its next look-up is carried out

    def server(self) -> FakeLedger:
        """The Redis that this engine reaches."""
        if self.redis is not None and self.redis in self.world.others:
            return self.redis
        return self.world.redis

    def reaches(self, to: str) -> bool:
        """Whether a message would arrive now."""
        away = self.world.redis_away if to == REDIS else self.world.postgres_away
        return to not in self.cut and not away

    async def exchange(
        self, to: str, what: str, run: Callable[[], Awaitable[T]], timeout_seconds: float, *, troubled: bool = False
    ) -> T:
        """One request and its answer. Raises `NotReached` and `NoAnswer`."""
        world, sender = self.world, self.sender
        await sender.awake()
        if (not self.reaches(to) or world.source.random() < world.weather.refused) and world.source.random() < 0.7:
            world.counts[f"{to}: refused"] += 1
            await sleep(world.source.choice((0, 0.01, 2)))
            await sender.awake()
            world.note(sender.name, f"{what}: not reached")
            raise NotReached(to)
        trip = Trip(to)
        world.in_flight[trip] = None
        world.nursery.start_soon(self._carry, trip, self._fate(to, troubled), what, run)
        try:
            with trio.move_on_after(timeout_seconds):
                await trip.done.wait()
        finally:
            if self.dead and not trip.arrived and world.source.random() < 0.5:
                trip.scope.cancel()
        await sender.awake()
        if not trip.replied:
            world.note(sender.name, f"{what}: no answer")
            raise NoAnswer(to)
        reply: T = trip.reply
        return reply

    def _fate(self, to: str, troubled: bool) -> Fate:
        world, weather = self.world, self.world.weather
        draw = world.source.random
        pace = weather.pace_seconds
        fate = Fate(pace * draw(), pace * draw(), draw() < weather.lost, draw() < weather.unanswered, draw() < 0.7)
        if draw() < weather.slow:
            fate.request_seconds += 4 * draw()
            fate.answer_seconds += 4 * draw()
            world.counts[f"{to}: slow"] += 1
        late = draw() < weather.late
        if troubled and not (fate.lost or fate.unanswered or late):
            match world.source.randrange(3):
                case 0:
                    fate.lost = True
                case 1:
                    fate.unanswered = True
                case _:
                    late = True
        if late:
            fate.request_seconds += world.source.choice((1, 10, 30, 200)) * draw()
            fate.unanswered = True
            world.counts[f"{to}: delivered late"] += 1
        elif fate.lost:
            world.counts[f"{to}: request lost"] += 1
        elif fate.unanswered:
            world.counts[f"{to}: answer lost"] += 1
        return fate

    async def _carry(self, trip: Trip, fate: Fate, what: str, run: Callable[[], Awaitable[Any]]) -> None:
        """The way there, the store's work, the way back."""
        world = self.world
        try:
            with trip.scope:
                if fate.unanswered and fate.noticed and fate.request_seconds > 1:
                    trip.done.set()  # given up long before it arrives
                await sleep(fate.request_seconds)
                if fate.lost or not self.reaches(trip.to):
                    if fate.noticed:
                        trip.done.set()
                    return
                trip.arrived = True
                trip.reply = await run()
                world.note(self.sender.name, f"{what}: {_shown(trip.reply)}")
                await sleep(fate.answer_seconds)
                if fate.unanswered or not self.reaches(trip.to):
                    if fate.noticed:
                        trip.done.set()
                elif not trip.done.is_set():
                    trip.replied = True
                    trip.done.set()
        finally:
            del world.in_flight[trip]


class LedgerLink:
    """`Ledger`, as one engine reaches it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._timeout_seconds = wire.world.settings.ledger_timeout_seconds

    async def round(
        self,
        parts: Iterable[Sequence[Reserve | Resolve]],
        heard: Callable[[Sequence[ReserveReply | ResolveReply]], None],
    ) -> None:
        """All calls: one part travels alone, or a few of them, before the first is answered."""
        checker = self._wire.world.checker

        async def run(part: Sequence[Reserve | Resolve]) -> list[ReserveReply | ResolveReply]:
            replies = await self._wire.server().answer(part)
            for call, reply in zip(part, replies, strict=True):
                if isinstance(call, Reserve) and isinstance(reply, Reserved):
                    checker.reserved(call, reply)
                checker.agree(call.campaign_id)
            return replies

        parts = iter(parts)
        while together := list(islice(parts, self._wire.world.source.randint(1, 3))):
            replies = iter(await self._pipeline("round", list(chain.from_iterable(together)), run))
            for part in together:
                heard(list(islice(replies, len(part))))

    async def begin(self, calls: Sequence[Begin]) -> list[BeginReply]:
        """Close campaigns."""
        return await self._pipeline("begin", calls, lambda part: self._wire.server().begin(part))

    async def settle(self, calls: Sequence[Resolve]) -> list[LoadReply]:
        """Settle reservations of closed campaigns."""
        return await self._pipeline("settle", calls, lambda part: self._wire.server().settle(part))

    async def load(self, calls: Sequence[LoadUsers]) -> list[LoadReply]:
        """Chunks of a rebuild."""
        return await self._pipeline("load", calls, lambda part: self._wire.server().load(part))

    async def ready(self, calls: Sequence[Ready]) -> list[ReadyReply]:
        """Open campaigns."""

        async def run(part: Sequence[Ready]) -> list[ReadyReply]:
            replies = await self._wire.server().ready(part)
            for call in part:
                self._wire.world.checker.agree(call.campaign_id)
            return replies

        return await self._pipeline("ready", calls, run)

    async def _pipeline(
        self, what: str, calls: Sequence[C], run: Callable[[Sequence[C]], Awaitable[list[R]]]
    ) -> list[R]:
        """All calls in one message; or a first part is answered and the rest is in trouble."""
        world = self._wire.world
        part = len(calls)
        if part > 1 and world.source.random() < max(world.weather.lost, world.weather.unanswered):
            part = world.source.randrange(1, part)
        replies = await self._part(what, calls[:part], run, troubled=False)
        if part < len(calls):
            if isinstance(replies[-1], Unknown | NotRun):
                return replies + [replies[-1]] * (len(calls) - part)
            replies += await self._part(what, calls[part:], run, troubled=True)
        return replies

    async def _part(
        self, what: str, part: Sequence[C], run: Callable[[Sequence[C]], Awaitable[list[R]]], *, troubled: bool
    ) -> list[Any]:
        shown = f"{what} " + ", ".join(map(_call_shown, part))
        replies = await self._answer(shown, lambda: run(part), troubled=troubled)
        return [replies] * len(part) if isinstance(replies, NotRun | Unknown) else replies

    async def _answer(
        self, what: str, run: Callable[[], Awaitable[T]], *, troubled: bool = False
    ) -> T | NotRun | Unknown:
        try:
            return await self._wire.exchange(REDIS, what, run, self._timeout_seconds, troubled=troubled)
        except NotReached:
            return NotRun("not reached")
        except NoAnswer:
            return Unknown("no answer")

    async def pending_tags(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, list[int]] | NotRun:
        """Tags that wait for their commit."""
        reply = await self._answer(
            f"pending {list(campaign_ids)}", lambda: self._wire.server().pending_tags(campaign_ids)
        )
        return NotRun(reply.detail) if isinstance(reply, Unknown) else reply

    async def survey(self, cursor: int) -> Survey | NotRun:
        """What is held of some campaigns."""
        reply = await self._answer(f"survey {cursor}", lambda: self._wire.server().survey(cursor))
        return NotRun(reply.detail) if isinstance(reply, Unknown) else reply

    async def give_back(self, calls: Sequence[Advance | Drop]) -> list[GiveBackReply]:
        """Free what idle campaigns hold."""
        return await self._pipeline("give back", calls, lambda part: self._wire.server().give_back(part))

    async def probe(self, campaign_id: CampaignId) -> NotRun | Unknown | None:
        """What a reserve would hear."""
        return await self._answer("probe", lambda: self._wire.server().probe(campaign_id))

    async def memory(self) -> MemoryUse | None:
        """As the seed wishes: it says when buckets close, and who is counted. Its clock is right."""
        await trio.lowlevel.checkpoint()
        return MemoryUse(self._wire.world.used_bytes(), MAX_BYTES, self._wire.world.now_us())

    async def clock_offset_us(self) -> int | None:
        """Its clock is not what the simulation is about, either."""
        return None

    async def unsafe(self) -> str | None:
        """How it is set up is not what the simulation is about; and it would be one trip more a heartbeat."""
        return None


class StoreLink:
    """`EventStore`, `CampaignStore` and `Roster`, as one engine reaches them."""

    def __init__(self, wire: Wire, now_us: Callable[[], int]) -> None:
        self._wire = wire
        self._store = wire.world.store
        self._now_us = now_us
        self._settings = wire.world.settings

    async def _ask(self, what: str, run: Callable[[], Awaitable[T]]) -> T:
        async def answer() -> T | StoreBusy:
            try:
                return await run()
            except StoreBusy as busy:
                return busy

        try:
            reply = await self._wire.exchange(POSTGRES, what, answer, self._settings.query_timeout_seconds)
        except NotReached:
            raise StoreUnavailable("not reached", certain=True) from None
        except NoAnswer:
            raise StoreUnavailable("no answer", certain=False) from None
        if isinstance(reply, StoreBusy):
            raise reply
        return reply

    async def flush(self, batches: Sequence[Batch], *, hasty: bool = False) -> FlushReply:
        """One transaction. What is sent is what the rows are now: on its way, nobody changes it any more."""
        world = self._wire.world
        sent = [_as_sent(batch) for batch in batches]

        async def run() -> FlushReply:
            reply = await self._store.flush(sent, hasty=hasty)
            if isinstance(reply, Committed):
                world.checker.committed(batches)
            return reply

        what = "flush " + ", ".join(
            f"c{each.campaign_id} g{each.generation} #{each.tag:x} {[row.event_id.hex()[:6] for row in each.rows]}"
            for each in batches
        )
        try:
            return await self._wire.exchange(POSTGRES, what, run, self._settings.flush_timeout_seconds)
        except NotReached:
            return NotRun("not reached", data=world.source.random() < 0.2)
        except NoAnswer:
            return Unknown("no answer")

    async def plans(self, campaign_ids: Sequence[CampaignId]) -> dict[CampaignId, tuple[Campaign, LedgerRow]]:
        """Plans and ledger rows."""
        return await self._ask(f"plans {list(campaign_ids)}", lambda: self._store.plans(campaign_ids))

    async def look_up(self, wanted: Sequence[Wanted]) -> dict[tuple[CampaignId, bytes], StoredEvent]:
        """Committed events by id."""

        async def run() -> dict[tuple[CampaignId, bytes], StoredEvent]:
            found = await self._store.look_up(wanted)
            befalls, self._wire.on_look_up = self._wire.on_look_up, None
            if befalls is not None:
                befalls()
            return found

        found = await self._ask(f"look up {[each.event_id.hex()[:6] for each in wanted]}", run)
        if self._wire.look_up_seconds:
            await sleep(self._wire.look_up_seconds)
            await self._wire.sender.awake()
        return found

    async def raise_generations(
        self, campaign_ids: Sequence[CampaignId], *, wait: bool
    ) -> dict[CampaignId, LedgerRow | None]:
        """`gen + 1`."""
        what = f"raise {list(campaign_ids)}"
        return await self._ask(what, lambda: self._store.raise_generations(campaign_ids, wait=wait))

    async def halt(self, campaign_id: CampaignId, reason: str) -> int | None:
        """Out of service."""
        return await self._ask(f"halt c{campaign_id}", lambda: self._store.halt(campaign_id, reason))

    async def events_since(self, days: Mapping[CampaignId, int]) -> dict[CampaignId, int]:
        """How many; now and then, of one, so many that it is read in a pass over the day."""
        events = await self._ask(f"events {dict(days)}", lambda: self._store.events_since(days))
        if self._wire.world.source.random() < 0.2:
            events[self._wire.world.source.choice(sorted(events))] = KEYED_EVENTS + 1
        return events

    def users_on(
        self, days: Mapping[CampaignId, int], *, whole: bool
    ) -> AsyncGenerator[Mapping[CampaignId, Sequence[tuple[str, int]]], None]:
        """Impressions a user."""
        return self._stream(f"users {dict(days)}", lambda: self._store.users_on(days, whole=whole))

    async def _stream(
        self, what: str, read: Callable[[], AsyncGenerator[Mapping[CampaignId, Sequence[T]], None]]
    ) -> AsyncGenerator[Mapping[CampaignId, Sequence[T]], None]:
        """One snapshot, in pieces."""

        async def run() -> list[tuple[CampaignId, T]]:
            return [(campaign_id, row) async for piece in read() for campaign_id in piece for row in piece[campaign_id]]

        rows = await self._ask(what, run)
        for start in range(0, len(rows), PIECE):
            piece: dict[CampaignId, list[T]] = {}
            for campaign_id, row in rows[start : start + PIECE]:
                piece.setdefault(campaign_id, []).append(row)
            yield piece
            await sleep(self._wire.world.weather.pace_seconds)
            await sleep(self._wire.world.weather.pace_seconds)
            await self._wire.sender.awake()

    async def create_campaign(self, new: NewCampaign) -> tuple[Campaign, CampaignSpend]:
        """A new campaign."""
        return await self._ask("create", lambda: self._store.create_campaign(new))

    async def campaign(self, campaign_id: CampaignId) -> tuple[Campaign, CampaignSpend] | None:
        """A campaign."""
        return await self._ask(f"campaign c{campaign_id}", lambda: self._store.campaign(campaign_id))

    async def page_campaigns(self, after: int, limit: int) -> list[tuple[Campaign, CampaignSpend]]:
        """Some campaigns."""
        return await self._ask("page", lambda: self._store.page_campaigns(after, limit))

    async def update_campaign(
        self, campaign_id: CampaignId, changes: Mapping[str, object]
    ) -> tuple[Campaign, CampaignSpend] | None:
        """Change a plan."""

        async def run() -> tuple[Campaign, CampaignSpend] | None:
            changed = await self._store.update_campaign(campaign_id, changes)
            if changed is not None:
                self._wire.world.checker.planned(changed[0])
            return changed

        return await self._ask(f"update c{campaign_id} {dict(changes)}", run)

    async def report(self, campaign_id: CampaignId, start_us: int | None, end_us: int | None) -> Report | None:
        """Counts and spend."""
        return await self._ask("report", lambda: self._store.report(campaign_id, start_us, end_us))

    async def probe(self) -> str | None:
        """What a flush would hear."""
        try:
            return await self._ask("probe", self._store.probe)
        except StoreUnavailable as away:
            return str(away)

    async def register_engine(self) -> int:
        """A number for this process."""
        return await self._ask("register", self._store.register_engine)

    async def heartbeat(self, number: int, slowest_look_up_us: int = 0) -> HeartbeatReply:
        """Say that this engine lives; hear how far its clock is off, half of the round trip counted."""
        sent_us = self._now_us()

        async def run() -> tuple[HeartbeatReply, int]:
            return await self._store.heartbeat(number, slowest_look_up_us), self._store.now_us()

        reply, store_us = await self._ask("heartbeat", run)
        heard_us = self._now_us()
        offset_us = (sent_us + heard_us) // 2 - store_us
        alive, slowest_us = reply.alive | {number}, reply.slowest_look_up_us
        return HeartbeatReply(offset_us, alive, reply.newest, heard_us - sent_us, slowest_us)

    async def end_dead_sessions(self, number: int) -> Mapping[int, int]:
        """Nothing: what a flush of a dead engine holds here, it lets go by itself."""
        return {}

    async def retire_engine(self, number: int) -> None:
        """Say goodbye."""
        await self._ask("retire", lambda: self._store.retire_engine(number))

    async def make_partitions(self) -> None:
        """Nothing to do."""
        await self._ask("partitions", self._store.make_partitions)


class News:
    """The listening connection of one engine: NOTIFYs come late, in order, or not at all when it is lost."""

    def __init__(self, wire: Wire, plan_changed: Any, generation_raised: Any, lost: Callable[[], None]) -> None:
        self._wire = wire
        self._plan_changed = plan_changed
        self._generation_raised = generation_raised
        self._lost = lost
        self._broken = trio.Event()
        self._connection = 0
        self._due = 0.0

    def break_off(self) -> None:
        """The connection is lost, and with it what is on its way."""
        self._connection += 1
        self._broken.set()

    async def listen(self) -> None:
        """Listen, for ever; tell of each loss, and once more when it listens again (as engine/postgres/listen.py)."""
        world = self._wire.world
        while True:
            async with self._listening():
                await self._broken.wait()
            await sleep(world.source.choice((0, 0.1, QUIET_AFTER_SECONDS)))
            await self._wire.sender.awake()
            self._lost()
            while not self._wire.reaches(POSTGRES):  # noqa: ASYNC110  # what it waits for is many things
                await sleep(1)
            await sleep(world.source.choice((0.05, 1)))
            await self._wire.sender.awake()
            self._broken = trio.Event()
            self._lost()

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        def hear(what: str, tell: Callable[[CampaignId, int], None]) -> Callable[[CampaignId, int], None]:
            def told(campaign_id: CampaignId, number: int) -> None:
                self._wire.world.nursery.start_soon(self._deliver, what, tell, campaign_id, number, self._connection)

            return told

        plan, generation = hear("plan", self._plan_changed), hear("generation", self._generation_raised)
        async with self._wire.world.store.listening(plan, generation, self._lost):
            yield

    async def _deliver(
        self, what: str, tell: Callable[[CampaignId, int], None], campaign_id: CampaignId, number: int, connection: int
    ) -> None:
        """In the order in which they were sent, each after some time."""
        world = self._wire.world
        if not self._wire.reaches(POSTGRES):
            self.break_off()
        now = trio.current_time()
        self._due = max(self._due + 1e-6, now + world.source.choice((0, 0.01, 1)) * world.weather.pace_seconds * 3)
        await trio.sleep_until(self._due)
        await self._wire.sender.awake()
        if connection == self._connection and not self._wire.dead:
            world.note(self._wire.sender.name, f"news: {what} of c{campaign_id} is {number}")
            tell(campaign_id, number)


def _as_sent(batch: Batch) -> Batch:
    """A copy, as an adapter makes one: an entry that is reserved again under another price has another cost."""
    sent = copy.copy(batch)
    object.__setattr__(sent, "rows", [copy.copy(row) for row in batch.rows])
    return sent


def _call_shown(call: object) -> str:
    match call:
        case Resolve():
            return f"{'commit' if call.commit else 'void'} c{call.campaign_id} g{call.generation} #{call.tag:x}"
        case Reserve():
            ids = " ".join(call.ids[at : at + 3].hex() for at in range(0, len(call.ids), 16))
            terms = f"g{call.generation} #{call.tag:x} v{call.plan_version} d{call.day}"
            terms += f" unlooked {call.unlooked_us} looked {call.looked_bucket}"
            return f"reserve c{call.campaign_id} {terms} [{ids}]"
        case LoadUsers():
            return f"c{call.campaign_id} g{call.generation} {list(call.users)}"
        case Ready():
            return f"c{call.campaign_id} g{call.generation} {call.spend.spent_micros} w{call.latest_us}"
        case Begin():
            return f"c{call.campaign_id} g{call.generation}"
        case Advance():
            return f"advance c{call.campaign_id} g{call.generation} d{call.day}"
        case Drop():
            return f"drop {call.held}"
    raise AssertionError(f"no call of the ledger: {call}")


def _shown(reply: object) -> str:
    """A reply, short: of what was found, how many."""
    if isinstance(reply, list):
        return ", ".join(map(_shown, reply))
    if isinstance(reply, Reserved):
        window = f"b{reply.bucket} w{reply.watermark_us}"
        return f"{reply.letters.decode()} {reply.total_micros} {reply.today_micros} {window}"
    if isinstance(reply, dict):
        return f"{len(reply)} found"
    if isinstance(reply, tuple):
        return type(reply[0]).__name__
    return repr(reply)[:200]
