"""Descents of all layers at once: what an offered change does, what the table of slots holds, and how far they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.current import read_current
from moe_placer.replan.fresh_plan import measure
from moe_placer.replan.gpu_descents import GpuDescents
from moe_placer.replan.gpu_trades import find_trades
from moe_placer.replan.replan import replan
from moe_placer.replan.slot_tables import SlotTable
from moe_placer.replan.task import Task
from moe_placer.replan.trades import LayerState
from moe_placer.solve.solve import solve
from moe_placer.traffic import make_traffic

EVEN = {"replica_routing": "even", "replicas": {"redundant_slots": 4}}
CASES: dict[str, dict[str, Any]] = {
    "items": {"placement": {"slots_per_gpu": 2}},
    "free slots": {"placement": {"slots_per_gpu": 2}, "model": {"experts": 6}},
    "replicas are a choice": {"placement": {**EVEN, "slots_per_gpu": 2}},
    "free slots, replicas a choice": {"placement": {**EVEN, "slots_per_gpu": 3}},
    "shared budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 6}}},
    "apart": {"placement": {**EVEN, "slots_per_gpu": 2, "replicas_apart": "node"}},
    "pinned": {"placement": {**EVEN, "slots_per_gpu": 2, "pinned": [{"layer": 1, "expert": 0, "gpu": 0}]}},
    "experts' GPUs receive": {
        "placement": {"slots_per_gpu": 2},
        "cluster": {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}},
    },
}


def planned(instance: Instance, seed: int) -> Placement:
    """Plan for some traffic, by a heuristic that knows nothing of the traffic that is replanned for."""
    return solve(instance, tiny_traffic(instance, seed), solver="greedy", limits=Limits(time_s=5.0)).placement


def task_for(instance: Instance, seed: int) -> Task:
    """Return the task of an even load of GPUs on other traffic than was planned for."""
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    now = read_current(problem, planned(instance, seed % 7))
    return Task(instance, now, [None] * len(problem), "gpus")


def same_as_built(task: Task, table: SlotTable, row: int) -> LayerState:
    """Hold what a table says of a layer against the layer that it is built as."""
    snapshot = table.snapshot(row, int(table.moves[row]), float(table.load[row].max()))
    layer, place = table.build(snapshot)
    state = LayerState(layer, place, task.starts[row].held, task.starts[row].slots, task.goal)
    assert layer.valid(state.node)
    assert (np.bincount(place, minlength=len(task.starts[row].slots)) <= task.starts[row].slots).all()
    assert state.moves == snapshot.moves
    assert state.gpu_load == pytest.approx(table.load[row])
    assert table.z([snapshot])[0] == pytest.approx(layer.z(state.node))
    return state


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), case=st.sampled_from(sorted(CASES)), inside=st.booleans(), slow=st.booleans())
def test_an_offered_change_does_what_it_says_and_can_be_undone(seed: int, case: str, inside: bool, slow: bool) -> None:
    task = task_for(tiny_instance(**CASES[case]), seed)
    rng, layers = np.random.default_rng(seed), np.arange(len(task.starts))
    table = SlotTable(task.starts, rng.uniform(1, 2, len(task.starts[0].slots)) if slow else None)
    for _ in range(4):
        target = table.load.max(axis=1) * rng.uniform(0.5, 0.9)
        offers = find_trades(table, layers, target, busy=2, least=1, inside=inside)
        step, score, change = offers.step(layers, rng.integers(2, size=len(layers)))
        real = np.isfinite(score)
        if not real.any():
            break
        step, score, change = step.only(real), score[real], change[real]
        before, moves, kind = excess(table, target), table.moves, table.kind.copy()
        comes, gone = step.new, table.kind[step.rows, step.gpu, step.other]
        apart = comes < 0  # or experts that do not meet on any GPU: then it is exact
        here, there = table.on[step.rows[~apart], gone[~apart]], table.on[step.rows[~apart], comes[~apart]]
        apart[~apart] = ~((here > 0) & (there > 0)).any(axis=1)
        back = table.apply(step)
        done = (excess(table, target) - before)[step.rows]
        assert done[apart] == pytest.approx(change[apart], rel=1e-9, abs=1e-6 * before.max(initial=1.0))
        more = (table.moves - moves)[step.rows]
        assert score == pytest.approx(change / np.where(more > 0, more, 0.25))
        for row in layers.tolist():
            if not slow:
                same_as_built(task, table, row)
        if rng.random() < 0.5:
            table.apply(back)
            assert np.array_equal(table.kind, kind)
            assert np.array_equal(table.moves, moves)
            assert excess(table, target) == pytest.approx(before)


def excess(table: SlotTable, target: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sum of squares [L] of what GPUs have above their layer's target."""
    return np.asarray((np.maximum(0.0, table.load - target[:, None]) ** 2).sum(axis=1))


@pytest.mark.parametrize("case", CASES)
def test_steps_together_lower_the_excess_and_keep_to_all_rules(case: str) -> None:
    task = task_for(tiny_instance(**CASES[case]), 11)
    table = SlotTable(task.starts, None)
    descents = GpuDescents(table, np.array([start.lowest_gpu for start in task.starts]), 1.0, inside=False)
    before = descents.excess
    descents.run(np.full(len(before), 99), Deadline())
    assert (descents.excess <= before).all()
    assert descents.excess.sum() < before.sum()
    for row in range(len(before)):
        same_as_built(task, table, row)
    for one in descents.snapshots:
        layer, place = table.build(one)
        state = LayerState(layer, place, task.starts[one.row].held, task.starts[one.row].slots, task.goal)
        assert (state.moves, state.busiest_gpu) == (one.moves, pytest.approx(one.busiest_gpu))


def test_after_a_drift_a_tenth_of_eplbs_moves_make_gpus_as_even_as_its_fresh_plan() -> None:
    """Eight layers of 64 experts in 72 slots on 8 GPUs, without any search beyond first descents."""
    instance = tiny_instance(
        model={"layers": 9, "experts": 64, "top_k": 4, "dense_layers": [0]},
        parallelism={"dp": 1},
        placement={"slots_per_gpu": 9, "replica_routing": "even", "replicas": {"redundant_slots": 8}},
    )
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 0.66, (8, 64)) * 1e4
    windows = [make_traffic(instance, load=[one]) for one in (load, load * rng.lognormal(0, 0.3, load.shape))]
    no_proof = Limits(time_s=60.0, bounds=False)
    before, fresh = (solve(instance, one, solver="eplb", limits=no_proof).placement for one in windows)
    eplb = measure(instance, before, fresh, windows[1], "gpus")
    effort = Limits(time_s=60.0, work=0.0, bounds=False)
    found = replan(
        instance, before, windows[1], budget=Budget(moves=eplb.moves // 10), minimise="gpus", limits=effort, check=False
    )
    assert found.after.moves <= eplb.moves / 10
    assert found.after.busiest_gpu <= 1.01 * eplb.busiest_gpu
