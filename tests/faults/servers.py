"""A real Postgres and a real Redis that a fault can kill, freeze, fill up and bring back old.

Owns their processes, folders and ports. Each server is our own child on a loopback port, in a small file system of
its own where we may mount one, so that its disk can be filled. Knows no engine and no proxy.
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import redis
import trio

from bench.history import BYTES_A_ROW
from engine.embedded import postgres as embedded_postgres
from engine.embedded import redis as embedded_redis
from engine.embedded.home import Home, as_user
from tests.faults.parent import end_with_parent
from tests.faults.ports import own_port

START_SECONDS = 60.0
DISK_MB = 640  # of Postgres: 40 MB of cluster, rows, and log files of 16 MB, more of them with every promotion
REDIS_DISK_MB = 8
REDIS_MEMORY_MB = 64
ID_BYTES = 100  # of memory and of a saved copy, where Redis knows the ids of a history


class Disk:
    """A folder that can be full: a small tmpfs where we may mount one."""

    def __init__(self, path: Path, megabytes: int, home: Home) -> None:
        self.path = path
        path.mkdir(parents=True)
        options = f"size={megabytes}m,mode=0711"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        self.is_small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if home.account:
            os.chown(path, home.account.uid, home.account.gid)

    def fill(self) -> None:
        """Leave no room."""
        assert self.is_small, "a disk can be filled only where a tmpfs can be mounted"
        with open(self.path / "balloon", "wb") as balloon:
            try:
                while True:
                    balloon.write(bytes(1 << 16))
                    balloon.flush()
            except OSError:
                pass

    def empty(self) -> None:
        """Make room again."""
        (self.path / "balloon").unlink(missing_ok=True)

    def remove(self) -> None:
        """Give the file system back."""
        if self.is_small:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        shutil.rmtree(self.path, ignore_errors=True)


class Server:
    """A child process on a port."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self._log = folder.with_suffix(".log")
        self.port = own_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it takes a client."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    async def start(self) -> None:
        """Start it unless it runs, again and again until it answers: a dead one may leave children for a moment."""
        deadline = trio.current_time() + START_SECONDS
        while True:
            if not self.alive:
                self._launch()
            if await trio.to_thread.run_sync(self.answers):
                return
            assert trio.current_time() < deadline, f"{self.folder} did not start; see its log"
            await trio.sleep(0.05)

    def _launch(self) -> None:
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C"}, **as_user(self.home.account),
                preexec_fn=end_with_parent,  # (one system call: safe after a fork, be there threads or not)
            )  # fmt: skip

    def send_signal(self, sign: signal.Signals) -> None:
        """Send its process a signal."""
        assert self.process is not None
        self.process.send_signal(sign)

    @property
    def frozen(self) -> bool:
        """Whether its process is stopped, and not merely told to be."""
        assert self.process is not None
        return is_frozen(self.process.pid)

    def log_end(self) -> int:
        """Where its log ends now: what a fault makes it say comes after that."""
        return self._log.stat().st_size

    def said(self, text: str, since: int) -> bool:
        """Whether its log has this text after `since`."""
        with open(self._log, "rb") as log:
            log.seek(since)
            return text.encode() in log.read()

    async def stop(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal and wait for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(sign)
            if sign is signal.SIGKILL:
                self.process.send_signal(signal.SIGCONT)
            await trio.to_thread.run_sync(self.process.wait)


class PostgresServer(Server):
    """One Postgres; `url` as its superuser. It has room for so many rows more than a seed's load needs."""

    def __init__(self, home: Home, folder: Path, rows: int = 0) -> None:
        self.disk = Disk(folder, DISK_MB + (rows * BYTES_A_ROW >> 20), home)
        super().__init__(home, folder)
        self.programs = embedded_postgres.programs(home)
        self.data = folder / "data"
        embedded_postgres.make_data(home, self.programs / "initdb", self.data)
        self._configuration = folder.with_suffix(".conf")
        self._configure()
        self.url = f"postgresql://headrace@127.0.0.1:{self.port}/postgres"

    def _configure(self) -> None:
        access = self.folder.with_suffix(".hba")
        access.write_text("host all all 127.0.0.1/32 trust\n")
        lines = [
            f"port = {self.port}", "listen_addresses = '127.0.0.1'", "unix_socket_directories = ''",
            f"hba_file = '{access}'", "shared_buffers = 64MB", "min_wal_size = 80MB", "max_wal_size = 96MB",
            "max_connections = 60", "wal_keep_size = 0",
            "log_min_messages = error",  # what is refused is the proof that a fault has happened
            "include_if_exists = 'postgresql.auto.conf'",
        ]  # fmt: skip
        shipped = importlib.resources.files("config").joinpath("postgres.conf").read_text()
        self._configuration.write_text(shipped + "\n".join(lines) + "\n")
        for path in (access, self._configuration):
            path.chmod(0o644)

    def command(self) -> list[str]:
        """Postgres in the foreground."""
        return [str(self.programs / "postgres"), "-D", str(self.data), "-c", f"config_file={self._configuration}"]

    def answers(self) -> bool:
        """Whether it takes a session."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def do(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement as superuser."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def configure(self, name: str, value: str | None) -> None:
        """Change a setting of the running server (None: its default again)."""
        self.do(f"ALTER SYSTEM SET {name} = {value}" if value is not None else f"ALTER SYSTEM RESET {name}")
        self.do("SELECT pg_reload_conf()")

    def become_standby(self) -> None:
        """It is one after its next start, until it is promoted."""
        mark = self.data / "standby.signal"
        mark.touch()
        if self.home.account:
            os.chown(mark, self.home.account.uid, self.home.account.gid)

    def kill_backend(self, pid: int, sign: signal.Signals) -> None:
        """Signal one backend; it may have ended meanwhile."""
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


class RedisServer(Server):
    """One Redis; `client()` talks to it past every proxy. It has room for so many ids more than a seed's load needs."""

    def __init__(self, home: Home, folder: Path, ids: int = 0) -> None:
        self.disk = Disk(folder, REDIS_DISK_MB + (ids * ID_BYTES >> 20), home)
        self.memory = f"{REDIS_MEMORY_MB + (ids * ID_BYTES >> 20)}mb"  # its `maxmemory`
        super().__init__(home, folder)
        self._program = str(embedded_redis.program(home))
        self._configuration = folder.with_suffix(".conf")
        shipped = importlib.resources.files("config").joinpath("redis.conf").read_text()
        lines = [
            f"port {self.port}", "bind 127.0.0.1", "daemonize no", f'dir "{folder}"', f"maxmemory {self.memory}",
            "repl-diskless-sync-delay 0", "repl-ping-replica-period 1",
        ]  # fmt: skip
        self._configuration.write_text(shipped + "\n".join(lines) + "\n")
        self._configuration.chmod(0o644)

    def command(self) -> list[str]:
        """Redis in the foreground."""
        return [self._program, str(self._configuration)]

    def client(self) -> redis.Redis:
        """A client of one's own."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5)

    def do(self, *command: Any) -> Any:
        """Run one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def refusals(self, code: str) -> int:
        """How often it has refused a command with this error since it was started."""
        told: Any = self.do("INFO", "errorstats")
        return int(told.get(f"errorstat_{code}", {}).get("count", 0))

    def answers(self) -> bool:
        """Whether it takes commands."""
        try:
            return bool(self.do("PING"))
        except (redis.RedisError, OSError):
            return False

    @property
    def dump(self) -> Path:
        """The file that a start reads back."""
        return self.folder / "dump.rdb"


def is_frozen(pid: int) -> bool:
    """Whether this process has stopped on a signal."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] == "T"
