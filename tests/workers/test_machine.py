"""What the machine has left for us."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from moe_placer.workers import available_memory

MEMINFO = "MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 64 kB\n"


@pytest.fixture(autouse=True)
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def write(system: Path, **files: str) -> Path:
    for name, content in files.items():
        file = system / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return system


def group(system: Path, folder: str, **files: str) -> None:
    for name, content in files.items():
        file = system / "sys/fs/cgroup" / folder / f"memory.{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def test_what_the_machine_can_free_is_available(tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, proc__meminfo=MEMINFO)) == 64 * 1024


def test_a_control_group_and_those_above_it_limit(tmp_path: Path) -> None:
    system = write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/jobs/one\n")
    group(system, "", max="max", current="9")
    group(system, "jobs", max="30000", current="10000", stat="anon 5\ninactive_file 4000\n")
    group(system, "jobs/one", max="max", current="8000")
    assert available_memory(system) == 24_000
    group(system, "jobs/one", max="20000")
    assert available_memory(system) == 12_000
    group(system, "jobs/one", max="7000")  # was lowered below what is used
    assert available_memory(system) == 0


def test_a_group_of_the_first_version_limits(tmp_path: Path) -> None:
    """In a container its path is that of the host, and the limit is found at the root."""
    system = write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="3:cpu:/x\n2:memory:/docker/x\n0::/\n")
    group(system, "memory", limit_in_bytes="5000", usage_in_bytes="2000", stat="total_inactive_file 100\n")
    assert available_memory(system) == 3_100


def test_a_limit_of_addresses_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = write(tmp_path, proc__meminfo=MEMINFO, proc__self__statm="3 2 1 0 0 0 0\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (50_000, resource.RLIM_INFINITY))
    assert available_memory(system) == 50_000 - 3 * resource.getpagesize()


def test_a_system_that_tells_nothing_has_what_it_has(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 1e6
    assert 1e6 < available_memory() <= available_memory(tmp_path)
