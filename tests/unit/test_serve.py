"""The addresses of the serving program, and its end without memory."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from api.serve import BACKLOG, bind
from config.settings import Settings, SettingsError

FREE = Settings(api="127.0.0.1:0", intake="127.0.0.1:0")


def test_port_0_becomes_a_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The announcement names the ports that were picked, on two plain lines."""
    with closing(bind(FREE, shared=False)) as listeners:
        listeners.announce()
    assert not listeners.api_address.endswith(":0")
    told = f"api     http://{listeners.api_address}\nintake  http://{listeners.intake_address}\n"
    assert capsys.readouterr().out == told


def test_a_taken_address_is_refused_by_name() -> None:
    """The message gives the setting, its value and the reason."""
    with closing(bind(FREE, shared=False)) as first:
        first.listen()
        settings = Settings(api="127.0.0.1:0", intake=first.intake_address)
        with pytest.raises(SettingsError, match=r"HEADRACE_INTAKE is '127\.0\.0\.1:\d+', and can't be .*in use"):
            bind(settings, shared=False)
        with pytest.raises(SettingsError, match="HEADRACE_INTAKE"):
            bind(settings, shared=True)


def test_a_host_that_is_none_of_ours_is_refused_by_name() -> None:
    """An address of another machine can't be listened on."""
    with pytest.raises(SettingsError, match=r"HEADRACE_API is '192\.0\.2\.1:8000'"):
        bind(Settings(api="192.0.2.1:8000", intake="127.0.0.1:0"), shared=False)


def test_workers_share_an_address() -> None:
    """Each worker listens on a socket of its own at the same address; the supervisor's bound one takes nothing."""
    with closing(bind(FREE, shared=True)) as kept:
        settings = Settings(api=kept.api_address, intake=kept.intake_address)
        with closing(bind(settings, shared=True)) as first, closing(bind(settings, shared=True)) as second:
            first.listen()
            second.listen()
            clients = [socket.create_connection(kept.api.getsockname()[:2]) for _ in range(BACKLOG // 32)]
            accepted = 0
            for listeners in (first, second):
                while True:
                    try:
                        listeners.api.accept()[0].close()
                    except BlockingIOError:
                        break
                    accepted += 1
            for client in clients:
                client.close()
    assert accepted == len(clients)


def test_ipv6_is_written_in_brackets() -> None:
    """An address can be pasted into a URL."""
    try:
        listeners = bind(Settings(api="[::1]:0", intake="127.0.0.1:0"), shared=False)
    except SettingsError:
        pytest.skip("no IPv6 here")
    with closing(listeners):
        assert listeners.api_address.startswith("[::1]:")


THREADS_WITHOUT_MEMORY = """
import _thread, sys, time
from api.serve import end_without_memory

sys.unraisablehook = end_without_memory

def start():
    raise {error}

_thread.start_new_thread(start, ())
time.sleep(20)
sys.exit(3)
"""


def test_a_process_ends_when_a_thread_finds_no_memory_to_start_with() -> None:
    """Whoever waits for that thread would wait for ever; a process that is started again serves."""
    ended = subprocess.run(
        [sys.executable, "-c", THREADS_WITHOUT_MEMORY.format(error="MemoryError")], capture_output=True, text=True
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "no memory left" in ended.stderr


def test_a_process_goes_on_when_a_thread_fails_otherwise() -> None:
    """Only memory is everybody's trouble: the failure is printed, as Python does it."""
    program = THREADS_WITHOUT_MEMORY.format(error="ValueError").replace("sleep(20)", "sleep(0.5)")

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert ended.returncode == 3
    assert "ValueError" in ended.stderr


# --- SIGHUP ---

# The serving program without stores and engine.
ALONE = """
import contextlib, os, sys, trio
from api import serve
from config.settings import Settings
from engine.embedded import Stores

async def served(settings, stores, listeners, stop, ready):
    print("ready", flush=True)
    await stop.wait()

serve.open_stores = lambda *_: contextlib.nullcontext(Stores('', ''))
serve.serve = served
if len(sys.argv) > 1:
    os.open(sys.argv[1], os.O_RDWR)  # the first one that the leader of a session opens is its terminal
sys.exit(serve.run(Settings(api="127.0.0.1:0", intake="127.0.0.1:0")))
"""
NOTHING_IS_DONE = "SIGHUP: nothing is done: a restart without a gap needs HEADRACE_WORKERS of 2 or more"


@contextmanager
def alone(*terminal: str, nohup: bool = False) -> Iterator[subprocess.Popen[str]]:
    """The program, serving."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE, *terminal],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGHUP, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def ends_well(process: subprocess.Popen[str]) -> bool:
    """Whether SIGTERM still has its effect."""
    process.send_signal(signal.SIGTERM)
    return process.wait() == 0


def test_a_single_process_says_what_a_hang_up_would_need() -> None:
    """And goes on, as often as it is asked."""
    with alone() as process:
        assert process.stderr is not None
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert process.stderr.readline().endswith(f"{NOTHING_IS_DONE}\n")
        assert ends_well(process)


def test_a_program_whose_terminal_goes_ends() -> None:
    """As the user of a window that is closed expects: drained, not killed."""
    master, slave = pty.openpty()
    with alone(os.ttyname(slave)) as process:
        os.close(slave)
        os.close(master)
        assert process.wait() == 0
        assert process.stderr is not None
        assert "SIGHUP: draining" in process.stderr.read()


def test_nohup_outlives_the_terminal() -> None:
    """Who started it so wants that."""
    master, slave = pty.openpty()
    with alone(os.ttyname(slave), nohup=True) as process:
        os.close(slave)
        os.close(master)
        assert process.stderr is not None
        assert process.stderr.readline().endswith(f"{NOTHING_IS_DONE}\n")
        assert ends_well(process)
