"""Derives the bound of ``proof: companions`` anew, as docs/bounds.md defines it, and never above what it really proves.

What the hot replica costs and what others add are rounded down, what they save each other is rounded up; what follows
is in whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import CompanionsRecord
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.capacity import gpu_slots, node_slots
from moe_placer.verifier.integer_bounds import BITS, find_unit, least_cost, on_grid, value_of
from moe_placer.verifier.loads import Network
from moe_placer.verifier.nics import receives_by_gpu

__all__ = ["Companions", "distinct_sets", "least_added"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ROUNDING_ERROR = 2.0**-53
_SPARE = 64  # roundings of a fraction, a chance, a price, of their products, and of what is done here
_AS_HOT = 1e-9  # links that cost the hot replica this much less than the worst are tried as well


class Companions:
    """One layer's traffic, replicas and places, as this proof needs them.

    Parameters
    ----------
    row : int
        The MoE layer, in their order.
    replicas : int array [experts]
        How many replicas each expert has.
    """

    def __init__(self, instance: Instance, network: Network, traffic: Traffic, row: int, replicas: Ints) -> None:
        self.instance, self.network, self.traffic = instance, network, traffic
        self.even = instance.placement.draws_evenly
        self.expert = np.repeat(np.arange(len(replicas)), replicas)
        self.replica = np.concatenate([np.arange(count) for count in replicas])
        self.view = np.zeros_like(self.replica) if self.even else self.replica  # whose tokens may use it
        self.chance = 1 / replicas if self.even else np.ones(len(replicas))
        self.files = [distinct_sets(recording.choices_in(row)) for recording in traffic.recordings]
        classes = max(len(times) for _, times in self.files)
        roundings = classes * self.files[0][0].shape[1] + len(self.files) + len(network.links) * instance.cluster.nodes
        roundings += _SPARE
        self.slack = 2 * roundings * _ROUNDING_ERROR

    def bound(self, hot: tuple[int, int], record: CompanionsRecord) -> float:
        """Bound from a hot replica that some place must hold, with others that its place must hold as well.

        ``record`` is in range (`moe_placer.verifier.proofs`).
        """
        item = int(np.flatnonzero((self.expert == hot[0]) & (self.replica == hot[1]))[0])
        shares = [self._shares(item, view, guess) for view, guess in enumerate(record.guess)]
        position = np.argsort(np.array(record.order))
        order = np.lexsort((np.arange(len(self.view)), self.view, position[self.expert]))
        others = order[order != item]
        bound, options = {}, {}
        for place, (prices, members) in self._places.items():
            options[place] = [self._option(item, others, one, shares) for one in self._hottest(item, prices, shares)]
            bound[place] = max((self._floor(*option, members, 0) for option in options[place]), default=0.0)
        deep: set[int] = set()
        while bound:  # without branching the floor of a place is at most what it is with: branch where it is least
            place = min(bound, key=lambda one: bound[one])
            if record.depth == 0 or place in deep:
                return bound[place]
            members = self._places[place][1]
            bound[place] = max(
                [bound[place], *(self._floor(*option, members, record.depth) for option in options[place])]
            )
            deep.add(place)
        return 0.0

    def weighted_bound(self, weights: Mapping[str, float], guess: Sequence[Sequence[Sequence[int]]]) -> float:
        """Bound from link weights: every replica where its share of what its place receives is least.

        ``weights`` and ``guess`` are in range (`moe_placer.verifier.proofs`).
        """
        slots, node = self.slots
        weight = self.network.normalised(weights)
        adds, saves = [], []
        for view, table in enumerate(guess):
            _, alone, saved = self._shares(None, view, table)
            adds.append(alone)
            saves.append(saved)
        of_node = [self.prices(n, weight).sum(axis=0) for n in range(len(self.network.home))]
        largest = max(float((p[v] @ adds[v]).max(initial=0.0)) for p in of_node for v in range(len(adds)))
        unit = find_unit(largest * (1 + self.slack), min(BITS, 60 - len(self.expert).bit_length()))
        if unit is None:
            return 0.0
        price = np.zeros((len(self.expert), len(slots)), dtype=np.int64)
        known: dict[tuple[int, int], Ints] = {}
        for place in np.flatnonzero(slots > 0).tolist():
            kind = (int(node[place]), int(slots[place]))
            if kind not in known:
                known[kind] = self._least_shares(of_node[kind[0]], kind[1] - 1, adds, saves, unit)
            price[:, place] = known[kind]
        steps = least_cost(price, slots)
        return 0.0 if steps is None else value_of(steps, unit)

    def _least_shares(
        self, price: Floats, fellows: int, adds: Sequence[Floats], saves: Sequence[Floats], unit: int
    ) -> Ints:
        """Return the least that each replica's share of a place's price can be [items], with so many fellows there."""
        share = np.zeros(len(self.expert), dtype=np.int64)
        for view in range(len(adds)):
            mine = np.flatnonzero(self.view == view)
            expert = self.expert[mine]
            alone = on_grid(((price[view] @ adds[view]) * (1 - self.slack))[expert], unit)
            saved = np.tensordot(price[view], saves[view], axes=1)[np.ix_(expert, expert)] * (1 + self.slack)
            most = -np.floor(np.ldexp(-saved, -unit)).astype(np.int64)
            share[mine] = np.maximum(alone - _largest(most, fellows), 0)
        return share

    @cached_property
    def slots(self) -> tuple[Ints, Ints]:
        """Count the replicas that each place, a node or with per-gpu a GPU, can hold; and say where tokens to it go."""
        instance = self.instance
        if instance.placement.dispatch != "per-gpu":
            return node_slots(instance), np.arange(instance.cluster.nodes)
        gpus = np.arange(instance.gpus)
        return gpu_slots(instance), gpus if receives_by_gpu(instance) else gpus // instance.cluster.gpus_per_node

    @cached_property
    def _places(self) -> dict[int, tuple[Floats, int]]:
        """Prices [links, views, files], and companions that the place of an item must hold; one place of each kind."""
        slots, node = self.slots
        members = np.maximum(0, len(self.expert) - (slots.sum() - slots)) - 1
        kinds: dict[tuple[bytes, int], int] = {}
        found = {}
        for place in np.flatnonzero(slots > 0).tolist():
            prices = self.prices(int(node[place]), np.ones(len(self.network.links)))
            if kinds.setdefault((prices.tobytes(), int(members[place])), place) == place:
                found[place] = (prices, int(members[place]))
        return found

    def prices(self, node: int, weight: Floats) -> Floats:
        """Weighted cost on each link that leads to a node if all tokens that the sources of a view start go there."""
        network, cluster = self.network.whole, self.instance.cluster
        views = 1 if self.even else self.instance.parallelism.dp
        group = np.arange(cluster.nodes) * views // cluster.nodes
        started = self.instance.traffic.tokens_per_gpu * cluster.gpus_per_node * self.traffic.mix
        here = np.flatnonzero((network.target == node) & (network.source != network.home[node]))
        source = network.source[here]
        prices = np.zeros((len(network.links), views, started.shape[1]))
        cost = (network.share[here] * (weight * network.scale)[network.link[here]])[:, None] * started[source]
        np.add.at(prices, (network.link[here], group[source]), cost)
        return prices[np.unique(network.link[here])]

    def _shares(self, item: int | None, view: int, guess: Sequence[Sequence[int]]) -> tuple[Floats, Floats, Floats]:
        """Shares of each file's tokens that, in a view, draw an expert; that it adds; and that fellows save of these.

        Returns
        -------
        load, alone : float array [files, experts]
        saved : float array [files, experts, experts]
        """
        experts, chance, table = len(self.chance), self.chance, _table(guess, len(self.chance))
        hot = int(self.expert[item]) if item is not None and view == self.view[item] else -1
        load, alone = np.zeros((len(self.files), experts)), np.zeros((len(self.files), experts))
        saved = np.zeros((len(self.files), experts, experts))
        for file, (chosen, times) in enumerate(self.files):
            share = times / times.sum()
            rest = share * (1.0 - (chosen == hot).any(axis=1) * (chance[hot] if hot >= 0 else 0.0))
            for own in chosen.T:
                a = table[own[:, None], chosen].sum(axis=1)
                np.add.at(load[file], own, share * chance[own])
                np.add.at(alone[file], own, rest * chance[own] * 2 / (a + 2))
                for fellow in chosen.T:
                    other = fellow != own
                    less = rest * chance[own] * chance[fellow] / ((a + 1) * (a + 2))
                    np.add.at(saved[file], (own[other], fellow[other]), less[other])
        return load, alone, saved

    def _hottest(self, item: int, prices: Floats, shares: Sequence[tuple[Floats, Floats, Floats]]) -> list[Floats]:
        """Return the prices [views, files] of the links on which the hot replica costs most."""
        view = int(self.view[item])
        cost = prices[:, view] @ shares[view][0][:, self.expert[item]]
        return [prices[link] for link in np.flatnonzero(cost >= cost.max(initial=0.0) * (1 - _AS_HOT))]

    def _option(
        self, item: int, others: Ints, price: Floats, shares: Sequence[tuple[Floats, Floats, Floats]]
    ) -> tuple[float, Floats, Floats]:
        """Cost of the hot replica, what others add to it, and what they save each other, on one link of one place."""
        alone, saved = np.zeros(len(others)), np.zeros((len(others), len(others)))
        for view, (_, adds, saves) in enumerate(shares):
            mine = np.flatnonzero(self.view[others] == view)
            expert = self.expert[others[mine]]
            alone[mine] = (price[view] @ adds)[expert]
            saved[np.ix_(mine, mine)] = np.tensordot(price[view], saves, axes=1)[np.ix_(expert, expert)]
        view = int(self.view[item])
        return float(price[view] @ shares[view][0][:, self.expert[item]]), alone, saved

    def _floor(self, base: float, alone: Floats, saved: Floats, members: int, depth: int) -> float:
        """Return what a place with the hot replica must receive, rounded down."""
        below, above = 1 - self.slack, 1 + self.slack
        # A sum has at most `members` replicas, each with as many fellows, twice where one is branched on.
        bits = min(BITS, 60 - (2 * (members + 2) ** 2).bit_length())
        unit = find_unit(max(base, float(alone.max(initial=0.0)), float(saved.max(initial=0.0))) * above, bits)
        if unit is None:
            return 0.0
        least = on_grid(alone * below, unit)
        most = -np.floor(np.ldexp(-saved * above, -unit)).astype(np.int64)
        added = least_added(least, most, members, depth) if members > 0 else 0
        return value_of(int(on_grid(np.array(base * below), unit)) + added, unit)


def distinct_sets(topk: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Return the different sets of experts of a layer's tokens [tokens, top_k], and how many tokens have each."""
    chosen, times = np.unique(np.sort(topk, axis=1), axis=0, return_counts=True)
    return chosen.astype(np.int64), times.astype(np.int64)


def _table(guess: Sequence[Sequence[int]], experts: int) -> Bools:
    table = np.zeros((experts, experts), dtype=bool)
    for expert, companions in enumerate(guess):
        table[expert, list(companions)] = True
    return table


def least_added(alone: Ints, saved: Ints, members: int, depth: int) -> int:
    """Return what no set of ``members`` items adds less than, each of them at most once; at least 0.

    A set adds the sum over its items j of ``alone[j]`` less ``saved[j, j']`` for every other item j' of the set. With
    ``depth`` 1 or 2, the first items of the set, in the order of the arrays, are tried one by one; every other item of
    it comes later, and has as fellows those that save most among the items that come later.

    Parameters
    ----------
    alone : int array
        What each item adds alone [items], on the grid.
    saved : int array
        What each pair saves [items, items], on the grid.
    members : int
        How many items a set has.
    depth : int
        Branch over no item (0), over the first (1), or over the first two (2).
    """
    items = len(alone)
    if members > items:
        return 0  # no such set: another rule is broken
    own = np.maximum(alone - _largest(saved, members - 1), 0)
    without: int = sum(np.sort(own)[:members].tolist())
    if not 0 < depth < members or members == items:
        return without
    both, rest = saved + saved.T, members - depth
    best = None
    for last in range(depth - 1, items - rest):
        later = np.arange(last + 1, items)
        gain = alone[later] - both[later, last] - _largest(saved[np.ix_(later, later)], rest - 1)
        firsts = np.arange(last) if depth == 2 else np.array([last])
        value = alone[firsts] + (alone[last] - both[firsts, last] if depth == 2 else 0)
        gains = gain - both[np.ix_(firsts, later)] if depth == 2 else gain[None, :]
        value = value + np.partition(gains, rest - 1, axis=1)[:, :rest].sum(axis=1)
        least = int(value.min())
        best = least if best is None else min(best, least)
    return max(without, best or 0)


def _largest(saved: Ints, count: int) -> Ints:
    """Sum of the ``count`` largest numbers of every row."""
    if count <= 0:
        return np.zeros(len(saved), dtype=np.int64)
    count = min(count, saved.shape[1])
    return np.asarray(np.partition(saved, saved.shape[1] - count, axis=1)[:, saved.shape[1] - count :].sum(axis=1))
