"""Calls of the ledger as bytes, and Redis's words as values: no Redis needed."""

from __future__ import annotations

import re
from importlib.resources import files

import msgspec
import pytest
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - redis-py's name
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from engine.leftovers import Advance
from engine.model import CampaignId, CampaignSpend, EventId, Micros
from engine.ports import (
    BILLABLE,
    COUNTS_FOR_CAP,
    NO_CAP,
    Behind,
    Closed,
    DayBehind,
    Done,
    Lost,
    NotRun,
    PlanBehind,
    Reserve,
    Reserved,
    Resolve,
    Stale,
    Unknown,
)
from engine.redis import calls
from engine.steps import Emptied, Kept, LoadUsers, Mismatch, Pending, Ready

SEVEN = CampaignId(7)
KEYS = ("{7}:s", "{7}:p", "{7}:u", "{7}:i0", "{7}:i1", "{7}:a0", "{7}:a1")
TAG, TAG_BYTES = 5 << 32 | 9, b"\0\0\0\5\0\0\0\x09"
IDS = bytes(range(32))


def reserve(cap: int) -> Reserve:
    """Two events."""
    return Reserve(
        campaign_id=SEVEN,
        generation=3,
        tag=TAG,
        plan_version=4,
        day=20_000,
        at_us=11,
        bucket_us=12,
        unlooked_us=13,
        looked_bucket=14,
        most_us=15,
        most_ahead_us=16,
        total_budget_micros=60,
        daily_budget_micros=50,
        allowance_micros=40,
        cap=cap,
        cost_micros=10,
        new_users=True,
        kinds=bytes([BILLABLE | COUNTS_FOR_CAP, BILLABLE]),
        ids=IDS,
        users=["ada", "Zoë"],
        committed=[1, TAG],
    )


# --- commands ---


def test_the_keys_of_a_campaign_share_a_hash_tag() -> None:
    """One cluster slot, and nothing of a user in a name."""
    assert calls.keys_of(SEVEN) == KEYS


@pytest.mark.parametrize("tag", [0, 1, TAG, 2**63 - 1])
def test_a_tag_keeps_its_number(tag: int) -> None:
    """Eight bytes there and back, up to the largest that Postgres can hold."""
    assert len(calls.pack_tag(tag)) == 8
    assert calls.unpack_tag(calls.pack_tag(tag)) == tag


def test_a_reserve_is_sent_in_the_order_that_the_library_reads() -> None:
    """Seven arguments; numbers and users packed, tags and ids as plain bytes."""
    users = msgspec.msgpack.encode(["ada", "Zoë"])
    numbers = msgspec.msgpack.encode([4, 20_000, 11, 12, 13, 14, 15, 16, 60, 50, 40, 2, 10, True])
    head = (b"FCALL", b"headrace5_reserve", 7, *KEYS)
    committed = b"\0\0\0\0\0\0\0\x01" + TAG_BYTES
    assert calls.round_command(reserve(cap=2)) == (
        *head, 3, TAG_BYTES, numbers, b"\3\1", IDS, users, committed,
    )  # fmt: skip


def test_without_a_cap_no_user_is_sent() -> None:
    """Nobody would read them."""
    assert calls.round_command(reserve(NO_CAP))[-2] == b""


def test_a_resolve_says_what_it_needs() -> None:
    """Of an engine: open. Of a recoverer: closed."""
    head = (b"FCALL", b"headrace5_resolve", 7, *KEYS, 3, TAG_BYTES)
    assert calls.round_command(Resolve(SEVEN, 3, TAG, commit=True)) == (*head, b"commit", b"1")
    assert calls.resolve_command(SEVEN, 3, TAG, commit=False, needs=calls.CLOSED) == (*head, b"void", b"0")


def test_the_calls_of_a_recovery_are_sent_in_order() -> None:
    """Begin, load, ready, and the advance that frees a full Redis."""
    users = msgspec.msgpack.encode(["ada", 2, "Zoë", 1])
    spend = CampaignSpend(Micros(60), 20_000, Micros(50))
    called = [
        (calls.begin_command(SEVEN, 3), b"begin", (3,)),
        (calls.load_command(LoadUsers(SEVEN, 3, [("ada", 2), ("Zoë", 1)])), b"load", (3, users)),
        (
            calls.ready_command(Ready(SEVEN, 3, spend, 4, 5, 6, users_loaded=True)),
            b"ready",
            (3, 60, 20_000, 50, 4, 5, 6, 1),
        ),
        (calls.advance_command(Advance(SEVEN, 3, 20_000, 5, 6)), b"advance", (3, 20_000, 5, 6)),
    ]
    for command, function, arguments in called:
        assert command == (b"FCALL", b"headrace5_" + function, 7, *KEYS, *arguments)


def test_every_function_that_is_called_is_registered() -> None:
    """The names are those of functions.lua."""
    source = files("engine.redis")
    registered = set(re.findall(r"'(headrace5_\w+)'", source.joinpath("functions.lua").read_text()))
    assert registered == set(re.findall(r'b"(headrace5_\w+)"', source.joinpath("calls.py").read_text()))


# --- replies ---


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ([b"OK", b"AP", 2**53 - 1, 20, 3, 17], Reserved(b"AP", 2**53 - 1, 20, 3, 17)),
        ([b"OK"], Done()),
        ([b"NOOP"], Done()),
        ([b"LOST"], Lost()),
        ([b"STALE", b"12"], Stale(12)),
        ([b"CLOSED"], Closed()),
        ([b"PLAN", b"5"], PlanBehind(5)),
        ([b"DAY", b"20001"], DayBehind(20_001)),
        ([b"BEHIND", 3, 17], Behind(3, 17)),
        ([b"MISMATCH"], Mismatch()),
        ([b"EMPTY"], Emptied()),
    ],
    ids=lambda each: each[0].decode() if isinstance(each, list) else "",
)
def test_each_reply_has_its_value(reply: list[bytes], value: object) -> None:
    """One reply, one value."""
    assert calls.read_reply(reply) == value


def test_every_reply_of_the_library_can_be_read() -> None:
    """A name that functions.lua says, and nobody reads, would be a fault at night."""
    library = files("engine.redis").joinpath("functions.lua").read_text()
    said = set(re.findall(r"\{'([A-Z]+)'", library))
    assert said == {name.decode() for name in calls._READERS} | {"KEPT"}


def test_begin_tells_what_is_pending() -> None:
    """KEPT: a tag, a spend day and a first id of each; none is fine. Its other replies are those of all."""
    first, second = EventId(IDS[:16]), EventId(IDS[16:])
    kept = calls.read_begin([b"KEPT", TAG_BYTES, 5, first, calls.pack_tag(1), 6, second])
    assert kept == Kept([Pending(TAG, first, 5), Pending(1, second, 6)])
    assert calls.read_begin([b"KEPT"]) == Kept([])
    assert calls.read_begin([b"EMPTY"]) == Emptied()
    assert calls.read_begin([b"STALE", b"9"]) == Stale(9)


@pytest.mark.parametrize("answer", [NotRun("no way there"), Unknown("silence")], ids=["not run", "unknown"])
def test_no_reply_at_all_is_handed_on(answer: NotRun | Unknown) -> None:
    """The connection has said already how certain it is."""
    assert calls.read_reply(answer) is answer
    assert calls.read_begin(answer) is answer


# --- errors ---


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ReadOnlyError("You can't write against a read only replica."),
        BusyLoadingError("Redis is loading the dataset in memory"),
        NoPermissionError("User guest has no permissions"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("SHAPE arguments of reserve do not fit each other"),
        ResponseError("Function not found"),
    ],
    ids=lambda error: str(error).split(" ", 1)[0] + " " + type(error).__name__,
)
def test_what_redis_refuses_before_it_runs_is_certain(error: RedisError) -> None:
    """Nothing happened, and the detail says why."""
    answer = calls.read_error(error)
    assert isinstance(answer, NotRun)
    assert str(error) in answer.detail


@pytest.mark.parametrize(
    "error",
    [
        ResponseError(
            "ERR user_function:12: attempt to index a nil value script: headrace5_reserve, on @user_function:12."
        ),
        OutOfMemoryError(
            "command not allowed when used memory > 'maxmemory'. script: headrace5_reserve, on @user_function:9"
        ),
        ResponseError("SHAPELESS is another word"),
        ResponseError(""),
        ConnectionError(),
    ],
    ids=["fault", "out of memory inside", "alike", "empty", "no words"],
)
def test_any_other_error_is_unknown(error: RedisError) -> None:
    """Also what a known code says from inside a function; and the detail is never empty."""
    answer = calls.read_error(error)
    assert isinstance(answer, Unknown)
    assert len(answer.detail) > len("Redis: ")


def test_a_missing_function_is_told_from_other_errors() -> None:
    """Only that is cured by loading the library."""
    assert calls.function_is_missing(ResponseError("ERR Function not found"))
    assert not calls.function_is_missing(ResponseError("ERR unknown command"))
    assert not calls.function_is_missing([b"OK"])
    assert not calls.function_is_missing(Unknown("Function not found"))


def test_a_full_redis_is_told_from_other_errors() -> None:
    """Only that is cured by an advance."""
    assert calls.is_out_of_memory(OutOfMemoryError("full"))
    assert not calls.is_out_of_memory(ResponseError("ERR"))
    assert not calls.is_out_of_memory([b"OK"])
