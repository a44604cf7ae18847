"""The audit's judgement: ledger, rollups and Redis must say what the events say, and no limit may be passed.

Owns the facts about one campaign and the rules that they must meet. Pure: knows no store; engine/auditor.py
gathers the facts.

Four rules need a word:

- **Budgets and cap** are what the plan says today, and the tables keep no history of plans. So a campaign whose plan
  was never changed (version 1) must keep them; spend above a budget that may have been lowered since is a *note*,
  as are impressions above a cap: shown, but no difference.
- **Redis** reserves before Postgres commits, and hears of a commit later. So `total` must be the ledger's `spent`
  plus the pending reservations that are not committed yet. A Redis that has no open state of this memory image and
  of the ledger's generation is rebuilt at the campaign's next use, and not compared.
- **The dedup window** in Redis knows every committed id whose time is above its watermark: so a running engine, too, is
  asked for each id on its own, after its row was read. What was forgotten meanwhile is at or below the watermark then.
- **What halts a campaign** are its `books`: ledger, rollups and Redis's sums, which say something else than the events.
  Whoever goes on with them may spend what is not there, and a rebuild mends them. A limit that was passed and an id
  that is there twice are differences too, but they stand in the events themselves: no rebuild takes them back, so a
  halt would never end, and it would protect nothing, because the guard refuses what goes further over a budget.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from engine.model import datetime_from_us, day_text, decimal_text


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """The judge's row, as it stands."""

    generation: int
    spent_micros: int
    day: int
    today_micros: int
    total_budget_micros: int
    daily_budget_micros: int
    halted: str | None = None


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """What the campaign's row allows."""

    version: int
    total_budget_micros: int
    daily_budget_micros: int
    cap: int | None


@dataclass(frozen=True, slots=True)
class HourCounts:
    """What one hour delivered."""

    impressions: int = 0
    clicks: int = 0
    conversions: int = 0
    spend_micros: int = 0


@dataclass(frozen=True, slots=True)
class HourDifference:
    """An hour (its start) whose rollup is not what its events add up to."""

    hour_us: int
    events: HourCounts
    rollup: HourCounts


@dataclass(frozen=True, slots=True)
class CampaignFacts:
    """One campaign: its rows, and what its events add up to. All of one snapshot of Postgres.

    `today_micros` is the spend of the events of the ledger's day, `latest_day` the latest spend day of any event
    (None without events), `day_max_micros` the spend of the dearest spend day. `users_above_cap` counts users and
    days, `impressions_max` is the most that one of those saw on one day. `ids_twice` counts ids that were received
    twice within 48 hours: an event that tells no time of its own is promised to be known for so long, not for ever.
    """

    campaign_id: int
    plan: PlanFacts | None
    ledger: LedgerFacts | None
    events: int = 0
    spent_micros: int = 0
    today_micros: int = 0
    latest_day: int | None = None
    day_max_micros: int = 0
    hours: tuple[HourDifference, ...] = ()
    users_above_cap: int = 0
    impressions_max: int = 0
    ids_twice: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """One reservation that Redis holds; `event_id` is that of any of its events."""

    tag: int
    event_id: bytes
    day: int
    amount_micros: int


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """An open campaign in the server's present memory image."""

    generation: int
    day: int
    total_micros: int
    today_micros: int
    pending: tuple[Pending, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """Where the dedup window of an open campaign is, in the server's present memory image."""

    generation: int
    watermark_us: int

    def forgets(self, id_time_us: int, generation: int) -> bool:
        """Whether an id is lost that Redis does not know: its row was committed before the ledger had `generation`."""
        return id_time_us > self.watermark_us and self.generation >= generation


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it must be; a `note` may have an innocent reason, which the audit can't see.

    `books`: a rebuild from the events mends it.
    """

    campaign_id: int
    check: str
    expected: str
    found: str
    note: bool = False
    books: bool = False


@dataclass(slots=True)
class AuditResult:
    """What was audited and found. `rebuilt_later` counts campaigns that Redis doesn't hold at present.

    `halted` tells why each campaign that is halted is so, be it by this audit or from before.
    """

    campaigns: int = 0
    events: int = 0
    rebuilt_later: int = 0
    findings: list[Finding] = field(default_factory=list)
    halted: dict[int, str] = field(default_factory=dict)

    @property
    def differences(self) -> list[Finding]:
        """The findings that are no mere notes."""
        return [finding for finding in self.findings if not finding.note]


def compare(facts: CampaignFacts) -> list[Finding]:
    """What is wrong with a campaign in Postgres."""
    if facts.plan is None or facts.ledger is None:
        missing = "campaign" if facts.plan is None else "ledger"
        return [Finding(facts.campaign_id, f"{missing} row", "a row", f"none, and {facts.events:,} events")]
    return [
        *_compare_ledger(facts, facts.plan, facts.ledger),
        *_compare_rollup(facts),
        *_check_limits(facts, facts.plan),
    ]


def is_held(ledger: LedgerFacts, redis: RedisFacts | None) -> bool:
    """Whether Redis holds the campaign under the ledger's generation."""
    return redis is not None and redis.generation == ledger.generation


def compare_redis(
    campaign_id: int, ledger: LedgerFacts, redis: RedisFacts | None, committed: Collection[int]
) -> list[Finding]:
    """What is wrong with a campaign in Redis. `committed` are those pending tags whose events Postgres has."""
    if redis is None or redis.generation != ledger.generation:
        return []
    open_ones = [pending for pending in redis.pending if pending.tag not in committed]
    sums = {
        "Redis total": (ledger.spent_micros + sum(pending.amount_micros for pending in open_ones), redis.total_micros)
    }
    if redis.day == ledger.day:
        reserved = sum(pending.amount_micros for pending in open_ones if pending.day == redis.day)
        sums["Redis today"] = (ledger.today_micros + reserved, redis.today_micros)
    return _unequal(campaign_id, sums)


def compare_window(campaign_id: int, lost: int) -> list[Finding]:
    """What is wrong with a campaign's dedup window, of which so many ids are lost."""
    if not lost:
        return []
    found = f"{lost:,} that Redis does not know"
    return [Finding(campaign_id, "dedup window", "every id above the watermark", found, books=True)]


def _compare_ledger(facts: CampaignFacts, plan: PlanFacts, ledger: LedgerFacts) -> list[Finding]:
    findings = _unequal(
        facts.campaign_id,
        {
            "ledger spent": (facts.spent_micros, ledger.spent_micros),
            "ledger today": (facts.today_micros, ledger.today_micros),
            "ledger total budget": (plan.total_budget_micros, ledger.total_budget_micros),
            "ledger daily budget": (plan.daily_budget_micros, ledger.daily_budget_micros),
        },
    )
    if facts.latest_day is not None and facts.latest_day != ledger.day:
        days = day_text(facts.latest_day), day_text(ledger.day)
        findings.append(Finding(facts.campaign_id, "ledger day", *days, books=True))
    return findings


def _compare_rollup(facts: CampaignFacts) -> list[Finding]:
    return [
        Finding(
            facts.campaign_id,
            f"rollup {datetime_from_us(hour.hour_us):%Y-%m-%d %H:%M}Z",
            _counts_text(hour.events),
            _counts_text(hour.rollup),
            books=True,
        )
        for hour in facts.hours
    ]


def _check_limits(facts: CampaignFacts, plan: PlanFacts) -> list[Finding]:
    note = plan.version > 1
    campaign = facts.campaign_id
    findings = []
    if facts.spent_micros > plan.total_budget_micros:
        most = f"at most {decimal_text(plan.total_budget_micros)}"
        findings.append(Finding(campaign, "total budget", most, decimal_text(facts.spent_micros), note))
    if facts.day_max_micros > plan.daily_budget_micros:
        most = f"at most {decimal_text(plan.daily_budget_micros)} a day"
        findings.append(Finding(campaign, "daily budget", most, decimal_text(facts.day_max_micros), note))
    if facts.users_above_cap:
        found = f"{facts.users_above_cap:,} above, the most {facts.impressions_max:,}"
        findings.append(Finding(campaign, "frequency cap", f"at most {plan.cap} a user and day", found, note))
    if facts.ids_twice:
        findings.append(Finding(campaign, "event ids", "each once", f"{facts.ids_twice:,} more than once"))
    return findings


def _unequal(campaign_id: int, sums: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """A finding for each amount whose (expected, found) differ."""
    return [
        Finding(campaign_id, check, decimal_text(expected), decimal_text(found), books=True)
        for check, (expected, found) in sums.items()
        if expected != found
    ]


def _counts_text(counts: HourCounts) -> str:
    spend = decimal_text(counts.spend_micros)
    return f"{counts.impressions:,} impressions, {counts.clicks:,} clicks, {counts.conversions:,} conversions, {spend}"
