"""Where a run takes place: fresh stores, the scenario's campaigns, and one system on them.

Owns processes and folders, from nothing to nothing. The URLs of the stores are in a system's environment. A peer finds
the engine's tables, with the campaigns in them; the engine makes its tables itself, so that older ones can stand here,
too. Nothing is left when the block ends.
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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx
import psycopg
import trio

from bench.sampling import children, memory_mb, store_pids, tree
from bench.scenario import Scenario
from bench.serving import STOP_SECONDS_MAX, address_held, end, with_log, without_settings
from bench.wires import Wires, open_wires
from config.settings import Settings
from engine.embedded import Stores, open_stores
from engine.model import decimal_text
from engine.postgres.store import open_store

REDIS_MEMORY_MB: Final = 4_096  # a minute of new ids and users at full rate, twice
START_SECONDS_MAX: Final = 60.0
CONNECT_SECONDS: Final = 5.0
READY_POLL_SECONDS: Final = 0.02


class StandFailed(Exception):
    """A system did not start, or did not end well; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class System:
    """A program under test. It prints its address as `http://…`, the last one is where events go."""

    name: str
    command: tuple[str, ...]
    addresses: int = 1  # lines with an address that it prints
    settings: Mapping[str, str] = field(default_factory=dict)
    checkout: str = ""  # where its code is; empty: this one
    runner: tuple[str, ...] = ("-m",)  # what Python runs the command by

    @property
    def is_engine(self) -> bool:
        """Whether it is Headrace itself, with all that only it promises."""
        return self.command[:2] == ("api", "serve")


HEADRACE: Final = System("headrace", ("api", "serve"), addresses=2)


@dataclass(slots=True)
class Stand:
    """Stores and a running system. `api` is where everything but events is asked for, empty for peers."""

    stores: Stores
    system: System
    process: subprocess.Popen[str]
    campaign_ids: list[int]
    api: str
    events: str
    log: Path
    folder: Path
    wires: Wires | None  # where a fault of the network is to come
    roots: dict[str, list[int]]  # of the process trees of each role, those that have ended included
    held: list[socket.socket] = field(default_factory=list)

    @property
    def host(self) -> tuple[str, int]:
        """Where events go."""
        parts = urlsplit(self.events)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def stop(self) -> None:
        """SIGTERM, and wait for a clean end. Raises `StandFailed` for any other."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=STOP_SECONDS_MAX)
        if status != 0:
            raise StandFailed(with_log(f"{self.system.name} ended with status {status}", self.log))

    def wait_ready(self) -> None:
        """Return once the engine says that it is ready, or a peer can be connected to. Raises `StandFailed`."""
        end_at = time.monotonic() + START_SECONDS_MAX
        while not self._is_ready():
            if time.monotonic() > end_at or self.process.poll() is not None:
                raise StandFailed(with_log(f"{self.system.name} is not ready", self.log))
            time.sleep(READY_POLL_SECONDS)

    def restart(self) -> float:
        """Stop it and start it again on the same addresses and stores; seconds from then until it is ready."""
        self.stop()
        end(self.process)
        started = time.monotonic()
        self.relaunch()
        self.wait_ready()
        return time.monotonic() - started

    def memory_mb(self) -> float:
        """What the system has resident, all its processes."""
        return memory_mb(tree(self.process.pid, children()))

    def _is_ready(self) -> bool:
        try:
            if self.api:
                return httpx.get(f"{self.api}/readyz", trust_env=False).status_code == 200
            socket.create_connection(self.host, CONNECT_SECONDS).close()
        except (httpx.TransportError, OSError):
            return False
        return True

    # --- chaos mode ---

    def kill(self) -> None:
        """Kill -9 of the system, all its processes. Nobody else gets its addresses."""
        for pid in tree(self.process.pid, children()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end(self.process)
        self.held += [address_held(url) for url in (self.api, self.events) if url]

    def relaunch(self) -> None:
        """Start it again on the same addresses, and don't wait."""
        addresses = {"HEADRACE_INTAKE": urlsplit(self.events).netloc}
        if self.api:
            addresses["HEADRACE_API"] = urlsplit(self.api).netloc
        with self.log.open("a") as log:
            self.process = _launch(
                self.system, self.wires.stores if self.wires else self.stores, self.folder, log.fileno(), addresses
            )
        self.roots["engine"].append(self.process.pid)

    def revive_stores(self) -> None:
        """Start what has died of the stores; they are well when this returns."""
        with open_stores(_settings(self.folder)):
            pass  # (they are not stopped: we hold them, too)
        for role, pids in store_pids(self.stores.db_url, self.stores.redis_url).items():
            self.roots[role] += pids


@contextmanager
def open_stand(system: System, scenario: Scenario, *, wired: bool = False) -> Iterator[Stand]:
    """`wired`: the system reaches its stores through proxies. Raises `StandFailed`."""
    with (
        _open_empty_stores() as (folder, stores),
        open_wires(stores, folder / "wires") if wired else nullcontext() as wires,
    ):
        if not system.is_engine:
            _create_campaigns(stores.db_url, scenario)
        log, roots = folder / "log", store_pids(stores.db_url, stores.redis_url)
        with log.open("w") as file:
            process = _launch(system, wires.stores if wires else stores, folder, file.fileno())
        stand = Stand(stores, system, process, [], "", "", log, folder, wires, {"engine": [process.pid], **roots})
        try:
            _settle(stand, scenario)
            yield stand
        finally:
            end(stand.process)
            for holder in stand.held:
                holder.close()


@contextmanager
def open_stores_with(scenario: Scenario) -> Iterator[Stores]:
    """Fresh stores with the scenario's campaigns, for a program that serves nobody."""
    with _open_empty_stores() as (_, stores):
        _create_campaigns(stores.db_url, scenario)
        yield stores


@contextmanager
def _open_empty_stores() -> Iterator[tuple[Path, Stores]]:
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    folder.chmod(0o711)  # the user whom root runs the stores as must get through
    try:
        with open_stores(_settings(folder)) as stores:
            yield folder, stores
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(folder: Path) -> Settings:
    return Settings(data=str(folder / "data"), redis_memory_mb=REDIS_MEMORY_MB)


def _settle(stand: Stand, scenario: Scenario) -> None:
    """Its addresses, and its campaigns."""
    addresses = _addresses(stand.process, stand.system, stand.log)
    stand.events = addresses[-1]
    if stand.system.is_engine:
        stand.api = addresses[0]
        stand.wait_ready()
        create_first_campaign(stand.api, scenario)
        copy_campaigns(stand.stores.db_url, scenario.campaigns - 1)
    stand.campaign_ids = campaign_ids(stand.stores.db_url)


def _create_campaigns(db_url: str, scenario: Scenario) -> None:
    """Tables, partitions and campaigns."""

    async def create_first() -> None:
        async with open_store(db_url, Settings()) as store:
            await store.create_campaign(scenario.plan())

    trio.run(create_first)
    copy_campaigns(db_url, scenario.campaigns - 1)


def create_first_campaign(api: str, scenario: Scenario) -> None:
    """The first campaign, as its owner would make it."""
    plan = scenario.plan()
    fields = {
        "name": plan.name, "pricing_model": plan.pricing_model, "unit_price": decimal_text(plan.unit_price_micros),
        "total_budget": decimal_text(plan.total_budget_micros), "daily_budget": decimal_text(plan.daily_budget_micros),
        "freq_cap_impressions_per_day": plan.freq_cap_impressions_per_day,
    }  # fmt: skip
    with httpx.Client(trust_env=False, timeout=30) as client:
        client.post(f"{api}/campaigns/", json=fields).raise_for_status()


def copy_campaigns(db_url: str, count: int) -> None:
    """So many more campaigns: copies of the first. Nobody has used any yet, so nobody needs to be told."""
    columns = (
        "name, pricing_model, unit_price_micros, total_budget_micros, daily_budget_micros,"
        " freq_cap_impressions_per_day, active, pacing, timezone"
    )
    with psycopg.connect(db_url) as connection:
        connection.execute(
            f"INSERT INTO campaigns ({columns}) SELECT {columns}"
            " FROM (SELECT * FROM campaigns ORDER BY id LIMIT 1), generate_series(1, %s)",
            (count,),
        )
        connection.execute(
            "INSERT INTO ledger (campaign_id, total_budget, daily_budget)"
            " SELECT id, total_budget_micros, daily_budget_micros FROM campaigns"
            " WHERE id NOT IN (SELECT campaign_id FROM ledger)"
        )
    with psycopg.connect(db_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE campaigns, ledger")


def campaign_ids(db_url: str) -> list[int]:
    """All there are, in order."""
    with psycopg.connect(db_url) as connection:
        return [campaign_id for (campaign_id,) in connection.execute("SELECT id FROM campaigns ORDER BY id").fetchall()]


def environment_of(stores: Stores) -> dict[str, str]:
    """The environment of a program on these stores: ours, without any setting of ours."""
    return {**without_settings(os.environ), "DB_URL": stores.db_url, "REDIS_URL": stores.redis_url}


def _launch(
    system: System, stores: Stores, folder: Path, log: int, addresses: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    environment = environment_of(stores) | {
        "HEADRACE_DATA": str(folder / "data"),
        "HEADRACE_API": "127.0.0.1:0",
        "HEADRACE_INTAKE": "127.0.0.1:0",
        **(addresses or {}),
        **system.settings,
    }
    return subprocess.Popen(
        [sys.executable, *system.runner, *system.command],
        cwd=system.checkout or None, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        start_new_session=True,  # the terminal's Ctrl-C is for us, and we end it
    )  # fmt: skip


def _addresses(process: subprocess.Popen[str], system: System, log: Path) -> list[str]:
    assert process.stdout is not None
    found: list[str] = []
    while len(found) < system.addresses:
        line = process.stdout.readline()
        if not line:
            raise StandFailed(with_log(f"{system.name} did not start", log))
        found += re.findall(r"http://\S+", line)
    return found
