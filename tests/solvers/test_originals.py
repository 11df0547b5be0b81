"""Our methods against the originals, on equal input.

SGLang's modules need no more of their package than the files themselves, and torch on a CPU:
``pip install --no-deps sglang`` and torch, then ``pytest -m originals``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from builders import level_traffic, tiny_instance

from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult
from moe_placer.solve.registry import find_solver

pytestmark = pytest.mark.originals

EXPERTS, NODES, GPUS_PER_NODE, LAYERS = 256, 4, 8, 6
SETTINGS = {"288 slots": (32, 9), "no redundant slots": (0, 8), "one slot a GPU": (32, 72)}  # redundant, slots a GPU


def original(name: str) -> ModuleType:
    """Load one of SGLang's files by its place, without importing SGLang."""
    try:
        package = importlib.metadata.distribution("sglang")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("SGLang is not installed (its sources are enough: pip install --no-deps sglang)")
    path = str(package.locate_file(f"sglang/srt/eplb/eplb_algorithms/{name}.py"))
    spec = importlib.util.spec_from_file_location(f"original_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn_load() -> np.ndarray:
    """Draw skewed whole counts, all different: the originals compute with 32 bits, and break ties in no set order."""
    rng = np.random.default_rng(0)
    return np.stack(
        [rng.permutation(np.unique(np.round(1e6 * rng.lognormal(0.0, 0.6, 1000))))[:EXPERTS] for _ in range(LAYERS)]
    )


def problem_of(load: np.ndarray, redundant: int, slots: int) -> Problem:
    one_each = slots == 72
    instance = tiny_instance(
        model={"layers": LAYERS, "dense_layers": [], "experts": EXPERTS, "top_k": 8},
        cluster={
            "nodes": NODES,
            "gpus_per_node": 72 if one_each else GPUS_PER_NODE,
            "fabric": {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 2},
        },
        parallelism={"dp": 1},
        placement={
            "replica_routing": "even",
            "replicas": {"redundant_slots": redundant},
            "slots_per_gpu": 1 if one_each else slots,
        },
    )
    return compile_problem(instance, level_traffic(instance, load.tolist(), float(load[0].sum()) / 8))


def ours(problem: Problem, method: str) -> list[LayerResult]:
    return find_solver(method).solve(problem, Limits(), 0, None, lambda index, result: None)


@pytest.mark.parametrize("method", ["eplb", "eplb-global"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_eplb_is_the_original(setting: str, method: str) -> None:
    redundant, slots = SETTINGS[setting]
    load = drawn_load()
    problem = problem_of(load, redundant, slots)
    gpus = len(problem.capacity.memory_slots)
    torch = pytest.importorskip("torch", reason="torch is not installed")
    args: dict[str, Any] = {"num_replicas": EXPERTS + redundant, "num_nodes": NODES, "num_gpus": gpus}
    expert_of_slot, _, replicas = original("deepseek").rebalance_experts(
        torch.tensor(load), num_groups=EXPERTS, enable_hierarchical=method == "eplb", **args
    )
    home = np.arange(EXPERTS + redundant) * gpus // (EXPERTS + redundant)  # GPU of each of their slots
    for index, result in enumerate(ours(problem, method)):
        assert result.node is not None
        assert result.gpu is not None
        expert, _ = problem.items(index, result.replicas)
        theirs, count = expert_of_slot[index].numpy(), replicas[index].numpy()
        assert np.bincount(expert, minlength=EXPERTS).tolist() == count.tolist()
        assert sorted(zip(expert, result.node, strict=True)) == sorted(zip(theirs, home * NODES // gpus, strict=True))
        load_per_replica = load[index] / count
        gpu_load = np.bincount(result.gpu, load_per_replica[expert], gpus)
        their_load = np.bincount(home, load_per_replica[theirs], gpus)
        # The original lets replicas of one expert meet on a GPU; moving them apart changes two GPUs a little.
        assert result.repaired == len(theirs) - len(set(zip(theirs.tolist(), home.tolist(), strict=True)))
        assert gpu_load.max() == pytest.approx(their_load.max(), rel=1e-2 if result.repaired else 1e-6)
        assert np.sort(gpu_load) == pytest.approx(np.sort(their_load), rel=1e-2 if result.repaired else 1e-6)
