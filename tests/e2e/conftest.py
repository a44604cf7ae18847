"""A program on fresh stores for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.program import Program, running
from tests.e2e.stopping import stop_left_over


@pytest.fixture
def env(database_url: str, redis_url: str) -> dict[str, str]:
    """A fresh database and an empty Redis, for a program of one's own."""
    return {"DB_URL": database_url, "REDIS_URL": redis_url}


@pytest.fixture
def program(env: dict[str, str]) -> Iterator[Program]:
    """A running program on fresh stores."""
    with running(env) as program:
        yield program


@pytest.fixture
def data(data_folder: Path) -> Iterator[Path]:
    """An empty folder for a program's embedded stores, none of which outlives the test."""
    yield data_folder
    stop_left_over(data_folder)
