"""Calls of the ledger as Redis commands, and Redis's replies as values of the ports. Pure.

Owns the names, keys and packed arguments that `functions.lua` reads. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from engine.leftovers import Advance, Drop, Held, Used
from engine.model import CampaignId, EventId
from engine.ports import (
    BeginReply,
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
from engine.steps import Emptied, Kept, LoadUsers, Mismatch, Pending, Ready

Command = tuple[bytes | str | int, ...]

LIBRARY: Final = b"headrace5"  # of functions.lua: a number more with every change of what a function takes or answers
FORMAT: Final = 4  # of what the keys hold
OPEN: Final = b"1"
CLOSED: Final = b"0"
_encode: Final = msgspec.msgpack.Encoder().encode

# How Redis says no before it runs anything. redis-py makes classes of some codes and leaves the others in the text;
# MOVED is an ASK to it, MASTERDOWN a CLUSTERDOWN. SHAPE is of functions.lua.
_REFUSALS: Final = (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_REFUSAL_CODES: Final = ("BUSY", "MISCONF", "NOREPLICAS", "SHAPE")
# Redis ends so what comes out of a function that has begun, whatever its code is: then some of it may be written.
_FROM_INSIDE: Final = "script: headrace5_"


@lru_cache(maxsize=16_384)  # campaigns in use: 8 MB; to make them anew takes a microsecond
def keys_of(campaign_id: CampaignId) -> tuple[str, ...]:
    """The seven keys of a campaign, in the order of `functions.lua`; one hash tag, so one cluster slot."""
    tag = f"{{{campaign_id}}}"
    return f"{tag}:s", f"{tag}:p", f"{tag}:u", f"{tag}:i0", f"{tag}:i1", f"{tag}:a0", f"{tag}:a1"


def pack_tag(tag: int) -> bytes:
    """A tag's 8 bytes."""
    return tag.to_bytes(8, "big")


def unpack_tag(tag: bytes) -> int:
    """A tag from its 8 bytes."""
    return int.from_bytes(tag, "big")


def _call(function: bytes, campaign_id: CampaignId, *arguments: bytes | int) -> Command:
    return (b"FCALL", function, 7, *keys_of(campaign_id), *arguments)


def round_command(call: Reserve | Resolve) -> Command:
    """The command of one call of a ledger round."""
    if isinstance(call, Resolve):
        return resolve_command(call.campaign_id, call.generation, call.tag, commit=call.commit, needs=OPEN)
    numbers = (
        call.plan_version, call.day, call.at_us, call.bucket_us, call.unlooked_us, call.looked_bucket, call.most_us,
        call.most_ahead_us, call.total_budget_micros, call.daily_budget_micros, call.allowance_micros, call.cap,
        call.cost_micros, call.new_users,
    )  # fmt: skip
    return _call(
        b"headrace5_reserve",
        call.campaign_id,
        call.generation,
        pack_tag(call.tag),
        _encode(numbers),  # (fourteen arguments would cost more, here and in Redis)
        call.kinds,
        call.ids,
        _encode(call.users) if call.cap >= 0 else b"",
        b"".join(map(pack_tag, call.committed)),
    )


def advance_command(call: Advance) -> Command:
    """Move the day on and close a bucket, and forget what they leave behind."""
    return _call(b"headrace5_advance", call.campaign_id, call.generation, call.day, call.at_us, call.bucket_us)


def resolve_command(campaign_id: CampaignId, generation: int, tag: int, *, commit: bool, needs: bytes) -> Command:
    """Settle one reservation; `needs` is OPEN for an engine, CLOSED for a recoverer."""
    what = b"commit" if commit else b"void"
    return _call(b"headrace5_resolve", campaign_id, generation, pack_tag(tag), what, needs)


def begin_command(campaign_id: CampaignId, generation: int) -> Command:
    """Close a campaign under a new generation."""
    return _call(b"headrace5_begin", campaign_id, generation)


def load_command(call: LoadUsers) -> Command:
    """One chunk of a rebuild."""
    flat = _encode([part for user in call.users for part in user])
    return _call(b"headrace5_load", call.campaign_id, call.generation, flat)


def ready_command(call: Ready) -> Command:
    """Open a campaign with these sums."""
    spend = call.spend
    return _call(
        b"headrace5_ready",
        call.campaign_id,
        call.generation,
        spend.spent_micros,
        spend.day,
        spend.today_micros,
        call.plan_version,
        call.latest_us,
        call.at_us,
        int(call.users_loaded),
    )


def scan_command(cursor: int, count: int) -> Command:
    """Some campaigns that have a state, by the names of their keys; `count` bounds how many keys Redis looks at."""
    return (b"SCAN", cursor, b"MATCH", b"{*}:s", b"COUNT", count)


def read_scan(reply: Any) -> tuple[int, list[CampaignId]] | NotRun:
    """Where to go on (0: that was all), and the campaigns that were found."""
    if not isinstance(reply, list):
        return NotRun(read_reply(reply).detail)  # a read has no effect, answered or not
    cursor, keys = reply
    numbers = [key[1:-3] for key in keys]
    return int(cursor), [CampaignId(int(number)) for number in numbers if number.isdigit()]


def look_command(campaign_id: CampaignId) -> Command:
    """What is held of a campaign."""
    return _call(b"headrace5_look", campaign_id)


def read_look(campaign_id: CampaignId, reply: Any) -> Held | None:
    """What is held of it; None if nothing is, or nobody knows."""
    if not isinstance(reply, list) or reply[0] != b"OK":
        return None
    generation, ours, is_open, *place_and_counts = map(int, reply[1:])
    return Held(campaign_id, generation, bool(ours), bool(is_open), *place_and_counts)


def give_back_command(call: Advance | Drop) -> Command:
    """Free what an idle campaign holds."""
    if isinstance(call, Advance):
        return advance_command(call)
    held = call.held
    return _call(b"headrace5_drop", held.campaign_id, held.generation, OPEN if held.open else CLOSED, held.bucket)


def probe_command(campaign_id: CampaignId) -> Command:
    """A reserve that no state answers with more than STALE: Redis refuses it for all that it refuses reserves for."""
    numbers = _encode((0,) * 14)
    return _call(b"headrace5_reserve", campaign_id, -1, pack_tag(0), numbers, b"\0", bytes(16), _encode([""]), b"")


def read_reply(reply: Any) -> Any:
    """A reply of any function but `begin`, or how it failed, as the port's value."""
    if isinstance(reply, RedisError):
        return read_error(reply)
    if not isinstance(reply, list):
        return reply  # `NotRun` or `Unknown`: there was no reply
    return _READERS[reply[0]](reply)


def read_begin(reply: Any) -> BeginReply:
    """The reply of `begin`."""
    if isinstance(reply, list) and reply[0] == b"KEPT":
        triples = zip(reply[1::3], reply[2::3], reply[3::3], strict=True)
        return Kept([Pending(unpack_tag(tag), EventId(first_id), day) for tag, day, first_id in triples])
    answer: BeginReply = read_reply(reply)
    return answer


_READERS: Final[dict[bytes, Callable[[list[Any]], object]]] = {
    b"OK": lambda reply: Reserved(*reply[1:]) if len(reply) > 1 else Done(),
    b"NOOP": lambda _: Done(),
    b"LOST": lambda _: Lost(),
    b"STALE": lambda reply: Stale(int(reply[1])),
    b"CLOSED": lambda _: Closed(),
    b"PLAN": lambda reply: PlanBehind(int(reply[1])),
    b"DAY": lambda reply: DayBehind(int(reply[1])),
    b"BEHIND": lambda reply: Behind(*reply[1:]),
    b"MISMATCH": lambda _: Mismatch(),
    b"EMPTY": lambda _: Emptied(),
    b"USED": lambda _: Used(),
}


def function_is_missing(reply: object) -> bool:
    """Whether Redis has lost the library: then the call did not run."""
    return isinstance(reply, ResponseError) and "Function not found" in str(reply)


_MORE_MEMORY: Final = " Give it more: maxmemory, or HEADRACE_REDIS_MEMORY_MB where it is embedded."


def is_out_of_memory(reply: object) -> bool:
    """Whether Redis refused because it is full."""
    return isinstance(reply, OutOfMemoryError)


def read_error(error: RedisError) -> NotRun | Unknown:
    """What an error reply means: certain only if it is known to come before anything has run."""
    told = f"Redis: {str(error) or type(error).__name__}"
    if _FROM_INSIDE in told:
        return Unknown(told)
    code = str(error).split(" ", 1)[0]
    if isinstance(error, _REFUSALS) or code in _REFUSAL_CODES or function_is_missing(error):
        full = is_out_of_memory(error)
        return NotRun(told + _MORE_MEMORY if full else told, full=full)
    return Unknown(told)
