"""Fixtures of all tests: real stores for the session, a fresh database and an empty Redis for each test."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import sql

from config.settings import Settings
from engine.embedded import Stores, open_stores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-trio takes the clock from a test's own arguments: one that only a fixture asks for is not used."""
    for item in items:
        if not isinstance(item, pytest.Function) or "autojump_clock" not in item.fixturenames:
            continue
        if "autojump_clock" not in inspect.signature(item.function).parameters:
            raise pytest.UsageError(f"{item.nodeid} runs in real time: name autojump_clock in its arguments")


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """An empty folder for embedded stores, which the user whom root runs them as can reach."""
    yield from _data_folder()


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """A real Postgres and a real Redis, started once and stopped at the end."""
    for folder in _data_folder():
        with open_stores(Settings(data=str(folder), postgres_memory_mb=128)) as stores:  # TRUNCATE looks through all
            yield stores


@pytest.fixture
def database_url(stores: Stores) -> Iterator[str]:
    """A fresh, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(stores.db_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield urlsplit(stores.db_url)._replace(path=f"/{name}").geturl()
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def redis_url(stores: Stores) -> str:
    """Redis, emptied: no keys, no functions."""
    with redis.Redis.from_url(stores.redis_url) as client:
        client.flushall()
        client.function_flush("SYNC")
    return stores.redis_url


def _data_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)
