"""Random swaps: a template for a solver of your own. Swap the nodes of two replicas; keep what is not worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_placer.plugin import LayerResult, LayerSolver, LayerTask, Stop, best_bound, why_stopped

_SWAPS_PER_WORK = 2_000  # deterministic effort is counted, not timed, so that the same seed gives the same placement


class RandomSwaps(LayerSolver):
    """Hill climbing by random swaps, from the best heuristic placement."""

    name = "random-swaps"
    summary = "random swaps of two replicas, kept where the busiest link is not hotter"
    source = "examples/solver_plugin of moe_placer"

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer; later calls go on from the result of the call before."""
        layer, start = task.layer, task.start
        if start is None or start.node is None:  # no heuristic has a placement: there is nothing to swap
            return LayerResult(None, np.inf, best_bound(layer), Stop.FINISHED)
        node, z, swaps = start.node.copy(), start.z, 0
        while swaps < task.work * _SWAPS_PER_WORK and not task.deadline.over and z > start.bound.value * (1 + task.gap):
            a, b = task.rng.integers(layer.items, size=2)
            node[[a, b]] = node[[b, a]]
            swapped = layer.z(node) if layer.valid(node) else np.inf
            if swapped <= z:
                z = swapped
            else:
                node[[a, b]] = node[[b, a]]
            swaps += 1
        stop = Stop.GAP if z <= start.bound.value * (1 + task.gap) else why_stopped(task.deadline)
        return replace(start, node=node, z=z, stop=stop, work=swaps / _SWAPS_PER_WORK)
