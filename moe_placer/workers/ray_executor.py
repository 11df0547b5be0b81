"""Ray behind Python's own interface of executors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

__all__ = ["RayExecutor"]

Result = TypeVar("Result")


class RayExecutor(Executor):
    """An executor whose calls are Ray tasks; errors are those that calls raise, not Ray's around them.

    Parameters
    ----------
    ray : module
    address : str or None
        Of a cluster; ``auto`` finds the one of this machine; None starts one here.
    count : int
        Processor cores of a cluster that is started here.
    """

    def __init__(self, ray: Any, address: str | None, count: int) -> None:
        self._ray = ray
        options: dict[str, Any] = {"num_cpus": count, "include_dashboard": False} if address is None else {}
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
        self._started_here = address is None

    def submit(self, function: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """Begin a call as a task with one core; Ray tries it again where its worker dies."""
        remote = self._ray.remote(num_cpus=1)(function)
        inner: Future[Result] = remote.remote(*arguments, **named).future()
        outer: Future[Result] = Future()
        outer.set_running_or_notify_cancel()
        inner.add_done_callback(lambda done: _hand_over(done, outer))
        return outer

    def workers(self) -> int:
        """Count the cores of the cluster."""
        return int(self._ray.cluster_resources().get("CPU", 1))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, and end it where it was started here."""
        del wait, cancel_futures
        self._ray.shutdown()


def _hand_over(done: Future[Any], outer: Future[Any]) -> None:
    error = done.exception()
    if error is None:
        outer.set_result(done.result())
    else:
        outer.set_exception(getattr(error, "cause", None) or error)
