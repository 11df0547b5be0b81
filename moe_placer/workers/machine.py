"""Cores and memory that this process may use."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory", "usable_cores"]


def usable_cores() -> int:
    """Count the cores that this process may use: more workers than these only take memory and time to start."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(system: Path = Path("/")) -> float:
    """Return the bytes that can still be taken without swapping: what machine, control groups and `ulimit -v` leave.

    Where the system does not tell what is free, it is all that the machine has; where not even that, infinity.

    Parameters
    ----------
    system : Path
        Folder that has ``proc`` and ``sys``.
    """
    left = [*_left_on_machine(system), *_left_in_groups(system), *_left_of_addresses(system)]
    return max(0.0, min(left, default=float("inf")))


def _left_on_machine(system: Path) -> Iterator[float]:
    with suppress(OSError, ValueError, IndexError):
        for line in (system / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024.0 * int(line.split()[1])
                return
    with suppress(OSError, ValueError):
        yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _left_in_groups(system: Path) -> Iterator[float]:
    """Yield what each control group that this process is in leaves (Linux, versions 1 and 2)."""
    with suppress(OSError, ValueError):
        for line in (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in {"", "memory"}:
                continue
            root = system / "sys/fs/cgroup" / kinds
            limit, used = ("limit_in_bytes", "usage_in_bytes") if kinds else ("max", "current")
            below = root / path.lstrip("/")
            for group in (below, *below.parents):
                with suppress(OSError, ValueError):  # "max" is no limit
                    most = int((group / f"memory.{limit}").read_text(encoding="ascii"))
                    taken = int((group / f"memory.{used}").read_text(encoding="ascii"))
                    yield float(most - taken + _cache_of(group))
                if group == root:
                    break


def _cache_of(group: Path) -> int:
    """Return the bytes of files that a group keeps only while nobody needs the memory."""
    with suppress(OSError, ValueError):
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in {"inactive_file", "total_inactive_file"}:
                return int(value)
    return 0


def _left_of_addresses(system: Path) -> Iterator[float]:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, IndexError):
            pages = int((system / "proc/self/statm").read_text(encoding="ascii").split()[0])
            yield float(most - pages * os.sysconf("SC_PAGE_SIZE"))
