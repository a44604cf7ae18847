"""The decisions of one campaign. Pure and synchronous: no clock, no store, no trio.

Theory of operation
-------------------
A `CampaignState` is owned by one actor. The actor feeds it what arrives and does what it returns:

    entries --admit--> ReserveRequest --Redis--> apply --> Reservation --Postgres--> committed | again | ...

- `admit` takes waiting entries. An id that is already under way here joins that entry (`repeats`) and shares
  its fate. An entry whose own time lies before the dedup window is *late*: Postgres is asked first, under the
  generation of the call. One that is too old is asked for without a budget. The rest becomes one `ReserveRequest`.
- `apply` reads the letters of the reply. Accepted entries become a `Reservation`, which a flush makes durable.
  Ids that Redis knows (D, P) are looked up in Postgres: only what is there is a duplicate.
- `settle` is the only way out: it gives an entry, and those that joined it, their verdict.

`in_flight` holds every id between `admit` and `settle`, so the engine never reserves an id twice at once.
Money is decided in Redis and judged in Postgres; nothing here adds up spend.

The life of a campaign in here (what is OPEN, RESERVING, CLOSED) is in `lifecycle.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from engine.lifecycle import LOADING, OPEN, STOPPED, TRANSITIONS, IllegalTransition, Signal
from engine.model import (
    BILLABLE,
    SECOND_US,
    Campaign,
    CampaignId,
    EventType,
    Micros,
    Reason,
    Status,
    StoredEvent,
    Verdict,
)
from engine.pacing import SpendDay, allowance_micros, day_of_number, seconds_between, seconds_until_room, spend_day
from engine.ports import BILLABLE as BILLABLE_FLAG
from engine.ports import COUNTS_FOR_CAP, FREE, NO_CAP, LedgerRow, Letter, Reserve, Reserved
from engine.submission import NOT_LOOKED_UP, Entry
from engine.verdicts import DAILY_BUDGET, ID_REUSED, IN_FLIGHT, INACTIVE, TOTAL_BUDGET, UNAVAILABLE

# An entry is reserved at most so often (each time, a cause has been dealt with), and only while its sender may wait:
# what was looked up for it grows old, as does the dedup window. Who is refused then is told to come again.
ATTEMPTS_MAX: Final = 8
# Tags of committed reservations that one call carries: Lua's `unpack` holds far more, a round seldom brings more.
COMMITTED_TAGS_MAX: Final = 500


class ReserveRequest(msgspec.Struct, frozen=True, gc=False):
    """One call of reserve, and the entries that its letters are about."""

    call: Reserve
    entries: Sequence[Entry]
    plan: Campaign
    today: SpendDay
    decided_us: int


class Reservation:
    """The accepted entries of one call, on their way to Postgres (`ports.Batch`)."""

    __slots__ = ("amount_micros", "campaign_id", "decided_us", "generation", "rows", "spend_day", "tag")

    def __init__(self, call: Reserve, rows: Sequence[Entry], amount_micros: int, decided_us: int) -> None:
        self.campaign_id = call.campaign_id
        self.generation = call.generation
        self.tag = call.tag
        self.spend_day = call.day
        self.amount_micros = amount_micros
        self.decided_us = decided_us
        self.rows = rows


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """What `admit` decided: a call to send, entries to look up first, and entries that wait for the next call."""

    request: ReserveRequest | None
    late: Sequence[Entry]
    back: Sequence[Entry] = ()


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What `apply` decided: a reservation to flush, and entries whose ids Redis knows."""

    reservation: Reservation | None
    known: Sequence[tuple[Entry, Letter]]


class CampaignState:
    """Plan, generation, spend day and what is under way, of one campaign in one engine process."""

    __slots__ = (
        "_asked_too_old", "_cost_micros", "_flags", "campaign_id", "committed", "fresh_us", "generation",
        "generation_seen", "in_flight", "phase", "plan", "slack_us", "today", "turn_us", "voids", "wait_us",
    )  # fmt: skip

    def __init__(
        self, campaign_id: CampaignId, *, turn_seconds: int, fresh_seconds: int, slack_seconds: int, wait_seconds: float
    ) -> None:
        self.campaign_id = campaign_id
        self.turn_us, self.fresh_us = turn_seconds * SECOND_US, fresh_seconds * SECOND_US
        self.slack_us, self.wait_us = slack_seconds * SECOND_US, int(wait_seconds * SECOND_US)
        self.phase = LOADING
        self.plan: Campaign | None = None
        self._flags: bytes = b""  # the kind of each event type under the plan
        self._cost_micros = Micros(0)  # of a billable event under the plan
        self._asked_too_old = False  # the latest call carried what is too old, if such waited
        self.today: SpendDay | None = None
        self.generation = 0  # the one that the next call names
        self.generation_seen = 0  # the highest one seen in Postgres: no older one is used
        self.in_flight: dict[bytes, Entry] = {}
        self.committed: list[int] = []  # tags that are durable; Redis does not know it yet
        self.voids: list[tuple[int, int]] = []  # (generation, tag) to undo; Redis does not know it yet

    # --- life cycle -----------------------------------------------------------------------------------------

    def signal(self, signal: Signal) -> None:
        """Move to the next phase. Raises `IllegalTransition`."""
        after = TRANSITIONS[self.phase].get(signal)
        if after is None:
            raise IllegalTransition(f"campaign {self.campaign_id}: {signal.name} while {self.phase.name}")
        self.phase = after

    def adopt_plan(self, plan: Campaign, now_us: int) -> bool:
        """Take a plan if it is newer than ours; True when it was."""
        assert plan.id == self.campaign_id
        if self.plan is not None and plan.version <= self.plan.version:
            return False
        self.plan = plan
        self._flags, self._cost_micros = _flags(plan), plan.cost_micros
        if self.today is None:
            self.today = spend_day(now_us, plan.timezone)
        return True

    def adopt_ledger(self, row: LedgerRow) -> None:
        """Learn what the judge's row says: its generation and its day are never gone below."""
        self.see_generation(row.generation)
        self.reach_day(row.spend.day)

    def see_generation(self, generation: int) -> None:
        """A generation was seen in Postgres: older ones, and what was decided under them, no longer count."""
        if generation > self.generation_seen:
            self.generation_seen = generation
            self.generation = max(self.generation, generation)

    def reach_day(self, day: int) -> None:
        """A later spend day was seen somewhere: ours moves forward, never back."""
        assert self.plan is not None
        assert self.today is not None
        if day > self.today.day:
            self.today = day_of_number(day, self.plan.timezone)

    def recovered(self, generation: int) -> None:
        """Redis was made to follow this generation: what it was still to be told is settled."""
        self.generation = max(generation, self.generation_seen)
        self.committed.clear()
        self.voids.clear()
        self.signal(Signal.RECOVERED)

    @property
    def quiet(self) -> bool:
        """Nothing is under way and nothing is left to tell Redis."""
        return not self.in_flight and not self.committed and not self.voids

    # --- the way of an event --------------------------------------------------------------------------------

    def admit(self, waiting: Iterable[Entry], tag: int, now_us: int) -> Admitted:
        """Decide what to do with waiting entries: join, look up first, or reserve under this tag."""
        assert self.phase is OPEN
        assert self.plan is not None
        assert self.today is not None
        fresh: list[Entry] = []
        late: list[Entry] = []
        too_old: list[Entry] = []
        in_flight, generation = self.in_flight, self.generation
        oldest_us, waits_us = now_us - self.fresh_us, now_us - self.wait_us
        for entry in waiting:
            first = in_flight.setdefault(entry.event_id, entry)
            if first is not entry:
                if first.repeats is None:
                    first.repeats = []
                first.repeats.append(entry)
            elif entry.submission is None and not entry.repeats:
                del in_flight[entry.event_id]  # its deadline passed before anything was reserved
            elif entry.attempts >= ATTEMPTS_MAX or entry.received_us < waits_us:
                self.settle(entry, UNAVAILABLE)
            elif entry.refusal is None and entry.told_us is not None and entry.told_us >= oldest_us:  # Redis knows
                entry.attempts += 1
                fresh.append(entry)
            elif entry.looked_up_under != generation:
                late.append(entry)
            else:
                entry.attempts += 1
                entry.looked_up_under = NOT_LOOKED_UP
                (fresh if entry.refusal is None else too_old).append(entry)
        back: list[Entry] = []
        if too_old:  # a call has one budget, and what is too old must have none: the two sorts take turns
            self._asked_too_old = not (fresh and self._asked_too_old)
            fresh, back = (too_old, fresh) if self._asked_too_old else (fresh, too_old)
            for entry in back:
                entry.attempts -= 1
                if entry.refusal is not None or entry.told_us is None or entry.told_us < oldest_us:
                    entry.looked_up_under = generation  # no call carried it, so its look-up counts still
        return Admitted(self._request(fresh, tag, now_us) if fresh else None, late, back)

    def looking_up(self, entry: Entry) -> None:
        """Postgres is about to be asked for this entry; the answer counts under the generation known now, no other.

        The raise of that generation waited for every older flush, so the look-up sees what those flushes left. A later
        raise may wait for a flush that the look-up did not see, and the rebuild after it leave out ids of that age.
        """
        entry.looked_up_under = self.generation

    def _request(self, entries: list[Entry], tag: int, now_us: int) -> ReserveRequest:
        plan, today = self.plan, self.today
        assert plan is not None
        assert today is not None
        if now_us >= today.end_us:
            self.reach_day(spend_day(now_us, plan.timezone).day)
            today = self.today
            assert today is not None
        if plan.active and entries[0].refusal is None:
            flags = self._flags
            kinds = bytes([flags[entry.event_type] for entry in entries])
            total_micros, cost_micros = plan.total_budget_micros, self._cost_micros
            cap = NO_CAP if plan.freq_cap_impressions_per_day is None else plan.freq_cap_impressions_per_day
        else:
            # No budget at all, for billable and free alike: Redis still tells duplicates from new events, and what is
            # too old from the repeat of an event whose flush is under way.
            kinds = bytes([BILLABLE_FLAG]) * len(entries)
            total_micros, cost_micros, cap = Micros(-1), Micros(0), NO_CAP
        call = Reserve(  # by position: sixteen names take as long as all the rest of this
            self.campaign_id,
            self.generation,
            tag,
            plan.version,
            today.day,
            now_us // self.turn_us,  # turn
            (now_us + self.slack_us) // self.turn_us,  # turn_latest
            total_micros,
            plan.daily_budget_micros,
            allowance_micros(plan, today, now_us),
            cap,
            cost_micros,
            kinds,
            b"".join([entry.event_id for entry in entries]),
            [entry.user_id for entry in entries],
            self.committed[:COMMITTED_TAGS_MAX],
        )
        return ReserveRequest(call, entries, plan, today, now_us)

    def apply(self, request: ReserveRequest, reply: Reserved, now_us: int) -> Applied:
        """Read the letters: settle what is refused, and return what is accepted or known."""
        call, letters = request.call, reply.letters
        assert len(letters) == len(request.entries)
        self.committed = self.committed[len(call.committed) :]
        accepted: list[Entry] = []
        known: list[tuple[Entry, Letter]] = []
        cost_micros, amount_micros = call.cost_micros, 0
        for entry, letter, kind in zip(request.entries, letters, call.kinds, strict=True):
            if letter == _ACCEPTED:
                if kind & BILLABLE_FLAG:
                    entry.cost_micros = cost_micros
                    amount_micros += cost_micros
                elif entry.cost_micros:
                    entry.cost_micros = 0  # (it was reserved before, under another plan)
                accepted.append(entry)
            elif letter in _KNOWN:
                known.append((entry, _KNOWN[letter]))
            else:
                self.settle(entry, entry.refusal or _refusal(letter, request, reply.today_micros, now_us))
        if not accepted:
            return Applied(None, known)
        assert call.total_budget_micros >= 0, "nothing is accepted without a budget"
        assert reply.total_micros <= call.total_budget_micros or amount_micros == 0
        return Applied(Reservation(call, accepted, amount_micros, request.decided_us), known)

    def settle_committed(self, reservation: Reservation) -> None:
        """Postgres has them all: accepted. Redis is told with the next call."""
        self.committed.append(reservation.tag)
        in_flight = self.in_flight
        for entry in reservation.rows:
            del in_flight[entry.event_id]
            entry.settle(None)
            if entry.repeats is not None:
                _settle_repeats(entry, entry.as_stored(reservation.tag), None)

    def outlasted(self, reservation: Reservation, now_us: int) -> bool:
        """Whether this commit took longer than a look-up counts: then raise the generation, which ends all look-ups.

        Another engine may have looked one of its ids up before the commit, and reserve it up to `wait_us` later. As
        long as a commit takes no longer than that, Redis still holds the id then. After a freeze it may not: once
        Redis is told of the commit, nothing keeps the dedup window from moving past the id.
        """
        return now_us - reservation.decided_us > self.wait_us

    def settle_found(self, entry: Entry, stored: StoredEvent, tag: int | None = None) -> None:
        """Postgres has an event with this id: a duplicate, unless it is another event (or this very row)."""
        del self.in_flight[entry.event_id]
        if stored.batch == tag:
            entry.settle(None)
        else:
            entry.settle(_as_duplicate(entry, stored))
        if entry.repeats is not None:
            _settle_repeats(entry, stored, None)

    def settle(self, entry: Entry, verdict: Verdict) -> None:
        """Give a verdict that is neither accepted nor duplicate, to the entry and those that joined it."""
        del self.in_flight[entry.event_id]
        entry.settle(verdict)
        if entry.repeats is not None:
            _settle_repeats(entry, None, verdict)

    def check_invariants(self) -> None:
        """What must hold between any two messages; asserted in production too."""
        assert self.generation >= self.generation_seen, "a generation older than one seen in Postgres"
        assert self.phase is LOADING or self.phase is STOPPED or self.plan is not None
        event_id, entry = next(iter(self.in_flight.items()), (None, None))
        assert entry is None or entry.event_id == event_id, "filed under another id"


_ACCEPTED: Final = Letter.ACCEPTED.value[0]
_KNOWN: Final = {Letter.DUPLICATE.value[0]: Letter.DUPLICATE, Letter.PENDING.value[0]: Letter.PENDING}


def _flags(plan: Campaign) -> bytes:
    """The kind of each event type under a plan."""
    billable = BILLABLE[plan.pricing_model]
    capped = plan.freq_cap_impressions_per_day is not None
    return bytes(
        (BILLABLE_FLAG if event_type is billable else FREE)
        | (COUNTS_FOR_CAP if capped and event_type is EventType.IMPRESSION else FREE)
        for event_type in EventType
    )


def _refusal(letter: int, request: ReserveRequest, today_micros: int, now_us: int) -> Verdict:
    """The verdict behind a letter that is neither accepted nor known, by the plan that it was decided under."""
    if not request.plan.active:
        return INACTIVE
    match Letter(bytes([letter])):
        case Letter.CAPPED:
            return Verdict(
                Status.REJECTED,
                Reason.FREQUENCY_CAPPED,
                f"the user has had {request.call.cap} impressions today, as many as the campaign allows",
                seconds_between(now_us, request.today.end_us),
            )
        case Letter.PACED:
            wait_seconds = seconds_until_room(request.plan, request.today, now_us, today_micros)
            return Verdict(
                Status.REJECTED, Reason.PACED, "the day has not reached this part of its budget", wait_seconds
            )
        case Letter.TOTAL:
            return TOTAL_BUDGET
        case Letter.DAILY:
            return DAILY_BUDGET
    raise AssertionError(f"unknown letter {letter!r}")


def _as_duplicate(entry: Entry, stored: StoredEvent) -> Verdict:
    if not entry.same_event(stored):
        return ID_REUSED
    return Verdict(Status.DUPLICATE, event=stored)


def _settle_repeats(first: Entry, stored: StoredEvent | None, verdict: Verdict | None) -> None:
    """Those that joined share the fate of the first: its row, or its refusal if they are the same event."""
    repeats, first.repeats = first.repeats or [], None
    for entry in repeats:
        if stored is not None:
            entry.settle(_as_duplicate(entry, stored))
        elif entry.same_event(first.as_stored(0)) and (entry.refusal is None) is (first.refusal is None):
            entry.settle(verdict)
        else:
            entry.settle(IN_FLIGHT)  # another event under the same id: on its own it may fare otherwise
