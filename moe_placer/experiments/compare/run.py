"""Runs cells, several at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from moe_placer.experiments.compare.cell import Cell
from moe_placer.experiments.compare.trajectory import no_seconds
from moe_placer.experiments.process import run_child

__all__ = ["run_cells"]

Row = dict[str, Any]

_POLL_S = 0.1

CHILD = (sys.executable, "-P", "-m", "moe_placer.experiments.compare.run_process")
STEP = (sys.executable, "-P", "-m", "moe_placer.experiments.compare.step_process")


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    patience_s: float,
    most_bytes: float = float("inf"),
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Row, None, None]:
    """Yield each cell's row as it ends; closing the iterator ends what still runs, without rows.

    Parameters
    ----------
    cells : sequence of Cell
        Instance, solver and seed of each run.
    jobs : int
        Runs at a time.
    patience_s : float
        Seconds beyond its time limit after which a run counts as hung.
    most_bytes : float
        Memory of a run, all its processes together, beyond which it is ended.
    stopped : callable
        Asked now and then; once it says True, what still runs is ended, and the iterator with it.
    """
    closed = Event()

    def over() -> bool:
        return closed.is_set() or stopped()

    with ThreadPoolExecutor(jobs, thread_name_prefix="cell") as pool:
        pending = {pool.submit(_run_cell, cell, patience_s, most_bytes, over) for cell in cells}
        try:
            while pending and not stopped():
                done, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
                for future in done:
                    if (row := future.result()) is not None:
                        yield row
        finally:
            closed.set()
            pool.shutdown(cancel_futures=True)


def _run_cell(cell: Cell, patience_s: float, most_bytes: float, stopped: Callable[[], bool]) -> Row | None:
    """Run a cell and return its row; None where it was stopped."""
    if stopped():
        return None
    busy = _busy_s()
    ended = run_child(CHILD, json.dumps(asdict(cell)), cell.time_limit_s + patience_s, stopped, most_bytes)
    if ended.output is not None:
        row: Row = json.loads(ended.output)
        row["cores_used_by_others"] = _others(busy, row.pop("cpu_s"), ended.seconds)
        row["peak_bytes"] = max(row["peak_bytes"], ended.all_processes_bytes or 0)
        if row["status"] == "ok":
            _predict_step(cell, row, patience_s, stopped, most_bytes)
        return None if stopped() else row
    if stopped():
        return None
    return cell.head() | {
        "status": "hung" if ended.hung else "crashed",
        "reason": ended.failed,
        "seconds": no_seconds(ended.seconds),
        "peak_bytes": ended.all_processes_bytes,
    }


def _predict_step(cell: Cell, row: Row, patience_s: float, stopped: Callable[[], bool], most_bytes: float) -> None:
    """Fill in each traffic's ``step_us``; it stays None where the simulation outlasts patience or memory."""
    ended = run_child(STEP, json.dumps({"cell": asdict(cell), "gpu": row["gpu"]}), patience_s, stopped, most_bytes)
    if ended.output is None:
        return
    for name, step_us in json.loads(ended.output).items():
        if row["traffic"][name] is not None:
            row["traffic"][name]["step_us"] = step_us


def _others(busy_s: float | None, own_s: float, seconds: float) -> float | None:
    """Return the cores that anything but the run took meanwhile; None where the system does not tell."""
    now_s = _busy_s()
    return None if busy_s is None or now_s is None else round(max(0.0, now_s - busy_s - own_s) / seconds, 2)


def _busy_s() -> float | None:
    """Return processor seconds that the whole machine has spent; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        user, nice, system = map(int, Path("/proc/stat").read_text(encoding="utf-8").split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return None
