"""Runs cells, several at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moe_placer.experiments.compare.cell import Cell
from moe_placer.experiments.compare.trajectory import no_seconds
from moe_placer.experiments.process import run_child
from moe_placer.workers import Engine, Workers, asked_to_stop, local_threads

__all__ = ["run_cells"]

Row = dict[str, Any]

_POLL_S = 0.1
_TRIES = 3  # of a cell whose worker dies
_LOST = {"status": "crashed", "reason": "the worker that ran it was killed again and again", "seconds": None}

CHILD = (sys.executable, "-P", "-m", "moe_placer.experiments.compare.run_process")
STEP = (sys.executable, "-P", "-m", "moe_placer.experiments.compare.step_process")


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    patience_s: float,
    most_bytes: float = float("inf"),
    stopped: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
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
    engine : Engine or None
        What starts the processes, on this or other machines, which must see the same files; None: threads here.
    """
    asked = _Asked(patience_s, most_bytes)
    with Workers[int, _Asked, Cell, Row | Stopped](_run_task, asked, engine or local_threads(jobs), _TRIES) as pool:
        for index in range(len(cells)):
            pool.put(index, partial(cells.__getitem__, index))
        while pool.pending and not stopped():
            for index, row in pool.take(_POLL_S):
                if not isinstance(row, Stopped):
                    yield row or cells[index].head() | _LOST


@dataclass(frozen=True)
class _Asked:
    patience_s: float
    most_bytes: float


class Stopped:
    """The result of a run that was ended on request, in place of a row."""


def _run_task(asked: _Asked, cell: Cell) -> Row | Stopped:
    return _run_cell(cell, asked.patience_s, asked.most_bytes, asked_to_stop) or Stopped()


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
