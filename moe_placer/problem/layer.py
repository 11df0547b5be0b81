"""One MoE layer as plain arrays: its items, its links, and what each item costs them on each node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.problem.coverage import Coverage
from moe_placer.problem.near_replicas import NearLayer
from moe_placer.problem.scenarios import Judge

__all__ = ["LayerProblem"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """One MoE layer: I items, N nodes, K links, at most M links affected by a node.

    Attributes
    ----------
    layer : int
        Index in the model.
    expert, replica : int array [I]
        Which replica each item is. Items are ordered by replica, then expert.
    symmetry_class : int array [I]
        Items of one class are interchangeable: same expert, same demand.
    slots : int array [N]
        Items that a node may hold.
    widest : int array [N]
        Items that a node could hold if memory did not bind over layers; bounds use this.
    together : int array [N]
        Replicas of one expert that may share a node.
    pinned : int array [I]
        The node an item must be on, or -1.
    base : float array [K]
        Cost of each link with every item elsewhere (tokens at node-link speed).
    affected : int array [N, M]
        Links whose cost depends on which items node n holds; K where there are fewer than M.
    delta : float array [I, N, M]
        What item i on node n adds to these links.
    load : float array [I]
        Tokens per step that choose item i, from all nodes.
    replicas_are_free : bool
        Whether other numbers of replicas would be allowed; bounds must then hold for these too.
    shares_replicas : bool
        Whether layers share these, so that how many items there are in all is a choice, too.
    gpu_price : float
        Cost that takes as long on the wire, there and back, as a GPU takes for one token.
    coverage : Coverage or None
        Where a token goes once to each node: what decides the cost, which is then not linear. ``base`` and ``delta``
        still say what one copy per chosen expert would cost, which is all that methods of that model look at.
    home : int array [N] or None
        Where nodes of the problem are single GPUs that receive by NICs of their own: the node of each. The last column
        of ``affected`` is then the NIC, which nothing but what GPUs hold loads.
    most_items : int
        Items that the layer may have, where how many is a choice.
    least_replicas : int
        Replicas that every expert must have, where how many is a choice.
    domain : int array [N] or None
        Failure domain of each node, none of which may hold all replicas of an expert; None: there is no such rule.
    judge : Judge or None
        What is counted of scenarios, where that is not the worst: z is then no cost of a link.
    near : NearLayer or None
        Of a rule by which an expert's tokens depend on where all its replicas are: what decides the cost, on average
        over draws. ``delta`` then says what replicas that get as much would cost.
    """

    layer: int
    expert: Ints
    replica: Ints
    symmetry_class: Ints
    slots: Ints
    widest: Ints
    together: Ints
    pinned: Ints
    base: Floats
    affected: Ints
    delta: Floats
    load: Floats
    replicas_are_free: bool = False
    shares_replicas: bool = False
    gpu_price: float = 0.0
    coverage: Coverage | None = None
    home: Ints | None = None
    most_items: int = 0
    least_replicas: int = 1
    domain: Ints | None = None
    judge: Judge | None = None
    near: NearLayer | None = None

    @property
    def items(self) -> int:
        """Expert replicas to place."""
        return len(self.expert)

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return len(self.slots)

    @property
    def links(self) -> int:
        """Distinct links."""
        return len(self.base)

    def cost(self, node: Ints) -> Floats:
        """Cost of every link [K] when item i is on ``node[i]``."""
        if self.coverage is not None:
            return self.coverage.cost(self.expert, self.replica, node)
        if self.near is not None:
            return self.near.cost(self.expert, node)
        items = np.arange(self.items)
        affected = self.affected[node]
        total = np.bincount(affected.ravel(), self.delta[items, node].ravel(), minlength=self.links + 1)
        cost = self.base + total[: self.links]
        cost[cost < _ROUNDING * self.base] = 0.0  # what cancels exactly, up to rounding
        return cost

    def z(self, node: Ints) -> float:
        """Cost of the busiest link, or what ``judge`` makes of all costs."""
        cost = self.cost(node)
        return float(cost.max(initial=0.0)) if self.judge is None else self.judge.value(cost)

    @cached_property
    def incoming(self) -> npt.NDArray[np.bool_]:
        """Mask [N, M] of the affected links that only items on their nodes load, so that delta is the cost."""
        known = np.append(self.base == 0, False)
        return known[self.affected]

    def in_domains(self, node: Ints) -> Ints:
        """Count the replicas of each expert in each failure domain [experts, domains]; there must be such domains."""
        assert self.domain is not None
        on = np.zeros((int(self.expert.max()) + 1, int(self.domain.max()) + 1), dtype=np.int64)
        np.add.at(on, (self.expert, self.domain[node]), 1)
        return on

    def gathered(self, node: Ints) -> npt.NDArray[np.bool_]:
        """Mask of the items [I] of experts all of whose replicas are in one failure domain."""
        if self.domain is None:
            return np.zeros(self.items, dtype=bool)
        alone = np.asarray((self.in_domains(node) >= np.bincount(self.expert)[:, None]).any(axis=1))
        return np.asarray(alone[self.expert])

    def valid(self, node: Ints) -> bool:
        """Whether slots, replicas apart, failure domains and pins are respected."""
        if (np.bincount(node, minlength=self.nodes) > self.slots).any():
            return False
        pins = self.pinned >= 0
        if (node[pins] != self.pinned[pins]).any():
            return False
        if self.domain is not None and self.gathered(node).any():
            return False
        pairs, count = np.unique(node * (self.expert.max() + 1) + self.expert, return_counts=True)
        return bool((count <= self.together[pairs // (self.expert.max() + 1)]).all())
