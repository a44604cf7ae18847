"""The engine and its peers: budget, daily budget, cap, dedup and answers, by the very same tests.

Each server runs once, on a fresh database and an emptied Redis; every test makes its own campaigns, and ends with the
books: the ledger is the sum of the events, ids are unique, nothing is over.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis
import trio
from psycopg import sql

from bench.serving import serving
from config.settings import Settings
from engine.embedded import Stores
from engine.postgres.store import open_store
from tests.e2e.program import environment

pytestmark = pytest.mark.stores

CONNECTIONS = 20
PEERS = ("rows", "batcher", "plpgsql")


class Server:
    """Something that takes events: its address, the database behind it, and a client for each of 20 threads."""

    def __init__(self, url: str, db_url: str) -> None:
        self.url = url
        self.database = psycopg.connect(db_url, autocommit=True)
        self._clients: list[httpx.Client] = []
        self._of_thread = threading.local()
        self._threads = ThreadPoolExecutor(CONNECTIONS)

    def post(self, body: Any, path: str = "/events/") -> httpx.Response:
        """One request, on this thread's own connection."""
        if not hasattr(self._of_thread, "client"):
            self._of_thread.client = httpx.Client(timeout=30, trust_env=False)
            self._clients.append(self._of_thread.client)
        return self._of_thread.client.post(self.url + path, json=body)  # type: ignore[no-any-return]

    def post_at_once(self, bodies: Sequence[Any]) -> list[httpx.Response]:
        """One request a body, on 20 connections."""
        return list(self._threads.map(self.post, bodies))

    def batch(self, events: Sequence[Any]) -> dict[str, Any]:
        """A batch and its answer."""
        answer = self.post(events, "/events/batch")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def campaign(self, **fields: Any) -> int:
        """A campaign: cpm at 1.00 (1,000 micros an impression) with ample budgets, unless told otherwise."""
        plan = {
            "name": "spring", "pricing_model": "cpm", "unit_price_micros": 1_000_000,
            "total_budget_micros": 10**9, "daily_budget_micros": 10**9, "freq_cap_impressions_per_day": None,
            "active": True, "pacing": "asap", "timezone": "UTC", **fields,
        }  # fmt: skip
        names = sql.SQL(", ").join(map(sql.Identifier, plan))
        insert = sql.SQL("INSERT INTO campaigns ({}) VALUES ({}) RETURNING id").format(
            names, sql.SQL(", ").join([sql.Placeholder()] * len(plan))
        )
        (number,) = self._one(insert, *plan.values())
        self._one(
            sql.SQL("INSERT INTO ledger (campaign_id, total_budget, daily_budget) VALUES (%s, %s, %s) RETURNING 1"),
            number, plan["total_budget_micros"], plan["daily_budget_micros"],
        )  # fmt: skip
        return int(number)

    def audit(self, campaign: int, events: int) -> int:
        """The books of a campaign with that many events tie; what it has spent."""
        spent, today, total, daily, cap = self._one(
            sql.SQL(
                "SELECT spent, today, total_budget, daily_budget, freq_cap_impressions_per_day"
                " FROM ledger JOIN campaigns ON id = campaign_id WHERE id = %s"
            ),
            campaign,
        )
        rows, ids, cost = self._one(
            sql.SQL(
                "SELECT count(*), count(DISTINCT event_id), coalesce(sum(cost_micros), 0)"
                " FROM events WHERE campaign_id = %s"
            ),
            campaign,
        )
        (shown,) = self._one(
            sql.SQL(
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM events"
                " WHERE campaign_id = %s AND event_type = 0 GROUP BY user_id, spend_day) AS users"
            ),
            campaign,
        )
        assert rows == ids == events
        assert spent == today == cost <= min(total, daily)
        assert cap is None or shown <= cap
        return int(spent)

    def _one(self, query: sql.SQL | sql.Composed, *values: Any) -> tuple[Any, ...]:
        row = self.database.execute(query, values).fetchone()
        assert row is not None
        return tuple(row)

    def close(self) -> None:
        """Let go of it."""
        self._threads.shutdown()
        for client in self._clients:
            client.close()
        self.database.close()


def impression(campaign: int, user: str = "ada", **fields: Any) -> dict[str, Any]:
    """An impression with an id of its own."""
    return {
        "campaign_id": campaign, "user_id": user, "event_type": "impression", "event_id": str(uuid.uuid4()), **fields
    }  # fmt: skip


def outcomes(answers: Sequence[httpx.Response]) -> Counter[str]:
    """How often each outcome: the status of an event, or the code of a problem."""
    bodies = [answer.json() for answer in answers]
    return Counter(body["code"] if "code" in body else body["status"] for body in bodies)


@contextmanager
def program(*arguments: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """A server of the bench; its address. It ends cleanly on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment(env or {}), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        told = re.fullmatch(r"listening (http://127\.0\.0\.1:\d+)\n", line)
        assert told is not None, f"{arguments}: {line!r}"
        yield told[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == ""
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def fresh(stores: Stores) -> Iterator[dict[str, str]]:
    """A migrated database and an emptied Redis, as environment."""
    name = f"test_{uuid.uuid4().hex}"
    db_url = urlsplit(stores.db_url)._replace(path=f"/{name}").geturl()
    with redis.Redis.from_url(stores.redis_url) as client:
        client.flushall()
        client.function_flush("SYNC")
    with psycopg.connect(stores.db_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        trio.run(_migrate, db_url)
        yield {"DB_URL": db_url, "REDIS_URL": stores.redis_url}
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def _migrate(db_url: str) -> None:
    async with open_store(db_url, Settings()):
        pass


@pytest.fixture(scope="module", params=["engine", *PEERS])
def server(request: pytest.FixtureRequest, stores: Stores) -> Iterator[Server]:
    """The engine, then each peer."""
    with fresh(stores) as env:
        if request.param == "engine":
            with serving(**env) as engine:
                yield from _server(engine.intake, env)
        else:
            with program(f"bench.peers.{request.param}", env=env) as url:
                yield from _server(url, env)


def _server(url: str, env: dict[str, str]) -> Iterator[Server]:
    server = Server(url, env["DB_URL"])
    yield server
    server.close()


def test_no_budget_is_passed(server: Server) -> None:
    """Room for 50 events, 100 on 20 connections: 50 are accepted."""
    campaign = server.campaign(total_budget_micros=50_500)
    answers = server.post_at_once([impression(campaign, f"user {number}") for number in range(100)])
    assert outcomes(answers) == {"accepted": 50, "total_budget": 50}
    assert {answer.status_code for answer in answers} == {200, 402}
    assert server.audit(campaign, 50) == 50_000
    clicks = server.post_at_once([impression(campaign, event_type="click") for _ in range(3)])
    assert outcomes(clicks) == {"accepted": 3}, "what costs nothing needs no budget"
    assert server.audit(campaign, 53) == 50_000


def test_no_daily_budget_is_passed(server: Server) -> None:
    """The same, within the day."""
    campaign = server.campaign(daily_budget_micros=30_000)
    answers = server.post_at_once([impression(campaign, f"user {number}") for number in range(60)])
    assert outcomes(answers) == {"accepted": 30, "daily_budget": 30}
    assert server.audit(campaign, 30) == 30_000


def test_no_cap_is_passed(server: Server) -> None:
    """Three impressions a user, on 20 connections at once and in a batch; clicks are not counted."""
    campaign = server.campaign(freq_cap_impressions_per_day=3)
    answers = server.post_at_once([impression(campaign, f"user {number % 4}") for number in range(40)])
    assert outcomes(answers) == {"accepted": 12, "frequency_capped": 28}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 429)
    answer = server.batch([impression(campaign, "eve") for _ in range(5)])
    assert [(result["index"], result["reason"]) for result in answer["results"]] == [
        (3, "frequency_capped"), (4, "frequency_capped"),
    ]  # fmt: skip
    assert server.post(impression(campaign, "eve", event_type="click")).json()["status"] == "accepted"
    server.audit(campaign, 16)


def test_budgets_hold_across_batches_at_once(server: Server) -> None:
    """Twenty batches of 20 events for a budget of 150 and a cap of 2, all at once."""
    campaign = server.campaign(total_budget_micros=150_000, freq_cap_impressions_per_day=2)
    batches = [[impression(campaign, f"user {user}") for user in range(20 * at, 20 * at + 20)] for at in range(10)]
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        answers = list(threads.map(server.batch, batches + [list(map(_again, batch)) for batch in batches]))
    assert sum(answer["accepted"] for answer in answers) == 150
    assert Counter(result["reason"] for answer in answers for result in answer["results"]) == {"total_budget": 250}
    assert server.audit(campaign, 150) == 150_000


def _again(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "event_id": str(uuid.uuid4())}


def test_an_id_counts_once(server: Server) -> None:
    """The second answer is the stored event, also when budget and cap are used up."""
    campaign = server.campaign(total_budget_micros=1_000, freq_cap_impressions_per_day=1)
    event = impression(campaign, ad_id="ad")
    first = server.post(event)
    assert first.status_code == 200
    assert first.json() == {
        **event, "cost": "0.001000", "ts": first.json()["ts"], "status": "accepted"
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.json()["ts"])
    again = server.post(event)
    assert (again.status_code, again.json()) == (200, {**first.json(), "status": "duplicate"})
    reused = server.post({**event, "user_id": "eve"})
    assert (reused.status_code, reused.json()["code"]) == (422, "id_reused")
    capped = server.post(_again(event))
    assert (capped.status_code, capped.json()["code"]) == (429, "frequency_capped")
    assert server.audit(campaign, 1) == 1_000


def test_an_id_counts_once_at_once(server: Server) -> None:
    """The same event on 20 connections: one row, and whoever hears 200 hears of that row."""
    campaign = server.campaign()
    event = impression(campaign)
    told = outcomes(server.post_at_once([event] * 40))
    assert told["accepted"] == 1
    assert told["accepted"] + told["duplicate"] + told["in_flight"] == 40
    server.audit(campaign, 1)
    assert server.post(event).json()["status"] == "duplicate"


def test_what_can_not_be_taken(server: Server) -> None:
    """Unknown campaigns, invalid events, bodies that are none."""
    campaign = server.campaign()
    unknown = server.post(impression(999_999))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_campaign")
    assert unknown.headers["content-type"] == "application/problem+json"
    inactive = server.post(impression(server.campaign(active=False)))
    assert (inactive.status_code, inactive.json()["code"]) == (402, "inactive")
    for wrong in (
        {"event_type": "view"}, {"user_id": ""}, {"user_id": "a" * 129}, {"user_id": "a\0"}, {"event_id": "7"},
        {"colour": "red"}, {"campaign_id": "1"}, {"occurred_at": "2020-01-01T00:00:00Z"}, {"ad_id": 7},
    ):  # fmt: skip
        answer = server.post({**impression(campaign), **wrong})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), wrong
    for path, body, code in (
        ("/events/", b'{"campaign_id": ', "malformed_json"),
        ("/events/batch", b"[{]", "malformed_json"),
        ("/events/batch", b"{}", "not_an_array"),
    ):
        answer = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (400, code)
    server.audit(campaign, 0)


def test_a_batch_has_a_verdict_for_each_event(server: Server) -> None:
    """One bad event costs only itself, and order decides who finds room."""
    campaign = server.campaign(total_budget_micros=3_000, freq_cap_impressions_per_day=2)
    daily, inactive = server.campaign(daily_budget_micros=500), server.campaign(active=False)
    stored = impression(campaign, "ada")
    assert server.post(stored).json()["status"] == "accepted"
    twice = impression(campaign, "bob")
    events = [
        stored,  # 0: a duplicate
        twice,  # accepted
        twice,  # 2: a duplicate of the one before
        impression(campaign, "ada"),  # accepted: the second of two, and the last of the budget
        impression(campaign, "ada"),  # 4: over the cap, whatever the budget says
        impression(campaign, "eve"),  # 5: no budget
        impression(campaign, "eve", event_type="click"),  # accepted: free
        impression(daily),  # 7
        impression(inactive),  # 8
        impression(999_999),  # 9
        {"campaign_id": campaign},  # 10
        {**stored, "user_id": "eve"},  # 11: the id of another event
    ]
    answer = server.batch(events)
    assert {name: answer[name] for name in ("received", "accepted", "duplicate", "rejected", "retry")} == {
        "received": 12, "accepted": 3, "duplicate": 2, "rejected": 7, "retry": 0,
    }  # fmt: skip
    assert [(result["index"], result["status"], result["reason"]) for result in answer["results"]] == [
        (0, "duplicate", None),
        (2, "duplicate", None),
        (4, "rejected", "frequency_capped"),
        (5, "rejected", "total_budget"),
        (7, "rejected", "daily_budget"),
        (8, "rejected", "inactive"),
        (9, "rejected", "unknown_campaign"),
        (10, "rejected", "invalid"),
        (11, "rejected", "id_reused"),
    ]
    assert all(result["event_id"] == events[result["index"]].get("event_id") for result in answer["results"])
    assert server.audit(campaign, 4) == 3_000
    server.audit(daily, 0)
    assert server.batch([]) == {
        "received": 0, "accepted": 0, "duplicate": 0, "rejected": 0, "retry": 0, "results": []
    }  # fmt: skip


@pytest.mark.parametrize("name", ["uvicorn", "intake"])
def test_a_constant_answer_is_served(name: str) -> None:
    """The ceilings of HTTP answer 200 to anything."""
    with program("bench.peers.ceilings", name) as url:
        assert httpx.post(f"{url}/events/", json=impression(1)).status_code == 200
        assert httpx.post(f"{url}/events/batch", json=[impression(1)] * 3).status_code == 200


@pytest.mark.parametrize("name", ["copy", "lua"])
def test_a_ceiling_is_measured(name: str, stores: Stores) -> None:
    """One line of JSON."""
    with fresh(stores) as env:
        told = subprocess.run(
            [sys.executable, "-m", "bench.peers.ceilings", name, "--seconds", "0.05"],
            env=environment(env), capture_output=True, text=True, check=True,
        )  # fmt: skip
    line = json.loads(told.stdout)
    assert line["name"] == name
    assert line["events"] >= 1_000
    assert 0 < line["cpu_seconds"] <= line["seconds"] * 2
