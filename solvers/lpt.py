"""Longest processing time first: the hottest expert first, each to the least loaded GPU that has a slot.

Graham, "Bounds on Multiprocessing Timing Anomalies" (SIAM Journal on Applied Mathematics, 1969): with machines for GPUs
and loads for times, the busiest GPU has at most 4/3 of the least possible load, as long as slots do not bind. Of
equally loaded GPUs (with one slot each, of all that are still empty) one on the least loaded node is taken, so that
nodes are balanced as well. With ``group`` routing each DP group is an EP group of its own, on its own nodes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import EngineRule, gpu_result, heuristic_result, pack_in_groups

__all__ = ["Lpt", "longest_first"]

Ints = npt.NDArray[np.int64]


class Lpt(EngineRule):
    """List scheduling by load; an expert that is sharded over GPUs counts for its node as a whole."""

    name = "lpt"
    summary = "longest processing time first: hottest expert to the least loaded GPU, then node"
    source = "Graham (1969), https://doi.org/10.1137/0117039"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        layer = problem.layer(index)
        if problem.shards > 1:
            return heuristic_result(layer, _in_groups(problem, layer, layer.slots), rng)
        return gpu_result(problem, layer, _in_groups(problem, layer, problem.capacity.slots[index]), rng)


def _in_groups(problem: Problem, layer: LayerProblem, slots: Ints) -> Ints:
    """Return the machine of each item, GPUs or nodes [G], EP group by EP group."""
    home = np.arange(len(slots)) // (len(slots) // layer.nodes)
    return pack_in_groups(problem, layer, slots, lambda items, there: longest_first(layer, there, home, items)[items])


def longest_first(layer: LayerProblem, slots: Ints, home: Ints, items: Ints | None = None) -> Ints:
    """Return the machine of each item [I]; machine g has ``slots[g]`` slots and is on node ``home[g]``.

    With ``items``, only these are placed, and the others are said to be on machine 0.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    slots : int array
        Items that each machine can take [machines].
    home : int array
        Node of each machine [machines].
    items : int array or None
        Items to place; None: all.
    """
    machine_load, node_load = np.zeros(len(slots)), np.zeros(layer.nodes)
    left = slots.copy()
    replicas = np.zeros((int(layer.expert.max()) + 1, layer.nodes), dtype=np.int64)
    machines_of: dict[int, list[int]] = {}  # of each expert: replicas on one machine serve nobody
    single = len(slots) > layer.nodes
    chosen = np.zeros(layer.items, dtype=np.int64)
    # What is pinned has no choice, so it comes first.
    order = np.lexsort((-layer.load, layer.pinned < 0))
    for i in (order if items is None else order[np.isin(order, items)]).tolist():
        e = int(layer.expert[i])
        allowed = (left > 0) & (replicas[e] < layer.together)[home]
        if single:
            allowed[machines_of.get(e, [])] = False
        if layer.pinned[i] >= 0:
            allowed = home == layer.pinned[i]
        usable = np.flatnonzero(allowed if allowed.any() else left > 0)  # what breaks a rule is repaired afterwards
        lightest = usable[machine_load[usable] == machine_load[usable].min()]
        g = int(lightest[node_load[home[lightest]].argmin()])
        chosen[i] = g
        machine_load[g] += layer.load[i]
        node_load[home[g]] += layer.load[i]
        left[g] -= 1
        replicas[e, home[g]] += 1
        machines_of.setdefault(e, []).append(g)
    return chosen
