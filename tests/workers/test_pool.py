"""Worker processes: what they answer, what they die of, and that none outlives the process that started it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from forked import Forks

from moe_placer.errors import NothingFoundError, UsageError
from moe_placer.workers import Workers, asked_to_stop, count_deaths, run_each

REPO = Path(__file__).parents[2]
SEED_PLAN = REPO / "instances" / "h100-128.yaml"
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else every worker would import pytest
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def add(shared: int, task: int) -> int:
    return shared + task


def end_of(_shared: None, task: Callable[[], Any]) -> Any:
    return task()


class UnreadableError(Exception):
    """An error that can be pickled, but not unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def raise_unreadable() -> None:
    raise UnreadableError("what", " happened")


def die(code: int = 3) -> None:
    os._exit(code)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def report() -> tuple[int, int, bool, list[str]]:
    """Say who and in which group this is, whether it is asked to stop, and what it holds open but standard streams."""
    numbered = {int(file.name): file for file in Path("/proc/self/fd").iterdir()}
    files = [str(file.readlink()) for number, file in numbered.items() if number > 2 and file.exists()]
    return os.getpid(), os.getpgid(0), asked_to_stop(), files


def shares_memory(*pids: int) -> bool:
    """Whether a process has mapped a named semaphore, or other named shared memory."""
    return any("/dev/shm/" in Path(f"/proc/{pid}/maps").read_text() for pid in pids)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_placer.workers.pool.usable_cores", lambda: 2)


def results(pool: Workers[Any, Any, Any, Any]) -> Iterator[tuple[Any, Any]]:
    give_up = time.monotonic() + 240
    while pool.pending and time.monotonic() < give_up:
        yield from pool.take(0.2)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_has_its_result(workers: int) -> None:
    assert sorted(run_each(add, 10, range(7), workers)) == [(index, 10 + index) for index in range(7)]
    assert list(run_each(add, 10, [], workers)) == []
    with pytest.raises(UsageError, match="0 workers"):
        next(run_each(add, 10, [1], 0))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_stopped_yields_no_more(workers: int) -> None:
    seen: list[int] = []
    for index, _ in run_each(add, 0, range(1000), workers, stopped=lambda: len(seen) >= 3):
        seen.append(index)
    assert 3 <= len(seen) < 10


def test_what_a_call_raises_comes_back_with_where() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(run_each(end_of, None, [lambda: 1 / 0, lambda: 2], 2))
    assert Path(__file__).name in "".join(caught.value.__notes__)
    with pytest.raises(RuntimeError, match="UnreadableError: what happened"):
        list(run_each(end_of, None, [raise_unreadable, raise_unreadable], 2))


def test_a_worker_that_dies_is_told_and_replaced() -> None:
    tasks: list[Callable[[], Any]] = [die, lambda: "well", kill_itself, lambda: "too"]
    with count_deaths() as deaths, Workers(end_of, None, 1) as pool:
        for index, task in enumerate(tasks):
            pool.put(index, lambda task=task: task)
        assert sorted(results(pool)) == [(0, None), (1, "well"), (2, None), (3, "too")]
    assert deaths == [3, -signal.SIGKILL]
    with pytest.raises(NothingFoundError, match="worker processes were killed 3 times with one task"):
        list(run_each(end_of, None, [die, die], 2))


def test_a_worker_killed_between_tasks_is_told() -> None:
    with count_deaths() as deaths, Workers(end_of, None, 1) as pool:
        pool.put("first", lambda: os.getpid)
        ((_, pid),) = results(pool)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        pool.put("second", lambda: os.getpid)
        assert list(results(pool)) == [("second", None)]
    assert deaths == [-signal.SIGKILL]


def test_deaths_count_where_they_are_asked_for_only() -> None:
    with count_deaths() as outer:
        with count_deaths() as inner, Workers(end_of, None, 1) as pool:
            pool.put(0, lambda: die)
            assert list(results(pool)) == [(0, None)]
        assert inner == [3]
    assert outer == []


@needs_proc
def test_workers_are_in_groups_of_their_own_and_hold_a_socket_and_a_pipe() -> None:
    with Workers(end_of, None, 2) as pool:
        for index in range(2):
            pool.put(index, lambda: report)
        for _, (pid, group, stop, files) in results(pool):
            assert (pid, stop) == (group, False)
            own = [file for file in files if "/libffi.so" not in file]  # which libffi 3.5 itself opens in any process
            assert sorted(file.partition(":")[0] for file in own) == ["pipe", "socket"]
            assert not shares_memory(pid, os.getpid())
        pool.ask_to_stop()
        pool.put(2, lambda: report)
        ((_, (_, _, stop, _)),) = results(pool)
        assert stop


def test_where_no_process_can_be_started_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = subprocess.Popen, [1]

    def limited(*arguments: Any, **options: Any) -> Any:
        if not left:
            raise OSError(errno.EMFILE, "Too many open files")
        left.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", limited)
    assert sorted(run_each(add, 10, range(4), 2)) == [(index, 10 + index) for index in range(4)]  # by one worker
    with pytest.raises(NothingFoundError, match=r"no worker process can be started \(Too many open files\)"):
        list(run_each(add, 10, range(4), 2))


PARENT = """if True:
    import sys, time
    from moe_placer.workers import Workers
    def busy(_shared, _task):
        {deed}
    if __name__ == "__main__":
        with Workers(busy, None, 2) as pool:
            for index in range(2):
                pool.put(index, lambda: index)
            while len(pool._executor._busy) < 2:
                time.sleep(0.01)
                pool.take(0.01)
            print(*(worker.process.pid for worker, _ in pool._executor._busy.values()), flush=True)
            while True:
                pool.take(1.0)
"""


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except OSError:
        return True


def all_gone(pids: list[int]) -> bool:
    give_up = time.monotonic() + 120
    while not all(map(gone, pids)) and time.monotonic() < give_up:
        time.sleep(0.02)
    return all(map(gone, pids))


@needs_proc
@pytest.mark.parametrize("deed", ["time.sleep(600)", "sum(range(10**12))"], ids=["sleeps", "computes"])
def test_workers_end_with_a_parent_that_is_killed(deed: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(deed=deed)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 2
    assert not any(map(gone, workers))
    parent.kill()
    parent.wait()
    assert all_gone(workers)
    parent.stdout.close()


@needs_proc
def test_a_killed_solve_leaves_nothing(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    arguments = ["solve", str(SEED_PLAN), "-o", str(tmp_path / "out"), "--gap", "0", "-q", "--workers", "2"]
    process = forks.start(*arguments, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")})

    def children() -> list[int]:
        return [
            int(pid)
            for file in Path(f"/proc/{process.pid}/task").glob("*/children")
            for pid in file.read_text().split()
        ]

    give_up = time.monotonic() + 240
    while len(workers := children()) < 2 and time.monotonic() < give_up:
        time.sleep(0.02)
    assert len(workers) == 2
    assert not shares_memory(process.pid, *workers)
    process.kill()
    process.wait()
    assert all_gone(workers)
    assert list((tmp_path / "tmp").iterdir()) == []
    # The lock is gone; its file is empty, and goes with the next run.
    assert {path.name for path in tmp_path.iterdir()} == {"tmp", ".out.lock"}
    again = ["solve", str(REPO / "instances" / "tiny.yaml"), "-o", str(tmp_path / "out"), "--solver", "greedy"]
    assert forks.run(*again, "--no-dag", "-q").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tmp", "out"}
