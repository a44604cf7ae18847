"""The serving program as its operators see it: addresses, signals, exit status, stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import Settings
from engine.embedded import open_stores
from engine.embedded.daemon import is_alive
from engine.embedded.home import Home

pytestmark = pytest.mark.stores

SERVE = (
    "import sys; from api.serve import run; from config.settings import load_settings; sys.exit(run(load_settings()))"
)


class Program:
    """A Headrace with embedded stores, serving on free ports."""

    def __init__(self, data_folder: Path, workers: int) -> None:
        self.settings = Settings(data=str(data_folder), workers=workers)
        environment = {name: text for name, text in os.environ.items() if not name.startswith("HEADRACE_")}
        environment |= {"HEADRACE_DATA": str(data_folder), "HEADRACE_WORKERS": str(workers)}
        environment |= {"HEADRACE_API": "127.0.0.1:0", "HEADRACE_INTAKE": "127.0.0.1:0", "DB_URL": "", "REDIS_URL": ""}
        environment |= {"TMPDIR": str(data_folder)}  # what a killed supervisor leaves goes with the data
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.api = self.process.stdout.readline().removeprefix("api").strip()
        self.intake = self.process.stdout.readline().removeprefix("intake").strip()

    def is_healthy(self) -> bool:
        """Whether both listeners answer."""
        for url in (self.api, self.intake):
            with urllib.request.urlopen(f"{url}/healthz", timeout=10) as answer:
                if answer.status != 200:
                    return False
        return True

    def end(self, number: signal.Signals) -> int:
        """Send a signal; the exit status. Waits for the workers, too: they hold the other end of standard error."""
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def stores_alive(self) -> list[str]:
        """Those of the embedded stores that are running."""
        home = Home(self.settings.data_path / "stores", self.settings.data_path, None)
        return [name for name in ("postgres", "redis") if is_alive(home, name)]


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def program(request: pytest.FixtureRequest, data_folder: Path) -> Iterator[Program]:
    """The program, alone or with two workers; nothing of it is left afterwards."""
    program = Program(data_folder, request.param)
    yield program
    if program.process.returncode is None:
        program.end(signal.SIGTERM)
    with open_stores(program.settings):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(program: Program, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end everything cleanly: exit status 0, both stores stopped."""
    assert program.is_healthy()
    assert program.stores_alive() == ["postgres", "redis"]
    assert program.end(number) == 0
    assert program.stores_alive() == []


def test_kill_9_leaves_the_stores_and_no_worker(program: Program) -> None:
    """After SIGKILL the workers notice and end by themselves, and the stores live on for the next start."""
    assert program.is_healthy()
    program.end(signal.SIGKILL)
    assert program.stores_alive() == ["postgres", "redis"]


def test_nothing_is_printed_but_the_addresses(program: Program) -> None:
    """Standard output is for the two addresses."""
    assert program.api.startswith("http://127.0.0.1:")
    assert program.intake.startswith("http://127.0.0.1:")
    program.process.send_signal(signal.SIGTERM)
    output, _ = program.process.communicate(timeout=60)
    assert output == ""
