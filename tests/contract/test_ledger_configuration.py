"""What is checked of a Redis at start: there, new enough, the primary, in no cluster, and never dropping keys."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest
import redis

from config.settings import Settings, SettingsError
from engine.clock import machine_us
from engine.errors import ConfigurationUnsafe, StoreUnavailable
from engine.redis.ledger import open_ledger
from tests.contract.scripted import ScriptedRedis, open_scripted


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedRedis]:
    """A Redis that says of itself what the test tells it to."""
    async with open_scripted() as scripted:
        yield scripted


async def opening(url: str) -> None:
    """Open a ledger, and close it."""
    async with open_ledger(url, Settings(ledger_timeout_seconds=0.5)):
        pass


async def test_a_sound_redis_is_taken(scripted: ScriptedRedis) -> None:
    """And its library is loaded."""
    await opening(scripted.url)
    assert scripted.heard[-1] == b"FUNCTION"


@pytest.mark.parametrize(
    ("field", "value", "what", "remedy"),
    [
        ("redis_version", "6.2.14", "6.2.14", "7.0 or newer"),
        ("maxmemory_policy", "allkeys-lru", "maxmemory-policy = allkeys-lru", "set it to noeviction"),
        ("maxmemory_policy", "volatile-ttl", "maxmemory-policy = volatile-ttl", "set it to noeviction"),
        ("role", "slave", "replica", "point REDIS_URL to the primary"),
        ("evicted_keys", "7", "dropped 7 keys", "restart it"),
        ("cluster_enabled", "1", "node of a cluster", "cluster-enabled no"),
    ],
)
async def test_an_unsafe_redis_is_refused(
    scripted: ScriptedRedis, field: str, value: str, what: str, remedy: str
) -> None:
    """The sentence says what is wrong, where, and what to do; nothing is loaded there."""
    scripted.info[field] = value
    with pytest.raises(ConfigurationUnsafe) as refusal:
        await opening(scripted.url)
    for part in ("Redis", "REDIS_URL", what, remedy):
        assert part in str(refusal.value)
    assert b"FUNCTION" not in scripted.heard


@pytest.mark.parametrize("version", ["7.0.0", "7.4.1", "8.2.0", "10.0.1", "255.255.255"])
async def test_newer_versions_are_taken(scripted: ScriptedRedis, version: str) -> None:
    """Versions are compared as numbers."""
    scripted.info["redis_version"] = version
    await opening(scripted.url)


async def test_a_library_that_cannot_be_loaded_is_told(scripted: ScriptedRedis) -> None:
    """A user without the right to load functions: the reason is in the message."""
    scripted.loading = b"-NOPERM no permissions to run the 'function' command\r\n"
    with pytest.raises(StoreUnavailable, match="no permissions to run the 'function'"):
        await opening(scripted.url)


@pytest.mark.parametrize("url", ["unix:///nowhere/redis.sock", "redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0"])
async def test_an_unreachable_redis_is_told(url: str) -> None:
    """Nothing listens there."""
    with pytest.raises(StoreUnavailable) as away:
        await opening(url)
    assert away.value.certain


@pytest.mark.parametrize("url", ["redis://localhost/0?socket_timeout=soon", "redis://localhost:port/0"])
async def test_a_url_that_cannot_be_read_is_told(url: str) -> None:
    """The setting is named."""
    with pytest.raises(SettingsError, match="REDIS_URL"):
        await opening(url)


async def test_a_password_in_the_url_is_never_shown() -> None:
    """Errors go to logs."""
    for url in ("redis://me:s3cret@127.0.0.1:1/0", "redis://me:s3cret@localhost:port/0"):
        with pytest.raises((StoreUnavailable, SettingsError)) as refusal:
            await opening(url)
        assert "s3cret" not in str(refusal.value)


async def test_the_ledger_goes_before_the_url(scripted: ScriptedRedis) -> None:
    """Options in the URL can't break what the ledger relies on."""
    await opening(f"{scripted.url}?decode_responses=true&protocol=3&max_connections=1&retry_on_timeout=true")


@pytest.mark.stores
async def test_a_real_redis_that_evicts_is_refused(redis_url: str) -> None:
    """As `CONFIG SET` made it."""
    await opening(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lfu")
        try:
            with pytest.raises(ConfigurationUnsafe, match="allkeys-lfu"):
                await opening(redis_url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.stores
async def test_a_redis_that_forbids_config_is_taken(redis_url: str) -> None:
    """A managed Redis hides CONFIG; INFO tells enough."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("tenant", enabled=True, nopass=True, categories=["+@all"], commands=["-config"], keys=["*"])
        try:
            await opening(f"{redis_url}?username=tenant&password=any")
        finally:
            client.acl_deluser("tenant")


async def test_a_redis_that_becomes_unsafe_is_noticed(redis_url: str) -> None:
    """Its configuration may change while we run."""
    async with open_ledger(redis_url, Settings()) as ledger:
        assert await ledger.unsafe() is None
        with redis.Redis.from_url(redis_url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            try:
                assert "allkeys-lru" in str(await ledger.unsafe())
            finally:
                client.config_set("maxmemory-policy", "noeviction")
        assert await ledger.unsafe() is None


async def test_what_a_redis_holds_is_told_at_the_start(
    scripted: ScriptedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line, whoever set its limit."""
    caplog.set_level(logging.INFO)
    scripted.info |= {"used_memory": str(2 << 20), "maxmemory": str(256 << 20)}
    await opening(scripted.url)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "Redis may use 256 MB, and uses 2 MB: it holds about 1,900,000 ids at once" in caplog.text


async def test_a_redis_without_a_limit_is_warned_of(scripted: ScriptedRedis, caplog: pytest.LogCaptureFixture) -> None:
    """It may grow until the machine is full."""
    scripted.info |= {"used_memory": str(2 << 20), "maxmemory": "0"}
    await opening(scripted.url)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no maxmemory limits it: ids are forgotten by age alone" in caplog.text


@pytest.mark.stores
async def test_a_ledger_tells_what_redis_uses_and_may_use(redis_url: str) -> None:
    """In bytes; a limit that is changed while we run is seen."""
    async with open_ledger(redis_url, Settings()) as ledger:
        with redis.Redis.from_url(redis_url) as client:
            before = str(client.config_get("maxmemory")["maxmemory"])
            client.config_set("maxmemory", "77mb")
            try:
                told = await ledger.memory()
            finally:
                client.config_set("maxmemory", before)
            uses = int(client.info("memory")["used_memory"])
    assert told is not None
    assert told.max_bytes == 77 << 20
    assert uses / 2 < told.used_bytes < uses * 2
    assert told.now_us is not None
    assert abs(told.now_us - machine_us()) < 60 * 1_000_000


async def test_a_redis_that_cannot_be_asked_for_its_memory_tells_none(scripted: ScriptedRedis) -> None:
    """What was known before holds meanwhile."""
    async with open_ledger(scripted.url, Settings(ledger_timeout_seconds=0.5)) as ledger:
        scripted.info_away = True
        assert await ledger.memory() is None


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_off_is_told(redis_url: str, hours: int) -> None:
    """Positive when ours is ahead of Redis's: an hour, give or take what a call may take."""
    hour_us = 3_600 * 1_000_000
    async with open_ledger(redis_url, Settings(), now_us=lambda: machine_us() + hours * hour_us) as ledger:
        told = await ledger.clock_offset_us()
    assert told is not None
    assert abs(told - hours * hour_us) < hour_us // 2


async def test_a_redis_that_may_not_be_asked_for_its_time_tells_none(redis_url: str) -> None:
    """A managed one may forbid it: the other clocks are compared all the same."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("clockless", enabled=True, nopass=True, categories=["+@all"], commands=["-time"], keys=["*"])
        try:
            async with open_ledger(f"{redis_url}?username=clockless&password=any", Settings()) as ledger:
                assert await ledger.clock_offset_us() is None
        finally:
            client.acl_deluser("clockless")
