"""Failpoints: where a fault test can end or freeze an engine process, by name.

Owns the list: one point before and one after every await on a store, as the engine sees its stores. They stand around
the stores' doors, put there by the composition root only when `HEADRACE_FAILPOINT` names one, so an engine in
production has no trace of them. Knows nothing of what a store does: the steps of one call have no points of their own,
nor has what the store does by itself while the engine is `listening` (it connects again when the connection was lost).
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Literal, TypeVar, cast

from config.settings import SettingsError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LEDGER: Final = (
    "begin", "clock_offset_us", "give_back", "load", "memory", "pending_tags", "probe", "ready", "round", "settle",
    "survey", "unsafe",
)  # fmt: skip
_STORE: Final = (
    "campaign", "create_campaign", "end_dead_sessions", "events_since", "flush", "halt", "heartbeat", "ids_received",
    "listening", "look_up", "make_partitions", "page_campaigns", "plans", "probe", "raise_generations",
    "register_engine", "report", "retire_engine", "update_campaign", "users_on",
)  # fmt: skip
_SPANS: Final = ("store.listening",)
_STREAMS: Final = ("store.ids_received", "store.users_on")
POINTS: Final = tuple(
    f"{store}.{call}.{when}"
    for store, calls in (("ledger", _LEDGER), ("store", _STORE))
    for call in calls
    for when in ("before", "after")
)
_ACTIONS: Final = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
_SPELLING: Final = re.compile(r"(?P<point>[a-z_.]+)=(?P<action>kill|freeze)(@(?P<passing>[1-9][0-9]*))?")


class Failpoint:
    """One armed point: at its n-th passing, this process is killed or frozen."""

    def __init__(self, text: str) -> None:
        """Read `store.flush.after=kill@3`. Raises `SettingsError`."""
        spelling = _SPELLING.fullmatch(text)
        if spelling is None or spelling["point"] not in POINTS:
            raise SettingsError(
                f"HEADRACE_FAILPOINT is {text!r}: it must be POINT=kill or POINT=freeze, with @N for the N-th passing; "
                f"the points are {', '.join(POINTS)}"
            )
        self.point = spelling["point"]
        self._signal = _ACTIONS[spelling["action"]]
        self._left = int(spelling["passing"] or 1)
        log.warning("HEADRACE_FAILPOINT is set: this process will %s itself at %s", spelling["action"], self.point)

    def around(self, name: Literal["ledger", "store"], store: T) -> T:
        """The same store, with this point on its way."""
        return cast(T, _Watched(name, store, self._pass))

    def _pass(self, point: str) -> None:
        if point == self.point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)


class _Watched:
    """A store whose calls pass a point before and after."""

    def __init__(self, name: str, store: object, passing: Callable[[str], None]) -> None:
        self._name = name
        self._store = store
        self._pass = passing

    def __getattr__(self, call: str) -> Any:
        method = getattr(self._store, call)
        point = f"{self._name}.{call}"
        if f"{point}.before" not in POINTS:
            return method
        if point in _SPANS:
            return lambda *args, **options: self._span(point, method(*args, **options))
        around = self._stream if point in _STREAMS else self._await
        return lambda *args, **options: around(point, lambda: method(*args, **options))

    async def _await(self, point: str, call: Callable[[], Awaitable[object]]) -> object:
        self._pass(f"{point}.before")
        result = await call()
        self._pass(f"{point}.after")
        return result

    @asynccontextmanager
    async def _span(self, point: str, block: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Before and after the way into the block; its way out only cancels."""
        self._pass(f"{point}.before")
        async with block:
            self._pass(f"{point}.after")
            yield

    async def _stream(
        self, point: str, call: Callable[[], AsyncGenerator[object, None]]
    ) -> AsyncGenerator[object, None]:
        self._pass(f"{point}.before")
        stream = call()
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.aclose()
        self._pass(f"{point}.after")
