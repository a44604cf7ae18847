"""The engine, deliberately broken: it answers 200 before COMMIT. What the bench's audit must catch when it is killed.

Everything of it is real but one thing: a flush tells "committed" at once, and takes place a while later.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import trio

from api.__main__ import main
from config.settings import Settings
from engine.ports import Batch, Committed, FlushReply
from engine.postgres.store import open_store

LATE_SECONDS = 2.0


@asynccontextmanager
async def open_hasty_store(db_url: str, settings: Settings) -> AsyncIterator[Any]:
    """The store, with flushes that are late."""
    async with open_store(db_url, settings) as store, trio.open_nursery() as nursery:
        flush = store.flush

        async def later(batches: Sequence[Batch]) -> None:
            await trio.sleep(LATE_SECONDS)
            await flush(batches)

        async def flush_later(batches: Sequence[Batch]) -> FlushReply:
            nursery.start_soon(later, list(batches))
            return Committed()

        with patch.object(store, "flush", flush_later):
            yield store


if __name__ == "__main__":
    with patch("engine.runtime.open_store", open_hasty_store):
        sys.exit(main(["serve"]))
