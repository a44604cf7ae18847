"""What contract tests run against: each fake, and the real store beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from config.settings import Settings
from engine.postgres.store import open_store
from tests.contract.flushes import Store, now
from tests.contract.reservations import FakeRig, Rig, redis_rig
from tests.fakes.store import FakeStore


@pytest.fixture(params=["fake", pytest.param("postgres", marks=pytest.mark.stores)])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Where the store is; None for the fake."""
    return None if request.param == "fake" else request.getfixturevalue("database_url")


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    """An empty store."""
    if store_url is None:
        yield FakeStore(now)
    else:
        async with open_store(store_url, Settings()) as store:
            yield store


@pytest.fixture(params=["fake", pytest.param("redis", marks=pytest.mark.stores)])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """An empty ledger, and what can befall its memory."""
    if request.param == "fake":
        yield FakeRig()
    else:
        async with redis_rig(request.getfixturevalue("redis_url")) as rig:
            yield rig
