"""An engine without stores, for tests of the listeners: campaigns in a dict, and verdicts as it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from config.settings import Settings
from engine import CampaignNotFound, CampaignView, Entry, Event, Invalid, Reason, Report, Status, Submission, Verdict
from engine.arrival import ArrivalLimits, arrive
from engine.derived_ids import DerivedIds
from engine.model import Campaign, CampaignId, Micros
from engine.plans import read_change, read_new

NOW_US = 1_700_000_000_000_000
COST_MICROS = 10_000


class FakeEngine:
    """Answers as the real one does, as far as a listener can see (`api.app.ServedEngine`, `api.intake.EventTaker`).

    `failure` is raised by every call about campaigns and reports; `verdicts` maps a user to the verdict of his
    events, all others are accepted; `asked` holds what a report was asked for.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.views: dict[int, CampaignView] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.failure: Exception | None = None
        self.not_ready: list[str] = []
        self.recorded: list[Sequence[Event | Invalid]] = []
        self.keys: list[str | None] = []
        self.asked: list[tuple[int, int | None, int | None]] = []

    async def create_campaign(self, fields: Mapping[str, object]) -> CampaignView:
        """Keep a new campaign."""
        self._fail()
        new = read_new(fields)
        plan = Campaign(
            id=CampaignId(len(self.views) + 1),
            name=new.name,
            pricing_model=new.pricing_model,
            unit_price_micros=new.unit_price_micros,
            total_budget_micros=new.total_budget_micros,
            daily_budget_micros=new.daily_budget_micros,
            freq_cap_impressions_per_day=new.freq_cap_impressions_per_day,
            active=new.active,
            pacing=new.pacing,
            timezone=new.timezone,
            version=1,
            created_us=NOW_US,
        )
        return self._keep(plan)

    async def campaign(self, campaign_id: int) -> CampaignView:
        """One that was kept."""
        self._fail()
        if campaign_id not in self.views:
            raise CampaignNotFound(f"there is no campaign {campaign_id}")
        return self.views[campaign_id]

    async def campaigns(self, *, after: int, limit: int) -> list[CampaignView]:
        """Some that were kept."""
        self._fail()
        return [view for number, view in sorted(self.views.items()) if number > after][:limit]

    async def update_campaign(self, campaign_id: int, fields: Mapping[str, object]) -> CampaignView:
        """Change one that was kept."""
        plan = (await self.campaign(campaign_id)).campaign
        changed = {name: getattr(plan, name) for name in plan.__struct_fields__} | read_change(fields, plan)
        return self._keep(Campaign(**{**changed, "version": plan.version + 1}))

    async def report(self, campaign_id: int, start_us: int | None, end_us: int | None) -> Report:
        """Always the same counts."""
        await self.campaign(campaign_id)
        self.asked.append((campaign_id, start_us, end_us))
        return Report(CampaignId(campaign_id), 2, 1, 0, Micros(20_000))

    async def problems(self) -> list[str]:
        """What it was told to say."""
        return self.not_ready

    def notes(self) -> list[str]:
        """Nothing is refused."""
        return []

    async def record(self, events: Sequence[Event | Invalid], *, idempotency_key: str | None = None) -> Submission:
        """Give each event the verdict of its user."""
        return self.submit(events, lambda _: None, idempotency_key=idempotency_key)

    @property
    def full(self) -> bool:
        """There is always room."""
        return False

    def overloaded(self) -> bool:
        """There is always room."""
        return False

    def submit(
        self,
        events: Sequence[Event | Invalid],
        answer: Callable[[Submission], None],
        *,
        idempotency_key: str | None = None,
    ) -> Submission:
        """The same, for whoever wants to be called."""
        self._fail()
        self.recorded.append(events)
        self.keys.append(idempotency_key)
        submission = Submission(NOW_US, NOW_US + 10_000_000, answer, answer)
        limits = ArrivalLimits.of(self.settings)
        ids = None if idempotency_key is None else DerivedIds(idempotency_key, [event.campaign_id for event in events])
        for index, event in enumerate(events):
            entry = event if isinstance(event, Invalid) else arrive(event, submission, index, ids, limits)
            submission.entries.append(entry)
            submission.open += 1
            if isinstance(entry, Invalid):
                submission.verdicts[index] = Verdict(Status.REJECTED, Reason.INVALID, entry.detail)
                submission.open -= 1
            else:
                self._settle(entry)
        submission.handed_on()
        return submission

    def _settle(self, entry: Entry) -> None:
        verdict = self.verdicts.get(entry.user_id, entry.refusal)
        entry.cost_micros = COST_MICROS
        if verdict is not None and verdict.status is Status.DUPLICATE:
            verdict = Verdict(Status.DUPLICATE, event=entry.as_stored(1))
        entry.settle(verdict)

    def _keep(self, plan: Campaign) -> CampaignView:
        view = CampaignView(plan, Micros(1_500_000), Micros(500_000))
        self.views[plan.id] = view
        return view

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
