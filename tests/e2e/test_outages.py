"""A steady refusal is told: `/readyz` has the store's own words, the log a line when it begins and when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from config.settings import Settings
from engine.embedded import open_stores
from tests.e2e.program import Program, impression, running
from tests.e2e.test_survival import load, stop_postgres, stop_redis


def lines(program: Program, text: str) -> list[str]:
    """What the log says of something."""
    return [line for line in program.log.read_text().splitlines() if text in line]


def told(program: Program, url: str) -> str:
    """What a listener says of why it is not ready; empty if it is."""
    answer = program.client.get(f"{url}/readyz")
    return "" if answer.status_code == 200 else str(answer.json()["detail"])


def is_refused(program: Program, campaign: int) -> bool:
    """Whether an event is answered 503."""
    return program.post(impression(campaign)).status_code == 503


def refused_and_taken_again(program: Program, campaign: int, store: str, words: str, mend: Any) -> None:
    """Events are refused now, and will be until `mend` is called."""
    program.wait_for(lambda: is_refused(program, campaign))
    for listener in program.listeners:
        assert words in told(program, listener)
        assert store in told(program, listener)
    for _ in range(100):
        assert is_refused(program, campaign)
    mend()
    # Nobody sends and nobody asks: a load balancer has taken the traffic away.
    program.wait_for(lambda: lines(program, f"{store}: works again"))
    assert told(program, program.api) == ""
    assert program.post(impression(campaign)).status_code == 200
    begins = lines(program, f"engine.outages: {store}: ")
    assert len(begins) == 2, begins
    assert words in begins[0]
    assert "works again" in begins[1]
    assert not lines(program, "not recovered yet")
    program.audit()


@contextmanager
def tenant(redis_url: str) -> Iterator[Any]:
    """A user of this Redis whose rights a test may take away."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("tenant", enabled=True, nopass=True, categories=["+@all"], keys=["*"])
        try:
            yield client
        finally:
            client.acl_deluser("tenant")


def test_a_redis_at_its_maxmemory_is_told(env: dict[str, str]) -> None:
    """Redis refuses reserves for want of memory."""
    with redis.Redis.from_url(env["REDIS_URL"]) as client, running(env) as program:
        campaign = program.create()["id"]
        assert program.post(impression(campaign)).status_code == 200
        client.config_set("maxmemory", 1)
        try:
            refused_and_taken_again(
                program, campaign, "Redis", "'maxmemory'", lambda: client.config_set("maxmemory", 0)
            )
        finally:
            client.config_set("maxmemory", 0)


def test_a_redis_without_the_right_to_call_functions_is_told(env: dict[str, str]) -> None:
    """Somebody has changed the user's rules."""
    with (
        tenant(env["REDIS_URL"]) as client,
        running({**env, "REDIS_URL": f"{env['REDIS_URL']}?username=tenant&password=s3cret"}) as program,
    ):
        campaign = program.create()["id"]
        assert program.post(impression(campaign)).status_code == 200
        client.execute_command("ACL", "SETUSER", "tenant", "-fcall")
        mend = lambda: client.execute_command("ACL", "SETUSER", "tenant", "+fcall")  # noqa: E731
        refused_and_taken_again(program, campaign, "Redis", "no permissions to run the 'fcall' command", mend)
        assert "s3cret" not in program.log.read_text()


@pytest.mark.parametrize("right", ["INSERT", "SELECT"])
def test_a_postgres_without_a_right_on_events_is_told(env: dict[str, str], right: str) -> None:
    """Neither a flush nor a look-up can do without: and no such refusal ends the engine."""
    address = urlsplit(env["DB_URL"])
    with psycopg.connect(env["DB_URL"], autocommit=True) as admin:
        if not admin.execute("SELECT FROM pg_roles WHERE rolname = 'tenant'").fetchall():
            admin.execute("CREATE ROLE tenant")
        admin.execute("ALTER SCHEMA public OWNER TO tenant")
        options = f"{address.query}&options=-c%20role%3Dtenant".lstrip("&")
        env = {**env, "DB_URL": address._replace(query=options).geturl()}
        with running(env) as program:
            campaign = program.create()["id"]
            assert program.post(impression(campaign)).status_code == 200
            admin.execute(f"REVOKE {right} ON events FROM tenant")
            mend = lambda: admin.execute(f"GRANT {right} ON events TO tenant")  # noqa: E731
            refused_and_taken_again(program, campaign, "Postgres", "42501 permission denied for table events", mend)


@pytest.mark.parametrize(("stop", "store"), [(stop_redis, "Redis"), (stop_postgres, "Postgres")])
def test_a_store_that_is_away_under_load_is_two_lines(data_folder: Path, stop: Any, store: str) -> None:
    """However many answers of 503 there were."""
    with open_stores(Settings(data=str(data_folder))) as stores:
        env = {"DB_URL": stores.db_url, "REDIS_URL": stores.redis_url}
        with running(env) as program:
            campaigns = [program.create()["id"] for _ in range(3)]
            with load(program, campaigns[0], senders=4) as (acknowledged, statuses):
                program.wait_for(lambda: len(acknowledged) > 20)
                start = stop(data_folder, stores.redis_url)
                program.wait_for(lambda: statuses.count(503) > 20)  # (a closed campaign answers every 2 s)
                for campaign in campaigns:
                    assert is_refused(program, campaign)
                assert store in told(program, program.api)
                start()
                before = len(acknowledged)
                program.wait_for(lambda: len(acknowledged) > before + 20)
            program.wait_for(lambda: lines(program, f"{store}: works again"))
            assert told(program, program.api) == ""
            assert len(lines(program, f"engine.outages: {store}: ")) == 2, program.log.read_text()
            assert not lines(program, "not recovered yet")
            assert len(program.log.read_text().splitlines()) < 12, program.log.read_text()
