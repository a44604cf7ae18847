"""What senders and those who edit campaigns can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tests.faults.load import ANSWER_SECONDS, client_of
from tests.faults.world import OTHERS_SECONDS, Fault, World


async def three_at_once(world: World) -> None:
    """The same events over three connections at once, to any engine, again and again."""
    async with client_of(ANSWER_SECONDS) as client:
        for _ in range(10):
            bodies = world.load.batch()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(world.load.attempt, client, bodies)


async def hang_up(world: World) -> None:
    """Senders that don't wait for their answer."""
    hasty = world.load_on(world.source.choice(world.engines))
    async with client_of(ANSWER_SECONDS) as client:
        for _ in range(40):
            await hasty.attempt(client, hasty.batch(), world.source.uniform(0.0, 0.02))
    assert hasty.answers < 40, "somebody hung up before the answer"


def changing(**choices: list[object]) -> Callable[[World], Awaitable[None]]:
    """Change one field of every campaign under load, to each of these values in turn."""

    async def change(world: World) -> None:
        ((field, values),) = choices.items()
        for value in values:
            await world.pause(0.05, 0.3)
            for campaign in world.campaigns:
                await world.change(campaign, **{field: value})
            world.clear()

    return change


CALM = partial(Fault, others_seconds_max=OTHERS_SECONDS)  # no store and no engine is in trouble
FAULTS = [
    CALM("client: the same id over three connections", three_at_once),
    CALM("client: hangs up before the answer", hang_up),
    CALM("campaign: budget below what is spent", changing(total_budget=["0.010", "0.200"])),
    CALM("campaign: budget to zero", changing(total_budget=["0", "0.100"])),
    CALM("campaign: budget raised", changing(total_budget=["0.160", "0.200", "0.300"])),
    CALM("campaign: daily budget", changing(daily_budget=["0.020", "0.150", "0.200"])),
    CALM("campaign: price", changing(unit_price=["3.33", "0.10", "1.00"])),
    CALM("campaign: frequency cap", changing(freq_cap_impressions_per_day=[5, 1, 4])),
    CALM("campaign: paused", changing(active=[False, True, False, True])),
]
