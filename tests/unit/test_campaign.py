"""The decisions of one campaign."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from msgspec import structs

from engine.campaign import ATTEMPTS_MAX, CampaignState
from engine.lifecycle import TRANSITIONS, IllegalTransition, Phase, Signal
from engine.memory import Policy, bucket_times
from engine.model import (
    DAY_US,
    SECOND_US,
    Campaign,
    CampaignId,
    Pacing,
    Reason,
    Status,
    StoredEvent,
    Verdict,
    instant_text,
)
from engine.pacing import allowance_micros, spend_day
from engine.ports import (
    AHEAD,
    ALL_LOOKED_UP,
    BILLABLE,
    COUNTS_FOR_CAP,
    FREE,
    NO_CAP,
    NO_TIME,
    NONE_LOOKED_UP,
    Letter,
    Reserve,
    Reserved,
)
from engine.reservations import Admitted, Applied, Reservation
from engine.submission import Entry
from engine.verdicts import UNAVAILABLE
from tests.plans import NOON_US, POLICY, entry, plan, submission, verdict_of

BUCKET, WATERMARK_US = 3, NOON_US - 180 * SECOND_US  # what Redis has told of the dedup window


def opened(campaign: Campaign | None = None) -> CampaignState:
    """A state that may reserve, and has had a reply."""
    state = CampaignState(CampaignId(7), wait_seconds=10)
    state.adopt_plan(campaign or plan(), NOON_US)
    state.signal(Signal.PLAN)
    state.see_window(state.generation, BUCKET, WATERMARK_US)
    return state


def timed(us: int, **fields: Any) -> Entry:
    """An entry with an id of its own and this id time."""
    return entry(event_id=uuid.uuid4(), occurred_at=instant_text(us), **fields)


def reserved(letters: bytes, sum_micros: int = 0) -> Reserved:
    """A reply from the same bucket, with these sums."""
    return Reserved(letters, sum_micros, sum_micros, BUCKET, WATERMARK_US)


def called(state: CampaignState, *entries: Entry) -> Reserve:
    """The call that carries all of these."""
    admitted = state.admit(entries, 1, POLICY, NOON_US)
    assert admitted.request is not None
    assert [*admitted.request.entries] == [*entries]
    return admitted.request.call


def answered(
    state: CampaignState, entries: list[Entry], letters: bytes, now_us: int = NOON_US
) -> tuple[Admitted, Applied]:
    """Admit the entries and apply this reply."""
    admitted = state.admit(entries, 1, POLICY, now_us)
    assert admitted.request is not None
    state.signal(Signal.CALL)
    state.signal(Signal.REPLY)
    return admitted, state.apply(admitted.request, reserved(letters), now_us)


def test_every_phase_has_its_row_and_leads_to_a_phase() -> None:
    """The table is whole."""
    assert set(TRANSITIONS) == set(Phase)
    assert {after for row in TRANSITIONS.values() for after in row.values()} <= set(Phase)


def test_a_signal_that_has_no_place_in_a_phase_is_refused() -> None:
    """A stopped campaign hears nothing."""
    state = opened()
    state.signal(Signal.STOP)
    with pytest.raises(IllegalTransition):
        state.signal(Signal.CALL)


def test_a_call_carries_the_plan_and_a_byte_an_event() -> None:
    """Impressions of a capped cpm campaign are billable and count; clicks are free."""
    state = opened(plan(freq_cap_impressions_per_day=2))
    request = submission()
    admitted = state.admit([entry(request), entry(request, event_type="click")], 9, POLICY, NOON_US)
    assert admitted.request is not None
    call = admitted.request.call
    assert call.kinds == bytes([BILLABLE | COUNTS_FOR_CAP, FREE])
    assert (call.tag, call.cap, call.cost_micros, call.day) == (9, 2, 1_000, spend_day(NOON_US, "UTC").day)
    assert call.ids == b"".join(each.event_id for each in admitted.request.entries)


def test_accepted_entries_become_one_reservation_with_their_cost() -> None:
    """Free events cost nothing."""
    state, request = opened(), submission()
    _, applied = answered(state, [entry(request), entry(request, event_type="click")], b"AA")
    assert applied.reservation is not None
    assert [row.cost_micros for row in applied.reservation.rows] == [1_000, 0]
    assert applied.reservation.amount_micros == 1_000


def test_nothing_is_settled_before_its_commit() -> None:
    """A letter A is no 200."""
    state, one = opened(), entry()
    _, applied = answered(state, [one], b"A")
    assert not one.settled
    assert applied.reservation is not None
    state.settle_committed(applied.reservation)
    assert one.settled
    assert verdict_of(one) is None
    assert state.committed == [applied.reservation.tag]


def test_the_same_id_again_joins_the_first_and_is_a_duplicate_of_it() -> None:
    """Two of the same in one request: one reservation, the second a duplicate."""
    state, request, same = opened(), submission(), uuid.uuid4()
    now = instant_text(NOON_US)
    first = entry(request, event_id=same, occurred_at=now)
    second = entry(request, event_id=same, occurred_at=now)
    admitted, applied = answered(state, [first, second], b"A")
    assert admitted.request is not None
    assert len(admitted.request.entries) == 1
    assert applied.reservation is not None
    state.settle_committed(applied.reservation)
    verdict = verdict_of(second)
    assert verdict is not None
    assert verdict.status is Status.DUPLICATE
    assert verdict.event == first.as_stored(applied.reservation.tag)


def test_the_same_id_for_another_event_is_refused_as_reused() -> None:
    """Another user under an id that is committed."""
    state, request, same = opened(), submission(), uuid.uuid4()
    now = instant_text(NOON_US)
    first = entry(request, event_id=same, occurred_at=now)
    other = entry(request, event_id=same, occurred_at=now, user_id="bob")
    _, applied = answered(state, [first, other], b"A")
    assert applied.reservation is not None
    state.settle_committed(applied.reservation)
    verdict = verdict_of(other)
    assert verdict is not None
    assert verdict.reason is Reason.ID_REUSED


def test_who_joined_a_refused_event_is_refused_with_it() -> None:
    """The same event twice, over the budget: both are told so."""
    state, request, same = opened(), submission(), uuid.uuid4()
    now = instant_text(NOON_US)
    pair = [entry(request, event_id=same, occurred_at=now) for _ in range(2)]
    answered(state, pair, b"T")
    assert [verdict_of(each).reason for each in pair] == [Reason.TOTAL_BUDGET] * 2  # type: ignore[union-attr]


def test_another_event_under_the_id_of_a_refused_one_is_not_refused_with_it() -> None:
    """On its own it may fare otherwise: nobody has looked."""
    state, request, same = opened(), submission(), uuid.uuid4()
    now = instant_text(NOON_US)
    pair = [entry(request, event_id=same, occurred_at=now, user_id=user) for user in ("ada", "bob")]
    answered(state, pair, b"T")
    assert [verdict_of(each).reason for each in pair] == [  # type: ignore[union-attr]
        Reason.TOTAL_BUDGET, Reason.IN_FLIGHT,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("letter", "reason", "retry_after_seconds"),
    [
        (Letter.TOTAL, Reason.TOTAL_BUDGET, None),
        (Letter.DAILY, Reason.DAILY_BUDGET, None),
        (Letter.CAPPED, Reason.FREQUENCY_CAPPED, 12 * 3_600),
        (Letter.PACED, Reason.PACED, 1),
        (Letter.NO_ROOM, Reason.OVERLOADED, 300),
    ],
)
def test_each_letter_of_refusal_has_its_reason(letter: Letter, reason: Reason, retry_after_seconds: int | None) -> None:
    """Refusals are told at once."""
    state, one = opened(), entry()
    answered(state, [one], letter.value)
    verdict = verdict_of(one)
    assert verdict is not None
    assert (verdict.reason, verdict.retry_after_seconds) == (reason, retry_after_seconds)


@pytest.mark.parametrize("letter", [Letter.DUPLICATE, Letter.PENDING])
def test_an_id_that_redis_knows_is_looked_up_and_never_a_200_by_itself(letter: Letter) -> None:
    """Redis reserves, Postgres judges."""
    state, one = opened(), entry()
    _, applied = answered(state, [one], letter.value)
    assert applied.known == [(one, letter)]
    assert not one.settled


def test_what_is_found_under_its_own_tag_is_accepted_and_otherwise_a_duplicate() -> None:
    """After an unknown COMMIT."""
    for tag, accepted in ((1, True), (2, False)):
        state, one = opened(), entry()
        answered(state, [one], b"A")
        state.settle_found(one, one.as_stored(1), tag)
        assert (verdict_of(one) is None) is accepted


def test_an_inactive_campaign_asks_for_no_money_and_refuses() -> None:
    """So that duplicates are still told from new events."""
    state, request = opened(plan(active=False)), submission()
    pair = [entry(request), entry(request, event_type="click")]
    admitted, _ = answered(state, pair, b"TT")
    assert admitted.request is not None
    assert admitted.request.call.total_budget_micros == -1
    assert admitted.request.call.cap == NO_CAP
    assert [verdict_of(each).reason for each in pair] == [Reason.INACTIVE] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(("above_us", "late"), [(None, True), (-1, True), (0, True), (1, False)], ids=str)
def test_an_event_that_is_not_above_the_watermark_or_tells_no_time_is_looked_up_first(
    above_us: int | None, late: bool
) -> None:
    """If its id was ever committed, Redis may have forgotten it."""
    one = entry(event_id=uuid.uuid4()) if above_us is None else timed(WATERMARK_US + above_us)
    admitted = opened().admit([one], 1, POLICY, NOON_US)
    assert (len(admitted.late) == 1) is late
    assert (admitted.request is None) is late


@pytest.mark.parametrize("us", [None, WATERMARK_US, NOON_US], ids=["no time", "old", "new"])
def test_without_a_watermark_redis_is_asked_whether_to_look_up(us: int | None) -> None:
    """It says BEHIND where it has to be; most often, at the first use of a campaign, it has not."""
    state = opened()
    state.use_generation(5)
    call = called(state, entry(event_id=uuid.uuid4()) if us is None else timed(us))
    assert (call.unlooked_us, call.looked_bucket) == (NO_TIME if us is None else us, NONE_LOOKED_UP)


def test_an_id_made_by_the_server_is_looked_up_like_any_other_once_a_call_may_have_reserved_it() -> None:
    """Nobody can have sent it before its first call, even when its event is old."""
    state, one = opened(), entry(occurred_at=instant_text(NOON_US - 3_600 * SECOND_US))
    call = called(state, one)
    assert (call.unlooked_us, call.looked_bucket) == (ALL_LOOKED_UP, NONE_LOOKED_UP)
    assert state.admit([one], 2, POLICY, NOON_US).late == [one]


def test_an_id_made_by_the_server_is_not_looked_up_after_a_call_that_did_nothing() -> None:
    """Redis was full, or a neighbour has to be looked up: as if it had never been in that call."""
    state, one = opened(), entry(occurred_at=instant_text(NOON_US - 3_600 * SECOND_US))
    called(state, one)
    state.not_tried([one])
    assert state.admit([one], 2, POLICY, NOON_US).late == []


def test_a_look_up_counts_under_the_generation_that_was_known_when_it_began() -> None:
    """A later recovery may have let a flush through that it did not see."""
    state, one = opened(), timed(WATERMARK_US)
    for generation in (0, 1, 5):
        state.see_generation(generation)
        state.see_window(generation, BUCKET, WATERMARK_US)
        assert state.admit([one], 1, POLICY, NOON_US).late == [one]
        state.looking_up([one])
    assert state.admit([one], 1, POLICY, NOON_US).late == []


def test_a_look_up_counts_under_the_bucket_that_was_known_when_it_began() -> None:
    """What was committed since may be forgotten by now: by the very next advance, if it was in the older bucket."""
    state, one = opened(), timed(WATERMARK_US)
    for bucket in (3, 4, 9):
        state.see_window(state.generation, bucket, WATERMARK_US)
        assert state.admit([one], 1, POLICY, NOON_US).late == [one]
        state.looking_up([one])
    assert state.admit([one], 1, POLICY, NOON_US).late == []


def test_what_redis_told_of_the_dedup_window_holds_under_its_generation_only() -> None:
    """A recovery may have rebuilt it meanwhile: other buckets under the same numbers."""
    state, one = opened(), timed(WATERMARK_US)
    state.looking_up([one])
    state.use_generation(5)
    state.see_window(4, BUCKET, WATERMARK_US)
    assert (called(state, one).unlooked_us, called(state, one).looked_bucket) == (WATERMARK_US, NONE_LOOKED_UP)
    state.see_window(5, BUCKET, WATERMARK_US)
    assert state.admit([one], 1, POLICY, NOON_US).late == [one]


def test_a_call_says_what_was_looked_up_and_what_was_not() -> None:
    """The least id time of those that were not, and the bucket under which the others were."""
    state, old, timeless = opened(), timed(WATERMARK_US - SECOND_US), entry(event_id=uuid.uuid4())
    young = [timed(WATERMARK_US + at) for at in (5, 3, 4)]
    made_here = entry()
    call = called(state, *young, made_here)
    assert (call.unlooked_us, call.looked_bucket) == (WATERMARK_US + 3, NONE_LOOKED_UP)
    state.looking_up([old])
    call = called(state, old)
    assert (call.unlooked_us, call.looked_bucket) == (ALL_LOOKED_UP, BUCKET)
    state.looking_up([timeless])
    call = called(state, young[0], old, timeless, young[2])
    assert (call.unlooked_us, call.looked_bucket) == (WATERMARK_US + 4, BUCKET)


def test_a_call_tells_the_greatest_id_time_of_those_that_are_ahead_and_of_the_others() -> None:
    """Two seconds ahead of its receipt is no clock that is wrong; more is, and such ids have buckets of their own."""
    state = opened(plan(freq_cap_impressions_per_day=2))
    times_us = [NOON_US + ahead * SECOND_US for ahead in (-1, 2, 0)]
    call = called(state, *map(timed, times_us))
    assert (call.most_us, call.most_ahead_us) == (NOON_US + 2 * SECOND_US, NO_TIME)
    assert call.kinds == bytes([BILLABLE | COUNTS_FOR_CAP]) * 3
    ahead_us = [NOON_US + 2 * SECOND_US + 1, NOON_US + 290 * SECOND_US]
    call = called(state, *map(timed, [times_us[1], *reversed(ahead_us), times_us[2]]))
    assert (call.most_us, call.most_ahead_us) == (NOON_US + 2 * SECOND_US, ahead_us[-1])
    assert [kind & AHEAD for kind in call.kinds] == [0, AHEAD, AHEAD, 0]
    assert call.kinds[1] == BILLABLE | COUNTS_FOR_CAP | AHEAD


def test_a_call_without_id_times_tells_none() -> None:
    """Nothing of it raises a watermark: it is looked up whatever that is."""
    state, one = opened(), entry(event_id=uuid.uuid4())
    state.looking_up([one])
    call = called(state, one)
    assert (call.most_us, call.most_ahead_us) == (NO_TIME, NO_TIME)


def test_a_call_names_how_memory_is_used() -> None:
    """When a bucket closes, each campaign's at a time of its own, and whether there is room for new users' counts."""
    state = opened()
    admitted = state.admit([entry()], 1, Policy(5 * SECOND_US, new_users=False), NOON_US)
    assert admitted.request is not None
    call = admitted.request.call
    bucket_us = int(5 * SECOND_US * bucket_times(state.campaign_id))
    assert (call.at_us, call.bucket_us, call.new_users) == (NOON_US, bucket_us, False)


def test_an_entry_is_looked_up_again_only_as_long_as_its_sender_may_wait() -> None:
    """However often an advance makes its look-up void."""
    state, one = opened(), entry(event_id=uuid.uuid4())
    now_us = NOON_US
    while not one.settled:
        assert now_us <= NOON_US + 11 * SECOND_US
        state.see_window(state.generation, state.bucket + 1, WATERMARK_US)
        if state.admit([one], 1, POLICY, now_us).late:
            state.looking_up([one])
        now_us += SECOND_US
    assert verdict_of(one) == UNAVAILABLE


def test_an_entry_is_reserved_a_bounded_number_of_times() -> None:
    """Then its sender is told to come again."""
    state, one = opened(), entry()
    for _ in range(ATTEMPTS_MAX):
        called(state, one)
    assert state.admit([one], 1, POLICY, NOON_US).request is None
    assert verdict_of(one).reason is Reason.UNAVAILABLE  # type: ignore[union-attr]


def test_a_call_that_certainly_did_nothing_is_no_attempt() -> None:
    """However many of them: each has taught something, and the deadline bounds them."""
    state, one = opened(), entry()
    for _ in range(2 * ATTEMPTS_MAX):
        called(state, one)
        state.not_tried([one])
    assert not one.settled


def test_what_has_passed_its_deadline_is_not_reserved() -> None:
    """Nobody waits for it any more."""
    state, one = opened(), entry()
    one.settle(Verdict(Status.RETRY, Reason.UNAVAILABLE))
    assert state.admit([one], 1, POLICY, NOON_US) == Admitted(None, [], [])
    assert state.quiet


def test_the_spend_day_only_moves_forward() -> None:
    """Also when the clock goes back."""
    state = opened()
    today = spend_day(NOON_US, "UTC").day
    for now_us, day in ((NOON_US, today), (NOON_US + DAY_US, today + 1), (NOON_US, today + 1)):
        admitted = state.admit([entry(now_us=now_us)], 1, POLICY, now_us)
        assert admitted.request is not None
        assert admitted.request.call.day == day


def test_news_of_an_older_day_do_not_move_ours_back() -> None:
    """The ledger's row stands at the day of its latest commit."""
    state = opened()
    today = spend_day(NOON_US, "UTC").day
    for day in (today - 1, today + 1, today):
        state.reach_day(day)
    assert state.today == spend_day(NOON_US + DAY_US, "UTC")


def test_no_generation_older_than_one_seen_in_postgres_is_used() -> None:
    """A fence once seen stays."""
    state = opened()
    state.see_generation(5)
    state.see_generation(3)
    assert state.generation == state.generation_seen == 5


def test_an_older_plan_does_not_replace_a_newer_one() -> None:
    """News may come late."""
    state = opened(plan(version=4))
    assert not state.adopt_plan(plan(version=3, name="old"), NOON_US)
    assert state.plan == plan(version=4)


def test_committed_tags_travel_with_the_next_call_and_stay_until_it_is_answered() -> None:
    """A tag that Redis was not told would hold its ids in flight for ever."""
    state = opened()
    state.committed = [4, 5]
    admitted = state.admit([entry()], 6, POLICY, NOON_US)
    assert admitted.request is not None
    state.committed.append(6)
    assert admitted.request.call.committed == [4, 5]
    state.apply(admitted.request, reserved(b"T"), NOON_US)
    assert state.committed == [6]


def test_a_reservation_is_what_a_flush_needs() -> None:
    """Campaign, generation, tag and day are those of the call."""
    state = opened()
    admitted, applied = answered(state, [entry()], b"A")
    assert admitted.request is not None
    call, made = admitted.request.call, applied.reservation
    assert isinstance(made, Reservation)
    assert (made.campaign_id, made.generation, made.tag, made.spend_day) == (7, call.generation, call.tag, call.day)


def test_a_stored_event_of_other_time_is_still_the_same_event() -> None:
    """Whoever replays a log shifts its times."""
    one = entry(ad_id="banner")
    stored = one.as_stored(3)
    moved = StoredEvent(
        stored.event_id, stored.campaign_id, stored.ad_id, stored.user_id, stored.event_type, stored.cost_micros, 5, 3
    )
    assert one.same_event(moved)


def test_who_has_waited_too_long_is_not_reserved() -> None:
    """Its request is over; nor are those that have joined it."""
    state = opened()
    first = entry(event_id=uuid.uuid4())
    repeat = entry(event_id=uuid.UUID(bytes=first.event_id))
    assert state.admit([first, repeat], 1, POLICY, NOON_US).late == [first]
    state.looking_up([first])
    assert state.admit([first], 2, POLICY, NOON_US + 11 * SECOND_US).request is None
    assert verdict_of(first) == verdict_of(repeat) == UNAVAILABLE


def test_a_refusal_is_told_by_the_plan_that_it_was_decided_under() -> None:
    """A budget that is taken to zero meanwhile leaves no day in which a paced event would have room."""
    paced = structs.replace(plan(), pacing=Pacing.EVEN)
    state = opened(paced)
    waiting = entry()
    admitted = state.admit([waiting], 1, POLICY, NOON_US)
    assert admitted.request is not None
    state.signal(Signal.CALL)
    state.adopt_plan(structs.replace(paced, version=paced.version + 1, daily_budget_micros=0), NOON_US)
    state.signal(Signal.REPLY)
    state.apply(admitted.request, reserved(b"W", 500_000_000), NOON_US)
    assert waiting.settled


def test_a_call_names_every_limit_of_the_plan() -> None:
    """Each in its place: they are all numbers of micros."""
    campaign = plan(pacing=Pacing.EVEN, daily_budget_micros=100_000_000, freq_cap_impressions_per_day=3)
    admitted = opened(campaign).admit([entry()], 1, POLICY, NOON_US)
    assert admitted.request is not None
    call = admitted.request.call
    assert (call.total_budget_micros, call.daily_budget_micros) == (1_000_000_000, 100_000_000)
    assert call.allowance_micros == allowance_micros(campaign, spend_day(NOON_US, "UTC"), NOON_US) < 100_000_000
    assert (call.plan_version, call.cap, call.cost_micros) == (1, 3, 1_000)


def test_users_are_counted_where_a_cap_is_in_force() -> None:
    """From the spend day on that it is in the campaign's own zone."""
    today = NOON_US // DAY_US
    assert opened().counts_users_from(NOON_US) is None
    assert opened(plan(freq_cap_impressions_per_day=1)).counts_users_from(NOON_US) == today
    kiritimati = plan(freq_cap_impressions_per_day=1, timezone="Pacific/Kiritimati")  # 14 h ahead
    assert opened(kiritimati).counts_users_from(NOON_US) == today + 1
