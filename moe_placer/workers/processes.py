"""Worker processes of this machine as an executor.

A worker is a plain process with one socket pair to the one that started it. There are no semaphores, no shared memory,
no temporary files and no helper process, so nothing is left when all of them are killed at once; and a worker ends with
its parent, however that ends.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from moe_placer.errors import MoePlacerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["ONE_THREAD", "Processes", "WorkerLostError", "asked_to_stop", "settle_worker", "stop_threads"]

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal to get when the parent ends
_FAREWELL_S = 1.0  # for workers without a task to end by themselves
# For BLAS in workers: threads of several workers only get in each other's way.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_stop_pipe: list[int] = []  # in a worker: becomes readable when it is asked to stop
stop_threads = threading.Event()  # the same for tasks in threads of this process


class WorkerLostError(MoePlacerError):
    """A worker process died with a task.

    Attributes
    ----------
    code : int or None
        Its exit code; below 0 the signal that killed it; None where that is not known.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(f"a worker process ended with {code}")
        self.code = code


class Processes(Executor):
    """An executor of worker processes, each with one task at a time, which a thread hands out.

    Parameters
    ----------
    count : int
        Processes at most; they are started when there are tasks for them.
    """

    def __init__(self, count: int) -> None:
        from multiprocessing.connection import wait  # now, while the system surely has a file to open

        import cloudpickle  # takes what the main program defines, too

        self._wait = wait
        self._pickled: Callable[[Any], bytes] = cloudpickle.dumps
        self._count = count
        self._queue: deque[tuple[Future[Any], bytes]] = deque()
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Future[Any]]] = {}
        self._stop_read, self._stop_write = os.pipe()
        self._woken, self._wake = os.pipe()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """Queue a call; its future has what it returns or raises, or `WorkerLostError`."""
        future: Future[Result] = Future()
        message = self._pickled((function, arguments, named))
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor is shut down")
            self._queue.append((future, message))
            os.write(self._wake, b"!")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="workers", daemon=True)
                self._thread.start()
        return future

    def ask_to_stop(self) -> None:
        """Have `asked_to_stop` say so in all workers, from now on."""
        os.write(self._stop_write, b"!")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers: after what is queued, or at once with ``cancel_futures``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if cancel_futures:
                for future, _ in self._queue:
                    future.cancel()
                self._queue.clear()
                for worker, _ in [*self._busy.values()]:
                    worker.process.kill()
            os.write(self._wake, b"!")
        if self._thread is None:
            self._close()
        elif wait:
            self._thread.join()

    def _run(self) -> None:
        """Hand out tasks and take results until all is done after `shutdown`."""
        try:
            while not (self._closed and not self._queue and not self._busy):
                self._hand_out()
                for ready in self._wait([*self._busy, self._woken]):
                    if ready == self._woken:
                        os.read(self._woken, 4096)
                    else:
                        self._take(*self._busy.pop(ready))  # type: ignore[call-overload]
        except Exception as error:
            self._fail(error)
        finally:
            self._close()

    def _fail(self, error: Exception) -> None:
        """Give an error that ends the thread to all who wait for a result, which nobody will bring."""
        with self._lock:
            self._closed = True
            waiting = [*(future for future, _ in self._queue), *(future for _, future in self._busy.values())]
            self._queue.clear()
        for future in waiting:
            if future.running() or future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _take(self, worker: _Worker, future: Future[Any]) -> None:
        answer = worker.receive()
        if answer is None:
            future.set_exception(WorkerLostError(worker.end()))
            return
        self._idle.append(worker)
        raised, value = answer
        if raised:
            future.set_exception(value)
        else:
            future.set_result(value)

    def _hand_out(self) -> None:
        with self._lock:
            while self._queue and len(self._busy) < self._count:
                if not self._idle and not self._start():
                    return
                future, message = self._queue.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                worker = self._idle.pop()
                if worker.send(message):
                    self._busy[worker.connection] = worker, future
                else:
                    future.set_exception(WorkerLostError(worker.end()))

    def _start(self) -> bool:
        """Start a worker; where the system has no room for another one, go on with those that there are."""
        try:
            self._idle.append(_Worker(self._stop_read))
        except OSError as error:
            if self._busy:
                self._count = len(self._busy)
            else:
                for future, _ in self._queue:
                    if future.set_running_or_notify_cancel():
                        future.set_exception(error)
                self._queue.clear()
            return False
        return True

    def _close(self) -> None:
        every = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for descriptor in (self._stop_read, self._stop_write, self._woken, self._wake):
            os.close(descriptor)
        for worker in every:
            worker.connection.close()
        for worker in every:
            worker.end()


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
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
                process_group=0,
                env={**ONE_THREAD, **os.environ},
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

        self.connection.close()
        with suppress(TimeoutExpired):
            return self.process.wait(_FAREWELL_S)
        self.process.kill()
        return self.process.wait()


def settle_worker() -> None:
    """Run first in a worker that somebody else starts, as MPI's: BLAS gets one thread, and signals are not for it.

    A job manager sends them to all processes of a job, and only the one that was started acts on them. Threads are
    counted when BLAS is loaded, so nothing that this program imports before may load it.
    """
    import signal

    for name, threads in ONE_THREAD.items():
        os.environ.setdefault(name, threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def asked_to_stop() -> bool:
    """Say in a worker whether it should hand in what it has; also once its parent is gone."""
    import select

    if not _stop_pipe:
        return stop_threads.is_set()
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
        while True:
            function, arguments, named = pickle.loads(connection.recv_bytes())  # noqa: S301 - of our own parent
            connection.send_bytes(_answer(function, arguments, named))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps((False, function(*arguments, **named))))
    except Exception as error:
        return bytes(cloudpickle.dumps((True, error)))


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
