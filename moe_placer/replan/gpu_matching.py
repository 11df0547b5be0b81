"""Which GPU of its node an item takes: the one that holds its expert now, so that nothing moves inside a node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.errors import DefectError
from moe_placer.problem.compile import LayerProblem

__all__ = ["match_gpus"]

Ints = npt.NDArray[np.int64]


def match_gpus(layer: LayerProblem, node: Ints, now: LayerProblem, gpu_now: Ints, slots: Ints) -> Ints:
    """Return the GPU of each item, where GPUs take one item: those that stay keep theirs, others take what is left.

    Parameters
    ----------
    layer : LayerProblem
        As planned, with ``node`` of each item.
    now : LayerProblem
        As it runs, with ``gpu_now`` of each item.
    slots : int array [GPUs]
        0 where a GPU takes nothing.
    node : int array
        Node of each item [items] after the moves.
    gpu_now : int array
        GPU of each item [items] now; -1: none.
    """
    per_node = len(slots) // layer.nodes
    gpu = np.full(layer.items, -1, dtype=np.int64)
    free = set(np.flatnonzero(slots > 0).tolist())
    own = {(int(e), int(r)): int(g) for e, r, g in zip(now.expert, now.replica, gpu_now, strict=True)}
    of_expert: dict[int, list[int]] = {}
    for (e, _), g in own.items():
        of_expert.setdefault(e, []).append(g)
    keys = list(zip(layer.expert.tolist(), layer.replica.tolist(), node.tolist(), strict=True))
    for i, (e, r, n) in enumerate(keys):
        mine = own.get((e, r), -1)
        if mine // per_node == n and mine in free:
            gpu[i] = mine
            free.discard(mine)
    for i, (e, _, n) in enumerate(keys):  # another replica of the expert left this node: its weights are here
        mine = next((g for g in of_expert.get(e, []) if g // per_node == n and g in free), -1) if gpu[i] < 0 else -1
        if mine >= 0:
            gpu[i] = mine
            free.discard(mine)
    for i, (_, _, n) in enumerate(keys):
        if gpu[i] < 0:
            left = [g for g in range(n * per_node, (n + 1) * per_node) if g in free]
            if not left:
                raise DefectError(f"node {n} has no GPU left for what was put there", ["slots"])
            gpu[i] = left[0]
            free.discard(left[0])
    return gpu
