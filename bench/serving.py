"""`headrace serve` as a child process on fresh embedded stores, for a demo or a measurement.

Owns the process, its folder, its environment and its end. Nothing of it is left afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from config.settings import Settings
from engine.embedded import Stores, open_stores

START_SECONDS_MAX: Final = 120.0  # what the embedded stores take at most
STOP_SECONDS_MAX: Final = 60.0  # three times the drain
READY_POLL_SECONDS: Final = 0.05
LOG_LINES: Final = 20  # shown of the log when something went wrong


class ServingFailed(Exception):
    """The engine did not start, or did not end well; the message has the end of its log."""


class Serving:
    """An engine: base URLs of both listeners, the environment that it was started with, and its log.

    `keep`: what it leaves in its folder is kept.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = dict(environment)
        self.log = log
        self.process: subprocess.Popen[str]
        self.api = self.intake = ""
        self.keep = False

    def launch(self) -> None:
        """Start it, and return when it listens; a second time, on the same addresses. Raises `ServingFailed`."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api", "serve"],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we end it
            )
        self.api, self.intake = self._address("api"), self._address("intake")
        for name, url in (("HEADRACE_API", self.api), ("HEADRACE_INTAKE", self.intake)):
            self.environment[name] = urlsplit(url).netloc

    def wait_ready(self) -> None:
        """Return once `/readyz` says so. Raises `ServingFailed`."""
        end = time.monotonic() + START_SECONDS_MAX
        with httpx.Client(trust_env=False) as client:
            while client.get(f"{self.api}/readyz").status_code != 200:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise self._failed("is not ready")
                time.sleep(READY_POLL_SECONDS)

    def stop(self) -> None:
        """SIGTERM, and wait for a clean end. Raises `ServingFailed` for any other."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=STOP_SECONDS_MAX)
        if status != 0:
            raise self._failed(f"ended with status {status}")

    def end(self) -> None:
        """No process is left: neither the engine nor, if it ended badly, its stores."""
        if not hasattr(self, "process"):
            return
        end(self.process)
        if self.process.returncode != 0 and (Path(self.environment["HEADRACE_DATA"]) / "stores").exists():
            self.stores()  # found again, and stopped by the last one out

    def stores(self) -> Stores:
        """Where its embedded stores are."""
        with open_stores(Settings(data=self.environment["HEADRACE_DATA"])) as stores:
            return stores

    def _address(self, name: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(rf"{name} +(http://\S+)\n", line)
        if found is None:
            raise self._failed(f"did not start: it said {line!r}")
        return found[1]

    def _failed(self, what: str) -> ServingFailed:
        return ServingFailed(with_log(f"headrace serve {what}", self.log))


@contextmanager
def serving(**settings: str) -> Iterator[Serving]:
    """A ready engine on free ports. `settings` are further environment variables.

    Raises `ServingFailed`. No setting of our own environment reaches it: it must never write into stores of others.
    """
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    folder.chmod(0o711)  # the user whom root runs the stores as must get through
    environment = without_settings(os.environ) | {
        "HEADRACE_DATA": str(folder / "data"),
        "HEADRACE_API": "127.0.0.1:0",
        "HEADRACE_INTAKE": "127.0.0.1:0",
        **settings,
    }
    program = Serving(environment, folder / "log")
    try:
        try:
            program.launch()
            program.wait_ready()
            yield program
        finally:
            program.end()
    finally:
        if not program.keep:
            shutil.rmtree(folder, ignore_errors=True)


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a program that must have no setting of ours, and reach no store of ours."""
    return {
        name: text
        for name, text in environment.items()
        if not name.startswith("HEADRACE_") and name not in ("DB_URL", "REDIS_URL")
    }


def end(process: subprocess.Popen[str]) -> None:
    """However it stands: when this returns, it is no more."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def with_log(what: str, log: Path) -> str:
    """What went wrong with a program, and the end of its log."""
    return "\n".join([f"{what}; the end of its log:", *log.read_text(errors="replace").splitlines()[-LOG_LINES:]])


def address_held(url: str) -> socket.socket:
    """A socket that only keeps an address: it never listens, so connections are refused, and a new engine may bind it.

    Without it the kernel may give the port to the next client that connects, be it to that very port.
    """
    parts = urlsplit(url)
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((parts.hostname, parts.port))
    return holder
