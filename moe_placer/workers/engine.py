"""Where tasks run: an executor of Python's own interface, how many tasks it takes at a time, and how it loses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace

__all__ = ["Engine", "keep_executor"]


def _shut_down(executor: Executor) -> None:
    executor.shutdown(wait=False, cancel_futures=True)


def _cannot_ask(executor: Executor) -> None:
    del executor  # what runs there ends at its limits


@dataclass(frozen=True, eq=False)
class Engine:
    """Starts an executor and ends it; what an entry point of the group ``moe_placer.executors`` returns.

    Attributes
    ----------
    start : callable
        Returns a `concurrent.futures.Executor`. It is called again when one has broken.
    workers : callable
        Of an executor: tasks that run at a time.
    stop : callable
        Of an executor: end it at once, and what it has started with it.
    lost : tuple of exception types
        What a future raises whose worker died; its task is tried again.
    ask_to_stop : callable
        Of an executor: have tasks that run hand in what they have.
    release : callable or None
        Of an executor that has done everything it was asked: what is called in place of ``stop``; None: ``stop`` is.
    ahead : int
        Tasks in flight for each worker: 2 where their way is long.
    shard : tuple of int or None
        (i, n): this process does every n-th task from the i-th on, and starts no worker.
    """

    start: Callable[[], Executor]
    workers: Callable[[Executor], int]
    stop: Callable[[Executor], None] = _shut_down
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)
    ask_to_stop: Callable[[Executor], None] = _cannot_ask
    ahead: int = 2
    shard: tuple[int, int] | None = None
    release: Callable[[Executor], None] | None = None


@contextmanager
def keep_executor(engine: Engine) -> Iterator[Engine]:
    """Give an engine whose executor stays when it has done everything, for whoever starts one next, and end it last."""
    kept: list[Executor] = []
    try:
        yield replace(engine, start=lambda: kept.pop() if kept else engine.start(), release=kept.append)
    finally:
        for executor in kept:
            engine.stop(executor)
