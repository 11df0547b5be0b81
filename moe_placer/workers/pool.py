"""Runs one function on many inputs by the workers of an executor: every task has one result, whatever dies.

A task is bytes in and bytes out, so it is the same for every executor. What all tasks have alike travels once to each
worker, which keeps it: a worker that has not got it says so, and is sent it with the task.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from moe_placer.errors import NothingFoundError, UsageError
from moe_placer.workers.engine import Engine
from moe_placer.workers.engines import find_engine, local_processes
from moe_placer.workers.machine import usable_cores
from moe_placer.workers.processes import WorkerLostError

__all__ = ["Workers", "count_deaths", "run_each"]

Key = TypeVar("Key")
Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

_POLL_S = 0.1
_TRIES = 3  # of a task of `run_each`
_MOST_BREAKS = 8  # of an executor, before it is given up
_KEPT = 2  # of what tasks have alike, in a worker

_deaths: ContextVar[list[int] | None] = ContextVar("deaths", default=None)
_held: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {}  # in a worker: what it was sent, by its hash


@contextmanager
def count_deaths() -> Iterator[list[int]]:
    """Give a list that gets the exit code of every worker that dies meanwhile: below 0 the signal that killed it.

    Executors that do not tell the code count as 1.
    """
    found: list[int] = []
    token = _deaths.set(found)
    try:
        yield found
    finally:
        _deaths.reset(token)


class Workers(Generic[Key, Shared, Task, Result]):
    """Workers that each call ``function(shared, task)``; a context manager that ends them.

    Parameters
    ----------
    function : callable
        Of a module, or of the main program.
    shared : object
        Sent to every worker once.
    engine : Engine or int
        What runs them; a number: so many processes of this machine.
    tries : int
        How often a task is begun whose workers die.

    Attributes
    ----------
    deaths : int
        Workers that died.
    sent_bytes : int
        Of everything that was sent.
    """

    def __init__(
        self, function: Callable[[Shared, Task], Result], shared: Shared, engine: Engine | int, tries: int = 1
    ) -> None:
        import cloudpickle  # takes what the main program defines, too

        self._pickled: Callable[[Any], bytes] = cloudpickle.dumps
        self._given = self._pickled((function, shared))
        self._hash = hashlib.sha256(self._given).hexdigest()
        self._engine = local_processes(engine) if isinstance(engine, int) else engine
        self._tries, self._begun = tries, Counter[Key]()
        self._queue: deque[tuple[Key, Callable[[], Task]]] = deque()
        self._running: dict[Future[bytes | None], tuple[Key, Callable[[], Task], bytes]] = {}
        self._executor = self._engine.start()
        self._count = max(1, self._engine.workers(self._executor))
        self._knowing = 0  # workers that have been sent what tasks have alike
        self._breaks, self._asked_to_stop = 0, False
        self.deaths = self.sent_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        done = error is None and not self.pending and not self._asked_to_stop
        end = self._engine.release if done else None
        (end or self._engine.stop)(self._executor)

    @property
    def pending(self) -> bool:
        """Whether any task has no result yet."""
        return bool(self._queue or self._running)

    def put(self, key: Key, make: Callable[[], Task]) -> None:
        """Queue a task, made when a worker is free for it."""
        self._queue.append((key, make))

    def drop_queue(self) -> None:
        """Forget the tasks that no worker has begun."""
        self._queue.clear()
        for future in [future for future in self._running if future.cancel()]:
            del self._running[future]

    def ask_to_stop(self) -> None:
        """Have `asked_to_stop` say so in all workers, from now on, where the executor can."""
        self._asked_to_stop = True
        self._engine.ask_to_stop(self._executor)

    def take(self, seconds: float) -> list[tuple[Key, Result | None]]:
        """Wait a while for results; return each with the key of its task: None where its workers died.

        Raises
        ------
        Exception
            What a call has raised.
        NothingFoundError
            No worker can be started.
        """
        self._hand_out()
        found: list[tuple[Key, Result | None]] = []
        for future in wait(self._running, seconds, FIRST_COMPLETED).done:
            if future in self._running:  # what breaks an executor takes others with it
                found += self._answered(future)
        self._hand_out()
        return found

    def _answered(self, future: Future[bytes | None]) -> list[tuple[Key, Result | None]]:
        key, make, task = self._running.pop(future)
        lost: tuple[type[BaseException], ...] = (WorkerLostError, CancelledError, *self._engine.lost)
        try:
            answer = future.result()
        except lost as error:
            return self._lost(key, make, error)
        except OSError as error:
            reason = error.strerror or str(error)
            raise NothingFoundError(
                f"no worker process can be started ({reason}); use --workers 1, or raise what limits it"
            ) from None
        if answer is None:
            self._submit(key, make, task, True)
            return []
        raised, value = pickle.loads(answer)  # noqa: S301 - of our own workers
        if raised:
            raise value
        return [(key, value)]

    def _lost(self, key: Key, make: Callable[[], Task], error: BaseException) -> list[tuple[Key, Result | None]]:
        """Try a task again whose worker died, or give it up; start anew what has broken."""
        code = error.code if isinstance(error, WorkerLostError) else None
        again = [(key, make)]
        if isinstance(error, BrokenExecutor):  # nobody tells which of its tasks did it
            again += [(other, made) for other, made, _ in self._running.values()]
            self._running.clear()
            self._breaks += 1
            if self._breaks > _MOST_BREAKS:
                raise NothingFoundError(f"workers died {self._breaks} times, most likely for want of memory")
            self._engine.stop(self._executor)
            self._executor, self._knowing = self._engine.start(), 0
        self.deaths += 1
        if (found := _deaths.get()) is not None:
            found.append(1 if code is None else code)
        given_up = [other for other, _ in again if self._begun[other] >= self._tries]
        self._queue.extendleft(one for one in reversed(again) if one[0] not in given_up)
        return [(other, None) for other in given_up]

    def _hand_out(self) -> None:
        while self._queue and len(self._running) < self._count * self._engine.ahead:
            key, make = self._queue.popleft()
            self._begun[key] += 1
            self._submit(key, make, self._pickled(make()), self._knowing < self._count)

    def _submit(self, key: Key, make: Callable[[], Task], task: bytes, whole: bool) -> None:
        self._knowing += whole
        given = self._given if whole else None
        self.sent_bytes += len(task) + (len(given) if given else 0)
        self._running[self._executor.submit(run_task, self._hash, given, task)] = key, make, task


def run_task(given_hash: str, given: bytes | None, task: bytes) -> bytes | None:
    """Run in a worker: call what was given with a task; return whether it raised, and what; None: nothing was given."""
    import cloudpickle

    if given is not None and given_hash not in _held:
        for old in list(_held)[: 1 - _KEPT]:
            del _held[old]
        _held[given_hash] = pickle.loads(given)  # noqa: S301 - of our own coordinator
    if given_hash not in _held:
        return None
    function, shared = _held[given_hash]
    try:
        return bytes(cloudpickle.dumps((False, function(shared, pickle.loads(task)))))  # noqa: S301
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> bytes:
    import traceback

    import cloudpickle

    where = f"in a worker process:\n{traceback.format_exc()}"
    error.add_note(where)
    try:
        raised = bytes(cloudpickle.dumps((True, error)))
        pickle.loads(raised)  # noqa: S301 - some errors can be written, but not read
    except Exception:
        return bytes(cloudpickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}\n{where}"))))
    return raised


def run_each(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Sequence[Task],
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
    executor: str | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield the index and the result of each task as it ends.

    Parameters
    ----------
    function : callable
        Of a module; called with ``shared`` and a task.
    shared : object
        Sent to every worker once.
    workers : int
        Processes; 1 runs everything here.
    stopped : callable
        Asked now and then; once it says True, nothing more is run or yielded.
    tasks : sequence of Task
        What to do; each goes to one worker.
    executor : str or None
        What runs them, as `find_engine` takes it; None: processes of this machine.

    Raises
    ------
    UsageError
        Fewer than one worker, or an executor that is not there.
    NothingFoundError
        Workers were killed with the same task again and again.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers, expected 1 or more")
    workers = min(workers, len(tasks), usable_cores())
    engine: Engine | int = workers if executor is None else find_engine(executor)
    shard = None if isinstance(engine, int) else engine.shard
    chosen = range(len(tasks)) if shard is None else range(shard[0] - 1, len(tasks), shard[1])
    if shard is not None or (executor is None and workers <= 1):
        for index in chosen:
            if stopped():
                return
            yield index, function(shared, tasks[index])
        return
    with Workers[int, Shared, Task, Result](function, shared, engine, _TRIES) as pool:
        for index in chosen:
            pool.put(index, partial(tasks.__getitem__, index))
        while pool.pending and not stopped():
            for index, result in pool.take(_POLL_S):
                if result is None:
                    raise NothingFoundError(
                        f"worker processes were killed {_TRIES} times with one task, most likely for want of memory; "
                        "use fewer --workers"
                    )
                yield index, result
