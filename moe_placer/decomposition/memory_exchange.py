"""Improves a division of memory: two layers exchange a slot on one node for a slot on another where that pays.

Where a layer's slot prices (the duals of its relaxation) differ between two nodes, and another layer's differ the other
way round, both may gain by the exchange. What a layer has of its slots is what a short search finds, so this is for
small layers; in large ones the relaxation's division leaves nothing that exchanges of single slots would mend.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import dual_bound
from moe_placer.bounds.relaxation import relax
from moe_placer.limits import Deadline
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.local_search import round_shares, search

__all__ = ["SMALL", "Exchange"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SMALL = 600  # items * nodes of layers for which this pays
_SEARCH_WORK = 0.02
_TRIES = 300  # exchanges looked at before there is none that pays
_PAYS = 1e-6  # least relative gain


class Exchange:
    """A division of memory, changed by exchanges.

    Attributes
    ----------
    slots : int array [layers, N]
    value : float array [layers]
        What each layer makes of its slots, as a z.
    work : float
        Deterministic effort spent.
    """

    def __init__(self, problem: Problem, deadline: Deadline) -> None:
        self.problem, self.deadline = problem, deadline
        self.layers = [problem.layer(index) for index in range(len(problem))]
        self.pinned = np.stack(
            [np.bincount(layer.pinned[layer.pinned >= 0], minlength=layer.nodes) for layer in self.layers]
        )
        layers, capacity = np.arange(1, len(problem) + 1), problem.capacity
        self.places = capacity.places
        # What each node's GPUs take in any k layers [N, k].
        most = np.minimum(capacity.usable[:, None], capacity.per_gpu * layers[None, :])
        self.memory_slots = most.reshape(problem.nodes, problem.gpus_per_node, -1).sum(axis=1)
        self.known: dict[tuple[int, bytes], tuple[float, Floats]] = {}
        self.work = 0.0

    def start(self, slots: Ints) -> float:
        """Start from these slots; return the sum of what layers make of them, infinite if stopped before the last."""
        self.slots = slots.copy()
        found = [self._worth(index, row) for index, row in enumerate(self.slots)]
        self.value = np.array([value for value, _ in found])
        self.prices = np.stack([prices for _, prices in found])
        return float(self.value.sum())

    def run(self, work: float) -> None:
        """Make the exchange that promises the most and pays, until none does or limits are reached."""
        while self.work < work and not self.deadline.over and self._exchange(work):
            pass

    def _exchange(self, work: float) -> bool:
        for one, other, a, b in self._promising():
            if self.work >= work or self.deadline.over:
                return False
            first, second = self.slots[one].copy(), self.slots[other].copy()
            first[[a, b]] += (-1, 1)
            second[[a, b]] += (1, -1)
            if not self._fits(one, other, first, second, (a, b)):
                continue
            new = self._worth(one, first), self._worth(other, second)
            before = self.value[one] + self.value[other]
            if new[0][0] + new[1][0] < before - _PAYS * before:
                for layer, row, (value, prices) in zip((one, other), (first, second), new, strict=True):
                    self.slots[layer], self.value[layer], self.prices[layer] = row, value, prices
                return True
        return False

    def _fits(self, one: int, other: int, first: Ints, second: Ints, nodes: tuple[int, int]) -> bool:
        """Whether the GPUs of two nodes can still take their slots of all layers (Gale-Ryser)."""
        slots = self.slots[:, nodes].copy()
        slots[one], slots[other] = first[list(nodes)], second[list(nodes)]
        fullest = np.cumsum(-np.sort(-slots, axis=0), axis=0)
        return bool((self.memory_slots[list(nodes)] >= fullest.T).all())

    def _promising(self) -> list[tuple[int, int, int, int]]:
        """List (layer, other layer, node a, node b), best first: the layer gives a slot on a for the other's on b."""
        gain = self.prices[:, None, :] - self.prices[:, :, None]  # of giving a for b [layers, a, b]
        can_give, can_take = self.slots > self.pinned, self.slots < self.problem.capacity.widest
        gain = np.where(can_give[:, :, None] & can_take[:, None, :], gain, -np.inf)
        found = []
        for a, b in zip(*np.triu_indices(gain.shape[1], 1), strict=True):
            both = gain[:, None, a, b] + gain[None, :, b, a]
            np.fill_diagonal(both, -np.inf)
            best = np.argsort(-both, axis=None, kind="stable")[:_TRIES]
            one, other = np.unravel_index(best, both.shape)
            found += [(float(-both[i, j]), int(i), int(j), int(a), int(b)) for i, j in zip(one, other, strict=True)]
        found = [row for row in sorted(found) if np.isfinite(row[0])]
        return [row[1:] for row in found[:_TRIES]]

    def _worth(self, index: int, slots: Ints) -> tuple[float, Floats]:
        """Return what a layer makes of slots [N], and the price of each."""
        key = (index, slots.tobytes())
        if key not in self.known:
            together = np.minimum(self.places, slots)
            layer = replace(self.layers[index], slots=slots, widest=slots, together=together)
            self.known[key] = self._solve(layer, index)
        return self.known[key]

    def _solve(self, layer: LayerProblem, index: int) -> tuple[float, Floats]:
        nothing = (np.inf, np.zeros(layer.nodes))
        if self.deadline.over or layer.slots.sum() < layer.items:
            return nothing
        relaxation = relax(layer, self.deadline.left if np.isfinite(self.deadline.at) else None)
        rng = np.random.default_rng(index)
        node = None if relaxation is None else round_shares(layer, relaxation.share, rng)
        if relaxation is None or node is None:
            return nothing
        target = dual_bound(layer, relaxation.weights).value
        found = search(layer, node, target, _SEARCH_WORK, rng, self.deadline)
        self.work += found.work
        return found.z, relaxation.slot_prices
