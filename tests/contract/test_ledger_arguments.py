"""Arguments that do not fit each other, as another version of this engine may send them, are refused unread."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError

from engine.redis.calls import round_command
from tests.contract.reservations import CAMPAIGN, opened, redis_rig, reserve

pack = msgspec.msgpack.encode
TAG, NUMBERS, KINDS, IDS, USERS, COMMITTED = range(11, 17)  # places in the command; before them: function, keys, gen


@pytest.mark.stores
@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (TAG, b"a tag"),
        (NUMBERS, b"1"),
        (NUMBERS, pack([1, 2, 3])),
        (NUMBERS, pack("text")),
        (KINDS, b""),
        (KINDS, b"\1\1"),
        (IDS, b"an id"),
        (USERS, pack(["one", "too many"])),
        (COMMITTED, b"no tags"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused(redis_url: str, place: int, wrong: bytes) -> None:
    """The reply says so, and nothing is written."""
    async with redis_rig(redis_url) as rig:
        rig.forget()
        await opened(rig.ledger)
        client: Any = rig.client  # redis-py leaves this method untyped
        before = client.hgetall(f"{{{CAMPAIGN}}}:s")
        command = list(round_command(reserve(cap=1)))
        command[place] = wrong
        with pytest.raises(ResponseError, match="SHAPE arguments of reserve"):
            client.execute_command(*command)
        assert client.hgetall(f"{{{CAMPAIGN}}}:s") == before
        assert client.keys() == [f"{{{CAMPAIGN}}}:s".encode()]


@pytest.mark.stores
@pytest.mark.parametrize("more", [[], [b""] * 2, [b""] * 8])
async def test_too_few_or_too_many_arguments_are_refused(redis_url: str, more: list[bytes]) -> None:
    """Versions before this one sent fifteen."""
    async with redis_rig(redis_url) as rig:
        rig.forget()
        await opened(rig.ledger)
        client: Any = rig.client
        with pytest.raises(ResponseError, match="SHAPE arguments of reserve"):
            client.execute_command(*round_command(reserve())[:-1], *more)
