"""Asks both stores whether they would take an event now: for /readyz, and again and again while an outage stands.

Owns when they are asked, and that many askers at once are one question. While an engine is not ready, nobody may send
it anything, so no event would find out that the stores work again. Knows the stores only through their ports.
"""

from __future__ import annotations

from typing import Final

import trio

from engine.outages import ASK_SECONDS, Outages
from engine.watched import POSTGRES, REDIS, WatchedLedger, WatchedStore

# A store that has not answered by then is away, as far as a load balancer is concerned: most ask every few seconds.
ANSWER_SECONDS: Final = 2.0
# An answer that is not older serves the next asker, too: anybody may ask /readyz a thousand times a second, and a probe
# takes a connection that flushes need.
FRESH_SECONDS: Final = 0.2


class Probes:
    """`probe` asks now, `run` while an outage stands."""

    def __init__(self, ledger: WatchedLedger, store: WatchedStore, outages: Outages) -> None:
        self._ledger = ledger
        self._store = store
        self._outages = outages
        self._fresh_until = 0.0
        self._under_way: trio.Event | None = None
        self._answers = 0  # probes that came to their end

    async def run(self) -> None:
        """Ask for as long as something fails, for ever."""
        while True:
            await trio.sleep(ASK_SECONDS)
            if self._outages:
                await self.probe()

    async def probe(self) -> None:
        """Ask both stores, and note what they say. If somebody asks already, that answer serves, however late it is.

        (To ask anew because so many have waited that their turn comes late would keep them all waiting, for ever.)
        """
        answers = self._answers
        while self._under_way is not None:
            await self._under_way.wait()
            if self._answers > answers:
                return
        if trio.current_time() < self._fresh_until:
            return
        done = self._under_way = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe_redis)
                nursery.start_soon(self._probe_postgres)
            self._fresh_until = trio.current_time() + FRESH_SECONDS
            self._answers += 1
        finally:  # also if whoever asked has gone: the next one asks again
            self._under_way = None
            done.set()

    async def _probe_redis(self) -> None:
        with trio.move_on_after(ANSWER_SECONDS) as bound:
            if await self._ledger.probe(self._ledger.refused) is None:
                self._outages.works(REDIS, trio.current_time())
        if bound.cancelled_caught:
            self._outages.failed(REDIS, f"no answer within {ANSWER_SECONDS:.0f} s", trio.current_time())

    async def _probe_postgres(self) -> None:
        with trio.move_on_after(ANSWER_SECONDS) as bound:
            if await self._store.probe() is None:
                self._outages.works(POSTGRES, trio.current_time())
        if bound.cancelled_caught:
            self._outages.failed(POSTGRES, f"no answer within {ANSWER_SECONDS:.0f} s", trio.current_time())
        self._outages.expire(trio.current_time())
