"""Every placement of a tiny instance, from the definitions of the placement model alone, in exact numbers.

Nothing here is shared with moe_placer but the instance and the traffic as given. Candidates for the best are looked for
in floating point; what they really come to is computed in fractions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic

Floats = npt.NDArray[np.float64]
Route = dict[str, Fraction]  # link to its share of the traffic
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp4": Fraction(1, 2)}
CLOSE = 1e-9  # what is so close to the best may be the best
MOST_TRIED = 50_000  # ways to put a layer's replicas on GPUs, valid or not
MOST_EXACT = 16  # of these, how many are computed exactly
MOST_ADDED = 400  # ways of a layer, the best ones, whose link totals with another layer's are tried


@dataclass(frozen=True)
class Way:
    """One way to place a layer: GPUs of every copy of every expert."""

    gpus: tuple[tuple[tuple[int, ...], ...], ...]
    nodes: tuple[int, ...]
    used: tuple[int, ...]  # shards on each GPU

    @property
    def copies(self) -> tuple[int, ...]:
        return tuple(len(copies) for copies in self.gpus)


@dataclass(frozen=True)
class Best:
    """A best placement of all layers, and what it comes to."""

    value: Fraction
    ways: tuple[Way, ...]


class BruteForce:
    """All placements of a tiny instance of one or two MoE layers; fat trees and full meshes only."""

    def __init__(self, instance: Instance, traffic: Traffic, most: int = 100_000) -> None:
        """List all placements of layers, if they are at most so many; else none, so that `possible` is False."""
        self.instance, self.traffic = instance, traffic
        self.routes, self.scale = _fabric(instance)
        self.links = list(self.scale)
        self.T = _demand(instance, traffic)
        self.room = [_room(instance, gpu) for gpu in range(instance.gpus)]
        self.ways = [self._list(layer, most) for layer in instance.moe_layers]
        if all(self.ways):
            self.costs = [self._float_costs(row, ways) for row, ways in enumerate(self.ways)]

    def _list(self, layer: int, most: int) -> list[Way]:
        """List the ways of one layer that differ in copies, nodes or the use of GPUs; none if there are too many."""
        found: dict[Any, Way] = {}
        if len(_places(self.instance)) ** self.instance.replicas_per_layer > MOST_TRIED:
            return []
        for count, way in enumerate(_ways(self.instance, layer, self.room)):
            if count >= most:
                return []
            found.setdefault((way.copies, way.nodes, way.used), way)
        return list(found.values())

    @property
    def possible(self) -> bool:
        return all(self.ways) and self.best_total() is not None

    @property
    def tight(self) -> bool:
        """Whether memory may bind over layers."""
        most = self.instance.placement.slots_per_gpu * len(self.ways)
        return any(room < most for room in self.room)

    def exact_cost(self, row: int, way: Way) -> dict[str, Fraction]:
        """Cost of every link in one layer."""
        cost = dict.fromkeys(self.links, Fraction(0))
        for (expert, replica), node in zip(_items(way.copies), way.nodes, strict=True):
            for source in range(self.instance.cluster.nodes):
                tokens = self.T[row][source][expert] * self._part(source, replica, way.copies[expert])
                for link, share in self.routes[source, node].items():
                    cost[link] += tokens * share * self.scale[link]
        return cost

    def best_of_layer(self, row: int, copies: tuple[int, ...] | None = None) -> Fraction:
        """Return the least z of one layer alone, with these copies if given."""
        at = [i for i, way in enumerate(self.ways[row]) if copies in {None, way.copies}]
        z = self.costs[row][at].max(axis=1, initial=0.0)
        close = [at[i] for i in np.flatnonzero(z <= z.min() * (1 + CLOSE))[:MOST_EXACT]]
        return min(max(self.exact_cost(row, self.ways[row][i]).values(), default=Fraction(0)) for i in close)

    def best_total(self) -> Best | None:
        """Return the least sum of z over all layers, with budgets and memory that they share; None if none fits."""
        kinds = [self._distinct(row, by_z=True) for row in range(len(self.ways))]
        z = [costs[own].max(axis=1, initial=0.0) for costs, own in zip(self.costs, kinds, strict=True)]
        values = z[0] if len(z) == 1 else z[0][:, None] + z[1][None, :]
        return self._best(kinds, values, by_z=True)

    def best_aggregate(self) -> Best | None:
        """Return the least largest link total over all layers."""
        kinds = [self._distinct(row, by_z=False)[:MOST_ADDED] for row in range(len(self.ways))]
        costs = [costs[own] for costs, own in zip(self.costs, kinds, strict=True)]
        totals = costs[0] if len(costs) == 1 else costs[0][:, None] + costs[1][None, :]
        found = self._best(kinds, totals.max(axis=-1, initial=0.0), by_z=False)
        total = self.best_total()
        return found or (total and self._exact(total.ways, by_z=False))  # none of those tried fits together

    def any_ways(self, rng: np.random.Generator) -> tuple[Way, ...]:
        """Choose any placement of all layers that fits, in which layers differ in copies, nodes or use of GPUs."""
        while True:
            chosen = [int(rng.integers(len(ways))) for ways in self.ways]
            if self._fits([[i] for i in chosen]).all():
                return tuple(self.ways[row][i] for row, i in enumerate(chosen))

    def _best(self, kinds: Sequence[Sequence[int]], values: Floats, by_z: bool) -> Best | None:
        """Choose among combinations of ways, of which ``values`` [ways of a layer, ways of the next] are known."""
        values = np.where(self._fits(kinds), values, np.inf)
        least = values.min()
        if not np.isfinite(least):
            return None
        close = np.argwhere(values <= least * (1 + CLOSE))[:MOST_EXACT]
        chosen = (
            tuple(ways[own[i]] for ways, own, i in zip(self.ways, kinds, at, strict=True)) for at in close.tolist()
        )
        return min((self._exact(one, by_z) for one in chosen), key=lambda best: best.value)

    def _exact(self, ways: tuple[Way, ...], by_z: bool) -> Best:
        costs = [self.exact_cost(row, way) for row, way in enumerate(ways)]
        if by_z:
            return Best(sum((max(cost.values(), default=Fraction(0)) for cost in costs), Fraction(0)), ways)
        totals = [sum((cost[link] for cost in costs), Fraction(0)) for link in self.links]
        return Best(max(totals, default=Fraction(0)), ways)

    def _distinct(self, row: int, by_z: bool) -> list[int]:
        """Return the best way of every use of GPUs and of the budget; of every cost of links too, unless by z."""
        first: dict[Any, int] = {}
        costs = self.costs[row]
        for i in np.argsort(costs.max(axis=1, initial=0.0), kind="stable").tolist():
            way = self.ways[row][i]
            key = (way.used if self.tight else (), sum(way.copies), b"" if by_z else costs[i].tobytes())
            first.setdefault(key, i)
        return list(first.values())

    def _fits(self, kinds: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
        """Tell of every combination of ways whether GPUs' memory and a budget over layers suffice."""
        used = [np.array([self.ways[row][i].used for i in own]) for row, own in enumerate(kinds)]
        extra = [np.array([sum(self.ways[row][i].copies) for i in own]) for row, own in enumerate(kinds)]
        if len(kinds) > 1:
            used, extra = [used[0][:, None] + used[1][None, :]], [extra[0][:, None] + extra[1][None, :]]
        budget = getattr(self.instance.placement.replicas, "redundant_slots_in_all", None)
        most = np.inf if budget is None else budget + len(self.ways) * self.instance.model.experts
        return np.asarray((used[0] <= np.array(self.room)).all(axis=-1) & (extra[0] <= most))

    def _part(self, source: int, replica: int, copies: int) -> Fraction:
        """Return the share of a source's tokens for an expert that a replica gets."""
        if self.instance.placement.replica_routing == "even":
            return Fraction(1, copies)
        size = self.instance.cluster.nodes // self.instance.parallelism.dp
        return Fraction(int(source // size == replica))

    def _float_costs(self, row: int, ways: Sequence[Way]) -> Floats:
        """Cost of every link [ways, links], about."""
        nodes, costs = range(self.instance.cluster.nodes), np.zeros((len(ways), len(self.links)))
        share = np.zeros((len(nodes), len(nodes), len(self.links)))
        for (source, target), route in self.routes.items():
            for link, part in route.items():
                share[source, target, self.links.index(link)] = float(part * self.scale[link])
        tokens = np.array([[float(count) for count in of_node] for of_node in self.T[row]])
        by_copies: dict[tuple[int, ...], list[int]] = {}
        for i, way in enumerate(ways):
            by_copies.setdefault(way.copies, []).append(i)
        for copies, at in by_copies.items():
            placed = np.array([ways[i].nodes for i in at])
            for item, (expert, replica) in enumerate(_items(copies)):
                part = np.array([float(self._part(source, replica, copies[expert])) for source in nodes])
                costs[at] += np.einsum("s,snk->nk", tokens[:, expert] * part, share)[placed[:, item]]
        return costs


def _items(copies: Sequence[int]) -> list[tuple[int, int]]:
    return [(expert, replica) for expert, count in enumerate(copies) for replica in range(count)]


def _fabric(instance: Instance) -> tuple[dict[tuple[int, int], Route], dict[str, Fraction]]:
    """Return routes between nodes, and what a token costs on every link."""
    fabric, nodes = instance.cluster.fabric, range(instance.cluster.nodes)
    own, speed = Fraction(fabric.node_gb_per_s), {}
    routes: dict[tuple[int, int], Route] = {}
    if fabric.kind == "full-mesh":
        for s, d in product(nodes, nodes):
            routes[s, d] = {} if s == d else {f"node{s}->node{d}": Fraction(1)}
            speed |= dict.fromkeys(routes[s, d], own)
    else:
        assert fabric.kind == "fat-tree"
        up = fabric.nodes_per_leaf * own / Fraction(fabric.oversubscription) / fabric.spines
        for s, d in product(nodes, nodes):
            first, last = s // fabric.nodes_per_leaf, d // fabric.nodes_per_leaf
            route = {f"node{s}->leaf{first}": Fraction(1), f"leaf{last}->node{d}": Fraction(1)} if s != d else {}
            speed |= dict.fromkeys(route, own)
            if first != last:
                over = [f"leaf{first}->spine{k}" for k in range(fabric.spines)]
                over += [f"spine{k}->leaf{last}" for k in range(fabric.spines)]
                route |= dict.fromkeys(over, Fraction(1, fabric.spines))
                speed |= dict.fromkeys(over, up)
            routes[s, d] = route
    by_time = instance.objective.metric == "time"
    return routes, {link: own / bandwidth if by_time else Fraction(1) for link, bandwidth in speed.items()}


def _demand(instance: Instance, traffic: Traffic) -> list[list[list[Fraction]]]:
    """``T[l][s][e]`` of the placement model."""
    starts = Fraction(instance.traffic.tokens_per_gpu) * instance.cluster.gpus_per_node
    chosen = [
        [
            [Fraction(float(n)) / Fraction(float(recording.tokens[row])) for n in recording.load[row]]
            for recording in traffic.recordings
        ]
        for row in range(len(instance.moe_layers))
    ]
    mix = [[Fraction(float(share)) for share in row] for row in traffic.mix]
    return [
        [
            [
                starts * sum((share * of[expert] for share, of in zip(mix[s], chosen[row], strict=True)), Fraction(0))
                for expert in range(instance.model.experts)
            ]
            for s in range(instance.cluster.nodes)
        ]
        for row in range(len(instance.moe_layers))
    ]


def resident_and_expert(instance: Instance) -> tuple[Fraction, Fraction]:
    """Bytes of what is resident on a GPU, and of an expert's shard."""
    model, size = instance.model, Fraction(BYTES[instance.model.dtype])
    width = model.dense_hidden_size or model.top_k * model.expert_hidden_size
    resident = 4 * model.layers * model.hidden_size * model.attention_heads * model.head_dim
    resident += len(model.dense_layers) * model.expert_matrices * model.hidden_size * width
    resident += 2 * model.vocab_size * model.hidden_size
    expert = model.expert_matrices * model.hidden_size * model.expert_hidden_size * size
    cache = Fraction(instance.placement.kv_cache_gb) * 10**9
    return resident * size / instance.parallelism.attention_tp + cache, expert / instance.parallelism.expert_tp


def _room(instance: Instance, gpu: int) -> int:
    """Shards that a GPU can take over all layers."""
    if gpu in instance.placement.failed_gpus:
        return 0
    resident, expert = resident_and_expert(instance)
    memory = Fraction(instance.cluster.gpu_memory_gb.get(gpu, instance.cluster.gpu.memory_gb)) * 10**9
    return max(0, int((memory - resident) // expert))


def _choices_of_copies(instance: Instance) -> Iterator[tuple[int, ...]]:
    experts, budget = instance.model.experts, instance.placement.replicas
    if budget == "dp":
        yield (instance.parallelism.dp,) * experts
        return
    exact = getattr(budget, "redundant_slots", None)
    most = exact if exact is not None else getattr(budget, "redundant_slots_in_all", 0)
    for more in product(range(most + 1), repeat=experts):
        if sum(more) == most or (exact is None and sum(more) < most):
            yield tuple(1 + extra for extra in more)


def _places(instance: Instance) -> list[tuple[int, ...]]:
    """List where a replica can be: a working GPU, or as many of one node as it has shards."""
    per_node, failed = instance.cluster.gpus_per_node, set(instance.placement.failed_gpus)
    nodes = (range(first, first + per_node) for first in range(0, instance.gpus, per_node))
    working = ([gpu for gpu in gpus if gpu not in failed] for gpus in nodes)
    return [place for gpus in working for place in combinations(gpus, instance.parallelism.expert_tp)]


def _ways(instance: Instance, layer: int, room: Sequence[int]) -> Iterator[Way]:
    """List all ways to place a layer alone."""
    for copies in _choices_of_copies(instance):
        yield from _Layer(instance, layer, room, copies).ways()


class _Layer:
    """One layer with given copies, whose items are put on places one after the other."""

    def __init__(self, instance: Instance, layer: int, room: Sequence[int], copies: tuple[int, ...]) -> None:
        placement = instance.placement
        self.copies, self.items, self.places = copies, _items(copies), _places(instance)
        self.per_node, self.apart = instance.cluster.gpus_per_node, placement.replicas_apart
        self.pins = {(pin.expert, pin.replica): pin.gpu for pin in placement.pinned if pin.layer == layer}
        self.alike = placement.replica_routing == "even" and not self.pins
        self.left = [min(placement.slots_per_gpu, most) for most in room]
        self.slots = list(self.left)
        self.chosen: list[int] = []

    def ways(self) -> Iterator[Way]:
        """List every way to go on from what is chosen."""
        if len(self.chosen) == len(self.items):
            yield self._way()
            return
        replica = self.items[len(self.chosen)][1]
        first = self.chosen[-1] + 1 if self.alike and replica else 0  # copies that are alike stand in order
        for index in range(first, len(self.places)):
            if self._fits(self.places[index]):
                self.chosen.append(index)
                for gpu in self.places[index]:
                    self.left[gpu] -= 1
                yield from self.ways()
                for gpu in self.places[self.chosen.pop()]:
                    self.left[gpu] += 1

    def _fits(self, place: tuple[int, ...]) -> bool:
        """Whether the next item may be here: slots, pins, and distance from the other copies."""
        expert, replica = self.items[len(self.chosen)]
        if any(self.left[gpu] < 1 for gpu in place) or self.pins.get((expert, replica), place[0]) not in place:
            return False
        others = [self.places[index] for index in self.chosen[len(self.chosen) - replica :]] if replica else []
        if self.apart == "node":
            return all(other[0] // self.per_node != place[0] // self.per_node for other in others)
        return all(not set(other) & set(place) for other in others)

    def _way(self) -> Way:
        rows: list[list[tuple[int, ...]]] = [[] for _ in self.copies]
        for (expert, _), index in zip(self.items, self.chosen, strict=True):
            rows[expert].append(self.places[index])
        nodes = tuple(self.places[index][0] // self.per_node for index in self.chosen)
        used = tuple(slots - left for slots, left in zip(self.slots, self.left, strict=True))
        return Way(tuple(map(tuple, rows)), nodes, used)
