"""The public expert-load-balancing heuristic (EPLB): copies by load, then balanced packing. It never looks at links.

Described in deepseek-ai/EPLB (README, 2025): *hierarchical* packs groups of experts to nodes by load, makes copies
within each node, and packs copies to GPUs; *global* makes copies and packs them to GPUs anywhere. Here every expert is
its own group. Where the instance fixes the number of copies (``replicas: dp``), only the packing is left to decide.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.heuristic import OnePass, heuristic_result, lightest_first
from moe_placer.problem import Problem, copies_by_load
from moe_placer.result import LayerResult

__all__ = ["Eplb", "EplbGlobal"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class EplbGlobal(OnePass):
    """Copies by load, packed to the least loaded GPUs anywhere."""

    name = "eplb-global"
    summary = "EPLB, global: balances GPU load over the whole cluster"
    source = "https://github.com/deepseek-ai/EPLB"

    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        return _global(problem, index, rng)


class Eplb(EplbGlobal):
    """Experts packed to nodes by load, then copies within nodes, then GPUs; global where nodes do not divide evenly."""

    name = "eplb"
    summary = "EPLB, hierarchical: balances node load, then GPU load"

    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        if not problem.copies_are_free:
            layer = problem.layer(index)
            return heuristic_result(layer, balanced_packing(layer.load, layer.slots), rng)
        return _within_nodes(problem, index, rng) or _global(problem, index, rng)


def _global(problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
    layer = problem.layer(index)
    if problem.shards > 1:
        return heuristic_result(layer, balanced_packing(layer.load, layer.slots), rng)
    gpu = balanced_packing(layer.load, problem.capacity.slots[index])
    # Two copies on one GPU serve nobody: the packing step moves one of them, within the node where it can.
    doubled = len(gpu) - len(np.unique(gpu * (layer.expert.max() + 1) + layer.expert))
    keep = not doubled and not problem.pinned
    return heuristic_result(layer, gpu // problem.gpus_per_node, rng, gpu if keep else None, repaired=doubled)


def _within_nodes(problem: Problem, index: int, rng: np.random.Generator) -> LayerResult | None:
    """Keep copies on their expert's node; None where experts or slots do not divide evenly over nodes."""
    experts, nodes = problem.copies.shape[1], problem.nodes
    replicas = int(problem.copies[index].sum())
    slots = problem.capacity.node_slots[index]
    if experts % nodes or replicas % nodes or (slots < replicas // nodes).any():
        return None
    load = problem.demand[index].sum(axis=0)
    home = balanced_packing(load, np.full(nodes, experts // nodes))
    copies = np.ones(experts, dtype=np.int64)
    for n in range(nodes):
        mine = np.flatnonzero(home == n)
        if problem.together[n] * len(mine) < replicas // nodes:
            return None
        copies[mine] = copies_by_load(load[mine], replicas // nodes, int(problem.together[n]))
    layer = problem.layer(index, copies)
    return heuristic_result(layer, home[layer.expert], rng, copies=copies)


def balanced_packing(load: Floats, slots: Ints) -> Ints:
    """Put the heaviest item first, each into the lightest pack with a slot left; return the pack of each item.

    Where no pack takes more than one item there is nothing to balance, and items go to packs in order.
    """
    if slots.max() <= 1:
        return np.flatnonzero(slots > 0)[: len(load)]
    return lightest_first(load, slots)
