"""Measures a run in a process of its own, so that its peak memory is its own and a crash is one failed row."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_placer.experiments.bench.job import Job
from moe_placer.experiments.bench.process import run_child

__all__ = ["measure"]

CHILD = (sys.executable, "-P", "-m", "moe_placer.experiments.bench.child")
_PATIENCE = 3.0  # times the time limit, and a minute, before a run counts as hung


def measure(job: Job, child: Sequence[str] = CHILD, patience_s: float | None = None) -> dict[str, Any]:
    """Run a job and return its row; where it fails, dies or hangs, ``failed`` says so.

    Parameters
    ----------
    child : sequence of str
        Command that reads the job and writes the row.
    patience_s : float, optional
        Seconds after which the run is ended; absent: by its time limit.
    """
    begun, busy, own = time.monotonic(), _busy_s(), _children_s()
    patience = patience_s if patience_s is not None else _PATIENCE * job.time_limit_s + 60
    ended = run_child(child, json.dumps(asdict(job)), patience)
    row: dict[str, Any] = job.settings() | {"failed": ended.failed}
    if ended.output is not None:
        row = json.loads(ended.output)
    others = None
    if busy is not None:
        others = max(0.0, (_busy_s() or 0.0) - busy - (_children_s() - own)) / (time.monotonic() - begun)
    return row | {"all_processes_bytes": ended.all_processes_bytes, "cores_used_by_others": others}


def _busy_s() -> float | None:
    """Return processor seconds that the whole machine has spent; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        user, nice, system = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return None


def _children_s() -> float:
    """Return processor seconds of this process and of all that it has waited for."""
    return sum(os.times()[:4])
