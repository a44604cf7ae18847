"""A 200 stays true when processes end and stores go away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from config.settings import Settings
from engine.embedded import open_stores
from engine.embedded import postgres as embedded_postgres
from engine.embedded import redis as embedded_redis
from engine.embedded.home import open_home
from tests.e2e.program import Program, impression, running


@contextmanager
def load(program: Program, campaign: int, senders: int = 8) -> Iterator[tuple[list[str], list[int]]]:
    """Senders that post one event after the other; yields the acknowledged ids and all statuses."""
    acknowledged: list[str] = []
    statuses: list[int] = []
    stop = threading.Event()

    def run(number: int) -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                event = impression(campaign, f"user{number}")
                try:
                    answer = client.post(f"{program.listeners[number % 2]}/events/", json=event)
                except httpx.TransportError:
                    if program.process.poll() is not None:
                        return
                    continue
                statuses.append(answer.status_code)
                if answer.status_code == 200:
                    acknowledged.append(event["event_id"])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(senders)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged, statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def stored_ids(db_url: str) -> list[str]:
    """Ids of all rows."""
    with psycopg.connect(db_url) as connection:
        return [str(row[0]) for row in connection.execute("SELECT event_id FROM events")]


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_drains(env: dict[str, str], workers: int) -> None:
    """Every 200 is in the store, and the exit status is 0."""
    with running({**env, "HEADRACE_WORKERS": str(workers)}) as program:
        campaign = program.create()["id"]
        with load(program, campaign) as (acknowledged, statuses):
            program.wait_for(lambda: len(acknowledged) > 200)
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(timeout=60) == 0, program.log.read_text()
    assert set(statuses) <= {200, 503}
    rows = stored_ids(env["DB_URL"])
    assert set(acknowledged) <= set(rows)
    assert len(rows) == len(set(rows))
    with running(env) as again:
        assert again.report(campaign)["impressions"] == len(rows)
        again.audit()


def test_kill_9_under_load_loses_no_acknowledged_event_and_repeats_are_duplicates(env: dict[str, str]) -> None:
    """Whatever the moment; the next engine goes on with the campaign."""
    env = {**env, "HEADRACE_HEARTBEAT_SECONDS": "0.2", "HEADRACE_ENGINE_DEAD_SECONDS": "0.6"}
    with running(env) as program:
        campaign = program.create(total_budget="5.000")["id"]
        with load(program, campaign) as (acknowledged, _):
            program.wait_for(lambda: len(acknowledged) > 200)
            program.process.kill()
            program.process.wait()
    rows = stored_ids(env["DB_URL"])
    assert set(acknowledged) <= set(rows)
    with running(env) as again:
        sent = [impression(campaign, "late", event_id=event_id) for event_id in acknowledged[:1]]
        again.wait_for(lambda: again.post(sent[0]).status_code in (200, 422))
        with redis.Redis.from_url(env["REDIS_URL"]) as client:
            again.wait_for(lambda: client.hlen(f"{{{campaign}}}:p") == 0)  # the dead engine is missed, and recovered
        rows = stored_ids(env["DB_URL"])  # (its last COMMIT may have come after it)
        left = 5_000 - len(rows)
        tail = [impression(campaign, f"more{index}") for index in range(left + 50)]
        accepted = 0
        while tail:
            answer = again.batch(tail[:1_000])
            accepted += answer["accepted"]
            retry = {result["index"] for result in answer["results"] if result["status"] == "retry"}
            tail = [event for index, event in enumerate(tail[:1_000]) if index in retry] + tail[1_000:]
        assert accepted == left, "all that was reserved by the dead engine came back, and not one more"
        again.audit()


def stop_redis(folder: Path, redis_url: str) -> Callable[[], object]:
    """Stop Redis, which forgets everything; returns how to start it."""
    with redis.Redis.from_url(redis_url) as client:
        client.shutdown(nosave=True, now=True, force=True)
    return lambda: embedded_redis.start(open_home(folder), 256)


def stop_postgres(folder: Path, _: str) -> Callable[[], object]:
    """Stop Postgres; returns how to start it."""
    embedded_postgres.stop(open_home(folder))
    return lambda: embedded_postgres.start(open_home(folder), 256)


@pytest.mark.parametrize("stop", [stop_redis, stop_postgres])
def test_without_a_store_events_are_503_and_with_it_they_are_taken_again(
    data_folder: Path, stop: Callable[[Path, str], Callable[[], object]]
) -> None:
    """`Retry-After` is set, nothing is lost or counted twice, and no restart is needed."""
    with open_stores(Settings(data=str(data_folder))) as stores:
        env = {"DB_URL": stores.db_url, "REDIS_URL": stores.redis_url}
        with running(env) as program:
            campaign = program.create(total_budget="1000")["id"]
            with load(program, campaign, senders=4) as (acknowledged, statuses):
                program.wait_for(lambda: len(acknowledged) > 100)
                start = stop(data_folder, stores.redis_url)
                seen = len(statuses)
                program.wait_for(lambda: statuses[seen:].count(503) > 20)
                assert program.client.get(f"{program.api}/readyz").status_code == 503
                assert program.client.get(f"{program.api}/healthz").status_code == 200
                refused = program.post(impression(campaign))
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                start()
                before = len(acknowledged)
                program.wait_for(lambda: len(acknowledged) > before + 100)
            assert set(statuses) == {200, 503}
            rows = stored_ids(env["DB_URL"])
            assert set(acknowledged) <= set(rows)
            assert program.report(campaign)["impressions"] == len(rows) == len(set(rows))
            program.wait_ready()
            program.audit()
