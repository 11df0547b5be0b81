"""The placement problem as plain arrays: what solvers see instead of files.

With per-expert dispatch and ``group`` or ``even`` routing the cost of a link is linear in the placement. Where an item
(an expert replica) sits changes few links: its node's own, its leaf's. So costs are kept as ``base + sum of delta``:
``base`` is what link k carries if every item were "elsewhere", and ``delta[i, n, m]`` how that changes on the m-th link
that node n touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_placer.fabric import Receivers, node_routes, receivers, token_cost
from moe_placer.instance import Instance
from moe_placer.instance.schema import SharedSlots
from moe_placer.instance.sizes import back_ratio, expert_us, token_us
from moe_placer.problem.capacity import Capacity, choose_replicas, find_capacity
from moe_placer.problem.coverage import Coverage
from moe_placer.problem.demand import Demand, demand_of, mixed
from moe_placer.problem.failure_domains import failure_domains, least_replicas
from moe_placer.problem.gpu_places import capacity_by_gpu, sent_by_gpu
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.link_costs import link_costs
from moe_placer.problem.near_replicas import near_layer
from moe_placer.problem.receiving import delta_by_gpu, with_arrivals
from moe_placer.problem.replica_counts import replica_order
from moe_placer.problem.scenarios import Judge, costs_of_all, links_of_all, scenarios_of
from moe_placer.problem.sending import compile_coverage
from moe_placer.traffic import Traffic
from moe_placer.traffic.near_shares import NearRule, near_rule
from moe_placer.traffic.replica_shares import ReplicaShares, replica_shares

__all__ = ["Problem", "compile_problem"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """All MoE layers of an instance.

    Attributes
    ----------
    name : str
    moe_layers : tuple of int
        Index in the model of each MoE layer.
    links : tuple of str
        Names of the K distinct links; links that always cost the same are represented by the first of them.
    multiplicity : tuple of int
        How many real links each of them stands for.
    token_cost : float array [K]
        Cost of one token on each of the named links.
    demand : Demand
        ``demand[l][s, e]``: tokens per step that start on node s and choose expert e.
    replicas : int array [MoE layers, experts]
        Replicas of each expert.
    groups : int
        DP groups of ``group`` routing; 0 without.
    replicas_are_free : bool
        Whether another choice of replicas would be allowed (a budget of redundant slots).
    redundant_in_all : int or None
        Replicas beyond one of each expert that all layers may have together; None where the number is each layer's own.
    minimise : str
        ``layers``: the sum over layers of z; ``layer-time``: of dispatch, slowest GPU and combine; ``aggregate``: the
        largest cost of any link over all layers.
    capacity : Capacity
    slots_are_given : bool
        Whether layers' bounds may take it that no layer has more room than ``capacity.node_slots`` gives it.
    pinned : dict
        (MoE layer, expert, replica) to global GPU id.
    gpus_per_node, shards : int
        GPUs of a node; GPUs that share one expert.
    hops : int array [nodes, nodes]
        Links that a token from node s to node d crosses.
    gpu_price : float
        Cost that takes as long on the wire, there and back, as a GPU takes for one token.
    round_trip_us : float
        Microseconds of a cost of 1, there and back.
    coverage : tuple of Coverage
        One per MoE layer where a token goes once to each node; empty where every chosen expert gets its own copy.
    home : int array [GPUs] or None
        As in `LayerProblem`.
    by_node : Problem or None
        Where nodes are single GPUs that receive by NICs of their own: the problem of nodes, without these NICs, for
        methods that look at nodes.
    least_replicas : int
        Replicas that every expert must have, where how many is a choice.
    domain : int array [nodes] or None
        As in `LayerProblem`.
    scenarios : tuple of Problem
        Where layers are judged by the worst of several traffics: one of each. ``links`` are then those of each in turn;
        the other fields are of the mix.
    judge : Judge or None
        As in `LayerProblem`.
    shares : ReplicaShares or None
        Of a rule that numbers an expert's replicas by GPU. How many each expert has then is as given by load, whatever
        the instance leaves open.
    near : NearRule or None
        Of a rule that prefers near replicas.
    """

    name: str
    moe_layers: tuple[int, ...]
    links: tuple[str, ...]
    multiplicity: tuple[int, ...]
    token_cost: Floats
    demand: Demand
    replicas: Ints
    groups: int
    replicas_are_free: bool
    redundant_in_all: int | None
    minimise: Literal["layers", "layer-time", "aggregate"]
    capacity: Capacity
    slots_are_given: bool
    pinned: dict[tuple[int, int, int], int]
    gpus_per_node: int
    shards: int
    hops: Ints
    gpu_price: float
    round_trip_us: float
    coverage: tuple[Coverage, ...]
    affected: Ints
    _reference: Floats  # [K, N]: a source's share on link k when the item is elsewhere
    _change: Floats  # [N, M, N]: (node, affected link, source)
    home: Ints | None = None
    by_node: Problem | None = None
    least_replicas: int = 1
    domain: Ints | None = None
    scenarios: tuple[Problem, ...] = ()
    judge: Judge | None = None
    shares: ReplicaShares | None = None
    near: NearRule | None = None

    def __len__(self) -> int:
        return len(self.moe_layers)

    @property
    def nodes(self) -> int:
        """Nodes of the cluster."""
        return self.demand.nodes

    @property
    def shares_replicas(self) -> bool:
        """Whether layers share a budget of replicas, of which each may take more or less."""
        return self.replicas_are_free and self.redundant_in_all is not None

    @property
    def replicas_are_chosen(self) -> bool:
        """Whether the instance leaves open how many replicas each expert has, and methods may or not."""
        return self.replicas_are_free or (self.shares is not None and self.shares.chosen)

    @property
    def reference(self) -> Floats:
        """Cost of a token from each source on every link when its item is elsewhere [K, nodes]."""
        return self._reference

    @cached_property
    def links_of_nodes(self) -> tuple[Ints, Floats]:
        """Links that a node touches [M, nodes], and what a token from each source adds there [M, nodes, sources]."""
        return np.ascontiguousarray(self.affected.T), np.ascontiguousarray(self._change.transpose(1, 0, 2))

    @property
    def group_of_node(self) -> Ints:
        """DP group of each node's tokens [nodes], of which group r uses replica r; all 0 without groups."""
        return np.asarray(np.arange(self.nodes) * self.groups // self.nodes)

    def items(self, index: int, replicas: Ints | None = None) -> tuple[Ints, Ints]:
        """Expert and replica of each item of the index-th MoE layer, ordered by replica, then expert."""
        return replica_order(self.replicas[index] if replicas is None else replicas)

    def layer(self, index: int, replicas: Ints | None = None) -> LayerProblem:
        """Compile the index-th MoE layer, with ``replicas`` [experts] if given instead of the problem's own.

        The last layer that was asked for is kept: several methods look at one after the other.
        """
        counts = self.replicas[index] if replicas is None else replicas
        key = index, counts.tobytes()
        if key not in self._last:
            self._last.clear()
            own, each = self._layer(index, counts), [one._layer(index, counts) for one in self.scenarios]
            costs = costs_of_all([(one.base, one.affected, one.delta) for one in each]) if each else {}
            self._last[key] = replace(own, judge=self.judge, **costs) if each else own
        return self._last[key]

    @cached_property
    def _last(self) -> dict[tuple[int, bytes], LayerProblem]:
        return {}

    def rules(self, index: int, replicas: Ints | None = None) -> LayerProblem:
        """Compile the index-th MoE layer without what items cost, which is most of a layer: enough for `valid`."""
        return self._layer(index, replicas, costs=False)

    def _layer(self, index: int, replicas: Ints | None, costs: bool = True) -> LayerProblem:
        expert, replica = self.items(index, replicas)
        sent, load = self._sent_and_load(index, expert, replica)
        pinned = np.full(len(expert), -1, dtype=np.int64)
        for i, (e, r) in enumerate(zip(expert.tolist(), replica.tolist(), strict=True) if self.pinned else ()):
            gpu = self.pinned.get((index, e, r))
            if gpu is not None:
                pinned[i] = gpu // self.gpus_per_node
        return LayerProblem(
            layer=self.moe_layers[index],
            expert=expert,
            replica=replica,
            symmetry_class=np.arange(len(expert)) if self.groups or self.shares is not None else expert,
            slots=self.capacity.node_slots[index],
            widest=self.capacity.node_slots[index] if self.slots_are_given else self.capacity.widest,
            together=self.capacity.together[index],
            pinned=pinned,
            coverage=self.coverage[index] if self.coverage else None,
            base=np.einsum("ks,s->k", self._reference, sent),
            affected=self.affected,
            delta=self._delta(index, expert, replica) if costs else np.zeros((len(expert), 0, 0)),
            load=load,
            replicas_are_free=self.replicas_are_free,
            shares_replicas=self.shares_replicas,
            gpu_price=self.gpu_price,
            home=self.home,
            most_items=self._most_items(len(expert)),
            least_replicas=self.least_replicas,
            domain=self.domain,
            near=near_layer(self, index, self._most_items(len(expert))) if costs and self.near is not None else None,
        )

    def _sent_and_load(self, index: int, expert: Ints, replica: Ints) -> tuple[Floats, Floats]:
        """Tokens per step that each node sends to all items [nodes], and that all nodes send to each [I]."""
        if self.shares is not None:
            tokens = self.item_demand(index, expert, replica)
            return tokens.sum(axis=1), tokens.sum(axis=0)
        sent, load = np.zeros(self.nodes), np.zeros(len(expert))
        for items, sources, mix, chosen in self._senders(index, expert, replica):
            sent[sources] += np.einsum("sf,f->s", mix, chosen.sum(axis=1))
            load[items] = np.einsum("f,fi->i", mix.sum(axis=0), chosen)
        return sent, load

    def _delta(self, index: int, expert: Ints, replica: Ints) -> Floats:
        """Return ``delta`` of a layer; GPUs of one node differ in their NIC only."""
        if self.by_node is not None:
            of_nodes = self.by_node.item_demand(index, expert, replica)
            return delta_by_gpu(self.by_node._delta(index, expert, replica), of_nodes, self._change[:, -1])
        nodes, touching = self.affected.shape
        rows = self._change.reshape(nodes * touching, nodes)
        if self.shares is not None:
            return (self.item_demand(index, expert, replica).T @ rows.T).reshape(-1, nodes, touching)
        delta = np.empty((len(expert), nodes * touching))
        for items, sources, mix, chosen in self._senders(index, expert, replica):
            per_token = mixed(mix, rows[:, sources].T)
            if self.groups:
                mixed(chosen, per_token, out=delta[items])
            else:  # replicas of one expert are alike; the default mode would fill a copy first
                _, first, of = np.unique(expert, return_index=True, return_inverse=True)
                np.take(mixed(chosen[:, first], per_token), of, axis=0, out=delta, mode="clip")
        return delta.reshape(-1, nodes, touching)

    def _senders(self, index: int, expert: Ints, replica: Ints) -> Iterator[tuple[slice, slice, Floats, Floats]]:
        """Yield the items of each DP group, the nodes whose tokens these get, and how much; without groups, all.

        How much is ``mix @ chosen``: tokens of each recording that start on these nodes [nodes, recordings], and how
        often one of them goes to each of these items [recordings, items]. Recordings that none of the nodes has are
        left out.
        """
        share = self.demand.share[index]
        if not self.groups:
            yield slice(None), slice(None), self.demand.per_recording, share[:, expert] / np.bincount(expert)[expert]
            return
        numbers = np.arange(self.groups)
        first, last = (np.searchsorted(replica, numbers, side) for side in ("left", "right"))
        start, end = (np.searchsorted(self.group_of_node, numbers, side) for side in ("left", "right"))
        for a, b, c, d in zip(first, last, start, end, strict=True):
            mix = self.demand.per_recording[c:d]
            there = mix.any(axis=0)
            yield slice(a, b), slice(c, d), mix[:, there], share[there][:, expert[a:b]]

    def _most_items(self, items: int) -> int:
        """Return how many items a layer that has some may have, whatever replicas are chosen."""
        if self.redundant_in_all is None:
            return items
        return int(min(self.replicas.shape[1] + self.redundant_in_all, self.capacity.widest.sum()))

    def with_slots(self, slots: Ints) -> Problem:
        """Return the problem with other slots of GPUs in each layer, which its bounds take as given."""
        by_node = None if self.by_node is None else self.by_node.with_slots(slots)
        return replace(self, capacity=self.capacity.with_slots(slots), slots_are_given=True, by_node=by_node)

    def evenly(self) -> Problem:
        """Return the problem in which all replicas of an expert get as much, whichever number or place they have."""
        if self.near is not None:
            return replace(self, near=None)
        return self if self.shares is None else replace(self, shares=None, replicas_are_free=self.shares.chosen)

    @property
    def has_places(self) -> bool:
        """Whether every layer has a valid placement with its replicas."""
        return all(self.capacity.allows(index, own) for index, own in enumerate(self.replicas))

    def on_gpus(self) -> Problem:
        """Return the problem with every GPU as a node of its own, where a token goes once to each GPU."""
        node = np.arange(self.nodes * self.gpus_per_node) // self.gpus_per_node
        return replace(
            self,
            demand=self.demand.split(node),
            capacity=capacity_by_gpu(self.capacity),
            gpus_per_node=1,
            domain=None if self.domain is None else self.domain[node],
            hops=self.hops[np.ix_(node, node)],
            coverage=sent_by_gpu(self.coverage, node) if self.coverage else (),
            affected=self.affected[node],
            _reference=self._reference[:, node],
            _change=self._change[node][:, :, node],
        )

    def received_by(self, nics: Receivers, token: float) -> Problem:
        """Return the problem with GPUs as nodes that receive by NICs, on which a token costs ``token``."""
        own = self.on_gpus()
        node, tables = np.arange(own.nodes) // self.gpus_per_node, (own.affected, own._reference, own._change)
        named = self.links, self.multiplicity, self.token_cost
        added = with_arrivals(nics, token, node, named, tables, own.coverage)
        return replace(own, by_node=None if self.coverage else self, **added)

    def item_demand(self, index: int, expert: Ints, replica: Ints) -> Floats:
        """``D[s, i]``: tokens per step that source node s sends to item i, wherever it is [nodes, items]."""
        tokens = self.demand[index][:, expert]
        if self.shares is not None:
            return np.asarray(tokens * self.shares.of(expert, replica))
        if not self.groups:
            return np.asarray(tokens / np.bincount(expert)[expert])
        return np.asarray(np.where(self.group_of_node[:, None] == replica[None, :], tokens, 0.0))

    def crossings(self, index: int, layer: LayerProblem) -> Floats:
        """Tokens of each item times the links that they cross if it is on each node [I, N]."""
        return np.asarray(self.item_demand(index, layer.expert, layer.replica).T @ self.hops)


def compile_problem(instance: Instance, traffic: Traffic) -> Problem:
    """Compile an instance and its traffic to arrays; a budget of redundant slots goes to experts by load.

    Raises
    ------
    InfeasibleError
        No placement can exist.
    """
    problem = _compiled(instance, traffic)
    if instance.objective.scenarios == "mix":
        return problem
    # Of fabric and slots nothing differs; replicas are those of the mix.
    scenarios = tuple(replace(problem, demand=demand_of(instance, one)) for one in scenarios_of(instance, traffic))
    judge = Judge(len(scenarios), instance.objective.sigmas) if instance.objective.take == "mean" else None
    named = links_of_all(problem.links, problem.multiplicity, problem.token_cost, len(scenarios))
    return replace(problem, scenarios=scenarios, judge=judge, **named)


def _compiled(instance: Instance, traffic: Traffic) -> Problem:
    capacity, wanted, placement = find_capacity(instance), demand_of(instance, traffic), instance.placement
    routes, of_replicas = node_routes(instance), replica_shares(instance)
    scale = token_cost(instance, routes.bandwidth)
    costs = link_costs(routes, scale)
    index = {layer: i for i, layer in enumerate(instance.moe_layers)}
    gpus_per_node = instance.cluster.gpus_per_node
    round_trip_us = (1 + back_ratio(instance)) * token_us(instance)
    problem = Problem(
        name=instance.name,
        moe_layers=instance.moe_layers,
        links=tuple(routes.links[k] for k in costs.keep),
        multiplicity=costs.multiplicity,
        token_cost=scale[costs.keep],
        demand=wanted,
        replicas=choose_replicas(instance, wanted.load, capacity),
        groups=instance.parallelism.dp if placement.replica_routing == "group" else 0,
        replicas_are_free=instance.redundant_slots > 0 and of_replicas is None,
        redundant_in_all=instance.redundant_slots if isinstance(placement.replicas, SharedSlots) else None,
        minimise=instance.objective.minimise,
        capacity=capacity,
        slots_are_given=False,
        pinned={(index[p.layer], p.expert, p.replica): p.gpu for p in placement.pinned},
        gpus_per_node=gpus_per_node,
        shards=instance.parallelism.expert_tp,
        hops=routes.hops,
        gpu_price=expert_us(instance, 1.0) / round_trip_us,
        round_trip_us=round_trip_us,
        coverage=compile_coverage(instance, traffic, costs.shares, scale[costs.keep]),
        affected=costs.affected,
        _reference=costs.reference,
        _change=costs.change,
        least_replicas=least_replicas(instance),
        domain=failure_domains(instance),
        shares=of_replicas,
        near=near_rule(instance, routes.hops),
    )
    nics = receivers(instance)
    if nics is not None:
        return problem.received_by(nics, float(token_cost(instance, np.array([nics.gb_per_s]))[0]))
    return problem.on_gpus() if problem.coverage and placement.dispatch == "per-gpu" else problem
