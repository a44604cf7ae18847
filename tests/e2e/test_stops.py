"""One stop is one stop, however many signals it is made of: drained, status 0, and no store left behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis

from engine.embedded.daemon import lock_file
from tests.e2e.program import impression
from tests.e2e.stopping import SERVE, db_url_of, env_of, started, stores_alive, wait_for
from tests.hanging import commits_hang


@pytest.mark.parametrize("workers", [1, 2])
def test_two_sigterms_80_ms_apart_are_one_stop(data: Path, workers: int) -> None:
    """What passes a signal on makes two of it."""
    with started(env_of(data, workers)) as program:
        serving = program.serving()
        assert serving.post(impression(serving.create())).status_code == 200
        serving.client.close()
        program.process.terminate()
        time.sleep(0.08)
        program.process.terminate()
        assert program.status() == 0, program.log
        assert "ended with status" not in program.log
        assert stores_alive(data) == []


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
def test_a_signal_to_the_group_of_make_stops_all_of_it(
    data: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    """As of `make run`: make passes SIGTERM on to the program, which has heard it already."""
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"run:\n\t@exec {' '.join(SERVE)}\n")
    with started(env_of(data, workers), ("make", "--silent", "--file", str(makefile), "run")) as program:
        serving = program.serving()
        assert serving.post(impression(serving.create())).status_code == 200
        serving.client.close()
        os.killpg(program.process.pid, number)
        program.status()  # (of make, which tells that it was interrupted)
        wait_for(lambda: stores_alive(data) == [])
        assert f"{number.name}: draining" in program.log
        assert "ended with status" not in program.log


def test_ctrl_c_twice_at_a_terminal_stops_all_of_it(data: Path) -> None:
    """The terminal signals everybody who runs in its foreground, and fingers are quick."""
    master, slave = pty.openpty()
    take = f"import os, sys; os.open({os.ttyname(slave)!r}, os.O_RDWR); os.execv(sys.executable, {list(SERVE)!r})"
    with started(env_of(data, workers=2), (sys.executable, "-c", take)) as program:
        program.serving().client.close()
        os.write(master, b"\x03")
        time.sleep(0.2)
        os.write(master, b"\x03")
        assert program.status() == 0, program.log
        assert "SIGINT: draining" in program.log
        assert stores_alive(data) == []
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_stop_while_a_store_starts_leaves_none(data: Path, name: str) -> None:
    """What was started is stopped again, and the status is that of a clean stop."""
    with started(env_of(data)) as program:
        wait_for(lambda: name in stores_alive(data) or program.process.poll() is not None)
        for _ in range(2):
            program.process.terminate()
        assert program.status() == 0, program.log
        assert "Traceback" not in program.log
        assert stores_alive(data) == []


def test_a_stop_while_the_data_folder_is_made_leaves_no_store(data: Path) -> None:
    """Postgres's data takes a second or more, and is whole or not at all; Ctrl-C does not reach who makes it."""
    half = data / "stores" / "postgres.part"
    with started(env_of(data)) as program:
        wait_for(lambda: half.exists() or program.process.poll() is not None)
        os.killpg(program.process.pid, signal.SIGINT)
        assert program.status() == 0, program.log
        assert "SIGINT: stopped before anything was served" in program.log
        assert stores_alive(data) == []
    with started(env_of(data)) as program:
        program.serving().client.close()


def test_a_stop_does_not_wait_for_the_start_of_another_program(data: Path) -> None:
    """Starts on one data folder follow each other, and may take minutes."""
    with lock_file(data / "start.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with started(env_of(data)) as program:
            wait_for(lambda: catches(program.process.pid, signal.SIGTERM))
            program.process.terminate()
            assert program.status() == 0, program.log
            assert "SIGTERM: stopped before anything was served" in program.log


def test_a_second_signal_while_the_stores_stop_lets_them(data: Path) -> None:
    """The drain is over by then, and the process lives for the stores only."""
    with started(env_of(data)) as program:
        program.serving().client.close()
        program.process.terminate()
        wait_for(lambda: len(stores_alive(data)) < 2)
        program.process.terminate()
        assert program.status() == 0, program.log
        assert stores_alive(data) == []


def test_a_second_signal_seconds_later_ends_it_at_once(data: Path) -> None:
    """Whoever asks again does not want to wait for a drain; the next start finds the stores, and stops them."""
    with started(env_of(data)) as program:
        serving = program.serving()
        campaign = serving.create()["id"]
        serving.client.close()
        address = urlsplit(serving.intake)
        body = json.dumps(impression(campaign)).encode()
        with commits_hang(db_url_of(data)), socket.create_connection((address.hostname, address.port)) as peer:
            peer.sendall(b"POST /events/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            time.sleep(0.5)  # it is under way, and the drain waits for it
            program.process.terminate()
            time.sleep(2.5)
            program.process.terminate()
            assert program.status() == -signal.SIGTERM
        assert "a second signal to stop: ending at once" in program.log
    assert stores_alive(data) == ["postgres", "redis"]
    with started(env_of(data)) as program:
        program.serving().client.close()
        program.process.terminate()
        assert program.status() == 0, program.log
    assert stores_alive(data) == []


FAILS = """
import sys, time, trio
import api.listener
from api.__main__ import main

serve_api = api.listener.serve_api

async def failing(*arguments, **options):
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_api, *arguments)
        options["task_status"].started()
        await trio.to_thread.run_sync(sys.stdin.readline)
        raise ZeroDivisionError

api.listener.serve_api = failing
sys.exit(main(["serve"]))
"""


def test_a_process_of_which_a_part_failed_does_not_live_on(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """Half of it serves nobody, and is not replaced before it ends: its drain is a short one, status 1."""
    env = {"DB_URL": database_url, "REDIS_URL": redis_url, "HEADRACE_WORKERS": "1"}
    with started(env_of(tmp_path, 1, **env), (sys.executable, "-c", FAILS)) as program:
        serving = program.serving()
        campaign = serving.create()["id"]
        assert serving.post(impression(campaign)).status_code == 200
        address = urlsplit(serving.intake)
        body = json.dumps(impression(campaign)).encode()
        with commits_hang(database_url), socket.create_connection((address.hostname, address.port)) as peer:
            peer.sendall(b"POST /events/ HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            with redis.Redis.from_url(redis_url) as client:
                wait_for(lambda: client.hlen(f"{{{campaign}}}:p") == 1)
            assert program.process.stdin is not None
            program.process.stdin.close()
            assert program.status() == 1
        serving.client.close()
        assert "not everything was finished within 2 s" in program.log
        assert "ZeroDivisionError" in program.log


def workers_of(pid: int) -> list[int]:
    """The worker processes of a supervisor."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def test_a_frozen_worker_is_replaced_and_one_that_works_is_not(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """By its silence: a worker says every second that its loop turns, also under load and while it drains."""
    env = {"DB_URL": database_url, "REDIS_URL": redis_url, "HEADRACE_WORKER_SILENT_SECONDS": "3"}
    with started(env_of(tmp_path, 2, **env)) as program:
        serving = program.serving()
        campaign = serving.create()["id"]
        frozen, other = workers_of(program.process.pid)
        os.kill(frozen, signal.SIGSTOP)
        wait_for(lambda: f"worker {frozen} is frozen: silent for 3 s; killing it" in program.log)
        wait_for(lambda: len(workers_of(program.process.pid)) == 2)
        assert other in workers_of(program.process.pid)
        serving.client.close()
        with httpx.Client(timeout=30) as client:  # on a connection of its own: that of the frozen one was reset
            wait_for(lambda: client.post(f"{serving.intake}/events/", json=impression(campaign)).status_code == 200)
        program.process.terminate()
        assert program.status() == 0, program.log
        assert program.log.count("is frozen") == 1


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether this process has a handler for a signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = [line for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught.split()[1], 16) & 1 << number - 1)
