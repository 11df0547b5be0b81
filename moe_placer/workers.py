"""Worker processes: how many make sense, who hears Ctrl-C, and how to run one function on many inputs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from typing import Any, TypeVar

from moe_placer.errors import NothingFoundError, UsageError

__all__ = ["leave_interrupts_to_parent", "run_each", "usable_cores"]

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Count the cores that this process may use: more workers than these only take memory and time to start."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C in a worker: the terminal sends it to all processes, and the parent decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_each(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield the index and the result of each task as it ends.

    Parameters
    ----------
    function : callable
        Of a module; called with ``shared`` and a task.
    shared : object
        Sent to every worker once, when it starts.
    workers : int
        Processes; 1 runs everything here.

    Raises
    ------
    UsageError
        Fewer than one worker.
    NothingFoundError
        A worker was killed.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers, expected 1 or more")
    workers = min(workers, len(tasks), usable_cores())
    if workers <= 1:
        for index, task in enumerate(tasks):
            yield index, function(shared, task)
        return
    from loky import ProcessPoolExecutor  # its import costs
    from loky.process_executor import BrokenProcessPool

    pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(function, shared))
    try:
        futures = {pool.submit(_run, task): index for index, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise NothingFoundError(
            "a worker process was killed, most likely for want of memory; use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=False, kill_workers=True)


_given: list[Any] = []  # in a worker: the function and what is shared


def _start(function: Callable[[Any, Any], Any], shared: Any) -> None:
    leave_interrupts_to_parent()
    _given[:] = [function, shared]


def _run(task: Any) -> Any:
    function, shared = _given
    return function(shared, task)
