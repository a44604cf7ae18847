"""Children that end with their parent, and signals that end it cleanly: a killed run leaves no server behind.

Owns how processes of the harness die, and the folders that a killed one could not remove. Knows no world.
"""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "headrace-faults-"
_ALIVE = "alive"  # locked in a folder for as long as its owner lives
_PR_SET_PDEATHSIG = 1
# Loaded here, because between fork and exec nothing may be looked for.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent(sign: signal.Signals = signal.SIGKILL) -> None:
    """Called in a child: the kernel sends it this signal as soon as its parent has ended, however that was.

    Elsewhere than on Linux a run that is killed leaves its children behind; one that is told to stop does not.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, sign)


def stop_as_if_interrupted() -> None:
    """SIGTERM ends this process as Ctrl-C does: trio unwinds, so servers are stopped and disks unmounted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started to ignore it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for a world, removed at the end; what killed worlds have left is removed first."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o711)
    with open(folder / "made", "w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        (folder / "made").rename(folder / _ALIVE)  # not before it is locked: others would sweep it
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Unmount and remove the folders whose owners have ended; a folder without its lock is being made."""
    for mark in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_ALIVE}"):
        try:
            with open(mark) as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for disk in mark.parent.iterdir():
                    if disk.is_mount():
                        subprocess.run(["umount", "--lazy", str(disk)], check=False)
                shutil.rmtree(mark.parent, ignore_errors=True)
        except OSError:
            continue  # its owner lives, or somebody else sweeps it
