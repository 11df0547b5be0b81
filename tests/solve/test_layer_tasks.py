"""What is done for every layer of a large problem, on workers: the same results, from one executor, whatever dies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from builders import tiny_instance, tiny_tokens, tiny_traffic

from moe_placer import Limits, solve
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.solve import layer_tasks
from moe_placer.solve.layer_tasks import on_each_layer, one_executor
from moe_placer.workers import Engine, Workers, keep_executor
from moe_placer.workers.processes import WorkerLostError

CASES: dict[str, dict[str, Any]] = {
    "groups": {"cluster": {"gpus_per_node": 3}},
    "even": {"placement": {"replica_routing": "even"}},
    "budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 3}}},
    "per node": {"placement": {"dispatch": "per-node"}, "parallelism": {"dp": 1}},
    "scenarios": {"objective": {"scenarios": "recordings"}},
    "infeasible for eplb": {"placement": {"slots_per_gpu": 2, "replicas_apart": "node"}},
}


class Here(Executor):
    """Runs what is submitted in this process, but loses the first few tasks."""

    def __init__(self, loses: int = 0) -> None:
        self.loses, self.done = loses, 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.loses > 0:
            self.loses -= 1
            future.set_exception(WorkerLostError(-9))
        else:
            self.done += 1
            future.set_result(function(*arguments, **named))
        return future


class Log:
    """An engine that keeps what was started and stopped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loses: int = 0) -> None:
        self.started: list[Here] = []
        self.stopped: list[Executor] = []
        self.loses = loses
        self.engine = Engine(self.start, lambda _: 2, self.stopped.append)
        monkeypatch.setattr(layer_tasks, "find_engine", lambda _: self.engine)
        monkeypatch.setattr(layer_tasks, "VAST", 0)

    def start(self) -> Here:
        self.started.append(Here(self.loses))
        return self.started[-1]


@pytest.mark.parametrize("case", CASES)
def test_large_layers_get_the_same_placement_from_workers_by_one_executor(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    instance = tiny_instance(**CASES[case])
    traffic = (tiny_tokens if case == "per node" else tiny_traffic)(instance)
    here = solve(instance, traffic, limits=Limits(work=0.1, workers=1))
    log = Log(monkeypatch)
    there = solve(instance, traffic, limits=Limits(work=0.1, workers=1, executor="here"))
    assert (there.placement, there.stop, there.baselines) == (here.placement, here.stop, here.baselines)
    assert len(log.started) == 1
    assert log.stopped == log.started
    assert log.started[0].done >= 3 * len(instance.moe_layers)  # heuristics, start results, search


def name_of(given: str, problem: Problem, index: int, own: int) -> str:
    return f"{given}{problem.moe_layers[index]}{problem.layer(index).items + own}"


def test_a_layer_whose_workers_die_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tiny_instance()
    problem = compile_problem(instance, tiny_traffic(instance))
    log = Log(monkeypatch, loses=4)  # both tries of both layers
    with one_executor(problem, Limits(executor="here")):
        assert on_each_layer(name_of, "a", problem, [0, 1]) == ["a18", "a29"]
        assert log.started[0].done == 0
        assert on_each_layer(name_of, "b", problem, [0, 1]) == ["b18", "b29"]
    assert log.started[0].done == 2
    assert on_each_layer(name_of, "c", problem, [0, 1]) == ["c18", "c29"]
    assert len(log.started) == len(log.stopped) == 1


def test_small_layers_start_no_worker_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tiny_instance()
    problem, log = compile_problem(instance, tiny_traffic(instance)), Log(monkeypatch)
    monkeypatch.setattr(layer_tasks, "VAST", 32)  # 8 items on 4 nodes
    with one_executor(problem, Limits(executor="here")):
        assert on_each_layer(name_of, "a", problem, [0, 1]) == ["a18", "a29"]
    assert log.started == []


def double(shared: None, task: int) -> int:
    return 2 * task


def test_only_an_executor_that_has_done_everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)

    def use(take: bool = True, ask: bool = False, fails: bool = False) -> None:
        with Workers(double, None, kept) as pool:
            pool.put(1, lambda: 2)
            if take:
                assert pool.take(1.0) == [(1, 4)]
            if ask:
                pool.ask_to_stop()
            if fails:
                raise ValueError

    with keep_executor(log.engine) as kept:
        use()
        use()
        assert (len(log.started), len(log.stopped)) == (1, 0)
        use(take=False)
        assert (len(log.started), len(log.stopped)) == (1, 1)
        use(ask=True)
        assert (len(log.started), len(log.stopped)) == (2, 2)
        with pytest.raises(ValueError, match=r"^$"):
            use(fails=True)
        use()
        assert (len(log.started), len(log.stopped)) == (4, 3)
    assert log.stopped == log.started
