"""Executors: one interface, the same rows from each, whatever dies; what is missing or wrong is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest
from command_line import TINY, run

from moe_placer.errors import NothingFoundError, UsageError
from moe_placer.workers import Engine, Workers, engines, find_engine, run_each, stated_workers
from moe_placer.workers.pool import run_task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers of other engines do not find tests

ENGINES = ["processes:2", pytest.param("loky:2", marks=pytest.mark.slow), "dask:local:2"]


def row(folder: str | None, task: int) -> str:
    """A row of a task, of which one kills the first worker that gets it."""
    if folder is not None and task == 3:
        flag = Path(folder) / "killed"
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return json.dumps({"task": task, "root": task**0.5})


def double(shared: bytes, task: int) -> int:
    return 2 * task + len(shared)


@pytest.fixture
def all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_placer.workers.pool.usable_cores", lambda: 2)


@pytest.mark.parametrize("executor", ENGINES)
def test_every_executor_gives_the_same_rows_though_a_worker_is_killed(executor: str, tmp_path: Path) -> None:
    if executor.startswith(("loky", "dask")):
        pytest.importorskip("loky" if executor.startswith("loky") else "distributed")
    expected = sorted(row(None, task) for task in range(6))
    found = dict(run_each(row, str(tmp_path), range(6), 2, executor=executor))
    assert (tmp_path / "killed").exists()
    assert sorted(found.values()) == expected
    assert sorted(found) == list(range(6))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("slurm:4", r"there is no executor 'slurm'; there are: processes, loky, dask, ray, mpi, shard"),
        ("processes", "--executor processes: expected processes:N with N from 1 to 1,024"),
        ("processes:0", "--executor processes:0: expected processes:N"),
        ("processes:1_0", "expected processes:N"),
        ("processes: 2", "expected processes:N"),
        ("dask", "--executor dask: expected dask:local:N, or"),
        ("dask:here", "expected dask:local:N, or a scheduler such as dask:tcp://host:8786"),
        ("shard:3", "expected shard:I/N, such as shard:3/64"),
        ("shard:4/3", "expected a shard from 1 to 3"),
        ("shard:1/" + "9" * 5000, "expected shard:I/N, such as shard:3/64"),
    ],
)
def test_what_names_no_executor_is_told(asked: str, said: str) -> None:
    if asked.startswith("dask"):
        pytest.importorskip("distributed")
    with pytest.raises(UsageError, match=said):
        find_engine(asked)


@pytest.mark.parametrize(
    ("asked", "module", "extra"),
    [
        ("loky:2", "loky", "loky"),
        ("dask:local:2", "distributed", "dask"),
        ("ray:auto", "ray", "ray"),
        ("mpi", "mpi4py", "mpi"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    asked: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "mpi4py.futures", None)
    with pytest.raises(UsageError, match=rf"needs the package {module}, .*pip install 'moe-placer\[{extra}\]'"):
        find_engine(asked)


class Point:
    """What `entry_points` gives of another package."""

    name, value = "mine", "mine:open"

    def __init__(self, opened: Callable[[str], Any]) -> None:
        self.load = lambda: opened


def test_an_executor_of_another_package_runs_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(argument: str) -> Engine:
        count = int(argument)
        return Engine(lambda: ThreadPoolExecutor(count), lambda _: count)

    monkeypatch.setattr(
        engines, "entry_points", lambda group: [Point(opened)] if group == "moe_placer.executors" else []
    )
    assert sorted(run_each(double, b"", range(4), 2, executor="mine:2")) == [(i, 2 * i) for i in range(4)]
    assert "mine" in engines.engine_names()
    with pytest.raises(UsageError, match="cannot be loaded: invalid literal"):
        find_engine("mine:many")
    monkeypatch.setattr(engines, "entry_points", lambda group: [Point(lambda _: None)])
    with pytest.raises(UsageError, match=r"gives no moe_placer\.plugin\.Engine"):
        find_engine("mine:2")


class Counting(Executor):
    """Runs calls one after the other when asked, so that a test sees how many are in flight."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.most = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: function(*arguments, **named)))
        self.most = max(self.most, len(self.waiting))
        return future

    def run_one(self) -> None:
        future, call = self.waiting.pop(0)
        future.set_result(call())


def test_at_most_twice_as_many_tasks_are_in_flight_as_workers_and_are_made_only_then() -> None:
    executor, made = Counting(), []

    def make(index: int) -> int:
        made.append(index)
        return index

    with Workers(double, b"", Engine(lambda: executor, lambda _: 3)) as pool:
        for index in range(20):
            pool.put(index, lambda index=index: make(index))
        pool.take(0)
        assert (len(executor.waiting), made) == (6, list(range(6)))
        found = []
        while pool.pending:
            executor.run_one()
            found += pool.take(0)
        assert found == [(index, 2 * index) for index in range(20)]
    assert executor.most == 6


def test_what_tasks_have_alike_travels_once_to_each_worker() -> None:
    shared = bytes(1_000_000)
    with Workers(double, shared, 2) as pool:
        for index in range(20):
            pool.put(index, lambda index=index: index)
        while pool.pending:
            pool.take(1.0)
        assert 1e6 <= pool.sent_bytes <= 3 * 1e6  # a worker that gets two first tasks leaves the other to ask for it


def test_a_worker_without_what_tasks_have_alike_asks_for_it() -> None:
    given, task = cloudpickle.dumps((double, b"xy")), cloudpickle.dumps(4)
    assert run_task("some hash", None, task) is None
    for bytes_or_none in (given, None):
        answer = run_task("some hash", bytes_or_none, task)
        assert answer is not None
        assert cloudpickle.loads(answer) == (False, 10)


class Breaking(ThreadPoolExecutor):
    """Breaks at its second task, and takes all others with it, as executors of processes do."""

    def __init__(self, broken: list[int]) -> None:
        super().__init__(1)
        self.broken, self.count, self.lock = broken, 0, threading.Lock()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self.count += 1
        if len(self.broken) < 2 and self.count >= 2:
            future: Future[Any] = Future()
            future.set_exception(BrokenExecutor())
            self.broken += [1] if self.count == 2 else []
            return future
        return super().submit(function, *arguments, **named)


def test_an_executor_that_breaks_is_started_anew_and_nothing_is_lost_or_done_twice() -> None:
    broken: list[int] = []
    engine = Engine(lambda: Breaking(broken), lambda _: 2)
    with Workers(double, b"", engine, tries=9) as pool:
        for index in range(8):
            pool.put(index, lambda index=index: index)
        found = []
        while pool.pending:
            found += pool.take(1.0)
    assert sorted(found) == [(index, 2 * index) for index in range(8)]
    assert pool.deaths == 2


class Dead(Executor):
    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor())
        return future


def test_an_executor_that_breaks_for_ever_is_given_up() -> None:
    with Workers(double, b"", Engine(Dead, lambda _: 1), tries=99) as pool:
        pool.put(0, lambda: 0)
        with pytest.raises(NothingFoundError, match="workers died 9 times"):
            [pool.take(0.1) for _ in range(20)]


def test_shards_are_all_of_the_tasks_and_each_once() -> None:
    parts = [list(run_each(double, b"", range(10), 2, executor=f"shard:{part}/3")) for part in (1, 2, 3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert sorted(pair for part in parts for pair in part) == [(index, 2 * index) for index in range(10)]


def test_an_executor_that_is_stopped_keeps_what_is_done() -> None:
    seen: list[int] = []
    for index, _ in run_each(double, b"", range(100), 1, lambda: len(seen) >= 3, "processes:1"):
        seen.append(index)
    assert 3 <= len(seen) < 10


def test_a_text_states_how_many_workers_there_are() -> None:
    asked = [
        "processes:3",
        "dask:local:4",
        "loky:2",
        "ray:local:8",
        "dask:tcp://host:8786",
        "mpi",
        "ray:auto",
        "shard:1/2",
    ]
    assert [stated_workers(text) for text in asked] == [3, 4, 2, 8, None, None, None, None]


@pytest.mark.slow
def test_ray_gives_the_same_rows() -> None:
    pytest.importorskip("ray")
    found = dict(run_each(row, None, range(6), 2, executor="ray:local:2"))
    assert sorted(found.values()) == sorted(row(None, task) for task in range(6))


def settled(task: int) -> tuple[int, bool, bool, str | None]:
    """Be a worker that somebody else has started, with BLAS not yet loaded."""
    from moe_placer.workers.processes import settle_worker

    del os.environ["OPENBLAS_NUM_THREADS"]
    settle_worker()
    ignored = (signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM))
    return (task, *ignored, os.environ.get("OPENBLAS_NUM_THREADS"))


def test_workers_that_others_start_leave_signals_alone_and_have_one_thread() -> None:
    with find_engine("processes:1").start() as executor:
        assert executor.submit(settled, 3).result() == (3, True, True, "1")
    code = "import sys, moe_placer.workers.processes; sys.exit('numpy' in sys.modules)"  # it would count threads then
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("pool", "served"), [(None, False), (object(), True)])
def test_mpi_needs_workers_that_mpiexec_has_started(
    pool: object, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    futures, core = ModuleType("mpi4py.futures"), ModuleType("mpi4py.futures._core")
    futures.MPIPoolExecutor, core.SharedPool = ThreadPoolExecutor, pool  # type: ignore[attr-defined]
    for module in (ModuleType("mpi4py"), futures, core):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    if served:
        assert find_engine("mpi").shard is None
        return
    with pytest.raises(UsageError, match=r"mpiexec -n 9 python -m mpi4py\.futures -m moe_placer \.\.\."):
        find_engine("mpi")


@pytest.mark.slow
def test_mpi_gives_the_same_placement_and_exit_codes(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    started = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures", "-m", "moe_placer"]
    asked = ["--work", "2", "--no-dag", "-q", "--workers", "2"]
    on_mpi = [*started, "solve", str(TINY), *asked, "--executor", "mpi", "-o", str(tmp_path / "mpi")]
    done = subprocess.run(on_mpi, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert run("solve", TINY, *asked, "--executor", "processes:2", "-o", tmp_path / "here").returncode == 0
    mpi, here = (tmp_path / name / "placement.json" for name in ("mpi", "here"))
    assert mpi.read_bytes() == here.read_bytes()
    wrong = [*started, "solve", str(tmp_path / "nothing.yaml"), "--executor", "mpi"]
    assert subprocess.run(wrong, capture_output=True, timeout=600).returncode == 1
