"""Other numbers of replicas while a layer is changed: one replica goes, which is free, and another comes: a move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.problem.replicas import count_replicas, placed
from moe_placer.problem.survival import Spread
from moe_placer.replan.trades import LayerState
from moe_placer.search.moves import excess
from moe_placer.search.replication import State

__all__ = ["ReplicaChange", "best_change", "changed"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LISTED = 256  # changes that are computed exactly
_FREE_MOVE = 0.25


@dataclass(frozen=True)
class ReplicaChange:
    """Replica ``item`` goes, and ``expert`` gets one more at ``place``."""

    change: float
    moves: int
    item: int
    expert: int
    place: int

    @property
    def score(self) -> float:
        """Change of the excess per move."""
        return self.change / (self.moves if self.moves > 0 else _FREE_MOVE)


def best_change(state: LayerState, target_z: float, target_gpu: float, inside: bool) -> ReplicaChange | None:
    """Find the change of replicas that lowers the excess most per move.

    Where GPUs count, a replica of an expert of the busiest GPU comes elsewhere, or one on the busiest GPU goes. Where
    only links count, no replica may become hotter than the hottest is.

    Parameters
    ----------
    state : LayerState
        The layer as it is.
    target_z : float
        z that is good enough, tokens at node-link speed.
    target_gpu : float
        Tokens per step of the busiest GPU that are good enough.
    inside : bool
        Whether a replica may come only to a node that holds the expert now.
    """
    item, expert, place = _candidates(state, target_z)
    if inside and len(item):
        home = state.layer.home
        node = np.arange(state.held.shape[1]) // state.per_node if home is None else home
        near = np.zeros((int(node.max()) + 1, len(state.held)), dtype=np.int64)
        np.add.at(near, node, state.held.T)
        stays = near[node[place], expert] > 0
        item, expert, place = item[stays], expert[stays], place[stays]
    if not len(item):
        return None
    before, after = state.excess(target_z, target_gpu), np.zeros(len(item))
    goal = state.goal
    if goal.links:
        links = State(state.layer, state.node)
        after += goal.links**2 * excess(links.costs(item, expert, place // state.per_node), target_z)
    if goal.gpus:
        loads = _loads(state, item, expert, place)
        after += goal.gpus**2 * (np.maximum(0.0, loads - target_gpu) ** 2).sum(axis=1)
    gone, here = state.layer.expert[item], state.place[item]
    moves = (state.on >= state.held)[expert, place].astype(np.int64)
    moves -= (state.on > state.held)[gone, here]
    change = after - before
    score = np.where(change < 0, change / np.where(moves > 0, moves, _FREE_MOVE), np.inf)
    best = int(score.argmin())
    if not np.isfinite(score[best]):
        return None
    return ReplicaChange(float(change[best]), int(moves[best]), int(item[best]), int(expert[best]), int(place[best]))


def changed(state: LayerState, change: ReplicaChange) -> LayerState:
    """Return the layer with other replicas, placed."""
    of_expert: list[list[int]] = [[] for _ in range(len(state.held))]
    for e, p in zip(state.layer.expert.tolist(), state.place.tolist(), strict=True):
        of_expert[e].append(p)
    of_expert[int(state.layer.expert[change.item])].pop(int(state.layer.replica[change.item]))
    of_expert[change.expert].append(change.place)
    layer, place = placed(state.layer, of_expert)
    return LayerState(layer, place, state.held, state.slots, state.goal)


def _candidates(state: LayerState, target_z: float) -> tuple[Ints, Ints, Ints]:
    """List what goes, what comes, and where: into the slot that becomes free, or the coldest free one."""
    layer = state.layer
    replicas = count_replicas(layer)
    could_go = np.flatnonzero((replicas[layer.expert] > layer.least_replicas) & (layer.pinned < 0))
    if not len(could_go):
        return could_go, could_go, could_go
    item, expert = _pairs(state, could_go, replicas)
    place = state.place[item]
    free = np.flatnonzero(state.taken < state.slots)
    if len(free):
        coldest = int(free[state.gpu_load[free].argmin()])
        place = np.concatenate([place, np.full_like(place, coldest)])
        item, expert = np.tile(item, 2), np.tile(expert, 2)
    allowed = expert != layer.expert[item]
    if state.per_node > 1:
        allowed &= state.on[expert, place] == 0
    node = place // state.per_node
    on_node = state.on.reshape(len(replicas), layer.nodes, -1).sum(axis=2)
    allowed &= on_node[expert, node] < layer.together[node]
    if layer.domain is not None:
        allowed &= ~_leaves_all_in_one(state, item)
    item, expert, place = item[allowed], expert[allowed], place[allowed]
    if len(item) > _LISTED:
        few = _promising(state, item, expert, place, target_z)
        item, expert, place = item[few], expert[few], place[few]
    return item, expert, place


def _leaves_all_in_one(state: LayerState, item: Ints) -> npt.NDArray[np.bool_]:
    """Mask of items without which one failure domain has all replicas of their expert."""
    spread, layer = Spread(state.layer, state.node), state.layer
    on = spread.on[layer.expert[item]]
    on[np.arange(len(item)), spread.domain[state.node[item]]] -= 1
    return np.asarray((on >= (spread.count[layer.expert[item]] - 1)[:, None]).any(axis=1))


def _pairs(state: LayerState, could_go: Ints, replicas: Ints) -> tuple[Ints, Ints]:
    """Pair what could go with experts: one of them is on the busiest GPU, or nothing gets hotter than the hottest."""
    layer, everybody = state.layer, np.arange(len(replicas))
    if not state.goal.gpus:
        load = np.bincount(layer.expert, layer.load)
        alone = load / np.maximum(1, replicas - 1)
        could_go = could_go[alone[layer.expert[could_go]] <= float(layer.load.max(initial=0.0))]
        return np.repeat(could_go, len(everybody)), np.tile(everybody, len(could_go))
    busiest = int(state.gpu_load.argmax())
    at_busiest = state.place[could_go] == busiest
    here, there = could_go[at_busiest], could_go[~at_busiest]
    relieved = np.flatnonzero(state.on[:, busiest] > 0)
    item = np.concatenate([np.repeat(here, len(everybody)), np.repeat(there, len(relieved))])
    return item, np.concatenate([np.tile(everybody, len(here)), np.tile(relieved, len(there))])


def _promising(state: LayerState, item: Ints, expert: Ints, place: Ints, target_z: float) -> Ints:
    """Choose changes by the slope of the excess: exact for small changes of the load."""
    layer = state.layer
    replicas = count_replicas(layer)
    slope = np.zeros(len(item))
    if state.goal.gpus:
        load = np.bincount(layer.expert, layer.load)
        per_gpu = np.maximum(0.0, state.gpu_load - state.gpu_load.mean())
        mean = (state.on * per_gpu).sum(axis=1) / replicas  # of the places of an expert's replicas
        e = layer.expert[item]
        fewer = load[e] * (mean[e] * replicas[e] - per_gpu[state.place[item]]) / (replicas[e] - 1) - load[e] * mean[e]
        more = load[expert] * (
            (mean[expert] * replicas[expert] + per_gpu[place]) / (replicas[expert] + 1) - mean[expert]
        )
        slope += state.goal.gpus**2 * (fewer + more)
    if state.goal.links:
        found = State(layer, state.node)
        add = found.slope_of_more(target_z)[expert, place // state.per_node]
        slope += state.goal.links**2 * np.where(np.isfinite(add), add, 0.0)
    return np.argpartition(slope, _LISTED)[:_LISTED]


def _loads(state: LayerState, item: Ints, expert: Ints, place: Ints) -> Floats:
    """Tokens of every GPU [changes, places] after each change."""
    layer = state.layer
    replicas, load = count_replicas(layer), np.bincount(layer.expert, layer.load)
    change = np.zeros((len(item), len(state.gpu_load)))
    rows = np.arange(len(item))
    e = layer.expert[item]
    change += state.on[e] * (load[e] * (1 / (replicas[e] - 1) - 1 / replicas[e]))[:, None]
    change[rows, state.place[item]] -= load[e] / (replicas[e] - 1)
    change += state.on[expert] * (load[expert] * (1 / (replicas[expert] + 1) - 1 / replicas[expert]))[:, None]
    change[rows, place] += load[expert] / (replicas[expert] + 1)
    return np.asarray(state.gpu_load + state.slowness * change)
