"""What the engine relies on in its ledger: the fake and the real Redis pass the same tests."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from engine.model import MICROS_MAX, CampaignId, CampaignSpend
from engine.ports import (
    AHEAD,
    ALL_LOOKED_UP,
    BILLABLE,
    COUNTS_FOR_CAP,
    FREE,
    NO_TIME,
    Behind,
    Closed,
    DayBehind,
    Done,
    Ledger,
    Lost,
    NotRun,
    PlanBehind,
    Reserve,
    Reserved,
    Resolve,
    Stale,
)
from engine.recovery import NO_TAG
from engine.steps import Begin, Emptied, Kept, LoadUsers, Mismatch, Pending
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
    ids_of,
    letters,
    load_users,
    new_ids,
    opened,
    ready,
    reserve,
    reserved,
    settle,
    spend,
    to_open,
    void,
)

CAPPED = bytes([BILLABLE | COUNTS_FOR_CAP])


@pytest.fixture
async def ledger(rig: Rig) -> Ledger:
    """A ledger with one open campaign."""
    await opened(rig.ledger)
    return rig.ledger


async def test_its_clock_can_be_compared(ledger: Ledger) -> None:
    """Here it is the machine's own."""
    offset_us = await ledger.clock_offset_us()
    assert offset_us is not None
    assert abs(offset_us) < 5_000_000


# --- letters ---


async def test_accepted_events_are_reserved(ledger: Ledger) -> None:
    """A: each adds its cost to both sums."""
    assert await ask(ledger, reserve(3)) == reserved(b"AAA", 3 * COST, 3 * COST)
    assert await ask(ledger, reserve(2, cost_micros=7)) == reserved(b"AA", 3 * COST + 14, 3 * COST + 14)


async def test_the_same_id_twice_in_a_call_is_in_flight(ledger: Ledger) -> None:
    """P: the second sees the first."""
    twice = new_ids(1)
    assert await ask(ledger, reserve(ids=twice + new_ids(1) + twice)) == reserved(b"AAP", 2 * COST, 2 * COST)


async def test_a_refused_id_is_in_flight_for_the_rest_of_its_call(ledger: Ledger) -> None:
    """P: also when the first was refused, because both share its fate."""
    twice = new_ids(1)
    assert await letters(ledger, reserve(ids=twice + twice, total_budget_micros=0)) == b"TP"
    assert await letters(ledger, reserve(ids=twice)) == b"A"


async def test_a_pending_id_is_in_flight(ledger: Ledger) -> None:
    """P: reserved by an earlier call that is not committed."""
    first = reserve()
    await ask(ledger, first)
    assert await ask(ledger, reserve(ids=first.ids)) == reserved(b"P", COST, COST)


async def test_a_committed_id_is_a_duplicate(ledger: Ledger) -> None:
    """D: its tag is no longer pending."""
    first = reserve()
    assert await ask_all(ledger, [first, commit(first), reserve(ids=first.ids)]) == [
        reserved(b"A", COST, COST),
        Done(),
        reserved(b"D", COST, COST),
    ]


async def test_a_tag_committed_by_the_same_call_is_committed(ledger: Ledger) -> None:
    """D: the committed tags count before the letters, and their money stays spent."""
    first, other = reserve(), reserve()
    await ask_all(ledger, [first, other])
    again = reserve(ids=first.ids + other.ids, committed=[first.tag])
    assert await ask(ledger, again) == reserved(b"DP", 2 * COST, 2 * COST)
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: [other.tag]}


async def test_unknown_committed_tags_do_no_harm(ledger: Ledger) -> None:
    """A tag may be told again and again, up to 1,000 in a call."""
    assert await letters(ledger, reserve(committed=list(range(1_000)))) == b"A"


async def test_a_user_at_the_cap_is_refused(ledger: Ledger) -> None:
    """C: each event of a call sees those before it, and other users have their own count."""
    call = reserve(5, kinds=CAPPED * 5, users=["ada", "bob", "ada", "ada", "bob"], cap=2)
    assert await letters(ledger, call) == b"AAACA"
    again = reserve(3, kinds=CAPPED * 3, users=["ada", "bob", "eve"], cap=2)
    assert await letters(ledger, again) == b"CCA"


async def test_only_what_counts_for_the_cap_is_capped(ledger: Ledger) -> None:
    """Clicks of a cpm campaign neither count nor are refused."""
    kinds = bytes([FREE, COUNTS_FOR_CAP, FREE, COUNTS_FOR_CAP, BILLABLE])
    assert await letters(ledger, reserve(5, kinds=kinds, users=["ada"] * 5, cap=1)) == b"AAACA"


async def test_without_a_cap_users_are_not_read(ledger: Ledger) -> None:
    """No cap: nobody is counted, and nobody is refused."""
    assert await letters(ledger, reserve(2, kinds=CAPPED * 2, users=[])) == b"AA"


async def test_long_and_foreign_users_are_told_apart(ledger: Ledger) -> None:
    """Users of 1 to 128 bytes of UTF-8 arrive whole."""
    users = ["a", "b" * 31, "b" * 32, "b" * 127 + "x", "b" * 127 + "y", "\N{GRINNING FACE}" * 32, "1", "01"]
    for expected in (b"A" * 8, b"C" * 8):
        assert await letters(ledger, reserve(8, kinds=CAPPED * 8, users=users, cap=1)) == expected


async def test_the_total_budget_is_never_passed(ledger: Ledger) -> None:
    """T: an event that would pass it, by however little; what exactly fills it is accepted."""
    assert await letters(ledger, reserve(3, total_budget_micros=2 * COST)) == b"AAT"
    assert await letters(ledger, reserve(total_budget_micros=3 * COST - 1)) == b"T"
    assert await letters(ledger, reserve(total_budget_micros=3 * COST)) == b"A"


async def test_the_daily_budget_is_never_passed(ledger: Ledger) -> None:
    """Y: today's sum is compared, and a smaller one may still fit."""
    assert await letters(ledger, reserve(3, daily_budget_micros=2 * COST)) == b"AAY"
    assert await letters(ledger, reserve(daily_budget_micros=2 * COST + 1, cost_micros=1)) == b"A"


async def test_the_allowance_is_never_passed(ledger: Ledger) -> None:
    """W: pacing's part of the daily budget."""
    assert await letters(ledger, reserve(3, allowance_micros=2 * COST)) == b"AAW"


async def test_free_events_pass_every_budget(ledger: Ledger) -> None:
    """A free event is accepted with all budgets used up, and costs nothing."""
    none = {"total_budget_micros": 0, "daily_budget_micros": 0, "allowance_micros": 0}
    call = reserve(3, kinds=bytes([FREE, BILLABLE, FREE]), **none)
    assert await ask(ledger, call) == reserved(b"ATA", 0, 0)


async def test_a_free_event_is_still_told_from_a_duplicate(ledger: Ledger) -> None:
    """P and D go for free events too."""
    first = reserve(kinds=bytes([FREE]))
    again = reserve(ids=first.ids, kinds=bytes([FREE]))
    await ask(ledger, first)
    assert await letters(ledger, again) == b"P"
    assert await letters(ledger, replace(again, committed=[first.tag])) == b"D"


async def test_an_inactive_campaign_accepts_nothing(ledger: Ledger) -> None:
    """A budget of -1 refuses events of no cost with T, while P and D are still told."""
    first, second = reserve(), reserve()
    await ask_all(ledger, [first, second, commit(first)])
    none = {"total_budget_micros": -1, "cost_micros": 0}
    assert await letters(ledger, reserve(ids=first.ids + second.ids + new_ids(1), **none)) == b"DPT"


async def test_the_letters_have_an_order(ledger: Ledger) -> None:
    """P, D, C, T, Y, W, U: the first that holds is told."""
    none = {"total_budget_micros": COST, "daily_budget_micros": COST, "allowance_micros": COST, "cap": 1}
    first = reserve(kinds=CAPPED, users=["ada"], **none)
    assert await letters(ledger, first) == b"A"
    wide = {"kinds": CAPPED, "users": ["ada"]}
    assert await letters(ledger, reserve(ids=first.ids, **wide, **none)) == b"P"
    await ask(ledger, commit(first))
    assert await letters(ledger, reserve(ids=first.ids, **wide, **none)) == b"D"
    assert await letters(ledger, reserve(**wide, **none)) == b"C"
    wide["users"] = ["bob"]
    assert await letters(ledger, reserve(**wide, **none)) == b"T"
    none["total_budget_micros"] *= 2
    assert await letters(ledger, reserve(**wide, **none)) == b"Y"
    none["daily_budget_micros"] *= 2
    assert await letters(ledger, reserve(**wide, **none)) == b"W"
    none["allowance_micros"] *= 2
    assert await letters(ledger, reserve(**wide, **none, new_users=False)) == b"U"
    assert await letters(ledger, reserve(**wide, **none)) == b"A"


# --- sizes and sums ---


async def test_a_call_carries_a_thousand_events(ledger: Ledger) -> None:
    """1,000 events of 1,000 users with long names, and 1,000 committed tags."""
    users = [f"{at:0128}" for at in range(1_000)]
    call = reserve(1_000, kinds=CAPPED * 1_000, users=users, cap=1, committed=list(range(1_000)))
    assert await ask(ledger, call) == reserved(b"A" * 1_000, 1_000 * COST, 1_000 * COST)
    assert await letters(ledger, reserve(1_000, kinds=CAPPED * 1_000, users=users, cap=1)) == b"C" * 1_000
    assert await letters(ledger, reserve(ids=call.ids)) == b"P" * 1_000
    assert await ask(ledger, void(call)) == Done()
    assert await ask(ledger, reserve(1_000, kinds=CAPPED * 1_000, users=users, cap=1)) == reserved(
        b"A" * 1_000, 1_000 * COST, 1_000 * COST
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"kinds": b"\1" * 2},
        {"kinds": b""},
        {"ids": bytes(1_001 * 16), "kinds": b"\1" * 1_001},
        {"cap": 1, "users": ["ada", "bob"]},
        {"committed": list(range(1_001))},
    ],
    ids=["kinds", "no events", "too many", "users", "committed"],
)
async def test_arguments_that_do_not_fit_do_nothing(ledger: Ledger, wrong: dict[str, object]) -> None:
    """A call that is not what the functions read is refused before anything is written."""
    assert isinstance(await ask(ledger, reserve(**wrong)), NotRun)
    assert await ask(ledger, reserve()) == reserved(b"A", COST, COST)


async def test_money_is_exact_up_to_the_last_micro(rig: Rig) -> None:
    """Sums reach 2^53 - 1, and not one micro more."""
    sums = spend(MICROS_MAX - 3, today=MICROS_MAX - 3)
    await opened(rig.ledger, sums=sums)
    wide = {"total_budget_micros": MICROS_MAX, "daily_budget_micros": MICROS_MAX, "allowance_micros": MICROS_MAX}
    assert await letters(rig.ledger, reserve(cost_micros=MICROS_MAX, **wide)) == b"T"
    call = reserve(3, cost_micros=1, **wide)
    assert await ask(rig.ledger, call) == reserved(b"AAA", MICROS_MAX, MICROS_MAX)
    assert await ask(rig.ledger, reserve(cost_micros=1, **wide)) == reserved(b"T", MICROS_MAX, MICROS_MAX)
    await ask(rig.ledger, void(call))
    assert await begin(rig.ledger, CAMPAIGN, 2) == Kept([])
    assert await ready(rig.ledger, CAMPAIGN, 2, sums, 1) == Done()


# --- plan and day ---


async def test_an_older_plan_is_refused(ledger: Ledger) -> None:
    """The newest plan seen is remembered, and told to who is behind."""
    assert await letters(ledger, reserve(plan_version=3)) == b"A"
    assert await ask(ledger, reserve(plan_version=2)) == PlanBehind(3)
    assert await ask(ledger, reserve(plan_version=3)) == reserved(b"A", 2 * COST, 2 * COST)


async def test_a_plan_is_remembered_though_nothing_was_accepted(ledger: Ledger) -> None:
    """A refusal under a newer plan makes it known, too."""
    assert await letters(ledger, reserve(plan_version=3, total_budget_micros=0)) == b"T"
    assert await ask(ledger, reserve(plan_version=2)) == PlanBehind(3)


async def test_midnight_begins_a_new_day(ledger: Ledger) -> None:
    """Today and the users' counts begin anew; the total and the ids go on."""
    capped = {"kinds": CAPPED, "users": ["ada"], "cap": 1}
    first = reserve(**capped)
    assert await ask(ledger, first) == reserved(b"A", COST, COST)
    assert await ask(ledger, reserve(**capped, day=DAY + 1)) == reserved(b"A", 2 * COST, COST)
    assert await letters(ledger, reserve(**capped, day=DAY + 1)) == b"C"
    assert await letters(ledger, reserve(ids=first.ids, day=DAY + 1)) == b"P"


async def test_midnight_forgets_users_who_have_not_come_yet(ledger: Ledger) -> None:
    """The new day counts everybody anew, not only those of its first call."""
    capped = {"kinds": CAPPED * 2, "cap": 2}
    await ask(ledger, reserve(2, users=["ada", "ada"], **capped))
    assert await letters(ledger, reserve(2, users=["bob", "eve"], day=DAY + 1, **capped)) == b"AA"
    assert await letters(ledger, reserve(2, users=["ada", "ada"], day=DAY + 1, **capped)) == b"AA"


async def test_days_only_move_forward(ledger: Ledger) -> None:
    """Whoever lags behind is told the day, also when nothing was accepted on it."""
    assert await letters(ledger, reserve(day=DAY + 1, total_budget_micros=0)) == b"T"
    assert await ask(ledger, reserve(day=DAY)) == DayBehind(DAY + 1)


async def test_a_cap_that_is_new_today_has_the_campaign_rebuilt(ledger: Ledger) -> None:
    """Impressions accepted without a cap were not counted: the ledger disowns its state, and Postgres tells them."""
    call = reserve(users=["ada"])
    await ask_all(ledger, [call, commit(call)])
    capped = {"kinds": CAPPED, "users": ["ada"], "cap": 1, "plan_version": 2}
    assert await ask(ledger, reserve(**capped)) == Lost()
    assert await ask(ledger, reserve()) == Lost()
    assert await begin(ledger, CAMPAIGN, 2) == Emptied()
    assert await load_users(ledger, CAMPAIGN, 2, [("ada", 1)]) == Done()
    assert await ready(ledger, CAMPAIGN, 2, spend(COST), 2) == Done()
    assert await letters(ledger, reserve(**capped, generation=2)) == b"C"


async def test_a_cap_that_is_new_on_a_new_day_needs_nothing(ledger: Ledger) -> None:
    """Yesterday's uncounted impressions no longer matter."""
    await ask(ledger, reserve())
    assert await letters(ledger, reserve(kinds=CAPPED, users=["ada"], cap=1, day=DAY + 1)) == b"A"


# --- the dedup window ---


async def window(ledger: Ledger, day: int = DAY) -> tuple[int, int]:
    """The current bucket and the watermark, told by a call that closes nothing and accepts nothing."""
    reply = await ask(ledger, reserve(total_budget_micros=0, time_us=ALL_LOOKED_UP, day=day))
    assert isinstance(reply, Reserved)
    return reply.bucket, reply.watermark_us


async def advance(ledger: Ledger) -> None:
    """Close a bucket."""
    await ask(ledger, reserve(total_budget_micros=0, time_us=ALL_LOOKED_UP, bucket_us=0))


@pytest.mark.parametrize("bucket", [0, 1])
async def test_an_id_is_known_in_its_bucket_and_the_next(ledger: Ledger, bucket: int) -> None:
    """And no more when both have closed: then the watermark is where its id time was."""
    for _ in range(bucket):
        await advance(ledger)
    first = reserve(time_us=AT_US - 7)
    await ask_all(ledger, [first, commit(first)])
    for place in ((bucket, 0), (bucket + 1, 0)):
        assert await window(ledger) == place
        assert await letters(ledger, reserve(ids=first.ids)) == b"D"
        await advance(ledger)
    assert await window(ledger) == (bucket + 2, AT_US - 7)
    assert await letters(ledger, reserve(ids=first.ids)) == b"A"


async def test_what_was_not_looked_up_must_be_above_the_watermark(ledger: Ledger) -> None:
    """BEHIND: else it may be known to Postgres alone. Nothing is done, and the caller learns where the window is."""
    await ask(ledger, reserve(time_us=AT_US, tag=1))
    await ask(ledger, reserve(time_us=AT_US, committed=[1], tag=2))
    await advance(ledger)
    await ask(ledger, reserve(time_us=AT_US + 5, committed=[2], tag=3))
    await advance(ledger)
    assert await ask(ledger, reserve(time_us=AT_US)) == Behind(2, AT_US)
    assert await ask(ledger, reserve(unlooked_us=NO_TIME, committed=[3])) == Behind(2, AT_US)
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: [3]}
    assert await letters(ledger, reserve(time_us=AT_US + 1)) == b"A"


async def test_a_look_up_counts_for_one_bucket(ledger: Ledger) -> None:
    """BEHIND: what committed after it may have been forgotten by any other."""
    await advance(ledger)
    looked = {"unlooked_us": ALL_LOOKED_UP, "most_us": NO_TIME}
    for bucket in (0, 2):
        assert await ask(ledger, reserve(looked_bucket=bucket, **looked)) == Behind(1, 0)
    assert await letters(ledger, reserve(looked_bucket=1, **looked)) == b"A"


async def test_the_watermark_is_the_highest_id_time_that_was_forgotten(ledger: Ledger) -> None:
    """Of any call into that bucket, and it never goes back."""
    for tag, time_us in ((1, AT_US), (2, AT_US + 9), (3, AT_US + 4)):
        await ask(ledger, reserve(time_us=time_us, tag=tag, committed=[tag - 1]))
    await advance(ledger)
    await ask(ledger, reserve(time_us=AT_US + 1, tag=4, committed=[3]))
    await advance(ledger)
    assert await window(ledger) == (2, AT_US + 9)
    await ask(ledger, reserve(total_budget_micros=0, committed=[4], time_us=ALL_LOOKED_UP))
    await advance(ledger)
    assert await window(ledger) == (3, AT_US + 9)


async def test_free_events_raise_the_watermark_as_others_do(ledger: Ledger) -> None:
    """They are committed, too, and no sum tells of them."""
    free = reserve(kinds=bytes([FREE]), time_us=AT_US + 3)
    await ask_all(ledger, [reserve(tag=1), commit(reserve(tag=1)), free, commit(free)])
    await advance(ledger)
    await advance(ledger)
    assert await window(ledger) == (2, AT_US + 3)


async def test_ids_that_were_refused_or_tell_no_time_move_no_watermark(ledger: Ledger) -> None:
    """Such ids are looked up in any case, and what was refused was not committed."""
    await ask(ledger, reserve(time_us=AT_US, total_budget_micros=0))
    await ask(ledger, reserve(looked_bucket=0, unlooked_us=ALL_LOOKED_UP, most_us=NO_TIME, tag=1))
    await advance(ledger)
    await ask(ledger, reserve(total_budget_micros=0, committed=[1], time_us=ALL_LOOKED_UP))
    await advance(ledger)
    assert await window(ledger) == (2, 0)


async def test_a_bucket_closes_when_it_is_old_enough(ledger: Ledger) -> None:
    """With the first call after that, when its events are decided: they are in the bucket that closes."""
    call = reserve(at_us=AT_US + BUCKET_US - 1)
    assert await ask(ledger, call) == reserved(b"A", COST, COST)
    call = reserve(at_us=AT_US + BUCKET_US, committed=[call.tag])
    assert await ask(ledger, call) == Reserved(b"A", 2 * COST, 2 * COST, 1, 0)
    call = reserve(at_us=AT_US + 2 * BUCKET_US, committed=[call.tag])
    assert await ask(ledger, call) == Reserved(b"A", 3 * COST, 3 * COST, 2, AT_US)


async def test_a_bucket_that_began_by_a_clock_that_is_ahead_closes_no_later_than_others(ledger: Ledger) -> None:
    """It begins with the next call; but calls that come late, by as much as they may take, make no bucket older."""
    for seconds, bucket in ((60, 1), (55, 1), (61, 1), (20, 1), (21, 1), (22, 2), (17, 2), (23, 2), (24, 3)):
        at_us = AT_US + seconds * 1_000_000
        call = reserve(total_budget_micros=0, at_us=at_us, bucket_us=2_000_000, time_us=ALL_LOOKED_UP)
        reply = await ask(ledger, call)
        assert isinstance(reply, Reserved)
        assert (seconds, reply.bucket) == (seconds, bucket)


async def test_a_bucket_is_not_forgotten_while_a_reservation_of_it_is_not_settled(ledger: Ledger) -> None:
    """It may commit still, and its ids would be new again. It is put off by a second."""
    held = reserve()
    assert await letters(ledger, held) == b"A"
    await advance(ledger)
    await advance(ledger)
    assert await window(ledger) == (1, 0)
    assert await letters(ledger, reserve(ids=held.ids)) == b"P"
    assert await ask(ledger, commit(held)) == Done()
    await ask(ledger, reserve(total_budget_micros=0, bucket_us=0, at_us=AT_US + 999_999))
    assert await window(ledger) == (1, 0)
    await ask(ledger, reserve(total_budget_micros=0, bucket_us=0, at_us=AT_US + 1_000_000))
    assert await window(ledger) == (2, AT_US)


async def test_a_bucket_closes_over_what_is_settled(ledger: Ledger) -> None:
    """Also if the call that closes it is the first to say so."""
    held = reserve()
    await ask(ledger, held)
    await advance(ledger)
    await ask(ledger, reserve(total_budget_micros=0, bucket_us=0, committed=[held.tag]))
    assert await window(ledger) == (2, AT_US)


async def test_a_void_after_its_bucket_has_closed_still_undoes_ids(ledger: Ledger) -> None:
    """An id left behind would turn a retry into a false duplicate."""
    old = reserve()
    await ask(ledger, old)
    await advance(ledger)
    assert await ask(ledger, void(old)) == Done()
    assert await letters(ledger, reserve(ids=old.ids)) == b"A"


async def test_a_rebuilt_window_begins_at_what_is_committed(rig: Rig) -> None:
    """Whatever was committed is at or below the watermark, and no id is known."""
    await opened(rig.ledger, latest_us=AT_US)
    assert await ask(rig.ledger, reserve(time_us=AT_US)) == Behind(0, AT_US)
    assert await ask(rig.ledger, reserve(time_us=AT_US + 1)) == Reserved(b"A", COST, COST, 0, AT_US)


async def test_a_kept_state_keeps_its_window(ledger: Ledger) -> None:
    """Its watermark is true still, whatever the ledger's is: its ids are where they were."""
    first = reserve()
    await ask_all(ledger, [first, commit(first)])
    await advance(ledger)
    assert await begin(ledger, CAMPAIGN, 2) == Kept([])
    assert await ready(ledger, CAMPAIGN, 2, spend(COST), 1, latest_us=AT_US + 7) == Done()
    again = reserve(ids=first.ids, generation=2)
    assert await ask(ledger, again) == Reserved(b"D", COST, COST, 1, 0)


# --- ids whose time is ahead ---


def ahead(time_us: int, **fields: Any) -> Reserve:
    """One event whose id time is ahead of the engine's clock."""
    kinds = bytes([BILLABLE | AHEAD])
    return reserve(**{"kinds": kinds, "time_us": time_us, "most_us": NO_TIME, "most_ahead_us": time_us, **fields})


async def test_ids_that_are_ahead_do_not_raise_the_watermark(ledger: Ledger) -> None:
    """They stay known until it has passed them: others would be looked up for as long as a wrong clock is ahead."""
    early, others = ahead(AT_US + 10_000_000), reserve(3)
    await ask_all(ledger, [early, others, commit(early), commit(others)])
    for _ in range(4):
        await advance(ledger)
    assert await window(ledger) == (4, AT_US)
    again = {"ids": early.ids, "time_us": AT_US + 10_000_000}
    assert await letters(ledger, reserve(**again)) == b"D"
    late = reserve(time_us=AT_US + 10_000_000)
    await ask_all(ledger, [late, commit(late)])
    await advance(ledger)
    assert await letters(ledger, reserve(**again)) == b"D"
    await advance(ledger)
    assert await window(ledger) == (6, AT_US + 10_000_000)
    assert isinstance(await ask(ledger, reserve(**again)), Behind)
    assert await letters(ledger, reserve(**{**again, "unlooked_us": ALL_LOOKED_UP, "looked_bucket": 6})) == b"A"


async def test_where_most_ids_are_ahead_they_are_forgotten_like_others(ledger: Ledger) -> None:
    """Memory is bounded, whatever clocks say; so few that they don't matter are kept."""
    for at in range(2):
        early = ahead(AT_US + 10_000_000 + at, ids=new_ids(501), kinds=bytes([BILLABLE | AHEAD]) * 501)
        await ask_all(ledger, [early, commit(early)])
    await advance(ledger)
    await advance(ledger)
    assert await window(ledger) == (2, AT_US + 10_000_001)


async def test_a_void_undoes_ids_that_are_ahead_and_others(ledger: Ledger) -> None:
    """Both kinds of one call."""
    kinds = bytes([BILLABLE, BILLABLE | AHEAD])
    call = reserve(2, kinds=kinds, most_us=AT_US, most_ahead_us=AT_US + 10_000_000)
    assert await letters(ledger, call) == b"AA"
    assert await letters(ledger, reserve(ids=call.ids)) == b"PP"
    await advance(ledger)
    assert await ask(ledger, void(call)) == Done()
    assert await letters(ledger, replace(call, tag=call.tag + 1_000)) == b"AA"


async def test_ids_that_are_ahead_are_not_forgotten_while_a_reservation_of_them_is_not_settled(ledger: Ledger) -> None:
    """Also when the watermark has passed them."""
    early, late = ahead(AT_US + 10_000_000), reserve(3, time_us=AT_US + 10_000_000)
    await ask_all(ledger, [late, commit(late)])
    await advance(ledger)
    await ask(ledger, early)
    other = ahead(AT_US + 10_000_001)
    await advance(ledger)
    await ask_all(ledger, [other, commit(other)])
    await advance(ledger)
    await advance(ledger)
    assert await letters(ledger, reserve(ids=early.ids, unlooked_us=ALL_LOOKED_UP)) == b"P"


# --- memory for users ---


async def test_without_room_for_users_new_ones_are_not_counted(ledger: Ledger) -> None:
    """U: those who are counted already go on, and so does what counts for no cap."""
    assert await letters(ledger, reserve(kinds=CAPPED, users=["ada"], cap=2)) == b"A"
    full = {"cap": 2, "new_users": False}
    call = reserve(4, kinds=CAPPED * 3 + bytes([BILLABLE]), users=["ada", "ada", "bob", "bob"], **full)
    assert await letters(ledger, call) == b"ACUA"
    assert await letters(ledger, reserve(kinds=CAPPED, users=["bob"], total_budget_micros=0, **full)) == b"T"
    assert await letters(ledger, reserve(kinds=CAPPED, users=["bob"], cap=2)) == b"A"


# --- resolve ---


async def test_a_commit_keeps_money_and_drops_the_record(ledger: Ledger) -> None:
    """What is durable is no longer pending."""
    call = reserve()
    await ask(ledger, call)
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: [call.tag]}
    assert await ask(ledger, commit(call)) == Done()
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: []}
    assert await ask(ledger, reserve()) == reserved(b"A", 2 * COST, 2 * COST)


async def test_a_void_undoes_money_users_and_ids(ledger: Ledger) -> None:
    """As if it had never been: the same events are accepted again."""
    call = reserve(3, kinds=CAPPED * 2 + bytes([COUNTS_FOR_CAP]), users=["ada", "ada", "bob"], cap=2)
    assert await letters(ledger, call) == b"AAA"
    assert await ask(ledger, void(call)) == Done()
    assert await ask(ledger, replace(call, tag=call.tag + 1_000)) == reserved(b"AAA", 2 * COST, 2 * COST)


async def test_a_void_leaves_what_others_reserved(ledger: Ledger) -> None:
    """Only its own part of a sum and of a user's count is taken back."""
    capped = {"kinds": CAPPED, "users": ["ada"], "cap": 2}
    first, second = reserve(**capped), reserve(**capped)
    await ask_all(ledger, [first, second, void(first)])
    assert await ask(ledger, reserve(2, kinds=CAPPED * 2, users=["ada"] * 2, cap=2)) == reserved(
        b"AC", 2 * COST, 2 * COST
    )
    assert await letters(ledger, reserve(ids=first.ids + second.ids)) == b"AP"


async def test_settling_twice_is_settling_once(ledger: Ledger) -> None:
    """Resolve may be repeated at will, and the first one counts."""
    voided, committed = reserve(), reserve()
    assert await ask_all(ledger, [voided, void(voided), void(voided), commit(voided)]) == [
        reserved(b"A", COST, COST),
        *[Done()] * 3,
    ]
    assert await ask_all(ledger, [committed, commit(committed), commit(committed), void(committed)]) == [
        reserved(b"A", COST, COST),
        *[Done()] * 3,
    ]
    assert await ask(ledger, reserve(ids=voided.ids + committed.ids)) == reserved(b"AD", 2 * COST, 2 * COST)


async def test_a_void_after_midnight_leaves_the_new_day_alone(ledger: Ledger) -> None:
    """Today and the users' counts are the new day's; the total is given back."""
    capped = {"kinds": CAPPED, "users": ["ada"], "cap": 1}
    old, new = reserve(**capped), reserve(**capped, day=DAY + 1)
    await ask_all(ledger, [old, new, void(old)])
    assert await ask(ledger, reserve(**capped, day=DAY + 1)) == reserved(b"C", COST, COST)


# --- generations and recovery ---


async def test_a_campaign_never_seen_is_lost(rig: Rig) -> None:
    """Redis knows nothing of it."""
    call = reserve()
    assert await ask_all(rig.ledger, [call, void(call)]) == [Lost(), Lost()]
    assert await settle(rig.ledger, CAMPAIGN, 1, call.tag, commit=True) == Lost()
    assert await load_users(rig.ledger, CAMPAIGN, 1, [("ada", 1)]) == Lost()
    assert await ready(rig.ledger, CAMPAIGN, 1, spend(), 1) == Lost()
    assert await rig.ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: []}


@pytest.mark.parametrize("how", ["forget", "restart"])
async def test_another_memory_image_is_lost(rig: Rig, ledger: Ledger, how: str) -> None:
    """Emptied, or back with data that may be old: the campaign is rebuilt, whatever its generation says."""
    assert await letters(ledger, reserve()) == b"A"
    getattr(rig, how)()
    assert await ask(ledger, reserve()) == Lost()
    assert await begin(ledger, CAMPAIGN, 2) == Emptied()
    assert await ready(ledger, CAMPAIGN, 2, spend(), 1) == Done()
    assert await ask(ledger, reserve(generation=2)) == reserved(b"A", COST, COST)


async def test_another_generation_is_told(ledger: Ledger) -> None:
    """Older and newer callers learn the one that is in force, and change nothing."""
    call = reserve()
    await ask(ledger, call)
    for generation in (0, 2):
        stranger = replace(call, generation=generation)
        assert await ask_all(ledger, [stranger, void(stranger)]) == [Stale(1), Stale(1)]
        assert await settle(ledger, CAMPAIGN, generation, call.tag, commit=False) == Stale(1)
        assert await load_users(ledger, CAMPAIGN, generation, [("ada", 1)]) == Stale(1)
        assert await ready(ledger, CAMPAIGN, generation, spend(), 1) == Stale(1)
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: [call.tag]}


async def test_a_closed_campaign_takes_no_reservations(ledger: Ledger) -> None:
    """Between `begin` and `ready` only the recoverer's calls are heard."""
    call = reserve()
    await ask(ledger, call)
    await begin(ledger, CAMPAIGN, 2)
    again = replace(call, generation=2)
    assert await ask_all(ledger, [again, void(again)]) == [Closed(), Closed()]
    assert await settle(ledger, CAMPAIGN, 2, call.tag, commit=False) == Done()
    assert await ready(ledger, CAMPAIGN, 2, spend(), 1) == Done()
    assert await ask(ledger, again) == reserved(b"A", COST, COST)


async def test_an_open_campaign_takes_no_rebuild(ledger: Ledger) -> None:
    """The recoverer's calls are refused once it is open."""
    assert await settle(ledger, CAMPAIGN, 1, 1, commit=True) == Closed()
    assert await load_users(ledger, CAMPAIGN, 1, [("ada", 1)]) == Closed()
    assert await ready(ledger, CAMPAIGN, 1, spend(), 1) == Closed()


async def test_settling_a_tag_that_nobody_has_tells_whether_a_campaign_is_closed(ledger: Ledger) -> None:
    """Under this generation, and changes nothing: who would recover it leaves it to those who do."""
    unknown = CampaignId(CAMPAIGN + 1)
    ask_for = partial(settle, ledger, unknown, tag=NO_TAG, commit=False)
    assert await ask_for(generation=1) == Lost()
    assert await begin(ledger, unknown, 1) == Emptied()
    assert [await ask_for(generation=each) for each in (1, 2)] == [Done(), Stale(1)]
    assert await ready(ledger, unknown, 1, spend(), 1) == Done()
    assert await ask_for(generation=1) == Closed()


async def test_begin_keeps_the_direct_predecessor(ledger: Ledger) -> None:
    """KEPT: pending reservations are told by tag and first id, and can be settled one by one."""
    first, second, third = reserve(2), reserve(), reserve()
    await ask_all(ledger, [first, second, third, commit(second)])
    begun = await begin(ledger, CAMPAIGN, 2)
    assert isinstance(begun, Kept)
    assert {each.tag: each for each in begun.pending} == {
        call.tag: Pending(call.tag, ids_of(call)[0], DAY) for call in (first, third)
    }
    assert await settle(ledger, CAMPAIGN, 2, first.tag, commit=True) == Done()
    assert await ready(ledger, CAMPAIGN, 2, spend(3 * COST), 1) == Mismatch()
    assert await settle(ledger, CAMPAIGN, 2, third.tag, commit=False) == Done()
    assert await ready(ledger, CAMPAIGN, 2, spend(3 * COST), 1) == Done()
    after = reserve(ids=first.ids + third.ids, generation=2)
    assert await ask(ledger, after) == reserved(b"DDA", 4 * COST, 4 * COST)


async def test_begin_refuses_a_generation_that_is_not_newer(ledger: Ledger) -> None:
    """STALE: the same one or an older one changes nothing."""
    for generation in (0, 1):
        assert await begin(ledger, CAMPAIGN, generation) == Stale(1)
    assert await letters(ledger, reserve()) == b"A"


async def test_begin_drops_what_is_more_than_one_behind(ledger: Ledger) -> None:
    """EMPTY: somebody raised a generation between, and what happened under it is not known here."""
    call = reserve(kinds=CAPPED, users=["ada"], cap=1)
    await ask(ledger, call)
    assert await begin(ledger, CAMPAIGN, 3) == Emptied()
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: []}
    assert await ready(ledger, CAMPAIGN, 3, spend(), 1) == Done()
    assert await ask(ledger, replace(call, generation=3)) == reserved(b"A", COST, COST)


async def test_begin_drops_what_is_closed(ledger: Ledger) -> None:
    """EMPTY: an unfinished recovery can't be trusted."""
    await begin(ledger, CAMPAIGN, 2)
    assert await begin(ledger, CAMPAIGN, 3) == Emptied()


async def test_a_rebuild_brings_users_and_sums(rig: Rig) -> None:
    """Load and ready: caps, budgets and plan are as Postgres has them."""
    ledger = rig.ledger
    assert await begin(ledger, CAMPAIGN, 4) == Emptied()
    assert await load_users(ledger, CAMPAIGN, 4, [("ada", 2), ("b" * 128, 1)]) == Done()
    assert await load_users(ledger, CAMPAIGN, 4, []) == Done()
    assert await ready(ledger, CAMPAIGN, 4, spend(9 * COST, today=3 * COST), 6) == Done()
    capped = {"kinds": CAPPED * 3, "users": ["ada", "b" * 128, "b" * 128], "cap": 2}
    assert await ask(ledger, reserve(3, generation=4, plan_version=5)) == PlanBehind(6)
    call = reserve(3, generation=4, plan_version=6, **capped)
    assert await ask(ledger, call) == reserved(b"CAC", 10 * COST, 4 * COST)


async def test_a_campaign_that_was_opened_without_its_users_is_rebuilt_when_a_cap_asks_for_them(rig: Rig) -> None:
    """LOST on that day; on the next nobody has been counted anyway."""
    ledger = rig.ledger
    for campaign_id in (CAMPAIGN, CampaignId(8)):
        assert await begin(ledger, campaign_id, 1) == Emptied()
        assert await ready(ledger, campaign_id, 1, spend(COST), 1, users_loaded=False) == Done()
    capped = {"kinds": CAPPED, "users": ["ada"], "cap": 1}
    assert await ask(ledger, reserve(**capped)) == Lost()
    assert await letters(ledger, reserve(campaign_id=CampaignId(8))) == b"A"
    assert await letters(ledger, reserve(campaign_id=CampaignId(8), day=DAY + 1, **capped)) == b"A"


async def test_a_rebuild_takes_chunks_of_a_thousand(rig: Rig) -> None:
    """A full chunk arrives whole; a larger one is refused before anything is written."""
    ledger = rig.ledger
    users = [(f"{at:0128}", 1) for at in range(1_001)]
    await begin(ledger, CAMPAIGN, 1)
    assert isinstance(await load_users(ledger, CAMPAIGN, 1, users), NotRun)
    assert await load_users(ledger, CAMPAIGN, 1, users[:1_000]) == Done()
    assert await ready(ledger, CAMPAIGN, 1, spend(), 1) == Done()
    call = reserve(1_000, kinds=CAPPED * 1_000, users=[user for user, _ in users[1:]], cap=1)
    assert await letters(ledger, call) == b"C" * 999 + b"A"


@pytest.mark.parametrize(
    "wrong",
    [spend(COST - 1, today=COST), spend(COST, today=COST - 1), spend(COST, DAY + 1)],
    ids=["total", "today", "day"],
)
async def test_ready_refuses_other_sums_than_the_ledgers(ledger: Ledger, wrong: CampaignSpend) -> None:
    """MISMATCH: the caller starts over, which rebuilds."""
    call = reserve()
    await ask_all(ledger, [call, commit(call)])
    await begin(ledger, CAMPAIGN, 2)
    assert await ready(ledger, CAMPAIGN, 2, wrong, 1) == Mismatch()
    assert await ask(ledger, reserve(generation=2)) == Closed()
    assert await ready(ledger, CAMPAIGN, 2, spend(COST), 1) == Done()


async def test_ready_refuses_what_is_still_pending(ledger: Ledger) -> None:
    """MISMATCH: also when it costs nothing, so that the sums are equal."""
    free = reserve(kinds=bytes([FREE]))
    await ask(ledger, free)
    await begin(ledger, CAMPAIGN, 2)
    assert await ready(ledger, CAMPAIGN, 2, spend(), 1) == Mismatch()
    await settle(ledger, CAMPAIGN, 2, free.tag, commit=True)
    assert await ready(ledger, CAMPAIGN, 2, spend(), 1) == Done()


async def test_ready_allows_a_day_that_the_ledger_has_not_reached(ledger: Ledger) -> None:
    """Redis moved on at midnight, and nothing of the new day is committed yet."""
    call, late = reserve(), reserve(day=DAY + 1)
    await ask_all(ledger, [call, commit(call), late])
    await begin(ledger, CAMPAIGN, 2)
    await settle(ledger, CAMPAIGN, 2, late.tag, commit=False)
    assert await ready(ledger, CAMPAIGN, 2, spend(COST), 1) == Done()
    assert await ask(ledger, reserve(generation=2)) == DayBehind(DAY + 1)


# --- recoveries of many ---


async def test_many_begin_at_once_and_each_for_itself(rig: Rig) -> None:
    """One reply a call, in order: kept with its own reservations, emptied, refused."""
    kept, new, behind, gone = [CampaignId(number) for number in (4, 3, 2, 1)]
    for campaign in (kept, behind, gone):
        await opened(rig.ledger, campaign)
    call = reserve(campaign_id=kept)
    await ask(rig.ledger, call)
    asked = [Begin(kept, 2), Begin(new, 5), Begin(behind, 1), Begin(gone, 3)]
    assert await rig.ledger.begin(asked) == [
        Kept([Pending(call.tag, ids_of(call)[0], DAY)]),
        Emptied(),
        Stale(1),
        Emptied(),
    ]
    replies = await rig.ledger.ready([to_open(each.campaign_id, each.generation, spend(), 1) for each in asked])
    assert replies == [Mismatch(), Done(), Closed(), Done()]


async def test_chunks_of_many_campaigns_are_loaded_at_once(rig: Rig) -> None:
    """Each for its own campaign; one that does not fit does not touch the others."""
    one, other, unknown = [CampaignId(number) for number in (1, 2, 3)]
    assert await rig.ledger.begin([Begin(one, 1), Begin(other, 1)]) == [Emptied()] * 2
    replies = await rig.ledger.load(
        [
            LoadUsers(unknown, 1, [("ada", 1)]),
            LoadUsers(one, 1, [("ada", 1)]),
            LoadUsers(other, 1, [(f"{at}", 1) for at in range(1_001)]),
            LoadUsers(other, 2, [("ada", 1)]),
            LoadUsers(other, 1, [("bob", 1)]),
        ]
    )
    assert [type(reply) for reply in replies] == [Lost, Done, NotRun, Stale, Done]
    assert await rig.ledger.ready([to_open(each, 1, spend(), 1) for each in (one, other)]) == [Done()] * 2
    capped = {"kinds": CAPPED * 2, "users": ["ada", "bob"], "cap": 1}
    assert await letters(rig.ledger, reserve(2, campaign_id=one, **capped)) == b"CA"
    assert await letters(rig.ledger, reserve(2, campaign_id=other, **capped)) == b"AC"


async def test_reservations_of_many_campaigns_are_settled_at_once(rig: Rig) -> None:
    """Each as it is told, under its campaign's own generation."""
    campaigns = [CampaignId(number) for number in range(1, 6)]
    calls_ = []
    for campaign in campaigns:
        await opened(rig.ledger, campaign)
        calls_ += [reserve(campaign_id=campaign), reserve(campaign_id=campaign)]
    await ask_all(rig.ledger, calls_)
    await rig.ledger.begin([Begin(each, 2) for each in campaigns[1:]])
    asked = [Resolve(call.campaign_id, 2, call.tag, commit=at % 2 == 0) for at, call in enumerate(calls_)]
    assert await rig.ledger.settle(asked) == [Stale(1), Stale(1)] + [Done()] * 8
    assert await rig.ledger.ready([to_open(each, 2, spend(COST), 1) for each in campaigns[1:]]) == [Done()] * 4
    for at, call in enumerate(calls_[2:]):
        assert await letters(rig.ledger, replace(call, generation=2, tag=call.tag + 10**6)) == (
            b"A" if at % 2 else b"D"
        )


async def test_no_steps_are_answered(ledger: Ledger) -> None:
    """No calls, no replies."""
    assert [await ledger.begin([]), await ledger.settle([]), await ledger.load([]), await ledger.ready([])] == [[]] * 4


# --- rounds ---


async def test_a_round_carries_many_campaigns_in_order(rig: Rig) -> None:
    """One reply a call, in the order of the calls; campaigns do not see each other."""
    campaigns = [CampaignId(number) for number in range(1, 101)]
    for campaign in campaigns:
        await opened(rig.ledger, campaign)
    ids = new_ids(1)
    asked = [reserve(ids=ids, campaign_id=campaign, cost_micros=campaign) for campaign in campaigns]
    calls: list[Reserve | Resolve] = [
        call for each in asked for call in (each, commit(each), replace(each, tag=each.tag + 1))
    ]
    replies = await ask_all(rig.ledger, calls)
    assert replies == [
        reply for cost in campaigns for reply in (reserved(b"A", cost, cost), Done(), reserved(b"D", cost, cost))
    ]


async def test_an_empty_round_is_answered(ledger: Ledger) -> None:
    """No calls, no replies."""
    assert await ask_all(ledger, []) == []


async def test_a_round_is_answered_part_by_part_in_order(ledger: Ledger) -> None:
    """Each call sees those before it, in its own part or an earlier one."""
    first, second = reserve(), reserve()
    again = reserve(ids=first.ids)
    parts: list[list[Reserve | Resolve]] = [[first], [again, second], [commit(first)], [again, commit(second)]]
    heard: list[object] = []
    await ledger.round(iter(parts), heard.append)
    assert heard == [
        [reserved(b"A", COST, COST)],
        [reserved(b"P", COST, COST), reserved(b"A", 2 * COST, 2 * COST)],
        [Done()],
        [reserved(b"D", 2 * COST, 2 * COST), Done()],
    ]
    await ledger.round([], heard.append)
    assert len(heard) == 4


async def test_one_bad_call_does_not_touch_the_others(ledger: Ledger) -> None:
    """Refusals stand alone in their round."""
    good, stranger = reserve(), CampaignId(404)
    replies = await ask_all(ledger, [reserve(kinds=b""), good, Resolve(stranger, 1, 1, commit=True), commit(good)])
    assert isinstance(replies[0], NotRun)
    assert replies[1:] == [reserved(b"A", COST, COST), Lost(), Done()]


async def test_a_probe_tells_whether_a_reserve_would_be_decided(rig: Rig, ledger: Ledger) -> None:
    """Of a campaign that is open, and of one that is not there; nothing is changed by it."""
    for campaign in (CAMPAIGN, CampaignId(0)):
        assert await ledger.probe(campaign) is None
        with rig.full():
            refused = await ledger.probe(campaign)
            assert isinstance(refused, NotRun)
            assert refused.full
    assert await ledger.pending_tags([CAMPAIGN]) == {CAMPAIGN: []}
    assert await ask(ledger, reserve()) == reserved(b"A", COST, COST)


# --- out of memory ---


async def test_a_full_ledger_refuses_and_gives_back(rig: Rig, ledger: Ledger) -> None:
    """Out of memory: reserve did not run; what only frees goes on."""
    pending, settled = reserve(), reserve()
    await ask_all(ledger, [pending, settled])
    with rig.full():
        assert isinstance(await ask(ledger, reserve()), NotRun)
        assert await ask_all(ledger, [void(pending), commit(settled)]) == [Done(), Done()]
        assert isinstance(await load_users(ledger, CAMPAIGN, 1, [("ada", 1)]), NotRun)
        assert await begin(ledger, CAMPAIGN, 2) == Kept([])
        assert await ready(ledger, CAMPAIGN, 2, spend(COST), 1) == Done()
    assert await ask(ledger, reserve(generation=2)) == reserved(b"A", 2 * COST, 2 * COST)


async def test_a_full_ledger_moves_on_with_day_and_window(rig: Rig, ledger: Ledger) -> None:
    """What it refused to reserve has told it the time: it forgets a bucket, and a day that is over."""
    call = reserve(kinds=CAPPED, users=["ada"], cap=1)
    await ask_all(ledger, [call, commit(call)])
    with rig.full():
        for seconds in (100, 200):
            refused = await ask(ledger, reserve(at_us=AT_US + seconds * 1_000_000, day=DAY + 1))
            assert isinstance(refused, NotRun)
            assert refused.full
    assert await ask(ledger, reserve()) == DayBehind(DAY + 1)
    assert await window(ledger, DAY + 1) == (2, AT_US)


async def test_a_full_ledger_does_not_forget_at_every_call(rig: Rig, ledger: Ledger) -> None:
    """A bucket stays for some seconds, however many calls are refused: look-ups count for one bucket only."""
    with rig.full():
        for _ in range(5):
            await ask(ledger, reserve(at_us=AT_US + 1_000_000))
    assert await window(ledger) == (0, 0)
