"""Search over how many replicas each expert has: one replica of an expert goes, and another expert gets one more.

With ``even`` routing expert e with m replicas costs link k ``C[e, k] = sum over its replicas of c1[e, node, k] / m``,
where c1 is what a single replica would cost. Without its replica on node h it costs ``(m C - c1[h]) / (m - 1)``, with
one more on node t ``(m C + c1[t]) / (m + 1)``: the exact change of all links follows from C alone.

The excess over a target is convex in the costs, so its slope times the change of the costs is never more than the
change of the excess. That slope is a sum of one term for the replica that goes and one for the replica that comes,
cheap for all pairs at once; only the pairs for which it is negative, the lowest first, can help and are computed
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import price
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import (
    count_replicas,
    fewest_replicas,
    hottest_that_pays,
    layer_time,
    nodes_by_expert,
    placed,
)
from moe_placer.search.local_search import EVALUATIONS_PER_WORK, HELPS, descend
from moe_placer.search.moves import CALL, Moves, excess

__all__ = ["ReplicaChanges", "Replicated", "State", "replicate"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_EXACT = 128  # pairs whose change is computed exactly
_KICKS = 16  # of the best of these, one is taken at random to leave a local optimum


@dataclass(frozen=True, eq=False)
class ReplicaChanges:
    """Changes of replicas, the most helpful first.

    Attributes
    ----------
    item : int array [C]
        The replica that goes.
    expert, node : int array [C]
        The expert that gets one more replica, and where.
    change : float array [C]
        Of the excess over the target.
    evaluated : int
        Link costs looked at to find them.
    """

    item: Ints
    expert: Ints
    node: Ints
    change: Floats
    evaluated: int

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, which: int) -> tuple[int, int, int]:
        """Item, expert and node of one of them."""
        return int(self.item[which]), int(self.expert[which]), int(self.node[which])


@dataclass(frozen=True, eq=False)
class Replicated:
    """The result of `replicate`: the layer with its replicas, the placement, its z, and the effort it took."""

    layer: LayerProblem
    node: Ints
    z: float
    work: float


class State:
    """A placement of a layer, as far as its replicas matter."""

    def __init__(self, layer: LayerProblem, node: Ints) -> None:
        self.layer, self.node, self.cost = layer, node, layer.cost(node)
        self.replicas = count_replicas(layer)
        self.one_of = np.flatnonzero(layer.replica == 0)  # an item of each expert
        experts = len(self.replicas)
        self.share = np.zeros((experts, layer.links + 1))  # C of the module; the last column is padding
        np.add.at(self.share, (layer.expert[:, None], layer.affected[node]), layer.delta[np.arange(layer.items), node])
        self.share[:, -1] = 0.0
        self.held = np.zeros((experts, layer.nodes), dtype=np.int64)
        np.add.at(self.held, (layer.expert, node), 1)
        self.free = np.bincount(node, minlength=layer.nodes) < layer.slots

    @property
    def z(self) -> float:
        """Cost of the busiest link."""
        return float(self.cost.max(initial=0.0))

    def candidates(self, fewest: Ints, target: float) -> ReplicaChanges:
        """Find changes that lower the excess over ``target``, or hardly raise it.

        No expert is left with fewer than ``fewest`` [E] replicas; pinned replicas stay, and replicas keep apart.
        """
        layer = self.layer
        slope = 2 * np.maximum(0.0, self.cost - target)
        prices = price(layer, slope)[self.one_of]  # [E, N], of one replica as it is now
        whole = self.share[:, :-1] @ slope
        gone, come = self._drop_slope(prices, whole, fewest), self._add_slope(prices, whole)
        experts = len(self.replicas)
        at_home = gone[:, None] + come[:, self.node].T  # [I, E]: the new replica takes the slot of the old
        at_home[np.arange(layer.items), layer.expert] = np.inf
        item, expert = np.divmod(np.arange(at_home.size), experts)
        slopes, node = at_home.ravel(), self.node[item]
        if self.free.any():
            best = np.where(self.free[None, :], come, np.inf)
            into = best.argmin(axis=1)  # of each expert: its best free slot
            elsewhere = gone[:, None] + best[np.arange(experts), into][None, :]
            elsewhere[np.arange(layer.items), layer.expert] = np.inf
            slopes = np.concatenate([slopes, elsewhere.ravel()])
            node = np.concatenate([node, into[expert]])
            item, expert = np.tile(item, 2), np.tile(expert, 2)
        few = np.argpartition(slopes, min(_EXACT, len(slopes) - 1))[:_EXACT]
        few = few[np.isfinite(slopes[few])]
        item, expert, node = item[few], expert[few], node[few]
        change = excess(self.costs(item, expert, node), target) - excess(self.cost, target)
        order = np.argsort(change, kind="stable")
        evaluated = CALL + len(slopes) + len(few) * layer.links
        return ReplicaChanges(item[order], expert[order], node[order], change[order], evaluated)

    def _drop_slope(self, prices: Floats, whole: Floats, fewest: Ints) -> Floats:
        """Slope [I] of the excess when an item goes; infinite where it must stay."""
        layer, e = self.layer, self.layer.expert
        replicas = self.replicas[e]
        stays = (replicas <= fewest[e]) | (replicas < 2) | (layer.pinned >= 0)
        change = (whole[e] - replicas * prices[e, self.node]) / np.maximum(1, replicas - 1)
        return np.where(stays, np.inf, change)

    def _add_slope(self, prices: Floats, whole: Floats) -> Floats:
        """Slope [E, N] when an expert gets one more replica on a node; infinite where replicas would be too close."""
        replicas = self.replicas[:, None]
        change = (replicas * prices - whole[:, None]) / (replicas + 1)
        return np.where(self.held >= self.layer.together, np.inf, change)

    def slope_of_more(self, target: float) -> Floats:
        """Slope [E, N] of the excess over ``target`` when an expert gets one more replica on a node."""
        slope = 2 * np.maximum(0.0, self.cost - target)
        return self._add_slope(price(self.layer, slope)[self.one_of], self.share[:, :-1] @ slope)

    def costs(self, item: Ints, expert: Ints, node: Ints) -> Floats:
        """Cost of every link [C, K] if ``item`` [C] goes, and ``expert`` [C] comes to ``node`` [C]; -1: none."""
        layer, change = self.layer, np.zeros((len(item), self.layer.links + 1))
        going, coming = np.flatnonzero(item >= 0), np.flatnonzero(expert >= 0)
        i, e = item[going], layer.expert[item[going]]
        dropped = self.share[e]
        np.add.at(
            dropped,
            (np.arange(len(i))[:, None], layer.affected[self.node[i]]),
            -self.replicas[e][:, None] * layer.delta[i, self.node[i]],
        )
        change[going] += dropped / (self.replicas[e] - 1)[:, None]
        e, n = expert[coming], node[coming]
        added = -self.share[e]
        np.add.at(
            added,
            (np.arange(len(e))[:, None], layer.affected[n]),
            self.replicas[e][:, None] * layer.delta[self.one_of[e], n],
        )
        change[coming] += added / (self.replicas[e] + 1)[:, None]
        return self.cost + change[:, :-1]

    def changed(self, item: int, expert: int, node: int) -> tuple[LayerProblem, Ints]:
        """Return layer and placement once ``item`` has gone and ``expert`` has a replica on ``node``; -1: none."""
        of_expert = nodes_by_expert(self.layer, self.node)
        if item >= 0:
            of_expert[int(self.layer.expert[item])].pop(int(self.layer.replica[item]))
        if expert >= 0:
            of_expert[expert].append(node)
        return placed(self.layer, of_expert)


def replicate(
    layer: LayerProblem, node: Ints, target: float, work: float, rng: np.random.Generator, deadline: Deadline
) -> Replicated:
    """Improve replicas and placement together: the best change of replicas, trades until none helps, and again.

    Where no change of replicas helps, one of the least harmful leaves the local optimum. Other replicas must pay: what
    they save on links is never less than what they cost the GPU of the hottest replica (`layer_time`).

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    node : int array [items]
        Node of each item.
    target : float
        Stop when z is at this or below, tokens at node-link speed.
    work : float
        Deterministic effort, seconds of an average core.
    rng : Generator
        Source of everything random.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    best = home = State(layer, node)
    best_time = layer_time(layer, best.z)
    fewest = fewest_replicas(layer, hottest_that_pays(layer, best.z, target))
    home_excess, spent = float(excess(home.cost, target)), 0
    while best.z > target and spent < work * EVALUATIONS_PER_WORK and not deadline.over:
        found = home.candidates(fewest, target)
        spent += found.evaluated
        if not len(found):
            break
        if found.change[0] < -HELPS * home_excess:
            changed, start = home.changed(*found[0])
        else:
            changed, start, looked = _kick(home, found, fewest, target, rng)
            spent += looked
        moves = Moves(changed, start)
        descend(moves, target, deadline)
        spent += moves.evaluated + CALL
        if (after := moves.excess(target)) <= home_excess:
            home, home_excess = State(changed, moves.node), after
        if moves.z < best.z and layer_time(changed, moves.z) <= best_time:
            best, best_time = State(changed, moves.node), layer_time(changed, moves.z)
    return Replicated(best.layer, best.node, best.z, spent / EVALUATIONS_PER_WORK)


def _kick(
    state: State, found: ReplicaChanges, fewest: Ints, target: float, rng: np.random.Generator
) -> tuple[LayerProblem, Ints, int]:
    """Make one or two of the less harmful changes; return layer, placement, and how many costs were looked at."""
    layer, node = state.changed(*found[int(rng.integers(min(_KICKS, len(found))))])
    if rng.random() < 0.5:
        return layer, node, 0
    again = State(layer, node)
    found = again.candidates(fewest, target)
    if len(found):
        layer, node = again.changed(*found[int(rng.integers(min(_KICKS, len(found))))])
    return layer, node, found.evaluated
