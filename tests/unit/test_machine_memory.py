"""How much memory an embedded Redis gets that nobody gave a size: kernels made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.embedded.machine_memory import MachineMemory, machine_memory

MB = 1 << 20
MACHINE = 16_384 * MB
UNLIMITED = "9223372036854771712"  # as version 1 says it


def kernel(root: Path, cgroup: str, limits: dict[str, str]) -> MachineMemory:
    """What is found when `/proc/self/cgroup` and files under `/sys/fs/cgroup` say this, on a machine of 16 GB."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in limits.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return machine_memory(MACHINE, root)


def test_without_a_cgroup_it_is_the_machines(tmp_path: Path) -> None:
    """MacOS has none."""
    assert machine_memory(MACHINE, tmp_path) == MachineMemory(MACHINE, limited=False)


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        pytest.param("0::/user.slice/a", {"user.slice/a/memory.max": str(512 * MB)}, id="version 2"),
        pytest.param("0::/user.slice/a", {"user.slice/memory.max": str(512 * MB)}, id="version 2, the parent's"),
        pytest.param("0::/", {"memory.max": str(512 * MB)}, id="version 2, in a container"),
        pytest.param("4:memory:/a/b", {"memory/a/b/memory.limit_in_bytes": str(512 * MB)}, id="version 1"),
        pytest.param("4:cpu,memory:/a/b", {"memory/a/memory.limit_in_bytes": str(512 * MB)}, id="1, the parent's"),
        pytest.param("4:memory:/docker/7f", {"memory/memory.limit_in_bytes": str(512 * MB)}, id="1, in a container"),
        pytest.param(
            "4:memory:/a\n1:cpu:/\n0::/b",
            {"memory/a/memory.limit_in_bytes": str(512 * MB), "b/memory.max": "max"},
            id="both versions",
        ),
        pytest.param(
            "0::/a/b",
            {"a/b/memory.max": str(4_096 * MB), "a/memory.max": str(512 * MB)},
            id="the parent's is less",
        ),
        pytest.param("0::/../a", {"memory.max": str(512 * MB)}, id="a path out of the container"),
    ],
)
def test_a_limit_of_a_cgroup_goes_before_the_machine(tmp_path: Path, cgroup: str, limits: dict[str, str]) -> None:
    """Of its own, and of those above it: the least."""
    assert kernel(tmp_path, cgroup, limits) == MachineMemory(512 * MB, limited=True)


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        pytest.param("0::/a", {"a/memory.max": "max"}, id="version 2"),
        pytest.param("4:memory:/a", {"memory/a/memory.limit_in_bytes": UNLIMITED}, id="version 1"),
        pytest.param("0::/a", {"a/memory.max": str(MACHINE)}, id="as much as there is"),
        pytest.param("0::/a", {}, id="no memory controller"),
        pytest.param("3:cpu:/a", {"memory/a/memory.limit_in_bytes": str(512 * MB)}, id="another controller's"),
        pytest.param("0::/a", {"a/memory.max": "soon"}, id="not a number"),
    ],
)
def test_no_limit_is_none(tmp_path: Path, cgroup: str, limits: dict[str, str]) -> None:
    """Then it is the machine's."""
    assert kernel(tmp_path, cgroup, limits) == MachineMemory(MACHINE, limited=False)


def test_each_store_gets_a_quarter() -> None:
    """In whole megabytes."""
    memory = MachineMemory(2_050 * MB, limited=True)
    assert memory.redis_mb() == memory.postgres_mb() == 512


@pytest.mark.parametrize("machine_mb", [0, 512, 1_024])
def test_redis_gets_256_mb_at_least(machine_mb: int) -> None:
    """Where a quarter is less, and where nobody says how much there is."""
    assert MachineMemory(machine_mb * MB, limited=False).redis_mb() == 256


@pytest.mark.parametrize(("machine_mb", "postgres_mb"), [(0, 128), (500, 128), (32_768, 8_192), (65_536, 8_192)])
def test_postgres_gets_between_128_mb_and_8_gb(machine_mb: int, postgres_mb: int) -> None:
    """Where a quarter is less, or more."""
    assert MachineMemory(machine_mb * MB, limited=False).postgres_mb() == postgres_mb


def test_this_machine_says_how_much_it_has() -> None:
    """Linux and macOS do."""
    assert machine_memory().bytes > 64 * MB
