"""Every placement of a tiny instance, and the best of them.

Candidates are looked for in floating point; what they really come to is computed in fractions (`exact_model`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from exact_model import Way, demand_of, fabric_of, items_of, memory_slots_of, sent_once

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic

Floats = npt.NDArray[np.float64]
CLOSE = 1e-9  # what is so close to the best may be the best
MOST_TRIED = 50_000  # ways to put a layer's replicas on GPUs, valid or not
MOST_EXACT = 16  # of these, how many are computed exactly
MOST_ADDED = 400  # ways of a layer, the best ones, whose link totals with another layer's are tried


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
        self.routes, self.scale = fabric_of(instance)
        self.links = list(self.scale)
        # What a token from node to node costs on links.
        self.token = {
            ends: [(link, share * self.scale[link]) for link, share in route.items()]
            for ends, route in self.routes.items()
        }
        self._exact_costs: dict[tuple[int, Way], dict[str, Fraction]] = {}
        self.T = demand_of(instance, traffic)
        self.memory_slots = [memory_slots_of(instance, gpu) for gpu in range(instance.gpus)]
        most = most if self.every_choice else most // 10  # whose costs take longer to compute
        self.complete = True  # whether the lists are: an empty one then says that there is no placement
        self.ways = [self._list(layer, most) for layer in instance.moe_layers]
        if all(self.ways):
            self.costs = [self._float_costs(row, ways) for row, ways in enumerate(self.ways)]

    def _list(self, layer: int, most: int) -> list[Way]:
        """List the ways of one layer that differ in replicas, nodes or the use of GPUs; none if there are too many."""
        found: dict[Any, Way] = {}
        if len(_places(self.instance)) ** self.instance.replicas_per_layer > MOST_TRIED:
            self.complete = False
            return []
        for count, way in enumerate(_ways(self.instance, layer, self.memory_slots)):
            if count >= most:
                self.complete = False
                return []
            found.setdefault((way.replicas, way.nodes, way.used), way)
        return list(found.values())

    @property
    def possible(self) -> bool:
        return all(self.ways) and self.best_total() is not None

    @property
    def tight(self) -> bool:
        """Whether memory may bind over layers."""
        most = self.instance.placement.slots_per_gpu * len(self.ways)
        return any(memory_slots < most for memory_slots in self.memory_slots)

    @property
    def every_choice(self) -> bool:
        """Whether a token is sent once for every chosen expert, and not once for every place that holds any."""
        placement = self.instance.placement
        alone = placement.slots_per_gpu == 1 and self.instance.parallelism.expert_tp == 1
        return placement.dispatch == "per-expert" or (placement.dispatch == "per-gpu" and alone)

    def exact_cost(self, row: int, way: Way) -> dict[str, Fraction]:
        """Cost of every link in one layer; kept, since what is close to the best is asked for again."""
        if (row, way) not in self._exact_costs:
            self._exact_costs[row, way] = self._exact_cost(row, way)
        return self._exact_costs[row, way]

    def _exact_cost(self, row: int, way: Way) -> dict[str, Fraction]:
        cost = dict.fromkeys(self.links, Fraction(0))
        if not self.every_choice:
            for ends, tokens in sent_once(self.instance, self.traffic, row, way, Fraction).items():
                for link, each in self.token[ends]:
                    cost[link] += tokens * each
            return cost
        for (expert, replica), node in zip(items_of(way.replicas), way.nodes, strict=True):
            for source in range(self.instance.cluster.nodes):
                tokens = self.T[row][source][expert] * self._part(source, replica, way.replicas[expert])
                for link, each in self.token[source, node] if tokens else ():
                    cost[link] += tokens * each
        return cost

    def best_of_layer(self, row: int, replicas: tuple[int, ...] | None = None) -> Fraction:
        """Return the least z of one layer alone, with these replicas if given."""
        at = [i for i, way in enumerate(self.ways[row]) if replicas in {None, way.replicas}]
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
        """Choose any placement of all layers that fits, in which layers differ in replicas, nodes or use of GPUs."""
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
            key = (way.used if self.tight else (), sum(way.replicas), b"" if by_z else costs[i].tobytes())
            first.setdefault(key, i)
        return list(first.values())

    def _fits(self, kinds: Sequence[Sequence[int]]) -> npt.NDArray[np.bool_]:
        """Tell of every combination of ways whether GPUs' memory and a budget over layers suffice."""
        used = [np.array([self.ways[row][i].used for i in own]) for row, own in enumerate(kinds)]
        extra = [np.array([sum(self.ways[row][i].replicas) for i in own]) for row, own in enumerate(kinds)]
        if len(kinds) > 1:
            used, extra = [used[0][:, None] + used[1][None, :]], [extra[0][:, None] + extra[1][None, :]]
        budget = getattr(self.instance.placement.replicas, "redundant_slots_in_all", None)
        most = np.inf if budget is None else budget + len(self.ways) * self.instance.model.experts
        return np.asarray((used[0] <= np.array(self.memory_slots)).all(axis=-1) & (extra[0] <= most))

    def _part(self, source: int, replica: int, replicas: int) -> Fraction:
        """Return the share of a source's tokens for an expert that a replica gets."""
        if self.instance.placement.replica_routing == "even":
            return Fraction(1, replicas)
        size = self.instance.cluster.nodes // self.instance.parallelism.dp
        return Fraction(int(source // size == replica))

    def _float_cost(self, row: int, way: Way, cost_of_token: Floats) -> Floats:
        nodes = range(self.instance.cluster.nodes)
        sent = sent_once(self.instance, self.traffic, row, way, float)
        tokens = np.array([[sent[source, target] for target in nodes] for source in nodes])
        return np.asarray(np.tensordot(tokens, cost_of_token, 2))

    def _float_costs(self, row: int, ways: Sequence[Way]) -> Floats:
        """Cost of every link [ways, links], about."""
        nodes, costs = range(self.instance.cluster.nodes), np.zeros((len(ways), len(self.links)))
        share = np.zeros((len(nodes), len(nodes), len(self.links)))
        for (source, target), route in self.token.items():
            for link, each in route:
                share[source, target, self.links.index(link)] = float(each)
        if not self.every_choice:
            return np.array([self._float_cost(row, way, share) for way in ways]).reshape(costs.shape)
        tokens = np.array([[float(count) for count in of_node] for of_node in self.T[row]])
        by_replicas: dict[tuple[int, ...], list[int]] = {}
        for i, way in enumerate(ways):
            by_replicas.setdefault(way.replicas, []).append(i)
        for replicas, at in by_replicas.items():
            placed = np.array([ways[i].nodes for i in at])
            for item, (expert, replica) in enumerate(items_of(replicas)):
                part = np.array([float(self._part(source, replica, replicas[expert])) for source in nodes])
                costs[at] += np.einsum("s,snk->nk", tokens[:, expert] * part, share)[placed[:, item]]
        return costs


def _choices_of_replicas(instance: Instance) -> Iterator[tuple[int, ...]]:
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


def _ways(instance: Instance, layer: int, memory_slots: Sequence[int]) -> Iterator[Way]:
    """List all ways to place a layer alone."""
    for replicas in _choices_of_replicas(instance):
        yield from _Layer(instance, layer, memory_slots, replicas).ways()


class _Layer:
    """One layer with given replicas, whose items are put on places one after the other."""

    def __init__(self, instance: Instance, layer: int, memory_slots: Sequence[int], replicas: tuple[int, ...]) -> None:
        placement = instance.placement
        self.replicas, self.items, self.places = replicas, items_of(replicas), _places(instance)
        self.per_node, self.apart = instance.cluster.gpus_per_node, placement.replicas_apart
        self.pins = {(pin.expert, pin.replica): pin.gpu for pin in placement.pinned if pin.layer == layer}
        self.alike = placement.replica_routing == "even" and not self.pins
        self.left = [min(placement.slots_per_gpu, most) for most in memory_slots]
        self.slots = list(self.left)
        self.chosen: list[int] = []

    def ways(self) -> Iterator[Way]:
        """List every way to go on from what is chosen."""
        if len(self.chosen) == len(self.items):
            yield self._way()
            return
        replica = self.items[len(self.chosen)][1]
        # Replicas that are alike stand in order.
        first = self.chosen[-1] + (self.apart != "none") if self.alike and replica else 0
        for index in range(first, len(self.places)):
            if self._fits(self.places[index]):
                self.chosen.append(index)
                for gpu in self.places[index]:
                    self.left[gpu] -= 1
                yield from self.ways()
                for gpu in self.places[self.chosen.pop()]:
                    self.left[gpu] += 1

    def _fits(self, place: tuple[int, ...]) -> bool:
        """Whether the next item may be here: slots, pins, and distance from the other replicas."""
        expert, replica = self.items[len(self.chosen)]
        if any(self.left[gpu] < 1 for gpu in place) or self.pins.get((expert, replica), place[0]) not in place:
            return False
        others = [self.places[index] for index in self.chosen[len(self.chosen) - replica :]] if replica else []
        if self.apart == "none":
            return True
        if self.apart == "node":
            return all(other[0] // self.per_node != place[0] // self.per_node for other in others)
        return all(not set(other) & set(place) for other in others)

    def _way(self) -> Way:
        rows: list[list[tuple[int, ...]]] = [[] for _ in self.replicas]
        for (expert, _), index in zip(self.items, self.chosen, strict=True):
            rows[expert].append(self.places[index])
        nodes = tuple(self.places[index][0] // self.per_node for index in self.chosen)
        used = tuple(slots - left for slots, left in zip(self.slots, self.left, strict=True))
        return Way(tuple(map(tuple, rows)), nodes, used)
