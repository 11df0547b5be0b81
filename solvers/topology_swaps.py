"""Swaps experts between ranks while the sum of rank costs falls.

Described from an open pull request of SGLang, "add topology-aware expert placement" (#37923, 2026): given a matrix of
costs between ranks, experts trade ranks as long as the tokens times the cost of the ranks they go between becomes less,
and no rank gets more load than the busiest had at the start. Here the cost is the number of links between two ranks'
nodes, 0 within a node, ranks are those of one EP group, and the start is EPLB's hierarchical placement, which also
serves instances with replicas (the original starts from experts in order, and refuses replicas).

With ``P[i, n]`` the tokens of item i times the links they cross if it is on node n, a trade of i and j changes the sum
by ``gain[i, n_j] + gain[j, n_i]`` with ``gain[i, n] = P[i, n] - P[i, n_i]``. So the best trade of two nodes is found
from the best gain of each, and trades between other nodes do not disturb it: each round makes many.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.survival import Spread
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import EngineRule, gpu_result, heuristic_result
from moe_placer.solvers.eplb import Eplb, ranks_within_nodes

__all__ = ["TopologySwaps"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ENOUGH = 1e-9  # of the sum of costs: a trade must save at least this


class TopologySwaps(EngineRule):
    """Local search on the sum of tokens times links crossed, which does not see which link is the worst."""

    name = "topology-swaps"
    summary = "from EPLB, swaps experts while tokens x hops fall, never above the busiest GPU's load"
    source = "https://github.com/sgl-project/sglang/pull/37923"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        start = Eplb().place_in_groups(problem, index, rng)
        if start.node is None:
            return start
        layer = problem.layer(index, start.replicas)
        price = problem.crossings(index, layer)
        rank = start.gpu if start.gpu is not None else ranks_within_nodes(problem, index, layer, start.node)
        node, rank = _swap(layer, price, start.node, rank, problem.group_of_node)
        if problem.shards > 1:
            return heuristic_result(layer, node, rng, replicas=start.replicas, repaired=start.repaired)
        result = gpu_result(problem, layer, rank, rng, start.replicas)
        return replace(result, repaired=result.repaired + start.repaired)


def _swap(layer: LayerProblem, price: Floats, node: Ints, rank: Ints, group: Ints) -> tuple[Ints, Ints]:
    """Trade places until no allowed trade lowers the sum of prices; return node and rank of each item.

    Parameters
    ----------
    price : float array [I, N]
        Of each item on each node.
    node, rank : int array [I]
        Where each item starts.
    group : int array [N]
        EP group of each node: items trade places inside one.
    """
    state = _State(layer, node.copy(), rank.copy(), group)
    least = -_ENOUGH * max(1e-300, float(price[np.arange(layer.items), node].sum()))
    while _round(state, price, least):
        pass
    return state.node, state.rank


def _round(state: _State, price: Floats, least: float) -> bool:
    """Make the best trades of disjoint pairs of nodes, the best first; say whether there was any."""
    layer, node = state.layer, state.node
    gain = price - price[np.arange(layer.items), node][:, None]
    gain[layer.pinned >= 0] = np.inf
    by_node = np.argsort(node, kind="stable")
    here = np.split(by_node, np.searchsorted(node[by_node], np.arange(1, layer.nodes)))
    used, first = np.unique(node[by_node], return_index=True)
    best = np.full((layer.nodes, layer.nodes), np.inf)  # [from, to]
    best[used] = np.minimum.reduceat(gain[by_node], first, axis=0)
    own = state.group[:, None] == state.group[None, :]
    one, other = np.nonzero(own & (np.triu(best + best.T, 1) < least))
    order = np.argsort((best + best.T)[one, other], kind="stable")
    traded: set[int] = set()
    for a, b in zip(one[order].tolist(), other[order].tolist(), strict=True):
        if a in traded or b in traded:
            continue
        change = gain[here[a], b][:, None] + gain[here[b], a][None, :]
        change[state.forbidden(here[a], here[b])] = np.inf
        i, j = divmod(int(change.argmin()), len(here[b]))
        if change[i, j] < least:
            state.trade(int(here[a][i]), int(here[b][j]))
            traded |= {a, b}
    return bool(traded)


class _State:
    """Where items are, and what keeps them from trading places."""

    def __init__(self, layer: LayerProblem, node: Ints, rank: Ints, group: Ints) -> None:
        self.layer, self.node, self.rank, self.group = layer, node, rank, group
        self.rank_load = np.bincount(rank, layer.load)
        self.most = float(self.rank_load.max(initial=0.0)) * (1 + 1e-12)
        self.crowded = bool(np.bincount(rank).max() > 1)  # with one item a rank, no trade can overload one
        replicas = np.bincount(layer.expert)
        self.on_rank = np.zeros((len(replicas), len(self.rank_load)), dtype=np.int64)
        np.add.at(self.on_rank, (layer.expert, rank), 1)
        self.on_node = np.zeros((len(replicas), layer.nodes), dtype=np.int64)
        np.add.at(self.on_node, (layer.expert, node), 1)
        self.apart_binds = bool(replicas.max() > 1 and (self.crowded or replicas.max() > layer.together.min()))

    def forbidden(self, here: Ints, there: Ints) -> Bools:
        """Mask [here, there] of trades that overload a rank, or bring replicas of one expert too close."""
        wrong = np.zeros((len(here), len(there)), dtype=bool)
        if self.crowded:
            wrong |= self._overloads(here, there) | self._overloads(there, here).T
        if self.layer.domain is not None:
            wrong |= self._gathers(here, there)
        if self.apart_binds:
            strangers = self.layer.expert[here][:, None] != self.layer.expert[there][None, :]
            wrong |= strangers & (self._crowds(here, there) | self._crowds(there, here).T)
        return wrong

    def _gathers(self, here: Ints, there: Ints) -> Bools:
        """Mask [here, there] of trades after which one failure would end an expert."""
        spread = Spread(self.layer, self.node)
        mine, theirs = self.layer.expert[here][:, None], self.layer.expert[there][None, :]
        away, back = self.node[here][:, None], self.node[there][None, :]
        return np.asarray((mine != theirs) & (spread.gathers(mine, away, back) | spread.gathers(theirs, back, away)))

    def trade(self, i: int, j: int) -> None:
        """Let two items take each other's place."""
        self._count((i, j), -1)
        self.node[[i, j]], self.rank[[i, j]] = self.node[[j, i]], self.rank[[j, i]]
        self._count((i, j), 1)

    def _count(self, items: tuple[int, int], sign: int) -> None:
        if self.crowded or self.apart_binds:
            for item in items:
                self.rank_load[self.rank[item]] += sign * self.layer.load[item]
                self.on_rank[self.layer.expert[item], self.rank[item]] += sign
                self.on_node[self.layer.expert[item], self.node[item]] += sign

    def _overloads(self, leaving: Ints, coming: Ints) -> Bools:
        """Mask [leaving, coming]: the rank that one leaves and the other joins gets more load than any had."""
        load = self.layer.load
        after = (self.rank_load[self.rank[leaving]] - load[leaving])[:, None] + load[coming][None, :]
        return np.asarray(after > self.most)

    def _crowds(self, leaving: Ints, coming: Ints) -> Bools:
        """Mask [leaving, coming]: the place that one leaves already has what it may of the other's replicas."""
        expert, node = self.layer.expert[coming], self.node[leaving]
        full = self.on_node[expert][:, node] >= self.layer.together[node]
        return np.asarray((full | (self.on_rank[expert][:, self.rank[leaving]] > 0)).T)
