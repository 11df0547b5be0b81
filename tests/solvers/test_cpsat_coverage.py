"""The CP-SAT model of dispatch once per place: exact where it is small, refused with the reason where it is not."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from builders import tiny_instance, tiny_tokens

from moe_placer import Limits, solve
from moe_placer.problem.compile import compile_problem
from moe_placer.solve.layerwise import LayerTask
from moe_placer.solvers.coverage import CoverageSolver
from moe_placer.solvers.cpsat import CpSat
from moe_placer.solvers.cpsat_coverage import CoverageModel, fits_model

PER_NODE = {
    "model": {"experts": 6},
    "cluster": {"nodes": 3, "gpus_per_node": 2},
    "parallelism": {"dp": 1},
    "placement": {"dispatch": "per-node"},
}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_model_finds_and_proves_the_best(seed: int) -> None:
    instance = tiny_instance(**PER_NODE)
    layer = compile_problem(instance, tiny_tokens(instance, seed)).layer(0)
    z = {order: layer.z(np.array(order)) for order in sorted(set(permutations([0, 0, 1, 1, 2, 2])))}
    worst = np.array(max(z, key=lambda order: z[order]))
    model = CoverageModel(layer, 0.0, worst)
    task = LayerTask(layer, 1e-5, 5.0, np.random.default_rng(0))
    start = CoverageSolver().solve_layer(LayerTask(layer, 0.0, 0.01, np.random.default_rng(0)))
    found = model.solve(task, start.bound)
    assert found.node is not None
    assert found.z == layer.z(found.node) == pytest.approx(min(z.values()))
    assert found.best_bound == pytest.approx(found.z, rel=1e-5)  # costs are rounded off by up to that
    assert found.best_bound <= found.z


def test_auto_lets_it_settle_what_is_small() -> None:
    instance = tiny_instance(**PER_NODE)
    settled = solve(instance, tiny_tokens(instance, 1), limits=Limits(work=1.6, gap=1e-5))
    assert settled.solver_gaps.max() <= 1e-5
    assert settled.gaps.max() > 0.05  # what companions alone prove


def test_what_the_model_cannot_state_is_refused() -> None:
    even = {"dispatch": "per-node", "replica_routing": "even"}
    drawn = tiny_instance(model={"experts": 3}, cluster={"nodes": 3}, placement=even)
    problem = compile_problem(drawn, tiny_tokens(drawn, 0))
    assert "draw from several" in str(CpSat().refuses(problem))
    assert not fits_model(problem.layer(0))
    large = tiny_instance(
        model={"experts": 60, "layers": 2, "top_k": 4},
        cluster={"nodes": 8, "gpus_per_node": 8},
        parallelism={"dp": 1},
        placement={"dispatch": "per-node"},
    )
    assert "6,000 sets" in str(CpSat().refuses(compile_problem(large, tiny_tokens(large, 0, (900, 900)))))
