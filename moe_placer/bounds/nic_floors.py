"""Lower bounds on the load of NICs: the hottest replica where its GPU receives, and what a node's own GPUs send."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.hot_replicas import least_peak, replicas_needed
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem

__all__ = ["NicFloors", "nic_floors"]

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class NicFloors:
    """Costs of one NIC in each MoE layer that no placement is below (tokens at node-link speed).

    Attributes
    ----------
    hottest : float array [MoE layers]
        What arrives for the hottest replica, on a GPU of the node that starts most of its tokens.
    sending : float array [MoE layers]
        What leaves some node over its link and, in equal shares, over its NICs.
    redundant_slots : float array [MoE layers]
        Redundant slots with which the hottest replica may come down to ``sending``.
    """

    hottest: Floats
    sending: Floats
    redundant_slots: Floats

    @property
    def binding(self) -> int:
        """Layers in which the hottest replica costs more on its NIC than a node's link must carry."""
        return int((self.hottest > self.sending * (1 + _ROUNDING)).sum())


def nic_floors(problem: Problem) -> NicFloors | None:
    """Work out the floors of every layer; None where no NIC receives for single GPUs."""
    if problem.home is None:
        return None
    layers = [problem.layer(index) for index in range(len(problem))]
    sending = np.array([_sending(problem, layer, index) for index, layer in enumerate(layers)])
    hottest = np.array([_hottest(layer) for layer in layers])
    pairs = zip(layers, sending.tolist(), strict=True)
    needed = [replicas_needed(_whole(layer), least) - problem.replicas.shape[1] for layer, least in pairs]
    return NicFloors(hottest, sending, np.array(needed))


def _alone(layer: LayerProblem) -> Floats:
    """Cost of each item on its NIC, on the GPU where that is least [I]."""
    return np.asarray(layer.delta[:, layer.widest > 0, -1].min(axis=1))


def _whole(layer: LayerProblem) -> Floats:
    """Cost of each expert on one NIC if all of its tokens went to one replica [experts]."""
    tokens = np.zeros((int(layer.expert.max()) + 1, layer.nodes))
    np.add.at(tokens, layer.expert, layer.delta[:, :, -1])
    return np.asarray(tokens[:, layer.widest > 0].min(axis=1))


def _hottest(layer: LayerProblem) -> float:
    if layer.replicas_are_free:
        return least_peak(_whole(layer), layer.most_items)
    return float(_alone(layer).max())


def _sending(problem: Problem, layer: LayerProblem, index: int) -> float:
    """Return what some node's link carries at least; 0 where a token goes once to several experts.

    A node keeps the choices of the experts that would fit on it at most; and what leaves nodes on average is all but
    what every replica gets from the node that starts most of its tokens.
    """
    if problem.coverage or problem.home is None:
        return 0.0
    tokens = problem.item_demand(index, layer.expert, layer.replica)
    _, first = np.unique(problem.home, return_index=True)
    by_node = np.add.reduceat(tokens, first, axis=0)
    mean = float((by_node.sum(axis=0) - by_node.max(axis=0)).sum()) / len(by_node)
    slots = np.bincount(problem.home, layer.widest).astype(int).tolist()
    wanted = np.add.reduceat(problem.demand[index], first, axis=0)
    kept = [float(np.sort(row)[::-1][:most].sum()) for row, most in zip(wanted, slots, strict=True)]
    return max(mean, float((wanted.sum(axis=1) - np.array(kept)).max(initial=0.0)))
