"""The seed plan: experts in order, GPU after GPU.

Every GPU gets as many experts as any other, or one less, as engines deal them. Where the number of replicas is free,
redundant slots hold experts 0, 1, 2, ... once more, as in the first map of SGLang (``arange(slots) % experts``) and
vLLM, whatever the load.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import OnePass, even_slots, heuristic_result

__all__ = ["Contiguous"]

Ints = npt.NDArray[np.int64]


class Contiguous(OnePass):
    """Replica r of expert e is the ``(r * experts + e)``-th in order (with one full slot a GPU: on that GPU)."""

    name = "contiguous"
    summary = "experts in order, GPU after GPU: the usual default plan"
    source = "the deployment plan's own rule; what inference engines do without a map"

    def refuses(self, problem: Problem) -> str | None:
        """Say where the rule breaks a constraint."""
        for index in range(len(problem)):
            layer = problem.rules(index, _replicas(problem, index))
            node, gpu = _place(problem, index)
            together = gpu is not None and len(np.unique(gpu * (layer.expert.max() + 1) + layer.expert)) < len(gpu)
            if not layer.valid(node) or together:
                return (
                    f"in layer {layer.layer} the contiguous plan breaks slots, pins, or the distance between replicas"
                )
            for (at, e, r), pin in problem.pinned.items():
                if at == index and gpu is not None and gpu[(layer.expert == e) & (layer.replica == r)] != pin:
                    return f"expert {e} of layer {layer.layer} is pinned to GPU {pin}, where the plan does not put it"
        return None

    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer by the rule."""
        node, gpu = _place(problem, index)
        replicas = _replicas(problem, index)
        return heuristic_result(problem.layer(index, replicas), node, rng, gpu, replicas)


def _replicas(problem: Problem, index: int) -> Ints | None:
    """Return how often each expert is in ``0, 1, 2, ...``, modulo experts; None where the instance says."""
    if not problem.replicas_are_free:
        return None
    total, experts = int(problem.replicas[index].sum()), problem.replicas.shape[1]
    return np.bincount(np.arange(total) % experts, minlength=experts)


def _place(problem: Problem, index: int) -> tuple[Ints, Ints | None]:
    """Return node and GPU of each item; no GPU where an expert is sharded over several."""
    items = int(problem.replicas[index].sum())
    if problem.shards > 1:
        slots = problem.capacity.node_slots[index]
        return np.repeat(np.arange(problem.nodes), even_slots(slots, items)), None
    slots = problem.capacity.slots[index]
    gpu = np.repeat(np.arange(len(slots)), even_slots(slots, items))
    return gpu // problem.gpus_per_node, gpu
