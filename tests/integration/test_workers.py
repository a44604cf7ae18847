"""The supervisor of several workers: starts, restarts and ends them. The workers here are small stand-ins."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from api import workers
from api.serve import Listeners
from config.settings import Settings, load_settings
from engine.embedded import Stores

STORES = Stores("postgresql://db.test/headrace", "redis://cache.test")

# Tells the test who and what it is, then does what the test has written down for it.
STAND_IN = """
import json, os, pathlib, select, signal, socket, sys
told, how, api, intake = sys.argv[1:]
how = pathlib.Path(how).read_text()
with socket.socket(socket.AF_UNIX) as line:
    line.connect(told)
    line.sendall(json.dumps({"pid": os.getpid(), "environment": dict(os.environ)}).encode())
if how == "fails":
    sys.exit(3)
asked = []
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN if how == "hangs" else lambda *_: asked.append(1))
if how == "stalls":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pause()
listener = socket.socket(fileno=int(api))
listener.listen()
os.close(int(intake))
print("ready", flush=True)
if how == "crashes":
    os._exit(1)
heard = [sys.stdin] if how == "is deaf" else [sys.stdin, listener]
os.set_blocking(1, False)
while not asked and sys.stdin not in (ready := select.select(heard, [], [], 0.02)[0]):
    if how == "tells that it lives":
        os.write(1, b"alive\\n")
    if ready:
        try:
            client = listener.accept()[0]
        except BlockingIOError:
            continue
        with client:
            client.sendall(b"%d" % os.getpid())
listener.close()
if how == "lingers":
    signal.pause()
if how != "is slow to drain":
    print("drained", flush=True)
if how in ("is slow to exit", "is slow to drain"):  # as any Python that ends: its handlers go before it does
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pause()
"""


class Stage:
    """Runs a supervisor with stand-ins, and hears from each of them."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.stop = trio.Event()
        self.hang_up, self._hangups = trio.open_memory_channel[None](1)
        self.ended = trio.Event()
        self.announced = trio.Event()
        self.status: int | None = None
        self._nursery = nursery
        self._path = str(folder / "told")
        self._how = folder / "how"
        self._listener = trio.socket.socket(socket.AF_UNIX)

    async def play(self, how: str, settings: Settings) -> None:
        """Start the supervisor."""
        self.change(how)
        await self._listener.bind(self._path)
        self._listener.listen()
        self._nursery.start_soon(self._supervise, settings)

    def change(self, how: str) -> None:
        """What workers do that are started from now on."""
        self._how.write_text(how)

    async def _supervise(self, settings: Settings) -> None:
        command = (sys.executable, "-c", STAND_IN, self._path, str(self._how))
        self.status = await workers.supervise(settings, STORES, self.stop, self._hangups, command)
        self.ended.set()

    async def heard(self) -> dict[str, Any]:
        """What the next worker that starts says of itself; bounded, so that a supervisor that hangs ends the test."""
        with trio.fail_after(30):
            connection, _ = await self._listener.accept()
        said = b""
        async with trio.SocketStream(connection) as stream:
            async for part in stream:
                said += part
        told: dict[str, Any] = json.loads(said)
        return told

    async def start_of(self, count: int) -> list[int]:
        """Process ids of the next workers that start."""
        return [(await self.heard())["pid"] for _ in range(count)]

    async def forget(self) -> None:
        """Hear no more of workers that have started until now."""
        while not self.is_silent():
            (await self._listener.accept())[0].close()

    def is_silent(self) -> bool:
        """Whether no worker has started of which the test has not heard."""
        return not select.select([self._listener], [], [], 0)[0]

    def close(self) -> None:
        """Give the listener back."""
        self._listener.close()


@pytest.fixture
async def stage(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A stage that notices the announcement, and doesn't wait before restarts."""
    stage = Stage(tmp_path, nursery)
    monkeypatch.setattr(Listeners, "announce", lambda _: stage.announced.set())
    monkeypatch.setattr(workers, "pause_seconds", lambda _: 0.0)
    monkeypatch.setattr(workers, "DRAIN_SLACK_SECONDS", 0)
    yield stage
    stage.close()


def two(**changes: Any) -> Settings:
    """Settings of two workers on free ports."""
    return Settings(workers=2, api="127.0.0.1:0", intake="127.0.0.1:0", **changes)


async def test_announces_when_all_are_ready_and_ends_with_0(stage: Stage) -> None:
    """All workers start; the addresses are told once; on stop all drain, and the status is 0."""
    await stage.play("serves", two())
    pids = {(await stage.heard())["pid"] for _ in range(2)}
    await stage.announced.wait()
    assert len(pids) == 2
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0


async def test_workers_are_told_all_settings(stage: Stage) -> None:
    """Settings, stores and the real addresses come by the environment, the same for every worker."""
    await stage.play("serves", two(mailbox_events_max=7_000))
    first, second = [(await stage.heard())["environment"] for _ in range(2)]
    ours = {name: text for name, text in first.items() if name.startswith("HEADRACE_") or name.endswith("_URL")}
    told = load_settings(ours)
    assert (told.db_url, told.redis_url) == (STORES.db_url, STORES.redis_url)
    assert told.mailbox_events_max == 7_000
    assert not told.api.endswith(":0")
    assert not told.intake.endswith(":0")
    assert first["HEADRACE_API"] == second["HEADRACE_API"]
    metrics = trio.Path(first["PROMETHEUS_MULTIPROC_DIR"])
    assert await metrics.is_dir()
    stage.stop.set()
    await stage.ended.wait()
    assert not await metrics.exists()


async def test_a_killed_worker_is_started_again(stage: Stage) -> None:
    """SIGKILL of one worker brings a new one, and leaves the other alone."""
    await stage.play("serves", two())
    pids = [(await stage.heard())["pid"] for _ in range(2)]
    await stage.announced.wait()
    os.kill(pids[0], signal.SIGKILL)
    assert (await stage.heard())["pid"] not in pids
    os.kill(pids[1], 0)
    stage.stop.set()
    await stage.ended.wait()


async def test_a_worker_that_served_and_crashed_is_started_again_for_ever(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer may be the cause, and come again: it ends no other worker, and not the supervisor."""
    await stage.play("serves", two(restarts_max=1))
    other, crashing = [(await stage.heard())["pid"] for _ in range(2)]
    await stage.announced.wait()
    stage.change("crashes")
    os.kill(crashing, signal.SIGKILL)
    again = await stage.start_of(12)
    assert is_alive(other)
    assert f"worker {again[0]} ended by itself after " in caplog.text
    assert not stage.ended.is_set()
    stage.stop.set()
    await stage.ended.wait()


async def test_workers_that_all_served_and_crashed_are_started_again_for_ever(stage: Stage) -> None:
    """A peer reaches all of them."""
    await stage.play("crashes", two(restarts_max=1))
    await stage.start_of(12)
    assert not stage.ended.is_set()
    stage.change("serves")
    await stage.forget()
    stage.stop.set()
    await stage.ended.wait()


async def test_workers_none_of_which_gets_ready_end_everything(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the starts of one window everything stops, with a clear message and status 1."""
    await stage.play("crashes", two(restarts_max=3))
    await stage.announced.wait()
    stage.change("fails")
    await stage.ended.wait()
    assert stage.status == 1
    assert "workers could not start more than 3 times within 60 s: stopping" in caplog.text


async def test_a_worker_that_gets_not_ready_ends_nobody_who_serves(stage: Stage) -> None:
    """Postgres may be away just now: who has it still serves on, and the next start may find it."""
    await stage.play("serves", two(restarts_max=1))
    other, crashing = [(await stage.heard())["pid"] for _ in range(2)]
    await stage.announced.wait()
    stage.change("fails")
    os.kill(crashing, signal.SIGKILL)
    await stage.start_of(6)
    assert is_alive(other)
    stage.change("serves")
    await stage.forget()
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0


def test_pauses_before_restarts_grow_up_to_a_bound() -> None:
    """Who is crashed by a peer at each start serves most of the time all the same, and costs little when it can't."""
    assert [workers.pause_seconds(crashes) for crashes in (0, 1, 2, 5, 6, 1_000)] == [0.25, 0.5, 1.0, 8.0, 10.0, 10.0]


async def test_a_frozen_worker_is_killed_and_replaced(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Who says nothing for the stated time serves nobody; one line tells it."""
    await stage.play("tells that it lives", two(worker_silent_seconds=2))
    frozen, other = [(await stage.heard())["pid"] for _ in range(2)]
    await stage.announced.wait()
    os.kill(frozen, signal.SIGSTOP)
    await stage.start_of(1)
    assert not is_alive(frozen)
    assert is_alive(other)
    assert caplog.text.count(f"worker {frozen} is frozen: silent for 2 s; killing it") == 1
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0


async def test_a_worker_that_never_starts_ends_everything(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """What can't start the first time is not tried again."""
    await stage.play("fails", two())
    await stage.ended.wait()
    assert stage.status == 1
    assert not stage.announced.is_set()
    assert "a worker could not start (status 3): stopping" in caplog.text


async def test_a_worker_that_does_not_drain_is_killed(stage: Stage) -> None:
    """The drain has a bound; passing it is a failure."""
    await stage.play("hangs", two(drain_seconds=1))
    pids = [(await stage.heard())["pid"] for _ in range(2)]
    await stage.announced.wait()
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 1
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# --- A roll ---


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_on_its_way_out(pid: int) -> bool:
    """Whether this process would end at once of a SIGTERM."""
    (caught,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return not int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1


async def server_of(address: tuple[str, int]) -> int:
    """The worker that answers a new connection. Fails if it is refused or reset."""
    with trio.fail_after(30):
        async with await trio.open_tcp_stream(*address) as stream:
            return int(b"".join([part async for part in stream]))


async def told_address(stage: Stage) -> tuple[int, tuple[str, int]]:
    """The next worker that starts, and the address that it serves."""
    told = await stage.heard()
    host, _, port = told["environment"]["HEADRACE_API"].rpartition(":")
    return told["pid"], (host, int(port))


async def until(condition: Callable[[], bool]) -> None:
    """Until this holds; the bound is only there so that a supervisor that hangs ends the test."""
    with trio.fail_after(30):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


async def until_logged(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    """Until the supervisor has said so."""
    await until(lambda: caplog.text.count(text) >= times)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, with what it says of a roll that goes well."""
    caplog.set_level(logging.INFO)
    return caplog


async def test_a_hang_up_replaces_workers_one_by_one(stage: Stage, log: pytest.LogCaptureFixture) -> None:
    """An old one goes when its successor is ready, the next comes when it has gone, and connections are all served."""
    await stage.play("serves", two())
    (one, address), (other, _) = [await told_address(stage) for _ in range(2)]
    await stage.announced.wait()
    servers: list[int] = []

    async def connect_for_ever() -> None:
        while True:
            servers.append(await server_of(address))

    async with trio.open_nursery() as clients:
        for _ in range(4):
            clients.start_soon(connect_for_ever)
        stage.hang_up.send_nowait(None)
        first = await stage.start_of(1)
        second = await stage.start_of(1)
        assert [is_alive(pid) for pid in (one, other)].count(True) == 1
        assert is_alive(first[0])
        await until_logged(log, "restarted: all 2 workers are new")
        rolled = len(servers)
        await until(lambda: {*first, *second} <= set(servers[rolled:]))
        clients.cancel_scope.cancel()
    assert set(servers) <= {one, other, *first, *second}
    assert not is_alive(one)
    assert not is_alive(other)
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0
    assert stage.is_silent()
    assert not [record for record in log.records if record.levelno >= logging.ERROR]


async def test_what_the_old_worker_has_not_accepted_is_its_successors(stage: Stage) -> None:
    """The kernel has queued it in a socket that nobody closes: it is not reset."""
    await stage.play("is deaf", replace(two(), workers=1))
    _, address = await told_address(stage)
    await stage.announced.wait()
    async with await trio.open_tcp_stream(*address) as queued:
        stage.change("serves")
        stage.hang_up.send_nowait(None)
        (successor,) = await stage.start_of(1)
        assert int(b"".join([part async for part in queued])) == successor
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0


async def test_hang_ups_during_a_roll_make_one_more(stage: Stage, log: pytest.LogCaptureFixture) -> None:
    """What the last one is to bring may have come after the first worker's turn."""
    await stage.play("serves", two())
    await stage.start_of(2)
    await stage.announced.wait()
    stage.hang_up.send_nowait(None)
    await stage.start_of(1)
    stage.hang_up.send_nowait(None)
    with pytest.raises(trio.WouldBlock):
        stage.hang_up.send_nowait(None)
    last = await stage.start_of(3)
    await until_logged(log, "restarted: all 2 workers are new", times=2)
    assert [is_alive(pid) for pid in last] == [False, True, True]
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0
    assert stage.is_silent()


@pytest.mark.parametrize(
    ("how", "why"),
    [("fails", "a new worker could not start (status 3)"), ("stalls", "a new worker was not ready within 0.5 s")],
)
async def test_a_new_worker_that_does_not_start_stops_the_roll(
    stage: Stage, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    """It is told, the old ones go on, and a later roll works."""
    await stage.play("serves", two())
    (one, address), (other, _) = [await told_address(stage) for _ in range(2)]
    await stage.announced.wait()
    stage.change(how)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "START_SECONDS_MAX", 0.5 if how == "stalls" else 60)
        stage.hang_up.send_nowait(None)
        await until_logged(log, f"{why}: the restart stops here, after 0 of 2 workers; the others go on as they are")
    assert {await server_of(address) for _ in range(8)} <= {one, other}
    await stage.forget()
    stage.change("serves")
    stage.hang_up.send_nowait(None)
    await stage.start_of(2)
    await until_logged(log, "restarted: all 2 workers are new")
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0


async def test_a_stop_during_a_roll_ends_old_and_new(stage: Stage) -> None:
    """Also one that is not ready yet."""
    await stage.play("serves", two())
    old = await stage.start_of(2)
    await stage.announced.wait()
    stage.change("stalls")
    stage.hang_up.send_nowait(None)
    new = await stage.start_of(1)
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0
    assert not any(is_alive(pid) for pid in old + new)


@pytest.mark.parametrize(("how", "status"), [("is slow to exit", 0), ("is slow to drain", 1)])
async def test_a_stop_that_ends_a_replaced_worker_is_a_failure_only_if_it_had_not_drained(
    stage: Stage, how: str, status: int
) -> None:
    """A Python that ends hears no SIGTERM any more, and dies of it."""
    await stage.play(how, replace(two(), workers=1))
    old, address = await told_address(stage)
    await stage.announced.wait()
    stage.change("serves")
    stage.hang_up.send_nowait(None)
    (successor,) = await stage.start_of(1)
    await until(lambda: is_on_its_way_out(old))
    assert await server_of(address) == successor
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == status


async def test_an_old_worker_that_does_not_drain_is_killed_and_the_roll_goes_on(
    stage: Stage, log: pytest.LogCaptureFixture
) -> None:
    """The bound of a drain is that of a stop, and a stop that goes well afterwards is one."""
    await stage.play("hangs", replace(two(drain_seconds=1), workers=1))
    (old,) = await stage.start_of(1)
    await stage.announced.wait()
    stage.change("serves")
    stage.hang_up.send_nowait(None)
    await until_logged(log, "restarted: all 1 workers are new")
    assert not is_alive(old)
    assert f"worker {old} does not drain: killing it" in log.text
    stage.stop.set()
    await stage.ended.wait()
    assert stage.status == 0


async def test_connections_of_a_crashed_worker_wait_for_the_next(stage: Stage) -> None:
    """Its sockets are the supervisor's, too: neither refused nor reset."""
    await stage.play("serves", replace(two(), workers=1))
    crashed, address = await told_address(stage)
    await stage.announced.wait()
    assert await server_of(address) == crashed
    os.kill(crashed, signal.SIGSTOP)
    async with await trio.open_tcp_stream(*address) as queued:
        os.kill(crashed, signal.SIGKILL)
        (successor,) = await stage.start_of(1)
        assert int(b"".join([part async for part in queued])) == successor
    stage.stop.set()
    await stage.ended.wait()


async def test_at_a_stop_nobody_waits_for_what_never_comes(stage: Stage) -> None:
    """While workers drain, their addresses are free of listeners: a connection is refused at once."""
    await stage.play("lingers", two())
    (one, address), (other, _) = [await told_address(stage) for _ in range(2)]
    await stage.announced.wait()
    stage.stop.set()
    refused = False
    while not refused:
        try:
            await (await trio.open_tcp_stream(*address)).aclose()
        except OSError:
            refused = True
    assert is_alive(one)
    assert is_alive(other)
    for pid in (one, other):
        os.kill(pid, signal.SIGKILL)
    await stage.ended.wait()
