"""Where and with what a result is made: the machine, the commit, and the versions on the path of an event."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psycopg
import redis

from bench.results import Machine
from engine.embedded import Stores

_PACKAGES: Final = (
    "trio", "hypercorn", "quart-trio", "httptools", "msgspec", "redis", "hiredis", "psycopg", "asyncpg",
    "fastapi", "uvicorn", "uvloop", "sqlalchemy",
)  # fmt: skip


def machine() -> Machine:
    """The one that we are on."""
    page_bytes, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    return Machine(_processor(), len(os.sched_getaffinity(0)), round(page_bytes * pages / 2**30, 1), platform.release())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions(stores: Stores) -> dict[str, str]:
    """Of Python, the stores and the packages."""
    with psycopg.connect(stores.db_url) as connection, redis.Redis.from_url(stores.redis_url) as client:
        postgres = connection.info.parameter_status("server_version") or ""
        return {
            "Python": platform.python_version(),
            "Postgres": postgres,
            "Redis": str(client.info("server")["redis_version"]),
            **{name: version(name) for name in _PACKAGES},
        }


def commit(checkout: Path = Path()) -> tuple[str, bool]:
    """The commit that lies there, and whether anything was changed since; empty where there is no repository."""
    found = _git(checkout, "rev-parse", "HEAD")
    return found, bool(found and _git(checkout, "status", "--porcelain"))


def _git(checkout: Path, *arguments: str) -> str:
    try:
        told = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""
