"""Dask behind Python's own interface of executors, with the end of its client and of a cluster that is ours."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from moe_placer.workers.processes import ONE_THREAD

__all__ = ["DaskExecutor"]

Result = TypeVar("Result")

_CONNECT_S = 15.0


class DaskExecutor(Executor):
    """Dask's executor, over worker processes that are started here or over the workers of a scheduler.

    Parameters
    ----------
    distributed : module
    address : str
        Of a scheduler.
    count : int
        Worker processes to start here; 0: those of the scheduler.

    Raises
    ------
    OSError
        No scheduler answers.
    """

    def __init__(self, distributed: Any, address: str, count: int) -> None:
        self._cluster = None
        if count:
            self._cluster = distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                memory_limit=None,
                silence_logs=50,
                env=ONE_THREAD,
            )
        self._client = distributed.Client(self._cluster or address, timeout=_CONNECT_S, set_as_default=False)
        # Two calls alike are two tasks; a worker that dies has its tasks run again by the scheduler.
        self._executor: Executor = self._client.get_executor(pure=False)

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """Give a call to the scheduler."""
        return self._executor.submit(function, *arguments, **named)

    def workers(self) -> int:
        """Count the threads of the workers that there are, waiting for the first."""
        self._client.wait_for_workers(1, timeout=_CONNECT_S)
        return sum(self._client.nthreads().values())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the scheduler; end what was started here."""
        del cancel_futures  # dask cancels what is not waited for
        self._executor.shutdown(wait=wait)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
