"""Dispatch once per node on real routing: what search saves, on the sequences it saw and on others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from moe_placer.bounds.bounds import companions_bound
from moe_placer.instance import load_instance
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.solve.layerwise import LayerTask
from moe_placer.solve.registry import find_solver
from moe_placer.solvers.coverage import CoverageSolver
from moe_placer.traffic.recording import Recording, Traffic

REPO = Path(__file__).parents[2]
TRACES = Path(os.environ.get("MOE_PLACER_TRACES", REPO.parent / "shared" / "traces"))
REAL = [TRACES / f"esft_deepseek-v2-lite_{text}.npz" for text in ("intent", "summary")]
LAYERS = (3, 14)
needs_traces = pytest.mark.skipif(
    not all(file.exists() for file in REAL), reason="no real traces at ../shared/traces; set MOE_PLACER_TRACES"
)


def half(parity: int) -> Problem:
    """Compile the instance with the sequences of even or odd numbers."""
    instance = load_instance(REPO / "instances" / "dsv2-lite-128-per-node.yaml").with_traces(REAL)
    recordings = []
    for file in REAL:
        data = np.load(file)
        topk = data["topk"][data["seq"] % 2 == parity]
        load = np.stack([np.bincount(topk[:, layer].ravel(), minlength=64) for layer in range(topk.shape[1])])
        recordings.append(Recording(file.name, load.astype(float), np.full(len(load), float(len(topk))), topk))
    return compile_problem(instance, Traffic(tuple(recordings), np.array(instance.traffic.mix)))  # type: ignore[union-attr]


@needs_traces
def test_it_saves_copies_on_sequences_that_it_did_not_see() -> None:
    seen, unseen = half(0), half(1)
    plans = {
        name: find_solver(name).solve(seen, Limits(), 0, None, lambda _index, _result: None)
        for name in ("contiguous", "eplb", "affinity")
    }
    total = dict.fromkeys([*plans, "coverage"], 0.0)
    for index in LAYERS:
        layer: LayerProblem = seen.layer(index)
        placed = CoverageSolver().solve_layer(
            LayerTask(layer, 0.0, 1.0, np.random.default_rng(0), plans["eplb"][index])
        )
        assert placed.node is not None
        assert layer.valid(placed.node)
        assert placed.bound.proof == "companions"
        assert placed.z <= 1.3 * placed.bound.value
        nodes = {"coverage": placed.node, **{name: results[index].node for name, results in plans.items()}}
        for name, node in nodes.items():
            assert node is not None
            total[name] += unseen.layer(index).z(node)
    assert total["coverage"] < 0.9 * total["affinity"]
    assert total["coverage"] < 0.75 * min(total["contiguous"], total["eplb"])


@needs_traces
def test_a_bound_holds_for_every_plan_there_is() -> None:
    problem = half(0)
    layer = problem.layer(LAYERS[0])
    rng = np.random.default_rng(1)
    node = np.repeat(np.arange(layer.nodes), layer.slots)
    bound = companions_bound(layer, node, Deadline()).value
    assert bound > 0.5 * layer.z(node)
    assert all(layer.z(rng.permutation(node)) >= bound for _ in range(20))
