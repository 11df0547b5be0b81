"""One MoE layer under a rule that prefers near replicas: costs are sums over experts, each of all its replicas' places.

An expert's traffic depends on where its own replicas are, and on those of no other expert. So a trade changes what one
or two experts cost, which is counted anew; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe_placer.problem.capacity import Capacity
from moe_placer.problem.demand import Demand
from moe_placer.traffic.near_shares import NearRule

__all__ = ["NearLayer", "near_layer"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class NearLayer:
    """What a layer's experts cost on links and GPUs, by where their replicas are.

    Attributes
    ----------
    rule : NearRule
    tokens : float array [experts, nodes]
        Per step, that start on each node and choose the expert.
    reference : float array [K, nodes]
        Cost of a token from each node on every link when it goes elsewhere.
    affected : int array [N, M]
    change : float array [N, M, nodes]
        What a token from node s to node n adds to that on link ``affected[n, m]``.
    slots : int array [GPUs]
        Replicas that each GPU may hold in this layer.
    apart : bool
        Whether replicas of one expert keep to different nodes.
    counts_are_free : bool
        Whether how many replicas each expert has is a choice.
    most_items : int
        Replicas of all experts together.
    """

    rule: NearRule
    tokens: Floats
    reference: Floats
    affected: Ints
    change: Floats
    slots: Ints
    apart: bool
    counts_are_free: bool
    most_items: int

    @cached_property
    def base(self) -> Floats:
        """Cost of every link [K] with all tokens elsewhere."""
        return np.asarray(self.reference @ self.tokens.sum(axis=0))

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return int(self.tokens.shape[1])

    def held(self, expert: Ints, node: Ints) -> Ints:
        """Count the replicas of each expert on each node [experts, nodes]."""
        on = np.zeros(self.tokens.shape, dtype=np.int64)
        np.add.at(on, (expert, node), 1)
        return on

    def placed(self, expert: Ints, gpu: Ints) -> Bools:
        """Mask [experts, GPUs] of the GPUs that hold each expert."""
        on = np.zeros((len(self.tokens), len(self.slots)), dtype=bool)
        on[expert, gpu] = True
        return on

    def by_node(self, on: Bools) -> Ints:
        """Count replicas on each node [..., nodes], given the GPUs that hold them [..., GPUs]."""
        size = on.shape[-1] // self.nodes  # said in numbers, for there may be no rows
        return np.asarray(on.reshape(*on.shape[:-1], self.nodes, size).sum(axis=-1))

    def prices(self, weights: Floats) -> Floats:
        """Cost at link weights [K] of a token from every node to every node [nodes, nodes]."""
        of_node = np.append(weights, 0.0)[self.affected]
        return np.asarray((weights @ self.reference)[:, None] + np.einsum("nm,nms->sn", of_node, self.change))

    def links(self, held: Ints, tokens: Floats) -> Floats:
        """Cost of every link beyond ``base`` [..., K], on average over draws.

        Parameters
        ----------
        held : int array [..., nodes]
            Replicas of an expert on each node.
        tokens : float array [..., nodes]
            Of each node, for the expert.
        """
        return self.of_flow(self.rule.of_nodes(held) * tokens[..., :, None])

    def of_flow(self, flow: Floats) -> Floats:
        """Cost of every link beyond ``base`` [..., K], of tokens from every node to every node [..., nodes, nodes]."""
        added = np.matmul(self.change, np.swapaxes(flow, -1, -2)[..., None])[..., 0]  # on each node's links
        cost = np.zeros((*flow.shape[:-2], len(self.base) + 1))
        for m in range(self.affected.shape[1]):
            for node, link in enumerate(self.affected[:, m].tolist()):
                cost[..., link] += added[..., node, m]
        return np.asarray(cost[..., :-1])

    def cost(self, expert: Ints, node: Ints) -> Floats:
        """Cost of every link [K] when item i is on ``node[i]``, on average over draws."""
        held = self.held(expert, node)
        used = held.sum(axis=1) > 0
        flow = (self.rule.of_nodes(held[used]) * self.tokens[used][:, :, None]).sum(axis=0)
        return self._whole(self.of_flow(flow))

    def cost_of_shares(self, expert: Ints, gpu: Ints, share: Floats) -> Floats:
        """Cost of every link [K], given the share of each node's tokens that each item gets [nodes, items]."""
        flow = np.zeros((self.nodes, self.nodes))
        np.add.at(flow.T, gpu // self.rule.gpus_per_node, (self.tokens[expert] * share.T))
        return self._whole(self.of_flow(flow))

    def _whole(self, added: Floats) -> Floats:
        cost = self.base + added
        cost[cost < _ROUNDING * self.base] = 0.0  # what cancels exactly, up to rounding
        return np.asarray(cost)


class _Compiled(Protocol):
    """What is asked of a compiled problem."""

    @property
    def near(self) -> NearRule | None: ...

    @property
    def demand(self) -> Demand: ...

    @property
    def capacity(self) -> Capacity: ...

    @property
    def replicas_are_free(self) -> bool: ...

    @property
    def reference(self) -> Floats: ...

    @property
    def links_of_nodes(self) -> tuple[Ints, Floats]: ...


def near_layer(problem: _Compiled, index: int, most_items: int) -> NearLayer:
    """Return what the near rule of a problem makes of its index-th MoE layer, with at most so many items."""
    assert problem.near is not None
    touched, change = problem.links_of_nodes
    return NearLayer(
        rule=problem.near,
        tokens=np.ascontiguousarray(problem.demand[index].T),
        reference=problem.reference,
        affected=touched.T,
        change=np.ascontiguousarray(change.transpose(1, 0, 2)),
        slots=problem.capacity.slots[index],
        apart=problem.capacity.apart,
        counts_are_free=problem.replicas_are_free,
        most_items=most_items,
    )
