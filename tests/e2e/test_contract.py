"""What senders and report readers were promised, on both listeners."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.e2e.program import Program, impression, running


@pytest.mark.parametrize("listener", [0, 1], ids=["api", "intake"])
def test_the_flow_of_the_old_system(program: Program, listener: int) -> None:
    """Cap, report, budget, unknown campaign and bad event answer as they always did."""
    to = program.listeners[listener]
    campaign = program.create(
        pricing_model="cpm", unit_price=10, total_budget=5, daily_budget=1, freq_cap_impressions_per_day=2
    )
    answers = [program.post(impression(campaign, "u1"), to=to) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) > 0
    report = program.report(campaign["id"])
    assert (report["impressions"], report["spend"]) == (2, "0.020000")
    poor = program.create(unit_price=10, total_budget="0.01", daily_budget=1)
    assert [program.post(impression(poor), to=to).status_code for _ in range(2)] == [200, 402]
    assert program.post(impression(999_999), to=to).status_code == 404
    assert program.post({"campaign_id": campaign["id"], "user_id": "u", "event_type": "view"}, to=to).status_code == 422
    program.audit()


def test_money_the_old_system_lost(program: Program) -> None:
    """0.001 an impression: a budget of 0.005 is five of them; 1.2345 a thousand is 0.001235 each."""
    five = program.create(unit_price="1.00", total_budget="0.005")
    assert [program.post(impression(five)).status_code for _ in range(7)] == [200] * 5 + [402] * 2
    assert program.report(five["id"])["spend"] == "0.005000"
    assert program.create(unit_price="1.2345")["cost_per_event"] == "0.001235"
    program.audit()


def test_a_batch_tells_every_event_that_was_not_accepted(program: Program) -> None:
    """Counts, indexes, ids, reasons; one bad event in a thousand costs that one."""
    campaign = program.create()
    events: list[Any] = [impression(campaign, f"u{index}") for index in range(1_000)]
    events[500] = {**events[500], "colour": "red"}
    events[600] = events[599]
    events[700] = {**events[699], "user_id": "other"}
    answer = program.batch(events)
    assert {name: answer[name] for name in ("received", "accepted", "duplicate", "rejected", "retry")} == {
        "received": 1_000, "accepted": 997, "duplicate": 1, "rejected": 2, "retry": 0
    }  # fmt: skip
    told = {result["index"]: (result["status"], result["reason"]) for result in answer["results"]}
    assert told == {500: ("rejected", "invalid"), 600: ("duplicate", None), 700: ("rejected", "id_reused")}
    assert "colour" in answer["results"][0]["detail"]
    assert program.report(campaign["id"])["impressions"] == 997
    program.audit()


def test_a_retry_of_an_accepted_event_is_its_duplicate_wherever_and_whenever_it_comes(env: dict[str, str]) -> None:
    """With the stored event; also when budget and cap are used up, on the other listener, on another process."""
    with running(env) as first, running(env) as second:
        campaign = first.create(total_budget="0.002", freq_cap_impressions_per_day=1)
        sent = impression(campaign, "ada", ad_id="banner")
        accepted = first.post(sent)
        assert accepted.status_code == 200
        assert accepted.json()["status"] == "accepted"
        assert first.post(impression(campaign, "bob")).status_code == 200
        assert first.post(impression(campaign, "eve")).status_code == 402
        for program in (first, second):
            for to in program.listeners:
                again = program.post(sent, to=to)
                assert again.status_code == 200
                assert again.json() == {**accepted.json(), "status": "duplicate"}
                reused = program.post({**sent, "user_id": "mallory"}, to=to)
                assert (reused.status_code, reused.json()["code"]) == (422, "id_reused")
        first.client.patch(f"{first.api}/campaigns/{campaign['id']}", json={"active": False})
        assert second.post(sent).json()["status"] == "duplicate"
        assert second.post(impression(campaign, "new")).status_code == 402
        first.audit()


def test_many_connections_and_two_processes_spend_a_budget_exactly(env: dict[str, str]) -> None:
    """1,000 impressions of budget, 48 connections: 1,000 accepted, the rest 402; a cap of 2 for 20 users: 40."""
    with running({**env, "HEADRACE_WORKERS": "2"}) as program, ThreadPoolExecutor(48) as threads:

        def send(events: list[dict[str, Any]]) -> list[int]:
            with httpx.Client(timeout=30) as client:  # a connection of its own
                return [client.post(f"{program.intake}/events/", json=event).status_code for event in events]

        campaign = program.create(total_budget="1.00")
        mail = [[impression(campaign, f"{worker}-{index}") for index in range(25)] for worker in range(48)]
        statuses = [status for each in threads.map(send, mail) for status in each]
        assert (statuses.count(200), statuses.count(402), len(statuses)) == (1_000, 200, 1_200)
        capped = program.create(freq_cap_impressions_per_day=2)

        mail = [
            [impression(capped, f"user{index % 20}") for index in range(worker, worker + 10)] for worker in range(48)
        ]
        statuses = [status for each in threads.map(send, mail) for status in each]
        assert (statuses.count(200), statuses.count(429)) == (40, 440)
        assert program.report(campaign["id"])["spend"] == "1.000000"
        assert program.report(capped["id"])["impressions"] == 40
        program.audit()


def test_reports_are_exact_for_any_bounds(program: Program) -> None:
    """Whole hours from the rollup, ragged edges from the events."""
    campaign = program.create(pricing_model="cpc", unit_price="0.25")
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    times = [hour + timedelta(minutes=20 * index) for index in range(12)]
    events = [
        impression(campaign, event_type="click" if index % 2 else "impression", occurred_at=time.isoformat())
        for index, time in enumerate(times)
    ]
    assert program.batch(events)["accepted"] == 12
    for start in range(0, 12, 3):
        for shift in (timedelta(0), timedelta(minutes=7), timedelta(microseconds=1)):
            bounds = (times[start] + shift, times[-1] + shift)
            answer = program.client.get(
                f"{program.api}/report/campaign/{campaign['id']}",
                params={"start": bounds[0].isoformat(), "end": bounds[1].isoformat()},
            ).json()
            inside = [index for index, time in enumerate(times) if bounds[0] <= time < bounds[1]]
            clicks = sum(index % 2 for index in inside)
            assert (answer["impressions"], answer["clicks"]) == (len(inside) - clicks, clicks)
            assert answer["spend"] == f"{clicks * 0.25:.6f}"


def test_an_even_campaign_is_paced(program: Program) -> None:
    """What the day has not reached is 429, and says when to come again."""
    campaign = program.create(pacing="even", daily_budget="0.002", unit_price="1.00", timezone="Pacific/Kiritimati")
    answers = [program.post(impression(campaign, f"u{index}")) for index in range(4)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert refused[0].status_code in (402, 429)
    if refused[0].status_code == 429:
        assert refused[0].json()["code"] == "paced"
        assert int(refused[0].headers["retry-after"]) >= 1


def test_an_idempotency_key_makes_a_request_without_ids_repeatable(program: Program) -> None:
    """The same request twice is one effect."""
    campaign = program.create()
    event = {"campaign_id": campaign["id"], "user_id": "ada", "event_type": "impression"}
    for to in program.listeners:
        key = {"Idempotency-Key": str(uuid.uuid4())}
        answers = [program.client.post(f"{to}/events/", json=event, headers=key).json() for _ in range(2)]
        assert [answer["status"] for answer in answers] == ["accepted", "duplicate"]
        assert answers[0]["event_id"] == answers[1]["event_id"]
    assert program.report(campaign["id"])["impressions"] == 2
