"""Which GPU of its node an item takes: the one that holds its expert now, so that nothing moves inside a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from moe_placer.errors import DefectError
from moe_placer.problem.layer import LayerProblem

__all__ = ["match_gpus"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def match_gpus(
    layer: LayerProblem, node: Ints, now: LayerProblem, gpu_now: Ints, slots: Ints, has_weights: Bools
) -> Ints:
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
    has_weights : bool array
        Items [items] of ``now`` whose GPU has their weights; others have to come there, or anywhere else.
    """
    per_node = len(slots) // layer.nodes
    gpu = np.full(layer.items, -1, dtype=np.int64)
    free = set(np.flatnonzero(slots > 0).tolist())
    own: dict[tuple[int, int], int] = {}
    coming: dict[tuple[int, int], int] = {}
    for e, r, g, has in zip(now.expert, now.replica, gpu_now, has_weights, strict=True):
        (own if has else coming)[int(e), int(r)] = int(g)
    of_expert: dict[int, list[int]] = {}
    for (e, _), g in own.items():
        of_expert.setdefault(e, []).append(g)
    keys = list(zip(layer.expert.tolist(), layer.replica.tolist(), node.tolist(), strict=True))
    wishes: list[Callable[[int, int, int], Iterable[int]]] = [
        lambda e, r, _: [own[e, r]] if (e, r) in own else [],
        lambda e, _r, _: of_expert.get(e, []),  # another replica of the expert left this node: its weights are here
        lambda e, r, _: [coming[e, r]] if (e, r) in coming else [],
        lambda _e, _r, n: range(n * per_node, (n + 1) * per_node),
    ]
    for wish in wishes:
        for i, (e, r, n) in enumerate(keys):
            mine = next((g for g in wish(e, r, n) if g // per_node == n and g in free), -1) if gpu[i] < 0 else -1
            if mine >= 0:
                gpu[i] = mine
                free.discard(mine)
    if (gpu < 0).any():
        node_without = int(node[gpu.argmin()])
        raise DefectError(f"node {node_without} has no GPU left for what was put there", ["slots"])
    return gpu
