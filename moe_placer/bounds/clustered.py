"""The relaxation of a large layer on items clustered by the direction of their demand.

What an item costs is its tokens times what a token of its sources costs, and the sources of a model's experts mix in a
few ways only. So items that are alike in direction are one variable for each node, whatever they weigh. This restricts
the relaxation, which gives a value that is not below its optimum; link weights bound every single item, which gives
one that is not above it. Clusters whose items want different nodes are divided until the two are close.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.bounds.assignment import price
from moe_placer.bounds.linear_program import link_weights, minimise
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.symmetry import SymmetryClasses

__all__ = ["offer_by_direction", "parts_by_direction", "relax_clustered"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_CLUSTERS = 24  # at first
_OFFERING = 48  # clusters by which nodes are offered
_NEAR = 2  # clusters whose nodes a cluster is offered beside its own
_TOLERANCE = 3e-5  # of the optimum, relative
_MOST_ROUNDS = 8
_DIVIDED = 0.95  # of what clusters lose, in a round
_LEAST_LOSS = 1e-7  # of the bound, for a cluster to be divided
_AXES = 8  # of the random projection in which directions are compared
_MEANS = 4  # rounds of k-means


def relax_clustered(problem: LayerProblem, time_limit_s: float | None = None) -> tuple[Floats, Floats] | None:
    """Return shares [I, N] of items on nodes without regard to slots, and link weights [K]; None if time ran out.

    The bound of the weights is within 0.003% of the best where 8 rounds do for that.
    """
    until = np.inf if time_limit_s is None else time.monotonic() + time_limit_s
    classes = SymmetryClasses.of_layer(problem)
    node = np.flatnonzero(problem.widest > 0)
    delta, mass = _brought(problem, classes, node)
    of = _clustered(_directions(delta, mass), mass, _CLUSTERS)
    best, weights, share = -np.inf, None, None
    for _ in range(_MOST_ROUNDS):
        solved = _solve(problem, node, _sums(delta, of), None if np.isinf(until) else until - time.monotonic())
        if solved is None:
            break
        value, found, parts = solved
        prices = price(problem, found)[classes.item][:, node] * classes.count[:, None]
        bound = float(found @ problem.base) + float(prices.min(axis=1).sum())
        share = np.zeros((problem.items, problem.nodes))
        share[:, node] = _laid_out(parts, of, mass)[classes.of]
        if bound > best:
            best, weights = bound, found
        finer = _divided(of, prices, _LEAST_LOSS * bound)
        if value - best <= _TOLERANCE * value or finer.max() == of.max():
            break
        of = finer
    return None if weights is None or share is None else (share, weights)


def offer_by_direction(
    problem: LayerProblem, classes: SymmetryClasses, most: Floats, time_limit_s: float | None
) -> Mask:
    """Mask [J, N] of the nodes that a relaxation on clusters gives each class's cluster, or those most like it.

    Parameters
    ----------
    problem : LayerProblem
        One MoE layer.
    classes : SymmetryClasses
        Its items, J classes.
    most : float array [N]
        Items that each node may take.
    time_limit_s : float or None
        Seconds; None: no limit.
    """
    solved = parts_by_direction(problem, classes, most, _OFFERING, time_limit_s)
    offered = np.zeros((len(classes.item), problem.nodes), dtype=bool)
    if solved is None:
        return offered
    at, mass, of, parts = solved
    used: Mask = np.greater(parts, 0)
    centre = _centres(at, of, mass)
    near = np.argsort(_squared(centre, centre), axis=1, kind="stable")[:, : _NEAR + 1]
    return np.asarray(used[near].any(axis=1))[of]


def parts_by_direction(
    problem: LayerProblem, classes: SymmetryClasses, most: Floats | Ints, clusters: int, time_limit_s: float | None
) -> tuple[Floats, Floats, Ints, Floats] | None:
    """Relax a layer on clusters of its classes, with slots; None if there is no solution, or time ran out.

    Parameters
    ----------
    problem : LayerProblem
        One MoE layer.
    classes : SymmetryClasses
        Its items, J classes.
    most : float or int array [N]
        Items that each node may take.
    clusters : int
        How many at most.
    time_limit_s : float or None
        Seconds; None: no limit.

    Returns
    -------
    at : float array [J, axes]
        Direction of each class.
    mass : float array [J]
        What it weighs.
    of : int array [J]
        Its cluster.
    parts : float array [clusters, N]
        Which part of each cluster each node gets.
    """
    node = np.flatnonzero(most > 0)
    delta, mass = _brought(problem, classes, node)
    at = _directions(delta, mass)
    of = _clustered(at, mass, clusters)
    items = np.bincount(of, classes.count).astype(np.float64)
    solved = _solve(problem, node, _sums(delta, of), time_limit_s, (items, np.asarray(most[node], dtype=np.float64)))
    if solved is None:
        return None
    parts = np.zeros((len(items), problem.nodes))
    parts[:, node] = solved[2]
    return at, mass, of, parts


def _brought(problem: LayerProblem, classes: SymmetryClasses, node: Ints) -> tuple[Floats, Floats]:
    """Return what the items of each class [J] cost on the links of some nodes together, and what they weigh."""
    delta = problem.delta[classes.item][:, node] * classes.count[:, None, None]
    return delta, problem.load[classes.item] * classes.count


def _directions(delta: Floats, mass: Floats) -> Floats:
    """Return where the directions of classes [J] lie in a random projection to a few axes."""
    axes = np.random.default_rng(0).standard_normal((delta[0].size, _AXES))
    return np.asarray(delta.reshape(len(delta), -1) @ axes / np.where(mass > 0, mass, 1.0)[:, None])


def _clustered(at: Floats, mass: Floats, clusters: int) -> Ints:
    """Cluster points [J] that weigh ``mass``: k-means from points that are far apart."""
    if clusters >= len(at):
        return np.arange(len(at))
    far = [int(mass.argmax())]
    distance = np.full(len(at), np.inf)
    for _ in range(clusters - 1):
        away = at - at[far[-1]]
        np.minimum(distance, np.einsum("ja,ja->j", away, away), out=distance)
        far.append(int((mass * distance).argmax()))
    centre = at[far]
    for _ in range(_MEANS):
        of = np.unique(_squared(at, centre).argmin(axis=1), return_inverse=True)[1].ravel()
        centre = _centres(at, of, mass)
    return of


def _centres(at: Floats, of: Ints, mass: Floats) -> Floats:
    weight = np.bincount(of, mass)
    total = np.stack([np.bincount(of, mass * axis) for axis in at.T], axis=1)
    return np.asarray(total / np.where(weight > 0, weight, 1.0)[:, None])


def _squared(at: Floats, centre: Floats) -> Floats:
    return np.asarray(((at[:, None, :] - centre[None, :, :]) ** 2).sum(axis=2))


def _sums(delta: Floats, of: Ints) -> Floats:
    """Return what all items of each cluster cost together [clusters, N, M]."""
    total = np.zeros((int(of.max()) + 1, *delta.shape[1:]))
    np.add.at(total, of, delta)
    return total


def _solve(
    problem: LayerProblem,
    node: Ints,
    cost: Floats,
    time_limit_s: float | None,
    room: tuple[Floats, Floats] | None = None,
) -> tuple[float, Floats, Floats] | None:
    """Minimise z over parts of clusters on nodes; return z, link weights [K] and the parts [clusters, nodes].

    Parameters
    ----------
    problem : LayerProblem
        One MoE layer.
    node : int array
        Nodes that can hold anything.
    cost : float array [clusters, nodes, M]
        What a whole cluster adds to the links of a node.
    time_limit_s : float or None
        Seconds; None: no limit.
    room : pair of float arrays or None
        Items of each cluster, and items that each node may take; None: slots do not count.
    """
    clusters, nodes, _ = cost.shape
    links, count = problem.links, clusters * nodes
    # Costs are scaled to about 1, since tolerances are absolute.
    scale = 1 / max(1e-9, float(problem.base.max(initial=0.0)), float(cost.max(initial=0.0)) / nodes)
    link = np.broadcast_to(problem.affected[node], cost.shape)
    real = link < links
    of, on = np.divmod(np.arange(count), nodes)
    column = np.broadcast_to(np.arange(count).reshape(clusters, nodes, 1), cost.shape)[real]
    values = [scale * cost[real], -np.ones(links), np.ones(count)]
    rows = [link[real], np.arange(links), links + of]
    columns = [column, np.full(links, count), np.arange(count)]
    each, none = np.ones(clusters), np.full(links, -np.inf)
    lower, upper = [none, each], [-scale * problem.base, each]
    if room is not None:
        items, most = room
        values, rows, columns = [*values, items[of]], [*rows, links + clusters + on], [*columns, np.arange(count)]
        lower, upper = [*lower, np.full(nodes, -np.inf)], [*upper, most]
    limits = np.concatenate(lower), np.concatenate(upper)
    at = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.csr_array((np.concatenate(values), at), shape=(len(limits[0]), count + 1))
    solved = minimise(np.append(np.zeros(count), 1.0), matrix, *limits, time_limit_s)
    if solved.status != "optimal":
        return None
    return solved.value / scale, link_weights(solved.duals[:links]), solved.x[:count].reshape(clusters, nodes)


def _divided(of: Ints, prices: Floats, least: float) -> Ints:
    """Divide clusters by the cheapest nodes of their items, from the one that loses most by having one for all."""
    together = np.zeros((int(of.max()) + 1, prices.shape[1]))
    np.add.at(together, of, prices)
    loss = together.min(axis=1) - np.bincount(of, prices.min(axis=1))
    cheapest, finer, left = prices.argmin(axis=1), of.copy(), loss.sum() * _DIVIDED
    for cluster in np.argsort(-loss, kind="stable"):
        if left <= 0 or loss[cluster] <= least:
            break
        left -= loss[cluster]
        items = np.flatnonzero(of == cluster)
        wants = np.unique(cheapest[items], return_inverse=True)[1].ravel()
        finer[items[wants > 0]] = finer.max() + wants[wants > 0]
    return finer


def _laid_out(parts: Floats, of: Ints, mass: Floats) -> Floats:
    """Return shares [J, N] that have the clusters' parts: items one after the other, cut where a node's part ends.

    So no cluster cuts more items than it has nodes.
    """
    order = np.lexsort((-mass, of))
    size = np.bincount(of, mass)
    even = np.bincount(of)[of]
    width = np.where(size[of] > 0, mass / np.where(size[of] > 0, size[of], 1.0), 1.0 / even)
    end = np.zeros(len(of))
    end[order] = np.cumsum(width[order])
    end -= of  # of each cluster: from 0 to 1
    begin = end - width
    parts = np.maximum(parts, 0.0)
    upto = np.cumsum(parts, axis=1) / parts.sum(axis=1, keepdims=True)
    upto[:, -1] = np.inf  # whatever rounding leaves
    since = np.hstack([np.full((len(parts), 1), -np.inf), upto[:, :-1]])
    inside = np.minimum(end[:, None], upto[of]) - np.maximum(begin[:, None], since[of])
    share = np.maximum(inside, 0.0)
    total = share.sum(axis=1, keepdims=True)
    at = np.zeros_like(share)
    at[np.arange(len(of)), parts[of].argmax(axis=1)] = 1.0
    return np.asarray(np.where(total > 0, share / np.where(total > 0, total, 1.0), at))
