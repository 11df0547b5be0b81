"""Plans in the time that a balancer in an engine has: replicas, nodes and GPUs by a few passes over all layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.instance.schema import Objective
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.replica_counts import replica_order, replicas_by_load
from moe_placer.search.layers_at_once import Batch, choose_nodes, even_ranks, even_replicas
from moe_placer.search.trades_at_once import Trades
from moe_placer.traffic import make_traffic

__all__ = ["Placed", "QuickPlan", "QuickPlanner", "layers_per_batch", "place_at_once"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_BYTES = 96e6  # of one batch's table of costs: so many layers are placed at once
_STEPS_OF_LINKS, _STEPS_OF_BOTH = 12, 24  # trades in each layer: where GPUs take one replica, where they take several
_SAMPLE = 64  # partners that a trade is chosen from


@dataclass(frozen=True, eq=False)
class Placed:
    """Where the items of some layers are; L layers, I items, in the order of `Problem.items`.

    Attributes
    ----------
    expert : int array [L, I]
        Expert of each item; -1: the layer has fewer.
    node, gpu : int array [L, I]
        Node and GPU of each item; GPU -1: left to the packing of nodes.
    z : float array [L]
        Cost of the busiest link, to about five digits.
    busiest_gpu : float array [L]
        Tokens per step of the busiest GPU, likewise; 0 where GPUs are left to the packing of nodes.
    """

    expert: Ints
    node: Ints
    gpu: Ints
    z: Floats
    busiest_gpu: Floats


def place_at_once(problem: Problem, demand: Floats, replicas: Ints, first: int, seed: int) -> Placed:
    """Place layers of a problem that counts every copy of a token, all in one go.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    demand : float array [L, nodes, experts]
        Tokens per step that start on each node and choose each expert, in these layers.
    replicas : int array [L, experts]
        Replicas of each expert.
    first : int
        The first of the layers among the problem's MoE layers; the others follow it.
    seed : int
        Of the trades that are tried.
    """
    rows = slice(first, first + len(demand))
    batch = _batch(problem, demand, replicas, rows)
    gpus = problem.capacity.slots[rows].reshape(len(demand), problem.nodes, problem.gpus_per_node)
    several = problem.shards == 1 and int(gpus.max(initial=0)) > 1
    node = choose_nodes(batch, 0.0 if several else None)
    if problem.shards > 1 or problem.domain is not None:  # trades know neither
        nothing = np.full_like(node, -1)
        return Placed(batch.expert, node, nothing, np.full(len(node), np.nan), np.zeros(len(node)))
    rank = even_ranks(batch.load, batch.expert, node, gpus)
    gpu = np.where(rank >= 0, node * problem.gpus_per_node + rank, -1)
    items = gpu.shape[1]
    batch, gpu = _with_free_slots(problem, batch, gpu, gpus.reshape(len(gpu), -1))
    trades = Trades(batch, gpu, problem.gpus_per_node, (gpus > 0).sum(axis=(1, 2)) if several else None)
    trades.run(_STEPS_OF_BOTH if several else _STEPS_OF_LINKS, _SAMPLE, np.random.default_rng((seed, first)))
    gpu = trades.gpu[:, :items]
    node = np.where(gpu >= 0, gpu // problem.gpus_per_node, node)
    return Placed(batch.expert[:, :items], node, gpu, trades.cost.max(axis=1), trades.heat.max(axis=1))


def layers_per_batch(problem: Problem) -> int:
    """Return how many layers are placed in one go, so that memory stays small."""
    nodes, touched = problem.affected.shape
    each = int(problem.replicas.sum(axis=1).max()) * nodes * max(touched, 4) * np.dtype(np.float32).itemsize
    return max(1, int(_BYTES // each))


def _batch(problem: Problem, demand: Floats, replicas: Ints, rows: slice) -> Batch:
    layers, nodes, items = len(demand), problem.nodes, int(replicas.sum(axis=1).max())
    expert, replica = np.full((layers, items), -1, dtype=np.int64), np.zeros((layers, items), dtype=np.int64)
    for row, own in enumerate(replicas):
        of_expert, number = replica_order(own)
        expert[row, : len(of_expert)], replica[row, : len(of_expert)] = of_expert, number
    at = np.arange(layers)[:, None]
    tokens = np.where((expert >= 0)[..., None], demand.transpose(0, 2, 1)[at, expert], 0.0)  # [L, I, N]
    reach = None
    if problem.groups:
        reach = replica[..., None] == problem.group_of_node
        tokens *= reach
    else:
        tokens /= np.maximum(1, replicas[at, expert])[..., None]
    affected, change = problem.links_of_nodes
    flat, each = tokens.reshape(layers * items, nodes).astype(np.float32), change.reshape(-1, nodes).astype(np.float32)
    delta: Any = (flat @ each.T).reshape(layers, items, *affected.shape)
    base = np.append(tokens.sum(axis=1) @ problem.reference.T, np.zeros((layers, 1)), axis=1)
    return Batch(
        load=tokens.sum(axis=2),
        expert=expert,
        pinned=_pinned(problem, expert, replica, rows),
        reach=reach,
        base=base.astype(np.float32),
        affected=affected,
        delta=delta,
        slots=problem.capacity.node_slots[rows],
        together=problem.capacity.together[rows],
    )


def _pinned(problem: Problem, expert: Ints, replica: Ints, rows: slice) -> Ints:
    node = np.full(expert.shape, -1, dtype=np.int64)
    for (index, e, r), gpu in problem.pinned.items():
        if rows.start <= index < rows.stop:
            row = index - rows.start
            node[row, (expert[row] == e) & (replica[row] == r)] = gpu // problem.gpus_per_node
    return node


def _with_free_slots(problem: Problem, batch: Batch, gpu: Ints, slots: Ints) -> tuple[Batch, Ints]:
    """Add one free slot of every GPU that has any to the items, so that replicas may move there."""
    layers = len(gpu)
    free = slots.copy()
    row, item = np.nonzero(gpu >= 0)
    np.subtract.at(free, (row, gpu[row, item]), 1)
    if problem.capacity.binds or not (free > 0).any():  # memory that layers share is not moved between them
        return batch, gpu
    row, at = np.nonzero(free > 0)
    turn = np.arange(len(row)) - np.searchsorted(row, row)
    more = int(turn.max()) + 1
    open_ = np.full((layers, more), -1, dtype=np.int64)
    open_[row, turn] = at
    none = np.full((layers, more), -1, dtype=np.int64)
    reach = batch.reach
    wider = replace(
        batch,
        load=np.append(batch.load, np.zeros((layers, more)), axis=1),
        expert=np.append(batch.expert, none, axis=1),
        pinned=np.append(batch.pinned, none, axis=1),
        reach=None if reach is None else np.append(reach, np.ones((layers, more, reach.shape[2]), dtype=bool), axis=1),
        delta=np.append(batch.delta, np.zeros((layers, more, *batch.affected.shape), dtype=np.float32), axis=1),
    )
    return wider, np.append(gpu, open_, axis=1)


@dataclass(frozen=True, eq=False)
class QuickPlan:
    """Which expert is in every slot, and what that comes to.

    Attributes
    ----------
    experts : int array [MoE layers, GPUs, slots]
        Expert in each slot, as ``physical_to_logical_map`` of engines has it once GPUs and slots are one axis; -1 where
        a slot is free.
    z : float array [MoE layers]
        Cost of the busiest link in the tokens of the loads that were given, to about five digits.
    busiest_gpu : float array [MoE layers]
        Tokens of the busiest GPU, likewise.
    """

    experts: Ints
    z: Floats
    busiest_gpu: Floats


class QuickPlanner:
    """Plans again and again for one deployment, each time from what experts have to do now.

    Links, slots and routes are compiled once. A plan is neither bounded nor verified: `moe_placer.solve` with the
    solver ``quick`` makes the same one, and verifies it.

    Parameters
    ----------
    instance : Instance
        The deployment; neither its traffic counts, nor what it minimises beside busiest links.

    Raises
    ------
    UsageError
        The instance pins replicas, divides experts over GPUs (``expert_tp``), asks that replicas survive failures, or
        sends tokens once per node or GPU: `moe_placer.solve` places these.
    InfeasibleError
        No placement can exist.

    Examples
    --------
    >>> import moe_placer
    >>> planner = moe_placer.QuickPlanner(moe_placer.load_instance("instances/tiny.yaml"))
    >>> planner.plan(np.ones((planner.layers, planner.experts))).experts.shape  # 2 MoE layers, 4 GPUs of one slot
    (2, 4, 1)
    """

    def __init__(self, instance: Instance) -> None:
        asked = instance.placement
        for reason, holds in (
            ("pins replicas", bool(asked.pinned)),
            ("divides every expert over GPUs (expert_tp)", instance.parallelism.expert_tp > 1),
            ("asks that replicas survive failures", asked.survives != "none"),
            ("sends tokens once per node or GPU", asked.dispatch != "per-expert"),
        ):
            if holds:
                raise UsageError(f"{instance.name} {reason}, which quick plans do not: solve it with moe_placer.solve")
        even = np.ones((len(instance.moe_layers), instance.model.experts))
        one_traffic = instance.model_copy(update={"objective": Objective(metric=instance.objective.metric)})
        problem = compile_problem(one_traffic, make_traffic(instance, load=[even]))
        self._problem = (problem if problem.by_node is None else problem.by_node).evenly()
        self.instance = instance

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self._problem)

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self._problem.replicas.shape[1])

    def plan(self, load: npt.ArrayLike, seed: int = 0) -> QuickPlan:
        """Return a plan for these loads.

        Parameters
        ----------
        load : array-like [MoE layers, experts] or [MoE layers, nodes, experts]
            Tokens that choose each expert, of any period; in all, which then start evenly on all nodes, or by the node
            that they start on.
        seed : int
            Of the trades that are tried; the same loads and seed give the same plan.

        Raises
        ------
        UsageError
            ``load`` has another shape, or a number that is below 0 or not finite.
        NothingFoundError
            Replicas of one expert would share a GPU: `moe_placer.solve` may find them places.
        """
        problem, demand = self._problem, self._demand(load)
        replicas = self._replicas(demand.sum(axis=1)) if problem.replicas_are_free else problem.replicas
        step = layers_per_batch(problem)
        parts = [
            place_at_once(problem, demand[at : at + step], replicas[at : at + step], at, seed)
            for at in range(0, len(demand), step)
        ]
        return QuickPlan(
            np.concatenate([self._in_slots(part) for part in parts]),
            np.concatenate([part.z for part in parts]).astype(np.float64),
            np.concatenate([part.busiest_gpu for part in parts]).astype(np.float64),
        )

    def _demand(self, load: npt.ArrayLike) -> Floats:
        tokens, nodes = np.asarray(load, dtype=np.float64), self._problem.nodes
        expected = (self.layers, self.experts)
        if tokens.shape == expected:
            tokens = np.repeat(tokens[:, None] / nodes, nodes, axis=1)
        if tokens.shape != (self.layers, nodes, self.experts):
            words = f"{expected} or {(self.layers, nodes, self.experts)}"
            raise UsageError(f"loads of shape {np.shape(load)}, expected (MoE layers, experts) or with nodes: {words}")
        if not (np.isfinite(tokens).all() and (tokens >= 0).all()):
            raise UsageError("a load is below 0 or not finite, expected numbers of tokens")
        return tokens

    def _replicas(self, load: Floats) -> Ints:
        """Give replicas to experts by load; one by one where slots or distances are in the way."""
        capacity = self._problem.capacity
        total, most = capacity.replicas, np.full(len(load), int(capacity.places.sum()))
        replicas = even_replicas(load, total, most, capacity.least)
        fullest = np.cumsum(-np.sort(-replicas, axis=1), axis=1)
        for index in np.flatnonzero((fullest > capacity.most_in_layers).any(axis=1)).tolist():
            fits = partial(capacity.allows, index)
            replicas[index] = replicas_by_load(load[index], int(total[index]), int(most[index]), fits, capacity.least)
        return replicas

    def _in_slots(self, part: Placed) -> Ints:
        """Return the expert in every slot [L, GPUs, slots]; items of a GPU in their order."""
        gpus, width = len(self._problem.capacity.memory_slots), self.instance.placement.slots_per_gpu
        row, item = np.nonzero(part.expert >= 0)
        gpu, expert = part.gpu[row, item], part.expert[row, item]
        place = row * gpus + gpu
        order = np.lexsort((expert, place))
        place, expert = place[order], expert[order]
        twice = (place[1:] == place[:-1]) & (expert[1:] == expert[:-1])
        if (gpu < 0).any() or twice.any():
            raise NothingFoundError("a quick pass found no GPUs of their own for all replicas; use moe_placer.solve")
        slots = np.full((len(part.expert) * gpus, width), -1, dtype=np.int64)
        slots[place, np.arange(len(place)) - np.searchsorted(place, place)] = expert
        return slots.reshape(len(part.expert), gpus, width)
