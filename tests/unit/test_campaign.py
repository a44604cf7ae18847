"""The decisions of one campaign."""

from __future__ import annotations

import uuid

import pytest
from msgspec import structs

from engine.campaign import ATTEMPTS_MAX, Admitted, Applied, CampaignState, Reservation
from engine.lifecycle import TRANSITIONS, IllegalTransition, Phase, Signal
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
from engine.ports import BILLABLE, COUNTS_FOR_CAP, FREE, NO_CAP, Letter, Reserved
from engine.submission import Entry
from engine.verdicts import UNAVAILABLE
from tests.plans import NOON_US, entry, plan, submission, verdict_of


def opened(campaign: Campaign | None = None) -> CampaignState:
    """A state that may reserve."""
    state = CampaignState(CampaignId(7), turn_seconds=480, fresh_seconds=180, slack_seconds=60, wait_seconds=10)
    state.adopt_plan(campaign or plan(), NOON_US)
    state.signal(Signal.PLAN)
    return state


def answered(
    state: CampaignState, entries: list[Entry], letters: bytes, now_us: int = NOON_US
) -> tuple[Admitted, Applied]:
    """Admit the entries and apply this reply."""
    admitted = state.admit(entries, 1, now_us)
    assert admitted.request is not None
    state.signal(Signal.CALL)
    state.signal(Signal.REPLY)
    return admitted, state.apply(admitted.request, Reserved(letters, 0, 0), now_us)


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
    admitted = state.admit([entry(request), entry(request, event_type="click")], 9, NOON_US)
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


@pytest.mark.parametrize(("age_seconds", "late"), [(None, True), (181, True), (179, False), (-300, False)], ids=str)
def test_an_event_from_before_the_window_or_without_a_time_is_looked_up_first(
    age_seconds: int | None, late: bool
) -> None:
    """The late lane of protocol.md, section 4."""
    told = None if age_seconds is None else instant_text(NOON_US - age_seconds * SECOND_US)
    admitted = opened().admit([entry(event_id=uuid.uuid4(), occurred_at=told)], 1, NOON_US)
    assert (len(admitted.late) == 1) is late
    assert (admitted.request is None) is late


def test_an_id_made_by_the_server_is_never_looked_up() -> None:
    """Even when its event is old."""
    told = instant_text(NOON_US - 3_600 * SECOND_US)
    assert opened().admit([entry(occurred_at=told)], 1, NOON_US).late == []


def test_a_late_event_is_looked_up_again_for_every_call() -> None:
    """Between two calls, somebody else may have committed it."""
    state, one = opened(), entry(event_id=uuid.uuid4())
    state.looking_up(one)
    assert state.admit([one], 1, NOON_US).late == []
    assert state.admit([one], 2, NOON_US).late == [one]


def test_a_look_up_counts_under_the_generation_that_was_known_when_it_began() -> None:
    """A later recovery may have let a flush through that it did not see."""
    state, one = opened(), entry(event_id=uuid.uuid4())
    for generation in (0, 1, 5):
        state.see_generation(generation)
        assert state.admit([one], 1, NOON_US).late == [one]
        state.looking_up(one)
    assert state.admit([one], 1, NOON_US).late == []


def test_an_entry_is_looked_up_again_only_as_long_as_its_sender_may_wait() -> None:
    """However often recoveries make its look-up void."""
    state, one = opened(), entry(event_id=uuid.uuid4())
    now_us = NOON_US
    while not one.settled:
        assert now_us <= NOON_US + 11 * SECOND_US
        state.see_generation(state.generation + 1)
        if state.admit([one], 1, now_us).late:
            state.looking_up(one)
        now_us += SECOND_US
    assert verdict_of(one) == UNAVAILABLE


def test_an_entry_is_reserved_a_bounded_number_of_times() -> None:
    """Then its sender is told to come again."""
    state, one = opened(), entry()
    for _ in range(ATTEMPTS_MAX):
        assert state.admit([one], 1, NOON_US).request is not None
    assert state.admit([one], 1, NOON_US).request is None
    assert verdict_of(one).reason is Reason.UNAVAILABLE  # type: ignore[union-attr]


def test_what_has_passed_its_deadline_is_not_reserved() -> None:
    """Nobody waits for it any more."""
    state, one = opened(), entry()
    one.settle(Verdict(Status.RETRY, Reason.UNAVAILABLE))
    assert state.admit([one], 1, NOON_US) == Admitted(None, [], [])
    assert state.quiet


def test_the_spend_day_only_moves_forward() -> None:
    """Also when the clock goes back."""
    state = opened()
    today = spend_day(NOON_US, "UTC").day
    for now_us, day in ((NOON_US, today), (NOON_US + DAY_US, today + 1), (NOON_US, today + 1)):
        admitted = state.admit([entry(now_us=now_us)], 1, now_us)
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
    admitted = state.admit([entry()], 6, NOON_US)
    assert admitted.request is not None
    state.committed.append(6)
    assert admitted.request.call.committed == [4, 5]
    state.apply(admitted.request, Reserved(b"T", 0, 0), NOON_US)
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
    """What Postgres and Redis said of an old entry may be over: other days, ids that the window has dropped."""
    state = opened()
    first = entry(event_id=uuid.uuid4())
    repeat = entry(event_id=uuid.UUID(bytes=first.event_id))
    assert state.admit([first, repeat], 1, NOON_US).late == [first]
    state.looking_up(first)
    assert state.admit([first], 2, NOON_US + 11 * SECOND_US).request is None
    assert verdict_of(first) == verdict_of(repeat) == UNAVAILABLE


def test_a_refusal_is_told_by_the_plan_that_it_was_decided_under() -> None:
    """A budget that is taken to zero meanwhile leaves no day in which a paced event would have room."""
    paced = structs.replace(plan(), pacing=Pacing.EVEN)
    state = opened(paced)
    waiting = entry()
    admitted = state.admit([waiting], 1, NOON_US)
    assert admitted.request is not None
    state.signal(Signal.CALL)
    state.adopt_plan(structs.replace(paced, version=paced.version + 1, daily_budget_micros=0), NOON_US)
    state.signal(Signal.REPLY)
    state.apply(admitted.request, Reserved(b"W", 500_000_000, 500_000_000), NOON_US)
    assert waiting.settled


def test_a_call_names_every_limit_of_the_plan() -> None:
    """Each in its place: they are all numbers of micros."""
    campaign = plan(pacing=Pacing.EVEN, daily_budget_micros=100_000_000, freq_cap_impressions_per_day=3)
    admitted = opened(campaign).admit([entry()], 1, NOON_US)
    assert admitted.request is not None
    call = admitted.request.call
    assert (call.total_budget_micros, call.daily_budget_micros) == (1_000_000_000, 100_000_000)
    assert call.allowance_micros == allowance_micros(campaign, spend_day(NOON_US, "UTC"), NOON_US) < 100_000_000
    assert (call.plan_version, call.cap, call.cost_micros) == (1, 3, 1_000)


@pytest.mark.parametrize(("seconds_before_a_turn", "ahead"), [(59, 1), (61, 0)])
def test_a_call_holds_for_a_turn_that_another_clock_may_have_reached(seconds_before_a_turn: int, ahead: int) -> None:
    """And for no later one: then Redis has forgotten what was not looked up."""
    admitted = opened().admit([entry()], 1, NOON_US - seconds_before_a_turn * SECOND_US)
    assert admitted.request is not None
    call = admitted.request.call
    assert call.turn_latest == call.turn + ahead
