"""What the sweep relies on in its ledger: the fake and the real Redis pass the same tests."""

from __future__ import annotations

from engine.leftovers import Advance, Drop, Held, Survey, SweptLedger, Used
from engine.model import CampaignId
from engine.ports import (
    AHEAD,
    ALL_LOOKED_UP,
    BILLABLE,
    COUNTS_FOR_CAP,
    FREE,
    NO_TIME,
    Closed,
    DayBehind,
    Done,
    Lost,
    Reserved,
    Stale,
)
from tests.contract.reservations import (
    AT_US,
    BUCKET_US,
    CAMPAIGN,
    COST,
    DAY,
    Rig,
    ask,
    ask_all,
    begin,
    commit,
    load_users,
    opened,
    reserve,
    reserved,
    spend,
)

MINUTE_US = 60_000_000
CAPPED = bytes([BILLABLE | COUNTS_FOR_CAP])


async def found(ledger: SweptLedger) -> dict[CampaignId, Held]:
    """Everything that there is, survey after survey."""
    everything: dict[CampaignId, Held] = {}
    cursor = 0
    while True:
        survey = await ledger.survey(cursor)
        assert isinstance(survey, Survey)
        everything |= {held.campaign_id: held for held in survey.held}
        cursor = survey.cursor
        if not cursor:
            return everything


async def used(ledger: SweptLedger, events: int = 2) -> Held:
    """A campaign with committed events and a user, as a survey finds it."""
    await opened(ledger)
    call = reserve(events, kinds=CAPPED * events, users=["ada"] * events, cap=10)
    await ask_all(ledger, [call, commit(call)])
    return (await found(ledger))[CAMPAIGN]


def move_on(minutes: int, day: int = DAY, generation: int = 1) -> Advance:
    """What a sweep asks for so many minutes later."""
    return Advance(CAMPAIGN, generation, day, AT_US + minutes * MINUTE_US, BUCKET_US)


async def give_back(ledger: SweptLedger, call: Advance | Drop) -> object:
    """What one call hears."""
    (reply,) = await ledger.give_back([call])
    return reply


async def test_a_survey_finds_what_is_held(rig: Rig) -> None:
    """Every campaign in the end: its state, and how much there is in it."""
    campaigns = [CampaignId(number) for number in range(100, 110)]
    for campaign in campaigns:
        await opened(rig.ledger, campaign)
    call = reserve(3, kinds=CAPPED * 3, users=["ada", "bob", "ada"], cap=10, campaign_id=campaigns[0])
    await ask(rig.ledger, call)
    await begin(rig.ledger, campaigns[1], 5)
    everything = await found(rig.ledger)
    assert everything.keys() == set(campaigns)
    assert everything[campaigns[0]] == Held(campaigns[0], 1, True, True, DAY, 0, AT_US, AT_US, 1, 2, 3)
    assert everything[campaigns[1]] == Held(campaigns[1], 5, True, False, 0, 0, 0, 0, 0, 0, 0)
    assert everything[campaigns[2]] == Held(campaigns[2], 1, True, True, DAY, 0, AT_US, 0, 0, 0, 0)
    rig.restart()
    assert not any(held.ours for held in (await found(rig.ledger)).values())


async def test_moving_on_leaves_ids_and_users_behind(rig: Rig) -> None:
    """The money stays, and the watermark is where they were: the campaign goes on where it was."""
    await used(rig.ledger)
    with rig.full():
        for minutes in (10, 20):
            assert await give_back(rig.ledger, move_on(minutes, day=DAY + 1)) == Done()
    began_us = AT_US + 20 * MINUTE_US
    assert (await found(rig.ledger))[CAMPAIGN] == Held(CAMPAIGN, 1, True, True, DAY + 1, 2, began_us, AT_US, 0, 0, 0)
    reply = await ask(rig.ledger, reserve(day=DAY + 1, time_us=AT_US + 1))
    assert reply == Reserved(b"A", 3 * COST, COST, 2, AT_US)


async def test_a_sweep_uses_no_campaign(rig: Rig) -> None:
    """When it was used last is told apart from when its bucket began: accepted events and buckets that calls close."""
    await used(rig.ledger)
    assert await give_back(rig.ledger, move_on(10)) == Done()
    held = (await found(rig.ledger))[CAMPAIGN]
    assert (held.began_us, held.used_us) == (AT_US + 10 * MINUTE_US, AT_US)
    looked_up = {"most_us": NO_TIME, "unlooked_us": ALL_LOOKED_UP, "looked_bucket": 1}
    free = reserve(at_us=AT_US + 11 * MINUTE_US, kinds=bytes([FREE]), **looked_up)
    for call, used_us in (
        (free, free.at_us),
        (reserve(at_us=free.at_us + 500_000), free.at_us),
        (reserve(at_us=AT_US + 19 * MINUTE_US, total_budget_micros=0), AT_US + 19 * MINUTE_US),
        (reserve(at_us=AT_US + 20 * MINUTE_US, total_budget_micros=0), AT_US + 19 * MINUTE_US),
    ):
        await ask_all(rig.ledger, [call, commit(call)])
        assert (await found(rig.ledger))[CAMPAIGN].used_us == used_us


async def test_ids_that_were_ahead_go_when_their_time_has_passed(rig: Rig) -> None:
    """Though nothing else is used any more; the watermark is where they were, and above no id that is fresh then."""
    await opened(rig.ledger)
    for minutes in (1, 3, 2):
        most_us = AT_US + minutes * MINUTE_US
        call = reserve(kinds=bytes([BILLABLE | AHEAD]), time_us=most_us, most_us=NO_TIME, most_ahead_us=most_us)
        await ask_all(rig.ledger, [call, commit(call)])
    for seconds, ids in ((100, 3), (179, 3), (190, 3), (200, 0)):
        at_us = AT_US + seconds * 1_000_000
        assert await give_back(rig.ledger, Advance(CAMPAIGN, 1, DAY, at_us, 1_000_000)) == Done()
        assert (seconds, (await found(rig.ledger))[CAMPAIGN].ids) == (seconds, ids)
    reply = await ask(rig.ledger, reserve(total_budget_micros=0, time_us=AT_US + 3 * MINUTE_US + 1))
    assert isinstance(reply, Reserved)
    assert reply.watermark_us == AT_US + 3 * MINUTE_US


async def test_a_day_and_a_window_never_move_back(rig: Rig) -> None:
    """Whoever sweeps may have decided long ago, or by a clock that is behind."""
    held = await used(rig.ledger)
    assert await give_back(rig.ledger, move_on(-5, day=DAY - 1)) == Done()
    assert await give_back(rig.ledger, move_on(7)) == Done()
    assert (await found(rig.ledger))[CAMPAIGN] == held
    await give_back(rig.ledger, move_on(8, day=DAY + 1))
    assert await ask(rig.ledger, reserve()) == DayBehind(DAY + 1)


async def test_what_is_dropped_is_lost(rig: Rig) -> None:
    """All of it, though Redis is full; its next use rebuilds it."""
    held = await used(rig.ledger)
    with rig.full():
        assert await give_back(rig.ledger, Drop(held)) == Done()
    assert await found(rig.ledger) == {}
    assert await ask(rig.ledger, reserve()) == Lost()
    assert await give_back(rig.ledger, Drop(held)) == Lost()
    await opened(rig.ledger, sums=spend(2 * COST))
    assert await ask(rig.ledger, reserve()) == reserved(b"A", 3 * COST, 3 * COST)


async def test_a_campaign_with_a_reservation_is_not_dropped(rig: Rig) -> None:
    """It may commit still."""
    await opened(rig.ledger)
    call = reserve()
    await ask(rig.ledger, call)
    held = (await found(rig.ledger))[CAMPAIGN]
    assert await give_back(rig.ledger, Drop(held)) == Used()
    assert await ask(rig.ledger, reserve(ids=call.ids)) == reserved(b"P", COST, COST)


async def test_a_campaign_that_was_used_again_is_not_dropped(rig: Rig) -> None:
    """A bucket has closed since it was found."""
    held = await used(rig.ledger)
    again = reserve(at_us=AT_US + 10 * MINUTE_US)
    await ask_all(rig.ledger, [again, commit(again)])
    assert await give_back(rig.ledger, Drop(held)) == Used()


async def test_a_campaign_that_was_recovered_meanwhile_is_not_dropped(rig: Rig) -> None:
    """Another generation, or closed by now."""
    held = await used(rig.ledger)
    await begin(rig.ledger, CAMPAIGN, 2)
    assert await give_back(rig.ledger, Drop(held)) == Stale(2)
    open_held = Held(**{**{name: getattr(held, name) for name in held.__slots__}, "generation": 2})
    assert await give_back(rig.ledger, Drop(open_held)) == Closed()
    assert await give_back(rig.ledger, move_on(10, generation=2)) == Closed()


async def test_what_another_memory_image_wrote_is_dropped_with_its_reservations(rig: Rig) -> None:
    """No caller trusts it, so nothing in it can ever count."""
    await opened(rig.ledger)
    await ask(rig.ledger, reserve())
    rig.restart()
    held = (await found(rig.ledger))[CAMPAIGN]
    assert await give_back(rig.ledger, Drop(held)) == Done()
    assert await found(rig.ledger) == {}


async def test_a_rebuild_that_has_stopped_is_dropped(rig: Rig) -> None:
    """Closed, with what was loaded so far."""
    assert await begin(rig.ledger, CAMPAIGN, 3)
    await load_users(rig.ledger, CAMPAIGN, 3, [("ada", 1)])
    held = (await found(rig.ledger))[CAMPAIGN]
    assert held == Held(CAMPAIGN, 3, True, False, 0, 0, 0, 0, 0, 1, 0)
    assert await give_back(rig.ledger, Drop(held)) == Done()
    assert await found(rig.ledger) == {}
