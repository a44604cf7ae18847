"""The embedded stores: started once, found again after a crash, stopped by the last who uses them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
import redis

from config.settings import Settings
from engine.embedded import Stores, open_stores
from engine.embedded.daemon import _listener, lock_file, locked
from engine.embedded.home import SOCKET_NAME
from engine.embedded.machine_memory import machine_memory
from engine.errors import EngineError

pytestmark = pytest.mark.stores

HOLD = """
import sys
from config.settings import Settings
from engine.embedded import open_stores
with open_stores(Settings(data=sys.argv[1])) as stores:
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(data_folder: Path) -> Settings:
    """Settings with embedded stores in an empty folder."""
    return Settings(data=str(data_folder))


class Holder:
    """Another process that uses the stores of a data folder, until it is killed or told to leave."""

    def __init__(self, data_folder: Path) -> None:
        command = [sys.executable, "-c", HOLD, str(data_folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.communicate()

    def leave(self) -> None:
        """A clean end."""
        self.process.communicate()
        assert self.process.returncode == 0


def run_folder(settings: Settings) -> Path:
    """Where the sockets are."""
    return (settings.data_path / "stores" / "run").resolve()


def pids(settings: Settings) -> tuple[int, int]:
    """The processes of Postgres and Redis; 0 where nobody listens."""
    return _pid(run_folder(settings) / SOCKET_NAME), _pid(run_folder(settings) / "redis.sock")


def _pid(path: Path) -> int:
    try:
        return _listener(path)
    except OSError:
        return 0


def both_answer(stores: Stores) -> bool:
    """Whether both stores do what they are asked."""
    with psycopg.connect(stores.db_url) as connection, redis.Redis.from_url(stores.redis_url) as client:
        return connection.execute("SELECT 1").fetchone() == (1,) and bool(client.ping())


def test_a_clean_stop_stops_them(settings: Settings) -> None:
    """The stores answer inside the context and are gone after it, and what was committed is there the next time."""
    with open_stores(settings) as stores:
        assert both_answer(stores)
        with psycopg.connect(stores.db_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    assert pids(settings) == (0, 0)
    with open_stores(settings) as again, psycopg.connect(again.db_url) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


def test_found_again_after_kill_9(settings: Settings, data_folder: Path) -> None:
    """Stores outlive the kill -9 of the process that started them; the next one finds them, and stops them."""
    holder = Holder(data_folder)
    before = pids(settings)
    holder.kill()
    with open_stores(settings) as stores:
        assert both_answer(stores)
        assert pids(settings) == before
    assert pids(settings) == (0, 0)


def test_an_interrupted_start_leaves_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes when Postgres has begun and does not listen yet: it is waited for, and stopped."""
    asked = 0

    def answers(_: str) -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:  # the first time it had not been started
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr("engine.embedded.postgres._answers", answers)
    with pytest.raises(KeyboardInterrupt), open_stores(settings):
        pass
    monkeypatch.undo()

    with lock_file(settings.data_path / "stores" / "postgres.lock") as lock:
        assert locked(lock), "no process of Postgres holds it"


def test_the_last_one_out_stops_them(settings: Settings, data_folder: Path) -> None:
    """Two users share the stores, and the one who started them may leave first."""
    holder = Holder(data_folder)
    with open_stores(settings) as stores:
        holder.leave()
        assert both_answer(stores)
    assert pids(settings) == (0, 0)


def test_started_once_by_two_at_once(settings: Settings, data_folder: Path) -> None:
    """Two processes that start at the same moment end up with the same stores."""
    command = [sys.executable, "-c", HOLD, str(data_folder)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    assert 0 not in pids(settings)
    for process in both:
        process.communicate()
        assert process.returncode == 0
    assert pids(settings) == (0, 0)


def test_ctrl_c_at_the_terminal_spares_them(settings: Settings) -> None:
    """The stores live in sessions of their own, so the terminal's signals don't reach them."""
    with open_stores(settings):
        for pid in pids(settings):
            assert os.getsid(pid) != os.getsid(0)


def test_nothing_is_open_to_other_users(settings: Settings) -> None:
    """Of all files, other users may read at most the configuration; whoever may open a lock could hold it."""
    with open_stores(settings):
        home = settings.data_path / "stores"
        public = {path.name for path in home.iterdir() if path.is_file() and path.stat().st_mode & 0o077}
        assert public == {"pg_hba.conf", "pg_ident.conf", "postgres.conf", "redis.conf"}
        assert (home / "postgres").stat().st_mode & 0o077 == 0
        assert (home / "run").stat().st_mode & 0o077 == 0


def test_no_tcp_port(settings: Settings) -> None:
    """Neither store listens on TCP."""
    with open_stores(settings) as stores:
        with psycopg.connect(stores.db_url) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        with redis.Redis.from_url(stores.redis_url) as client:
            assert client.config_get("port") == {"port": "0"}
        assert (run_folder(settings).stat().st_mode & 0o777) == 0o700


def test_both_are_safe(settings: Settings) -> None:
    """What a 200 relies on is on, and Redis never evicts."""
    with open_stores(settings) as stores:
        with psycopg.connect(stores.db_url) as connection:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                assert connection.execute(f"SHOW {name}").fetchone() == ("on",)
        with redis.Redis.from_url(stores.redis_url) as client:
            assert client.config_get("maxmemory-policy", "maxmemory", "save", "hash-max-listpack-entries") == {
                "maxmemory-policy": "noeviction",
                "maxmemory": str(machine_memory().redis_mb() << 20),
                "save": "",
                "hash-max-listpack-entries": "16",
            }


def test_stores_get_the_memory_that_settings_name(data_folder: Path) -> None:
    """To the byte."""
    with (
        open_stores(Settings(data=str(data_folder), redis_memory_mb=77, postgres_memory_mb=33)) as stores,
        redis.Redis.from_url(stores.redis_url) as client,
        psycopg.connect(stores.db_url) as connection,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": str(77 << 20)}
        assert connection.execute("SHOW shared_buffers").fetchone() == ("33MB",)


def test_how_much_memory_stores_get_of_themselves_is_told_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the next engine, which finds them running."""
    caplog.set_level(logging.INFO)
    with open_stores(settings), open_stores(settings):
        told = [message for message in caplog.messages if "a quarter of the " in message]
    memory = machine_memory()
    assert [message.split(" of ")[0].split(":")[0] for message in told] == [
        f"the embedded Postgres gets {memory.postgres_mb():,} MB", f"the embedded Redis gets {memory.redis_mb():,} MB"
    ]  # fmt: skip


def test_after_a_machine_crash(settings: Settings) -> None:
    """Pid files and sockets of dead stores are left over, and the pid is another program's by now."""
    with open_stores(settings):
        pass
    run = run_folder(settings)
    stale = f"{os.getpid()}\n{settings.data_path}/stores/postgres\n1700000000\n5432\n{run}\n\n  1 1\nready   \n"
    (settings.data_path / "stores" / "postgres" / "postmaster.pid").write_text(stale)
    (run / f"{SOCKET_NAME}.lock").write_text(stale)
    for name in (SOCKET_NAME, "redis.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run / name))
    with open_stores(settings) as stores:
        assert both_answer(stores)


def test_postgres_was_killed(settings: Settings, data_folder: Path) -> None:
    """Postgres dies without a word while nobody looks; the next start recovers it beside the Redis that lives on."""
    holder = Holder(data_folder)
    postgres, redis_before = pids(settings)
    os.kill(postgres, signal.SIGKILL)
    holder.kill()
    with open_stores(settings) as stores:
        assert both_answer(stores)
        assert pids(settings)[1] == redis_before


def test_half_made_data_is_made_again(settings: Settings, data_folder: Path) -> None:
    """What a killed `initdb` left is no obstacle."""
    half = data_folder / "stores" / "postgres.part"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with open_stores(settings) as stores:
        assert both_answer(stores)


def test_deep_data_folder(data_folder: Path) -> None:
    """Sockets have a short path, however long that of the data is, and are found again; odd letters are no obstacle."""
    deep = data_folder / ("deep 'and odd " * 6) / "data"
    deep.mkdir(parents=True)
    settings = Settings(data=str(deep))
    holder = Holder(deep)
    before = pids(settings)
    holder.kill()
    with open_stores(settings) as stores:
        assert both_answer(stores)
        assert pids(settings) == before
        folder = Path(unquote(urlsplit(stores.db_url).query.removeprefix("host=")))
        assert folder == run_folder(settings)
    shutil.rmtree(folder)


def test_urls_given_start_nothing(data_folder: Path) -> None:
    """With both URLs set, nothing is started and no folder is made."""
    settings = Settings(db_url="postgresql://db", redis_url="redis://cache", data=str(data_folder / "none"))
    with open_stores(settings) as stores:
        assert stores == Stores("postgresql://db", "redis://cache")
    assert not (data_folder / "none").exists()


def test_one_url_given_starts_the_other(data_folder: Path) -> None:
    """Each store without a URL is embedded, by itself."""
    settings = Settings(db_url="postgresql://db", data=str(data_folder))
    with open_stores(settings) as stores:
        assert stores.db_url == "postgresql://db"
        with redis.Redis.from_url(stores.redis_url) as client:
            assert client.ping()
    assert not (data_folder / "stores" / "postgres").exists()


def test_data_of_another_major_version(settings: Settings, data_folder: Path) -> None:
    """Data of another Postgres is refused in a sentence, and left alone."""
    with open_stores(settings):
        pass
    (data_folder / "stores" / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EngineError, match="made by Postgres 17, this is 18"), open_stores(settings):
        pass


def test_a_store_that_cannot_start_says_why(settings: Settings, data_folder: Path) -> None:
    """The error carries the end of the store's log."""
    with open_stores(settings):
        pass
    (data_folder / "stores" / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EngineError, match=r"postgres could not start.*\n(.*\n)*.*pg_control"), open_stores(settings):
        pass
    assert pids(settings) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's stores run as another user")
class TestAsRoot:
    def test_a_folder_that_their_user_cannot_reach(
        self, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stores are then kept elsewhere, behind a link, and are found there again."""
        monkeypatch.setattr("engine.embedded.home.ELSEWHERE", data_folder)
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o700)
        settings = Settings(data=str(locked / "data"))
        with open_stores(settings) as stores:
            assert both_answer(stores)
        place = (locked / "data" / "stores").resolve()
        assert place.parent == data_folder
        with open_stores(settings) as stores:
            assert both_answer(stores)
        assert (locked / "data" / "stores").resolve() == place

    def test_nowhere_to_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a place elsewhere, one sentence says what to do."""
        monkeypatch.setattr("engine.embedded.home.ELSEWHERE", tmp_path / "missing")
        tmp_path.chmod(0o700)
        settings = Settings(data=str(tmp_path / "data"))
        with pytest.raises(EngineError, match=r"may not enter.*Set HEADRACE_DATA to a folder"), open_stores(settings):
            pass

    def test_programs_out_of_reach_are_copied(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        """Programs below a folder that only root may enter are copied to where their user may run them."""
        monkeypatch.setattr("engine.embedded.home.Account.reaches", lambda _, path: "site-packages" not in path.parts)
        with open_stores(settings) as stores:
            assert both_answer(stores)
            for pid in pids(settings):
                assert str(settings.data_path) in str(Path(f"/proc/{pid}/exe").readlink())

    def test_they_do_not_run_as_root(self, settings: Settings) -> None:
        """Postgres refuses root, and Redis has no use for it."""
        with open_stores(settings):
            for pid in pids(settings):
                assert Path(f"/proc/{pid}").stat().st_uid != 0
