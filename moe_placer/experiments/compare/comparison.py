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
    folder = Folder(Path(output), {"question": question, **matrix.config}, describe_environment())
    with folder:
        for row in matrix.instances:
            folder.add_instance(row)
        todo = [cell for cell in matrix.cells if cell.key not in folder.done]
        runs = len(matrix.cells)
        tell(runs - len(todo), runs, None)
        with closing(run_cells(todo, jobs, patience_s, most_bytes, stopped)) as rows:
            for done, row in enumerate(rows, runs - len(todo) + 1):
                folder.add(row)
                tell(done, runs, row)
    return folder
