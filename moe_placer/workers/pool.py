"""Worker processes, and how to run one function on many inputs by them.

A worker is a plain process with one socket pair to the one that started it. There are no semaphores, no shared memory,
no temporary files and no helper process, so nothing is left when all of them are killed at once; and a worker ends with
its parent, however that ends.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from moe_placer.errors import NothingFoundError, UsageError
from moe_placer.workers.machine import usable_cores

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Workers", "asked_to_stop", "count_deaths", "run_each"]

Key = TypeVar("Key")
Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal to get when the parent ends
_FAREWELL_S = 1.0  # for workers without a task to end by themselves
_POLL_S = 0.1

_deaths: ContextVar[list[int] | None] = ContextVar("deaths", default=None)
_stop_pipe: list[int] = []  # in a worker: becomes readable when it is asked to stop


@contextmanager
def count_deaths() -> Iterator[list[int]]:
    """Give a list that gets the exit code of every worker that dies meanwhile: below 0 the signal that killed it."""
    found: list[int] = []
    token = _deaths.set(found)
    try:
        yield found
    finally:
        _deaths.reset(token)


class Workers(Generic[Key, Shared, Task, Result]):
    """Processes that each call ``function(shared, task)``, one task at a time; a context manager that ends them.

    Parameters
    ----------
    function : callable
        Of a module, or of the main program.
    shared : object
        Sent to every worker once, when it starts.
    count : int
        Processes at most; they are started when there are tasks for them.
    """

    def __init__(self, function: Callable[[Shared, Task], Result], shared: Shared, count: int) -> None:
        import cloudpickle  # takes what the main program defines, too

        self._pickled: Callable[[Any], bytes] = cloudpickle.dumps
        self._given, self._count = self._pickled((function, shared)), count
        self._queue: deque[tuple[Key, Callable[[], Task]]] = deque()
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Key]] = {}
        self._stop_read, self._stop_write = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker, _ in self._busy.values():
            worker.process.kill()
        for descriptor in (self._stop_read, self._stop_write):
            os.close(descriptor)
        every = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in every:
            worker.connection.close()
        for worker in every:
            worker.end()

    @property
    def pending(self) -> bool:
        """Whether any task has no result yet."""
        return bool(self._queue or self._busy)

    def put(self, key: Key, make: Callable[[], Task]) -> None:
        """Queue a task, made when a worker is free for it."""
        self._queue.append((key, make))

    def drop_queue(self) -> None:
        """Forget the tasks that no worker has begun."""
        self._queue.clear()

    def ask_to_stop(self) -> None:
        """Have `asked_to_stop` say so in all workers, from now on."""
        os.write(self._stop_write, b"!")

    def take(self, seconds: float) -> list[tuple[Key, Result | None]]:
        """Wait a while for results; return each with the key of its task: None where its worker died.

        Raises
        ------
        Exception
            What a call has raised.
        NothingFoundError
            No worker can be started.
        """
        from multiprocessing.connection import wait

        done = self._hand_out()
        for ready in [] if done else wait(list(self._busy), seconds):
            worker, key = self._busy.pop(ready)  # type: ignore[call-overload]
            answer = worker.receive()
            if answer is None:
                self._bury(worker)
                done.append((key, None))
                continue
            self._idle.append(worker)
            raised, value = answer
            if raised:
                raise value
            done.append((key, value))
        return done + self._hand_out()

    def _hand_out(self) -> list[tuple[Key, Result | None]]:
        """Give tasks to workers that are free; return those whose worker was dead already."""
        lost: list[tuple[Key, Result | None]] = []
        while self._queue and len(self._busy) < self._count:
            if not self._idle and not self._start():
                break
            worker = self._idle.pop()
            key, make = self._queue.popleft()
            if worker.send(self._pickled(make())):
                self._busy[worker.connection] = worker, key
            else:
                self._bury(worker)
                lost.append((key, None))
        return lost

    def _start(self) -> bool:
        """Start a worker; where the system has no room for another one, go on with those that there are."""
        try:
            worker = _Worker(self._stop_read)
        except OSError as error:
            if self._busy:
                self._count = len(self._busy)
                return False
            reason = error.strerror or str(error)
            raise NothingFoundError(
                f"no worker process can be started ({reason}); use --workers 1, or raise what limits it"
            ) from None
        worker.send(self._given)  # if it is dead, the next message tells
        self._idle.append(worker)
        return True

    def _bury(self, worker: _Worker) -> None:
        worker.connection.close()
        code = worker.end()
        if (found := _deaths.get()) is not None:
            found.append(code)


class _Worker:
    """One process and the connection to it."""

    def __init__(self, stop_pipe: int) -> None:
        import socket
        import subprocess
        import sys
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair()
        with ours, theirs:
            numbers = (theirs.fileno(), stop_pipe)
            arguments = ", ".join(map(str, (*numbers, os.getpid())))
            program = f"import sys; sys.path[:] = {sys.path!r}; import {__name__}; {__name__}._serve({arguments})"
            # A group of its own: Ctrl-C at a terminal, or a job manager's signal, is for the parent to act on.
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=numbers, process_group=0
            )
            self.connection = Connection(ours.detach())

    def send(self, message: bytes) -> bool:
        """Send a message; False where the worker is dead."""
        try:
            self.connection.send_bytes(message)
        except OSError:
            return False
        return True

    def receive(self) -> tuple[bool, Any] | None:
        """Return whether the call raised, and its result or error; None where the worker is dead."""
        import pickle

        try:
            answer: tuple[bool, Any] = pickle.loads(self.connection.recv_bytes())  # noqa: S301 - of our own process
        except (EOFError, OSError):
            return None
        return answer

    def end(self) -> int:
        """Wait until a process that nobody talks to any more has ended; return its exit code."""
        from subprocess import TimeoutExpired

        with suppress(TimeoutExpired):
            return self.process.wait(_FAREWELL_S)
        self.process.kill()
        return self.process.wait()


def _same(task: Task) -> Task:
    return task


def asked_to_stop() -> bool:
    """Say in a worker whether it should hand in what it has; also once its parent is gone."""
    import select

    if not _stop_pipe:
        return False
    poll = select.poll()
    poll.register(_stop_pipe[0], select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))


def _serve(descriptor: int, stop_pipe: int, parent: int) -> None:
    """Run in a worker: answer calls until nobody sends any."""
    import pickle
    from multiprocessing.connection import Connection

    _end_with(parent)
    _stop_pipe[:] = [stop_pipe]
    connection = Connection(descriptor)
    with suppress(EOFError, OSError):
        function, shared = pickle.loads(connection.recv_bytes())  # noqa: S301 - of our own parent
        while True:
            task = pickle.loads(connection.recv_bytes())  # noqa: S301
            connection.send_bytes(_answer(function, shared, task))


def _answer(function: Callable[[Any, Any], Any], shared: Any, task: Any) -> bytes:
    import pickle
    import traceback

    import cloudpickle

    try:
        return bytes(cloudpickle.dumps((False, function(shared, task))))
    except Exception as error:
        where = f"in a worker process:\n{traceback.format_exc()}"
        error.add_note(where)
        try:
            raised = bytes(cloudpickle.dumps((True, error)))
            pickle.loads(raised)  # noqa: S301 - some errors can be written, but not read
        except Exception:
            return bytes(cloudpickle.dumps((True, RuntimeError(f"{type(error).__name__}: {error}\n{where}"))))
        return raised


def _end_with(parent: int) -> None:
    """Have the system kill this process when its parent ends, even if that was killed.

    Where it cannot (not Linux), a worker ends when it next asks whether to stop, or for a task.
    """
    import ctypes
    import signal
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def run_each(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Sequence[Task],
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
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
    stopped : callable
        Asked now and then; once it says True, nothing more is run or yielded.
    tasks : sequence of Task
        What to do; each goes to one process.

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
            if stopped():
                return
            yield index, function(shared, task)
        return
    with Workers[int, Shared, Task, Result](function, shared, workers) as pool:
        for index, task in enumerate(tasks):
            pool.put(index, partial(_same, task))
        while pool.pending and not stopped():
            for index, result in pool.take(_POLL_S):
                if result is None:
                    raise NothingFoundError(
                        "a worker process was killed, most likely for want of memory; use fewer --workers"
                    )
                yield index, result
