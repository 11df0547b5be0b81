"""What ``moe-placer compare`` does, as a function."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from moe_placer.experiments.compare.matrix import Matrix
from moe_placer.experiments.compare.row_store import Folder
from moe_placer.experiments.compare.run import run_cells
from moe_placer.experiments.environment import describe_environment
from moe_placer.workers import find_engine

__all__ = ["compare"]

Row = dict[str, Any]


def compare(
    matrix: Matrix,
    output: str | Path,
    *,
    question: str | None = None,
    jobs: int = 1,
    patience_s: float = 60.0,
    most_bytes: float = math.inf,
    tell: Callable[[int, int, Row | None], None] = lambda _done, _runs, _row: None,
    stopped: Callable[[], bool] = lambda: False,
    executor: str | None = None,
) -> Folder:
    """Run every solver on every instance with every seed, each in a process of its own, and keep a row of each.

    Parameters
    ----------
    matrix : Matrix
        What to run, as `build_matrix` makes it.
    output : path
        Folder of config.json, environment.json and results.jsonl; runs that have a row there are not repeated.
    question : str, optional
        What the comparison is to answer.
    jobs : int
        Runs at a time.
    patience_s : float
        Seconds beyond its time limit after which a run counts as hung.
    most_bytes : float
        Memory of a run, with all its processes, beyond which it is ended.
    tell : callable
        Called before the first run and after each, with the number of rows, of runs in all, and the new row.
    stopped : callable
        Asked now and then; once it says True, what runs is ended, without rows.

    executor : str, optional
        What starts the runs, as ``--executor``; absent: this process, ``jobs`` at a time. With ``shard:I/N`` rows go to
        a file of their own, and a comparison without it gathers those of all shards.

    Returns
    -------
    Folder
        Its ``rows`` are those of all instances and runs; `write_report` makes a page of them.

    Raises
    ------
    UsageError
        The folder holds another comparison, or is in use.
    InputError
        It cannot be written.
    """
    engine = None if executor is None else find_engine(executor)
    shard = None if engine is None else engine.shard
    folder = Folder(Path(output), {"question": question, **matrix.config}, describe_environment(), shard)
    with folder:
        for row in matrix.instances:
            folder.add_instance(row)
        every = matrix.cells if shard is None else matrix.cells[shard[0] - 1 :: shard[1]]
        folder.gather({cell.key for cell in every})
        todo = [cell for cell in every if cell.key not in folder.done]
        runs, engine = len(every), None if shard else engine
        tell(runs - len(todo), runs, None)
        with closing(run_cells(todo, jobs, patience_s, most_bytes, stopped, engine)) as rows:
            for done, row in enumerate(rows, runs - len(todo) + 1):
                folder.add(row)
                tell(done, runs, row)
    return folder
