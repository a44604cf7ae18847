"""The fault matrix in short; `make faults` runs it whole."""

from __future__ import annotations

import random
import signal
import uuid
from typing import Any

import pytest
import trio

from tests.faults.__main__ import FAULTS, Result, run_fault
from tests.faults.checker import check
from tests.faults.journal import Journal
from tests.faults.load import Load, client_of
from tests.faults.past import DAYS
from tests.faults.world import open_world

# httpx leaves an open generator behind when a sender hangs up in the middle of an answer.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# One of each kind, and each of another part of the protocol.
SHORT = (
    "engine: kill -9 of all",
    "engine: zombie",
    "kill -9 at ledger.round.after",
    "kill -9 at store.flush.after",
    "redis: old copy restored",
    "postgres: answer to COMMIT swallowed",
    "postgres: immediate restart",
    "postgres: ledger row locked",
    "network: rows delivered after a takeover",
    "campaign: budget below what is spent",
    "pair: Postgres restart, Redis restart",
)
EVENTS = 20_000
BATCH = 50
ROOM = 777
HISTORY_ROWS = 20_000


async def test_no_promise_is_broken_by_a_fault_of_each_kind() -> None:
    """Nothing lost, double, phantom, denied, overspent, over a cap, or unbalanced."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    async with open_world() as world:
        for name in SHORT:
            findings = await world.seed(FAULTS[name], seed)
            assert (findings.violations, findings.examples) == (0, []), f"{name}, seed {seed}: {findings}"
            assert findings.acknowledged > 0, name


async def test_a_seed_may_begin_with_a_history() -> None:
    """Its campaigns take events through the fault, and every book is right at the end, those of the past included."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    fault, result = FAULTS["redis: killed and restarted"], Result("with a history")
    async with open_world(history_rows=HISTORY_ROWS) as world:
        await run_fault(world, fault, [seed], result, None)
        query = "SELECT count(*), count(DISTINCT tableoid) FROM events WHERE user_id LIKE 'user-%'"
        ((laid, partitions),) = world.postgres.do(query)
    assert result.complaints == []
    assert len(result.remembering) == 1
    assert result.sums["acknowledged"] > 0
    assert (laid, partitions) == (HISTORY_ROWS, DAYS + 1)


async def test_three_kills_of_all_engines_cost_no_event_and_no_micro() -> None:
    """20,000 events in batches of 50, sent until each has its verdict: the report is what was acknowledged."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    async with open_world() as world:
        world.journal = Journal(world.folder / "kills.jsonl")
        wide = await world.create()
        tight = await world.create(total_budget=f"0.{ROOM}")
        load = Load(world.journal, random.Random(seed), world.listeners, [wide, tight])
        batches = [[_impression((wide, tight)[index % 2]) for index in range(BATCH)] for _ in range(EVENTS // BATCH)]
        async with trio.open_nursery() as nursery:
            for sender in range(4):
                nursery.start_soon(_send_all, load, batches[sender::4])
            for _ in range(3):
                await trio.sleep(0.8)
                for engine in world.engines:
                    engine.send_signal(signal.SIGKILL)
                for engine in world.engines:
                    await engine.kill()
                await world.mend()
        assert await load.settle() == []
        world.journal.close()
        findings = check(world.journal.path, world.postgres.url)
        reports = [(await world.first.call("GET", f"/report/campaign/{each}")).json() for each in (wide, tight)]
    assert findings.violations == 0, findings
    assert [report["impressions"] for report in reports] == [EVENTS // 2, ROOM]
    assert findings.acknowledged == EVENTS // 2 + ROOM


async def _send_all(load: Load, batches: list[list[dict[str, Any]]]) -> None:
    async with client_of(8) as client:
        for batch in batches:
            await load.attempt(client, batch, keep=True)
            while len(load.unsettled) > BATCH:
                again = [load.unsettled.popleft() for _ in range(BATCH)]
                await load.attempt(client, again, keep=True)
                await trio.sleep(0.05)


def _impression(campaign: int) -> dict[str, Any]:
    return {
        "campaign_id": campaign, "user_id": uuid.uuid4().hex, "event_type": "impression", "event_id": str(uuid.uuid4())
    }  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_the_short_list_names_faults_that_there_are(name: str) -> None:
    """A fault that was renamed is not left out in silence."""
    assert name in FAULTS
