"""Runs cells, several at a time, each in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from threading import Event
from typing import Any

from moe_placer.bench.process import run_child
from moe_placer.compare.cell import Cell

__all__ = ["run_cells"]

Row = dict[str, Any]

CHILD = (sys.executable, "-P", "-m", "moe_placer.compare.child")


def run_cells(
    cells: Sequence[Cell], jobs: int, patience_s: float, most_bytes: float = float("inf")
) -> Generator[Row, None, None]:
    """Yield each cell's row as it ends; closing the iterator ends what still runs, without rows.

    Parameters
    ----------
    jobs : int
        Runs at a time.
    patience_s : float
        Seconds beyond its time limit after which a run counts as hung.
    most_bytes : float
        Memory of a run, all its processes together, beyond which it is ended.
    """
    stop = Event()
    with ThreadPoolExecutor(jobs, thread_name_prefix="cell") as pool:
        futures = [pool.submit(_run_cell, cell, patience_s, most_bytes, stop) for cell in cells]
        try:
            for future in as_completed(futures):
                row = future.result()
                if row is not None:
                    yield row
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _run_cell(cell: Cell, patience_s: float, most_bytes: float, stop: Event) -> Row | None:
    """Run a cell and return its row; None where it was stopped."""
    if stop.is_set():
        return None
    ended = run_child(CHILD, json.dumps(asdict(cell)), cell.time_limit_s + patience_s, stop, most_bytes)
    if ended.output is not None:
        row: Row = json.loads(ended.output)
        return row | {"peak_bytes": max(row["peak_bytes"], ended.all_processes_bytes or 0)}
    if stop.is_set():
        return None
    seconds = {"total": round(ended.seconds, 3), "first": None, "within_1_percent": None, "final": None}
    return cell.head() | {
        "status": "hung" if ended.hung else "crashed",
        "reason": ended.failed,
        "seconds": seconds,
        "peak_bytes": ended.all_processes_bytes,
    }
