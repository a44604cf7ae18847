"""The supervisor of several workers: starts, restarts and ends them. The workers here are small stand-ins."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from api import workers
from api.serve import Listeners
from config.settings import Settings, load_settings
from engine.embedded import Stores

STORES = Stores("postgresql://db.test/headrace", "redis://cache.test")

# Tells the test who and what it is, then does what its second argument says.
STAND_IN = """
import json, os, signal, socket, sys
told, how = sys.argv[1:3]
with socket.socket(socket.AF_UNIX) as line:
    line.connect(told)
    line.sendall(json.dumps({"pid": os.getpid(), "environment": dict(os.environ)}).encode())
if how == "fails":
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "hangs" else lambda *_: sys.exit(0))
print("ready", flush=True)
if how == "crashes":
    os._exit(1)
signal.pause() if how == "hangs" else sys.stdin.read()
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
        self._listener = trio.socket.socket(socket.AF_UNIX)

    async def play(self, how: str, settings: Settings) -> None:
        """Start the supervisor."""
        await self._listener.bind(self._path)
        self._listener.listen()
        self._nursery.start_soon(self._supervise, settings, how)

    async def _supervise(self, settings: Settings, how: str) -> None:
        command = (sys.executable, "-c", STAND_IN, self._path, how)
        self.status = await workers.supervise(settings, STORES, self.stop, self._hangups, command)
        self.ended.set()

    async def heard(self) -> dict[str, Any]:
        """What the next worker that starts says of itself."""
        connection, _ = await self._listener.accept()
        said = b""
        async with trio.SocketStream(connection) as stream:
            async for part in stream:
                said += part
        told: dict[str, Any] = json.loads(said)
        return told

    def close(self) -> None:
        """Give the listener back."""
        self._listener.close()


@pytest.fixture
async def stage(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A stage that notices the announcement, and doesn't wait before restarts."""
    stage = Stage(tmp_path, nursery)
    monkeypatch.setattr(Listeners, "announce", lambda _: stage.announced.set())
    monkeypatch.setattr(workers, "PAUSE_SECONDS", 0.0)
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


async def test_endless_crashes_end_everything(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the restarts of one window, all workers are stopped, with a clear message and status 1."""
    await stage.play("crashes", two(restarts_max=3))
    await stage.ended.wait()
    assert stage.status == 1
    assert "workers crashed more than 3 times within 60 s: stopping" in caplog.text


async def test_a_worker_that_never_starts_ends_everything(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """What can't start the first time is not tried again."""
    await stage.play("fails", two())
    await stage.ended.wait()
    assert stage.status == 1
    assert not stage.announced.is_set()
    assert "a worker could not start: stopping" in caplog.text


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
