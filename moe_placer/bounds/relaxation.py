"""The linear relaxation of a layer: items on nodes in fractions, and the link weights that its duals are."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.bounds.assignment import price, transport
from moe_placer.bounds.clustered import offer_by_direction, relax_clustered
from moe_placer.bounds.linear_program import LinearSolution, link_weights, minimise
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.merged import merged_by_node, on_every_gpu
from moe_placer.problem.symmetry import SymmetryClasses

__all__ = ["Relaxation", "link_matrix", "relax"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_AT_ONCE = 6_000  # variables up to which all are given to the simplex method at once
_ADDED = 4  # nodes offered to an item beside, in each round
_TOLERANCE = 1e-5  # of the optimum, relative, where not all nodes are offered
_ROUNDING = 1e-9  # of reduced costs; costs are scaled to about 1


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The linear relaxation of a layer.

    Attributes
    ----------
    share : float array [I, N]
        Fraction of each item on each node; rows sum to 1.
    weights : float array [K]
        Duals of the link constraints, scaled to sum to 1.
    slot_prices : float array [N]
        Duals of the nodes' slots: what one more would save.
    """

    share: Floats
    weights: Floats
    slot_prices: Floats


def relax(
    problem: LayerProblem,
    time_limit_s: float | None = None,
    forbidden: Mask | None = None,
    any_replicas: bool = False,
    memory_prices: Floats | None = None,
    slots: Floats | None = None,
    to_round: bool = False,
) -> Relaxation | None:
    """Solve the linear relaxation: minimise z with items spread over nodes in fractions; None if none or out of time.

    ``min z  s.t.  base + sum delta x <= z,  sum_n x[i, n] = 1,  sum_i x[i, n] <= widest[n],  x >= 0`` (GLOP);
    x is 0 where ``forbidden`` [I, N]. With ``any_replicas``, slots do not count, which leaves room for other replicas.
    With ``memory_prices`` [N] or [I, N], an item on node n adds that much to what is minimised; ``slots`` [N], in
    fractions too, replace ``widest``.

    Large ones without slots are solved on clusters of items (`relax_clustered`). Other large ones start from few nodes
    for each item, and add those whose reduced cost is negative (sifting: Bixby et al., Very large-scale linear
    programming, Operations Research 40, 1992), until the weights prove that at most 0.001% is left to gain.

    Parameters
    ----------
    problem : LayerProblem
        One MoE layer.
    time_limit_s : float or None
        Seconds; None: no limit.
    forbidden : bool array or None
        Mask [items, nodes] of pairs that must not be.
    any_replicas : bool
        Whether the bound is to hold for any number of replicas; slots then do not count.
    memory_prices : float array or None
        What an item pays for its node's memory [nodes].
    slots : float array or None
        Items that each node can take [nodes], in fractions too; None: ``widest``.
    to_round : bool
        Whether shares to round are all that is wanted: a large one then ends with the nodes that it starts from.
    """
    if problem.home is not None and memory_prices is None and slots is None:
        return _by_node(problem, time_limit_s, forbidden, any_replicas, to_round)
    plain = forbidden is None and memory_prices is None and slots is None
    if any_replicas and plain and problem.items * problem.nodes > _AT_ONCE:
        clustered = relax_clustered(problem, time_limit_s)
        return None if clustered is None else Relaxation(*clustered, np.zeros(problem.nodes))
    model = _Model(problem, forbidden, any_replicas, memory_prices, slots)
    deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
    offered, best, weights = model.first_offer(time_limit_s), -np.inf, None
    while True:
        solved = model.solve(offered, None if deadline is None else deadline - time.monotonic())
        if solved.status == "infeasible" and (model.allowed & ~offered).any():
            offered = model.allowed
            continue
        if solved.status != "optimal":
            return None
        if to_round:
            own = link_weights(solved.duals[: problem.links])
            return Relaxation(model.share(solved, offered), own, model.slot_prices(solved))
        reduced = model.reduced_costs(solved, offered)
        lower, found = model.lower_bound(solved, reduced)
        if weights is None or lower > best:
            best, weights = lower, found
        better = model.better(reduced)
        if not better.any() or solved.value - best <= _TOLERANCE * solved.value:
            return Relaxation(model.share(solved, offered), weights, model.slot_prices(solved))
        offered = offered | better


def _by_node(
    problem: LayerProblem, time_limit_s: float | None, forbidden: Mask | None, any_replicas: bool, to_round: bool
) -> Relaxation | None:
    """Solve the relaxation of GPUs by that of their nodes, which is the same but for GPUs that are unlike."""
    assert problem.home is not None
    node = None
    if forbidden is not None:  # where no GPU of the node is left
        first = np.unique(problem.home, return_index=True)[1]
        node = np.logical_and.reduceat(forbidden | (problem.widest == 0), first, axis=1)
    found = relax(merged_by_node(problem), time_limit_s, node, any_replicas, to_round=to_round)
    if found is None:
        return None
    weights = np.zeros(problem.links)
    weights[: len(found.weights)] = found.weights
    return Relaxation(on_every_gpu(problem, found.share), weights, found.slot_prices[problem.home])


class _Model:
    """The relaxation over symmetry classes of items, [J] of them, instead of single items."""

    def __init__(
        self,
        problem: LayerProblem,
        forbidden: Mask | None,
        any_replicas: bool,
        memory_prices: Floats | None,
        slots: Floats | None,
    ) -> None:
        self.problem, self.classes = problem, SymmetryClasses.of_layer(problem)
        nodes, item = problem.nodes, self.classes.item
        self.allowed: Mask = np.ones((len(item), nodes), dtype=bool) if forbidden is None else ~forbidden[item]
        self.slots_count = not any_replicas
        widest = problem.widest if slots is None else slots
        self.most = np.where((widest > 0) & any_replicas, problem.items, widest)
        # Costs are scaled to about 1, since tolerances are absolute.
        self.scale = 1 / max(1e-9, float(problem.base.max(initial=0.0)), float(problem.delta.max(initial=0.0)))
        extra = 0.0 if memory_prices is None else memory_prices
        self.memory_prices = np.broadcast_to(extra, (problem.items, nodes))

    def first_offer(self, time_limit_s: float | None) -> Mask:
        """Mask [J, N] of what the first linear program has: everything, or what one on clusters of items takes."""
        if self.allowed.size <= _AT_ONCE:
            return self.allowed
        return self.allowed & offer_by_direction(self.problem, self.classes, self.most, time_limit_s)

    def solve(self, offered: Mask, time_limit_s: float | None) -> LinearSolution:
        """Solve the linear program with the variables that are ``offered`` [J, N]; rows are links, nodes, classes."""
        classes, nodes = offered.shape
        class_, node = np.nonzero(offered)
        count, links = len(class_), self.problem.links
        touched, cost = self.problem.affected[node], self.problem.delta[self.classes.item[class_], node]
        at, real = np.arange(count), touched < links
        column = np.broadcast_to(at[:, None], touched.shape)[real]
        # What items cost on links, less z, and how many each node and each class has.
        values = np.concatenate([self.scale * cost[real], -np.ones(links), np.ones(2 * count)])
        rows = np.concatenate([touched[real], np.arange(links), links + node, links + nodes + class_])
        columns = np.concatenate([column, np.full(links, count), at, at])
        objective = np.zeros(count + 1)
        objective[:-1] = self.scale * self.memory_prices[self.classes.item[class_], node]
        objective[-1] = 1.0
        each = self.classes.count.astype(np.float64)
        return minimise(
            objective,
            sparse.csr_array((values, (rows, columns)), shape=(links + nodes + classes, count + 1)),
            np.concatenate([np.full(links + nodes, -np.inf), each]),
            np.concatenate([-self.scale * self.problem.base, self.most, each]),
            time_limit_s,
        )

    def reduced_costs(self, solved: LinearSolution, offered: Mask) -> Floats:
        """Return what a unit of each variable [J, N] saves, negative; 0 where offered, forbidden, or nothing."""
        rows = self.problem.links, self.problem.links + self.problem.nodes
        link_dual, slot_dual, class_dual = np.split(solved.duals, rows)
        reduced = self.scale * price(self.problem, -link_dual)[self.classes.item]
        reduced += self.scale * self.memory_prices[self.classes.item]
        reduced -= slot_dual[None, :] + class_dual[:, None]
        reduced[offered | ~self.allowed | (reduced >= -_ROUNDING)] = 0.0
        return reduced

    def better(self, reduced: Floats) -> Mask:
        """Mask [J, N] of variables that would lower the optimum: of each class, the best few."""
        best = np.argsort(reduced, axis=1, kind="stable")[:, :_ADDED]
        better = np.zeros_like(self.allowed)
        np.put_along_axis(better, best, np.take_along_axis(reduced, best, axis=1) < 0, axis=1)
        return better

    def lower_bound(self, solved: LinearSolution, reduced: Floats) -> tuple[float, Floats]:
        """Return a bound on the whole relaxation (scaled), and the link weights that prove it."""
        weights = link_weights(solved.duals[: self.problem.links])
        if self.slots_count and reduced.any():
            prices = np.where(self.allowed[self.classes.of], price(self.problem, weights) + self.memory_prices, np.inf)
            value = float(weights @ self.problem.base) + transport(self.problem, prices)[0]
            return self.scale * value, weights
        return solved.value + float(self.classes.count @ reduced.min(axis=1)), weights

    def slot_prices(self, solved: LinearSolution) -> Floats:
        """Return the duals of the slots [N], in tokens at node-link speed."""
        links = self.problem.links
        return np.asarray(np.maximum(0.0, -solved.duals[links : links + self.problem.nodes]) / self.scale)

    def share(self, solved: LinearSolution, offered: Mask) -> Floats:
        """Return the fraction [I, N] of each item on each node in the solution of a linear program."""
        share = np.zeros(offered.shape)
        share[offered] = solved.x[:-1]
        share /= self.classes.count[:, None]
        return share[self.classes.of]


def link_matrix(problem: LayerProblem, items: Ints) -> sparse.csr_array:
    """Return the matrix [K, len(items) * N]: column ``i * N + n`` is what ``items[i]`` on node n adds to each link."""
    nodes, links = problem.nodes, problem.links
    node, m = np.nonzero(problem.affected < links)
    link = problem.affected[node, m]
    columns = np.arange(len(items))[:, None] * nodes + node[None, :]
    values = problem.delta[items][:, node, m]
    rows = np.broadcast_to(link, columns.shape)
    return sparse.csr_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(links, len(items) * nodes))
