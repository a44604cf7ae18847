"""Failpoints: the list is the code's, and a wrong name is told."""

from __future__ import annotations

import inspect
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.settings import SettingsError
from engine.failpoints import POINTS, Failpoint
from engine.postgres.store import PostgresStore
from engine.redis.ledger import RedisLedger


def calls_of(store: type) -> set[str]:
    """Names of what an engine awaits of a store."""
    return {name for name, _ in inspect.getmembers(store, inspect.isfunction) if not name.startswith("_")}


class Store:
    """Stands for a store."""

    async def flush(self, value: int) -> int:
        """Give it back."""
        return value

    async def users_on(self) -> AsyncGenerator[int, None]:
        """Two chunks."""
        yield 1
        yield 2

    @asynccontextmanager
    async def listening(self, seen: list[str]) -> AsyncIterator[None]:
        """Something to enter."""
        seen.append("entered")
        yield
        seen.append("left")

    def name(self) -> str:
        """No await."""
        return "store"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that a failpoint sent to its own process."""
    signals: list[int] = []
    record: Callable[[int, int], None] = lambda _, number: signals.append(number)  # noqa: E731 - one line, typed
    monkeypatch.setattr("engine.failpoints.os.kill", record)
    return signals


def test_every_await_on_a_store_has_a_point_before_and_one_after_it() -> None:
    """The list is what both stores' doors have, and nothing else."""
    code = {
        f"{name}.{call}"
        for name, door in (("ledger", RedisLedger), ("store", PostgresStore))
        for call in calls_of(door)
    }
    assert {f"{call}.{when}" for call in code for when in ("before", "after")} == set(POINTS)
    assert len(POINTS) == len(set(POINTS))


@pytest.mark.parametrize(
    "text",
    ["flush", "store.flush.after", "store.flush.after=explode", "store.flush.later=kill", "store.flush.after=kill@0"],
)
def test_a_failpoint_that_is_none_is_told(text: str) -> None:
    """With all that there are."""
    with pytest.raises(SettingsError, match=r"store\.flush\.before"):
        Failpoint(text)


async def test_the_n_th_passing_of_the_point_counts_and_only_once(sent: list[int]) -> None:
    """`@2`: the second call."""
    store = Failpoint("store.flush.after=freeze@2").around("store", Store())
    seen = []
    for value in range(4):
        assert await store.flush(value) == value
        seen.append(list(sent))
    assert seen == [[], [signal.SIGSTOP], [signal.SIGSTOP], [signal.SIGSTOP]]


@pytest.mark.parametrize(("when", "before_first_chunk"), [("before", [signal.SIGKILL]), ("after", [])])
async def test_a_stream_has_its_points_before_the_first_and_after_the_last_chunk(
    sent: list[int], when: str, before_first_chunk: list[int]
) -> None:
    """A stream is one await, as long as it is read."""
    store = Failpoint(f"store.users_on.{when}=kill").around("store", Store())
    seen: list[Any] = [(chunk, list(sent)) async for chunk in store.users_on()]
    assert seen == [(1, before_first_chunk), (2, before_first_chunk)]
    assert sent == [signal.SIGKILL]


@pytest.mark.parametrize(("when", "passed_first"), [("before", True), ("after", False)])
async def test_a_span_has_its_points_around_the_way_into_it(sent: list[int], when: str, passed_first: bool) -> None:
    """The block lasts as long as the engine: what can be killed is its beginning."""
    seen: list[str] = []
    store = Failpoint(f"store.listening.{when}=kill").around("store", Store())
    span = store.listening(seen)
    assert (sent, seen) == ([], [])
    async with span:
        assert (sent, seen) == ([signal.SIGKILL], ["entered"])
    assert (sent, seen) == ([signal.SIGKILL], ["entered", "left"])


def test_what_is_no_await_is_left_alone(sent: list[int]) -> None:
    """Only the listed calls are wrapped."""
    assert Failpoint("store.flush.before=kill").around("store", Store()).name() == "store"
    assert sent == []
