"""Lower bounds on a layer's worst link that anyone can re-check; docs/bounds.md states and proves each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog

from moe_placer.kinds import Kinds
from moe_placer.placement import Proof
from moe_placer.problem import LayerProblem

__all__ = [
    "Bound",
    "Relaxation",
    "any_copies_bound",
    "best_bound",
    "dual_bound",
    "hot_expert_bound",
    "relax",
    "threshold_bound",
    "transport",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Claimed bounds are this much below what was computed, so that the rounding of another summation order cannot turn a
# true claim into a false one. Sums of some thousand doubles err by about 1e-13 of their size.
SAFETY = 1e-10
_SIMPLEX = 6_000  # variables up to which the simplex method wins


@dataclass(frozen=True, eq=False)
class Bound:
    """A lower bound on z, and what proves it.

    Attributes
    ----------
    value : float
        Cost (tokens at node-link speed).
    proof : str
        ``dual``, ``hot-experts``, ``threshold``, or ``solver`` where nothing re-checkable is known.
    weights : float array [K] or None
        Link weights, summing to 1; the proof of ``dual`` and ``threshold``.
    threshold : float or None
    hot : int or None
        Item for ``hot-experts``.
    any_copies : bool
        Whether it holds for any number of copies of each expert.
    """

    value: float
    proof: Proof
    weights: Floats | None = None
    threshold: float | None = None
    hot: int | None = None
    any_copies: bool = False


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The linear relaxation of a layer.

    Attributes
    ----------
    share : float array [I, N]
        Fraction of each item on each node; rows sum to 1.
    weights : float array [K]
        Duals of the link constraints, scaled to sum to 1.
    """

    share: Floats
    weights: Floats


def relax(
    problem: LayerProblem,
    time_limit_s: float | None = None,
    forbidden: npt.NDArray[np.bool_] | None = None,
    any_copies: bool = False,
) -> Relaxation | None:
    """Solve the linear relaxation: minimise z with items spread over nodes in fractions; None if none or out of time.

    ``min z  s.t.  base + sum delta x <= z,  sum_n x[i, n] = 1,  sum_i x[i, n] <= widest[n],  x >= 0`` (HiGHS);
    x is 0 where ``forbidden`` [I, N]. With ``any_copies``, slots do not count, which leaves room for other copies.
    """
    kinds = Kinds.of_layer(problem)
    count, nodes, links = len(kinds.item), problem.nodes, problem.links
    # Costs are scaled to about 1, since HiGHS's tolerances are absolute.
    scale = 1 / max(1e-9, float(problem.base.max(initial=0.0)), float(problem.delta.max(initial=0.0)))
    link_rows = sparse.hstack([scale * link_matrix(problem, kinds.item), -np.ones((links, 1))])
    slot_rows = sparse.hstack([sparse.kron(np.ones((1, count)), sparse.eye_array(nodes)), sparse.csr_array((nodes, 1))])
    kind_rows = sparse.hstack([sparse.kron(sparse.eye_array(count), np.ones((1, nodes))), sparse.csr_array((count, 1))])
    most = np.where((problem.widest > 0) & any_copies, problem.items, problem.widest)
    objective = np.zeros(count * nodes + 1)
    objective[-1] = 1.0
    solved = linprog(
        objective,
        A_ub=sparse.csr_array(sparse.vstack([link_rows, slot_rows])),
        b_ub=np.concatenate([-scale * problem.base, most]),
        A_eq=sparse.csr_array(kind_rows),
        b_eq=kinds.count,
        bounds=_limits(None if forbidden is None else forbidden[kinds.item]),
        # Simplex is faster on small relaxations, interior point (with crossover to a vertex) on large ones.
        method="highs-ds" if count * nodes <= _SIMPLEX else "highs-ipm",
        options={} if time_limit_s is None else {"time_limit": max(0.01, time_limit_s)},
    )
    if solved.status != 0:
        return None
    weights = np.maximum(0.0, -solved.ineqlin.marginals[:links])
    total = weights.sum()
    weights = weights / total if total > 0 else np.full(links, 1 / max(1, links))
    share = np.asarray(solved.x[:-1]).reshape(count, nodes) / kinds.count[:, None]
    return Relaxation(share[kinds.of], weights)


def _limits(forbidden: npt.NDArray[np.bool_] | None) -> tuple[int, None] | Floats:
    """Lower and upper limits of the relaxation's variables."""
    if forbidden is None:
        return (0, None)
    most = np.append(np.where(forbidden, 0.0, np.inf).ravel(), np.inf)
    return np.column_stack([np.zeros(len(most)), most])


def link_matrix(problem: LayerProblem, items: Ints) -> sparse.csr_array:
    """Return the matrix [K, len(items) * N]: column ``i * N + n`` is what ``items[i]`` on node n adds to each link."""
    nodes, links = problem.nodes, problem.links
    node, m = np.nonzero(problem.touched < links)
    link = problem.touched[node, m]
    columns = np.arange(len(items))[:, None] * nodes + node[None, :]
    values = problem.delta[items][:, node, m]
    rows = np.broadcast_to(link, columns.shape)
    return sparse.csr_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(links, len(items) * nodes))


def best_bound(problem: LayerProblem, weights: Floats | None = None, time_limit_s: float | None = None) -> Bound:
    """Return the best quick bound; with weights from `relax`, it keeps them whatever its proof.

    Where copies are free, only bounds for any copies count; their own weights take another, smaller relaxation.
    """
    if problem.copies_are_free:
        if weights is None or not problem.links:
            return Bound(0.0, "solver")
        free = relax(problem, time_limit_s, any_copies=True)
        candidates = [weights] if free is None else [weights, free.weights]
        return max((any_copies_bound(problem, w) for w in candidates), key=lambda bound: bound.value)
    bounds = [hot_expert_bound(problem)]
    if weights is not None and problem.links:
        bounds.append(dual_bound(problem, weights))
    return replace(max(bounds, key=lambda bound: bound.value), weights=weights)


def any_copies_bound(problem: LayerProblem, weights: Floats) -> Bound:
    """Bound z for any number of copies: every expert, in one copy, on its cheapest node."""
    _, item, copies = np.unique(problem.expert, return_index=True, return_counts=True)
    price = _price(problem, weights)[item][:, problem.widest > 0] * copies[:, None]
    value = float(weights @ problem.base) + float(price.min(axis=1).sum())
    return Bound(_safe(value), "dual", weights, any_copies=True)


def dual_bound(problem: LayerProblem, weights: Floats) -> Bound:
    """Bound z by a weighted mean of the link costs: an exact transportation problem."""
    value = float(weights @ problem.base) + transport(problem, _price(problem, weights))[0]
    return Bound(_safe(value), "dual", weights)


def hot_expert_bound(problem: LayerProblem) -> Bound:
    """Bound z by what the node that holds some item must receive, for the item where this is most."""
    per_item = _floor(problem)[:, problem.widest > 0].min(axis=1)
    hot = int(per_item.argmax())
    return Bound(_safe(float(per_item[hot])), "hot-experts", hot=hot)


def threshold_bound(problem: LayerProblem, weights: Floats, threshold: float) -> Bound:
    """Bound z by ``threshold``, or by the transportation problem that is left without what the threshold forbids."""
    price = _price(problem, weights)
    cost, possible = transport(problem, np.where(beyond(problem, threshold), np.inf, price))
    value = threshold if not possible else min(threshold, float(weights @ problem.base) + cost)
    return Bound(_safe(value), "threshold", weights, threshold=threshold)


def beyond(problem: LayerProblem, threshold: float) -> npt.NDArray[np.bool_]:
    """Mask [I, N] of what no placement with z below ``threshold`` has: item i on node n alone makes a link that hot."""
    return _floor(problem) >= threshold * (1 + SAFETY)


def transport(problem: LayerProblem, price: Floats) -> tuple[float, bool]:
    """Cheapest assignment of items to nodes with at most ``widest`` items a node, and whether there is one.

    Infinite prices forbid a pair. Solved exactly by the shortest-augmenting-path method (scipy).
    """
    slots = np.minimum(problem.widest, problem.items)
    try:
        rows, columns = linear_sum_assignment(np.repeat(price, slots, axis=1))
    except ValueError:  # "cost matrix is infeasible"
        return np.inf, False
    node = np.repeat(np.arange(problem.nodes), slots)[columns]
    return float(price[rows, node].sum()), True


def _price(problem: LayerProblem, weights: Floats) -> Floats:
    """Weighted cost [I, N] of item i on node n."""
    return np.asarray(np.einsum("inm,nm->in", problem.delta, np.append(weights, 0.0)[problem.touched]))


def _floor(problem: LayerProblem) -> Floats:
    """``floor[i, n]``: what some link carries at least if item i is on node n (docs/bounds.md)."""
    items, nodes = problem.items, problem.nodes
    widest = problem.widest
    least = np.maximum(0, items - (widest.sum() - widest))
    floor = np.zeros((items, nodes))
    for n in range(nodes):
        for m in np.flatnonzero(problem.incoming[n]):
            cost = problem.delta[:, n, m]
            others = int(least[n]) - 1
            companions: Floats | float = 0.0
            if others > 0:
                order = np.sort(cost)
                # The cheapest others; an item that is itself among them makes room for the next.
                companions = order[:others].sum() + np.where(cost <= order[others - 1], order[others] - cost, 0.0)
            floor[:, n] = np.maximum(floor[:, n], cost + companions)
    return floor


def _safe(value: float) -> float:
    return max(0.0, value * (1 - SAFETY))
