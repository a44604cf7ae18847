"""What must hold, whatever fails: watched at the stores and at the clients, recomputed from what was seen there.

Owns the invariants of the ledger protocol (section 7) and of the promise. Shares no decision with the engine: it
sees calls as they were carried out, rows, books and answers, and adds up for itself.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from engine.model import Campaign, CampaignId, Event, EventType, Invalid, Pacing, PricingModel, Reason, Status, Verdict
from engine.ports import BILLABLE, Batch, Reserve, Reserved
from engine.submission import Entry, Submission
from tests.fakes.ledger import Book, FakeLedger
from tests.fakes.store import FakeStore

PAYS: Final = {
    PricingModel.CPM: EventType.IMPRESSION,
    PricingModel.CPC: EventType.CLICK,
    PricingModel.CPA: EventType.CONVERSION,
}
# What may be said of an event that is new. A retry of a committed one hears none of these.
# (An entry that is invalid is too old, by less than repeats are looked up for.)
REFUSALS: Final = {
    Reason.INACTIVE, Reason.FREQUENCY_CAPPED, Reason.PACED, Reason.TOTAL_BUDGET, Reason.DAILY_BUDGET, Reason.INVALID
}  # fmt: skip
CLOCK_US: Final = 45_000_000  # the spend day is never further ahead than a clock may be
EPOCH: Final = date(1970, 1, 1)


@dataclass(slots=True)
class Held:
    """A reservation, as Redis made it."""

    turn: int  # position among all reservations
    call: Reserve
    ids: list[bytes]


class RowSeen(NamedTuple):
    """A committed event; `moment` is when, in our own count, and `entry` the copy of it that was committed."""

    moment: int
    user: str
    event_type: EventType
    entry: object


@dataclass(slots=True)
class Paid:
    """What the rows of a campaign add up to."""

    total: int = 0
    by_day: Counter[int] = field(default_factory=Counter)
    shown: dict[tuple[str, int], list[tuple[int, int, int]]] = field(default_factory=dict)  # (order, place, cap)


class Checker(logging.Handler):
    """Collects violations; the first one matters."""

    def __init__(
        self, store: FakeStore, servers: Callable[[], Sequence[FakeLedger]], now_us: Callable[[], int]
    ) -> None:
        super().__init__(logging.ERROR)
        self.violations: list[str] = []
        self.store = store
        self.servers = servers
        self.now_us = now_us
        self.plans: dict[CampaignId, dict[int, Campaign]] = {}
        self.held: dict[int, Held] = {}
        self.tags: set[int] = set()  # committed
        self.paid: dict[CampaignId, Paid] = {}
        self.rows: dict[tuple[CampaignId, bytes], RowSeen] = {}
        self.id_times: defaultdict[CampaignId, dict[bytes, int]] = defaultdict(dict)  # of the rows
        self.accepted: set[tuple[CampaignId, bytes]] = set()  # ids that somebody was told so of
        self.requests: dict[int, tuple[Entry, Submission]] = {}  # by the identity of an entry, which stays alive so
        self.moment = 0
        self.acknowledged = 0

    def violated(self, what: str, fault: BaseException | None = None) -> None:
        """Note a violation."""
        if fault is not None:
            what += "\n" + "".join(traceback.format_exception(fault))
        self.violations.append(what)

    def emit(self, record: logging.LogRecord) -> None:
        """The engine's own errors: an actor that failed, a contradiction between Redis and Postgres."""
        if record.name == "engine.halts" and "is halted" in record.getMessage():
            return  # (a contradiction says something else)
        fault = record.exc_info[1] if record.exc_info else None
        self.violated(f"the engine reports: {record.getMessage()}", fault)

    # --- plans ----------------------------------------------------------------------------------------------

    def planned(self, plan: Campaign) -> None:
        """A version of a plan is in force."""
        self.plans.setdefault(plan.id, {})[plan.version] = plan
        self.paid.setdefault(plan.id, Paid())

    def asked(self, submission: Submission) -> None:
        """An engine has taken a request, whose entries let go of it when they are settled."""
        self.requests.update({id(each): (each, submission) for each in submission.entries if isinstance(each, Entry)})

    # --- at Redis -------------------------------------------------------------------------------------------

    def reserved(self, call: Reserve, reply: Reserved) -> None:
        """A reserve was carried out, whether anybody hears of it or not."""
        if b"A"[0] not in reply.letters:
            return
        self.moment += 1
        plan = self.plans[call.campaign_id][call.plan_version]
        if call.tag in self.held:
            self.violated(f"tag {call.tag:x} is used twice")
        if not plan.active:
            self.violated(f"c{call.campaign_id}: reserved under version {plan.version}, which is not active")
        if call.day > self._day(plan, self.now_us() + CLOCK_US):
            self.violated(f"c{call.campaign_id}: reserved for spend day {call.day}, which is to come")
        ids = [call.ids[16 * at : 16 * at + 16] for at, letter in enumerate(reply.letters) if letter == b"A"[0]]
        self.held[call.tag] = Held(self.moment, call, ids)
        paid_for = any(
            letter == b"A"[0] and kind & BILLABLE for letter, kind in zip(reply.letters, call.kinds, strict=True)
        )
        allowance = self._allowance(plan, call.day, self.now_us() + CLOCK_US)
        if paid_for and plan.pacing is Pacing.EVEN and reply.today_micros > allowance:
            self.violated(f"c{call.campaign_id}: {reply.today_micros} today, where pacing allows {allowance} by now")

    @staticmethod
    def _day(plan: Campaign, instant_us: int) -> int:
        local = datetime.fromtimestamp(instant_us / 1e6, UTC).astimezone(ZoneInfo(plan.timezone)).date()
        return (local - EPOCH).days

    def _allowance(self, plan: Campaign, day: int, instant_us: int) -> int:
        """The share of the day's budget that the day has reached, and a minute's share (or one event) to begin with."""
        if plan.pacing is Pacing.ASAP:
            return plan.daily_budget_micros
        zone, first = ZoneInfo(plan.timezone), EPOCH + timedelta(days=day)
        start, end = (
            datetime(each.year, each.month, each.day, tzinfo=zone).timestamp() * 1e6
            for each in (first, first + timedelta(days=1))
        )
        reached = plan.daily_budget_micros * min(1, max(0, (instant_us - start) / (end - start)))
        burst = max(self._price(plan), plan.daily_budget_micros // 1_440)
        return min(plan.daily_budget_micros, int(reached) + burst)

    @staticmethod
    def _price(plan: Campaign) -> int:
        """What an event of the kind that is paid for costs."""
        price = plan.unit_price_micros
        return (price + 500) // 1_000 if plan.pricing_model is PricingModel.CPM else price

    def agree(self, campaign_id: CampaignId) -> None:
        """Redis, open under the ledger's generation, has the ledger's sums and what is pending."""
        line = self.store.ledger[campaign_id]
        for server in self.servers():
            book = server.books.get(campaign_id)
            if book is None or not book.open or book.image != server.image or book.generation != line.gen:
                continue
            assert book.sums is not None
            pending = [record for tag, record in book.pending.items() if tag not in self.tags]
            total = line.spent + sum(record.amount for record in pending)
            if book.sums.total != total:
                self.violated(f"c{campaign_id}: Redis has total {book.sums.total}, spent and pending are {total}")
            day = book.sums.day
            today = (line.today if line.day == day else 0) + sum(each.amount for each in pending if each.day == day)
            if book.sums.today != today or line.day > day:
                self.violated(
                    f"c{campaign_id}: Redis has {book.sums.today} on day {day}, spent and pending are {today} "
                    f"(the ledger's day is {line.day})"
                )

    def agree_in_detail(self, campaign_id: CampaignId) -> None:
        """Users and ids, too: no committed id is above the watermark that is not known."""
        line = self.store.ledger[campaign_id]
        for server in self.servers():
            book = server.books.get(campaign_id)
            if book is not None and book.open and book.image == server.image and book.generation == line.gen:
                self._check_users(campaign_id, book)
                for tag_of in book.window.ids + book.ahead.ids:
                    for event_id, tag in tag_of.items():
                        if tag not in book.pending and (campaign_id, event_id) not in self.rows:
                            self.violated(f"c{campaign_id}: Redis calls {event_id.hex()} committed, and it is no row")
                self._check_watermark(campaign_id, book)

    def _check_watermark(self, campaign_id: CampaignId, book: Book) -> None:
        for event_id, id_time_us in self.id_times[campaign_id].items():
            if id_time_us > book.watermark_us and book.tag_of(event_id) is None:
                self.violated(
                    f"c{campaign_id}: {event_id.hex()} is committed, its id time {id_time_us} is above the watermark "
                    f"{book.watermark_us}, and Redis does not know it"
                )

    def _check_users(self, campaign_id: CampaignId, book: Book) -> None:
        assert book.sums is not None
        if book.sums.uncounted_day == book.sums.day:
            return
        users: Counter[str] = Counter()
        for (user, day), shown in self.paid[campaign_id].shown.items():
            if day == book.sums.day:
                users[user] += len(shown)
        for tag, record in book.pending.items():
            if tag not in self.tags and record.day == book.sums.day:
                users += record.users
        if users != +book.users:
            self.violated(f"c{campaign_id}: Redis counts {dict(book.users)}, the rows and pending say {dict(users)}")

    # --- at Postgres ----------------------------------------------------------------------------------------

    def committed(self, batches: Sequence[Batch]) -> None:
        """A flush has committed, in this very step."""
        self.moment += 1
        for batch in batches:
            self._check_batch(batch)
        for campaign_id in {batch.campaign_id: None for batch in batches}:
            self._check_sums(
                campaign_id, free=not any(each.amount_micros for each in batches if each.campaign_id == campaign_id)
            )
            self.agree(campaign_id)

    def _check_batch(self, batch: Batch) -> None:
        campaign_id = batch.campaign_id
        name = f"c{campaign_id} #{batch.tag:x}"
        held = self.held.get(batch.tag)
        if held is None:
            self.violated(f"{name}: committed without a reservation")
            return
        if (held.call.generation, held.call.day) != (batch.generation, batch.spend_day):
            self.violated(f"{name}: reserved under {held.call}, committed as another")
        if batch.tag in self.tags or held.ids != [row.event_id for row in batch.rows]:
            self.violated(f"{name}: what was committed is not what was reserved")
        self.tags.add(batch.tag)
        plan = self.plans[campaign_id][held.call.plan_version]
        paid = self.paid[campaign_id]
        for place, row in enumerate(batch.rows):
            if (campaign_id, row.event_id) in self.rows:
                self.violated(f"{name}: {row.event_id.hex()} is committed twice")
            assert isinstance(row, Entry)
            self._check_not_refused(name, row)
            self.rows[campaign_id, row.event_id] = RowSeen(self.moment, row.user.decode(), row.event_type, row)
            self.id_times[campaign_id][row.event_id] = row.id_time_us
            if row.cost_micros != (self._price(plan) if row.event_type is PAYS[plan.pricing_model] else 0):
                self.violated(f"{name}: {row.event_id.hex()} costs {row.cost_micros}")
            paid.total += row.cost_micros
            paid.by_day[batch.spend_day] += row.cost_micros
            if row.event_type is EventType.IMPRESSION:
                cap = plan.freq_cap_impressions_per_day
                shown = paid.shown.setdefault((row.user.decode(), batch.spend_day), [])
                shown.append((held.turn, place, 1 << 62 if cap is None else cap))

    def _check_not_refused(self, name: str, entry: Entry) -> None:
        """Who was told no is not committed behind his back, nor is who sent the same id and shared that answer."""
        for each in (entry, *(entry.repeats or ())):
            same, submission = self.requests[id(each)]
            assert same is each
            verdict = submission.verdicts.get(each.index)
            if verdict is not None and verdict.status is Status.REJECTED:
                self.violated(f"{name}: {entry.event_id.hex()} was refused as {verdict.reason}, and is committed")

    def _check_sums(self, campaign_id: CampaignId, *, free: bool) -> None:
        line, paid, plan = self.store.ledger[campaign_id], self.paid[campaign_id], self.store.campaigns[campaign_id]
        if line.latest_us < max(self.id_times[campaign_id].values()):
            self.violated(f"c{campaign_id}: the ledger does not know the latest id time")
        if line.spent != paid.total or line.today != paid.by_day[line.day] or line.day < max(paid.by_day):
            self.violated(
                f"c{campaign_id}: the ledger says {line.spent} and {line.today} on {line.day}, the rows {paid}"
            )
        if not free and (line.spent > plan.total_budget_micros or line.today > plan.daily_budget_micros):
            self.violated(f"c{campaign_id}: {line.spent}, {line.today} today are over the budgets of {plan}")

    def check_caps(self) -> None:
        """The n-th impression that a user was shown on a day was reserved under a cap of at least n."""
        for campaign_id, paid in self.paid.items():
            for (user, day), shown in paid.shown.items():
                for n, (_, _, cap) in enumerate(sorted(shown), 1):
                    if n > cap:
                        self.violated(f"c{campaign_id}: impression {n} of {user} on {day}, where {cap} are allowed")

    # --- at the clients -------------------------------------------------------------------------------------

    def answered(self, submission: Submission, sent_at: int) -> None:
        """A request has its verdicts, in this very step; `sent_at` is our count of moments when it was handed over."""
        for index, entry in enumerate(submission.entries):
            verdict = submission.verdicts.get(index)
            status = Status.ACCEPTED if verdict is None else verdict.status
            if isinstance(entry, Invalid):
                if verdict is None or verdict.reason is not Reason.INVALID:
                    self.violated(f"an invalid event is answered {verdict}")
                continue
            if isinstance(entry, Event):
                if status is not Status.RETRY:
                    self.violated(f"an event that was never taken is answered {verdict}")
                continue
            key = entry.campaign_id, entry.event_id
            name = f"c{key[0]} {key[1].hex()}"
            if status in (Status.ACCEPTED, Status.DUPLICATE):
                self.acknowledged += 1
                self._check_row(name, entry)
            if status is Status.ACCEPTED:
                if key in self.accepted:
                    self.violated(f"{name}: accepted twice")
                self.accepted.add(key)
            row = self.rows.get(key)
            if row is not None and row.moment <= sent_at and status is Status.ACCEPTED:
                self.violated(f"{name}: accepted, and was committed before it was sent")
            if verdict is not None and verdict.status is Status.REJECTED:
                self._check_refusal(name, entry, verdict, row, sent_at)

    def _check_refusal(self, name: str, entry: Entry, verdict: Verdict, row: RowSeen | None, sent_at: int) -> None:
        """A refusal is of a new event, except for an id that belongs to another event."""
        if verdict.reason is Reason.ID_REUSED:
            if row is None or (row.user, row.event_type) == (entry.user_id, entry.event_type):
                self.violated(f"{name}: called the id of another event, and the row is {row}")
        elif verdict.reason not in REFUSALS:
            self.violated(f"{name}: refused as {verdict.reason}")
        elif row is not None and (row.moment <= sent_at or row.entry is entry):
            self.violated(f"{name}: committed, and refused as {verdict.reason}")

    def _check_row(self, name: str, entry: Entry) -> None:
        row = self.rows.get((entry.campaign_id, entry.event_id))
        if row is None:
            self.violated(f"{name}: acknowledged, and it is no row")
        elif (row.user, row.event_type) != (entry.user_id, entry.event_type):
            self.violated(f"{name}: acknowledged, and the row is another event")

    # --- at the end -----------------------------------------------------------------------------------------

    def check_end(self, campaign_ids: Sequence[CampaignId]) -> None:
        """All is mended and every campaign was used: nothing is held, and both stores say the same."""
        self.check_caps()
        for campaign_id in campaign_ids:
            self.agree(campaign_id)
            self.agree_in_detail(campaign_id)
            line = self.store.ledger[campaign_id]
            book = self.servers()[0].books.get(campaign_id)
            if book is None or not book.open or book.generation != line.gen:
                self.violated(f"c{campaign_id}: Redis is not open under generation {line.gen} in the end")
            elif book.pending:
                self.violated(f"c{campaign_id}: {[hex(tag) for tag in book.pending]} are pending in the end")

    def check_answer(self, submission: Submission, began_us: int) -> None:
        """All is well and nothing else is under way: each event is answered as rows, ledger and plan have it."""
        for index, entry in enumerate(submission.entries):
            assert isinstance(entry, Entry)
            verdict = submission.verdicts.get(index)
            told = "accepted" if verdict is None else str(verdict.reason or verdict.status)
            row = self.rows.get((entry.campaign_id, entry.event_id))
            if row is not None:
                due = {"accepted" if row.entry is entry else "duplicate"}
            else:
                due = {self._due(entry, instant_us) for instant_us in (began_us, self.now_us())}
            if told not in due:
                self.violated(f"c{entry.campaign_id}: {entry.event_type} is {told} when all is mended, not {due}")

    def _due(self, entry: Entry, instant_us: int) -> str:
        """What a new event must hear."""
        plan, line = self.store.campaigns[entry.campaign_id], self.store.ledger[entry.campaign_id]
        if not plan.active:
            return "inactive"
        day = max(line.day, self._day(plan, instant_us))
        shown = len(self.paid[plan.id].shown.get((entry.user_id, day), ()))
        cap = plan.freq_cap_impressions_per_day
        if entry.event_type is EventType.IMPRESSION and cap is not None and shown >= cap:
            return "frequency_capped"
        if entry.event_type is not PAYS[plan.pricing_model]:
            return "accepted"
        cost, today = self._price(plan), line.today if line.day == day else 0
        if line.spent + cost > plan.total_budget_micros:
            return "total_budget"
        if today + cost > plan.daily_budget_micros:
            return "daily_budget"
        return "paced" if today + cost > self._allowance(plan, day, instant_us) else "accepted"
