"""One campaign's actor: a mailbox, a pure state, and a place in the run queue.

Owns what happens to each message: it asks `CampaignState` what to do and hands the work on through `Services`.
It is no task and never waits; each method runs to its end on the trio thread, one message after the other.
Knows no Redis and no Postgres, and no other actor. A fault in here closes this actor only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from engine.boundary import FaultBoundary
from engine.campaign import CampaignState
from engine.lifecycle import CLOSED, LOADING, OPEN, RESERVING, STOPPED, Signal
from engine.mailbox import Mailbox
from engine.model import Campaign, Verdict
from engine.patience import REPEAT_PAUSE_SECONDS, Patience
from engine.ports import (
    Behind,
    Closed,
    Committed,
    DayBehind,
    Done,
    FlushReply,
    LedgerRow,
    Letter,
    Lost,
    NotRun,
    PlanBehind,
    RefusalCause,
    Refused,
    Reserve,
    Reserved,
    ReserveReply,
    Resolve,
    ResolveReply,
    Stale,
    Unknown,
)
from engine.reservations import Reservation, ReserveRequest
from engine.services import Absent, Found, LookUp, Services
from engine.submission import Entry
from engine.verdicts import IN_FLIGHT, UNAVAILABLE, UNKNOWN_CAMPAIGN

log = logging.getLogger(__name__)

# Resolves that one round carries for one campaign: as many as a busy second leaves behind; the rest follows.
RESOLVES_MAX: Final = 100


class Actor:
    """The actor of one campaign. Made by the registry, on first use."""

    __slots__ = (
        "_known_generation", "_patience", "_request", "_unknown", "boundary", "distrusts", "flushing", "loading",
        "mailbox", "reserve_events_max", "resting", "services", "state", "used_at",
    )  # fmt: skip

    def __init__(
        self, state: CampaignState, mailbox: Mailbox, services: Services, *, reserve_events_max: int, used_at: float
    ) -> None:
        self.state = state
        self.mailbox = mailbox
        self.services = services
        self.reserve_events_max = reserve_events_max
        self.used_at = used_at  # trio's time of the latest mail
        self.boundary = FaultBoundary(self.fail)
        self.loading = False  # the loader has been asked
        self.resting = False  # a pause is under way
        self.flushing = 0  # reservations at the flusher
        self.distrusts = 0  # version of a plan under which Postgres refused what Redis had room for
        self._request: ReserveRequest | None = None
        self._unknown: list[Reservation] = []  # their COMMIT got no answer
        self._patience = Patience()
        self._known_generation = 0  # when the loader was asked

    # --- mail -----------------------------------------------------------------------------------------------

    def post(self, entries: Sequence[Entry], now: float) -> None:
        """Take mail, for which there is room."""
        self.used_at = now
        self.mailbox.put(entries)
        if self.state.phase is LOADING:
            self.load()
        else:
            self.services.run_soon(self)

    @property
    def wants_round(self) -> bool:
        """Whether the next ledger round should carry a call of this actor."""
        if self.state.phase is not OPEN:
            return False
        if self.mailbox and not (self.resting and self._patience.meets_closed):
            return True
        return bool(self.state.voids) and not self.resting

    @property
    def wants_resolve(self) -> bool:
        """Whether there are tags to tell Redis, and no mail that they could travel with: that has time."""
        return self.state.phase is OPEN and bool(self.state.committed) and not self.resting

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way: it may be passivated."""
        busy = self.mailbox or self.flushing or self.resting or self._unknown
        return self.state.phase is OPEN and self.state.quiet and not busy

    def load(self) -> None:
        """Ask for the plan and the ledger row, once."""
        if not self.loading:
            self.loading = True
            self._known_generation = self.state.generation
            self.services.load(self)

    def loaded(self, plan: Campaign, row: LedgerRow, now_us: int) -> None:
        """The plan and the ledger row are here."""
        with self.boundary:
            self.loading = False
            state = self.state
            state.adopt_plan(plan, now_us)
            state.adopt_ledger(row)
            if state.phase is STOPPED:
                return
            state.signal(Signal.PLAN)
            # Same plan, and yet Redis had room where Postgres had none; or a generation that Redis knew before Postgres
            # was asked, and Postgres does not (it was restored from a backup, or is new): Redis is wrong.
            if self.distrusts >= plan.version or row.generation < self._known_generation:
                self.doubt()
            self.distrusts = 0
            self._generation_seen()
            self.services.run_soon(self)

    def load_failed(self, verdict: Verdict) -> None:
        """The plan can't be read now (or there is none): answer what waits; the next mail asks again."""
        self.loading = False
        self.refuse_mail(verdict)
        if verdict is UNKNOWN_CAMPAIGN and self.state.phase is not STOPPED:
            self.state.signal(Signal.STOP)

    def refuse_mail(self, verdict: Verdict) -> None:
        """Answer everything that waits in the mailbox with one verdict, and whoever waits for an unknown outcome.

        What is unknown stays under way: its outcome is looked up once it can be.
        """
        for entry in self.mailbox.take(len(self.mailbox)):
            self._refuse(entry, verdict)
        for reservation in self._unknown:
            for entry in reservation.rows:
                entry.settle_all(verdict)

    def _refuse(self, entry: Entry, verdict: Verdict) -> None:
        if self.state.in_flight.get(entry.event_id) is entry:
            self.state.settle(entry, verdict)
        else:
            entry.settle(verdict)

    # --- the ledger round -----------------------------------------------------------------------------------

    def calls(self, now_us: int, events_max: int) -> list[Reserve | Resolve]:
        """What the next round carries: undo first, then one reserve, else the tags that Redis must learn."""
        state = self.state
        voids = state.voids[:RESOLVES_MAX]
        calls: list[Reserve | Resolve] = [Resolve(state.campaign_id, *each, commit=False) for each in voids]
        if self.mailbox:
            taken = self.mailbox.take(min(events_max, self.reserve_events_max))
            admitted = state.admit(taken, self.services.next_tag(), self.services.memory_policy(), now_us)
            if admitted.late:
                self._look_up(admitted.late, Absent.AGAIN)
            self.mailbox.put_back(admitted.back)
            if admitted.request is not None:
                self._request = admitted.request
                state.signal(Signal.CALL)
                calls.append(admitted.request.call)
                return calls
        committed = state.committed[:RESOLVES_MAX]
        return calls + [Resolve(state.campaign_id, state.generation, tag, commit=True) for tag in committed]

    def replied(self, call: Reserve | Resolve, reply: ReserveReply | ResolveReply, now_us: int) -> None:
        """Redis's reply to one of those calls."""
        if self.state.phase is STOPPED:
            return
        if isinstance(call, Resolve):
            self._resolved(call, reply)
            return
        request, self._request = self._request, None
        assert request is not None
        assert request.call is call
        state = self.state
        # Thrown away only if a recovery will find its tag: one that goes on, or one that has raised the generation.
        # (A plan that is being read again is no reason: nobody else would ever void what is reserved here.)
        discarded = state.phase is CLOSED or call.generation < state.generation_seen
        if state.phase is RESERVING:
            state.signal(Signal.REPLY)
        if isinstance(reply, Behind):
            state.not_tried(request.entries)
        if discarded or not isinstance(reply, Reserved | NotRun):
            self.mailbox.put_back(request.entries)
            self._heed(call.generation, reply)
        elif isinstance(reply, Reserved):
            self._patience.restore()
            self._apply(request, reply, now_us)
        elif reply.full and self._patience.full():
            # Something was given back meanwhile. (What was looked up may have aged with it: `admit` will see.)
            state.not_tried(request.entries)
            self.mailbox.put_back(request.entries)
        else:
            for entry in request.entries:
                state.settle(entry, UNAVAILABLE)
        state.check_invariants()
        self.services.run_soon(self)

    def _apply(self, request: ReserveRequest, reply: Reserved, now_us: int) -> None:
        applied = self.state.apply(request, reply, now_us)
        if applied.reservation is not None:
            self.flushing += 1
            self.services.flush(self, applied.reservation)
        if applied.known:
            for letter, absent in ((Letter.DUPLICATE, Absent.CONTRADICTION), (Letter.PENDING, Absent.IN_FLIGHT)):
                self._look_up([entry for entry, its_letter in applied.known if its_letter is letter], absent)

    def _heed(self, under: int, reply: ReserveReply | ResolveReply) -> None:
        """Do what a reply to a call under that generation asks for, if the call reserved nothing that counts."""
        state = self.state
        match reply:
            case Lost() | Unknown():
                self.doubt()
            case Stale(generation) if generation < state.generation:
                self.doubt()
            case Stale(generation):
                state.use_generation(generation)
            case Behind(bucket, watermark_us):
                state.see_window(under, bucket, watermark_us)
            case PlanBehind():
                self._read_again()
            case DayBehind(day):
                state.reach_day(day)
            case Closed():
                self._closed()
            case Reserved() | NotRun() | Done():
                pass  # decided before something that changes everything: thrown away

    def _closed(self) -> None:
        """Somebody recovers this campaign: look again, and in the end do it ourselves."""
        pause_seconds = self._patience.closed()
        if pause_seconds is None:
            self.doubt()
        else:
            self._rest(pause_seconds)

    def _resolved(self, call: Resolve, reply: ReserveReply | ResolveReply) -> None:
        """A tag was told, or Redis has moved on and a recovery has settled it; else it is repeated, or recovered."""
        state = self.state
        if isinstance(reply, NotRun | Unknown):
            self._rest(REPEAT_PAUSE_SECONDS)
        elif isinstance(reply, Closed):
            self._closed()
        elif isinstance(reply, Lost) or (isinstance(reply, Stale) and reply.generation < call.generation):
            self.doubt()  # (not merely dropped: after a split, the Redis that holds this tag may be back)
        elif call.commit:
            if call.tag in state.committed:
                state.committed.remove(call.tag)
        elif (call.generation, call.tag) in state.voids:
            state.voids.remove((call.generation, call.tag))
        self.services.run_soon(self)

    def _rest(self, seconds: float) -> None:
        if not self.resting:
            self.resting = True
            self.services.rest(self, seconds)

    def rested(self) -> None:
        """The pause is over."""
        self.resting = False
        self.services.run_soon(self)

    # --- the flush ------------------------------------------------------------------------------------------

    def flushed(self, reservation: Reservation, reply: FlushReply) -> None:
        """What Postgres said of one reservation (the table in protocol.md, section 3)."""
        self.flushing -= 1
        state = self.state
        if state.phase is STOPPED:
            return
        match reply:
            case Committed():
                state.settle_committed(reservation)
            case Refused(causes):
                self._refused(reservation, causes[reservation.campaign_id])
            case NotRun():
                state.voids.append((reservation.generation, reservation.tag))
                for entry in reservation.rows:
                    state.settle(entry, UNAVAILABLE)
            case Unknown():
                # Never void what may have committed: first fence it, then look.
                self._unknown.append(reservation)
                self._generation_seen()
                if self._unknown:
                    self.doubt()
        self.services.run_soon(self)

    def _refused(self, reservation: Reservation, cause: RefusalCause) -> None:
        state, entries = self.state, reservation.rows
        if cause is not RefusalCause.GENERATION:
            # (Under an older generation its record belongs to the recovery that raised it.)
            state.voids.append((reservation.generation, reservation.tag))
        if cause is RefusalCause.DUPLICATE:
            self._look_up(entries, Absent.AGAIN)
            return
        if cause is RefusalCause.BUDGET and state.plan is not None:
            self.distrusts = state.plan.version
        self.mailbox.put_back(entries)
        self._read_again()

    def _read_again(self) -> None:
        if self.state.phase in (OPEN, RESERVING):
            self.state.signal(Signal.PLAN_BEHIND)
        self.load()

    # --- look-ups and recovery ------------------------------------------------------------------------------

    def _look_up(self, entries: Sequence[Entry], absent: Absent, tag: int | None = None) -> None:
        self.mailbox.away += len(entries)
        self.services.look_up(LookUp(self, entries, absent, tag))

    def looked_up(self, look_up: LookUp, found: Found) -> None:
        """Postgres was asked for these entries, and has those that were found."""
        with self.boundary:
            self.mailbox.away -= len(look_up.entries)
            state, again = self.state, list[Entry]()
            for entry in look_up.entries:
                if state.in_flight.get(entry.event_id) is not entry:
                    continue  # the actor was stopped meanwhile
                stored = found.get((entry.campaign_id, entry.event_id)) if found else None
                if stored is not None:
                    state.settle_found(entry, stored, look_up.tag)
                elif look_up.absent is Absent.AGAIN:
                    again.append(entry)
                elif look_up.absent is Absent.IN_FLIGHT:
                    state.settle(entry, IN_FLIGHT)
                else:
                    # No healthy race ends here: architecture.md, "What halts a campaign". It answers the others, too.
                    self.services.differs(self, entry)
            self.mailbox.put_back(again)
            self.services.run_soon(self)

    def look_up_failed(self, look_up: LookUp, verdict: Verdict) -> None:
        """These entries were not looked up: nothing is known, a retry is safe."""
        with self.boundary:
            self.mailbox.away -= len(look_up.entries)
            for entry in look_up.entries:
                self._refuse(entry, verdict)

    def doubt(self) -> None:
        """Redis or an outcome can't be trusted: close, and recover."""
        if self.state.phase is not CLOSED and self.state.phase is not STOPPED:
            self.state.signal(Signal.DOUBT)
            self.services.recover(self)

    def generation_raised(self, generation: int) -> None:
        """Postgres has a new generation for this campaign."""
        with self.boundary:
            self.state.see_generation(generation)
            self._generation_seen()

    def _generation_seen(self) -> None:
        """Unknown reservations of older generations are in or out for good by now: look."""
        seen = self.state.generation_seen
        settled = [reservation for reservation in self._unknown if reservation.generation < seen]
        self._unknown = [reservation for reservation in self._unknown if reservation.generation >= seen]
        for reservation in settled:
            self._look_up(reservation.rows, Absent.AGAIN, reservation.tag)

    def recovered(self, generation: int) -> None:
        """The recovery is over; go on under this generation."""
        with self.boundary:
            if self.state.phase is CLOSED:
                self.state.recovered(generation)
                if generation > self.state.generation_seen:
                    self._read_again()  # is it Postgres's, or only Redis's? `loaded` will see
                self.services.run_soon(self)

    def stop(self) -> None:
        """Passivate: the registry forgets this actor."""
        self.state.signal(Signal.STOP)

    def fail(self) -> None:
        """After a fault: answer everything 503 and stop. What was reserved is settled by the next actor's recovery."""
        log.exception("campaign %s: its actor failed and is rebuilt", self.state.campaign_id)
        self.halt(UNAVAILABLE)
        self.services.crashed(self)

    def halt(self, verdict: Verdict) -> None:
        """Stop at once, from any phase, and give everything that waits or is under way this verdict: a retry."""
        self.state.phase = STOPPED  # this is no transition of a healthy life
        for entry in self.mailbox.take(len(self.mailbox)) + list(self.state.in_flight.values()):
            entry.settle_all(verdict)
        self.state.in_flight.clear()
        self._unknown.clear()
