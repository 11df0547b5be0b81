"""Rounds over worker processes: killed workers, interrupts, defects."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from stub_solvers import DiesAlways, DiesOnce, Raises, Spends, Stub, Waits

from moe_placer.bounds.bounds import best_bound
from moe_placer.cli.summary import _said_of
from moe_placer.limits import Deadline, Limits
from moe_placer.result import LayerResult, Stop, why_stopped
from moe_placer.solve.layerwise import LayerSolver, LayerTask
from moe_placer.solve.solve import Progress, Solution, solve


def run(solver: LayerSolver, workers: int = 2, **more: Any) -> Solution:
    instance = tiny_instance(model={"layers": 5})
    limits = Limits(time_s=more.pop("time_s", 250.0), workers=workers, work=0.5, gap=0.0)
    return solve(instance, tiny_traffic(instance), solver=solver, limits=limits, **more)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    solution = run(DiesOnce(str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert solution.verification.ok
    assert set(solution.deaths) == {-signal.SIGKILL}
    assert Stop.KILLED not in solution.stop
    assert _said_of(solution).startswith(f"{len(solution.deaths)} worker process")
    assert "by SIGKILL), most likely for want of memory; their layers were tried again." in _said_of(solution)


def test_workers_that_always_die_leave_the_start() -> None:
    solution = run(DiesAlways())
    assert solution.verification.ok
    assert len(solution.deaths) >= 2 * solution.stop.count(Stop.KILLED) > 0
    assert set(solution.stop) - {Stop.PROVED} == {Stop.KILLED}  # some layers start optimal
    assert f"{solution.stop.count(Stop.KILLED)} layers keep what they had" in _said_of(solution)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_brings_the_best_so_far(workers: int) -> None:
    begun = time.monotonic()
    solution = run(Waits(), workers, interrupted=lambda: time.monotonic() - begun > 2.0)
    assert time.monotonic() - begun < 120  # else it would wait for 250 s
    assert solution.verification.ok
    assert set(solution.stop) - {Stop.PROVED} == {Stop.INTERRUPTED}  # some layers start optimal


@pytest.mark.parametrize("workers", [1, 100])
def test_the_clock_is_kept(workers: int) -> None:
    begun = time.monotonic()
    solution = run(Waits(), workers, time_s=2.0)
    assert time.monotonic() - begun < 120
    assert set(solution.stop) - {Stop.PROVED} == {Stop.TIME}  # some layers start optimal


@pytest.mark.parametrize("workers", [1, 2])
def test_a_defect_in_a_solver_is_not_hidden(workers: int) -> None:
    with pytest.raises(RuntimeError, match="a defect in the solver"):
        run(Raises(), workers)


def test_progress_is_told() -> None:
    seen: list[Progress] = []
    run(Stub(), 1, progress=seen.append)
    assert seen[-1].done == seen[-1].layers == 4
    assert seen[-1].total_bound <= seen[-1].total_z


class FirstSlots(Stub):
    """A quick method that must see no start, and whose placement is the worst that it could be given."""

    quick = True

    def solve_layer(self, task: LayerTask) -> LayerResult:
        layer = task.layer
        assert task.start is None
        node = np.repeat(np.arange(layer.nodes), layer.widest)[: layer.items]
        return LayerResult(node, layer.z(node), best_bound(layer), Stop.FINISHED)


def test_a_quick_method_gets_no_start_and_is_reported_even_if_worse_than_it() -> None:
    instance = tiny_instance(model={"layers": 5})
    told: list[Progress] = []
    solution = solve(instance, tiny_traffic(instance), solver=FirstSlots(), progress=told.append)
    assert told[-1].total_z == pytest.approx(solution.verification.total_z)
    assert solution.verification.total_z > float(solution.baselines["greedy"])


def test_layers_that_start_optimal_are_not_searched() -> None:
    # Every DP group has a node with all experts: no link carries anything, which the start shows at once.
    instance = tiny_instance(cluster={"nodes": 2, "gpus_per_node": 4})
    traffic = tiny_traffic(instance)
    solution = solve(instance, traffic, solver=Raises())
    assert set(solution.stop) == {Stop.PROVED}
    assert solution.verification.total_z == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_effort_that_is_spent_is_not_time(workers: int) -> None:
    solution = run(Spends(), workers)
    assert set(solution.stop) - {Stop.PROVED} == {Stop.WORK}  # some layers start optimal
    assert solution.seconds < 240


def test_why_a_search_stops() -> None:
    now = time.monotonic()
    assert why_stopped(Deadline(now + 60)) is Stop.WORK
    assert why_stopped(Deadline(now - 1)) is Stop.TIME
    assert why_stopped(Deadline(now + 60, lambda: True)) is Stop.INTERRUPTED
    assert why_stopped(Deadline(now - 1, lambda: True)) is Stop.INTERRUPTED
