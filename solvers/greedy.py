"""Places the most loaded items first, each where it makes the busiest link least bad."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.solve.heuristic import Heuristic

__all__ = ["Greedy"]


class Greedy(Heuristic):
    """List scheduling on links: the hottest expert first, each on the node whose busiest link stays coolest."""

    name = "greedy"
    summary = "hottest expert first, each to the node whose links stay coolest"
    source = "Graham's LPT rule (1969), applied to links"

    def place(self, layer: LayerProblem, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return the node of each item [I]."""
        del rng
        share = layer.slots / layer.slots.sum()
        spread = _spread(layer, share)  # [I, K]: an item not placed yet counts as spread over all slots
        cost = np.append(layer.base, 0.0) + spread.sum(axis=0)
        free = layer.slots.copy()
        replicas = np.zeros((int(layer.expert.max()) + 1, layer.nodes), dtype=np.int64)
        node = np.where(layer.pinned >= 0, layer.pinned, 0)
        for i in sorted(range(layer.items), key=lambda i: (layer.pinned[i] < 0, -layer.load[i], i)):
            cost -= spread[i]
            if layer.pinned[i] < 0:
                allowed = (free > 0) & (replicas[layer.expert[i]] < layer.together)
                node[i] = _coolest(cost, layer, i, allowed if allowed.any() else free > 0)
            n = node[i]
            cost[layer.affected[n]] += layer.delta[i, n]  # what stands for no link adds nothing, however often
            free[n] -= 1
            replicas[layer.expert[i], n] += 1
        return node


def _spread(layer: LayerProblem, share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    spread = np.zeros((layer.items, layer.links + 1))
    for n in range(layer.nodes):
        for m, k in enumerate(layer.affected[n]):
            spread[:, k] += share[n] * layer.delta[:, n, m]
    return spread


def _coolest(cost: npt.NDArray[np.float64], layer: LayerProblem, item: int, allowed: npt.NDArray[np.bool_]) -> int:
    """Return the node whose busiest link stays coolest; of equals, the one whose links rise least in squares."""
    before = cost[layer.affected]  # [N, M]
    after = before + layer.delta[item]
    worst = np.maximum(np.maximum.reduce(after, axis=1), np.maximum.reduce(cost[:-1], initial=0.0))
    worst[~allowed] = np.inf
    rise = np.add.reduce(after * after - before * before, axis=1)
    rise[~(worst <= np.minimum.reduce(worst) * (1 + 1e-9))] = np.inf
    return int(rise.argmin())
