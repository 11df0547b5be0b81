"""A bound where how many replicas an expert has is a choice, and every replica loads the NIC of its own GPU.

docs/bounds.md states and proves it (``hot-replicas``). If all tokens of expert e went to one replica on place n, they
would cost ``C[e, n]`` on the busiest link that only what n holds loads. With c replicas each costs at least the least
``C[e, n]`` over c, so z is at least the least t with which ``sum over e of ceil(min_n C[e, n] / t)`` is no more than
the replicas that there are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["least_cost_of_experts", "least_peak", "replicas_needed"]

Floats = npt.NDArray[np.float64]


def least_cost_of_experts(layer: LayerProblem) -> Floats:
    """``min_n C[e, n]``: cost of all of an expert's tokens on the busiest link to its place, where that is best [E]."""
    one_of = np.flatnonzero(layer.replica == 0)
    whole = layer.delta[one_of] * np.bincount(layer.expert)[:, None, None]
    cost = np.where(layer.incoming[None], whole, 0.0).max(axis=2)
    return np.asarray(cost[:, layer.widest > 0].min(axis=1))


def least_peak(cost: Floats, replicas: int) -> float:
    """Return the least that the hottest replica costs if experts of ``cost`` [E] have so many replicas together."""
    if not len(cost) or replicas < len(cost):
        return 0.0
    found = np.unique(cost[:, None] / np.arange(1, replicas - len(cost) + 2))
    below, above = 0, len(found) - 1
    while below < above:
        middle = (below + above) // 2
        if replicas_needed(cost, float(found[middle])) <= replicas:
            above = middle
        else:
            below = middle + 1
    return float(found[above])


def replicas_needed(cost: Floats, threshold: float) -> float:
    """Return how many replicas experts of ``cost`` [E] need so that none costs more than a threshold."""
    if threshold <= 0:
        return float(len(cost)) if not cost.any() else np.inf
    with np.errstate(over="ignore"):  # then no number of replicas is enough
        return float(np.maximum(1, np.ceil(cost / threshold * (1 - 1e-12))).sum())
