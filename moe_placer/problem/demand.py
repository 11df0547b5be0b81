"""Who wants which expert: kept as what recordings say and how nodes mix these, since nodes are many and recordings few.

What a single layer has of its own is then [recordings, experts] instead of [nodes, experts], which is what travels to
the worker that places it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic import Traffic

__all__ = ["Demand", "demand", "demand_of", "mixed"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FEW = 32  # recordings up to which sums over them are quick without BLAS, whose last bits depend on its threads


@dataclass(frozen=True, eq=False)
class Demand:
    """The expected demand ``T[l, s, e] = started / part * sum_f mix[s, f] share[l][f, e]`` in tokens per step.

    Attributes
    ----------
    mix : float array [nodes, recordings]
        Share of a node's tokens that are like each recording.
    started : float
        Tokens that start on a node per step.
    share : mapping
        Index of an MoE layer to how often a token of each recording chooses each expert [recordings, experts]; a
        worker knows its own layer only.
    part : int
        Equal parts into which a node's tokens fall: its GPUs, where these are the nodes of the problem.
    """

    mix: Floats
    started: float
    share: Mapping[int, Floats]
    part: int = 1

    def __getitem__(self, index: int) -> Floats:
        """Tokens per step from each node to each expert in the index-th MoE layer [nodes, experts]."""
        tokens = np.einsum("sf,fe->se", self.mix, self.share[index])
        tokens *= self.started
        return tokens if self.part == 1 else np.asarray(tokens / self.part)

    def of(self, layers: range) -> Floats:
        """Tokens per step from each node to each expert in some MoE layers [layers, nodes, experts]."""
        return np.stack([self[index] for index in layers])

    @property
    def nodes(self) -> int:
        """Nodes on which tokens start."""
        return len(self.mix)

    @cached_property
    def per_recording(self) -> Floats:
        """Tokens per step that each node starts, by the recording that they are like [nodes, recordings]."""
        return np.asarray(self.started * self.mix / self.part)

    @cached_property
    def load(self) -> Floats:
        """Tokens per step that choose each expert, from all nodes [MoE layers, experts]."""
        return np.stack([self[index].sum(axis=0) for index in self.share])

    def split(self, node: Ints) -> Demand:
        """Return the demand of the GPUs on ``node[gpu]``, each of which starts as many of its node's tokens."""
        return replace(self, mix=self.mix[node], part=self.part * (len(node) // self.nodes))

    def without_layers(self) -> Demand:
        """Return what all layers have alike."""
        return replace(self, share={})

    def with_layer(self, index: int, share: Floats) -> Demand:
        """Return the demand of the one layer that has this ``share`` [recordings, experts]."""
        return replace(self, share={index: share})


def demand_of(instance: Instance, traffic: Traffic) -> Demand:
    """Return the expected demand; more recordings than nodes are added up to one of each node."""
    started = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    layers = range(len(instance.moe_layers))
    shares = {index: np.stack([one.load[index] / one.tokens[index] for one in traffic.recordings]) for index in layers}
    if traffic.mix.shape[1] <= len(traffic.mix):
        return Demand(traffic.mix, started, shares)
    by_node = {index: np.einsum("sf,fe->se", traffic.mix, share) for index, share in shares.items()}
    return Demand(np.eye(len(traffic.mix)), started, by_node)


def demand(instance: Instance, traffic: Traffic) -> Floats:
    """Return the expected demand ``T[l, s, e]`` [MoE layers, nodes, experts] in tokens per step."""
    return demand_of(instance, traffic).of(range(len(instance.moe_layers)))


def mixed(first: Floats, second: Floats, out: Floats | None = None) -> Floats:
    """Return ``first.T @ second``; where either has few rows or columns, with the same bits in every process."""
    if min(first.shape) > _FEW:
        return np.matmul(first.T, second, out=out)
    return np.asarray(np.einsum("kr,kc->rc", first, second, out=out))
