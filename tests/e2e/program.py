"""`headrace` as a child process, and a small client for both of its listeners."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

_START_SECONDS = 60


def headrace(*arguments: str, env: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `headrace` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "api", *arguments],
        env=environment(env), capture_output=True, text=True, check=False, timeout=120, **options,
    )  # fmt: skip


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process without any setting of Headrace, and `env`.

    Byte code is kept for as long as this process lives: without it, half of a start is compiling.
    """
    clean = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith("HEADRACE_") and not name.endswith("_URL") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**clean, "PYTHONPYCACHEPREFIX": _byte_code(), **env}


@cache
def _byte_code() -> str:
    folder = tempfile.mkdtemp(prefix="headrace-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Program:
    """A running `headrace serve`."""

    def __init__(self, process: subprocess.Popen[str], env: Mapping[str, str], log: Path) -> None:
        self.process = process
        self.env = dict(env)
        self.log = log
        self.api, self.intake = self._addresses()
        self.client = httpx.Client(timeout=30)

    def _addresses(self) -> tuple[str, str]:
        assert self.process.stdout is not None
        found: list[str] = []
        while len(found) < 2:
            line = self.process.stdout.readline()
            assert line, f"headrace did not start: {self.log.read_text()}"
            found += re.findall(r"http://[\d.]+:\d+", line)
        return found[0], found[1]

    @property
    def listeners(self) -> tuple[str, str]:
        """Both base URLs."""
        return self.api, self.intake

    def wait_ready(self) -> None:
        """Until `/readyz` says 200."""
        self.wait_for(lambda: self.client.get(f"{self.api}/readyz").status_code == 200)

    def wait_for(self, condition: Any) -> None:
        """Until a condition holds; the bound is only there so that a broken engine ends the test."""
        end = time.monotonic() + _START_SECONDS
        while not condition():
            assert time.monotonic() < end, "waited for too long"
            time.sleep(0.02)

    def create(self, **fields: Any) -> dict[str, Any]:
        """Make a campaign: cpm at 1.00 (0.001 an impression), 1,000 a day and in all, unless told otherwise."""
        values = {
            "name": "spring", "pricing_model": "cpm", "unit_price": "1.00",
            "total_budget": "1000", "daily_budget": "1000",
        }  # fmt: skip
        answer = self.client.post(f"{self.api}/campaigns/", json={**values, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def post(self, event: Mapping[str, Any], *, to: str | None = None) -> httpx.Response:
        """Send one event, to the intake unless told otherwise."""
        return self.client.post(f"{to or self.intake}/events/", json=event)

    def batch(self, events: list[Any], *, to: str | None = None) -> dict[str, Any]:
        """Send a batch and read its answer."""
        answer = self.client.post(f"{to or self.intake}/events/batch", json=events)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def report(self, campaign_id: int) -> dict[str, Any]:
        """The report without bounds."""
        answer = self.client.get(f"{self.api}/report/campaign/{campaign_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def audit(self) -> None:
        """`headrace audit` finds nothing."""
        found = headrace("audit", env=self.env)
        assert found.returncode == 0, found.stdout + found.stderr

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def running(env: Mapping[str, str]) -> Iterator[Program]:
    """`headrace serve` on free ports; ends when the block does, whatever happened in it."""
    env = {"HEADRACE_API": "127.0.0.1:0", "HEADRACE_INTAKE": "127.0.0.1:0", **env}
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "serve"],
            env=environment(env), stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1,
        )  # fmt: skip
        program = None
        try:
            program = Program(process, env, Path(log.name))
            program.wait_ready()
            yield program
        finally:
            if program is not None:
                program.client.close()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            assert process.stdout is not None
            process.stdout.close()


def impression(campaign: Mapping[str, Any] | int, user: str = "ada", **fields: Any) -> dict[str, Any]:
    """An impression with an id of its own."""
    number = campaign if isinstance(campaign, int) else campaign["id"]
    return {
        "campaign_id": number, "user_id": user, "event_type": "impression", "event_id": str(uuid.uuid4()), **fields
    }  # fmt: skip
