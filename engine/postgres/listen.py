"""News from Postgres: plans that changed, generations that rose.

Owns the listening connection. News can be missed while it is down, so whoever listens is told of each loss, and
once more when listening has begun again: what was learned in between may be old already.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import trio
import trio_asyncio  # type: ignore[import-untyped]

from engine.errors import StoreUnavailable
from engine.model import CampaignId
from engine.postgres.database import mapped_errors, on_loop, open_connection

log = logging.getLogger(__name__)

PLAN: Final = "headrace_plan"
GENERATION: Final = "headrace_generation"

# Pauses between attempts to reconnect: doubled from the first to the last, each cut at random by up to a half.
_FIRST_PAUSE_SECONDS: Final = 0.1
_LAST_PAUSE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Whom to tell. The calls come on the trio thread, and must neither block nor raise."""

    plan_changed: Callable[[CampaignId, int], None]  # campaign, version
    generation_raised: Callable[[CampaignId, int], None]  # campaign, generation
    lost: Callable[[], None]  # forget everything learned so far


async def listen(
    loop: trio_asyncio.TrioEventLoop, db_url: str, name: str, listener: Listener, *, probe_seconds: float,
    timeout_seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:  # fmt: skip
    """Listen until cancelled, by sessions of this name. Started once the first connection listens, or has failed."""
    started = told = False
    pause_seconds = _FIRST_PAUSE_SECONDS

    def listening() -> None:
        nonlocal started, told, pause_seconds
        if told:
            log.warning("listening for news from Postgres again")
            told = False
        if started:
            listener.lost()
        else:
            task_status.started()
        started = True
        pause_seconds = _FIRST_PAUSE_SECONDS

    while True:
        try:
            await on_loop(loop, lambda: _session(db_url, name, listener, listening, probe_seconds, timeout_seconds))
        except StoreUnavailable as error:
            if not told:
                log.warning("not listening for news from Postgres: %s; trying again every few seconds", error)
                told = True
        listener.lost()
        if not started:
            task_status.started()
            started = True
        await trio.sleep(pause_seconds * random.uniform(0.5, 1))
        pause_seconds = min(2 * pause_seconds, _LAST_PAUSE_SECONDS)


async def _session(
    db_url: str,
    name: str,
    listener: Listener,
    listening: Callable[[], None],
    probe_seconds: float,
    timeout_seconds: float,
) -> None:
    """One connection's life (asyncio side): until a probe finds it broken."""
    closed = asyncio.Event()

    def hear(_connection: Any, _pid: int, channel: str, payload: object) -> None:
        try:
            campaign, number = (int(word) for word in str(payload).split())
        except ValueError:
            log.warning("not news of ours on %s: %r", channel, payload)
            return
        tell = listener.plan_changed if channel == PLAN else listener.generation_raised
        tell(CampaignId(campaign), number)

    async with open_connection(db_url, timeout_seconds, application_name=name) as connection:
        connection.add_termination_listener(lambda _connection: closed.set())
        with mapped_errors(certain=True):
            for channel in (PLAN, GENERATION):
                await connection.add_listener(channel, hear)
            listening()
            while not closed.is_set():
                # A peer that vanished without a word is found out by the probe.
                await connection.execute("SELECT 1", timeout=timeout_seconds)
                try:
                    await asyncio.wait_for(closed.wait(), probe_seconds)
                except TimeoutError:
                    continue
