"""Cooling as a step of a solve: what it costs links, whom it concerns, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from command_line import TINY, run

from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import Traffic

SLOTS = {"slots_per_gpu": 3, "replica_routing": "even", "replicas": {"redundant_slots": 8}}


def several(minimise: str = "layers", **placement: Any) -> tuple[Instance, Traffic]:
    """16 experts and 8 more replicas on 4 nodes of 2 GPUs with 3 slots."""
    instance = tiny_instance(
        model={"experts": 16},
        cluster={"nodes": 4, "gpus_per_node": 2},
        placement={**SLOTS, **placement},
        parallelism={"dp": 1},
        objective={"minimise": minimise},
    )
    return instance, tiny_traffic(instance, 5)


def solved(minimise: str = "layers", gap: float = 0.02, solver: str = "auto", cool: bool | None = None) -> Solution:
    instance, traffic = several(minimise)
    return solve(instance, traffic, solver=solver, limits=Limits(gap=gap, work=0.5), cool_gpus=cool)


@pytest.mark.parametrize("gap", [0.0, 0.02])
def test_no_layer_leaves_the_gap(gap: float) -> None:
    kept, cooled = solved(gap=gap, cool=False), solved(gap=gap)
    assert kept.cooling is None
    assert cooled.cooling is not None
    for before, after in zip(kept.verification.layers, cooled.verification.layers, strict=True):
        assert after.z <= max(before.z, after.bound * (1 + gap)) * (1 + 1e-9)
    assert cooled.cooling.busiest_after < cooled.cooling.busiest_before
    assert cooled.cooling.z_after == pytest.approx(cooled.objective)
    assert cooled.cooling.z_before == pytest.approx(kept.objective)


def test_other_methods_are_cooled_on_request_only() -> None:
    plain, kept, cooled = (solved(solver="eplb", cool=cool) for cool in (None, False, True))
    assert plain.placement.to_json() == kept.placement.to_json()
    assert plain.cooling is None
    assert cooled.cooling is not None
    assert cooled.cooling.busiest_after <= cooled.cooling.busiest_before
    assert cooled.objective <= plain.objective * (1 + 1e-9)


def test_what_layers_come_to_together_is_left_alone() -> None:
    kept, cooled = solved("aggregate", cool=False), solved("aggregate", cool=True)
    np.testing.assert_array_equal(kept.verification.cost, cooled.verification.cost)
    assert cooled.cooling is not None
    assert cooled.cooling.busiest_after <= cooled.cooling.busiest_before


def test_one_slot_per_gpu_leaves_nothing_to_trade() -> None:
    instance = tiny_instance()
    solution = solve(instance, tiny_traffic(instance, 0), limits=Limits(work=1), cool_gpus=True)
    assert solution.cooling is None


def test_an_interrupted_solve_is_not_held_up() -> None:
    instance, traffic = several()
    solution = solve(instance, traffic, limits=Limits(work=2), interrupted=lambda: True)
    assert solution.cooling is not None
    assert solution.cooling.busiest_after == solution.cooling.busiest_before


def test_the_command_says_what_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "several.yaml"
    path.write_text(TINY.read_text().replace("experts: 4", "experts: 16") + "placement: {slots_per_gpu: 4}\n")
    arguments = ["solve", path, "--no-dag", "-q", "--work", 1, "-o", tmp_path / "out"]
    assert "Busiest GPUs cooled after the search: " in run(*arguments).stdout
    assert json.loads(run(*arguments, "--json", "--keep-gpus").stdout)["cooling"] is None
