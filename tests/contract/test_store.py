"""What the engine relies on in its judge: the fake and the real Postgres pass the same tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

import pytest
import trio

from config.settings import Settings
from engine.model import DAY_US, CampaignId, EventType, Micros, NewCampaign, Pacing, PricingModel
from engine.ports import NO_TIME, Committed, RefusalCause, Refused, Wanted
from tests.contract.flushes import (
    COST,
    Line,
    Store,
    bunch,
    click,
    impression,
    ledger_of,
    new_campaign,
    now,
    raise_generation,
)

HOUR_US = 3_600_000_000
T = TypeVar("T")


def gathered(pieces: Iterable[Mapping[CampaignId, Sequence[T]]]) -> dict[CampaignId, list[T]]:
    """All that a stream brought, by campaign."""
    found: dict[CampaignId, list[T]] = {}
    for piece in pieces:
        for campaign, rows in piece.items():
            found.setdefault(campaign, []).extend(rows)
    return found


async def test_a_commit_keeps_rows_and_money(store: Store) -> None:
    """Committed means: every row is there, with its tag, and the ledger has its cost."""
    campaign = await new_campaign(store)
    first, second = impression(now(), ad=b"banner"), click(now(), user="Zoë\U0001f600".encode())
    assert await store.flush([bunch(campaign, [first, second], tag=77 << 40)]) == Committed()
    row = await ledger_of(store, campaign)
    assert (row.generation, row.spend.spent_micros, row.spend.today_micros, row.spend.day) == (0, COST, COST, first.day)
    found = await store.look_up([Wanted(campaign, each.event_id, [each.day]) for each in (first, second)])
    kept = found[campaign, first.event_id]
    assert (kept.ad_id, kept.user_id, kept.event_type, kept.cost_micros) == (
        "banner",
        "ada",
        EventType.IMPRESSION,
        COST,
    )
    assert (kept.occurred_us, kept.batch) == (first.occurred_us, 77 << 40)
    other = found[campaign, second.event_id]
    assert (other.ad_id, other.user_id, other.event_type) == (None, "Zoë\U0001f600", EventType.CLICK)


async def test_another_generation_is_refused(store: Store) -> None:
    """What was reserved under an older generation, or one that never was, can't commit."""
    campaign = await new_campaign(store)
    await raise_generation(store, campaign)
    for generation in (0, 2):
        refused = await store.flush([bunch(campaign, [impression(now())], generation=generation)])
        assert refused == Refused({campaign: RefusalCause.GENERATION})
    assert await store.flush([bunch(campaign, [impression(now())], generation=1)]) == Committed()


async def test_an_unknown_campaign_has_no_generation(store: Store) -> None:
    """Without a ledger row nothing commits."""
    stranger = CampaignId(404)
    refused = await store.flush([bunch(stranger, [impression(now())])])
    assert refused == Refused({stranger: RefusalCause.GENERATION})


@pytest.mark.parametrize("budget", ["total_budget_micros", "daily_budget_micros"])
async def test_budgets_hold_to_the_last_micro(store: Store, budget: str) -> None:
    """A budget can be used up exactly, and not by one micro more."""
    campaign = await new_campaign(store, **{budget: Micros(2 * COST + 1)})
    assert await store.flush([bunch(campaign, [impression(now()), impression(now())])]) == Committed()
    refused = await store.flush([bunch(campaign, [impression(now(), cost_micros=2)])])
    assert refused == Refused({campaign: RefusalCause.BUDGET})
    assert await store.flush([bunch(campaign, [impression(now(), cost_micros=1)])]) == Committed()
    spend = (await ledger_of(store, campaign)).spend
    assert (spend.spent_micros, spend.today_micros) == (2 * COST + 1, 2 * COST + 1)


@pytest.mark.parametrize("budget", ["total_budget_micros", "daily_budget_micros"])
async def test_the_first_event_is_judged_too(store: Store, budget: str) -> None:
    """A budget below the cost of one event refuses the very first."""
    campaign = await new_campaign(store, **{budget: Micros(COST - 1)})
    refused = await store.flush([bunch(campaign, [impression(now())])])
    assert refused == Refused({campaign: RefusalCause.BUDGET})


async def test_free_events_need_no_budget(store: Store) -> None:
    """A batch that costs nothing fits a budget that is used up, and one that was lowered below the spend."""
    campaign = await new_campaign(store, total_budget_micros=Micros(COST))
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
    assert await store.flush([bunch(campaign, [click(now())])]) == Committed()
    await store.update_campaign(campaign, {"total_budget_micros": 1})
    assert await store.flush([bunch(campaign, [click(now())])]) == Committed()


async def test_the_day_moves_only_forward(store: Store) -> None:
    """A new spend day starts from its first amount; an older one is refused; the total goes on."""
    campaign = await new_campaign(store, daily_budget_micros=Micros(2 * COST))
    today = now() // DAY_US
    assert await store.flush([bunch(campaign, [impression(now()), impression(now())], day=today)]) == Committed()
    assert await store.flush([bunch(campaign, [impression(now())], day=today + 1)]) == Committed()
    spend = (await ledger_of(store, campaign)).spend
    assert (spend.spent_micros, spend.day, spend.today_micros) == (3 * COST, today + 1, COST)
    refused = await store.flush([bunch(campaign, [impression(now())], day=today)])
    assert refused == Refused({campaign: RefusalCause.DAY})


async def test_a_repeated_id_is_refused_by_name(store: Store) -> None:
    """An id that is committed already refuses its campaign as a duplicate."""
    innocent, campaign = await new_campaign(store), await new_campaign(store)
    row = impression(now())
    assert await store.flush([bunch(campaign, [row])]) == Committed()
    refused = await store.flush([bunch(innocent, [impression(now())]), bunch(campaign, [impression(now()), row])])
    assert refused == Refused({campaign: RefusalCause.DUPLICATE})


async def test_an_id_belongs_to_its_campaign_and_day(store: Store) -> None:
    """The same id is another event in another campaign, and on another identity day."""
    one, other = await new_campaign(store), await new_campaign(store)
    row = impression(now())
    yesterday = replace(row, day=row.day - 1, occurred_us=row.occurred_us - DAY_US)
    assert await store.flush([bunch(one, [row]), bunch(other, [row])]) == Committed()
    assert await store.flush([bunch(one, [yesterday], day=row.day)]) == Committed()


async def test_a_refused_flush_leaves_nothing(store: Store) -> None:
    """One refusing campaign undoes the rows, the ledger and the report of all."""
    good, bad = await new_campaign(store), await new_campaign(store, total_budget_micros=Micros(1))
    row = impression(now())
    refused = await store.flush([bunch(good, [row]), bunch(bad, [impression(now())])])
    assert refused == Refused({bad: RefusalCause.BUDGET})
    assert (await ledger_of(store, good)).spend.spent_micros == 0
    assert await store.look_up([Wanted(good, row.event_id, None)]) == {}
    report = await store.report(good, None, None)
    assert report is not None
    assert report.impressions == 0
    assert await store.flush([bunch(good, [row])]) == Committed()


async def test_every_refusing_campaign_is_named(store: Store) -> None:
    """Three campaigns refuse for three reasons, a fourth would not."""
    good, poor, fenced, ahead = [
        await new_campaign(store, total_budget_micros=Micros(budget)) for budget in (10**9, 1, 10**9, 10**9)
    ]
    today = now() // DAY_US
    await raise_generation(store, fenced)
    assert await store.flush([bunch(ahead, [impression(now())], day=today + 1)]) == Committed()
    refused = await store.flush([bunch(each, [impression(now())], day=today) for each in (ahead, good, fenced, poor)])
    assert refused == Refused({poor: RefusalCause.BUDGET, fenced: RefusalCause.GENERATION, ahead: RefusalCause.DAY})


async def test_many_campaigns_in_one_flush(store: Store) -> None:
    """Batches of one campaign are added up, whatever their order, and each keeps its tag."""
    campaigns = [await new_campaign(store) for _ in range(5)]
    batches = [
        bunch(campaign, [impression(now()), click(now())], tag=tag)
        for tag, campaign in enumerate([*campaigns, *reversed(campaigns)], 1)
    ]
    assert await store.flush(batches) == Committed()
    for campaign in campaigns:
        assert (await ledger_of(store, campaign)).spend.spent_micros == 2 * COST
    found = await store.look_up([Wanted(each.campaign_id, row.event_id, None) for each in batches for row in each.rows])
    assert all(found[each.campaign_id, row.event_id].batch == each.tag for each in batches for row in each.rows)


async def test_reports_are_exact_for_any_bounds(store: Store) -> None:
    """Whole hours and ragged edges count the same events as a count over all of them; the end is not included."""
    campaign = await new_campaign(store)
    start = (now() // HOUR_US - 30) * HOUR_US
    instants = [start + step * 17 * 60_000_000 for step in range(90)] + [start, start + HOUR_US - 1, start + HOUR_US]
    rows = [(impression if at % 2 else click)(at, occurred_us=at) for at in instants]
    assert await store.flush([bunch(campaign, rows, day=now() // DAY_US)]) == Committed()
    edges = [None, start, start + 1, start + HOUR_US - 1, start + HOUR_US, start + 90 * 60_000_000, start + 9 * HOUR_US]
    for low in edges:
        for high in edges:
            within = [row for row in rows if (low or 0) <= row.occurred_us < (high or 1 << 60)]
            report = await store.report(campaign, low, high)
            assert report is not None
            assert report.impressions == sum(row.event_type is EventType.IMPRESSION for row in within)
            assert report.clicks == sum(row.event_type is EventType.CLICK for row in within)
            assert report.spend_micros == sum(row.cost_micros for row in within)


async def test_an_event_without_a_time_counts_when_it_was_received(store: Store) -> None:
    """Whatever day its id tells: 48 h before its receipt, or 5 minutes after it."""
    campaign = await new_campaign(store)
    midnight = now() // DAY_US * DAY_US
    instants = [midnight - 1, midnight, midnight + HOUR_US // 2, midnight + DAY_US - 1]
    days = [(at + told) // DAY_US for at in instants for told in (-2 * DAY_US, 0, 300 * 1_000_000)]
    rows = [impression(at, day=day) for at, day in zip([at for at in instants for _ in range(3)], days, strict=True)]
    assert await store.flush([bunch(campaign, rows, day=now() // DAY_US)]) == Committed()
    for at in instants:
        report = await store.report(campaign, at, at + 1)
        assert report is not None
        assert report.impressions == 3


async def test_a_report_of_an_unknown_campaign_is_none(store: Store) -> None:
    """There is no report of what does not exist."""
    assert await store.report(CampaignId(404), None, None) is None


async def test_look_up_by_day_and_on_any_day(store: Store) -> None:
    """A day that is not the identity day does not find the event; without days it is found wherever it is."""
    campaign = await new_campaign(store)
    row = impression(now())
    await store.flush([bunch(campaign, [row])])
    key = (campaign, row.event_id)
    assert key in await store.look_up([Wanted(campaign, row.event_id, [row.day - 2, row.day - 1, row.day])])
    assert key in await store.look_up([Wanted(campaign, row.event_id, None)])
    assert await store.look_up([Wanted(campaign, row.event_id, [row.day - 1])]) == {}
    assert await store.look_up([Wanted(campaign, bytes(16), None), Wanted(CampaignId(404), row.event_id, None)]) == {}
    assert await store.look_up([]) == {}


@pytest.mark.parametrize("dated", [True, False])
async def test_a_look_up_is_of_one_campaign(store: Store, dated: bool) -> None:
    """Campaigns that have the same id find each its own event, and a third one finds none."""
    one, other, third = [await new_campaign(store) for _ in range(3)]
    row = impression(now())
    assert (
        await store.flush([bunch(one, [row], tag=1), bunch(other, [replace(row, user=b"bob")], tag=2)]) == Committed()
    )
    wanted = [Wanted(each, row.event_id, [row.day] if dated else None) for each in (one, other, third)]
    found = await store.look_up(wanted)
    assert {key: event.user_id for key, event in found.items()} == {
        (one, row.event_id): "ada",
        (other, row.event_id): "bob",
    }


async def test_raising_a_generation_tells_the_ledger(store: Store) -> None:
    """The raised row carries what is committed; whom nobody knows has none."""
    campaign = await new_campaign(store)
    await store.flush([bunch(campaign, [impression(now())])])
    rows = await store.raise_generations([campaign, CampaignId(404)], wait=True)
    row = rows[campaign]
    assert row is not None
    assert (row.campaign_id, row.generation, row.spend.spent_micros) == (campaign, 1, COST)
    assert rows.keys() == {campaign}


@pytest.mark.parametrize("wait", [True, False])
async def test_many_generations_are_raised_at_once(store: Store, wait: bool) -> None:
    """Each by one, in its own row, whatever their order; all others stay."""
    campaigns = [await new_campaign(store) for _ in range(20)]
    await raise_generation(store, campaigns[3])
    rows = await store.raise_generations([*reversed(campaigns[1:])], wait=wait)
    assert {campaign: row and (row.campaign_id, row.generation) for campaign, row in rows.items()} == {
        campaign: (campaign, 2 if campaign == campaigns[3] else 1) for campaign in campaigns[1:]
    }
    assert (await ledger_of(store, campaigns[0])).generation == 0
    for campaign in campaigns[1:]:
        refused = await store.flush([bunch(campaign, [impression(now())])])
        assert refused == Refused({campaign: RefusalCause.GENERATION})


async def test_no_generations_are_none(store: Store) -> None:
    """Nothing asked, nothing done."""
    assert await store.raise_generations([], wait=False) == {}


@pytest.mark.parametrize("row", [impression, click])
async def test_a_row_is_untouched_until_its_first_commit(store: Store, row: Callable[[int], Line]) -> None:
    """A free event touches it, too: a recovery reads nothing for a campaign that is untouched after the raise."""
    campaign = await new_campaign(store, total_budget_micros=Micros(COST))
    refused = await store.flush([bunch(campaign, [impression(now()), impression(now())])])
    assert refused == Refused({campaign: RefusalCause.BUDGET})
    assert (await raise_generation(store, campaign)).untouched
    assert await store.flush([bunch(campaign, [row(now())], generation=1)]) == Committed()
    assert not (await raise_generation(store, campaign)).untouched


async def test_halting_fences_what_was_reserved(store: Store) -> None:
    """The row tells why, under a new generation; a second halt changes neither; other campaigns go on."""
    campaign, other = await new_campaign(store), await new_campaign(store)
    assert (await ledger_of(store, campaign)).halted is None
    await store.halt(campaign, "its books differ")
    await store.halt(campaign, "another reason")
    row = await ledger_of(store, campaign)
    assert (row.generation, row.halted) == (1, "its books differ")
    refused = await store.flush([bunch(campaign, [impression(now())])])
    assert refused == Refused({campaign: RefusalCause.GENERATION})
    assert await store.flush([bunch(other, [impression(now())])]) == Committed()


async def test_whoever_raises_the_generation_of_a_halted_campaign_is_told(store: Store) -> None:
    """A recovery reads it in the row that it raised; owners of the campaign read it, too."""
    campaign = await new_campaign(store)
    await store.halt(campaign, "its books differ")
    row = await raise_generation(store, campaign)
    assert (row.generation, row.halted) == (2, "its books differ")
    stored = await store.campaign(campaign)
    assert stored is not None
    assert stored[1].halted == "its books differ"
    await store.halt(CampaignId(404), "nobody is there")


async def test_a_halt_is_told_as_a_raised_generation(store: Store) -> None:
    """Engines that listen read the row again."""
    campaign = await new_campaign(store)
    heard: list[tuple[int, int]] = []
    told = trio.Event()

    def hear(campaign_id: int, generation: int) -> None:
        heard.append((campaign_id, generation))
        told.set()

    async with store.listening(lambda *_: None, hear, lambda: None):
        await store.halt(campaign, "its books differ")
        with trio.fail_after(10):
            await told.wait()
    assert heard == [(campaign, 1)]


@pytest.mark.parametrize("whole", [False, True])
async def test_users_of_a_day(store: Store, whole: bool) -> None:
    """Impressions a user, each campaign on its own spend day; clicks, other days and other campaigns don't count."""
    campaign, behind, other = [await new_campaign(store) for _ in range(3)]
    today = now() // DAY_US
    rows = [impression(now(), user=b"user %d" % (number % 1_500)) for number in range(2_000)]
    await store.flush([bunch(each, [impression(now(), user=b"earlier")], day=today - 1) for each in (campaign, behind)])
    await store.flush([bunch(each, [*rows, click(now())], day=today) for each in (campaign, other)])
    users = gathered([piece async for piece in store.users_on({campaign: today, behind: today - 1}, whole=whole)])
    assert {each: dict(of_one) for each, of_one in users.items()} == {
        campaign: {f"user {number}": 2 if number < 500 else 1 for number in range(1_500)},
        behind: {"earlier": 1},
    }
    assert len(users[campaign]) == 1_500, "each user once"


@pytest.mark.parametrize("whole", [False, True])
async def test_users_of_a_day_whatever_their_identity_days(store: Store, whole: bool) -> None:
    """48 h of past and a zone's 14 hours: from three days before the spend day to the one after it."""
    campaign = await new_campaign(store)
    today = now() // DAY_US
    days = range(today - 3, today + 2)
    rows = [impression(now(), user=b"%d" % day, day=day) for day in days]
    assert await store.flush([bunch(campaign, rows, day=today)]) == Committed()
    users = gathered([piece async for piece in store.users_on({campaign: today}, whole=whole)])
    assert sorted(users[campaign]) == [(str(day), 1) for day in days]


async def test_the_ledger_knows_the_highest_id_time_that_was_committed(store: Store) -> None:
    """Of whatever flush, and however it was read; events that tell no time don't count, nor what was refused."""
    campaign = await new_campaign(store)
    assert (await ledger_of(store, campaign)).latest_us == 0
    at_us = now()
    for id_times in ((at_us, at_us + 7, NO_TIME), (at_us + 3,), (NO_TIME,)):
        rows = [impression(at_us, id_time_us=id_time_us) for id_time_us in id_times]
        assert await store.flush([bunch(campaign, rows)]) == Committed()
        assert (await ledger_of(store, campaign)).latest_us == at_us + 7
    both = [bunch(campaign, [impression(at_us, id_time_us=at_us + later)], tag=later) for later in (9, 8)]
    assert await store.flush(both) == Committed()
    refused = await store.flush([bunch(campaign, [impression(at_us, id_time_us=at_us + 99)], generation=7)])
    assert isinstance(refused, Refused)
    assert (await raise_generation(store, campaign)).latest_us == at_us + 9


@pytest.mark.parametrize("whole", [False, True])
async def test_what_a_rebuild_reads_comes_in_bounded_pieces(store: Store, whole: bool) -> None:
    """At most 10,000 of all campaigns together."""
    campaigns = [await new_campaign(store) for _ in range(3)]
    since = now()
    for campaign in campaigns:
        await store.flush([bunch(campaign, [impression(since, user=b"%d" % at) for at in range(7_000)])])
    pieces: list[Mapping[CampaignId, Sequence[object]]] = [
        piece async for piece in store.users_on(dict.fromkeys(campaigns, since // DAY_US), whole=whole)
    ]
    assert max(sum(map(len, piece.values())) for piece in pieces) <= 10_000
    assert {each: len(set(of_one)) for each, of_one in gathered(pieces).items()} == dict.fromkeys(campaigns, 7_000)


async def test_how_many_events_there_are_since_a_day(store: Store) -> None:
    """Events of every type; those from before the day are not all counted, and nothing is 0."""
    campaign, none = await new_campaign(store), await new_campaign(store)
    today = now() // DAY_US
    old = [impression(now(), occurred_us=now() - 12 * DAY_US) for _ in range(9)]
    await store.flush([bunch(campaign, [*old, impression(now()), click(now())], day=today)])
    assert await store.events_since({campaign: today, none: today}) == {campaign: 2, none: 0}


async def test_a_stream_may_be_left_early(store: Store) -> None:
    """A reader that stops half-way leaves the store as usable as before."""
    campaign = await new_campaign(store)
    await store.flush([bunch(campaign, [impression(now(), user=b"%d" % at) for at in range(9_000)])])
    for _ in range(Settings().query_connections + 1):
        async with aclosing(store.users_on({campaign: now() // DAY_US}, whole=True)) as stream:
            async for piece in stream:
                assert piece[campaign]
                break
    assert await store.probe() is None


async def test_campaigns_are_what_was_written(store: Store) -> None:
    """A campaign comes back field by field, with version 1 and nothing spent."""
    new = NewCampaign(
        name="Frühling", pricing_model=PricingModel.CPA, unit_price_micros=Micros(2**53 - 1),
        total_budget_micros=Micros(2**53 - 1), daily_budget_micros=Micros(1), freq_cap_impressions_per_day=3,
        active=False, pacing=Pacing.EVEN, timezone="Europe/Berlin",
    )  # fmt: skip
    plan, spend = await store.create_campaign(new)
    for name in new.__struct_fields__:
        assert getattr(plan, name) == getattr(new, name)
    assert (plan.version, spend.spent_micros, spend.today_micros) == (1, 0, 0)
    assert abs(plan.created_us - now()) < 60_000_000
    assert await store.campaign(plan.id) == (plan, spend)
    assert await store.campaign(CampaignId(404)) is None


async def test_pages_of_campaigns(store: Store) -> None:
    """Pages follow each other in order of id."""
    made = [await new_campaign(store, name=f"n{number}") for number in range(5)]
    assert [plan.id for plan, _ in await store.page_campaigns(0, 2)] == made[:2]
    assert [plan.id for plan, _ in await store.page_campaigns(made[1], 10)] == made[2:]
    assert await store.page_campaigns(made[-1], 10) == []


async def test_changes_rise_the_version_and_reach_the_judge(store: Store) -> None:
    """Changed fields, and only they, are new; the next flush is judged by the new budget."""
    campaign = await new_campaign(store, total_budget_micros=Micros(1))
    assert isinstance(await store.flush([bunch(campaign, [impression(now())])]), Refused)
    changes = {
        "total_budget_micros": 5 * COST,
        "pacing": Pacing.EVEN,
        "freq_cap_impressions_per_day": 2,
        "active": False,
    }
    changed = await store.update_campaign(campaign, changes)
    assert changed is not None
    plan = changed[0]
    assert (plan.version, plan.name, plan.total_budget_micros) == (2, "spring", 5 * COST)
    assert (plan.pacing, plan.freq_cap_impressions_per_day, plan.active) == (Pacing.EVEN, 2, False)
    assert await store.flush([bunch(campaign, [impression(now())])]) == Committed()
    unchanged = await store.update_campaign(campaign, {})
    assert unchanged is not None
    assert unchanged[0].version == 2
    assert await store.update_campaign(CampaignId(404), {"active": True}) is None


async def test_changes_at_once_are_all_kept(store: Store) -> None:
    """Each is made to what the one before it has left."""
    campaign = await new_campaign(store)
    async with trio.open_nursery() as nursery:
        for changes in ({"active": False}, {"freq_cap_impressions_per_day": 2}, {"pacing": Pacing.EVEN}):
            nursery.start_soon(store.update_campaign, campaign, changes)
    plan, _ = (await store.plans([campaign]))[campaign]
    assert (plan.version, plan.active, plan.freq_cap_impressions_per_day, plan.pacing) == (4, False, 2, Pacing.EVEN)


async def test_plans_of_unknown_campaigns_are_absent(store: Store) -> None:
    """Only what exists is answered."""
    campaign = await new_campaign(store)
    plans = await store.plans([campaign, CampaignId(404)])
    assert set(plans) == {campaign}
    assert plans[campaign][0].version == 1


async def test_engines_know_of_each_other(store: Store) -> None:
    """Numbers are never given twice; who said goodbye is not alive any more."""
    first, second = await store.register_engine(), await store.register_engine()
    assert second > first
    reply = await store.heartbeat(first)
    assert {first, second} <= reply.alive
    assert reply.newest == second
    assert abs(reply.clock_offset_us) < 5_000_000
    await store.heartbeat(second, 7_000_000)
    assert (await store.heartbeat(first, 9_000_000)).slowest_look_up_us == 7_000_000  # of the others
    assert (await store.heartbeat(second, 0)).slowest_look_up_us == 9_000_000
    assert (await store.heartbeat(first, 9_000_000)).slowest_look_up_us == 0
    await store.heartbeat(second, 7_000_000)
    await store.retire_engine(second)
    after = await store.heartbeat(first)
    assert second not in after.alive
    assert after.slowest_look_up_us == 0
    assert await store.register_engine() > second


async def test_news_reaches_who_listens(store: Store) -> None:
    """A changed plan and a raised generation are told, with their numbers."""
    campaign = await new_campaign(store)
    news: list[tuple[str, int, int]] = []
    heard = trio.Event()

    def hear(what: str, campaign_id: int, number: int) -> None:
        news.append((what, campaign_id, number))
        if len(news) == 2:
            heard.set()

    async with store.listening(
        lambda campaign_id, version: hear("plan", campaign_id, version),
        lambda campaign_id, generation: hear("generation", campaign_id, generation),
        lambda: None,
    ):
        await store.update_campaign(campaign, {"active": False})
        await raise_generation(store, campaign)
        with trio.fail_after(10):
            await heard.wait()
    assert news == [("plan", campaign, 2), ("generation", campaign, 1)]
