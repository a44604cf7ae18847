"""The decisions of one campaign. Pure and synchronous: no clock, no store, no trio.

Theory of operation
-------------------
A `CampaignState` is owned by one actor. The actor feeds it what arrives and does what it returns:

    entries --admit--> ReserveRequest --Redis--> apply --> Reservation --Postgres--> committed | again | ...

- `admit` takes waiting entries. An id that is already under way here joins that entry (`repeats`) and shares
  its fate. An entry whose id time is not above the watermark is *late*: Postgres is asked first, under the
  generation and the bucket of the call. One that is too old is asked for without a budget. The rest becomes one
  `ReserveRequest`.
- `apply` reads the letters of the reply. Accepted entries become a `Reservation`, which a flush makes durable.
  Ids that Redis knows (D, P) are looked up in Postgres: only what is there is a duplicate.
- `settle` is the only way out: it gives an entry, and those that joined it, their verdict.

`in_flight` holds every id between `admit` and `settle`, so the engine never reserves an id twice at once.
Money is decided in Redis and judged in Postgres; nothing here adds up spend.

The life of a campaign in here (what is OPEN, RESERVING, CLOSED) is in `lifecycle.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.lifecycle import LOADING, OPEN, STOPPED, TRANSITIONS, IllegalTransition, Signal
from engine.memory import Policy, bucket_times
from engine.model import (
    SECOND_US,
    Campaign,
    CampaignId,
    Micros,
    Status,
    StoredEvent,
    Verdict,
)
from engine.pacing import SpendDay, allowance_micros, day_of_number, spend_day
from engine.ports import (
    ALL_LOOKED_UP,
    NO_CAP,
    NO_TIME,
    NONE_LOOKED_UP,
    LedgerRow,
    Letter,
    Reserve,
    Reserved,
)
from engine.ports import BILLABLE as BILLABLE_FLAG
from engine.reservations import AHEAD_US, Admitted, Applied, Reservation, ReserveRequest, kinds_of, mark_ahead, refusal
from engine.submission import Entry
from engine.verdicts import ID_REUSED, IN_FLIGHT, UNAVAILABLE

# Reserve an entry at most so often (each time, a cause has been dealt with), and only before its request's deadline.
# Then answer `retry`.
ATTEMPTS_MAX: Final = 8
# No bucket is known, nor a watermark: as if nothing was ever forgotten. Redis knows better, and says so (`Behind`).
NO_BUCKET: Final = -1
NOTHING_FORGOTTEN: Final = NO_TIME - 1
# Tags of committed reservations that one call carries: Lua's `unpack` holds far more, a round seldom brings more.
COMMITTED_TAGS_MAX: Final = 500


class CampaignState:
    """Plan, generation, spend day and what is under way, of one campaign in one engine process."""

    __slots__ = (
        "_asked_too_old", "_bucket_times", "_cost_micros", "_flags", "bucket", "campaign_id", "committed", "generation",
        "generation_seen", "in_flight", "phase", "plan", "today", "voids", "wait_us", "watermark_us",
    )  # fmt: skip

    def __init__(self, campaign_id: CampaignId, *, wait_seconds: float) -> None:
        self.campaign_id = campaign_id
        self.wait_us = int(wait_seconds * SECOND_US)
        self._bucket_times = bucket_times(campaign_id)
        self.phase = LOADING
        self.plan: Campaign | None = None
        self._flags: bytes = b""  # the kind of each event type under the plan
        self._cost_micros = Micros(0)  # of a billable event under the plan
        self._asked_too_old = False  # the latest call carried what is too old, if such waited
        self.today: SpendDay | None = None
        self.generation = 0  # the one that the next call names
        self.generation_seen = 0  # the highest one seen in Postgres: no older one is used
        self.bucket = NO_BUCKET  # of the dedup window under that generation, as Redis told last
        self.watermark_us = NOTHING_FORGOTTEN
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
        self._flags, self._cost_micros = kinds_of(plan), plan.cost_micros
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
            self.use_generation(max(self.generation, generation))

    def use_generation(self, generation: int) -> None:
        """The next call names this one. What is known of the dedup window is so under one generation only."""
        if generation != self.generation:
            self.generation = generation
            self.bucket, self.watermark_us = NO_BUCKET, NOTHING_FORGOTTEN

    def see_window(self, generation: int, bucket: int, watermark_us: int) -> None:
        """Redis told, under this generation, where the dedup window is."""
        if generation == self.generation:
            self.bucket, self.watermark_us = bucket, watermark_us

    def reach_day(self, day: int) -> None:
        """A later spend day was seen somewhere: ours moves forward, never back."""
        assert self.plan is not None
        assert self.today is not None
        if day > self.today.day:
            self.today = day_of_number(day, self.plan.timezone)

    def recovered(self, generation: int) -> None:
        """Redis was made to follow this generation: what it was still to be told is settled."""
        self.use_generation(max(generation, self.generation_seen))
        self.committed.clear()
        self.voids.clear()
        self.signal(Signal.RECOVERED)

    def counts_users_from(self, now_us: int) -> int | None:
        """The spend day, if a cap is in force: whose users have to be counted. None: nobody's."""
        plan = self.plan
        if plan is None or plan.freq_cap_impressions_per_day is None:
            return None
        return spend_day(now_us, plan.timezone).day

    @property
    def quiet(self) -> bool:
        """Nothing is under way and nothing is left to tell Redis."""
        return not self.in_flight and not self.committed and not self.voids

    # --- the way of an event --------------------------------------------------------------------------------

    def admit(self, waiting: Iterable[Entry], tag: int, policy: Policy, now_us: int) -> Admitted:
        """Decide what to do with waiting entries: join, look up first, or reserve under this tag."""
        assert self.phase is OPEN
        assert self.plan is not None
        assert self.today is not None
        fresh: list[Entry] = []
        late: list[Entry] = []
        too_old: list[Entry] = []
        in_flight, under, watermark_us = self.in_flight, (self.generation, self.bucket), self.watermark_us
        unlooked_us, looked_bucket = ALL_LOOKED_UP, NONE_LOOKED_UP
        waits_us = now_us - self.wait_us
        for entry in waiting:
            first = in_flight.setdefault(entry.event_id, entry)
            if first is not entry:
                first.join(entry)
            elif entry.submission is None and not entry.repeats:
                del in_flight[entry.event_id]  # its deadline passed before anything was reserved
            elif entry.attempts >= ATTEMPTS_MAX or entry.received_us < waits_us:
                self.settle(entry, UNAVAILABLE)
            else:
                id_time_us = entry.id_time_us
                if id_time_us > watermark_us:  # if its id was ever committed, Redis knows it
                    if id_time_us < unlooked_us:
                        unlooked_us = id_time_us
                elif entry.looked_up_under == under:
                    looked_bucket = self.bucket
                elif not entry.made_here or entry.attempts:
                    late.append(entry)
                    continue
                entry.attempts += 1
                (fresh if entry.refusal is None else too_old).append(entry)
        back: list[Entry] = []
        if too_old:  # a call has one budget, and what is too old must have none: the two sorts take turns
            self._asked_too_old = not (fresh and self._asked_too_old)
            fresh, back = (too_old, fresh) if self._asked_too_old else (fresh, too_old)
            for entry in back:
                entry.attempts -= 1
        if not fresh:
            return Admitted(None, late, back)
        return Admitted(self._request(fresh, tag, unlooked_us, looked_bucket, policy, now_us), late, back)

    def looking_up(self, entries: Iterable[Entry]) -> None:
        """Postgres is about to be asked for these entries; the answer counts under generation and bucket known now.

        As long as that bucket is the current one, nothing was forgotten: Redis knows what was committed after the
        look-up. And the raise of that generation waited for every older flush, so the look-up sees what those left.
        """
        under = self.generation, self.bucket
        for entry in entries:
            entry.looked_up_under = under

    def not_tried(self, entries: Iterable[Entry]) -> None:
        """The call that carried these certainly did nothing: as if they had never been in it."""
        for entry in entries:
            entry.attempts -= 1

    def _request(
        self,
        entries: list[Entry],
        tag: int,
        unlooked_us: int,
        looked_bucket: int,
        policy: Policy,
        now_us: int,
    ) -> ReserveRequest:
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
        most_us, most_ahead_us = max([entry.id_time_us for entry in entries]), NO_TIME
        if most_us > now_us + AHEAD_US:
            most_us, most_ahead_us, kinds = mark_ahead(entries, kinds, now_us)
        call = Reserve(  # by position: twenty names take as long as all the rest of this
            self.campaign_id,
            self.generation,
            tag,
            plan.version,
            today.day,
            now_us + policy.redis_ahead_us,
            int(policy.bucket_us * self._bucket_times),
            unlooked_us,
            looked_bucket,
            most_us,
            most_ahead_us,
            total_micros,
            plan.daily_budget_micros,
            allowance_micros(plan, today, now_us),
            cap,
            cost_micros,
            policy.new_users,
            kinds,
            b"".join([entry.event_id for entry in entries]),
            [entry.user_id for entry in entries],
            self.committed[:COMMITTED_TAGS_MAX],
        )
        return ReserveRequest(call, entries, plan, today)

    def apply(self, request: ReserveRequest, reply: Reserved, now_us: int) -> Applied:
        """Read the letters: settle what is refused, and return what is accepted or known."""
        call, letters = request.call, reply.letters
        assert len(letters) == len(request.entries)
        self.see_window(call.generation, reply.bucket, reply.watermark_us)
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
                self.settle(entry, entry.refusal or refusal(letter, request, reply.today_micros, now_us))
        if not accepted:
            return Applied(None, known)
        assert call.total_budget_micros >= 0, "nothing is accepted without a budget"
        assert reply.total_micros <= call.total_budget_micros or amount_micros == 0
        return Applied(Reservation(call, accepted, amount_micros), known)

    def settle_committed(self, reservation: Reservation) -> None:
        """Postgres has them all: accepted. Redis is told with the next call."""
        self.committed.append(reservation.tag)
        in_flight = self.in_flight
        for entry in reservation.rows:
            del in_flight[entry.event_id]
            entry.settle(None)
            if entry.repeats is not None:
                _settle_repeats(entry, entry.as_stored(reservation.tag), None)

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
