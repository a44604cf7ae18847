"""What senders under fault do with events that have no verdict."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import httpx
import trio
from trio.testing import MockClock

from config.settings import Settings
from tests.faults.journal import Journal
from tests.faults.load import ANSWER_SECONDS, SETTLE_MAX, Body, Load


class Stub(Load):
    """Senders whose requests hang if one of the stuck campaign is among them, and are told `accepted` otherwise."""

    stuck = 2

    async def _post(self, client: httpx.AsyncClient, bodies: Sequence[Body]) -> Sequence[str]:
        if any(body["campaign_id"] == self.stuck for body in bodies):
            await trio.sleep_forever()
        return ["accepted"] * len(bodies)


async def test_an_event_whose_requests_hang_is_told_as_never_settled(tmp_path: Path, autojump_clock: MockClock) -> None:
    """In whatever state the time limit finds it: waiting, under way, or in a request that was not sent yet."""
    journal = Journal(tmp_path / "journal")
    load = Stub(journal, random.Random(1), list, [1, 2])
    load.unsettled.extend({**load.event(), "campaign_id": 1 + (index >= SETTLE_MAX)} for index in range(3 * SETTLE_MAX))
    stuck = [body["event_id"] for body in load.unsettled if body["campaign_id"] == 2]
    assert await load.settle() == stuck
    journal.close()


def test_a_sender_waits_longer_than_any_engine_lets_it() -> None:
    """By default, too: a sender that hangs up first never hears what it was to be told."""
    assert Settings().request_deadline_seconds < ANSWER_SECONDS
