"""How much memory there is for embedded stores that nobody gave a size.

Owns their shares, and where the kernel says what this process may use. Knows no store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_MB: Final = 1 << 20
# A quarter for Redis, one for Postgres, one for the engines, and one for the page cache.
SHARE: Final = 4
# At full rate (110,000 new ids a second) it holds the ids of 3 to 20 s, and less is soon full of users.
REDIS_MB_MIN: Final = 256
POSTGRES_MB_MIN: Final = 128  # its own default
# Every session maps what it touches, page by page: of 8 GB, 16 MB of page tables each.
POSTGRES_MB_MAX: Final = 8_192


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Memory that this process and its children may use."""

    bytes: int
    limited: bool  # by a cgroup to less than the machine has

    def redis_mb(self) -> int:
        """What of it an embedded Redis gets."""
        return max(REDIS_MB_MIN, self.bytes // SHARE // _MB)

    def postgres_mb(self) -> int:
        """What of it an embedded Postgres gets."""
        return min(max(POSTGRES_MB_MIN, self.bytes // SHARE // _MB), POSTGRES_MB_MAX)

    def __str__(self) -> str:
        return f"{self.bytes // _MB:,} MB " + ("that the cgroup allows" if self.limited else "of this machine")


def machine_memory(machine_bytes: int | None = None, root: Path = Path("/")) -> MachineMemory:
    """The machine's memory, or what the cgroup allows where that is less.

    `machine_bytes` is the machine's; without it the kernel is asked. `root` is where `proc` and `sys` lie.
    """
    has_bytes = _physical_bytes() if machine_bytes is None else machine_bytes
    allowed_bytes = min(_limits(root), default=has_bytes)
    return MachineMemory(min(has_bytes, allowed_bytes), limited=allowed_bytes < has_bytes)


def _physical_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):  # a platform that does not say so
        return 0


def _limits(root: Path) -> list[int]:
    """Every limit of this process's cgroup and those above it, in bytes; of either version, or of both."""
    mounts = root / "sys" / "fs" / "cgroup"
    limits = []
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _on_the_way(mounts, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _on_the_way(mounts / "memory", path, "memory.limit_in_bytes")
    return limits


def _on_the_way(mount: Path, path: str, name: str) -> list[int]:
    """The limits in this folder of a mount and in all above it, those that are there.

    (In a container the path may be the host's and the mount the container's own cgroup: then only the mount's is.)
    """
    own = PurePosixPath(path.lstrip("/"))
    texts = [_text(mount / each / name).strip() for each in (own, *own.parents) if ".." not in each.parts]
    return [int(text) for text in texts if text.isdecimal()]  # "max" is none


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
