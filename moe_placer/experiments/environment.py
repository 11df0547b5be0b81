"""The environment of runs: the machine, the versions, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_placer.solve.registry import installed_version

__all__ = ["describe_environment", "environment_in_words"]

PACKAGES = ("moe-placer", "numpy", "scipy", "ortools", "networkx")


def describe_environment() -> dict[str, Any]:
    """Describe machine and software, without names of hosts, users or folders."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
    }


def environment_in_words(environment: Mapping[str, Any]) -> str:
    """Say what `describe_environment` found, the date excepted, as reports do."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['memory_gb']} GB, {environment['system']}, "
        f"Python {environment['python']}, {versions}; commit {environment['commit'] or 'unknown'}"
    )


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory_gb() -> float | None:
    with suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return None


def _commit() -> str | None:
    """Return the commit of the running code, marked where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return run.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no", ".", "..", "../../solvers")
        return git("rev-parse", "HEAD") + (" and changes" if changed else "")
    return None
