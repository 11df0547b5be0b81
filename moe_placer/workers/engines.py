"""The one table of executors: their names, what they need, and how each is started and ended.

Nothing of another package is imported before it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from moe_placer.errors import UsageError
from moe_placer.workers.engine import Engine
from moe_placer.workers.processes import ONE_THREAD, Processes, WorkerLostError, settle_worker, stop_threads

__all__ = ["ENGINES", "engine_names", "find_engine", "local_processes", "local_threads", "stated_workers"]

_GROUP = "moe_placer.executors"
_DIGITS = 9  # of a number of workers or shards; `int` refuses thousands of them
_MOST_WORKERS = 1024  # on one machine


def find_engine(asked: str) -> Engine:
    """Return the engine that a text names, such as ``processes:2``, ``dask:tcp://host:8786`` or ``shard:3/64``.

    Raises
    ------
    UsageError
        There is none of this name, what follows it makes no sense, or a package is missing.
    """
    name, _, argument = asked.partition(":")
    if name in ENGINES:
        return ENGINES[name](argument)
    plug_in = _plug_ins().get(name)
    if plug_in is None:
        raise UsageError(f"there is no executor {name!r}; there are: {', '.join(engine_names())}")
    try:
        engine = plug_in.load()(argument)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the executor {name!r} ({plug_in.value}) cannot be loaded: {error}") from error
    if not isinstance(engine, Engine):
        raise UsageError(f"the executor {name!r} ({plug_in.value}) gives no moe_placer.plugin.Engine")
    return engine


def stated_workers(asked: str) -> int | None:
    """Return the number of workers that a text such as ``dask:local:4`` states; None where it states none."""
    name, _, last = asked.rpartition(":")
    return int(last) if name in {"processes", "loky", "dask:local", "ray:local"} and last.isdecimal() else None


def engine_names() -> tuple[str, ...]:
    """Names of all executors: those built in, then those of other packages (group ``moe_placer.executors``)."""
    return (*ENGINES, *sorted(set(_plug_ins()) - set(ENGINES)))


def local_processes(count: int) -> Engine:
    """Return the engine of so many processes of this machine."""
    return Engine(
        start=lambda: Processes(count),
        workers=lambda _: count,
        lost=(WorkerLostError,),
        stop=lambda executor: executor.shutdown(cancel_futures=True),
        ask_to_stop=lambda executor: executor.ask_to_stop(),  # type: ignore[attr-defined]
        ahead=1,
    )


def local_threads(count: int) -> Engine:
    """Return the engine of so many threads of this process, for tasks that are processes of their own."""

    def start() -> Executor:
        stop_threads.clear()
        return ThreadPoolExecutor(count, thread_name_prefix="task")

    def stop(executor: Executor) -> None:
        stop_threads.set()
        executor.shutdown(cancel_futures=True)
        stop_threads.clear()

    return Engine(start, lambda _: count, stop, ask_to_stop=lambda _: stop_threads.set(), ahead=1)


def _loky(argument: str) -> Engine:
    loky, count = _needs("loky", "loky"), _count("loky", argument)
    return Engine(
        start=lambda: loky.ProcessPoolExecutor(count, env=ONE_THREAD),
        workers=lambda _: count,
        stop=lambda executor: executor.shutdown(wait=True, kill_workers=True),  # type: ignore[call-arg]
    )


def _dask(argument: str) -> Engine:
    distributed = _needs("distributed", "dask")
    kind, _, rest = argument.partition(":")
    if kind not in {"local", "tcp", "tls", "ws", "wss"}:
        raise _wrong("dask", argument, "expected dask:local:N, or a scheduler such as dask:tcp://host:8786")
    count = _count("dask:local", rest) if kind == "local" else 0

    def start() -> Executor:
        from moe_placer.workers.dask_executor import DaskExecutor

        try:
            return DaskExecutor(distributed, argument, count)
        except OSError as error:
            raise UsageError(f"--executor dask:{argument}: no scheduler answers there ({error})") from None

    return Engine(
        start=start,
        workers=lambda executor: executor.workers(),  # type: ignore[attr-defined]
        lost=(_needs("distributed.scheduler", "dask").KilledWorker,),
    )


def _ray(argument: str) -> Engine:
    ray = _needs("ray", "ray")
    kind, _, rest = argument.partition(":")
    count = _count("ray:local", rest) if kind == "local" else 0
    if not argument:
        raise UsageError("--executor ray: expected ray:local:N, ray:auto, or the address of a cluster")

    def start() -> Executor:
        from moe_placer.workers.ray_executor import RayExecutor

        return RayExecutor(ray, None if count else argument, count)

    return Engine(
        start=start,
        workers=lambda executor: executor.workers(),  # type: ignore[attr-defined]
        lost=(ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError),
    )


def _mpi(argument: str) -> Engine:
    if argument:
        raise UsageError(f"--executor mpi:{argument}: expected mpi alone; mpiexec says how many processes there are")
    futures, core = _needs("mpi4py.futures", "mpi"), _needs("mpi4py.futures._core", "mpi")
    if getattr(core, "SharedPool", True) is None:  # its workers would have to be started, which few clusters allow
        command = "mpiexec -n 9 python -m mpi4py.futures -m moe_placer ..."
        raise UsageError(f"--executor mpi: this process has no MPI workers; start the command as {command}")
    return Engine(
        start=lambda: futures.MPIPoolExecutor(initializer=settle_worker),
        workers=lambda executor: executor.num_workers,  # type: ignore[attr-defined]
        stop=lambda executor: executor.shutdown(wait=True, cancel_futures=True),
    )


def _shard(argument: str) -> Engine:
    parts = argument.split("/")
    if len(parts) != 2 or not all(map(_is_whole, parts)):
        raise _wrong("shard", argument, "expected shard:I/N, such as shard:3/64")
    which, of = map(int, parts)
    if not 1 <= which <= of:
        raise UsageError(f"--executor shard:{argument}: expected a shard from 1 to {of}")
    return Engine(start=lambda: ThreadPoolExecutor(1), workers=lambda _: 1, shard=(which, of))


ENGINES: dict[str, Callable[[str], Engine]] = {
    "processes": lambda argument: local_processes(_count("processes", argument)),
    "loky": _loky,
    "dask": _dask,
    "ray": _ray,
    "mpi": _mpi,
    "shard": _shard,
}


def _count(name: str, argument: str) -> int:
    if _is_whole(argument) and 1 <= int(argument) <= _MOST_WORKERS:
        return int(argument)
    raise _wrong(name, argument, f"expected {name}:N with N from 1 to {_MOST_WORKERS:,}")


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _wrong(name: str, argument: str, expected: str) -> UsageError:
    return UsageError(f"--executor {name}{argument and f':{argument}'}: {expected}")


def _needs(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        found = f"--executor {extra} needs the package {module.partition('.')[0]}, which cannot be imported ({error})"
        raise UsageError(f"{found}; pip install 'moe-placer[{extra}]'") from None


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUP)}
