"""The folder of the embedded stores, and the user who may enter it.

Owns paths, owners and modes, the programs' copies and their configuration. Knows no process and no protocol.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.resources
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.errors import EngineError

SOCKET_PATH_MAX: Final = 103  # 107 on Linux, 103 on macOS
SOCKET_NAME: Final = ".s.PGSQL.5432"  # the longest of them
ELSEWHERE: Final = Path("/var/lib")  # where root's stores go when their user can't reach HEADRACE_DATA

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Account:
    """The user whom the stores run as, when that is not ourselves."""

    name: str
    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Whether this user may pass to `path`, and enter or run it. The kernel is asked: it knows every rule."""
        command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(path)]
        return subprocess.run(command, cwd="/", check=False, **as_user(self)).returncode == 0


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of the stores: `postgres/` (data), `run/` (sockets), locks, configuration and logs."""

    path: Path
    run: Path
    account: Account | None


def as_user(account: Account | None) -> dict[str, Any]:
    """Arguments of `subprocess` to run as that user, with a mask that keeps files to it.

    In a session of its own: the terminal's Ctrl-C, and a signal to our process group, are for us alone.
    """
    own: dict[str, Any] = {"umask": 0o077, "start_new_session": True}
    if account is not None:
        own |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return own


def make_data_folder(data: Path) -> Path:
    """The data folder, made if it is missing. Raises `EngineError` if it can't be used."""
    try:
        if not data.is_dir():
            data.mkdir(parents=True)
            data.chmod(0o711 if os.geteuid() == 0 else 0o700)  # root's stores run as another user, who passes through
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(data))
    except OSError as error:
        raise _unusable(data, error) from error
    return data


def open_home(data: Path) -> Home:
    """The stores' folder below the data folder, made if it is missing. Raises `EngineError` if it can't be used."""
    account = _account_of(data / "stores" / "postgres") if os.geteuid() == 0 else None
    try:
        path = _home_path(data, account)
        run = _run_folder(path, account)
    except OSError as error:
        raise _unusable(data, error) from error
    return Home(path, run, account)


def _unusable(data: Path, error: OSError) -> EngineError:
    return EngineError(
        f"HEADRACE_DATA is {data}, and the embedded stores can't be kept there ({error.strerror}: "
        f"{error.filename}). Set HEADRACE_DATA to a folder of your own, or DB_URL and REDIS_URL."
    )


def _account_of(postgres_data: Path) -> Account:
    """Whom root runs the stores as: the owner of data that is there already, else `headrace`, else `nobody`."""
    names: list[str | int] = ["headrace", "nobody"]
    if postgres_data.exists() and postgres_data.stat().st_uid != 0:
        names.insert(0, postgres_data.stat().st_uid)
    for name in names:
        try:
            found = pwd.getpwuid(name) if isinstance(name, int) else pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_name, found.pw_uid, found.pw_gid)
    raise EngineError(
        "Postgres does not run as root, and there is no user `headrace` or `nobody` to run it as: "
        "make one (useradd --system headrace), start Headrace as an ordinary user, or set DB_URL and REDIS_URL."
    )


def _home_path(data: Path, account: Account | None) -> Path:
    """`stores` in the data folder; a link to a folder elsewhere, where their user can't reach the data folder."""
    home = data / "stores"
    if not home.exists() and not home.is_symlink():
        if account is None or account.reaches(data):
            home.mkdir()
        else:
            home.symlink_to(_elsewhere(data, account))
    home = home.resolve(strict=True)
    home.chmod(0o711 if account else 0o700)
    if account and not account.reaches(home):
        raise EngineError(_unreachable(home, account))
    return home


def _elsewhere(data: Path, account: Account) -> Path:
    try:
        place = Path(tempfile.mkdtemp(prefix="headrace-", dir=ELSEWHERE))
    except OSError as error:
        raise EngineError(_unreachable(data, account)) from error
    _log.warning("the user %s may not enter %s: the embedded stores are kept in %s", account.name, data, place)
    return place


def _unreachable(folder: Path, account: Account) -> str:
    return (
        f"Postgres does not run as root but as `{account.name}`, who may not enter {folder}. Set HEADRACE_DATA to a "
        f"folder that every user may pass to, start Headrace as an ordinary user, or set DB_URL and REDIS_URL."
    )


def _run_folder(home: Path, account: Account | None) -> Path:
    """Where the sockets are: `run`; a link to a folder with a shorter path, where that one is too long."""
    run = home / "run"
    if not run.exists():
        if len(os.fsencode(run / SOCKET_NAME)) <= SOCKET_PATH_MAX:
            run.mkdir()
        else:
            run.unlink(missing_ok=True)  # its target went with the temporary files of an earlier boot
            run.symlink_to(tempfile.mkdtemp(prefix="headrace-", dir=_short_folder(account)))
        if account:
            os.chown(run, account.uid, account.gid)
        run.chmod(0o700)
    run = run.resolve(strict=True)
    if run.stat().st_uid != (account.uid if account else os.geteuid()):
        raise EngineError(f"{run} should belong to the user of the embedded stores: remove {home / 'run'}.")
    return run


def _short_folder(account: Account | None) -> str:
    mine = tempfile.gettempdir()
    return mine if len(mine) < 64 and (account is None or account.reaches(Path(mine))) else "/tmp"  # noqa: S108


def within_reach(home: Home, distribution: str, program: Path, needed: list[str]) -> Path:
    """A program of an installed distribution, or a copy of it where the stores' user may run it.

    `needed` is what has to come along, below the same `site-packages`.
    """
    if home.account is None or home.account.reaches(program):
        return program
    site = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
    copy = home.path / "programs" / f"{distribution}-{importlib.metadata.version(distribution)}"
    if not copy.exists():
        _log.info("the user %s may not run %s: it is made reachable in %s", home.account.name, program, copy)
        half = copy.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        for name in needed:
            shutil.copytree(site / name, half / name, symlinks=True, copy_function=_link_or_copy)
        for path in (copy.parent, half, *half.rglob("*")):  # our own mask may have kept others out
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        half.rename(copy)
    return copy / program.relative_to(site)


def _link_or_copy(source: str, target: str) -> None:
    """A second name for the same file costs nothing; on another disk it has to be a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def configuration(home: Home, name: str, lines: list[str]) -> Path:
    """The shipped configuration and what only we know, written anew at each start."""
    shipped = importlib.resources.files("config").joinpath(name).read_text()
    return write_shared(home.path / name, shipped + "\n# Added by engine/embedded\n" + "\n".join(lines) + "\n")


def write_shared(path: Path, text: str) -> Path:
    """Write a file that the stores' user may read."""
    path.write_text(text)
    path.chmod(0o644)
    return path
