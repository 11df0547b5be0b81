"""Bounds on the busiest link whatever the replicas, their places, and the rule by which tokens pick one of them.

Under link weights a token from node s to node n costs ``price[s, n]``, and no rule sends it cheaper than to the
cheapest of the nodes that hold its expert. Which nodes hold an expert is a choice that slots limit: a facility location
problem for each expert, where a replica pays for its slot. Its linear dual is a proof: what each node's tokens pay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.bounds.linear_program import LinearSolution, link_weights, minimise
from moe_placer.problem.near_replicas import NearLayer

__all__ = ["SplitProof", "even_split_proof", "prove_split", "value_of_split"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_AT_ONCE = 8_000  # variables up to which everything is one linear program
_STEPS = 24  # of slot prices and link weights, in larger layers
_DIGITS = 9  # significant, of what a proof states


@dataclass(frozen=True, eq=False)
class SplitProof:
    """What proves a bound, and the bound.

    Attributes
    ----------
    value : float
        Cost (tokens at node-link speed).
    weights : float array [K]
        Of links; they sum to 1.
    slot_prices : float array [nodes]
        What a replica on a node pays for its slot there.
    paid : float array [experts, nodes]
        What each node's tokens for an expert cost at least, their part of slots included.
    """

    value: float
    weights: Floats
    slot_prices: Floats
    paid: Floats


def value_of_split(near: NearLayer, weights: Floats, slot_prices: Floats, paid: Floats) -> float:
    """Return what a proof is worth: any numbers prove something.

    For any set S of nodes, ``sum_s min over n in S of cost[s, n] + sum of S's slot prices`` is at least ``sum_s paid[s]
    + sum over n in S of (slot_prices[n] - sum_s max(0, paid[s] - cost[s, n]))``, and S is not empty.

    Parameters
    ----------
    near : NearLayer
    weights : float array [K]
    slot_prices : float array [nodes]
    paid : float array [experts, nodes]
    """
    left = slot_prices - np.maximum(0.0, paid[:, :, None] - _costs(near, weights)).sum(axis=1)
    each = paid.sum(axis=1) + np.minimum(left, 0.0).sum(axis=1) + np.maximum(0.0, left.min(axis=1))
    return float(each.sum()) - _worth_of_slots(near, slot_prices)


def _worth_of_slots(near: NearLayer, slot_prices: Floats) -> float:
    """Return what the slots that a layer may use are worth at most: the dearest first."""
    slots = near.slots.reshape(near.nodes, -1).sum(axis=1)
    order = np.argsort(-slot_prices, kind="stable")
    used = np.diff(np.minimum(np.cumsum(slots[order]), near.most_items), prepend=0)
    return float(used @ slot_prices[order])


def _costs(near: NearLayer, weights: Floats) -> Floats:
    """Cost of each node's tokens for an expert on each node [experts, nodes, nodes]."""
    return np.asarray(near.tokens[:, :, None] * np.maximum(near.prices(weights), 0.0))


def even_split_proof(near: NearLayer, weights: Floats) -> SplitProof:
    """Prove what link weights give, by the best even price of slots and the first dual that is found."""
    costs = _costs(near, weights)
    low, high = 0.0, float(costs.sum(axis=1).max(initial=0.0))
    best = _with_slots(near, weights, costs, 0.0)
    for _ in range(_STEPS):
        some = [low + (high - low) * part for part in (1 / 3, 2 / 3)]
        left, right = (_with_slots(near, weights, costs, price) for price in some)
        best = max(best, left, right, key=lambda one: one.value)
        low, high = (some[0], high) if left.value < right.value else (low, some[1])
    return best


def _with_slots(near: NearLayer, weights: Floats, costs: Floats, price: float) -> SplitProof:
    slot_prices = np.full(near.nodes, price)
    paid = _rounded(_ascend(costs, slot_prices))
    return SplitProof(value_of_split(near, weights, slot_prices, paid), weights, slot_prices, paid)


def _ascend(costs: Floats, slot_prices: Floats) -> Floats:
    """Raise what each node's tokens pay, level by level, while slots are not overpaid (Erlenkotter's dual ascent).

    Parameters
    ----------
    costs : float array [experts, nodes, nodes]
    slot_prices : float array [nodes]
    """
    paid: Floats = costs.min(axis=2)
    left = np.tile(slot_prices, (len(costs), 1))
    for _ in range(2 * costs.shape[2]):
        raised = False
        for source in range(costs.shape[1]):
            own = paid[:, source, None]
            reached = costs[:, source] <= own * (1 + 1e-12)
            room = np.where(reached, left, np.inf).min(axis=1)
            level = np.where(reached, np.inf, costs[:, source]).min(axis=1) - paid[:, source]
            step = np.maximum(0.0, np.minimum(room, level))
            paid[:, source] += step
            left -= np.where(reached, step[:, None], 0.0)
            raised |= bool((step > 1e-12 * paid[:, source]).any())
        if not raised:
            break
    return np.asarray(paid)


def prove_split(near: NearLayer, time_limit_s: float | None = None) -> SplitProof | None:
    """Return the proof that a linear program gives, or in large layers even link weights; None without links."""
    experts, nodes = near.tokens.shape
    links = len(near.reference)
    if not links:
        return None
    if experts * nodes * nodes <= _AT_ONCE:
        solved = _solve(near, time_limit_s)
        if solved.status == "optimal":
            return _of_duals(near, solved)
    return max((even_split_proof(near, own) for own in _even_weights(near)), key=lambda one: one.value)


def _even_weights(near: NearLayer) -> list[Floats]:
    """Return link weights [K] that are even over links of one kind: of one direction, that as many nodes touch."""
    links = len(near.reference)
    touching = np.bincount(near.affected.ravel(), minlength=links + 1)[:links]
    alike = np.stack([touching, near.base == 0])
    _, kind, count = np.unique(alike, axis=1, return_inverse=True, return_counts=True)
    return [np.where(kind.ravel() == one, 1 / size, 0.0) for one, size in enumerate(count.tolist())]


def _of_duals(near: NearLayer, solved: LinearSolution) -> SplitProof:
    (experts, nodes), links = near.tokens.shape, len(near.reference)
    of_links, of_slots, of_tokens, _ = np.split(solved.duals, np.cumsum([links, nodes + 1, experts * nodes]))
    weights, scale = link_weights(of_links), _scale(near)
    slot_prices = _rounded(np.maximum(0.0, -(of_slots[:-1] + of_slots[-1])) / scale)
    own = near.tokens * (weights @ near.reference)[None, :]
    paid = _rounded(np.maximum(0.0, of_tokens.reshape(experts, nodes) / scale + own))
    return SplitProof(value_of_split(near, weights, slot_prices, paid), weights, slot_prices, paid)


def _scale(near: NearLayer) -> float:
    """Return what brings costs to about 1, since tolerances are absolute."""
    return 1 / max(1e-9, float(near.base.max(initial=0.0)))


def _solve(near: NearLayer, time_limit_s: float | None) -> LinearSolution:
    """Solve the relaxation: rows are links, slots and all replicas, tokens, and that they go where a replica is.

    Variables are the share of a node's tokens for an expert that goes to a node, replicas of experts on nodes, and z.
    """
    (experts, nodes), links = near.tokens.shape, len(near.reference)
    e, s, n = (grid.ravel() for grid in np.indices((experts, nodes, nodes)))
    x, y = np.arange(len(e)), len(e) + np.arange(experts * nodes)
    z, scale = len(x) + len(y), _scale(near)
    touched = near.affected[n]
    cost = (
        near.change[n[:, None], np.arange(touched.shape[1])[None, :], s[:, None]] * near.tokens[e, s][:, None] * scale
    )
    real = (touched < links) & (cost != 0)
    column = np.broadcast_to(x[:, None], touched.shape)[real]
    first = np.cumsum([0, links, nodes + 1, experts * nodes])
    rows = [touched[real], np.arange(links), first[1] + np.tile(np.arange(nodes), experts)]
    rows += [np.full(len(y), first[1] + nodes), first[2] + e * nodes + s, first[3] + x, first[3] + x]
    columns = [column, np.full(links, z), y, y, x, x, len(x) + e * nodes + n]
    ones = np.ones(len(x))
    values = [cost[real], -np.ones(links), np.ones(len(y)), np.ones(len(y)), ones, ones, -ones]
    matrix = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    slots = near.slots.reshape(nodes, -1).sum(axis=1).astype(np.float64)
    most = [-scale * near.base, slots, np.array([float(near.most_items)]), np.ones(experts * nodes), np.zeros(len(x))]
    least = [np.full(links + nodes + 1, -np.inf), np.ones(experts * nodes), np.full(len(x), -np.inf)]
    objective = np.zeros(z + 1)
    objective[z] = 1.0
    shape = (first[3] + len(x), z + 1)
    upper, lower = np.concatenate(most), np.concatenate(least)
    return minimise(objective, sparse.csr_array(matrix, shape=shape), lower, upper, time_limit_s)


def _rounded(values: Floats) -> Floats:
    """Round down to some digits, which is still a proof, and shorter."""
    size = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(values), 1e-300))) - _DIGITS + 1)
    return np.asarray(np.floor(values / size) * size)
