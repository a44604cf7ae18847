"""A program with embedded stores that may be starting or stopping still, and whether any of its stores lives."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from config.settings import Settings
from engine.embedded import open_stores
from engine.embedded.daemon import is_alive
from engine.embedded.home import Home
from engine.embedded.postgres import url_of
from tests.e2e.program import Program, environment

SERVE: Final = (sys.executable, "-m", "api", "serve")
BOUND_SECONDS: Final = 60.0  # only there so that a program that hangs ends the test


class Started:
    """A child process that leads a session of its own, and its log."""

    def __init__(self, process: subprocess.Popen[str], env: Mapping[str, str], path: Path) -> None:
        self.process = process
        self._env = env
        self._path = path

    @property
    def log(self) -> str:
        """What it said on standard error."""
        return self._path.read_text()

    def serving(self) -> Program:
        """The program, once it is ready."""
        program = Program(self.process, self._env, self._path)
        program.wait_ready()
        return program

    def status(self) -> int:
        """Wait for its end."""
        return self.process.wait(BOUND_SECONDS)


def env_of(data: Path, workers: int = 1, **more: str) -> dict[str, str]:
    """Embedded stores in this folder, free ports; what a killed supervisor leaves goes with the data."""
    ports = {"HEADRACE_API": "127.0.0.1:0", "HEADRACE_INTAKE": "127.0.0.1:0"}
    own = {"HEADRACE_DATA": str(data), "HEADRACE_WORKERS": str(workers), "TMPDIR": str(data)}
    return environment({**ports, **own, **more})


@contextmanager
def started(env: Mapping[str, str], command: Sequence[str] = SERVE) -> Iterator[Started]:
    """Start it; when the block ends, it is over."""
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        with process:
            try:
                yield Started(process, env, Path(log.name))
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(BOUND_SECONDS)
                    except subprocess.TimeoutExpired:
                        process.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    """Until this holds."""
    end = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def home_of(data: Path) -> Home:
    """The folder of the stores."""
    return Home(data / "stores", (data / "stores" / "run").resolve(), None)


def db_url_of(data: Path) -> str:
    """The embedded Postgres."""
    return url_of(home_of(data))


def stores_alive(data: Path) -> list[str]:
    """Those embedded stores of which a process lives."""
    home = home_of(data)
    return [name for name in ("postgres", "redis") if home.path.exists() and is_alive(home, name)]


def stop_left_over(data: Path) -> None:
    """Stop what a test that failed has left running, before its folder goes."""
    if stores_alive(data):
        with open_stores(Settings(data=str(data))):
            pass
