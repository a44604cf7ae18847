"""An embedded store that dies is started again by the program that uses it, and each step is told in one line."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from config.settings import Settings
from engine.embedded import open_stores
from engine.embedded.daemon import _listener, lock_file
from engine.embedded.home import SOCKET_NAME
from tests.e2e.program import Program, headrace, impression
from tests.e2e.stopping import Started, env_of, home_of, started, stores_alive, wait_for

SOCKETS = {"postgres": SOCKET_NAME, "redis": "redis.sock"}


def kill(data: Path, name: str) -> None:
    """End a store as the kernel does when memory runs out."""
    os.kill(_listener(home_of(data).run / SOCKETS[name]), signal.SIGKILL)


def until_told(program: Started, text: str, times: int) -> None:
    """Until its log says so, so often."""
    wait_for(lambda: program.log.count(text) >= times)


def accepts(program: Program, campaign: int) -> bool:
    """Whether a new event is taken."""
    return program.post(impression(campaign)).status_code == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_each_store_that_is_killed_runs_again(data: Path, workers: int) -> None:
    """Also a second time; engines find it by themselves, count right, and the program ends as always."""
    env = env_of(data, workers)
    with started(env) as program:
        serving = program.serving()
        campaign = serving.create()["id"]
        assert accepts(serving, campaign)
        accepted = 1
        for times, name in ((1, "redis"), (1, "postgres"), (2, "redis"), (2, "postgres")):
            kill(data, name)
            until_told(program, f"the embedded {name} runs again after", times)
            wait_for(lambda: accepts(serving, campaign))
            accepted += 1
        serving.wait_ready()
        assert serving.report(campaign)["impressions"] == accepted
        for name in ("redis", "postgres"):
            assert program.log.count(f"the embedded {name} has died") == 2
        serving.client.close()
        program.process.terminate()
        assert program.status() == 0, program.log
        assert stores_alive(data) == []
    assert headrace("audit", env=env).returncode == 0


def test_a_store_that_can_not_be_started_is_given_up_until_somebody_starts_it(data: Path) -> None:
    """As with a disk that is full: said with the reason, not ready meanwhile, and found when it is back."""
    with started(env_of(data, HEADRACE_RESTARTS_MAX="2")) as program:
        serving = program.serving()
        campaign = serving.create()["id"]
        in_the_way = data / "stores" / "redis.conf"
        in_the_way.unlink()
        in_the_way.mkdir()
        kill(data, "redis")
        wait_for(lambda: "is given up: events are answered 503" in program.log)
        assert program.log.count("the embedded redis could not be started: [Errno 21] Is a directory") == 2
        assert "redis" in serving.client.get(f"{serving.api}/readyz").text.lower()
        assert not accepts(serving, campaign)
        in_the_way.rmdir()
        with open_stores(Settings(data=str(data))):
            wait_for(lambda: "the embedded redis runs again, started by another program" in program.log)
            wait_for(lambda: accepts(serving, campaign))
        serving.client.close()
        program.process.terminate()
        assert program.status() == 0, program.log
        assert "Traceback" not in program.log
    assert stores_alive(data) == []


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_stop_while_a_store_is_away_is_a_clean_one(data: Path, name: str) -> None:
    """What has no verdict is answered 503, the drain has its bound, and no store is left."""
    with started(env_of(data, HEADRACE_DRAIN_SECONDS="4")) as program:
        serving = program.serving()
        campaign = serving.create()["id"]
        assert accepts(serving, campaign)
        with lock_file(data / "start.lock") as lock:  # as a program that starts its stores just now
            fcntl.flock(lock, fcntl.LOCK_EX)
            kill(data, name)
            wait_for(lambda: f"the embedded {name} has died" in program.log)
            assert not accepts(serving, campaign)
            serving.client.close()
            program.process.terminate()
            wait_for(lambda: "SIGTERM: draining" in program.log)
        assert program.status() == 0, program.log
        assert "Traceback" not in program.log
    assert stores_alive(data) == []


def test_a_postgres_that_is_killed_while_it_starts_is_told(data: Path) -> None:
    """Before anything is served nothing is tried twice: status 1, the end of its log, and no store left."""
    pid_file = data / "stores" / "postgres" / "postmaster.pid"
    with started(env_of(data)) as program:
        wait_for(lambda: pid_file.exists() and pid_file.read_text() != "")
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        told = "the embedded postgres could not start. The end of "
        # (Where it was quicker than we were, it serves already.)
        wait_for(lambda: told in program.log or "the embedded postgres has died" in program.log)
        assert told not in program.log or program.status() == 1
    assert stores_alive(data) == []
